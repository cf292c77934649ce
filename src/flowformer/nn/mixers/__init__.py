"""The table of mixers, and how one is built from its name."""

import difflib
from typing import Any

from flowformer.nn.mixers.attention import (
    HeadAttention,
    Sizes,
    make_attention,
    option_defaults,
    option_names,
)
from flowformer.nn.mixers.bigbird import BigBirdMixer
from flowformer.nn.mixers.cosformer import CosformerMixer
from flowformer.nn.mixers.deltanet import DeltaNetMixer
from flowformer.nn.mixers.flow import FlowMixer
from flowformer.nn.mixers.flow_variants import (
    FlowHeadsMixer,
    FlowNoAllocationMixer,
    FlowNoCompetitionMixer,
)
from flowformer.nn.mixers.gla import GLAMixer
from flowformer.nn.mixers.linear import LinearMixer
from flowformer.nn.mixers.linformer import LinformerMixer
from flowformer.nn.mixers.local import LocalMixer
from flowformer.nn.mixers.longformer import LongformerMixer
from flowformer.nn.mixers.mobile import MobileMixer
from flowformer.nn.mixers.nystromformer import NystromformerMixer
from flowformer.nn.mixers.performer import PerformerMixer
from flowformer.nn.mixers.projected import ProjectedMixer, ProjectionOptions
from flowformer.nn.mixers.record import MixerRecord
from flowformer.nn.mixers.reformer import ReformerMixer
from flowformer.nn.mixers.rfa import GatedRFAMixer, RFAMixer
from flowformer.nn.mixers.sinkhorn import SinkhornMixer
from flowformer.nn.mixers.soft import SoftMixer
from flowformer.nn.mixers.softmax import SoftmaxMixer
from flowformer.nn.mixers.sparse import SparseMixer
from flowformer.nn.mixers.synthesizer import SynthesizerMixer, SynthesizerMixtureMixer
from flowformer.nn.mixers.yoso import YosoMixer

MIXERS: dict[str, type[ProjectedMixer]] = {
    "flow": FlowMixer,
    "flow-no-competition": FlowNoCompetitionMixer,
    "flow-no-allocation": FlowNoAllocationMixer,
    "flow-heads": FlowHeadsMixer,
    "softmax": SoftmaxMixer,
    "linear": LinearMixer,
    "performer": PerformerMixer,
    "cosformer": CosformerMixer,
    "rfa": RFAMixer,
    "rfa-gated": GatedRFAMixer,
    "gla": GLAMixer,
    "deltanet": DeltaNetMixer,
    "linformer": LinformerMixer,
    "nystromformer": NystromformerMixer,
    "yoso": YosoMixer,
    "soft": SoftMixer,
    "synthesizer": SynthesizerMixer,
    "synthesizer-mixture": SynthesizerMixtureMixer,
    "local": LocalMixer,
    "sparse": SparseMixer,
    "longformer": LongformerMixer,
    "bigbird": BigBirdMixer,
    "sinkhorn": SinkhornMixer,
    "reformer": ReformerMixer,
    "mobile": MobileMixer,
}

# The attentions of the mixers that need no more than query, key and value: they also go into a
# layer with projections of its own, such as the stand-in for `nn.MultiheadAttention`.
ATTENTIONS: dict[str, type[HeadAttention]] = {
    name: mixer.kind
    for name, mixer in MIXERS.items()
    if mixer.kind.inputs == ("query", "key", "value")
}


def build_mixer(name: str, dim: int, num_heads: int, **options: Any) -> ProjectedMixer:
    """The mixer of that name in MIXERS.

    Args:
        name: a key of MIXERS.
        dim: width of the hidden states.
        num_heads: number of heads.
        options: max_length, those of ProjectionOptions, and the keywords of its attention.

    Raises:
        ValueError: there is no such mixer, or it has no such option; the message lists the choices.
    """
    _check_name(name, "mixer", list(MIXERS))
    allowed = {"max_length"} | ProjectionOptions.__annotations__.keys()
    _check_options(name, options, allowed | option_names(MIXERS[name].kind))
    return MIXERS[name](dim, num_heads, **options)


def build_attention(name: str, sizes: Sizes, **options: Any) -> HeadAttention:
    """The attention of that name in ATTENTIONS, for a layer with projections of its own.

    Such a layer's state dict says which attention it was saved with, unless it is softmax's, which
    the layer has without us: see `MixerRecord`.

    Args:
        name: a key of ATTENTIONS.
        sizes: those of the layer that it goes into.
        options: the keywords of that attention's constructor.

    Raises:
        ValueError: there is no such attention, it needs more than query, key and value, it has no
            such option, or it needs max_length.
    """
    if name in MIXERS and name not in ATTENTIONS:
        raise ValueError(
            f"{name!r} does not fit into a layer with projections of its own: it is made of "
            f"{', '.join(MIXERS[name].kind.inputs)} (hidden: the hidden states, for gates or "
            f"weights), and comes as a whole, with build_mixer. Those that fit: "
            f"{', '.join(ATTENTIONS)}"
        )
    _check_name(name, "attention", list(ATTENTIONS))
    _check_options(name, options, option_names(ATTENTIONS[name]))
    attention = make_attention(ATTENTIONS[name], sizes, options)
    if name != "softmax":
        record = MixerRecord(name, option_defaults(ATTENTIONS[name]), options)
        attention.add_module(record.name, record)
    return attention


def require_independent_sinks(attention: HeadAttention) -> None:
    """Refuse what would show an autoregressive decoder, as its cross-attention, the future.

    Raises:
        ValueError: an output depends on the other queries; the message lists what can be had.
    """
    if not attention.capabilities.independent_sinks:
        raise ValueError(
            f"{type(attention).__name__} cannot be the cross-attention of an autoregressive "
            "decoder: each output depends on all queries, so on the tokens that are to be "
            f"predicted. Those that can be had there: {independent_choices()}"
        )


def independent_choices() -> str:
    """The attentions of ATTENTIONS whose outputs depend on no other query, for messages."""
    able = [name for name, each in ATTENTIONS.items() if each.capabilities.independent_sinks]
    return ", ".join(["flow with the option independent_sinks=True", *able])


def _check_name(name: str, noun: str, names: list[str]) -> None:
    if name in names:
        return
    near = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"unknown {noun} {name!r}: {hint}expected one of {', '.join(names)}")


def _check_options(name: str, options: dict[str, Any], allowed: set[str]) -> None:
    if unknown := sorted(options.keys() - allowed):
        raise ValueError(
            f"{name!r} has no option {', '.join(unknown)}; it takes {', '.join(sorted(allowed))}"
        )
