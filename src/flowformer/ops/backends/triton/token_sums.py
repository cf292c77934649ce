"""Numbers a token, [b, h, t], summed and compared over sequences, dense or packed: in PyTorch.

They are a hundredth of what the kernels read, and everything that is not a product is done here.
"""

from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from flowformer.ops.backends.arguments import Numbers
from flowformer.ops.backends.prefix import prefix_softmax

if TYPE_CHECKING:
    from flowformer.ops.backends.triton.launch import Side

# Sums of packed sequences are differences of one running sum, in float64. Flows are not negative:
# a token of one sequence weighs at most exp of this as much as one of the next, of which five
# digits are left after a million of those.
LARGEST_PACKED_EXPONENT = 10.0

Scalars = Float[Tensor, "b h t"]
Totals = Float[Tensor, "n h"]


def counts(side: "Side", before: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the number of real tokens up to each one, [b, t], and of each sequence, [n]."""
    batch, length, _ = side.shape
    ends = side.layout.ends
    steps = torch.arange(1, length + 1, device=side.device)
    if ends is not None:
        past = -ends[:-1] if before is None else before - ends[:-1]
        return (steps + past[_rows(side)])[None], ends[1:] + past
    count = steps.expand(batch, length) if side.mask is None else side.mask.cumsum(1)
    if before is not None:
        count = count + before[:, None]
    return count, count[:, -1]


def _rows(side: "Side") -> Tensor:
    """Return the sequence of each token of a packed batch."""
    ends = side.layout.ends
    assert ends is not None
    steps = torch.arange(side.shape[1], device=side.device)
    return torch.searchsorted(ends[1:], steps, right=True)


def real(side: "Side") -> Tensor | None:
    """Return the mask of numbers a token, [b, 1, t]."""
    return None if side.mask is None else side.mask[:, None]


def totals(side: "Side", x: Scalars) -> Totals:
    """Return the sum over each sequence, in float64."""
    wide, ends = x.to(torch.float64), side.layout.ends
    return wide.sum(-1) if ends is None else _between(wide[0], ends[:-1], ends[1:]).T


def _between(x: Tensor, first: Tensor, end: Tensor) -> Tensor:
    """Return sums over ranges of tokens, [h, n], none of which reaches into another sequence.

    They are differences of one running sum, from which NaN and infinity are kept: a range that
    holds any is NaN, and no other.
    """

    def sums(y: Tensor) -> Tensor:
        running = torch.nn.functional.pad(y.cumsum(-1), (1, 0))
        return running[:, end] - running[:, first]

    lost = ~x.isfinite()
    return torch.where(sums(lost) > 0, torch.nan, sums(torch.where(lost, 0, x)))


class _PrefixSum(torch.autograd.Function):
    """Σ_{s≤t} of each token's own sequence, [h, t]; its gradient keeps to the sequences too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, ends: Tensor) -> Tensor:
        """Sum from the sequence's first token on."""
        ctx.save_for_backward(rows, ends)
        return _between(x, ends[rows], torch.arange(1, len(rows) + 1, device=x.device))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        """Sum up to the sequence's last token."""
        rows, ends = ctx.saved_tensors
        first = torch.arange(len(rows), device=rows.device)
        return _between(grads[0], first, ends[rows + 1]), None, None


def spread(side: "Side", x: Totals) -> Tensor:
    """Return what belongs to each sequence at each of its tokens: [b, h, t] or [b, h, 1]."""
    return x[..., None] if side.layout.ends is None else x[_rows(side)].T[None]


def compete(side: "Side", logits: Scalars, options: Numbers) -> Scalars:
    """Return the source competition: the softmax over the sequence, or heads, times its length."""
    x = logits.clamp(-options.clamp, options.clamp)
    sources = counts(side, None)[1].clamp(min=1)
    shares = sources[:, None].to(x.dtype)
    if options.competes_over == 2:  # over heads
        return x.softmax(1) * spread(side, shares.expand(-1, x.shape[1]))
    mask = real(side)
    if mask is not None:
        x = torch.where(mask, x, torch.finfo(x.dtype).min)
    if side.layout.ends is None:
        return x.softmax(-1) * shares[..., None]
    rows = _rows(side).expand_as(x[0])
    largest = x.new_full((x.shape[1], side.layout.sequences), -torch.inf)
    largest = largest.scatter_reduce(1, rows, x[0], "amax")
    weight = (x - spread(side, largest.T)).exp()
    return weight * spread(side, (shares / totals(side, weight)).to(x.dtype))


def compete_backward(
    side: "Side", logits: Scalars, competition: Scalars, grad: Scalars, options: Numbers
) -> Scalars:
    """Return the gradient of the logits."""
    product = competition * grad
    sources = counts(side, None)[1].clamp(min=1)[:, None].to(product.dtype)
    if options.competes_over == 2:
        shares = product.sum(1, keepdim=True) / spread(side, sources)
    else:
        shares = spread(side, (totals(side, product) / sources).to(product.dtype))
    found = product - competition * shares
    return torch.where(logits.abs() <= options.clamp, found, 0)


def prefix_compete(
    side: "Side", logits: Scalars, before: Totals, clamp: float
) -> tuple[Scalars, Totals]:
    """Return exp(x_t) / Σ_{s≤t} exp(x_s) and, at the sequences' ends, the logarithm of the sum.

    ``before`` is that of earlier tokens. In float64, and differentiable. For packed sequences the
    clamp is at most ``LARGEST_PACKED_EXPONENT``.
    """
    wide = logits.to(torch.float64)
    ends = side.layout.ends
    if ends is None:
        share, log_sum = prefix_softmax(wide, real(side), before, clamp)
        return share, log_sum[..., -1]
    weight = wide.clamp(-clamp, clamp).exp()
    total = spread(side, before.exp()) + _PrefixSum.apply(weight[0], _rows(side), ends)
    some = ends.diff()[:, None] > 0
    last = torch.where(some, total[0, :, ends[1:] - 1].T, 1)  # log 0 has a gradient that is NaN
    return weight / total, torch.where(some, last.log(), before)
