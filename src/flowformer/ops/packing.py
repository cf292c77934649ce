"""Packed sequences, ``[1, total, …]`` with ``cu_seqlens``: run as padded batches of like lengths.

Sequences whose lengths round up to the same power of two share a batch, so that padding at most
doubles the work, whatever the lengths, and memory stays linear in ``total``.
"""

from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple, TypedDict, TypeVar

import torch
from torch import Tensor
from torch.jit._trace import is_tracing  # torch.jit does not export it

from flowformer.ops.inputs import is_transformed, resolve_masks
from flowformer.ops.layout import Layout
from flowformer.ops.state import ConvolutionState, FlowState, LinearState

State = TypeVar("State", FlowState, LinearState, ConvolutionState)


def sequence_lengths(cu_seqlens: Tensor, total: int, name: str) -> list[int]:
    """Return the lengths of the packed sequences.

    Raises:
        ValueError: the offsets do not start at 0, decrease, or do not end at ``total``.
    """
    offsets = cu_seqlens.tolist()
    lengths = [end - start for start, end in pairwise(offsets)]
    if offsets[0] != 0 or offsets[-1] != total or min(lengths) < 0:
        raise ValueError(
            f"{name} must rise from 0 to the number of tokens, {total}, got {offsets[:8]}"
            f"{'…' if len(offsets) > 8 else ''} ending at {offsets[-1]}"
        )
    return lengths


def check_same_count(queries: int, keys: int) -> None:
    """Refuse packed keys that are of other sequences than the queries.

    Raises:
        ValueError: there are more of one than of the other.
    """
    if queries != keys:
        raise ValueError(
            f"cu_seqlens and cu_seqlens_k must hold as many sequences, got {queries} and {keys}"
        )


class BatchKeywords(TypedDict, total=False):
    """The keywords that every attention over a batch takes, for type checkers."""

    causal: bool
    mask: Tensor | None
    query_mask: Tensor | None
    key_mask: Tensor | None
    cu_seqlens: Tensor | None
    cu_seqlens_k: Tensor | None
    backend: str | None
    layout: Layout


class Batch(NamedTuple):
    """Which tokens of a call are real and which belong together: masks, or packed sequences."""

    query_mask: Tensor | None
    key_mask: Tensor | None
    cu_seqlens: Tensor | None
    cu_seqlens_k: Tensor | None


# (query side, key side, what is real, state) -> (out, state)
Attend = Callable[
    [tuple[Tensor, ...], tuple[Tensor, ...], Batch, State | None], tuple[Tensor, State | None]
]


def check_offsets(name: str, offsets: Tensor) -> None:
    """Refuse what is no row of offsets.

    Raises:
        TypeError: they are no tensor of integers.
        ValueError: they have another shape, or no values.
    """
    if not isinstance(offsets, Tensor):
        raise TypeError(
            f"{name} must be a tensor of int32 or int64, such as torch.tensor([0, 3, 8]), got "
            f"{type(offsets).__name__}"
        )
    if offsets.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be int32 or int64, got {offsets.dtype}")
    if offsets.ndim != 1 or offsets.shape[0] < 2:
        raise ValueError(
            f"{name} must be one row of offsets, [sequences + 1], got {list(offsets.shape)}"
        )
    if is_transformed(offsets):
        raise ValueError(
            f"{name} must be no tensor that torch.func maps over: the lengths of packed sequences "
            "are read, call by call"
        )
    if offsets.is_meta:
        raise ValueError(
            f"{name} must hold values, for the work depends on them, got a tensor on meta: leave "
            "it on another device, such as the CPU"
        )


def check_packed(tensor: Tensor) -> None:
    """Refuse packed sequences in more than one row.

    Raises:
        ValueError: there are more.
    """
    if tensor.shape[0] != 1:
        raise ValueError(
            "packed sequences have batch size 1, [1, total, head, feature], got "
            f"{list(tensor.shape)}"
        )


def check_batch(batch: Batch) -> None:
    """Refuse what contradicts itself.

    Raises:
        ValueError: offsets of the keys alone, of another shape or without values, or a mask beside
            offsets.
        TypeError: offsets that are no tensor of integers.
    """
    for name, offsets in (("cu_seqlens", batch.cu_seqlens), ("cu_seqlens_k", batch.cu_seqlens_k)):
        if offsets is not None:
            check_offsets(name, offsets)
    if batch.cu_seqlens is None and batch.cu_seqlens_k is not None:
        raise ValueError("cu_seqlens_k needs cu_seqlens, the offsets of the queries")
    masked = batch.query_mask is not None or batch.key_mask is not None
    if batch.cu_seqlens is not None and masked:
        raise ValueError("packed sequences have no padding: give cu_seqlens or a mask")


