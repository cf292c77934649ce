"""YOSO-E (Zeng et al. 2021, "You Only Sample (Almost) Once"), in expectation, without sampling."""

import math
from typing import Unpack

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from flowformer.nn.mixers.head_attention import Capabilities, HeadAttention, Masks
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.ops.features import compute_dtype, masked
from flowformer.ops.inputs import check_tensors, exact_arithmetic, resolve_masks
from flowformer.ops.layout import Layout, takes_layouts


@takes_layouts("query", "key", "value")
def yoso_attention(
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    value: Float[Tensor, "b s g m"],
    *,
    hash_bits: int,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
    **masks: Unpack[Masks],
) -> Float[Tensor, "b l h m"]:
    """out_i = y_i / ‖y_i‖, y_i = Σ_j w_ij v_j, w_ij = (1 − arccos(q̂_i · k̂_j) / π)^τ, q̂ = q / ‖q‖.

    w_ij is the probability that τ random hyperplanes put query and key on the same side, which the
    method samples by hashing; in expectation (YOSO-E) it costs what softmax attention costs. For
    unit vectors it imitates exp(τ (q̂ · k̂ − 1)), the numerator of softmax at temperature 1 / τ.

    The derivative of arccos has no bound: as published, the gradient takes (τ/2) w for
    dw/d(q̂ · k̂), a lower bound of it. The output is not linear in the values, for ‖y_i‖.

    Args:
        query: the queries.
        key: the keys; g divides h, and each key head serves h / g query heads.
        value: the values, with as many heads as the keys.
        hash_bits: τ.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.
        masks: see `Masks`.
    """
    dtype = query.dtype
    query_mask, key_mask = resolve_masks(query, key, **masks)
    query, key, value = check_tensors(query, key, value)
    exact = compute_dtype(dtype)
    with exact_arithmetic(query):
        q = F.normalize(masked(query, query_mask).to(exact), dim=-1).transpose(1, 2)
        k = F.normalize(masked(key, key_mask).to(exact), dim=-1).transpose(1, 2)
        v = masked(value, key_mask).to(exact).transpose(1, 2)
        weight = collision_probability(q @ k.mT, hash_bits)
        if key_mask is not None:
            weight = weight.masked_fill(~key_mask[:, None, None, :], 0)
        out = F.normalize(weight @ v, dim=-1).transpose(1, 2)
    return masked(out, query_mask).to(dtype)


def collision_probability(
    cosine: Float[Tensor, "*shape"], hash_bits: int
) -> Float[Tensor, "*shape"]:
    """(1 − arccos(x) / π)^τ, with the gradient (τ/2) (1 − arccos(x) / π)^τ."""
    # Rounding may take the cosine of parallel vectors past 1, and arccos to NaN.
    fixed = cosine.detach()
    # In place: with a matrix of L·S weights, fresh memory costs more than the arithmetic.
    side = fixed.clamp(-1, 1).arccos_().mul_(-1 / math.pi).add_(1)
    weight = _power_(side, hash_bits)
    # The bracket is 1; its derivative is τ/2.
    return weight * (1 + hash_bits / 2 * (cosine - fixed))


def _power_(base: Float[Tensor, "*shape"], exponent: int) -> Float[Tensor, "*shape"]:
    """Square and multiply, over `base`: on a CPU torch's own power takes several times as long."""
    once = base.clone() if exponent > 1 else base
    # The highest bit of the exponent is what `base` is; each further one squares, and may multiply.
    power = base
    for bit in bin(exponent)[3:]:
        power = power.mul_(power)
        if bit == "1":
            power = power.mul_(once)
    return power


class YosoAttention(HeadAttention):
    """YOSO-E (Zeng et al. 2021): the probability that hashes collide; quadratic in the length.

    Args:
        hash_bits: number of hyperplanes in a hash, called τ in the paper.
    """

    capabilities = Capabilities(causal=False, cross=True, state=False, independent_sinks=True)
    linear_in_values = False  # each output is scaled to length 1
    function = staticmethod(yoso_attention)

    def __init__(self, *, hash_bits: int = 9) -> None:
        super().__init__(hash_bits=hash_bits)
        if hash_bits < 1:
            raise ValueError(f"hash_bits must be positive, got {hash_bits}")


class YosoMixer(ProjectedMixer, name="yoso"):
    """YOSO-E (Zeng et al. 2021): weights are the probability that hashes collide."""

    kind = YosoAttention
