"""Resizing with aligned corners as a differentiable operator: only what counts of a map is read."""

import torch
from torch import Tensor

from .._library import accumulate_dtype, define, differentiate, register_triton
from . import reference


def _resize_backward_fallback(grad: Tensor, size: list[int]) -> Tensor:
    """Resizing is linear, so its gradient is the same at any maps of the right shape."""
    maps = grad.new_zeros(*grad.shape[:2], *size)
    return differentiate(lambda maps: reference.resize_corners(maps, grad.shape[2:]), maps, grad)[1]


_resize = define(
    "resize_corners(Tensor maps, SymInt[] size) -> Tensor",
    room="prototype_contrast",
    reference=lambda maps, size: reference.resize_corners(maps.to(accumulate_dtype(maps.dtype)), size).clone(),
    fake=lambda maps, size: maps.new_empty(*maps.shape[:2], *size, dtype=accumulate_dtype(maps.dtype)),
)
_resize_backward = define(
    "resize_corners_backward(Tensor grad, SymInt[] size) -> Tensor",
    room="prototype_contrast",
    reference=_resize_backward_fallback,
    fake=lambda grad, size: grad.new_empty(*grad.shape[:2], *size),
)
register_triton("resize_corners_backward")


class _Resize(torch.autograd.Function):
    @staticmethod
    def forward(ctx, maps: Tensor, size: list[int]) -> Tensor:
        ctx.dtype, ctx.size, ctx.resized = maps.dtype, maps.shape[2:], size
        return _resize(maps, size)

    @staticmethod
    def backward(ctx, grad: Tensor):
        if torch.is_grad_enabled():  # create_graph=True: linear, so its derivative is itself
            return _ResizeBackward.apply(grad, ctx.size, ctx.resized).to(ctx.dtype), None
        return _resize_backward(grad, ctx.size).to(ctx.dtype), None


class _ResizeBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad: Tensor, size: list[int], resized: list[int]) -> Tensor:
        ctx.resized = resized
        return _resize_backward(grad, size)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return _Resize.apply(grad, ctx.resized), None, None


def resized(
    maps: Tensor,  # (B, D, H, W)
    size: list[int],
) -> Tensor:  # (B, D, h, w)
    """`maps` of this size, in the dtype of sums."""
    if [*maps.shape[2:]] == [*size]:
        return maps.to(accumulate_dtype(maps.dtype))
    return _Resize.apply(maps, size)
