"""SOFT as a layer."""

from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.ops.baselines import soft_attention


class SoftAttention(HeadAttention):
    """SOFT (Lu et al. 2021): a Gaussian kernel of the queries, through the means of segments.

    Its output grows with the number of near tokens, as published: put a normalisation after it.

    Args:
        num_landmarks: number of segments.
        iterations: of Newton's method for the inverse.
        ridge: added to the diagonal before the inverse.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=False, cross=False, state=False, variable_length=True
    )
    inputs = ("query", "value")

    def __init__(
        self, *, num_landmarks: int = 49, iterations: int = 20, ridge: float = 0.01
    ) -> None:
        """Hold the options."""
        super().__init__()
        if num_landmarks < 1 or iterations < 1:
            raise ValueError(
                f"num_landmarks and iterations must be positive, got {num_landmarks=} and "
                f"{iterations=}"
            )
        if not 0 < ridge <= 0.1:  # the iteration diverges from about 0.11 on
            raise ValueError(f"ridge must be in (0, 0.1], got {ridge}")
        self.num_landmarks, self.iterations, self.ridge = num_landmarks, iterations, ridge

    def forward(
        self,
        query: Float[Tensor, "b t h d"],
        value: Float[Tensor, "b t g m"],
        *,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t h m"], None]:
        """Return the output; it has no state."""
        out = soft_attention(
            query,
            value,
            num_landmarks=self.num_landmarks,
            iterations=self.iterations,
            ridge=self.ridge,
            mask=mask,
        )
        return out, None

    def extra_repr(self) -> str:
        """The options, for print(model)."""
        return (
            f"num_landmarks={self.num_landmarks}, iterations={self.iterations}, ridge={self.ridge}"
        )


class SoftMixer(ProjectedMixer):
    """SOFT (Lu et al. 2021): a Gaussian kernel, without softmax, through the means of segments."""

    kind = SoftAttention
