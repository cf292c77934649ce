"""NaN and infinity in a token of a causal call: they reach that token and later ones, no earlier.

Zero times NaN is NaN: in a product with a triangle of weights, and in a backward pass where no
gradient comes in. So what is spoiled is computed with as if it were zero, which no earlier token
sees, and whatever does see it is NaN in the end.

Flags are boolean, ``[b, t, …]`` with as many axes as the tensors, and 1 where they speak of a whole
axis.
"""

import inspect
import math
from collections.abc import Callable
from functools import reduce, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from flowformer.ops.backends.cpu.call import is_finite
from flowformer.ops.inputs import is_plain, may_look
from flowformer.ops.packing import turned_offsets

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
State = TypeVar("State")


def may_be_spoiled(*tensors: Tensor | None) -> bool:
    """Return whether a tensor may hold NaN or infinity: unless it was looked at and does not.

    To look is a pass over it, and not done where it would make an accelerator wait, or where a
    graph is traced, which would be one for such tensors only. Where the library cannot look, a sum
    of finite numbers may be infinite: that costs time and changes nothing.
    """
    given = [tensor.detach() for tensor in tensors if tensor is not None]
    if not may_look(*given):
        return True
    return not all(map(_is_finite, given))


def _is_finite(tensor: Tensor) -> bool:
    known = is_finite(tensor) if is_plain(tensor) else None  # the library reads its memory
    # As a number: to torch, isfinite is four operators.
    return math.isfinite(tensor.sum().item()) if known is None else known


def spoiled(x: Tensor, *, columns: bool = False, nan_only: bool = False) -> Tensor:
    """Return where x ``[b, t, h, d]`` holds NaN, or infinity, ``[b, t, h, 1]``.

    With columns, which have nothing to do with one another, ``[b, t, h, d]``; but not on an
    accelerator, where a flag of each number would cost more than the numbers.
    """
    if columns and x.device.type == "cpu":
        return ~x.detach().isfinite()
    size = torch.linalg.vector_norm(x.detach(), torch.inf, -1, keepdim=True)
    return size.isnan() if nan_only else ~(size < torch.inf)


def either(*flags: Tensor) -> Tensor:
    """Return where one of the flags is set."""
    return reduce(torch.logical_or, flags)


def without(x: Tensor, flag: Tensor) -> Tensor:
    """Return x with zeros where the flag is set."""
    return torch.where(flag, 0, x)


def seen_from(
    flag: Tensor, cu_seqlens: Tensor | None = None, *, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Return flags of the tokens that see a flagged one, and of the sequences that have one.

    Packed sequences see their own tokens only. The latter have no time axis. In reverse, it is
    earlier tokens that see one.
    """
    if reverse:
        offsets = None if cu_seqlens is None else turned_offsets(cu_seqlens)
        seen, sequences = seen_from(flag.flip(1), offsets)
        return seen.flip(1), sequences if cu_seqlens is None else sequences.flip(0)
    count = flag.cumsum(1)
    if cu_seqlens is None:
        return count > 0, flag.any(1)
    offsets = cu_seqlens.to(flag.device).long()
    before = torch.cat((torch.zeros_like(count[0, :1]), count[0]))[offsets]  # of each sequence
    place = torch.arange(flag.shape[1], device=flag.device)
    sequence = torch.searchsorted(offsets[1:], place, right=True)
    return count > before[sequence], before[1:] > before[:-1]


def stained(x: Tensor, flag: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return x with NaN at the flags, but for padded tokens, and no gradient there.

    A layer above may make NaN of a gradient of zero.
    """
    if mask is not None:
        flag = flag & _like(mask, flag)
    return torch.where(flag, torch.nan, x)


def stained_state(state: State, flag: Tensor) -> State:
    """Return a state, a named tuple of tensors ``[b, …]``, with NaN in the sums of sequences.

    The flag is ``[b, h, 1]`` or ``[b, 1, 1]``, or ``[b]`` for states without heads in this place.
    """
    if isinstance(state, Tensor):
        return stained(state, _like(flag, state))  # pyright: ignore[reportReturnType]
    if not isinstance(state, tuple):
        return state
    return type(state)(*(_stained_field(field, flag) for field in state))


def _stained_field(field: Any, flag: Tensor) -> Any:
    if not isinstance(field, Tensor) or not field.is_floating_point():
        return field
    if flag.ndim == 3 and field.ndim == 2:  # one number a head
        flag = flag[..., 0]
    return stained(field, _like(flag, field))


def contained(
    *names: str, always: bool = False
) -> Callable[[Callable[Parameters, Result]], Callable[Parameters, Result]]:
    """Keep what is not finite in a token from the outputs of earlier ones, and their gradients.

    For a function that returns ``[b, t, h, m]``, or that and a state; of its causal calls, where it
    costs nothing to look whether there is any. A token is spoiled in all its heads, and seen by all
    later ones, even by those out of reach.

    Args:
        names: the function's arguments ``[b, t, …]``.
        always: whether the function has no other form, and no argument `causal`.
    """

    def decorate(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
        order = tuple(inspect.signature(function).parameters)

        @wraps(function)
        def call(*arguments: Parameters.args, **options: Parameters.kwargs) -> Result:
            given: dict[str, Any] = dict(zip(order, arguments, strict=False)) | options
            tensors = {name: given[name] for name in names if given.get(name) is not None}
            mask = given.get("mask")
            wanted = always or given.get("causal")
            if not (wanted and _have_a_past(mask, *tensors.values())):
                return function(*arguments, **options)
            # Padding is left out last: that copies everything, and it seldom holds such things.
            if not (may_look(*tensors.values()) and may_be_spoiled(*tensors.values())):
                return function(*arguments, **options)
            real = {
                name: x if mask is None else torch.where(_like(mask, x), x, 0)
                for name, x in tensors.items()
            }
            if not may_be_spoiled(*real.values()):
                return function(*arguments, **options)
            flag = either(*(~x.detach().isfinite().flatten(2).all(2) for x in real.values()))
            clean = {name: without(x, _like(flag, x)) for name, x in tensors.items()}
            result: Any = function(**(given | clean))  # pyright: ignore[reportCallIssue]
            seen, sequences = seen_from(flag)
            if not isinstance(result, tuple):
                return stained(result, _like(seen, result), mask)  # pyright: ignore[reportReturnType]
            out, state = result
            out = stained(out, _like(seen, out), mask)
            return out, stained_state(state, sequences)  # pyright: ignore[reportReturnType]

        return call

    return decorate


def _like(flag: Tensor, x: Tensor) -> Tensor:
    return flag.view(*flag.shape, *[1] * (x.ndim - flag.ndim))


def _have_a_past(mask: Tensor | None, *tensors: Tensor) -> bool:
    """Return whether there is an earlier token; of shapes that do not fit the function speaks."""
    size, *others = (tensor.shape[:2] for tensor in tensors)
    if mask is not None:
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            return False
        others.append(mask.shape)
    same = all(each == size for each in others)  # no set of them: symbols have no hash
    return same and (torch.compiler.is_compiling() or size[1] > 1)
