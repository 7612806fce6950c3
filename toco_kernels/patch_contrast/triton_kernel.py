"""The patch contrasts on NVIDIA GPUs of compute capability 8.0 and later, in Triton.

Launchers with the signatures of the operators. Shapes and grids depend on the shapes of the inputs alone, so nothing
waits for the GPU and everything can be captured in a CUDA graph; no sum depends on which program ends first.
"""

import torch
import triton
from torch import Tensor

from ..common.triton_precision import dot_precision
from ..common.triton_rows import ALIGN, ROWS, rows_kernel, sum_kernel
from .triton_classes import (
    class_sums_kernel,
    class_weights_kernel,
    linear_backward_kernel,
    linear_loss_kernel,
    log_kernel,
    sides_kernel,
)
from .triton_rows import BLOCK_LABELS, BLOCK_RANK, project_kernel, rank_kernel
from .triton_tiles import patch_token_contrast_backward_kernel, patch_token_contrast_kernel, weights_kernel

# By the size of an element. One set for every GPU: a block has at most 99 KB of shared memory on 8.6, 8.9 and 12.x
# (227 KB on 9.0 and 10.x), and 255 registers to a thread.
TILE = {
    2: {"BLOCK": 128, "BLOCK_D": 64, "num_warps": 8, "num_stages": 3},
    4: {"BLOCK": 64, "BLOCK_D": 32, "num_warps": 4, "num_stages": 3},
}
BACKWARD = {
    2: {"BLOCK_J": 64, "BLOCK_D": 128, "num_warps": 8, "num_stages": 3},
    4: {"BLOCK_J": 32, "BLOCK_D": 64, "num_warps": 4, "num_stages": 3},
}
LINEAR = {"BLOCK_C": 32, "BLOCK_D": 32, "num_warps": 8}
LOG = {"BLOCK_N": 64, "BLOCK_J": 32, "BLOCK_K": 32, "BLOCK_D": 128, "num_warps": 8, "num_stages": 2}


