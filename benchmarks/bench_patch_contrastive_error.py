"""Patch contrastive error at the sizes of TKP-PCL: sums of unit vectors, or products where there are logarithms."""

import torch
import torch.nn.functional as F
from bench_patch_contrast import smooth, through_lengths, unit_vectors
from by_hand import by_hand
from harness import DEVICE, TRAINING, Bench, Case

from toco_kernels import patch_contrastive_error
from toco_kernels.patch_contrast import reference

THRESHOLD = 0.95


def inputs(generator, *, batch, patches, width, classes, form, present=2):
    """Random tokens (B, N, D), and scores (B, N, C) of blobs: sure within, in doubt between them."""
    side = round(patches**0.5)
    labels = torch.zeros(batch, classes - 1)
    for row in labels:
        row[torch.randperm(classes - 1, generator=generator)[:present]] = 1
    there = F.pad(labels, (1, 0), value=1.0)
    scores = 6 * smooth(generator, batch, classes, side, 5).flatten(2).mT + 20 * there[:, None]
    return {
        "tokens": torch.randn(batch, patches, width, generator=generator),
        "scores": scores.softmax(dim=2),
        "image_labels": labels,
        "form": form,
    }


def sides(scores, image_labels):
    """Who is high and who is low in which class (B, N, K); absent classes are left out where the host may wait."""
    there = F.pad(image_labels != 0, (1, 0), value=True)
    if DEVICE != "cuda":
        classes = there.int().topk(int(there.sum(dim=1).max()), dim=1).indices
        scores = scores.gather(2, classes[:, None].expand(-1, scores.shape[1], -1))
        there = there.gather(1, classes)
    there = there.unsqueeze(1)
    return (scores > THRESHOLD) & there, (scores < 1 - THRESHOLD) & there


def flop(direction, *, tokens, scores, image_labels, form):
    """Linear: sums of unit vectors, and back from them. Logarithmic: products, those of high and high by symmetry."""
    high, low = (side.sum(dim=1) for side in sides(scores, image_labels))
    once = int((high * high + 2 * high * low).sum() if form == "log" else (high + low).sum()) * tokens.shape[2]
    return 3 * once if direction == TRAINING else once


def published(tokens, scores, image_labels, form):
    classes = F.pad(image_labels, (1, 0), value=1.0)
    return reference.patch_contrastive_error(tokens, scores, classes, THRESHOLD, form)


def rewrite(tokens, scores, image_labels, form):
    """The gradient by hand, absent classes left out.

    The linear form is two products with the masks of high and low, for the batch at once. Tried besides, on a CPU with
    21 classes: all of them instead of the three that are present, 1.4 times the time; autograd instead of hands, 1.6.
    The logarithmic form is the published loop, with lengths divided out once for each image.
    """
    return by_hand(error_at_once, tokens, scores, image_labels, form)


def error_at_once(tokens, scores, image_labels, form, with_grad):
    high, low = sides(scores, image_labels)
    unit, norm = unit_vectors(tokens)
    loss, grad = (logarithmic if form == "log" else linear)(unit, high, low, with_grad)
    return loss, through_lengths(unit, norm, grad)[0] if with_grad else None


def linear(unit, high, low, with_grad):
    """The loss, and its gradient by unit vectors but for what is parallel to them."""
    members = torch.cat([high, low], dim=2).to(unit.dtype)  # (B, N, 2K)
    n, m = members.sum(dim=1).chunk(2, dim=1)  # (B, K)
    u, v = (members.mT @ unit).to(unit.dtype).chunk(2, dim=1)  # (B, K, D)
    alike = (n > 1) / (n * (n - 1)).clamp_min(1) / (n > 1).sum().clamp_min(1)
    both = n * m > 0
    apart = both / (2 * n * m).clamp_min(1) / both.sum().clamp_min(1)
    square, dot = torch.linalg.vecdot(u, u), torch.linalg.vecdot(u, v)
    loss = (alike * (n * n - square) / 2 + apart * (n * m + dot)).sum()
    if not with_grad:
        return loss, None
    alike, apart = alike.unsqueeze(2), apart.unsqueeze(2)
    return loss, (members @ torch.cat([apart * v - alike * u, apart * u], dim=1)).to(unit.dtype)


def logarithmic(unit, high, low, with_grad):
    """The same for the logarithmic form."""
    n, m = high.sum(dim=1).tolist(), low.sum(dim=1).tolist()
    terms = [(b, k) for b, row in enumerate(n) for k in range(len(row))]
    alike = 1 / max(1, sum(n[b][k] > 1 for b, k in terms))
    apart = 1 / max(1, sum(n[b][k] > 0 and m[b][k] > 0 for b, k in terms))
    loss, grad = unit.new_zeros(()), torch.zeros_like(unit) if with_grad else None

    def add(b, rows, columns, sign, weight):
        """Minus the logarithm of (1 + sign * cosine) / 2 of some pairs; those of one patch with itself are none."""
        x, y = unit[b, rows], unit[b, columns]
        share = (x @ y.T).to(unit.dtype).mul_(sign).add_(1).div_(2)
        if columns is rows:
            share.fill_diagonal_(1)
        loss.sub_(share.clamp_min(reference.LEAST).log_().sum(), alpha=weight)
        if with_grad:
            slope = share.reciprocal().mul_(share >= reference.LEAST)
            if columns is rows:
                grad[b].index_add_(0, rows, (slope.fill_diagonal_(0) @ x).to(unit.dtype), alpha=-sign * weight)
            else:
                grad[b].index_add_(0, rows, (slope @ y).to(unit.dtype), alpha=-sign * weight / 2)
                grad[b].index_add_(0, columns, (slope.T @ x).to(unit.dtype), alpha=-sign * weight / 2)

    for b, k in terms:
        rows, columns = high[b, :, k].nonzero()[:, 0], low[b, :, k].nonzero()[:, 0]
        if len(rows) > 1:
            add(b, rows, rows, 1, alike / (len(rows) * (len(rows) - 1)))
        if len(rows) and len(columns):
            add(b, rows, columns, -1, apart / (len(rows) * len(columns)))
    return loss, grad


TKP_PCL = {"batch": 8, "patches": 576, "width": 768, "classes": 21, "form": "linear"}

BENCH = Bench(
    room="patch_contrast",
    op="patch_contrastive_error",
    providers={"toco_kernels": patch_contrastive_error, "published": published, "rewrite": rewrite},
    inputs=inputs,
    differentiable=("tokens",),
    flop=flop,
    tiny={"batch": 1, "patches": 64, "width": 16, "classes": 4, "form": "linear"},
    cases=[
        Case("linear, VOC", TKP_PCL, decisive=True),
        Case("linear, VOC, bfloat16", TKP_PCL, torch.bfloat16),
        Case("linear, COCO, five classes", TKP_PCL | {"classes": 81, "present": 5}),
        Case("logarithmic, VOC", TKP_PCL | {"form": "log"}, decisive=True),
        Case("logarithmic, N=1600", TKP_PCL | {"form": "log", "patches": 1600, "batch": 2}),
    ],
)


@BENCH.every_case
def test_patch_contrastive_error(case, direction, compare):
    compare(BENCH, case, direction)
