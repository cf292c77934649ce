"""The short convolution that recurrent mixers put before query, key and value, channel by channel.

Positions count real tokens: padding is stepped over, and a sequence gives what it gives alone.
"""

from functools import reduce
from operator import add
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from flowformer.nn.mixers.blockwise import front_order
from flowformer.ops.features import masked
from flowformer.ops.inputs import is_recorded
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.nonfinite import contained, may_look
from flowformer.ops.parallel.collectives import gather_ranks, sum_ranks
from flowformer.ops.state import carry_dtype, detach_state, reorder_state, to_state

SHORTEST = 16  # tokens for which torch's convolution is called


class ConvolvedState(NamedTuple):
    """The state of a recurrence behind short convolutions: constant size, however many tokens.

    Attributes:
        query: the last tokens' queries, for the convolution. Shape ``[b, w - 1, h, d]``.
        key: likewise.
        value: likewise.
        key_value: the memory S. Shape ``[b, h, d, m]``.

    All are float64 (float32 on a device without float64).
    """

    query: Float[Tensor, "b w h d"]
    key: Float[Tensor, "b w h d"]
    value: Float[Tensor, "b w h d"]
    key_value: Float[Tensor, "b h d m"]

    to = to_state
    detach = detach_state
    reorder = reorder_state


class FlowGatedState(NamedTuple):
    """The state of gated Flow-Attention: that of the flows, and the last tokens for convolutions.

    Attributes:
        query: the last tokens' queries, for the convolution. Shape ``[b, w - 1, h, d]``, float64
            (float32 on a device without it), and so are the next two.
        key: likewise.
        value: likewise.
        tokens: this and the following are those of `flowformer.ops.FlowState`.
    """

    query: Float[Tensor, "b w h d"]
    key: Float[Tensor, "b w h d"]
    value: Float[Tensor, "b w h d"]
    tokens: Tensor
    key_sum: Float[Tensor, "b h d"]
    query_sum: Float[Tensor, "b h d"]
    key_flow: Float[Tensor, "b h d"]
    query_flow: Float[Tensor, "b h d"]
    competition: Float[Tensor, "b h"]
    key_value: Float[Tensor, "b h d m"]

    to = to_state
    detach = detach_state
    reorder = reorder_state


torch.serialization.add_safe_globals([ConvolvedState, FlowGatedState])


@takes_layouts("x")
@contained("x", always=True)
def short_convolution(
    x: Float[Tensor, "b t h d"],
    weight: Float[Tensor, "h d w"],
    recent: Float[Tensor, "b w_minus_1 h d"] | None,
    mask: Bool[Tensor, "b t"] | None,
    *,
    bias: Float[Tensor, "h d"] | None = None,
    activate: bool = True,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
) -> tuple[Float[Tensor, "b t h d"], Float[Tensor, "b w_minus_1 h d"]]:
    """y_t = silu(Σ_i weight_i x_{t - w + 1 + i} + bias), over the last w real tokens.

    Args:
        x: the tokens; what stands at padded places is not read.
        weight: the weights of each channel, the oldest token's first.
        recent: the w - 1 real tokens before these, zero where there are none; None for none.
        mask: real tokens (True).
        bias: added to each channel.
        activate: whether y passes silu.
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.

    Returns:
        y (of no meaning at padded places), and the last w - 1 real tokens, in the dtype of
        `recent` (of a state, where that is None).
    """
    width, order = weight.shape[-1], None
    if mask is not None:
        x = masked(x, mask)
        if _must_close(mask, begun=recent is not None):
            order = front_order(mask)
            x = _taken(x, order)
    dtype = carry_dtype(x.device) if recent is None else recent.dtype
    if recent is None:
        joined = F.pad(x, (0, 0, 0, 0, width - 1, 0))
    else:
        joined = torch.cat((recent.to(x.dtype), x), 1)
    y = _products(joined, weight, x.shape[1])
    if mask is None:
        last = joined[:, x.shape[1] :]
    else:
        places = torch.arange(1, x.shape[1] + 1, device=x.device)
        end = mask.sum(1, keepdim=True) if order is not None else (mask * places).amax(1, True)
        last = _taken(joined, end + torch.arange(width - 1, device=x.device))
    if order is not None:
        y = _taken(y, order.argsort(dim=1))
    return _finished(y, bias, activate=activate), last.to(dtype)


