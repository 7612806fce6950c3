"""Rewrites that give a loss and its gradient at once, as functions that autograd knows."""

from collections.abc import Callable

import torch
from torch import Tensor


def by_hand(
    function: Callable[..., tuple[Tensor, Tensor | None]],
    x: Tensor,
    *args,
) -> Tensor:  # ()
    """The loss of `function(x, *args, with_grad=…)`, which gives a loss and, if asked, its gradient by `x`."""
    if x.requires_grad:
        return _ByHand.apply(function, x, *args)
    return function(x, *args, with_grad=False)[0]


class _ByHand(torch.autograd.Function):
    @staticmethod
    def forward(ctx, function, x, *args):
        loss, grad = function(x, *args, with_grad=True)
        ctx.save_for_backward(grad.to(x.dtype))
        ctx.others = len(args)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        return None, ctx.saved_tensors[0] * grad_loss, *[None] * ctx.others
