"""Local attention: softmax attention to the neighbours (Liu et al. 2018; Tay et al. 2021)."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from flowformer.nn.mixers.blockwise import (
    Sequences,
    attend,
    band,
    blocks,
    check_positive,
    gather_sequences,
    joined_windows,
    restore,
)
from flowformer.nn.mixers.head_attention import Capabilities, HeadAttention
from flowformer.nn.mixers.mixer import ProjectedMixer
from flowformer.ops.inputs import at_most, exact_arithmetic
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.nonfinite import contained
from flowformer.ops.state import detach_state, move_state, reorder_state


class LocalState(NamedTuple):
    """The last `window` real tokens: the state of causal local attention, of constant size.

    Attributes:
        key: their keys, the newest last.
        value: their values.
        mask: which places are filled: the last ones. Blocked windows keep those of the unfinished
            block alone.
    """

    key: Float[Tensor, "b w g d"]
    value: Float[Tensor, "b w g m"]
    mask: Bool[Tensor, "b w"]

    to = move_state
    detach = detach_state
    reorder = reorder_state


# A state that torch.save wrote is loaded by torch.load, which otherwise takes no classes.
torch.serialization.add_safe_globals([LocalState])


@takes_layouts("query", "key", "value")
@contained("query", "key", "value")
def local_attention(  # noqa: PLR0913 - the keywords that every attention here takes
    query: Float[Tensor, "b t h d"],
    key: Float[Tensor, "b t g d"],
    value: Float[Tensor, "b t g m"],
    *,
    window: int,
    blocked: bool,
    causal: bool = False,
    mask: Bool[Tensor, "b t"] | None = None,
    initial_state: LocalState | None = None,
    return_state: bool = False,
    layout: Layout = "bthd",  # noqa: ARG001 - the decorator reads it
) -> Float[Tensor, "b t h m"] | tuple[Float[Tensor, "b t h m"], LocalState]:
    """out_i = Σ_j softmax_j(q_i · k_j / √d) v_j over the real tokens j near i, in O(t · window).

    Near means |i - j| ≤ window, and 0 ≤ i - j ≤ window when causal; with `blocked`, in the same
    block of `window` tokens (and j ≤ i when causal). Positions count real tokens.

    The sliding window is that of the package local-attention with `exact_windowsize`; the blocks
    are those of "Local Attention" in the long-range arena (Tay et al. 2021).

    Args:
        query: the queries.
        key: the keys; g divides h, and each key head serves h / g query heads.
        value: the values, with as many heads as the keys.
        window: reach of the window on each side, or the size of a block.
        blocked: cut into blocks; otherwise the window slides.
        causal: let query i see tokens up to i only.
        mask: real tokens (True); the output at the others is zero.
        initial_state: the last tokens before these (causal only).
        return_state: also return the state after these tokens (causal only).
        layout: `"bhtd"` for heads first, `[b, h, t, …]`; see `flow_attention`.

    Raises:
        ValueError: shapes do not fit, or a state without causal.
        TypeError: the state is of another kind, or the mask is not boolean.
    """
    if (initial_state is not None or return_state) and not causal:
        raise ValueError("a state exists for causal attention only, got causal=False")
    tokens = gather_sequences(query, key, value, mask)
    if initial_state is None:
        # Without a state a window that passes the first token need not be filled up.
        past = _empty_state(key, value, window if return_state else at_most(window, query.shape[1]))
    else:
        past = _checked_state(initial_state, key, value, window)
    with exact_arithmetic(query):
        out = _windowed(tokens, past, window=window, blocked=blocked, causal=causal)
    restored = restore(tokens, out)
    if not return_state:
        return restored
    return restored, _next_state(past, key, value, tokens, blocked=blocked)


def _windowed(
    tokens: Sequences, past: LocalState, *, window: int, blocked: bool, causal: bool
) -> Float[Tensor, "b h t m"]:
    length, before = tokens.query.shape[2], past.key.shape[1]
    after = 0 if causal else at_most(window, length)
    size = at_most(max(window, 16), length)  # of the blocks of queries: any size gives the same
    heads = tokens.query.shape[1]
    key, value = (
        F.pad(torch.cat((_expanded(old, heads).to(new.dtype), new), dim=2), (0, 0, 0, after))
        for old, new in ((past.key, tokens.key), (past.value, tokens.value))
    )
    # A query sees the keys of its segment: the block that it is in, or all. Hidden keys are in 0.
    position = torch.arange(-before, length + after, device=key.device)
    position = past.mask.sum(dim=1, keepdim=True) + position
    segment = position // window + 1 if blocked else torch.ones_like(position)
    real = F.pad(torch.cat((past.mask, tokens.real), dim=1), (0, after))
    key_segment = joined_windows(
        segment.masked_fill(~real, 0).unsqueeze(-1), size, margin=before + after
    ).transpose(-1, -2)
    query_segment = blocks(segment[:, before : before + length].unsqueeze(-1), size)
    near = band(size, before=before, after=after, device=key.device)
    keys, values = (joined_windows(part, size, margin=before + after) for part in (key, value))
    part = attend(
        blocks(tokens.query, size) @ keys.transpose(-1, -2),
        (near & (query_segment == key_segment)).unsqueeze(1),
        values,
    )
    return part.out.flatten(2, 3)[:, :, :length]


def _expanded(x: Float[Tensor, "b w g d"], heads: int) -> Float[Tensor, "b h w d"]:
    return x.repeat_interleave(heads // x.shape[2], dim=2).transpose(1, 2)


def _empty_state(
    key: Float[Tensor, "b t g d"], value: Float[Tensor, "b t g m"], window: int
) -> LocalState:
    batch = key.shape[0]
    return LocalState(
        key.new_zeros(batch, window, *key.shape[2:]),
        value.new_zeros(batch, window, *value.shape[2:]),
        key.new_zeros(batch, window, dtype=torch.bool),
    )


def _checked_state(
    state: LocalState,
    key: Float[Tensor, "b t g d"],
    value: Float[Tensor, "b t g m"],
    window: int,
) -> LocalState:
    if not isinstance(state, LocalState):
        raise TypeError(f"the state must be a LocalState, got {type(state).__name__}")
    for name, tensor, came in (("key", key, state.key), ("value", value, state.value)):
        wanted = [key.shape[0], window, *tensor.shape[2:]]
        if list(came.shape) != wanted:
            raise ValueError(f"{name} of the state must be {wanted}, got {list(came.shape)}")
    return state


def _next_state(
    past: LocalState,
    key: Float[Tensor, "b t g d"],
    value: Float[Tensor, "b t g m"],
    tokens: Sequences,
    *,
    blocked: bool,
) -> LocalState:
    window = past.key.shape[1]
    place = torch.arange(window, device=key.device)
    index = tokens.real.sum(dim=1, keepdim=True) + place
    if tokens.order is not None:
        order = tokens.order[:, :, None, None]
        key, value = (part.take_along_dim(order, dim=1) for part in (key, value))
    key, value = (
        torch.cat((old, new), dim=1).take_along_dim(index[:, :, None, None], dim=1)
        for old, new in ((past.key, key), (past.value, value))
    )
    mask = torch.cat((past.mask, tokens.real), dim=1).take_along_dim(index, dim=1)
    if blocked:
        seen = past.mask.sum(dim=1) + tokens.real.sum(dim=1)
        mask = mask & (place >= (window - seen % window).unsqueeze(1))
    # Unfilled places may have received padding, which may be NaN.
    empty = ~mask[:, :, None, None]
    return LocalState(key.masked_fill(empty, 0), value.masked_fill(empty, 0), mask)


class LocalAttention(HeadAttention):
    """Softmax attention to the neighbours; its state holds the last `window` tokens.

    Args:
        window: how many tokens on each side are seen, or the size of a block.
        blocked: the sequence is cut into blocks that do not see each other (as in the long-range
            arena, Tay et al. 2021); otherwise the window slides.
    """

    capabilities = Capabilities(causal=True, cross=False, state=True)
    function = staticmethod(local_attention)

    def __init__(self, *, window: int = 128, blocked: bool = False) -> None:
        super().__init__(window=window, blocked=blocked)
        check_positive(window=window)


class LocalMixer(ProjectedMixer, name="local"):
    """Local attention: softmax over a sliding window, or inside of blocks."""

    kind = LocalAttention
