"""Performer as a layer."""

import math
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.nn.mixers.random_features import RandomDirections
from flowformer.ops.baselines import PerformerState, performer_attention
from flowformer.ops.features import check_eps


class PerformerAttention(HeadAttention):
    """FAVOR+ (Choromanski et al. 2021): an estimate of softmax attention by positive features.

    The directions are shared by the heads, as in the authors' code.

    Args:
        head_dim: width of a head.
        num_features: number of directions; the estimate's variance falls as one over it. None
            means d log d, of the order that theorem 4 asks for.
        redraw_every: training calls between draws of the directions; None never redraws.
        eps: added to every feature, relative to the largest.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=True, cross=True, state=True, variable_length=True, independent_sinks=True
    )

    def __init__(
        self,
        *,
        head_dim: int,
        num_features: int | None = None,
        redraw_every: int | None = 1000,
        eps: float = 1e-6,
    ) -> None:
        """Draw the directions."""
        super().__init__()
        check_eps(eps, zero=True)
        if num_features is None:
            num_features = max(1, int(head_dim * math.log(head_dim)))
        self.features = RandomDirections(num_features, head_dim, redraw_every=redraw_every)
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
        state: PerformerState | None = None,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "b l h m"], PerformerState | None]:
        """Return the output and, if asked for, the state after these tokens.

        A state belongs to the directions that it was made with: do not redraw while streaming.
        """
        result = performer_attention(
            query,
            key,
            value,
            directions=self.features(),
            eps=self.eps,
            causal=causal,
            mask=mask,
            query_mask=query_mask,
            key_mask=key_mask,
            initial_state=state,
            return_state=return_state,
        )
        return (result[0], result[1]) if isinstance(result, tuple) else (result, None)


class PerformerMixer(ProjectedMixer):
    """Performer (Choromanski et al. 2021): softmax attention through positive random features."""

    kind = PerformerAttention
