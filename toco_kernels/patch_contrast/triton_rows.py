"""Triton kernels that both patch contrasts begin with: which patches take part, in which order, and their unit vectors.

Everything after them works on compact rows: the patches that take part come first, and the rest are zero. How many
they are is known on the GPU alone, so the grids below are for all patches, and programs beyond return at once.
"""

import triton
import triton.language as tl

BLOCK_RANK = 64  # patches ranked by one program
BLOCK_LABELS = 64  # labels that it compares with at a time


@triton.jit
def split_tf32(x):
    """float32 as the sum of two numbers that TF32 holds: 22 digits, instead of 11."""
    high = ((x.to(tl.int32, bitcast=True) + 0x1000) & -0x2000).to(tl.float32, bitcast=True)
    return high, x - high


@triton.jit
def dot_exact(
    a,  # exact in TF32: small integers
    b,
    acc,
    PRECISION: tl.constexpr,
):
    """acc + a @ b; in two products of TF32 where Triton, which cannot know that `a` is exact, would take three."""
    if PRECISION == "tf32x3":
        high, low = split_tf32(b)
        acc = tl.dot(a, low, acc, input_precision="tf32")
        return tl.dot(a, high, acc, input_precision="tf32")
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)


@triton.jit(do_not_specialize=["patches", "label_stride_b", "label_stride_n", "ignore_index"])
def rank_kernel(
    labels,  # (B, N)
    label_stride_b,
    label_stride_n,
    order,  # (B, N) int32: which patch is the n-th; ~patch for those ignored, which come last
    starts,  # (B, N) int32: the first row with the label of this one
    stops,  # (B, N) int32: the first row after those
    valid_counts,  # (B) int32
    alike_counts,  # (B, blocks) int64: pairs with the same label, i = j included
    patches,
    ignore_index,
    BLOCK: tl.constexpr,
    BLOCK_LABELS: tl.constexpr,
):
    """Sort by label, stably, by counting for each patch how many come before it."""
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    labels += image * label_stride_b
    i = block * BLOCK + tl.arange(0, BLOCK)
    mine = tl.load(labels + i.to(tl.int64) * label_stride_n, mask=i < patches, other=0)
    valid = mine != ignore_index
    less = tl.zeros([BLOCK], tl.int32)
    equal = tl.zeros([BLOCK], tl.int32)
    before = tl.zeros([BLOCK], tl.int32)
    count = tl.zeros([BLOCK_LABELS], tl.int32)
    for first in range(0, patches, BLOCK_LABELS):
        j = first + tl.arange(0, BLOCK_LABELS)
        other = tl.load(labels + j.to(tl.int64) * label_stride_n, mask=j < patches, other=0)
        takes_part = (j < patches) & (other != ignore_index)
        count += takes_part.to(tl.int32)
        same = (other[None, :] == mine[:, None]) & (j < patches)[None, :]
        less += tl.sum((takes_part[None, :] & (other[None, :] < mine[:, None])).to(tl.int32), axis=1)
        equal += tl.sum(same.to(tl.int32), axis=1)
        before += tl.sum((same & (j[None, :] < i[:, None])).to(tl.int32), axis=1)
    total = tl.sum(count)
    start = tl.where(valid, less, total)
    place = image * patches + start + before
    tl.store(order + place, tl.where(valid, i, ~i), mask=i < patches)
    tl.store(starts + place, start, mask=i < patches)
    tl.store(stops + place, start + equal, mask=i < patches)
    alike = tl.sum(tl.where(valid & (i < patches), equal, 0).to(tl.int64))
    tl.store(alike_counts + image * tl.num_programs(0) + block, alike)
    if block == 0:
        tl.store(valid_counts + image, total)


@triton.jit(do_not_specialize=["patches", "channels"])
def project_kernel(
    rows,  # (B, rows, pitch)
    units,  # (B, rows)
    inverses,  # (B, rows)
    order,  # (B, N)
    valid_counts,  # (B)
    grad_tokens,  # (B, N, D) float32: gradients of unit vectors, then of tokens
    patches,
    channels,
    row_count,
    pitch,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """grad = (g - <g, x> x) / |x| for unit vectors x: what lies along a token is removed as computed.

    Theory knows <g, x> before, as the row sums of the loss. But where tokens share a direction it is nearly all of g,
    and subtracting what g is not exactly leaves an error many times that of autograd.
    """
    image = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    taking_part = n < tl.load(valid_counts + image)
    patch = tl.load(order + image * patches + n, mask=taking_part, other=0).to(tl.int64)
    rows += image * row_count * pitch + n.to(tl.int64)[:, None] * pitch
    grads = grad_tokens + (image * patches + patch[:, None]) * channels
    unit = tl.load(units + image * row_count + n)
    inverse = tl.load(inverses + image * row_count + n)
    radial = tl.zeros([BLOCK_N], tl.float32)
    for first in range(0, channels, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)[None, :]
        inside = taking_part[:, None] & (d < channels)
        x = tl.load(rows + d, mask=inside, other=0).to(tl.float32) * unit[:, None]
        radial += tl.sum(tl.load(grads + d, mask=inside, other=0) * x, axis=1)
    radial = tl.where(inverse < 1e8, radial, 0.0)  # a norm below 1e-8 counts as 1e-8: a constant
    for first in range(0, channels, BLOCK_D):
        d = first + tl.arange(0, BLOCK_D)[None, :]
        inside = taking_part[:, None] & (d < channels)
        x = tl.load(rows + d, mask=inside, other=0).to(tl.float32) * unit[:, None]
        grad = tl.load(grads + d, mask=inside, other=0)
        tl.store(grads + d, (grad - radial[:, None] * x) * inverse[:, None], mask=inside)
