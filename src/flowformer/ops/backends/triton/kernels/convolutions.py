"""The short convolution and its gradients: programs of some tokens and some channels.

Tokens are numbered as the real ones of their row, which stand where a table says if there is
padding; in a pack the offsets of each token's sequence bound what it sees. Each program reads its
tokens once from memory, and again, once for each of the few that see them, from the cache.
"""

# Annotations are not postponed here: triton reads `tl.constexpr` in them.
from typing import no_type_check

import triton
import triton.language as tl

from flowformer.ops.backends.triton.kernels.blocks import rounded


@triton.jit
@no_type_check
def tokens_of(
    counts, sequences, offsets, length,
    SIZE: tl.constexpr, HAS_MASK: tl.constexpr, PACKED: tl.constexpr,
):  # fmt: skip
    """Return this program's batch row and tokens, which are there, and their sequences' bounds."""
    program, blocks = tl.program_id(0), tl.cdiv(length, SIZE)
    batch = (program // blocks).to(tl.int64)
    tokens = (program % blocks).to(tl.int64) * SIZE + tl.arange(0, SIZE)
    first, sequence = tokens * 0, tokens * 0 + batch
    end = first + length
    if HAS_MASK:
        end = first + tl.load(counts + batch)
    there = tokens < end
    if PACKED:
        sequence = tl.load(sequences + tokens, mask=there, other=0)
        first = tl.load(offsets + sequence)
        end = tl.load(offsets + sequence + 1)
    return batch, tokens, there, sequence, first, end


@triton.jit
@no_type_check
def place_of(order, batch, length, tokens, inside, HAS_MASK: tl.constexpr):
    """Return where real tokens stand in their row."""
    if HAS_MASK:
        tokens = tl.load(order + batch * length + tokens, mask=inside, other=0)
    return tokens


@triton.jit
@no_type_check
def read_tap(
    x, x_t, order, recent, batch, length, at, there, sequence, first, end, columns, channels,
    CHANNELS: tl.constexpr, TAPS: tl.constexpr, HAS_MASK: tl.constexpr, HAS_RECENT: tl.constexpr,
):  # fmt: skip
    """Return what stands at some numbers of tokens: zero beyond a sequence and what was before."""
    inside = there & (at >= first) & (at < end)
    own = (channels < CHANNELS)[None, :]
    place = place_of(order, batch, length, at, inside, HAS_MASK)
    found = tl.load(
        x + place[:, None] * x_t + columns[None, :], mask=inside[:, None] & own, other=0.0
    ).to(tl.float32)
    if HAS_RECENT:
        early = there & (at < first)
        row = sequence * (TAPS - 1) + at - first + TAPS - 1
        before = recent + row[:, None] * CHANNELS + channels[None, :]
        found += tl.load(before, mask=early[:, None] & own, other=0.0)
    return found


@triton.jit
@no_type_check
def is_finite(x):
    """Return which numbers are neither NaN nor infinite."""
    return tl.abs(x) < float("inf")


@triton.jit
@no_type_check
def convolve(
    x, x_b, x_t, x_h, weight, bias, recent, out, order, counts, sequences, offsets, length,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, TAPS: tl.constexpr, AHEAD: tl.constexpr,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, ACTIVATES: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RECENT: tl.constexpr, HAS_MASK: tl.constexpr, PACKED: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """y_t = Σ_i weight_i x_{t - taps + 1 + i + ahead} + bias, or silu of it."""
    batch, tokens, there, sequence, first, end = tokens_of(
        counts, sequences, offsets, length, SIZE, HAS_MASK, PACKED
    )
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    columns = batch * x_b + (channels // WIDTH).to(tl.int64) * x_h + channels % WIDTH
    own = channels < CHANNELS
    y = tl.zeros([SIZE, BLOCK], tl.float32)
    if HAS_BIAS:
        y += tl.load(bias + channels, mask=own, other=0.0)[None, :]
    for i in tl.static_range(TAPS):
        found = read_tap(
            x, x_t, order, recent, batch, length, tokens + (AHEAD - TAPS + 1 + i),
            there, sequence, first, end, columns, channels, CHANNELS, TAPS, HAS_MASK, HAS_RECENT,
        )  # fmt: skip
        y += found * tl.load(weight + channels * TAPS + i, mask=own, other=0.0)[None, :]
    if ACTIVATES:
        y = y * tl.sigmoid(y)
    place = batch * length + place_of(order, batch, length, tokens, there, HAS_MASK)
    at = out + place[:, None] * CHANNELS + channels[None, :]
    y = rounded(y, out.dtype.element_ty, EMULATE)
    tl.store(at, y, mask=there[:, None] & own[None, :])


@triton.jit
@no_type_check
def convolve_backward(
    x, x_b, x_t, x_h, grad_y, g_b, g_t, g_h, weight, bias, recent, grad_z, sums,
    order, counts, sequences, offsets, length,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, TAPS: tl.constexpr, AHEAD: tl.constexpr,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, ACTIVATES: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RECENT: tl.constexpr, HAS_MASK: tl.constexpr, PACKED: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """The gradient of z, before silu, and this program's sums for those of weight and bias.

    What sees a number that is not finite has no gradient, nor has that number: 0 · NaN is NaN.
    """
    batch, tokens, there, sequence, first, end = tokens_of(
        counts, sequences, offsets, length, SIZE, HAS_MASK, PACKED
    )
    channels = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    columns = batch * x_b + (channels // WIDTH).to(tl.int64) * x_h + channels % WIDTH
    own = channels < CHANNELS
    inside = there[:, None] & own[None, :]
    place = place_of(order, batch, length, tokens, there, HAS_MASK)
    from_y = batch * g_b + (channels // WIDTH).to(tl.int64) * g_h + channels % WIDTH
    grad = tl.load(grad_y + place[:, None] * g_t + from_y[None, :], mask=inside, other=0.0)
    grad = grad.to(tl.float32)
    z = tl.zeros([SIZE, BLOCK], tl.float32)
    if HAS_BIAS:
        z += tl.load(bias + channels, mask=own, other=0.0)[None, :]
    spoiled = tl.zeros([SIZE, BLOCK], tl.int1)
    for i in tl.static_range(TAPS):
        found = read_tap(
            x, x_t, order, recent, batch, length, tokens + (AHEAD - TAPS + 1 + i), there,
            sequence, first, end, columns, channels, CHANNELS, TAPS, HAS_MASK, HAS_RECENT,
        )  # fmt: skip
        spoiled = spoiled | ~is_finite(found)
        if ACTIVATES:
            found = tl.where(is_finite(found), found, 0.0)
            z += found * tl.load(weight + channels * TAPS + i, mask=own, other=0.0)[None, :]
    if ACTIVATES:
        s = tl.sigmoid(z)
        grad = grad * s * (1.0 + z * (1.0 - s))
    grad = tl.where(spoiled, 0.0, grad)
    at = (batch * length + place)[:, None] * CHANNELS + channels[None, :]
    tl.store(grad_z + at, rounded(grad, grad_z.dtype.element_ty, EMULATE), mask=inside)
    sums += tl.program_id(0).to(tl.int64) * (TAPS + 1) * CHANNELS + channels
    for i in tl.static_range(TAPS):
        found = read_tap(
            x, x_t, order, recent, batch, length, tokens + (AHEAD - TAPS + 1 + i), there,
            sequence, first, end, columns, channels, CHANNELS, TAPS, HAS_MASK, HAS_RECENT,
        )  # fmt: skip
        found = tl.where(is_finite(found), found, 0.0)
        tl.store(sums + i * CHANNELS, tl.sum(found * grad, 0), mask=own)
    tl.store(sums + TAPS * CHANNELS, tl.sum(grad, 0), mask=own)
