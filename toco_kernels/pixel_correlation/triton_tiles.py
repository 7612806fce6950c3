"""Triton kernels of pixel_correlation: an attention whose weights are cosines, and its gradient from their signs.

Features are read as they lie, channel by channel. Cosines are products of the features themselves, multiplied by both
lengths' inverses afterwards, in float32. Sums over pixels are added up outside of tensor cores, which round towards
zero: for thousands of terms that are all positive, a bias.
"""

import triton
import triton.language as tl

ADDED = tl.constexpr(1e-5)  # to norms, and to sums of similarities


@triton.jit
def load_channels(maps, stride, first, count, inside, BLOCK: tl.constexpr):
    """Some channels of some pixels, (BLOCK, pixels); `maps` point to the pixels."""
    d = first + tl.arange(0, BLOCK)
    return tl.load(
        maps[None, :] + d.to(tl.int64)[:, None] * stride, mask=(d < count)[:, None] & inside[None, :], other=0
    )


@triton.jit
def inverse_lengths(norms, pixel, inside):
    """1 / (|f| + 1e-5)."""
    return tl.div_rn(1.0, tl.load(norms + pixel, mask=inside, other=0) + ADDED)


@triton.jit(do_not_specialize=["pixels", "width"])
def norms_kernel(
    features,  # (B, D, N)
    stride_b,
    stride_d,
    stride_n,
    norms,  # (B, N) float32
    pixels,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Lengths of some pixels' features."""
    n, image = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.program_id(1).to(tl.int64)
    source, inside = features + image * stride_b + n.to(tl.int64) * stride_n, n < pixels
    squares = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, width, BLOCK_D):
        x = load_channels(source, stride_d, first, width, inside, BLOCK_D).to(tl.float32)
        squares += tl.sum(x * x, axis=0)
    tl.store(norms + image * pixels + n, tl.sqrt_rn(squares), mask=inside)


