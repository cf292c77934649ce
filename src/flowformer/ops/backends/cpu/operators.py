"""The compiled library's functions as the kernels of torch's operators.

A fake is the same function without the call: it makes room for what the library would write.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowformer.ops.backends.arguments import (
    LINEAR,
    NOTHING,
    BidirectionalArguments,
    BidirectionalBackwardArguments,
    BidirectionalGradients,
    BidirectionalKept,
    BidirectionalResults,
    CausalArguments,
    CausalBackwardArguments,
    CausalGradients,
    CausalInputs,
    CausalKept,
    CausalResults,
    MobileArguments,
    MobileBackwardArguments,
    StateFields,
    StateGradients,
)
from flowformer.ops.backends.cpu.call import (
    NO_STATE,
    Gradients,
    Inputs,
    call,
    contiguous,
    features_together,
    kept_numbers,
    readable,
    row_numbers,
)
from flowformer.ops.backends.operators import Kernels, define_operators, room_for_state
from flowformer.ops.features import compute_dtype

_QUERY_STATS, _KEY_STATS, _CAUSAL_STATS = 2, 3, 5  # numbers a token, of csrc


def _output(inputs: Inputs) -> Tensor:
    return inputs.value.new_empty((*inputs.query.shape[:3], inputs.value.shape[3]))


def _sums(inputs: Inputs, *shape: Any) -> Tensor:
    """Return room for sums, in the dtype of the arithmetic."""
    return inputs.query.new_empty(shape, dtype=compute_dtype(inputs.query.dtype))


def _stats(tensor: Tensor, count: int) -> Tensor:
    b, t, h = tensor.shape[:3]
    return tensor.new_empty((b, h, count, t), dtype=compute_dtype(tensor.dtype))


def _bidirectional(
    arguments: BidirectionalArguments | MobileArguments, *, runs: bool = True
) -> BidirectionalResults:
    inputs, keep = Inputs(*arguments.inputs), arguments.keep
    inputs = readable(inputs) if runs else inputs
    mobile = isinstance(arguments, MobileArguments)
    linear = not mobile and arguments.options.feature_map == LINEAR
    out = _output(inputs)
    kept = BidirectionalKept(
        # These two a forward with flows itself needs between its passes.
        NOTHING if linear else _stats(inputs.query, _QUERY_STATS),
        NOTHING if linear else _stats(inputs.key, _KEY_STATS),
        _sums(inputs, row_numbers(inputs, sums_flows=not (linear or mobile))) if keep else NOTHING,
    )
    if runs:
        call("flowformer_bidirectional_forward", inputs, arguments.options, out=out, kept=kept)
    return BidirectionalResults(out, kept if keep else BidirectionalKept())


def _input_gradients(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor]:
    """Return room for the gradients of query, key and value, in the dtype of the arithmetic."""
    dtype = compute_dtype(inputs.query.dtype)
    query, key, value = (tensor.new_empty(tensor.shape, dtype=dtype) for tensor in inputs[:3])
    return query, key, value


def _bidirectional_backward(
    arguments: BidirectionalBackwardArguments | MobileBackwardArguments,
) -> BidirectionalGradients:
    inputs = readable(Inputs(*arguments.saved.inputs))
    grads, row_scale = _input_gradients(inputs), _like(inputs.row_scale)
    call(
        "flowformer_bidirectional_backward",
        inputs,
        arguments.options,
        kept=arguments.saved.kept,
        gradients=Gradients(features_together(arguments.grad_out), *grads, row_scale),
    )
    query, key, value = (grad.to(inputs.query.dtype) for grad in grads)
    return BidirectionalGradients(query, key, value, row_scale)


def _like(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else torch.empty_like(tensor)


def _library_inputs(inputs: CausalInputs, *, runs: bool = True) -> Inputs:
    found = Inputs(
        *inputs[:3],
        query_mask=inputs.mask,
        key_mask=inputs.mask,
        cu_seqlens=inputs.cu_seqlens,
        row_scale=inputs.row_scale,
        log_decay=inputs.log_decay,
    )
    return readable(found) if runs else found


def _causal(arguments: CausalArguments, *, runs: bool = True) -> CausalResults:
    inputs = _library_inputs(arguments.inputs, runs=runs)
    linear, keep = arguments.options.feature_map == LINEAR, arguments.keep
    stats = _stats(inputs.query, _CAUSAL_STATS) if keep and not linear else NOTHING
    sums = _sums(inputs, kept_numbers(inputs, linear=linear)) if keep else NOTHING
    out = _output(inputs)
    state = StateFields()
    if arguments.return_state:
        state = room_for_state(arguments.inputs, arguments.options)
    if runs:
        call(
            "flowformer_causal_forward",
            inputs,
            arguments.options,
            out=out,
            states=(tuple(map(contiguous, arguments.inputs.past)), state, NO_STATE, NO_STATE),
            kept=BidirectionalKept(stats, sums=sums),
            reverse=arguments.reverse,
        )
    return CausalResults(out, state, CausalKept(stats, sums))


def _causal_backward(arguments: CausalBackwardArguments) -> CausalGradients:
    saved, options = arguments.saved, arguments.options
    inputs = _library_inputs(saved.inputs)
    grads = _input_gradients(inputs)
    row_scale, log_decay = _like(inputs.row_scale), _like(inputs.log_decay)
    past = StateGradients()
    if arguments.state_gradient:
        past = StateGradients(*room_for_state(saved.inputs, options)[1:])
    call(
        "flowformer_causal_backward",
        inputs,
        options,
        states=(
            StateFields(*map(contiguous, saved.inputs.past)),
            NO_STATE,
            (None, *past),
            (None, *map(contiguous, arguments.grad_state)),
        ),
        kept=BidirectionalKept(saved.kept.stats, sums=saved.kept.sums),
        gradients=Gradients(features_together(arguments.grad_out), *grads, row_scale, log_decay),
        reverse=arguments.reverse,
    )
    query, key, value = (grad.to(inputs.query.dtype) for grad in grads)
    return CausalGradients(query, key, value, row_scale, log_decay, past)


KERNELS = Kernels(
    bidirectional=_bidirectional,
    bidirectional_backward=_bidirectional_backward,
    causal=_causal,
    causal_backward=_causal_backward,
    fake_bidirectional=partial(_bidirectional, runs=False),
    fake_causal=partial(_causal, runs=False),
    keeps_output=False,
    mobile=_bidirectional,
    mobile_backward=_bidirectional_backward,
)
OPERATORS = define_operators("", KERNELS, "CPU", direct=True)
