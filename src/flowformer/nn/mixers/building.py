"""Mixers and attentions from their names, published modules, the name's record in a state dict."""

import json
import warnings
from collections.abc import Mapping
from importlib.metadata import entry_points
from inspect import Parameter, signature
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Int32, Real
from torch import Tensor, nn
from torch.nn.modules.module import _EXTRA_STATE_KEY_SUFFIX  # torch has no public name for it

from flowformer.names import ENTRY_POINTS, REMEDY, require_options, unknown
from flowformer.nn.mixers.head_attention import (
    ATTENTIONS,
    MIXERS,
    HeadAttention,
    Sizes,
    enter,
    make_attention,
    option_defaults,
    option_names,
)
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.nn.mixers.own import own_mixer

# Published class: the mixer that it is. The causal one is the same module called with causal=True.
PUBLISHED = {
    "Flow_Attention": "flow",
    "Flow_Attention_Causal": "flow",
    "Mobile_Attention": "mobile",
}

_PROJECTIONS = ("query_projection", "key_projection", "value_projection", "out_projection")


def build_mixer(name: str, dim: int, num_heads: int, **options: Any) -> ProjectedMixer:
    """Build the mixer of that name in MIXERS.

    Args:
        name: a key of MIXERS.
        dim: width of the hidden states.
        num_heads: number of heads.
        options: the keywords of ProjectedMixer, and of the mixer's attention.

    Raises:
        ValueError: there is no such mixer, or it has no such option; the message lists the choices.

    Examples:
        >>> import torch
        >>> from flowformer.nn import build_mixer
        >>> mixer = build_mixer("linear", 64, 4, dropout=0.1)
        >>> out, state = mixer(torch.randn(2, 100, 64), causal=True, return_state=True)
        >>> out.shape
        torch.Size([2, 100, 64])
        >>> build_mixer("lineer", 64, 4)
        Traceback (most recent call last):
        ValueError: unknown mixer 'lineer': did you mean linear? expected one of flow, ...
    """
    mixer = mixer_class(name)
    check_options(name, mixer, options)
    return mixer(dim, num_heads, **options)


def check_options(name: str, mixer: type[ProjectedMixer], options: Mapping[str, Any]) -> None:
    """Refuse an option that neither the layer nor its attention has.

    Raises:
        ValueError: there is one; the message lists those there are.
    """
    layer = {
        name
        for name, each in signature(mixer).parameters.items()
        if each.kind is Parameter.KEYWORD_ONLY
    }
    require_options(name, options, layer | option_names(mixer.kind))


def mixer_class(name: str) -> type[ProjectedMixer]:
    """Return the mixer of that name in MIXERS, or of the entry point that an installed package has.

    Raises:
        ValueError: there is no such mixer; the message lists the choices.
    """
    if name not in MIXERS:
        load_installed(name)
    _check_name(name, "mixer", list(MIXERS), hint=f"; {REMEDY}")
    return MIXERS[name]


def load_installed(name: str | None = None) -> None:
    """Enter the mixers of installed packages, or the one of that name, into the table.

    A package names them in the group `flowformer.mixers` of its entry points: a class, which is
    registered under the entry's name, or a module that calls `register_mixer` itself.
    """
    for entry in entry_points(group=ENTRY_POINTS):
        if entry.name in MIXERS or name not in (None, entry.name):
            continue
        try:
            mixer = entry.load()
            if entry.name not in MIXERS and not isinstance(mixer, ModuleType):
                enter(entry.name, own_mixer(entry.name, mixer))
        except Exception as error:
            message = f"the mixer {entry.name!r} ({entry.value}) cannot be loaded: {error}"
            if name is not None:
                raise ValueError(message) from error
            warnings.warn(message, stacklevel=2)


def mixer_options(config: Any, model: str) -> dict[str, Any]:
    """Return the options of a model's mixer: those given, or those that it was published with.

    Args:
        config: the model's configuration, with a mixer, mixer_options and a dropout.
        model: the kind of the model: "series", "language", "sequences", "images" or "trajectories".

    Raises:
        ValueError: there is no such mixer; the message lists the choices.
    """
    if config.mixer_options is not None:
        return dict(config.mixer_options)
    return mixer_class(config.mixer).published_options(model, config.dropout)


