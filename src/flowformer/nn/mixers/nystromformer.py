"""Nyströmformer (Xiong et al. 2021): softmax attention through the means of segments."""

from typing import Any, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.nn.mixers.head_attention import Capabilities, HeadAttention, Masks
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.ops.features import compute_dtype, masked
from flowformer.ops.inputs import at_most, check_tensors, exact_arithmetic, resolve_masks
from flowformer.ops.layout import Layout, takes_layouts


@takes_layouts("query", "key", "value")
def nystromformer_attention(
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    value: Float[Tensor, "b s g m"],
    *,
    num_landmarks: int,
    iterations: int,
    residual_kernel: Float[Tensor, "h w"] | None,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
    **masks: Unpack[Masks],
) -> Float[Tensor, "b l h m"]:
    """out = softmax(Q K̃ᵀ/√d) · softmax(Q̃ K̃ᵀ/√d)⁺ · softmax(Q̃ Kᵀ/√d) V, + conv(V).

    Q̃ and K̃ are the means of segments of the real tokens, so a padded sequence gives
    what it gives alone. A⁺ is `pseudo_inverse`. With as many landmarks as tokens the product is
    A A⁺ A = A: softmax attention, as far as the iteration has converged. Weights can be negative.

    Args:
        query: the queries.
        key: the keys; g divides h, and each key head serves h / g query heads.
        value: the values, with as many heads as the keys.
        num_landmarks: number of segments; the paper has 64.
        iterations: of the pseudo-inverse; the paper has 6.
        residual_kernel: one odd filter a head, run over the values in time and added;
            None for none. It runs over places: padding inside a sequence counts as zeros.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.
        masks: see `Masks`.

    Raises:
        ValueError: a residual kernel with l ≠ s, or arguments that contradict each other.
    """
    dtype = query.dtype
    query_mask, key_mask = resolve_masks(query, key, **masks)
    query, key, value = check_tensors(query, key, value)
    if residual_kernel is not None and query.shape[1] != key.shape[1]:
        raise ValueError(
            "the residual convolution adds values to the queries at the same place: it needs as "
            f"many queries as keys, got L={query.shape[1]} and S={key.shape[1]}"
        )
    # In half precision the iteration would stand still before it has converged.
    exact = compute_dtype(dtype)
    with exact_arithmetic(query):
        q = masked(query, query_mask).to(exact) * float(query.shape[-1]) ** -0.5
        k, v = (masked(part, key_mask).to(exact) for part in (key, value))
        q_mean, q_used = segment_means(q, query_mask, num_landmarks)
        k_mean, k_used = segment_means(k, key_mask, num_landmarks)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        k_used = k_used[:, None, None, :]
        to_landmarks = masked_softmax(q @ k_mean.mT, k_used)
        # An unused landmark is a zero row or column here, and so one of the inverse.
        between = masked_softmax(q_mean @ k_mean.mT, k_used & q_used[:, None, :, None])
        real = k_used.any(-1, keepdim=True) if key_mask is None else key_mask[:, None, None, :]
        from_landmarks = masked_softmax(q_mean @ k.mT, real)
        out = (to_landmarks @ pseudo_inverse(between, iterations)) @ (from_landmarks @ v)
        if residual_kernel is not None:
            out = out + _convolved(v, residual_kernel.to(exact))
    return masked(out.transpose(1, 2), query_mask).to(dtype)


def segment_means(
    tokens: Float[Tensor, "b t h d"], mask: Bool[Tensor, "b t"] | None, num_landmarks: int
) -> tuple[Float[Tensor, "b h m d"], Bool[Tensor, "b m"]]:
    """Cut each sequence into equal segments; return their means, and which segments exist.

    Of n real tokens, number i (from 0) belongs to segment floor(i·m / n). So padding is in no
    segment, lengths that m does not divide give segments that differ by one token, and fewer than m
    tokens are their own landmarks, with some segments empty. The mean of an empty segment is zero.

    Args:
        tokens: the tokens; padded ones must be zero.
        mask: real tokens (True).
        num_landmarks: m; no more than t segments are made (in a graph for any length, m).
    """
    b, t, h, d = tokens.shape
    m = at_most(num_landmarks, t)
    if mask is None:
        mask = tokens.new_ones(b, t, dtype=torch.bool)
    number = mask.cumsum(dim=1) - 1
    count = mask.sum(dim=1, keepdim=True).clamp(min=1)
    # Padding before the first token would be segment -1; its tokens are zero and are not counted.
    segment = (number * m // count).clamp(min=0)
    place = (segment + m * torch.arange(b, device=tokens.device)[:, None]).flatten()
    total = tokens.new_zeros(b * m, h * d).index_add(0, place, tokens.reshape(b * t, h * d))
    size = tokens.new_zeros(b * m).index_add(0, place, mask.flatten().to(tokens.dtype))
    means = (total / size.clamp(min=1)[:, None]).unflatten(1, (h, d)).unflatten(0, (b, m))
    return means.transpose(1, 2), (size > 0).unflatten(0, (b, m))


def masked_softmax(
    scores: Float[Tensor, "#b h r c"], allowed: Bool[Tensor, "#b #h #r #c"]
) -> Float[Tensor, "#b h r c"]:
    """Softmax over the allowed columns; a row where none is allowed is zero, without gradient."""
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~allowed, lowest).softmax(dim=-1).masked_fill(~allowed, 0)


