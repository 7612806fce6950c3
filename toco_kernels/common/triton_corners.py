"""Resizing with aligned corners, position by position: what Triton kernels of two rooms share.

A position of what was resized lies between two of the source. Its gradient is gathered, not scattered: a position of
the source asks those that may lie beside it for their shares, in a fixed order.
"""

import triton
import triton.language as tl


def scale_of(size: int, resized: int) -> float:
    """How far a step in what is resized goes in the source."""
    return (size - 1) / (resized - 1) if resized > 1 else 0.0


def most_targets(size: int, resized: int) -> int:
    """How many targets a position may have a share in, from `first_target` on."""
    return resized if size == 1 else min(resized, 2 * (resized - 1) // (size - 1) + 3)


@triton.jit
def source_of(
    target,  # position in what was resized
    size,  # of the source
    scale,  # (size - 1) / (resized - 1)
):
    """The two positions that a target lies between, and the share of the second."""
    at = scale * target.to(tl.float32)
    near = tl.minimum(at.to(tl.int32), size - 1)
    return near, tl.minimum(near + 1, size - 1), at - near.to(tl.float32)


@triton.jit
def share_of(
    position,  # in the source
    target,  # position in what was resized from it
    size,  # of the source
    resized,
    scale,  # (size - 1) / (resized - 1)
):
    """How much of a position went into a target; 0 where the target lies elsewhere, or outside."""
    near, far, share = source_of(target, size, scale)
    weight = tl.where(position == near, 1 - share, 0.0)
    weight += tl.where(position == far, share, 0.0)
    return tl.where(target < resized, weight, 0.0)


@triton.jit
def first_target(position, size, resized):
    """The first target whose two neighbours may include the position, or one before it."""
    last = tl.maximum(size - 1, 1).to(tl.uint32)  # of 32 bits: sides of maps are below 2¹⁶, and longer divisions slow
    return (tl.maximum(position - 1, 0).to(tl.uint32) * (resized - 1) // last).to(tl.int32)
