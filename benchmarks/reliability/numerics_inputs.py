"""Inputs that are hard for Flow-Attention, each at any scale and length: see numerics.py."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

WIDTH = 16
HUGE = 1_000.0  # times the scale: the one large token


class Inputs(NamedTuple):
    """Query, key, value and the gradient of the output, each [1, tokens, 1, WIDTH]."""

    query: Tensor
    key: Tensor
    value: Tensor
    gradient: Tensor


def _normal(tokens: int, generator: torch.Generator) -> list[Tensor]:
    shape = (tokens, WIDTH)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]


def _constant(tokens: int, _: torch.Generator) -> list[Tensor]:
    return [torch.ones(tokens, WIDTH, dtype=torch.float64)] * 3


def _one_hot(tokens: int, _: torch.Generator) -> list[Tensor]:
    return [torch.eye(WIDTH, dtype=torch.float64)[torch.arange(tokens) % WIDTH]] * 3


def _alike(tokens: int, generator: torch.Generator) -> list[Tensor]:
    return [x[:1].expand(tokens, -1) for x in _normal(tokens, generator)]


def _huge_token(tokens: int, generator: torch.Generator) -> list[Tensor]:
    inputs = _normal(tokens, generator)
    for x in inputs:
        x[tokens // 2] *= HUGE
    return inputs


def _alternating(tokens: int, generator: torch.Generator) -> list[Tensor]:
    signs = 1.0 - 2.0 * (torch.arange(tokens, dtype=torch.float64) % 2)[:, None]
    return [signs * x.abs() for x in _normal(tokens, generator)]


def _orthogonal(tokens: int, generator: torch.Generator) -> list[Tensor]:
    query, key, value = (x.abs() for x in _normal(tokens, generator))
    first = torch.arange(WIDTH) < WIDTH // 2
    return [torch.where(first, query, -query), torch.where(first, -key, key), value]


def _sorted(tokens: int, generator: torch.Generator) -> list[Tensor]:
    query, _, value = _normal(tokens, generator)
    rising = torch.linspace(-4, 4, tokens, dtype=torch.float64)[:, None]
    return [query, rising.expand(-1, WIDTH), value]


def _negative(tokens: int, generator: torch.Generator) -> list[Tensor]:
    query, key, value = _normal(tokens, generator)
    return [-query.abs(), -key.abs(), value]


KINDS: dict[str, tuple[str, Callable[[int, torch.Generator], list[Tensor]]]] = {
    "normal": ("standard normal", _normal),
    "constant": ("every value the same", _constant),
    "one-hot": ("one feature a token, in turn", _one_hot),
    "alike": ("every token the same", _alike),
    "huge-token": (f"normal, the token in the middle {HUGE:,.0f} times as large", _huge_token),
    "alternating": ("the sign turns from token to token", _alternating),
    "orthogonal": ("queries and keys large in different features", _orthogonal),
    "sorted": ("keys rise from -4 to 4: the first and last sources beyond the clamp", _sorted),
    "negative": ("queries and keys below zero: features of relu all 1e-6", _negative),
}


def make_inputs(kind: str, tokens: int, scale: float, dtype: torch.dtype) -> Inputs:
    """Return the inputs rounded to a dtype, in float64: the exact result is that of these.

    Values beyond the range of the dtype are set to its largest one.
    """
    generator = torch.Generator().manual_seed(0)
    values = [scale * x for x in KINDS[kind][1](tokens, generator)]
    values.append(torch.randn(tokens, WIDTH, generator=generator, dtype=torch.float64))
    largest = torch.finfo(dtype).max
    rounded = [x.clamp(-largest, largest).to(dtype).double()[None, :, None] for x in values]
    return Inputs(*rounded)
