"""Triton kernels for class maps that are compared at another size than the network's grid.

A stretched map is never stored: whoever needs a pixel of it makes it from four pixels of the grid, which stay in L1. It
is the same to the bit each time, so that pixels as high as the highest can be found again. Maps of classes that an
image does not show are not read.
"""

import triton
import triton.language as tl

from ..common.triton_corners import first_target, share_of, source_of

EPSILON = tl.constexpr(1e-5)


@triton.jit
def stretched(map, y, x, height, width, scale_y, scale_x, mask):
    """Pixels of a map, resized with aligned corners; what is negative is 0."""
    top, bottom, share_y = source_of(y, height, scale_y)
    left, right, share_x = source_of(x, width, scale_x)
    above = tl.load(map + top * width + left, mask=mask, other=0)
    above = tl.fma(share_x, tl.load(map + top * width + right, mask=mask, other=0) - above, above)
    below = tl.load(map + bottom * width + left, mask=mask, other=0)
    below = tl.fma(share_x, tl.load(map + bottom * width + right, mask=mask, other=0) - below, below)
    return tl.maximum(tl.fma(share_y, below - above, above), 0)


@triton.jit
def gathered(grad, y, x, height, width, out_height, out_width, scale_y, scale_x, targets_y, targets_x, mask):
    """The gradient in pixels of the view, of that in what was resized from it."""
    first_y, first_x = first_target(y, height, out_height), first_target(x, width, out_width)
    total = tl.zeros_like(scale_y * y.to(tl.float32))
    for u in range(targets_y):
        share_y = share_of(y, first_y + u, height, out_height, scale_y)
        for v in range(targets_x):
            share = share_y * share_of(x, first_x + v, width, out_width, scale_x)
            at = (first_y + u) * out_width + first_x + v
            total += share * tl.load(grad + at, mask=mask & (share != 0), other=0)
    return total


@triton.jit
def range_kernel(
    maps,  # (planes, h, w)
    present,  # (planes)
    partial,  # (planes, programs, 2), lowest and highest
    height,
    width,
    view_height,
    view_width,
    scale_y,
    scale_x,
    BLOCK: tl.constexpr,
):
    """The range of some pixels of a stretched map."""
    plane, program, programs = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    low = tl.full([BLOCK], float("inf"), tl.float32)
    high = tl.zeros([BLOCK], tl.float32)
    if tl.load(present + plane) != 0:
        map = maps + plane.to(tl.int64) * height * width
        for start in range(program * BLOCK, view_height * view_width, programs * BLOCK):
            pixel = start + tl.arange(0, BLOCK)
            mask = pixel < view_height * view_width
            y, x = pixel // view_width, pixel % view_width
            value = stretched(map, y, x, height, width, scale_y, scale_x, mask)
            low = tl.where(mask, tl.minimum(low, value), low)
            high = tl.where(mask, tl.maximum(high, value), high)
    at = partial + (plane * programs + program) * 2
    tl.store(at, tl.min(low, axis=0))
    tl.store(at + 1, tl.max(high, axis=0))


