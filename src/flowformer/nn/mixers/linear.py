"""Linear attention as a layer."""

from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.ops import LinearState
from flowformer.ops.baselines import elu_attention
from flowformer.ops.features import check_eps


class LinearAttention(HeadAttention):
    """Linear attention with elu + 1 features (Katharopoulos et al. 2020, equation 5).

    Args:
        eps: added to the denominator.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=True, cross=True, state=True, variable_length=True, independent_sinks=True
    )

    def __init__(self, *, eps: float = 1e-6) -> None:
        """Hold the option."""
        super().__init__()
        check_eps(eps, zero=True)
        self.eps = eps

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
        state: LinearState | None = None,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "b l h m"], LinearState | None]:
        """Return the output and, if asked for, the state after these tokens."""
        result = elu_attention(
            query,
            key,
            value,
            causal=causal,
            eps=self.eps,
            mask=mask,
            query_mask=query_mask,
            key_mask=key_mask,
            initial_state=state,
            return_state=return_state,
        )
        return (result[0], result[1]) if isinstance(result, tuple) else (result, None)


class LinearMixer(ProjectedMixer):
    """Linear attention with elu + 1 features (Katharopoulos et al. 2020)."""

    kind = LinearAttention
