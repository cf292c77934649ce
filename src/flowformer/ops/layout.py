"""Where the heads stand: ``layout="bthd"``, as everywhere here, or ``"bhtd"``, as torch has it.

One decorator gives the keyword to every public attention. Heads-first tensors are looked at through
a transposed view, and so is what comes out: backends take strides, so nothing is copied for it.
"""

import warnings
from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, Literal, TypeVar

from torch import Tensor

from flowformer.ops.inputs import is_recorded

Layout = Literal["bthd", "bhtd"]

MOST_HEADS = 128  # of an attention in the largest models; an axis that is longer is time

_Attention = TypeVar("_Attention", bound=Callable[..., Any])


def takes_layouts(*names: str, warns: bool = False) -> Callable[[_Attention], _Attention]:
    """Let a function of ``[b, t, h, …]`` tensors take and return ``[b, h, t, …]`` ones too.

    The function declares the keyword ``layout`` for its readers; it is called with tokens first
    whatever that says. Masks and offsets have no heads, and the heads of a state come first in both
    layouts: none of them is touched.

    Args:
        names: the arguments that have a time and a head axis.
        warns: whether to warn where the heads look like time and the caller does not say the
            layout: once for each number of heads.

    Raises:
        ValueError: there is no such layout.
    """

    def decorate(function: _Attention) -> _Attention:
        parameters = signature(function).parameters
        causal = "causal" in parameters and parameters["causal"].default
        places = {place for place, name in enumerate(parameters) if name in names}
        warned: set[int] = set()

        @wraps(function)
        def attend(*args: Any, **keywords: Any) -> Any:
            layout = keywords.pop("layout", None)
            if layout == "bhtd":
                tensors = (_exchanged(x) if i in places else x for i, x in enumerate(args))
                named = {name: _exchanged(keywords[name]) for name in names if name in keywords}
                try:
                    return _heads_first(function(*tensors, **{**keywords, **named}))
                except (TypeError, ValueError) as error:
                    error.add_note("layout='bhtd': shapes above have axes 1 and 2 exchanged")
                    raise
            if layout not in (None, "bthd"):
                raise ValueError(f"layout must be 'bthd' or 'bhtd', got {layout!r}")
            result = function(*args, **keywords)  # first: an error says more than a warning
            if warns and layout is None and not is_recorded():
                query = args[0] if args else keywords[names[0]]
                began = keywords.get("initial_state") is not None
                _look_at(query, warned, causal=keywords.get("causal", causal) and not began)
            return result

        return attend  # pyright: ignore[reportReturnType] - of the same signature

    return decorate


def _exchanged(tensor: Any) -> Any:
    return tensor.transpose(1, 2) if isinstance(tensor, Tensor) and tensor.ndim > 2 else tensor


def _heads_first(result: Any) -> Any:
    """Return the output, an output and a state, or a named tuple of outputs, heads first."""
    if isinstance(result, Tensor):
        return _exchanged(result)
    if type(result) is tuple:
        return (_exchanged(result[0]), *result[1:])
    return type(result)(*map(_exchanged, result))


def _look_at(query: Tensor, warned: set[int], *, causal: bool) -> None:
    tokens, heads = query.shape[1:3]
    if tokens in warned or not _heads_look_like_time(tokens, heads, causal=causal):
        return
    warned.add(tokens)
    warnings.warn(
        f"a query of shape {list(query.shape)} is read as [batch, time, head, feature]: {tokens} "
        f"tokens of {heads} heads. If it is [batch, head, time, feature], pass layout='bhtd'; if "
        "it is not, layout='bthd' says so and ends this warning",
        stacklevel=3,
    )


def _heads_look_like_time(tokens: int, heads: int, *, causal: bool) -> bool:
    """Return whether these are probably the other way round: more heads than tokens.

    A causal call has many tokens as a rule, one when it decodes. A bidirectional one may have few.
    """
    if not tokens < heads or tokens > MOST_HEADS:
        return False
    return heads > MOST_HEADS or (causal and tokens > 1 and (tokens % 2 == 0 or tokens == 3))
