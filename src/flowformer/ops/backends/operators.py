"""Compiled kernels as operators of torch: schemas, gradients, and second derivatives.

A backend gives the forward, the backward and their fakes. A gradient of a gradient is computed in
PyTorch, by the ``chunked`` backend.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowformer.ops.backends import chunked
from flowformer.ops.backends.arguments import (
    LINEAR,
    BidirectionalArguments,
    BidirectionalBackwardArguments,
    BidirectionalGradients,
    BidirectionalInputs,
    BidirectionalResults,
    BidirectionalSaved,
    CausalArguments,
    CausalBackwardArguments,
    CausalGradients,
    CausalInputs,
    CausalResults,
    CausalSaved,
    Numbers,
    StateFields,
    StateGradients,
    declared,
    flat,
    flow_options,
    reader,
)
from flowformer.ops.features import compute_dtype
from flowformer.ops.inputs import is_transformed
from flowformer.ops.packing import Batch, attend_batch, sequence_count
from flowformer.ops.state import FlowState, LinearState

# Of each operator what it takes, and what its schema says that it returns.
_OPERATORS: dict[str, tuple[type[tuple], str]] = {
    "bidirectional": (
        BidirectionalArguments,
        ", ".join(f"Tensor {name}" for _, name in declared(BidirectionalResults)),
    ),
    "bidirectional_backward": (
        BidirectionalBackwardArguments,
        ", ".join("Tensor" for _ in declared(BidirectionalGradients)),
    ),
    "causal": (
        CausalArguments,
        ", ".join(f"Tensor {name}" for _, name in declared(CausalResults)),
    ),
    "causal_backward": (
        CausalBackwardArguments,
        ", ".join("Tensor" for _ in declared(CausalGradients)),
    ),
}
_LIBRARY = torch.library.Library("flowformer", "DEF")


def is_kept(*tensors: Tensor | None) -> bool:
    """Return whether a gradient may be asked for: only then is anything kept for it."""
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


class Kernels(NamedTuple):
    """The functions of a backend, and fakes of the forwards, which return the shapes alone.

    Attributes:
        keeps_output: whether the backward reads the output; otherwise it gets None.
    """

    bidirectional: Callable[[BidirectionalArguments], BidirectionalResults]
    bidirectional_backward: Callable[[BidirectionalBackwardArguments], BidirectionalGradients]
    causal: Callable[[CausalArguments], CausalResults]
    causal_backward: Callable[[CausalBackwardArguments], CausalGradients]
    fake_bidirectional: Callable[[BidirectionalArguments], BidirectionalResults]
    fake_causal: Callable[[CausalArguments], CausalResults]
    keeps_output: bool


class Operators(NamedTuple):
    """The operators to call, with all that stands in their arguments one after another."""

    bidirectional: Any
    causal: Any


def define_operators(prefix: str, kernels: Kernels, *devices: str) -> Operators:
    """Define flowformer::{prefix}bidirectional and {prefix}causal, with gradients, for devices."""
    fakes = {
        "bidirectional": kernels.fake_bidirectional,
        "bidirectional_backward": _fake_bidirectional_backward,
        "causal": kernels.fake_causal,
        "causal_backward": _fake_causal_backward,
    }
    for name, (arguments, results) in _OPERATORS.items():
        given = ", ".join(f"{kind} {each}" for kind, each in declared(arguments))
        _LIBRARY.define(f"{prefix}{name}({given}) -> ({results})")
        kernel = _door(arguments, getattr(kernels, name))
        for device in devices:
            _LIBRARY.impl(f"{prefix}{name}", kernel, device)
        fake = _door(arguments, fakes[name])
        torch.library.register_fake(f"flowformer::{prefix}{name}", fake, lib=_LIBRARY)
    defined = {
        name: getattr(torch.ops.flowformer, f"{prefix}{name}").default for name in _OPERATORS
    }
    keeps = kernels.keeps_output
    _bidirectional_gradients(f"{prefix}bidirectional", defined["bidirectional_backward"], keeps)
    _causal_gradients(f"{prefix}causal", defined["causal_backward"], keeps)
    return Operators(defined["bidirectional"], defined["causal"])


def _door(kind: type[tuple], kernel: Callable[[Any], tuple]) -> Callable[..., tuple[Tensor, ...]]:
    """Return a kernel as torch calls it: an operator has no results that are None."""
    read = reader(kind)

    def call(*arguments: Any) -> tuple[Tensor, ...]:
        empty = arguments[0].new_empty
        results = flat(kernel(read(arguments)))
        return tuple(empty(0) if each is None else each for each in results)

    return call


def room_for_state(inputs: CausalInputs, options: Numbers) -> StateFields:
    """Return room for the fields of a state; of linear attention only for its last."""
    query, rows = inputs.query, sequence_count(inputs.query, inputs.cu_seqlens)
    h, d, m = query.shape[2], query.shape[3], inputs.value.shape[3]
    shapes = [*[(rows, h, d)] * 4, (rows, h), (rows, h, d, m)]
    sums = [query.new_empty(shape, dtype=torch.float64) for shape in shapes]
    if options.feature_map == LINEAR:
        return StateFields(key_value=sums[5])
    return StateFields(query.new_empty((rows,), dtype=torch.int64), *sums)


def _fake_bidirectional_backward(
    arguments: BidirectionalBackwardArguments,
) -> BidirectionalGradients:
    return BidirectionalGradients(*_fake_gradients(arguments.saved.inputs))


def _fake_gradients(inputs: BidirectionalInputs | CausalInputs) -> tuple[Any, ...]:
    query, scale = inputs.query, inputs.row_scale
    if scale is not None:
        scale = query.new_empty(scale.shape, dtype=compute_dtype(query.dtype))
    return *(tensor.new_empty(tensor.shape) for tensor in inputs[:3]), scale


def _fake_causal_backward(arguments: CausalBackwardArguments) -> CausalGradients:
    inputs, past = arguments.saved.inputs, StateGradients()
    if arguments.state_gradient:
        past = StateGradients(*room_for_state(inputs, arguments.options)[1:])
    query, key, value, scale = _fake_gradients(inputs)
    return CausalGradients(query, key, value, scale, past)


_read_bidirectional = reader(BidirectionalArguments)
_read_bidirectional_results = reader(BidirectionalResults)
_read_bidirectional_inputs = reader(BidirectionalInputs)
_read_bidirectional_saved = reader(BidirectionalSaved)
_read_bidirectional_gradients = reader(BidirectionalGradients)


def _bidirectional_gradients(name: str, backward: Any, keeps_output: bool) -> None:
    unused = (None,) * (len(declared(BidirectionalArguments)) - len(declared(BidirectionalInputs)))

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        arguments = _read_bidirectional(inputs)
        results = _read_bidirectional_results(output)
        ctx.options, ctx.kept = arguments.options, arguments.keep
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*results.kept)
        out = results.out if keeps_output else None
        ctx.save_for_backward(*flat(BidirectionalSaved(out, arguments.inputs, results.kept)))

    def differentiate(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Any, ...]:
        # Read once: under torch's checkpoint they exist for one reading.
        saved = _read_bidirectional_saved(ctx.saved_tensors)
        if grad_out is None:
            return (None,) * len(ctx.needs_input_grad)
        if _in_pytorch(ctx, grad_out):
            return (*_chunked_bidirectional(saved.inputs, ctx.options, grad_out), *unused)
        arguments = BidirectionalBackwardArguments(grad_out, saved, ctx.options)
        found = _read_bidirectional_gradients(backward(*flat(arguments)))
        inputs = BidirectionalInputs(*found[:3], row_scale=found.row_scale)
        return (*_wanted(inputs, ctx), *unused)

    torch.library.register_autograd(
        f"flowformer::{name}", differentiate, setup_context=keep, lib=_LIBRARY
    )


_read_causal = reader(CausalArguments)
_read_causal_inputs = reader(CausalInputs)
_read_causal_results = reader(CausalResults)
_read_causal_saved = reader(CausalSaved)
_read_causal_gradients = reader(CausalGradients)


def _causal_gradients(name: str, backward: Any, keeps_output: bool) -> None:
    unused = (None,) * (len(declared(CausalArguments)) - len(declared(CausalInputs)))

    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        arguments, results = _read_causal(inputs), _read_causal_results(output)
        ctx.options, ctx.kept = arguments.options, arguments.keep
        ctx.set_materialize_grads(False)
        constants = [results.state.tokens, *results.kept]
        if ctx.options.competes_over == 0:
            constants.append(results.state.competition)
        ctx.mark_non_differentiable(*constants)
        out = results.out if keeps_output else None
        ctx.save_for_backward(*flat(CausalSaved(out, arguments.inputs, results.kept)))

    def differentiate(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        saved = _read_causal_saved(ctx.saved_tensors)  # once, see above
        after = _read_causal_results(grads)
        grad_out, grad_state = after.out, StateGradients(*after.state[1:])
        if _in_pytorch(ctx, grad_out, *grad_state):
            return (*_chunked_causal(saved.inputs, ctx.options, grad_out, grad_state), *unused)
        query, value = saved.inputs.query, saved.inputs.value
        if grad_out is None:
            grad_out = value.new_zeros((*query.shape[:3], value.shape[3]))
        wanted = _read_causal_inputs(ctx.needs_input_grad)
        arguments = CausalBackwardArguments(
            grad_out, grad_state, saved, ctx.options, any(wanted.past)
        )
        found = _read_causal_gradients(backward(*flat(arguments)))
        past = StateFields(None, *found.past)
        inputs = CausalInputs(*found[:3], row_scale=found.row_scale, past=past)
        return (*_wanted(inputs, ctx), *unused)

    torch.library.register_autograd(
        f"flowformer::{name}", differentiate, setup_context=keep, lib=_LIBRARY
    )


def _wanted(inputs: tuple, ctx: Any) -> list[Tensor | None]:
    """Return the gradients of the tensors, which lead the arguments, where they are wanted."""
    pairs = zip(flat(inputs), ctx.needs_input_grad, strict=False)
    return [grad if want else None for grad, want in pairs]


def _in_pytorch(ctx: Any, *grads: Tensor | None) -> bool:
    """Return whether the backward is for PyTorch and not for a kernel.

    A graph of the gradient is wanted (autograd enables gradients in its backward then), a transform
    is at work on the gradients that come in (a batch of them, a derivative), or the forward kept
    nothing: it is a node of a graph that was recorded without gradients.
    """
    return torch.is_grad_enabled() or is_transformed(*grads) or not ctx.kept


def _chunked_bidirectional(
    inputs: BidirectionalInputs, options: Numbers, grad_out: Tensor
) -> tuple[Tensor | None, ...]:
    linear = options.feature_map == LINEAR

    def attend(queries: Any, keys: Any, part: Batch, state: Any) -> Any:
        masks = {"query_mask": part.query_mask, "key_mask": part.key_mask}
        if linear:
            out = _linear(chunked.linear_bidirectional, queries, keys, **masks)
            return out.to(keys[1].dtype), state
        return chunked.bidirectional(*queries, *keys, options=flow_options(options), **masks), state

    def forward(*tensors: Any) -> tuple[Tensor, ...]:
        given = _read_bidirectional_inputs(tensors)
        queries = (given.query,) if given.row_scale is None else (given.query, given.row_scale)
        batch = Batch(*inputs[3:7])
        return (attend_batch(attend, queries, (given.key, given.value), batch, None)[0],)

    return _gradients(forward, inputs, (grad_out,))


def _linear(
    attend: Callable[..., Any], queries: Sequence[Tensor], keys: Sequence[Tensor], **rest: Any
) -> Any:
    """Call a function of ``chunked``, which computes in the dtype of what it gets."""
    dtype = compute_dtype(queries[0].dtype)
    query, key, value = (tensor.to(dtype) for tensor in (queries[0], *keys))
    return attend(query, key, value, row_scale=queries[1] if len(queries) > 1 else None, **rest)


def _gradients(
    forward: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    grads: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of what ``forward`` makes of the inputs, as a graph if one is wanted."""
    with_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # Each input for itself: one may be made of another, or be the same tensor.
        inputs = tuple(x.view_as(x) if x is not None and x.requires_grad else x for x in inputs)
        outputs = forward(*inputs)
    pairs = [
        (output, grad)
        for output, grad in zip(outputs, grads, strict=True)
        if grad is not None and output.requires_grad
    ]
    found = iter(
        torch.autograd.grad(
            [output for output, _ in pairs],
            [x for x in inputs if x is not None and x.requires_grad],
            [grad for _, grad in pairs],
            create_graph=with_graph,
            allow_unused=True,
        )
    )
    return tuple(next(found) if x is not None and x.requires_grad else None for x in inputs)


