"""Sparse Sinkhorn attention as a layer."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.ops.baselines import sinkhorn_attention
from flowformer.ops.baselines.blockwise import check_positive


class SinkhornAttention(HeadAttention):
    """Softmax attention to a block and to what is sorted to it (Tay et al. 2020).

    Args:
        block: tokens in a block.
        iterations: of the normalisation of rows and columns.
        temperature: the lower, the nearer is the sorting to a permutation.
        noise: add Gumbel noise to the sorting's scores in training.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=True, cross=False, state=False, variable_length=True
    )

    def __init__(
        self,
        *,
        block: int = 64,
        iterations: int = 8,
        temperature: float = 0.75,
        noise: bool = True,
    ) -> None:
        """Hold the options; a wrong one raises here."""
        super().__init__()
        check_positive(block=block, iterations=iterations)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}")
        self.block, self.iterations, self.temperature = block, iterations, temperature
        self.noise = noise

    def forward(
        self,
        query: Float[Tensor, "b t h d"],
        key: Float[Tensor, "b t g d"],
        value: Float[Tensor, "b t g m"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t h m"], None]:
        """Return the output; it has no state."""
        noise = None
        if self.noise and self.training:
            batch, length, heads = query.shape[:3]
            count = -(-length // self.block)
            exact = torch.promote_types(query.dtype, torch.float32)
            uniform = torch.rand(batch, heads, count, count, dtype=exact, device=query.device)
            noise = -(1e-6 - (uniform + 1e-6).log()).log()
        out = sinkhorn_attention(
            query,
            key,
            value,
            block=self.block,
            iterations=self.iterations,
            temperature=self.temperature,
            noise=noise,
            causal=causal,
            mask=mask,
        )
        return out, None

    def extra_repr(self) -> str:
        """The options, for print(model)."""
        return (
            f"block={self.block}, iterations={self.iterations}, temperature={self.temperature}, "
            f"noise={self.noise}"
        )


class SinkhornMixer(ProjectedMixer):
    """Sparse Sinkhorn attention (Tay et al. 2020): softmax over a block and a sorted block."""

    kind = SinkhornAttention
