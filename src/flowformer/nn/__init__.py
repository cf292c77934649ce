"""Layers: mixers, the blocks that receive them, and the ways into other people's models.

`mixer.py` is what every mixer is (projections and heads around an attention), `attention.py` what
such an attention is; `flow.py`, `mobile.py` and `baselines/` have one file for each method, and
`mixers.py` the table of all.
"""

from flowformer.nn.baselines.bigbird import BigBirdMixer
from flowformer.nn.baselines.cosformer import CosformerMixer
from flowformer.nn.baselines.deltanet import DeltaNetMixer
from flowformer.nn.baselines.flow_variants import FlowNoAllocationMixer, FlowNoCompetitionMixer
from flowformer.nn.baselines.gla import GLAMixer
from flowformer.nn.baselines.linear import LinearMixer
from flowformer.nn.baselines.linformer import LinformerMixer
from flowformer.nn.baselines.local import LocalMixer
from flowformer.nn.baselines.longformer import LongformerMixer
from flowformer.nn.baselines.nystromformer import NystromformerMixer
from flowformer.nn.baselines.performer import PerformerMixer
from flowformer.nn.baselines.reformer import ReformerMixer
from flowformer.nn.baselines.rfa import GatedRFAMixer, RFAMixer
from flowformer.nn.baselines.sinkhorn import SinkhornMixer
from flowformer.nn.baselines.soft import SoftMixer
from flowformer.nn.baselines.softmax import SoftmaxMixer
from flowformer.nn.baselines.sparse import SparseMixer
from flowformer.nn.baselines.synthesizer import SynthesizerMixer, SynthesizerMixtureMixer
from flowformer.nn.baselines.yoso import YosoMixer
from flowformer.nn.blocks import TransformerBlock, build_norm
from flowformer.nn.capabilities import Capabilities
from flowformer.nn.embeddings import PositionalEmbedding
from flowformer.nn.flow import FlowMixer, set_sequence_parallel
from flowformer.nn.mixer import Mixer, ProjectedMixer
from flowformer.nn.mixers import MIXERS, build_mixer
from flowformer.nn.mobile import MobileMixer
from flowformer.nn.multihead import MultiheadAttention
from flowformer.nn.published import published_mixer
from flowformer.nn.replace import replace_attention
from flowformer.nn.rotary import Rotation, rotate, rotation

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
