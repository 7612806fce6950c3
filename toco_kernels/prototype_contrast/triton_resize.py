"""The gradient of resizing with aligned corners, gathered: additions in a fixed order.

PyTorch's own scatters it, in whichever order programs end.
"""

import triton
import triton.language as tl

from ..common.triton_corners import first_target, share_of


@triton.jit(
    do_not_specialize=["planes", "height", "width", "resized_height", "resized_width", "targets_y", "targets_x"]
)
def resize_backward_kernel(
    grad,  # (planes, h, w)
    grad_maps,  # (planes, H, W)
    planes,
    height,
    width,
    resized_height,
    resized_width,
    scale_y,
    scale_x,
    targets_y,  # that a pixel may have a share in, from `first_target` on
    targets_x,
    BLOCK_X: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Some pixels of a row, in some planes."""
    y, x = tl.program_id(1), tl.program_id(0) * BLOCK_X + tl.arange(0, BLOCK_X)
    plane = (tl.program_id(2) * BLOCK_P + tl.arange(0, BLOCK_P)).to(tl.int64)[:, None]
    from_y, from_x = first_target(y, height, resized_height), first_target(x, width, resized_width)
    there = (plane < planes) & (x < width)[None, :]
    total = tl.zeros([BLOCK_P, BLOCK_X], tl.float32)
    for u in range(targets_x):
        share_x = share_of(x, from_x + u, width, resized_width, scale_x)
        for v in range(targets_y):
            share = (share_x * share_of(y, from_y + v, height, resized_height, scale_y))[None, :]
            source = (plane * resized_height + from_y + v) * resized_width + (from_x + u)[None, :]
            total += share * tl.load(grad + source, mask=there & (share != 0), other=0)
    tl.store(grad_maps + (plane * height + y) * width + x[None, :], total, mask=there)
