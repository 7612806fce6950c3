"""Sample inputs of pixel_correlation."""

import torch

import toco_kernels
from toco_kernels.pixel_correlation import reference

from .room import Room


def correlation_inputs(batch=2, width=24, size=(7, 9), *, classes=5, scale=1.0):
    generator = torch.Generator().manual_seed(batch * width * size[0] * size[1])
    return {
        "features": torch.randn(batch, width, *size, generator=generator, dtype=torch.float64) * scale,
        "cams": torch.rand(batch, classes, *size, generator=generator, dtype=torch.float64),
    }


def alike(inputs):
    """Features that share a direction: no cosine is negative."""
    features = inputs["features"]
    return inputs | {"features": features[:, :, :1, :1] + features / 10}


def with_zeros(inputs):
    """Some features are zero, and some have no channel in common: cosines of exactly zero."""
    features = inputs["features"].clone()
    features[:, :, 1::3, ::2] = 0
    half = features.shape[1] // 2
    features[:, :half, ::2] = 0
    features[:, half:, 1::4] = 0
    return inputs | {"features": features}


def of_one_channel(inputs):
    """Of lengths of 1 and more: all cosines are 1 or -1, so that gradients are rounding alone, over the length."""
    features = inputs["features"]
    return inputs | {"features": features + features.sign()}


def of_lengths(inputs, smallest, largest):
    """Features whose lengths span these powers of ten."""
    powers = torch.linspace(smallest, largest, inputs["features"].shape[3], dtype=torch.float64)
    return inputs | {"features": inputs["features"] * 10**powers}


def correlation_reference(features, cams):
    revised = reference.pixel_correlation(features.flatten(2), cams.flatten(2))
    return revised.unflatten(2, tuple(cams.shape[2:]))


def correlation_operators(i):
    operators = torch.ops.toco_kernels
    features, cams = i["features"].flatten(2), i["cams"].flatten(2)
    revised, sums, signs = operators.pixel_correlation(features, cams, True)
    return [
        (operators.pixel_correlation.default, (features, cams, True)),
        (operators.pixel_correlation.default, (features, cams, False)),
        (operators.pixel_correlation_backward.default, (revised.sin(), features, cams, revised, sums, signs)),
    ]


PIXEL_CORRELATION = Room(
    name="pixel_correlation",
    function=toco_kernels.pixel_correlation,
    reference=correlation_reference,
    operators=correlation_operators,
    sample=correlation_inputs,
    edges={
        "as in SEAM": lambda: correlation_inputs(1, 192, (16, 16), classes=21),
        "several blocks": lambda: correlation_inputs(1, 40, (17, 23), classes=3),
        "many blocks": lambda: correlation_inputs(1, 16, (24, 29), classes=2),
        "whole blocks": lambda: correlation_inputs(2, 32, (16, 16), classes=31),
        "many small images": lambda: correlation_inputs(9, 8, (5, 5)),
        "many classes": lambda: correlation_inputs(1, 16, (9, 11), classes=81),
        "a shared direction": lambda: alike(correlation_inputs()),
        "one class": lambda: correlation_inputs(classes=1),
        "no classes": lambda: correlation_inputs(classes=0),
        "one pixel": lambda: correlation_inputs(2, 16, (1, 1)),
        "one channel": lambda: of_one_channel(correlation_inputs(width=1)),
        "no channels": lambda: correlation_inputs(width=0),
        "zero vectors": lambda: with_zeros(correlation_inputs()),
        "only zero vectors": lambda: correlation_inputs(scale=0.0),
        "short": lambda: correlation_inputs(scale=1e-5),
        "lengths": lambda: of_lengths(correlation_inputs(), -4, 3),
        "no pixels": lambda: correlation_inputs(size=(0, 9)),
        "empty batch": lambda: correlation_inputs(0),
    },
    bad={
        "features: not a tensor": lambda i: i | {"features": [[1.0]]},
        "features: wrong rank": lambda i: i | {"features": i["features"][0]},
        "features: integers": lambda i: i | {"features": i["features"].long()},
        "features: complex": lambda i: i | {"features": i["features"].cfloat()},
        "cams: not a tensor": lambda i: i | {"cams": None},
        "cams: wrong rank": lambda i: i | {"cams": i["cams"][0]},
        "cams: integers": lambda i: i | {"cams": i["cams"].long()},
        "cams: other size": lambda i: i | {"cams": i["cams"][..., 1:]},
        "cams: other batch": lambda i: i | {"cams": i["cams"][1:]},
        "cams: other device": lambda i: i | {"cams": i["cams"].to("meta")},
        "cams: want a gradient": lambda i: i | {"cams": i["cams"].clone().requires_grad_()},
    },
    differentiable=("features",),
    terms=696 * 192,
    magnitude=1.0,
    by_chance=("one pixel", "one channel"),
    autocast_casts=("features", "cams"),
)
