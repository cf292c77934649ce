"""The kernels as functions of tensors: grids, strides, and room for what they write."""

from dataclasses import dataclass
from typing import Any

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from flowformer.ops.backends.triton.kernels import feature_gradients, flows, products
from flowformer.ops.backends.triton.side import Scalars, Side
from flowformer.ops.backends.triton.tuning import padded
from flowformer.ops.state import FlowState

# The sides of a call differ in length and width: no size is bound to a name.
Tokens = Float[Tensor, "_b _t _h _d"]


def _launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **options: Any) -> None:
    """Run a kernel; triton's types say that it is the function it was written as."""
    kernel[grid](*arguments, **options)


def view(x: Tensor) -> tuple[Any, ...]:
    """Return a tensor ``[b, t, h, d]`` and the strides that kernels take."""
    return (x, *x.stride()[:3])


def _room_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def weighted_sum(side: Side, x: Tokens, weight: Scalars | None, eps: float) -> Tensor:
    """Return Σ weight · (φ(x) + ε) of each chunk, ``[chunks, h, d]``."""
    out = side.vectors(x.shape[3])
    _, length, heads = side.shape
    _launch(
        flows.weighted_sum, side.grid,
        *side.view(x), side.mask, weight, out, side.layout.chunks, length, heads, eps,
        **side.widths(x), **side.map, HAS_WEIGHT=weight is not None, **side.compiled,
    )  # fmt: skip
    return out


