"""Layers: mixers, the blocks that receive them, and the ways into other people's models.

`mixer.py` is what every mixer is (projections and heads around an attention), `attention.py` what
such an attention is; `flow.py`, `mobile.py` and `baselines/` have one file for each method, and
`mixers.py` the table of all.
"""

from flowformer.nn.blocks import TransformerBlock, build_norm
from flowformer.nn.mixers import MIXERS, build_mixer
from flowformer.nn.mixers.bigbird import BigBirdMixer
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.cosformer import CosformerMixer
from flowformer.nn.mixers.deltanet import DeltaNetMixer
from flowformer.nn.mixers.flow import FlowMixer, set_sequence_parallel
from flowformer.nn.mixers.flow_variants import FlowNoAllocationMixer, FlowNoCompetitionMixer
from flowformer.nn.mixers.gla import GLAMixer
from flowformer.nn.mixers.linear import LinearMixer
from flowformer.nn.mixers.linformer import LinformerMixer
from flowformer.nn.mixers.local import LocalMixer
from flowformer.nn.mixers.longformer import LongformerMixer
from flowformer.nn.mixers.mobile import MobileMixer
from flowformer.nn.mixers.nystromformer import NystromformerMixer
from flowformer.nn.mixers.performer import PerformerMixer
from flowformer.nn.mixers.projected import Mixer, ProjectedMixer
from flowformer.nn.mixers.published import published_mixer
from flowformer.nn.mixers.reformer import ReformerMixer
from flowformer.nn.mixers.rfa import GatedRFAMixer, RFAMixer
from flowformer.nn.mixers.sinkhorn import SinkhornMixer
from flowformer.nn.mixers.soft import SoftMixer
from flowformer.nn.mixers.softmax import SoftmaxMixer
from flowformer.nn.mixers.sparse import SparseMixer
from flowformer.nn.mixers.synthesizer import SynthesizerMixer, SynthesizerMixtureMixer
from flowformer.nn.mixers.yoso import YosoMixer
from flowformer.nn.multihead import MultiheadAttention
from flowformer.nn.positions import PositionalEmbedding, Rotation, rotate, rotation
from flowformer.nn.replace import replace_attention

__all__ = [
    "MIXERS",
    "BigBirdMixer",
    "Capabilities",
    "CosformerMixer",
    "DeltaNetMixer",
    "FlowMixer",
    "FlowNoAllocationMixer",
    "FlowNoCompetitionMixer",
    "GLAMixer",
    "GatedRFAMixer",
    "LinearMixer",
    "LinformerMixer",
    "LocalMixer",
    "LongformerMixer",
    "Mixer",
    "MobileMixer",
    "MultiheadAttention",
    "NystromformerMixer",
    "PerformerMixer",
    "PositionalEmbedding",
    "ProjectedMixer",
    "RFAMixer",
    "ReformerMixer",
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
    "replace_attention",
    "rotate",
    "rotation",
    "set_sequence_parallel",
]
