"""Sample inputs of cam: crops, and the segmentation loss."""

import torch

import toco_kernels
from toco_kernels.cam import reference
from toco_kernels.cam.crops import crop_where_drawn

from .room import Room, by_reference


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


WILD_DRAWS = [torch.nan, -1e9, 1e300, torch.inf, -torch.inf, 1.0, -0.25, 1.5]  # the nearest in [0, 1), NaN is 0

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
        "draws out of range": lambda: crop_inputs() | {"draws": torch.tensor([WILD_DRAWS] * 3, dtype=torch.float64)},
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
        "draws: not a tensor": lambda i: i | {"draws": [0.5]},
        "draws: wrong rank": lambda i: i | {"draws": i["draws"][0]},
        "draws: integers": lambda i: i | {"draws": i["draws"].long()},
        "draws: other batch": lambda i: i | {"draws": i["draws"][1:]},
        "draws: other device": lambda i: i | {"draws": i["draws"].to("meta")},
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
