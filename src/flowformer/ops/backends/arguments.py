"""Arguments and results of the compiled operators, by name; their schemas are made from these.

An operator of torch takes and returns tensors and numbers one after another. Here they are named
tuples, some inside others: a :func:`writer` lays them out in the order of their fields, and a
:func:`reader` picks them up again at the door of each kernel. So a field that is added here is
known to every schema, and moves none of the others' readers. A result that is None is an empty
tensor between the two, for an operator returns tensors only.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar, get_type_hints

from torch import Tensor

from flowformer.ops.options import FlowOptions

Record = TypeVar("Record", bound=tuple)

NOTHING: Any = None  # of a forward that keeps nothing; a backward is given tensors
LINEAR = 2  # in the place of a feature map: linear attention, without flows

_FEATURE_MAPS = {"sigmoid": 0, "relu": 1}
_COMPETITIONS = {None: 0, "sources": 1, "heads": 2}


class Numbers(NamedTuple):
    """The options as the operators and the library take them, in the order of csrc/api.h."""

    feature_map: int
    competes_over: int
    allocation: bool
    clamp: float
    eps: float


LINEAR_OPTIONS = Numbers(LINEAR, 0, False, 0.0, 0.0)


def numbers(options: FlowOptions) -> Numbers:
    """Return the options as numbers; no clamp is an infinite one."""
    return Numbers(
        _FEATURE_MAPS[options.feature_map],
        _COMPETITIONS[options.competition],
        options.allocation,
        float("inf") if options.clamp is None else float(options.clamp),
        float(options.eps),
    )


def flow_options(numbers: Numbers) -> FlowOptions:
    """Return the options that were made numbers."""
    maps = {number: name for name, number in _FEATURE_MAPS.items()}
    competitions = {number: name for name, number in _COMPETITIONS.items()}
    return FlowOptions(
        feature_map=maps[numbers.feature_map],  # pyright: ignore[reportArgumentType]
        clamp=None if numbers.clamp == float("inf") else numbers.clamp,
        eps=numbers.eps,
        competition=competitions[numbers.competes_over],  # pyright: ignore[reportArgumentType]
        allocation=numbers.allocation,
    )


class BidirectionalInputs(NamedTuple):
    """The tensors of a bidirectional call; ``row_scale`` is of linear attention alone."""

    query: Tensor
    key: Tensor
    value: Tensor
    query_mask: Tensor | None = None
    key_mask: Tensor | None = None
    cu_seqlens: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    row_scale: Tensor | None = None


class BidirectionalArguments(NamedTuple):
    """A bidirectional call, or one of linear attention.

    ``keep`` says whether anything is kept for a backward.
    """

    inputs: BidirectionalInputs
    options: Numbers
    keep: bool


class BidirectionalKept(NamedTuple):
    """Tensors that a bidirectional forward keeps for its backward, in a form of the backend's."""

    query_stats: Tensor = NOTHING
    key_stats: Tensor = NOTHING
    sums: Tensor = NOTHING


class BidirectionalResults(NamedTuple):
    """The results of a bidirectional call."""

    out: Tensor
    kept: BidirectionalKept = BidirectionalKept()


class BidirectionalSaved(NamedTuple):
    """Tensors that autograd holds between a bidirectional forward and its backward."""

    out: Tensor | None  # None unless the backward of the backend reads it
    inputs: BidirectionalInputs
    kept: BidirectionalKept


class BidirectionalBackwardArguments(NamedTuple):
    """A bidirectional backward."""

    grad_out: Tensor
    saved: BidirectionalSaved
    options: Numbers


class BidirectionalGradients(NamedTuple):
    """The gradients of a bidirectional call's tensors."""

    query: Tensor
    key: Tensor
    value: Tensor
    row_scale: Tensor | None = None


class MobileNumbers(NamedTuple):
    """The options of Mobile-Attention: those of Flow-Attention, and whether to divide by S."""

    flow: Numbers
    normalize: bool


class MobileArguments(NamedTuple):
    """A call of Mobile-Attention; its masks are one, and so are its offsets."""

    inputs: BidirectionalInputs
    options: MobileNumbers
    keep: bool


class MobileBackwardArguments(NamedTuple):
    """A backward of Mobile-Attention; what it returns has no scale."""

    grad_out: Tensor
    saved: BidirectionalSaved
    options: MobileNumbers


class StateFields(NamedTuple):
    """The fields of a ``FlowState``, or None for all; of a linear one the last alone is there."""

    tokens: Tensor | None = None
    key_sum: Tensor | None = None
    query_sum: Tensor | None = None
    key_flow: Tensor | None = None
    query_flow: Tensor | None = None
    competition: Tensor | None = None
    key_value: Tensor | None = None


