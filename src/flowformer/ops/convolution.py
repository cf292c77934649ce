"""The short convolution of recurrent mixers: every channel by itself, over a few tokens."""

from collections.abc import Sequence
from functools import partial
from types import ModuleType
from typing import Any, Literal, TypedDict, Unpack, get_args, overload

from jaxtyping import Bool, Float, Int
from torch import Tensor

from flowformer.ops.backends import choose_backend
from flowformer.ops.backends.arguments import ConvolutionInputs
from flowformer.ops.backends.convolutions import convolve
from flowformer.ops.backends.sliding import last_tokens
from flowformer.ops.features import compute_dtype
from flowformer.ops.inputs import (
    DTYPES,
    check_mask,
    check_strided,
    exact_arithmetic,
    is_recorded,
    require_tensor,
    starting_state,
)
from flowformer.ops.layout import Layout, takes_layouts
from flowformer.ops.packing import Batch, check_batch, sequence_count
from flowformer.ops.state import ConvolutionState
from flowformer.ops.steps import Inputs, Prepare, PreparedSteps, Step, is_step

Activation = Literal["silu"]


class ConvolutionKeywords(TypedDict, total=False):
    """The keyword arguments of :func:`short_convolution`, for type checkers."""

    bias: Tensor | None
    activation: Activation | None
    ahead: int
    mask: Tensor | None
    cu_seqlens: Tensor | None
    initial_state: ConvolutionState | None
    backend: str | None
    layout: Layout


