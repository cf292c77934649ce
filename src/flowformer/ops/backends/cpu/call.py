"""One call of the compiled library: tensors to pointers, laid out as ``Call`` of csrc/api.h."""

import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flowformer.ops.backends.arguments import LINEAR, BidirectionalKept, MobileNumbers, Numbers
from flowformer.ops.backends.cpu.library import load_library
from flowformer.ops.features import compute_dtype
from flowformer.ops.inputs import growth
from flowformer.ops.packing import (
    check_packed,
    check_same_count,
    sequence_count,
    sequence_lengths,
)
from flowformer.ops.state import mark_given_up, room_after
from flowformer.ops.steps import Step

CHUNK = 64  # of csrc/api.h
GROWS = 2  # what a causal forward returns when a decay is above zero

DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

# Options and sizes, views, masks and offsets, row_scale and log_decay, states, what is kept, the
# gradients of those two; what is of Mobile-Attention alone.
_CALL = struct.Struct("@4i2d8q" + "P3q" * 8 + "4P" + "2P" + "7P" * 4 + "3P" + "2P" + "2i")
_NO_VIEW = (0, 0, 0, 0)
# Masks, offsets and scale, of which a step has none; and what is behind states.
_NO_OTHERS, _NO_GRADIENTS = (0,) * 5, (0,) * 19
_NO_MOBILE = (0, 0)
NO_STATE = (None,) * 7


class Inputs(NamedTuple):
    """The tensors that every call reads."""

    query: Tensor
    key: Tensor
    value: Tensor
    query_mask: Tensor | None = None
    key_mask: Tensor | None = None
    cu_seqlens: Tensor | None = None
    cu_seqlens_k: Tensor | None = None
    row_scale: Tensor | None = None
    log_decay: Tensor | None = None


def readable(inputs: Inputs) -> Inputs:
    """Return the inputs as the library can read them: features side by side, offsets checked.

    Raises:
        ValueError: packed sequences whose offsets do not fit.
    """
    query, key, value = (features_together(tensor) for tensor in inputs[:3])
    offsets, offsets_k = inputs.cu_seqlens, inputs.cu_seqlens_k
    if offsets is not None:
        offsets = readable_offsets(offsets, query, "cu_seqlens")
        name = "cu_seqlens (cu_seqlens_k is not given)" if offsets_k is None else "cu_seqlens_k"
        offsets_k = offsets if offsets_k is None else readable_offsets(offsets_k, key, name)
        if offsets_k is offsets and key.shape[1] != query.shape[1]:
            sequence_lengths(offsets, key.shape[1], name)
        check_same_count(len(offsets) - 1, len(offsets_k) - 1)
    return Inputs(
        query,
        key,
        value,
        contiguous(inputs.query_mask),
        contiguous(inputs.key_mask),
        offsets,
        offsets_k,
        contiguous(inputs.row_scale),
        contiguous(inputs.log_decay),
    )


def features_together(tensor: Tensor) -> Tensor:
    """Return the tensor with stride 1 of its features, copied only if need be."""
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """Return the tensor contiguous, or None."""
    return None if tensor is None else tensor.contiguous()


def readable_offsets(offsets: Tensor, tensor: Tensor, name: str) -> Tensor:
    """Return offsets as the library reads them.

    Raises:
        ValueError: they do not fit the packed tensor.
    """
    check_packed(tensor)
    sequence_lengths(offsets, tensor.shape[1], name)
    return offsets.to("cpu", torch.int64).contiguous()


