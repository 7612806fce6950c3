"""Triton kernels of pair_contrast: pairs are counted, scored in tiles, and their gradients gathered.

Everything is judged by labels where it is needed: no mask of pairs is stored.
"""

import triton
import triton.language as tl

from ..common.triton_rows import load_rows

ABS_COS, SIGMOID = (tl.constexpr(k) for k in range(2))


@triton.jit
def load_labels(labels, i, count, ignore_index):
    """Labels, and whether their tokens take part."""
    label = tl.load(labels + i, mask=i < count, other=0)
    return label, (i < count) & (label != ignore_index)


@triton.jit
def near(i, j, grid_width, radius):
    """Which tokens lie at most `radius` rows and columns apart."""
    down = i[:, None] // grid_width - j[None, :] // grid_width
    across = i[:, None] % grid_width - j[None, :] % grid_width
    return (tl.abs(down) <= radius) & (tl.abs(across) <= radius)


@triton.jit(do_not_specialize=["x_count", "y_count", "ignore_index", "grid_width", "radius"])
def count_kernel(
    labels_x,  # (B, N)
    labels_y,  # (B, M)
    alike,  # (B, N) int32: pairs with the same label, of each x; 0 where it is ignored
    parts,  # (3, B * blocks) int64: pairs with the same label, all pairs, x with a positive
    x_count,
    y_count,
    ignore_index,
    grid_width,
    radius,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    NEAR: tl.constexpr,
):
    """How many pairs there are of each kind."""
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i = block * BLOCK_N + tl.arange(0, BLOCK_N)
    label, valid = load_labels(labels_x + image * x_count, i, x_count, ignore_index)
    same_counts = tl.zeros([BLOCK_N], tl.int32)
    all_counts = tl.zeros([BLOCK_N], tl.int32)
    for first in range(0, y_count, BLOCK_M):
        j = first + tl.arange(0, BLOCK_M)
        other, takes_part = load_labels(labels_y + image * y_count, j, y_count, ignore_index)
        pairs = valid[:, None] & takes_part[None, :]
        if NEAR:
            pairs = pairs & near(i, j, grid_width, radius)
        all_counts += tl.sum(pairs.to(tl.int32), axis=1)
        same_counts += tl.sum((pairs & (label[:, None] == other[None, :])).to(tl.int32), axis=1)
    tl.store(alike + image * x_count + i, same_counts, mask=i < x_count)
    blocks = tl.num_programs(0) * tl.num_programs(1)
    part = parts + image * tl.num_programs(0) + block
    tl.store(part, tl.sum(same_counts.to(tl.int64)))
    tl.store(part + blocks, tl.sum(all_counts.to(tl.int64)))
    tl.store(part + 2 * blocks, tl.sum((same_counts > 0).to(tl.int64)))


@triton.jit
def total_of(parts, count, BLOCK: tl.constexpr):
    """The sum of some integers."""
    k = tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.int64)
    for first in range(0, count, BLOCK):
        total += tl.load(parts + first + k, mask=first + k < count, other=0)
    return tl.sum(total)


@triton.jit(do_not_specialize=["blocks"])
def weights_kernel(
    parts,  # (3, blocks) int64
    weights,  # (3) float32: of a pair with the same label, of another, of an anchor
    blocks,
    BLOCK: tl.constexpr,
):
    """What one of each weighs in the loss."""
    same, pairs = total_of(parts, blocks, BLOCK), total_of(parts + blocks, blocks, BLOCK)
    anchors = tl.maximum(total_of(parts + 2 * blocks, blocks, BLOCK), 1)
    tl.store(weights, tl.div_rn(0.5, (same + 1).to(tl.float32)))
    tl.store(weights + 1, tl.div_rn(0.5, (pairs - same + 1).to(tl.float32)))
    tl.store(weights + 2, tl.div_rn(1.0, anchors.to(tl.float32)))


