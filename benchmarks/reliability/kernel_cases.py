"""Calls of the attentions, drawn at random: what `kernel_fuzz.py` gives to the compiled kernels.

A seed draws all of a call: its sizes, with those around whole vectors and chunks more often than
others, its dtype, masks or packed sequences, grouped heads, options, decays, states, strides and
threads. What stands in padding, in any tensor, is NaN in half of the calls.
"""

import random
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowformer import FlowState, LinearState, flow_attention, linear_attention, mobile_attention

ATTENTIONS: dict[str, Any] = {
    "flow": flow_attention,
    "linear": linear_attention,
    "mobile": mobile_attention,
}
DTYPES = ("float64", "float32", "float16", "bfloat16")
FILLS = ("full", "full", "holes", "ends", "empty", "packed", "packed")
SIDES = ("both", "queries", "keys")
STRIDES = ("contiguous", "contiguous", "heads first", "spread")
EDGES = (1, 2, 4, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129)
LONG_EDGES = (192, 193, 256, 257, 320, 512, 513, 576, 640)
Fields = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A call.

    Attributes:
        seed: draws it, and its numbers.
        attention: a name of `ATTENTIONS`.
        causal: its form.
        dtype: of query, key and value.
        sequences: rows of the batch, or sequences of the pack.
        queries: tokens of a row, or of the pack.
        keys: the same of keys and values.
        heads: of queries.
        groups: heads of keys and values.
        width: of queries and keys.
        value_width: of values.
        fill: which tokens are real, one of `FILLS`.
        side: which sides are masked; a call whose sides are the same tokens has one mask.
        options: of the attention.
        scaled: whether linear attention has a row_scale.
        decay: what log_decay goes down to, 0 for none.
        past: tokens before the state that the call begins with, 0 for none.
        after: whether the state after the call is asked for.
        scale: of queries and keys.
        strides: how tensors lie in memory.
        spoiled: whether padding holds NaN.
        threads: of torch.
        gradients: whether they are asked for.
    """

    seed: int
    attention: str
    causal: bool
    dtype: str
    sequences: int
    queries: int
    keys: int
    heads: int
    groups: int
    width: int
    value_width: int
    fill: str
    side: str
    options: dict[str, Any]
    scaled: bool
    decay: float
    past: int
    after: bool
    scale: float
    strides: str
    spoiled: bool
    threads: int
    gradients: bool

    @property
    def packed(self) -> bool:
        """Return whether its sequences are packed into one row."""
        return self.fill == "packed"

    @property
    def batch(self) -> int:
        """Return the rows of its tensors."""
        return 1 if self.packed else self.sequences


class Inputs(NamedTuple):
    """The tensors of a case.

    Attributes:
        tensors: query, key, value, and row_scale and log_decay where there are any.
        state: the one before the first token, or None.
        others: masks and offsets, by the names of arguments.
        real: of tensors with padding, which tokens are real.
    """

    tensors: Fields
    state: FlowState | LinearState | None
    others: Fields
    real: Fields

    def to(self, dtype: torch.dtype) -> "Inputs":
        """Return them with numbers of another dtype."""
        return self._replace(tensors={name: x.to(dtype) for name, x in self.tensors.items()})

    def moved(self, seed: int) -> "Inputs":
        """Return them in float32, each number off by up to a unit in its last place."""
        generator = torch.Generator().manual_seed(seed)
        step = torch.finfo(torch.float32).eps

        def by_a_unit(x: Tensor) -> Tensor:
            off = 1 + step * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1)
            return (x * off).float()

        wide = {name: x.double() for name, x in self.tensors.items()}
        return self._replace(tensors={name: by_a_unit(x) for name, x in wide.items()})

    def spoiled(self) -> "Inputs":
        """Return them with NaN in all padding."""
        tensors = dict(self.tensors)
        for name, real in self.real.items():
            padding = ~real.view(*real.shape, *[1] * (tensors[name].ndim - 2))
            tensors[name] = tensors[name].masked_fill(padding, torch.nan)
        return self._replace(tensors=tensors)

    def laid_out(self, strides: str) -> "Inputs":
        """Return them with another order of their numbers in memory."""

        def each(x: Tensor) -> Tensor:
            if strides == "heads first":
                return x.transpose(1, 2).contiguous().transpose(1, 2)
            return torch.stack([x, x], -1)[..., 0] if strides == "spread" else x

        return self._replace(tensors={name: each(x) for name, x in self.tensors.items()})


def drawn(seed: int) -> Case:
    """Draw a call."""
    dice = random.Random(seed)

    def size(most: int, *edges: int) -> int:
        return dice.choice([dice.randint(1, most), dice.randint(1, 20), dice.choice(edges)])

    attention = dice.choice(["flow", "flow", "linear", "mobile"])
    causal = attention != "mobile" and dice.random() < 0.5
    queries = size(700, *EDGES, *LONG_EDGES)
    alike = causal or attention == "mobile" or dice.random() < 0.5
    groups = dice.choice([1, 2, 3])
    return Case(
        seed=seed,
        attention=attention,
        causal=causal,
        dtype=dice.choice(DTYPES),
        sequences=dice.choice([1, 1, 2, 3, 5]),
        queries=queries,
        keys=queries if alike else size(700, *EDGES, *LONG_EDGES),
        heads=groups * dice.choice([1, 1, 1, 2, 3]),
        groups=groups,
        width=size(130, *EDGES),
        value_width=size(130, *EDGES),
        fill=dice.choice(FILLS),
        side="both" if causal or attention == "mobile" else dice.choice(SIDES),
        options=_options(dice, attention, causal=causal),
        scaled=attention == "linear" and dice.random() < 0.5,
        decay=dice.choice([0.0, 0.01, 0.3, 3.0]) if causal and attention == "linear" else 0.0,
        past=dice.choice([0, 0, 1, 9, 70]) if causal else 0,
        after=causal and dice.random() < 0.6,
        scale=dice.choice([1.0, 1.0, 1.0, 0.01, 5.0]),
        strides=dice.choice(STRIDES),
        spoiled=dice.random() < 0.5,
        threads=dice.choice([1, 2, 5]),
        gradients=dice.random() < 0.6,
    )


def _options(dice: random.Random, attention: str, *, causal: bool) -> dict[str, Any]:
    if attention == "linear":
        return {"normalize": dice.random() < 0.25}
    options = {
        "feature_map": dice.choice(["sigmoid", "relu"]),
        "clamp": dice.choice([1.0, 1.0, None, 0.3, 50.0, 60.0]),
        "eps": dice.choice([1e-6, 1e-6, 1e-3]),
        "allocation": dice.random() < 0.8,
    }
    if attention == "mobile":
        competes = {"competition": dice.random() < 0.7, "normalize": dice.random() < 0.5}
    else:
        over = ["sources", "sources", None, "sources" if causal else "heads"]
        competes = {"competition": dice.choice(over)}
    return options | competes


def inputs_of(case: Case) -> Inputs:
    """Return the tensors of a case; those of the dtype's arithmetic are exact in the dtype."""
    dice, generator = random.Random(case.seed), torch.Generator().manual_seed(case.seed)
    tensors = _tensors(case, dice, generator)
    others: Fields = {}
    real: Fields = {}
    if case.packed:
        others = _offsets(case, dice)
    elif case.fill != "full":
        others, sides = _masks(case, dice, generator)
        of_sides = {"query": 0, "row_scale": 0, "log_decay": 0, "key": 1, "value": 1}
        masks = {name: sides[of_sides[name]] for name in tensors}
        real = {name: mask for name, mask in masks.items() if mask is not None}
    return Inputs(tensors, _past(case, generator), others, real)


