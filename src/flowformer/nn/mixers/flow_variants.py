"""Flow-Attention in other forms: without one of its parts, and as published for long sequences."""

from typing import ClassVar

from flowformer.nn.mixers.flow import FlowAttention, FlowMixer
from flowformer.nn.mixers.registry import Capabilities
from flowformer.ops.options import FlowKeywords


class FlowNoCompetitionAttention(FlowAttention):
    """Flow-Attention without competition: every source counts alike, c_j = 1."""

    fixed: ClassVar[FlowKeywords] = {
        "competition": None,
        "clamp": None,  # it would bound nothing
        "allocation": True,
        "independent_sinks": False,
    }


class FlowNoAllocationAttention(FlowAttention):
    """Flow-Attention without allocation: every sink takes in alike, a_i = 1."""

    fixed: ClassVar[FlowKeywords] = {"allocation": False, "independent_sinks": False}


class FlowHeadsAttention(FlowAttention):
    """Flow-Attention as the published Long Range Arena code has it: bidirectional only.

    The heads of each source compete, c_jh = S · softmax_h(Ô_jh), and not the sources, so that the
    output grows with the length; features are relu(x) + 1e-6, and nothing is clamped.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=False, cross=True, state=False, variable_length=True
    )
    fixed: ClassVar[FlowKeywords] = {
        "feature_map": "relu",
        "clamp": None,
        "competition": "heads",
        "allocation": True,
        "independent_sinks": False,
    }


class FlowNoCompetitionMixer(FlowMixer, name="flow-no-competition"):
    """Flow-Attention without competition (Wu et al. 2022, ablation)."""

    kind = FlowNoCompetitionAttention


class FlowNoAllocationMixer(FlowMixer, name="flow-no-allocation"):
    """Flow-Attention without allocation (Wu et al. 2022, ablation)."""

    kind = FlowNoAllocationAttention


class FlowHeadsMixer(FlowMixer, name="flow-heads"):
    """Flow-Attention with competing heads (the published Long Range Arena code)."""

    kind = FlowHeadsAttention
