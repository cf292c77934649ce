"""Compiled kernels as operators of torch: schemas, gradients, and second derivatives.

A backend gives the forward, the backward and their fakes. A gradient of a gradient is computed in
PyTorch, by the ``chunked`` backend.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowformer.ops.backends import chunked
from flowformer.ops.inputs import is_transformed
from flowformer.ops.options import FlowOptions
from flowformer.ops.packing import Batch, attend_batch
from flowformer.ops.state import FlowState, LinearState

LINEAR = 2  # in the place of a feature map: linear attention, without flows

_FEATURE_MAPS = {"sigmoid": 0, "relu": 1}
_COMPETITIONS = {None: 0, "sources": 1, "heads": 2}


class Numbers(NamedTuple):
    """The options as the library and the operators' schemas take them."""

    feature_map: int
    competition: int
    allocation: bool
    clamp: float
    eps: float


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
        competition=competitions[numbers.competition],  # pyright: ignore[reportArgumentType]
        allocation=numbers.allocation,
    )


_OPTIONS = "int feature_map, int competes_over, bool allocation, float clamp, float eps"
_INPUTS = "Tensor query, Tensor key, Tensor value"
_MASKS = "Tensor? query_mask, Tensor? key_mask, Tensor? cu_seqlens, Tensor? cu_seqlens_k"
SUMS = ("key_sum", "query_sum", "key_flow", "query_flow", "competition", "key_value")
_SCHEMAS = {
    "bidirectional": (
        f"({_INPUTS}, {_MASKS}, {_OPTIONS}, bool keep)"
        " -> (Tensor out, Tensor query_stats, Tensor key_stats, Tensor sums)"
    ),
    "bidirectional_backward": (
        f"(Tensor grad_out, Tensor? out, {_INPUTS}, {_MASKS}, Tensor query_stats, "
        f"Tensor key_stats, Tensor sums, {_OPTIONS}) -> (Tensor, Tensor, Tensor)"
    ),
    "causal": (
        f"({_INPUTS}, Tensor? mask, Tensor? cu_seqlens, Tensor? row_scale, Tensor? tokens, "
        f"{', '.join(f'Tensor? {name}' for name in SUMS)}, {_OPTIONS}, bool keep, "
        f"bool return_state) -> (Tensor out, Tensor tokens, "
        f"{', '.join(f'Tensor {name}' for name in SUMS)}, Tensor stats, Tensor sums)"
    ),
    "causal_backward": (
        f"(Tensor grad_out, {', '.join(f'Tensor? grad_{name}' for name in SUMS)}, Tensor? out, "
        f"{_INPUTS}, Tensor? mask, Tensor? cu_seqlens, Tensor? row_scale, Tensor? tokens, "
        f"{', '.join(f'Tensor? {name}' for name in SUMS)}, "
        f"Tensor stats, Tensor sums, {_OPTIONS}, bool state_gradient) -> "
        f"(Tensor, Tensor, Tensor, Tensor, {', '.join('Tensor' for _ in SUMS)})"
    ),
}
_NUMBERS = 5
CAUSAL_TENSORS = 13  # the arguments of "causal" that are tensors, or None, come first
_LIBRARY = torch.library.Library("flowformer", "DEF")


LINEAR_OPTIONS = Numbers(LINEAR, 0, False, 0.0, 0.0)


def is_kept(*tensors: Tensor | None) -> bool:
    """Whether a gradient may be asked for: only then is anything kept for it."""
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


class Kernels(NamedTuple):
    """What a backend gives: functions with the arguments of the schemas, and their fakes.

    Attributes:
        keeps_output: whether the backward reads the output; otherwise it gets None.
    """

    bidirectional: Callable[..., tuple[Tensor, ...]]
    bidirectional_backward: Callable[..., tuple[Tensor, ...]]
    causal: Callable[..., tuple[Tensor, ...]]
    causal_backward: Callable[..., tuple[Tensor, ...]]
    fake_bidirectional: Callable[..., tuple[Tensor, ...]]
    fake_bidirectional_backward: Callable[..., tuple[Tensor, ...]]
    fake_causal: Callable[..., tuple[Tensor, ...]]
    fake_causal_backward: Callable[..., tuple[Tensor, ...]]
    keeps_output: bool


class Operators(NamedTuple):
    """The operators to call."""

    bidirectional: Any
    causal: Any


def define_operators(prefix: str, kernels: Kernels, *devices: str) -> Operators:
    """Define flowformer::{prefix}bidirectional and {prefix}causal, with gradients, for devices."""
    for name, schema in _SCHEMAS.items():
        _LIBRARY.define(f"{prefix}{name}{schema}")
        for device in devices:
            _LIBRARY.impl(f"{prefix}{name}", getattr(kernels, name), device)
        fake = getattr(kernels, f"fake_{name}")
        torch.library.register_fake(f"flowformer::{prefix}{name}", fake, lib=_LIBRARY)
    defined = {name: getattr(torch.ops.flowformer, f"{prefix}{name}").default for name in _SCHEMAS}
    keeps = kernels.keeps_output
    _bidirectional_gradients(f"{prefix}bidirectional", defined["bidirectional_backward"], keeps)
    _causal_gradients(f"{prefix}causal", defined["causal_backward"], keeps)
    return Operators(defined["bidirectional"], defined["causal"])


