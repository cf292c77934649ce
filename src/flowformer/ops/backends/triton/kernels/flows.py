"""The first half, conserve: flows of tokens against sums over the others, and those sums.

A sum over tokens is made in three steps: of each chunk here, over the chunks by :func:`scan`, and,
in the causal form, inside of the chunk by the triangle of A = q kᵀ (see chunked.py). Last, the
recurrence of one token, for every batch row and head, by :func:`step`.
"""

from typing import no_type_check

import triton
import triton.language as tl

from flowformer.ops.backends.triton.kernels.blocks import (
    RELU,
    SIGMOID,
    chunk_of,
    clamped,
    product,
    read_features,
    read_scalars,
    read_vector,
)


@triton.jit
@no_type_check
def weighted_sum(
    x, x_b, x_t, x_h, mask, weight, out, table, length, heads, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr,
    FEATURES: tl.constexpr, HAS_MASK: tl.constexpr, HAS_WEIGHT: tl.constexpr,
):  # fmt: skip
    """out = Σ_t weight_t · (φ(x_t) + ε) of each chunk, [chunks, h, d]."""
    batch, _, tokens, _, real = chunk_of(table, mask, length, SIZE, HAS_MASK)
    head = tl.program_id(1).to(tl.int64)
    x += batch * x_b + head * x_h
    out += (tl.program_id(0).to(tl.int64) * heads + head) * WIDTH
    factor = tl.where(real, 1.0, 0.0)
    if HAS_WEIGHT:
        factor = read_scalars(weight + (batch * heads + head) * length, tokens, real)
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        f = read_features(x, x_t, tokens, real, columns, WIDTH, FEATURES) + eps
        tl.store(out + columns, tl.sum(f * factor[:, None], 0), mask=columns < WIDTH)


