"""SEAM's losses as published: class maps stretched to the size of the images, in plain PyTorch.

What differs most is found without a sort, which changes no number.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-5


def equivariant_loss(
    cams: Tensor,  # (B, C + 1, h, w)
    other_cams: Tensor,  # (B, C + 1, h', w')
    image_labels: Tensor,  # (B, C)
    view: list[int],
    other_view: list[int],
    size: list[int],
) -> Tensor:  # ()
    """ER: the mean difference of the objects' maps."""
    cams = compared(cams[:, 1:], image_labels, view, size)
    other_cams = compared(other_cams[:, 1:], image_labels, other_view, size)
    return mean((cams - other_cams).abs())


def cross_equivariant_loss(
    revised: Tensor,  # (B, C + 1, h, w)
    other_cams: Tensor,  # (B, C + 1, h', w'), without a gradient
    image_labels: Tensor,  # (B, C)
    view: list[int],
    other_view: list[int],
    size: list[int],
    kept: int,
) -> Tensor:  # ()
    """One half of ECR: the mean of each image's `kept` largest differences."""
    with torch.no_grad():
        objects = compared(other_cams[:, 1:], image_labels, other_view, size)
        background = 1 - F.pad(objects, (0, 0, 0, 0, 1, 0)).amax(dim=1, keepdim=True)
        target = max_onehot(torch.cat([background, objects], dim=1))
    revised = compared(revised, F.pad(image_labels, (1, 0), value=1), view, size)
    return mean_of_largest((target - revised).abs(), kept)


def min_pooling_loss(
    cams: Tensor,  # (B, C, h, w)
    image_labels: Tensor,  # (B, C)
    size: list[int],
) -> Tensor:  # ()
    """The mean of the quarter of each image's pixels that show its classes least."""
    shown = stretched(cams, size) * present(image_labels, cams)
    shown = shown.amax(dim=1).flatten(1)
    return -mean_of_largest(-F.relu(shown), shown.shape[1] // 4)


def compared(maps: Tensor, image_labels: Tensor, view: list[int], size: list[int]) -> Tensor:  # (B, C, *size)
    """Maps of an image's classes, stretched to 0 … 1 at the size of their view; 0 for those that it does not show."""
    return stretched(max_norm(stretched(maps, view), EPSILON), size) * present(image_labels, maps)


def present(image_labels: Tensor, maps: Tensor) -> Tensor:  # (B, C, 1, 1)
    """1 where an image shows a class, else 0."""
    return (image_labels != 0).to(maps.dtype)[:, :, None, None]


def stretched(maps: Tensor, size: list[int]) -> Tensor:  # (B, C, h, w) -> (B, C, *size)
    """Bilinear, with aligned corners."""
    if [*maps.shape[2:]] == [*size]:
        return maps
    return F.interpolate(maps, size=[*size], mode="bilinear", align_corners=True)


def max_norm(maps: Tensor, epsilon: float) -> Tensor:  # (B, C, H, W)
    """Each map by its own range."""
    maps = F.relu(maps)
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    return F.relu(maps - low - epsilon) / (high - low + epsilon)


def max_onehot(maps: Tensor) -> Tensor:  # (B, C, H, W)
    """In each pixel only the largest of the objects' scores, and the background."""
    if maps.shape[1] < 2:
        return maps
    smaller = maps != maps[:, 1:].amax(dim=1, keepdim=True)
    smaller[:, 0] = False
    return maps.masked_fill(smaller, 0)


def mean_of_largest(
    x: Tensor,  # (B, …)
    k: int,
) -> Tensor:  # ()
    """The mean of each image's k largest: those above the k-th, and of those equal to it as much as is missing."""
    x = x.flatten(1)
    return mean((x * weights_of_largest(x, k)).sum(dim=1)) / k


@torch.no_grad()
def weights_of_largest(
    x: Tensor,  # (B, n)
    k: int,
) -> Tensor:  # (B, n)
    """1 for each row's k largest, less where several are equal to the k-th, 0 for all others."""
    least = x.kthvalue(x.shape[1] - k + 1, dim=1, keepdim=True).values
    above, equal = x > least, x == least
    missing = k - above.sum(dim=1, keepdim=True, dtype=x.dtype)
    return above + equal * (missing / equal.sum(dim=1, keepdim=True).clamp_min(1))


def mean(x: Tensor) -> Tensor:  # ()
    """0 over nothing."""
    return x.sum() / max(x.numel(), 1)
