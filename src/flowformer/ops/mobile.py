"""Mobile-Attention: flows conserved over the heads of one token instead of over tokens."""

from functools import partial
from types import ModuleType

from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowformer.ops.backends import choose_backend
from flowformer.ops.features import FeatureMap
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
        backend: as in :func:`flow_attention`; ``"triton"`` has no kernel of its own for it.
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
        packs = module.PACKS_SEQUENCES
        return attend_batch(attend, (query,), (key, value), batch, None, packs=packs)[0]


def _attend(
    module: ModuleType,
    options: FlowOptions,
    normalize: bool,
    queries: tuple[Tensor, ...],
    keys: tuple[Tensor, ...],
    batch: Batch,
    state: LinearState | None,
) -> tuple[Tensor, LinearState | None]:
    offsets = {} if batch.cu_seqlens is None else {"cu_seqlens": batch.cu_seqlens}
    rest = {"normalize": normalize, "mask": batch.key_mask, **offsets}
    return module.mobile(*queries, *keys, options=options, **rest), state
