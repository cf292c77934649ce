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
    ProjectedMixer,
    SoftmaxMixer,
    build_mixer,
)

__all__ = [
    "MIXERS",
    "Capabilities",
    "FlowMixer",
    "LinearMixer",
    "LinformerMixer",
    "Mixer",
    "PositionalEmbedding",
    "ProjectedMixer",
    "SoftmaxMixer",
    "TransformerBlock",
    "build_mixer",
]
