"""The states that a causal attention carries from call to call: named tuples, batch first."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.graph import increment_version


def carry_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of carried sums: float64, or float32 where the device has none (MPS).

    Added token by token in float32, the sums are off by 7e-3 after a million tokens.
    """
    return torch.float32 if device.type == "mps" else torch.float64


# The methods of every state of constant size; a NamedTuple cannot inherit them.
_State = TypeVar("_State", bound=tuple)


def _each(state: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return type(state)(*(None if field is None else change(field) for field in state))


def to_state(self: _State, device: torch.device | str) -> _State:
    """Return the state on another device, in the dtype that sums are carried in there."""
    dtype = carry_dtype(torch.device(device))
    return _each(self, lambda x: x.to(device, dtype if x.is_floating_point() else None))


def move_state(self: _State, device: torch.device | str) -> _State:
    """Return a state of tokens, not of sums, on another device, in the dtype that it has."""
    return _each(self, lambda x: x.to(device))


def detach_state(self: _State) -> _State:
    """Return the state without its history of gradients (truncated back-propagation)."""
    return _each(self, Tensor.detach)


def reorder_state(self: _State, index: Int[Tensor, " n"]) -> _State:
    """Return the rows ``index`` of the batch (beam search keeps, drops and repeats sequences)."""
    return _each(self, lambda x: x.index_select(0, index))


_in_place: ContextVar[bool] = ContextVar("states_in_place", default=False)


@contextmanager
def states_in_place() -> Iterator[None]:
    """Let a decoding step write the state after its token where the state before it stood.

    Who enters gives up each state that a causal attention is given inside, and what shares its
    memory, and uses the state that it returns instead. So a step allocates next to nothing. Where
    that cannot be (a gradient is wanted, a graph is recorded, another backend), the state stays and
    a new one is returned. A state that was written over is refused when it is given again.

    Examples:
        >>> import torch
        >>> from flowformer import flow_attention_step
        >>> from flowformer.ops import states_in_place
        >>> state = None
        >>> with torch.no_grad(), states_in_place():
        ...     for _ in range(3):
        ...         query, key, value = (torch.randn(2, 1, 4, 16) for _ in range(3))
        ...         out, state = flow_attention_step(query, key, value, state)
        >>> state.tokens
        tensor([3, 3])
    """
    before = _in_place.set(True)
    try:
        yield
    finally:
        _in_place.reset(before)


class FlowState(NamedTuple):
    """The state of causal Flow-Attention after some tokens: constant size, whatever their number.

    With φ the feature map, n the number of real tokens, and I, O, Ô, c as in
    docs/attention/math.md, the fields are, for each batch row and **query** head (grouped key
    heads save nothing here):

    Attributes:
        tokens: n, the number of real tokens. Shape ``[b]``, int64; where there has been a decay,
            what is left of them in each head, ``[b, h]``, float64.
        key_sum: Σ k. Shape ``[b, h, d]``.
        query_sum: Σ q. Shape ``[b, h, d]``.
        key_flow: Σ n·k/O. Shape ``[b, h, d]``.
        query_flow: Σ n·q/I. Shape ``[b, h, d]``.
        competition: log Σ exp Ô, -inf before the first token. Shape ``[b, h]``.
        key_value: Σ kᵀ(c·v). Shape ``[b, h, d, m]``.

    All but a count are float64 (float32 on a device without float64). The state is an ordinary
    tuple of tensors: differentiable, and saved and loaded by ``torch.save`` and ``torch.load``.
    """

    tokens: Int[Tensor, " b"] | Float[Tensor, "b h"]
    key_sum: Float[Tensor, "b h d"]
    query_sum: Float[Tensor, "b h d"]
    key_flow: Float[Tensor, "b h d"]
    query_flow: Float[Tensor, "b h d"]
    competition: Float[Tensor, "b h"]
    key_value: Float[Tensor, "b h d m"]

    to = to_state
    detach = detach_state
    reorder = reorder_state

    @classmethod
    def initial(
        cls, batch: int, heads: int, key_width: int, value_width: int, device: torch.device
    ) -> "FlowState":
        """Return the state before the first token."""
        zeros = partial(torch.zeros, dtype=carry_dtype(device), device=device)
        width = (batch, heads, key_width)
        # A tensor for each field: a buffer that is written to in place must not be four of them.
        return cls(
            tokens=torch.zeros(batch, dtype=torch.int64, device=device),
            key_sum=zeros(width),
            query_sum=zeros(width),
            key_flow=zeros(width),
            query_flow=zeros(width),
            competition=zeros((batch, heads)) - torch.inf,
            key_value=zeros((*width, value_width)),
        )


class LinearState(NamedTuple):
    """The state of causal linear attention.

    Attributes:
        key_value: Σ kᵀ v. Shape ``[b, h, d, m]``, float64 (float32 on a device without it). Of a
            normalised attention it has one more column, Σ k: ``[b, h, d, m + 1]``.
    """

    key_value: Float[Tensor, "b h d m"]

    to = to_state
    detach = detach_state
    reorder = reorder_state

    @classmethod
    def initial(
        cls, batch: int, heads: int, key_width: int, value_width: int, device: torch.device
    ) -> "LinearState":
        """Return the state before the first token."""
        shape = (batch, heads, key_width, value_width)
        return cls(torch.zeros(shape, dtype=carry_dtype(device), device=device))


class ConvolutionState(NamedTuple):
    """The state of a short convolution: the tokens that later outputs still see.

    Attributes:
        recent: the last w - 1 real tokens, zero where there were fewer. Shape ``[b, w - 1, h, d]``,
            float64 (float32 on a device without it).
    """

    recent: Float[Tensor, "b w_minus_1 h d"]

    to = to_state
    detach = detach_state
    reorder = reorder_state

    @classmethod
    def initial(
        cls, batch: int, taps: int, heads: int, width: int, device: torch.device
    ) -> "ConvolutionState":
        """Return the state before the first token, of a convolution over so many (w)."""
        shape = (batch, taps - 1, heads, width)
        return cls(torch.zeros(shape, dtype=carry_dtype(device), device=device))


Past = TypeVar("Past", FlowState, LinearState, ConvolutionState)


def has_decayed(state: FlowState) -> bool:
    """Return whether n is one of each head, which a decay may have made smaller."""
    return state.tokens.ndim == 2


def of_heads(state: FlowState) -> FlowState:
    """Return the state with n of each head."""
    if has_decayed(state):
        return state
    tokens = state.tokens[:, None].expand(state.competition.shape)
    return state._replace(tokens=tokens.to(state.key_sum.dtype))


def empty_state(decays: bool, *sizes: Any) -> FlowState:
    """Return the state before the first token, of the sizes that ``initial`` takes."""
    state = FlowState.initial(*sizes)
    return of_heads(state) if decays else state


def faded(state: FlowState, log_decay: Float[Tensor, "b h"]) -> FlowState:
    """Return what is left of a state after a decay."""
    log_decay = log_decay.to(state.key_sum.dtype)
    factor = log_decay.exp()
    vector = factor[..., None]
    return FlowState(
        tokens=of_heads(state).tokens * factor,
        key_sum=state.key_sum * vector,
        query_sum=state.query_sum * vector,
        key_flow=state.key_flow * vector,
        query_flow=state.query_flow * vector,
        competition=state.competition + log_decay,
        key_value=state.key_value * vector[..., None],
    )


def select_rows(rows: Bool[Tensor, " b"], state: FlowState, otherwise: FlowState) -> FlowState:
    """Return some rows of a state, and for the others those of another; a gradient may reach both.

    A selection, not a product: what is left out may be infinite.
    """
    return FlowState(
        *(
            torch.where(rows.view(-1, *[1] * (field.ndim - 1)), field, other)
            for field, other in zip(state, otherwise, strict=True)
        )
    )


def room_after(state: Past) -> Past:
    """Return room for the state after a token: that of the state before, if it was given up.

    But for n, one number that every head reads before its step and one of them writes.

    Raises:
        RuntimeError: the state was given up before.
    """
    refuse_given_up(state)
    if not _in_place.get():
        return type(state)(*map(torch.empty_like, state))
    increment_version(state)  # whoever kept it for a gradient is told
    last = state[-1].detach()  # the same memory by another name: the old one is marked
    if isinstance(state, FlowState):
        return FlowState(torch.empty_like(state.tokens), *state[1:-1], last)
    return type(state)(last)


_GIVEN_UP = "_flowformer_given_up"  # of a tensor: a tuple takes no mark, and a copy keeps this one


def mark_given_up(state: tuple) -> None:
    """Mark a state after the step that took its room, if it was given up for it."""
    if _in_place.get():
        setattr(state[-1], _GIVEN_UP, True)


def refuse_given_up(state: tuple) -> None:
    """Refuse a state in whose place the one after it stands.

    Raises:
        RuntimeError: it is such a state.
    """
    if hasattr(state[-1], _GIVEN_UP):
        raise RuntimeError(
            "the state was given up within states_in_place(), and the one after its token stands "
            "in its place: go on with the state that the step returned, or copy.deepcopy a state "
            "before the step to use it twice"
        )


def state_before(kind: type[Past], state: Past | None, query: Tensor, value: Tensor) -> Past:
    """Return the state, or that before the first token of these tensors ``[b, t, h, …]``."""
    if state is not None:
        return state
    b, _, h, d = query.shape
    return kind.initial(b, h, d, value.shape[3], query.device)


# A state that torch.save wrote is loaded by torch.load, which otherwise takes no classes.
torch.serialization.add_safe_globals([FlowState, LinearState, ConvolutionState])
