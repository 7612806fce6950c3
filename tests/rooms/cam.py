"""Sample inputs of cam."""

import torch

import toco_kernels
from toco_kernels.cam import reference
from toco_kernels.cam.crops import crop_where_drawn
from toco_kernels.testing import reference_only

from .room import Room


def by_reference(function):
    """The public function with its reference behind it."""

    def call(**inputs):
        with reference_only():
            return function(**inputs)

    return call


def thresholds(value, *limits):
    """Pairs of scores, which are closest where `value` is near one of the limits: (2, H, W) each."""
    limits = [limit if isinstance(limit, torch.Tensor) else torch.full_like(value, limit) for limit in limits]
    return [torch.stack([value, limit]) for limit in limits]


def map_inputs(batch=3, classes=5, size=(29, 38), *, scales=((2, 3), (1, 2), (3, 4)), present=None, **others):
    generator = torch.Generator().manual_seed(batch * classes * size[0] * size[1])
    if present is None:
        present = (torch.rand(batch, classes, generator=generator) < 0.5).double()
        present[:1, 0] = 1
    return {
        "maps": [torch.randn(2 * batch, classes, *s, generator=generator, dtype=torch.float64) for s in scales],
        "size": size,
        "image_labels": present,
    } | others


TOCO_SCALES = ((6, 6), (3, 3), (9, 9))


def constant(inputs, value):
    return inputs | {"maps": [torch.full_like(x, value) for x in inputs["maps"]]}


def spoilt(inputs):
    """NaN in the maps of absent classes changes nothing."""
    absent = (inputs["image_labels"] == 0).repeat(2, 1)[:, :, None, None]
    return inputs | {"maps": [x.masked_fill(absent, torch.nan) for x in inputs["maps"]]}


MERGE_EDGES = {
    "as in ToCo": lambda: map_inputs(2, 20, (96, 96), scales=TOCO_SCALES),
    "patch grid": lambda: map_inputs(2, 20, (96, 96), scales=TOCO_SCALES, out_size=(6, 6)),
    "half": lambda: map_inputs(2, 4, (96, 96), scales=TOCO_SCALES, out_size=(48, 48)),
    "half of odd": lambda: map_inputs(out_size=(14, 19)),
    "larger": lambda: map_inputs(out_size=(70, 41)),
    "one pixel out": lambda: map_inputs(out_size=(1, 1)),
    "several strips": lambda: map_inputs(1, 2, (203, 131), scales=((5, 7), (20, 3))),
    "one scale": lambda: map_inputs(scales=((4, 5),)),
    "seven scales": lambda: map_inputs(scales=[(n, n + 1) for n in range(1, 8)]),
    "full size": lambda: map_inputs(size=(9, 17), scales=((9, 17), (18, 34))),
    "downwards": lambda: map_inputs(size=(5, 6), scales=((41, 29), (6, 5))),
    "one row": lambda: map_inputs(size=(1, 40)),
    "one column": lambda: map_inputs(size=(40, 1)),
    "one pixel": lambda: map_inputs(size=(1, 1)),
    "one class": lambda: map_inputs(classes=1, present=torch.ones(3, 1)),
    "no class present": lambda: map_inputs(present=torch.zeros(3, 5)),
    "every class present": lambda: map_inputs(present=torch.ones(3, 5)),
    "boolean labels": lambda: map_inputs(present=torch.tensor([[True, False, True, False, False]] * 3)),
    "NaN in absent classes": lambda: spoilt(map_inputs()),
    "zero": lambda: constant(map_inputs(), 0.0),
    "negative": lambda: constant(map_inputs(), -1.0),
    "empty batch": lambda: map_inputs(0),
}
BAD_MAPS = {
    "maps: a tensor": lambda i: i | {"maps": i["maps"][0]},
    "maps: none": lambda i: i | {"maps": []},
    "maps: not tensors": lambda i: i | {"maps": [x.tolist() for x in i["maps"]]},
    "maps: wrong rank": lambda i: i | {"maps": [x[0] for x in i["maps"]]},
    "maps: integers": lambda i: i | {"maps": [x.long() for x in i["maps"]]},
    "maps: two dtypes": lambda i: i | {"maps": [i["maps"][0], i["maps"][1].double()]},
    "maps: two devices": lambda i: i | {"maps": [i["maps"][0], i["maps"][1].to("meta")]},
    "maps: other batch": lambda i: i | {"maps": [i["maps"][0], i["maps"][1][2:]]},
    "maps: no mirrored image": lambda i: i | {"maps": [x[1:] for x in i["maps"]]},
    "maps: no classes": lambda i: i | {"maps": [x[:, :0] for x in i["maps"]]},
    "maps: no pixels": lambda i: i | {"maps": [x[:, :, :0] for x in i["maps"]]},
    "size: a number": lambda i: i | {"size": 96},
    "size: three": lambda i: i | {"size": (3, 96, 96)},
    "size: zero": lambda i: i | {"size": (0, 96)},
    "size: a fraction": lambda i: i | {"size": (96, 0.5)},
    "out_size: negative": lambda i: i | {"out_size": (-1, 96)},
    "image_labels: wrong rank": lambda i: i | {"image_labels": i["image_labels"][0]},
    "image_labels: other batch": lambda i: i | {"image_labels": i["image_labels"][1:]},
    "image_labels: complex": lambda i: i | {"image_labels": i["image_labels"].cfloat()},
    "image_labels: other device": lambda i: i | {"image_labels": i["image_labels"].to("meta")},
}

