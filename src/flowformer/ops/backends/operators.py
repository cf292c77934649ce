"""Compiled kernels as operators of torch: schemas, gradients, and second derivatives.

A backend gives the forward, the backward and their fakes. A gradient of a gradient is computed in
PyTorch, by the ``chunked`` backend.
"""

from collections.abc import Callable, Iterable, Sequence
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
    declared,
    flow_options,
    reader,
    writer,
)
from flowformer.ops.features import compute_dtype
from flowformer.ops.inputs import is_plain, is_transformed
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
_LIBRARY = torch.library.Library("flowformer", "DEF")


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


class Operator:
    """An operator to call with the record of its arguments, which returns that of its results.

    Past torch's dispatcher, where that is allowed and no graph or mode has to see the call: what
    torch does around an operator written in Python takes longer than the kernel of a short one.

    Attributes:
        dispatched: the operator of torch, with all that stands in its arguments one after another.
    """

    def __init__(
        self,
        dispatched: Any,
        arguments: type[tuple],
        results: type[tuple],
        kernel: Callable[[Any], Any] | None,
    ) -> None:
        self.dispatched, self._kernel = dispatched, kernel
        self._recorded: type[torch.autograd.Function] | None = None
        self._write, self._read = writer(arguments), reader(results)
        self._read_arguments, self._write_results = reader(arguments), writer(results)
        kinds = [kind for kind, _ in declared(arguments)]
        self._tensors = sum(kind.startswith("Tensor") for kind in kinds)  # these lead
        self._others = (None,) * (len(kinds) - self._tensors)

    def __call__(self, arguments: Any) -> Any:
        """Call the kernel, with as much of torch around it as it needs."""
        values = self._write(arguments)
        tensors = values[: self._tensors]
        if self._kernel is None or not is_plain(*tensors):
            return self._read(self.dispatched(*values))
        if self._recorded is not None and arguments.keep:
            return self._read(self._recorded.apply(*tensors, arguments))
        return self._kernel(arguments)

    def differentiate(
        self, keep: Callable[[Any, Any, Any], None], backward: Callable[..., Sequence[Any]]
    ) -> None:
        """Give it gradients.

        Args:
            keep: called with the context, the arguments and the results of each forward.
            backward: called with the context and the gradients of all that stands in the results;
                returns those of the tensors in the arguments.
        """

        def set_up(ctx: Any, inputs: Any, output: Any) -> None:
            keep(ctx, self._read_arguments(inputs), self._read(output))

        def dispatched_backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            return (*backward(ctx, *grads), *self._others)

        torch.library.register_autograd(
            self.dispatched.name(), dispatched_backward, setup_context=set_up, lib=_LIBRARY
        )
        kernel, write = self._kernel, self._write_results
        if kernel is None:
            return

        class Recorded(torch.autograd.Function):
            """The kernel and its gradients, for tensors with which torch has no more to do."""

            @staticmethod
            def forward(ctx: Any, *given: Any) -> Any:
                arguments = given[-1]
                results = kernel(arguments)
                keep(ctx, arguments, results)
                return tuple(write(results))

            @staticmethod
            def backward(ctx: Any, *grads: Any) -> Any:
                return (*backward(ctx, *grads), None)

        self._recorded = Recorded


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
    for name, (arguments, results) in _RECORDS.items():
        if getattr(kernels, name) is None:
            continue
        given = ", ".join(f"{kind} {each}" for kind, each in declared(arguments))
        names = [each for _, each in declared(results)]
        if name.endswith("_backward"):  # those of gradients are no part of the schema
            names = [""] * len(names)
        returned = ", ".join(f"Tensor {each}".rstrip() for each in names)
        _LIBRARY.define(f"{prefix}{name}({given}) -> ({returned})")
        door = _door(arguments, results, getattr(kernels, name))
        for device in devices:
            _LIBRARY.impl(f"{prefix}{name}", door, device)
        fake = _door(arguments, results, fakes[name])
        torch.library.register_fake(f"flowformer::{prefix}{name}", fake, lib=_LIBRARY)
        operator = getattr(torch.ops.flowformer, f"{prefix}{name}").default
        kernel = getattr(kernels, name) if direct else None
        defined[name] = Operator(operator, arguments, results, kernel)
    for name in ("bidirectional", "mobile"):
        if name in defined:
            backward = defined[f"{name}_backward"], _RECORDS[f"{name}_backward"][0]
            _bidirectional_gradients(defined[name], *backward, kernels.keeps_output)
    _causal_gradients(defined["causal"], defined["causal_backward"], kernels.keeps_output)
    return Operators(defined["bidirectional"], defined["causal"], defined.get("mobile"))


