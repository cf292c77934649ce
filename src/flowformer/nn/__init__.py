"""Layers: mixers, the blocks that receive them, and the ways into other people's models."""

from flowformer.nn.blocks import TransformerBlock
from flowformer.nn.capabilities import Capabilities
from flowformer.nn.embeddings import PositionalEmbedding
from flowformer.nn.mixers import (
    MIXERS,
    FlowMixer,
    LinearMixer,
    LinformerMixer,
    Mixer,
    MobileMixer,
    ProjectedMixer,
    SoftmaxMixer,
    build_mixer,
)
from flowformer.nn.multihead import MultiheadAttention
from flowformer.nn.published import published_mixer
from flowformer.nn.replace import replace_attention

__all__ = [
    "MIXERS",
    "Capabilities",
    "FlowMixer",
    "LinearMixer",
    "LinformerMixer",
    "Mixer",
    "MobileMixer",
    "MultiheadAttention",
    "PositionalEmbedding",
    "ProjectedMixer",
    "SoftmaxMixer",
    "TransformerBlock",
    "build_mixer",
    "published_mixer",
    "replace_attention",
]
