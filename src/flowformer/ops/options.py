"""The options of Flow-Attention: words, defaults and checks, which stand here and nowhere else.

Functions that take them as they are declare ``**options: Unpack[FlowKeywords]``, hand them to
:func:`resolve_options`, and are decorated with :func:`spells_out`, by which ``help`` shows each.
``flow_attention`` itself spells them out by hand; a test holds it to these.
"""

import difflib
from collections.abc import Callable, Iterable, Sequence
from inspect import Parameter, Signature, signature
from typing import Any, Literal, NamedTuple, TypedDict, TypeVar

from flowformer.ops.features import FeatureMap, check_eps, is_number

Competition = Literal["sources", "heads"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


class FlowOptions(NamedTuple):
    """The options of Flow-Attention, as a backend receives them.

    docs/attention/math.md has the symbols.

    Attributes:
        feature_map: φ: ``"sigmoid"``, or ``"relu"`` for relu(x) + 1e-6 (long-range arena).
        clamp: the bound of ±Ô before the competition: 1 as in the paper's code, 5 (language), 10
            (reinforcement learning), None for no bound (long-range arena, time series). Without
            one, a sequence that is sharded over ranks takes one message more, of the maxima.
        eps: ε > 0, which is added to features and their sums in every flow.
        competition: the softmax of Ô runs over ``"sources"``; over ``"heads"`` as the published
            long-range-arena code has it (bidirectional only; the output grows with the number of
            sources); None for the paper's ablation without competition, c = 1.
        allocation: whether sinks are scaled by the sigmoid of Î; False for the paper's ablation
            without allocation, a = 1.
    """

    feature_map: FeatureMap = "sigmoid"
    clamp: float | None = 1.0
    eps: float = 1e-6
    competition: Competition | None = "sources"
    allocation: bool = True


class FlowKeywords(TypedDict, total=False):
    """The keywords of :class:`FlowOptions`, and one that says two of them at once.

    Attributes:
        independent_sinks: whether to leave out competition and allocation, whatever these say: O
            and Ô sum over the queries, I does not, so that each output depends on its own query
            and on the context alone. It is the form for the cross-attention of a decoder: in any
            other, an earlier output knows the later queries.
    """

    feature_map: FeatureMap
    clamp: float | None
    eps: float
    competition: Competition | None
    allocation: bool
    independent_sinks: bool


DEFAULTS: dict[str, Any] = {**FlowOptions._field_defaults, "independent_sinks": False}


def resolve_options(*, independent_sinks: bool = False, **options: Any) -> FlowOptions:
    """Return the options that a public function was given, checked, as backends receive them.

    Raises:
        ValueError: an option is none of its choices, out of its range, or contradicts another.
        TypeError: there is no such option; the message names the nearest.
    """
    if not isinstance(independent_sinks, bool):
        raise ValueError(f"independent_sinks must be True or False, got {independent_sinks!r}")
    try:
        found = FlowOptions(**options)
    except TypeError:
        raise _unknown(options) from None
    _check(found)
    if not independent_sinks:
        return found
    if found.competition == "heads":
        raise ValueError(
            "independent_sinks=True leaves out the competition, which competition='heads' asks "
            "for: leave out one of them"
        )
    # O and Ô are all that sums over sinks, and nothing else reads them.
    return found._replace(competition=None, allocation=False)


def _unknown(options: Iterable[str]) -> TypeError:
    name = next(name for name in options if name not in DEFAULTS)
    near = difflib.get_close_matches(name, DEFAULTS, n=1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return TypeError(
        f"unexpected keyword argument {name!r}{hint}: the options of Flow-Attention are "
        f"{', '.join(DEFAULTS)}"
    )


def _check(options: FlowOptions) -> None:
    """Refuse what no backend can do."""
    if options.feature_map not in ("sigmoid", "relu"):
        raise ValueError(f"feature_map must be 'sigmoid' or 'relu', got {options.feature_map!r}")
    if options.competition not in ("sources", "heads", None):
        raise ValueError(
            f"competition must be 'sources', 'heads' or None, got {options.competition!r}"
        )
    if not isinstance(options.allocation, bool):
        raise ValueError(f"allocation must be True or False, got {options.allocation!r}")
    if options.clamp is not None and not (is_number(options.clamp) and options.clamp > 0):
        raise ValueError(f"clamp must be positive or None, got {options.clamp!r}")
    check_eps(options.eps)


def check_causal_options(options: FlowOptions) -> None:
    """Refuse what has no causal form.

    Raises:
        ValueError: the competition is one over heads.
    """
    if options.competition == "heads":
        raise ValueError(
            "competition='heads' has no causal form: use competition='sources', or causal=False"
        )


def sinks_are_independent(options: FlowOptions) -> bool:
    """Return whether each output of cross-attention depends on its own query and context alone."""
    return options.competition is None and not options.allocation


def spelled_out(function: Callable[..., Any], *, without: Sequence[str] = ()) -> Signature:
    """Return a function's signature with the options in place of ``**options``.

    Args:
        function: declares ``**options: Unpack[FlowKeywords]``.
        without: parameters and options that are not shown.
    """
    given = signature(function)
    shown = [each for each in given.parameters.values() if each.kind != Parameter.VAR_KEYWORD]
    if len(shown) < len(given.parameters):
        shown += [
            Parameter(name, Parameter.KEYWORD_ONLY, default=DEFAULTS[name], annotation=annotation)
            for name, annotation in FlowKeywords.__annotations__.items()
            if name not in given.parameters  # declared again, with a default of its own
        ]
    return given.replace(parameters=[each for each in shown if each.name not in without])


def spells_out(function: _Function) -> _Function:
    """Show the options in a function's signature: `help` does, and what lists a mixer's options."""
    function.__signature__ = spelled_out(function)  # pyright: ignore[reportFunctionMemberAccess]
    return function