def _door(
    arguments: type[tuple], results: type[tuple], kernel: Callable[[Any], tuple]
) -> Callable[..., tuple[Tensor, ...]]:
    """Return a kernel as torch calls it: an operator has no results that are None."""
    read, write = reader(arguments), writer(results)

    def call(*values: Any) -> tuple[Tensor, ...]:
        empty = values[0].new_empty
        returned = write(kernel(read(values)))
        return tuple(empty(0) if each is None else each for each in returned)

    return call


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
        ctx.mark_non_differentiable(*_tensors(results.kept))
        out = results.out if keeps_output else None
        saved = BidirectionalSaved(out, arguments.inputs, results.kept)
        ctx.save_for_backward(*_write_bidirectional_saved(saved))

    def differentiate(ctx: Any, grad_out: Tensor | None, *_: Any) -> Sequence[Tensor | None]:
        # Read once: under torch's checkpoint they exist for one reading.
        saved = _read_bidirectional_saved(ctx.saved_tensors)
        if grad_out is None:
            return (None,) * len(BidirectionalInputs._fields)
        if _in_pytorch(ctx, grad_out):
            return _chunked_bidirectional(saved.inputs, ctx.options, grad_out)
        found = backward(backward_arguments(grad_out, saved, ctx.options))
        inputs = BidirectionalInputs(*found[:3], row_scale=found.row_scale)
        return _wanted(inputs, ctx)

    operator.differentiate(keep, differentiate)


_read_causal_inputs = reader(CausalInputs)
_read_causal_results = reader(CausalResults)
_read_causal_saved = reader(CausalSaved)
_write_causal_inputs = writer(CausalInputs)
_write_causal_saved = writer(CausalSaved)


def _causal_gradients(operator: Operator, backward: Operator, keeps_output: bool) -> None:
    def keep(ctx: Any, arguments: CausalArguments, results: CausalResults) -> None:
        ctx.options, ctx.kept = arguments.options, arguments.keep
        ctx.set_materialize_grads(False)
        constants = [results.state.tokens, *results.kept]
        if ctx.options.competes_over == 0:
            constants.append(results.state.competition)
        ctx.mark_non_differentiable(*_tensors(constants))
        out = results.out if keeps_output else None
        saved = CausalSaved(out, arguments.inputs, results.kept)
        ctx.save_for_backward(*_write_causal_saved(saved))

    def differentiate(ctx: Any, *grads: Any) -> Sequence[Tensor | None]:
        saved = _read_causal_saved(ctx.saved_tensors)  # once, see above
        after = _read_causal_results(grads)
        grad_out, grad_state = after.out, StateGradients(*after.state[1:])
        if _in_pytorch(ctx, grad_out, *grad_state):
            return _chunked_causal(saved.inputs, ctx.options, grad_out, grad_state)
        query, value = saved.inputs.query, saved.inputs.value
        if grad_out is None:
            grad_out = value.new_zeros((*query.shape[:3], value.shape[3]))
        wanted = _read_causal_inputs(ctx.needs_input_grad)
        arguments = CausalBackwardArguments(
            grad_out, grad_state, saved, ctx.options, any(wanted.past)
        )
        found = backward(arguments)
        past = StateFields(None, *found.past)
        inputs = CausalInputs(
            *found[:3], row_scale=found.row_scale, log_decay=found.log_decay, past=past
        )
        return _wanted(_write_causal_inputs(inputs), ctx)

    operator.differentiate(keep, differentiate)


def _tensors(given: Iterable[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in given if tensor is not None]


def _wanted(inputs: Sequence[Tensor | None], ctx: Any) -> list[Tensor | None]:
    """Return the gradients of the tensors, which lead the arguments, where they are wanted."""
    pairs = zip(inputs, ctx.needs_input_grad, strict=False)
    return [grad if want else None for grad, want in pairs]


def _in_pytorch(ctx: Any, *grads: Tensor | None) -> bool:
    """Return whether the backward is for PyTorch and not for a kernel.

    A graph of the gradient is wanted (autograd enables gradients in its backward then), a transform
    is at work on the gradients that come in (a batch of them, a derivative), or the forward kept
    nothing: it is a node of a graph that was recorded without gradients.
    """
    return torch.is_grad_enabled() or is_transformed(*grads) or not ctx.kept


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

    return _gradients(forward, inputs, (grad_out,))


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
            keys = tuple(_real(each, part.key_mask) for each in keys)
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
        keys = (given.key, given.value)
        if given.log_decay is not None:
            keys = (*keys, given.log_decay)
        out, after = attend_batch(attend, queries, keys, batch, past)
        assert after is not None
        return (out, after.key_value) if linear else (out, *after[1:])

    grads = (grad_out, grad_state.grad_key_value) if linear else (grad_out, *grad_state)
    return _gradients(forward, _write_causal_inputs(inputs), grads)
