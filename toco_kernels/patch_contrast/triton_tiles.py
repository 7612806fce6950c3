"""Triton kernels of patch_token_contrast: tiles of cosines, and the gradient from their signs.

S is symmetric and so is dL/dS, whose entries are ± a weight that labels decide. So the forward computes the tiles on
and above the diagonal and keeps two bits for each pair (S > 0, S < 0); the gradient is one matrix product with signs.
"""

import triton
import triton.language as tl

from ..common.triton_rows import load_rows
from .triton_rows import dot_exact


@triton.jit
def pair_weight(pairs):  # () int64
    """Of one pair in the loss, where there are so many."""
    return tl.div_rn(0.5, (pairs + 1).to(tl.float32))


@triton.jit(do_not_specialize=["blocks"])
def weights_kernel(
    pairs,  # (2) int64, or None: count those of this batch
    valid_counts,  # (B) int32
    alike_counts,  # (blocks) int64, of all images
    weights,  # (2) float32: of pairs with the same label, of others
    images,
    blocks,
    BLOCK: tl.constexpr,
):
    """The weights of pairs, from how many there are of each kind."""
    if pairs is None:
        k = tl.arange(0, BLOCK)
        alike = tl.zeros([BLOCK], tl.int64)
        valid = tl.zeros([BLOCK], tl.int64)
        every = tl.zeros([BLOCK], tl.int64)
        for first in range(0, blocks, BLOCK):
            alike += tl.load(alike_counts + first + k, mask=first + k < blocks, other=0)
        for first in range(0, images, BLOCK):
            count = tl.load(valid_counts + first + k, mask=first + k < images, other=0).to(tl.int64)
            valid += count
            every += count * count
        total = tl.sum(alike)
        same, different = total - tl.sum(valid), tl.sum(every) - total
    else:
        same, different = tl.load(pairs), tl.load(pairs + 1)
    tl.store(weights, pair_weight(same))
    tl.store(weights + 1, pair_weight(different))


