"""The compiled library's functions with the arguments of torch's operators, and their fakes."""

from typing import Any

import torch
from torch import Tensor

from flowformer.ops.backends.cpu.call import (
    Gradients,
    Inputs,
    Kept,
    call,
    chunk_count,
    contiguous,
    features_together,
    readable,
    sequences,
)
from flowformer.ops.backends.operators import (
    LINEAR,
    SUMS,
    Kernels,
    Numbers,
    causal_results,
    define_operators,
)
from flowformer.ops.features import compute_dtype

_QUERY_STATS, _KEY_STATS, _CAUSAL_STATS = 2, 3, 5  # numbers a token, of csrc


def _real(tensor: Tensor) -> torch.dtype:
    """Return the dtype of the library's arithmetic."""
    return compute_dtype(tensor.dtype)


def _output(inputs: Inputs) -> Tensor:
    return inputs.value.new_empty((*inputs.query.shape[:3], inputs.value.shape[3]))


def _sums(inputs: Inputs, rows: Any) -> Tensor:
    """Return room for the sums of ``rows`` chunks or sequences."""
    width = inputs.query.shape[3]
    shape = (rows, inputs.query.shape[2], width * (4 + inputs.value.shape[3]))
    return inputs.query.new_empty(shape, dtype=_real(inputs.query))


def _stats(tensor: Tensor, count: int) -> Tensor:
    b, t, h = tensor.shape[:3]
    return tensor.new_empty((b, h, count, t), dtype=_real(tensor))


# Bidirectional


def _allocate_bidirectional(inputs: Inputs, keep: bool) -> tuple[Tensor, Kept]:
    kept = Kept(
        _stats(inputs.query, _QUERY_STATS),  # these two the forward itself needs between its passes
        _stats(inputs.key, _KEY_STATS),
        _sums(inputs, sequences(inputs)) if keep else None,
    )
    return _output(inputs), kept


