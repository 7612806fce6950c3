"""Refinement by affinity: memory-bound, and where the published code fills and empties gigabytes."""

from functools import cache

import torch
import torch.nn.functional as F
from harness import DEVICE, Bench, Case

from toco_kernels import affinity_refine, refine_cam_labels
from toco_kernels.affinity_refine import reference
from toco_kernels.affinity_refine.op import DILATIONS

NEIGHBOURS = 8 * len(DILATIONS)
ITERATIONS = 10


def inputs(generator, *, batch=1, channels, size):
    """A smooth image with some noise, and smooth masks."""
    coarse = torch.rand(batch, 3 + channels, size // 16, size // 16, generator=generator)
    smooth = F.interpolate(coarse, size=(size, size), mode="bilinear")
    noise = 0.05 * torch.randn(batch, 3, size, size, generator=generator)
    return {"image": smooth[:, :3] + noise, "masks": smooth[:, 3:].contiguous()}


def flop(direction, *, image, masks):
    return 2 * NEIGHBOURS * (8 * image.numel() + ITERATIONS * masks.numel())


def shifted(x, d):
    """The eight neighbours at distance d, as views of one padded tensor."""
    height, width = x.shape[2:]
    padded = F.pad(x, [d] * 4, mode="replicate")
    corners = [(row, column) for row in (0, d, 2 * d) for column in (0, d, 2 * d) if (row, column) != (d, d)]
    return [padded[:, :, row : row + height, column : column + width] for row, column in corners]


def weights_of(image):
    """PAR's weights, one neighbour at a time: (P, B, 1, H, W)."""
    mean = sum(x for d in DILATIONS for x in shifted(image, d)) / NEIGHBOURS
    square = torch.zeros_like(mean)
    for d in DILATIONS:
        for x in shifted(image, d):
            difference = x - mean
            square.addcmul_(difference, difference)
    width = (square / (NEIGHBOURS - 1)).sqrt_().add_(1e-8).mul_(0.3)
    weights = image.new_empty(NEIGHBOURS, image.shape[0], 1, *image.shape[2:])
    for k, x in enumerate(x for d in DILATIONS for x in shifted(image, d)):
        torch.mean(((x - image) / width).square_(), dim=1, keepdim=True, out=weights[k])
    weights = weights.neg_().softmax(dim=0)
    return weights.add_(by_distance(weights.device, weights.dtype))


@cache
def by_distance(device, dtype):
    ring = [2**0.5, 1, 2**0.5, 1, 1, 2**0.5, 1, 2**0.5]
    distance = torch.tensor([d * r for d in DILATIONS for r in ring], device=device, dtype=dtype)
    return (-((distance / distance.std() / 0.3) ** 2)).softmax(dim=0).mul_(0.01).view(-1, 1, 1, 1, 1)


def averaged(masks, weights):
    for _ in range(ITERATIONS):
        total = torch.zeros_like(masks)
        for k, x in enumerate(x for d in DILATIONS for x in shifted(masks, d)):
            total.addcmul_(weights[k], x)
        masks = total
    return masks


@torch.no_grad()
def rewrite(image, masks):
    """Padding and slices instead of convolutions, one neighbour at a time into one sum: nothing has 48 copies."""
    return averaged(masks, weights_of(image))


def published(image, masks):
    return reference.affinity_refine(image, masks, list(DILATIONS), ITERATIONS, "par")


BENCH = Bench(
    room="affinity_refine",
    op="affinity_refine",
    providers={"toco_kernels": affinity_refine, "published": published, "rewrite": rewrite},
    inputs=inputs,
    flop=flop,
    tiny={"channels": 1, "size": 32},
    cases=[
        Case("448, 8 channels", {"channels": 8, "size": 448}, decisive=True),
        Case("224, 3 channels", {"channels": 3, "size": 224}),
        Case("448, 21 channels", {"channels": 21, "size": 448}),
        *([Case("1024, 21 channels", {"channels": 21, "size": 1024})] if DEVICE == "cuda" else []),  # published: 13 GB
    ],
)


@BENCH.every_case
def test_affinity_refine(case, direction, compare):
    compare(BENCH, case, direction)


def label_inputs(generator, *, batch, size, classes=20, present=2):
    maps = inputs(generator, batch=batch, channels=classes, size=size)
    labels = torch.zeros(batch, classes)
    for row in labels:
        row[torch.randperm(classes, generator=generator)[:present]] = 1
    boxes = torch.tensor([[0, size, 0, size]] * batch)
    return {"image": maps["image"], "cams": maps["masks"], "image_labels": labels, "boxes": boxes, **THRESHOLDS}


THRESHOLDS = {"high": 0.7, "low": 0.25}


def published_labels(image, cams, image_labels, boxes, high, low):
    backgrounds = (torch.full_like(cams[:, 0], score) for score in (high, low))
    others = 255, 2, list(DILATIONS), ITERATIONS, "par", -1
    return reference.refine_cam_labels(image, cams, image_labels, boxes, *backgrounds, *others)


@torch.no_grad()
def rewrite_labels(image, cams, image_labels, boxes, high, low):
    """Weights once for all images, both backgrounds of an image together; images differ in their classes."""
    size, small = cams.shape[2:], [n // 2 for n in cams.shape[2:]]
    weights = weights_of(F.interpolate(image, size=small, mode="bilinear"))
    labels = torch.full((len(cams), *size), 255, device=cams.device)
    for b, (y0, y1, x0, x1) in enumerate(boxes.tolist()):
        present = image_labels[b].nonzero()[:, 0]
        channels = F.interpolate(cams[b, None, present], size=small, mode="bilinear")
        runs = [torch.cat([torch.full_like(channels[:, :1], s), channels], 1).softmax(1) for s in (high, low)]
        refined = averaged(torch.cat(runs, dim=1), weights[:, b : b + 1])
        with_high, with_low = F.interpolate(refined, size=size, mode="bilinear")[0].unflatten(0, (2, -1)).argmax(dim=1)
        classes = torch.cat([present.new_full((1,), 255), present + 1])
        label = torch.where((with_high == 0) & (with_low == 0), 0, classes[with_high])
        labels[b, y0:y1, x0:x1] = label[y0:y1, x0:x1]
    return labels


LABELS = Bench(
    room="affinity_refine",
    op="refine_cam_labels",
    providers={"toco_kernels": refine_cam_labels, "published": published_labels, "rewrite": rewrite_labels},
    inputs=label_inputs,
    flop=lambda direction, *, image, cams, image_labels, **_: flop(
        direction, image=image[..., ::2, ::2], masks=cams[:, : 2 * (1 + int(image_labels[0].sum())), ::2, ::2]
    ),
    tiny={"batch": 1, "size": 32},
    cases=[
        Case("ToCo, two images", {"batch": 2, "size": 448}, decisive=True),
        Case("COCO, four images", {"batch": 4, "size": 448, "classes": 80, "present": 5}),
    ],
)


@LABELS.every_case
def test_refine_cam_labels(case, direction, compare):
    compare(LABELS, case, direction)
