"""One call of the compiled library: tensors to pointers, laid out as ``Call`` of csrc/api.h."""

import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flowformer.ops.backends.arguments import BidirectionalKept, Numbers
from flowformer.ops.backends.cpu.library import load_library
from flowformer.ops.packing import check_same_count, sequence_count, sequence_lengths

CHUNK = 64  # of csrc/api.h

_DTYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}

# Options and sizes, views, masks and offsets, row_scale, states, what is kept, gradients.
_CALL = struct.Struct("@4i2d8q" + "P3q" * 5 + "4P" + "P" + "7P" * 4 + "3P" + "4P")
_NO_VIEW = (0, 0, 0, 0)
_NO_STATE = (0,) * 7


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


def readable(inputs: Inputs) -> Inputs:
    """Return the inputs as the library can read them: features side by side, offsets checked.

    Raises:
        ValueError: packed sequences whose offsets do not fit.
    """
    query, key, value = (features_together(tensor) for tensor in inputs[:3])
    offsets, offsets_k = inputs.cu_seqlens, inputs.cu_seqlens_k
    if offsets is not None:
        offsets = _offsets(offsets, query, "cu_seqlens")
        name = "cu_seqlens (cu_seqlens_k is not given)" if offsets_k is None else "cu_seqlens_k"
        offsets_k = offsets if offsets_k is None else _offsets(offsets_k, key, name)
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
    )


def features_together(tensor: Tensor) -> Tensor:
    """Return the tensor with stride 1 of its features, copied only if need be."""
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()


def contiguous(tensor: Tensor | None) -> Tensor | None:
    """Return the tensor contiguous, or None."""
    return None if tensor is None else tensor.contiguous()


def _offsets(offsets: Tensor, tensor: Tensor, name: str) -> Tensor:
    if tensor.shape[0] != 1:
        raise ValueError(
            "packed sequences have batch size 1, [1, total, head, feature], got "
            f"{list(tensor.shape)}"
        )
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


def call(
    function: str,
    inputs: Inputs,
    options: Numbers,
    *,
    out: Tensor | None = None,
    states: tuple[State, State, State, State] = ((), (), (), ()),
    kept: BidirectionalKept = BidirectionalKept(),  # noqa: B008 - immutable
    gradients: Gradients = Gradients(),  # noqa: B008 - immutable
) -> None:
    """Call a function of the library; ``inputs`` are readable, all that is written is contiguous.

    Args:
        function: its name.
        inputs: see :func:`readable`.
        options: the options.
        out: the output.
        states: before, after, and the gradients of both; each the fields of a FlowState or none.
        kept: what the forward leaves for the backward; the stats of a causal one as the query's.
        gradients: the output's, and where the inputs' go.

    Raises:
        MemoryError: the library could not allocate its scratch.
    """
    query, key, value = inputs[:3]
    if query.shape[0] == 0 or sequence_count(query, inputs.cu_seqlens) == 0:
        return
    record = _CALL.pack(
        _DTYPES[query.dtype],
        *options,
        sequence_count(query, inputs.cu_seqlens),
        query.shape[2],
        query.shape[3],
        value.shape[3],
        query.shape[1],
        key.shape[1],
        torch.get_num_threads(),
        spacing(inputs),
        *_view(query),
        *_view(key),
        *_view(value),
        *_view(out),
        *_view(gradients.out),
        *(_pointer(tensor) for tensor in inputs[3:]),
        *(pointer for state in states for pointer in _pointers(state)),
        *(_pointer(tensor) for tensor in kept),
        *(_pointer(tensor) for tensor in gradients[1:]),
    )
    library = load_library()
    assert library is not None, "the backend is chosen only where the library is"
    if getattr(library, function)(record):
        raise MemoryError(f"{function} could not allocate its scratch memory")


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _view(tensor: Tensor | None) -> tuple[int, ...]:
    return _NO_VIEW if tensor is None else (tensor.data_ptr(), *tensor.stride()[:3])


def _pointers(state: State) -> tuple[int, ...]:
    return tuple(map(_pointer, state)) if state else _NO_STATE
