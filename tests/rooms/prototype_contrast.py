"""Sample inputs of prototype_contrast."""

import torch
import torch.nn.functional as F

import toco_kernels
from toco_kernels.prototype_contrast import reference
from toco_kernels.prototype_contrast.step import contrast_where_drawn

from .room import Room

OPERATORS = torch.ops.toco_kernels


def contrast_inputs(
    batch=2, width=24, size=(7, 9), *, classes=5, ignored=0.3, labels=None, dtype=torch.int64, **others
):
    generator = torch.Generator().manual_seed(batch * width * size[0] * size[1])
    features = torch.randn(batch, width, *size, generator=generator, dtype=torch.float64)
    if labels is None:
        labels = torch.randint(classes, (batch, *size), generator=generator)
        labels[torch.rand(batch, *size, generator=generator) < ignored] = 255
        labels[:, :1, :1] = 0
    else:
        labels = torch.tensor(labels).expand(batch, *size).contiguous()
    prototypes = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    return {
        "features": features,
        "labels": labels.to(dtype),
        "prototypes": F.normalize(prototypes, dim=1),
    } | others


def after_relu(inputs):
    """Features as PPC has them: none negative, so that all share a direction; some pixels and a prototype are zero."""
    features, prototypes = inputs["features"].relu(), inputs["prototypes"].abs()
    features[:, :, ::3, 1::2] = 0
    prototypes[-1] = 0
    return inputs | {"features": features, "prototypes": prototypes}


def with_nan(inputs):
    """NaN in ignored pixels changes nothing."""
    ignored = (inputs["labels"] == 255)[:, None]
    return inputs | {"features": inputs["features"].masked_fill(ignored, torch.nan)}


def of_lengths(inputs, smallest, largest):
    """Features whose lengths span these powers of ten."""
    powers = torch.linspace(smallest, largest, inputs["features"].shape[3], dtype=torch.float64)
    return inputs | {"features": inputs["features"] * 10**powers}


def contrast_reference(features, labels, prototypes, temperature=0.1, ignore_index=255):
    prototypes = prototypes.to(features.dtype)
    return reference.prototype_contrast(
        features.flatten(2), labels.flatten(1).long(), prototypes, temperature, ignore_index
    )


PROTOTYPE_CONTRAST = Room(
    name="prototype_contrast",
    function=toco_kernels.prototype_contrast,
    reference=contrast_reference,
    operators=lambda i: [
        (
            OPERATORS.prototype_contrast.default,
            (i["features"].flatten(2), i["labels"].flatten(1), i["prototypes"], 0.1, 255, with_grad),
        )
        for with_grad in (True, False)
    ],
    sample=contrast_inputs,
    edges={
        "as in PPC": lambda: after_relu(contrast_inputs(2, 128, (16, 16), classes=21)),
        "several blocks": lambda: contrast_inputs(1, 40, (30, 23), classes=3),
        "whole blocks": lambda: contrast_inputs(1, 64, (16, 32), classes=8, ignored=0.0),
        "wide": lambda: contrast_inputs(1, 200, (5, 7)),
        "many classes": lambda: contrast_inputs(1, 32, (9, 11), classes=81),
        "one class": lambda: contrast_inputs(classes=1),
        "one pixel": lambda: contrast_inputs(1, 16, (1, 1), labels=2),
        "one channel": lambda: contrast_inputs(width=1),
        "no channels": lambda: contrast_inputs(width=0),
        "all ignored": lambda: contrast_inputs(labels=255),
        "one row labelled": lambda: contrast_inputs(1, labels=[[255] * 9] * 3 + [[1] * 9] + [[255] * 9] * 3),
        "NaN in ignored pixels": lambda: with_nan(contrast_inputs()),
        "another ignored label": lambda: contrast_inputs(size=(2, 4), ignore_index=2, labels=[0, 2, 1, 3]),
        "small integers": lambda: contrast_inputs(dtype=torch.uint8),
        "features zero": lambda: contrast_inputs() | {"features": torch.zeros(2, 24, 7, 9, dtype=torch.float64)},
        "prototypes zero": lambda: contrast_inputs() | {"prototypes": torch.zeros(5, 24, dtype=torch.float64)},
        "lengths": lambda: of_lengths(contrast_inputs(), -3, 3),
        "another temperature": lambda: contrast_inputs(temperature=0.5),
        "scores beyond float32's exp": lambda: contrast_inputs(temperature=0.004),
        "no pixels": lambda: contrast_inputs(size=(0, 9), labels=0),
        "empty batch": lambda: contrast_inputs(0),
    },
    bad={
        "features: not a tensor": lambda i: i | {"features": [[1.0]]},
        "features: wrong rank": lambda i: i | {"features": i["features"][0]},
        "features: integers": lambda i: i | {"features": i["features"].long()},
        "labels: not a tensor": lambda i: i | {"labels": i["labels"].tolist()},
        "labels: wrong rank": lambda i: i | {"labels": i["labels"][0]},
        "labels: fractions": lambda i: i | {"labels": i["labels"].float()},
        "labels: other size": lambda i: i | {"labels": i["labels"][:, 1:]},
        "labels: other device": lambda i: i | {"labels": i["labels"].to("meta")},
        "prototypes: not a tensor": lambda i: i | {"prototypes": None},
        "prototypes: wrong rank": lambda i: i | {"prototypes": i["prototypes"][0]},
        "prototypes: other width": lambda i: i | {"prototypes": i["prototypes"][:, 1:]},
        "prototypes: none": lambda i: i | {"prototypes": i["prototypes"][:0]},
        "prototypes: integers": lambda i: i | {"prototypes": i["prototypes"].long()},
        "prototypes: other device": lambda i: i | {"prototypes": i["prototypes"].to("meta")},
        "prototypes: want a gradient": lambda i: i | {"prototypes": i["prototypes"].clone().requires_grad_()},
        "temperature: zero": lambda i: i | {"temperature": 0.0},
        "temperature: text": lambda i: i | {"temperature": "0.1"},
        "ignore_index: a fraction": lambda i: i | {"ignore_index": 0.5},
    },
    differentiable=("features",),
    terms=690 * 200,
    magnitude=10.0,
    is_loss=True,
    autocast_casts=("features", "prototypes"),
)


