"""The second half, shared with every linear attention: q Σ kᵀ v with weights of rows and sources.

The sums of kᵀ v stand before each chunk in memory; inside of a chunk the triangle of A = q kᵀ does
what they leave out. In the form that is not causal one sum serves all chunks of a sequence.

Where linear attention forgets (HAS_DECAY), D_ts = exp Σ_{s<r≤t} g_r: inside of a chunk the triangle
is multiplied by that of D, what comes before it shrinks on its way to each token, and what each
token adds on its way to the end. Sums from the other end, those of gradients, the other way round.
"""

from typing import no_type_check

import triton
import triton.language as tl

from flowformer.ops.backends.triton.kernels.blocks import (
    chunk_of,
    clamped,
    faded,
    product,
    read,
    read_decays,
    read_features,
    read_matrix,
    read_scalars,
    read_vector,
    rounded,
    write,
)


@triton.jit
@no_type_check
def states(
    x, x_b, x_t, x_h, y, y_b, y_t, y_h, mask, weight, start, before, total,
    logits, vector, log_decay, log_left, splits, table, length, heads, eps, clamp,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, Y_WIDTH: tl.constexpr, Y_BLOCK: tl.constexpr,
    SIZE: tl.constexpr, FEATURES: tl.constexpr, HAS_MASK: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    COMPETES: tl.constexpr, HAS_START: tl.constexpr, PREFIX: tl.constexpr, REVERSE: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """total = Σ_t φ(x_t)ᵀ weight_t y_t of a split, [splits, h, d, m]; before: up to each chunk.

    A split is a row of ``splits``: first chunk, end, and its sequence. With COMPETES the weight is
    exp(clamp((φ(x_t) + ε)·(vector + ε))), whose logits are kept. With HAS_DECAY log_left is the
    logarithm of what the split leaves of all before it, [splits, h], float64.
    """
    split, head = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    blocks = (Y_WIDTH + Y_BLOCK - 1) // Y_BLOCK
    x_first = tl.program_id(2) // blocks * BLOCK
    columns = x_first + tl.arange(0, BLOCK)
    y_columns = tl.program_id(2) % blocks * Y_BLOCK + tl.arange(0, Y_BLOCK)
    begin, end = tl.load(splits + 3 * split), tl.load(splits + 3 * split + 1)
    sequence = tl.load(splits + 3 * split + 2)
    size = WIDTH * Y_WIDTH
    inside = (columns < WIDTH)[:, None] & (y_columns < Y_WIDTH)[None, :]
    place = columns[:, None] * Y_WIDTH + y_columns[None, :]
    past = tl.zeros([BLOCK, Y_BLOCK], tl.float32)
    if HAS_START:
        past += tl.load(start + (split * heads + head) * size + place, mask=inside, other=0.0)
    added = tl.zeros([BLOCK, Y_BLOCK], tl.float32)
    all_logs = tl.zeros([SIZE], tl.float64)
    for step in range(0, end - begin):
        chunk = begin + step
        if REVERSE:
            chunk = end - 1 - step
        row = table + 4 * chunk
        batch, first, stop = tl.load(row), tl.load(row + 1), tl.load(row + 2)
        tokens = first + tl.arange(0, SIZE)
        there = tokens < stop
        real = there
        if HAS_MASK:
            real = there & (tl.load(mask + batch * length + tokens, mask=there, other=0) != 0)
        scalars = (batch * heads + head) * length
        x_here = x + batch * x_b + head * x_h
        f = read_features(x_here, x_t, tokens, real, columns, WIDTH, FEATURES)
        if HAS_WEIGHT:
            f = f * read_scalars(weight + scalars, tokens, real)[:, None]
        if COMPETES:
            logit = tl.zeros([SIZE], tl.float32)
            for offset in range(0, WIDTH, BLOCK):
                all_columns = offset + tl.arange(0, BLOCK)
                g = read_features(x_here, x_t, tokens, real, all_columns, WIDTH, FEATURES)
                p = read_vector(vector + (sequence * heads + head) * WIDTH, all_columns, eps, WIDTH)
                logit += tl.sum((g + eps) * p[None, :], 1)
            tl.store(logits + scalars + tokens, logit, mask=there & (tl.program_id(2) == 0))
            f = f * tl.exp(clamped(logit, clamp))[:, None]
        values = read(y + batch * y_b + head * y_h, y_t, tokens, real, y_columns, Y_WIDTH)
        if PREFIX:
            at = before + (chunk * heads + head) * size + place
            tl.store(at, rounded(past + added, before.dtype.element_ty, EMULATE), mask=inside)
        if HAS_DECAY:
            logs = read_scalars(log_decay + scalars, tokens, there)
            log_chunk = tl.sum(logs, 0)
            all_logs += logs
            past = past * tl.exp(log_chunk)
            added = added * tl.exp(log_chunk)
            if REVERSE:
                logs = tl.cumsum(logs, 0)
            else:
                logs = read_scalars(log_decay + scalars, tokens + 1, tokens + 1 < stop)
                logs = tl.cumsum(logs, 0, reverse=True)
            f = f * tl.exp(logs)[:, None]
        added += product(tl.trans(f), values, DOT, PRECISION, EMULATE)
    if HAS_DECAY:
        tl.store(log_left + split * heads + head, tl.sum(all_logs, 0), mask=tl.program_id(2) == 0)
    tl.store(total + (split * heads + head) * size + place, added, mask=inside)


@triton.jit
@no_type_check
def output(
    query, q_b, q_t, q_h, key, k_b, k_t, k_h, value, v_b, v_t, v_h, out, o_b, o_t, o_h, mask,
    row_scale, weight, matrix, incoming, conserved, key_flow, ratio, log_decay,
    table, length, heads, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, Y_WIDTH: tl.constexpr, Y_BLOCK: tl.constexpr,
    SIZE: tl.constexpr, FEATURES: tl.constexpr, HAS_MASK: tl.constexpr, CAUSAL: tl.constexpr,
    HAS_SCALE: tl.constexpr, HAS_WEIGHT: tl.constexpr, ALLOCATES: tl.constexpr,
    HAS_DECAY: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """out_t = row_scale_t · q_t (matrix + Σ_{s≤t, in the chunk} k_sᵀ weight_s v_s), or decayed.

    With ALLOCATES row_scale_t is sigmoid(Î_t · ratio) / I_t, with Î_t = (q_t + ε)·(key_flow + ε),
    which is kept as ``conserved``: the form that is not causal.
    """
    batch, sequence, tokens, there, real = chunk_of(table, mask, length, SIZE, HAS_MASK)
    head = tl.program_id(1).to(tl.int64)
    y_columns = tl.program_id(2) * Y_BLOCK + tl.arange(0, Y_BLOCK)
    place = sequence
    if CAUSAL:
        place = tl.program_id(0).to(tl.int64)
    matrix += (place * heads + head) * WIDTH * Y_WIDTH
    query += batch * q_b + head * q_h
    key += batch * k_b + head * k_h
    scalars = (batch * heads + head) * length
    result = tl.zeros([SIZE, Y_BLOCK], tl.float32)
    scores = tl.zeros([SIZE, SIZE], tl.float32)
    sink = tl.zeros([SIZE], tl.float32)
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        q = read_features(query, q_t, tokens, real, columns, WIDTH, FEATURES)
        sums = read_matrix(matrix, columns, y_columns, WIDTH, Y_WIDTH)
        result += product(q, sums, DOT, PRECISION, EMULATE)
        if CAUSAL:
            k = read_features(key, k_t, tokens, real, columns, WIDTH, FEATURES)
            scores += product(q, tl.trans(k), DOT, PRECISION, EMULATE)
        if ALLOCATES:
            total = read_vector(key_flow + (sequence * heads + head) * WIDTH, columns, eps, WIDTH)
            sink += tl.sum((q + eps) * total[None, :], 1)
    if CAUSAL:
        values = read(value + batch * v_b + head * v_h, v_t, tokens, real, y_columns, Y_WIDTH)
        if HAS_WEIGHT:
            values = values * read_scalars(weight + scalars, tokens, real)[:, None]
        if HAS_DECAY:
            logs, later_logs = read_decays(log_decay + scalars, tokens, there, SIZE)
            result = result * tl.exp(tl.cumsum(logs, 0))[:, None]
            scores = faded(scores, later_logs, SIZE)
        else:
            lower = tl.arange(0, SIZE)[None, :] <= tl.arange(0, SIZE)[:, None]
            scores = tl.where(lower, scores, 0.0)
        result += product(scores, values, DOT, PRECISION, EMULATE)
    if ALLOCATES:
        tl.store(conserved + scalars + tokens, sink, mask=there & (tl.program_id(2) == 0))
        into = tl.where(real, read_scalars(incoming + scalars, tokens, real), 1.0)
        result = result * (tl.sigmoid(sink * tl.load(ratio + sequence)) / into)[:, None]
    if HAS_SCALE:
        result = result * read_scalars(row_scale + scalars, tokens, real)[:, None]
    write(out + batch * o_b + head * o_h, o_t, tokens, there, y_columns, result, Y_WIDTH, EMULATE)


@triton.jit
@no_type_check
def row_products(
    x, x_b, x_t, x_h, y, y_b, y_t, y_h, mask, out, table, length, heads,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, SIZE: tl.constexpr, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """out_t = x_t·y_t, zero at padding."""
    batch, _, tokens, there, real = chunk_of(table, mask, length, SIZE, HAS_MASK)
    head = tl.program_id(1).to(tl.int64)
    sums = tl.zeros([SIZE], tl.float32)
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        left = read(x + batch * x_b + head * x_h, x_t, tokens, real, columns, WIDTH)
        right = read(y + batch * y_b + head * y_h, y_t, tokens, real, columns, WIDTH)
        sums += tl.sum(left * right, 1)
    tl.store(out + (batch * heads + head) * length + tokens, sums, mask=there)


@triton.jit
@no_type_check
def values_backward(
    query, q_b, q_t, q_h, key, k_b, k_t, k_h, value, v_b, v_t, v_h, grad, g_b, g_t, g_h,
    grad_value, dv_b, dv_t, dv_h, mask, row_scale, weight, grad_weight, grad_matrix, log_decay,
    table, length, heads,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, Y_WIDTH: tl.constexpr, Y_BLOCK: tl.constexpr,
    SIZE: tl.constexpr, FEATURES: tl.constexpr, HAS_MASK: tl.constexpr, CAUSAL: tl.constexpr,
    HAS_SCALE: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_DECAY: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """The gradients of values and of their weights, of grad_matrix = Σ q_tᵀ row_scale_t g_t.

    With z_s = k_s (grad_matrix + Σ_{t≥s, in the chunk} q_tᵀ row_scale_t g_t): grad_value_s is
    weight_s z_s, and grad_weight_s is v_s·z_s.
    """
    batch, sequence, tokens, there, real = chunk_of(table, mask, length, SIZE, HAS_MASK)
    head = tl.program_id(1).to(tl.int64)
    place = sequence
    if CAUSAL:
        place = tl.program_id(0).to(tl.int64)
    grad_matrix += (place * heads + head) * WIDTH * Y_WIDTH
    query += batch * q_b + head * q_h
    key += batch * k_b + head * k_h
    scalars = (batch * heads + head) * length
    scores = tl.zeros([SIZE, SIZE], tl.float32)
    if CAUSAL:
        for first in range(0, WIDTH, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            q = read_features(query, q_t, tokens, real, columns, WIDTH, FEATURES)
            k = read_features(key, k_t, tokens, real, columns, WIDTH, FEATURES)
            scores += product(q, tl.trans(k), DOT, PRECISION, EMULATE)
        if HAS_SCALE:
            scores = scores * read_scalars(row_scale + scalars, tokens, real)[:, None]
        if HAS_DECAY:
            _, later_logs = read_decays(log_decay + scalars, tokens, there, SIZE)
            until = tl.exp(tl.sum(later_logs, 0))
            scores = faded(scores, later_logs, SIZE)
        else:
            lower = tl.arange(0, SIZE)[None, :] <= tl.arange(0, SIZE)[:, None]
            scores = tl.where(lower, scores, 0.0)
    products = tl.zeros([SIZE], tl.float32)
    for y_first in range(0, Y_WIDTH, Y_BLOCK):
        y_columns = y_first + tl.arange(0, Y_BLOCK)
        z = tl.zeros([SIZE, Y_BLOCK], tl.float32)
        for first in range(0, WIDTH, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            k = read_features(key, k_t, tokens, real, columns, WIDTH, FEATURES)
            sums = read_matrix(grad_matrix, columns, y_columns, WIDTH, Y_WIDTH)
            z += product(k, sums, DOT, PRECISION, EMULATE)
        if HAS_DECAY:
            z = z * until[:, None]
        if CAUSAL:
            g = read(grad + batch * g_b + head * g_h, g_t, tokens, real, y_columns, Y_WIDTH)
            z += product(tl.trans(scores), g, DOT, PRECISION, EMULATE)
        if HAS_WEIGHT:
            v = read(value + batch * v_b + head * v_h, v_t, tokens, real, y_columns, Y_WIDTH)
            products += tl.sum(v * z, 1)
            z = z * read_scalars(weight + scalars, tokens, real)[:, None]
        to = grad_value + batch * dv_b + head * dv_h
        write(to, dv_t, tokens, there, y_columns, tl.where(real[:, None], z, 0.0), Y_WIDTH, EMULATE)
    if HAS_WEIGHT:
        tl.store(grad_weight + scalars + tokens, products, mask=there)