def _bidirectional(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    inputs, options, keep = Inputs(query, key, value, *rest[:4]), Numbers(*rest[4:9]), rest[9]
    inputs = readable(inputs)
    out, kept = _allocate_bidirectional(inputs, keep)
    call("flowformer_bidirectional_forward", inputs, options, out=out, kept=kept)
    return (out, *_outputs(kept, keep, out))


def _outputs(kept: Kept, keep: bool, out: Tensor) -> tuple[Tensor, ...]:
    """Return what is kept, or as many empty tensors."""
    return tuple(tensor if keep and tensor is not None else out.new_empty(0) for tensor in kept)


def _fake_bidirectional(
    query: Tensor, key: Tensor, value: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    out, kept = _allocate_bidirectional(Inputs(query, key, value, *rest[:4]), rest[9])
    return (out, *_outputs(kept, rest[9], out))


def _input_gradients(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return room for the gradients of query, key and value."""
    query, key, value = (
        tensor.new_empty(tensor.shape, dtype=_real(tensor)) for tensor in inputs[:3]
    )
    return query, key, value


def _bidirectional_backward(grad_out: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    inputs, kept, options = readable(Inputs(*rest[1:8])), Kept(*rest[8:11]), Numbers(*rest[11:])
    grads = _input_gradients(inputs)
    call(
        "flowformer_bidirectional_backward",
        inputs,
        options,
        kept=kept,
        gradients=Gradients(features_together(grad_out), *grads),
    )
    return tuple(grad.to(inputs.query.dtype) for grad in grads)


def _fake_bidirectional_backward(*arguments: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in arguments[2:5])


# Causal


def _allocate_causal(inputs: Inputs, linear: bool, keep: bool) -> tuple[Tensor, Kept]:
    stats = _stats(inputs.query, _CAUSAL_STATS) if keep and not linear else None
    sums = _sums(inputs, chunk_count(inputs)) if keep else None
    return _output(inputs), Kept(stats, None, sums)


def _allocate_state(inputs: Inputs, linear: bool) -> list[Tensor | None]:
    """Return room for the fields of a state; of a linear one only its last."""
    b, h, d, m = sequences(inputs), *inputs.query.shape[2:], inputs.value.shape[3]
    shapes = [(b, h, d), (b, h, d), (b, h, d), (b, h, d), (b, h), (b, h, d, m)]
    fields = [inputs.query.new_empty(shape, dtype=torch.float64) for shape in shapes]
    if linear:
        return [None] * 6 + fields[5:]
    return [inputs.query.new_empty((b,), dtype=torch.int64), *fields]


def _causal_inputs(tensors: tuple[Any, ...]) -> Inputs:
    query, key, value, mask, cu_seqlens, row_scale = tensors
    return Inputs(query, key, value, mask, mask, cu_seqlens, None, row_scale)


def causal_kernel(*arguments: Any) -> tuple[Tensor, ...]:
    """Run the causal forward; the arguments are those of the operator."""
    inputs, before = readable(_causal_inputs(arguments[:6])), arguments[6:13]
    options, (keep, return_state) = Numbers(*arguments[13:18]), arguments[18:]
    linear = options.feature_map == LINEAR
    out, kept = _allocate_causal(inputs, linear, keep)
    state = _allocate_state(inputs, linear) if return_state else []
    before = [contiguous(field) for field in before]
    call(
        "flowformer_causal_forward",
        inputs,
        options,
        out=out,
        states=(before, state, (), ()),
        kept=kept,
    )
    return causal_results(out, state, kept.query_stats, kept.sums, _real(out))


def _fake_causal(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, linear = _causal_inputs(arguments[:6]), arguments[13] == LINEAR
    out, kept = _allocate_causal(inputs, linear, arguments[18])
    state = _allocate_state(inputs, linear) if arguments[19] else []
    return causal_results(out, state, kept.query_stats, kept.sums, _real(out))


def _allocate_causal_gradients(
    inputs: Inputs, linear: bool, state_gradient: bool
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None, list[Tensor | None]]:
    row_scale = None if inputs.row_scale is None else torch.empty_like(inputs.row_scale)
    state = _allocate_state(inputs, linear)[1:] if state_gradient else []
    return _input_gradients(inputs), row_scale, state


def _causal_gradients(
    inputs: Inputs,
    grads: tuple[Tensor, ...],
    row_scale: Tensor | None,
    state: list[Tensor | None],
) -> tuple[Tensor, ...]:
    empty = inputs.query.new_empty
    narrow = (grad.to(inputs.query.dtype) for grad in grads)
    fields = (
        empty(0, dtype=torch.float64) if field is None else field for field in state or [None] * 6
    )
    if row_scale is None:
        row_scale = empty(0, dtype=_real(inputs.query))
    return (*narrow, row_scale, *fields)


def _causal_backward(grad_out: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    after = [contiguous(field) for field in rest[:6]]
    inputs, tokens = readable(_causal_inputs(rest[7:13])), contiguous(rest[13])
    stats, sums, *options, state_gradient = rest[20:]
    options = Numbers(*options)
    linear = options.feature_map == LINEAR
    grads, row_scale, state = _allocate_causal_gradients(inputs, linear, state_gradient)
    call(
        "flowformer_causal_backward",
        inputs,
        options,
        states=(
            (tokens, *(None for _ in SUMS)),
            (),
            [None, *state] if state else (),
            [None, *after],
        ),
        kept=Kept(query_stats=stats, sums=sums),
        gradients=Gradients(features_together(grad_out), *grads, row_scale),
    )
    return _causal_gradients(inputs, grads, row_scale, state)


def _fake_causal_backward(*arguments: Any) -> tuple[Tensor, ...]:
    rest = arguments[1:]
    inputs = _causal_inputs(rest[7:13])
    grads, row_scale, state = _allocate_causal_gradients(inputs, rest[22] == LINEAR, rest[27])
    return _causal_gradients(inputs, grads, row_scale, state)


OPERATORS = define_operators(
    "",
    Kernels(
        bidirectional=_bidirectional,
        bidirectional_backward=_bidirectional_backward,
        causal=causal_kernel,
        causal_backward=_causal_backward,
        fake_bidirectional=_fake_bidirectional,
        fake_bidirectional_backward=_fake_bidirectional_backward,
        fake_causal=_fake_causal,
        fake_causal_backward=_fake_causal_backward,
        keeps_output=False,
    ),
    "CPU",
)
