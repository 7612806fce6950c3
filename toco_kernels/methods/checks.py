"""Checks that every method makes: of images, of the sizes at which they are seen, and of settings."""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..common.checks import check_floating, check_tensor
from ..common.errors import bad_type, bad_value, integer, number


def check_images(images: Tensor) -> None:
    """`images` must be (B, 3, H, W), floating point, of at least one pixel."""
    check_tensor(images, "images", 4, "(B, 3, H, W)")
    check_floating(images, "images")
    if images.shape[1] != 3:
        raise bad_value("images", "have three colours", f"shape {tuple(images.shape)}")
    if 0 in images.shape[2:]:
        raise bad_value("images", "have at least one pixel", f"shape {tuple(images.shape)}")


def checked_scales(scales: Sequence[float], argument: str = "scales") -> tuple[float, ...]:
    """`scales`, of which there must be one, and all positive."""
    if not isinstance(scales, Sequence):
        raise bad_type(argument, "be positive numbers, at least one", type(scales).__name__)
    if not scales or not all(0 < number(scale, argument) < float("inf") for scale in scales):
        raise bad_value(argument, "be positive numbers, at least one", scales)
    return tuple(scales)


def checked_size(size: Sequence[int] | None, images: Tensor) -> tuple[int, int]:
    """`size`, which must be (H, W), or that of the images."""
    if size is None:
        return tuple(images.shape[2:])
    return integers(size, "size", 2)


def at_scale(images: Tensor, scale: float) -> Tensor:
    """The images at a scale, fractions of a pixel dropped, at least one pixel."""
    if scale == 1:
        return images
    size = [max(1, int(scale * n)) for n in images.shape[2:]]
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


# Settings: each returns what it was given, or names it


def integers(values: Sequence[int], name: str, count: int) -> tuple[int, ...]:
    """So many positive integers."""
    if not isinstance(values, Sequence) or len(values) != count:
        raise bad_value(name, f"be {count} integers >= 1", repr(values))
    return tuple(integer(value, name, least=1) for value in values)


def positive(value: float, name: str) -> float:
    """A finite number above 0."""
    if not 0 < number(value, name) < float("inf"):
        raise bad_value(name, "be positive", value)
    return value


def not_negative(value: float, name: str) -> float:
    """A finite number of at least 0."""
    if not 0 <= number(value, name) < float("inf"):
        raise bad_value(name, "be finite and not negative", value)
    return value


def share(value: float, name: str, *, below_one: bool = False) -> float:
    """A number from 0 to 1."""
    if not 0 <= number(value, name) <= 1 or (below_one and value == 1):
        raise bad_value(name, "be in [0, 1)" if below_one else "be in [0, 1]", value)
    return value


def choice(value: str, name: str, choices: Sequence[str]) -> str:
    """One of a few words."""
    if value not in choices:
        raise bad_value(name, f"be one of {choices}", repr(value))
    return value


def check_flags(config: Any, *names: str) -> None:
    """These settings must be True or False."""
    for name in names:
        if not isinstance(getattr(config, name), bool):
            raise bad_type(name, "be True or False", repr(getattr(config, name)))


def check_integers(config: Any, **least: int) -> None:
    """These settings must be integers of at least …"""
    for name, smallest in least.items():
        integer(getattr(config, name), name, least=smallest)


def check_weights(weights: Mapping[str, float], losses: Sequence[str]) -> None:
    """They must name losses, and not be negative."""
    if not isinstance(weights, Mapping):
        raise bad_type("weights", f"be a mapping from losses of {losses} to numbers", type(weights).__name__)
    if unknown := [name for name in weights if name not in losses]:
        raise bad_value("weights", f"name losses of {losses}", unknown)
    for name, weight in weights.items():
        not_negative(weight, f"weights[{name!r}]")


def check_colours(config: Any) -> None:
    """`mean` and `std` must be three numbers each, and nothing is divided by 0."""
    for name, least in (("mean", float("-inf")), ("std", 0.0)):
        values = getattr(config, name)
        if (
            not isinstance(values, Sequence)
            or len(values) != 3
            or not all(isfinite(number(value, name)) and value > least for value in values)
        ):
            raise bad_value(name, f"be three {'positive ' if name == 'std' else ''}numbers", values)
