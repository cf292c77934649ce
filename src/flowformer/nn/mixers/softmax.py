"""Softmax attention as a layer."""

from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.ops.baselines import KVState, softmax_attention


class SoftmaxAttention(HeadAttention):
    """Softmax attention (Vaswani et al. 2017); its state holds all keys and values and grows.

    Args:
        weight_dropout: probability with which an attention weight is dropped in training.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=True,
        cross=True,
        state=True,
        growing_state=True,
        variable_length=True,
        independent_sinks=True,
    )

    def __init__(self, *, weight_dropout: float = 0.0) -> None:
        """Hold the option."""
        super().__init__()
        if not 0 <= weight_dropout < 1:
            raise ValueError(f"weight_dropout must be in [0, 1), got {weight_dropout}")
        self.weight_dropout = weight_dropout

    def forward(  # noqa: PLR0913 - the keywords that every attention here takes
        self,
        query: Float[Tensor, "b l h d"],
        key: Float[Tensor, "b s g d"],
        value: Float[Tensor, "b s g m"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b l"] | None = None,
        query_mask: Bool[Tensor, "b l"] | None = None,
        key_mask: Bool[Tensor, "b s"] | None = None,
        state: KVState | None = None,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "b l h m"], KVState | None]:
        """Return the output and, if asked for, the keys and values so far."""
        result = softmax_attention(
            query,
            key,
            value,
            causal=causal,
            mask=mask,
            query_mask=query_mask,
            key_mask=key_mask,
            dropout=self.weight_dropout if self.training else 0.0,
            initial_state=state,
            return_state=return_state,
        )
        return (result[0], result[1]) if isinstance(result, tuple) else (result, None)


class SoftmaxMixer(ProjectedMixer):
    """Softmax attention (Vaswani et al. 2017), the usual transformer's; quadratic in the length."""

    kind = SoftmaxAttention