def patch_token_contrast(
    tokens: Tensor,  # (B, N, D)
    labels: Tensor,  # (B, N) int64
    pairs: Tensor | None,  # (2) int64
    ignore_index: int,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient in float32. Five launches, seven with the gradient.

    In half precision products take the tokens themselves, and their lengths enter later, in float32: unit vectors
    rounded to half precision would cost a digit of the cosines.
    """
    batch, patches, channels = tokens.shape
    torch._check(labels.shape == (batch, patches), lambda: "labels must have the shape (B, N) of the tokens")
    torch._check(labels.device == tokens.device, lambda: "labels must be on the device of the tokens")
    new = _allocator(tokens.device)
    loss, grad_tokens = new(), new(batch, patches, channels) if with_grad else new(0)
    if batch * patches == 0:
        return loss.fill_(0.5), grad_tokens
    tile, backward = TILE[tokens.dtype.itemsize], BACKWARD[tokens.dtype.itemsize]
    order, starts, stops, valid, alike = _ranked(labels, ignore_index, new)
    weights = new(2)
    weights_kernel[(1,)](
        None if pairs is None else pairs.contiguous(), valid, alike, weights, batch, alike.numel(), BLOCK=256
    )
    rows, units, inverses = _rows(tokens, order, tokens.dtype, new)
    _, row_count, pitch = rows.shape
    columns = triton.cdiv(patches, tile["BLOCK"])
    tiles = columns * (columns + 1) // 2
    totals = new(batch, tiles)
    signs = new(2, batch, row_count, row_count // 32, dtype=torch.int32) if with_grad else None
    sizes = patches, channels, row_count, pitch
    precision = dot_precision(tokens.dtype)
    patch_token_contrast_kernel[(tiles, batch)](
        rows,
        units,
        starts,
        valid,
        weights,
        signs,
        totals,
        *sizes,
        PRECISION=precision,
        WITH_GRAD=with_grad,
        **tile,
    )
    sum_kernel[(1,)](totals, loss, totals.numel(), 0.5, BLOCK=1024)
    if with_grad and channels:
        patch_token_contrast_backward_kernel[(triton.cdiv(channels, backward["BLOCK_D"]), columns, batch)](
            rows,
            units,
            order,
            starts,
            stops,
            valid,
            weights,
            signs,
            grad_tokens,
            *sizes,
            BLOCK=tile["BLOCK"],
            PRECISION=precision,
            **backward,
        )
        project_kernel[(triton.cdiv(patches, ROWS), batch)](
            rows,
            units,
            inverses,
            order,
            valid,
            grad_tokens,
            patches,
            channels,
            row_count,
            pitch,
            BLOCK_N=ROWS,
            BLOCK_D=min(256, triton.next_power_of_2(pitch)),
        )
    return loss, grad_tokens


def patch_contrastive_error(
    tokens: Tensor,  # (B, N, D)
    scores: Tensor,  # (B, N, C) float32
    classes: Tensor,  # (B, C)
    threshold: float,
    form: str,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient in float32. Eight launches in the linear form, seven in the logarithmic.

    Products take unit vectors in float32, for tokens in half precision too: the linear form has few, and weights of
    the logarithmic one, which divides by cosines' distance to ±1, span more than float16 holds.
    """
    batch, patches, channels = tokens.shape
    count = scores.shape[-1]
    torch._check(scores.shape == (batch, patches, count), lambda: "scores must have the shape (B, N, C)")
    torch._check(classes.shape == (batch, count), lambda: "classes must have the shape (B, C) of the scores")
    torch._check(form in ("linear", "log"), lambda: "form must be 'linear' or 'log'")
    for x in (scores, classes):
        torch._check(x.device == tokens.device, lambda: "all tensors must be on the device of the tokens")
    new = _allocator(tokens.device)
    loss, grad_tokens = new(), new(batch, patches, channels) if with_grad else new(0)
    if batch * patches * count == 0:
        return loss.zero_(), grad_tokens.zero_()
    block = LINEAR["BLOCK_C"]
    width = triton.cdiv(count, block) * block
    sides, unused = new(batch, patches, width, dtype=torch.int8), new(batch, patches, dtype=torch.int32)
    counts = new(2, batch, width, dtype=torch.int32).zero_()
    sides_kernel[(triton.cdiv(patches, 64), batch)](
        scores,
        *scores.stride(),
        classes,
        *classes.stride(),
        sides,
        unused,
        counts,
        patches,
        count,
        width,
        threshold,
        1 - threshold,
        BLOCK_N=64,
        BLOCK_C=block,
    )
    order, _, _, valid, _ = _ranked(unused, 1, new)
    rows, _, inverses = _rows(tokens, order, torch.float32, new)
    _, row_count, pitch = rows.shape
    weights = new(2, batch, width)
    row_blocks = triton.cdiv(patches, 64)
    parts = new(1 + batch * (width // block if form == "linear" else row_blocks))
    class_weights_kernel[(1,)](counts, weights, parts, batch * width, BLOCK=512)
    sizes = patches, channels, width, row_count, pitch
    precision = dot_precision()
    if form == "log":
        columns = triton.cdiv(channels, LOG["BLOCK_D"]) if with_grad and channels else 1
        log_kernel[(columns, row_blocks, batch)](
            rows,
            inverses,
            order,
            sides,
            valid,
            weights,
            parts[1:],
            grad_tokens,
            *sizes,
            PRECISION=precision,
            WITH_GRAD=with_grad,
            **LOG,
        )
        parts = parts[1:]
    else:
        sums = new(batch, 2, width, pitch)
        squares = new(batch, pitch // LINEAR["BLOCK_D"], width)
        class_sums_kernel[(pitch // LINEAR["BLOCK_D"], width // block, batch)](
            rows,
            order,
            sides,
            valid,
            sums,
            squares,
            patches,
            width,
            row_count,
            pitch,
            BLOCK_N=64,
            PRECISION=precision,
            **LINEAR,
        )
        linear_loss_kernel[(width // block, batch)](
            sums, squares, weights, parts[1:], width, pitch, BLOCK_C=block, BLOCK_D=LINEAR["BLOCK_D"]
        )
        if with_grad and channels:
            linear_backward_kernel[(row_blocks, batch)](
                rows,
                inverses,
                order,
                sides,
                valid,
                sums,
                weights,
                grad_tokens,
                *sizes,
                BLOCK_N=64,
                PRECISION=precision,
                **LINEAR,
            )
    sum_kernel[(1,)](parts, loss, parts.numel(), 0.0, BLOCK=1024)
    return loss, grad_tokens


def _allocator(device: torch.device):
    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    return new


def _ranked(labels: Tensor, ignore_index: int, new) -> tuple[Tensor, ...]:
    """What `rank_kernel` writes."""
    batch, patches = labels.shape
    order, starts, stops = (new(batch, patches, dtype=torch.int32) for _ in range(3))
    valid = new(batch, dtype=torch.int32)
    alike = new(batch, triton.cdiv(patches, BLOCK_RANK), dtype=torch.int64)
    rank_kernel[(alike.shape[1], batch)](
        labels,
        *labels.stride(),
        order,
        starts,
        stops,
        valid,
        alike,
        patches,
        ignore_index,
        BLOCK=BLOCK_RANK,
        BLOCK_LABELS=BLOCK_LABELS,
    )
    return order, starts, stops, valid, alike


def _rows(tokens: Tensor, order: Tensor, dtype: torch.dtype, new) -> tuple[Tensor, Tensor, Tensor]:
    """What `rows_kernel` writes: rows of `dtype`, their units and the inverse lengths."""
    batch, patches, channels = tokens.shape
    row_count, pitch = (triton.cdiv(max(n, 1), ALIGN) * ALIGN for n in (patches, channels))
    rows = new(batch, row_count, pitch, dtype=dtype)
    units, inverses = new(batch, row_count), new(batch, row_count)
    rows_kernel[(row_count // ROWS, batch)](
        tokens,
        *tokens.stride(),
        order,
        rows,
        units,
        inverses,
        patches,
        channels,
        row_count,
        pitch,
        BLOCK_N=ROWS,
        BLOCK_D=min(1024, triton.next_power_of_2(pitch)),
        SHORTEST=1e-8,
    )
    return rows, units, inverses
