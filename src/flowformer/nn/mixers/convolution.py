"""What mixers have around `flowformer.ops.short_convolution`: states, heads that read both ways.

Positions count real tokens: padding is stepped over, and a sequence gives what it gives alone.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.nn import functional as F

from flowformer.ops import ConvolutionState, LinearState, short_convolution
from flowformer.ops.backends.sliding import taken
from flowformer.ops.features import front_order, masked
from flowformer.ops.parallel.collectives import gather_ranks, place_of_rank, sum_ranks
from flowformer.ops.state import detach_state, reorder_state, to_state

# In which heads of a bidirectional form read, and how many there are of each, in their order.
Direction = Literal["both", "forwards", "backwards"]
Directions = Mapping[Direction, int]


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

    @classmethod
    def initial(cls, taps: int, *sizes: Any) -> "ConvolvedState":
        """Return the state before the first token, of the sizes that a `LinearState` takes."""
        return cls(*no_recent(taps, *sizes), *LinearState.initial(*sizes))


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


def no_recent(
    taps: int, batch: int, heads: int, key_width: int, value_width: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the last queries, keys and values before the first token, which are zero."""
    query, key, value = (
        ConvolutionState.initial(batch, taps, heads, width, device).recent
        for width in (key_width, key_width, value_width)
    )
    return query, key, value


def directed_convolution(
    x: Float[Tensor, "b t h d"],
    weight: Float[Tensor, "h d w"],
    mask: Bool[Tensor, "b t"] | None,
    directions: Directions,
    backend: str | None = None,
) -> Float[Tensor, "b t h d"]:
    """The short convolution of heads that read in directions, over whole sequences.

    The weights keep their order by distance: the last is that of the token itself. Where a head
    reads in both directions, the one before it is that of the token before, then that of the token
    after, then of two before, and so on. So what starts as the identity is the identity in all.

    Args:
        x: the tokens; what stands at padded places is not read.
        weight: the weights of each channel.
        mask: real tokens (True).
        directions: in which the heads read; backwards, a token sees those behind it.
        backend: who computes it; see `flow_attention`.

    Returns:
        y, zero at padded places.
    """
    width, heads = weight.shape[-1], list(directions.values())
    firsts = {"both": -(width // 2), "forwards": 1 - width, "backwards": 0}
    outputs = []  # of each direction by itself: in a window for all, some would see with weight 0
    for direction, tokens, part in zip(
        directions, x.split(heads, 2), weight.split(heads), strict=True
    ):
        places = range(firsts[direction], firsts[direction] + width)
        ranks = [abs(place) for place in places]
        if direction == "both":
            ranks = [2 * place if place >= 0 else -2 * place - 1 for place in places]
        ordered = part[..., [width - 1 - rank for rank in ranks]]
        outputs.append(
            short_convolution(tokens, ordered, ahead=places[-1], mask=mask, backend=backend)
        )
    return torch.cat(outputs, 2) if len(outputs) > 1 else outputs[0]


def border_tokens(
    x: Float[Tensor, "b t h d"],
    mask: Bool[Tensor, "b t"] | None,
    recent: Float[Tensor, "b n h d"],
    group: ProcessGroup,
    *,
    reverse: bool = False,
) -> tuple[Float[Tensor, "b n h d"], Float[Tensor, "b n h d"]]:
    """Return the last n real tokens before this rank's part of a sequence, and of the whole.

    Every rank sends its own last n, and takes part in the backward pass, whatever it needs of them.
    In reverse they are the first n behind this part, and of the whole.

    Args:
        x: this rank's part.
        mask: its real tokens (True).
        recent: the n real tokens before the first rank's, the same on each.
        group: the ranks that share the sequence, in its order.
        reverse: whether the sequence is read from its last token; recent are those behind it.
    """
    if reverse:
        x, recent = x.flip(1), recent.flip(1)
        mask = None if mask is None else mask.flip(1)
    count, ranks, place = recent.shape[1], group.size(), place_of_rank(group, reverse=reverse)
    real = x.new_ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
    own, there = _last_real(masked(x, mask), real, count)
    at = torch.arange(ranks, device=x.device) == place
    slots = torch.where(at[:, None, None, None, None], own, 0)
    tokens = sum_ranks(slots, group).transpose(0, 1).flatten(1, 2)
    there = gather_ranks(there.to(torch.uint8), group).bool()
    there = (there.flip(0) if reverse else there).transpose(0, 1)
    earlier = torch.arange(ranks, device=x.device) < place
    tokens = torch.cat((recent.to(x.dtype), tokens), 1)
    known = torch.ones_like(there[:, 0])
    before, whole = (
        _last_real(tokens, torch.cat((known, flags.flatten(1)), 1), count)[0].to(recent.dtype)
        for flags in (there & earlier[:, None], there)
    )
    return (before.flip(1), whole.flip(1)) if reverse else (before, whole)


def _last_real(
    x: Float[Tensor, "b t h d"], real: Bool[Tensor, "b t"], count: int
) -> tuple[Float[Tensor, "b n h d"], Bool[Tensor, "b n"]]:
    """Return the last real tokens, zeros in front where there are fewer, and which are there."""
    joined = F.pad(taken(x, front_order(real)), (0, 0, 0, 0, count, 0))
    ahead = torch.arange(count, device=x.device)
    total = real.sum(1, keepdim=True)
    return taken(joined, total + ahead), total + ahead >= count
