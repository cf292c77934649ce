"""One token of causal Flow-Attention: the recurrence, written out."""

import torch
from jaxtyping import Float
from torch import Tensor

from flowformer.ops.features import apply_feature_map, compute_dtype
from flowformer.ops.options import FlowOptions
from flowformer.ops.state import FlowState, flow_state


def step(
    query: Float[Tensor, "b 1 h d"],
    key: Float[Tensor, "b 1 h d"],
    value: Float[Tensor, "b 1 h m"],
    *,
    options: FlowOptions,
    state: FlowState | None,
) -> tuple[Float[Tensor, "b 1 h m"], FlowState]:
    """Return the output and the next state.

    All in the dtype of the state, since nothing here is large; the features are rounded to the
    dtype of the arithmetic first, so that a step equals the last token of a longer call.
    """
    state = flow_state(state, query, value)
    eps, wide = options.eps, state.key_sum.dtype
    narrow = compute_dtype(query.dtype)
    q = apply_feature_map(query[:, 0].to(narrow), options.feature_map).to(wide)
    k = apply_feature_map(key[:, 0].to(narrow), options.feature_map).to(wide)
    v = value[:, 0].to(wide)
    count = state.tokens + 1
    n = count.to(wide)[:, None]

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
