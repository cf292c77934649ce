"""Flow-Attention in PyTorch with memory linear in the length: any device, any dtype.

Bidirectional: products with sums over the tokens, never an [l, s] or an [l, d, m] tensor.

Causal: the sequence is cut into chunks. With A = q kᵀ inside a chunk, every prefix sum of the
equations splits into what came before the chunk and a triangle of A, e.g.

    I_t = (q_t + ε)·(Σ_{s≤t} k_s + ε) = q_t·(P + ε) + Σ_{s≤t} A_ts + ε·Σ_d(P + Σ_{s≤t} k_s + ε)

with P = Σ k before the chunk, so one small matrix product serves all four flows and the output. All
chunks of a segment are computed at once; segments follow each other and pass the state on.

With decays the triangle of A is multiplied by that of D, and P shrinks on its way through the
chunk; see decay.py.
"""

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from flowformer.ops.backends.decay import Decays, segment_decays
from flowformer.ops.backends.order import turned_in_reverse
from flowformer.ops.backends.prefix import cut, first, in_chunks, prefix_softmax
from flowformer.ops.backends.prefix import step as step  # the recurrence, for one token
from flowformer.ops.backends.reference import mobile as mobile  # linear in the length as it is
from flowformer.ops.backends.sliding import short_convolution as short_convolution
from flowformer.ops.features import compute_dtype, features, masked
from flowformer.ops.inputs import is_for_any_length
from flowformer.ops.options import FlowOptions
from flowformer.ops.state import FlowState, LinearState, has_decayed, of_heads, state_before

PACKS_SEQUENCES = False  # packed sequences come as padded batches, see packing.py
TAKES_HALF = False  # linear products get the dtype of the arithmetic
CONTAINS_NONFINITE = False  # zero times NaN, see nonfinite.py
DECAYS = ("flow", "linear")  # the attentions that take log_decay

CHUNK = 64  # tokens of which A is formed: as many as features, so that A is as large as q
SEGMENT = 2048  # tokens computed at once: bounds the memory of temporaries


def bidirectional(
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s h d"],
    value: Float[Tensor, "b s h m"],
    *,
    options: FlowOptions,
    query_mask: Bool[Tensor, "b l"] | None,
    key_mask: Bool[Tensor, "b s"] | None,
) -> Float[Tensor, "b l h m"]:
    """Flow-Attention: three dependent reductions over the tokens, then the output."""
    eps = options.eps
    q = _heads_first(features(query, query_mask, options.feature_map))
    k = _heads_first(features(key, key_mask, options.feature_map))
    v = masked(value, key_mask).to(k.dtype).transpose(1, 2)

    incoming = total_flow(q, k.sum(2), eps)
    outgoing = total_flow(k, q.sum(2), eps)
    if query_mask is not None:  # a padded token's flow, of order eps², only ever divides zero
        incoming = torch.where(query_mask[:, None], incoming, 1)
    if key_mask is not None:
        outgoing = torch.where(key_mask[:, None], outgoing, 1)

    scale = incoming.reciprocal()
    if options.allocation:
        conserved_sink = total_flow(q, _weighted_sum(k, outgoing.reciprocal()), eps)
        sinks = _count(query_mask, query)
        scale = scale * torch.sigmoid(conserved_sink * (sinks / _count(key_mask, key)))
    if options.competition is not None:
        conserved_source = total_flow(k, _weighted_sum(q, incoming.reciprocal()), eps)
        competition = _compete(conserved_source, key_mask, options)
        v = v * (competition * _count(key_mask, key))[..., None]
    out = (q @ (k.transpose(-1, -2) @ v)) * scale[..., None]
    return out.to(value.dtype).transpose(1, 2)


def _heads_first(x: Float[Tensor, "b t h d"]) -> Float[Tensor, "b h t d"]:
    """Copy once into the layout of batched products, rather than inside each of them."""
    return x.transpose(1, 2).contiguous()


def total_flow(
    x: Float[Tensor, "b h t d"], total: Float[Tensor, "b h d"], eps: float
) -> Float[Tensor, "b h t"]:
    """Return (x + ε)·(total + ε) without forming x + ε."""
    total = total + eps
    return (x @ total[..., None]).squeeze(-1) + eps * total.sum(-1, keepdim=True)


def _weighted_sum(
    x: Float[Tensor, "*b t d"], weight: Float[Tensor, "*b t"]
) -> Float[Tensor, "*b d"]:
    """Return Σ_t weight_t · x_t."""
    return (weight[..., None, :] @ x).squeeze(-2)


