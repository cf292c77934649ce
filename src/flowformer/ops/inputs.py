"""The checks of tensors that every public attention function makes, and the state of torch."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache, reduce
from operator import or_
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import (  # torch has no public names for what its dispatcher sees
    DispatchKey,
    DispatchKeySet,
    _dispatch_keys,
    _dispatch_tls_local_include_set,
)
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad
from torch.jit._trace import is_tracing  # torch.jit does not export it
from torch.nn import Parameter
from torch.utils._python_dispatch import is_in_torch_dispatch_mode  # no public name either

from flowformer.ops.features import compute_dtype
from flowformer.ops.state import FlowState, empty_state, has_decayed, refuse_given_up

_Function = TypeVar("_Function", bound=Callable[..., Any])

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensors(
    query: Tensor, key: Tensor, value: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Check shapes, dtypes and devices; return all three with as many heads as the query has.

    Fewer key/value heads (grouped heads) are repeated: exactly ``repeat_interleave``. Without a
    value, the key stands in for it.

    Raises:
        ValueError: a shape, dtype or device does not fit the others.
        TypeError: one is no tensor.
    """
    value = key if value is None else value
    query, key, value = _widened_under_autocast(query, key, value)
    dtype, device = query.dtype, query.device
    for name, tensor in (("query", query), ("key", key), ("value", value)):
        check_strided(name, tensor)
        if tensor.ndim != 4 or not all(tensor.shape[1:]):
            raise ValueError(
                f"{name} must be [batch, time, head, feature], each but the batch at least 1, "
                f"got shape {list(tensor.shape)}"
            )
        if tensor.dtype not in DTYPES:
            came = f"{type(tensor).__name__} of {tensor.dtype}"
            raise ValueError(f"{name} must be a floating-point tensor, got {came}")
        if tensor.dtype != dtype or tensor.device != device:
            raise ValueError(
                f"query, key and value must share dtype and device, got {dtype} on "
                f"{device} and, for {name}, {tensor.dtype} on {tensor.device}"
            )
    if not query.shape[0] == key.shape[0] == value.shape[0]:
        raise ValueError(
            "query, key and value must have the same batch size, got "
            f"{query.shape[0]}, {key.shape[0]} and {value.shape[0]}"
        )
    if query.shape[3] != key.shape[3]:
        raise ValueError(
            f"query and key must have the same width, got {query.shape[3]} and {key.shape[3]}"
        )
    if key.shape[1:3] != value.shape[1:3]:
        raise ValueError(
            "key and value must have the same time and heads, got "
            f"{list(key.shape[1:3])} and {list(value.shape[1:3])}"
        )
    heads, kv_heads = query.shape[2], key.shape[2]
    if heads % kv_heads:
        raise ValueError(
            f"the query's heads must be a multiple of the key's, got {heads} and {kv_heads}"
        )
    if heads != kv_heads:
        key = key.repeat_interleave(heads // kv_heads, 2)
        value = value.repeat_interleave(heads // kv_heads, 2)
    return query, key, value


def require_tensor(name: str, given: Any) -> None:
    """Refuse what is no tensor, such as an array of NumPy or a list.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(given, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(given).__name__}")


def check_strided(name: str, tensor: Tensor) -> None:
    """Refuse a tensor whose numbers do not lie in memory by strides.

    Raises:
        ValueError: it is nested, sparse, or of a library's own layout.
    """
    if tensor.is_nested:
        raise ValueError(
            f"{name} must not be nested: pack its sequences as [1, total, head, feature] and give "
            "cu_seqlens, or pad them (to_padded_tensor) and give a mask"
        )
    if tensor.layout != torch.strided:
        raise ValueError(f"{name} must be a dense tensor (to_dense), got {tensor.layout}")


def _widened_under_autocast(
    query: Tensor, key: Tensor, value: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Give all the widest dtype, under autocast only.

    There they often differ (a rotary embedding widens query and key, not the value), and torch's
    attention allows it.

    Raises:
        TypeError: one is no tensor.
    """
    if not (isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)):
        for name, given in (("query", query), ("key", key), ("value", value)):
            require_tensor(name, given)
    tensors = query, key, value
    known = _autocasts(query.device.type) and all(each.dtype in DTYPES for each in tensors)
    if not known:
        return tensors
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return query.to(dtype), key.to(dtype), value.to(dtype)


def resolve_masks(
    query: Tensor,
    key: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the masks of the query and of the key, True = a real token.

    Raises:
        ValueError: ``mask`` beside a mask of one side, two masks in a causal call, a wrong shape.
        TypeError: a mask that is not boolean.
    """
    if mask is not None and (query_mask is not None or key_mask is not None):
        raise ValueError("give mask (both sides), or query_mask and key_mask, not both kinds")
    if causal is not True and causal is not False:
        raise ValueError(f"causal must be True or False, got {causal!r}")
    if causal and (query_mask is not None or key_mask is not None):
        raise ValueError("a causal call has one mask: pass mask=, not query_mask= or key_mask=")
    if mask is not None:
        query_mask = key_mask = mask
    for side, given, tensor in (("query", query_mask, query), ("key", key_mask, key)):
        check_mask(f"the {side}", given, tensor)
    return query_mask, key_mask


def check_mask(name: str, mask: Tensor | None, x: Tensor) -> None:
    """Check that a mask is one of the tokens of x, ``[batch, time, …]``, which has such a name.

    Raises:
        ValueError: another shape or device.
        TypeError: it is not boolean, or no tensor.
    """
    if mask is None:
        return
    dtype = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
    if dtype != torch.bool:
        raise TypeError(f"the mask of {name} must be boolean, True = a real token, got {dtype}")
    check_strided(f"the mask of {name}", mask)
    if mask.shape != x.shape[:2] or mask.device != x.device:
        raise ValueError(
            f"the mask of {name} must be [batch, time] = {list(x.shape[:2])} on "
            f"{x.device}, got {list(mask.shape)} on {mask.device}"
        )


def check_causal(
    query: Tensor, key: Tensor, cu_seqlens_k: Tensor | None = None, *, sums_over_sinks: bool = False
) -> None:
    """Refuse causal cross-attention between different lengths: which token sees which is not said.

    Args:
        query: ``[b, l, h, d]``.
        key: ``[b, s, g, d]``.
        cu_seqlens_k: offsets for the keys alone.
        sums_over_sinks: whether the cross-attention of this method lets each query know the others.

    Raises:
        ValueError: l ≠ S, or offsets for the keys alone.
    """
    if query.shape[1] == key.shape[1] and cu_seqlens_k is None:
        return
    came = f"L={query.shape[1]} and S={key.shape[1]}" if cu_seqlens_k is None else "cu_seqlens_k"
    cross = "causal=False"
    if sums_over_sinks:
        cross += (
            " and independent_sinks=True: with competition or allocation each output depends on "
            "all queries, those of later tokens too"
        )
    turned = ""
    if query.shape[2] == key.shape[2]:
        turned = ". Tensors whose heads come first need layout='bhtd'"
    raise ValueError(
        f"causal attention needs as many queries as keys, got {came}. To continue a sequence, run "
        "its earlier tokens with return_state=True and pass their state as initial_state; for a "
        f"decoder that reads an encoder's output use {cross}{turned}"
    )


def refuse_order(initial_state: tuple | None, return_state: bool, reverse: bool) -> None:
    """Refuse what a call that is not causal does not have.

    Raises:
        ValueError: there is such a thing.
    """
    if initial_state is not None or return_state:
        raise ValueError("only a causal call has a state: pass causal=True")
    if reverse:
        raise ValueError("only a causal call reads in an order: reverse=True needs causal=True")


def check_decay(log_decay: Tensor, query: Tensor, mask: Tensor | None, *, causal: bool) -> Tensor:
    """Return the logarithms of decays, in the dtype of the arithmetic and zero at padded tokens.

    Raises:
        ValueError: a call that is not causal, another shape or device.
        TypeError: no tensor of floating-point numbers.
    """
    if not causal:
        raise ValueError("only a causal call forgets: log_decay needs causal=True")
    dtype = log_decay.dtype if isinstance(log_decay, Tensor) else type(log_decay).__name__
    if dtype not in DTYPES:
        raise TypeError(f"log_decay must be a floating-point tensor, got {dtype}")
    check_strided("log_decay", log_decay)
    if log_decay.shape != query.shape[:3] or log_decay.device != query.device:
        raise ValueError(
            f"log_decay must be [batch, time, head] = {list(query.shape[:3])} on {query.device}, "
            f"got {list(log_decay.shape)} on {log_decay.device}"
        )
    if dtype != (wanted := compute_dtype(query.dtype)):
        log_decay = log_decay.to(wanted)
    if mask is not None:
        log_decay = torch.where(mask[..., None], log_decay, 0)
    return log_decay


def refuse_growth(log_decay: Tensor) -> None:
    """Look at decays where that makes nothing wait: none may be above zero.

    Raises:
        ValueError: one is.
    """
    if is_plain(log_decay) and log_decay.numel() and log_decay.amax() > 0:
        raise growth(log_decay)


def growth(log_decay: Tensor) -> ValueError:
    """Return the error of decays of which one is above zero."""
    return ValueError(
        "log_decay is the logarithm of what is left of earlier tokens, at most 0, got "
        f"{log_decay.amax().item():g}"
    )


State = TypeVar("State", bound=tuple)  # a NamedTuple of tensors


def starting_state(given: State | None, make: Callable[..., State], *sizes: Any) -> State:
    """Return the state that was passed in, checked against that before the first token, or that.

    What such a state looks like is found out once for all of the same sizes: a step makes none.

    Args:
        given: the state that was passed in, if any.
        make: returns the state before the first token; a function that is there once.
        sizes: what it is called with.

    Raises:
        TypeError: it is not of the expected kind, or a field has another dtype: in half precision
            its sums would be wrong, and a float count stands still at 2^24.
        ValueError: a field has another shape or device.
    """
    if given is None:
        return make(*sizes)
    look = _traced_look if is_recorded() else _cached_look
    _check_look(given, *look(make, sizes))
    return given


def check_state(
    given: tuple | None, kind: Any, query: Tensor, value: Tensor, sequences: Any, more: int = 0
) -> None:
    """Check a state against the initial one of such tensors; its value may have more columns.

    Raises:
        TypeError, ValueError: as :func:`starting_state`.
    """
    if given is None:
        return
    sizes = sequences, query.shape[2], query.shape[3], value.shape[3] + more, query.device
    if kind is FlowState and isinstance(given, FlowState) and has_decayed(given):
        starting_state(given, empty_state, True, *sizes)
    else:
        starting_state(given, kind.initial, *sizes)


FieldLook = tuple[torch.Size, torch.dtype, torch.device]


def _traced_look(make: Callable[..., tuple], sizes: tuple[Any, ...]) -> tuple[Any, list[FieldLook]]:
    empty = make(*sizes)
    return type(empty), [(field.shape, field.dtype, field.device) for field in empty]


_cached_look = lru_cache(maxsize=64)(_traced_look)


def _check_look(given: tuple, kind: Any, look: list[FieldLook]) -> None:
    if type(given) is not kind:
        raise TypeError(f"the state must be a {kind.__name__}, got {type(given).__name__}")
    refuse_given_up(given)
    for name, field, (shape, dtype, device) in zip(kind._fields, given, look, strict=True):
        strided = field.layout == torch.strided and not field.is_nested
        if strided and (field.shape, field.dtype, field.device) == (shape, dtype, device):
            continue
        check_strided(f"{name} of the state", field)
        if field.shape != shape or field.device != device:
            raise ValueError(
                f"{name} of the state must be {list(shape)} on {device}, got "
                f"{list(field.shape)} on {field.device}"
            )
        raise TypeError(
            f"{name} of the state must be {dtype}, whatever the dtype of the query, got "
            f"{field.dtype}"
        )


def is_recorded() -> bool:
    """Return whether a graph is being recorded, for other sizes than those at hand.

    By torch.compile and torch.export, where sizes may be symbols, or by torch.jit.trace, which
    takes every Python number for a constant.
    """
    return torch.compiler.is_compiling() or is_tracing()


def is_for_any_length() -> bool:
    """Return whether a graph is recorded that is to run elsewhere, and for other lengths too.

    That of torch.export, of ONNX and of torch.jit.trace. What a length decides (which of two is
    smaller, how often a loop runs) would be fixed there, and compiled operators may be missing.
    """
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return is_tracing() or torch.onnx.is_in_onnx_export()


def at_most(size: int, length: int) -> int:
    """Return the smaller: a block need not be longer than the sequence, and may be.

    It is the size in a graph for any length.
    """
    return size if is_for_any_length() else min(size, length)


def is_transformed(*tensors: Tensor | None) -> bool:
    """Return whether a transform of torch.func, or forward mode, is at work on a tensor.

    Compiled operators take part in neither; PyTorch's own do.
    """
    if torch.compiler.is_compiling():
        return False
    forward = forward_ad._current_level >= 0  # asked once: a decoding step is short
    return any(
        tensor is not None
        and (
            is_functorch_wrapped_tensor(tensor)
            or (forward and forward_ad.unpack_dual(tensor).tangent is not None)
        )
        for tensor in tensors
    )


def is_kept(*tensors: Tensor | None) -> bool:
    """Return whether a gradient may be asked for: only then is anything kept for it."""
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


# What torch's dispatcher is told by an ordinary tensor on a CPU, and by a thread in which nothing
# is at work. All else is for it to do: turn a sign, make zeros, record a graph, tell a mode.
_KEYS = ("CPU", "ADInplaceOrView", "AutogradCPU", "AutocastCPU", "BackendSelect")
_SPECIAL = ~reduce(or_, (DispatchKeySet(DispatchKey.__members__[key]).raw_repr() for key in _KEYS))
_KINDS = (Tensor, Parameter)


def is_plain(*tensors: Tensor | None) -> bool:
    """Return whether an operator would do no more with these than call its kernel on the CPU.

    Only then may the kernel be called without it, which reads what the pointers point to. All
    tensors of the call are to be asked: none may be traced, transformed, a subclass, one whose sign
    is turned in reading, or one without memory. That a gradient is wanted is for the caller to say.
    """
    if (
        torch.compiler.is_compiling()
        or forward_ad._current_level >= 0
        or _dispatch_tls_local_include_set().raw_repr() & _SPECIAL
    ):
        return False
    for tensor in tensors:  # a loop: a decoding step is short
        if tensor is not None and (
            type(tensor) not in _KINDS or _dispatch_keys(tensor).raw_repr() & _SPECIAL
        ):
            return False
    return True


def has_values(*tensors: Tensor) -> bool:
    """Return whether Python may look at values of the tensors, such as to check them.

    Not where a graph is recorded (it would be fixed to them), under a transform or a mode, or in a
    subclass that has none. On another device than the CPU it may, but has to wait.
    """
    return not (
        is_recorded()
        or is_for_any_length()
        or is_in_torch_dispatch_mode()
        or is_transformed(*tensors)
    ) and all(type(tensor) in _KINDS for tensor in tensors)


def may_look(*tensors: Tensor) -> bool:
    """Return whether the values of tensors may be looked at: at next to no cost, and no graph."""
    return has_values(*tensors) and all(tensor.device.type == "cpu" for tensor in tensors)


def exact_arithmetic(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context without autocast: inside, float32 means float32."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if _autocasts(device) else nullcontext()


def _autocasts(device: str) -> bool:
    """Return whether autocast is on; asking about a device unknown to it (meta) would raise."""
    return _knows_autocast(device) and torch.is_autocast_enabled(device)


def constant_in_graphs(function: _Function) -> _Function:
    """Mark a function whose result ``torch.compile`` takes for a constant.

    What ``torch.compiler.assume_constant_result`` does: that imports the compiler first, which
    takes as long as to import torch.
    """
    vars(function)["_dynamo_marked_constant"] = True
    return function


@constant_in_graphs  # torch 2.10 and 2.11 cannot trace it
def _knows_autocast(device: str) -> bool:
    return torch.amp.is_autocast_available(device)