@triton.jit
def products(
    x,
    y,
    first,
    other,
    channels,
    pitch,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Of rows from `first` on with rows from `other` on."""
    k = tl.arange(0, BLOCK_K)
    s = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for at in range(0, channels, BLOCK_K):
        left = load_rows(x + at, first, pitch, k, BLOCK_N)
        right = load_rows(y + at, other, pitch, k, BLOCK_M)
        s = tl.dot(left, tl.trans(right), s, input_precision=PRECISION)
    return s


@triton.jit(
    do_not_specialize=["x_count", "y_count", "channels", "ignore_index", "grid_width", "radius", "scale", "factor"]
)
def pairs_kernel(
    x,  # (B, x_rows, pitch)
    y,  # (B, y_rows, pitch)
    labels_x,  # (B, N)
    labels_y,  # (B, M)
    weights,  # (3)
    shift,  # () float32
    losses,  # (B, blocks)
    slopes,  # (B, blocks): sums of derivatives by products
    grad,  # (B, N, D) float32
    x_count,
    y_count,
    channels,
    x_rows,
    y_rows,
    pitch,
    ignore_index,
    grid_width,
    radius,
    scale,
    factor,
    FORM: tl.constexpr,
    NEAR: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,  # channels of scores at a time
    BLOCK_D: tl.constexpr,  # channels of the gradient
    PRECISION: tl.constexpr,
    WITH_GRAD: tl.constexpr,
):
    """Some x against all y, for some channels of the gradient; scores are computed again for every block of those."""
    block, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    i = block * BLOCK_N + tl.arange(0, BLOCK_N)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    x += image * x_rows * pitch
    y += image * y_rows * pitch
    label, valid = load_labels(labels_x + image * x_count, i, x_count, ignore_index)
    same, different = tl.load(weights), tl.load(weights + 1)
    loss = tl.zeros([BLOCK_N], tl.float32)
    steepness = tl.zeros([BLOCK_N], tl.float32)
    acc = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for first in range(0, y_count, BLOCK_M):
        j = first + tl.arange(0, BLOCK_M)
        other, takes_part = load_labels(labels_y + image * y_count, j, y_count, ignore_index)
        pairs = valid[:, None] & takes_part[None, :]
        if NEAR:
            pairs = pairs & near(i, j, grid_width, radius)
        matches = label[:, None] == other[None, :]
        z = products(x, y, block * BLOCK_N, first, channels, pitch, PRECISION, BLOCK_N, BLOCK_M, BLOCK_K) * scale
        z -= tl.load(shift)
        weight = tl.where(pairs, tl.where(matches, same, different), 0.0)
        towards = tl.where(matches, -weight, weight)
        if FORM == ABS_COS:
            loss += tl.sum(tl.where(pairs, towards * tl.abs(z), 0.0), axis=1)
            g = tl.where(z > 0, towards, tl.where(z < 0, -towards, towards * z))
        else:
            e = tl.exp(-tl.abs(z))
            large = 1 / (1 + e)
            small = e * large
            distance = tl.where(matches, -z, z)
            loss += tl.sum(tl.where(pairs, weight * tl.where(distance < 0, small, large), 0.0), axis=1)
            g = towards * (large * small)
        g = tl.where(pairs, g, 0.0)
        steepness += tl.sum(g, axis=1)
        if WITH_GRAD:
            acc = tl.dot(g, load_rows(y, first, pitch, d, BLOCK_M), acc, input_precision=PRECISION)
    if tl.program_id(0) == 0:
        part = image * tl.num_programs(1) + block
        tl.store(losses + part, tl.sum(loss))
        tl.store(slopes + part, tl.sum(steepness) * scale)
    if WITH_GRAD:
        target = grad + (image * x_count + i.to(tl.int64)[:, None]) * channels + d[None, :]
        inside = (i < x_count)[:, None] & (d < channels)[None, :]
        tl.store(target, tl.where(valid[:, None], acc * (factor * scale), 0.0), mask=inside)


@triton.jit(do_not_specialize=["count", "channels"])
def finish_kernel(
    rows,  # (B, rows, pitch)
    inverses,  # (B, rows)
    totals,  # (B, pitch) float32: sums of all rows of an image, or None
    by_mean,  # () float32: the loss's derivative by them
    grad,  # (B, N, D) float32: by rows, then by tokens
    count,
    channels,
    row_count,
    pitch,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    SHORTEST: tl.constexpr,
    NORMALIZE: tl.constexpr,
):
    """Add what flows through the mean; from unit vectors to tokens, (g - <g, x> x) / |x|, as computed."""
    image = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows += image * row_count * pitch + n.to(tl.int64)[:, None] * pitch
    grads = grad + (image * count + n.to(tl.int64)[:, None]) * channels
    inverse = tl.load(inverses + image * row_count + n) if NORMALIZE else tl.full([BLOCK_N], 1.0, tl.float32)
    radial = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, channels, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)[None, :]
        inside = (n < count)[:, None] & (d < channels)
        g = tl.load(grads + d, mask=inside, other=0)
        if totals is not None:
            g += tl.load(by_mean) * tl.load(totals + image * pitch + d, mask=d < channels, other=0)
            tl.store(grads + d, g, mask=inside)
        radial += tl.sum(g * tl.load(rows + d, mask=inside, other=0), axis=1)
    if NORMALIZE:
        tl.debug_barrier()
        radial = tl.where(inverse * SHORTEST < 1, radial, 0.0)  # a shorter norm counts as this: a constant
        for first in range(0, channels, BLOCK_D):
            d = first + tl.arange(0, BLOCK_D)[None, :]
            inside = (n < count)[:, None] & (d < channels)
            g = tl.load(grads + d, mask=inside, other=0)
            x = tl.load(rows + d, mask=inside, other=0)
            tl.store(grads + d, (g - radial[:, None] * x) * inverse[:, None], mask=inside)
