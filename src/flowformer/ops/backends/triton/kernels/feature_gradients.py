"""The last passes of a backward: the gradients of queries and of keys, and of decays."""

from typing import no_type_check

import triton
import triton.language as tl

from flowformer.ops.backends.triton.kernels.blocks import (
    chunk_of,
    faded,
    product,
    read,
    read_decays,
    read_features,
    read_matrix,
    read_scalars,
    read_transposed,
    read_vector,
    slope,
    write,
)


@triton.jit
@no_type_check
def triangles(
    value, v_b, v_t, v_h, grad, g_b, g_t, g_h, batch, head, tokens, real,
    Y_WIDTH: tl.constexpr, Y_BLOCK: tl.constexpr, SIZE: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """Return g_t·v_s for the sources s up to the sink t, [t, s]."""
    products = tl.zeros([SIZE, SIZE], tl.float32)
    for first in range(0, Y_WIDTH, Y_BLOCK):
        columns = first + tl.arange(0, Y_BLOCK)
        v = read(value + batch * v_b + head * v_h, v_t, tokens, real, columns, Y_WIDTH)
        g = read(grad + batch * g_b + head * g_h, g_t, tokens, real, columns, Y_WIDTH)
        products += product(g, tl.trans(v), DOT, PRECISION, EMULATE)
    lower = tl.arange(0, SIZE)[None, :] <= tl.arange(0, SIZE)[:, None]
    return tl.where(lower, products, 0.0)


@triton.jit
@no_type_check
def linear_features_backward(
    query, q_b, q_t, q_h, key, k_b, k_t, k_h, value, v_b, v_t, v_h, grad, g_b, g_t, g_h,
    grad_query, dq_b, dq_t, dq_h, grad_key, dk_b, dk_t, dk_h, mask,
    row_scale, grad_scale, matrix, grad_matrix, log_decay, table, length, heads,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, Y_WIDTH: tl.constexpr, Y_BLOCK: tl.constexpr,
    SIZE: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SCALE: tl.constexpr, HAS_DECAY: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """The gradients of query, key and row_scale of causal linear attention."""
    batch, _, tokens, there, real = chunk_of(table, mask, length, SIZE, HAS_MASK)
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * heads + head
    matrix += row * WIDTH * Y_WIDTH
    grad_matrix += row * WIDTH * Y_WIDTH
    value_here = value + batch * v_b + head * v_h
    grad_here = grad + batch * g_b + head * g_h
    scalars = (batch * heads + head) * length
    products = triangles(
        value, v_b, v_t, v_h, grad, g_b, g_t, g_h, batch, head, tokens, real,
        Y_WIDTH, Y_BLOCK, SIZE, DOT, PRECISION, EMULATE,
    )  # fmt: skip
    scale = tl.where(real, 1.0, 0.0)
    if HAS_SCALE:
        scale = read_scalars(row_scale + scalars, tokens, real)
    if HAS_DECAY:
        logs, later_logs = read_decays(log_decay + scalars, tokens, there, SIZE)
        since, until = tl.exp(tl.cumsum(logs, 0)), tl.exp(tl.sum(later_logs, 0))
        products = faded(products, later_logs, SIZE)
    scaled = products * scale[:, None]
    scale_grad = tl.zeros([SIZE], tl.float32)
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        q = read(query + batch * q_b + head * q_h, q_t, tokens, real, columns, WIDTH)
        k = read(key + batch * k_b + head * k_h, k_t, tokens, real, columns, WIDTH)
        to_query = product(products, k, DOT, PRECISION, EMULATE)
        to_key = product(tl.trans(scaled), q, DOT, PRECISION, EMULATE)
        for y_first in range(0, Y_WIDTH, Y_BLOCK):
            y_columns = y_first + tl.arange(0, Y_BLOCK)
            g = read(grad_here, g_t, tokens, real, y_columns, Y_WIDTH)
            v = read(value_here, v_t, tokens, real, y_columns, Y_WIDTH)
            if HAS_DECAY:
                g, v = g * since[:, None], v * until[:, None]
            sums = read_transposed(matrix, columns, y_columns, WIDTH, Y_WIDTH)
            to_query += product(g, sums, DOT, PRECISION, EMULATE)
            sums = read_transposed(grad_matrix, columns, y_columns, WIDTH, Y_WIDTH)
            to_key += product(v, sums, DOT, PRECISION, EMULATE)
        scale_grad += tl.sum(q * to_query, 1)
        to_query = to_query * scale[:, None]
        at = grad_query + batch * dq_b + head * dq_h
        write(at, dq_t, tokens, there, columns, to_query, WIDTH, EMULATE)
        write(
            grad_key + batch * dk_b + head * dk_h,
            dk_t,
            tokens,
            there,
            columns,
            to_key,
            WIDTH,
            EMULATE,
        )
    if HAS_SCALE:
        tl.store(grad_scale + scalars + tokens, scale_grad, mask=there)


@triton.jit
@no_type_check
def row_forms(
    x, x_t, matrix, y, y_t, tokens, real,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, Y_WIDTH: tl.constexpr, Y_BLOCK: tl.constexpr,
    SIZE: tl.constexpr, DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """Return x_t · matrix · y_t of each token."""
    forms = tl.zeros([SIZE], tl.float32)
    for y_first in range(0, Y_WIDTH, Y_BLOCK):
        y_columns = y_first + tl.arange(0, Y_BLOCK)
        rows = tl.zeros([SIZE, Y_BLOCK], tl.float32)
        for first in range(0, WIDTH, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            left = read(x, x_t, tokens, real, columns, WIDTH)
            sums = read_matrix(matrix, columns, y_columns, WIDTH, Y_WIDTH)
            rows += product(left, sums, DOT, PRECISION, EMULATE)
        right = read(y, y_t, tokens, real, y_columns, Y_WIDTH)
        forms += tl.sum(rows * right, 1)
    return forms


@triton.jit
@no_type_check
def decays_backward(
    query, q_b, q_t, q_h, key, k_b, k_t, k_h, value, v_b, v_t, v_h, grad, g_b, g_t, g_h, mask,
    row_scale, matrix, grad_matrix, log_decay, grad_decay, table, length, heads,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, Y_WIDTH: tl.constexpr, Y_BLOCK: tl.constexpr,
    SIZE: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SCALE: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """The gradient of log_decay: of each g_t the sum of what it lets through.

    Those are the terms of the loss, D_ij (q_i·k_j) (grad_i·v_j) row_scale_i, of tokens i ≥ t and
    j < t. Both are in the chunk, or i is and j comes before it (a sink), or j is and i comes after
    it (a source), or the chunk stands between them.
    """
    batch, _, tokens, there, real = chunk_of(table, mask, length, SIZE, HAS_MASK)
    head = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * heads + head
    matrix += row * WIDTH * Y_WIDTH
    grad_matrix += row * WIDTH * Y_WIDTH
    query += batch * q_b + head * q_h
    key += batch * k_b + head * k_h
    scalars = (batch * heads + head) * length
    scale = tl.where(real, 1.0, 0.0)
    if HAS_SCALE:
        scale = read_scalars(row_scale + scalars, tokens, real)
    logs, later_logs = read_decays(log_decay + scalars, tokens, there, SIZE)
    since, until = tl.exp(tl.cumsum(logs, 0)), tl.exp(tl.sum(later_logs, 0))
    terms = triangles(
        value, v_b, v_t, v_h, grad, g_b, g_t, g_h, batch, head, tokens, real,
        Y_WIDTH, Y_BLOCK, SIZE, DOT, PRECISION, EMULATE,
    )  # fmt: skip
    terms = faded(terms, later_logs, SIZE) * scale[:, None]
    scores = tl.zeros([SIZE, SIZE], tl.float32)
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        q = read(query, q_t, tokens, real, columns, WIDTH)
        k = read(key, k_t, tokens, real, columns, WIDTH)
        scores += product(q, tl.trans(k), DOT, PRECISION, EMULATE)
    earlier = tl.arange(0, SIZE)[None, :] < tl.arange(0, SIZE)[:, None]
    terms = tl.cumsum(terms * scores, 0, reverse=True)  # row t: all i ≥ t
    result = tl.sum(tl.where(earlier, terms, 0.0), 1)
    sinks = since * scale * row_forms(
        query, q_t, matrix, grad + batch * g_b + head * g_h, g_t, tokens, real,
        WIDTH, BLOCK, Y_WIDTH, Y_BLOCK, SIZE, DOT, PRECISION, EMULATE,
    )  # fmt: skip
    result += tl.cumsum(sinks, 0, reverse=True)
    sources = until * row_forms(
        key, k_t, grad_matrix, value + batch * v_b + head * v_h, v_t, tokens, real,
        WIDTH, BLOCK, Y_WIDTH, Y_BLOCK, SIZE, DOT, PRECISION, EMULATE,
    )  # fmt: skip
    result += tl.sum(tl.where(earlier, sources[None, :], 0.0), 1)
    between = tl.zeros([Y_BLOCK], tl.float32)
    for y_first in range(0, Y_WIDTH, Y_BLOCK):
        y_columns = y_first + tl.arange(0, Y_BLOCK)
        for first in range(0, WIDTH, BLOCK):
            columns = first + tl.arange(0, BLOCK)
            before = read_matrix(matrix, columns, y_columns, WIDTH, Y_WIDTH)
            after = read_matrix(grad_matrix, columns, y_columns, WIDTH, Y_WIDTH)
            between += tl.sum(before.to(tl.float32) * after.to(tl.float32), 0)
    result += tl.exp(tl.sum(logs, 0)) * tl.sum(between, 0)
    tl.store(grad_decay + scalars + tokens, result, mask=there)


@triton.jit
@no_type_check
def four_scalars(pointer, plane, tokens, real):
    """Return four numbers a token; added one by one, since 3 · plane may not fit 32 bits."""
    first = read_scalars(pointer, tokens, real)
    second = read_scalars(pointer + plane, tokens, real)
    third = read_scalars(pointer + plane + plane, tokens, real)
    return first, second, third, read_scalars(pointer + plane + plane + plane, tokens, real)


@triton.jit
@no_type_check
def feature_gradient(
    x, x_t, grad_x, dx_t, other, other_t, y, y_t, matrix, before, after, vectors,
    scale, weight, flow_grad, share, scores, later_weights, later_flow_grads,
    columns, tokens, there, real, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, Y_WIDTH: tl.constexpr, Y_BLOCK: tl.constexpr,
    SIZE: tl.constexpr, FEATURES: tl.constexpr, CAUSAL: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """Write a block of the gradient of one side; see :func:`flow_features_backward`.

    Of sinks: y is the output's gradient, other the keys, scores [sink, source]. Of sources: y is
    the value, other the queries, scores [source, sink].
    """
    result = tl.zeros([SIZE, BLOCK], tl.float32)
    for y_first in range(0, Y_WIDTH, Y_BLOCK):
        y_columns = y_first + tl.arange(0, Y_BLOCK)
        rows = read(y, y_t, tokens, real, y_columns, Y_WIDTH)
        sums = read_transposed(matrix, columns, y_columns, WIDTH, Y_WIDTH)
        result += product(rows, sums, DOT, PRECISION, EMULATE)
    result = result * scale[:, None]
    total = read_vector(before, columns, eps, WIDTH)[None, :]
    flow = read_vector(before + vectors, columns, eps, WIDTH)[None, :]
    result += flow_grad[:, None] * total + weight[:, None] * flow
    flow = read_vector(after, columns, 0.0, WIDTH)[None, :]
    total = read_vector(after + vectors, columns, 0.0, WIDTH)[None, :]
    if CAUSAL:
        f = read_features(other, other_t, tokens, real, columns, WIDTH, FEATURES)
        result += product(scores, f, DOT, PRECISION, EMULATE)
        flow = flow + later_weights[:, None]
        total = total + later_flow_grads[:, None]
    result += share[:, None] * flow + total
    inputs = read(x, x_t, tokens, real, columns, WIDTH)
    result = tl.where(real[:, None], result * slope(inputs, FEATURES), 0.0)
    write(grad_x, dx_t, tokens, there, columns, result, WIDTH, EMULATE)


@triton.jit
@no_type_check
def flow_features_backward(
    query, q_b, q_t, q_h, key, k_b, k_t, k_h, value, v_b, v_t, v_h, grad, g_b, g_t, g_h,
    grad_query, dq_b, dq_t, dq_h, grad_key, dk_b, dk_t, dk_h, mask,
    sink_scalars, source_scalars, before, after, matrix, grad_matrix,
    table, length, plane, vectors, heads, eps,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, Y_WIDTH: tl.constexpr, Y_BLOCK: tl.constexpr,
    SIZE: tl.constexpr, FEATURES: tl.constexpr, HAS_MASK: tl.constexpr, CAUSAL: tl.constexpr,
    SINKS: tl.constexpr, SOURCES: tl.constexpr,
    DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """The gradients of query (SINKS) and of key (SOURCES): the last pass of a backward.

    ``sink_scalars`` are, each [b, h, t], a/I, the weight of q in the gradient of the key flow, dI,
    and n/I; ``source_scalars`` c, the weight of k in the gradient of the query flow, dO, and n/O.
    ``before`` are Σ k, the key flow, Σ q, the query flow, and ``after`` the gradients of the query
    flow, of Σ q, of the key flow, of Σ k, a row a chunk (CAUSAL) or a sequence; ``plane`` and
    ``vectors`` are the sizes of one of each. The terms inside of a chunk are one matrix
    [sink, source], times k, or transposed times q: loss and flows depend on both by A = q kᵀ, and
    this is the gradient of A.
    """
    batch, sequence, tokens, there, real = chunk_of(table, mask, length, SIZE, HAS_MASK)
    head = tl.program_id(1).to(tl.int64)
    row = sequence * heads + head
    if CAUSAL:
        row = tl.program_id(0).to(tl.int64) * heads + head
    scalars = (batch * heads + head) * length
    query += batch * q_b + head * q_h
    key += batch * k_b + head * k_h
    before += row * WIDTH
    after += row * WIDTH
    matrix += row * WIDTH * Y_WIDTH
    grad_matrix += row * WIDTH * Y_WIDTH
    if SINKS:
        scale, sink_weight, into, query_share = four_scalars(
            sink_scalars + scalars, plane, tokens, real
        )
    if SOURCES:
        weight, source_weight, out_of, key_share = four_scalars(
            source_scalars + scalars, plane, tokens, real
        )
    scores, by_source = 0.0, 0.0
    later_sources, later_out_ofs, later_sinks, later_intos = 0.0, 0.0, 0.0, 0.0
    if CAUSAL:
        scores = triangles(
            value, v_b, v_t, v_h, grad, g_b, g_t, g_h, batch, head, tokens, real,
            Y_WIDTH, Y_BLOCK, SIZE, DOT, PRECISION, EMULATE,
        )  # fmt: skip
        sink_of = tl.arange(0, SIZE)[:, None]
        source_of = tl.arange(0, SIZE)[None, :]
        scores = scores * scale[:, None] * weight[None, :]
        from_keys = sink_weight[:, None] * key_share[None, :] + into[:, None]
        from_queries = query_share[:, None] * source_weight[None, :] + out_of[None, :]
        scores += tl.where(source_of <= sink_of, from_keys, 0.0)
        scores += tl.where(sink_of <= source_of, from_queries, 0.0)
        by_source = tl.trans(scores)
        later_sources = eps * tl.cumsum(source_weight, 0, reverse=True)
        later_out_ofs = eps * tl.cumsum(out_of, 0, reverse=True)
        later_sinks = eps * tl.cumsum(sink_weight, 0, reverse=True)
        later_intos = eps * tl.cumsum(into, 0, reverse=True)
    value += batch * v_b + head * v_h
    grad += batch * g_b + head * g_h
    for first in range(0, WIDTH, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        if SINKS:
            feature_gradient(
                query, q_t, grad_query + batch * dq_b + head * dq_h, dq_t, key, k_t, grad, g_t,
                matrix, before, after, vectors,
                scale, sink_weight, into, query_share, scores, later_sources, later_out_ofs,
                columns, tokens, there, real, eps,
                WIDTH, BLOCK, Y_WIDTH, Y_BLOCK, SIZE, FEATURES, CAUSAL, DOT, PRECISION, EMULATE,
            )  # fmt: skip
        if SOURCES:
            feature_gradient(
                key, k_t, grad_key + batch * dk_b + head * dk_h, dk_t, query, q_t, value, v_t,
                grad_matrix, before + vectors + vectors, after + vectors + vectors, vectors,
                weight, source_weight, out_of, key_share, by_source, later_sinks, later_intos,
                columns, tokens, there, real, eps,
                WIDTH, BLOCK, Y_WIDTH, Y_BLOCK, SIZE, FEATURES, CAUSAL, DOT, PRECISION, EMULATE,
            )  # fmt: skip