@triton.jit
def compared_kernel(
    maps,  # (planes, h, w)
    present,  # (planes)
    ranges,  # (planes, 2)
    out,  # (planes, out_height, out_width)
    height,
    width,
    view_height,
    view_width,
    out_height,
    out_width,
    scale_y,
    scale_x,
    out_scale_y,
    out_scale_x,
    BLOCK: tl.constexpr,
):
    """Some pixels of a map as it is compared: its range 0 … 1, from the view to the last size."""
    plane = tl.program_id(0)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < out_height * out_width
    value = tl.zeros([BLOCK], tl.float32)
    if tl.load(present + plane) != 0:
        map = maps + plane.to(tl.int64) * height * width
        low, high = tl.load(ranges + plane * 2), tl.load(ranges + plane * 2 + 1)
        length = high - low + EPSILON
        top, bottom, share_y = source_of(pixel // out_width, view_height, out_scale_y)
        left, right, share_x = source_of(pixel % out_width, view_width, out_scale_x)
        above = tl.maximum(stretched(map, top, left, height, width, scale_y, scale_x, mask) - low - EPSILON, 0)
        more = tl.maximum(stretched(map, top, right, height, width, scale_y, scale_x, mask) - low - EPSILON, 0)
        above += share_x * (more - above)
        below = tl.maximum(stretched(map, bottom, left, height, width, scale_y, scale_x, mask) - low - EPSILON, 0)
        more = tl.maximum(stretched(map, bottom, right, height, width, scale_y, scale_x, mask) - low - EPSILON, 0)
        below += share_x * (more - below)
        value = (above + share_y * (below - above)) / length
    tl.store(out + plane.to(tl.int64) * out_height * out_width + pixel, value, mask=mask)


@triton.jit
def range_slopes_kernel(
    maps,  # (planes, h, w)
    present,  # (planes)
    ranges,  # (planes, 2)
    grad,  # (planes, out_height, out_width)
    partial,  # (planes, programs, 4)
    height,
    width,
    view_height,
    view_width,
    out_height,
    out_width,
    scale_y,
    scale_x,
    out_scale_y,
    out_scale_x,
    targets_y,
    targets_x,
    BLOCK: tl.constexpr,
):
    """Of some pixels of the view: the gradients of those above the range's lower end, these times the pixels' values,
    and how many pixels are as low, and as high, as the range is.
    """
    plane, program, programs = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    active, values = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    lows, highs = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    if tl.load(present + plane) != 0:
        map = maps + plane.to(tl.int64) * height * width
        own = grad + plane.to(tl.int64) * out_height * out_width
        low, high = tl.load(ranges + plane * 2), tl.load(ranges + plane * 2 + 1)
        length = high - low + EPSILON
        for start in range(program * BLOCK, view_height * view_width, programs * BLOCK):
            pixel = start + tl.arange(0, BLOCK)
            mask = pixel < view_height * view_width
            y, x = pixel // view_width, pixel % view_width
            value = stretched(map, y, x, height, width, scale_y, scale_x, mask)
            slope = gathered(
                *(own, y, x, view_height, view_width, out_height, out_width, out_scale_y, out_scale_x),
                *(targets_y, targets_x, mask),
            )
            above = value - low - EPSILON
            slope = tl.where(mask & (above > 0), slope / length, 0)
            active += slope
            values += above * slope
            lows += tl.where(mask & (value == low), 1.0, 0.0)
            highs += tl.where(mask & (value == high), 1.0, 0.0)
    at = partial + (plane * programs + program) * 4
    tl.store(at, tl.sum(active, axis=0))
    tl.store(at + 1, tl.sum(values, axis=0))
    tl.store(at + 2, tl.sum(lows, axis=0))
    tl.store(at + 3, tl.sum(highs, axis=0))


@triton.jit
def compared_backward_kernel(
    maps,  # (planes, h, w)
    present,  # (planes)
    ranges,  # (planes, 2)
    slopes,  # (planes, 2), of each of the lowest and of the highest pixels
    grad,  # (planes, out_height, out_width)
    grad_maps,  # (planes, h, w)
    height,
    width,
    view_height,
    view_width,
    out_height,
    out_width,
    scale_y,
    scale_x,
    out_scale_y,
    out_scale_x,
    view_targets_y,
    view_targets_x,
    targets_y,
    targets_x,
    BLOCK: tl.constexpr,
):
    """The gradient in some pixels of the grid, of all pixels of the view that they have a share in."""
    plane = tl.program_id(0)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < height * width
    total = tl.zeros([BLOCK], tl.float32)
    if tl.load(present + plane) != 0:
        map = maps + plane.to(tl.int64) * height * width
        own = grad + plane.to(tl.int64) * out_height * out_width
        low, high = tl.load(ranges + plane * 2), tl.load(ranges + plane * 2 + 1)
        of_low, of_high = tl.load(slopes + plane * 2), tl.load(slopes + plane * 2 + 1)
        length = high - low + EPSILON
        row, column = pixel // width, pixel % width
        first_y, first_x = first_target(row, height, view_height), first_target(column, width, view_width)
        for u in range(view_targets_y):
            share_y = share_of(row, first_y + u, height, view_height, scale_y)
            for v in range(view_targets_x):
                share = share_y * share_of(column, first_x + v, width, view_width, scale_x)
                inside = mask & (share != 0)
                value = stretched(map, first_y + u, first_x + v, height, width, scale_y, scale_x, inside)
                slope = gathered(
                    *(own, first_y + u, first_x + v, view_height, view_width, out_height, out_width),
                    *(out_scale_y, out_scale_x, targets_y, targets_x, inside),
                )
                slope = tl.where(value - low - EPSILON > 0, slope / length, 0)
                slope += tl.where(value == low, of_low, 0) + tl.where(value == high, of_high, 0)
                total += tl.where(inside & (value > 0), share * slope, 0)
    tl.store(grad_maps + plane.to(tl.int64) * height * width + pixel, total, mask=mask)