def spacing(inputs: Inputs) -> int:
    """Return from how many chunks to how many a causal forward keeps the product keyᵀ value.

    One of each chunk takes as much memory as the key where the value is as wide as a chunk, and
    more where it is wider, or the key is of half precision: so what is kept never takes more.
    """
    of_one = CHUNK if inputs.key.element_size() >= 4 else 24
    return -(-inputs.value.shape[3] // of_one)


def kept_numbers(inputs: Inputs, *, linear: bool) -> int:
    """Return how many numbers a causal forward keeps of the sums before later chunks."""
    (_, _, heads, width), value_width, every = (
        inputs.query.shape,
        inputs.value.shape[3],
        spacing(inputs),
    )
    vectors = 0 if linear else 4 * width * _count(inputs, CHUNK)
    return heads * (vectors + width * value_width * _count(inputs, CHUNK * every))


def row_numbers(inputs: Inputs, *, sums_flows: bool) -> int:
    """Return how many numbers a bidirectional forward keeps of the sums of its rows.

    No keyᵀ value of one chunk, which the backward computes again: of many short rows they would
    take more memory than the inputs. Packed sequences of more tokens are at most one in so many.
    """
    (_, _, heads, width), (batch, keys) = inputs.query.shape, inputs.key.shape[:2]
    matrices: Any = batch * torch.sym_min(keys // (CHUNK + 1), 1)
    if inputs.cu_seqlens is not None:
        matrices = keys // CHUNK
    vectors = 4 * sequence_count(inputs.query, inputs.cu_seqlens) if sums_flows else 0
    return heads * width * (vectors + matrices * inputs.value.shape[3])


def _count(inputs: Inputs, tokens: int) -> int:
    """Return how many pieces of so many tokens begin within the keys' sequences.

    What is known before the first token is the past, and not kept.
    """
    batch, length = inputs.key.shape[:2]
    if inputs.cu_seqlens is not None:  # one after another: none has more than its tokens fill
        return length // tokens
    return batch * (max(length - 1, 0) // tokens)


State = Sequence[Tensor | None]


class Gradients(NamedTuple):
    """The gradients that a backward reads and writes."""

    out: Tensor | None = None
    query: Tensor | None = None
    key: Tensor | None = None
    value: Tensor | None = None
    row_scale: Tensor | None = None
    log_decay: Tensor | None = None


def call(
    function: str,
    inputs: Inputs,
    options: Numbers | MobileNumbers,
    *,
    out: Tensor | None = None,
    states: tuple[State, State, State, State] = (NO_STATE, NO_STATE, NO_STATE, NO_STATE),
    kept: BidirectionalKept = BidirectionalKept(),  # noqa: B008 - immutable
    gradients: Gradients = Gradients(),  # noqa: B008 - immutable
    reverse: bool = False,
) -> None:
    """Call a function of the library; ``inputs`` are readable, all that is written is contiguous.

    Args:
        function: its name.
        inputs: see :func:`readable`.
        options: the options.
        out: the output.
        states: before, after, and the gradients of both; each the fields of a FlowState, or Nones.
        kept: what the forward leaves for the backward; the stats of a causal one as the query's.
        gradients: the output's, and where the inputs' go.
        reverse: whether the tokens of all that is a view are read from the last to the first.

    Raises:
        MemoryError: the library could not allocate its scratch.
        ValueError: a decay is above zero.
    """
    query, key, value = inputs[:3]
    if query.shape[0] == 0 or sequence_count(query, inputs.cu_seqlens) == 0:
        return
    mobile = _NO_MOBILE
    if isinstance(options, MobileNumbers):
        options, mobile = options.flow, (1, options.normalize)
    others = (*inputs[3:], *chain.from_iterable(states), *kept, *gradients[4:])
    views = (query, key, value, out, *gradients[:4])
    record = _CALL.pack(
        *_sizes(inputs, options),
        torch.get_num_threads(),
        spacing(inputs),
        *chain.from_iterable(view_of(tensor, reverse=reverse) for tensor in views),
        *[0 if tensor is None else tensor.data_ptr() for tensor in others],
        *mobile,
    )
    run(function, record, inputs.log_decay)


def _sizes(inputs: Inputs, options: Numbers) -> tuple[Any, ...]:
    query, key, value = inputs[:3]
    return (
        DTYPES[query.dtype],
        *options,
        sequence_count(query, inputs.cu_seqlens),
        query.shape[2],
        query.shape[3],
        value.shape[3],
        query.shape[1],
        key.shape[1],
    )


def run(function: str, record: bytes, log_decay: Tensor | None = None) -> None:
    """Call a function of the library with a record.

    Raises:
        MemoryError: the library could not allocate its scratch.
        ValueError: a decay is above zero.
    """
    library = load_library()
    assert library is not None, "the backend is chosen only where the library is"
    failure = getattr(library, function)(record)
    if failure == GROWS:
        assert log_decay is not None
        raise growth(log_decay)
    if failure:
        raise MemoryError(f"{function} could not allocate its scratch memory")


def is_finite(tensor: Tensor) -> bool | None:
    """Return whether all numbers of a tensor are finite, None where the library cannot say.

    On this thread alone: torch's threads, once awake for a sum, go on looking for work for some
    milliseconds, on the cores that the kernels' threads are to have.
    """
    library, dtype = load_library(), DTYPES.get(tensor.dtype)
    if library is None or dtype is None or not tensor.is_contiguous():
        return None
    return bool(library.flowformer_is_finite(dtype, tensor.data_ptr(), tensor.numel()))


def view_of(tensor: Tensor | None, *, reverse: bool = False) -> tuple[int, ...]:
    """Return the address and the strides of a tensor ``[b, t, h, d]``, in the order of reading."""
    if tensor is None:
        return _NO_VIEW
    batch, token, head, _ = tensor.stride()
    if not reverse:
        return tensor.data_ptr(), batch, token, head
    last = (tensor.shape[1] - 1) * token * tensor.element_size()
    return tensor.data_ptr() + last, batch, -token, head


def prepare_step(
    inputs: tuple[Tensor, ...], state: tuple[Tensor, ...], options: Numbers
) -> Step | None:
    """Return the call of one token, laid out but for the pointers; None where they do not suffice.

    Args:
        inputs: query, key and value, ``[b, 1, h, d]``, and the logarithms of decays, if any.
        state: the state before, with all its fields, or that of linear attention.
        options: the options.
    """
    if not _suffice_pointers(inputs, state, options):
        return None
    query, key, value = inputs[:3]
    sizes = _sizes(Inputs(query, key, value), options)
    q_strides, k_strides, v_strides = (tensor.stride()[:3] for tensor in inputs[:3])
    shape = (*query.shape[:3], value.shape[3])
    out_strides = value.new_empty(shape).stride()[:3]
    missing = (0,) * (len(NO_STATE) - len(state))

    def step(inputs: tuple[Tensor, ...], state: Any) -> tuple[Tensor, Any]:
        query, key, value = inputs[:3]
        log_decay = inputs[3] if len(inputs) > 3 else None
        out, after = value.new_empty(shape), room_after(state)
        record = _CALL.pack(
            *sizes,
            torch.get_num_threads(),
            1,
            query.data_ptr(),
            *q_strides,
            key.data_ptr(),
            *k_strides,
            value.data_ptr(),
            *v_strides,
            out.data_ptr(),
            *out_strides,
            *_NO_VIEW * 4,
            *_NO_OTHERS,
            0 if log_decay is None else log_decay.data_ptr(),
            *missing,
            *map(Tensor.data_ptr, state),
            *missing,
            *map(Tensor.data_ptr, after),
            *_NO_GRADIENTS,
            *_NO_MOBILE,
        )
        run("flowformer_causal_forward", record, log_decay)
        mark_given_up(state)
        return out, after

    return step


def _suffice_pointers(
    inputs: tuple[Tensor, ...], state: tuple[Tensor, ...], options: Numbers
) -> bool:
    """Return whether the library reads and writes all of a step where it is, and what it is."""
    query, key, value, *decays = inputs
    (b, _, h, d), m = query.shape, value.shape[3]
    if options.feature_map == LINEAR:
        fits = query.dtype == compute_dtype(query.dtype)
    else:  # what is counted, and left of it; and without competition its sum would not be written
        counted = torch.float64 if decays else torch.int64
        fits = state[0].dtype == counted and options.competes_over != 0
    return (
        fits
        and b > 0
        and len({(tensor.dtype, *tensor.shape[:3]) for tensor in (query, key, value)}) == 1
        and all(tensor.stride(3) == 1 for tensor in (query, key, value))
        and all(x.dtype == compute_dtype(query.dtype) and x.is_contiguous() for x in decays)
        and all(field.is_contiguous() for field in state)
        and state[-1].shape == (b, h, d, m)
    )
