"""Triton kernels of prototype_contrast: pixels are columns, so features are read as they lie, channel by channel."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["size", "ignore_index"])
def count_kernel(
    labels,  # (size)
    counts,  # (programs) int32
    size,
    ignore_index,
    BLOCK: tl.constexpr,
):
    """How many labels are not ignored, for each block of them."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    label = tl.load(labels + i, mask=i < size, other=0)
    tl.store(counts + tl.program_id(0), tl.sum(((i < size) & (label != ignore_index)).to(tl.int32)))


@triton.jit
def total_of(counts, count_parts):
    """The sum of the counts."""
    i = tl.arange(0, 256)
    total = tl.zeros([256], tl.int64)
    for first in range(0, count_parts, 256):
        total += tl.load(counts + first + i, mask=first + i < count_parts, other=0).to(tl.int64)
    return tl.maximum(tl.sum(total), 1).to(tl.float32)


@triton.jit
def load_pixels(features, stride_d, first, width, inside, BLOCK_D: tl.constexpr):
    """Some channels of a block of pixels in float32, (BLOCK_D, BLOCK_P); `features` point to the pixels."""
    d = first + tl.arange(0, BLOCK_D)
    return tl.load(
        features[None, :] + d.to(tl.int64)[:, None] * stride_d, mask=(d < width)[:, None] & inside[None, :], other=0
    ).to(tl.float32)


@triton.jit(do_not_specialize=["pixels", "width", "classes", "count_parts", "scale", "ignore_index"])
def contrast_kernel(
    features,  # (B, D, P)
    stride_b,
    stride_d,
    stride_p,
    labels,  # (B, P)
    prototypes,  # (C, D)
    counts,  # (count_parts)
    parts,  # (B * blocks): sums of losses
    grad,  # (B, D, P) float32
    pixels,
    width,
    classes,
    count_parts,
    scale,  # 1 / temperature
    ignore_index,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WITH_GRAD: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The losses of a block of pixels, and their gradient. Features are read twice, the second time from the cache.

    Ignored pixels are never read: to the products they are zeros.
    """
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    p = block * BLOCK_P + tl.arange(0, BLOCK_P)
    c = tl.arange(0, BLOCK_C)
    label = tl.load(labels + image * pixels + p, mask=p < pixels, other=0)
    valid = (p < pixels) & (label != ignore_index)
    features += image * stride_b
    source = features + p.to(tl.int64) * stride_p

    largest = tl.zeros([BLOCK_P], tl.float32)
    for first in range(0, width, BLOCK_D):
        x = load_pixels(source, stride_d, first, width, valid, BLOCK_D)
        largest = tl.maximum(largest, tl.max(tl.abs(x), axis=0))
    # Times a power of two that brings the largest near 1: squares of 1e20 and 1e-30 are no numbers of float32.
    exponent = largest.to(tl.int32, bitcast=True) >> 23
    power = tl.where(exponent == 255, 127, tl.minimum(tl.maximum(254 - exponent, 1), 254))
    power = (power << 23).to(tl.float32, bitcast=True)
    squares = tl.zeros([BLOCK_P], tl.float32)
    scores = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for first in range(0, width, BLOCK_D):
        x = load_pixels(source, stride_d, first, width, valid, BLOCK_D) * power[None, :]
        squares += tl.sum(x * x, axis=0)
        d = first + tl.arange(0, BLOCK_D)
        w = tl.load(
            prototypes + c[:, None] * width + d[None, :], mask=(c < classes)[:, None] & (d < width)[None, :], other=0
        )
        scores = tl.dot(w, x, scores, input_precision=PRECISION)
    length, least = tl.sqrt_rn(squares), 1e-12 * power
    unit = tl.div_rn(1.0, tl.where(length < least, least, length))  # not a maximum: NaN stays
    unit = tl.where(squares == 0, 0.0, unit)
    scores *= (unit * scale)[None, :]

    logits = tl.where((c < classes)[:, None], scores, float("-inf"))
    top = tl.max(logits, axis=0)
    e = tl.exp(logits - top[None, :])
    total = tl.sum(e, axis=0)
    mine = c.to(tl.int64)[:, None] == label[None, :]
    loss = tl.log(total) + (top - tl.sum(tl.where(mine, scores, 0.0), axis=0))
    loss = tl.where((label < 0) | (label >= classes), float("nan"), loss)
    tl.store(parts + image * tl.num_programs(0) + block, tl.sum(tl.where(valid, loss, 0.0)))
    if WITH_GRAD:
        weight = tl.div_rn(scale, total_of(counts, count_parts))
        slopes = tl.div_rn(e, total[None, :]) - tl.where(mine, 1.0, 0.0)
        slopes = tl.where((label < 0) | (label >= classes), float("nan"), slopes)
        slopes = tl.where(valid[None, :] & (c < classes)[:, None], slopes * weight, 0.0)
        grad += image * width * pixels
        zeros = tl.zeros([BLOCK_D, BLOCK_P], tl.float32)
        # What lies along a pixel is removed as computed, not as theory has it; unit vectors by division, as exact as
        # can be: where a pixel is its own prototype that is all there is.
        projects = length >= least
        length = tl.where(squares == 0, 1.0, tl.where(length < least, least, length))
        along = tl.zeros([BLOCK_P], tl.float32)
        for first in range(0, width, BLOCK_D):
            x = tl.div_rn(
                load_pixels(source, stride_d, first, width, valid, BLOCK_D) * power[None, :], length[None, :] + zeros
            )
            along += tl.sum(spread(prototypes, slopes, first, width, classes, BLOCK_D, PRECISION) * x, axis=0)
        along = tl.where(projects, along, 0.0)
        for first in range(0, width, BLOCK_D):
            x = tl.div_rn(
                load_pixels(source, stride_d, first, width, valid, BLOCK_D) * power[None, :], length[None, :] + zeros
            )
            g = spread(prototypes, slopes, first, width, classes, BLOCK_D, PRECISION) - along[None, :] * x
            d = first + tl.arange(0, BLOCK_D)
            target = grad + d.to(tl.int64)[:, None] * pixels + p[None, :]
            g = tl.where(valid[None, :], g * (unit * power)[None, :], 0.0)
            tl.store(target, g, mask=(d < width)[:, None] & (p < pixels)[None, :])


@triton.jit
def spread(prototypes, slopes, first, width, classes, BLOCK_D: tl.constexpr, PRECISION: tl.constexpr):
    """Some channels of the gradient by unit vectors, (BLOCK_D, BLOCK_P)."""
    c = tl.arange(0, slopes.shape[0])
    d = first + tl.arange(0, BLOCK_D)
    w = tl.load(
        prototypes + c[None, :] * width + d[:, None], mask=(c < classes)[None, :] & (d < width)[:, None], other=0
    )
    return tl.dot(w, slopes, input_precision=PRECISION)


@triton.jit(do_not_specialize=["count", "count_parts"])
def mean_kernel(
    parts,  # (count) float32
    counts,  # (count_parts) int32
    mean,  # () float32
    count,
    count_parts,
    BLOCK: tl.constexpr,
):
    """Σ parts / Σ counts, in float64."""
    i = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, count, BLOCK):
        total += tl.load(parts + first + i, mask=first + i < count, other=0).to(tl.float64)
    tl.store(mean, (tl.sum(total) / total_of(counts, count_parts).to(tl.float64)).to(tl.float32))