def _count(mask: Bool[Tensor, "b t"] | None, x: Tensor) -> Tensor | int:
    """Return the number of real tokens, at least 1: [b, 1, 1], or one number without a mask."""
    if mask is None:
        return x.shape[1]
    return mask.sum(1).clamp(min=1).to(compute_dtype(x.dtype))[:, None, None]


def _compete(
    conserved_source: Float[Tensor, "b h s"],
    mask: Bool[Tensor, "b s"] | None,
    options: FlowOptions,
) -> Float[Tensor, "b h s"]:
    """Return the softmax over real sources, or over heads, of the clamped conserved source."""
    if options.clamp is not None:
        conserved_source = conserved_source.clamp(-options.clamp, options.clamp)
    if options.competition == "heads":
        return conserved_source.softmax(1)
    if mask is not None:
        # Not -inf: a sequence of padding only would give NaN. exp(lowest - any real value) is 0.
        lowest = torch.finfo(conserved_source.dtype).min
        conserved_source = torch.where(mask[:, None], conserved_source, lowest)
    return conserved_source.softmax(-1)


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
    return_state: bool = True,
) -> tuple[Float[Tensor, "b t h m"], FlowState | None]:
    """Causal Flow-Attention, segment after segment."""
    outputs, wanted = [], return_state or query.shape[1] > SEGMENT
    # Without a past there is no key value to start from: an empty one, which no memory is set for.
    state = state_before(FlowState, state, query, value[..., :0])
    for part in _segments(query.shape[1]):
        out, state = _causal_segment(
            query[:, part],
            key[:, part],
            value[:, part],
            options=options,
            mask=None if mask is None else mask[:, part],
            log_decay=None if log_decay is None else log_decay[:, part],
            state=state,
            return_state=wanted,
        )
        outputs.append(out)
    out = torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]
    return out, state if return_state else None


def _segments(length: int) -> list[slice]:
    """Return the slices of the segments; one for all while a graph is traced.

    A loop would be unrolled there, and would fix the length of an exported program.
    """
    if torch.compiler.is_compiling() or is_for_any_length():
        return [slice(None)]
    return [slice(start, start + SEGMENT) for start in range(0, length, SEGMENT)]


def _causal_segment(
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t h d"],
    value: Float[Tensor, "b t h m"],
    *,
    options: FlowOptions,
    mask: Bool[Tensor, "b t"] | None,
    log_decay: Float[Tensor, "b t h"] | None,
    state: FlowState,
    return_state: bool,
) -> tuple[Float[Tensor, "b t h m"], FlowState]:
    """Four dependent prefixes; see the head of this file. Shapes inside: [b, h, chunk, C, …]."""
    length = query.shape[1]
    eps = options.eps
    q = _chunks(features(query, mask, options.feature_map))
    k = _chunks(features(key, mask, options.feature_map))
    v = _chunks(masked(value, mask).to(k.dtype))
    decays, logs = None, None
    if log_decay is not None:
        state = of_heads(state)
        if mask is not None:
            log_decay = torch.where(mask[..., None], log_decay, 0)
        logs = _chunks(log_decay.to(q.dtype)[..., None])[..., 0]
        decays = segment_decays(logs, state.key_sum.dtype)
    count, real = _counts(mask, state.tokens, q, decays)
    n = torch.where(count > 0, count, 1).to(q.dtype)  # before the first real token nothing is kept

    scores = q @ k.transpose(-1, -2)
    # Rows: the token t; columns: the sources s ≤ t.
    lower, upper = _triangle(scores, decays), _triangle(scores.transpose(-1, -2), decays)

    key_before, key_sum = _before(_at_end(k, None, decays), state.key_sum, decays)
    query_before, query_sum = _before(_at_end(q, None, decays), state.query_sum, decays)
    incoming = _prefix_flow(q, key_before, lower.sum(-1), k.sum(-1), eps, decays)
    outgoing = _prefix_flow(k, query_before, upper.sum(-1), q.sum(-1), eps, decays)
    if real is not None:  # a padded token's flow, of order eps², only ever divides zero
        incoming = torch.where(real, incoming, 1)
        outgoing = torch.where(real, outgoing, 1)

    key_share, query_share = n / outgoing, n / incoming
    key_before, key_flow = _before(_at_end(k, key_share, decays), state.key_flow, decays)
    query_before, query_flow = _before(_at_end(q, query_share, decays), state.query_flow, decays)

    scale = incoming.reciprocal()
    if options.allocation:
        inside = (lower @ key_share[..., None]).squeeze(-1)
        share = k.sum(-1) * key_share
        scale = scale * torch.sigmoid(_prefix_flow(q, key_before, inside, share, eps, decays) / n)
    competition = state.competition
    if options.competition is not None:
        inside = (upper @ query_share[..., None]).squeeze(-1)
        share = q.sum(-1) * query_share
        conserved_source = _prefix_flow(k, query_before, inside, share, eps, decays) / n
        share, log_sum = prefix_softmax(
            conserved_source.flatten(2).to(competition.dtype),
            None if real is None else real.flatten(2),
            competition,
            options.clamp,
            None if logs is None else logs.flatten(2).to(competition.dtype),
        )
        competition = _last(log_sum, length)
        v = v * (n * cut(share, 2, *q.shape[2:4]).to(n.dtype))[..., None]

    out, key_value = _second_half(q, k, v, lower, state.key_value, return_state, decays)
    tokens = _last(count.flatten(2), length)
    tokens = tokens if has_decayed(state) else tokens[:, 0]
    state = FlowState(tokens, key_sum, query_sum, key_flow, query_flow, competition, key_value)
    return _tokens(out * scale[..., None], length).to(value.dtype), state


