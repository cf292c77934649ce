"""What the GPU kernels move and multiply, counted from the launches that they really make.

A forward or a backward runs on tensors without data, and every launch is noted in place of being
made: what it reads and writes, a tensor once, and the operations of its products of matrices; for
operations of PyTorch, what goes in and comes out. Nothing is noted of what a kernel reads again,
which a cache mostly holds, nor of its arithmetic outside of products. A test counts both anew from
the accesses of Triton's interpreter.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flowformer.ops.backends.arguments import (
    LINEAR_OPTIONS,
    BidirectionalArguments,
    BidirectionalBackwardArguments,
    BidirectionalInputs,
    BidirectionalResults,
    BidirectionalSaved,
    CausalArguments,
    CausalBackwardArguments,
    CausalInputs,
    CausalResults,
    CausalSaved,
    StateGradients,
    numbers,
)
from flowformer.ops.backends.triton import bidirectional_passes, causal_passes, launch, tuning
from flowformer.ops.backends.triton.tuning import Settings
from flowformer.ops.options import FlowOptions
from flowformer.ops.state import FlowState

PUBLISHED = FlowOptions()
PASSES_OVER_MEMORY = 8  # the bidirectional forward reads and writes a tensor this often
_ALLOCATE = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided")
_VIEW = ("detach", "alias", "_unsafe_view", "_reshape_alias")

Bound = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Call:
    """The sizes of a call."""

    causal: bool
    batch: int
    length: int
    heads: int
    width: int
    dtype: torch.dtype

    @property
    def numbers(self) -> int:
        """In one of the tensors."""
        return self.batch * self.length * self.heads * self.width


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A kernel, or an operation of PyTorch: bytes read and written, operations of its products."""

    name: str
    moved: int
    flop: int = 0


@contextmanager
def fixed_settings(settings: Settings | None) -> Iterator[None]:
    """Let all calls have these settings; None for those that they have anyway."""
    if settings is None:
        yield
        return
    with patch.object(tuning, "settings_for", lambda *_: settings):
        yield


def forward_passes(call: Call, settings: Settings | None = None) -> list[Pass]:
    """Return the passes of a forward that keeps nothing."""
    inputs = _inputs(call)
    return _passes(lambda: _forward(call, inputs, keep=False), settings)


def both_passes(call: Call, settings: Settings | None = None) -> list[Pass]:
    """Return the passes of a forward and a backward."""
    inputs = _inputs(call)
    return _passes(lambda: run_both(call, inputs), settings)


def linear_passes(call: Call, *, decays: bool = False) -> list[Pass]:
    """Return the passes of causal linear attention without flows, by the kernels of both."""
    inputs = _inputs(call)
    if decays:
        inputs.append(inputs[0].new_empty(inputs[0].shape[:3], dtype=torch.float32))
    return _passes(lambda: run_linear(inputs), None)


def _passes(run: Callable[[], object], settings: Settings | None) -> list[Pass]:
    with fixed_settings(settings):
        record(run)  # makes the tables of chunks, which are kept
        return record(run)


def run_both(call: Call, inputs: list[Tensor]) -> None:
    """Run a forward and a backward; the inputs are query, key, value and the output's gradient."""
    _backward(inputs, _forward(call, inputs, keep=True))


def run_linear(inputs: list[Tensor]) -> None:
    """Run a forward and a backward of causal linear attention, on inputs as above, and decays."""
    query, key, value, grad, *decays = inputs
    tensors = CausalInputs(query, key, value, log_decay=decays[0] if decays else None)
    results = causal_passes.forward(
        CausalArguments(tensors, LINEAR_OPTIONS, keep=True, return_state=False)
    )
    saved = CausalSaved(results.out, tensors, results.kept)
    causal_passes.backward(
        CausalBackwardArguments(grad, StateGradients(), saved, LINEAR_OPTIONS, state_gradient=False)
    )


def flash_flop(call: Call, *, backward: bool) -> int:
    """Return FlashAttention's operations: two products of L × L, five more in its backward."""
    products = 7 if backward else 2
    flop = products * 2 * call.length * call.numbers
    return flop // 2 if call.causal else flop


