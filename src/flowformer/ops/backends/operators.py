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
    MobileArguments,
    MobileBackwardArguments,
    MobileNumbers,
    Numbers,
    StateFields,
    StateGradients,
    flow_options,
    reader,
    writer,
)
from flowformer.ops.backends.torch_operator import (
    Operator,
    define,
    gradients,
    in_pytorch,
    tensors_of,
    wanted,
)
from flowformer.ops.features import compute_dtype
from flowformer.ops.packing import Batch, attend_batch, sequence_count
from flowformer.ops.state import FlowState, LinearState

# Of each operator what it takes and what it returns.
_RECORDS: dict[str, tuple[type[tuple], type[tuple]]] = {
    "bidirectional": (BidirectionalArguments, BidirectionalResults),
    "bidirectional_backward": (BidirectionalBackwardArguments, BidirectionalGradients),
    "mobile": (MobileArguments, BidirectionalResults),
    "mobile_backward": (MobileBackwardArguments, BidirectionalGradients),
    "causal": (CausalArguments, CausalResults),
    "causal_backward": (CausalBackwardArguments, CausalGradients),
}


class Kernels(NamedTuple):
    """The functions of a backend, and fakes of the forwards, which return the shapes alone.

    Attributes:
        keeps_output: whether the backward reads the output; otherwise it gets None.
        mobile: Mobile-Attention, None where the backend has no kernels for it; its results are
            those of the bidirectional form, and so is their fake.
        mobile_backward: its backward.
    """

    bidirectional: Callable[[BidirectionalArguments], BidirectionalResults]
    bidirectional_backward: Callable[[BidirectionalBackwardArguments], BidirectionalGradients]
    causal: Callable[[CausalArguments], CausalResults]
    causal_backward: Callable[[CausalBackwardArguments], CausalGradients]
    fake_bidirectional: Callable[[BidirectionalArguments], BidirectionalResults]
    fake_causal: Callable[[CausalArguments], CausalResults]
    keeps_output: bool
    mobile: Callable[[MobileArguments], BidirectionalResults] | None = None
    mobile_backward: Callable[[MobileBackwardArguments], BidirectionalGradients] | None = None


class Operators(NamedTuple):
    """The operators of a backend."""

    bidirectional: Operator
    causal: Operator
    mobile: Operator | None = None


def define_operators(
    prefix: str, kernels: Kernels, *devices: str, direct: bool = False
) -> Operators:
    """Define flowformer::{prefix}bidirectional and the others, with gradients, for devices.

    Args:
        prefix: of their names.
        kernels: what they call.
        devices: where they do.
        direct: whether the kernels may be called without torch's dispatcher.
    """
    fakes = {
        "bidirectional": kernels.fake_bidirectional,
        "bidirectional_backward": _fake_bidirectional_backward,
        "mobile": kernels.fake_bidirectional,
        "mobile_backward": _fake_bidirectional_backward,
        "causal": kernels.fake_causal,
        "causal_backward": _fake_causal_backward,
    }
    defined: dict[str, Operator] = {}
    for name, records in _RECORDS.items():
        if (kernel := getattr(kernels, name)) is not None:
            defined[name] = define(
                prefix + name, records, kernel, fakes[name], devices, direct=direct
            )
    for name in ("bidirectional", "mobile"):
        if name in defined:
            backward = defined[f"{name}_backward"], _RECORDS[f"{name}_backward"][0]
            _bidirectional_gradients(defined[name], *backward, kernels.keeps_output)
    _causal_gradients(defined["causal"], defined["causal_backward"], kernels.keeps_output)
    return Operators(defined["bidirectional"], defined["causal"], defined.get("mobile"))


def room_for_state(inputs: CausalInputs, options: Numbers) -> StateFields:
    """Return room for the fields of a state; of linear attention only for its last."""
    query, rows = inputs.query, sequence_count(inputs.query, inputs.cu_seqlens)
    h, d, m = query.shape[2], query.shape[3], inputs.value.shape[3]
    shapes = [*[(rows, h, d)] * 4, (rows, h), (rows, h, d, m)]
    if options.feature_map == LINEAR:
        return StateFields(key_value=query.new_empty(shapes[5], dtype=torch.float64))
    sums = [query.new_empty(shape, dtype=torch.float64) for shape in shapes]
    return StateFields(query.new_empty((rows,), dtype=torch.int64), *sums)