def causal_results(
    out: Tensor,
    state: Sequence[Tensor | None],
    stats: Tensor | None,
    sums: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, ...]:
    """Return what the causal operator does; an operator has no results that are None."""
    empty = out.new_empty
    fields = [
        empty(0, dtype=torch.int64 if i == 0 else torch.float64) if field is None else field
        for i, field in enumerate(state or [None] * 7)
    ]
    kept = [empty(0, dtype=dtype) if tensor is None else tensor for tensor in (stats, sums)]
    return (out, *fields, *kept)


def _bidirectional_gradients(name: str, backward: Any, keeps_output: bool) -> None:
    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.options, ctx.kept = Numbers(*inputs[7:12]), inputs[12]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        out = output[0] if keeps_output else None
        ctx.save_for_backward(out, *inputs[:7], *output[1:])

    def differentiate(ctx: Any, grad_out: Tensor | None, *_: Any) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # read once: under torch's checkpoint they exist for one reading
        unused = (None,) * (4 + _NUMBERS + 1)
        if grad_out is None:
            return (None, None, None, *unused)
        if _in_pytorch(ctx, grad_out):
            return (*_chunked_bidirectional(saved[1:8], ctx.options, grad_out), *unused)
        return (*backward(grad_out, *saved, *ctx.options), *unused)

    torch.library.register_autograd(
        f"flowformer::{name}", differentiate, setup_context=keep, lib=_LIBRARY
    )


def _causal_gradients(name: str, backward: Any, keeps_output: bool) -> None:
    def keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.options, ctx.kept = Numbers(*inputs[13:18]), inputs[18]
        ctx.set_materialize_grads(False)
        constants = [output[1], *output[8:]]
        if ctx.options.competition == 0:
            constants.append(output[6])
        ctx.mark_non_differentiable(*constants)
        out = output[0] if keeps_output else None
        ctx.save_for_backward(out, *inputs[:13], *output[8:])

    def differentiate(ctx: Any, grad_out: Tensor | None, *rest: Any) -> tuple[Any, ...]:
        out, *saved = ctx.saved_tensors  # once, see above
        tensors, kept = saved[:13], saved[13:]
        grad_state = rest[1:7]
        unused = (None,) * (_NUMBERS + 2)
        if _in_pytorch(ctx, grad_out, *grad_state):
            grads = _chunked_causal(tuple(tensors), ctx.options, (grad_out, *grad_state))
            return (*grads, *unused)
        query, _, value, *_ = tensors
        if grad_out is None:
            grad_out = value.new_zeros((*query.shape[:3], value.shape[3]))
        state_gradient = any(ctx.needs_input_grad[7:13])
        grads = backward(grad_out, *grad_state, out, *tensors, *kept, *ctx.options, state_gradient)
        wanted = [*ctx.needs_input_grad[:3], *[False] * 2, *ctx.needs_input_grad[5:6], False]
        found = [*grads[:3], None, None, grads[3], None, *grads[4:]]
        wanted += ctx.needs_input_grad[7:13]
        return (
            *(grad if want else None for grad, want in zip(found, wanted, strict=True)),
            *unused,
        )

    torch.library.register_autograd(
        f"flowformer::{name}", differentiate, setup_context=keep, lib=_LIBRARY
    )


def _in_pytorch(ctx: Any, *grads: Tensor | None) -> bool:
    """Whether the backward is for PyTorch and not for a kernel.

    A graph of the gradient is wanted (autograd enables gradients in its backward then), a transform
    is at work on the gradients that come in (a batch of them, a derivative), or the forward kept
    nothing: it is a node of a graph that was recorded without gradients.
    """
    return torch.is_grad_enabled() or is_transformed(*grads) or not ctx.kept


def _chunked_bidirectional(
    tensors: tuple[Any, ...], options: Numbers, grad_out: Tensor
) -> tuple[Tensor | None, ...]:
    def attend(queries, keys, part, state):
        masks = {"query_mask": part.query_mask, "key_mask": part.key_mask}
        out = chunked.bidirectional(*queries, *keys, options=flow_options(options), **masks)
        return out, state

    def forward(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        return (attend_batch(attend, (query,), (key, value), Batch(*tensors[3:]), None)[0],)

    return _gradients(forward, tensors[:3], (grad_out,))


def _gradients(
    forward: Callable[..., tuple[Tensor, ...]],
    inputs: tuple[Tensor | None, ...],
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
    tensors: tuple[Any, ...], options: Numbers, grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    linear = options.feature_map == LINEAR

    def attend(queries: Any, keys: Any, part: Batch, state: Any) -> Any:
        if linear:
            scale = queries[1] if len(queries) > 1 else None
            return chunked.linear_causal(queries[0], *keys, row_scale=scale, state=state)
        mask = part.key_mask
        return chunked.causal(
            *queries, *keys, options=flow_options(options), mask=mask, state=state
        )

    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        query, key, value, mask, cu_seqlens, row_scale, *before = inputs
        queries = (query,) if row_scale is None else (query, row_scale)
        past: Any = None
        if before[6] is not None:
            past = LinearState(before[6]) if linear else FlowState(*before)
        batch = Batch(mask, mask, cu_seqlens, None)
        out, after = attend_batch(attend, queries, (key, value), batch, past)
        assert after is not None
        return (out, after.key_value) if linear else (out, *after[1:])

    return _gradients(forward, tensors, (grads[0], grads[6]) if linear else grads)
