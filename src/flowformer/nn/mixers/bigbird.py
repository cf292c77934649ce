"""BigBird as a layer."""

from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.ops.baselines import bigbird_attention
from flowformer.ops.baselines.bigbird import draw_random_blocks
from flowformer.ops.baselines.blockwise import check_positive


class BigBirdAttention(HeadAttention):
    """Softmax attention to global, neighbouring and random blocks (Zaheer et al. 2020).

    The random blocks follow from a seed that is drawn at construction and saved with the
    parameters, so layers differ, and a loaded model sees what the saved one saw.

    Args:
        block: tokens in a block.
        random_blocks: how many random blocks each block sees, for each head its own.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=False, cross=False, state=False, variable_length=True
    )
    seed: Tensor

    def __init__(self, *, block: int = 64, random_blocks: int = 3) -> None:
        """Draw the seed."""
        super().__init__()
        check_positive(block=block)
        if random_blocks != 0:
            check_positive(random_blocks=random_blocks)
        self.block, self.random_blocks = block, random_blocks
        self.register_buffer("seed", torch.randint(2**31, ()))

    def forward(
        self,
        query: Float[Tensor, "b t h d"],
        key: Float[Tensor, "b t g d"],
        value: Float[Tensor, "b t g m"],
        *,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t h m"], None]:
        """Return the output; it has no state."""
        batch, length, heads = query.shape[:3]
        if mask is None:
            tokens = torch.full((batch,), length, device=query.device)
        else:
            tokens = mask.sum(dim=1)
        chosen = draw_random_blocks(
            self.seed,
            tokens,
            heads=heads,
            count=self.random_blocks,
            block=self.block,
            length=length,
        )
        out = bigbird_attention(
            query, key, value, block=self.block, random_blocks=chosen, mask=mask
        )
        return out, None

    def extra_repr(self) -> str:
        """The options, for print(model)."""
        return f"block={self.block}, random_blocks={self.random_blocks}"


class BigBirdMixer(ProjectedMixer):
    """BigBird (Zaheer et al. 2020): softmax over global, neighbouring and random blocks."""

    kind = BigBirdAttention
