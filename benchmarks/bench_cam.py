"""CAMs at ToCo's sizes: maps of three scales to labels, regions of CAMs of full size, crops, and the loss."""

import torch
import torch.nn.functional as F

from toco_kernels.cam import reference

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
