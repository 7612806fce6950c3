"""Triton kernel of random_walk: one step of the stencil."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["classes", "first", "last", "stride"])
def walk_kernel(
    maps,  # (B, C, size) float32, amid zeros
    weights,  # (B, pairs, size): of a pixel and its neighbour
    sums,  # (B, size): of a pixel's weights, without its own, which is 1
    scales,  # (B, size): 1 / (1 + sum), 0 outside of the image
    walked,  # (B, C, size)
    classes,
    first,
    last,  # pixels of the image lie in [first, last)
    stride,  # of a row
    size,
    PAIRS: tl.constexpr,
    RADIUS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Each pixel becomes the mean of itself and of both neighbours of every pair, by their weights, as a change of its score."""
    p = first + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    c, image = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C), tl.program_id(2).to(tl.int64)
    inside = p < last
    place = (image * classes + c.to(tl.int64))[:, None] * size + p[None, :]
    mask = (c < classes)[:, None] & inside[None, :]
    own = tl.load(maps + place, mask=mask, other=0)
    total = tl.zeros([BLOCK_C, BLOCK], tl.float32)
    weights += image * PAIRS * size
    for y in tl.static_range(RADIUS):
        for x in tl.static_range(1 - RADIUS, RADIUS):
            if (y > 0 or x > 0) and y * y + x * x < RADIUS * RADIUS:
                step = y * stride + x
                ahead = tl.load(weights + p, mask=inside, other=0)
                behind = tl.load(weights + p - step, mask=inside, other=0)
                total += ahead[None, :] * tl.load(maps + place + step, mask=mask, other=0)
                total += behind[None, :] * tl.load(maps + place - step, mask=mask, other=0)
                weights += size
    weight = tl.load(sums + image * size + p, mask=inside, other=0)[None, :]
    scale = tl.load(scales + image * size + p, mask=inside, other=0)[None, :]
    tl.store(walked + place, own + (total - weight * own) * scale, mask=mask)
