"""Sample inputs of pair_contrast."""

import torch

import toco_kernels
from toco_kernels.pair_contrast import reference

from .room import Room


def affinity_inputs(batch=3, size=(7, 9), width=24, *, classes=4, ignored=0.3, labels=None, image=True, **others):
    generator = torch.Generator().manual_seed(batch * size[0] * size[1] * width)
    features = torch.randn(batch, width, *size, generator=generator, dtype=torch.float64) / 2
    if labels is None:
        labels = torch.randint(classes, (batch, *size), generator=generator)
        labels[:, 1:][torch.rand(batch, *size, generator=generator)[:, 1:] < ignored] = 255
    if not image:
        features = features.flatten(2).mT.contiguous()
    return {"features": features, "labels": labels} | others


def excel(inputs):
    """As ExCEL calls it."""
    return inputs | {"radius": 8, "scale": 3.0, "normalize": True, "center": True}


def zeros_among(inputs, name):
    """Some tokens are zero vectors, some have no channel in common: products of exactly zero."""
    tokens = inputs[name].clone()
    tokens[..., ::7, :] = 0
    half = tokens.shape[-1] // 2
    tokens[..., 2::4, :half] = 0
    tokens[..., 3::4, half:] = 0
    return inputs | {name: tokens}


def nan_where_ignored(inputs, name, labels):
    """NaN in ignored tokens changes nothing."""
    return inputs | {name: inputs[name].masked_fill((inputs[labels] == 255)[..., None], torch.nan)}


def affinity_reference(features, labels, radius=None, scale=1.0, normalize=False, center=False, ignore_index=255):
    width = features.shape[3] if features.ndim == 4 else labels.shape[-1]
    tokens = features.flatten(2).mT if features.ndim == 4 else features
    radius = -1 if radius is None else radius
    return reference.affinity_loss(tokens, labels.flatten(1), width, radius, scale, normalize, center, ignore_index)


def affinity_operators(inputs):
    tokens, labels = inputs["features"].flatten(2).mT, inputs["labels"].flatten(1)
    options = [(0, -1, 1.0, False, False, 255, True), (9, 2, 3.0, True, True, 255, False)]
    return [(torch.ops.toco_kernels.affinity_loss.default, (tokens, labels, *rest)) for rest in options]


