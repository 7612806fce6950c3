"""The losses over pairs on NVIDIA GPUs of compute capability 8.0 and later, in Triton.

Launchers with the signatures of the operators. Shapes and grids depend on the shapes of the inputs alone, so nothing
waits for the GPU and everything can be captured in a CUDA graph; no sum depends on which program ends first. Products
take float32, for tokens in half precision too: derivatives by scores span more than float16 holds.
"""

from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from ..common.triton_precision import dot_precision
from ..common.triton_rows import ALIGN, ROWS, rows_kernel, sum_kernel
from .triton_anchors import anchors_backward_kernel, anchors_kernel
from .triton_pairs import count_kernel, finish_kernel, pairs_kernel, weights_kernel

SHORTEST = 1e-12  # a norm below this counts as this
TILE = {"BLOCK_N": 64, "BLOCK_M": 32, "BLOCK_K": 32}
OPTIONS = {"num_warps": 8, "num_stages": 2}
BLOCK_D = 128  # channels of the gradient
FORMS = {"abs_cos": 0, "sigmoid": 1}


@dataclass
class _Side:
    """Tokens on one side of the pairs, as rows of float32 that need no mask."""

    labels: Tensor  # (B, N)
    rows: Tensor  # (B, rows, pitch): unit vectors where they are wanted; zero where nobody may read
    inverses: Tensor  # (B, rows): 1 / max(|x|, SHORTEST)
    channels: int
    normalize: bool

    @property
    def count(self) -> int:
        return self.labels.shape[1]

    @property
    def blocks(self) -> int:
        return triton.cdiv(self.count, TILE["BLOCK_N"])

    @classmethod
    def of(cls, tokens: Tensor, labels: Tensor, ignore_index: int, *, normalize: bool, read_all: bool) -> "_Side":
        """Tokens (B, N, D) of any strides and dtype."""
        batch, count, channels = tokens.shape
        row_count, pitch = (triton.cdiv(max(n, 1), ALIGN) * ALIGN for n in (count, channels))
        order = torch.arange(count, dtype=torch.int32, device=tokens.device).expand(batch, count)
        order = order.contiguous() if read_all else order.masked_fill(labels == ignore_index, -1)
        rows = _new(tokens, batch, row_count, pitch)
        units, inverses = _new(tokens, batch, row_count), _new(tokens, batch, row_count)
        rows_kernel[(row_count // ROWS, batch)](
            tokens,
            *tokens.stride(),
            order,
            rows,
            units,
            inverses,
            count,
            channels,
            row_count,
            pitch,
            BLOCK_N=ROWS,
            BLOCK_D=min(1024, triton.next_power_of_2(pitch)),
            SHORTEST=SHORTEST,
            NORMALIZE=normalize,
        )
        return cls(labels.contiguous(), rows, inverses, channels, normalize)


def affinity_loss(
    features: Tensor,  # (B, N, D)
    labels: Tensor,  # (B, N) int64
    grid_width: int,
    radius: int,
    scale: float,
    normalize: bool,
    center: bool,
    ignore_index: int,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient in float32. Six launches; with `center` some sums in plain PyTorch."""
    batch, count, channels = features.shape
    torch._check(labels.shape == (batch, count), lambda: "labels must have the shape (B, N) of the features")
    torch._check(labels.device == features.device, lambda: "labels must be on the device of the features")
    near = radius >= 0
    loss, grad = _new(features), _new(features, batch, count, channels) if with_grad else _new(features, 0)
    if batch * count == 0:
        return loss.zero_(), grad
    side = _Side.of(features, labels, ignore_index, normalize=normalize, read_all=center)
    distance = (grid_width, radius) if near else (1, 0)
    _, weights = _count(side, side, ignore_index, distance, near)
    shift, totals = _new(features).zero_(), None
    pairs = batch * count * count
    if center:
        sums = side.rows.sum(dim=1, dtype=torch.float64)
        shift, totals = (sums.square().sum() * (scale / pairs)).float(), sums.float()
    losses, slopes = _pairs(
        side, side, weights, grad, "sigmoid", ignore_index, scale, 2.0, shift=shift, distance=distance, near=near
    )
    sum_kernel[(1,)](losses, loss, losses.numel(), 0.0, BLOCK=1024)
    if with_grad:
        by_mean = (slopes.sum(dtype=torch.float64) * (-2 / pairs)).float() if center else shift
        _finish(side, grad, totals, by_mean)
    return loss, grad


def contrast(
    x: Tensor,  # (B, N, D)
    y: Tensor,  # (B, M, D)
    labels_x: Tensor,  # (B, N) int64
    labels_y: Tensor,  # (B, M) int64
    form: str,
    scale: float,
    normalize: bool,
    ignore_index: int,
    with_grad_x: bool,
    with_grad_y: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and its gradients in float32. Up to ten launches."""
    batch, _, channels = x.shape
    torch._check(y.shape == (batch, y.shape[1], channels), lambda: "y must have the batch and width of x")
    torch._check(y.dtype == x.dtype, lambda: "y must have the dtype of x")
    for name, labels, tokens in (("labels_x", labels_x, x), ("labels_y", labels_y, y)):
        torch._check(labels.shape == tokens.shape[:2], lambda name=name: f"{name} must have a label per token")
    for other in (y, labels_x, labels_y):
        torch._check(other.device == x.device, lambda: "all tensors must be on the device of x")
    known = "info_nce", *FORMS
    torch._check(form in known, lambda: f"form must be one of {known}")
    loss = _new(x)
    grad_x = _new(x, *x.shape) if with_grad_x else _new(x, 0)
    grad_y = _new(y, *y.shape) if with_grad_y else _new(y, 0)
    if x.shape[1] * y.shape[1] * batch == 0:
        return loss.fill_(0.5 if form == "abs_cos" else 0.0), grad_x.zero_(), grad_y.zero_()
    right = _Side.of(y, labels_y, ignore_index, normalize=normalize, read_all=False)
    left = _Side.of(x, labels_x, ignore_index, normalize=normalize, read_all=False)
    alike, weights = _count(left, right, ignore_index, (1, 0), False)
    if form == "info_nce":
        losses = _anchors(left, right, alike, weights, ignore_index, scale, grad_x, grad_y)
    else:
        losses, _ = _pairs(left, right, weights, grad_x, form, ignore_index, scale, 1.0)
        if with_grad_y:
            _pairs(right, left, weights, grad_y, form, ignore_index, scale, 1.0)
    if with_grad_x:
        _finish(left, grad_x)
    if with_grad_y:
        _finish(right, grad_y)
    sum_kernel[(1,)](losses, loss, losses.numel(), 0.5 if form == "abs_cos" else 0.0, BLOCK=1024)
    return loss, grad_x, grad_y


def _new(like: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=like.device)


def _count(x: _Side, y: _Side, ignore_index: int, distance: tuple[int, int], near: bool) -> tuple[Tensor, Tensor]:
    """The positives of each x, (B, N), and what pairs and anchors weigh, (3)."""
    batch = len(x.labels)
    alike = _new(x.rows, batch, x.count, dtype=torch.int32)
    parts = _new(x.rows, 3, batch * x.blocks, dtype=torch.int64)
    count_kernel[(x.blocks, batch)](
        x.labels,
        y.labels,
        alike,
        parts,
        x.count,
        y.count,
        ignore_index,
        *distance,
        BLOCK_N=TILE["BLOCK_N"],
        BLOCK_M=64,
        NEAR=near,
    )
    weights = _new(x.rows, 3)
    weights_kernel[(1,)](parts, weights, parts.shape[1], BLOCK=256)
    return alike, weights


def _anchors(
    x: _Side,
    y: _Side,
    alike: Tensor,  # (B, N)
    weights: Tensor,  # (3)
    ignore_index: int,
    scale: float,
    grad_x: Tensor,  # (B, N, D), or empty where it is not wanted
    grad_y: Tensor,  # (B, M, D), or empty
) -> Tensor:  # (B, blocks)
    """InfoNCE: losses of blocks of anchors, and the gradients by rows."""
    batch, channels = len(x.labels), x.channels
    sums, losses = _new(x.rows, 2, batch, x.count), _new(x.rows, batch, x.blocks)
    inputs = x.rows, y.rows, x.labels, y.labels, alike, weights, sums
    sizes = x.count, y.count, channels, x.rows.shape[1], y.rows.shape[1], x.rows.shape[2], ignore_index, scale
    anchors_kernel[(x.blocks, batch)](*inputs, losses, *sizes, PRECISION=dot_precision(), **TILE, **OPTIONS)
    for side, grad, block in ((x, grad_x, TILE["BLOCK_N"]), (y, grad_y, TILE["BLOCK_M"])):
        if grad.numel():
            anchors_backward_kernel[(triton.cdiv(channels, BLOCK_D), triton.cdiv(side.count, block), batch)](
                *inputs,
                grad,
                *sizes,
                OF_ANCHORS=side is x,
                BLOCK_D=BLOCK_D,
                PRECISION=dot_precision(),
                **TILE,
                **OPTIONS,
            )
    return losses


def _pairs(
    x: _Side,
    y: _Side,
    weights: Tensor,  # (3)
    grad: Tensor,  # (B, N, D), or empty where it is not wanted
    form: str,
    ignore_index: int,
    scale: float,
    factor: float,  # of the gradient
    *,
    shift: Tensor | None = None,
    distance: tuple[int, int] = (1, 0),
    near: bool = False,
) -> tuple[Tensor, Tensor]:  # (B, blocks) both
    """Losses, and sums of derivatives by products, of blocks of x; the gradient by x's rows where it is wanted."""
    batch = len(x.labels)
    losses, slopes = _new(x.rows, batch, x.blocks), _new(x.rows, batch, x.blocks)
    with_grad = grad.ndim == 3 and x.channels > 0
    pairs_kernel[(triton.cdiv(x.channels, BLOCK_D) if with_grad else 1, x.blocks, batch)](
        x.rows,
        y.rows,
        x.labels,
        y.labels,
        weights,
        _new(x.rows).zero_() if shift is None else shift,
        losses,
        slopes,
        grad,
        x.count,
        y.count,
        x.channels,
        x.rows.shape[1],
        y.rows.shape[1],
        x.rows.shape[2],
        ignore_index,
        *distance,
        scale,
        factor,
        FORM=FORMS[form],
        NEAR=near,
        BLOCK_D=BLOCK_D,
        PRECISION=dot_precision(),
        WITH_GRAD=with_grad,
        **TILE,
        **OPTIONS,
    )
    return losses, slopes


def _finish(side: _Side, grad: Tensor, totals: Tensor | None = None, by_mean: Tensor | None = None) -> None:
    """Turn the gradient by rows into that by tokens."""
    if side.channels == 0 or not (side.normalize or totals is not None):
        return
    _, row_count, pitch = side.rows.shape
    finish_kernel[(triton.cdiv(side.count, ROWS), len(side.labels))](
        side.rows,
        side.inverses,
        totals,
        by_mean,
        grad,
        side.count,
        side.channels,
        row_count,
        pitch,
        BLOCK_N=ROWS,
        BLOCK_D=min(256, triton.next_power_of_2(pitch)),
        SHORTEST=SHORTEST,
        NORMALIZE=side.normalize,
    )