def _chunks(x: Float[Tensor, "b t h d"]) -> Float[Tensor, "b h n c d"]:
    """Cut the time into chunks, the last one filled up with zeros, heads first."""
    t = x.shape[1]
    # While a graph is traced, t may be a symbol: nothing may depend on its value.
    size = CHUNK if torch.compiler.is_compiling() or is_for_any_length() else min(CHUNK, t)
    return in_chunks(x, 1, size).permute(0, 3, 1, 2, 4).contiguous()


def _tokens(x: Float[Tensor, "b h n c m"], length: int) -> Float[Tensor, "b t h m"]:
    """Undo _chunks."""
    return first(x.flatten(2, 3), length, 2).transpose(1, 2)


def _counts(
    mask: Bool[Tensor, "b t"] | None,
    before: Shaped[Tensor, "*b"],
    q: Float[Tensor, "b h n c d"],
    decays: Decays | None,
) -> tuple[Shaped[Tensor, "b g n c"], Bool[Tensor, "b 1 n c"] | None]:
    """Return n at each token, of all heads (g = 1) or of each, and which tokens are real."""
    chunks, size = q.shape[2:4]
    before = before.view(*before.shape, *[1] * (3 - before.ndim))
    real = None if mask is None else in_chunks(mask, 1, size)[:, None]
    if decays is not None:
        ones = torch.ones_like(decays.start) if real is None else real.to(q.dtype)
        ones = ones.expand_as(decays.start)
        start, _ = _before((ones * decays.end).sum(-1), before[..., 0], decays)
        inside = (decays.inside @ ones[..., None]).squeeze(-1)
        return inside.to(before.dtype) + start[..., None] * decays.start, real
    if real is None:
        count = torch.arange(1, chunks * size + 1, device=q.device) + before
    else:
        count = real.flatten(2).cumsum(2) + before
    return cut(count, 2, chunks, size), real


def _last(x: Shaped[Tensor, "*b t"], length: int) -> Shaped[Tensor, "*b"]:
    """Return x at the last token: indexed by the length itself, a compiled graph would fix it."""
    return first(x, length, -1)[..., -1]


def _triangle(
    scores: Float[Tensor, "b h n c c"], decays: Decays | None
) -> Float[Tensor, "b h n c c"]:
    """Return what each token (row) has to do with the earlier ones of its chunk."""
    return scores.tril() if decays is None else scores * decays.inside


def _at_end(
    x: Float[Tensor, "b h n c d"], weight: Float[Tensor, "b h n c"] | None, decays: Decays | None
) -> Float[Tensor, "b h n d"]:
    """Return Σ_t weight_t · x_t of each chunk, as it is at its end."""
    if decays is not None:
        weight = decays.end if weight is None else weight * decays.end
    return x.sum(-2) if weight is None else _weighted_sum(x, weight)


