"""Synthesizer (Tay et al. 2020): attention weights that are synthesized, not compared."""

import math
from collections.abc import Sequence
from functools import partial, partialmethod
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from flowformer.nn.mixers.head_attention import Capabilities, HeadAttention
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.nn.mixers.nystromformer import masked_softmax
from flowformer.ops.features import compute_dtype, masked
from flowformer.ops.inputs import exact_arithmetic, resolve_masks
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.nonfinite import contained, may_be_spoiled, may_look


@takes_layouts("value")
@contained("value")
def synthesizer_attention(
    scores: Float[Tensor, "#b h t t"],
    value: Float[Tensor, "b t g m"],
    *,
    causal: bool = False,
    mask: Bool[Tensor, "b t"] | None = None,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
) -> Float[Tensor, "b t h m"]:
    """out_i = Σ_j softmax_j(B_ij) v_j, the sum over real tokens (and j ≤ i when causal).

    B comes from x_i alone (dense), from the places i and j alone (random), or is a sum of several
    such matrices, with weights that sum to one, and of dot products (mixture).

    Args:
        scores: B for each pair of tokens, by one of the functions below.
        value: the values; g divides h, and each value head serves h / g heads of scores.
        causal: let token i draw from the tokens up to i only.
        mask: real tokens (True); the output at the others is zero.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.
    """
    resolve_masks(value, value, causal=causal, mask=mask)
    exact = compute_dtype(value.dtype)
    length, groups = scores.shape[-1], scores.shape[1] // value.shape[2]
    allowed = scores.new_ones(1, 1, length, length, dtype=torch.bool)
    if causal:
        allowed = allowed.tril()
    if mask is not None:
        allowed = allowed & mask[:, None, None, :]
    lost = None
    if causal and may_look(scores) and may_be_spoiled(scores):
        scores = scores.masked_fill(~allowed, 0)
        lost = ~scores.detach().isfinite().all(-1, keepdim=True)  # rows, of the tokens that draw
        scores = torch.where(lost, 0, scores)
    with exact_arithmetic(value):
        v = masked(value, mask).to(exact).repeat_interleave(groups, dim=2).transpose(1, 2)
        out = masked_softmax(scores.to(exact), allowed) @ v
        out = (out if lost is None else torch.where(lost, torch.nan, out)).transpose(1, 2)
    return masked(out, mask).to(value.dtype)


def real_numbers(mask: Bool[Tensor, "b t"]) -> Int[Tensor, "b t"]:
    """Return the place of each token: 0, 1, … for the real ones, as if the sequence stood alone."""
    return (mask.cumsum(dim=1) - 1).clamp(min=0)


def dense_scores(
    hidden: Float[Tensor, "b t h r"],
    weight: Float[Tensor, "h n r"],
    bias: Float[Tensor, "h n"],
    number: Int[Tensor, "b t"] | None,
) -> Float[Tensor, "b h t t"]:
    """B_i = W relu(h_i) + b: a score for each of n places, of which each token takes its own.

    Args:
        hidden: a first linear layer of the hidden states, split into heads.
        weight: W.
        bias: b.
        number: the place of each token; None for 0, 1, …
    """
    scores = torch.einsum("bthr,hnr->bhtn", hidden.relu(), weight) + bias[:, None, :]
    return _columns(scores, number)


def random_scores(
    table: Float[Tensor, "h n n"], number: Int[Tensor, "b t"] | None, length: int
) -> Float[Tensor, "#b h t t"]:
    """B = R, a parameter that sees no token; rows and columns are those of the tokens' places.

    The factorized form has R = R₁ R₂ᵀ with R₁ and R₂ [n, k] (the caller multiplies them).

    Args:
        table: R.
        number: the place of each token; None for 0, 1, …
        length: t.
    """
    if number is None:
        return table[None, :, :length, :length]
    return _columns(table[:, number].transpose(0, 1), number)


def factorized_dense_scores(
    left: Float[Tensor, "b t h a"],
    right: Float[Tensor, "b t h c"],
    number: Int[Tensor, "b t"] | None,
) -> Float[Tensor, "b h t t"]:
    """B_in = left_i[n mod a] · right_i[n div a]: two short vectors tiled to a·c places.

    The paper repeats both vectors and leaves the order open. Here one is repeated as a whole and
    the other entry by entry, so that each of the a·c products occurs once.

    Args:
        left: a linear layer of the hidden states.
        right: another.
        number: the place of each token; None for 0, 1, …
    """
    product = right[..., :, None] * left[..., None, :]
    return _columns(product.flatten(-2).transpose(1, 2), number)