def _fake_bidirectional_backward(
    arguments: BidirectionalBackwardArguments | MobileBackwardArguments,
) -> BidirectionalGradients:
    return BidirectionalGradients(*_fake_gradients(arguments.saved.inputs))


def _fake_gradients(inputs: BidirectionalInputs | CausalInputs) -> tuple[Any, ...]:
    scale = _fake_numbers(inputs.query, inputs.row_scale)
    return *(tensor.new_empty(tensor.shape) for tensor in inputs[:3]), scale


def _fake_numbers(query: Tensor, given: Tensor | None) -> Tensor | None:
    """Return the gradient of what is a number of each token and head, if there is any."""
    if given is None:
        return None
    return query.new_empty(given.shape, dtype=compute_dtype(query.dtype))


def _fake_causal_backward(arguments: CausalBackwardArguments) -> CausalGradients:
    inputs, past = arguments.saved.inputs, StateGradients()
    if arguments.state_gradient:
        past = StateGradients(*room_for_state(inputs, arguments.options)[1:])
    query, key, value, scale = _fake_gradients(inputs)
    log_decay = _fake_numbers(query, inputs.log_decay)
    return CausalGradients(query, key, value, scale, log_decay, past)


_read_bidirectional_inputs = reader(BidirectionalInputs)
_read_bidirectional_saved = reader(BidirectionalSaved)
_write_bidirectional_saved = writer(BidirectionalSaved)


def _bidirectional_gradients(
    operator: Operator, backward: Operator, backward_arguments: Any, keeps_output: bool
) -> None:
    def keep(ctx: Any, arguments: Any, results: BidirectionalResults) -> None:
        ctx.options, ctx.kept = arguments.options, arguments.keep
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*tensors_of(results.kept))
        out = results.out if keeps_output else None
        saved = BidirectionalSaved(out, arguments.inputs, results.kept)
        ctx.save_for_backward(*_write_bidirectional_saved(saved))

    def differentiate(ctx: Any, grad_out: Tensor | None, *_: Any) -> Sequence[Tensor | None]:
        # Read once: under torch's checkpoint they exist for one reading.
        saved = _read_bidirectional_saved(ctx.saved_tensors)
        if grad_out is None:
            return (None,) * len(BidirectionalInputs._fields)
        if in_pytorch(ctx, grad_out):
            return _chunked_bidirectional(saved.inputs, ctx.options, grad_out)
        found = backward(backward_arguments(grad_out, saved, ctx.options))
        inputs = BidirectionalInputs(*found[:3], row_scale=found.row_scale)
        return wanted(inputs, ctx)

    operator.differentiate(keep, differentiate)


_read_causal_inputs = reader(CausalInputs)
_read_causal_results = reader(CausalResults)
_read_causal_saved = reader(CausalSaved)
_write_causal_inputs = writer(CausalInputs)
_write_causal_saved = writer(CausalSaved)


def _causal_gradients(operator: Operator, backward: Operator, keeps_output: bool) -> None:
    def keep(ctx: Any, arguments: CausalArguments, results: CausalResults) -> None:
        ctx.options, ctx.kept, ctx.reverse = arguments.options, arguments.keep, arguments.reverse
        ctx.set_materialize_grads(False)
        constants = [results.state.tokens, *results.kept]
        if ctx.options.competes_over == 0:
            constants.append(results.state.competition)
        ctx.mark_non_differentiable(*tensors_of(constants))
        out = results.out if keeps_output else None
        saved = CausalSaved(out, arguments.inputs, results.kept)
        ctx.save_for_backward(*_write_causal_saved(saved))

    def differentiate(ctx: Any, *grads: Any) -> Sequence[Tensor | None]:
        saved = _read_causal_saved(ctx.saved_tensors)  # once, see above
        after = _read_causal_results(grads)
        grad_out, grad_state = after.out, StateGradients(*after.state[1:])
        if in_pytorch(ctx, grad_out, *grad_state):
            return _chunked_causal(saved.inputs, ctx.options, ctx.reverse, grad_out, grad_state)
        query, value = saved.inputs.query, saved.inputs.value
        if grad_out is None:
            grad_out = value.new_zeros((*query.shape[:3], value.shape[3]))
        needed = _read_causal_inputs(ctx.needs_input_grad)
        arguments = CausalBackwardArguments(
            grad_out, grad_state, saved, ctx.options, any(needed.past), ctx.reverse
        )
        found = backward(arguments)
        past = StateFields(None, *found.past)
        inputs = CausalInputs(
            *found[:3], row_scale=found.row_scale, log_decay=found.log_decay, past=past
        )
        return wanted(_write_causal_inputs(inputs), ctx)

    operator.differentiate(keep, differentiate)


