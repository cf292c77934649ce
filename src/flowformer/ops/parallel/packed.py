"""Packed sequences sharded over ranks: a sequence may begin on one rank and end on a later one.

Whole sequences are this rank's own, and any backend attends to them packed as they are. Of those
that ranks share, the parts that are here become the rows of a padded batch.
"""

from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributed import ProcessGroup

from flowformer.ops.flow import flow_attention
from flowformer.ops.options import FlowOptions
from flowformer.ops.packing import Batch, check_same_count, sequence_lengths
from flowformer.ops.parallel.collectives import largest_of_ranks, sum_ranks
from flowformer.ops.parallel.rows import Border, RowSums, bidirectional, causal
from flowformer.ops.state import FlowState, empty_state, select_rows

Span = tuple[int, int]


class Call(NamedTuple):
    """A call whose sequences are sharded over ranks, checked.

    Attributes:
        options: those of Flow-Attention.
        batch: the masks of this rank's part, or the offsets of whole packed sequences.
        lengths: how many tokens of the query and of the key each rank holds, of packed sequences.
        group: the ranks.
        initial_state: a row a sequence, the same on every rank.
        backend: see :func:`sequence_parallel_flow_attention`.
        head_groups: see there.
        reverse: see there; not of packed sequences.
    """

    options: FlowOptions
    batch: Batch
    lengths: Int[Tensor, "ranks 2"] | None
    group: ProcessGroup
    initial_state: FlowState | None
    backend: str | None
    head_groups: int
    reverse: bool = False


class Side(NamedTuple):
    """The packed sequences of one side of the attention, and the ranks' parts of it.

    Attributes:
        sequences: first token and end of each sequence, of all tokens.
        shards: first token and end of each rank's part.
        rank: this rank.
    """

    sequences: list[Span]
    shards: list[Span]
    rank: int

    @classmethod
    def of(
        cls, cu_seqlens: Int[Tensor, " n"], lengths: Sequence[int], rank: int, name: str
    ) -> "Side":
        """Return the side of ranks that hold so many tokens each.

        Raises:
            ValueError: the offsets do not rise from 0 to the number of tokens of all ranks.
        """
        sequence_lengths(cu_seqlens, sum(lengths), name)
        borders = accumulate(lengths, initial=0)
        return cls(list(pairwise(cu_seqlens.tolist())), list(pairwise(borders)), rank)

    def holders(self, sequence: int) -> list[int]:
        """Return the first and the last rank that hold a sequence's tokens; none if it is empty."""
        start, end = self.sequences[sequence]
        ends = [end for _, end in self.shards]
        return [] if start == end else [bisect_right(ends, start), bisect_right(ends, end - 1)]

    def at(self, token: int) -> int:
        """Return the sequence of a token."""
        return bisect_right([end for _, end in self.sequences], token)

    def here(self, sequence: int) -> Span:
        """Return where a sequence's tokens stand in this rank's part; start = end if none does."""
        start, end = self.sequences[sequence]
        first, last = self.shards[self.rank]
        start = min(max(start, first), last)
        return start - first, max(min(end, last), start) - first


def _sides(call: Call) -> tuple[Side, Side]:
    """Return where the packed sequences of the queries and of the keys stand."""
    assert call.lengths is not None
    offsets, of_keys = call.batch.cu_seqlens, call.batch.cu_seqlens_k
    assert offsets is not None
    given = [(offsets, "cu_seqlens"), (offsets, "cu_seqlens (cu_seqlens_k is not given)")]
    if of_keys is not None:
        given[1] = (of_keys, "cu_seqlens_k")
    queries, keys = (
        Side.of(cu_seqlens, lengths, call.group.rank(), name)
        for (cu_seqlens, name), lengths in zip(given, call.lengths.T.tolist(), strict=True)
    )
    check_same_count(len(queries.sequences), len(keys.sequences))
    return queries, keys


class Cut(NamedTuple):
    """Sequences of which this rank holds tokens: all of them (whole), or those of some (shared)."""

    whole: list[int]
    shared: list[int]
    number: dict[int, int]  # of every sequence that ranks share, these or others, from 0


