"""Linear attention with elu + 1 features (Katharopoulos et al. 2020, "Transformers are RNNs")."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from flowformer.ops import LinearState, linear_attention


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
) -> Float[Tensor, "b l h m"] | tuple[Float[Tensor, "b l h m"], LinearState]:
    """out_i = q_i Σ_j k_jᵀ v_j / (q_i · Σ_j k_j + ε), q = elu(Q) + 1, k = elu(K) + 1 (equation 5).

    Numerator and denominator are one product: the values get a column of ones. It is taken in
    float32 at least, for the denominator grows with the length and leaves half precision's range.

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
    """
    exact = torch.promote_types(value.dtype, torch.float32)
    groups = query.shape[2] // key.shape[2]
    ones = value.new_ones((*value.shape[:-1], 1), dtype=exact)
    key, value = (
        part.repeat_interleave(groups, dim=2) if groups > 1 else part
        for part in (F.elu(key.to(exact)) + 1, torch.cat((value.to(exact), ones), dim=-1))
    )
    result = linear_attention(
        F.elu(query.to(exact)) + 1,
        key,
        value,
        causal=causal,
        mask=mask,
        query_mask=query_mask,
        key_mask=key_mask,
        initial_state=initial_state,
        return_state=return_state,
    )
    product, state = result if isinstance(result, tuple) else (result, None)
    out = (product[..., :-1] / (product[..., -1:] + eps)).to(query.dtype)
    return out if state is None else (out, state)
