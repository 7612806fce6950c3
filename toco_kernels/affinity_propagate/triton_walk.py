"""Triton kernels of random_walk: affinities of pairs, the sums of their weights, and one step of the stencil.

Pairs are the offsets (y, x) within the radius, y > 0 or x > 0, in the order of `reference.offsets`: each is met from
both of its ends. What lies beyond the border is never read.
"""

import triton
import triton.language as tl


@triton.jit
def is_pair(y, x, RADIUS: tl.constexpr):
    """Whether an offset, y >= 0, is one of the pairs."""
    return (y * y + x * x < RADIUS * RADIUS) & ((y > 0) | (x > 0))


@triton.jit
def across(u, x, width):
    """Whether pixels of column u have a neighbour x to the right of them (or left, where x < 0)."""
    return (u + x >= 0) & (u + x < width)


@triton.jit(do_not_specialize=["height", "width"])
def affinity_kernel(
    edges,  # (B, H, W) of any floating dtype
    affinities,  # (B, P, H, W) float32; 0 beyond the border
    height,
    width,
    RADIUS: tl.constexpr,
    PAIRS: tl.constexpr,
    CELLS: tl.constexpr,  # a power of two, >= RADIUS * (2 * RADIUS - 1)
    BLOCK: tl.constexpr,
):
    """1 less the strongest edge on the way from some pixels to one of their neighbours."""
    reach: tl.constexpr = 2 * RADIUS - 1
    cell, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    y, x = cell // reach, cell % reach - (RADIUS - 1)
    cells = tl.arange(0, CELLS)
    before = is_pair(cells // reach, cells % reach - (RADIUS - 1), RADIUS) & (cells < cell)
    pair, wanted = tl.sum(before.to(tl.int32)), is_pair(y, x, RADIUS)
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    v, u = p // width, p % width
    inside = (p < height * width) & (v + y < height) & across(u, x, width) & wanted
    edges += image * height * width
    strongest = tl.full([BLOCK], float("-inf"), tl.float32)
    for down in range(0, y + 1):
        for right in range(tl.minimum(x, 0), tl.maximum(x, 0) + 1):
            aside = y * right - x * down
            on_the_way = inside & (aside * aside < y * y + x * x)
            edge = tl.load(edges + p + down * width + right, mask=on_the_way, other=float("-inf")).to(tl.float32)
            strongest = tl.maximum(strongest, edge, propagate_nan=tl.PropagateNan.ALL)
    target = affinities + (image * PAIRS + pair) * height * width + p
    tl.store(target, tl.where(inside, 1 - strongest, 0.0), mask=(p < height * width) & wanted)


@triton.jit(do_not_specialize=["height", "width"])
def sums_of_weights_kernel(
    weights,  # (B, P, H, W) float32
    sums,  # (B, H, W) float32: of a pixel's neighbours
    scales,  # (B, H, W) float32: 1 / (1 + sum)
    height,
    width,
    RADIUS: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Added up in float64: their error would be that of every step."""
    p, image = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1).to(tl.int64)
    v, u = p // width, p % width
    pixels = height * width
    inside = p < pixels
    weights += image * PAIRS * pixels
    total = tl.zeros([BLOCK], tl.float64)
    for y in range(RADIUS):
        for x in tl.static_range(1 - RADIUS, RADIUS):
            pair = is_pair(y, x, RADIUS)
            ahead = inside & pair & (v + y < height) & across(u, x, width)
            behind = inside & pair & (v >= y) & across(u, -x, width)
            total += tl.load(weights + p, mask=ahead, other=0).to(tl.float64)
            total += tl.load(weights + p - (y * width + x), mask=behind, other=0).to(tl.float64)
            weights += tl.where(pair, pixels, 0)
    tl.store(sums + image * pixels + p, total.to(tl.float32), mask=inside)
    tl.store(scales + image * pixels + p, (1 / (1 + total)).to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["classes", "height", "width"])
def walk_kernel(
    maps,  # (B, C, H, W) float32
    weights,  # (B, P, H, W) float32
    sums,  # (B, H, W) float32
    scales,  # (B, H, W) float32
    walked,  # (B, C, H, W) float32
    classes,
    height,
    width,
    RADIUS: tl.constexpr,
    PAIRS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Each pixel becomes the mean of itself and of all neighbours, by their weights.

    It is computed as a change of its score, so that pixels without neighbours keep theirs to the last bit.
    """
    p, image = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(2).to(tl.int64)
    c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    v, u = p // width, p % width
    pixels = height * width
    inside = p < pixels
    there = (c < classes)[:, None] & inside[None, :]
    place = (image * classes + c.to(tl.int64))[:, None] * pixels + p[None, :]
    own = tl.load(maps + place, mask=there, other=0)
    total = tl.zeros([BLOCK_C, BLOCK], tl.float32)
    weights += image * PAIRS * pixels
    for y in range(RADIUS):
        for x in tl.static_range(1 - RADIUS, RADIUS):
            pair, step = is_pair(y, x, RADIUS), y * width + x
            ahead = inside & pair & (v + y < height) & across(u, x, width)
            behind = inside & pair & (v >= y) & across(u, -x, width)
            weight = tl.load(weights + p, mask=ahead, other=0)[None, :]
            total += weight * tl.load(maps + place + step, mask=there & ahead[None, :], other=0)
            weight = tl.load(weights + p - step, mask=behind, other=0)[None, :]
            total += weight * tl.load(maps + place - step, mask=there & behind[None, :], other=0)
            weights += tl.where(pair, pixels, 0)
    weight = tl.load(sums + image * pixels + p, mask=inside, other=0)[None, :]
    scale = tl.load(scales + image * pixels + p, mask=inside, other=0)[None, :]
    tl.store(walked + place, own + (total - weight * own) * scale, mask=there)
