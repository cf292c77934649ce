"""Positions: a vector that is added to a token, or the turn of its queries and keys (rotary)."""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.ops.inputs import has_values
from flowformer.ops.state import carry_dtype

Positions = Literal["learned", "sinusoidal", "sinusoidal-fairseq"]
KINDS = ("learned", "sinusoidal", "sinusoidal-fairseq")

# In fairseq the places of a sequence follow that of padding, which is 1 in all its dictionaries.
FAIRSEQ_FIRST_PLACE = 2

ROTARY_BASE = 10_000.0


class PositionalEmbedding(nn.Module):
    """A table of positions, which adds to token t of a sequence the vector of place t.

    "learned": a parameter, drawn from U(-0.02, 0.02) as in the published time-series code.
    "sinusoidal": sin(t / 10000^(2i/dim)) at feature 2i and the cosine at 2i + 1 (Vaswani et al.
    2017, section 3.5).
    "sinusoidal-fairseq": as fairseq lays them out, all sines and then all cosines, with
    10000^(i/(dim/2 - 1)) and the first token at place 2.

    Sinusoidal places go on past `max_length`, learned ones cannot.

    Args:
        kind: "learned", "sinusoidal" or "sinusoidal-fairseq".
        dim: width of the hidden states.
        max_length: number of places in the table.

    Examples:
        >>> import torch
        >>> from flowformer.nn import PositionalEmbedding
        >>> positions = PositionalEmbedding("sinusoidal", dim=16, max_length=100)
        >>> positions(torch.zeros(2, 30, 16)).shape
        torch.Size([2, 30, 16])
    """

    weight: Tensor

    def __init__(self, kind: Positions, *, dim: int, max_length: int) -> None:
        super().__init__()
        if kind not in KINDS:
            raise ValueError(
                f"positions must be {', '.join(map(repr, KINDS[:-1]))} or {KINDS[-1]!r}, "
                f"got {kind!r}"
            )
        self.kind: Positions = kind
        if kind == "learned":
            self.weight = nn.Parameter(torch.empty(max_length, dim))
        else:
            # No state dict holds it, so it is there from the start, whatever fills the parameters.
            device = "cpu" if torch.get_default_device().type == "meta" else None
            table = torch.empty(max_length, dim, device=device)
            self.register_buffer("weight", table, persistent=False)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the learned table anew, or compute the sinusoidal one."""
        if self.kind == "learned":
            nn.init.uniform_(self.weight, -0.02, 0.02)
        else:
            places = torch.arange(len(self.weight), device=self.weight.device)
            self.weight = sinusoids(places, self.weight.shape[1], self.kind).to(self.weight.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "PositionalEmbedding":
        """Move the tables; `to_empty` leaves numbers in the sinusoidal one that mean nothing."""
        super()._apply(fn, recurse)
        if self.kind != "learned" and not self.weight.is_meta:
            self.reset_parameters()
        return self

    def forward(
        self, x: Float[Tensor, "b t dim"], places: Int[Tensor, "#b t"] | None = None
    ) -> Float[Tensor, "b t dim"]:
        """Return x plus the vectors of its places.

        Args:
            x: the hidden states.
            places: the place of each token, from 0; None for 0 to t - 1.

        Raises:
            ValueError: a place is not in the learned table. (Not seen while compiling, where the
                values of `places` are not known: looking them up fails then.)
        """
        if places is None:
            last, places = x.shape[1], torch.arange(x.shape[1], device=x.device)
        elif not has_values(places):
            last = 0 if self.kind == "learned" else math.inf
        else:
            last = int(places.max()) + 1 if places.numel() else 0
        inside = last <= self.weight.shape[0]
        if self.kind == "learned":
            if not inside:
                raise ValueError(
                    f"there are {self.weight.shape[0]} places, got a sequence of {last}"
                )
            return x + self.weight[places]
        if inside and self.weight.device == x.device:  # it may have been left on meta
            vectors = self.weight[places]
        else:
            vectors = sinusoids(places, self.weight.shape[1], self.kind).to(self.weight.dtype)
        return x + (vectors if _keeps_float32(x) else vectors.to(x.dtype))

    def extra_repr(self) -> str:
        """Return the kind and sizes, for print(model)."""
        return f"{self.kind!r}, dim={self.weight.shape[1]}, max_length={self.weight.shape[0]}"


def _keeps_float32(x: Tensor) -> bool:
    """Return whether autocast chose the precision of x; otherwise it is that of the parameters."""
    # Mixed precision of FSDP casts parameters, the learned table among them, and no buffers.
    return x.device.type != "meta" and torch.is_autocast_enabled(x.device.type)


def sinusoids(
    places: Int[Tensor, "*places"], dim: int, kind: Positions = "sinusoidal"
) -> Float[Tensor, "*places dim"]:
    """Return the vectors of sinusoidal places, computed in float64 and kept in the default dtype.

    fairseq computes the angles in float32, which is off by some 1e-5 at place 500.

    Args:
        places: the places, from 0.
        dim: number of features; where it is odd, the layout of Vaswani et al. loses the last
            cosine, and that of fairseq ends with a zero.
        kind: "sinusoidal" or "sinusoidal-fairseq".
    """
    wide = carry_dtype(places.device)
    fairseq = kind == "sinusoidal-fairseq"
    steps = max(dim // 2 - 1, 1) if fairseq else dim / 2
    waves = torch.arange(dim // 2 if fairseq else (dim + 1) // 2, device=places.device)
    frequency = torch.exp(waves.to(wide) * (-math.log(10_000.0) / steps))
    offset = FAIRSEQ_FIRST_PLACE if fairseq else 0
    angle = (places + offset).to(wide)[..., None] * frequency
    if fairseq:
        table = F.pad(torch.cat((angle.sin(), angle.cos()), dim=-1), (0, dim % 2))
    else:
        table = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(-2)[..., :dim]
    return table.to(torch.get_default_dtype())


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
    places: Int[Tensor, "b t"], head_dim: int, *, dtype: torch.dtype, base: float = ROTARY_BASE
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

    Examples:
        >>> import torch
        >>> from flowformer.nn import rotate, rotation
        >>> turn = rotation(torch.arange(30)[None], head_dim=8, dtype=torch.float32)
        >>> rotate(torch.randn(2, 30, 4, 8), turn).shape
        torch.Size([2, 30, 4, 8])
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