def _chunked_bidirectional(
    inputs: BidirectionalInputs, options: Numbers | MobileNumbers, grad_out: Tensor
) -> tuple[Tensor | None, ...]:
    def attend(queries: Any, keys: Any, part: Batch, state: Any) -> Any:
        if isinstance(options, MobileNumbers):
            rest = {"normalize": options.normalize, "mask": part.key_mask}
            return chunked.mobile(
                *queries, *keys, options=flow_options(options.flow), **rest
            ), state
        masks = {"query_mask": part.query_mask, "key_mask": part.key_mask}
        if options.feature_map == LINEAR:
            out = _linear(chunked.linear_bidirectional, queries, keys, **masks)
            return out.to(keys[1].dtype), state
        return chunked.bidirectional(*queries, *keys, options=flow_options(options), **masks), state

    def forward(*tensors: Any) -> tuple[Tensor, ...]:
        given = _read_bidirectional_inputs(tensors)
        queries = (given.query,) if given.row_scale is None else (given.query, given.row_scale)
        batch = Batch(*inputs[3:7])
        return (attend_batch(attend, queries, (given.key, given.value), batch, None)[0],)

    return gradients(forward, inputs, (grad_out,))


def _real(x: Tensor, mask: Tensor | None) -> Tensor:
    """Return ``[b, t, …]`` with zeros where packed sequences were padded."""
    return x if mask is None else torch.where(mask.view(*mask.shape, *[1] * (x.ndim - 2)), x, 0)


def _linear(
    attend: Callable[..., Any], queries: Sequence[Tensor], keys: Sequence[Tensor], **rest: Any
) -> Any:
    """Call a function of ``chunked``, which computes in the dtype of what it gets."""
    dtype = compute_dtype(queries[0].dtype)
    query, key, value, *decay = (tensor.to(dtype) for tensor in (queries[0], *keys))
    if decay:
        rest["log_decay"] = decay[0]
    return attend(query, key, value, row_scale=queries[1] if len(queries) > 1 else None, **rest)


def _chunked_causal(
    inputs: CausalInputs,
    options: Numbers,
    reverse: bool,
    grad_out: Tensor | None,
    grad_state: StateGradients,
) -> tuple[Tensor | None, ...]:
    linear = options.feature_map == LINEAR

    def attend(queries: Any, keys: Any, part: Batch, state: Any) -> Any:
        if linear:
            keys = tuple(_real(each, part.key_mask) for each in keys)
            out, after = _linear(chunked.linear_causal, queries, keys, state=state)
            return out.to(keys[1].dtype), after
        mask = part.key_mask
        return chunked.causal(
            *queries, *keys, options=flow_options(options), mask=mask, state=state
        )

    def forward(*tensors: Any) -> tuple[Tensor, ...]:
        given = _read_causal_inputs(tensors)
        query, key, value = (x.flip(1) if reverse else x for x in given[:3])
        queries = (query,) if given.row_scale is None else (query, given.row_scale)
        fields: Any = given.past
        past: Any = None
        if fields.key_value is not None:
            past = LinearState(fields.key_value) if linear else FlowState(*fields)
        batch = Batch(given.mask, given.mask, given.cu_seqlens, None)
        keys = (key, value) if given.log_decay is None else (key, value, given.log_decay)
        out, after = attend_batch(attend, queries, keys, batch, past)
        out = out.flip(1) if reverse else out
        assert after is not None
        return (out, after.key_value) if linear else (out, *after[1:])

    grads = (grad_out, grad_state.grad_key_value) if linear else (grad_out, *grad_state)
    return gradients(forward, _write_causal_inputs(inputs), grads)
