"""Where the chunks of a batch stand, dense or packed: the tables that the kernels read."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor


class Layout(NamedTuple):
    """The chunks of the sequences of a call, and the splits: runs of chunks, for long sequences.

    Attributes:
        chunks: batch row, first token, end, sequence. Shape ``[chunks, 4]``.
        chunk_first: the first chunk of each sequence, and the end.
        splits: first chunk, end, sequence. Shape ``[splits, 3]``.
        split_first: the first split of each sequence, and the end.
        ends: of a packed batch, the offsets of its sequences; otherwise None.
    """

    chunks: Int[Tensor, "n 4"]
    chunk_first: Int[Tensor, " m"]
    splits: Int[Tensor, "k 3"]
    split_first: Int[Tensor, " m"]
    ends: Int[Tensor, " m"] | None

    @property
    def sequences(self) -> int:
        """The number of sequences."""
        return len(self.chunk_first) - 1

    @property
    def is_split(self) -> bool:
        """Whether any sequence has more splits than one."""
        return len(self.splits) > self.sequences


_captured: dict[tuple[int, int, int, int, torch.device], Layout] = {}


def dense_layout(batch: int, length: int, size: int, split: int, device: torch.device) -> Layout:
    """Return the layout of ``[batch, length]`` in chunks of ``size``, splits of ``split`` chunks.

    It is kept: a call with a known shape copies nothing to the device. One that a CUDA graph has
    captured is kept for good, since every replay reads it where it was.
    """
    call = batch, length, size, split, device
    layout = _captured.get(call)
    if layout is None:
        layout = _kept_layout(tuple((row, 0, length) for row in range(batch)), *call[2:])
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            _captured[call] = layout
    return layout


@lru_cache(maxsize=64)
def _kept_layout(
    places: tuple[tuple[int, int, int], ...], size: int, split: int, device: torch.device
) -> Layout:
    """Return the layout of sequences, each a batch row, its first token and its end."""
    if device.type != "cuda":
        return _layout(places, size, split, device)
    # In a thread of its own: memory that this one allocates may belong to a CUDA graph in the
    # making (torch.compile's mode="reduce-overhead"), where nothing may be kept.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_layout, places, size, split, device).result()


def packed_layout(
    lengths: Sequence[int], offsets: Tensor, size: int, split: int, device: torch.device
) -> Layout:
    """Return the layout of packed sequences.

    Empty chunks fill the table up to as many as any such sequences could have: its length, and
    that of what a chunk leaves, depends on shapes alone. The table is kept: the layers of a step,
    and its backward, have the same sequences.
    """
    ends = list(accumulate(lengths, initial=0))
    layout = _kept_layout(tuple((0, *pair) for pair in pairwise(ends)), size, split, device)
    empty = chunk_bound(ends[-1], len(lengths), size) - len(layout.chunks)
    chunks = torch.nn.functional.pad(layout.chunks, (0, 0, 0, empty))
    return layout._replace(chunks=chunks, ends=offsets.to(device, torch.int64))


def chunk_bound(total: int, sequences: int, size: int) -> int:
    """Return how many chunks packed sequences have at most."""
    return total // size + sequences


def _layout(
    places: tuple[tuple[int, int, int], ...], size: int, split: int, device: torch.device
) -> Layout:
    chunks, splits, chunk_first, split_first = [], [], [0], [0]
    for sequence, (row, start, end) in enumerate(places):
        first = len(chunks)
        for begin in range(start, end, size):
            chunks.append((row, begin, min(begin + size, end), sequence))
        for begin in range(first, len(chunks), split) or [first]:
            splits.append((begin, min(begin + split, len(chunks)), sequence))
        chunk_first.append(len(chunks))
        split_first.append(len(splits))
    return Layout(
        torch.tensor(chunks, dtype=torch.int64).view(-1, 4).to(device),
        torch.tensor(chunk_first).to(device),
        torch.tensor(splits, dtype=torch.int64).view(-1, 3).to(device),
        torch.tensor(split_first).to(device),
        None,
    )
