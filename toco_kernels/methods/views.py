"""The other views of a batch of images, checked."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..cam import crop_uncertain
from ..cam.crops import crop_where_drawn
from ..common.checks import check_floating, check_same_device, check_tensor
from ..common.errors import bad_type, bad_value

KEYS = ("second_global", "local_source", "draws", "local_crops", "flags")


class Views(NamedTuple):
    """Either `local_source`, perhaps with `draws`, or `local_crops` with `flags`."""

    second_global: Tensor  # (B, 3, H', W')
    local_source: Tensor | None  # (B, 3, H, W)
    draws: Tensor | None  # (B, crops) in [0, 1)
    local_crops: Tensor | None  # (crops, B, 3, h, w)
    flags: Tensor | None  # (B, 2 + crops)


def checked_views(views: Mapping[str, Tensor], images: Tensor, local_crops: int) -> Views:
    """The views that `ToCo.forward` takes; crops as one tensor, flags with those of the global crops.

    `local_crops` of each image are cut from `local_source`; those given may be any number.
    """
    if not isinstance(views, Mapping):
        raise bad_type("views", "be a mapping", type(views).__name__)
    if unknown := [key for key in views if key not in KEYS]:
        raise bad_value("views", f"have keys of {KEYS}", unknown)
    given = {key: views.get(key) for key in KEYS}
    if given["second_global"] is None:
        raise bad_value("views", "have second_global", [*views])
    if (given["local_source"] is None) == (given["local_crops"] is None):
        raise bad_value("views", "have either local_source or local_crops", [*views])
    if (given["local_crops"] is None) != (given["flags"] is None):
        raise bad_value("views", "have local_crops and flags together", [*views])
    if given["draws"] is not None and given["local_source"] is None:
        raise bad_value("views", "have draws for local_source alone", [*views])
    batch = len(images)
    _check_images(given["second_global"], "second_global", images)
    if given["local_source"] is not None:
        _check_images(given["local_source"], "local_source", images)
        if given["local_source"].shape != images.shape:  # the regions are those of the images
            must = f"have the images' shape, {tuple(images.shape)}"
            raise bad_value("local_source", must, tuple(given["local_source"].shape))
        if given["draws"] is not None:
            check_tensor(given["draws"], "draws", 2, "(B, crops)")
            check_same_device(given["draws"], "draws", images, "images")
            if given["draws"].shape != (batch, local_crops):
                shape = f"shape {tuple(given['draws'].shape)}"
                raise bad_value("draws", f"have shape (B, crops) = {(batch, local_crops)}", shape)
        return Views(**given)
    crops = given["local_crops"]
    if isinstance(crops, (list, tuple)):
        crops = torch.stack([*crops])
    check_tensor(crops, "local_crops", 5, "(crops, B, 3, h, w)")
    for crop in crops:
        _check_images(crop, "local_crops", images)
    flags = given["flags"]
    check_tensor(flags, "flags", 2, "(B, crops)")
    check_same_device(flags, "flags", images, "images")
    if flags.shape not in ((batch, len(crops)), (batch, 2 + len(crops))):
        raise bad_value("flags", f"have shape (B, crops) = {(batch, len(crops))}", f"shape {tuple(flags.shape)}")
    return Views(**{**given, "local_crops": crops, "flags": with_global_flags(flags, len(crops))})


def local_crops(
    views: Views,
    roi: Tensor | None,  # (B, H, W), needed for `local_source` alone
    crops: int,
    size: int,
) -> tuple[Tensor, Tensor]:  # (crops, B, 3, h, w), (B, 2 + crops)
    """The crops given, or those cut from the uncertain regions of the source."""
    if views.local_source is None:
        return views.local_crops, views.flags
    if views.draws is None:
        cut, flags = crop_uncertain(views.local_source, roi, crops=crops, size=size)
    else:
        cut, flags = crop_where_drawn(views.local_source, roi, views.draws, size)
    return cut, with_global_flags(flags, len(cut))


def with_global_flags(
    flags: Tensor,  # (B, crops) or (B, 2 + crops)
    crops: int,
) -> Tensor:  # (B, 2 + crops)
    """The flags of local crops behind those of the two global ones, which always show an object."""
    return flags if flags.shape[1] > crops else torch.cat([flags.new_ones(len(flags), 2), flags], dim=1)


def _check_images(view: Tensor, argument: str, images: Tensor) -> None:
    check_tensor(view, argument, 4, "(B, 3, H, W)")
    check_floating(view, argument)
    check_same_device(view, argument, images, "images")
    if len(view) != len(images) or view.shape[1] != 3:
        raise bad_value(argument, f"have shape ({len(images)}, 3, H, W)", tuple(view.shape))