def cut(*sides: Side) -> Cut:
    """Return which sequences are whole here, and which are shared."""
    whole, shared, number = [], [], {}
    rank = sides[0].rank
    for sequence in range(len(sides[0].sequences)):
        holders = [holder for side in sides for holder in side.holders(sequence)]
        if len(set(holders)) > 1:
            number[sequence] = len(number)
            if any(start < end for start, end in (side.here(sequence) for side in sides)):
                shared.append(sequence)
        elif holders and holders[0] == rank:
            whole.append(sequence)
    return Cut(whole, shared, number)


def tokens_of(spans: list[Span], device: torch.device) -> tuple[Int[Tensor, " t"], Tensor]:
    """Return the places of the tokens of some spans one after another, and their offsets."""
    places = [torch.arange(*span, device=device) for span in spans]
    lengths = accumulate((end - start for start, end in spans), initial=0)
    return torch.cat(places), torch.tensor(list(lengths), device=device)


def padded(spans: list[Span], device: torch.device) -> tuple[Int[Tensor, "n t"], Tensor]:
    """Return the places of the tokens of some spans as rows, and which are real."""
    longest = max(1, *(end - start for start, end in spans))
    bounds = torch.tensor(spans, device=device)
    places = bounds[:, :1] + torch.arange(longest, device=device)
    real = places < bounds[:, 1:]
    return torch.where(real, places, 0), real


def attend_bidirectional(
    query: Float[Tensor, "1 l h d"],
    key: Float[Tensor, "1 s h d"],
    value: Float[Tensor, "1 s h m"],
    call: Call,
) -> Float[Tensor, "1 l h m"]:
    """Return the output at this rank's tokens; what is sent grows with the sequences shared."""
    device, sides = query.device, _sides(call)
    own = cut(*sides)
    out = value.new_zeros((*query.shape[1:3], value.shape[3]))
    # In the graph, for a rank that has nothing to do: it makes the backward pass like the others.
    out = out + (query[:, :0].sum() + key[:, :0].sum() + value[:, :0].sum())
    # Without a key the output is zero already.
    whole = [s for s in own.whole if all(start < end for start, end in _spans(sides, s))]
    if whole:
        (places, offsets), (sources, key_offsets) = (
            tokens_of([side.here(sequence) for sequence in whole], device) for side in sides
        )
        found = flow_attention(
            query[:, places],
            key[:, sources],
            value[:, sources],
            cu_seqlens=offsets,
            cu_seqlens_k=key_offsets,
            backend=call.backend,
            layout="bthd",
            **call.options._asdict(),
        )
        out = out.index_copy(0, places, found[0])
    if own.number:
        # A row of padding where there is none: it takes part in the sums with nothing.
        spans = [_spans(sides, sequence) for sequence in own.shared] or [[(0, 0), (0, 0)]]
        numbers = [own.number[sequence] for sequence in own.shared] or [0]
        places, query_mask = padded([span[0] for span in spans], device)
        sources, key_mask = padded([span[1] for span in spans], device)
        found = bidirectional(
            query[0, places],
            key[0, sources],
            value[0, sources],
            options=call.options,
            query_mask=query_mask,
            key_mask=key_mask,
            sums=_shared_sums(torch.tensor(numbers, device=device), len(own.number), call.group),
        )
        out = out.index_copy(0, places[query_mask], found[query_mask])
    return out[None]


def _spans(sides: tuple[Side, Side], sequence: int) -> list[Span]:
    return [side.here(sequence) for side in sides]


def _shared_sums(numbers: Int[Tensor, " rows"], count: int, group: ProcessGroup) -> RowSums:
    """Return the sums of all shared sequences, of which this rank has the rows of some."""

    def total(x: Tensor) -> Tensor:
        every = x.new_zeros((count, *x.shape[1:])).index_add(0, numbers, x)
        return sum_ranks(every, group)[numbers]

    def largest(x: Tensor) -> Tensor:
        every = x.new_full((count, *x.shape[1:]), -torch.inf).index_copy(0, numbers, x.detach())
        return largest_of_ranks(every, group)[numbers]

    return RowSums(total, largest)


