"""The compiled library's functions with the arguments of torch's operators, and their fakes."""

from typing import Any

import torch
from torch import Tensor

from flowformer.ops.backends.arguments import (
    LINEAR,
    BidirectionalArguments,
    BidirectionalBackwardArguments,
    BidirectionalKept,
    BidirectionalResults,
    CausalArguments,
    CausalBackwardArguments,
    CausalGradients,
    CausalInputs,
    CausalResults,
    PastState,
)
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
    Kernels,
    causal_gradients,
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


def _bidirectional_results(out: Tensor, kept: Kept, keep: bool) -> BidirectionalResults:
    """Return the output and what is kept, or as many empty tensors."""
    tensors = (each if keep and each is not None else out.new_empty(0) for each in kept)
    return BidirectionalResults(out, BidirectionalKept(*tensors))


def _bidirectional(arguments: BidirectionalArguments) -> BidirectionalResults:
    inputs = readable(Inputs(*arguments.inputs))
    out, kept = _allocate_bidirectional(inputs, arguments.keep)
    call("flowformer_bidirectional_forward", inputs, arguments.options, out=out, kept=kept)
    return _bidirectional_results(out, kept, arguments.keep)


def _fake_bidirectional(arguments: BidirectionalArguments) -> BidirectionalResults:
    out, kept = _allocate_bidirectional(Inputs(*arguments.inputs), arguments.keep)
    return _bidirectional_results(out, kept, arguments.keep)


def _input_gradients(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return room for the gradients of query, key and value."""
    query, key, value = (
        tensor.new_empty(tensor.shape, dtype=_real(tensor)) for tensor in inputs[:3]
    )
    return query, key, value


def _bidirectional_backward(arguments: BidirectionalBackwardArguments) -> tuple[Tensor, ...]:
    inputs = readable(Inputs(*arguments.saved.inputs))
    grads = _input_gradients(inputs)
    call(
        "flowformer_bidirectional_backward",
        inputs,
        arguments.options,
        kept=Kept(*arguments.saved.kept),
        gradients=Gradients(features_together(arguments.grad_out), *grads),
    )
    return tuple(grad.to(inputs.query.dtype) for grad in grads)


def _fake_bidirectional_backward(arguments: BidirectionalBackwardArguments) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in arguments.saved.inputs[:3])


# Causal


def _library_inputs(inputs: CausalInputs) -> Inputs:
    return Inputs(
        inputs.query,
        inputs.key,
        inputs.value,
        query_mask=inputs.mask,
        key_mask=inputs.mask,
        cu_seqlens=inputs.cu_seqlens,
        row_scale=inputs.row_scale,
    )


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


def _causal(arguments: CausalArguments) -> CausalResults:
    inputs = readable(_library_inputs(arguments.inputs))
    linear = arguments.options.feature_map == LINEAR
    out, kept = _allocate_causal(inputs, linear, arguments.keep)
    state = _allocate_state(inputs, linear) if arguments.return_state else []
    before = [contiguous(field) for field in arguments.inputs.past]
    call(
        "flowformer_causal_forward",
        inputs,
        arguments.options,
        out=out,
        states=(before, state, (), ()),
        kept=kept,
    )
    return causal_results(out, state, kept.query_stats, kept.sums, _real(out))


def _fake_causal(arguments: CausalArguments) -> CausalResults:
    inputs, linear = _library_inputs(arguments.inputs), arguments.options.feature_map == LINEAR
    out, kept = _allocate_causal(inputs, linear, arguments.keep)
    state = _allocate_state(inputs, linear) if arguments.return_state else []
    return causal_results(out, state, kept.query_stats, kept.sums, _real(out))


def _allocate_causal_gradients(
    inputs: Inputs, arguments: CausalBackwardArguments
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor | None, list[Tensor | None]]:
    row_scale = None if inputs.row_scale is None else torch.empty_like(inputs.row_scale)
    linear = arguments.options.feature_map == LINEAR
    past = _allocate_state(inputs, linear)[1:] if arguments.state_gradient else []
    return _input_gradients(inputs), row_scale, past


def _causal_gradients(
    inputs: Inputs,
    grads: tuple[Tensor, ...],
    row_scale: Tensor | None,
    past: list[Tensor | None],
) -> CausalGradients:
    query, key, value = (grad.to(inputs.query.dtype) for grad in grads)
    return causal_gradients((query, key, value), row_scale, past, _real(inputs.query))


def _causal_backward(arguments: CausalBackwardArguments) -> CausalGradients:
    saved = arguments.saved
    inputs, tokens = readable(_library_inputs(saved.inputs)), contiguous(saved.inputs.past.tokens)
    grads, row_scale, past = _allocate_causal_gradients(inputs, arguments)
    call(
        "flowformer_causal_backward",
        inputs,
        arguments.options,
        states=(
            PastState(tokens),
            (),
            [None, *past] if past else (),
            [None, *(contiguous(field) for field in arguments.grad_state)],
        ),
        kept=Kept(query_stats=saved.kept.stats, sums=saved.kept.sums),
        gradients=Gradients(features_together(arguments.grad_out), *grads, row_scale),
    )
    return _causal_gradients(inputs, grads, row_scale, past)


def _fake_causal_backward(arguments: CausalBackwardArguments) -> CausalGradients:
    inputs = _library_inputs(arguments.saved.inputs)
    return _causal_gradients(inputs, *_allocate_causal_gradients(inputs, arguments))


KERNELS = Kernels(
    bidirectional=_bidirectional,
    bidirectional_backward=_bidirectional_backward,
    causal=_causal,
    causal_backward=_causal_backward,
    fake_bidirectional=_fake_bidirectional,
    fake_bidirectional_backward=_fake_bidirectional_backward,
    fake_causal=_fake_causal,
    fake_causal_backward=_fake_causal_backward,
    keeps_output=False,
)
OPERATORS = define_operators("", KERNELS, "CPU")
