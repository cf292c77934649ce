"""Mobile-Attention: flows conserved over the heads of one token instead of over tokens."""

from functools import partial
from types import ModuleType

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowformer.ops.backends import choose_backend
from flowformer.ops.backends.reference import compete
from flowformer.ops.features import FeatureMap, features, masked
from flowformer.ops.inputs import check_tensors, exact_arithmetic
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.options import FlowOptions, resolve_options
from flowformer.ops.packing import Batch, attend_batch, resolve_batch
from flowformer.ops.state import LinearState


@takes_layouts("query", "key", "value", warns=True)
def mobile_attention(  # noqa: PLR0913 - the options of flow_attention, keyword-only
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t g d"],
    value: Float[Tensor, "b t g m"],
    *,
    feature_map: FeatureMap = "sigmoid",
    clamp: float | None = 1.0,
    eps: float = 1e-6,
    competition: bool = True,
    allocation: bool = True,
    normalize: bool = False,
    mask: Bool[Tensor, "b t"] | None = None,
    cu_seqlens: Int[Tensor, " n"] | None = None,
    backend: str | None = None,
    layout: Layout = "bthd",  # noqa: ARG001 - of the tensors; the decorator reads it
) -> Float[Tensor, "b t h m"]:
    """Attend with flows that the heads of a token exchange (Mobile-Attention, ICML 2024).

    Tensors are ``[batch, time, head, feature]``; with ``layout="bhtd"``,
    ``[batch, head, time, feature]``.

    With q = φ(query), k = φ(key), S tokens and sums over the heads g of the same token::

        I_h = (q_h + ε)·(Σ_g k_g + ε)            O_h = (k_h + ε)·(Σ_g q_g + ε)
        Î_h = (q_h + ε)·(Σ_g k_g/O_g + ε)        Ô_h = (k_h + ε)·(Σ_g q_g/I_g + ε)
        out_i = sigmoid(Î_i) / I_i · q_i Σ_j k_jᵀ (S · softmax_j(clamp(Ô_j)) · v_j)

    As published, no sum over tokens normalises the output: it grows in proportion to S.

    Args:
        query: ``[b, t, h, d]``, float16, bfloat16, float32 or float64.
        key: ``[b, t, g, d]`` where g divides h. As many tokens as the query: there is no
            cross-attention, and no causal form.
        value: ``[b, t, g, m]``.
        feature_map: φ: ``"sigmoid"``, or ``"relu"`` for relu(x) + 1e-6.
        clamp: bound of ±Ô before the softmax, or None.
        eps: ε > 0.
        competition: false leaves the softmax out.
        allocation: false leaves the sigmoid out.
        normalize: divide by S, so that the output does not grow (ours, not published).
        mask: ``[b, t]``, True = a real token.
        cu_seqlens: ``[n + 1]``, offsets of n sequences packed into ``[1, total, h, d]``.
        backend: which backend computes q Σ kᵀ v, as in :func:`flow_attention`.
        layout: as in :func:`flow_attention`.

    Returns:
        ``[b, t, h, m]`` in the value's dtype, zero at padded tokens.

    Raises:
        ValueError: an argument does not fit the others; the message says what was expected.
        TypeError: the mask is not boolean, or offsets are no integers.
        RuntimeError: the backend asked for is not available; the message says why.

    Examples:
        >>> import torch
        >>> from flowformer import mobile_attention
        >>> query, key, value = (torch.randn(2, 100, 4, 16) for _ in range(3))
        >>> mobile_attention(query, key, value, normalize=True).shape
        torch.Size([2, 100, 4, 16])
    """
    options = resolve_options(
        feature_map=feature_map,
        clamp=clamp,
        eps=eps,
        competition="sources" if competition else None,
        allocation=allocation,
    )
    query, key, value = check_tensors(query, key, value)
    if query.shape[1] != key.shape[1]:
        raise ValueError(
            "Mobile-Attention exchanges flows between the heads of one token: it needs as many "
            f"queries as keys, got L={query.shape[1]} and S={key.shape[1]}"
        )
    batch = resolve_batch(query, key, mask, None, None, cu_seqlens, None, causal=False)
    module = choose_backend(backend, query, key, value, *batch)
    with exact_arithmetic(query):
        attend = partial(_attend, module, options, normalize)
        out, _ = attend_batch(attend, (query,), (key, value), batch, None)
    return out.to(value.dtype)


def _attend(
    module: ModuleType,
    options: FlowOptions,
    normalize: bool,
    queries: tuple[Tensor, ...],
    keys: tuple[Tensor, ...],
    batch: Batch,
    state: LinearState | None,
) -> tuple[Tensor, LinearState | None]:
    key_mask = batch.key_mask
    q = features(queries[0], key_mask, options.feature_map)
    k = features(keys[0], key_mask, options.feature_map)
    v = masked(keys[1], key_mask).to(k.dtype)
    real = k.new_ones(k.shape[:2], dtype=torch.bool) if key_mask is None else key_mask
    scale, weight = _conserve_over_heads(q, k, real, options)
    sources = real.sum(1).clamp(min=1)[:, None, None]
    if options.competition is not None:
        weight = weight * sources
    if normalize:
        weight = weight / sources
    return module.linear_bidirectional(q, k, v * weight[..., None], row_scale=scale), state


def _conserve_over_heads(
    q: Float[Tensor, "b t h d"],
    k: Float[Tensor, "b t h d"],
    real: Bool[Tensor, "b t"],
    options: FlowOptions,
) -> tuple[Float[Tensor, "b t h"], Float[Tensor, "b t h"]]:
    """Return sink_allocation / sink_incoming, and source_competition / S (1 without it)."""
    eps = options.eps
    incoming = ((q + eps) * (k.sum(2, keepdim=True) + eps)).sum(-1)
    outgoing = ((k + eps) * (q.sum(2, keepdim=True) + eps)).sum(-1)
    # A padded token's flow is of order eps² and only ever divides zero: set to 1.
    incoming = torch.where(real[..., None], incoming, 1)
    outgoing = torch.where(real[..., None], outgoing, 1)
    key_flow = (k / outgoing[..., None]).sum(2, keepdim=True)
    query_flow = (q / incoming[..., None]).sum(2, keepdim=True)
    conserved_sink = ((q + eps) * (key_flow + eps)).sum(-1)
    conserved_source = ((k + eps) * (query_flow + eps)).sum(-1)
    scale = incoming.reciprocal()
    if options.allocation:
        scale = scale * torch.sigmoid(conserved_sink)
    if options.competition is None:
        return scale, torch.ones_like(conserved_source)
    return scale, compete(conserved_source, real, options)