def attend_causal(
    query: Float[Tensor, "1 t h d"],
    key: Float[Tensor, "1 t h d"],
    value: Float[Tensor, "1 t h m"],
    log_decay: Float[Tensor, "1 t h"] | None,
    call: Call,
) -> tuple[Float[Tensor, "1 t h m"], FlowState]:
    """Return the output at this rank's tokens, and the states of the sequences that end here.

    The states have a row for each sequence, which is zero where the sequence ends elsewhere.
    """
    device, side = query.device, _sides(call)[0]
    own = cut(side)
    shape = (query.shape[2], query.shape[3], value.shape[3], device)
    empty = partial(empty_state, log_decay is not None)
    start = call.initial_state or empty(len(side.sequences), *shape)
    out = value.new_zeros((*query.shape[1:3], value.shape[3]))
    ended: list[tuple[list[int], FlowState]] = []
    if own.whole:
        places, offsets = tokens_of([side.here(sequence) for sequence in own.whole], device)
        found, state = flow_attention(
            query[:, places],
            key[:, places],
            value[:, places],
            causal=True,
            log_decay=None if log_decay is None else log_decay[:, places],
            cu_seqlens=offsets,
            initial_state=start.reorder(torch.tensor(own.whole, device=device)),
            return_state=True,
            backend=call.backend,
            layout="bthd",
            **call.options._asdict(),
        )
        out = out.index_copy(0, places, found[0])
        ended.append((own.whole, state))
    shared = own.shared or [0]
    places, real = padded([side.here(sequence) for sequence in own.shared] or [(0, 0)], device)
    first, last = (_marks(side, own.shared, end).to(device) for end in (0, 1))
    begin = start.reorder(torch.tensor(shared, device=device))
    begin = select_rows(first, begin, empty(len(shared), *shape))
    found, state = causal(
        query[0, places],
        key[0, places],
        value[0, places],
        options=call.options,
        mask=real,
        log_decay=None if log_decay is None else _real(log_decay[0, places], real),
        begin=begin,
        border=Border(_before(side, device), call.group, opens=~last, continues=~first),
        backend=call.backend,
        head_groups=call.head_groups,
    )
    out = out.index_copy(0, places[real], found[real].to(out.dtype))
    zeros = FlowState(*(torch.zeros_like(field) for field in state))
    ended.append((shared, select_rows(last & bool(own.shared), state, zeros)))
    if side.rank == 0:  # a sequence without tokens ends as it began
        none = [s for s, (start_, end) in enumerate(side.sequences) if start_ == end]
        ended.append((none, start.reorder(torch.tensor(none, dtype=torch.long, device=device))))
    return out[None], _by_sequence(ended, len(side.sequences))


def _real(log_decay: Float[Tensor, "b t h"], mask: Bool[Tensor, "b t"]) -> Tensor:
    return torch.where(mask[..., None], log_decay, 0)


def _marks(side: Side, shared: list[int], end: int) -> Bool[Tensor, " rows"]:
    """Return which rows have the first part (end=0), or the last (end=1), of their sequence."""
    found = [side.holders(sequence)[end] == side.rank for sequence in shared]
    return torch.tensor(found or [False])


def _before(side: Side, device: torch.device) -> Bool[Tensor, "ranks ranks"]:
    """Return, for each rank, from which earlier ranks its first token's sequence has come."""
    ranks = len(side.shards)
    opens: list[int | None] = [None] * ranks
    continues: list[int | None] = [None] * ranks
    for rank, (start, end) in enumerate(side.shards):
        if start < end:
            first, last = side.at(start), side.at(end - 1)
            continues[rank] = first if side.holders(first)[0] < rank else None
            opens[rank] = last if side.holders(last)[1] > rank else None
    rows = [
        [
            other < rank and opens[other] is not None and opens[other] == continues[rank]
            for other in range(ranks)
        ]
        for rank in range(ranks)
    ]
    return torch.tensor(rows, device=device)


def _by_sequence(parts: list[tuple[list[int], FlowState]], count: int) -> FlowState:
    """Return the states of some sequences as rows among all, zero for the others."""
    fields: list[Any] = []
    for name, *tensors in zip(FlowState._fields, *(state for _, state in parts), strict=True):
        del name
        whole = tensors[0].new_zeros((count, *tensors[0].shape[1:]))
        for (sequences, _), rows in zip(parts, tensors, strict=True):
            whole = whole.index_add(0, torch.tensor(sequences, device=rows.device).long(), rows)
        fields.append(whole)
    return FlowState(*fields)