def flash_bytes(call: Call, *, backward: bool) -> int:
    """Return what FlashAttention moves at least: q, k, v, o; again, with dO, dq, dk, dv."""
    return (12 if backward else 4) * call.numbers * call.dtype.itemsize


def eight_passes(call: Call) -> int:
    """Return the bytes that the bound of the bidirectional forward counts."""
    return PASSES_OVER_MEMORY * call.numbers * call.dtype.itemsize


def step_passes(call: Call) -> list[Pass]:
    """Return the one pass of a decoded token; the length of the call does not matter."""
    query, key, value, _ = _inputs(replace(call, length=1))
    sizes = call.batch, call.heads, call.width, call.width
    state = FlowState.initial(*sizes, query.device)
    options: dict[str, Any] = {
        "features": 0,
        "eps": PUBLISHED.eps,
        "clamp": PUBLISHED.clamp,
        "allocates": PUBLISHED.allocation,
    }
    return record(lambda: launch.step(query, key, value, state, **options))


def record(run: Callable[[], object], *, launching: bool = False) -> list[Pass]:
    """Return the passes of what is run, without making the launches unless asked to."""
    found: list[Pass] = []
    make = launch._launch

    def note(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
        bound = dict(zip(kernel.arg_names, arguments, strict=False)) | options
        found.append(_pass(kernel.fn.__name__, bound))
        if launching:
            make(kernel, grid, *arguments, **options)

    with patch.object(launch, "_launch", note), _Operations(found):
        run()
    return found


class _Operations(TorchDispatchMode):
    """Notes PyTorch's operations, but for views and for room that is only made."""

    def __init__(self, found: list[Pass]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run it, and note it."""
        del types
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not (func.is_view or name in _ALLOCATE or name in _VIEW):
            moved = sum(map(_bytes, _tensors((args, kwargs or {}, result))))
            self.found.append(Pass(name=f"torch.{name}", moved=moved))
        return result


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, dict):
        yield from _tensors(list(nested.values()))
    elif isinstance(nested, (tuple, list)):
        for each in nested:
            yield from _tensors(each)


def _bytes(tensor: Tensor | None) -> int:
    """Return the bytes of a tensor; a number that is repeated by a stride of 0 counts once."""
    if tensor is None:
        return 0
    sizes = [
        size for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step or size < 2
    ]
    count = 1
    for size in sizes:
        count *= size
    return count * tensor.itemsize


# The kernels: names of what is read and written, and operations, of bound arguments.


def _flows(bound: Bound) -> str:
    if bound["SECOND"]:
        return "incoming outgoing sink source"
    return "incoming outgoing key_share query_share"


def _output(bound: Bound) -> str:
    names = "query matrix row_scale incoming key_flow ratio out conserved"
    return names + " key value weight log_decay" * bound["CAUSAL"]


def _values(bound: Bound) -> str:
    names = "key grad_matrix grad_value grad_weight log_decay"
    return names + " query row_scale grad" * bound["CAUSAL"] + " value weight" * bound["HAS_WEIGHT"]


def _features(bound: Bound) -> str:
    causal = bound["CAUSAL"]
    names = "grad_query grad_key sink_scalars source_scalars"
    names += " query grad" * (causal or bound["SINKS"]) + " matrix" * bound["SINKS"]
    return (
        names
        + " key value" * (causal or bound["SOURCES"])
        + " grad_matrix" * bound["SOURCES"]
        + " before/2 after/2" * (bound["SINKS"] + bound["SOURCES"])
    )


# The tables and the mask are read by all; what is read and written stands twice.
KERNELS: dict[str, Callable[[Bound], str]] = {
    "weighted_sum": lambda _: "x weight out",
    "total_flow": lambda bound: "x total flow" + " share" * bound["SHARES"],
    "total_flow_backward": lambda _: "x grad_total flow grad_flow grad_flow grad_other",
    "prefix_flow": lambda bound: "query key count key_before query_before " + _flows(bound),
    "prefix_flow_backward": lambda _: (
        "query key count incoming outgoing sink_weight source_weight key_flow_after "
        "query_flow_after grad_incoming grad_incoming grad_outgoing key_sum query_sum"
    ),
    "scan": lambda _: "parts start prefix total first",
    "fading_scan": lambda _: "parts left start prefix total first",
    "states": lambda _: "x y weight start before total logits vector log_decay log_left splits",
    "output": _output,
    "row_products": lambda _: "x y out",
    "values_backward": _values,
    "linear_features_backward": lambda _: (
        "query key value grad grad_query grad_key row_scale grad_scale matrix grad_matrix log_decay"
    ),
    "decays_backward": lambda _: (
        "query key value grad row_scale matrix grad_matrix log_decay grad_decay"
    ),
    "flow_features_backward": _features,
    "step": lambda _: " ".join(
        ["query key value out", *(f"{field} new_{field}" for field in FlowState._fields)]
    ),
}


def _pass(name: str, bound: Bound) -> Pass:
    table = _bytes(bound.get("table"))
    if name == "states":  # which has the sequence of its chunks from the table of splits
        table = table * 3 // 4
    moved = table + _bytes(bound.get("mask"))
    for argument in KERNELS[name](bound).split():
        whole, _, part = argument.partition("/")
        moved += _bytes(bound[whole]) // int(part or 1)
    return Pass(name=name, moved=moved, flop=_flop(name, bound))


def _flop(name: str, bound: Bound) -> int:
    """Return the operations of the products of matrices, of padded blocks."""
    if name not in _PRODUCTS:
        return 0
    size = bound["SIZE"]
    width = -(-bound["WIDTH"] // bound["BLOCK"]) * bound["BLOCK"]
    tiles = -(-bound.get("Y_WIDTH", 0) // bound.get("Y_BLOCK", 1))
    y_width = tiles * bound.get("Y_BLOCK", 0)
    scores, values = size * size * width, size * size * y_width
    sums = size * width * y_width
    causal = bound.get("CAUSAL", False)
    each = {
        "prefix_flow": scores,
        "prefix_flow_backward": scores,
        "states": sums,
        "output": sums + causal * (tiles * scores + values),
        "values_backward": sums + causal * (scores + values),
        "linear_features_backward": values + 2 * (scores + sums),
        "decays_backward": scores + values + 2 * sums,
        "flow_features_backward": causal * values
        + (bound.get("SINKS", 0) + bound.get("SOURCES", 0)) * (sums + causal * scores),
    }[name]
    return 2 * len(bound["table"]) * bound["heads"] * each


_PRODUCTS = (
    "prefix_flow",
    "prefix_flow_backward",
    "states",
    "output",
    "values_backward",
    "linear_features_backward",
    "decays_backward",
    "flow_features_backward",
)


# The calls.


def _inputs(call: Call) -> list[Tensor]:
    shape = call.batch, call.length, call.heads, call.width
    return [torch.empty(shape, dtype=call.dtype, device="meta") for _ in range(4)]


def _forward(
    call: Call, inputs: list[Tensor], *, keep: bool
) -> CausalResults | BidirectionalResults:
    query, key, value, _ = inputs
    options = numbers(PUBLISHED)
    if call.causal:
        arguments = CausalArguments(
            CausalInputs(query, key, value), options, keep, return_state=False
        )
        return causal_passes.forward(arguments)
    tensors = BidirectionalInputs(query, key, value)
    return bidirectional_passes.forward(BidirectionalArguments(tensors, options, keep))


def _backward(inputs: list[Tensor], results: CausalResults | BidirectionalResults) -> None:
    query, key, value, grad = inputs
    options = numbers(PUBLISHED)
    if isinstance(results, CausalResults):
        saved = CausalSaved(results.out, CausalInputs(query, key, value), results.kept)
        causal_passes.backward(
            CausalBackwardArguments(grad, StateGradients(), saved, options, state_gradient=False)
        )
    else:
        kept = BidirectionalSaved(results.out, BidirectionalInputs(query, key, value), results.kept)
        bidirectional_passes.backward(BidirectionalBackwardArguments(grad, kept, options))
