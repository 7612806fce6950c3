"""SEAM's losses on NVIDIA GPUs of compute capability 8.0 and later, in Triton.

Launchers with the signatures of the operators. Shapes and grids depend on the shapes of the inputs alone, so nothing
waits for the GPU and everything can be captured in a CUDA graph; no sum depends on which program ends first.

Maps are stored for all classes at the size at which they are compared (128 × 128 on SEAM, a twelfth of the first
view's), so that PyTorch finds the largest differences; larger ones never. Never measured.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from ..common.triton_corners import most_targets, scale_of
from . import reference
from .triton_maps import compared_backward_kernel, compared_kernel, range_kernel, range_slopes_kernel
from .triton_shown import shown_backward_kernel, shown_kernel

BLOCK = 256  # pixels of a view that a program makes at once
GRID_BLOCK = 64  # of the grid, each of which asks some 300 of the view
PROGRAMS = 32  # at most, that share a map where all its pixels are added up


def equivariant_loss(
    cams: Tensor,  # (B, C + 1, h, w)
    other_cams: Tensor,  # (B, C + 1, h', w')
    image_labels: Tensor,  # (B, C)
    view: list[int],
    other_view: list[int],
    size: list[int],
    with_grad_cams: bool,
    with_grad_other_cams: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and both gradients: two launches for each map, and two more for its gradient."""
    present = _present(image_labels, background=False)
    maps = [Maps(x, present, of, size) for x, of in ((cams, view), (other_cams, other_view))]
    difference = maps[0].compared - maps[1].compared
    share = 1 / max(1, difference[:, 1:].numel())
    poison = _poison(cams[:, 1:]) + _poison(other_cams[:, 1:])
    loss = difference.abs().sum() * share + poison
    slopes = difference.sign_().mul_(share)
    grads = [maps[0].backward(slopes) + poison if with_grad_cams else cams.new_empty(0)]
    grads.append(maps[1].backward(slopes.neg_()) + poison if with_grad_other_cams else cams.new_empty(0))
    return loss, *grads


