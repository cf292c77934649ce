"""Flow-Attention on one rank's part of each row of a batch: what it computes, what it waits for.

Bidirectional: the three sums over the tokens are sums over the ranks too.

Causal: what earlier ranks hold reaches a rank as the state before its first token. It is known in
four steps, since each sum depends on the one before, and the local part of each is what any
backend returns as a state::

    Σk, Σq, n                       of the features alone
    Σ n·k/O, Σ n·q/I                a pass that knows the first, its values one wide
    log Σ exp Ô, and scale a/I      a pass that knows the second, its values one wide
    Σ kᵀ(c·v), and the output       the pass over the values; what the matrix of earlier ranks adds,
                                    a/I · q Σ kᵀ(c·v), is a product of its own

The third pass has 1 for the matrix and 0 for the values, so that its output is a/I · Σ_d q.
"""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from flowformer.ops.backends.chunked import total_flow
from flowformer.ops.backends.decay import log_decays_between
from flowformer.ops.backends.prefix import LARGEST_EXPONENT
from flowformer.ops.features import features, masked
from flowformer.ops.flow import flow_attention
from flowformer.ops.options import FlowOptions
from flowformer.ops.parallel.collectives import RankSums, log_sum_exp, sum_ranks
from flowformer.ops.state import FlowState, carry_dtype

BLOCK = 64  # tokens that are summed in the dtype of the arithmetic


class RowSums(NamedTuple):
    """The sums over whole sequences of sums over rows; ``[rows, …]`` in and out, float64."""

    total: Callable[[Tensor], Tensor]  # with a gradient
    largest: Callable[[Tensor], Tensor]  # without one


def bidirectional(
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s h d"],
    value: Float[Tensor, "b s h m"],
    *,
    options: FlowOptions,
    query_mask: Bool[Tensor, "b l"] | None,
    key_mask: Bool[Tensor, "b s"] | None,
    sums: RowSums,
) -> Float[Tensor, "b l h m"]:
    """Flow-Attention where each row is this rank's part of a sequence: three sums over the ranks.

    A fourth, of the maxima, where the softmax has no clamp to keep its exponents small.
    """
    eps = options.eps
    q = features(query, query_mask, options.feature_map).transpose(1, 2)
    k = features(key, key_mask, options.feature_map).transpose(1, 2)
    v = masked(value, key_mask).to(k.dtype).transpose(1, 2)

    sinks, sources = _count(query_mask, query), _count(key_mask, key)
    key_sum, query_sum, sinks, sources = _totals(sums, k.sum(2), q.sum(2), sinks, sources)
    incoming = total_flow(q, key_sum.to(q.dtype), eps)
    outgoing = total_flow(k, query_sum.to(k.dtype), eps)
    if query_mask is not None:  # a padded token's flow, of order eps², only ever divides zero
        incoming = torch.where(query_mask[:, None], incoming, 1)
    if key_mask is not None:
        outgoing = torch.where(key_mask[:, None], outgoing, 1)

    key_flow = (outgoing.reciprocal()[..., None, :] @ k).squeeze(-2)
    query_flow = (incoming.reciprocal()[..., None, :] @ q).squeeze(-2)
    key_flow, query_flow = _totals(sums, key_flow, query_flow)
    scale = incoming.reciprocal()
    if options.allocation:
        ratio = (sinks / sources.clamp(min=1)).to(q.dtype)[:, None, None]
        scale = scale * torch.sigmoid(total_flow(q, key_flow.to(q.dtype), eps) * ratio)
    weight, share = _compete(
        total_flow(k, query_flow.to(k.dtype), eps), key_mask, options, sums.largest
    )
    key_value = k.mT @ (v if weight is None else v * weight[..., None])
    if weight is None or not share:
        (key_value,) = _totals(sums, key_value)
        if weight is not None:
            key_value = key_value * sources[:, None, None, None]
    else:
        key_value, weights = _totals(sums, key_value, weight.sum(2))
        some = torch.where(weights > 0, weights, 1)  # none: a sequence of padding
        key_value = key_value * (sources[:, None] / some)[..., None, None]
    out = (q @ key_value.to(q.dtype)) * scale[..., None]
    return out.to(value.dtype).transpose(1, 2)


