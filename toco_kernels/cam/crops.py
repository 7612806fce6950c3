"""crop_uncertain as a PyTorch operator: the operator gets its random numbers, and the public function draws them."""

import torch
from torch import Tensor

from .._library import define
from ..common.checks import check_floating, check_same_device, check_tensor
from ..common.errors import bad_type, bad_value, integer
from . import reference


def _fake(images: Tensor, roi: Tensor, draws: Tensor, size: int):
    batch, channels = images.shape[:2]
    return images.new_empty(draws.shape[1], batch, channels, size, size), images.new_empty(draws.shape)


_crop = define(
    "crop_uncertain(Tensor images, Tensor roi, Tensor draws, SymInt size) -> (Tensor crops, Tensor flags)",
    room="cam",
    reference=reference.crop_uncertain,
    fake=_fake,
)


def crop_uncertain(
    images: Tensor,  # (B, channels, H, W)
    roi: Tensor,  # (B, H, W)
    *,
    crops: int = 8,
    size: int = 96,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:  # (crops, B, channels, size, size), (B, crops)
    """Random crops around pixels that are not surely part of an object, and whether each may show an object.

    With margin = size // 2, the candidates of an image are the pixels of its window [margin, H - margin) ×
    [margin, W - margin) with roi <= 1, or all pixels of the window if there are fewer than `crops` of them. `crops`
    different ones are drawn, each with the same probability, and the square of `size` pixels that begins `margin` above
    and left of one is a crop. Its flag is 0 where the mean of `roi` over it is at most 0.2, that is, where it surely
    shows background, and else 1.

    Everything happens on the device of the images, without waiting for it. One random number is drawn for each crop.

    Args:
        images: (B, channels, H, W) float32, float64, float16 or bfloat16. Not differentiable.
        roi: (B, H, W) 0 background, 1 uncertain, 2 object, as `cam_to_roi` gives it; any integer dtype, in 0..255.
        crops: how many of each image, at most as many as its window has pixels.
        size: of the crops in pixels, such that the window has pixels: less than H and W (or equal, if odd).
        generator: of the random numbers, on the device of the images; None: the device's default one.

    Returns:
        (crops, B, channels, size, size), and flags (B, crops), 1 or 0, both in the dtype of the images.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree, or an option is out of its range.

    Source: ToCo (Ru et al., CVPR 2023), `crop_from_roi_neg` in its code.
    """
    crops = integer(crops, "crops", least=1)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise bad_type("generator", "be None or a torch.Generator", type(generator).__name__)
    check_tensor(images, "images", 4, "(B, channels, H, W)")
    if generator is not None and generator.device.type != images.device.type:
        raise bad_value("generator", f"be on images' device, {images.device}", generator.device)
    draws = torch.rand(len(images), crops, generator=generator, device=images.device, dtype=torch.float64)
    return crop_where_drawn(images, roi, draws, size)


@torch.no_grad()
def crop_where_drawn(
    images: Tensor,  # (B, channels, H, W)
    roi: Tensor,  # (B, H, W)
    draws: Tensor,  # (B, crops) in [0, 1)
    size: int,
) -> tuple[Tensor, Tensor]:  # (crops, B, channels, size, size), (B, crops)
    """`crop_uncertain` with given random numbers.

    Crop i is around candidate number floor(draw * n) of the n that crops 0 to i - 1 left, row by row. Draws outside
    [0, 1) are the nearest inside, NaN is 0.
    """
    check_tensor(images, "images", 4, "(B, channels, H, W)")
    check_tensor(roi, "roi", 3, "(B, H, W)")
    check_floating(images, "images")
    if roi.is_floating_point() or roi.is_complex():
        raise bad_type("roi", "be integers", roi.dtype)
    check_same_device(roi, "roi", images, "images")
    check_tensor(draws, "draws", 2, "(B, crops)")
    check_floating(draws, "draws")
    check_same_device(draws, "draws", images, "images")
    batch, _, height, width = images.shape
    if len(draws) != batch:
        raise bad_value("draws", f"have images' batch, {batch}", f"shape {tuple(draws.shape)}")
    if roi.shape != (batch, height, width):
        raise bad_value("roi", f"have images' batch and size, {(batch, height, width)}", f"shape {tuple(roi.shape)}")
    size = integer(size, "size", least=1)
    rows, columns = height - size // 2 * 2, width - size // 2 * 2
    if rows < 1 or columns < 1:
        raise bad_value("size", f"leave pixels between margins of half of it, in {(height, width)}", size)
    if draws.shape[1] > rows * columns:
        raise bad_value("crops", f"be at most {rows * columns}, the number of pixels between margins", draws.shape[1])
    return _crop(images, roi.to(torch.uint8), draws.to(torch.float64), size)