def cross_equivariant_loss(
    revised: Tensor,  # (B, C + 1, h, w)
    other_cams: Tensor,  # (B, C + 1, h', w')
    image_labels: Tensor,  # (B, C)
    view: list[int],
    other_view: list[int],
    size: list[int],
    kept: int,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient: four launches, two more for the gradient, PyTorch's for the largest differences."""
    target = Maps(other_cams, _present(image_labels, background=False), other_view, size).compared
    largest = target.amax(dim=1, keepdim=True)  # the background's map is 0 here
    target.mul_(target == largest)
    target[:, :1] = 1 - largest
    maps = Maps(revised, _present(image_labels, background=True), view, size)
    difference = maps.compared.sub_(target)
    sizes = difference.abs().flatten(1)
    weights = reference.weights_of_largest(sizes, kept)
    share = 1 / (kept * max(1, len(revised)))
    poison = _poison(revised) + _poison(other_cams[:, 1:])
    loss = (sizes * weights).sum() * share + poison
    if not with_grad:
        return loss, revised.new_empty(0)
    slopes = difference.sign_().mul_(weights.view_as(difference)).mul_(share)
    return loss, maps.backward(slopes) + poison


def min_pooling_loss(
    cams: Tensor,  # (B, C, h, w)
    image_labels: Tensor,  # (B, C)
    size: list[int],
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient: one launch each, and PyTorch's for the smallest scores."""
    batch, classes, *grid = cams.shape
    cams, present = cams.contiguous(), (image_labels != 0).to(torch.uint8)
    shown, winners = cams.new_empty(batch, size[0] * size[1]), cams.new_empty(batch, size[0] * size[1])
    scales = [scale_of(*n) for n in zip(grid, size, strict=True)]
    if batch:
        blocks = triton.cdiv(shown.shape[1], BLOCK)
        shown_kernel[(batch, blocks)](cams, present, shown, winners, classes, *grid, *size, *scales, BLOCK=BLOCK)
    kept = shown.shape[1] // 4
    weights, share = reference.weights_of_largest(-shown, kept), 1 / (kept * max(1, batch))
    poison = _poison(cams)
    loss = (shown * weights).sum() * share + poison
    if not with_grad:
        return loss, cams.new_empty(0)
    slopes, grad = weights.mul_(shown > 0).div_(winners).mul_(share), torch.empty_like(cams)
    if batch:
        targets = [most_targets(*n) for n in zip(grid, size, strict=True)]
        blocks = triton.cdiv(grid[0] * grid[1], GRID_BLOCK)
        shown_backward_kernel[(batch * classes, blocks)](
            *(cams, present, shown, slopes, grad, classes, *grid, *size, *scales, *targets),
            BLOCK=GRID_BLOCK,
            num_warps=2,
        )
    return loss, grad.add_(poison)


@dataclass
class Maps:
    """Maps of one view, `compared` at another size: 0 for classes that are not `present`."""

    maps: Tensor  # (B, C, h, w)
    present: Tensor  # (B, C)
    view: list[int]
    size: list[int]

    def __post_init__(self):
        self.maps = self.maps.contiguous()
        batch, classes, *grid = self.maps.shape
        self.planes, self.programs = batch * classes, min(PROGRAMS, triton.cdiv(self.view[0] * self.view[1], BLOCK))
        steps = [(grid, self.view), (self.view, self.size)]
        self.sizes = (*grid, *self.view)
        self.scales = [[scale_of(*n) for n in zip(*step, strict=True)] for step in steps]
        self.targets = [[most_targets(*n) for n in zip(*step, strict=True)] for step in steps]
        self.compared = self.maps.new_empty(batch, classes, *self.size)
        if not self.planes:
            return
        partial = self.maps.new_empty(self.planes, self.programs, 2)
        range_kernel[(self.planes, self.programs)](
            self.maps, self.present, partial, *self.sizes, *self.scales[0], BLOCK=BLOCK
        )
        self.ranges = torch.stack([partial[..., 0].amin(dim=1), partial[..., 1].amax(dim=1)], dim=1)
        blocks = triton.cdiv(self.size[0] * self.size[1], BLOCK)
        compared_kernel[(self.planes, blocks)](
            *(self.maps, self.present, self.ranges, self.compared),
            *(*self.sizes, *self.size, *self.scales[0], *self.scales[1]),
            BLOCK=BLOCK,
        )

    def backward(self, grad: Tensor) -> Tensor:  # (B, C, *size) -> (B, C, h, w)
        """The gradient in the maps, of that in `compared`."""
        grad_maps = torch.empty_like(self.maps)
        if not self.planes:
            return grad_maps
        partial = self.maps.new_empty(self.planes, self.programs, 4)
        arguments = (*self.sizes, *self.size, *self.scales[0], *self.scales[1])
        range_slopes_kernel[(self.planes, self.programs)](
            *(self.maps, self.present, self.ranges, grad, partial, *arguments, *self.targets[1]), BLOCK=BLOCK
        )
        active, values, lows, highs = partial.sum(dim=1).unbind(1)
        values = values / (self.ranges[:, 1] - self.ranges[:, 0] + reference.EPSILON)
        slopes = torch.stack([(values - active) / lows.clamp_min(1), -values / highs.clamp_min(1)], dim=1)
        blocks = triton.cdiv(self.sizes[0] * self.sizes[1], GRID_BLOCK)
        compared_backward_kernel[(self.planes, blocks)](
            *(self.maps, self.present, self.ranges, slopes, grad, grad_maps, *arguments),
            *(*self.targets[0], *self.targets[1]),
            BLOCK=GRID_BLOCK,
            num_warps=2,
        )
        return grad_maps


def _present(image_labels: Tensor, *, background: bool) -> Tensor:  # (B, C) -> (B, C + 1)
    return F.pad((image_labels != 0).to(torch.uint8), (1, 0), value=int(background))


def _poison(maps: Tensor) -> Tensor:  # ()
    """0, or no number where a map is not finite: maps of classes that are not present are read nowhere else."""
    return (maps * 0).sum()
