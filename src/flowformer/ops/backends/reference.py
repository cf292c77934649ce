"""The equations of docs/attention/math.md, word for word: the oracle of every other backend.

Written to be read beside the paper; nothing here is fast, and the causal form is quadratic. Sums
run in the dtype of the arithmetic (float64 inputs give an exact answer); only the state is wider.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.ops.backends.decay import decays_between
from flowformer.ops.backends.order import turned_in_reverse
from flowformer.ops.backends.prefix import prefix_softmax
from flowformer.ops.backends.prefix import step as step  # the recurrence, for one token
from flowformer.ops.backends.sliding import contained
from flowformer.ops.features import compute_dtype, features, masked
from flowformer.ops.options import FlowOptions
from flowformer.ops.state import FlowState, LinearState, carry_dtype, faded, of_heads, state_before

PACKS_SEQUENCES = False  # packed sequences come as padded batches, see packing.py
TAKES_HALF = False  # linear products get the dtype of the arithmetic
CONTAINS_NONFINITE = False  # zero times NaN, see nonfinite.py
DECAYS = ("flow", "linear")  # the attentions that take log_decay


def flows(
    q: Float[Tensor, "b l h d"],
    k: Float[Tensor, "b s h d"],
    *,
    eps: float,
    query_mask: Bool[Tensor, "b l"],
    key_mask: Bool[Tensor, "b s"],
    over: Literal["tokens", "heads"],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sink_incoming [b, l, h], conserved_sink [b, l, h] and conserved_source [b, s, h].

    q and k are features, zero at padded tokens. The sums run over tokens, or over the heads of each
    token (Mobile-Attention).
    """
    dim = {"tokens": 1, "heads": 2}[over]
    sink_incoming = ((q + eps) * (k.sum(dim, keepdim=True) + eps)).sum(-1)
    source_outgoing = ((k + eps) * (q.sum(dim, keepdim=True) + eps)).sum(-1)
    # A padded token's flow is of order eps² and only ever divides zero: set to 1.
    sink_incoming = torch.where(query_mask[..., None], sink_incoming, 1)
    source_outgoing = torch.where(key_mask[..., None], source_outgoing, 1)

    key_flow = (k / source_outgoing[..., None]).sum(dim, keepdim=True)
    query_flow = (q / sink_incoming[..., None]).sum(dim, keepdim=True)
    conserved_sink = ((q + eps) * (key_flow + eps)).sum(-1)
    conserved_source = ((k + eps) * (query_flow + eps)).sum(-1)
    return sink_incoming, conserved_sink, conserved_source


