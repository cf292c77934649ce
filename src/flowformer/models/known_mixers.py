"""The mixers that a configuration can name, known without torch: their forms and their options.

The mixers themselves are in `flowformer.nn.MIXERS`, and say more; a test holds this table against
them. What of a mixer can be refused by its name, or by the name or the type of an option, is told
here before anything is imported that computes; what a value comes to, when the mixer is built.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from flowformer.config_json import convert
from flowformer.names import (
    ENTRY_POINTS,
    REMEDY,
    Early,
    require_divided,
    require_options,
    unknown,
)

Form = Literal["causal", "bidirectional"]
Types = Mapping[str, Any]


@dataclass(frozen=True)
class KnownMixer:
    """What is known of a mixer.

    Attributes:
        forms: the forms that it has.
        options: the type of each option of its attention; those of `LAYER` come to them.
    """

    forms: tuple[Form, ...]
    options: Types


def _both(**options: Any) -> KnownMixer:
    return KnownMixer(("causal", "bidirectional"), options)


def _causal(**options: Any) -> KnownMixer:
    return KnownMixer(("causal",), options)


def _bidirectional(**options: Any) -> KnownMixer:
    return KnownMixer(("bidirectional",), options)


_EPS: Types = {"eps": float}
_CLAMP: Types = {"clamp": float | None}
_BACKEND: Types = {"backend": str | None}
_FEATURES: Types = {"feature_map": Literal["sigmoid", "relu"]}
_COMPETITION: Types = {"competition": Literal["sources", "heads"] | None}
_FLOW: Types = {**_BACKEND, **_FEATURES, **_EPS}
_OUTPUT: Types = {"convolution": int, "norm": bool, "output_gate": bool, **_EPS}
_GATED: Types = {
    **_BACKEND,
    **_OUTPUT,
    **_CLAMP,
    **dict.fromkeys(("input_gate", "skip", "flows", "allocation"), bool),
    "gain": float | None,
    "decay": tuple[float, ...] | None,
    "directions": float,
    "feature_map": Literal["sigmoid", "relu", "elu"],
    "competition": Literal["sources"] | None,
}
_RANDOM: Types = {"num_features": int, "redraw_every": int | None, **_EPS}
_SYNTHESIZER: Types = {
    "parts": tuple[
        Literal["dense", "factorized-dense", "random", "fixed-random", "factorized-random"], ...
    ],
    "rank": int,
}

# In the order of `flowformer.nn.MIXERS`.
KNOWN_MIXERS: Mapping[str, KnownMixer] = {
    "flow": _both(**_FLOW, **_CLAMP, **_COMPETITION, allocation=bool, independent_sinks=bool),
    "flow-no-competition": _both(**_FLOW),
    "flow-no-allocation": _both(**_FLOW, **_CLAMP, **_COMPETITION),
    "flow-heads": _bidirectional(**_BACKEND, **_EPS),
    "softmax": _both(weight_dropout=float),
    "linear": _both(**_EPS),
    "gated": _both(**_GATED),
    "flow-gated": _both(**_GATED),
    "performer": _both(**{**_RANDOM, "num_features": int | None}),
    "cosformer": _both(**_EPS),
    "rfa": _both(**_RANDOM),
    "rfa-gated": _causal(**_RANDOM),
    "gla": _causal(**_OUTPUT, gate_rank=int, gate_temperature=float),
    "deltanet": _causal(**_OUTPUT),
    "gated-deltanet": _causal(**_OUTPUT),
    "mamba2": _causal(state_size=int, convolution=int, **_EPS),
    "retnet": _causal(**_EPS),
    "linformer": _bidirectional(rank=int),
    "nystromformer": _bidirectional(num_landmarks=int, iterations=int, residual_width=int | None),
    "yoso": _bidirectional(hash_bits=int),
    "soft": _bidirectional(num_landmarks=int, iterations=int, ridge=float),
    "synthesizer": _both(**_SYNTHESIZER),
    "synthesizer-mixture": _both(**_SYNTHESIZER),
    "local": _both(window=int, blocked=bool),
    "sparse": _both(pattern=Literal["strided", "fixed"], stride=int, summary=int),
    "longformer": _both(window=int, global_tokens=int),
    "bigbird": _bidirectional(block=int, random_blocks=int),
    "sinkhorn": _both(block=int, iterations=int, temperature=float, noise=bool),
    "reformer": _both(rounds=int, num_buckets=int, chunk=int),
    "mobile": _bidirectional(**_FEATURES, **_CLAMP, **_EPS, normalize=bool),
}
LAYER: Types = {
    **dict.fromkeys(("max_length", "head_dim", "num_kv_heads"), int | None),
    **dict.fromkeys(("context_dim", "out_dim"), int | None),
    "dropout": float,
    "bias": bool,
}


def require_mixer(name: str) -> None:
    """Refuse a name that no mixer can have; where torch is there already, all others too.

    Raises:
        ValueError: there is no such mixer; the message lists the choices.
    """
    if name in KNOWN_MIXERS or "flowformer.nn" in sys.modules:  # that one knows those of users too
        return
    from importlib.metadata import entry_points

    installed = [entry.name for entry in entry_points(group=ENTRY_POINTS)]
    if name not in installed:
        raise unknown("mixer", name, [*KNOWN_MIXERS, *installed], hint=f"; {REMEDY}")


def check_mixer_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that a mixer of this package has not, and values of another type.

    Raises:
        ValueError: the message lists the options that there are, or says which type is expected.
    """
    if name not in KNOWN_MIXERS:
        return
    types = {**LAYER, **KNOWN_MIXERS[name].options}
    require_options(name, options, types)
    for option, value in options.items():
        convert(types[option], value, f"{name}.{option}")


def check_mixer_of(model: Any, form: Form, user: str) -> None:
    """Check the mixer of a model's configuration: its form, its options, and that heads fit in.

    Args:
        model: the configuration; of an encoder without a mixer nothing is checked.
        form: the form in which the model has it.
        user: who needs it, for the message.

    Raises:
        ValueError: the mixer has not that form, there is no such option, a value is of another
            type, or the heads do not divide the width.
    """
    if getattr(model, "encoder", "transformer") != "transformer":
        return
    options = model.mixer_options or {}
    require_form(model.mixer, form, user)
    check_mixer_options(model.mixer, options)
    if options.get("head_dim") is None and getattr(model, "qkv_dim", None) is None:
        widths = getattr(model, "dims", None) or (model.dim,)
        heads = model.num_heads if isinstance(model.num_heads, tuple) else (model.num_heads,)
        for dim, num_heads in zip(widths, heads, strict=True):
            require_divided(dim, num_heads)


def require_form(name: str, form: Form, user: str) -> None:
    """Refuse a mixer of this package that has not the form which someone needs.

    Raises:
        ValueError: the message names the choices.
    """
    if name in KNOWN_MIXERS and form not in KNOWN_MIXERS[name].forms:
        able = [each for each, known in KNOWN_MIXERS.items() if form in known.forms]
        raise ValueError(
            f"{name} has no {form} form, which {user} needs: choose from {', '.join(able)}"
        )


MixerName = Annotated[str, Early(require_mixer)]