@overload
def short_convolution(
    x: Tensor,
    weight: Tensor,
    *,
    return_state: Literal[False] = False,
    **arguments: Unpack[ConvolutionKeywords],
) -> Tensor: ...
@overload
def short_convolution(
    x: Tensor,
    weight: Tensor,
    *,
    return_state: Literal[True],
    **arguments: Unpack[ConvolutionKeywords],
) -> tuple[Tensor, ConvolutionState]: ...
@takes_layouts("x")
def short_convolution(  # noqa: PLR0913 - the options of flow_attention, keyword-only
    x: Float[Tensor, "b t h d"],
    weight: Float[Tensor, "h d w"],
    *,
    bias: Float[Tensor, "h d"] | None = None,
    activation: Activation | None = None,
    ahead: int = 0,
    mask: Bool[Tensor, "b t"] | None = None,
    cu_seqlens: Int[Tensor, " n"] | None = None,
    initial_state: ConvolutionState | None = None,
    return_state: bool = False,
    backend: str | None = None,
    layout: Layout = "bthd",  # noqa: ARG001 - of the tensors; the decorator reads it
) -> Float[Tensor, "b t h d"] | tuple[Float[Tensor, "b t h d"], ConvolutionState]:
    """Return y_t = silu(Σ_i weight_i x_{t - w + 1 + i + ahead} + bias), channel by channel.

    That is what stands before query, key and value in the recurrent mixers of today: a window over
    w tokens, each token's own the last of them, or with `ahead` later ones after it. It counts real
    tokens alone: padding is stepped over, and neither another sequence of a pack nor anything
    before the first token is seen but what a state holds. NaN or infinity in a token, or in one of
    a state, reaches the outputs that see it, and no other; neither has a gradient.

    Args:
        x: ``[b, t, h, d]``, float16, bfloat16, float32 or float64.
        weight: ``[h, d, w]``, of each channel, the oldest token's first.
        bias: ``[h, d]``, added to each channel.
        activation: ``"silu"``, or None for none.
        ahead: how many of the w tokens are later than the output's own, below w; with a state 0.
        mask: ``[b, t]``, True = a real token.
        cu_seqlens: ``[n + 1]``, offsets of n sequences packed into ``[1, total, h, d]``.
        initial_state: the state after earlier tokens, one row a sequence.
        return_state: whether to return the state after the last token too.
        backend: as in :func:`flow_attention`.
        layout: as in :func:`flow_attention`.

    Returns:
        ``[b, t, h, d]`` in the dtype of x, zero at padded tokens; with ``return_state``, a pair of
        it and the :class:`ConvolutionState`.

    Raises:
        ValueError: an argument does not fit the others; the message says what was expected.
        TypeError: a mask is not boolean, offsets are no integers, a state is of another kind.
        RuntimeError: the backend asked for is not available; the message says why.

    Examples:
        >>> import torch
        >>> from flowformer import short_convolution
        >>> x, weight = torch.randn(2, 100, 4, 16), torch.randn(4, 16, 4)
        >>> whole = short_convolution(x, weight, activation="silu")
        >>> whole.shape
        torch.Size([2, 100, 4, 16])

        The same, a part at a time:

        >>> first, state = short_convolution(
        ...     x[:, :60], weight, activation="silu", return_state=True
        ... )
        >>> rest = short_convolution(x[:, 60:], weight, activation="silu", initial_state=state)
        >>> torch.allclose(torch.cat((first, rest), 1), whole, atol=1e-6)
        True
    """
    given = (x, weight) if bias is None else (x, weight, bias)
    others, look = (mask, cu_seqlens), (backend, activation)
    one = return_state and not ahead and is_step((x, *given), initial_state, others)
    if one and (step := _STEPS.find(look, given, initial_state)) is not None:
        return step(given, initial_state)
    _check(x, weight, bias, activation, packed=cu_seqlens is not None)
    _check_window(weight.shape[2], ahead, has_state=return_state or initial_state is not None)
    check_mask("the tokens", mask, x)
    check_batch(Batch(mask, mask, cu_seqlens, None))
    recent = None
    if initial_state is not None:
        sizes = sequence_count(x, cu_seqlens), weight.shape[2], *x.shape[2:], x.device
        state = starting_state(initial_state, ConvolutionState.initial, *sizes)
        recent = state.recent  # of tokens, and so no finer than they are
        recent = recent.to(x.dtype).to(recent.dtype)
    module = choose_backend(backend, *given, *others, recent)
    dtype = compute_dtype(x.dtype)
    exact = None if bias is None else bias.to(dtype)
    inputs = ConvolutionInputs(x, weight.to(dtype), exact, mask, cu_seqlens, recent)
    activates = activation is not None
    with exact_arithmetic(x):
        y = convolve(module, inputs, activates=activates, ahead=ahead)
    if one:
        _STEPS.keep(look, _preparation(module, activates=activates), given, initial_state)
    if not return_state:
        return y
    before = {"mask": mask, "cu_seqlens": cu_seqlens, "recent": recent}
    return y, ConvolutionState(last_tokens(x, weight.shape[2] - 1, **before))


_STEPS = PreparedSteps(ConvolutionState)


def short_convolutions(
    tensors: Sequence[Float[Tensor, "b t _h _d"]],
    weights: Tensor | Sequence[Float[Tensor, "_h _d w"]],
    recent: Sequence[Float[Tensor, "b recent _h _d"]] | None = None,
    *,
    biases: Sequence[Float[Tensor, "_h _d"]] = (),
    activation: Activation | None = None,
    mask: Bool[Tensor, "b t"] | None = None,
    return_state: bool = False,
    backend: str | None = None,
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...] | None]:
    """Return :func:`short_convolution` of each, such as of query, key and value.

    A decoding step of all is looked up, and called, as one.

    Args:
        tensors: x of each.
        weights: of each.
        recent: of each the state's tokens, or None.
        biases: of each, if any.
        activation: as in :func:`short_convolution`, and so are the next.
        mask: of all.
        return_state: whether to return the last tokens of each too.
        backend: of all.

    Returns:
        y of each, and the last tokens of each, or None.
    """
    count, given = len(tensors), (*tensors, *weights, *biases)
    recent = None if recent is None else tuple(recent)
    look = backend, activation
    one = return_state and is_step(given, recent, (mask,))
    if one and (step := _STEPS_OF_SEVERAL.find(look, given, recent)) is not None:
        return step(given, recent)
    call: Any = {"activation": activation, "mask": mask, "backend": backend}
    call["return_state"] = return_state
    states = [None] * count if recent is None else map(ConvolutionState, recent)
    results: list[Any] = [
        short_convolution(x, weight, bias=bias, initial_state=state, **call)
        for x, weight, bias, state in zip(
            tensors, given[count : 2 * count], biases or [None] * count, states, strict=True
        )
    ]
    if not return_state:
        return tuple(results), None
    if one and recent is not None:
        module = choose_backend(backend, *given, *recent)
        prepare = _preparation(module, activates=activation is not None)
        prepare = None if prepare is None else partial(_prepare_several, prepare, count)
        _STEPS_OF_SEVERAL.keep(look, prepare, given, recent)
    return tuple(y for y, _ in results), tuple(state.recent for _, state in results)


