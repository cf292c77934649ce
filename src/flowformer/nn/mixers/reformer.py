"""Reformer as a layer."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.ops.baselines import reformer_attention
from flowformer.ops.baselines.blockwise import check_positive


class ReformerAttention(HeadAttention):
    """Softmax attention among tokens with the same hash (Kitaev et al. 2020), queries being keys.

    The rotations of the hash are drawn at construction and saved with the parameters; `redraw`
    draws new ones.

    Args:
        num_heads: number of heads; each has rotations of its own.
        head_dim: width of a head.
        rounds: how many hashes; more find more of the keys.
        num_buckets: values of a hash, an even number; the paper has about the length / `chunk`.
        chunk: the sorted tokens see this chunk and that before it.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=True, cross=False, state=False, variable_length=True
    )
    inputs: ClassVar[tuple[str, ...]] = ("query", "value")
    rotations: Tensor

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        rounds: int = 4,
        num_buckets: int = 32,
        chunk: int = 64,
    ) -> None:
        """Draw the rotations."""
        super().__init__()
        check_positive(rounds=rounds, num_buckets=num_buckets, chunk=chunk)
        if num_buckets % 2:
            raise ValueError(f"num_buckets must be even, got {num_buckets}")
        self.chunk = chunk
        shape = (num_heads, head_dim, rounds, num_buckets // 2)
        self.register_buffer("rotations", torch.empty(shape))
        self.redraw()

    def redraw(self) -> None:
        """Draw new rotations."""
        self.rotations.normal_()

    def forward(
        self,
        query: Float[Tensor, "b t h d"],
        value: Float[Tensor, "b t g m"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t h m"], None]:
        """Return the output; it has no state."""
        out = reformer_attention(
            query, value, rotations=self.rotations, chunk=self.chunk, causal=causal, mask=mask
        )
        return out, None

    def extra_repr(self) -> str:
        """The options, for print(model)."""
        rounds, half = self.rotations.shape[2:]
        return f"rounds={rounds}, num_buckets={2 * half}, chunk={self.chunk}"


class ReformerMixer(ProjectedMixer):
    """Reformer (Kitaev et al. 2020): softmax among tokens of one hash; queries are the keys."""

    kind = ReformerAttention
