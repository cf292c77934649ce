"""Layers: mixers, the blocks that receive them, and the ways into other people's models.

`mixers/` has a file for each method and the table of all; `multihead.py` and `replace/` put their
attentions where torch, timm and transformers have softmax.
"""

from flowformer.nn.blocks import TransformerBlock, build_norm
from flowformer.nn.mixers import (
    MIXERS,
    BigBirdMixer,
    CosformerMixer,
    DeltaNetMixer,
    FlowGatedMixer,
    FlowMixer,
    FlowNoAllocationMixer,
    FlowNoCompetitionMixer,
    GatedDeltaNetMixer,
    GatedMixer,
    GatedRFAMixer,
    GLAMixer,
    HeadAttention,
    LinearMixer,
    LinformerMixer,
    LocalMixer,
    LongformerMixer,
    Mamba2Mixer,
    MobileMixer,
    NystromformerMixer,
    PerformerMixer,
    ProjectedMixer,
    ReformerMixer,
    RetNetMixer,
    RFAMixer,
    SinkhornMixer,
    SoftmaxMixer,
    SoftMixer,
    SparseMixer,
    SynthesizerMixer,
    SynthesizerMixtureMixer,
    YosoMixer,
    build_mixer,
    register_mixer,
)
from flowformer.nn.mixers.building import published_mixer
from flowformer.nn.mixers.flow import set_sequence_parallel
from flowformer.nn.mixers.head_attention import Capabilities
from flowformer.nn.mixers.mixer import Mixer
from flowformer.nn.multihead import MultiheadAttention
from flowformer.nn.positions import PositionalEmbedding, Rotation, rotate, rotation
from flowformer.nn.replace import replace_attention

__all__ = [
    "MIXERS",
    "BigBirdMixer",
    "Capabilities",
    "CosformerMixer",
    "DeltaNetMixer",
    "FlowGatedMixer",
    "FlowMixer",
    "FlowNoAllocationMixer",
    "FlowNoCompetitionMixer",
    "GLAMixer",
    "GatedDeltaNetMixer",
    "GatedMixer",
    "GatedRFAMixer",
    "HeadAttention",
    "LinearMixer",
    "LinformerMixer",
    "LocalMixer",
    "LongformerMixer",
    "Mamba2Mixer",
    "Mixer",
    "MobileMixer",
    "MultiheadAttention",
    "NystromformerMixer",
    "PerformerMixer",
    "PositionalEmbedding",
    "ProjectedMixer",
    "RFAMixer",
    "ReformerMixer",
    "RetNetMixer",
    "Rotation",
    "SinkhornMixer",
    "SoftMixer",
    "SoftmaxMixer",
    "SparseMixer",
    "SynthesizerMixer",
    "SynthesizerMixtureMixer",
    "TransformerBlock",
    "YosoMixer",
    "build_mixer",
    "build_norm",
    "published_mixer",
    "register_mixer",
    "replace_attention",
    "rotate",
    "rotation",
    "set_sequence_parallel",
]