MERGE_CAMS = Room(
    name="merge_cams",
    function=toco_kernels.merge_cams,
    reference=by_reference(toco_kernels.merge_cams),
    operators=lambda i: [
        (torch.ops.toco_kernels.merge_cams.default, (i["maps"], labels, list(i["size"]), [7, 5]))
        for labels in (i["image_labels"], None)
    ],
    sample=map_inputs,
    edges=MERGE_EDGES | {"without labels": lambda: map_inputs() | {"image_labels": None}},
    bad=BAD_MAPS | {"maps: want a gradient": lambda i: i | {"maps": [x.clone().requires_grad_() for x in i["maps"]]}},
    terms=3,
    magnitude=10.0,  # of the maps, whose lowest value may be near the highest
)


def merged(i):
    """The CAMs whose values decide."""
    out_size = i.get("out_size", i["size"])
    return reference.present_cams(reference.merge_cams(i["maps"], None, i["size"], out_size), i["image_labels"])


def label_scores(cams, i):
    scores = []
    for b, cam in enumerate(cams):
        limits = [x[b, 0] if isinstance(x, torch.Tensor) else x for x in (i["high"], i["low"])]
        scores += [cam, *thresholds(cam.amax(dim=0), *limits)]
    return scores


def roi_scores(cams, i):
    return [scores for cam in cams for scores in thresholds(cam.amax(dim=0), i["high"], i["low"])]


LIMITS = {"high": 0.7, "low": 0.25}
LIMIT_EDGES = {
    "crossed": {"high": 0.3, "low": 0.6},
    "everything background": {"high": 2.0, "low": 2.0},
    "everything objects": {"high": -1.0, "low": -1.0},
}
BAD_LIMITS = {
    "high: text": lambda i: i | {"high": "0.7"},
    "low: None": lambda i: i | {"low": None},
}
BAD_BOXES = {
    "boxes: wrong shape": lambda i: i | {"boxes": i["boxes"][:, 1:]},
    "boxes: wrong rank": lambda i: i | {"boxes": i["boxes"][0]},
    "boxes: fractions": lambda i: i | {"boxes": i["boxes"].float()},
    "boxes: other device": lambda i: i | {"boxes": i["boxes"].to("meta")},
    "ignore_index: a fraction": lambda i: i | {"ignore_index": 0.5},
}
BOXES = torch.tensor([[0, 99, 0, 99], [3, 17, 1, 20], [5, 9, -4, 999]])
ODD_BOXES = torch.tensor([[4, 4, 0, 9], [9, 3, 0, 9], [50, 60, -90, -70]])  # nothing is inside

MERGE_CAMS_TO_LABELS = Room(
    name="merge_cams_to_labels",
    function=toco_kernels.merge_cams_to_labels,
    reference=by_reference(toco_kernels.merge_cams_to_labels),
    scores=lambda i: label_scores(merged(i), i),
    operators=lambda i: [
        (
            torch.ops.toco_kernels.merge_cams_to_labels.default,
            (i["maps"], i["image_labels"], boxes, list(i["size"]), [7, 5], 0.7, 0.25, 255),
        )
        for boxes in (i["boxes"], None)
    ],
    sample=lambda: map_inputs(boxes=BOXES, **LIMITS),
    edges={name: lambda make=make: make() | LIMITS for name, make in MERGE_EDGES.items()}
    | {name: lambda limits=limits: map_inputs(**limits) for name, limits in LIMIT_EDGES.items()}
    | {
        "boxes": lambda: map_inputs(boxes=BOXES, ignore_index=-1, **LIMITS),
        "odd boxes": lambda: map_inputs(boxes=ODD_BOXES, **LIMITS),
        "boxes on a patch grid": lambda: map_inputs(out_size=(4, 5), boxes=torch.tensor([[1, 3, 0, 4]] * 3), **LIMITS),
    },
    bad=BAD_MAPS | BAD_LIMITS | BAD_BOXES | {"image_labels: none": lambda i: i | {"image_labels": None}},
)