def _count(
    mask: Bool[Tensor, "b t"] | None,
    x: Float[Tensor, "b t h d"],
    left: Float[Tensor, "b t h"] | None = None,
) -> Tensor:
    """Return the number of real tokens of this part of each row, [b], in the carried dtype.

    With decays, what is left of them in the end, [b, h].
    """
    wide = carry_dtype(x.device)
    if left is not None:
        return (left if mask is None else torch.where(mask[..., None], left, 0)).sum(1)
    if mask is None:
        return torch.full((x.shape[0],), x.shape[1], dtype=wide, device=x.device)
    return mask.sum(1).to(wide)


def _time_sum(
    x: Float[Tensor, "b t h d"], left: Float[Tensor, "b t h"] | None = None
) -> Float[Tensor, "b h d"]:
    """Return the sum over time in the carried dtype, by blocks: a copy in it would be slow.

    With decays it is one of what is left of each token in the end.
    """
    if left is not None:
        x = x * left[..., None].to(x.dtype)
    blocks = x.shape[1] // BLOCK * BLOCK
    wide = carry_dtype(x.device)
    rest = x[:, blocks:].sum(1, dtype=wide)
    return x[:, :blocks].unflatten(1, (-1, BLOCK)).sum(2).sum(1, dtype=wide) + rest


