"""Mobile-Attention as a layer."""

from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.ops import mobile_attention
from flowformer.ops.features import FeatureMap
from flowformer.ops.options import resolve_options


class MobileAttention(HeadAttention):
    """Mobile-Attention (Yao et al. 2024): flows conserved over the heads of one token.

    As published, its output grows with the length. See `flowformer.ops.mobile_attention`.

    Args:
        feature_map: "sigmoid", or "relu" for relu(x) + 1e-6.
        clamp: bound of the conserved source before the softmax; None for none.
        eps: the ε of the flows.
        normalize: divide by the number of tokens (ours, not published).
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=False, cross=False, state=False, variable_length=True
    )

    def __init__(
        self,
        *,
        feature_map: FeatureMap = "sigmoid",
        clamp: float | None = 1.0,
        eps: float = 1e-6,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        resolve_options(feature_map=feature_map, clamp=clamp, eps=eps)  # a wrong one raises
        self.feature_map: FeatureMap = feature_map
        self.clamp, self.eps, self.normalize = clamp, eps, normalize

    def forward(
        self,
        query: Float[Tensor, "b t h d"],
        key: Float[Tensor, "b t g d"],
        value: Float[Tensor, "b t g m"],
        *,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t h m"], None]:
        """Return the output; it has no state."""
        out = mobile_attention(
            query,
            key,
            value,
            feature_map=self.feature_map,
            clamp=self.clamp,
            eps=self.eps,
            normalize=self.normalize,
            mask=mask,
            layout="bthd",
        )
        return out, None

    def extra_repr(self) -> str:
        """The options, for print(model)."""
        return (
            f"feature_map={self.feature_map!r}, clamp={self.clamp}, eps={self.eps}, "
            f"normalize={self.normalize}"
        )


class MobileMixer(ProjectedMixer):
    """Mobile-Attention (Yao et al. 2024): flows between the heads of a token."""

    kind = MobileAttention