_STEPS_OF_SEVERAL = PreparedSteps(tuple)


def _preparation(module: ModuleType, *, activates: bool) -> Prepare | None:
    prepare = getattr(module, "prepare_convolution", None)
    return None if prepare is None else partial(prepare, activates=activates)


def _prepare_several(
    prepare: Prepare, count: int, inputs: Inputs, recent: tuple[Tensor, ...]
) -> Step | None:
    """Prepare the steps of so many convolutions; the inputs are all x, then all weights, …."""
    parts = [slice(place, None, count) for place in range(count)]
    pairs = zip(parts, recent, strict=True)
    steps = [prepare(inputs[part], ConvolutionState(last)) for part, last in pairs]
    ready = [step for step in steps if step is not None]
    if len(ready) < count:
        return None

    def step(inputs: Inputs, recent: Any) -> tuple[Any, Any]:
        done = [
            one(inputs[part], ConvolutionState(last))
            for one, part, last in zip(ready, parts, recent, strict=True)
        ]
        return tuple(y for y, _ in done), tuple(state.recent for _, state in done)

    return step


def _check(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str | None, *, packed: bool
) -> None:
    require_tensor("x", x)
    check_strided("x", x)
    if x.ndim != 4 or not all(x.shape[1 if packed else 2 :]):
        raise ValueError(
            "x must be [batch, time, head, feature], heads and features (and tokens of a pack) at "
            "least 1, got shape "
            f"{list(x.shape)}"
        )
    if x.dtype not in DTYPES:
        raise ValueError(f"x must be a floating-point tensor, got {type(x).__name__} of {x.dtype}")
    axes = {"weight": (weight, 3, "head, feature, token"), "bias": (bias, 2, "head, feature")}
    for name, (each, ndim, words) in axes.items():
        if each is None:
            continue
        require_tensor(name, each)
        check_strided(name, each)
        if each.ndim != ndim or each.shape[:2] != x.shape[2:] or not each.numel():
            raise ValueError(
                f"{name} must be [{words}] of x's {x.shape[2]} heads of {x.shape[3]}, got shape "
                f"{list(each.shape)}"
            )
        if each.dtype not in DTYPES or each.device != x.device:
            raise ValueError(
                f"{name} must be a floating-point tensor on {x.device}, got {each.dtype} on "
                f"{each.device}"
            )
    if activation is not None and activation not in get_args(Activation):
        raise ValueError(f"activation must be 'silu' or None, got {activation!r}")


def _check_window(width: int, ahead: int, *, has_state: bool) -> None:
    if not (is_recorded() or isinstance(ahead, int)) or not 0 <= ahead < width:
        raise ValueError(
            f"ahead must be a number of the {width} tokens of the window, from 0 to {width - 1}, "
            f"got {ahead!r}"
        )
    if ahead and has_state:
        raise ValueError(f"outputs before the end of a state see no later tokens: got {ahead=}")
