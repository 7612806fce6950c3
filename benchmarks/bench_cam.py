"""CAMs at ToCo's sizes: maps of three scales to labels, regions of CAMs of full size, crops, and the loss."""

import torch
import torch.nn.functional as F
from harness import TRAINING, Bench, Case

from toco_kernels import cam_to_label, merge_cams, merge_cams_to_labels, segmentation_loss
from toco_kernels.cam import reference
from toco_kernels.cam.crops import crop_where_drawn

LIMITS = {"high": 0.7, "low": 0.25}


def present_labels(generator, batch, classes, present):
    labels = torch.zeros(batch, classes)
    for row in labels:
        row[torch.randperm(classes, generator=generator)[:present]] = 1
    return labels


def map_inputs(generator, *, batch, size, classes=20, present=2, scales=(1, 0.5, 1.5)):
    grids = [int(scale * size) // 16 for scale in scales]
    return {
        "maps": [torch.randn(2 * batch, classes, n, n, generator=generator) for n in grids],
        "size": (size, size),
        "image_labels": present_labels(generator, batch, classes, present),
        "boxes": torch.tensor([[size // 16, size - size // 16, 0, size]] * batch),
        **LIMITS,
    }


def published_labels(maps, size, image_labels, boxes, high, low):
    cams = reference.merge_cams(maps, None, size, size)
    return reference.cam_to_label(cams, image_labels, boxes, high, low, 255)


@torch.no_grad()
def rewrite_labels(maps, size, image_labels, boxes, high, low):
    """Only as many classes as the image with most of them has; no list of maps of full size, and nothing twice."""
    batch, most = len(image_labels), int(image_labels.sum(1).max())
    kept, classes = image_labels.topk(most, dim=1)
    classes, order = classes.sort(dim=1)  # the first of equals is the one with the lowest index
    kept = kept.gather(1, order)
    rows = torch.arange(batch, device=classes.device)[:, None]
    cams = None
    for x in maps:
        x = torch.cat([x[rows, classes], x[batch + rows, classes].flip(-1)])
        x = F.interpolate(x, size=size, mode="bilinear")
        larger = torch.maximum(x[:batch], x[batch:]).relu_()
        cams = larger if cams is None else cams.add_(larger)
    least, largest = (x[:, :, None, None] for x in torch.aminmax(cams.flatten(2), dim=2))
    scale = kept[:, :, None, None] / (largest - least + reference.EPSILON)
    value, label = cams.sub_(least).mul_(scale).max(dim=1)
    label = classes.gather(1, label.flatten(1)).view_as(label).add_(1)
    label.masked_fill_(value <= high, 255).masked_fill_(value <= low, 0)
    return inside(label, boxes)


def inside(label, boxes):
    """Ignored outside of the boxes, for the whole batch at once."""
    y, x = (torch.arange(n, device=label.device) for n in label.shape[1:])
    y0, y1, x0, x1 = boxes.T[..., None]
    rows, columns = (y0 <= y) & (y < y1), (x0 <= x) & (x < x1)
    return label.masked_fill_(~(rows[:, :, None] & columns[:, None]), 255)


LABELS = Bench(
    room="cam",
    op="merge_cams_to_labels",
    providers={"toco_kernels": merge_cams_to_labels, "published": published_labels, "rewrite": rewrite_labels},
    inputs=map_inputs,
    flop=lambda direction, *, maps, size, image_labels, **_: (
        2 * 2 * 6 * len(maps) * size[0] * size[1] * int(image_labels.sum())
    ),  # twice, of images and mirror images, three multiply-adds between four numbers
    tiny={"batch": 1, "size": 32},
    cases=[
        Case("ToCo, four images", {"batch": 4, "size": 448}, decisive=True),
        Case("COCO, four images", {"batch": 4, "size": 448, "classes": 80, "present": 5}),
        Case("ToCo, one scale", {"batch": 4, "size": 448, "scales": (1,)}),
    ],
)


@LABELS.every_case
def test_merge_cams_to_labels(case, direction, compare):
    compare(LABELS, case, direction)


def merge_inputs(generator, **sizes):
    inputs = map_inputs(generator, **sizes)
    return {name: inputs[name] for name in ("maps", "size")}


@torch.no_grad()
def rewrite_merge(maps, size):
    """Nothing twice, and nothing kept."""
    cams = None
    for x in maps:
        batch = len(x) // 2
        x = F.interpolate(torch.cat([x[:batch], x[batch:].flip(-1)]), size=size, mode="bilinear")
        larger = torch.maximum(x[:batch], x[batch:]).relu_()
        cams = larger if cams is None else cams.add_(larger)
    least, largest = (x[:, :, None, None] for x in torch.aminmax(cams.flatten(2), dim=2))
    return cams.sub_(least).div_(largest - least + reference.EPSILON)


MERGE = Bench(
    room="cam",
    op="merge_cams",
    providers={
        "toco_kernels": merge_cams,
        "published": lambda maps, size: reference.merge_cams(maps, None, size, size),
        "rewrite": rewrite_merge,
    },
    inputs=merge_inputs,
    flop=lambda direction, *, maps, size: 6 * size[0] * size[1] * sum(2 * x.shape[0] * x.shape[1] for x in maps),
    tiny={"batch": 1, "size": 32},
    cases=[Case("ToCo, all classes", {"batch": 4, "size": 448}, decisive=True)],
)


@MERGE.every_case
def test_merge_cams(case, direction, compare):
    compare(MERGE, case, direction)


def cam_inputs(generator, *, batch, size, classes=20, present=2):
    return {
        "cams": torch.rand(batch, classes, size, size, generator=generator),
        "image_labels": present_labels(generator, batch, classes, present),
        "boxes": torch.tensor([[size // 16, size - size // 16, 0, size]] * batch),
        **LIMITS,
    }


@torch.no_grad()
def rewrite_cam_to_label(cams, image_labels, boxes, high, low):
    """Present classes alone are gathered."""
    most = int(image_labels.sum(1).max())
    kept, classes = image_labels.topk(most, dim=1)
    classes, order = classes.sort(dim=1)
    rows = torch.arange(len(cams), device=cams.device)[:, None]
    value, label = cams[rows, classes].mul_(kept.gather(1, order)[:, :, None, None]).max(dim=1)
    label = classes.gather(1, label.flatten(1)).view_as(label).add_(1)
    return inside(label.masked_fill_(value <= high, 255).masked_fill_(value <= low, 0), boxes)


CAM_TO_LABEL = Bench(
    room="cam",
    op="cam_to_label",
    providers={
        "toco_kernels": cam_to_label,
        "published": lambda cams, image_labels, boxes, high, low: reference.cam_to_label(
            cams, image_labels, boxes, high, low, 255
        ),
        "rewrite": rewrite_cam_to_label,
    },
    inputs=cam_inputs,
    flop=lambda direction, *, cams, image_labels, **_: int(image_labels.sum()) * cams[0, 0].numel(),
    tiny={"batch": 1, "size": 32},
    cases=[Case("ToCo, four images", {"batch": 4, "size": 448}, decisive=True)],
)


@CAM_TO_LABEL.every_case
def test_cam_to_label(case, direction, compare):
    compare(CAM_TO_LABEL, case, direction)


def crop_inputs(generator, *, batch, size, crops=8, crop=96):
    coarse = torch.rand(batch, 1, 7, 7, generator=generator)
    smooth = F.interpolate(coarse, size=(size, size), mode="bilinear")[:, 0]
    return {
        "images": torch.rand(batch, 3, size, size, generator=generator),
        "roi": (smooth > 0.4).byte() + (smooth > 0.7).byte(),
        "draws": torch.rand(batch, crops, generator=generator),
        "size": crop,
    }


def published_crops(images, roi, draws, size):
    """As published, image by image; the given draws decide instead of the permutation, which is made all the same."""
    (batch, _, height, width), crops, margin = images.shape, draws.shape[1], size // 2
    cut = torch.zeros(batch, crops, images.shape[1], size, size).to(images)
    flags = torch.ones(batch, crops).to(images)
    for b in range(batch):
        places = (roi[b, margin : height - margin, margin : width - margin] <= 1).nonzero()
        torch.randperm(len(places))
        for i, rank in enumerate(ranks(draws[b].tolist(), len(places))):
            y, x = places[rank]
            cut[b, i] = images[b, :, y : y + size, x : x + size]
            if roi[b, y : y + size, x : x + size].sum() / (size * size) <= reference.SURELY_NEGATIVE:
                flags[b, i] = 0
    return torch.stack([crop[:, 0] for crop in cut.chunk(crops, dim=1)])


def ranks(draws, count):
    chosen = []
    for i, draw in enumerate(draws):
        rank = min(int(draw * (count - i)), count - i - 1)
        for earlier in sorted(chosen):
            rank += earlier <= rank
        chosen.append(rank)
    return chosen


@torch.no_grad()
def rewrite_crops(images, roi, draws, size):
    """Ranks among candidates are found in their running sum, all crops are gathered at once."""
    crops, margin = draws.shape[1], size // 2
    window = roi[:, margin : roi.shape[1] - margin, margin : roi.shape[2] - margin]
    width, candidate = window.shape[2], window.flatten(1) <= 1
    candidate |= (candidate.sum(1) < crops)[:, None]
    running = candidate.cumsum(dim=1)
    left = running[:, -1:]
    chosen = torch.full_like(draws, torch.iinfo(torch.int64).max, dtype=torch.int64)
    for i in range(crops):  # passes over those that are gone, in ascending order
        rank = (draws[:, i : i + 1].double() * (left - i)).long().minimum(left - i - 1)
        earlier = chosen[:, :i].sort(dim=1).values
        for k in range(i):
            rank += earlier[:, k : k + 1] <= rank
        chosen[:, i : i + 1] = rank
    place = torch.searchsorted(running, chosen + 1)
    y, x = place // width, place % width
    offset = torch.arange(size, device=images.device)
    index = ((y[:, :, None] + offset)[..., None] * images.shape[3] + (x[:, :, None] + offset)[:, :, None]).flatten(1)
    cut = images.flatten(2).gather(2, index[:, None].expand(-1, images.shape[1], -1))
    regions = roi.flatten(1).gather(1, index).unflatten(1, (crops, -1)).sum(dim=2)
    _flags = regions / (size * size) > reference.SURELY_NEGATIVE
    return cut.unflatten(2, (crops, size, size)).permute(2, 0, 1, 3, 4).contiguous()


CROPS = Bench(
    room="cam",
    op="crop_uncertain",
    providers={
        "toco_kernels": lambda **inputs: crop_where_drawn(**inputs)[0],
        "published": published_crops,
        "rewrite": rewrite_crops,
    },
    inputs=crop_inputs,
    flop=lambda direction, *, roi, draws, size, **_: roi.numel() + draws.numel() * size * size,
    tiny={"batch": 1, "size": 64, "crop": 16},
    cases=[Case("ToCo, four images", {"batch": 4, "size": 448}, decisive=True)],
)


@CROPS.every_case
def test_crop_uncertain(case, direction, compare):
    compare(CROPS, case, direction)


def loss_inputs(generator, *, batch, size, classes=21, ignored=0.3):
    labels = torch.randint(classes, (batch, size, size), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.5] = 0
    labels[torch.rand(labels.shape, generator=generator) < ignored] = 255
    return {"logits": torch.randn(batch, classes, size, size, generator=generator), "labels": labels}


def rewrite_loss(logits, labels):
    """One logarithm of the softmax for both halves, weighted by pixel."""
    ignored, background = labels == 255, labels == 0
    objects = ~(ignored | background)
    shares = background / (2 * background.sum().clamp(min=1)) + objects / (2 * objects.sum().clamp(min=1))
    return (F.cross_entropy(logits, labels, ignore_index=255, reduction="none") * shares).sum()


LOSS = Bench(
    room="cam",
    op="segmentation_loss",
    providers={
        "toco_kernels": segmentation_loss,
        "published": lambda logits, labels: reference.segmentation_loss(logits, labels, 255),
        "rewrite": rewrite_loss,
    },
    inputs=loss_inputs,
    differentiable=("logits",),
    flop=lambda direction, *, logits, **_: (20 if direction == TRAINING else 15) * logits.numel(),
    tiny={"batch": 1, "size": 32},
    cases=[
        Case("ToCo, four images", {"batch": 4, "size": 448}, decisive=True),
        Case("COCO, two images", {"batch": 2, "size": 448, "classes": 81}),
        Case("ToCo, bfloat16", {"batch": 4, "size": 448}, torch.bfloat16),
    ],
)


@LOSS.every_case
def test_segmentation_loss(case, direction, compare):
    compare(LOSS, case, direction)
