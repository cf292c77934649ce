"""What the causal forms share in PyTorch: the softmax over the tokens so far, the recurrence."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from flowformer.ops.backends.decay import log_decays_between
from flowformer.ops.features import apply_feature_map, compute_dtype
from flowformer.ops.inputs import is_for_any_length
from flowformer.ops.options import FlowOptions
from flowformer.ops.state import FlowState, faded, has_decayed, state_before

# exp of ± this, times any number of tokens, is within the range of float32 and of float64.
LARGEST_EXPONENT = 50.0

LOWEST = -1e30  # the logarithm of nothing; not -inf, where a gradient would be NaN
BLOCK = 16
LEVELS = 6  # of blocks of blocks in an exported program: 16^6 tokens


def prefix_softmax(
    logit: Float[Tensor, "b h t"],
    real: Bool[Tensor, "b 1 t"] | None,
    before: Float[Tensor, "b h"],
    clamp: float | None,
    log_decay: Float[Tensor, "b h t"] | None = None,
) -> tuple[Float[Tensor, "b h t"], Float[Tensor, "b h t"]]:
    """Return exp(x_t) / Σ_{s≤t} exp(x_s) and log Σ_{s≤t} exp(x_s) with x = clamp(logit).

    ``before`` is log Σ exp(x) of earlier tokens, -inf if there are none; so is the result while no
    token has been real. Padded tokens are in no sum. With decays they are those of D_ts exp(x_s).
    """
    if clamp is None or clamp > LARGEST_EXPONENT or log_decay is not None:
        return _of_any_size(logit, real, before[..., None], clamp, log_decay)
    # exp cannot overflow: the sum itself.
    weight = logit.clamp(-clamp, clamp).exp()
    if real is not None:
        weight = torch.where(real, weight, 0)
    total = before[..., None].exp() + weight.cumsum(-1)
    some = total > 0
    total = torch.where(some, total, 1)
    return weight / total, torch.where(some, total.log(), -torch.inf)


def _of_any_size(
    logit: Float[Tensor, "b h t"],
    real: Bool[Tensor, "b 1 t"] | None,
    before: Float[Tensor, "b h 1"],
    clamp: float | None,
    log_decay: Float[Tensor, "b h t"] | None,
) -> tuple[Float[Tensor, "b h t"], Float[Tensor, "b h t"]]:
    if clamp is not None:
        logit = logit.clamp(-clamp, clamp)
    if real is not None:
        logit = torch.where(real, logit, LOWEST)
    start = before
    if log_decay is not None:  # of -inf a gradient would be NaN
        log_decay = log_decay.clamp(min=LOWEST)
        start = before + log_decay.cumsum(-1)
    sums = _prefix_logsumexp(logit, log_decay)
    log_sum = _logaddexp(start, sums)
    # Not exp(x - log_sum): where one token outweighs all before it, and the share is nearly 1, its
    # gradient would be a difference of two that are nearly the same; nor is it that of sigmoid.
    past = torch.cat((before.expand_as(log_sum[..., :1]), log_sum[..., :-1]), -1)
    if log_decay is not None:
        past = past + log_decay
    share = logsigmoid(logit - past).exp()
    return share, torch.where(log_sum > LOWEST / 2, log_sum, -torch.inf)


def _prefix_logsumexp(
    x: Float[Tensor, "b h t"], log_decay: Float[Tensor, "b h t"] | None, levels: int = LEVELS
) -> Float[Tensor, "b h t"]:
    """Return log Σ_{s≤t} D_ts exp(x_s), by blocks, then over the blocks' ends; D = 1 without decay.

    The gradient of torch's logcumsumexp is wrong by rounding times the logarithm, and its second
    derivative is NaN wherever a gradient that comes in is exactly zero.
    """
    length = x.shape[-1]
    blocks = in_chunks(x, x.ndim - 1, BLOCK, fill=LOWEST)
    earlier = torch.ones(BLOCK, BLOCK, dtype=torch.bool, device=x.device).tril()
    seen, start = blocks[..., None, :], None
    if log_decay is not None:
        decays = in_chunks(log_decay, x.ndim - 1, BLOCK)
        seen = seen + log_decays_between(decays[..., None])[..., 0]
        start = decays.cumsum(-1)
    inside = torch.where(earlier, seen, LOWEST).logsumexp(-1)
    if (
        levels > 1 if is_for_any_length() else length > BLOCK
    ):  # an exported program has no one length
        of_blocks = None if start is None else start[..., -1]
        ends = _prefix_logsumexp(inside[..., -1], of_blocks, levels - 1)
        before = first(pad(ends, (1, 0), value=LOWEST), ends.shape[-1], -1)[..., None]
        inside = _logaddexp(before if start is None else before + start, inside)
    return first(inside.flatten(-2), length, -1)


def in_chunks(x: Tensor, dim: int, size: int, fill: float = 0) -> Tensor:
    """Return x with two dimensions in place of one: chunks, the last one filled up, and their size.

    In an exported program one more is empty: of a single chunk torch.export makes a constant.
    """
    length = x.shape[dim]
    missing = 2 * size if is_for_any_length() else -length % size
    x = pad(x, (0, 0) * (x.ndim - 1 - dim) + (0, missing), value=fill)
    return cut(x, dim, length // size + 2 if is_for_any_length() else x.shape[dim] // size, size)


def cut(x: Tensor, dim: int, chunks: int, size: int) -> Tensor:
    """Return x with two dimensions in place of one: so many whole chunks, and their size."""
    if not is_for_any_length():
        return x.unflatten(dim, (chunks, size))
    # A copy: of a view torch.export asks what it cannot prove, and then holds every length to the
    # answer.
    places = torch.arange(chunks, device=x.device)[:, None] * size
    places = places + torch.arange(size, device=x.device)
    return x[(slice(None),) * dim + (places,)]


def first(x: Tensor, length: int, dim: int) -> Tensor:
    """Return the first ones: what was there before chunks were filled up."""
    if is_for_any_length():  # a copy, as in `cut`
        return x.index_select(dim, torch.arange(length, device=x.device))
    return x.narrow(dim, 0, length)


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """Return log(exp(a) + exp(b)); the second derivative of torch's overflows."""
    return torch.stack(torch.broadcast_tensors(a, b), -1).logsumexp(-1)