AFFINITY_LOSS = Room(
    name="affinity_loss",
    function=toco_kernels.affinity_loss,
    reference=affinity_reference,
    operators=affinity_operators,
    sample=lambda: affinity_inputs(radius=3),
    edges={
        "at any distance": lambda: affinity_inputs(2, (15, 20), 40),
        "as in WeCLIP": lambda: affinity_inputs(2, (20, 20), 64, radius=8),
        "as in ExCEL": lambda: excel(affinity_inputs(2, (20, 20), 64)),
        "unit vectors": lambda: affinity_inputs(normalize=True, scale=2.0),
        "centred products": lambda: affinity_inputs(center=True, radius=2),
        "labels are the image": lambda: affinity_inputs(image=False, radius=2),
        "no rows known": lambda: affinity_inputs(1, (1, 70), image=False, labels=torch.arange(70)[None] // 9),
        "itself alone": lambda: affinity_inputs(radius=0),
        "a radius beyond the grid": lambda: affinity_inputs(radius=100),
        "a row": lambda: affinity_inputs(2, (1, 90), radius=5),
        "a column": lambda: affinity_inputs(2, (90, 1), radius=5),
        "scores beyond float32's exp": lambda: affinity_inputs(scale=40.0),
        "a negative scale": lambda: affinity_inputs(scale=-1.0),
        "all ignored": lambda: affinity_inputs(2, (4, 5), labels=torch.full((2, 4, 5), 255), radius=1),
        "all ignored, centred": lambda: excel(affinity_inputs(2, (4, 5), labels=torch.full((2, 4, 5), 255))),
        "one image ignored": lambda: affinity_inputs(2, (1, 4), labels=torch.tensor([[[255] * 4], [[1, 2, 1, 1]]])),
        "one class": lambda: affinity_inputs(classes=1, radius=2),
        "every token its own class": lambda: affinity_inputs(2, labels=torch.arange(126).view(2, 7, 9)),
        "large labels": lambda: affinity_inputs(1, (1, 5), labels=torch.tensor([[[-7, 2**40, -7, 255, -(2**62)]]])),
        "another ignored label": lambda: affinity_inputs(ignore_index=2),
        "one patch": lambda: affinity_inputs(2, (1, 1), 8, radius=1),
        "no channels": lambda: affinity_inputs(2, (3, 4), 0),
        "no channels, centred": lambda: excel(affinity_inputs(2, (3, 4), 0)),
        "no patches": lambda: affinity_inputs(2, (0, 4), labels=torch.zeros(2, 0, 4, dtype=torch.long), radius=1),
        "zero vectors": lambda: excel(zeros_among(affinity_inputs(image=False), "features")),
        "only zero vectors": lambda: excel(affinity_inputs()) | {"features": torch.zeros(3, 24, 7, 9).double()},
        "NaN in ignored tokens": lambda: nan_where_ignored(
            affinity_inputs(2, (1, 90), image=False, normalize=True)
            | {"labels": affinity_inputs(2, (1, 90))["labels"][:, 0]},
            "features",
            "labels",
        ),
        "empty batch": lambda: excel(affinity_inputs(0)),
    },
    bad={
        "features: not a tensor": lambda i: i | {"features": [[1.0]]},
        "features: wrong rank": lambda i: i | {"features": i["features"][0, 0]},
        "features: integers": lambda i: i | {"features": i["features"].long()},
        "labels: not a tensor": lambda i: i | {"labels": i["labels"].tolist()},
        "labels: wrong rank": lambda i: i | {"labels": i["labels"][0, 0]},
        "labels: patches missing": lambda i: i | {"labels": i["labels"][:, 1:]},
        "labels: another size": lambda i: i | {"labels": i["labels"].mT},
        "labels: other batch": lambda i: i | {"labels": i["labels"][1:]},
        "labels: fractions": lambda i: i | {"labels": i["labels"].float()},
        "labels: other device": lambda i: i | {"labels": i["labels"].to("meta")},
        "radius: negative": lambda i: i | {"radius": -1},
        "radius: a fraction": lambda i: i | {"radius": 1.5},
        "radius: no rows known": lambda i: (
            i | {"features": i["features"].flatten(2).mT, "labels": i["labels"].flatten(1)}
        ),
        "scale: text": lambda i: i | {"scale": "1"},
        "ignore_index: a fraction": lambda i: i | {"ignore_index": 0.5},
    },
    differentiable=("features",),
    terms=400 * 64,
    magnitude=1.0,
    is_loss=True,
    autocast_casts=("features",),
)


def pair_inputs(batch=2, count=37, others=70, width=24, *, form="info_nce", classes=4, ignored=0.3, **options):
    generator = torch.Generator().manual_seed(batch * count * others + width)

    def side(n):
        labels = torch.randint(classes, (batch, n), generator=generator)
        labels[:, 1:][torch.rand(batch, max(n - 1, 0), generator=generator) < ignored] = 255
        if n and classes:
            labels[:, 0] = 0
        return torch.randn(batch, n, width, generator=generator, dtype=torch.float64), labels

    (x, labels_x), (y, labels_y) = side(count), side(others)
    if form == "info_nce":
        options = {"temperature": 0.1} | options
    return {"x": x, "y": y, "labels_x": labels_x, "labels_y": labels_y, "form": form} | options


def one_set(inputs):
    """Two dimensions, of x alone or of both."""
    return inputs | {name: inputs[name].flatten(0, 1) for name in ("x", "y", "labels_x", "labels_y")}


def shared_set(inputs):
    return inputs | {name: inputs[name][0] for name in ("y", "labels_y")}


def near(inputs):
    """Tokens that share a direction, as those of trained transformers do: nearly all of a gradient lies along it."""
    x = inputs["x"]
    return inputs | {"x": x[:, :1] + x / 10, "y": x[:, :1] + inputs["y"] / 10}


def pair_reference(x, y, labels_x, labels_y, form, temperature=1.0, normalize=True, ignore_index=255):
    if y.ndim == 2:
        x, labels_x, y, labels_y = x.flatten(0, -2)[None], labels_x.flatten()[None], y[None], labels_y[None]
    return reference.contrast(x, y, labels_x, labels_y, form, 1 / temperature, normalize, ignore_index)


def pair_operators(inputs):
    tensors = [inputs[name] for name in ("x", "y", "labels_x", "labels_y")]
    wanted = [("info_nce", True, True), ("abs_cos", True, False), ("sigmoid", False, True), ("info_nce", False, False)]
    return [
        (torch.ops.toco_kernels.contrast.default, (*tensors, form, 10.0, True, 255, *grads)) for form, *grads in wanted
    ]


CONTRAST = Room(
    name="contrast",
    function=toco_kernels.contrast,
    reference=pair_reference,
    operators=pair_operators,
    sample=pair_inputs,
    edges={
        "cosines": lambda: pair_inputs(form="abs_cos"),
        "affinities": lambda: pair_inputs(form="sigmoid", normalize=False),
        "affinities of cosines": lambda: pair_inputs(form="sigmoid", temperature=1 / 3),
        "products, InfoNCE": lambda: pair_inputs(normalize=False, temperature=2.0),
        "against a queue": lambda: one_set(pair_inputs(1, 64, 520, 64, temperature=0.08)),
        "several blocks of cosines": lambda: pair_inputs(1, 200, 300, 40, form="abs_cos"),
        "text prototypes": lambda: shared_set(pair_inputs(3, 40, 21, 32, classes=21, ignored=0.1)),
        "text prototypes, affinities": lambda: shared_set(pair_inputs(3, 40, 21, 32, form="sigmoid", ignored=0.1)),
        "a shared direction": lambda: near(pair_inputs(1, 100, 130, 40, form="abs_cos")),
        "a shared direction, InfoNCE": lambda: near(pair_inputs(1, 100, 130, 40)),
        "whole blocks": lambda: pair_inputs(1, 64, 128, 32, ignored=0.0),
        "no pair alike": lambda: pair_inputs(labels_y=torch.full((2, 70), 9)),
        "no pair alike, cosines": lambda: pair_inputs(form="abs_cos", labels_y=torch.full((2, 70), 9)),
        "no pair different": lambda: pair_inputs(classes=1),
        "no pair different, affinities": lambda: pair_inputs(form="sigmoid", classes=1),
        "all of x ignored": lambda: pair_inputs(labels_x=torch.full((2, 37), 255)),
        "all of y ignored": lambda: pair_inputs(labels_y=torch.full((2, 70), 255)),
        "all ignored, cosines": lambda: pair_inputs(form="abs_cos", labels_x=torch.full((2, 37), 255)),
        "every token its own class": lambda: pair_inputs(
            labels_x=torch.arange(74).view(2, 37), labels_y=torch.arange(140).view(2, 70)
        ),
        "large labels": lambda: pair_inputs(
            1, 4, 5, labels_x=torch.tensor([[-7, 2**40, 255, 3]]), labels_y=torch.tensor([[2**40, -7, -7, 255, 1]])
        ),
        "another ignored label": lambda: pair_inputs(ignore_index=2),
        "scores beyond float32's exp": lambda: pair_inputs(temperature=0.004),
        "rising scores": lambda: (
            pair_inputs(1, 40, 300, 8, normalize=False, ignored=0.0)
            | {
                "y": torch.randn(1, 300, 8, generator=torch.Generator().manual_seed(0)).double()
                * torch.arange(300)[:, None]
                / 30
            }
        ),
        "one of each": lambda: pair_inputs(1, 1, 1),
        "one of each, cosines": lambda: pair_inputs(1, 1, 1, form="abs_cos"),
        "no channels": lambda: pair_inputs(width=0),
        "no x": lambda: pair_inputs(count=0),
        "no y": lambda: pair_inputs(others=0),
        "no y, affinities": lambda: pair_inputs(others=0, form="sigmoid"),
        "zero vectors": lambda: zeros_among(zeros_among(pair_inputs(form="abs_cos"), "x"), "y"),
        "zero vectors, InfoNCE": lambda: zeros_among(zeros_among(pair_inputs(), "x"), "y"),
        "NaN in ignored tokens": lambda: nan_where_ignored(
            nan_where_ignored(pair_inputs(), "x", "labels_x"), "y", "labels_y"
        ),
        "empty batch": lambda: pair_inputs(0),
    },
    bad={
        "x: not a tensor": lambda i: i | {"x": [[1.0]]},
        "x: wrong rank": lambda i: i | {"x": i["x"][0, 0]},
        "x: integers": lambda i: i | {"x": i["x"].long()},
        "y: not a tensor": lambda i: i | {"y": None},
        "y: wrong rank": lambda i: i | {"y": i["y"][0, 0]},
        "y: integers": lambda i: i | {"y": i["y"].long()},
        "y: other width": lambda i: i | {"y": i["y"][..., 1:]},
        "y: other batch": lambda i: i | {"y": i["y"][1:]},
        "y: a batch, where x is none": lambda i: i | {"x": i["x"][0], "labels_x": i["labels_x"][0]},
        "y: other device": lambda i: i | {"y": i["y"].to("meta")},
        "labels_x: not a tensor": lambda i: i | {"labels_x": i["labels_x"].tolist()},
        "labels_x: wrong rank": lambda i: i | {"labels_x": i["labels_x"][0]},
        "labels_x: tokens missing": lambda i: i | {"labels_x": i["labels_x"][:, 1:]},
        "labels_x: fractions": lambda i: i | {"labels_x": i["labels_x"].float()},
        "labels_x: other device": lambda i: i | {"labels_x": i["labels_x"].to("meta")},
        "labels_y: tokens missing": lambda i: i | {"labels_y": i["labels_y"][:, 1:]},
        "labels_y: fractions": lambda i: i | {"labels_y": i["labels_y"].float()},
        "form: unknown": lambda i: i | {"form": "cosine"},
        "temperature: zero": lambda i: i | {"temperature": 0.0},
        "temperature: text": lambda i: i | {"temperature": "0.1"},
        "temperature: of cosines": lambda i: i | {"form": "abs_cos"},
        "ignore_index: a fraction": lambda i: i | {"ignore_index": 0.5},
    },
    differentiable=("x", "y"),
    terms=520 * 64,
    magnitude=10.0,
    is_loss=True,
    autocast_casts=("x", "y"),
)
