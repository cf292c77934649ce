"""Synthesizer (Tay et al. 2020): attention weights that are synthesized, not compared."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowformer.ops.baselines.landmarks import masked_softmax
from flowformer.ops.features import compute_dtype, masked
from flowformer.ops.inputs import exact_arithmetic, resolve_masks
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.nonfinite import contained, may_be_spoiled, may_look


@takes_layouts("value")
@contained("value")
def synthesizer_attention(
    scores: Float[Tensor, "#b h t t"],
    value: Float[Tensor, "b t g m"],
    *,
    causal: bool = False,
    mask: Bool[Tensor, "b t"] | None = None,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
) -> Float[Tensor, "b t h m"]:
    """out_i = Σ_j softmax_j(B_ij) v_j, the sum over real tokens (and j ≤ i when causal).

    B comes from x_i alone (dense), from the places i and j alone (random), or is a sum of several
    such matrices, with weights that sum to one, and of dot products (mixture).

    Args:
        scores: B for each pair of tokens, by one of the functions below.
        value: the values; g divides h, and each value head serves h / g heads of scores.
        causal: let token i draw from the tokens up to i only.
        mask: real tokens (True); the output at the others is zero.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.
    """
    resolve_masks(value, value, causal=causal, mask=mask, query_mask=None, key_mask=None)
    exact = compute_dtype(value.dtype)
    length, groups = scores.shape[-1], scores.shape[1] // value.shape[2]
    allowed = scores.new_ones(1, 1, length, length, dtype=torch.bool)
    if causal:
        allowed = allowed.tril()
    if mask is not None:
        allowed = allowed & mask[:, None, None, :]
    lost = None
    if causal and may_look(scores) and may_be_spoiled(scores):
        scores = scores.masked_fill(~allowed, 0)
        lost = ~scores.detach().isfinite().all(-1, keepdim=True)  # rows, of the tokens that draw
        scores = torch.where(lost, 0, scores)
    with exact_arithmetic(value):
        v = masked(value, mask).to(exact).repeat_interleave(groups, dim=2).transpose(1, 2)
        out = masked_softmax(scores.to(exact), allowed) @ v
        out = (out if lost is None else torch.where(lost, torch.nan, out)).transpose(1, 2)
    return masked(out, mask).to(value.dtype)


def real_numbers(mask: Bool[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """The place of each token: 0, 1, … for the real ones, as if the sequence stood alone."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def dense_scores(
    hidden: Float[Tensor, "b t h r"],
    weight: Float[Tensor, "h n r"],
    bias: Float[Tensor, "h n"],
    number: Int[Tensor, "b t"] | None,
) -> Float[Tensor, "b h t t"]:
    """B_i = W relu(h_i) + b: a score for each of n places, of which each token takes its own.

    Args:
        hidden: a first linear layer of the hidden states, split into heads.
        weight: W.
        bias: b.
        number: the place of each token; None for 0, 1, …
    """
    scores = torch.einsum("bthr,hnr->bhtn", hidden.relu(), weight) + bias[:, None, :]
    return _columns(scores, number)


def random_scores(
    table: Float[Tensor, "h n n"], number: Int[Tensor, "b t"] | None, length: int
) -> Float[Tensor, "#b h t t"]:
    """B = R, a parameter that sees no token; rows and columns are those of the tokens' places.

    The factorized form has R = R₁ R₂ᵀ with R₁ and R₂ [n, k] (the caller multiplies them).

    Args:
        table: R.
        number: the place of each token; None for 0, 1, …
        length: t.
    """
    if number is None:
        return table[None, :, :length, :length]
    return _columns(table[:, number].transpose(0, 1), number)


def factorized_dense_scores(
    left: Float[Tensor, "b t h a"],
    right: Float[Tensor, "b t h c"],
    number: Int[Tensor, "b t"] | None,
) -> Float[Tensor, "b h t t"]:
    """B_in = left_i[n mod a] · right_i[n div a]: two short vectors tiled to a·c places.

    The paper repeats both vectors and leaves the order open. Here one is repeated as a whole and
    the other entry by entry, so that each of the a·c products occurs once.

    Args:
        left: a linear layer of the hidden states.
        right: another.
        number: the place of each token; None for 0, 1, …
    """
    product = right[..., :, None] * left[..., None, :]
    return _columns(product.flatten(-2).transpose(1, 2), number)


def dot_product_scores(
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t g d"],
    mask: Bool[Tensor, "b t"] | None,
) -> Float[Tensor, "b h t t"]:
    """B_ij = q_i · k_j / √d, the usual scores, as a part of a mixture.

    Args:
        query: the queries.
        key: the keys; g divides h, and each key head serves h / g query heads.
        mask: real tokens (True).
    """
    exact = compute_dtype(query.dtype)
    with exact_arithmetic(query):
        query, key = masked(query, mask).to(exact), masked(key, mask).to(exact)
        key = key.repeat_interleave(query.shape[2] // key.shape[2], dim=2)
        return torch.einsum("bihd,bjhd->bhij", query, key) * float(query.shape[-1]) ** -0.5


def _columns(
    scores: Float[Tensor, "b h t n"], number: Int[Tensor, "b t"] | None
) -> Float[Tensor, "b h t t"]:
    """Of the scores of all places, those of the tokens' places."""
    length = scores.shape[2]
    if number is None:
        return scores[..., :length]
    return scores.gather(-1, number[:, None, None, :].expand(*scores.shape[:3], length))
