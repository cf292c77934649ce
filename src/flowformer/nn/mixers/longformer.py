"""Longformer (Beltagy et al. 2020): softmax attention to a window and to a few global tokens."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from flowformer.nn.mixers.blockwise import (
    Part,
    Sequences,
    attend,
    attend_nearby,
    check_positive,
    gather_sequences,
    merge,
    restore,
)
from flowformer.nn.mixers.head_attention import Capabilities, HeadAttention
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.ops.inputs import exact_arithmetic
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.nonfinite import contained


@takes_layouts("query", "key", "value", "global_query", "global_key", "global_value")
@contained("query", "key", "value", "global_query", "global_key", "global_value")
def longformer_attention(  # noqa: PLR0913 - three more tensors than other attentions
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t g d"],
    value: Float[Tensor, "b t g m"],
    *,
    global_query: Float[Tensor, "b t h d"],
    global_key: Float[Tensor, "b t h d"],
    global_value: Float[Tensor, "b t h m"],
    window: int,
    global_tokens: int,
    causal: bool = False,
    mask: Bool[Tensor, "b t"] | None = None,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
) -> Float[Tensor, "b t h m"]:
    """Softmax attention, O(t · (window + global_tokens)); with G the first `global_tokens` tokens:

        out_i = Σ_j softmax_j(q_i · k_j / √d) v_j     over |i - j| ≤ window or j ∈ G,   i ∉ G
        out_i = Σ_j softmax_j(q'_i · k'_j / √d) v'_j  over all j,                       i ∈ G

    where q', k', v' are global projections (section 3.1). The window is that of the paper without
    dilation. Which tokens are global is the task's choice there; here they are the first real ones
    (such as a class token). Causal means j ≤ i in addition, and is the window of the paper's
    language model for `global_tokens=0`. Positions count real tokens.

    Args:
        query: the queries.
        key: the keys; g divides h, and each key head serves h / g query heads.
        value: the values, with as many heads as the keys.
        global_query: q', of which only those of G are used.
        global_key: k'.
        global_value: v'.
        window: reach of the window on each side, w/2 in the paper.
        global_tokens: how many tokens see all and are seen by all.
        causal: let query i see tokens up to i only.
        mask: real tokens (True); the output at the others is zero.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.
    """
    tokens = gather_sequences(query, key, value, mask)
    with exact_arithmetic(query):
        place = torch.arange(query.shape[1], device=query.device)
        local = tokens.real & (place >= global_tokens)
        near = attend_nearby(tokens, local, window, causal=causal)
        if not global_tokens:
            return restore(tokens, near.out)
        out = merge([near, _to_global(tokens, global_tokens, causal=causal)])
        everywhere = gather_sequences(global_query, global_key, global_value, mask)
        first = _from_global(everywhere, global_tokens, causal=causal)
        return restore(tokens, torch.cat((first.out, out[:, :, global_tokens:]), dim=2))


def _to_global(tokens: Sequences, global_tokens: int, *, causal: bool) -> Part:
    """Return the global tokens, as every other token sees them."""
    key, value = (x[:, :, :global_tokens] for x in (tokens.key, tokens.value))
    visible = tokens.real[:, None, None, :global_tokens]
    if causal:
        visible = visible & visible.new_ones(tokens.query.shape[2], key.shape[2]).tril()
    return attend(tokens.query @ key.transpose(-1, -2), visible, value)


def _from_global(tokens: Sequences, global_tokens: int, *, causal: bool) -> Part:
    """Return all tokens, as the global ones see them."""
    query = tokens.query[:, :, :global_tokens]
    visible = tokens.real[:, None, None, :]
    if causal:
        visible = visible & visible.new_ones(query.shape[2], tokens.key.shape[2]).tril()
    return attend(query @ tokens.key.transpose(-1, -2), visible, tokens.value)


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

    capabilities = Capabilities(causal=True, cross=False, state=False)
    inputs = ("query", "key", "value", "hidden")
    value_layers = ("value_global",)
    function = staticmethod(longformer_attention)
    global_tokens: int

    def __init__(
        self, *, dim: int, num_heads: int, head_dim: int, window: int = 128, global_tokens: int = 1
    ) -> None:
        super().__init__(window=window, global_tokens=global_tokens)
        check_positive(window=window)
        if global_tokens != 0:
            check_positive(global_tokens=global_tokens)
        self.num_heads = num_heads
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
        **call: Any,
    ) -> tuple[Float[Tensor, "b t h d"], None]:
        """Return the output; it has no state."""
        everywhere = [query, query, query]  # unused without global tokens
        if self.global_tokens:
            projections = (self.query_global, self.key_global, self.value_global)
            everywhere = [each(hidden).unflatten(-1, (self.num_heads, -1)) for each in projections]
        call.update(zip(("global_query", "global_key", "global_value"), everywhere, strict=True))
        return super().forward(query, key, value, **call)


class LongformerMixer(ProjectedMixer, name="longformer"):
    """Longformer (Beltagy et al. 2020): softmax over a window and the first, global tokens."""

    kind = LongformerAttention