@triton.jit(do_not_specialize=["patches", "channels"])
def patch_token_contrast_kernel(
    rows,  # (B, rows, pitch)
    units,  # (B, rows)
    starts,  # (B, N)
    valid_counts,  # (B)
    weights,  # (2)
    signs,  # (2, B, rows, rows / 32) int32: bits of S > 0, bits of S < 0
    totals,  # (B, tiles)
    patches,
    channels,
    row_count,
    pitch,
    BLOCK: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    WITH_GRAD: tl.constexpr,
):
    """One tile of S on or above the diagonal."""
    tile, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    column = ((tl.sqrt_rn((8 * tile + 1).to(tl.float32)) - 1) / 2).to(tl.int32)
    row = tile - column * (column + 1) // 2
    valid = tl.load(valid_counts + image)
    total = totals + image * tl.num_programs(0) + tile
    if column * BLOCK >= valid:
        tl.store(total, 0.0)
    else:
        i = row * BLOCK + tl.arange(0, BLOCK)
        j = column * BLOCK + tl.arange(0, BLOCK)
        d = tl.arange(0, BLOCK_D)
        rows += image * row_count * pitch
        s = tl.zeros([BLOCK, BLOCK], tl.float32)
        for first in range(0, channels, BLOCK_D):
            left = load_rows(rows + first, row * BLOCK, pitch, d, BLOCK)
            right = load_rows(rows + first, column * BLOCK, pitch, d, BLOCK)
            s = tl.dot(left, tl.trans(right), s, input_precision=PRECISION)
        units += image * row_count
        s *= tl.load(units + i)[:, None] * tl.load(units + j)[None, :]

        starts += image * patches
        label = tl.load(starts + i, mask=i < patches, other=0)
        other = tl.load(starts + j, mask=j < patches, other=0)
        weight = tl.where(label[:, None] == other[None, :], -tl.load(weights), tl.load(weights + 1))
        counts = (i[:, None] != j[None, :]) & (i < valid)[:, None] & (j < valid)[None, :]
        value = tl.where(counts, weight * tl.abs(s), 0.0)
        tl.store(total, tl.sum(tl.sum(value, axis=1)) * tl.where(row == column, 1.0, 2.0))
        if WITH_GRAD:
            words = row_count // 32
            for sign in tl.static_range(2):
                bits = counts & ((s > 0) if sign == 0 else (s < 0))
                plane = signs + (sign * tl.num_programs(1) + image) * row_count * words
                store_words(plane, bits, i, column * (BLOCK // 32), words, BLOCK)
                if row != column:
                    store_words(plane, tl.trans(bits), j, row * (BLOCK // 32), words, BLOCK)


@triton.jit
def store_words(plane, bits, i, first_word, words, BLOCK: tl.constexpr):
    """Pack 32 columns into a word."""
    shifted = tl.reshape(bits.to(tl.int32), [BLOCK, BLOCK // 32, 32]) << tl.arange(0, 32)[None, None, :]
    word = first_word + tl.arange(0, BLOCK // 32)
    tl.store(plane + i.to(tl.int64)[:, None] * words + word[None, :], tl.sum(shifted, axis=2))


@triton.jit
def load_bits(words, pitch, BLOCK: tl.constexpr, BLOCK_J: tl.constexpr):
    """Unpack 32 columns from a word."""
    word = tl.arange(0, BLOCK)[:, None] * pitch + tl.arange(0, BLOCK_J // 32)[None, :]
    bits = (tl.load(words + word)[:, :, None] >> tl.arange(0, 32)[None, None, :]) & 1
    return tl.reshape(bits, [BLOCK, BLOCK_J])


@triton.jit
def signs_times_units(
    bits,
    plane,
    words,
    units,
    starts,
    label,
    patches,
    block,
    SAME: tl.constexpr,
    SCALE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_J: tl.constexpr,
):
    """Signs of some columns of S, where labels are the same, or where they differ; times the columns' `units`."""
    bits += block * (BLOCK_J // 32)
    sign = load_bits(bits, words, BLOCK, BLOCK_J) - load_bits(bits + plane, words, BLOCK, BLOCK_J)
    j = block * BLOCK_J + tl.arange(0, BLOCK_J)
    same = label[:, None] == tl.load(starts + j, mask=j < patches, other=0)[None, :]
    return tl.where(same == SAME, sign, 0) * (tl.load(units + j) * SCALE)[None, :]


@triton.jit(do_not_specialize=["patches", "channels"])
def patch_token_contrast_backward_kernel(
    rows,  # (B, rows, pitch)
    units,  # (B, rows)
    order,  # (B, N)
    starts,  # (B, N)
    stops,  # (B, N)
    valid_counts,  # (B)
    weights,  # (2)
    signs,  # (2, B, rows, rows / 32)
    grad_tokens,  # (B, N, D) float32
    patches,
    channels,
    row_count,
    pitch,
    BLOCK: tl.constexpr,  # rows; as in the forward
    BLOCK_D: tl.constexpr,
    BLOCK_J: tl.constexpr,  # columns of G at a time
    PRECISION: tl.constexpr,
):
    """Some rows and channels of 2 G X, the gradient of the unit vectors.

    Rows are sorted by label. So patches of other labels come first, then those of the same label, which are few and
    adjacent; in between the sum is multiplied by the ratio of the two weights. Then the product's left side is ±1 (in
    half precision times the right side's `units`), whatever the weights, which float16 could not hold.
    """
    SCALE: tl.constexpr = 32768.0 if rows.dtype.element_ty == tl.float16 else 1.0  # float16 rows are near 2^15
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    block, image = tl.program_id(1), tl.program_id(2).to(tl.int64)
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < patches
    valid = tl.load(valid_counts + image)
    grad = tl.zeros([BLOCK, BLOCK_D], tl.float32)
    patch = tl.load(order + image * patches + i, mask=inside, other=0)
    if block * BLOCK < valid:
        rows += image * row_count * pitch
        units += image * row_count
        starts += image * patches
        label = tl.load(starts + i, mask=inside, other=0)
        last = tl.minimum(block * BLOCK + BLOCK, valid) - 1
        first_label, last_label = tl.load(starts + block * BLOCK), tl.load(starts + last)
        begin, end = first_label // BLOCK_J, tl.load(stops + image * patches + last)
        skipped_from = tl.cdiv(first_label, BLOCK_J)  # where all patches here and there have one label
        skipped = tl.where(first_label == last_label, tl.maximum(end // BLOCK_J - skipped_from, 0), 0)
        words = row_count // 32
        bits = signs + (image * row_count + block * BLOCK) * words
        plane = tl.num_programs(2).to(tl.int64) * row_count * words
        for step in range(0, tl.cdiv(valid, BLOCK_J) - skipped):
            at = step + tl.where(step >= skipped_from, skipped, 0)
            g = signs_times_units(bits, plane, words, units, starts, label, patches, at, False, SCALE, BLOCK, BLOCK_J)
            x = load_rows(rows, at * BLOCK_J, pitch, d, BLOCK_J)
            grad = dot_exact(g.to(x.dtype), x, grad, PRECISION)
        same, different = tl.load(weights), tl.load(weights + 1)
        grad *= -different / same
        for at in range(begin, tl.cdiv(end, BLOCK_J)):
            g = signs_times_units(bits, plane, words, units, starts, label, patches, at, True, SCALE, BLOCK, BLOCK_J)
            x = load_rows(rows, at * BLOCK_J, pitch, d, BLOCK_J)
            grad = dot_exact(g.to(x.dtype), x, grad, PRECISION)

        grad *= -2 * same / SCALE
        grad = tl.where((i < valid)[:, None], grad, 0.0)
    patch = tl.where(patch < 0, ~patch, patch).to(tl.int64)
    target = grad_tokens + (image * patches + patch[:, None]) * channels + d[None, :]
    tl.store(target, grad, mask=inside[:, None] & (d < channels)[None, :])
