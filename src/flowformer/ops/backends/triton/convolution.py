"""The short convolution in Triton: tables of its tokens, launches, and the sums that are left.

The gradient of x is the convolution of that of z with the weights in the other order.
"""

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
from flowformer.ops.backends.convolutions import define_convolution
from flowformer.ops.backends.triton.tuning import INTERPRETED, padded
from flowformer.ops.features import front_order
from flowformer.ops.packing import check_packed, sequence_lengths

SIZE, BLOCK = 32, 64  # tokens and channels of a program


class Tokens(NamedTuple):
    """The tables that a kernel finds tokens by, in its order; None where it needs none."""

    order: Tensor | None = None
    counts: Tensor | None = None
    sequences: Tensor | None = None
    offsets: Tensor | None = None


def _tokens_of(inputs: ConvolutionInputs) -> Tokens:
    x, mask, offsets = inputs.x, inputs.mask, inputs.cu_seqlens
    if mask is not None:
        return Tokens(front_order(mask.contiguous()), mask.sum(1))  # read as rows that lie dense
    if offsets is None:
        return Tokens()
    check_packed(x)
    sequence_lengths(offsets, x.shape[1], "cu_seqlens")
    offsets = offsets.to(x.device, torch.int64)
    place = torch.arange(x.shape[1], device=x.device)
    sequences = torch.searchsorted(offsets[1:], place, right=True)
    return Tokens(sequences=sequences, offsets=offsets)


def _launch(
    kernel: Any, inputs: ConvolutionInputs, tokens: Tokens, *tensors: Any, **how: Any
) -> None:
    """Run a kernel over the tokens of the inputs."""
    b, t, h, d = inputs.x.shape
    if b * t == 0:
        return
    block = min(BLOCK, padded(h * d))
    kernel[b * _blocks(t), -(-h * d // block)](  # rows in the first: the others end at 65,535
        *tensors, *tokens, t,
        WIDTH=d, CHANNELS=h * d, TAPS=inputs.weight.shape[2], SIZE=SIZE, BLOCK=block,
        HAS_RECENT=inputs.recent is not None, HAS_BIAS=inputs.bias is not None,
        HAS_MASK=tokens.order is not None, PACKED=tokens.offsets is not None,
        num_warps=4, **how,
    )  # fmt: skip


def _blocks(length: int) -> int:
    return -(-length // SIZE)


def _convolve(
    inputs: ConvolutionInputs, tokens: Tokens, *, activates: bool, ahead: int, dtype: torch.dtype
) -> Tensor:
    from flowformer.ops.backends.triton.kernels import convolutions
    from flowformer.ops.backends.triton.launch import view

    x = inputs.x
    make = torch.empty if inputs.mask is None else torch.zeros  # padding is zero
    out = make(x.shape, dtype=dtype, device=x.device)
    _launch(
        convolutions.convolve, inputs, tokens,
        *view(x), inputs.weight, inputs.bias, inputs.recent, out,
        ACTIVATES=activates, AHEAD=ahead, EMULATE=INTERPRETED and dtype == torch.bfloat16,
    )  # fmt: skip
    return out


def _readable(inputs: ConvolutionInputs) -> ConvolutionInputs:
    from flowformer.ops.backends.triton.side import together

    recent = None if inputs.recent is None else inputs.recent.float().contiguous()
    bias = None if inputs.bias is None else inputs.bias.contiguous()
    weight = inputs.weight.contiguous()
    return inputs._replace(x=together(inputs.x), weight=weight, bias=bias, recent=recent)


def forward(arguments: ConvolutionArguments) -> ConvolutionResults:
    """Convolve."""
    from flowformer.ops.backends.triton.side import on_device

    inputs, activates, ahead, _ = arguments
    with on_device(inputs.x):
        inputs, dtype = _readable(inputs), inputs.x.dtype
        tokens = _tokens_of(inputs)
        out = _convolve(inputs, tokens, activates=activates, ahead=ahead, dtype=dtype)
    return ConvolutionResults(out)


def backward(arguments: ConvolutionBackwardArguments) -> ConvolutionGradients:
    """Return the gradients: those of z and the sums over tokens first, then that of x."""
    from flowformer.ops.backends.triton.kernels import convolutions
    from flowformer.ops.backends.triton.launch import view
    from flowformer.ops.backends.triton.side import on_device, together

    grad_out, inputs, activates, ahead, recent_gradient = arguments
    dtype = inputs.x.dtype
    with on_device(inputs.x):
        inputs, grad_out = _readable(inputs), together(grad_out)
        (b, t, h, d), taps = inputs.x.shape, inputs.weight.shape[2]
        tokens = _tokens_of(inputs)
        # Without silu it is that of y, but where what is not finite was seen.
        precision = torch.float32 if activates else grad_out.dtype
        grad_z = grad_out.new_empty((b, t, h, d), dtype=precision)
        room = grad_out.new_empty((b * _blocks(t), taps + 1, h, d), dtype=torch.float32)
        _launch(
            convolutions.convolve_backward, inputs, tokens,
            *view(inputs.x), *view(grad_out), inputs.weight, inputs.bias, inputs.recent,
            grad_z, room, ACTIVATES=activates, AHEAD=ahead,
            EMULATE=INTERPRETED and precision == torch.bfloat16,
        )  # fmt: skip
        sums = room.sum(0, dtype=torch.float64).float()
        turned = inputs.weight.flip(2)
        back = inputs._replace(x=grad_z, weight=turned, bias=None, recent=None)
        grad_x = _convolve(back, tokens, activates=False, ahead=taps - 1 - ahead, dtype=dtype)
    return ConvolutionGradients(
        grad_x,
        sums[:taps].permute(1, 2, 0).contiguous(),
        None if inputs.bias is None else sums[taps],
        _recent_gradient(grad_z, inputs, tokens) if recent_gradient else None,
    )


def _recent_gradient(grad_z: Tensor, inputs: ConvolutionInputs, tokens: Tokens) -> Tensor:
    """Return that of the tokens before the first: Σ_s weight_{r - s} ∂z_s of the r-th of them."""
    count = inputs.weight.shape[2] - 1
    if grad_z.shape[1] == 0:
        return grad_z.new_zeros((len(grad_z), count, *grad_z.shape[2:]), dtype=torch.float64)
    steps = torch.arange(count, device=grad_z.device)
    if tokens.offsets is not None:
        start, end = tokens.offsets[:-1, None], tokens.offsets[1:, None]
        early = grad_z[0, (start + steps).clamp(max=grad_z.shape[1] - 1)]
        there = start + steps < end
    else:
        at = steps.clamp(max=grad_z.shape[1] - 1).expand(len(grad_z), -1)
        number = grad_z.shape[1] if tokens.counts is None else tokens.counts[:, None]
        there = (steps < number).expand(len(grad_z), -1)
        at = at if tokens.order is None else tokens.order.gather(1, at)
        early = grad_z.take_along_dim(at[:, :, None, None], 1)
    early = torch.where(there[..., None, None], early, 0).to(torch.float64)
    weight = inputs.weight.to(torch.float64)
    rows = [
        sum((early[:, s] * weight[..., r - s] for s in range(r + 1)), torch.zeros_like(early[:, 0]))
        for r in range(count)
    ]
    return torch.stack(rows, 1) if rows else early


short_convolution = define_convolution("triton_", forward, backward, "CUDA", "CPU")
