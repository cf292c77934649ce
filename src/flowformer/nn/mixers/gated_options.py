"""The options of gated attention: words, defaults and checks."""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypedDict, get_args

from flowformer.ops.features import FeatureMap, check_eps, is_number
from flowformer.ops.options import FlowOptions, resolve_options

Features = FeatureMap | Literal["elu"]


class GatedOptions(NamedTuple):
    """The parts of a gated attention.

    Attributes:
        convolution: number of tokens that the short convolution of query, key and value sees; 0 for
            none. In a bidirectional form it is centred, but for heads that read in one direction.
        gain: root mean square of the queries and keys of a head before the feature map, at first:
            without it, all features start near φ(0) and no token stands out. None for no gain.
        decay: the shortest and the longest time constant at first, in tokens; None for no decay.
        input_gate: whether a value is multiplied by 2 sigmoid(w·x), one for each head.
        skip: whether a value is added to the output of its own token, before the norm, times a
            weight of the head, 0 at first: from 1, it hides what is remembered, and recall fails.
        norm: whether the output of each head is normalised.
        output_gate: whether the output is multiplied by silu(W x + b).
        directions: share of the heads that read in one direction in the bidirectional form, half of
            them forwards and half backwards, in whole pairs; only these decay. With none that reads
            in both, a token in front sees others by the heads that read backwards alone.
        flows: Flow-Attention in place of linear attention.
        feature_map: φ: "sigmoid", "relu" for relu(x) + 1e-6, or, without flows, "elu" for
            elu(x) + 1, as `linear` has it.
        clamp: of the flows; see `flowformer.ops.options.FlowOptions`.
        competition: of the flows.
        allocation: of the flows. With a norm, a factor of each row has no effect.
        eps: of the flows.
    """

    convolution: int = 4
    gain: float | None = 2.0
    decay: Sequence[float] | None = (1.0, 4096.0)
    input_gate: bool = True
    skip: bool = True
    norm: bool = True
    output_gate: bool = True
    directions: float = 0.5
    flows: bool = False
    feature_map: Features = "sigmoid"
    clamp: float | None = 1.0
    competition: Literal["sources"] | None = "sources"
    allocation: bool = True
    eps: float = 1e-6


class GatedKeywords(TypedDict, total=False):
    """The keywords of `GatedOptions`, for type checkers."""

    convolution: int
    gain: float | None
    decay: Sequence[float] | None
    input_gate: bool
    skip: bool
    norm: bool
    output_gate: bool
    directions: float
    flows: bool
    feature_map: Features
    clamp: float | None
    competition: Literal["sources"] | None
    allocation: bool
    eps: float


def check_options(options: GatedOptions) -> None:
    """Refuse options that contradict each other or are out of range.

    Raises:
        ValueError: one is.
    """
    check_convolution(options.convolution, least=0)
    check_eps(options.eps)
    if options.decay is not None:
        check_time_constants(options.decay)
    for name in ("input_gate", "skip", "norm", "output_gate", "flows", "allocation"):
        if not isinstance(getattr(options, name), bool):
            raise ValueError(f"{name} must be True or False, got {getattr(options, name)!r}")
    if options.gain is not None and not (is_number(options.gain) and options.gain > 0):
        raise ValueError(f"gain must be positive or None, got {options.gain!r}")
    if not (is_number(options.directions) and 0 <= options.directions <= 1):
        raise ValueError(f"directions must be in [0, 1], got {options.directions!r}")
    maps = get_args(FeatureMap) if options.flows else (*get_args(FeatureMap), "elu")
    if options.feature_map not in maps:
        raise ValueError(
            f"feature_map must be one of {', '.join(map(repr, maps))}, got {options.feature_map!r}"
        )
    if options.flows:
        resolve_options(**flow_options(options))


def flow_options(options: GatedOptions) -> dict[str, Any]:
    """Return those that are Flow-Attention's."""
    return {name: getattr(options, name) for name in FlowOptions._fields}


def check_time_constants(time_constants: object) -> tuple[float, float]:
    """Return the shortest and the longest time constant that an option names.

    Raises:
        ValueError: they are no two positive numbers, the smaller first.
    """
    if isinstance(time_constants, Sequence) and len(time_constants) == 2:
        shortest, longest = time_constants
        if is_number(shortest) and is_number(longest) and 0 < shortest <= longest < math.inf:
            return float(shortest), float(longest)
    raise ValueError(
        "decay must be None or the shortest and the longest time constant in tokens, such as "
        f"(1, 4096), got {time_constants!r}"
    )


def check_convolution(convolution: object, least: int) -> None:
    """Refuse a number of tokens that is none.

    Raises:
        ValueError: it is no whole number, or below the least.
    """
    if not isinstance(convolution, int) or isinstance(convolution, bool) or convolution < least:
        wanted = "positive" if least else "a whole number, 0 for none"
        raise ValueError(f"convolution must be {wanted}, got {convolution!r}")
