"""An operator of torch that takes and returns named tuples, and what its gradients are made with.

``operators.py`` defines those of the attentions, ``convolutions.py`` those of short convolutions.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowformer.ops.backends.arguments import declared, reader, writer
from flowformer.ops.inputs import exact_arithmetic, is_plain, is_transformed

_LIBRARY = torch.library.Library("flowformer", "DEF")


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
            return self._read(_as_tuple(self.dispatched(*values)))
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
            keep(ctx, self._read_arguments(inputs), self._read(_as_tuple(output)))

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


def _as_tuple(results: Any) -> Any:
    """Return the results of an operator: torch hands out a single one by itself."""
    return (results,) if isinstance(results, Tensor) else results


def define(
    name: str,
    records: tuple[type[tuple], type[tuple]],
    kernel: Callable[[Any], Any],
    fake: Callable[[Any], Any],
    devices: Iterable[str],
    *,
    direct: bool,
) -> Operator:
    """Define flowformer::{name}, without gradients.

    Args:
        name: its name.
        records: what it takes and what it returns.
        kernel: what computes it.
        fake: returns the shapes of its results alone.
        devices: where the kernel does.
        direct: whether the kernel may be called without torch's dispatcher.
    """
    arguments, results = records
    given = ", ".join(f"{kind} {each}" for kind, each in declared(arguments))
    names = [each for _, each in declared(results)]
    if name.endswith("_backward"):  # those of gradients are no part of the schema
        names = [""] * len(names)
    returned = ", ".join(f"Tensor {each}".rstrip() for each in names)
    _LIBRARY.define(f"{name}({given}) -> ({returned})")
    for device in devices:
        _LIBRARY.impl(name, _door(arguments, results, kernel), device)
    shapes = _door(arguments, results, fake)
    torch.library.register_fake(f"flowformer::{name}", shapes, lib=_LIBRARY)
    operator = getattr(torch.ops.flowformer, name).default
    return Operator(operator, arguments, results, kernel if direct else None)


def _door(
    arguments: type[tuple], results: type[tuple], kernel: Callable[[Any], tuple]
) -> Callable[..., Any]:
    """Return a kernel as torch calls it: an operator has no results that are None."""
    read, write = reader(arguments), writer(results)

    def call(*values: Any) -> Any:
        empty = values[0].new_empty
        returned = write(kernel(read(values)))
        made = [empty(0) if each is None else each for each in returned]
        return tuple(made) if len(made) > 1 else made[0]

    return call


def tensors_of(given: Iterable[Tensor | None]) -> list[Tensor]:
    """Return those that are there."""
    return [tensor for tensor in given if tensor is not None]


def wanted(inputs: Sequence[Tensor | None], ctx: Any) -> list[Tensor | None]:
    """Return the gradients of the tensors, which lead the arguments, where they are wanted."""
    pairs = zip(inputs, ctx.needs_input_grad, strict=False)
    return [grad if want else None for grad, want in pairs]


def in_pytorch(ctx: Any, *grads: Tensor | None) -> bool:
    """Return whether the backward is for PyTorch and not for a kernel.

    A graph of the gradient is wanted (autograd enables gradients in its backward then), a transform
    is at work on the gradients that come in (a batch of them, a derivative), or the forward kept
    nothing: it is a node of a graph that was recorded without gradients.
    """
    return torch.is_grad_enabled() or is_transformed(*grads) or not ctx.kept


def gradients(
    forward: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    grads: tuple[Tensor | None, ...],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of what ``forward`` makes of the inputs, as a graph if one is wanted."""
    with_graph = torch.is_grad_enabled()
    like = next(x for x in inputs if x is not None)
    with torch.enable_grad(), exact_arithmetic(like):
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
