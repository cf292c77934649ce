"""The short convolution of a compiled backend as an operator of torch, with its gradients.

A backend gives the forward and the backward. A gradient of a gradient is computed in PyTorch, by
the ``chunked`` backend, as that of the attentions.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

from torch import Tensor

from flowformer.ops.backends import chunked
from flowformer.ops.backends.arguments import (
    ConvolutionArguments,
    ConvolutionBackwardArguments,
    ConvolutionGradients,
    ConvolutionInputs,
    ConvolutionResults,
    reader,
    writer,
)
from flowformer.ops.backends.torch_operator import define, gradients, in_pytorch, wanted
from flowformer.ops.inputs import is_kept
from flowformer.ops.packing import Batch, attend_batch
from flowformer.ops.state import ConvolutionState

Forward = Callable[[ConvolutionArguments], ConvolutionResults]
Backward = Callable[[ConvolutionBackwardArguments], ConvolutionGradients]


def define_convolution(
    prefix: str, forward: Forward, backward: Backward, *devices: str, direct: bool = False
) -> Callable[..., Tensor]:
    """Define flowformer::{prefix}convolution; return the backend's function that calls it.

    Args:
        prefix: of its name.
        forward: what it calls.
        backward: what its gradients are computed by.
        devices: where they do.
        direct: whether they may be called without torch's dispatcher.
    """
    records = ConvolutionArguments, ConvolutionResults
    operator = define(prefix + "convolution", records, forward, fake, devices, direct=direct)
    backward_records = ConvolutionBackwardArguments, ConvolutionGradients
    backward_operator = define(
        prefix + "convolution_backward",
        backward_records,
        backward,
        fake_backward,
        devices,
        direct=direct,
    )

    def keep(ctx: Any, arguments: ConvolutionArguments, _: ConvolutionResults) -> None:
        ctx.activates, ctx.ahead, ctx.kept = arguments[1:]
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*_write_inputs(arguments.inputs))

    def differentiate(ctx: Any, grad_out: Tensor | None) -> Sequence[Tensor | None]:
        inputs = _read_inputs(ctx.saved_tensors)  # once, as in operators.py
        if grad_out is None:
            return (None,) * len(inputs)
        if in_pytorch(ctx, grad_out):

            def forward(*tensors: Any) -> tuple[Tensor, ...]:
                given = _read_inputs(tensors)
                return (convolve(chunked, given, activates=ctx.activates, ahead=ctx.ahead),)

            return gradients(forward, inputs, (grad_out,))
        needed = _read_inputs(ctx.needs_input_grad)
        arguments = grad_out, inputs, ctx.activates, ctx.ahead, bool(needed.recent)
        found = backward_operator(ConvolutionBackwardArguments(*arguments))
        return wanted((found.x, found.weight, found.bias, None, None, found.recent), ctx)

    operator.differentiate(keep, differentiate)

    def short_convolution(
        *tensors: Tensor, activates: bool, ahead: int, **given: Tensor | None
    ) -> Tensor:
        inputs = ConvolutionInputs(*tensors, **given)
        keeps = is_kept(*tensors, inputs.bias, inputs.recent)
        return operator(ConvolutionArguments(inputs, activates, ahead, keeps)).out

    return short_convolution


_read_inputs = reader(ConvolutionInputs)
_write_inputs = writer(ConvolutionInputs)


def fake(arguments: ConvolutionArguments) -> ConvolutionResults:
    """Return room for the result."""
    x = arguments.inputs.x
    return ConvolutionResults(x.new_empty(x.shape))


def fake_backward(arguments: ConvolutionBackwardArguments) -> ConvolutionGradients:
    """Return room for the gradients."""
    x, weight, bias, _, _, recent = arguments.inputs
    return ConvolutionGradients(
        x.new_empty(x.shape),
        weight.new_empty(weight.shape),
        None if bias is None else bias.new_empty(bias.shape),
        recent.new_empty(recent.shape)
        if arguments.recent_gradient and recent is not None
        else None,
    )


def convolve(
    module: ModuleType, inputs: ConvolutionInputs, *, activates: bool, ahead: int
) -> Tensor:
    """Call a backend's short convolution, or call it on every packed sequence by itself."""
    run = partial(module.short_convolution, bias=inputs.bias, activates=activates, ahead=ahead)
    x, packs = (inputs.x,), module.PACKS_SEQUENCES
    state = None if inputs.recent is None else ConvolutionState(inputs.recent)
    batch = Batch(inputs.mask, inputs.mask, inputs.cu_seqlens, None)
    attend = partial(_attend, run, inputs.weight)
    return attend_batch(attend, x, x, batch, state, packs=packs)[0]


def _attend(
    run: Callable[..., Tensor],
    weight: Tensor,
    queries: tuple[Tensor, ...],
    _: tuple[Tensor, ...],
    batch: Batch,
    state: ConvolutionState | None,
) -> tuple[Tensor, None]:
    given = {"mask": batch.key_mask, "recent": None if state is None else state.recent}
    if batch.cu_seqlens is not None:
        given["cu_seqlens"] = batch.cu_seqlens
    return run(*queries, weight, **given), None
