"""Linformer as a layer."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.ops.baselines import linformer_attention


class LinformerAttention(HeadAttention):
    """Linformer (Wang et al. 2020, equation 7): learned matrices mix keys and values to `rank`.

    The two matrices are shared by the heads ("headwise sharing" in section 4 of the paper).

    Args:
        max_length: longest sequence of keys; the matrices have a row for each position.
        rank: number of mixed keys, called k in the paper.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=False, cross=True, state=False, variable_length=False, independent_sinks=True
    )

    def __init__(self, *, max_length: int, rank: int = 256) -> None:
        """Create the mixing matrices."""
        super().__init__()
        if rank < 1 or max_length < 1:
            raise ValueError(f"rank and max_length must be positive, got {rank=} and {max_length=}")
        self.key_mixing = nn.Parameter(torch.empty(max_length, rank))
        self.value_mixing = nn.Parameter(torch.empty(max_length, rank))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw both from N(0, 1/rank), the variance in the paper's theorem 2."""
        for mixing in (self.key_mixing, self.value_mixing):
            nn.init.normal_(mixing, std=mixing.shape[1] ** -0.5)

    def forward(
        self,
        query: Float[Tensor, "b l h d"],
        key: Float[Tensor, "b s g d"],
        value: Float[Tensor, "b s g m"],
        *,
        mask: Bool[Tensor, "b l"] | None = None,
        query_mask: Bool[Tensor, "b l"] | None = None,
        key_mask: Bool[Tensor, "b s"] | None = None,
    ) -> tuple[Float[Tensor, "b l h m"], None]:
        """Return the output; it has no state."""
        out = linformer_attention(
            query,
            key,
            value,
            key_mixing=self.key_mixing,
            value_mixing=self.value_mixing,
            mask=mask,
            query_mask=query_mask,
            key_mask=key_mask,
        )
        return out, None

    def extra_repr(self) -> str:
        """The sizes, for print(model)."""
        return f"max_length={self.key_mixing.shape[0]}, rank={self.key_mixing.shape[1]}"


class LinformerMixer(ProjectedMixer):
    """Linformer (Wang et al. 2020): softmax over `rank` mixed keys; needs max_length."""

    kind = LinformerAttention
