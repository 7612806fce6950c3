"""Sample inputs of affinity_refine."""

import torch

import toco_kernels
from toco_kernels.affinity_refine import reference
from toco_kernels.testing import reference_only

from .room import Room


def refine_inputs(
    batch=2, channels=3, height=13, width=18, *, colours=3, dilations=(1, 2, 5), iterations=3, kind="par"
):
    generator = torch.Generator().manual_seed(batch * channels * height * width)
    return {
        "image": torch.rand(batch, colours, height, width, generator=generator, dtype=torch.float64) * 255,
        "masks": torch.rand(batch, channels, height, width, generator=generator, dtype=torch.float64),
        "dilations": list(dilations),
        "iterations": iterations,
        "kind": kind,
    }


def flat(inputs):
    """One colour per image: no deviation at all, and 1e-8 decides."""
    return inputs | {"image": torch.full_like(inputs["image"], 7.0)}


AFFINITY_REFINE = Room(
    name="affinity_refine",
    function=toco_kernels.affinity_refine,
    reference=reference.affinity_refine,
    operators=lambda inputs: [
        (torch.ops.toco_kernels.affinity_refine.default, (*inputs.values(), False)),
        (
            torch.ops.toco_kernels.affinity_refine_backward.default,
            (inputs["masks"], inputs["image"], *[*inputs.values()][2:], False),
        ),
    ],
    sample=refine_inputs,
    edges={
        "as in ToCo": lambda: refine_inputs(1, 4, 56, 56, dilations=(1, 2, 4, 8, 12, 24), iterations=10),
        "pamr": lambda: refine_inputs(kind="pamr"),
        "pamr, 1-stage": lambda: refine_inputs(1, 4, 33, 47, dilations=(1, 2, 4, 8, 12, 24), kind="pamr"),
        "one pixel": lambda: refine_inputs(32, 8, 1, 1),
        "one row": lambda: refine_inputs(1, 3, 1, 40),
        "one column": lambda: refine_inputs(1, 3, 40, 1),
        "whole blocks": lambda: refine_inputs(1, 9, 5, 32),
        "one channel": lambda: refine_inputs(1, 1),
        "many channels": lambda: refine_inputs(1, 29, 7, 17),
        "one colour": lambda: refine_inputs(colours=1),
        "five colours": lambda: refine_inputs(colours=5, kind="pamr"),
        "flat colour": lambda: flat(refine_inputs()),
        "flat colour, pamr": lambda: flat(refine_inputs(kind="pamr")),
        "one dilation": lambda: refine_inputs(16, dilations=(3,)),  # few pixels decide
        "dilation beyond the image": lambda: refine_inputs(dilations=(1, 30)),
        "no iterations": lambda: refine_inputs(iterations=0),
        "one iteration": lambda: refine_inputs(iterations=1),
        "fewer channels than colours": lambda: refine_inputs(3, 1, 9, 9, colours=5, iterations=1),
        "empty batch": lambda: refine_inputs(0),
    },
    bad={
        "image: not a tensor": lambda i: i | {"image": "x"},
        "image: wrong rank": lambda i: i | {"image": i["image"][0]},
        "image: integers": lambda i: i | {"image": i["image"].byte()},
        "image: no colours": lambda i: i | {"image": i["image"][:, :0]},
        "image: no pixels": lambda i: i | {"image": i["image"][:, :, :0]},
        "image: wants a gradient": lambda i: i | {"image": i["image"].clone().requires_grad_()},
        "masks: wrong rank": lambda i: i | {"masks": i["masks"][:, 0]},
        "masks: complex": lambda i: i | {"masks": i["masks"].cfloat()},
        "masks: integers": lambda i: i | {"masks": i["masks"].long()},
        "masks: no pixels": lambda i: i | {"masks": i["masks"][..., :0]},
        "masks: other batch": lambda i: i | {"masks": i["masks"][:1]},
        "masks: other device": lambda i: i | {"masks": i["masks"].to("meta")},
        "dilations: empty": lambda i: i | {"dilations": []},
        "dilations: zero": lambda i: i | {"dilations": [1, 0]},
        "dilations: fractions": lambda i: i | {"dilations": [1.5]},
        "dilations: a number": lambda i: i | {"dilations": 3},
        "iterations: negative": lambda i: i | {"iterations": -1},
        "iterations: a fraction": lambda i: i | {"iterations": 1.5},
        "kind: unknown": lambda i: i | {"kind": "crf"},
        "resize: unknown": lambda i: i | {"resize": "both"},
        "precision: unknown": lambda i: i | {"precision": "half"},
    },
    differentiable=("masks",),
    terms=8 * 6 * 10,
    magnitude=1.0,
)


