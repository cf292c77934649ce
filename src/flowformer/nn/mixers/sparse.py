"""The Sparse Transformer's attention as a layer."""

from typing import ClassVar, get_args

from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.nn.mixers.attention import HeadAttention
from flowformer.nn.mixers.capabilities import Capabilities
from flowformer.nn.mixers.projected import ProjectedMixer
from flowformer.ops.baselines import sparse_attention
from flowformer.ops.baselines.blockwise import check_positive
from flowformer.ops.baselines.sparse import Pattern


class SparseAttention(HeadAttention):
    """Factorised softmax attention (Child et al. 2019, section 4.3), both factors in one head.

    Args:
        pattern: "fixed" (blocks and their last tokens; the paper's for text) or "strided" (a window
            and every `stride`-th token; the paper's for images and sound).
        stride: the length of a block or step; best near the root of the sequence's length.
        summary: how many tokens at the end of a block the other blocks see; unused if strided.
    """

    capabilities: ClassVar[Capabilities] = Capabilities(
        causal=True, cross=False, state=False, variable_length=True
    )

    def __init__(self, *, pattern: Pattern = "fixed", stride: int = 128, summary: int = 8) -> None:
        """Hold the options; a wrong one raises here."""
        super().__init__()
        if pattern not in get_args(Pattern):
            raise ValueError(f"pattern must be one of {get_args(Pattern)}, got {pattern!r}")
        check_positive(stride=stride, summary=summary)
        if summary > stride:
            raise ValueError(f"summary must be at most stride, got {summary=} and {stride=}")
        self.pattern: Pattern = pattern
        self.stride, self.summary = stride, summary

    def forward(
        self,
        query: Float[Tensor, "b t h d"],
        key: Float[Tensor, "b t g d"],
        value: Float[Tensor, "b t g m"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t h m"], None]:
        """Return the output; it has no state of bounded size."""
        out = sparse_attention(
            query,
            key,
            value,
            pattern=self.pattern,
            stride=self.stride,
            summary=self.summary,
            causal=causal,
            mask=mask,
        )
        return out, None

    def extra_repr(self) -> str:
        """The options, for print(model)."""
        return f"pattern={self.pattern!r}, stride={self.stride}, summary={self.summary}"


class SparseMixer(ProjectedMixer):
    """Sparse Transformer (Child et al. 2019): softmax over two strided or fixed patterns."""

    kind = SparseAttention
