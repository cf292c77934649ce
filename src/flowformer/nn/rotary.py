"""Rotary positions: what tells a query and a key their places, by turning them."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from flowformer.ops.state import carry_dtype

BASE = 10_000.0


class Rotation(NamedTuple):
    """Cosines and sines of the angles of each token; one serves all layers of a model.

    Attributes:
        cos: cos(t · base^(-2i/d)) for token t and feature pair i. Shape ``[b, t, d/2]``; b may
            be 1.
        sin: the sines of the same angles.
    """

    cos: Float[Tensor, "b t pairs"]
    sin: Float[Tensor, "b t pairs"]


def rotation(
    places: Int[Tensor, "b t"], head_dim: int, *, dtype: torch.dtype, base: float = BASE
) -> Rotation:
    """Return the turn of each place (Su et al. 2021, "RoFormer", section 3.2): any place, no table.

    The angles are computed in float64 (where the device has it): in float32 they are off by
    a tenth at a million tokens.

    Args:
        places: the place of each token, from 0; b may be 1 where all rows are alike.
        head_dim: width of a head.
        dtype: dtype of the result, float32 or float64.
        base: the slowest pair turns by about 1 / base per token.

    Raises:
        ValueError: head_dim is odd: features turn in pairs.
    """
    check_head_dim(head_dim)
    wide = carry_dtype(places.device)
    pair = torch.arange(0, head_dim, 2, device=places.device).to(wide)
    angle = places.to(wide)[..., None] * torch.exp(pair * (-math.log(base) / head_dim))
    return Rotation(angle.cos().to(dtype), angle.sin().to(dtype))


def check_head_dim(head_dim: int) -> None:
    """Refuse an odd width of heads.

    Raises:
        ValueError: head_dim is odd.
    """
    if head_dim % 2:
        raise ValueError(
            f"rotary positions turn pairs of features: head_dim must be even, got {head_dim}"
        )


def rotate(x: Float[Tensor, "b t h d"], turn: Rotation) -> Float[Tensor, "b t h d"]:
    """Turn feature pair (i, i + d/2) of every head by its angle: the halves of transformers."""
    cos, sin = turn.cos[:, :, None], turn.sin[:, :, None]
    first, second = x.to(cos.dtype).chunk(2, dim=-1)
    turned = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return turned.to(x.dtype)
