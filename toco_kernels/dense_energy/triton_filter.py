"""Triton kernels of the exact filter: the sum over all pairs of pixels, tiled like attention without its softmax.

Affinities are computed tile by tile in float32, from differences of the pixels' features, and never stored. Tensor
cores multiply them with the values, both as a sum of two float16, in three products: 22 digits, of the product of the
two small parts none. Why not otherwise:

* One rounding of affinities to half precision costs two digits of a loss that is float32 for half-precision inputs too.
* TF32 in three products is as exact and holds any exponent, but tensor cores take twice the time for it, four times on
  consumer GPUs. The range of float16 suffices, because affinities are at most 1 and values are scaled to their largest.
* Tensor cores round sums towards zero, which for thousands of positive terms is a bias, not noise. So they add up
  BLOCK_J pixels at a time, small parts first; ordinary additions do the rest. Simulated for an image of 40 x 56, that
  takes half of the error budget, and sums that stay in tensor cores ten times as much as it allows.

Prediction from the floor, never measured: on sm_90 a pair of pixels takes 18.5 instructions of a thread (distances and
exponential 11, halving 4.5, loads, sums and bookkeeping 3; counted in a loop of 128 x 64) for up to 32 channels. An
image of 224 x 224 has 2.5e9 pairs: 1.6 ms on 132 multiprocessors that start 128 of them per clock at 1.75 GHz. Tensor
cores take 0.26 ms of their own, at best at the same time, and so do the exponentials with 0.7 ms.
"""

import triton
import triton.language as tl

AFFINITY = tl.constexpr(16384.0)  # what affinities are multiplied by: float16 has digits down to 2^-24


@triton.jit
def halves(x):
    """float32 as the sum of two float16."""
    high = x.to(tl.float16)
    return high, (x - high.to(tl.float32)).to(tl.float16)


@triton.jit(do_not_specialize=["channels", "pixels"])
def halves_kernel(
    values,  # (B, K, pixels) float32
    largest,  # (B, K): of their magnitudes
    high,  # (B, width, padded) float16
    low,  # (B, width, padded) float16
    rest,  # (B, width, padded) float16: the last digit
    units,  # (B, width): what a product of affinity * AFFINITY and high + low is multiplied by
    channels,
    pixels,
    width,
    padded,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Values times a power of two that brings the channel's largest to 2^14 or more, in halves; zeros around them."""
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c, image = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C), tl.program_id(2).to(tl.int64)
    there, source, row = c < channels, image * channels + c, image * width + c
    exponent = tl.load(largest + source, mask=there, other=0).to(tl.int32, bitcast=True) >> 23
    power = tl.where(exponent == 255, 127, tl.minimum(268 - exponent, 239))  # infinite, or not a number: as it is
    tl.store(units + row, ((240 - power) << 23).to(tl.float32, bitcast=True))  # 1 / (2^power * AFFINITY)
    inside = there[:, None] & (p < pixels)[None, :]
    value = tl.load(values + source[:, None] * pixels + p[None, :], mask=inside, other=0)
    value *= (power << 23).to(tl.float32, bitcast=True)[:, None]
    big, small = halves(value)
    target = row[:, None] * padded + p[None, :]
    tl.store(high + target, big)
    tl.store(low + target, small)
    tl.store(rest + target, (value - big.to(tl.float32) - small.to(tl.float32)).to(tl.float16))


@triton.jit
def farther(exponent, i, j):
    """The exponents of affinities, less the squared distances along one feature."""
    difference = i[:, None] - j[None, :]
    return tl.fma(-difference, difference, exponent)


@triton.jit(do_not_specialize=["channels", "pixels", "tiles"])
def filter_kernel(
    features,  # (B, 5, padded) float32: scaled so that an affinity is 2^-|f_i - f_j|²
    high,  # (B, width, padded)
    low,  # (B, width, padded)
    rest,  # (B, width, padded)
    units,  # (B, width)
    filtered,  # (parts, B, K, pixels) float32: sums over a part of the pixels each
    channels,
    pixels,
    width,
    padded,
    tiles,  # of BLOCK_J pixels, in a part
    BLOCK: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_C: tl.constexpr,
    EXACT: tl.constexpr,  # else a product of the large parts alone, which have as many digits as TF32
):
    """Some pixels and channels, summed over a part of the pixels."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    blocks, image = width // BLOCK_C, tl.program_id(2).to(tl.int64)
    part, c = tl.program_id(1) // blocks, tl.program_id(1) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    features += image * 5 * padded
    xs, ys = features, features + padded
    reds, greens, blues = features + 2 * padded, features + 3 * padded, features + 4 * padded
    x, y = tl.load(xs + i), tl.load(ys + i)
    red, green, blue = tl.load(reds + i), tl.load(greens + i), tl.load(blues + i)
    channel = (image * width + c.to(tl.int64)) * padded
    high += channel[None, :]
    low += channel[None, :]
    total = tl.zeros([BLOCK, BLOCK_C], tl.float32)
    for tile in range(part * tiles, tl.minimum((part + 1) * tiles, padded // BLOCK_J)):
        j = tile * BLOCK_J + tl.arange(0, BLOCK_J)
        exponent = tl.zeros([BLOCK, BLOCK_J], tl.float32)
        exponent = farther(exponent, x, tl.load(xs + j))
        exponent = farther(exponent, y, tl.load(ys + j))
        exponent = farther(exponent, red, tl.load(reds + j))
        exponent = farther(exponent, green, tl.load(greens + j))
        exponent = farther(exponent, blue, tl.load(blues + j))
        big, small = halves(tl.exp2(exponent) * AFFINITY)  # times a power of two afterwards: not a digit is lost
        value = tl.load(high + j[:, None])
        if EXACT:
            product = tl.dot(small, value)
            product = tl.dot(big, tl.load(low + j[:, None]), product)
            product = tl.dot(big, value, product)
        else:
            product = tl.dot(big, value)
        total += product
    if part == 0:  # the affinity of a pixel to itself is 1, and often nothing else counts: then no digit may miss
        total += tl.load(rest + channel[None, :] + i[:, None]).to(tl.float32) * AFFINITY
    total *= tl.load(units + image * width + c)[None, :]
    part = part.to(tl.int64) * tl.num_programs(2) + image
    filtered += (part * channels + c.to(tl.int64)[None, :]) * pixels + i[:, None]
    tl.store(filtered, total, mask=(c < channels)[None, :] & (i < pixels)[:, None])
