"""The short convolution in PyTorch: any device, any dtype, derivatives of any order.

Padding is taken out before and put back after, where it stands between real tokens, and so are
numbers that are not finite.
"""

import math
from collections.abc import Callable
from functools import reduce, wraps
from operator import add
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from flowformer.ops.features import compute_dtype, front_order, masked
from flowformer.ops.inputs import is_for_any_length, is_recorded, may_look
from flowformer.ops.state import carry_dtype

SHORTEST = 16  # tokens for which torch's convolution is called


def contained(convolve: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Keep what is not finite in a token from all gradients, and from outputs that do not see it.

    As :mod:`flowformer.ops.nonfinite` does for attention: zero times NaN is NaN. An output that
    sees such a token is NaN, and neither it nor the token has a gradient. Compiled backends see to
    it in their backward pass, where the numbers are at hand.
    """

    @wraps(convolve)
    def call(
        x: Tensor, weight: Tensor, *, bias: Tensor | None, recent: Tensor | None, **how: Any
    ) -> Tensor:
        tensors = (x,) if recent is None else (x, recent)
        if is_for_any_length() or (may_look(*tensors) and all(map(_has_finite_sum, tensors))):
            return convolve(x, weight, bias=bias, recent=recent, **how)
        flags = [~each.isfinite() for each in tensors]
        pairs = zip(flags, tensors, strict=True)
        clean, *early = (torch.where(flag, 0, each) for flag, each in pairs)
        y = convolve(clean, weight, bias=bias, recent=early[0] if early else None, **how)
        # Who sees a flagged token, the convolution of the flags says.
        flag, *early = (flag.to(x.dtype) for flag in flags)
        how |= {"bias": None, "activates": False, "recent": early[0] if early else None}
        seen = convolve(flag, torch.ones_like(weight), **how) != 0
        return torch.where(seen, torch.nan, y)

    return call


def _has_finite_sum(x: Tensor) -> bool:
    # A sum of finite numbers may be infinite: that costs time and changes nothing.
    return math.isfinite(x.detach().sum().item())


@contained
def short_convolution(
    x: Float[Tensor, "b t h d"],
    weight: Float[Tensor, "h d w"],
    *,
    bias: Float[Tensor, "h d"] | None,
    activates: bool,
    ahead: int,
    mask: Bool[Tensor, "b t"] | None,
    recent: Float[Tensor, "b w_minus_1 h d"] | None,
) -> Float[Tensor, "b t h d"]:
    """y_t = Σ_i weight_i x_{t - w + 1 + i + ahead} + bias, or silu of it, over real tokens."""
    order, dtype = None, compute_dtype(x.dtype)
    given, x = x, masked(x, mask)
    if mask is not None and _must_close(mask, begun=recent is not None):
        order = front_order(mask)
        x = taken(x, order)
    if recent is None:
        joined = F.pad(x, (0, 0, 0, 0, weight.shape[-1] - 1 - ahead, ahead))
    else:
        joined = torch.cat((recent.to(x.dtype), x), 1)
    y = _products(joined.to(dtype), weight.to(dtype), x.shape[1])
    y = y if bias is None else y + bias.to(dtype)
    y = (F.silu(y) if activates else y).to(given.dtype)
    return masked(y if order is None else taken(y, order.argsort(dim=1)), mask)


def last_tokens(
    x: Float[Tensor, "b t h d"],
    count: int,
    *,
    mask: Bool[Tensor, "b t"] | None,
    cu_seqlens: Int[Tensor, " n"] | None,
    recent: Float[Tensor, "s c h d"] | None,
) -> Float[Tensor, "s c h d"]:
    """Return the last real tokens of each sequence, of those before it where it has too few."""
    dtype = carry_dtype(x.device)
    places = torch.arange(-count, 0, device=x.device)
    if mask is None and cu_seqlens is None:
        if is_recorded() or x.shape[1] < count:  # a length that is fixed by no graph
            before = x.new_zeros((x.shape[0], count, *x.shape[2:])) if recent is None else recent
            x = torch.cat((before.to(x.dtype), x), 1)
        found = x[:, x.shape[1] - count :]
        return found.to(dtype, copy=True, memory_format=torch.contiguous_format)
    if mask is not None:
        if x.shape[1] == 0:  # a part of a sequence: let there be padding to look at
            x, mask = F.pad(x, (0, 0, 0, 0, 0, 1)), F.pad(mask, (0, 1))
        number = mask.sum(1, keepdim=True) + places
        found = taken(x, _last_places(mask, count))
    else:
        assert cu_seqlens is not None
        offsets = cu_seqlens.to(x.device, torch.int64)
        found = x[0, (offsets[1:, None] + places).clamp(min=0)]
        number = offsets.diff()[:, None] + places
    before = torch.zeros_like(found, dtype=dtype)
    if recent is not None:
        before = taken(recent, (number + count).clamp(max=count - 1))
    return torch.where(number[..., None, None] >= 0, found.to(dtype), before)


def _last_places(mask: Bool[Tensor, "b t"], count: int) -> Int[Tensor, "b c"]:
    """Return where the last real tokens are, in their order; 0 in front where there are fewer."""
    left = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1)
    places = [left[:, :0]]
    for _ in range(count):  # a few: to sort them all takes longer
        last = left.amax(1, keepdim=True)
        left = torch.where(left == last, -1, left)
        places.insert(0, last)
    return torch.cat(places, 1).clamp(min=0)


def taken(x: Float[Tensor, "b t h d"], places: Int[Tensor, "b s"]) -> Float[Tensor, "b s h d"]:
    """Return the tokens at those places."""
    return x.gather(1, places[:, :, None, None].expand(-1, -1, *x.shape[2:]))


def _must_close(mask: Bool[Tensor, "b t"], *, begun: bool) -> bool:
    """Return whether padding has to be taken out: unless none stands between real tokens.

    Zeros in front of a sequence and after it are what it sees alone, but not between it and the
    tokens of a state. Where a look at the mask would cost a wait, or fix a graph, it is taken out.
    """
    if not may_look(mask):
        return True
    starts = (mask[:, 1:] & ~mask[:, :-1]).sum(1)
    starts = starts if begun else starts + mask[:, :1].sum(1)
    return bool(starts.numel() and starts.max() > (0 if begun else 1))


def _products(
    joined: Float[Tensor, "b n h d"], weight: Float[Tensor, "h d w"], length: int
) -> Float[Tensor, "b t h d"]:
    """Return Σ_i weight_i joined_{t + i} for t below the length."""
    plain = not is_recorded() and joined.device.type == "cpu"
    if plain and joined.dtype == torch.float32 and length >= SHORTEST:
        # An image of one row, its channels last as they are: no copy, and one pass over memory.
        image = joined.flatten(2).mT.unsqueeze(2)
        kernel = weight.flatten(0, 1)[:, None, None]
        y = F.conv2d(image, kernel, groups=kernel.shape[0])
        return y.squeeze(2).mT.unflatten(2, joined.shape[2:])
    # Compilers fuse the sum.
    parts = (joined[:, i : i + length] * weight[..., i] for i in range(weight.shape[-1]))
    return reduce(add, parts)