def resolve_batch(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    cu_seqlens_k: Tensor | None,
    *,
    causal: bool,
) -> Batch:
    """Return what the masks and offsets of a call say, checked.

    Raises:
        ValueError: they contradict each other, or one is of another shape.
        TypeError: a mask is not boolean, or offsets are no integers.
    """
    masks = resolve_masks(
        query, key, causal=causal, mask=mask, query_mask=query_mask, key_mask=key_mask
    )
    batch = Batch(*masks, cu_seqlens, cu_seqlens_k)
    check_batch(batch)
    return batch


def turned_offsets(cu_seqlens: Tensor) -> Tensor:
    """Return the offsets of the same sequences, with all tokens in the other order."""
    return cu_seqlens[-1] - cu_seqlens.flip(0)


def sequence_count(query: Tensor, cu_seqlens: Tensor | None) -> Any:
    """Return the number of sequences, which may be a symbol: the batch, or the packed ones."""
    return query.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1


def attend_batch(
    attend: Attend[State],
    queries: tuple[Tensor, ...],
    keys: tuple[Tensor, ...],
    batch: Batch,
    state: State | None,
    *,
    packs: bool = False,
) -> tuple[Tensor, State | None]:
    """Call ``attend`` on a padded batch, or on every packed sequence as if it were alone.

    ``queries`` and ``keys`` are the tensors ``[b, t, …]`` of either side; ``state`` has one row a
    sequence, or is None. ``packs`` says that ``attend`` takes packed sequences itself. Returns what
    ``attend`` does, packed like the queries.
    """
    if batch.cu_seqlens is None or packs:
        return attend(queries, keys, batch, state)
    return _attend_packed(attend, queries, keys, batch.cu_seqlens, batch.cu_seqlens_k, state)


def _attend_packed(
    attend: Attend[State],
    queries: tuple[Tensor, ...],
    keys: tuple[Tensor, ...],
    cu_seqlens: Tensor,
    cu_seqlens_k: Tensor | None,
    state: State | None,
) -> tuple[Tensor, State | None]:
    check_packed(queries[0])
    if is_tracing():
        raise NotImplementedError(
            "torch.jit.trace would take the lengths of packed sequences for constants here: pad "
            "them and give a mask, or call flow_attention with backend='cpu', which reads them"
        )
    query_lengths = sequence_lengths(cu_seqlens, queries[0].shape[1], "cu_seqlens")
    if cu_seqlens_k is None:
        cu_seqlens_k, name = cu_seqlens, "cu_seqlens (cu_seqlens_k is not given)"
    else:
        name = "cu_seqlens_k"
    key_lengths = sequence_lengths(cu_seqlens_k, keys[0].shape[1], name)
    check_same_count(len(query_lengths), len(key_lengths))

    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for row, pair in enumerate(zip(query_lengths, key_lengths, strict=True)):
        groups[_magnitude(pair[0]), _magnitude(pair[1])].append(row)
    device = queries[0].device
    outputs, places, states, order = [], [], [], []
    for rows in groups.values():
        query_index, query_mask = _padded(cu_seqlens, query_lengths, rows, device)
        key_index, key_mask = _padded(cu_seqlens_k, key_lengths, rows, device)
        row_index = torch.tensor(rows, device=device)
        out, after = attend(
            tuple(tensor[0, query_index] for tensor in queries),
            tuple(tensor[0, key_index] for tensor in keys),
            Batch(query_mask, key_mask, None, None),
            None if state is None else state.reorder(row_index),
        )
        outputs.append(out[query_mask])
        places.append(query_index[query_mask])
        states.append(after)
        order.append(row_index)
    out = torch.cat(outputs)[torch.cat(places).argsort()][None]
    if states[0] is None:
        return out, None
    joined = type(states[0])(*(torch.cat(fields) for fields in zip(*states, strict=True)))
    return out, joined.reorder(torch.cat(order).argsort())


def _magnitude(length: int) -> int:
    return max(length - 1, 0).bit_length()


def _padded(
    cu_seqlens: Tensor, lengths: list[int], rows: list[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Return where the tokens of some sequences stand, [rows, longest], and which are real."""
    length = torch.tensor([lengths[row] for row in rows], device=device)[:, None]
    start = cu_seqlens.to(device)[torch.tensor(rows, device=device)][:, None]
    step = torch.arange(max(1, max(lengths[row] for row in rows)), device=device)
    mask = step < length
    return torch.where(mask, start + step, 0), mask
