"""Decays in PyTorch: how much is left, at a token, of an earlier one and of what came before.

D_ts = exp Σ_{s<r≤t} g_r with g ≤ 0. Each sum is taken by itself: as a difference of two longer
ones it would lose its digits, and a quotient of their exponentials leaves the range of numbers.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


def log_decays_between(log_decay: Float[Tensor, "*b t e"]) -> Float[Tensor, "*b t t e"]:
    """Return Σ_{s<r≤t} g_r for row t and column s, zero for s > t; g may be -inf."""
    size = log_decay.shape[-2]
    past = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).tril(-1)[..., None]
    return torch.where(past, log_decay[..., :, None, :], 0).cumsum(-3)


def decays_between(log_decay: Float[Tensor, "*b t e"]) -> Float[Tensor, "*b t t e"]:
    """Return D_ts for row t and column s, zero for s > t."""
    size = log_decay.shape[-2]
    future = torch.ones(size, size, dtype=torch.bool, device=log_decay.device).triu(1)[..., None]
    return log_decays_between(log_decay).masked_fill(future, -torch.inf).exp()


class Decays(NamedTuple):
    """The decays of a segment that is cut into n chunks of c tokens.

    Attributes:
        inside: D_ts of two tokens of a chunk, zero for s > t. ``[b, h, n, c, c]``.
        end: what is left of each token at the end of its chunk. ``[b, h, n, c]``.
        start: what is left at each token of what came before its chunk. ``[b, h, n, c]``.
        chunks: what is left before each chunk, and after the last (rows), of what came before the
            first, and of what each chunk added (columns). ``[b, h, n + 1, n + 1]``, as wide as
            what is carried.
    """

    inside: Float[Tensor, "b h n c c"]
    end: Float[Tensor, "b h n c"]
    start: Float[Tensor, "b h n c"]
    chunks: Float[Tensor, "b h n1 n1"]


def segment_decays(log_decay: Float[Tensor, "b h n c"], carried: torch.dtype) -> Decays:
    """Return the decays of such tokens, for sums that are carried in that dtype."""
    sums = log_decay.cumsum(-1)
    of_chunks = torch.nn.functional.pad(sums[..., -1].to(carried), (1, 0))
    inside = decays_between(log_decay[..., None])[..., 0]
    chunks = decays_between(of_chunks[..., None])[..., 0]
    return Decays(inside, inside[..., -1, :], sums.exp(), chunks)
