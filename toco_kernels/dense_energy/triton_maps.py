"""Triton kernels around the exact filter: the energy with its gradient, and the way back to the logits."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["channels", "pixels", "parts", "factor"])
def energy_kernel(
    filtered,  # (parts, B, K, pixels)
    inside,  # (B, K, pixels): the values that were filtered
    gate,  # (B, pixels)
    roi,  # (B, pixels)
    totals,  # (B, K, blocks): sums of gate * inside * filtered over some pixels
    grad,  # (B, K, pixels) float32
    channels,
    pixels,
    parts,
    factor,
    BLOCK: tl.constexpr,
    WITH_GRAD: tl.constexpr,
):
    """Some pixels of one channel; grad = factor * gate * filtered * roi."""
    c, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    p = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = p < pixels
    row = image * channels + c
    step = tl.num_programs(2).to(tl.int64) * channels * pixels
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(parts):
        total += tl.load(filtered + row * pixels + p, mask=there, other=0)
        filtered += step
    total *= tl.load(gate + image * pixels + p, mask=there, other=0)
    energy = tl.sum(total * tl.load(inside + row * pixels + p, mask=there, other=0))
    tl.store(totals + row * tl.num_programs(0) + tl.program_id(0), energy)
    if WITH_GRAD:
        total *= factor * tl.load(roi + image * pixels + p, mask=there, other=0)
        tl.store(grad + row * pixels + p, total, mask=there)


@triton.jit
def share_of(
    position,  # in the source
    target,  # position in what was resized from it
    size,  # of the source
    resized,
    ratio,  # size / resized
):
    """How much of a position its bilinear resizing put into a target; 0 where the target lies elsewhere, or outside."""
    at = tl.maximum(tl.fma(target.to(tl.float32) + 0.5, ratio, -0.5), 0.0)
    near = at.to(tl.int32)
    share = at - near.to(tl.float32)
    weight = tl.where(position == near, 1 - share, 0.0)
    weight += tl.where(position == tl.minimum(near + 1, size - 1), share, 0.0)
    return tl.where(target < resized, weight, 0.0)


@triton.jit
def first_target(position, size, resized):
    """The first target after the position before: (target + 1/2) * size / resized - 1/2 > position - 1, in integers."""
    wanted = (2 * position.to(tl.int64) - 1) * resized + size
    return (tl.maximum(wanted, 0) // (2 * size)).to(tl.int32)


@triton.jit(
    do_not_specialize=["channels", "height", "width", "resized_height", "resized_width", "targets_y", "targets_x"]
)
def logits_backward_kernel(
    grad_resized,  # (B, K, h, w)
    probabilities,  # (B, K, H, W): the softmax of the logits
    grad,  # (B, K, H, W)
    channels,
    height,
    width,
    resized_height,
    resized_width,
    ratio_y,
    ratio_x,
    targets_y,  # that a pixel may have a share in, from `first_target` on
    targets_x,
    BLOCK_X: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradients of resized probabilities, gathered at some pixels of a row, and through the softmax.

    Gathered, not scattered as by PyTorch's own backward: additions in a fixed order.
    """
    y, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    x = tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    from_y, from_x = first_target(y, height, resized_height), first_target(x, width, resized_width)
    at = (image * channels * height + y) * width + x[None, :]
    dot = tl.zeros([BLOCK_X], tl.float32)
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C).to(tl.int64)[:, None]
        there = (c < channels) & (x < width)[None, :]
        g = tl.zeros([BLOCK_C, BLOCK_X], tl.float32)
        plane = (image * channels + c) * resized_height
        for u in range(targets_x):
            share_x = share_of(x, from_x + u, width, resized_width, ratio_x)
            for v in range(targets_y):
                share = (share_x * share_of(y, from_y + v, height, resized_height, ratio_y))[None, :]
                source = (plane + from_y + v) * resized_width + (from_x + u)[None, :]
                g += share * tl.load(grad_resized + source, mask=there & (share != 0), other=0)
        p = tl.load(probabilities + c * height * width + at, mask=there, other=0)
        dot += tl.sum(p * g, axis=0)
        tl.store(grad + c * height * width + at, g, mask=there)
    tl.debug_barrier()
    for first in range(0, channels, BLOCK_C):
        c = first + tl.arange(0, BLOCK_C).to(tl.int64)[:, None]
        there = (c < channels) & (x < width)[None, :]
        p = tl.load(probabilities + c * height * width + at, mask=there, other=0)
        g = tl.load(grad + c * height * width + at, mask=there, other=0)
        tl.store(grad + c * height * width + at, p * (g - dot[None, :]), mask=there)
