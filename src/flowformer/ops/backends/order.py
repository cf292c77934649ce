"""Causal attention that reads from the last token to the first.

Token t then sees the tokens from t on, and a state is that of the tokens behind. A compiled backend
reads query, key and value that way by their strides; what is a number of each token, a hundredth of
them, is turned.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

from torch import Tensor

from flowformer.ops.packing import turned_offsets
from flowformer.ops.state import FlowState, LinearState

State = TypeVar("State", FlowState, LinearState)

_OF_TOKENS = ("mask", "row_scale", "log_decay")


def in_order_of_reading(
    given: dict[str, Any], state: State | None
) -> tuple[dict[str, Any], State | None]:
    """Return what there is beside query, key and value of each token, and of packed sequences.

    The last sequence of a pack is read first, as its tokens are.
    """
    turned: dict[str, Any] = {
        name: x.flip(1) if name in _OF_TOKENS and x is not None else x for name, x in given.items()
    }
    if (offsets := given.get("cu_seqlens")) is not None:
        turned["cu_seqlens"] = turned_offsets(offsets)
        state = None if state is None else last_first(state)
    return turned, state


def last_first(state: State) -> State:
    """Return the state with the rows of its sequences in the other order."""
    return type(state)(*(field.flip(0) for field in state))


def turned_in_reverse(attend: Callable[..., tuple[Tensor, Any]]) -> Callable[..., Any]:
    """Give a causal function of a backend in PyTorch the keyword ``reverse``: it reads copies."""

    @wraps(attend)
    def read(*tensors: Tensor, reverse: bool = False, state: Any, **given: Any) -> Any:
        if not reverse:
            return attend(*tensors, state=state, **given)
        given, state = in_order_of_reading(given, state)
        out, state = attend(*(x.flip(1) for x in tensors), state=state, **given)
        return out.flip(1), state

    return read