def prototype_inputs(batch=3, width=24, size=(7, 9), *, classes=5, k=6, **others):
    generator = torch.Generator().manual_seed(batch * width * size[0] * size[1])
    cams = torch.rand(batch, classes, *size, generator=generator, dtype=torch.float64)
    return {
        "features": torch.randn(batch, width, *size, generator=generator, dtype=torch.float64),
        "cams": cams.bfloat16().double(),  # the same order in every precision
        "k": k,
    } | others


def with_cams(inputs, change):
    cams = inputs["cams"].clone()
    change(cams)
    return inputs | {"cams": cams}


def prototype_reference(features, cams, k, image_labels=None):
    present = None
    if image_labels is not None:
        present = F.pad(image_labels, (cams.shape[1] - image_labels.shape[1], 0), value=1)
    cams = cams.to(features.dtype).relu().flatten(2)
    return reference.prototypes_of(*reference.prototype_candidates(features.flatten(2), cams, present, k))


ESTIMATE_PROTOTYPES = Room(
    name="estimate_prototypes",
    function=toco_kernels.estimate_prototypes,
    reference=prototype_reference,
    operators=lambda i: [
        (OPERATORS.prototype_candidates.default, (i["features"].flatten(2), i["cams"].flatten(2), present, k))
        for present, k in ((None, 6), (torch.eye(3, 5, device=i["cams"].device), 70))
    ],
    sample=prototype_inputs,
    edges={
        "as in PPC": lambda: prototype_inputs(4, 128, (16, 16), classes=21, k=32),
        "many kept": lambda: prototype_inputs(2, 16, (20, 20), k=300),
        "one kept": lambda: prototype_inputs(k=1),
        "fewer pixels than k": lambda: prototype_inputs(1, 16, (2, 3), k=9),
        "all pixels": lambda: prototype_inputs(k=189),
        "ties": lambda: with_cams(prototype_inputs(), lambda cams: cams.mul_(3).round_()),
        "a constant channel": lambda: with_cams(prototype_inputs(), lambda cams: cams[:, 0].fill_(0.2)),
        "a class without scores": lambda: with_cams(prototype_inputs(), lambda cams: cams[:, 2].fill_(0)),
        "negative scores": lambda: with_cams(prototype_inputs(k=150), lambda cams: cams.sub_(0.5)),
        "only negative scores": lambda: with_cams(prototype_inputs(), lambda cams: cams.sub_(2)),
        "absent classes": lambda: prototype_inputs(image_labels=torch.eye(3, 4)),
        "absent classes, background given": lambda: prototype_inputs(k=70, image_labels=torch.eye(3, 5)),
        "no class present": lambda: prototype_inputs(image_labels=torch.zeros(3, 5)),
        "one pixel of a class": lambda: with_cams(
            prototype_inputs(), lambda cams: cams[:, 1].fill_(0)[1, 2, 3].fill_(0.7)
        ),
        "features zero": lambda: prototype_inputs() | {"features": torch.zeros(3, 24, 7, 9, dtype=torch.float64)},
        "one class": lambda: prototype_inputs(classes=1),
        "no classes": lambda: prototype_inputs(classes=0),
        "no channels": lambda: prototype_inputs(width=0),
        "no pixels": lambda: prototype_inputs(size=(0, 3)),
        "empty batch": lambda: prototype_inputs(0),
    },
    bad={
        "features: not a tensor": lambda i: i | {"features": [[1.0]]},
        "features: wrong rank": lambda i: i | {"features": i["features"][0]},
        "features: integers": lambda i: i | {"features": i["features"].long()},
        "cams: not a tensor": lambda i: i | {"cams": None},
        "cams: wrong rank": lambda i: i | {"cams": i["cams"][0]},
        "cams: integers": lambda i: i | {"cams": i["cams"].long()},
        "cams: other size": lambda i: i | {"cams": i["cams"][..., 1:]},
        "cams: other batch": lambda i: i | {"cams": i["cams"][1:]},
        "cams: other device": lambda i: i | {"cams": i["cams"].to("meta")},
        "k: zero": lambda i: i | {"k": 0},
        "k: a fraction": lambda i: i | {"k": 1.5},
        "image_labels: not a tensor": lambda i: i | {"image_labels": [1]},
        "image_labels: other classes": lambda i: i | {"image_labels": torch.ones(3, 3)},
        "image_labels: complex": lambda i: i | {"image_labels": torch.ones(3, 5, dtype=torch.complex64)},
        "image_labels: other device": lambda i: i | {"image_labels": torch.ones(3, 5, device="meta")},
        "process_group: a name": lambda i: i | {"process_group": "world"},
    },
    terms=300,
    magnitude=1.0,
)


