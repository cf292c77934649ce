"""The parts that gated mixers share: decays, gains, gates, norms of heads, and the convolution's.

Each starts from the hidden states or the heads alone, so that a mixer is a list of those it takes.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.nn.mixers.convolution import short_convolution
from flowformer.ops.features import compute_dtype
from flowformer.ops.state import carry_dtype

# Between neighbours of the sequence that spreads time constants: any few heads that stand side by
# side have short and long ones.
GOLDEN = (math.sqrt(5) - 1) / 2


class Decay(nn.Module):
    """log α_t = -softplus(W x_t + b) · exp(A) of each head, as in Mamba-2 (Dao & Gu 2024).

    At first W and A are zero, and 1 / softplus(b), the tokens after which 1/e is left, is spread
    over the heads, evenly in its logarithm.

    Args:
        dim: width of the hidden states.
        num_heads: number of heads.
        time_constants: the shortest and the longest, in tokens.
    """

    def __init__(self, dim: int, num_heads: int, time_constants: Sequence[float]) -> None:
        super().__init__()
        self.projection = nn.Linear(dim, num_heads)
        self.log_scale = nn.Parameter(torch.zeros(num_heads))
        self.start(time_constants)

    @torch.no_grad()
    def start(self, time_constants: Sequence[float]) -> None:
        """Set the parameters to those at first."""
        shortest, longest = time_constants
        heads = torch.arange(self.log_scale.numel(), dtype=torch.float64) + 0.5
        tokens = shortest * (longest / shortest) ** (heads * GOLDEN % 1)
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.log_scale)
        self.projection.bias.copy_(torch.expm1(1 / tokens).log())

    def forward(self, hidden: Float[Tensor, "b t dim"]) -> Float[Tensor, "b t h"]:
        """Return log α ≤ 0, in the dtype of the arithmetic: a slow decay is none in half."""
        dtype = compute_dtype(hidden.dtype)
        x = F.linear(hidden, self.projection.weight).to(dtype)
        rate = F.softplus(x + self.projection.bias.to(dtype))
        return -rate * self.log_scale.to(dtype).exp()


def with_gain(
    x: Float[Tensor, "b t h d"], gain: Float[Tensor, " h"], eps: float = 1e-6
) -> Float[Tensor, "b t h d"]:
    """Return every head with a root mean square of its gain."""
    exact = F.rms_norm(x.to(compute_dtype(x.dtype)), x.shape[-1:], eps=eps)
    return (exact * gain[:, None].to(exact.dtype)).to(x.dtype)


def normalised(norm: nn.Module | None, out: Float[Tensor, "b t h m"]) -> Float[Tensor, "b t h m"]:
    """Return the heads after their norm, which under autocast is more precise than they are."""
    if norm is None:
        return out
    dtype = next((each.dtype for each in norm.parameters()), out.dtype)
    return norm(out.to(dtype)).to(out.dtype)


def gated_output(
    gate: nn.Linear | None, hidden: Float[Tensor, "b t dim"], out: Float[Tensor, "b t h m"]
) -> Float[Tensor, "b t h m"]:
    """Return the output times silu of a linear function of the hidden states."""
    return out if gate is None else out * F.silu(gate(hidden)).unflatten(-1, out.shape[2:])


def draw_convolution(weight: Tensor) -> None:
    """Draw the weights of a short convolution as `nn.Conv1d` does those of a single channel."""
    bound = weight.shape[-1] ** -0.5
    nn.init.uniform_(weight, -bound, bound)


def identity_convolution(weight: Float[Tensor, "*n w"]) -> Float[Tensor, "*n w"]:
    """Return weights of that shape which leave every token as it is."""
    return F.pad(torch.ones_like(weight[..., :1]), (weight.shape[-1] - 1, 0))


def repeated(query: Tensor, *tensors: Float[Tensor, "b t g d"]) -> tuple[Tensor, ...]:
    """Return keys and values with as many heads as the queries."""
    heads = query.shape[2]
    if tensors[0].shape[2] == heads:
        return tensors
    return tuple(x.repeat_interleave(heads // x.shape[2], 2) for x in tensors)


def no_recent(
    tensors: Sequence[Float[Tensor, "b t h d"]], width: int
) -> tuple[Float[Tensor, "b w h d"], ...]:
    """Return the last tokens before the first, which are zero, in the dtype of states."""
    dtype = carry_dtype(tensors[0].device)
    return tuple(x.new_zeros((x.shape[0], width - 1, *x.shape[2:]), dtype=dtype) for x in tensors)


def convolved(
    tensors: Sequence[Float[Tensor, "b t h d"]],
    weights: Float[Tensor, "n h d w"],
    recent: Sequence[Float[Tensor, "b recent h d"]] | None,
    mask: Bool[Tensor, "b t"] | None,
    **options: Any,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Return query, key and value after their short convolutions, and the last tokens of each."""
    before = [None] * len(tensors) if recent is None else recent
    pairs = [
        short_convolution(x, weight, last, mask, **options)
        for x, weight, last in zip(tensors, weights, before, strict=True)
    ]
    outputs, last = zip(*pairs, strict=True)
    return outputs, last
