"""Sparse Transformer (Child et al. 2019): factorised softmax attention, strided and fixed."""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.nn.mixers.blockwise import (
    Part,
    Sequences,
    attend,
    attend_nearby,
    blocks,
    check_positive,
    gather_sequences,
    in_order,
    merge,
    restore,
)
from flowformer.nn.mixers.head_attention import Capabilities, HeadAttention
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.ops.inputs import exact_arithmetic
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.nonfinite import contained

Pattern = Literal["strided", "fixed"]


@takes_layouts("query", "key", "value")
@contained("query", "key", "value")
def sparse_attention(  # noqa: PLR0913 - the keywords that every attention here takes
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t g d"],
    value: Float[Tensor, "b t g m"],
    *,
    pattern: Pattern,
    stride: int,
    summary: int,
    causal: bool = False,
    mask: Bool[Tensor, "b t"] | None = None,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
) -> Float[Tensor, "b t h m"]:
    """out_i = Σ_j softmax_j(q_i · k_j / √d) v_j over j ∈ A⁽¹⁾_i ∪ A⁽²⁾_i (section 4.3), ℓ = stride.

        strided   A⁽¹⁾ = {i - ℓ, …, i}                     A⁽²⁾ = {j : (i - j) mod ℓ = 0}
        fixed     A⁽¹⁾ = {j : ⌊j / ℓ⌋ = ⌊i / ℓ⌋}           A⁽²⁾ = {j : j mod ℓ ≥ ℓ - summary}

    Two such steps connect any two tokens. The paper has three ways to combine them; this is the
    second, one head over the union. It costs O(t ℓ + t² / ℓ) (times `summary` if fixed): O(t √t)
    for ℓ near √t, as the paper advises. The paper is causal (j ≤ i); the form that sees both ways
    has A⁽¹⁾ = {j : |i - j| ≤ ℓ} if strided, and otherwise drops j ≤ i. Positions count real tokens.

    Args:
        query: the queries.
        key: the keys; g divides h, and each key head serves h / g query heads.
        value: the values, with as many heads as the keys.
        pattern: "strided" (for images, sound: data with a period) or "fixed" (for text).
        stride: ℓ, 128 in the paper.
        summary: how many tokens at the end of a block all later ones see, c in the paper, where it
            is 8 to 32; the strided pattern has none.
        causal: let query i see tokens up to i only.
        mask: real tokens (True); the output at the others is zero.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.
    """
    tokens = gather_sequences(query, key, value, mask)
    with exact_arithmetic(query):
        if pattern == "strided":
            parts = (
                attend_nearby(tokens, tokens.real, stride, causal=causal),
                _column(tokens, stride, causal=causal),
            )
        else:
            parts = (
                _block(tokens, stride, causal=causal),
                _summary(tokens, stride, summary, causal=causal),
            )
        return restore(tokens, merge(parts))


def _column(tokens: Sequences, stride: int, *, causal: bool) -> Part:
    """Return every stride-th token, but for those in the window."""
    length = tokens.query.shape[2]
    q, k, v, real = (
        blocks(x, stride).transpose(2, 3)
        for x in (tokens.query, tokens.key, tokens.value, tokens.real[:, None, :, None])
    )
    row = torch.arange(q.shape[3], device=q.device)
    distance = row[:, None] - row
    far = distance > 1 if causal else distance.abs() > 1
    part = attend(q @ k.transpose(-1, -2), far & real.transpose(-1, -2), v)
    part = Part(part.out.transpose(2, 3), part.log_total.transpose(2, 3))
    return in_order(part, length)


def _block(tokens: Sequences, stride: int, *, causal: bool) -> Part:
    """Return the tokens of the same block."""
    length = tokens.query.shape[2]
    q, k, v, real = (
        blocks(x, stride)
        for x in (tokens.query, tokens.key, tokens.value, tokens.real[:, None, :, None])
    )
    visible = real.transpose(-1, -2)
    if causal:
        visible = visible & real.new_ones(stride, stride).tril()
    return in_order(attend(q @ k.transpose(-1, -2), visible, v), length)


def _summary(tokens: Sequences, stride: int, summary: int, *, causal: bool) -> Part:
    """Return the last tokens of the other blocks."""
    length = tokens.query.shape[2]
    k, v, real = (
        blocks(x, stride)[..., stride - summary :, :].flatten(2, 3)
        for x in (tokens.key, tokens.value, tokens.real[:, None, :, None])
    )
    own = torch.arange(length, device=k.device)[:, None] // stride
    other = torch.arange(k.shape[2], device=k.device) // summary
    apart = other < own if causal else other != own
    return attend(tokens.query @ k.transpose(-1, -2), apart & real.transpose(-1, -2), v)


class SparseAttention(HeadAttention):
    """Factorised softmax attention (Child et al. 2019, section 4.3), both factors in one head.

    Args:
        pattern: "fixed" (blocks and their last tokens; the paper's for text) or "strided" (a window
            and every `stride`-th token; the paper's for images and sound).
        stride: the length of a block or step; best near the root of the sequence's length.
        summary: how many tokens at the end of a block the other blocks see; unused if strided.
    """

    capabilities = Capabilities(causal=True, cross=False, state=False)
    function = staticmethod(sparse_attention)

    def __init__(self, *, pattern: Pattern = "fixed", stride: int = 128, summary: int = 8) -> None:
        super().__init__(pattern=pattern, stride=stride, summary=summary)
        if pattern not in get_args(Pattern):
            raise ValueError(f"pattern must be one of {get_args(Pattern)}, got {pattern!r}")
        check_positive(stride=stride, summary=summary)
        if summary > stride:
            raise ValueError(f"summary must be at most stride, got {summary=} and {stride=}")


class SparseMixer(ProjectedMixer, name="sparse"):
    """Sparse Transformer (Child et al. 2019): softmax over two strided or fixed patterns."""

    kind = SparseAttention