def label_inputs(batch=3, classes=5, height=22, width=27, *, present=None, maps=False, **others):
    generator = torch.Generator().manual_seed(batch * classes * height * width)
    if present is None:
        present = (torch.rand(batch, classes, generator=generator) < 0.4).double()
    inputs = {
        "image": torch.rand(batch, 3, height, width, generator=generator, dtype=torch.float64),
        "cams": torch.rand(batch, classes, height, width, generator=generator, dtype=torch.float64)
        * torch.linspace(0, 1.5, width, dtype=torch.float64),  # background, doubt and objects from left to right
        "image_labels": present,
        "boxes": torch.tensor([[0, height, 0, width], [3, height - 2, 1, 20], [5, 9, -4, 999]])[:batch],
        "high": 0.7,
        "low": 0.25,
        "dilations": [1, 2, 5],
        "iterations": 4,
        "max_classes": classes,
    }
    if maps:
        shape = (batch, 1, height, width)
        inputs["high"] = 0.5 + 0.4 * torch.rand(shape, generator=generator, dtype=torch.float64)
        inputs["low"] = 0.4 * torch.rand(shape, generator=generator, dtype=torch.float64)
    return inputs | others


def label_reference(**inputs):
    with reference_only():
        return toco_kernels.refine_cam_labels(**inputs)


def label_scores(inputs):
    """Per image, what its labels with the high and with the low background are the argmax of."""
    scores = []
    for b, cams in enumerate(inputs["cams"]):
        present = inputs["image_labels"][b].nonzero()[:, 0][: inputs["max_classes"]]
        for name in ("high", "low"):
            given = inputs[name]
            background = given[b, 0] if isinstance(given, torch.Tensor) else cams.new_full(cams.shape[1:], given)
            scores.append(
                reference.refined_scores(
                    inputs["image"][b],
                    cams,
                    background,
                    present,
                    inputs.get("down_scale", 2),
                    inputs["dilations"],
                    inputs["iterations"],
                    inputs.get("kind", "par"),
                )
            )
    return scores


def label_operator(i):
    maps = [i[name] if isinstance(i[name], torch.Tensor) else None for name in ("high", "low")]
    numbers = [0.0 if isinstance(i[name], torch.Tensor) else i[name] for name in ("high", "low")]
    others = (255, 2, i["dilations"], i["iterations"], "par", i["max_classes"])
    overload = torch.ops.toco_kernels.refine_cam_labels.default
    return [(overload, (i["image"], i["cams"], i["image_labels"], i["boxes"], *numbers, *maps, *others))]


REFINE_CAM_LABELS = Room(
    name="refine_cam_labels",
    function=toco_kernels.refine_cam_labels,
    reference=label_reference,
    scores=label_scores,
    operators=label_operator,
    sample=label_inputs,
    edges={
        "as in ToCo": lambda: label_inputs(2, 20, 96, 96, dilations=[1, 2, 4, 8, 12, 24], iterations=10, boxes=None),
        "maps": lambda: label_inputs(maps=True),
        "pamr": lambda: label_inputs(kind="pamr"),
        "full size": lambda: label_inputs(down_scale=1),
        "a third": lambda: label_inputs(down_scale=3),
        "one pixel left": lambda: label_inputs(1, 3, 5, 5, down_scale=5),
        "no class present": lambda: label_inputs(present=torch.zeros(3, 5)),
        "every class present": lambda: label_inputs(present=torch.ones(3, 5)),
        "boolean labels": lambda: label_inputs(present=torch.tensor([[True, False, True, False, False]] * 3)),
        "few classes at most": lambda: label_inputs(present=torch.ones(3, 5), max_classes=2),
        "no classes": lambda: label_inputs(classes=0),
        "empty box": lambda: label_inputs(boxes=torch.tensor([[4, 4, 0, 9], [9, 3, 0, 9], [50, 60, 0, 9]])),
        "empty batch": lambda: label_inputs(0, boxes=None),
    },
    bad={
        "image: wrong rank": lambda i: i | {"image": i["image"][0]},
        "image: integers": lambda i: i | {"image": i["image"].byte()},
        "image: other size": lambda i: i | {"image": i["image"][..., 1:]},
        "image: other device": lambda i: i | {"image": i["image"].to("meta")},
        "cams: wrong rank": lambda i: i | {"cams": i["cams"][0]},
        "cams: integers": lambda i: i | {"cams": i["cams"].long()},
        "image_labels: wrong rank": lambda i: i | {"image_labels": i["image_labels"][0]},
        "image_labels: other classes": lambda i: i | {"image_labels": i["image_labels"][:, 1:]},
        "image_labels: complex": lambda i: i | {"image_labels": i["image_labels"].cfloat()},
        "boxes: wrong shape": lambda i: i | {"boxes": i["boxes"][:, 1:]},
        "boxes: fractions": lambda i: i | {"boxes": i["boxes"].float()},
        "high: wrong shape": lambda i: i | {"high": i["cams"]},
        "low: wrong rank": lambda i: i | {"low": i["cams"][0]},
        "down_scale: zero": lambda i: i | {"down_scale": 0},
        "down_scale: nothing left": lambda i: i | {"down_scale": 23},
        "iterations: negative": lambda i: i | {"iterations": -1},
        "dilations: empty": lambda i: i | {"dilations": []},
        "kind: unknown": lambda i: i | {"kind": "crf"},
        "max_classes: negative": lambda i: i | {"max_classes": -1},
    },
)