def _before(
    x: Float[Tensor, "b h n *rest"], start: Float[Tensor, "b h *rest"], decays: Decays | None
) -> tuple[Float[Tensor, "b h n *rest"], Float[Tensor, "b h *rest"]]:
    """Return the sum before each chunk, and after the last; summed in the dtype of the state."""
    if _is_one(x) and decays is None:
        return start[:, :, None].to(x.dtype), start + x[:, :, 0]
    sums = torch.cat([start[:, :, None], x.to(start.dtype)], 2)
    if decays is None:
        sums = sums.cumsum(2)
    else:
        sums = (decays.chunks @ sums[..., None].flatten(3)).view(sums.shape)
    return sums[:, :, :-1].to(x.dtype), sums[:, :, -1]


def _prefix_flow(
    x: Float[Tensor, "b h n c d"],
    before: Float[Tensor, "b h n d"],
    inside: Float[Tensor, "b h n c"],
    share: Float[Tensor, "b h n c"],
    eps: float,
    decays: Decays | None,
) -> Float[Tensor, "b h n c"]:
    """Return (x_t + ε)·(P + Σ_{s≤t} y_s + ε), given P, Σ_{s≤t} x_t·y_s and Σ_d y_s.

    With decays these are D_t0 P and Σ_{s≤t} D_ts y_s.
    """
    if decays is None:
        before = before + eps
        outside = (x @ before[..., None]).squeeze(-1)
        return outside + inside + eps * (before.sum(-1, keepdim=True) + share.cumsum(-1))
    outside = (x @ before[..., None]).squeeze(-1) + eps * before.sum(-1, keepdim=True)
    share = (decays.inside @ share[..., None]).squeeze(-1)
    return decays.start * outside + inside + eps * (share + x.sum(-1) + eps * x.shape[-1])


def _second_half(
    q: Float[Tensor, "b h n c d"],
    k: Float[Tensor, "b h n c d"],
    v: Float[Tensor, "b h n c m"],
    lower: Float[Tensor, "b h n c c"],
    key_value: Float[Tensor, "b h d m_before"],
    return_state: bool,
    decays: Decays | None,
) -> tuple[Float[Tensor, "b h n c m"], Float[Tensor, "b h d m_after"]]:
    """Return q_t Σ_{s≤t} k_sᵀ v_s, given the triangle of q kᵀ, and Σ kᵀ v after the last token.

    Of one chunk without a past the triangle is all, and of many short rows the sums would take
    longer: they are formed only if they are wanted.
    """
    empty = key_value.shape[-1] == 0
    if empty and _is_one(q) and not return_state:
        return lower @ v, key_value
    if decays is not None:
        q, k = q * decays.start[..., None], k * decays.end[..., None]
    added = k.transpose(-1, -2) @ v
    if empty and _is_one(q):
        return lower @ v, added[:, :, 0].to(key_value.dtype)
    if empty:
        key_value = torch.zeros_like(added[:, :, 0], dtype=key_value.dtype)
    before, after = _before(added, key_value, decays)
    return lower @ v + q @ before, after


def _is_one(x: Float[Tensor, "b h n *rest"]) -> bool:
    """Return whether there is one chunk; never while a graph is traced, which is for others too."""
    return not (torch.compiler.is_compiling() or is_for_any_length()) and x.shape[2] == 1


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
    out = (q.transpose(1, 2) @ (k.permute(0, 2, 3, 1) @ v.transpose(1, 2))).transpose(1, 2)
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
    return_state: bool = True,
) -> tuple[Float[Tensor, "b t h m"], LinearState | None]:
    """out_t = row_scale_t · q_t Σ_{s≤t} D_ts k_sᵀ v_s, in the dtype of the features."""
    outputs, wanted = [], return_state or q.shape[1] > SEGMENT
    key_value = state_before(LinearState, state, q, v[..., :0]).key_value
    for part in _segments(q.shape[1]):
        queries, keys, values = _chunks(q[:, part]), _chunks(k[:, part]), _chunks(v[:, part])
        decays = None
        if log_decay is not None:
            logs = _chunks(log_decay[:, part, :, None].to(q.dtype))[..., 0]
            decays = segment_decays(logs, key_value.dtype)
        lower = _triangle(queries @ keys.transpose(-1, -2), decays)
        out, key_value = _second_half(queries, keys, values, lower, key_value, wanted, decays)
        outputs.append(_tokens(out, q[:, part].shape[1]))
    out = torch.cat(outputs, 1) if len(outputs) > 1 else outputs[0]
    out = out if row_scale is None else out * row_scale[..., None]
    return out, LinearState(key_value) if return_state else None