def centred_convolution(
    x: Float[Tensor, "b t h d"],
    weight: Float[Tensor, "h d w"],
    mask: Bool[Tensor, "b t"] | None,
) -> Float[Tensor, "b t h d"]:
    """The same with the token itself in the middle: for heads that read in no direction.

    The weights keep their order by distance: the last is that of the token itself, the one before
    it that of the token before, then that of the token after, then of two before, and so on. So
    what starts as the identity is the identity in both.

    Args:
        x: the tokens; what stands at padded places is not read.
        weight: the weights of each channel.
        mask: real tokens (True).

    Returns:
        y, of no meaning at padded places.
    """
    width, order = weight.shape[-1], None
    if mask is not None:
        x = masked(x, mask)
        if _must_close(mask, begun=False):
            order = front_order(mask)
            x = _taken(x, order)
    before, after = width // 2, (width - 1) // 2
    ranks = [2 * place if place >= 0 else -2 * place - 1 for place in range(-before, after + 1)]
    joined = F.pad(x, (0, 0, 0, 0, before, after))
    y = _products(joined, weight[..., [width - 1 - rank for rank in ranks]], x.shape[1])
    return y if order is None else _taken(y, order.argsort(dim=1))


def border_tokens(
    x: Float[Tensor, "b t h d"],
    mask: Bool[Tensor, "b t"] | None,
    recent: Float[Tensor, "b n h d"],
    group: ProcessGroup,
) -> tuple[Float[Tensor, "b n h d"], Float[Tensor, "b n h d"]]:
    """Return the last n real tokens before this rank's part of a sequence, and of the whole.

    Every rank sends its own last n, and takes part in the backward pass, whatever it needs of them.

    Args:
        x: this rank's part.
        mask: its real tokens (True).
        recent: the n real tokens before the first rank's, the same on each.
        group: the ranks that share the sequence, in its order.
    """
    count, ranks = recent.shape[1], group.size()
    real = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    own, there = _last_real(masked(x, mask), real, count)
    at = torch.arange(ranks, device=x.device) == group.rank()
    slots = torch.where(at[:, None, None, None, None], own, 0)
    tokens = sum_ranks(slots, group).transpose(0, 1).flatten(1, 2)
    there = gather_ranks(there.to(torch.uint8), group).bool().transpose(0, 1)
    earlier = torch.arange(ranks, device=x.device) < group.rank()
    tokens = torch.cat((recent.to(x.dtype), tokens), 1)
    known = torch.ones_like(there[:, 0])
    before, whole = (
        _last_real(tokens, torch.cat((known, flags.flatten(1)), 1), count)[0].to(recent.dtype)
        for flags in (there & earlier[:, None], there)
    )
    return before, whole


def _last_real(
    x: Float[Tensor, "b t h d"], real: Bool[Tensor, "b t"], count: int
) -> tuple[Float[Tensor, "b n h d"], Bool[Tensor, "b n"]]:
    """Return the last real tokens, zeros in front where there are fewer, and which are there."""
    joined = F.pad(_taken(x, front_order(real)), (0, 0, 0, 0, count, 0))
    ahead = torch.arange(count, device=x.device)
    total = real.sum(1, keepdim=True)
    return _taken(joined, total + ahead), total + ahead >= count


def _finished(y: Tensor, bias: Tensor | None, *, activate: bool) -> Tensor:
    y = y if bias is None else y + bias.to(y.dtype)
    return F.silu(y) if activate else y


def _must_close(mask: Bool[Tensor, "b t"], *, begun: bool) -> bool:
    """Return whether padding has to be taken out: unless none stands between real tokens.

    Zeros in front of a sequence and after it are what it sees alone, but not between it and the
    tokens of a state. Where a look at the mask would cost a wait, or fix a graph, it is taken out.
    """
    if not may_look(mask):
        return True
    starts = (mask[:, 1:] & ~mask[:, :-1]).sum(1)
    return bool((starts if begun else starts + mask[:, 0]).max() > (0 if begun else 1))


def _products(
    joined: Float[Tensor, "b n h d"], weight: Float[Tensor, "h d w"], length: int
) -> Float[Tensor, "b t h d"]:
    """Return Σ_i weight_i joined_{t + i} for t below the length."""
    weight = weight.to(joined.dtype)
    if _suits_convolution(joined, weight, length):
        # An image of one row, its channels last as they are: no copy, and one pass over memory.
        image = joined.flatten(2).mT.unsqueeze(2)
        kernel = weight.flatten(0, 1)[:, None, None]
        return (
            F.conv2d(image, kernel, groups=kernel.shape[0])
            .squeeze(2)
            .mT.unflatten(2, joined.shape[2:])
        )
    parts = (joined[:, i : i + length] * weight[..., i] for i in range(weight.shape[-1]))
    return reduce(add, parts)


def _suits_convolution(joined: Tensor, weight: Tensor, length: int) -> bool:
    """Return whether torch's convolution is faster than the sum, which compilers fuse."""
    if is_recorded() or joined.device.type != "cpu" or length < SHORTEST:
        return False
    trains = torch.is_grad_enabled() and (joined.requires_grad or weight.requires_grad)
    return joined.dtype == torch.float32 or (joined.dtype == torch.bfloat16 and not trains)


def _taken(x: Float[Tensor, "b t h d"], places: Tensor) -> Float[Tensor, "b s h d"]:
    return x.gather(1, places[:, :, None, None].expand(-1, -1, *x.shape[2:]))
