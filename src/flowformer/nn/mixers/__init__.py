"""The mixers: a file for each method, with its function, its attention and its name.

`head_attention.py` and `mixer.py` are what they are made of, the first with the table of them all,
and `building.py` makes one from its name. `blockwise.py` and `recurrence.py` hold what several
methods share; what a later one takes from an earlier one stands in the earlier one's file.
"""

from flowformer.nn.mixers import head_attention
from flowformer.nn.mixers.building import build_attention as build_attention
from flowformer.nn.mixers.building import build_mixer as build_mixer
from flowformer.nn.mixers.head_attention import HeadAttention
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.nn.mixers.own import register_mixer as register_mixer

# Mixers enter the table when their file is imported: this is its order, not the alphabet's.
# isort: off
from flowformer.nn.mixers.flow import (
    FlowMixer as FlowMixer,
    FlowNoCompetitionMixer as FlowNoCompetitionMixer,
    FlowNoAllocationMixer as FlowNoAllocationMixer,
    FlowHeadsMixer as FlowHeadsMixer,
)
from flowformer.nn.mixers.softmax import SoftmaxMixer as SoftmaxMixer
from flowformer.nn.mixers.linear import LinearMixer as LinearMixer
from flowformer.nn.mixers.gated import GatedMixer as GatedMixer, FlowGatedMixer as FlowGatedMixer
from flowformer.nn.mixers.performer import PerformerMixer as PerformerMixer
from flowformer.nn.mixers.cosformer import CosformerMixer as CosformerMixer
from flowformer.nn.mixers.rfa import RFAMixer as RFAMixer, GatedRFAMixer as GatedRFAMixer
from flowformer.nn.mixers.gla import GLAMixer as GLAMixer
from flowformer.nn.mixers.deltanet import (
    DeltaNetMixer as DeltaNetMixer,
    GatedDeltaNetMixer as GatedDeltaNetMixer,
)
from flowformer.nn.mixers.mamba2 import Mamba2Mixer as Mamba2Mixer
from flowformer.nn.mixers.retnet import RetNetMixer as RetNetMixer
from flowformer.nn.mixers.linformer import LinformerMixer as LinformerMixer
from flowformer.nn.mixers.nystromformer import NystromformerMixer as NystromformerMixer
from flowformer.nn.mixers.yoso import YosoMixer as YosoMixer
from flowformer.nn.mixers.soft import SoftMixer as SoftMixer
from flowformer.nn.mixers.synthesizer import (
    SynthesizerMixer as SynthesizerMixer,
    SynthesizerMixtureMixer as SynthesizerMixtureMixer,
)
from flowformer.nn.mixers.local import LocalMixer as LocalMixer
from flowformer.nn.mixers.sparse import SparseMixer as SparseMixer
from flowformer.nn.mixers.longformer import LongformerMixer as LongformerMixer
from flowformer.nn.mixers.bigbird import BigBirdMixer as BigBirdMixer
from flowformer.nn.mixers.sinkhorn import SinkhornMixer as SinkhornMixer
from flowformer.nn.mixers.reformer import ReformerMixer as ReformerMixer
from flowformer.nn.mixers.mobile import MobileMixer as MobileMixer
# isort: on

MIXERS: dict[str, type[ProjectedMixer]] = head_attention.MIXERS
"""Every mixer by its name, registered ones too."""
ATTENTIONS: dict[str, type[HeadAttention]] = head_attention.ATTENTIONS
