"""The softmax over the tokens so far: the competition of the causal form, in every backend."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid, pad

from flowformer.ops.inputs import is_for_any_length

# exp of ± this, times any number of tokens, is within the range of float32 and of float64.
LARGEST_EXPONENT = 50.0

LOWEST = -1e30  # the logarithm of nothing; not -inf, where a gradient would be NaN
BLOCK = 16
LEVELS = 5  # of blocks of blocks, in a graph for any length: BLOCK⁶ tokens


def prefix_softmax(
    logit: Float[Tensor, "b h t"],
    real: Bool[Tensor, "b 1 t"] | None,
    before: Float[Tensor, "b h"],
    clamp: float | None,
) -> tuple[Float[Tensor, "b h t"], Float[Tensor, "b h t"]]:
    """Return exp(x_t) / Σ_{s≤t} exp(x_s) and log Σ_{s≤t} exp(x_s) with x = clamp(logit).

    ``before`` is log Σ exp(x) of earlier tokens, -inf if there are none; so is the result while no
    token has been real. Padded tokens are in no sum.
    """
    if clamp is None or clamp > LARGEST_EXPONENT:
        return _of_any_size(logit, real, before[..., None], clamp)
    # exp cannot overflow: the sum itself.
    weight = logit.clamp(-clamp, clamp).exp()
    if real is not None:
        weight = torch.where(real, weight, 0)
    total = before[..., None].exp() + weight.cumsum(-1)
    some = total > 0
    total = torch.where(some, total, 1)
    return weight / total, torch.where(some, total.log(), -torch.inf)


def _of_any_size(
    logit: Float[Tensor, "b h t"],
    real: Bool[Tensor, "b 1 t"] | None,
    before: Float[Tensor, "b h 1"],
    clamp: float | None,
) -> tuple[Float[Tensor, "b h t"], Float[Tensor, "b h t"]]:
    if clamp is not None:
        logit = logit.clamp(-clamp, clamp)
    if real is not None:
        logit = torch.where(real, logit, LOWEST)
    sums = _prefix_logsumexp(logit)
    log_sum = _logaddexp(before, sums)
    # Not exp(x - log_sum): where one token outweighs all before it, and the share is nearly 1, its
    # gradient would be a difference of two that are nearly the same; nor is it that of sigmoid.
    past = torch.cat((before.expand_as(log_sum[..., :1]), log_sum[..., :-1]), -1)
    share = logsigmoid(logit - past).exp()
    return share, torch.where(log_sum > LOWEST / 2, log_sum, -torch.inf)


def _prefix_logsumexp(x: Float[Tensor, "b h t"], levels: int = LEVELS) -> Float[Tensor, "b h t"]:
    """Return log Σ_{s≤t} exp(x_s), by blocks, then over the blocks' ends.

    The gradient of torch's logcumsumexp is wrong by rounding times the logarithm, and its second
    derivative is NaN wherever a gradient that comes in is exactly zero.
    """
    length = x.shape[-1]
    blocks = pad(x, (0, -length % BLOCK), value=LOWEST).unflatten(-1, (-1, BLOCK))
    earlier = torch.ones(BLOCK, BLOCK, dtype=torch.bool, device=x.device).tril()
    inside = torch.where(earlier, blocks[..., None, :], LOWEST).logsumexp(-1)
    if levels > 0 if is_for_any_length() else length > BLOCK:
        ends = _prefix_logsumexp(inside[..., -1], levels - 1)
        before = pad(ends[..., :-1], (1, 0), value=LOWEST)
        inside = _logaddexp(before[..., None], inside)
    return inside.flatten(-2)[..., :length]


def _logaddexp(a: Tensor, b: Tensor) -> Tensor:
    """Return log(exp(a) + exp(b)); the second derivative of torch's overflows."""
    return torch.stack(torch.broadcast_tensors(a, b), -1).logsumexp(-1)
