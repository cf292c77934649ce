"""Random-feature attention (Peng et al. 2021), with and without a gate."""

from typing import Any, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from flowformer.nn.mixers.head_attention import Capabilities, CausalCall, HeadAttention
from flowformer.nn.mixers.linear import real_tokens, weighted_mean
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.nn.mixers.performer import RandomDirections
from flowformer.nn.mixers.recurrence import RecurrentAttention, gated_linear_attention
from flowformer.ops.features import check_eps
from flowformer.ops.inputs import exact_arithmetic
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.linear import divided, with_ones
from flowformer.ops.nonfinite import contained
from flowformer.ops.state import LinearState


@takes_layouts("query", "key", "value")
@contained("query", "key", "value")
def rfa_attention(
    query: Float[Tensor, "b l h d"],
    key: Float[Tensor, "b s g d"],
    value: Float[Tensor, "b s g m"],
    *,
    directions: Float[Tensor, "h f d"],
    scale: Float[Tensor, "h d"],
    eps: float,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
    **call: Unpack[CausalCall],
) -> Float[Tensor, "b l h m"] | tuple[Float[Tensor, "b l h m"], LinearState]:
    """out_i = φ(q_i) Σ_j φ(k_j)ᵀ v_j / max(φ(q_i) · Σ_j φ(k_j), ε) (equation 5).

    φ(x) = [sin ω_1·x', …, cos ω_1·x', …] / √f with x' = σ ∘ x / |x|, whose inner products have the
    mean exp(-|q' - k'|² / 2) over Gaussian ω. With σ the same for all features, that is softmax
    attention of σ q / |q| and σ k / |k|: their lengths are constants, which leave the ratio.

    An estimate may be negative, and so may a denominator; for σ = 1 its mean is no less than e⁻²
    = 0.135 for each key, so that a bound of 0.1 cuts off nothing but noise.

    Args:
        query: the queries.
        key: the keys; g divides h, and each key head serves h / g query heads.
        value: the values, with as many heads as the keys.
        directions: the ω of each head, one in each row.
        scale: σ of each head.
        eps: least denominator.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.
        call: see `CausalCall`.
    """
    check_eps(eps)
    q, k, _, _ = real_tokens(query, key, **call)
    groups = query.shape[2] // key.shape[2]
    with exact_arithmetic(query):
        return weighted_mean(
            _features(q, directions, scale),
            _features(k.repeat_interleave(groups, 2), directions, scale),
            value.repeat_interleave(groups, 2),
            least=eps,
            **call,
        )


@takes_layouts("query", "key", "value", "gate")
@contained("query", "key", "value", "gate", always=True)
def gated_rfa_attention(  # noqa: PLR0913 - what the equation holds, keyword-only
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t g d"],
    value: Float[Tensor, "b t g m"],
    *,
    gate: Float[Tensor, "b t h"],
    directions: Float[Tensor, "h f d"],
    scale: Float[Tensor, "h d"],
    eps: float,
    mask: Bool[Tensor, "b t"] | None = None,
    initial_state: LinearState | None = None,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
) -> tuple[Float[Tensor, "b t h m"], LinearState]:
    """out_t = φ(q_t) S_t / max(φ(q_t) · z_t, ε), a mean that forgets (equation 7).

    S_t = g_t S_{t-1} + (1 - g_t) φ(k_t)ᵀ v_t and z_t = g_t z_{t-1} + (1 - g_t) φ(k_t). Causal by
    nature; a padded token leaves the state as it is.

    Args:
        query: the queries.
        key: the keys; g divides h, and each key head serves h / g query heads.
        value: the values, with as many heads as the keys.
        gate: the logits of g.
        directions: as in rfa_attention.
        scale: as in rfa_attention.
        eps: least denominator.
        mask: real tokens (True); the output at the others is zero.
        initial_state: the state after the tokens before these.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.

    Returns:
        The output, and the state after these tokens.
    """
    check_eps(eps)
    q, k, _, _ = real_tokens(query, key, causal=True, mask=mask)
    groups = query.shape[2] // key.shape[2]
    with exact_arithmetic(query):
        gate = gate.to(q.dtype)[..., None]
        features = _features(k.repeat_interleave(groups, 2), directions, scale)
        product, state = gated_linear_attention(
            _features(q, directions, scale),
            features * torch.sigmoid(-gate),
            with_ones(value, q.dtype).repeat_interleave(groups, 2),
            log_decay=F.logsigmoid(gate),
            mask=mask,
            initial_state=initial_state,
        )
    return divided(product, value.dtype, least=eps), state