MERGE_CAMS_TO_ROI = Room(
    name="merge_cams_to_roi",
    function=toco_kernels.merge_cams_to_roi,
    reference=by_reference(toco_kernels.merge_cams_to_roi),
    scores=lambda i: roi_scores(merged(i), i),
    operators=lambda i: [
        (
            torch.ops.toco_kernels.merge_cams_to_roi.default,
            (i["maps"], i["image_labels"], list(i["size"]), [7, 5], 0.7, 0.25),
        )
    ],
    sample=lambda: map_inputs(**LIMITS),
    edges={name: lambda make=make: make() | LIMITS for name, make in MERGE_EDGES.items()}
    | {name: lambda limits=limits: map_inputs(**limits) for name, limits in LIMIT_EDGES.items()},
    bad=BAD_MAPS | BAD_LIMITS | {"image_labels: none": lambda i: i | {"image_labels": None}},
)


def cam_inputs(batch=3, classes=5, size=(22, 27), *, present=None, maps=False, **others):
    generator = torch.Generator().manual_seed(batch * classes * size[0] * size[1])
    if present is None:
        present = (torch.rand(batch, classes, generator=generator) < 0.4).double()
    inputs = {
        "cams": torch.rand(batch, classes, *size, generator=generator, dtype=torch.float64),
        "image_labels": present,
        **LIMITS,
    }
    if maps:
        inputs["high"] = 0.5 + 0.4 * torch.rand(batch, 1, *size, generator=generator, dtype=torch.float64)
        inputs["low"] = 0.4 * torch.rand(batch, 1, *size, generator=generator, dtype=torch.float64)
    return inputs | others


def with_ties(inputs):
    """Few values, so that classes tie with each other and with the thresholds."""
    return inputs | {"cams": (inputs["cams"] * 4).round() / 4, "high": 0.75, "low": 0.25}


def spoilt_cams(inputs, present):
    """NaN in absent classes, which changes nothing, or in present ones, which wins."""
    which = ((inputs["image_labels"] != 0) == present)[:, :, None, None]
    return inputs | {"cams": inputs["cams"].masked_fill(which & (inputs["cams"] < 0.3), torch.nan)}


CAM_EDGES = {
    "as in ToCo": lambda: cam_inputs(2, 20, (96, 96)),
    "more than one block": lambda: cam_inputs(1, 3, (257, 301)),
    "ties": lambda: with_ties(cam_inputs()),
    "no class present": lambda: cam_inputs(present=torch.zeros(3, 5)),
    "every class present": lambda: cam_inputs(present=torch.ones(3, 5)),
    "integer labels": lambda: cam_inputs(present=torch.tensor([[1, 0, 3, 0, 0]] * 3)),
    "one class": lambda: cam_inputs(classes=1),
    "one pixel": lambda: cam_inputs(size=(1, 1)),
    "no pixels": lambda: cam_inputs(size=(0, 7)),
    "NaN in absent classes": lambda: spoilt_cams(cam_inputs(), False),
    "negative": lambda: cam_inputs() | {"cams": -cam_inputs()["cams"]},
    "empty batch": lambda: cam_inputs(0),
} | {name: lambda limits=limits: cam_inputs(**limits) for name, limits in LIMIT_EDGES.items()}
BAD_CAMS = {
    "cams: not a tensor": lambda i: i | {"cams": "x"},
    "cams: wrong rank": lambda i: i | {"cams": i["cams"][0]},
    "cams: integers": lambda i: i | {"cams": i["cams"].long()},
    "cams: no classes": lambda i: i | {"cams": i["cams"][:, :0]},
    "image_labels: not a tensor": lambda i: i | {"image_labels": i["image_labels"].tolist()},
    "image_labels: other classes": lambda i: i | {"image_labels": i["image_labels"][:, 1:]},
    "image_labels: complex": lambda i: i | {"image_labels": i["image_labels"].cfloat()},
    "image_labels: other device": lambda i: i | {"image_labels": i["image_labels"].to("meta")},
}


