"""Linear attention with elu + 1 features (Katharopoulos et al. 2020, "Transformers are RNNs")."""

from typing import Any, Unpack

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from flowformer.nn.mixers.head_attention import Capabilities, CausalCall, HeadAttention, call_masks
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.ops import LinearState, linear_attention
from flowformer.ops.features import check_eps, compute_dtype, masked
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.linear import divided, with_ones
from flowformer.ops.nonfinite import contained


@takes_layouts("query", "key", "value")
@contained("query", "key", "value")
def elu_attention(
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    value: Float[Tensor, "b s g m"],
    *,
    eps: float = 1e-6,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
    **call: Unpack[CausalCall],
) -> Float[Tensor, "b l h m"] | tuple[Float[Tensor, "b l h m"], LinearState]:
    """out_i = q_i Σ_j k_jᵀ v_j / (q_i · Σ_j k_j + ε), q = elu(Q) + 1, k = elu(K) + 1 (equation 5).

    Args:
        query: the queries, before the feature map.
        key: the keys; g divides h, and each key head serves h / g query heads.
        value: the values, with as many heads as the keys.
        eps: added to the denominator, as in the published code.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.
        call: see `CausalCall`.
    """
    check_eps(eps, zero=True)
    q, k, _, _ = real_tokens(query, key, **call)
    return weighted_mean(F.elu(q) + 1, F.elu(k) + 1, value, added=eps, **call)


def real_tokens(
    query: Float[Tensor, "b l h d"], key: Float[Tensor, "b s g d"], **call: Any
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return query and key in the dtype of the arithmetic, zero at padded places, and their masks.

    Before a feature map, for its derivative at padding that holds NaN would be NaN.

    Args:
        query: the queries.
        key: the keys.
        call: see `CausalCall`.
    """
    query_mask, key_mask = call_masks(query, key, **call)
    dtype = compute_dtype(query.dtype)
    q, k = masked(query, query_mask).to(dtype), masked(key, key_mask).to(dtype)
    return q, k, query_mask, key_mask


def weighted_mean(
    query: Float[Tensor, "b l h f"],
    key: Float[Tensor, "b s g f"],
    value: Float[Tensor, "b s g m"],
    *,
    added: float = 0.0,
    least: float = 0.0,
    **call: Any,
) -> Any:
    """Return the mean of the values, weighted by inner products of features φ(q), φ(k).

    out_i = φ(q_i) Σ_j φ(k_j)ᵀ v_j / max(φ(q_i) · Σ_j φ(k_j) + added, least), and 0 where
    there is no key. Numerator and denominator are one product, for the values get a column of ones.
    It is taken in float32 at least: the denominator grows with the length, out of half precision's
    range.

    Args:
        query: features of the queries, in the dtype of the arithmetic.
        key: features of the keys.
        value: the values.
        added: added to the denominator.
        least: least denominator; 0 for none.
        call: see `CausalCall`.

    Returns:
        The output; with return_state, a pair of it and the state.
    """
    values = with_ones(value, query.dtype)
    result = linear_attention(query, key, values, layout="bthd", **call)
    if isinstance(result, tuple):
        return divided(result[0], value.dtype, added=added, least=least), result[1]
    return divided(result, value.dtype, added=added, least=least)


class LinearAttention(HeadAttention):
    """Linear attention with elu + 1 features (Katharopoulos et al. 2020, equation 5).

    Args:
        eps: added to the denominator.
    """

    capabilities = Capabilities(causal=True, cross=True, state=True, independent_sinks=True)
    function = staticmethod(elu_attention)

    def __init__(self, *, eps: float = 1e-6) -> None:
        super().__init__(eps=eps)
        check_eps(eps, zero=True)


class LinearMixer(ProjectedMixer, name="linear"):
    """Linear attention with elu + 1 features (Katharopoulos et al. 2020)."""

    kind = LinearAttention
