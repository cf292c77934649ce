"""SOFT (Lu et al. 2021, "Softmax-free transformer with linear complexity"): Gaussian kernels."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.nn.mixers.head_attention import Capabilities, HeadAttention
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.nn.mixers.nystromformer import segment_means
from flowformer.ops.features import compute_dtype, masked
from flowformer.ops.inputs import check_tensors, exact_arithmetic, resolve_masks
from flowformer.ops.layout import Layout, takes_layouts


@takes_layouts("query", "value")
def soft_attention(
    query: Float[Tensor, "b t h d"],
    value: Float[Tensor, "b t g m"],
    *,
    num_landmarks: int,
    iterations: int,
    ridge: float,
    mask: Bool[Tensor, "b t"] | None = None,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
) -> Float[Tensor, "b t h m"]:
    """out = P Z Pᵀ V, P = κ(Q, Q̃), Z ≈ (κ(Q̃, Q̃) + λ I)⁻¹, κ(x, y) = exp(−‖x − y‖² / (2 √d)).

    Queries are keys too, so that the kernel is symmetric and positive. Q̃ are the means of segments
    of the real tokens: the paper's pooling, where its best results convolve, which fixes the ratio
    of tokens to landmarks. Z is `newton_inverse`. Nothing normalises the sum: the output grows with
    the number of near tokens, as published. With as many landmarks as tokens and λ → 0 the product
    is the full kernel matrix κ(Q, Q).

    Args:
        query: the queries, which are the keys.
        value: the values; g divides h, and each value head serves h / g query heads.
        num_landmarks: number of segments; the paper has 49.
        iterations: of Newton's method; the paper has 20.
        ridge: λ; the published code adds 0.01.
        mask: real tokens (True); the output at the others is zero.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.
    """
    dtype = query.dtype
    mask, _ = resolve_masks(query, value, mask=mask)
    groups = query.shape[2] // value.shape[2]
    value = value.repeat_interleave(groups, dim=2) if groups > 1 else value
    query, _, value = check_tensors(query, query, value)
    exact = compute_dtype(dtype)
    with exact_arithmetic(query):
        # ‖x/d^¼ − y/d^¼‖² = ‖x − y‖² / √d
        q = masked(query, mask).to(exact) * float(query.shape[-1]) ** -0.25
        v = masked(value, mask).to(exact).transpose(1, 2)
        landmark, used = segment_means(q, mask, num_landmarks)
        used = used[:, None, :]
        # An unused landmark is a zero row and column, and so one of the inverse.
        near = gaussian(q.transpose(1, 2), landmark) * used[:, :, None, :]
        between = gaussian(landmark, landmark) * (used[..., :, None] & used[..., None, :])
        if mask is not None:
            v = v.masked_fill(~mask[:, None, :, None], 0)
        inverse = newton_inverse(between, iterations=iterations, ridge=ridge)
        out = near @ (inverse @ (near.mT @ v))
    return masked(out.transpose(1, 2), mask).to(dtype)


def gaussian(
    left: Float[Tensor, "*batch r d"], right: Float[Tensor, "*batch c d"]
) -> Float[Tensor, "*batch r c"]:
    """exp(−‖x − y‖² / 2) for each pair."""
    squares = left.square().sum(-1)[..., :, None] + right.square().sum(-1)[..., None, :]
    # Rounding may take the distance of equal vectors below zero.
    return torch.exp(-(squares - 2 * left @ right.mT).clamp(min=0) / 2)


def newton_inverse(
    matrix: Float[Tensor, "*batch m m"], *, iterations: int, ridge: float
) -> Float[Tensor, "*batch m m"]:
    """Z ← 2 Z − Z A Z from Z = α K, A = K + λ I, α = 1.8 / ‖K‖₁².

    K is symmetric, with eigenvalues between 0 and ‖K‖₁ and zero or one on its diagonal, so the
    eigenvalues of I − Z A start in (−1, 1) and are squared by each step. The gradient is that of an
    inverse, −Zᵀ G Zᵀ, as published: no step but the last is recorded.
    """
    fixed = matrix.detach()
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    regular = fixed + ridge * identity
    norm = fixed.sum(-1).amax(-1).clamp(min=1)
    inverse = 1.8 / norm.square()[..., None, None] * fixed
    for _ in range(iterations - 1):
        inverse = 2 * inverse - inverse @ regular @ inverse
    # Z is a constant here, so the derivative of this step by A is −Zᵀ G Zᵀ.
    return 2 * inverse - inverse @ (matrix + ridge * identity) @ inverse


class SoftAttention(HeadAttention):
    """SOFT (Lu et al. 2021): a Gaussian kernel of the queries, through the means of segments.

    Its output grows with the number of near tokens, as published: put a normalisation after it.

    Args:
        num_landmarks: number of segments.
        iterations: of Newton's method for the inverse.
        ridge: added to the diagonal before the inverse.
    """

    capabilities = Capabilities(causal=False, cross=False, state=False)
    inputs = ("query", "value")
    function = staticmethod(soft_attention)

    def __init__(
        self, *, num_landmarks: int = 49, iterations: int = 20, ridge: float = 0.01
    ) -> None:
        super().__init__(num_landmarks=num_landmarks, iterations=iterations, ridge=ridge)
        if num_landmarks < 1 or iterations < 1:
            raise ValueError(
                f"num_landmarks and iterations must be positive, got {num_landmarks=} and "
                f"{iterations=}"
            )
        if not 0 < ridge <= 0.1:  # the iteration diverges from about 0.11 on
            raise ValueError(f"ridge must be in (0, 0.1], got {ridge}")


class SoftMixer(ProjectedMixer, name="soft"):
    """SOFT (Lu et al. 2021): a Gaussian kernel, without softmax, through the means of segments."""

    kind = SoftAttention
