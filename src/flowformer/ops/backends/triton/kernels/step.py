"""One token of causal Flow-Attention, for every batch row and head: the recurrence of step.py."""

from typing import no_type_check

import triton
import triton.language as tl

from flowformer.ops.backends.triton.kernels.blocks import RELU, SIGMOID, clamped


@triton.jit
@no_type_check
def one_row(pointer, columns, WIDTH: tl.constexpr, FEATURES: tl.constexpr):
    """Return the features of one token, in the dtype of the arithmetic, zero beyond the width."""
    inside = columns < WIDTH
    x = tl.load(pointer + columns, mask=inside, other=0.0).to(tl.float32)
    if FEATURES == SIGMOID:
        x = tl.sigmoid(x)
    if FEATURES == RELU:
        x = tl.where(x < 0, 0.0, x) + 1e-6
    return tl.where(inside, x, 0.0)


@triton.jit
@no_type_check
def step(
    query, q_b, q_h, key, k_b, k_h, value, v_b, v_h, out,
    tokens, key_sum, query_sum, key_flow, query_flow, competition, key_value,
    new_tokens, new_key_sum, new_query_sum, new_key_flow, new_query_flow, new_competition,
    new_key_value, heads, eps, clamp,
    WIDTH: tl.constexpr, PADDED: tl.constexpr, Y_WIDTH: tl.constexpr, Y_BLOCK: tl.constexpr,
    FEATURES: tl.constexpr, COMPETES: tl.constexpr, ALLOCATES: tl.constexpr,
):  # fmt: skip
    """Output and next state, in the dtype of the state: nothing here is large."""
    batch, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    row = batch * heads + head
    leads = tl.program_id(2) == 0  # of the programs of a head, the one that writes the vectors
    wide = key_sum.dtype.element_ty
    columns = tl.arange(0, PADDED)
    inside = columns < WIDTH
    one = tl.full([PADDED], 1, wide)
    small = tl.where(inside, eps * one, 0 * one)
    q = one_row(query + batch * q_b + head * q_h, columns, WIDTH, FEATURES).to(wide)
    k = one_row(key + batch * k_b + head * k_h, columns, WIDTH, FEATURES).to(wide)
    count = tl.load(tokens + batch) + 1
    n = count.to(wide)

    at = row * WIDTH + columns
    keys = tl.load(key_sum + at, mask=inside, other=0.0) + k
    queries = tl.load(query_sum + at, mask=inside, other=0.0) + q
    incoming = tl.sum((q + small) * (keys + small), 0)
    outgoing = tl.sum((k + small) * (queries + small), 0)
    from_keys = tl.load(key_flow + at, mask=inside, other=0.0) + k * (n / outgoing)
    from_queries = tl.load(query_flow + at, mask=inside, other=0.0) + q * (n / incoming)
    scale = 1 / incoming
    if ALLOCATES:
        scale = scale / (1 + tl.exp(-tl.sum((q + small) * (from_keys + small), 0) / n))
    y_columns = tl.program_id(2) * Y_BLOCK + tl.arange(0, Y_BLOCK)
    y_inside = y_columns < Y_WIDTH
    at_value = value + batch * v_b + head * v_h + y_columns
    v = tl.load(at_value, mask=y_inside, other=0.0).to(tl.float32).to(wide)
    log_sum = tl.load(competition + row)
    if COMPETES:
        source = tl.sum((k + small) * (from_queries + small), 0) / n
        source = clamped(source, clamp)
        largest = tl.maximum(log_sum, source)
        log_sum = largest + tl.log(tl.exp(log_sum - largest) + tl.exp(source - largest))
        v = v * (n * tl.exp(source - log_sum))
    tl.store(new_tokens + batch, count, mask=leads & (head == 0))
    tl.store(new_competition + row, log_sum, mask=leads)
    tl.store(new_key_sum + at, keys, mask=inside & leads)
    tl.store(new_query_sum + at, queries, mask=inside & leads)
    tl.store(new_key_flow + at, from_keys, mask=inside & leads)
    tl.store(new_query_flow + at, from_queries, mask=inside & leads)

    both = inside[:, None] & y_inside[None, :]
    place = row * WIDTH * Y_WIDTH + columns[:, None] * Y_WIDTH + y_columns[None, :]
    sums = tl.load(key_value + place, mask=both, other=0.0) + k[:, None] * v[None, :]
    tl.store(new_key_value + place, sums, mask=both)
    result = tl.sum(q[:, None] * sums, 0) * scale
    at_out = out + row * Y_WIDTH + y_columns
    tl.store(at_out, result.to(out.dtype.element_ty), mask=y_inside)