def scan(
    side: Side,
    parts: Tensor,
    start: Tensor | None = None,
    *,
    prefix: bool = False,
    reverse: bool = False,
    splits: bool = False,
    left: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Return the sums before each part (after it, in reverse), and the totals, in float64.

    Parts are chunks or splits of the layout, ``[parts, h, …]``; totals ``[sequences, h, …]``.
    ``left`` is how much each leaves of all before it, ``[parts, h]``, float64.
    """
    first = side.layout.split_first if splits else side.layout.chunk_first
    heads, rest = side.shape[2], parts.shape[2:]
    size = rest.numel()
    before = None
    if prefix:
        before = side.room(parts.shape, parts.dtype)
    total = parts.new_empty((side.layout.sequences, heads, *rest), dtype=torch.float64)
    block = min(64, padded(size))
    grid = side.layout.sequences, heads, triton.cdiv(size, block)
    if start is not None:
        start = start.to(torch.float64).contiguous()
    faded = () if left is None else (left,)
    _launch(
        flows.fading_scan if faded else flows.scan, grid,
        parts, *faded, start, before, total, first, heads, size,
        BLOCK=block, STEPS=32, HAS_START=start is not None, PREFIX=prefix, REVERSE=reverse,
        num_warps=4,
    )  # fmt: skip
    return before, total


def total_flow(side: Side, x: Tokens, total: Tensor, *, shares: bool) -> tuple[Scalars, Tensor]:
    """Return the flow of each token against a total, and each chunk's Σ φ(x) / flow."""
    flow, share = side.scalars(), side.vectors(x.shape[3])
    _, length, heads = side.shape
    _launch(
        flows.total_flow, side.grid,
        *side.view(x), side.mask, total, flow, share, side.layout.chunks, length, heads, side.eps,
        **side.widths(x), **side.map, SHARES=shares, **side.compiled,
    )  # fmt: skip
    return flow, share


def total_flow_backward(
    side: Side, x: Tokens, grad_total: Tensor, flow: Scalars, grad_flow: Scalars
) -> Tensor:
    """Add to ``grad_flow``, in place; return each chunk's Σ grad_flow (φ(x) + ε)."""
    grad_other = side.vectors(x.shape[3])
    _, length, heads = side.shape
    _launch(
        flows.total_flow_backward, side.grid,
        *side.view(x), side.mask, grad_total, flow, grad_flow, grad_other,
        side.layout.chunks, length, heads, side.eps,
        **side.widths(x), **side.map, **side.compiled,
    )  # fmt: skip
    return grad_other


def prefix_flow(
    side: Side,
    query: Tokens,
    key: Tokens,
    count: Tensor,
    before: tuple[Tensor, Tensor],
    against: tuple[Scalars, Scalars] | None = None,
) -> tuple[Scalars, Scalars, Tensor | None, Tensor | None]:
    """Return incoming, outgoing and the chunks' key and query flow.

    Given those two to divide by, return the conserved sink and source instead.
    """
    second = against is not None
    incoming, outgoing = against or (side.scalars(), side.scalars())
    sink, source = (side.scalars(), side.scalars()) if second else (None, None)
    key_share = query_share = None
    if not second:
        key_share, query_share = side.vectors(key.shape[3]), side.vectors(key.shape[3])
    _, length, heads = side.shape
    _launch(
        flows.prefix_flow, side.grid,
        *side.view(query), *side.view(key), side.mask, count, *before, incoming, outgoing,
        sink, source, key_share, query_share, side.layout.chunks, length, heads, side.eps,
        **side.widths(query, narrow=True), **side.map, SECOND=second,
        **side.dots, **side.compiled_wide,
    )  # fmt: skip
    if sink is not None and source is not None:
        return sink, source, None, None
    return incoming, outgoing, key_share, query_share


def prefix_flow_backward(
    side: Side,
    query: Tokens,
    key: Tokens,
    count: Tensor,
    divisors: tuple[Scalars, Scalars],
    weights: tuple[Scalars, Scalars],
    after: tuple[Tensor, Tensor],
    grad_incoming: Scalars,
) -> tuple[Scalars, Tensor, Tensor]:
    """Add to ``grad_incoming``, in place; return grad_outgoing and the chunks' Σ dI q, Σ dO k."""
    grad_outgoing = side.scalars()
    key_sum, query_sum = side.vectors(key.shape[3]), side.vectors(key.shape[3])
    _, length, heads = side.shape
    _launch(
        flows.prefix_flow_backward, side.grid,
        *side.view(query), *side.view(key), side.mask, count, *divisors, *weights, *after,
        grad_incoming, grad_outgoing, key_sum, query_sum,
        side.layout.chunks, length, heads, side.eps,
        **side.widths(query, narrow=True), **side.map, **side.dots, **side.compiled_wide,
    )  # fmt: skip
    return grad_outgoing, key_sum, query_sum


def states(
    side: Side,
    x: Tokens,
    y: Tokens,
    *,
    weight: Scalars | None = None,
    start: Tensor | None = None,
    prefix: bool = False,
    reverse: bool = False,
    competes: tuple[Tensor, float] | None = None,
) -> tuple[Tensor | None, Tensor, Scalars | None]:
    """Return Σ φ(x)ᵀ weight y before (or after) each chunk, of all, and the sources' logits.

    ``start`` is float64, a row a sequence, and so is the total. With ``competes``, the query flow
    and the clamp, the weight is exp of the clamped logits.
    """
    sizes = x.shape[3], y.shape[3]
    shape = len(side.layout.splits), side.shape[2], *sizes
    if start is not None:
        start = start.contiguous()  # and so is the total, as the operators' fakes say
    local = torch.empty(shape, dtype=torch.float32, device=side.device)
    before = None
    if prefix:
        matrices = len(side.layout.chunks), side.shape[2], *sizes
        before = side.room(matrices, side.state_dtype)
    logits = None if competes is None else side.scalars()
    vector, clamp = competes or (None, 0.0)
    log_left = None if side.log_decay is None else local.new_empty(shape[:2], dtype=torch.float64)

    def run(first: Tensor | None, to: Tensor | None) -> None:
        blocks = {**side.widths(x), **side.value_widths(y)}
        tiles = triton.cdiv(sizes[0], blocks["BLOCK"]) * triton.cdiv(sizes[1], blocks["Y_BLOCK"])
        _launch(
        products.states, (shape[0], shape[1], tiles),
            *side.view(x), *side.view(y), side.mask, weight, first, to, local, logits, vector,
            side.log_decay, log_left, side.layout.splits, side.layout.chunks,
            *side.shape[1:], side.eps, clamp,
            **blocks, **side.map, HAS_WEIGHT=weight is not None, COMPETES=competes is not None,
            HAS_START=first is not None, PREFIX=to is not None, REVERSE=reverse,
            HAS_DECAY=side.log_decay is not None, **side.dots, **side.compiled,
        )  # fmt: skip

    if not side.layout.is_split:
        first = None if start is None else start.to(torch.float32)
        run(first, before)
        if start is None:
            return before, local.double(), logits
        left = 1 if log_left is None else log_left.exp()[..., None, None]
        return before, start * left + local, logits
    run(None, None)
    left = None if log_left is None else log_left.exp()
    first, total = scan(side, local, start, prefix=prefix, reverse=reverse, splits=True, left=left)
    if prefix:
        run(first, before)
    return before, total, logits


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """The tensors of which the bidirectional form makes its row scale."""

    incoming: Scalars
    key_flow: Tensor
    ratio: Tensor


def output(  # noqa: PLR0913 - what the kernel reads
    side: Side,
    query: Tokens,
    key: Tokens,
    value: Tokens,
    matrix: Tensor,
    *,
    causal: bool,
    row_scale: Scalars | None = None,
    weight: Scalars | None = None,
    allocation: Allocation | None = None,
) -> tuple[Tokens, Scalars | None]:
    """Return the output, and the conserved sink if there is an allocation."""
    batch, length, heads = side.shape
    out = value.new_empty((batch, length, heads, value.shape[3]))
    conserved = None if allocation is None else side.scalars()
    incoming = key_flow = ratio = None
    if allocation is not None:
        incoming, key_flow, ratio = allocation.incoming, allocation.key_flow, allocation.ratio
    blocks = {**side.widths(query, narrow=True), **side.value_widths(value)}
    grid = *side.grid, triton.cdiv(value.shape[3], blocks["Y_BLOCK"])
    views = (part for x in (query, key, value, out) for part in side.view(x))
    _launch(
        products.output, grid,
        *views, side.mask, row_scale, weight, matrix, incoming, conserved, key_flow, ratio,
        side.log_decay, side.layout.chunks, length, heads, side.eps,
        **blocks, **side.map, CAUSAL=causal, HAS_SCALE=row_scale is not None,
        HAS_WEIGHT=weight is not None, ALLOCATES=allocation is not None,
        HAS_DECAY=side.log_decay is not None, **side.dots, **side.compiled,
    )  # fmt: skip
    return out, conserved


def row_products(side: Side, x: Tokens, y: Tokens) -> Scalars:
    """Return x·y of each token."""
    out = side.scalars()
    sizes = side.widths(x)
    _launch(
        products.row_products, side.grid,
        *side.view(x), *side.view(y), side.mask, out, side.layout.chunks, *side.shape[1:],
        **sizes, HAS_MASK=side.mask is not None, **side.compiled,
    )  # fmt: skip
    return out


def values_backward(
    side: Side,
    tensors: tuple[Tokens, Tokens, Tokens, Tokens],
    grad_matrix: Tensor,
    *,
    causal: bool,
    row_scale: Scalars | None = None,
    weight: Scalars | None = None,
) -> tuple[Tokens, Scalars | None]:
    """Return the gradients of values and of their weights; tensors: query, key, value, grad."""
    query, _, value, _ = tensors
    grad_value = _room_like(value)
    grad_weight = None if weight is None else side.scalars()
    views = (part for x in tensors for part in side.view(x))
    _launch(
        products.values_backward, side.grid,
        *views, *side.view(grad_value), side.mask, row_scale, weight, grad_weight, grad_matrix,
        side.log_decay, side.layout.chunks, *side.shape[1:],
        **side.widths(query, narrow=True), **side.value_widths(value), **side.map, CAUSAL=causal,
        HAS_SCALE=row_scale is not None, HAS_WEIGHT=weight is not None,
        HAS_DECAY=side.log_decay is not None, **side.dots, **side.compiled,
    )  # fmt: skip
    return grad_value, grad_weight


def linear_features_backward(
    side: Side,
    tensors: tuple[Tokens, Tokens, Tokens, Tokens],
    matrices: tuple[Tensor, Tensor],
    row_scale: Scalars | None,
) -> tuple[Tokens, Tokens, Scalars | None]:
    """Return the gradients of query, key and row_scale; tensors: query, key, value, grad."""
    query, key, value, _ = tensors
    grads = _room_like(query), _room_like(key)
    grad_scale = None if row_scale is None else side.scalars()
    views = (part for x in (*tensors, *grads) for part in side.view(x))
    _launch(
        feature_gradients.linear_features_backward, side.grid,
        *views, side.mask, row_scale, grad_scale, *matrices, side.log_decay,
        side.layout.chunks, *side.shape[1:],
        **side.widths(query, narrow=True), **side.value_widths(value),
        HAS_MASK=side.mask is not None, HAS_SCALE=row_scale is not None,
        HAS_DECAY=side.log_decay is not None, **side.dots, **side.compiled_wide,
    )  # fmt: skip
    return grads[0], grads[1], grad_scale


def decays_backward(
    side: Side,
    tensors: tuple[Tokens, Tokens, Tokens, Tokens],
    matrices: tuple[Tensor, Tensor],
    row_scale: Scalars | None,
) -> Scalars:
    """Return the gradient of log_decay; tensors: query, key, value, grad."""
    query, _, value, _ = tensors
    grad_decay = side.scalars()
    views = (part for x in tensors for part in side.view(x))
    _launch(
        feature_gradients.decays_backward, side.grid,
        *views, side.mask, row_scale, *matrices, side.log_decay, grad_decay,
        side.layout.chunks, *side.shape[1:],
        **side.widths(query, narrow=True), **side.value_widths(value),
        HAS_MASK=side.mask is not None, HAS_SCALE=row_scale is not None,
        **side.dots, **side.compiled,
    )  # fmt: skip
    return grad_decay


@dataclass(frozen=True, kw_only=True)
class FlowGradients:
    """The tensors that the last pass of a backward reads, see the kernel.

    Attributes:
        sinks: four numbers a sink.
        sources: four numbers a source.
        before: four vectors.
        after: four vectors.
        matrix: Σ kᵀ c v, before each chunk or of all.
        grad_matrix: its gradient.
    """

    sinks: Float[Tensor, "4 b h l"] | None
    sources: Float[Tensor, "4 b h s"] | None
    before: Float[Tensor, "4 n h d"]
    after: Float[Tensor, "4 n h d"]
    matrix: Tensor | None
    grad_matrix: Tensor | None


def flow_features_backward(
    side: Side,
    tensors: tuple[Tokens, Tokens, Tokens, Tokens],
    gradients: FlowGradients,
    *,
    causal: bool,
) -> tuple[Tokens | None, Tokens | None]:
    """Return the gradients of query and of key, those whose scalars are given."""
    query, key, value, _ = tensors
    sinks, sources = gradients.sinks, gradients.sources
    grad_query = None if sinks is None else _room_like(query)
    grad_key = None if sources is None else _room_like(key)
    none = (None, 0, 0, 0)
    views = [part for x in tensors for part in side.view(x)]
    for grad in (grad_query, grad_key):
        views += none if grad is None else side.view(grad)
    batch, length, heads = side.shape
    _launch(
        feature_gradients.flow_features_backward, side.grid,
        *views, side.mask, sinks, sources, gradients.before, gradients.after,
        gradients.matrix, gradients.grad_matrix, side.layout.chunks, length,
        batch * length * heads, gradients.before[0].numel(), heads, side.eps,
        **side.widths(query, narrow=True), **side.value_widths(value), **side.map, CAUSAL=causal,
        SINKS=sinks is not None, SOURCES=sources is not None, **side.dots, **side.compiled_wide,
    )  # fmt: skip
    return grad_query, grad_key


def step(
    query: Tokens,
    key: Tokens,
    value: Tokens,
    before: FlowState,
    *,
    features: int,
    eps: float,
    clamp: float | None,
    allocates: bool,
) -> tuple[Tokens, FlowState]:
    """Return the output of one token and the next state; no competition where clamp is None."""
    batch, _, heads, width = query.shape
    y_width = value.shape[3]
    after = FlowState(*(torch.empty_like(field) for field in before))
    out = value.new_empty((batch, 1, heads, y_width))
    views = [(x, x.stride(0), x.stride(2)) for x in (query, key, value)]
    _launch(
        flows.step, (batch, heads, triton.cdiv(y_width, 16)),
        *(part for each in views for part in each), out, *before, *after,
        heads, eps, 0.0 if clamp is None else clamp,
        WIDTH=width, PADDED=padded(width), Y_WIDTH=y_width, Y_BLOCK=16, FEATURES=features,
        COMPETES=clamp is not None, ALLOCATES=allocates, num_warps=4,
    )  # fmt: skip
    return out, after
