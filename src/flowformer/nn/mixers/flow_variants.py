"""Flow-Attention in other forms: without one of its parts, and as published for long sequences."""

from flowformer.nn.mixers.flow import FlowAttention, FlowMixer
from flowformer.nn.mixers.registry import Capabilities
from flowformer.ops.features import Competition, FeatureMap


class FlowNoCompetitionAttention(FlowAttention):
    """Flow-Attention without competition: every source counts alike, c_j = 1.

    Args:
        feature_map: "sigmoid", or "relu" for relu(x) + 1e-6.
        eps: the ε of the flows.
        backend: name of a backend of `flow_attention`; None chooses.
    """

    def __init__(
        self, *, feature_map: FeatureMap = "sigmoid", eps: float = 1e-6, backend: str | None = None
    ) -> None:
        """Hold the options; a clamp would bound nothing."""
        super().__init__(
            feature_map=feature_map, clamp=None, eps=eps, competition=None, backend=backend
        )


class FlowNoAllocationAttention(FlowAttention):
    """Flow-Attention without allocation: every sink takes in alike, a_i = 1.

    Args:
        feature_map: "sigmoid", or "relu" for relu(x) + 1e-6.
        clamp: bound of the conserved source before the softmax; None for none.
        eps: the ε of the flows.
        competition: the softmax runs over "sources" or (bidirectional only) "heads"; None for none.
        backend: name of a backend of `flow_attention`; None chooses.
    """

    def __init__(
        self,
        *,
        feature_map: FeatureMap = "sigmoid",
        clamp: float | None = 1.0,
        eps: float = 1e-6,
        competition: Competition | None = "sources",
        backend: str | None = None,
    ) -> None:
        """Hold the options."""
        super().__init__(
            feature_map=feature_map,
            clamp=clamp,
            eps=eps,
            competition=competition,
            allocation=False,
            backend=backend,
        )


class FlowHeadsAttention(FlowAttention):
    """Flow-Attention as the published Long Range Arena code has it: bidirectional only.

    The heads of each source compete, c_jh = S · softmax_h(Ô_jh), and not the sources, so that the
    output grows with the length; features are relu(x) + 1e-6, and nothing is clamped.

    Args:
        eps: the ε of the flows.
        backend: name of a backend of `flow_attention`; None chooses.
    """

    capabilities = Capabilities(causal=False, cross=True, state=False, variable_length=True)

    def __init__(self, *, eps: float = 1e-6, backend: str | None = None) -> None:
        """Hold the options."""
        super().__init__(
            feature_map="relu", clamp=None, eps=eps, competition="heads", backend=backend
        )


class FlowNoCompetitionMixer(FlowMixer, name="flow-no-competition"):
    """Flow-Attention without competition (Wu et al. 2022, ablation)."""

    kind = FlowNoCompetitionAttention


class FlowNoAllocationMixer(FlowMixer, name="flow-no-allocation"):
    """Flow-Attention without allocation (Wu et al. 2022, ablation)."""

    kind = FlowNoAllocationAttention


class FlowHeadsMixer(FlowMixer, name="flow-heads"):
    """Flow-Attention with competing heads (the published Long Range Arena code)."""

    kind = FlowHeadsAttention
