"""Flow-Attention on one sequence that is sharded over many ranks: the public function.

What a part of a sequence must know of the others is a few vectors and one small matrix a head,
whatever the length. So what ranks send does not grow with the sequence.
"""

from functools import partial
from typing import Any, Literal, Unpack, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional as F

from flowformer.ops.backends import choose_backend
from flowformer.ops.features import compute_dtype
from flowformer.ops.flow import FlowArguments
from flowformer.ops.inputs import (
    check_causal,
    check_decay,
    check_state,
    check_tensors,
    exact_arithmetic,
    refuse_growth,
    refuse_order,
)
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.options import FlowKeywords, check_causal_options, resolve_options, spells_out
from flowformer.ops.packing import resolve_batch, sequence_count
from flowformer.ops.parallel import packed
from flowformer.ops.parallel.collectives import (
    gather_ranks,
    largest_of_ranks,
    place_of_rank,
    resolve_group,
    sum_ranks,
)
from flowformer.ops.parallel.packed import Call
from flowformer.ops.parallel.rows import Border, RowSums, bidirectional, causal
from flowformer.ops.state import (
    FlowState,
    carry_dtype,
    empty_state,
    has_decayed,
    of_heads,
    select_rows,
)


class ParallelArguments(FlowArguments, total=False):
    """The keyword arguments of :func:`sequence_parallel_flow_attention`, for type checkers."""

    head_groups: int


@overload
def sequence_parallel_flow_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mesh: DeviceMesh | ProcessGroup,
    return_state: Literal[False] = False,
    **arguments: Unpack[ParallelArguments],
) -> Tensor: ...
@overload
def sequence_parallel_flow_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mesh: DeviceMesh | ProcessGroup,
    return_state: Literal[True],
    **arguments: Unpack[ParallelArguments],
) -> tuple[Tensor, FlowState]: ...
@takes_layouts("query", "key", "value", "log_decay")
@spells_out
def sequence_parallel_flow_attention(  # noqa: PLR0913 - those of flow_attention, keyword-only
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    value: Float[Tensor, "b s g m"],
    *,
    mesh: DeviceMesh | ProcessGroup,
    causal: bool = False,
    log_decay: Float[Tensor, "b l h"] | None = None,
    reverse: bool = False,
    mask: Bool[Tensor, "b l"] | None = None,
    query_mask: Bool[Tensor, "b l"] | None = None,
    key_mask: Bool[Tensor, "b s"] | None = None,
    cu_seqlens: Int[Tensor, " n"] | None = None,
    cu_seqlens_k: Int[Tensor, " k"] | None = None,
    initial_state: FlowState | None = None,
    return_state: bool = False,
    backend: str | None = None,
    head_groups: int = 1,
    layout: Layout = "bthd",  # noqa: ARG001 - of the tensors; the decorator reads it
    **options: Unpack[FlowKeywords],
) -> Float[Tensor, "b l h m"] | tuple[Float[Tensor, "b l h m"], FlowState]:
    """:func:`flow_attention` on sequences of which each rank holds a part, in the order of ranks.

    Every rank calls it with its tokens, any number of them, none included, and gets the output at
    them: what one process gets for the whole, and its gradients, where every rank takes part in the
    backward pass. What is differentiated is the sum of the losses of all ranks, as everywhere in
    torch.distributed. What ranks send does not depend on the length: for h heads of width d and m,
    a rank sends about twice h·d·m + 4·h·d numbers of float64 forward, and as many backward.

    Args:
        query: ``[b, l, h, d]``, this rank's part, and so are the next two.
        key: ``[b, s, g, d]`` where g divides h. Queries and keys may be cut at different places.
        value: ``[b, s, g, m]``.
        mesh: the ranks that share the sequences: one dimension of a mesh, or a group.
        causal: as in :func:`flow_attention`.
        log_decay: ``[b, l, h]``, of this rank's part, see :func:`flow_attention`.
        reverse: as in :func:`flow_attention`, from the last token of the last rank on; not of
            packed sequences.
        mask: ``[b, l]``, of this rank's part, and so are the next two.
        query_mask: ``[b, l]``.
        key_mask: ``[b, s]``.
        cu_seqlens: ``[n + 1]``, offsets of sequences packed into ``[1, total, h, d]``, where total
            is the number of tokens of all ranks: the same on each. Sequences may cross borders.
        cu_seqlens_k: the same for key and value where they differ.
        initial_state: the state after earlier tokens, the same on every rank, one row a sequence.
            Its gradient comes on the rank where a sequence begins: the first, in reverse the last,
            unless packed.
        return_state: whether to return the state after the last token too, on every rank.
        backend: who computes the local part of the causal form, and sequences that one rank holds
            alone. The bidirectional one is products of matrices in PyTorch.
        head_groups: in how many groups of heads the causal form is computed: while the sums of one
            are sent, the next one is computed. A group has messages of its own.
        layout: as in :func:`flow_attention`.
        options: those of :class:`~flowformer.ops.options.FlowOptions`.

    Returns:
        ``[b, l, h, m]``, and with ``return_state`` the :class:`FlowState` of whole sequences.

    Raises:
        ValueError: an argument does not fit the others. Other ranks wait for a rank that raises.
        TypeError: a mask is not boolean, offsets are no integers, mesh is neither mesh nor group.
        NotImplementedError: packed sequences that are to be read in reverse.
        RuntimeError: the backend asked for is not available; the message says why.
    """
    resolved = resolve_options(**options)
    group = resolve_group(mesh)
    given = mask, query_mask, key_mask, cu_seqlens, cu_seqlens_k
    batch = resolve_batch(query, key, *given, causal=causal)
    length, lengths = query.shape[1], None
    if cu_seqlens is not None:
        lengths = gather_ranks(torch.tensor([length, key.shape[1]], device=query.device), group)
    query_mask, query, *decay = _filled(
        batch.query_mask, query, *(() if log_decay is None else (log_decay,))
    )
    key_mask, key, value = _filled(batch.key_mask, key, value)
    batch = batch._replace(query_mask=query_mask, key_mask=key_mask)
    query, key, value = check_tensors(query, key, value)
    if decay:
        log_decay = check_decay(decay[0], query, batch.query_mask, causal=causal)
        refuse_growth(log_decay)
    # A wrong name raises for every form.
    choose_backend(backend, query, key, value, log_decay, *batch, *(initial_state or ()))
    if causal:
        check_causal(query, key, cu_seqlens_k, sums_over_sinks=True)
        check_causal_options(resolved)
    else:
        refuse_order(initial_state, return_state, reverse)
    if reverse and cu_seqlens is not None:
        raise NotImplementedError(
            "packed sequences that are sharded over ranks are not read in reverse: pad them and "
            "give a mask"
        )
    if not 1 <= head_groups <= query.shape[2]:
        raise ValueError(f"head_groups must be 1 to {query.shape[2]} (heads), got {head_groups}")
    check_state(initial_state, FlowState, query, value, sequence_count(query, batch.cu_seqlens))
    if initial_state is not None and (log_decay is not None or has_decayed(initial_state)):
        initial_state = of_heads(initial_state)
        if log_decay is None:
            log_decay = query.new_zeros(query.shape[:3], dtype=compute_dtype(query.dtype))
    call = Call(resolved, batch, lengths, group, initial_state, backend, head_groups, reverse)
    with exact_arithmetic(query):
        if not causal:
            return _bidirectional(query, key, value, call)[:, :length]
        out, state = _causal(query, key, value, log_decay, call)
        out = out[:, :length].to(value.dtype)
        return (out, _sum_states(state, group)) if return_state else out


