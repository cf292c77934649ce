"""Local attention as a layer."""

from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.ops.baselines import LocalState, local_attention
from flowformer.ops.baselines.blockwise import check_positive


class LocalAttention(HeadAttention):
    """Softmax attention to the neighbours; its state holds the last `window` tokens.

    Args:
        window: how many tokens on each side are seen, or the size of a block.
        blocked: the sequence is cut into blocks that do not see each other (as in the long-range
            arena, Tay et al. 2021); otherwise the window slides.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=True, cross=False, state=True, variable_length=True
    )

    def __init__(self, *, window: int = 128, blocked: bool = False) -> None:
        """Hold the options."""
        super().__init__()
        check_positive(window=window)
        self.window, self.blocked = window, blocked

    def forward(
        self,
        query: Float[Tensor, "b t h d"],
        key: Float[Tensor, "b t g d"],
        value: Float[Tensor, "b t g m"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b t"] | None = None,
        state: LocalState | None = None,
        return_state: bool = False,
    ) -> tuple[Float[Tensor, "b t h m"], LocalState | None]:
        """Return the output and, if asked for, the last tokens."""
        result = local_attention(
            query,
            key,
            value,
            window=self.window,
            blocked=self.blocked,
            causal=causal,
            mask=mask,
            initial_state=state,
            return_state=return_state,
        )
        return (result[0], result[1]) if isinstance(result, tuple) else (result, None)

    def extra_repr(self) -> str:
        """The options, for print(model)."""
        return f"window={self.window}, blocked={self.blocked}"


class LocalMixer(ProjectedMixer):
    """Local attention: softmax over a sliding window, or inside of blocks."""

    kind = LocalAttention
