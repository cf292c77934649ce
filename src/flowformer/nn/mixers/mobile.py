"""Mobile-Attention as a layer."""

from typing import Any

from flowformer.nn.mixers.head_attention import Capabilities, HeadAttention
from flowformer.nn.mixers.mixer import ProjectedMixer
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

    capabilities = Capabilities(causal=False, cross=False, state=False)
    function = staticmethod(mobile_attention)

    def __init__(
        self,
        *,
        feature_map: FeatureMap = "sigmoid",
        clamp: float | None = 1.0,
        eps: float = 1e-6,
        normalize: bool = False,
    ) -> None:
        super().__init__(feature_map=feature_map, clamp=clamp, eps=eps, normalize=normalize)
        resolve_options(feature_map=feature_map, clamp=clamp, eps=eps)  # a wrong one raises

    def arguments(self) -> dict[str, Any]:
        """Return the options, and the layout, which its function warns of where nobody says it."""
        return {**super().arguments(), "layout": "bthd"}


class MobileMixer(ProjectedMixer, name="mobile"):
    """Mobile-Attention (Yao et al. 2024): flows between the heads of a token."""

    kind = MobileAttention
