"""Reformer (Kitaev et al. 2020): softmax attention among tokens that a hash puts together."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from flowformer.nn.mixers.blockwise import (
    Part,
    Sequences,
    attend,
    blocks,
    check_positive,
    gather_sequences,
    merge,
    restore,
    windows,
)
from flowformer.nn.mixers.head_attention import Capabilities, HeadAttention
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.ops.inputs import at_most, exact_arithmetic
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.nonfinite import contained

# What attending to oneself costs (appendix A): nothing else is chosen where there is another key.
SELF_PENALTY = 1e5


@takes_layouts("query", "value")
@contained("query", "value")
def reformer_attention(
    query: Float[Tensor, "b t h d"],
    value: Float[Tensor, "b t g m"],
    *,
    rotations: Float[Tensor, "h d r n"],
    chunk: int,
    causal: bool = False,
    mask: Bool[Tensor, "b t"] | None = None,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
) -> Float[Tensor, "b t h m"]:
    """Softmax attention with shared queries and keys, k_j = q_j / ‖q_j‖, over an estimated P_i:

        h⁽ʳ⁾(x) = argmax([x R⁽ʳ⁾; -x R⁽ʳ⁾]), one of 2n buckets                   (section 2)
        P_i⁽ʳ⁾ = {j : h⁽ʳ⁾(q_j) = h⁽ʳ⁾(q_i), j near i in the order sorted by bucket}
        out_i = Σ_j softmax_j(q_i · k_j / √d) v_j over j ∈ ∪_r P_i⁽ʳ⁾ without i; i if it is alone

    After sorting by (bucket, position), j is near i if it is in the same chunk of `chunk` places or
    in that before. A key that several rounds find counts once (log N_ij in appendix A; the
    published codes leave that out by default, and attend across buckets). So more rounds lead to
    softmax attention with shared queries and keys. O(r · t · chunk), counting apart: O(r² · …).

    Causal means j ≤ i, and near is then: at most `chunk` places before i. Chunks would do it as in
    the published codes, but where they begin depends on tokens to come, and so does what i sees.

    Args:
        query: the queries, and the keys.
        value: the values; g divides h, and each serves h / g query heads.
        rotations: R, drawn from N(0, 1); r rounds, 2n buckets.
        chunk: m in the paper.
        causal: let query i see tokens up to i only.
        mask: real tokens (True); the output at the others is zero.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.
    """
    if value.shape[2] != query.shape[2]:
        value = value.repeat_interleave(query.shape[2] // value.shape[2], dim=2)
    tokens = gather_sequences(query, query, value, mask)
    with exact_arithmetic(query):
        bucket = _buckets(tokens, rotations.to(tokens.query.dtype))
        length = bucket.shape[-1]
        position = torch.arange(length, device=bucket.device)
        # [b, h, r, t]: the token at each place of the sorted order, and the place of each token.
        order = (bucket * length + position).argsort(dim=-1)
        place = order.argsort(dim=-1)
        part = _attend_sorted(tokens, bucket, order, place, chunk=chunk, causal=causal)
        out = part.out.flatten(3, 4).take_along_dim(place.unsqueeze(-1), dim=3)
        log_total = part.log_total.flatten(3, 4).take_along_dim(place, dim=3)
        rounds = zip(out.unbind(2), log_total.unbind(2), strict=True)
        return restore(tokens, merge([Part(*each) for each in rounds]))


def _buckets(tokens: Sequences, rotations: Float[Tensor, "h d r n"]) -> Int[Tensor, "b h r t"]:
    """Return the bucket of each token in each round, counted from 1; one more for padding."""
    turned = torch.einsum("bhtd,hdrn->bhrtn", tokens.query.detach(), rotations)
    bucket = torch.cat((turned, -turned), dim=-1).argmax(dim=-1) + 1
    padding = 2 * rotations.shape[-1] + 1
    return bucket.masked_fill(~tokens.real[:, None, None, :], padding)


def _attend_sorted(
    tokens: Sequences,
    bucket: Int[Tensor, "b h r t"],
    order: Int[Tensor, "b h r t"],
    place: Int[Tensor, "b h r t"],
    *,
    chunk: int,
    causal: bool,
) -> Part:
    """Return the attention of each round, [b, h, r, chunks, chunk], in its sorted order."""
    chunk = at_most(chunk, bucket.shape[-1])
    query, key, value = (
        x.unsqueeze(2).take_along_dim(order.unsqueeze(-1), dim=3)
        for x in (tokens.query, F.normalize(tokens.key, dim=-1), tokens.value)
    )
    keys, values = (windows(x, chunk, before=chunk, after=0) for x in (key, value))
    scores = blocks(query, chunk) @ keys.transpose(-1, -2)
    where, reach = (place, chunk) if causal else (place // chunk, 1)
    visible = _together(bucket, where, order, chunk, reach)
    # How many rounds find each pair.
    times = torch.zeros_like(visible, dtype=torch.int16)
    for other_bucket, other_where in zip(bucket.split(1, 2), where.split(1, 2), strict=True):
        times = times + _together(other_bucket, other_where, order, chunk, reach)
    token = order.unsqueeze(-1)
    own = blocks(token, chunk) == windows(token, chunk, before=chunk, after=0).transpose(-1, -2)
    cost = times.clamp(min=1).to(scores.dtype).log() + SELF_PENALTY * own
    return attend(scores - cost, visible, values)


def _together(
    bucket: Int[Tensor, "b h #r t"],
    where: Int[Tensor, "b h #r t"],
    order: Int[Tensor, "b h r t"],
    chunk: int,
    reach: int,
) -> Bool[Tensor, "b h r chunks chunk window"]:
    """Return whether a round finds each pair; it is that of the layout, or one for all layouts."""
    bucket, where = (x.take_along_dim(order, dim=-1).unsqueeze(-1) for x in (bucket, where))
    other_bucket, other_where = (
        windows(x, chunk, before=chunk, after=0).transpose(-1, -2) for x in (bucket, where)
    )
    apart = blocks(where, chunk) - other_where
    # Places beyond either end have bucket 0, which no token has.
    return (blocks(bucket, chunk) == other_bucket) & (apart >= 0) & (apart <= reach)


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

    capabilities = Capabilities(causal=True, cross=False, state=False)
    inputs = ("query", "value")
    function = staticmethod(reformer_attention)
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
        super().__init__(chunk=chunk)
        check_positive(rounds=rounds, num_buckets=num_buckets, chunk=chunk)
        if num_buckets % 2:
            raise ValueError(f"num_buckets must be even, got {num_buckets}")
        shape = (num_heads, head_dim, rounds, num_buckets // 2)
        self.register_buffer("rotations", torch.empty(shape))
        self.redraw()

    def redraw(self) -> None:
        """Draw new rotations."""
        self.rotations.normal_()

    def extra_repr(self) -> str:
        """Return the options, for print(model)."""
        rounds, half = self.rotations.shape[2:]
        return f"rounds={rounds}, num_buckets={2 * half}, {super().extra_repr()}"

    def arguments(self) -> dict[str, Any]:
        """Return the rotations too."""
        return {**super().arguments(), "rotations": self.rotations}


class ReformerMixer(ProjectedMixer, name="reformer"):
    """Reformer (Kitaev et al. 2020): softmax among tokens of one hash; queries are the keys."""

    kind = ReformerAttention