def step(
    query: Float[Tensor, "b 1 h d"],
    key: Float[Tensor, "b 1 h d"],
    value: Float[Tensor, "b 1 h m"],
    *,
    options: FlowOptions,
    state: FlowState | None,
    log_decay: Float[Tensor, "b 1 h"] | None = None,
) -> tuple[Float[Tensor, "b 1 h m"], FlowState]:
    """Return the output and the next state after one token: the recurrence, written out.

    All in the dtype of the state, since nothing here is large; the features are rounded to the
    dtype of the arithmetic first, so that a step equals the last token of a longer call.
    """
    state = state_before(FlowState, state, query, value)
    if log_decay is not None:
        state = faded(state, log_decay[:, 0])
    eps, wide = options.eps, state.key_sum.dtype
    narrow = compute_dtype(query.dtype)
    q = apply_feature_map(query[:, 0].to(narrow), options.feature_map).to(wide)
    k = apply_feature_map(key[:, 0].to(narrow), options.feature_map).to(wide)
    v = value[:, 0].to(wide)
    count = state.tokens + 1
    n = count if has_decayed(state) else count.to(wide)[:, None]

    key_sum, query_sum = state.key_sum + k, state.query_sum + q
    incoming = ((q + eps) * (key_sum + eps)).sum(-1)
    outgoing = ((k + eps) * (query_sum + eps)).sum(-1)
    key_flow = torch.addcmul(state.key_flow, k, (n / outgoing)[..., None])
    query_flow = torch.addcmul(state.query_flow, q, (n / incoming)[..., None])

    scale = incoming.reciprocal()
    if options.allocation:
        conserved_sink = ((q + eps) * (key_flow + eps)).sum(-1) / n
        scale = scale * torch.sigmoid(conserved_sink)
    competition = state.competition
    if options.competition is not None:
        conserved_source = ((k + eps) * (query_flow + eps)).sum(-1) / n
        if options.clamp is not None:
            conserved_source = conserved_source.clamp(-options.clamp, options.clamp)
        competition = torch.logaddexp(state.competition, conserved_source)
        v = v * (n * (conserved_source - competition).exp())[..., None]
    key_value = torch.addcmul(state.key_value, k[..., None], v[..., None, :])
    out = (q[..., None, :] @ key_value).squeeze(-2) * scale[..., None]
    state = FlowState(count, key_sum, query_sum, key_flow, query_flow, competition, key_value)
    return out.to(value.dtype)[:, None], state
