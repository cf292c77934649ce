"""Shapes of what the operators return, while a graph is traced: no kernel, no triton."""

from typing import Any

import torch
from torch import Tensor

from flowformer.ops.backends.operators import LINEAR, causal_results
from flowformer.ops.backends.triton.layout import chunk_bound
from flowformer.ops.backends.triton.tuning import VECTORS, settings_of


def _chunk_bound(query: Tensor, value: Tensor, cu_seqlens: Tensor | None) -> int:
    """Return the number of chunks that a call has room for: it depends on shapes alone."""
    size = settings_of(query, value, causal=True).size
    if cu_seqlens is None:
        return query.shape[0] * -(-query.shape[1] // size)
    return chunk_bound(query.shape[1], len(cu_seqlens) - 1, size)


def bidirectional(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Output and what is kept."""
    out = value.new_empty((*query.shape[:3], value.shape[3]))
    if not rest[9]:
        return out, *(out.new_empty(0) for _ in range(3))
    offsets = rest[2]
    rows = query.shape[0] if offsets is None else len(offsets) - 1
    _, _, h, d = query.shape

    def stats(x: Tensor) -> Tensor:
        return x.new_empty((2, x.shape[0], h, x.shape[1]), dtype=torch.float32)

    sums = query.new_empty((rows, h, d * (VECTORS + value.shape[3])), dtype=torch.float32)
    return out, stats(query), stats(key), sums


def bidirectional_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Gradients of query, key and value."""
    return tuple(tensor.new_empty(tensor.shape) for tensor in arguments[2:5])


def causal(*arguments: Any) -> tuple[Tensor, ...]:
    """Output, state and what is kept."""
    query, _, value, _, cu_seqlens, *_ = arguments
    keep, return_state = arguments[18:]
    b, t, h, d = query.shape
    out = value.new_empty((b, t, h, value.shape[3]))
    linear = arguments[13] == LINEAR
    rows = b if cu_seqlens is None else len(cu_seqlens) - 1
    state: list[Tensor | None] = []
    if return_state:
        state = [*_state(query, value, rows, linear)]
    stats = sums = None
    if keep and not linear:
        stats = query.new_empty((VECTORS, b, h, t), dtype=torch.float32)
        chunks = _chunk_bound(query, value, cu_seqlens)
        sums = query.new_empty((VECTORS, chunks, h, d), dtype=torch.float32)
    return causal_results(out, state, stats, sums, torch.float32)


def _state(query: Tensor, value: Tensor, rows: Any, linear: bool) -> list[Tensor | None]:
    h, d, m = query.shape[2], query.shape[3], value.shape[3]
    shapes = [*[(rows, h, d)] * 4, (rows, h), (rows, h, d, m)]
    sums = [query.new_empty(shape, dtype=torch.float64) for shape in shapes]
    if linear:
        return [None] * 6 + sums[5:]
    return [query.new_empty((rows,), dtype=torch.int64), *sums]


def causal_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """Gradients of the inputs and of the state."""
    query, key, value, _, cu_seqlens, row_scale = arguments[8:14]
    linear = arguments[23] == LINEAR
    rows = query.shape[0] if cu_seqlens is None else len(cu_seqlens) - 1
    grads = (tensor.new_empty(tensor.shape) for tensor in (query, key, value))
    empty = query.new_empty
    scale = empty(0 if row_scale is None else row_scale.shape, dtype=torch.float32)
    fields = _state(query, value, rows, linear)[1:]
    sums = (empty(0, dtype=torch.float64) if field is None else field for field in fields)
    return (*grads, scale, *sums)
