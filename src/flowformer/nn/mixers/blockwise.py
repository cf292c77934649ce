"""The common part of the sparse attentions: order of tokens, windows, and parts of a softmax.

Each of them attends to a few sets of keys, of which each is dense in some layout: a window is dense
in blocks, every n-th token in columns, a hash bucket in sorted order. `attend` is the softmax over
one such set, and `merge` joins sets that share no key: a softmax over a union is the mean of the
softmaxes over its parts, weighted by their totals Σ exp(score). So none holds a full [t, t] matrix.

Their functions raise ValueError where shapes do not fit, and TypeError where a mask is not boolean.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from flowformer.ops.features import compute_dtype, front_order
from flowformer.ops.inputs import at_most, check_causal, check_tensors, resolve_masks

# The log of the total over no key. Finite: the difference of two infinities would be NaN.
EMPTY = -1e30


def check_positive(**options: object) -> None:
    """Refuse an option that is not a positive whole number (it may come from a command line).

    Raises:
        ValueError: one is not.
    """
    for name, option in options.items():
        if not isinstance(option, int) or isinstance(option, bool) or option < 1:
            raise ValueError(f"{name} must be a positive whole number, got {option!r}")


class Sequences(NamedTuple):
    """The tensors of a call, heads first, each sequence's real tokens moved to its front.

    Positions then count real tokens: a padded sequence gives what it gives alone, on whichever
    side the padding stands. Padding is zero, and the arithmetic is in float32 at least.

    Attributes:
        query: the queries times 1/√d.
        key: the keys, as many heads as the queries.
        value: the values, likewise.
        real: which tokens are real ones: the first of each row.
        order: where each token came from; None when none moved.
        dtype: that of the caller's tensors.
    """

    query: Float[Tensor, "b h t d"]
    key: Float[Tensor, "b h t d"]
    value: Float[Tensor, "b h t m"]
    real: Bool[Tensor, "b t"]
    order: Int[Tensor, "b t"] | None
    dtype: torch.dtype


def gather_sequences(
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t g d"],
    value: Float[Tensor, "b t g m"],
    mask: Bool[Tensor, "b t"] | None,
) -> Sequences:
    """Check the tensors of self-attention and lay them out.

    Raises:
        ValueError: shapes, dtypes or devices do not fit each other, or lengths differ.
        TypeError: the mask is not boolean.
    """
    query, key, value = check_tensors(query, key, value)
    check_causal(query, key)
    resolve_masks(query, key, mask=mask)
    exact = compute_dtype(query.dtype)
    order = None if mask is None else front_order(mask)
    real = query.new_ones(query.shape[:2], dtype=torch.bool)
    if mask is not None and order is not None:
        real = mask.take_along_dim(order, dim=1)
    q, k, v = (heads_first(part, real, order).to(exact) for part in (query, key, value))
    # A float: while a graph is traced the width is a tensor, and its power one of float32.
    return Sequences(q * float(q.shape[-1]) ** -0.5, k, v, real, order, query.dtype)


def restore(tokens: Sequences, out: Float[Tensor, "b h t m"]) -> Float[Tensor, "b t h m"]:
    """Return the output at the places of its tokens, zero at padding."""
    out = out.transpose(1, 2).to(tokens.dtype)
    if tokens.order is None:
        return out
    out = out.masked_fill(~tokens.real[:, :, None, None], 0)
    return out.take_along_dim(tokens.order.argsort(dim=1)[:, :, None, None], dim=1)


def heads_first(
    x: Float[Tensor, "b t h d"], real: Bool[Tensor, "b t"], order: Int[Tensor, "b t"] | None
) -> Float[Tensor, "b h t d"]:
    """Return the tokens in that order, padding replaced by zero (it may hold NaN)."""
    if order is not None:
        x = x.take_along_dim(order[:, :, None, None], dim=1)
        x = x.masked_fill(~real[:, :, None, None], 0)
    return x.transpose(1, 2)


def blocks(x: Tensor, size: int) -> Tensor:
    """Cut dimension -2 into [blocks, size], the last block filled up with zeros."""
    return F.pad(x, (0, 0, 0, -x.shape[-2] % size)).unflatten(-2, (-1, size))


def windows(x: Tensor, size: int, *, before: int, after: int) -> Tensor:
    """For each block of `size` rows of dimension -2: them, `before` and `after` more, zeros beyond.

    Shape [..., t, d] becomes [..., blocks, before + size + after, d].
    """
    return joined_windows(F.pad(x, (0, 0, before, after)), size, margin=before + after)


def joined_windows(x: Tensor, size: int, *, margin: int) -> Tensor:
    """Return the windows of t rows that stand in x together with `margin` rows around them."""
    x = F.pad(x, (0, 0, 0, -(x.shape[-2] - margin) % size))
    return x.unfold(-2, size + margin, size).transpose(-1, -2)


def band(size: int, *, before: int, after: int, device: torch.device) -> Bool[Tensor, "q k"]:
    """Which places of a window of `windows` are within reach of each of its `size` queries."""
    query = torch.arange(size, device=device)[:, None]
    key = torch.arange(before + size + after, device=device)
    return (query <= key) & (key <= query + before + after)


class Part(NamedTuple):
    """Softmax attention to one set of keys.

    Attributes:
        out: the output, zero where no key is visible.
        log_total: log Σ exp(score) over the visible keys.
    """

    out: Float[Tensor, "... m"]
    log_total: Float[Tensor, "..."]


def attend(
    scores: Float[Tensor, "... q k"],
    visible: Bool[Tensor, "... k"],
    value: Float[Tensor, "... k m"],
) -> Part:
    """The softmax over the visible keys, times their values; `visible` broadcasts to scores."""
    scores = scores.masked_fill(~visible, -torch.inf)
    largest = scores.detach().amax(dim=-1, keepdim=True).clamp(min=EMPTY)
    weights = (scores - largest).exp()
    total = weights.sum(dim=-1, keepdim=True)
    empty = total == 0
    total = total.masked_fill(empty, 1)  # before the log: the gradient of log 0 is infinite
    log_total = (total.log() + largest).masked_fill(empty, EMPTY)
    return Part(weights @ value / total, log_total.squeeze(-1))


def merge(parts: Sequence[Part]) -> Float[Tensor, "... m"]:
    """Softmax attention to the union of the parts' keys, which share none."""
    shares = torch.stack([part.log_total for part in parts]).softmax(dim=0)
    outs = torch.stack([part.out for part in parts])
    return (shares.unsqueeze(-1) * outs).sum(dim=0)


def in_order(part: Part, length: int) -> Part:
    """Return the part of `length` queries from that of their blocks [b, h, blocks, size]."""
    return Part(part.out.flatten(2, 3)[:, :, :length], part.log_total.flatten(2, 3)[..., :length])


def attend_nearby(
    tokens: Sequences, real: Bool[Tensor, "b t"], window: int, *, causal: bool
) -> Part:
    """Return the real keys with |i - j| ≤ window, and j ≤ i when causal."""
    length = tokens.query.shape[2]
    size = before = at_most(window, length)
    after = 0 if causal else before
    keys, values, visible = (
        windows(x, size, before=before, after=after)
        for x in (tokens.key, tokens.value, real[:, None, :, None])
    )
    near = band(size, before=before, after=after, device=real.device)
    scores = blocks(tokens.query, size) @ keys.transpose(-1, -2)
    return in_order(attend(scores, near & visible.transpose(-1, -2), values), length)