@triton.jit
@no_type_check
def total_flow(
    x, x_b, x_t, x_h, mask, total, flow, share, table, length, heads, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr,
    FEATURES: tl.constexpr, HAS_MASK: tl.constexpr, SHARES: tl.constexpr,
):  # fmt: skip
    """flow_t = (φ(x_t) + ε)·(total + ε), 1 at padding; share = Σ_t φ(x_t) / flow_t of the chunk."""
    batch, sequence, tokens, there, real = chunk_of(table, mask, length, SIZE, HAS_MASK)
    head = tl.program_id(1).to(tl.int64)
    x += batch * x_b + head * x_h
    total += (sequence * heads + head) * WIDTH
    sums = tl.zeros([SIZE], tl.float32)
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        f = read_features(x, x_t, tokens, real, columns, WIDTH, FEATURES) + eps
        sums += tl.sum(f * read_vector(total, columns, eps, WIDTH)[None, :], 1)
    sums = tl.where(real, sums, 1.0)
    tl.store(flow + (batch * heads + head) * length + tokens, sums, mask=there)
    if SHARES:
        share += (tl.program_id(0).to(tl.int64) * heads + head) * WIDTH
        for first in range(0, WIDTH, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            f = read_features(x, x_t, tokens, real, columns, WIDTH, FEATURES)
            tl.store(share + columns, tl.sum(f / sums[:, None], 0), mask=columns < WIDTH)


@triton.jit
@no_type_check
def total_flow_backward(
    x, x_b, x_t, x_h, mask, grad_total, flow, grad_flow, grad_other, table, length, heads, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr,
    FEATURES: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Add what flow_t has from its share, -φ(x_t)·grad_total / flow_t², to grad_flow_t.

    grad_other = Σ_t grad_flow_t · (φ(x_t) + ε) of the chunk: the gradient of the sum that the flow
    is against.
    """
    batch, sequence, tokens, _, real = chunk_of(table, mask, length, SIZE, HAS_MASK)
    head = tl.program_id(1).to(tl.int64)
    x += batch * x_b + head * x_h
    grad_total += (sequence * heads + head) * WIDTH
    scalars = (batch * heads + head) * length
    sums = tl.zeros([SIZE], tl.float32)
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        f = read_features(x, x_t, tokens, real, columns, WIDTH, FEATURES)
        sums += tl.sum(f * read_vector(grad_total, columns, 0.0, WIDTH)[None, :], 1)
    divisor = tl.where(real, read_scalars(flow + scalars, tokens, real), 1.0)
    grad = read_scalars(grad_flow + scalars, tokens, real) - sums / (divisor * divisor)
    tl.store(grad_flow + scalars + tokens, grad, mask=real)
    grad_other += (tl.program_id(0).to(tl.int64) * heads + head) * WIDTH
    grad = tl.where(real, grad, 0.0)
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        f = read_features(x, x_t, tokens, real, columns, WIDTH, FEATURES) + eps
        tl.store(grad_other + columns, tl.sum(f * grad[:, None], 0), mask=columns < WIDTH)


@triton.jit
@no_type_check
def prefix_flow(
    query, q_b, q_t, q_h, key, k_b, k_t, k_h, mask, count,
    key_before, query_before, incoming, outgoing, sink, source, key_share, query_share,
    table, length, heads, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr, FEATURES: tl.constexpr,
    HAS_MASK: tl.constexpr, SECOND: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """The causal flows of a chunk against what came before it and the triangle of A = q kᵀ.

    First: incoming and outgoing, 1 at padding, and the chunk's Σ n·k/O and Σ n·q/I. Second: the
    conserved sink and source, where k and q are weighted by n/O and n/I.
    """
    batch, _, tokens, there, real = chunk_of(table, mask, length, SIZE, HAS_MASK)
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * heads + head
    query += batch * q_b + head * q_h
    key += batch * k_b + head * k_h
    key_before += row * WIDTH
    query_before += row * WIDTH
    scalars = (batch * heads + head) * length + tokens
    n = tl.load(count + batch * length + tokens, mask=real, other=1.0)
    key_weight = tl.where(real, 1.0, 0.0)
    query_weight = key_weight
    if SECOND:
        key_weight = n / tl.load(outgoing + scalars, mask=real, other=1.0)
        query_weight = n / tl.load(incoming + scalars, mask=real, other=1.0)

    scores = tl.zeros([SIZE, SIZE], tl.float32)
    into, out_of = tl.zeros([SIZE], tl.float32), tl.zeros([SIZE], tl.float32)
    query_sum, key_sum = tl.zeros([SIZE], tl.float32), tl.zeros([SIZE], tl.float32)
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        q = read_features(query, q_t, tokens, real, columns, WIDTH, FEATURES)
        k = read_features(key, k_t, tokens, real, columns, WIDTH, FEATURES)
        key_past = read_vector(key_before, columns, eps, WIDTH)
        query_past = read_vector(query_before, columns, eps, WIDTH)
        into += tl.sum(q * key_past[None, :], 1) + eps * tl.sum(key_past, 0)
        out_of += tl.sum(k * query_past[None, :], 1) + eps * tl.sum(query_past, 0)
        query_sum += tl.sum(q, 1)
        key_sum += tl.sum(k, 1)
        scores += product(q, tl.trans(k), DOT, PRECISION, EMULATE)
    sink_of = tl.arange(0, SIZE)[:, None]
    source_of = tl.arange(0, SIZE)[None, :]
    lower = tl.where(source_of <= sink_of, scores, 0.0)  # sources up to the sink
    upper = tl.where(sink_of <= source_of, scores, 0.0)
    into += tl.sum(lower * key_weight[None, :], 1) + eps * tl.cumsum(key_sum * key_weight, 0)
    out_of += tl.sum(upper * query_weight[:, None], 0) + eps * tl.cumsum(
        query_sum * query_weight, 0
    )
    if SECOND:
        tl.store(sink + scalars, into / n, mask=there)
        tl.store(source + scalars, out_of / n, mask=there)
    else:
        into, out_of = tl.where(real, into, 1.0), tl.where(real, out_of, 1.0)
        tl.store(incoming + scalars, into, mask=there)
        tl.store(outgoing + scalars, out_of, mask=there)
        for first in range(0, WIDTH, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            q = read_features(query, q_t, tokens, real, columns, WIDTH, FEATURES)
            k = read_features(key, k_t, tokens, real, columns, WIDTH, FEATURES)
            k, q = tl.sum(k * (n / out_of)[:, None], 0), tl.sum(q * (n / into)[:, None], 0)
            tl.store(key_share + row * WIDTH + columns, k, mask=columns < WIDTH)
            tl.store(query_share + row * WIDTH + columns, q, mask=columns < WIDTH)


@triton.jit
@no_type_check
def prefix_flow_backward(
    query, q_b, q_t, q_h, key, k_b, k_t, k_h, mask, count,
    incoming, outgoing, sink_weight, source_weight, key_flow_after, query_flow_after,
    grad_incoming, grad_outgoing, key_sum, query_sum, table, length, heads, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr, FEATURES: tl.constexpr,
    HAS_MASK: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """Add what incoming and outgoing have from n/I and n/O to their gradients.

    With dU_t = Σ_{r≥t} sink_weight_r (q_r + ε), the gradient of Σ n·k/O up to t, and dW likewise of
    source_weight and k: dO_t -= n_t / O_t² · k_t·dU_t and dI_t -= n_t / I_t² · q_t·dW_t. key_sum
    and query_sum are the chunk's Σ dI (q + ε) and Σ dO (k + ε), the gradients of Σ k and of Σ q.
    """
    batch, _, tokens, _, real = chunk_of(table, mask, length, SIZE, HAS_MASK)
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * heads + head
    query += batch * q_b + head * q_h
    key += batch * k_b + head * k_h
    key_flow_after += row * WIDTH
    query_flow_after += row * WIDTH
    scalars = (batch * heads + head) * length + tokens
    n = tl.load(count + batch * length + tokens, mask=real, other=1.0)
    of_sink = tl.load(sink_weight + scalars, mask=real, other=0.0)
    of_source = tl.load(source_weight + scalars, mask=real, other=0.0)

    scores = tl.zeros([SIZE, SIZE], tl.float32)
    key_part, query_part = tl.zeros([SIZE], tl.float32), tl.zeros([SIZE], tl.float32)
    q_sum, k_sum = tl.zeros([SIZE], tl.float32), tl.zeros([SIZE], tl.float32)
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        q = read_features(query, q_t, tokens, real, columns, WIDTH, FEATURES)
        k = read_features(key, k_t, tokens, real, columns, WIDTH, FEATURES)
        key_part += tl.sum(k * read_vector(key_flow_after, columns, 0.0, WIDTH)[None, :], 1)
        query_part += tl.sum(q * read_vector(query_flow_after, columns, 0.0, WIDTH)[None, :], 1)
        q_sum += tl.sum(q, 1)
        k_sum += tl.sum(k, 1)
        scores += product(q, tl.trans(k), DOT, PRECISION, EMULATE)
    sink_of = tl.arange(0, SIZE)[:, None]
    source_of = tl.arange(0, SIZE)[None, :]
    lower = tl.where(source_of <= sink_of, scores, 0.0)
    upper = tl.where(sink_of <= source_of, scores, 0.0)
    key_part += tl.sum(lower * of_sink[:, None], 0) + eps * k_sum * tl.cumsum(
        of_sink, 0, reverse=True
    )
    query_part += tl.sum(upper * of_source[None, :], 1) + eps * q_sum * tl.cumsum(
        of_source, 0, reverse=True
    )
    into = tl.load(incoming + scalars, mask=real, other=1.0)
    out_of = tl.load(outgoing + scalars, mask=real, other=1.0)
    grad_into = tl.load(grad_incoming + scalars, mask=real, other=0.0)
    grad_into = tl.where(real, grad_into - n * query_part / (into * into), 0.0)
    grad_out_of = tl.where(real, -n * key_part / (out_of * out_of), 0.0)
    tl.store(grad_incoming + scalars, grad_into, mask=real)
    tl.store(grad_outgoing + scalars, grad_out_of, mask=real)
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        q = read_features(query, q_t, tokens, real, columns, WIDTH, FEATURES) + eps
        k = read_features(key, k_t, tokens, real, columns, WIDTH, FEATURES) + eps
        k, q = tl.sum(k * grad_out_of[:, None], 0), tl.sum(q * grad_into[:, None], 0)
        tl.store(key_sum + row * WIDTH + columns, q, mask=columns < WIDTH)
        tl.store(query_sum + row * WIDTH + columns, k, mask=columns < WIDTH)


@triton.jit
@no_type_check
def scan(
    parts, start, prefix, total, first, heads, size,
    BLOCK: tl.constexpr, STEPS: tl.constexpr, HAS_START: tl.constexpr, PREFIX: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """Sums over a sequence's parts, in float64: before each (after it, in reverse), and of all."""
    sequence, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    begin, end = tl.load(first + sequence), tl.load(first + sequence + 1)
    place = (sequence * heads + head) * size + columns
    carried = tl.zeros([BLOCK], tl.float64)
    if HAS_START:
        carried += tl.load(start + place, mask=inside, other=0.0)
    steps = tl.arange(0, STEPS)
    for offset in range(0, end - begin, STEPS):
        part = begin + offset + steps
        if REVERSE:
            part = end - 1 - offset - steps
        here = (part[:, None] >= begin) & (part[:, None] < end) & inside[None, :]
        at = (part[:, None] * heads + head) * size + columns[None, :]
        x = tl.load(parts + at, mask=here, other=0.0).to(tl.float64)
        if PREFIX:
            before = carried[None, :] + (tl.cumsum(x, 0) - x)
            tl.store(prefix + at, before.to(prefix.dtype.element_ty), mask=here)
        carried += tl.sum(x, 0)
    tl.store(total + place, carried, mask=inside)


@triton.jit
@no_type_check
def one_after_another(left, added, left_after, added_after):
    """Return what two parts leave of all before them and add to it, as one."""
    return left * left_after, added * left_after + added_after


@triton.jit
@no_type_check
def fading_scan(
    parts, left, start, prefix, total, first, heads, size,
    BLOCK: tl.constexpr, STEPS: tl.constexpr, HAS_START: tl.constexpr, PREFIX: tl.constexpr,
    REVERSE: tl.constexpr,
):  # fmt: skip
    """As :func:`scan` where each part leaves so much of all before it, [parts, h], float64.

    A step adds the part before its own, so that the last, beyond all parts, has the total.
    """
    sequence, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    columns = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    begin, end = tl.load(first + sequence), tl.load(first + sequence + 1)
    place = (sequence * heads + head) * size + columns
    carried = tl.zeros([BLOCK], tl.float64)
    if HAS_START:
        carried += tl.load(start + place, mask=inside, other=0.0)
    count = end - begin
    for offset in range(0, count + 1, STEPS):
        step = offset + tl.arange(0, STEPS)
        part, last = begin + step, begin + step - 1
        if REVERSE:
            part, last = end - 1 - step, end - step
        there = (step > 0) & (step <= count)
        x = tl.load(
            parts + (last[:, None] * heads + head) * size + columns[None, :],
            mask=there[:, None] & inside[None, :],
            other=0.0,
        ).to(tl.float64)
        factor = tl.load(left + last * heads + head, mask=there, other=1.0)
        factor = tl.broadcast_to(factor[:, None], [STEPS, BLOCK])
        factor, x = tl.associative_scan((factor, x), 0, one_after_another)
        before = carried[None, :] * factor + x
        if PREFIX:
            at = (part[:, None] * heads + head) * size + columns[None, :]
            here = (step < count)[:, None] & inside[None, :]
            tl.store(prefix + at, before.to(prefix.dtype.element_ty), mask=here)
        carried = tl.sum(tl.where(step[:, None] == offset + STEPS - 1, before, 0.0), 0)
    tl.store(total + place, carried, mask=inside)


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