@triton.jit(do_not_specialize=["pixels", "width", "classes", "words"])
def correlate_kernel(
    features,  # (B, D, N)
    stride_b,
    stride_d,
    stride_n,
    norms,  # (B, N)
    cams,  # (B, C, N)
    revised,  # (B, C, N) float32
    sums,  # (B, N) float32
    signs,  # (B, N, words) int32: bit j of a pixel's is set where its cosine with pixel j is positive
    pixels,
    width,
    classes,
    words,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WITH_GRAD: tl.constexpr,
    PRECISION: tl.constexpr,  # of products of features
    GATHER_PRECISION: tl.constexpr,
):
    """Some pixels j and classes, gathered from all pixels i; and the signs of all cosines with the pixels j."""
    j, image = tl.program_id(0) * BLOCK_J + tl.arange(0, BLOCK_J), tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    there, keeps = (
        j < pixels,
        tl.program_id(1) == 0,
    )  # of the programs for these pixels, one keeps what is not of classes
    features += image * stride_b
    norms += image * pixels
    cams += image * classes * pixels
    inverse_j = inverse_lengths(norms, j, there)
    total = tl.zeros([BLOCK_J], tl.float32)
    gathered = tl.zeros([BLOCK_C, BLOCK_J], tl.float32)
    for start in range(0, pixels, BLOCK_I):
        i = start + tl.arange(0, BLOCK_I)
        inside = i < pixels
        similar = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
        for first in range(0, width, BLOCK_D):
            left = load_channels(features + i.to(tl.int64) * stride_n, stride_d, first, width, inside, BLOCK_D)
            right = load_channels(features + j.to(tl.int64) * stride_n, stride_d, first, width, there, BLOCK_D)
            similar = tl.dot(tl.trans(left), right, similar, input_precision=PRECISION)
        similar *= inverse_lengths(norms, i, inside)[:, None] * inverse_j[None, :]
        if WITH_GRAD:
            bits = tl.reshape((similar > 0).to(tl.int32), [BLOCK_I, BLOCK_J // 32, 32])
            word = tl.program_id(0) * (BLOCK_J // 32) + tl.arange(0, BLOCK_J // 32)
            tl.store(
                signs + (image * pixels + i)[:, None] * words + word[None, :],
                tl.sum(bits << tl.arange(0, 32)[None, None, :], axis=2),
                mask=(inside & keeps)[:, None] & (word < words)[None, :],
            )
        similar = tl.where(similar < 0, 0.0, similar)  # not a maximum: NaN stays
        total += tl.sum(similar, axis=0)
        scores = tl.load(
            cams + c.to(tl.int64)[:, None] * pixels + i[None, :],
            mask=(c < classes)[:, None] & inside[None, :],
            other=0,
        ).to(tl.float32)
        gathered += tl.dot(scores, similar, input_precision=GATHER_PRECISION)
    total += ADDED
    target = (image * classes + c.to(tl.int64))[:, None] * pixels + j[None, :]
    tl.store(
        revised + target,
        tl.div_rn(gathered, total[None, :] + tl.zeros([BLOCK_C, BLOCK_J], tl.float32)),
        mask=(c < classes)[:, None] & there[None, :],
    )
    if WITH_GRAD:
        tl.store(sums + image * pixels + j, total, mask=there & keeps)


@triton.jit(do_not_specialize=["pixels", "width", "terms", "words"])
def correlate_backward_kernel(
    features,  # (B, D, N)
    stride_b,
    stride_d,
    stride_n,
    norms,  # (B, N)
    left,  # (B, terms, N)
    right,  # (B, terms, N): the derivative by the cosine of i and j is <left[i], right[j]> where that is positive
    signs,  # (B, N, words)
    grad,  # (B, D, N) float32: gradients of features over lengths
    pixels,
    width,
    terms,
    words,
    BLOCK_I: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_T: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some channels of some pixels j: sums over all pixels i of their features, weighted by derivatives."""
    j, image = tl.program_id(0) * BLOCK_J + tl.arange(0, BLOCK_J), tl.program_id(2).to(tl.int64)
    first_d = tl.program_id(1) * BLOCK_D
    there = j < pixels
    features += image * stride_b
    left += image * terms * pixels
    right += image * terms * pixels
    word = tl.program_id(0) * (BLOCK_J // 32) + tl.arange(0, BLOCK_J // 32)
    total = tl.zeros([BLOCK_D, BLOCK_J], tl.float32)
    for start in range(0, pixels, BLOCK_I):
        i = start + tl.arange(0, BLOCK_I)
        inside = i < pixels
        slopes = tl.zeros([BLOCK_I, BLOCK_J], tl.float32)
        for first in range(0, terms, BLOCK_T):
            a = load_channels(left + i, pixels, first, terms, inside, BLOCK_T)
            b = load_channels(right + j, pixels, first, terms, there, BLOCK_T)
            slopes = tl.dot(tl.trans(a), b, slopes, input_precision=PRECISION)
        kept = tl.load(
            signs + (image * pixels + i)[:, None] * words + word[None, :],
            mask=inside[:, None] & (word < words)[None, :],
            other=0,
        )
        kept = tl.reshape((kept[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1, [BLOCK_I, BLOCK_J])
        slopes = tl.where(kept != 0, slopes, 0.0) * inverse_lengths(norms + image * pixels, i, inside)[:, None]
        x = load_channels(features + i.to(tl.int64) * stride_n, stride_d, first_d, width, inside, BLOCK_D)
        total += tl.dot(x.to(tl.float32), slopes, input_precision=PRECISION)
    d = first_d + tl.arange(0, BLOCK_D)
    target = grad + (image * width + d.to(tl.int64))[:, None] * pixels + j[None, :]
    tl.store(target, total, mask=(d < width)[:, None] & there[None, :])


@triton.jit(do_not_specialize=["pixels", "width"])
def lengths_backward_kernel(
    features,  # (B, D, N)
    stride_b,
    stride_d,
    stride_n,
    norms,  # (B, N)
    grad,  # (B, D, N): of u = f / (|f| + 1e-5), then of f
    pixels,
    width,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """grad = g / (|f| + 1e-5) - <u, g> / |f| * u for some pixels."""
    n, image = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N), tl.program_id(1).to(tl.int64)
    source, inside = features + image * stride_b + n.to(tl.int64) * stride_n, n < pixels
    grad += image * width * pixels + n
    norm = tl.load(norms + image * pixels + n, mask=inside, other=0)
    inverse = tl.div_rn(1.0, norm + ADDED)
    along = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, width, BLOCK_D):
        u = load_channels(source, stride_d, first, width, inside, BLOCK_D).to(tl.float32) * inverse[None, :]
        along += tl.sum(u * load_channels(grad, pixels, first, width, inside, BLOCK_D), axis=0)
    along = tl.where(norm > 0, tl.div_rn(along, tl.where(norm > 0, norm, 1.0)), 0.0)
    for first in range(0, width, BLOCK_D):
        u = load_channels(source, stride_d, first, width, inside, BLOCK_D).to(tl.float32) * inverse[None, :]
        g = load_channels(grad, pixels, first, width, inside, BLOCK_D)
        d = first + tl.arange(0, BLOCK_D)
        target = grad[None, :] + d.to(tl.int64)[:, None] * pixels
        tl.store(target, g * inverse[None, :] - along[None, :] * u, mask=(d < width)[:, None] & inside[None, :])