def _features(
    x: Float[Tensor, "b t h d"], directions: Float[Tensor, "h f d"], scale: Float[Tensor, "h d"]
) -> Float[Tensor, "b t h two_f"]:
    x = F.normalize(x, dim=-1, eps=1e-6) * scale.to(x.dtype)
    angle = torch.einsum("bthd,hfd->bthf", x, directions.to(x.dtype))
    return torch.cat((angle.sin(), angle.cos()), -1) * float(directions.shape[1]) ** -0.5


class RFAAttention(HeadAttention):
    """Random-feature attention (Peng et al. 2021): softmax of unit vectors, by sines and cosines.

    Each head has directions of its own, and learns the scale σ of its features.

    Args:
        num_heads: number of query heads.
        head_dim: width of a head.
        num_features: number of directions of a head, each of which gives a sine and a cosine.
        redraw_every: training calls between draws of the directions; None never redraws. The
            published code takes another of 200 drawn beforehand at every step: 1 here is nearest.
        eps: least denominator; see `rfa_attention`.
    """

    capabilities = Capabilities(causal=True, cross=True, state=True, independent_sinks=True)
    function = staticmethod(rfa_attention)

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        num_features: int = 64,
        redraw_every: int | None = 1000,
        eps: float = 0.1,
    ) -> None:
        super().__init__(eps=eps)
        check_eps(eps)  # a denominator may be negative
        self.features = RandomDirections(
            num_heads, num_features, head_dim, redraw_every=redraw_every
        )
        self.scale = nn.Parameter(torch.ones(num_heads, head_dim))

    def arguments(self) -> dict[str, Any]:
        """Return the directions and σ too; a state belongs to the directions it was made with."""
        return {**super().arguments(), "directions": self.features(), "scale": self.scale}


class GatedRFAAttention(RecurrentAttention):
    """Random-feature attention with a gate (Peng et al. 2021, section 3.2): it learns to forget.

    The gate of a head is the sigmoid of a linear function of the hidden state. Causal only.

    Args:
        dim: width of the hidden states.
        num_heads: number of query heads.
        head_dim: width of a head.
        num_features: number of directions of a head, each of which gives a sine and a cosine.
        redraw_every: training calls between draws of the directions; None never redraws.
        eps: least denominator. Smaller than without a gate, for the weights add up to 1 only
            slowly when little is forgotten.
    """

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        head_dim: int,
        num_features: int = 64,
        redraw_every: int | None = 1000,
        eps: float = 1e-3,
    ) -> None:
        super().__init__(eps=eps)
        check_eps(eps)  # a denominator may be negative
        self.features = RandomDirections(
            num_heads, num_features, head_dim, redraw_every=redraw_every
        )
        self.scale = nn.Parameter(torch.ones(num_heads, head_dim))
        self.gate = nn.Linear(dim, num_heads)

    def recur(
        self, query: Tensor, key: Tensor, value: Tensor, hidden: Tensor, mask: Any, state: Any
    ) -> tuple[Tensor, LinearState]:
        """Return the output and the state after these tokens."""
        return gated_rfa_attention(
            query,
            key,
            value,
            gate=self.gate(hidden),
            directions=self.features(),
            scale=self.scale,
            mask=mask,
            initial_state=state,
            **self.arguments(),
        )


class RFAMixer(ProjectedMixer, name="rfa"):
    """Random-feature attention (Peng et al. 2021): softmax attention by sines and cosines."""

    kind = RFAAttention


class GatedRFAMixer(ProjectedMixer, name="rfa-gated"):
    """Random-feature attention with a gate (Peng et al. 2021), the paper's RFA-Gate; causal."""

    kind = GatedRFAAttention