def _chunked_causal(
    inputs: CausalInputs, options: Numbers, grad_out: Tensor | None, grad_state: StateGradients
) -> tuple[Tensor | None, ...]:
    linear = options.feature_map == LINEAR

    def attend(queries: Any, keys: Any, part: Batch, state: Any) -> Any:
        if linear:
            out, after = _linear(chunked.linear_causal, queries, keys, state=state)
            return out.to(keys[1].dtype), after
        mask = part.key_mask
        return chunked.causal(
            *queries, *keys, options=flow_options(options), mask=mask, state=state
        )

    def forward(*tensors: Any) -> tuple[Tensor, ...]:
        given = _read_causal_inputs(tensors)
        queries = (given.query,) if given.row_scale is None else (given.query, given.row_scale)
        fields: Any = given.past
        past: Any = None
        if fields.key_value is not None:
            past = LinearState(fields.key_value) if linear else FlowState(*fields)
        batch = Batch(given.mask, given.mask, given.cu_seqlens, None)
        out, after = attend_batch(attend, queries, (given.key, given.value), batch, past)
        assert after is not None
        return (out, after.key_value) if linear else (out, *after[1:])

    grads = (grad_out, grad_state.grad_key_value) if linear else (grad_out, *grad_state)
    return _gradients(forward, flat(inputs), grads)