def label_operator(i, **maps):
    arguments = (i["cams"], i["image_labels"], i["boxes"], 0.7, 0.25, None, None, 255)
    overload = torch.ops.toco_kernels.cam_to_label.default
    return [(overload, arguments), (overload, (*arguments[:5], i["cams"][:, :1], i["cams"][:, 1:2], -7))]


CAM_TO_LABEL = Room(
    name="cam_to_label",
    function=toco_kernels.cam_to_label,
    reference=by_reference(toco_kernels.cam_to_label),
    scores=lambda i: label_scores(reference.present_cams(i["cams"], i["image_labels"]), i),
    operators=label_operator,
    sample=lambda: cam_inputs(boxes=BOXES),
    edges=CAM_EDGES
    | {
        "maps": lambda: cam_inputs(maps=True),
        "one map": lambda: cam_inputs(maps=True, low=0.1),
        "boxes": lambda: cam_inputs(boxes=BOXES, ignore_index=-1),
        "odd boxes": lambda: cam_inputs(boxes=ODD_BOXES),
    },
    bad=BAD_CAMS
    | BAD_LIMITS
    | BAD_BOXES
    | {
        "high: wrong shape": lambda i: i | {"high": i["cams"]},
        "low: wrong rank": lambda i: i | {"low": i["cams"][0]},
    },
)

CAM_TO_ROI = Room(
    name="cam_to_roi",
    function=toco_kernels.cam_to_roi,
    reference=by_reference(toco_kernels.cam_to_roi),
    scores=lambda i: roi_scores(reference.present_cams(i["cams"], i["image_labels"]), i),
    operators=lambda i: [(torch.ops.toco_kernels.cam_to_roi.default, (i["cams"], i["image_labels"], 0.7, 0.25))],
    sample=cam_inputs,
    edges=CAM_EDGES,
    bad=BAD_CAMS | BAD_LIMITS,
)


def crop_inputs(batch=3, channels=3, height=37, width=50, *, crops=8, size=12, uncertain=0.7):
    generator = torch.Generator().manual_seed(batch * channels * height * width)
    coarse = torch.rand(batch, 1, 5, 5, generator=generator)  # regions are connected
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[:, 0]
    return {
        "images": torch.rand(batch, channels, height, width, generator=generator, dtype=torch.float64),
        "roi": (smooth > 0.55).byte() + (smooth > uncertain).byte(),
        "draws": torch.rand(batch, crops, generator=generator, dtype=torch.float64),
        "size": size,
    }


def with_roi(inputs, change):
    roi = inputs["roi"].clone()
    change(roi)
    return inputs | {"roi": roi}


CROP_UNCERTAIN = Room(
    name="crop_uncertain",
    function=crop_where_drawn,
    reference=by_reference(crop_where_drawn),
    operators=lambda i: [
        (torch.ops.toco_kernels.crop_uncertain.default, (i["images"], i["roi"], i["draws"].double(), i["size"]))
    ],
    sample=crop_inputs,
    edges={
        "as in ToCo": lambda: crop_inputs(2, height=160, width=200, size=96),
        "odd size": lambda: crop_inputs(size=13),
        "one pixel": lambda: crop_inputs(size=1),
        "one place": lambda: crop_inputs(height=13, width=13, size=12, crops=1),
        "every place": lambda: crop_inputs(height=10, width=7, size=4, crops=18),
        "one image channel": lambda: crop_inputs(channels=1),
        "no candidates": lambda: with_roi(crop_inputs(), lambda roi: roi.fill_(2)),
        "fewer candidates than crops": lambda: with_roi(crop_inputs(), lambda roi: roi.fill_(2)[:, 20, 20:27].zero_()),
        "as many candidates as crops": lambda: with_roi(crop_inputs(), lambda roi: roi.fill_(2)[:, 20, 20:28].zero_()),
        "all background": lambda: with_roi(crop_inputs(), lambda roi: roi.zero_()),
        "a fifth": lambda: with_roi(crop_inputs(size=5), lambda roi: roi.zero_()[:, :, ::5].fill_(1)),
        "last of all": lambda: crop_inputs() | {"draws": torch.full((3, 8), 1 - 2.0**-53, dtype=torch.float64)},
        "first of all": lambda: crop_inputs() | {"draws": torch.zeros(3, 8, dtype=torch.float64)},
        "no channels": lambda: crop_inputs(channels=0),
        "empty batch": lambda: crop_inputs(0),
    },
    bad={
        "images: not a tensor": lambda i: i | {"images": "x"},
        "images: wrong rank": lambda i: i | {"images": i["images"][0]},
        "images: integers": lambda i: i | {"images": i["images"].byte()},
        "roi: wrong rank": lambda i: i | {"roi": i["roi"][0]},
        "roi: fractions": lambda i: i | {"roi": i["roi"].float()},
        "roi: other size": lambda i: i | {"roi": i["roi"][:, 1:]},
        "roi: other device": lambda i: i | {"roi": i["roi"].to("meta")},
        "size: zero": lambda i: i | {"size": 0},
        "size: a fraction": lambda i: i | {"size": 9.5},
        "size: larger than the image": lambda i: i | {"size": 38},
        "crops: more than places": lambda i: i | {"size": 36, "draws": i["draws"].repeat(1, 2)},
    },
)


