"""Sample inputs of cam: merging, labels and regions."""

import torch

import toco_kernels
from toco_kernels.cam import reference

from .room import Room, by_reference


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
    # Source positions on an integer, which instruction sets round differently.
    "257 rows from 17": lambda: map_inputs(1, 2, (257, 3), scales=((17, 2),)),
    "257 rows from 33": lambda: map_inputs(1, 2, (257, 1), scales=((33, 1),)),
    "513 rows from 65": lambda: map_inputs(1, 2, (513, 1), scales=((65, 1), (33, 2))),
    "257 rows from 5, and 129 of them": lambda: map_inputs(1, 1, (257, 4), scales=((5, 3),), out_size=(129, 2)),
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