def _filled(mask: Tensor | None, *tensors: Tensor) -> tuple[Any, ...]:
    """Return a part without tokens as one with a token of padding: it sends what others wait for.

    Padded, not made anew: its gradient graph must hold the collectives too.
    """
    if tensors[0].shape[1] > 0:
        return mask, *tensors
    mask = tensors[0].new_zeros((tensors[0].shape[0], 1), dtype=torch.bool)
    return mask, *(F.pad(x, (0, 0) * (x.ndim - 2) + (0, 1)) for x in tensors)


def _bidirectional(query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
    if call.lengths is not None:
        return packed.attend_bidirectional(query, key, value, call)
    return bidirectional(
        query,
        key,
        value,
        options=call.options,
        query_mask=call.batch.query_mask,
        key_mask=call.batch.key_mask,
        sums=RowSums(
            partial(sum_ranks, group=call.group), partial(largest_of_ranks, group=call.group)
        ),
    )


def _causal(
    query: Tensor, key: Tensor, value: Tensor, log_decay: Tensor | None, call: Call
) -> tuple[Tensor, FlowState]:
    """Return the output, and the states of the sequences that end here, zero for the others."""
    if call.lengths is not None:
        return packed.attend_causal(query, key, value, log_decay, call)
    ranks, device = call.group.size(), query.device
    place = place_of_rank(call.group, reverse=call.reverse)
    earlier = torch.ones(ranks, ranks, device=device).tril(-1).bool()
    sizes = query.shape[0], query.shape[2], query.shape[3], value.shape[3]
    every = torch.ones(sizes[0], dtype=torch.bool, device=device)
    empty = empty_state(log_decay is not None, *sizes, device)
    out, state = causal(
        query,
        key,
        value,
        options=call.options,
        mask=call.batch.key_mask,
        log_decay=log_decay,
        begin=select_rows(every & (place == 0), call.initial_state or empty, empty),
        border=Border(earlier.T if call.reverse else earlier, call.group, reverse=call.reverse),
        backend=call.backend,
        head_groups=call.head_groups,
    )
    zeros = FlowState(*(torch.zeros_like(field) for field in state))
    return out, select_rows(every & (place == ranks - 1), state, zeros)


def _sum_states(state: FlowState, group: ProcessGroup) -> FlowState:
    """Return the sum of all ranks' states, sent as one message."""
    wide = carry_dtype(state.key_sum.device)
    total = sum_ranks(torch.cat([field.flatten().to(wide) for field in state]), group)
    fields = [
        part.view(field.shape)
        for part, field in zip(total.split([field.numel() for field in state]), state, strict=True)
    ]
    tokens = fields[0] if has_decayed(state) else fields[0].round().long()
    return FlowState(tokens, *fields[1:])