def loss_inputs(batch=2, classes=6, size=(12, 19), *, labels=None, scale=3.0, dtype=torch.int64, **others):
    generator = torch.Generator().manual_seed(batch * classes * size[0] * size[1])
    if labels is None:
        labels = torch.randint(classes, (batch, *size), generator=generator)
        labels[torch.rand(batch, *size, generator=generator) < 0.3] = 0
        labels[torch.rand(batch, *size, generator=generator) < 0.2] = 255
        labels[:, :1, :1] = min(1, classes - 1)
    else:
        labels = torch.tensor(labels).expand(batch, *size).contiguous()
    logits = torch.randn(batch, classes, *size, generator=generator, dtype=torch.float64) * scale
    return {"logits": logits, "labels": labels.to(dtype)} | others


def spoilt_logits(inputs):
    ignored = (inputs["labels"] == 255)[:, None]
    return inputs | {"logits": inputs["logits"].masked_fill(ignored, torch.nan)}


SEGMENTATION_LOSS = Room(
    name="segmentation_loss",
    function=toco_kernels.segmentation_loss,
    reference=lambda logits, labels, ignore_index=255: reference.segmentation_loss(logits, labels.long(), ignore_index),
    operators=lambda i: [
        (torch.ops.toco_kernels.segmentation_loss.default, (i["logits"], i["labels"], 255, with_grad))
        for with_grad in (True, False)
    ],
    sample=loss_inputs,
    edges={
        "as in ToCo": lambda: loss_inputs(2, 21, (64, 64)),
        "several blocks": lambda: loss_inputs(1, 3, (130, 77)),
        "no background": lambda: loss_inputs(labels=3),
        "no objects": lambda: loss_inputs(labels=0),
        "all ignored": lambda: loss_inputs(labels=255),
        "NaN in ignored pixels": lambda: spoilt_logits(loss_inputs()),
        "another ignored label": lambda: loss_inputs(size=(4, 4), ignore_index=2, labels=[0, 2, 1, 3]),
        "background ignored": lambda: loss_inputs(ignore_index=0, labels=4),
        "small integers": lambda: loss_inputs(dtype=torch.uint8),
        "one class": lambda: loss_inputs(classes=1),
        "one pixel": lambda: loss_inputs(1, size=(1, 1), labels=2),
        "many classes": lambda: loss_inputs(1, 81, (9, 11)),
        "large logits": lambda: loss_inputs(scale=80.0),
        "equal logits": lambda: loss_inputs(scale=0.0),
        "empty batch": lambda: loss_inputs(0),
    },
    bad={
        "logits: not a tensor": lambda i: i | {"logits": [[1.0]]},
        "logits: wrong rank": lambda i: i | {"logits": i["logits"][0]},
        "logits: integers": lambda i: i | {"logits": i["logits"].long()},
        "logits: no classes": lambda i: i | {"logits": i["logits"][:, :0]},
        "labels: not a tensor": lambda i: i | {"labels": i["labels"].tolist()},
        "labels: wrong rank": lambda i: i | {"labels": i["labels"][0]},
        "labels: fractions": lambda i: i | {"labels": i["labels"].float()},
        "labels: other size": lambda i: i | {"labels": i["labels"][:, 1:]},
        "labels: other device": lambda i: i | {"labels": i["labels"].to("meta")},
        "ignore_index: a fraction": lambda i: i | {"ignore_index": 0.5},
    },
    differentiable=("logits",),
    terms=130 * 77,
    magnitude=1.0,
    is_loss=True,
)
