"""Triton kernels that rooms with tokens share: rows for matrix products, and sums of what programs leave behind."""

import triton
import triton.language as tl

ROWS = 4  # tokens that one program normalises
ALIGN = 128  # rows are padded to this many patches, and to this many channels: no block needs a mask


@triton.jit
def load_rows(rows, first, pitch, d, BLOCK: tl.constexpr):
    """Channels `d` of adjacent rows."""
    return tl.load(rows + first * pitch + (tl.arange(0, BLOCK)[:, None] * pitch + d[None, :]))


@triton.jit(do_not_specialize=["patches", "channels"])
def rows_kernel(
    tokens,  # (B, N, D)
    stride_b,
    stride_n,
    stride_d,
    order,  # (B, N) int32: which token the row is of; negative: of none, and it is zero
    rows,  # (B, rows, pitch): float32 unit vectors; in half precision the tokens times a power of two, exactly
    units,  # (B, rows): what makes them unit vectors, 1 for float32
    inverses,  # (B, rows): 1 / max(|x|, SHORTEST), and 0 for zero vectors: they have no direction and get no gradient
    patches,
    channels,
    row_count,
    pitch,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SHORTEST: tl.constexpr,  # a norm below this counts as this
    NORMALIZE: tl.constexpr = True,  # else rows are the tokens in float32, and nothing is measured
):
    """Gather the tokens that take part and measure their lengths, whatever their magnitude.

    Each row is multiplied by a power of two that brings its largest element near 1, since squares of 1e20 and 1e-30
    are no numbers of float32; in float16 near the largest number, where no digit is lost. Sums are taken over the
    copy: the tokens' strides decide which thread reads what, and would decide the order of summation.
    """
    image = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    patch = tl.load(order + image * patches + n, mask=n < patches, other=-1)
    tokens += image * stride_b
    source = tl.maximum(patch, 0).to(tl.int64)[:, None] * stride_n
    rows += image * row_count * pitch + n.to(tl.int64)[:, None] * pitch
    largest = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, pitch, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)[None, :]
        x = tl.load(tokens + source + d.to(tl.int64) * stride_d, mask=(patch >= 0)[:, None] & (d < channels), other=0)
        tl.store(rows + d, x.to(rows.dtype.element_ty), mask=d < pitch)
        largest = tl.maximum(largest, tl.max(tl.abs(x.to(tl.float32)), axis=1))
    if NORMALIZE:
        tl.debug_barrier()
        exponent = largest.to(tl.int32, bitcast=True) >> 23
        top: tl.constexpr = 15 if rows.dtype.element_ty == tl.float16 else 0
        power = 254 + top - exponent
        power = tl.where(exponent == 255, 127, tl.minimum(tl.maximum(power, 1), 254))
        scale = (power << 23).to(tl.float32, bitcast=True)
        squares = tl.zeros([BLOCK_N], tl.float32)
        for first in range(0, pitch, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)[None, :]
            x = tl.load(rows + d, mask=d < pitch, other=0).to(tl.float32) * scale[:, None]
            squares += tl.sum(x * x, axis=1)
        tl.debug_barrier()
        length, least = tl.sqrt_rn(squares), SHORTEST * scale
        divisor = tl.where(length < least, least, length)  # not a maximum: NaN stays
        unit = tl.div_rn(1.0, divisor)
        tl.store(inverses + image * row_count + n, tl.where(squares == 0, 0.0, unit * scale))
        exact: tl.constexpr = rows.dtype.element_ty == tl.float32
        tl.store(units + image * row_count + n, tl.full([BLOCK_N], 1.0, tl.float32) if exact else unit)
        for first in range(0, pitch, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)[None, :]
            x = tl.load(rows + d, mask=d < pitch, other=0).to(tl.float32) * scale[:, None]
            if exact:  # by division: the error of an inverse would be that of all channels, and of every product
                x = tl.div_rn(x, divisor[:, None] + tl.zeros_like(x))
            tl.store(rows + d, x.to(rows.dtype.element_ty), mask=d < pitch)


@triton.jit(do_not_specialize=["count", "constant"])
def sum_kernel(
    parts,  # (count) float32
    total,  # () float32
    count,
    constant,
    BLOCK: tl.constexpr,
):
    """constant + Σ parts, in float64."""
    acc = tl.zeros([BLOCK], tl.float64)
    for first in range(0, count, BLOCK):
        i = first + tl.arange(0, BLOCK)
        acc += tl.load(parts + i, mask=i < count, other=0).to(tl.float64)
    tl.store(total, (constant + tl.sum(acc)).to(tl.float32))