def dot_product_scores(
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t g d"],
    mask: Bool[Tensor, "b t"] | None,
) -> Float[Tensor, "b h t t"]:
    """B_ij = q_i · k_j / √d, the usual scores, as a part of a mixture.

    Args:
        query: the queries.
        key: the keys; g divides h, and each key head serves h / g query heads.
        mask: real tokens (True).
    """
    exact = compute_dtype(query.dtype)
    with exact_arithmetic(query):
        query, key = masked(query, mask).to(exact), masked(key, mask).to(exact)
        key = key.repeat_interleave(query.shape[2] // key.shape[2], dim=2)
        return torch.einsum("bihd,bjhd->bhij", query, key) * float(query.shape[-1]) ** -0.5


def _columns(
    scores: Float[Tensor, "b h t n"], number: Int[Tensor, "b t"] | None
) -> Float[Tensor, "b h t t"]:
    """Return the scores of the tokens' places, of those of all places."""
    length = scores.shape[2]
    if number is None:
        return scores[..., :length]
    return scores.gather(-1, number[:, None, None, :].expand(*scores.shape[:3], length))


Part = Literal["dense", "factorized-dense", "random", "fixed-random", "factorized-random"]


class DenseScores(nn.Module):
    """Scores of each token for all places, by a layer with relu and a linear one.

    Args:
        dim: width of the hidden states.
        num_heads: number of heads.
        head_dim: width between the two layers, in each head.
        max_length: number of places.
    """

    def __init__(self, *, dim: int, num_heads: int, head_dim: int, max_length: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(dim, num_heads * head_dim)
        self.weight = nn.Parameter(torch.empty(num_heads, max_length, head_dim))
        self.bias = nn.Parameter(torch.zeros(num_heads, max_length))
        nn.init.uniform_(self.weight, -(head_dim**-0.5), head_dim**-0.5)

    def forward(
        self, hidden: Float[Tensor, "b t dim"], number: Int[Tensor, "b t"] | None
    ) -> Float[Tensor, "b h t t"]:
        """Return the scores of the tokens for each other."""
        heads = self.hidden(hidden).unflatten(-1, (len(self.weight), -1))
        return dense_scores(heads, self.weight, self.bias, number)


class FactorizedDenseScores(nn.Module):
    """Scores of each token for all places, as products of the entries of two short vectors.

    Args:
        dim: width of the hidden states.
        num_heads: number of heads.
        max_length: number of places, about the product of the two widths.
    """

    def __init__(self, *, dim: int, num_heads: int, max_length: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        width = math.isqrt(max_length - 1) + 1
        self.left = nn.Linear(dim, num_heads * width)
        self.right = nn.Linear(dim, num_heads * -(-max_length // width))

    def forward(
        self, hidden: Float[Tensor, "b t dim"], number: Int[Tensor, "b t"] | None
    ) -> Float[Tensor, "b h t t"]:
        """Return the scores of the tokens for each other."""
        left, right = (
            layer(hidden).unflatten(-1, (self.num_heads, -1)) for layer in (self.left, self.right)
        )
        return factorized_dense_scores(left, right, number)


class RandomScores(nn.Module):
    """Scores of each place for all places, drawn from N(0, 1) at first.

    Args:
        num_heads: number of heads.
        max_length: number of places.
        trained: whether they are parameters; otherwise they stay as drawn.
    """

    def __init__(self, *, num_heads: int, max_length: int, trained: bool) -> None:
        super().__init__()
        table = torch.randn(num_heads, max_length, max_length)
        if trained:
            self.table = nn.Parameter(table)
        else:
            self.register_buffer("table", table)

    def forward(
        self, hidden: Float[Tensor, "b t dim"], number: Int[Tensor, "b t"] | None
    ) -> Float[Tensor, "#b h t t"]:
        """Return the scores of the tokens' places for each other."""
        return random_scores(self.table, number, hidden.shape[1])


class FactorizedRandomScores(nn.Module):
    """Scores of each place for all places, as a product of two narrow matrices.

    Args:
        num_heads: number of heads.
        max_length: number of places.
        rank: width of the matrices, called k in the paper.
    """

    def __init__(self, *, num_heads: int, max_length: int, rank: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.randn(num_heads, max_length, rank) * rank**-0.25)
        self.right = nn.Parameter(torch.randn(num_heads, max_length, rank) * rank**-0.25)

    def forward(
        self, hidden: Float[Tensor, "b t dim"], number: Int[Tensor, "b t"] | None
    ) -> Float[Tensor, "#b h t t"]:
        """Return the scores of the tokens' places for each other."""
        return random_scores(self.left @ self.right.mT, number, hidden.shape[1])


class Synthesis(nn.Module):
    """The weighted sum of parts, with weights that sum to one, and their share of anything else.

    Args:
        parts: the names of the parts.
        others: how many scores the caller adds to the sum.
        dim: width of the hidden states.
        num_heads: number of heads.
        head_dim: width of a head.
        max_length: number of places.
        rank: of a factorized random part.

    Raises:
        ValueError: there is no part, one is unknown, or one is named twice.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        others: int,
        dim: int,
        num_heads: int,
        head_dim: int,
        max_length: int,
        rank: int,
    ) -> None:
        super().__init__()
        if not parts or len(set(parts)) != len(parts) or not set(parts) <= set(get_args(Part)):
            raise ValueError(
                f"parts must be one or more of {', '.join(get_args(Part))}, each once, got {parts}"
            )
        if rank < 1:
            raise ValueError(f"rank must be positive, got {rank}")
        self.max_length = max_length
        random = partial(RandomScores, num_heads=num_heads, max_length=max_length)
        makers = {
            "dense": partial(
                DenseScores, dim=dim, num_heads=num_heads, head_dim=head_dim, max_length=max_length
            ),
            "factorized-dense": partial(
                FactorizedDenseScores, dim=dim, num_heads=num_heads, max_length=max_length
            ),
            "random": partial(random, trained=True),
            "fixed-random": partial(random, trained=False),
            "factorized-random": partial(
                FactorizedRandomScores, num_heads=num_heads, max_length=max_length, rank=rank
            ),
        }
        self.parts = nn.ModuleDict({name: makers[name]() for name in parts})
        count = len(parts) + others
        self.mixing = nn.Parameter(torch.zeros(count)) if count > 1 else None

    def forward(
        self,
        hidden: Float[Tensor, "b t dim"],
        mask: Bool[Tensor, "b t"] | None,
        *others: Float[Tensor, "b h t t"],
    ) -> Float[Tensor, "#b h t t"]:
        """Return Σ_p α_p B_p, α = softmax(mixing); one part alone has the weight 1.

        Raises:
            ValueError: more tokens than places.
        """
        if hidden.shape[1] > self.max_length:
            raise ValueError(
                f"synthesizer has scores for {self.max_length} keys, got {hidden.shape[1]}: "
                "give it a larger max_length"
            )
        number = None
        if mask is not None:
            # Selected and not multiplied: padding may hold NaN.
            hidden, number = hidden.masked_fill(~mask[..., None], 0), real_numbers(mask)
        scores = [part(hidden, number) for part in self.parts.values()]
        scores.extend(others)
        if self.mixing is None:
            return scores[0]
        weights = self.mixing.softmax(dim=0)
        total = weights[0] * scores[0]
        for weight, score in zip(weights[1:], scores[1:], strict=True):
            total = total + weight * score
        return total


class SynthesizingAttention(HeadAttention):
    """An attention whose scores are synthesized, all of them or some.

    Args:
        dim: width of the hidden states.
        num_heads: number of heads.
        head_dim: width of a head.
        max_length: longest sequence; a token has a score for each place.
        parts: where the scores come from: "dense" (the token), "factorized-dense", "random" (the
            place), "fixed-random" (not trained), "factorized-random", or several of them.
        rank: of "factorized-random".
    """

    capabilities = Capabilities(causal=True, cross=False, state=False, variable_length=False)

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        head_dim: int,
        max_length: int,
        parts: Sequence[Part] = ("dense",),
        rank: int = 8,
    ) -> None:
        super().__init__()
        self.synthesis = Synthesis(
            parts,
            others=int("query" in self.inputs),  # the dot products
            dim=dim,
            num_heads=num_heads,
            head_dim=head_dim,
            max_length=max_length,
            rank=rank,
        )


class SynthesizerAttention(SynthesizingAttention):
    """Synthesizer (Tay et al. 2020): weights from each token alone, or from its place alone."""

    inputs = ("hidden", "value")

    @contained("hidden", "value")
    def forward(
        self,
        hidden: Float[Tensor, "b t dim"],
        value: Float[Tensor, "b t g m"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t h m"], None]:
        """Return the output; it has no state."""
        scores = self.synthesis(hidden, mask)
        return synthesizer_attention(scores, value, causal=causal, mask=mask), None


class SynthesizerMixtureAttention(SynthesizingAttention):
    """Synthesizer (Tay et al. 2020), mixed with dot products: scores α₀ q·k/√d + Σ_p α_p B_p."""

    inputs = ("hidden", "query", "key", "value")
    __init__ = partialmethod(SynthesizingAttention.__init__, parts=("random",))  # pyright: ignore[reportAssignmentType]

    @contained("hidden", "query", "key", "value")
    def forward(
        self,
        hidden: Float[Tensor, "b t dim"],
        query: Float[Tensor, "b t h d"],
        key: Float[Tensor, "b t g d"],
        value: Float[Tensor, "b t g m"],
        *,
        causal: bool = False,
        mask: Bool[Tensor, "b t"] | None = None,
    ) -> tuple[Float[Tensor, "b t h m"], None]:
        """Return the output; it has no state."""
        scores = self.synthesis(hidden, mask, dot_product_scores(query, key, mask))
        return synthesizer_attention(scores, value, causal=causal, mask=mask), None


class SynthesizerMixer(ProjectedMixer, name="synthesizer"):
    """Synthesizer (Tay et al. 2020): weights from a token or its place; needs max_length."""

    kind = SynthesizerAttention


class SynthesizerMixtureMixer(ProjectedMixer, name="synthesizer-mixture"):
    """Synthesizer mixed with dot products (Tay et al. 2020); needs max_length."""

    kind = SynthesizerMixtureAttention
