"""Random-feature attention as a layer, with and without a gate."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.nn.mixers.random_features import RandomDirections
from flowformer.ops import LinearState
from flowformer.ops.baselines import gated_rfa_attention, rfa_attention
from flowformer.ops.features import check_eps


class RFAAttention(HeadAttention):
    """Random-feature attention (Peng et al. 2021): softmax of unit vectors, by sines and cosines.

    Each head has directions of its own, and learns the scale σ of its features.

    Args:
        num_heads: number of query heads.
        head_dim: width of a head.
        num_features: number of directions of a head, each of which gives a sine and a cosine.
        redraw_every: training calls between draws of the directions; None never redraws. The
            published code takes another of 200 drawn beforehand at every step: 1 here is nearest.
        eps: least denominator; see `flowformer.ops.baselines.rfa_attention`.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=True, cross=True, state=True, variable_length=True, independent_sinks=True
    )

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        num_features: int = 64,
        redraw_every: int | None = 1000,
        eps: float = 0.1,
    ) -> None:
        """Draw the directions; σ starts at 1."""
        super().__init__()
        check_eps(eps)  # a denominator may be negative
        self.features = RandomDirections(
            num_heads, num_features, head_dim, redraw_every=redraw_every
        )
        self.scale = nn.Parameter(torch.ones(num_heads, head_dim))
        self.eps = eps

    def forward(  # noqa: PLR0913 - the keywords that every attention here takes
        self,
        query: Float[Tensor, "b l h d"],
        key: Float[Tensor, "b s g d"],
        value: Float[Tensor, "b s g m"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b l"] | None = None,
        query_mask: Bool[Tensor, "b l"] | None = None,
        key_mask: Bool[Tensor, "b s"] | None = None,
        state: LinearState | None = None,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "b l h m"], LinearState | None]:
        """Return the output and, if asked for, the state after these tokens.

        A state belongs to the directions that it was made with: do not redraw while streaming.
        """
        result = rfa_attention(
            query,
            key,
            value,
            directions=self.features(),
            scale=self.scale,
            eps=self.eps,
            causal=causal,
            mask=mask,
            query_mask=query_mask,
            key_mask=key_mask,
            initial_state=state,
            return_state=return_state,
        )
        return (result[0], result[1]) if isinstance(result, tuple) else (result, None)


class GatedRFAAttention(HeadAttention):
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

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=True, cross=False, state=True, variable_length=True, bidirectional=False
    )
    inputs: ClassVar[tuple[str, ...]] = ("query", "key", "value", "hidden")

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
        """Draw the directions; σ starts at 1."""
        super().__init__()
        check_eps(eps)  # a denominator may be negative
        self.features = RandomDirections(
            num_heads, num_features, head_dim, redraw_every=redraw_every
        )
        self.scale = nn.Parameter(torch.ones(num_heads, head_dim))
        self.gate = nn.Linear(dim, num_heads)
        self.eps = eps

    def forward(
        self,
        query: Float[Tensor, "b t h d"],
        key: Float[Tensor, "b t g d"],
        value: Float[Tensor, "b t g m"],
        hidden: Float[Tensor, "b t dim"],
        *,
        causal: bool = True,  # noqa: ARG002 - it has no other form
        mask: Bool[Tensor, "b t"] | None = None,
        state: LinearState | None = None,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "b t h m"], LinearState | None]:
        """Return the output and, if asked for, the state after these tokens."""
        out, state = gated_rfa_attention(
            query,
            key,
            value,
            gate=self.gate(hidden),
            directions=self.features(),
            scale=self.scale,
            eps=self.eps,
            mask=mask,
            initial_state=state,
        )
        return out, state if return_state else None


class RFAMixer(ProjectedMixer):
    """Random-feature attention (Peng et al. 2021): softmax attention by sines and cosines."""

    kind = RFAAttention


class GatedRFAMixer(ProjectedMixer):
    """Random-feature attention with a gate (Peng et al. 2021), the paper's RFA-Gate; causal."""

    kind = GatedRFAAttention