def _totals(sums: RowSums, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the sums over the ranks, sent as one message in the dtype of carried sums."""
    wide = carry_dtype(tensors[0].device)
    total = sums.total(
        torch.cat([tensor.reshape(len(tensor), -1).to(wide) for tensor in tensors], 1)
    )
    parts = total.split([tensor[0].numel() for tensor in tensors], 1)
    return tuple(part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True))


def _compete(
    conserved_source: Float[Tensor, "b h s"],
    mask: Bool[Tensor, "b s"] | None,
    options: FlowOptions,
    largest: Callable[[Tensor], Tensor],
) -> tuple[Float[Tensor, "b h s"] | None, bool]:
    """Return each source's weight, and whether it is yet to be divided by the sum over sources."""
    if options.competition is None:
        return None, False
    if options.clamp is not None:
        conserved_source = conserved_source.clamp(-options.clamp, options.clamp)
    if options.competition == "heads":
        return conserved_source.softmax(1), False
    if mask is not None:
        conserved_source = torch.where(mask[:, None], conserved_source, -torch.inf)
    if options.clamp is None or options.clamp > LARGEST_EXPONENT:
        top = largest(conserved_source.amax(2).to(carry_dtype(conserved_source.device)))
        top = torch.where(top.isfinite(), top, 0).to(conserved_source.dtype)
        conserved_source = conserved_source - top[..., None]
    return conserved_source.exp(), True


Part = tuple[Tensor, FlowState]


class Border(NamedTuple):
    """The relation of rows to other ranks.

    Attributes:
        before: row r says from which ranks rank r's sequence has come. ``[ranks, ranks]``.
        group: the ranks.
        opens: the one row that may go on at later ranks, None where all rows do. ``[b]``.
        continues: the one row that may have come from earlier ranks. ``[b]``.
        reverse: whether sequences are read from their last token, that of the last rank.
    """

    before: Bool[Tensor, "ranks ranks"]
    group: ProcessGroup
    opens: Bool[Tensor, " b"] | None = None
    continues: Bool[Tensor, " b"] | None = None
    reverse: bool = False


class Fading(NamedTuple):
    """The decays of rows, which may go on at other ranks.

    Attributes:
        total: log of what is left after a rank's part of a row of what was before it. ``[b, h]``.
        between: log of what is left at a rank (row) of what an earlier one (column) adds, of all
            rows or of the one that is sent. ``[ranks, ranks, b, h]`` or ``[ranks, ranks, h]``.
    """

    total: Float[Tensor, "b h"]
    between: Float[Tensor, "ranks ranks *b h"]

    @classmethod
    def of(cls, log_decay: Float[Tensor, "b t h"], border: Border) -> "Fading":
        """Return the decays of all ranks: one message, of a number for each row and head."""
        total = log_decay.sum(1, dtype=carry_dtype(log_decay.device))
        sent = total
        if border.opens is not None:
            sent = torch.where(border.opens[:, None], total, 0).sum(0)
        ranks, rank = border.group.size(), border.group.rank()
        here = torch.arange(ranks, device=sent.device) == rank
        totals = sum_ranks(torch.where(_like(here, sent[None]), sent, 0), border.group)
        totals = totals.flip(0) if border.reverse else totals
        after = log_decays_between(totals.flatten(1))  # row: up to and with that rank
        between = F.pad(after[:-1], (0, 0, 0, 0, 1, 0)).view(ranks, *totals.shape)
        return cls(total, between.flip(0, 1) if border.reverse else between)


class _Prefixes:
    """The sums before each row, on their way: what the row begins with, and what earlier ranks add.

    Where only one row has to do with other ranks, only its numbers are sent. All is selected, and
    nothing left out, so that the graph of gradients is the same on every rank.
    """

    def __init__(
        self,
        border: Border,
        begin: tuple[Tensor, ...],
        local: tuple[Tensor, ...],
        fading: Fading | None,
        *,
        logs: bool = False,
    ) -> None:
        self._continues, self._begin, self._logs = border.continues, begin, logs
        left = begin if fading is None else tuple(self._faded(x, fading.total) for x in begin)
        sent = [self._add(first, second) for first, second in zip(left, local, strict=True)]
        if border.opens is not None:
            sent = [torch.where(_like(border.opens, x), x, 0).sum(0) for x in sent]
        between = None if fading is None else fading.between
        self._sums = RankSums(tuple(sent), border.before, border.group, left=between, logs=logs)
        self.turn = self._sums.turn

    def rows(self) -> list[Tensor]:
        """Wait, and return the sums before each row."""
        found = self._sums.result()
        if self._continues is not None:
            nothing = -torch.inf if self._logs else 0
            found = [torch.where(_like(self._continues, x[None]), x, nothing) for x in found]
        return [self._add(begin, x) for begin, x in zip(self._begin, found, strict=True)]

    def _faded(self, x: Tensor, log_decay: Float[Tensor, "b h"]) -> Tensor:
        return x + log_decay if self._logs else x * _like(log_decay.exp(), x)

    def _add(self, first: Tensor, second: Tensor) -> Tensor:
        return log_sum_exp(torch.stack((first, second)), 0) if self._logs else first + second


def _like(rows: Shaped[Tensor, "*b"], x: Tensor) -> Tensor:
    return rows.view(*rows.shape, *[1] * (x.ndim - rows.ndim))


def causal(
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t h d"],
    value: Float[Tensor, "b t h m"],
    *,
    head_groups: int,
    begin: FlowState,
    log_decay: Float[Tensor, "b t h"] | None = None,
    **rest: Any,
) -> tuple[Float[Tensor, "b t h m"], FlowState]:
    """Causal Flow-Attention by groups of heads: one is computed while others' sums are sent.

    The keywords are those of ``_causal``, which says what it returns.
    """
    parts = []
    for heads in torch.arange(query.shape[2]).tensor_split(head_groups):
        part = slice(int(heads[0]), int(heads[-1]) + 1)
        tensors = tuple(tensor[:, :, part] for tensor in (query, key, value))
        state = FlowState(*(x if x.ndim == 1 else x[:, part] for x in begin))
        decay = None if log_decay is None else log_decay[:, :, part]
        parts.append(_causal(tensors, begin=state, log_decay=decay, **rest))
    outputs, states = zip(*_in_turns(parts), strict=True)
    fields = (x[0] if x[0].ndim == 1 else torch.cat(x, 1) for x in zip(*states, strict=True))
    return torch.cat(outputs, 2), FlowState(*fields)


def _in_turns(parts: list[Generator[None, None, Part]]) -> list[Part]:
    """Advance every part in turn, and return what they return."""
    results: dict[int, Part] = {}
    while len(results) < len(parts):
        for place, part in enumerate(parts):
            try:
                next(part)
            except StopIteration as end:
                results.setdefault(place, end.value)
    return [results[place] for place in range(len(parts))]


def _causal(
    tensors: tuple[Tensor, ...],
    *,
    options: FlowOptions,
    mask: Bool[Tensor, "b t"] | None,
    begin: FlowState,
    log_decay: Float[Tensor, "b t h"] | None,
    border: Border,
    backend: str | None,
) -> Generator[None, None, tuple[Float[Tensor, "b t h m"], FlowState]]:
    """Causal Flow-Attention where each row is this rank's part of a sequence.

    ``tensors`` are query, key and value, ``begin`` is the state of rows that begin here, and the
    empty one for others. Yields when it has sent something, so that another part can be computed
    until that has come. Returns the output in the dtype of the arithmetic, and the state after the
    last token of each row.
    """

    def attend(value: Tensor, known: FlowState) -> tuple[Tensor, FlowState]:
        return flow_attention(
            query,
            key,
            value,
            causal=True,
            log_decay=log_decay,
            reverse=border.reverse,
            mask=mask,
            initial_state=known,
            return_state=True,
            backend=backend,
            layout="bthd",
            **options._asdict(),
        )

    query, key, value = tensors
    wide = carry_dtype(query.device)
    q = features(query, mask, options.feature_map)
    k = features(key, mask, options.feature_map)
    # As wide as the arithmetic: what earlier ranks add must not be added to a rounded output.
    query, key, value = query.to(q.dtype), key.to(q.dtype), value.to(q.dtype)
    narrow = value.new_zeros((*value.shape[:3], 1))
    fading, left = None, None
    if log_decay is not None:
        fading = Fading.of(log_decay, border)
        left = _left_in_the_end(log_decay.to(wide), reverse=border.reverse)

    prefixes = _Prefixes(
        border,
        (begin.tokens.to(wide), begin.key_sum, begin.query_sum),
        (_count(mask, k, left), _time_sum(k, left), _time_sum(q, left)),
        fading,
    )
    row_sum = q.sum(-1)
    yield
    prefixes.turn()
    yield
    count, key_sum, query_sum = prefixes.rows()
    known = FlowState.initial(q.shape[0], q.shape[2], q.shape[3], 1, q.device)
    tokens = count if log_decay is not None else count.round().long()
    known = known._replace(tokens=tokens, key_sum=key_sum, query_sum=query_sum)

    _, after = attend(narrow, known)
    prefixes = _Prefixes(
        border, (begin.key_flow, begin.query_flow), (after.key_flow, after.query_flow), fading
    )
    yield
    prefixes.turn()
    yield
    key_flow, query_flow = prefixes.rows()
    known = known._replace(
        key_flow=key_flow, query_flow=query_flow, key_value=torch.ones_like(known.key_value)
    )

    scaled, after = attend(narrow, known)
    prefixes = _Prefixes(border, (begin.competition,), (after.competition,), fading, logs=True)
    some = row_sum > 0  # else the product with q is 0, whatever the scale
    scale = torch.where(some, scaled.squeeze(-1) / torch.where(some, row_sum, 1), 0)
    yield
    prefixes.turn()
    yield
    (competition,) = prefixes.rows()
    known = known._replace(competition=competition, key_value=torch.zeros_like(begin.key_value))

    out, after = attend(value, known)
    prefixes = _Prefixes(border, (begin.key_value,), (after.key_value,), fading)
    yield
    prefixes.turn()
    yield
    (key_value,) = prefixes.rows()
    earlier = (q.transpose(1, 2) @ key_value.to(q.dtype)).transpose(1, 2)
    if fading is not None:  # the scale holds what is left of the matrix already
        key_value = key_value * fading.total.exp()[..., None, None]
    return torch.addcmul(out, earlier, scale[..., None]), after._replace(
        key_value=after.key_value + key_value
    )


def _left_in_the_end(log_decay: Float[Tensor, "b t h"], *, reverse: bool) -> Float[Tensor, "b t h"]:
    """Return what is left of each token after the last that is read."""
    if reverse:
        return F.pad(log_decay.cumsum(1)[:, :-1], (0, 0, 1, 0)).exp()
    later = log_decay.flip(1).cumsum(1).flip(1)
    return F.pad(later[:, 1:], (0, 0, 0, 1)).exp()