def _tensors(case: Case, dice: random.Random, generator: torch.Generator) -> Fields:
    def normal(tokens: int, heads: int, width: int) -> Tensor:
        shape = case.batch, tokens, heads, width
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def part(tokens: int) -> Tensor:
        shape = case.batch, tokens, case.heads
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    query = case.scale * normal(case.queries, case.heads, case.width)
    key = case.scale * normal(case.keys, case.groups, case.width)
    if case.attention == "linear":
        query, key = query.sigmoid(), key.sigmoid()
    value = normal(case.keys, case.groups, case.value_width)
    tensors = {"query": query, "key": key, "value": value}
    dtype = getattr(torch, case.dtype)
    tensors = {name: x.to(dtype) for name, x in tensors.items()}
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    if case.scaled:
        tensors["row_scale"] = part(case.queries).to(wide)
    if case.decay:
        tensors["log_decay"] = (-case.decay * part(case.queries)).to(wide)
        if dice.random() < 0.2:  # all is forgotten
            tensors["log_decay"][:, dice.randrange(case.queries)] = -torch.inf
    return tensors


def _offsets(case: Case, dice: random.Random) -> Fields:
    """Return where sequences begin and end, some of them empty."""

    def cut(tokens: int) -> Tensor:
        edges = [0, tokens, dice.randint(0, tokens)]
        more = range(case.sequences - 1)
        cuts = sorted(dice.choice([dice.randint(0, tokens), *edges]) for _ in more)
        return torch.tensor([0, *cuts, tokens])

    offsets = {"cu_seqlens": cut(case.queries)}
    if case.side != "both" or case.keys != case.queries:
        offsets["cu_seqlens_k"] = cut(case.keys)
    return offsets


def _masks(
    case: Case, dice: random.Random, generator: torch.Generator
) -> tuple[Fields, tuple[Tensor | None, Tensor | None]]:
    """Return the arguments, and the masks of queries and of keys."""

    def mask(tokens: int) -> Tensor:
        shape = case.sequences, tokens
        real = torch.rand(shape, generator=generator) < dice.choice([0.9, 0.5, 0.1])
        if case.fill == "ends":
            lengths = torch.randint(tokens + 1, (case.sequences, 1), generator=generator)
            real = torch.arange(tokens) < lengths
        if case.fill == "empty":
            real[dice.randrange(case.sequences)] = False
        return real

    if case.side == "both" and case.keys == case.queries:
        both = mask(case.queries)
        return {"mask": both}, (both, both)
    queries = None if case.side == "keys" else mask(case.queries)
    keys = None if case.side == "queries" else mask(case.keys)
    given = {"query_mask": queries, "key_mask": keys}
    return {name: x for name, x in given.items() if x is not None}, (queries, keys)


def _past(case: Case, generator: torch.Generator) -> FlowState | LinearState | None:
    """Return the state after some tokens."""
    if not case.past:
        return None
    leading = case.sequences, case.past, case.heads
    widths = case.width, case.width, case.value_width
    query, key, value = (
        torch.randn(*leading, width, generator=generator, dtype=torch.float64) for width in widths
    )
    if case.attention == "linear":
        query, key = query.sigmoid(), key.sigmoid()
    attend = ATTENTIONS[case.attention]
    how = {"causal": True, "return_state": True, "backend": "reference", "layout": "bthd"}
    return attend(query, key, value, **how, **case.options)[1]
