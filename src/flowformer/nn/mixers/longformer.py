"""Longformer as a layer."""

from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor, nn

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.ops.baselines import longformer_attention
from flowformer.ops.baselines.blockwise import check_positive


class LongformerAttention(HeadAttention):
    """Softmax attention to a window and to the first tokens (Beltagy et al. 2020, section 3.1).

    Global tokens see and are seen by all, through projections of their own.

    Args:
        dim: width of the hidden states.
        num_heads: number of heads.
        head_dim: width of a head.
        window: how many tokens on each side are seen, half of the paper's w.
        global_tokens: how many tokens at the beginning are global; 0 for none.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=True, cross=False, state=False, variable_length=True
    )
    inputs: ClassVar[tuple[str, ...]] = ("query", "key", "value", "hidden")
    value_layers: ClassVar[tuple[str, ...]] = ("value_global",)

    def __init__(
        self, *, dim: int, num_heads: int, head_dim: int, window: int = 128, global_tokens: int = 1
    ) -> None:
        """Create the global projections."""
        super().__init__()
        check_positive(window=window)
        if global_tokens != 0:
            check_positive(global_tokens=global_tokens)
        self.window, self.global_tokens, self.num_heads = window, global_tokens, num_heads
        inner = num_heads * head_dim
        if global_tokens:
            self.query_global = nn.Linear(dim, inner)
            self.key_global = nn.Linear(dim, inner)
            self.value_global = nn.Linear(dim, inner)

    def forward(
        self,
        query: Float[Tensor, "b t h d"],
        key: Float[Tensor, "b t g d"],
        value: Float[Tensor, "b t g d"],
        hidden: Float[Tensor, "b t dim"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t h d"], None]:
        """Return the output; it has no state."""
        everywhere = [query, query, query]  # unused without global tokens
        if self.global_tokens:
            projections = (self.query_global, self.key_global, self.value_global)
            everywhere = [each(hidden).unflatten(-1, (self.num_heads, -1)) for each in projections]
        out = longformer_attention(
            query,
            key,
            value,
            global_query=everywhere[0],
            global_key=everywhere[1],
            global_value=everywhere[2],
            window=self.window,
            global_tokens=self.global_tokens,
            causal=causal,
            mask=mask,
        )
        return out, None

    def extra_repr(self) -> str:
        """The options, for print(model)."""
        return f"window={self.window}, global_tokens={self.global_tokens}"


class LongformerMixer(ProjectedMixer):
    """Longformer (Beltagy et al. 2020): softmax over a window and the first, global tokens."""

    kind = LongformerAttention
