"""What the kernels share: where a chunk of tokens stands, how its features are read and multiplied.

A kernel's program has one chunk of one head. The chunks stand in a table, a row each: batch row,
first token, end, and the sequence that it is part of. Widths are walked through in blocks, so that
no width needs a program of its own: padding a block has zero features.
"""

# Annotations are not postponed here: triton reads `tl.constexpr` in them.
from typing import no_type_check

import triton
import triton.language as tl

SIGMOID = tl.constexpr(0)
RELU = tl.constexpr(1)
IDENTITY = tl.constexpr(2)  # linear attention: the inputs are features


@triton.jit
@no_type_check
def chunk_of(table, mask, length, SIZE: tl.constexpr, HAS_MASK: tl.constexpr):
    """Return this program's chunk: batch row, sequence, tokens, which are there, which are real."""
    row = table + 4 * tl.program_id(0).to(tl.int64)
    batch, begin, end, sequence = tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    tokens = begin + tl.arange(0, SIZE)
    there = tokens < end
    real = there
    if HAS_MASK:
        real = there & (tl.load(mask + batch * length + tokens, mask=there, other=0) != 0)
    return batch, sequence, tokens, there, real


@triton.jit
@no_type_check
def read(pointer, stride, tokens, real, columns, WIDTH: tl.constexpr):
    """Return a block of rows, zero at padding."""
    inside = real[:, None] & (columns < WIDTH)[None, :]
    return tl.load(
        pointer + tokens[:, None] * stride + columns[None, :], mask=inside, other=0.0
    ).to(tl.float32)


@triton.jit
@no_type_check
def rounded(x, TO: tl.constexpr, EMULATE: tl.constexpr):
    """Return float32 numbers in a narrower dtype.

    Triton's interpreter cuts what does not fit into bfloat16, where a GPU rounds to the nearest:
    there half of the last bit that stays is added first, less one if that bit is even.
    """
    if EMULATE:
        bits = x.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = bits.to(tl.float32, bitcast=True)
    return x.to(TO)


@triton.jit
@no_type_check
def write(
    pointer, stride, tokens, real, columns, block, WIDTH: tl.constexpr, EMULATE: tl.constexpr
):
    """Store a block of rows, but for padding."""
    inside = real[:, None] & (columns < WIDTH)[None, :]
    place = pointer + tokens[:, None] * stride + columns[None, :]
    tl.store(place, rounded(block, pointer.dtype.element_ty, EMULATE), mask=inside)


@triton.jit
@no_type_check
def mapped(x, real, columns, WIDTH: tl.constexpr, FEATURES: tl.constexpr):
    """Return the features of inputs, zero at padding; NaN stays NaN."""
    if FEATURES == SIGMOID:
        x = tl.sigmoid(x)
    if FEATURES == RELU:
        x = tl.where(x < 0, 0.0, x) + 1e-6
    return tl.where(real[:, None] & (columns < WIDTH)[None, :], x, 0.0)


@triton.jit
@no_type_check
def slope(x, FEATURES: tl.constexpr):
    """Return the derivative of the features at inputs."""
    if FEATURES == SIGMOID:
        f = tl.sigmoid(x)
        return f * (1 - f)
    if FEATURES == RELU:
        return tl.where(x > 0, 1.0, 0.0)
    return x * 0 + 1


@triton.jit
@no_type_check
def clamped(x, limit):
    """Return x between -limit and limit; NaN stays NaN, which a card's min and max would drop."""
    return tl.where(x > limit, limit, tl.where(x < -limit, -limit, x))


@triton.jit
@no_type_check
def read_features(
    pointer, stride, tokens, real, columns, WIDTH: tl.constexpr, FEATURES: tl.constexpr
):
    """Return a block of features, float32."""
    x = read(pointer, stride, tokens, real, columns, WIDTH)
    return mapped(x, real, columns, WIDTH, FEATURES)


@triton.jit
@no_type_check
def read_vector(pointer, columns, eps, WIDTH: tl.constexpr):
    """Return a block of a vector plus ε, zero beyond its width."""
    inside = columns < WIDTH
    return tl.where(inside, tl.load(pointer + columns, mask=inside, other=0.0) + eps, 0.0)


@triton.jit
@no_type_check
def read_scalars(pointer, tokens, real):
    """Return one number a token, zero at padding."""
    return tl.load(pointer + tokens, mask=real, other=0.0)


@triton.jit
@no_type_check
def read_decays(pointer, tokens, there, SIZE: tl.constexpr):
    """Return g_t of a chunk's tokens, and g_r [r, s] where r is later than s.

    Down the rows of the latter each exponent is a sum by itself, as in decay.py.
    """
    logs = tl.load(pointer + tokens, mask=there, other=0.0)
    later = tl.arange(0, SIZE)[:, None] > tl.arange(0, SIZE)[None, :]
    return logs, tl.where(later, logs[:, None], 0.0)


@triton.jit
@no_type_check
def faded(triangle, later_logs, SIZE: tl.constexpr):
    """Return the lower triangle of [t, s] times D_ts."""
    lower = tl.arange(0, SIZE)[None, :] <= tl.arange(0, SIZE)[:, None]
    return tl.where(lower, triangle * tl.exp(tl.cumsum(later_logs, 0)), 0.0)


@triton.jit
@no_type_check
def read_matrix(pointer, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return a block of a matrix with COLUMNS columns, zero beyond its end."""
    inside = (rows < ROWS)[:, None] & (columns < COLUMNS)[None, :]
    place = pointer + rows[:, None] * COLUMNS + columns[None, :]
    return tl.load(place, mask=inside, other=0.0)


@triton.jit
@no_type_check
def read_transposed(pointer, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return a block of the transpose of such a matrix: [columns, rows]."""
    inside = (columns < COLUMNS)[:, None] & (rows < ROWS)[None, :]
    place = pointer + rows[None, :] * COLUMNS + columns[:, None]
    return tl.load(place, mask=inside, other=0.0)


@triton.jit
@no_type_check
def nearest(x):
    """Return float32 numbers rounded to TensorFloat-32, of which tensor cores cut the rest off."""
    return tl.inline_asm_elementwise(
        "cvt.rna.tf32.f32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
@no_type_check
def product(a, b, DOT: tl.constexpr, PRECISION: tl.constexpr, EMULATE: tl.constexpr):
    """Return a @ b of operands rounded to DOT, summed in float32.

    Triton's interpreter multiplies the bits of bfloat16 as if they were integers: there the
    rounded operands are widened again, which changes no product.
    """
    if a.dtype != DOT:
        a = rounded(a, DOT, EMULATE)
    if b.dtype != DOT:
        b = rounded(b, DOT, EMULATE)
    if EMULATE:
        a, b = a.to(tl.float32), b.to(tl.float32)
    if PRECISION == "tf32":
        a, b = nearest(a), nearest(b)
    return tl.dot(a, b, input_precision=PRECISION)
