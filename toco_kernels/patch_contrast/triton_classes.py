"""Triton kernels of patch_contrastive_error: sides of the classes, sums per class (linear), tiles of pairs (log).

With H[n, c] = 1 where patch n is high in class c, L[n, c] where it is low, and the weights p[c] and q[c] of one pair in
the two means, the weights of a pair of patches, whatever its classes, are products over classes:

    P = H diag(p) Hᵀ,   Q = H diag(q) Lᵀ + L diag(q) Hᵀ
"""

import triton
import triton.language as tl

from ..common.triton_rows import load_rows
from .triton_rows import dot_exact

LEAST = tl.constexpr(1e-6)  # of what a logarithm is taken of


@triton.jit(do_not_specialize=["patches", "classes", "high", "low"])
def sides_kernel(
    scores,  # (B, N, C)
    score_stride_b,
    score_stride_n,
    score_stride_c,
    present,  # (B, C), not 0 where the image shows the class
    present_stride_b,
    present_stride_c,
    sides,  # (B, N, width) int8: 1 high, -1 low, 0 neither
    unused,  # (B, N) int32: 0 for patches with a side, 1 for the others
    counts,  # (2, B, width) int32, zeros: of high and of low patches
    patches,
    classes,
    width,
    high,
    low,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Which patches are surely of a class, and which surely not."""
    image, images = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row = image * patches + n
    source = scores + image * score_stride_b + n.to(tl.int64)[:, None] * score_stride_n
    used = tl.zeros([BLOCK_N], tl.int32)
    for first in range(0, width, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        shown = tl.load(present + image * present_stride_b + c * present_stride_c, mask=c < classes, other=0) != 0
        inside = (n < patches)[:, None] & shown[None, :]
        score = tl.load(source + c.to(tl.int64)[None, :] * score_stride_c, mask=inside, other=0.5)
        is_high, is_low = (inside & (score > high)).to(tl.int32), (inside & (score < low)).to(tl.int32)
        tl.store(sides + row[:, None] * width + c[None, :], (is_high - is_low).to(tl.int8), mask=(n < patches)[:, None])
        used = tl.maximum(used, tl.max(is_high + is_low, axis=1))
        tl.atomic_add(counts + image * width + c, tl.sum(is_high, axis=0))  # integers: any order gives this sum
        tl.atomic_add(counts + (images + image) * width + c, tl.sum(is_low, axis=0))
    tl.store(unused + row, 1 - used, mask=n < patches)


@triton.jit(do_not_specialize=["count"])
def class_weights_kernel(
    counts,  # (2, count) int32
    weights,  # (2, count) float32: p and q
    constant,  # () float32: half of the number of means that have a term
    count,
    BLOCK: tl.constexpr,
):
    """p = 1 / (h (h - 1)) and q = 1 / (h l), divided by how many images and classes have such pairs."""
    alike = tl.zeros([BLOCK], tl.int32)
    apart = tl.zeros([BLOCK], tl.int32)
    for first in range(0, count, BLOCK):
        k = first + tl.arange(0, BLOCK)
        high, low = tl.load(counts + k, mask=k < count, other=0), tl.load(counts + count + k, mask=k < count, other=0)
        alike += (high > 1).to(tl.int32)
        apart += ((high > 0) & (low > 0)).to(tl.int32)
    alike_terms, apart_terms = tl.sum(alike), tl.sum(apart)
    tl.store(constant, 0.5 * ((alike_terms > 0).to(tl.float32) + (apart_terms > 0).to(tl.float32)))
    for first in range(0, count, BLOCK):
        k = first + tl.arange(0, BLOCK)
        high = tl.load(counts + k, mask=k < count, other=0).to(tl.float32)
        low = tl.load(counts + count + k, mask=k < count, other=0).to(tl.float32)
        p, q = high * (high - 1) * alike_terms.to(tl.float32), high * low * apart_terms.to(tl.float32)
        tl.store(weights + k, tl.where(p > 0, 1 / tl.where(p > 0, p, 1.0), 0.0), mask=k < count)
        tl.store(weights + count + k, tl.where(q > 0, 1 / tl.where(q > 0, q, 1.0), 0.0), mask=k < count)


@triton.jit
def load_sides(sides, order, n, patches, c, width):
    """H and L of some rows and classes, in float32."""
    patch = tl.load(order + n, mask=n < patches, other=-1)
    at = tl.maximum(patch, 0).to(tl.int64)[:, None] * width + c[None, :]
    side = tl.load(sides + at, mask=(patch >= 0)[:, None], other=0)
    return (side > 0).to(tl.float32), (side < 0).to(tl.float32)


@triton.jit(do_not_specialize=["patches"])
def class_sums_kernel(
    rows,  # (B, rows, pitch) unit vectors
    order,  # (B, N)
    sides,  # (B, N, width)
    valid_counts,  # (B)
    sums,  # (B, 2, width, pitch): u and v, the sums of high and of low vectors
    squares,  # (B, pitch / BLOCK_D, width): Σ |x|² over high vectors, by block of channels
    patches,
    width,
    row_count,
    pitch,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Some channels of the sums of some classes."""
    image = tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    rows += image * row_count * pitch
    order += image * patches
    sides += image * patches * width
    u = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
    v = tl.zeros([BLOCK_C, BLOCK_D], tl.float32)
    square = tl.zeros([BLOCK_C], tl.float32)
    for first in range(0, tl.load(valid_counts + image), BLOCK_N):
        high, low = load_sides(sides, order, first + tl.arange(0, BLOCK_N), patches, c, width)
        x = load_rows(rows, first, pitch, d, BLOCK_N)
        u = dot_exact(tl.trans(high), x, u, PRECISION)
        v = dot_exact(tl.trans(low), x, v, PRECISION)
        square += tl.sum(high * tl.sum(x * x, axis=1)[:, None], axis=0)
    target = sums + (image * 2 * width + c[:, None]) * pitch + d[None, :]
    tl.store(target, u)
    tl.store(target + width * pitch, v)
    tl.store(squares + (image * tl.num_programs(0) + tl.program_id(0)) * width + c, square)


@triton.jit
def linear_loss_kernel(
    sums,  # (B, 2, width, pitch)
    squares,  # (B, pitch / BLOCK_D, width)
    weights,  # (2, B, width)
    parts,  # (B, width / BLOCK_C)
    width,
    pitch,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """-p/2 (|u|² - Σ|x|²) + q/2 <u, v>, for some classes: of the two means all but their halves."""
    image, images = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    source = sums + (image * 2 * width + c[:, None]) * pitch + tl.arange(0, BLOCK_D)[None, :]
    alike = tl.zeros([BLOCK_C], tl.float32)
    apart = tl.zeros([BLOCK_C], tl.float32)
    for first in range(0, pitch, BLOCK_D):
        u, v = tl.load(source + first), tl.load(source + width * pitch + first)
        square = tl.load(squares + (image * (pitch // BLOCK_D) + first // BLOCK_D) * width + c)
        alike += tl.sum(u * u, axis=1) - square
        apart += tl.sum(u * v, axis=1)
    p, q = tl.load(weights + image * width + c), tl.load(weights + (images + image) * width + c)
    tl.store(parts + image * tl.num_programs(0) + tl.program_id(0), tl.sum(0.5 * (q * apart - p * alike)))


@triton.jit
def class_gradient(
    sums,
    weights,
    images,
    sides,
    order,
    n,
    patches,
    d,
    width,
    pitch,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Σ_c (q L / 2 - p H) u + (q H / 2) v, and Σ_c p H: the gradient in the unit vectors but for p H x."""
    g = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    own = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, width, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C)
        p, q = tl.load(weights + c)[None, :], tl.load(weights + images * width + c)[None, :]
        high, low = load_sides(sides, order, n, patches, c, width)
        u = tl.load(sums + c[:, None] * pitch + d[None, :])
        v = tl.load(sums + (width + c)[:, None] * pitch + d[None, :])
        g = tl.dot(0.5 * q * low - p * high, u, g, input_precision=PRECISION)
        g = tl.dot(0.5 * q * high, v, g, input_precision=PRECISION)
        own += tl.sum(p * high, axis=1)
    return g, own


@triton.jit
def store_grad(grad_tokens, order, n, grad, valid, patches, channels, d):
    """Rows of the gradient in their patches' places, zero for patches that take no part."""
    patch = tl.load(order + n, mask=n < patches, other=0)
    patch = tl.where(patch < 0, ~patch, patch).to(tl.int64)
    inside = (n < patches)[:, None] & (d < channels)[None, :]
    grad = tl.where((n < valid)[:, None], grad, 0.0)
    tl.store(grad_tokens + patch[:, None] * channels + d[None, :], grad, mask=inside)


@triton.jit(do_not_specialize=["patches", "channels"])
def linear_backward_kernel(
    rows,  # (B, rows, pitch)
    inverses,  # (B, rows)
    order,  # (B, N)
    sides,  # (B, N, width)
    valid_counts,  # (B)
    sums,  # (B, 2, width, pitch)
    weights,  # (2, B, width)
    grad_tokens,  # (B, N, D)
    patches,
    channels,
    width,
    row_count,
    pitch,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """(g - <g, x> x) / |x| for some patches; g twice, first for its product with x."""
    image, images = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    first_row = tl.program_id(0) * BLOCK_N
    n = first_row + tl.arange(0, BLOCK_N)
    rows += image * row_count * pitch
    order += image * patches
    sides += image * patches * width
    sums += image * 2 * width * pitch
    weights += image * width
    grad_tokens += image * patches * channels
    valid = tl.load(valid_counts + image)
    radial = tl.zeros([BLOCK_N], tl.float32)
    inverse = tl.load(inverses + image * row_count + n)
    channels_read = tl.where(first_row < valid, pitch, 0)
    for first in range(0, channels_read, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        g, own = class_gradient(
            sums, weights, images, sides, order, n, patches, d, width, pitch, PRECISION, BLOCK_N, BLOCK_C, BLOCK_D
        )
        x = load_rows(rows, first_row, pitch, d, BLOCK_N)
        radial += tl.sum((g + own[:, None] * x) * x, axis=1)
    radial = tl.where(inverse < 1e8, radial, 0.0)
    for first in range(0, channels, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)
        grad = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
        if first_row < valid:
            g, own = class_gradient(
                sums, weights, images, sides, order, n, patches, d, width, pitch, PRECISION, BLOCK_N, BLOCK_C, BLOCK_D
            )
            grad = (g + (own - radial)[:, None] * load_rows(rows, first_row, pitch, d, BLOCK_N)) * inverse[:, None]
        store_grad(grad_tokens, order, n, grad, valid, patches, channels, d)


@triton.jit(do_not_specialize=["patches", "channels"])
def log_kernel(
    rows,  # (B, rows, pitch)
    inverses,  # (B, rows)
    order,  # (B, N)
    sides,  # (B, N, width)
    valid_counts,  # (B)
    weights,  # (2, B, width)
    parts,  # (B, blocks)
    grad_tokens,  # (B, N, D)
    patches,
    channels,
    width,
    row_count,
    pitch,
    BLOCK_N: tl.constexpr,
    BLOCK_J: tl.constexpr,
    BLOCK_K: tl.constexpr,  # channels of S at a time
    BLOCK_D: tl.constexpr,  # channels of the gradient
    PRECISION: tl.constexpr,
    WITH_GRAD: tl.constexpr,
):
    """Some patches against all, for some channels of the gradient. S is computed again for every block of channels."""
    image, images = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    first_row = tl.program_id(1) * BLOCK_N
    i = first_row + tl.arange(0, BLOCK_N)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    k = tl.arange(0, BLOCK_K)
    rows += image * row_count * pitch
    order += image * patches
    sides += image * patches * width
    weights += image * width
    valid = tl.load(valid_counts + image)
    here = tl.maximum(tl.load(order + i, mask=i < patches, other=-1), 0).to(tl.int64) * width
    loss = tl.zeros([BLOCK_N], tl.float32)
    radial = tl.zeros([BLOCK_N], tl.float32)
    grad = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for first in range(0, tl.where(first_row < valid, valid, 0), BLOCK_J):
        j = first + tl.arange(0, BLOCK_J)
        s = tl.zeros([BLOCK_N, BLOCK_J], tl.float32)
        for at in range(0, channels, BLOCK_K):
            left = load_rows(rows + at, first_row, pitch, k, BLOCK_N)
            right = load_rows(rows + at, first, pitch, k, BLOCK_J)
            s = tl.dot(left, tl.trans(right), s, input_precision=PRECISION)
        p = tl.zeros([BLOCK_N, BLOCK_J], tl.float32)
        q = tl.zeros([BLOCK_N, BLOCK_J], tl.float32)
        there = tl.maximum(tl.load(order + j, mask=j < patches, other=-1), 0).to(tl.int64) * width
        for c in range(0, width):
            alike, apart = tl.load(weights + c), tl.load(weights + images * width + c)
            if alike + apart > 0:  # an image shows few classes
                side = tl.load(sides + here + c).to(tl.int32)[:, None]
                other = tl.load(sides + there + c).to(tl.int32)[None, :]
                p += tl.where((side == 1) & (other == 1), alike, 0.0)
                q += tl.where(side * other == -1, apart, 0.0)
        others = (i[:, None] != j[None, :]) & (i < valid)[:, None] & (j < valid)[None, :]
        p, q = tl.where(others, p, 0.0), tl.where(others, q, 0.0)
        near = (1 + s) / 2
        far = 1 - near
        near_least, far_least = near < LEAST, far < LEAST
        near, far = tl.where(near_least, LEAST, near), tl.where(far_least, LEAST, far)  # not maxima: NaN stays
        loss -= tl.sum(p * tl.log(near) + 0.5 * q * tl.log(far), axis=1)  # every pair of q is met twice
        if WITH_GRAD:
            g = tl.where(far_least, 0.0, 0.5 * q / far) - tl.where(near_least, 0.0, p / near)
            radial += tl.sum(g * s, axis=1)
            grad = tl.dot(g, load_rows(rows, first, pitch, d, BLOCK_J), grad, input_precision=PRECISION)
    if tl.program_id(0) == 0:
        tl.store(parts + image * tl.num_programs(1) + tl.program_id(1), tl.sum(loss))
    if WITH_GRAD:
        inverse = tl.load(inverses + image * row_count + i)
        radial = tl.where(inverse < 1e8, radial, 0.0)
        grad = (grad - radial[:, None] * load_rows(rows, first_row, pitch, d, BLOCK_N)) * inverse[:, None]
        store_grad(grad_tokens + image * patches * channels, order, i, grad, valid, patches, channels, d)
