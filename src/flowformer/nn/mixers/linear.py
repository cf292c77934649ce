"""Linear attention with elu + 1 features (Katharopoulos et al. 2020, "Transformers are RNNs")."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.nn.mixers.registry import Capabilities
from flowformer.ops import LinearState, linear_attention
from flowformer.ops.features import check_eps, compute_dtype, masked
from flowformer.ops.inputs import resolve_masks
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.nonfinite import contained


@takes_layouts("query", "key", "value")
@contained("query", "key", "value")
def elu_attention(  # noqa: PLR0913 - the keywords that every attention here takes
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    value: Float[Tensor, "b s g m"],
    *,
    causal: bool = False,
    eps: float = 1e-6,
    mask: Bool[Tensor, "b l"] | None = None,
    query_mask: Bool[Tensor, "b l"] | None = None,
    key_mask: Bool[Tensor, "b s"] | None = None,
    initial_state: LinearState | None = None,
    return_state: bool = False,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
) -> Float[Tensor, "b l h m"] | tuple[Float[Tensor, "b l h m"], LinearState]:
    """out_i = q_i Σ_j k_jᵀ v_j / (q_i · Σ_j k_j + ε), q = elu(Q) + 1, k = elu(K) + 1 (equation 5).

    Args:
        query: the queries, before the feature map.
        key: the keys; g divides h, and each key head serves h / g query heads.
        value: the values, with as many heads as the keys.
        causal: sum over j ≤ i only; needs l == s.
        eps: added to the denominator, as in the published code.
        mask: real tokens (True) of queries and keys, in self-attention.
        query_mask: real tokens of the queries; the output at the others is zero.
        key_mask: real tokens of the keys; a query with no real key gives zero.
        initial_state: the state after the tokens before these (causal only).
        return_state: also return the state after these tokens (causal only).
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.
    """
    check_eps(eps, zero=True)
    query, key = real_tokens(
        query, key, causal=causal, mask=mask, query_mask=query_mask, key_mask=key_mask
    )
    out, state = kernel_attention(
        F.elu(query) + 1,
        F.elu(key) + 1,
        value,
        causal=causal,
        added=eps,
        mask=mask,
        query_mask=query_mask,
        key_mask=key_mask,
        initial_state=initial_state,
        return_state=return_state,
    )
    return out if state is None else (out, state)


def real_tokens(
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    *,
    causal: bool,
    mask: Bool[Tensor, "b l"] | None,
    query_mask: Bool[Tensor, "b l"] | None,
    key_mask: Bool[Tensor, "b s"] | None,
) -> tuple[Float[Tensor, "b l h d"], Float[Tensor, "b s g d"]]:
    """Query and key in the dtype of the arithmetic, zero at padded places.

    Before a feature map, for its derivative at padding that holds NaN would be NaN.
    """
    query_mask, key_mask = resolve_masks(
        query, key, causal=causal, mask=mask, query_mask=query_mask, key_mask=key_mask
    )
    dtype = compute_dtype(query.dtype)
    return masked(query, query_mask).to(dtype), masked(key, key_mask).to(dtype)


def kernel_attention(  # noqa: PLR0913 - the keywords that every attention here takes
    query: Float[Tensor, "b l h f"],
    key: Float[Tensor, "b s g f"],
    value: Float[Tensor, "b s g m"],
    *,
    causal: bool,
    added: float = 0.0,
    least: float = 0.0,
    mask: Bool[Tensor, "b l"] | None = None,
    query_mask: Bool[Tensor, "b l"] | None = None,
    key_mask: Bool[Tensor, "b s"] | None = None,
    initial_state: LinearState | None = None,
    return_state: bool = False,
) -> tuple[Float[Tensor, "b l h m"], LinearState | None]:
    """The mean of the values, weighted by inner products of features φ(q), φ(k).

    out_i = φ(q_i) Σ_j φ(k_j)ᵀ v_j / max(φ(q_i) · Σ_j φ(k_j) + added, least), and 0 where
    there is no key. Numerator and denominator are one product, for the values get a column of ones.
    It is taken in float32 at least: the denominator grows with the length, out of half precision's
    range.

    Args:
        query: features of the queries, in the dtype of the arithmetic.
        key: features of the keys.
        value: the values.
        causal: sum over j ≤ i only.
        added: added to the denominator.
        least: least denominator; 0 for none.
        mask: see elu_attention, here and below.
        query_mask: likewise.
        key_mask: likewise.
        initial_state: likewise.
        return_state: likewise.
    """
    result = linear_attention(
        query,
        key,
        with_ones(value, query.dtype),
        causal=causal,
        mask=mask,
        query_mask=query_mask,
        key_mask=key_mask,
        initial_state=initial_state,
        return_state=return_state,
        layout="bthd",
    )
    product, state = result if isinstance(result, tuple) else (result, None)
    return divided(product, value.dtype, added=added, least=least), state


def with_ones(
    value: Float[Tensor, "b s g m"], dtype: torch.dtype
) -> Float[Tensor, "b s g m_plus_1"]:
    """The values and a column of ones, which sums the weights."""
    return F.pad(value.to(dtype), (0, 1), value=1.0)


def divided(
    product: Float[Tensor, "b l h m_plus_1"],
    dtype: torch.dtype,
    *,
    added: float = 0.0,
    least: float = 0.0,
) -> Float[Tensor, "b l h m"]:
    """The weighted sums over the sums of their weights, which stand in the last column."""
    total = product[..., -1:] + added
    # Without a bound, the sum of nothing is zero; 0 / 0 is to be 0, and 1 / tiny has no gradient.
    total = total.clamp(min=least) if least > 0 else torch.where(total == 0, 1, total)
    return (product[..., :-1] / total).to(dtype)


class LinearAttention(HeadAttention):
    """Linear attention with elu + 1 features (Katharopoulos et al. 2020, equation 5).

    Args:
        eps: added to the denominator.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=True, cross=True, state=True, variable_length=True, independent_sinks=True
    )
    function = staticmethod(elu_attention)

    def __init__(self, *, eps: float = 1e-6) -> None:
        super().__init__(eps=eps)
        check_eps(eps, zero=True)


class LinearMixer(ProjectedMixer, name="linear"):
    """Linear attention with elu + 1 features (Katharopoulos et al. 2020)."""

    kind = LinearAttention
