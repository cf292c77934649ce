"""The short convolution of the compiled library, laid out as ``Convolution`` of csrc/api.h."""

import struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowformer.ops.backends.arguments import (
    ConvolutionArguments,
    ConvolutionBackwardArguments,
    ConvolutionGradients,
    ConvolutionInputs,
    ConvolutionResults,
)
from flowformer.ops.backends.convolutions import define_convolution, fake, fake_backward
from flowformer.ops.backends.cpu.call import (
    DTYPES,
    contiguous,
    features_together,
    readable_offsets,
    run,
    view_of,
)
from flowformer.ops.features import compute_dtype
from flowformer.ops.packing import sequence_count
from flowformer.ops.state import mark_given_up, room_after
from flowformer.ops.steps import Step

# Options and sizes, views, mask and offsets, weight and bias, states, gradients.
_CALL = struct.Struct("@2i7q" + "P3q" * 4 + "2P" * 2 + "3P" + "2P")
_NO_GRADIENTS, _NO_PLACES = (0,) * 8, (0,) * 2  # of which a step has none, nor masks and offsets


class _Written(NamedTuple):
    """What a call reads and writes beside its inputs."""

    out: Tensor | None = None
    grad_out: Tensor | None = None
    grad_x: Tensor | None = None
    after: Tensor | None = None
    grad_recent: Tensor | None = None
    grad_weight: Tensor | None = None
    grad_bias: Tensor | None = None


def _readable(inputs: ConvolutionInputs) -> ConvolutionInputs:
    """Return the inputs as the library can read them; see `readable` of call.py."""
    x, offsets = features_together(inputs.x), inputs.cu_seqlens
    if offsets is not None:
        offsets = readable_offsets(offsets, x, "cu_seqlens")
    weight, bias, mask, recent = map(
        contiguous, (inputs.weight, inputs.bias, inputs.mask, inputs.recent)
    )
    assert weight is not None
    return ConvolutionInputs(x, weight, bias, mask, offsets, recent)


def _laid_out(
    inputs: ConvolutionInputs, written: _Written, *, activates: bool, ahead: int
) -> bytes:
    x, weight = inputs[:2]
    pointers = (
        *(inputs.mask, inputs.cu_seqlens, weight, inputs.bias, inputs.recent),
        *(written.after, written.grad_recent, written.grad_weight, written.grad_bias),
    )
    return _CALL.pack(
        DTYPES[x.dtype],
        activates,
        sequence_count(x, inputs.cu_seqlens),
        x.shape[2],
        x.shape[3],
        x.shape[1],
        weight.shape[2],
        ahead,
        torch.get_num_threads(),
        *view_of(x),
        *view_of(written.out),
        *view_of(written.grad_out),
        *view_of(written.grad_x),
        *[0 if tensor is None else tensor.data_ptr() for tensor in pointers],
    )


def _forward(arguments: ConvolutionArguments) -> ConvolutionResults:
    inputs, results = _readable(arguments.inputs), fake(arguments)
    options = {"activates": arguments.activates, "ahead": arguments.ahead}
    run("flowformer_convolution_forward", _laid_out(inputs, _Written(results.out), **options))
    return results


def _backward(arguments: ConvolutionBackwardArguments) -> ConvolutionGradients:
    inputs, found = _readable(arguments.inputs), fake_backward(arguments)
    written = _Written(
        grad_out=features_together(arguments.grad_out),
        grad_x=found.x,
        grad_recent=found.recent,
        grad_weight=found.weight,
        grad_bias=found.bias,
    )
    options = {"activates": arguments.activates, "ahead": arguments.ahead}
    run("flowformer_convolution_backward", _laid_out(inputs, written, **options))
    return found


short_convolution = define_convolution("", _forward, _backward, "CPU", direct=True)


def prepare_step(inputs: tuple[Tensor, ...], state: Any, *, activates: bool) -> Step | None:
    """Return the call of one token, or None where the library does not read all of it as it is.

    Args:
        inputs: x ``[b, 1, h, d]``, the weight and, if any, the bias.
        state: the state before the token.
        activates: whether silu follows.
    """
    x, *parameters = inputs
    dtype = compute_dtype(x.dtype)
    if not (
        x.stride(3) == 1
        and all(each.is_contiguous() for each in parameters)
        and state.recent.is_contiguous()
    ):
        return None
    widens = any(each.dtype != dtype for each in parameters)
    shape, x_strides = x.shape, x.stride()[:3]
    out_strides = x.new_empty(shape).stride()[:3]
    sizes = (
        DTYPES[x.dtype],
        activates,
        *(shape[at] for at in (0, 2, 3, 1)),
        parameters[0].shape[2],
    )

    def step(inputs: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any]:
        if widens:  # each time: a weight may have been trained meanwhile
            inputs = inputs[0], *(each.to(dtype) for each in inputs[1:])
        x, weight, *bias = inputs
        out, after = x.new_empty(shape), room_after(state)
        record = _CALL.pack(
            *sizes,
            0,
            torch.get_num_threads(),
            x.data_ptr(),
            *x_strides,
            out.data_ptr(),
            *out_strides,
            *_NO_GRADIENTS,
            *_NO_PLACES,
            weight.data_ptr(),
            bias[0].data_ptr() if bias else 0,
            state.recent.data_ptr(),
            after.recent.data_ptr(),
            0,
            0,
            0,
        )
        run("flowformer_convolution_forward", record)
        mark_given_up(state)
        return out, after

    return step
