"""What tells a token its place."""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Positions = Literal["learned", "sinusoidal"]


class PositionalEmbedding(nn.Module):
    """Adds to token t of a sequence the vector of place t.

    "learned": a parameter, drawn from U(-0.02, 0.02) as in the published time-series code.
    "sinusoidal": sin(t / 10000^(2i/dim)) at feature 2i and the cosine at 2i + 1 (Vaswani et al.
    2017, section 3.5).

    Args:
        kind: "learned" or "sinusoidal".
        dim: width of the hidden states.
        max_length: number of places.
    """

    weight: Tensor

    def __init__(self, kind: Positions, *, dim: int, max_length: int) -> None:
        """Create the table [max_length, dim]."""
        super().__init__()
        if kind not in ("learned", "sinusoidal"):
            raise ValueError(f"positions must be 'learned' or 'sinusoidal', got {kind!r}")
        self.kind = kind
        if kind == "learned":
            self.weight = nn.Parameter(torch.empty(max_length, dim))
            self.reset_parameters()
        else:
            self.register_buffer("weight", sinusoids(max_length, dim), persistent=False)

    def reset_parameters(self) -> None:
        """Draw the learned table anew."""
        if self.kind == "learned":
            nn.init.uniform_(self.weight, -0.02, 0.02)

    def forward(self, x: Float[Tensor, "b t dim"]) -> Float[Tensor, "b t dim"]:
        """Return x plus the first t vectors of the table.

        Raises:
            ValueError: x is longer than the table.
        """
        if x.shape[1] > self.weight.shape[0]:
            raise ValueError(
                f"there are {self.weight.shape[0]} places, got a sequence of {x.shape[1]}"
            )
        return x + self.weight[: x.shape[1]]

    def extra_repr(self) -> str:
        """The kind and sizes, for print(model)."""
        return f"{self.kind!r}, dim={self.weight.shape[1]}, max_length={self.weight.shape[0]}"


def sinusoids(length: int, dim: int) -> Float[Tensor, "{length} {dim}"]:
    """The table of "sinusoidal" places, computed in float64 and kept in the default dtype."""
    place = torch.arange(length, dtype=torch.float64)[:, None]
    angle = place * torch.exp(
        torch.arange(0, dim, 2, dtype=torch.float64) * (-math.log(10_000.0) / dim)
    )
    table = torch.stack((angle.sin(), angle.cos()), dim=-1).flatten(1)
    return table[:, :dim].to(torch.get_default_dtype())