class StateGradients(NamedTuple):
    """The gradients of a state's fields; its number of tokens has none."""

    grad_key_sum: Tensor | None = None
    grad_query_sum: Tensor | None = None
    grad_key_flow: Tensor | None = None
    grad_query_flow: Tensor | None = None
    grad_competition: Tensor | None = None
    grad_key_value: Tensor | None = None


class CausalInputs(NamedTuple):
    """The tensors of a causal call; linear attention alone has ``row_scale`` and ``log_decay``."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None = None
    cu_seqlens: Tensor | None = None
    row_scale: Tensor | None = None
    log_decay: Tensor | None = None
    past: StateFields = StateFields()


class CausalArguments(NamedTuple):
    """A causal call, or one of causal linear attention.

    With ``reverse``, the tokens of query, key, value and the output are read and written from the
    last to the first. What else there is of each token, and each sequence, stands in that order.
    """

    inputs: CausalInputs
    options: Numbers
    keep: bool
    return_state: bool
    reverse: bool = False


class CausalKept(NamedTuple):
    """Tensors that a causal forward keeps for its backward, in a form of the backend's."""

    stats: Tensor = NOTHING
    sums: Tensor = NOTHING


class CausalResults(NamedTuple):
    """The results of a causal call."""

    out: Tensor
    state: StateFields = StateFields()
    kept: CausalKept = CausalKept()


class CausalSaved(NamedTuple):
    """Tensors that autograd holds between a causal forward and its backward."""

    out: Tensor | None  # None unless the backward of the backend reads it
    inputs: CausalInputs
    kept: CausalKept


class CausalBackwardArguments(NamedTuple):
    """A causal backward; ``state_gradient`` says whether that of the past is wanted."""

    grad_out: Tensor
    grad_state: StateGradients
    saved: CausalSaved
    options: Numbers
    state_gradient: bool
    reverse: bool = False


class CausalGradients(NamedTuple):
    """The gradients of a causal call's tensors."""

    query: Tensor
    key: Tensor
    value: Tensor
    row_scale: Tensor | None = None
    log_decay: Tensor | None = None
    past: StateGradients = StateGradients()


class ConvolutionInputs(NamedTuple):
    """The tensors of a short convolution; weight and bias in the dtype of the arithmetic."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    mask: Tensor | None = None
    cu_seqlens: Tensor | None = None
    recent: Tensor | None = None


class ConvolutionArguments(NamedTuple):
    """A short convolution: whether silu follows, and how many of its tokens are later ones."""

    inputs: ConvolutionInputs
    activates: bool
    ahead: int
    keep: bool


class ConvolutionResults(NamedTuple):
    """The result of a short convolution."""

    out: Tensor


class ConvolutionBackwardArguments(NamedTuple):
    """A backward; ``recent_gradient`` says whether that of the tokens before is wanted."""

    grad_out: Tensor
    inputs: ConvolutionInputs
    activates: bool
    ahead: int
    recent_gradient: bool


class ConvolutionGradients(NamedTuple):
    """The gradients of a short convolution's tensors."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None
    recent: Tensor | None = None


def writer(kind: type[tuple]) -> Callable[[Any], list[Any]]:
    """Return what lays a named tuple out: what stands in it, and in those inside it, in order."""
    hints = enumerate(get_type_hints(kind).values())
    inside = [(at, writer(hint)) for at, hint in hints if hasattr(hint, "_fields")]
    inside.reverse()  # from behind: places before stay

    def write(record: Any) -> list[Any]:
        values = list(record)
        for at, write_part in inside:
            values[at : at + 1] = write_part(values[at])
        return values

    return write


def reader(kind: type[Record]) -> Callable[[Sequence[Any]], Record]:
    """Return the inverse of what :func:`writer` returns; it leaves alone what comes after."""
    return _reader(kind, 0)[0]


def _reader(kind: Any, start: int) -> tuple[Callable[[Sequence[Any]], Any], int]:
    """Return what reads a named tuple from its first place on, and the place after its last."""
    parts: list[tuple[Callable[[Sequence[Any]], Any] | None, int]] = []
    end = start
    for hint in get_type_hints(kind).values():
        read, after = _reader(hint, end) if hasattr(hint, "_fields") else (None, end + 1)
        parts.append((read, end))
        end = after
    if not any(read for read, _ in parts):
        return lambda values: kind._make(values[start:end]), end
    return lambda values: kind._make(
        [values[at] if read is None else read(values) for read, at in parts]
    ), end


_TYPES = {Tensor: "Tensor", Tensor | None: "Tensor?", int: "int", bool: "bool", float: "float"}


def declared(kind: type[tuple]) -> list[tuple[str, str]]:
    """Return the type, as a schema writes it, and the name of all that a named tuple holds."""
    found: list[tuple[str, str]] = []
    for name, hint in get_type_hints(kind).items():
        found += (
            declared(hint) if hasattr(hint, "_fields") else [(_TYPES.get(hint, "Tensor"), name)]
        )
    return found