def step_inputs(batch=2, width=8, size=(7, 5), other_size=(5, 4), *, classes=5, k=6, present=0.6, **others):
    generator = torch.Generator().manual_seed(batch * width * size[0] * size[1])

    def smooth(channels, size):  # maps as networks make them, so that classes have regions
        maps = torch.randn(batch, channels, 4, 4, generator=generator, dtype=torch.float64)
        return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)

    def noise(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    image_labels = torch.rand(batch, classes - 1, generator=generator) < present
    cams, other_cams = smooth(classes, size), smooth(classes, other_size)
    features = smooth(width, size) + noise(batch, width, *size) / 2
    other_features = smooth(width, other_size) + noise(batch, width, *other_size) / 2
    return {
        "cams": cams,
        "other_cams": other_cams,
        "features": features,
        "other_features": other_features,
        "image_labels": image_labels.double(),
        "draws": torch.rand(2, batch, *other_size, generator=generator).double(),
        "background_score": 0.2,
        "k": k,
    } | others


def stacked(**inputs):
    """The dict's values."""
    return torch.stack([*contrast_where_drawn(**inputs).values()])


def step_by_loops(
    cams, other_cams, features, other_features, image_labels, draws, background_score, k, temperature=0.1, weights=None
):
    """Both views, one after the other, as published."""
    size, views = other_features.shape[2:], []
    for maps, x in ((cams, features), (other_cams, other_features)):
        if maps.shape[2:] != size:
            maps, x = (F.interpolate(t, size=size, mode="bilinear", align_corners=True) for t in (maps, x))
        scores = reference.confidence(maps.clone(), background_score)
        labels = reference.pseudo_labels(scores, image_labels).flatten()
        best = reference.prototype_candidates(x.detach().flatten(2), scores.flatten(2).relu(), None, k)
        views.append((x.flatten(2), labels, reference.prototypes_of(*best)))
    (x, labels, prototypes), (y, other_labels, other_prototypes) = views
    terms = reference.three_terms(
        reference.cosines(x, prototypes, other_prototypes),
        reference.cosines(y, other_prototypes, prototypes),
        labels,
        other_labels,
        draws.flatten(1),
        temperature,
    )
    terms = [term * weight for term, weight in zip(terms, weights or (0.1, 0.1, 0.1), strict=True)]
    return torch.stack([sum(terms), *terms])


def step_operators(i):
    device, generator = i["features"].device, torch.Generator().manual_seed(0)
    x, y = i["features"].flatten(2)[:, :, :20], i["other_features"].flatten(2)
    labels = torch.randint(5, (2, 2, 20), generator=generator).to(device)
    prototypes = F.normalize(torch.randn(2, 5, 8, generator=generator), dim=2).to(x)
    draws = i["draws"].flatten(2).to(x.dtype)
    arguments = x, y, *labels, *prototypes, draws, 0.1
    terms, slopes = OPERATORS.pixel_prototype_contrast(*arguments)
    return [
        (OPERATORS.pixel_prototype_contrast.default, arguments),
        (OPERATORS.pixel_prototype_contrast_backward.default, (terms, x, y, *prototypes, slopes)),
        (OPERATORS.resize_corners.default, (i["features"], [5, 4])),
        (OPERATORS.resize_corners_backward.default, (i["other_features"], [7, 5])),
    ]


STEP_BAD = {
    f"{name}: {what}": lambda i, name=name, change=change: i | {name: change(i[name])}
    for name in ("cams", "other_cams", "features", "other_features")
    for what, change in {
        "not a tensor": lambda x: x.tolist(),
        "wrong rank": lambda x: x[0],
        "integers": lambda x: x.long(),
    }.items()
}

PIXEL_PROTOTYPE_CONTRAST = Room(
    name="pixel_prototype_contrast",
    function=stacked,
    reference=step_by_loops,
    operators=step_operators,
    sample=step_inputs,
    edges={
        "as in PPC": lambda: step_inputs(2, 128, (24, 24), (16, 16), classes=21, k=32, present=0.1),
        "one size": lambda: step_inputs(2, 16, (9, 9), (9, 9)),
        "the first view is smaller": lambda: step_inputs(2, 16, (5, 4), (9, 7)),
        "several blocks": lambda: step_inputs(1, 12, (8, 8), (20, 19)),
        "no class present": lambda: step_inputs(present=0.0),
        "only background": lambda: step_inputs(classes=1),
        "two classes": lambda: step_inputs(classes=2),
        "many classes": lambda: step_inputs(classes=81, present=0.2),
        "two pixels": lambda: step_inputs(1, 16, (3, 3), (1, 2)),
        "one pixel": lambda: step_inputs(1, 16, (3, 3), (1, 1)),
        "fewer pixels than k": lambda: step_inputs(1, 16, (3, 3), (2, 2), k=32),
        "features zero": lambda: step_inputs() | {"features": torch.zeros(2, 8, 7, 5, dtype=torch.float64)},
        "CAMs zero": lambda: step_inputs() | {"cams": torch.zeros(2, 5, 7, 5, dtype=torch.float64)},
        "equal draws": lambda: step_inputs() | {"draws": torch.zeros(2, 2, 5, 4, dtype=torch.float64)},
        "other weights": lambda: step_inputs(weights=(1.0, 0.0, 0.5)),
        "another temperature": lambda: step_inputs(temperature=0.5),
        "one channel": lambda: step_inputs(width=1),
        "empty batch": lambda: step_inputs(0),
    },
    bad=STEP_BAD
    | {
        "cams: other size": lambda i: i | {"cams": i["cams"][..., 1:]},
        "cams: other device": lambda i: i | {"cams": i["cams"].to("meta")},
        "other_cams: other classes": lambda i: i | {"other_cams": i["other_cams"][:, 1:]},
        "other_cams: other size": lambda i: i | {"other_cams": i["other_cams"][..., 1:]},
        "features: no channels": lambda i: i | {n: i[n][:, :0] for n in ("features", "other_features")},
        "features: no pixels": lambda i: i | {"features": i["features"][..., :0], "cams": i["cams"][..., :0]},
        "other_features: other width": lambda i: i | {"other_features": i["other_features"][:, 1:]},
        "other_features: other dtype": lambda i: i | {"other_features": i["other_features"].half()},
        "image_labels: with background": lambda i: i | {"image_labels": torch.ones(2, 5)},
        "image_labels: not a tensor": lambda i: i | {"image_labels": None},
        "draws: other size": lambda i: i | {"draws": i["draws"][1:]},
        "draws: integers": lambda i: i | {"draws": i["draws"].long()},
        "background_score: text": lambda i: i | {"background_score": "0.2"},
        "k: zero": lambda i: i | {"k": 0},
        "weights: two": lambda i: i | {"weights": (0.1, 0.1)},
        "weights: text": lambda i: i | {"weights": "abc"},
        "temperature: zero": lambda i: i | {"temperature": 0.0},
    },
    differentiable=("features", "other_features"),
    terms=380 * 81,
    magnitude=10.0,
    is_derivative=False,  # prototypes are made of the features, and are constants
    nan_free=("image_labels", "draws", "cams", "other_cams"),  # whose first element nobody reads
)
