"""Triton kernels for how surely each pixel shows any class, of maps that are stretched on the way."""

import triton
import triton.language as tl

from ..common.triton_corners import first_target, share_of
from .triton_maps import stretched


@triton.jit
def shown_kernel(
    maps,  # (B, C, h, w)
    present,  # (B, C)
    shown,  # (B, H, W)
    winners,  # (B, H, W)
    classes,
    height,
    width,
    view_height,
    view_width,
    scale_y,
    scale_x,
    BLOCK: tl.constexpr,
):
    """The largest score of some pixels, at least 0, and how many classes have it."""
    image = tl.program_id(0)
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = pixel < view_height * view_width
    y, x = pixel // view_width, pixel % view_width
    largest, ties = tl.zeros([BLOCK], tl.float32), tl.full([BLOCK], 1.0, tl.float32)
    for c in range(classes):
        if tl.load(present + image * classes + c) != 0:
            map = maps + (image * classes + c).to(tl.int64) * height * width
            value = stretched(map, y, x, height, width, scale_y, scale_x, mask)
            ties = tl.where(value > largest, 1.0, ties + tl.where(value == largest, 1.0, 0.0))
            largest = tl.maximum(largest, value)
    at = image.to(tl.int64) * view_height * view_width + pixel
    tl.store(shown + at, largest, mask=mask)
    tl.store(winners + at, ties, mask=mask)


@triton.jit
def shown_backward_kernel(
    maps,  # (B, C, h, w)
    present,  # (B, C)
    shown,  # (B, H, W)
    slopes,  # (B, H, W), for each class that shows a pixel most
    grad_maps,  # (B, C, h, w)
    classes,
    height,
    width,
    view_height,
    view_width,
    scale_y,
    scale_x,
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
        row, column = pixel // width, pixel % width
        first_y, first_x = first_target(row, height, view_height), first_target(column, width, view_width)
        image = (plane // classes).to(tl.int64) * view_height * view_width
        for u in range(targets_y):
            share_y = share_of(row, first_y + u, height, view_height, scale_y)
            for v in range(targets_x):
                share = share_y * share_of(column, first_x + v, width, view_width, scale_x)
                inside = mask & (share != 0)
                value = stretched(map, first_y + u, first_x + v, height, width, scale_y, scale_x, inside)
                at = image + (first_y + u) * view_width + first_x + v
                wins = inside & (value == tl.load(shown + at, mask=inside, other=-1))
                total += share * tl.load(slopes + at, mask=wins, other=0)
    tl.store(grad_maps + plane.to(tl.int64) * height * width + pixel, total, mask=mask)