def pseudo_inverse(
    matrix: Float[Tensor, "*batch r c"], iterations: int
) -> Float[Tensor, "*batch c r"]:
    """Z ← ¼ Z (13 I − A Z (15 I − A Z (7 I − A Z))) from Z = Aᵀ / (‖A‖₁ ‖A‖∞).

    The limit is the Moore-Penrose inverse, reached with third order once ‖A A⁺ − A Z‖ < 1. Zero
    rows and columns of A stay zero columns and rows of Z.

    The published code divides by the largest norms in the whole batch. Each matrix has its own
    here, for a sequence's output must not depend on its neighbours in the batch.
    """
    size = matrix.abs()
    norms = size.sum(-1).amax(-1) * size.sum(-2).amax(-1)
    inverse = matrix.mT / torch.where(norms > 0, norms, 1)[..., None, None]
    identity = torch.eye(matrix.shape[-2], dtype=matrix.dtype, device=matrix.device)
    for _ in range(iterations):
        product = matrix @ inverse
        inner = 15 * identity - product @ (7 * identity - product)
        inverse = 0.25 * inverse @ (13 * identity - product @ inner)
    return inverse


def _convolved(
    value: Float[Tensor, "b h t m"], kernel: Float[Tensor, "h w"]
) -> Float[Tensor, "b h t m"]:
    """Return each head's values filtered in time with its kernel, alike for all features."""
    rows = value.permute(0, 3, 1, 2).flatten(0, 1)
    out = F.conv1d(rows, kernel[:, None, :], padding=kernel.shape[1] // 2, groups=len(kernel))
    return out.unflatten(0, (value.shape[0], value.shape[3])).permute(0, 2, 3, 1)


class NystromformerAttention(HeadAttention):
    """Nyströmformer (Xiong et al. 2021): softmax attention through the means of segments.

    Args:
        num_heads: number of heads, for the filters.
        num_landmarks: number of segments of queries and of keys.
        iterations: of the pseudo-inverse.
        residual_width: width of a filter, one a head, that runs over the values and is added to the
            output (33 in the published code); odd. None for none, since cross-attention has no
            place for it.
    """

    capabilities = Capabilities(causal=False, cross=True, state=False)
    function = staticmethod(nystromformer_attention)

    def __init__(
        self,
        *,
        num_heads: int,
        num_landmarks: int = 64,
        iterations: int = 6,
        residual_width: int | None = None,
    ) -> None:
        super().__init__(num_landmarks=num_landmarks, iterations=iterations)
        if num_landmarks < 1 or iterations < 1:
            raise ValueError(
                f"num_landmarks and iterations must be positive, got {num_landmarks=} and "
                f"{iterations=}"
            )
        if residual_width is not None and residual_width % 2 != 1:
            raise ValueError(f"residual_width must be odd, or None, got {residual_width}")
        self.residual_kernel = (
            None if residual_width is None else nn.Parameter(torch.empty(num_heads, residual_width))
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw each filter from U(−1/√width, 1/√width), torch's default for convolutions."""
        if self.residual_kernel is not None:
            bound = self.residual_kernel.shape[1] ** -0.5
            nn.init.uniform_(self.residual_kernel, -bound, bound)

    def extra_repr(self) -> str:
        """Return the options, for print(model)."""
        width = None if self.residual_kernel is None else self.residual_kernel.shape[1]
        return f"{super().extra_repr()}, residual_width={width}"

    def arguments(self) -> dict[str, Any]:
        """Return the filters too."""
        return {**super().arguments(), "residual_kernel": self.residual_kernel}


class NystromformerMixer(ProjectedMixer, name="nystromformer"):
    """Nyströmformer (Xiong et al. 2021): softmax attention through the means of segments."""

    kind = NystromformerAttention
