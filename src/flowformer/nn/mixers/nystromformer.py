"""Nyströmformer as a layer."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.ops.baselines import nystromformer_attention


class NystromformerAttention(HeadAttention):
    """Nyströmformer (Xiong et al. 2021): softmax attention through the means of segments.

    Args:
        num_heads: number of heads, for the filters.
        num_landmarks: number of segments of queries and of keys.
        iterations: of the pseudo-inverse.
        residual_width: width of a filter, one a head, that runs over the values and is added to the
            output (33 in the published code); odd. None for none, since cross-attention has no
            place for it.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=False, cross=True, state=False, variable_length=True
    )

    def __init__(
        self,
        *,
        num_heads: int,
        num_landmarks: int = 64,
        iterations: int = 6,
        residual_width: int | None = None,
    ) -> None:
        """Hold the options, and create the filters if there are any."""
        super().__init__()
        if num_landmarks < 1 or iterations < 1:
            raise ValueError(
                f"num_landmarks and iterations must be positive, got {num_landmarks=} and "
                f"{iterations=}"
            )
        if residual_width is not None and residual_width % 2 != 1:
            raise ValueError(f"residual_width must be odd, or None, got {residual_width}")
        self.num_landmarks, self.iterations = num_landmarks, iterations
        self.residual_kernel = (
            None if residual_width is None else nn.Parameter(torch.empty(num_heads, residual_width))
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw each filter from U(−1/√width, 1/√width), torch's default for convolutions."""
        if self.residual_kernel is not None:
            bound = self.residual_kernel.shape[1] ** -0.5
            nn.init.uniform_(self.residual_kernel, -bound, bound)

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
        out = nystromformer_attention(
            query,
            key,
            value,
            num_landmarks=self.num_landmarks,
            iterations=self.iterations,
            residual_kernel=self.residual_kernel,
            mask=mask,
            query_mask=query_mask,
            key_mask=key_mask,
        )
        return out, None

    def extra_repr(self) -> str:
        """The options, for print(model)."""
        width = None if self.residual_kernel is None else self.residual_kernel.shape[1]
        return (
            f"num_landmarks={self.num_landmarks}, iterations={self.iterations}, "
            f"residual_width={width}"
        )


class NystromformerMixer(ProjectedMixer):
    """Nyströmformer (Xiong et al. 2021): softmax attention through the means of segments."""

    kind = NystromformerAttention