def conserve(
    q: Float[Tensor, "b l h d"],
    k: Float[Tensor, "b s h d"],
    *,
    options: FlowOptions,
    query_mask: Bool[Tensor, "b l"] | None,
    key_mask: Bool[Tensor, "b s"] | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sink_incoming [b, l, h], source_competition [b, s, h] and sink_allocation [b, l, h].

    q and k are features, zero at padded tokens.
    """
    query_mask = q.new_ones(q.shape[:2], dtype=torch.bool) if query_mask is None else query_mask
    key_mask = k.new_ones(k.shape[:2], dtype=torch.bool) if key_mask is None else key_mask
    L = query_mask.sum(1).to(q.dtype)[:, None, None]
    S = key_mask.sum(1).to(q.dtype)[:, None, None]
    sink_incoming, conserved_sink, conserved_source = flows(
        q, k, eps=options.eps, query_mask=query_mask, key_mask=key_mask, over="tokens"
    )

    sink_allocation = torch.ones_like(conserved_sink)
    if options.allocation:
        sink_allocation = torch.sigmoid(conserved_sink * (L / S.clamp(min=1)))
    source_competition = torch.ones_like(conserved_source)
    if options.competition is not None:
        source_competition = S * compete(conserved_source, key_mask, options)
    return sink_incoming, source_competition, sink_allocation


def compete(
    conserved_source: Float[Tensor, "b s h"], mask: Bool[Tensor, "b s"], options: FlowOptions
) -> Float[Tensor, "b s h"]:
    """Return the softmax of the clamped conserved source over real sources, or over heads."""
    if options.clamp is not None:
        conserved_source = conserved_source.clamp(-options.clamp, options.clamp)
    if options.competition == "heads":
        return conserved_source.softmax(-1)
    # Not -inf: a sequence of padding only would give NaN. exp(lowest - any real value) is 0.
    lowest = torch.finfo(conserved_source.dtype).min
    return torch.where(mask[..., None], conserved_source, lowest).softmax(1)


def bidirectional(
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s h d"],
    value: Float[Tensor, "b s h m"],
    *,
    options: FlowOptions,
    query_mask: Bool[Tensor, "b l"] | None,
    key_mask: Bool[Tensor, "b s"] | None,
) -> Float[Tensor, "b l h m"]:
    """Flow-Attention (paper, section 3)."""
    q = features(query, query_mask, options.feature_map)
    k = features(key, key_mask, options.feature_map)
    v = masked(value, key_mask).to(k.dtype)
    incoming, competition, allocation = conserve(
        q, k, options=options, query_mask=query_mask, key_mask=key_mask
    )
    key_value = torch.einsum("bshd,bshm->bhdm", k, v * competition[..., None])
    out = torch.einsum("blhd,bhdm->blhm", q, key_value)
    return (out * (allocation / incoming)[..., None]).to(value.dtype)


class Memory(NamedTuple):
    """What is left of earlier tokens: all of them where both are None."""

    between: Float[Tensor, "b h t t"] | None = None  # D_ts for row t and column s, zero for s > t
    since: Float[Tensor, "b t h 1"] | None = None  # of what there was before the first token


def _memory(log_decay: Float[Tensor, "b t h"] | None) -> Memory:
    if log_decay is None:
        return Memory()
    between = decays_between(log_decay.transpose(1, 2)[..., None])[..., 0]
    return Memory(between, log_decay.cumsum(1).exp()[..., None])


def _triangle(scores: Float[Tensor, "b h t t"], memory: Memory) -> Float[Tensor, "b h t t"]:
    """Return D_ts · scores_ts, zero for s > t."""
    return scores.tril() if memory.between is None else scores * memory.between


def _prefix(
    x: Float[Tensor, "b t h d"], before: Float[Tensor, "b h d"], memory: Memory
) -> Float[Tensor, "b t h d"]:
    """Return Σ_{s≤t} D_ts x_s, and what is left of the sum before the first token."""
    if memory.between is None or memory.since is None:
        return x.cumsum(1) + before[:, None].to(x.dtype)
    inside = torch.einsum("bhts,bshd->bthd", memory.between, x)
    return inside + before[:, None].to(x.dtype) * memory.since


def _at_end(x: Float[Tensor, "b t h d"], memory: Memory) -> Float[Tensor, "b t h d"]:
    """Return what is left of each token after the last, in the dtype of carried sums."""
    x = x.to(carry_dtype(x.device))
    if memory.between is None:
        return x
    return x * memory.between[:, :, -1].transpose(1, 2)[..., None]


def mobile(
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t h d"],
    value: Float[Tensor, "b t h m"],
    *,
    options: FlowOptions,
    normalize: bool,
    mask: Bool[Tensor, "b t"] | None,
) -> Float[Tensor, "b t h m"]:
    """Mobile-Attention (Yao et al. 2024); ``normalize``, which is ours, divides by S."""
    q = features(query, mask, options.feature_map)
    k = features(key, mask, options.feature_map)
    v = masked(value, mask).to(k.dtype)
    real = q.new_ones(q.shape[:2], dtype=torch.bool) if mask is None else mask
    S = real.sum(1).clamp(min=1).to(q.dtype)[:, None, None]
    incoming, conserved_sink, conserved_source = flows(
        q, k, eps=options.eps, query_mask=real, key_mask=real, over="heads"
    )

    scale = incoming.reciprocal()
    if options.allocation:
        scale = scale * torch.sigmoid(conserved_sink)
    competition = torch.ones_like(conserved_source)
    if options.competition is not None:
        competition = S * compete(conserved_source, real, options)
    if normalize:
        competition = competition / S
    out = linear_bidirectional(q, k, v * competition[..., None], row_scale=scale)
    return out.to(value.dtype)


def conserve_causal(
    q: Float[Tensor, "b t h d"],
    k: Float[Tensor, "b t h d"],
    *,
    options: FlowOptions,
    mask: Bool[Tensor, "b t"] | None,
    state: FlowState,
    log_decay: Float[Tensor, "b t h"] | None = None,
) -> tuple[Tensor, Tensor, Tensor, FlowState]:
    """Return sink_incoming, source_competition, sink_allocation, each [b, t, h], and the new state.

    The state's ``key_value`` is passed through: it belongs to the second half.
    """
    eps = options.eps
    real = q.new_ones(q.shape[:2], dtype=torch.bool) if mask is None else mask
    if log_decay is not None:
        log_decay = torch.where(real[..., None], log_decay.to(q.dtype), 0)
        state = of_heads(state)
    memory = _memory(log_decay)
    if log_decay is None:
        past = state
        count = state.tokens.view(real.shape[0], 1, -1) + real.cumsum(1)[..., None]
        tokens = count[:, -1].view(state.tokens.shape)
    else:
        past = faded(state, log_decay.sum(1))
        ones = real[..., None, None].to(q.dtype).expand(*q.shape[:3], 1)
        count = _prefix(ones, state.tokens[..., None], memory)[..., 0]
        tokens = past.tokens + _at_end(ones, memory)[..., 0].sum(1)
    n = torch.where(count > 0, count, 1).to(q.dtype)  # before the first token nothing is kept

    sink_incoming = ((q + eps) * (_prefix(k, state.key_sum, memory) + eps)).sum(-1)
    source_outgoing = ((k + eps) * (_prefix(q, state.query_sum, memory) + eps)).sum(-1)
    sink_incoming = torch.where(real[..., None], sink_incoming, 1)
    source_outgoing = torch.where(real[..., None], source_outgoing, 1)

    key_share = k * (n / source_outgoing)[..., None]
    query_share = q * (n / sink_incoming)[..., None]
    key_flow = _prefix(key_share, state.key_flow, memory)
    query_flow = _prefix(query_share, state.query_flow, memory)
    conserved_sink = ((q + eps) * (key_flow + eps)).sum(-1) / n
    conserved_source = ((k + eps) * (query_flow + eps)).sum(-1) / n

    sink_allocation = torch.ones_like(conserved_sink)
    if options.allocation:
        sink_allocation = torch.sigmoid(conserved_sink)
    source_competition = torch.ones_like(conserved_source)
    log_sum = state.competition
    if options.competition is not None:
        share, log_sums = prefix_softmax(
            conserved_source.transpose(-1, -2).to(log_sum.dtype),
            real[:, None],
            log_sum,
            options.clamp,
            None if log_decay is None else log_decay.transpose(-1, -2).to(log_sum.dtype),
        )
        source_competition = n * share.transpose(-1, -2).to(n.dtype)
        log_sum = log_sums[..., -1]

    state = FlowState(
        tokens=tokens,
        key_sum=past.key_sum + _at_end(k, memory).sum(1),
        query_sum=past.query_sum + _at_end(q, memory).sum(1),
        key_flow=past.key_flow + _at_end(key_share, memory).sum(1),
        query_flow=past.query_flow + _at_end(query_share, memory).sum(1),
        competition=log_sum,
        key_value=state.key_value,
    )
    return sink_incoming, source_competition, sink_allocation, state


@turned_in_reverse
def causal(
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t h d"],
    value: Float[Tensor, "b t h m"],
    *,
    options: FlowOptions,
    mask: Bool[Tensor, "b t"] | None,
    state: FlowState | None,
    log_decay: Float[Tensor, "b t h"] | None = None,
    return_state: bool = True,  # noqa: ARG001 - it is there anyway
) -> tuple[Float[Tensor, "b t h m"], FlowState]:
    """Causal Flow-Attention (paper, section 3; published as ``Flow_Attention_Causal``)."""
    q = features(query, mask, options.feature_map)
    k = features(key, mask, options.feature_map)
    v = masked(value, mask).to(k.dtype)
    if log_decay is not None:
        log_decay = masked(log_decay[..., None], mask)[..., 0]
    state = state_before(FlowState, state, query, value)
    incoming, competition, allocation, state = conserve_causal(
        q, k, options=options, mask=mask, state=state, log_decay=log_decay
    )
    out, second = linear_causal(
        q,
        k,
        v * competition[..., None],
        row_scale=allocation / incoming,
        state=LinearState(state.key_value),
        log_decay=log_decay,
    )
    return out.to(value.dtype), state._replace(key_value=second.key_value)


@contained
def short_convolution(
    x: Float[Tensor, "b t h d"],
    weight: Float[Tensor, "h d w"],
    *,
    bias: Float[Tensor, "h d"] | None,
    activates: bool,
    ahead: int,
    mask: Bool[Tensor, "b t"] | None,
    recent: Float[Tensor, "b w_minus_1 h d"] | None,
) -> Float[Tensor, "b t h d"]:
    """y_t = Σ_i weight_i x_{t - w + 1 + i + ahead} + bias, or silu of it, over real tokens."""
    width, dtype = weight.shape[-1], compute_dtype(x.dtype)
    real = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    number = real.cumsum(1) - 1  # of each real token
    tokens, numbers, there = masked(x, mask).to(dtype), number, real
    if recent is not None:
        earlier = torch.arange(1 - width, 0, device=x.device).expand(len(x), -1)
        tokens = torch.cat((recent.to(dtype), tokens), 1)
        numbers = torch.cat((earlier, number), 1)
        there = torch.cat((torch.ones_like(earlier, dtype=torch.bool), real), 1)
    y = torch.zeros_like(x, dtype=dtype) if bias is None else bias.to(dtype)
    for i in range(width):
        sees = numbers[:, None] == number[..., None] - width + 1 + i + ahead
        seen = torch.einsum("bts,bshd->bthd", (sees & there[:, None]).to(dtype), tokens)
        y = y + weight[..., i].to(dtype) * seen
    y = y * torch.sigmoid(y) if activates else y
    return masked(y.to(x.dtype), mask)


def linear_bidirectional(
    q: Float[Tensor, "b l h d"],
    k: Float[Tensor, "b s h d"],
    v: Float[Tensor, "b s h m"],
    *,
    row_scale: Float[Tensor, "b l h"] | None,
    query_mask: Bool[Tensor, "b l"] | None = None,
    key_mask: Bool[Tensor, "b s"] | None = None,
) -> Float[Tensor, "b l h m"]:
    """out_i = row_scale_i · q_i Σ_j k_jᵀ v_j, in the dtype of the features."""
    q, k, v = masked(q, query_mask), masked(k, key_mask), masked(v, key_mask)
    out = torch.einsum("blhd,bhdm->blhm", q, torch.einsum("bshd,bshm->bhdm", k, v))
    return out if row_scale is None else out * masked(row_scale[..., None], query_mask)


@turned_in_reverse
def linear_causal(
    q: Float[Tensor, "b t h d"],
    k: Float[Tensor, "b t h d"],
    v: Float[Tensor, "b t h m"],
    *,
    row_scale: Float[Tensor, "b t h"] | None,
    state: LinearState | None,
    log_decay: Float[Tensor, "b t h"] | None = None,
    return_state: bool = True,  # noqa: ARG001 - it is there anyway
) -> tuple[Float[Tensor, "b t h m"], LinearState]:
    """out_t = row_scale_t · q_t Σ_{s≤t} D_ts k_sᵀ v_s, in the dtype of the features."""
    key_value = state_before(LinearState, state, q, v).key_value
    memory = _memory(None if log_decay is None else log_decay.to(q.dtype))
    scores = torch.einsum("bthd,bshd->bhts", q, k)
    out = torch.einsum("bhts,bshm->bthm", _triangle(scores, memory), v)
    since = q if memory.since is None else q * memory.since
    out = out + torch.einsum("bthd,bhdm->bthm", since, key_value.to(q.dtype))
    added = torch.einsum("bshd,bshm->bhdm", _at_end(k, memory), v.to(key_value.dtype))
    if log_decay is not None:
        key_value = key_value * log_decay.sum(1).to(key_value.dtype).exp()[..., None, None]
    out = out if row_scale is None else out * row_scale[..., None]
    return out, LinearState(key_value + added)