def published_mixer(
    state_dict: Mapping[str, Tensor],
    num_heads: int,
    *,
    name: str = "Flow_Attention",
    dropout: float = 0.05,
) -> ProjectedMixer:
    """Build the mixer that computes what a published attention module computes.

    The modules are `Flow_Attention` and `Flow_Attention_Causal` (thuml/Flowformer,
    Flow_Attention.py) and `Mobile_Attention` (thuml/MobileAttention). `module(x, x, x)` there is
    `mixer(x)` here, with causal=True for the causal one; `module(x, c, c)` is `mixer(x, c)`.

    Args:
        state_dict: the module's parameters; its widths are read from them.
        num_heads: the module's `n_heads`, which no parameter tells.
        name: the class of the module, a key of PUBLISHED.
        dropout: of the output; 0.05 there.

    Raises:
        ValueError: another name, or parameters missing, left over, or of shapes that do not fit.
    """
    if name not in PUBLISHED:
        raise ValueError(f"unknown published module {name!r}: expected {', '.join(PUBLISHED)}")
    expected = {f"{part}.{kind}" for part in _PROJECTIONS for kind in ("weight", "bias")}
    if state_dict.keys() != expected:
        missing, unknown = expected - state_dict.keys(), state_dict.keys() - expected
        raise ValueError(
            f"not the parameters of a published {name}: missing {sorted(missing)}, "
            f"not known {sorted(unknown)}"
        )
    query = state_dict["query_projection.weight"]
    inner, dim = query.shape
    if num_heads < 1 or inner % num_heads:
        raise ValueError(f"num_heads must divide the inner width {inner}, got {num_heads}")
    mixer = build_mixer(
        PUBLISHED[name],
        dim,
        num_heads,
        head_dim=inner // num_heads,
        context_dim=state_dict["key_projection.weight"].shape[1],
        out_dim=state_dict["out_projection.weight"].shape[0],
        dropout=dropout,
    ).to(query)
    for parameter_name, parameter in mixer.named_parameters():
        if state_dict[parameter_name].shape != parameter.shape:
            raise ValueError(
                f"{parameter_name}: expected {list(parameter.shape)}, "
                f"got {list(state_dict[parameter_name].shape)}"
            )
    mixer.load_state_dict(state_dict)
    return mixer


def build_attention(name: str, sizes: Sizes, **options: Any) -> HeadAttention:
    """Build the attention of that name in ATTENTIONS, for a layer with projections of its own.

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
    require_options(name, options, option_names(ATTENTIONS[name]))
    if "hidden" in ATTENTIONS[name].inputs:  # it takes the values in their place
        sizes = Sizes(**{**sizes, "dim": sizes["num_kv_heads"] * sizes["head_dim"]})
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
    """Name the attentions of ATTENTIONS whose outputs depend on no other query, for messages."""
    able = [name for name, each in ATTENTIONS.items() if each.capabilities.independent_sinks]
    return ", ".join(["flow with the option independent_sinks=True", *able])


def _check_name(name: str, noun: str, names: list[str], *, hint: str = "") -> None:
    if name not in names:
        raise unknown(noun, name, names, hint=hint)


class MixerRecord(nn.Module):
    """Writes the mixer and its options into the state dict of the layer that it stands in.

    The projections of such a layer are those of softmax attention: without a word, a fresh model of
    the other library would take them and compute something else. The name of the key says which
    mixer it was, and `load_state_dict` of a model without it fails of that key, if strict. Loading
    into a layer whose options are others fails too. State dicts without a record load.

    Args:
        mixer: its name.
        defaults: the options of the mixer and what they are where nothing is given.
        options: those given.
    """

    def __init__(self, mixer: str, defaults: dict[str, Any], options: dict[str, Any]) -> None:
        super().__init__()
        self.mixer = mixer
        # But for `backend`, which is how to compute and not what.
        self.defaults = {name: each for name, each in defaults.items() if name != "backend"}
        self.options = {name: each for name, each in options.items() if name != "backend"}

    @property
    def name(self) -> str:
        """Under which it stands in the layer: keys of a state dict show it."""
        return f"mixer_{self.mixer}".replace("-", "_")

    def get_extra_state(self) -> Int32[Tensor, " bytes"]:
        """Return what `state_dict` writes: JSON as a tensor, for safetensors holds nothing else.

        Not of bytes: who averages state dicts sums all that is in them.
        """
        text = json.dumps({"mixer": self.mixer, "options": self.options}, default=str)
        return torch.tensor(list(text.encode()), dtype=torch.int32, device="cpu")

    def set_extra_state(self, state: Real[Tensor, " bytes"]) -> None:
        """Compare what was saved.

        Raises:
            ValueError: another mixer, or the same with other options.
        """
        saved = json.loads(bytes(map(round, state.tolist())))  # it may have been cast
        given, theirs = (
            json.dumps({**self.defaults, **options}, default=str, sort_keys=True)
            for options in (self.options, saved["options"])
        )
        # The values, not their text: 1 is 1.0.
        if (self.mixer, json.loads(given)) != (saved["mixer"], json.loads(theirs)):
            raise ValueError(
                f"expected what was saved with the mixer {self.mixer!r} and the options {given}, "
                f"got {saved['mixer']!r} and {theirs}"
            )

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],  # noqa: ARG002 - torch's signature
        strict: bool,  # noqa: ARG002
        missing_keys: list[str],  # noqa: ARG002
        unexpected_keys: list[str],  # noqa: ARG002
        error_msgs: list[str],
    ) -> None:
        key = prefix + _EXTRA_STATE_KEY_SUFFIX
        state = state_dict.get(key)
        if state is None or state.is_meta:  # saved by torch or before there were records; no values
            return
        try:
            self.set_extra_state(state)
        except ValueError as error:
            # torch does not say here whether the caller is strict.
            error_msgs.append(f"{error}. To load it all the same, take {key!r} out of it")

    def extra_repr(self) -> str:
        """Return the mixer and the options given, for print(model)."""
        return ", ".join([repr(self.mixer), *(f"{k}={v!r}" for k, v in self.options.items())])
