"""Triton kernels of InfoNCE: the softmax of anchors, and both gradients from it.

A gradient is a difference of what pulls and what pushes, and of an anchor that is nearly sure of its positive it is all
rounding unless both know the scores to the last bit: of a score of 300, exp shows a difference there 300 times as
large. So every pass computes tiles of scores in the same way, anchors by others and of the same size, whichever of them
it wants the gradient of; and the largest product is subtracted before products are scaled, so that of the largest
nothing is left, whether or not the compiler joins the two operations.
"""

import triton
import triton.language as tl

from ..common.triton_rows import load_rows
from .triton_pairs import load_labels, products


@triton.jit(do_not_specialize=["x_count", "y_count", "channels", "ignore_index", "scale"])
def anchors_kernel(
    x,  # (B, x_rows, pitch)
    y,  # (B, y_rows, pitch)
    labels_x,  # (B, N)
    labels_y,  # (B, M)
    alike,  # (B, N): positives
    weights,  # (3)
    sums,  # (2, B, N): an anchor's largest product, and the sum of exponentials relative to it
    losses,  # (B, blocks)
    x_count,
    y_count,
    channels,
    x_rows,
    y_rows,
    pitch,
    ignore_index,
    scale,  # > 0
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The softmax of some anchors."""
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    i = block * BLOCK_N + tl.arange(0, BLOCK_N)
    label, valid = load_labels(labels_x + image * x_count, i, x_count, ignore_index)
    positives = tl.load(alike + image * x_count + i, mask=valid, other=0)
    top = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    positive = tl.zeros([BLOCK_N], tl.float32)
    x += image * x_rows * pitch
    y += image * y_rows * pitch
    for first in range(0, y_count, BLOCK_M):
        j = first + tl.arange(0, BLOCK_M)
        other, takes_part = load_labels(labels_y + image * y_count, j, y_count, ignore_index)
        s = products(x, y, block * BLOCK_N, first, channels, pitch, PRECISION, BLOCK_N, BLOCK_M, BLOCK_K)
        positive += tl.sum(tl.where(takes_part[None, :] & (label[:, None] == other[None, :]), s, 0.0), axis=1)
        s = tl.where(takes_part[None, :], s, float("-inf"))
        highest = tl.maximum(top, tl.max(s, axis=1))
        base = tl.where(highest == float("-inf"), 0.0, highest)
        total = total * tl.exp((top - base) * scale) + tl.sum(tl.exp((s - base[:, None]) * scale), axis=1)
        top = highest
    top, total = tl.where(positives > 0, top, 0.0), tl.where(positives > 0, total, 1.0)
    plane = tl.num_programs(1).to(tl.int64) * x_count
    tl.store(sums + image * x_count + i, top, mask=i < x_count)
    tl.store(sums + plane + image * x_count + i, total, mask=i < x_count)
    away = top - tl.div_rn(positive, tl.maximum(positives, 1).to(tl.float32))
    loss = tl.where(positives > 0, away * scale + tl.log(total), 0.0)
    tl.store(losses + image * tl.num_programs(0) + block, tl.load(weights + 2) * tl.sum(loss))


@triton.jit(do_not_specialize=["x_count", "y_count", "channels", "ignore_index", "scale"])
def anchors_backward_kernel(
    x,  # (B, x_rows, pitch)
    y,  # (B, y_rows, pitch)
    labels_x,  # (B, N)
    labels_y,  # (B, M)
    alike,  # (B, N)
    weights,  # (3)
    sums,  # (2, B, N)
    grad,  # (B, N or M, D) float32: by the rows of x, or of y
    x_count,
    y_count,
    channels,
    x_rows,
    y_rows,
    pitch,
    ignore_index,
    scale,
    OF_ANCHORS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,  # channels of scores at a time
    BLOCK_D: tl.constexpr,  # channels of the gradient
    PRECISION: tl.constexpr,
):
    """Some channels of some rows' gradient: of x from all y, or of y from all x."""
    OWN: tl.constexpr = BLOCK_N if OF_ANCHORS else BLOCK_M
    OTHER: tl.constexpr = BLOCK_M if OF_ANCHORS else BLOCK_N
    own, image, images = tl.program_id(1) * OWN, tl.program_id(2).to(tl.int64), tl.num_programs(2)
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    x += image * x_rows * pitch
    y += image * y_rows * pitch
    others, weight = y if OF_ANCHORS else x, tl.load(weights + 2)
    acc = tl.zeros([OWN, BLOCK_D], tl.float32)
    for first in range(0, y_count if OF_ANCHORS else x_count, OTHER):
        left, right = own if OF_ANCHORS else first, first if OF_ANCHORS else own
        i, j = left + tl.arange(0, BLOCK_N), right + tl.arange(0, BLOCK_M)
        label, valid = load_labels(labels_x + image * x_count, i, x_count, ignore_index)
        other, takes_part = load_labels(labels_y + image * y_count, j, y_count, ignore_index)
        positives = tl.load(alike + image * x_count + i, mask=valid, other=0)
        top = tl.load(sums + image * x_count + i, mask=i < x_count, other=0)
        total = tl.load(sums + (images + image) * x_count + i, mask=i < x_count, other=1)
        s = products(x, y, left, right, channels, pitch, PRECISION, BLOCK_N, BLOCK_M, BLOCK_K)
        push = tl.div_rn(tl.exp((s - top[:, None]) * scale), total[:, None] + tl.zeros_like(s))
        pull = tl.div_rn(1.0, tl.maximum(positives, 1).to(tl.float32))
        g = weight * (push - tl.where(label[:, None] == other[None, :], pull[:, None], 0.0))
        g = tl.where((positives > 0)[:, None] & takes_part[None, :], g, 0.0)
        rows = load_rows(others, first, pitch, d, OTHER)
        acc = tl.dot(g if OF_ANCHORS else tl.trans(g), rows, acc, input_precision=PRECISION)
    n, count = own + tl.arange(0, OWN), x_count if OF_ANCHORS else y_count
    target = grad + (image * count + n.to(tl.int64)[:, None]) * channels + d[None, :]
    tl.store(target, acc * scale, mask=(n < count)[:, None] & (d < channels)[None, :])
