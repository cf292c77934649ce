"""YOSO-E as a layer."""

from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.ops.baselines import yoso_attention


class YosoAttention(HeadAttention):
    """YOSO-E (Zeng et al. 2021): the probability that hashes collide; quadratic in the length.

    Args:
        hash_bits: number of hyperplanes in a hash, called τ in the paper.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=False, cross=True, state=False, variable_length=True, independent_sinks=True
    )
    linear_in_values = False  # each output is scaled to length 1

    def __init__(self, *, hash_bits: int = 9) -> None:
        """Hold the option."""
        super().__init__()
        if hash_bits < 1:
            raise ValueError(f"hash_bits must be positive, got {hash_bits}")
        self.hash_bits = hash_bits

    def forward(
        self,
        query: Float[Tensor, "b l h d"],
        key: Float[Tensor, "b s g d"],
        value: Float[Tensor, "b s g m"],
        *,
        mask: Bool[Tensor, "b l"] | None = None,
        query_mask: Bool[Tensor, "b l"] | None = None,
        key_mask: Bool[Tensor, "b s"] | None = None,
    ) -> tuple[Float[Tensor, "b l h m"], None]:
        """Return the output; it has no state."""
        out = yoso_attention(
            query,
            key,
            value,
            hash_bits=self.hash_bits,
            mask=mask,
            query_mask=query_mask,
            key_mask=key_mask,
        )
        return out, None

    def extra_repr(self) -> str:
        """The option, for print(model)."""
        return f"hash_bits={self.hash_bits}"


class YosoMixer(ProjectedMixer):
    """YOSO-E (Zeng et al. 2021): weights are the probability that hashes collide."""

    kind = YosoAttention
