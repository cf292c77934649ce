"""Sparse Sinkhorn attention (Tay et al. 2020): each block attends to itself and a sorted block."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from flowformer.nn.mixers.blockwise import (
    EMPTY,
    Sequences,
    attend,
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


@takes_layouts("query", "key", "value")
@contained("query", "key", "value")
def sinkhorn_attention(  # noqa: PLR0913 - the keywords that every attention here takes
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t g d"],
    value: Float[Tensor, "b t g m"],
    *,
    block: int,
    iterations: int,
    temperature: float,
    noise: Float[Tensor, "b h n n"] | None = None,
    causal: bool = False,
    mask: Bool[Tensor, "b t"] | None = None,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
) -> Float[Tensor, "b t h m"]:
    """Softmax attention of each block I to its own keys and to those sorted to it, Σ_J R_IJ K_J.

        S_IJ = relu(q̄_I · k̄_J / √d), the bars for means over a block
        R = Sinkhorn((log(S + 10⁻⁶) + noise) / temperature): rows, then columns, of exp(·) are
            divided by their sums, `iterations` times: a doubly stochastic matrix, "soft" sorting
        out_i = softmax(q_i · [Σ_J R_IJ K_J; K_I] / √d) [Σ_J R_IJ V_J; V_I]     (section 3.3)

    The scores S are those of the package sinkhorn-transformer ("attention sort net"); the paper
    computes them with parameters for a fixed number of blocks. Costs O(t · block + (t / block)²).
    Position p of a sorted block mixes tokens p of all blocks; where a shorter last block has none,
    it counts for as much as the others are there (we add the logarithm of that share to its score).

    Causal (section 3.4): block I gets earlier blocks only, J < I; q̄_I is the mean of all queries up
    to its first; its own keys are masked as usual. A column is divided by its sum over blocks up to
    I, for its whole sum would know the queries of later blocks.

    Args:
        query: the queries.
        key: the keys; g divides h, and each key head serves h / g query heads.
        value: the values, with as many heads as the keys.
        block: tokens in a block.
        iterations: of the normalisation.
        temperature: τ; the lower, the nearer is R to a permutation.
        noise: Gumbel noise for training, n = ⌈t / block⌉.
        causal: let query i see tokens up to i only.
        mask: real tokens (True); the output at the others is zero.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.
    """
    tokens = gather_sequences(query, key, value, mask)
    with exact_arithmetic(query):
        scores = _block_scores(tokens, block, causal=causal)
        logits = (scores.relu() + 1e-6).log()
        if noise is not None:
            logits = logits + noise
        filled = blocks(tokens.real[..., None], block).any(dim=(-1, -2))  # [b, n]
        allowed = (filled[:, :, None] & filled[:, None, :]).unsqueeze(1)
        if causal:
            allowed = allowed.tril(-1)
        sorting = sinkhorn(logits / temperature, allowed, iterations=iterations, causal=causal)
        return restore(tokens, _attend_sorted(tokens, block, sorting, causal=causal))


def sinkhorn(
    logits: Float[Tensor, "b h n n"],
    allowed: Bool[Tensor, "b 1 n n"],
    *,
    iterations: int,
    causal: bool,
) -> Float[Tensor, "b h n n"]:
    """Divide the rows and then the columns of exp(logits) by their sums, again and again.

    What is not allowed is zero. When causal, a column's sum runs over the rows so far.
    """
    logits = logits.masked_fill(~allowed, EMPTY)
    for _ in range(iterations):
        logits = logits - logits.logsumexp(dim=-1, keepdim=True)
        logits = logits.masked_fill(~allowed, EMPTY)
        column = logits.logcumsumexp(dim=-2) if causal else logits.logsumexp(dim=-2, keepdim=True)
        logits = (logits - column).masked_fill(~allowed, EMPTY)
    return logits.exp()


def _block_scores(tokens: Sequences, block: int, *, causal: bool) -> Float[Tensor, "b h n n"]:
    real = blocks(tokens.real[:, None, :, None], block)
    # An empty block is divided by one, and hidden later.
    key = blocks(tokens.key, block).sum(dim=-2) / real.sum(dim=-2).clamp(min=1)
    if causal:
        seen = torch.arange(1, tokens.query.shape[2] + 1, device=key.device)[:, None]
        query = blocks(tokens.query.cumsum(dim=2) / seen, block)[..., 0, :]
    else:
        query = blocks(tokens.query, block).sum(dim=-2) / real.sum(dim=-2).clamp(min=1)
    return query @ key.transpose(-1, -2)


def _attend_sorted(
    tokens: Sequences, block: int, sorting: Float[Tensor, "b h n n"], *, causal: bool
) -> Float[Tensor, "b h t m"]:
    query, key, value = (blocks(x, block) for x in (tokens.query, tokens.key, tokens.value))
    real = blocks(tokens.real[:, None, :, None], block)
    own = real.transpose(-1, -2)
    if causal:
        own = own & own.new_ones(block, block).tril()
    sorted_key, sorted_value, weight = (
        torch.einsum("bhij,bhjpd->bhipd", sorting, x.expand(-1, sorting.shape[1], -1, -1, -1))
        for x in (key, value, real.to(key.dtype))
    )
    share = (weight / weight.amax(dim=-2, keepdim=True).clamp(min=1e-30)).transpose(-1, -2)
    visible = share > 0
    bias = share.masked_fill(~visible, 1).log()
    sorted_part = attend(query @ sorted_key.transpose(-1, -2) + bias, visible, sorted_value)
    own_part = attend(query @ key.transpose(-1, -2), own, value)
    length = tokens.query.shape[2]
    return merge([in_order(part, length) for part in (sorted_part, own_part)])


class SinkhornAttention(HeadAttention):
    """Softmax attention to a block and to what is sorted to it (Tay et al. 2020).

    Args:
        block: tokens in a block.
        iterations: of the normalisation of rows and columns.
        temperature: the lower, the nearer is the sorting to a permutation.
        noise: add Gumbel noise to the sorting's scores in training.
    """

    capabilities = Capabilities(causal=True, cross=False, state=False)
    function = staticmethod(sinkhorn_attention)
    block: int

    def __init__(
        self,
        *,
        block: int = 64,
        iterations: int = 8,
        temperature: float = 0.75,
        noise: bool = True,
    ) -> None:
        super().__init__(block=block, iterations=iterations, temperature=temperature)
        check_positive(block=block, iterations=iterations)
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature!r}")
        self.noise = noise

    def forward(
        self, query: Float[Tensor, "b t h d"], *others: Tensor, **call: Any
    ) -> tuple[Tensor, None]:
        """Return the output; it has no state."""
        if self.noise and self.training:
            batch, length, heads = query.shape[:3]
            count = -(-length // self.block)
            exact = torch.promote_types(query.dtype, torch.float32)
            uniform = torch.rand(batch, heads, count, count, dtype=exact, device=query.device)
            call["noise"] = -(1e-6 - (uniform + 1e-6).log()).log()
        return super().forward(query, *others, **call)

    def extra_repr(self) -> str:
        """Return the options, for print(model)."""
        return f"{super().extra_repr()}, noise={self.noise}"


class SinkhornMixer(ProjectedMixer, name="sinkhorn"):
    """Sparse Sinkhorn attention (Tay et al. 2020): softmax over a block and a sorted block."""

    kind = SinkhornAttention
