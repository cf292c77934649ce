"""cosFormer as a layer."""

from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.ops.baselines import CosformerState, cosformer_attention
from flowformer.ops.features import check_eps


class CosformerAttention(HeadAttention):
    """cosFormer (Qin et al. 2022): relu features and a cosine of the distance; linear.

    Args:
        max_length: M, the distance at which the cosine would be zero; bounds the length.
        eps: least denominator, as in the published code.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=True, cross=True, state=True, variable_length=False, independent_sinks=True
    )

    def __init__(self, *, max_length: int, eps: float = 1e-6) -> None:
        """Hold the options."""
        super().__init__()
        if max_length < 1 or eps <= 0:
            raise ValueError(f"max_length and eps must be positive, got {max_length=} and {eps=}")
        check_eps(eps)
        self.max_length, self.eps = max_length, eps

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
        state: CosformerState | None = None,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "b l h m"], CosformerState | None]:
        """Return the output and, if asked for, the state after these tokens."""
        result = cosformer_attention(
            query,
            key,
            value,
            max_length=self.max_length,
            eps=self.eps,
            causal=causal,
            mask=mask,
            query_mask=query_mask,
            key_mask=key_mask,
            initial_state=state,
            return_state=return_state,
        )
        return (result[0], result[1]) if isinstance(result, tuple) else (result, None)

    def extra_repr(self) -> str:
        """The options, for print(model)."""
        return f"max_length={self.max_length}, eps={self.eps}"


class CosformerMixer(ProjectedMixer):
    """cosFormer (Qin et al. 2022): relu features and a cosine of the distance; needs max_length."""

    kind = CosformerAttention
