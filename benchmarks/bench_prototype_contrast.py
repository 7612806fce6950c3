"""Prototype contrast: pixels against prototypes, limited by reading the features once; and a whole step of PPC."""

import torch
import torch.nn.functional as F
from by_hand import by_hand
from harness import TRAINING, Bench, Case

from toco_kernels import prototype_contrast
from toco_kernels.prototype_contrast import reference
from toco_kernels.prototype_contrast.step import contrast_where_drawn


def smooth(generator, batch, channels, size, knots):
    """Random maps (B, channels, *size) that change slowly from pixel to pixel."""
    coarse = torch.randn(batch, channels, knots, knots, generator=generator)
    return F.interpolate(coarse, size=size, mode="bicubic")


def inputs(generator, *, batch, side, width=128, classes=21, ignored=0.0):
    """Features after a ReLU, as PPC has them; labels in blobs."""
    size = (side, side)
    labels = smooth(generator, batch, classes, size, 6).argmax(dim=1)
    labels[torch.rand(batch, *size, generator=generator) < ignored] = 255
    return {
        "features": torch.randn(batch, width, *size, generator=generator).add_(0.5).relu_(),
        "labels": labels,
        "prototypes": F.normalize(torch.rand(classes, width, generator=generator), dim=1),
    }


def flop(direction, *, features, labels, prototypes):
    """Two products of pixels that have a label with all prototypes."""
    once = 2 * int((labels != 255).sum()) * prototypes.numel()
    return 2 * once if direction == TRAINING else once


def published(features, labels, prototypes):
    """In float32, as published: in bfloat16 its gradient is off by more than verification allows."""
    features, prototypes = (x if x.dtype == torch.float64 else x.float() for x in (features, prototypes))
    return reference.prototype_contrast(features.flatten(2), labels.flatten(), prototypes, 0.1, 255)


def rewrite(features, labels, prototypes):
    """The gradient by hand, channels first throughout: no row of a pixel is ever gathered.

    Tried at 50k pixels: autograd through F.normalize and F.cross_entropy, on permuted features and on features as they
    are; the functions below with norms folded into the scores, over all pixels at once and image by image.
    """
    return by_hand(channels_first, features, labels, prototypes)


def channels_first(features, labels, prototypes, *, with_grad):
    x, labels = features.flatten(2), labels.flatten(1)
    inverse = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_min_(1e-12).reciprocal_()
    scores = torch.matmul(prototypes.to(x.dtype), x).float().mul_(inverse).mul_(10)
    targets = labels.masked_fill(labels == 255, -100)
    logp = scores.log_softmax(dim=1)
    loss = F.nll_loss(logp, targets)
    if not with_grad:
        return loss, None
    valid = targets >= 0
    slopes = logp.exp_().scatter_add_(1, targets.clamp_min(0)[:, None], -valid[:, None].float())
    slopes.mul_(inverse.mul(valid[:, None]).mul_(10 / valid.sum()))
    grad = torch.matmul(prototypes.T.to(x.dtype), slopes.to(x.dtype)).float()
    along = torch.linalg.vecdot(grad, x.float(), dim=1)[:, None].mul_(inverse.square())
    grad.addcmul_(along, x, value=-1) if x.dtype == grad.dtype else grad.sub_(along * x)
    return loss, grad.view(features.shape)


BENCH = Bench(
    room="prototype_contrast",
    op="prototype_contrast",
    providers={"toco_kernels": prototype_contrast, "published": published, "rewrite": rewrite},
    inputs=inputs,
    differentiable=("features",),
    flop=flop,
    tiny={"batch": 1, "side": 4, "width": 8},
    cases=[
        Case("50k pixels", {"batch": 4, "side": 112}, decisive=True),
        Case("200k pixels", {"batch": 16, "side": 112}),
        Case("200k pixels, bfloat16", {"batch": 16, "side": 112}, torch.bfloat16),
        Case("COCO", {"batch": 4, "side": 112, "classes": 81}),
        Case("half ignored", {"batch": 4, "side": 112, "ignored": 0.5}),
        Case("PPC, one view", {"batch": 8, "side": 56}),
        Case("the small view", {"batch": 8, "side": 16}),
    ],
)


@BENCH.every_case
def test_prototype_contrast(case, direction, compare):
    compare(BENCH, case, direction)


# A whole step: pseudo labels, prototypes and all three contrasts, of two views.

STEP = {"background_score": 0.2, "k": 32}


def step_inputs(generator, *, batch, side=56, other_side=16, width=128, classes=21):
    size, small = (side, side), (other_side, other_side)
    image_labels = (torch.rand(batch, classes - 1, generator=generator) < 0.08).float()
    image_labels[torch.arange(batch), torch.randint(classes - 1, (batch,), generator=generator)] = 1
    return {
        "cams": smooth(generator, batch, classes, size, 6),
        "other_cams": smooth(generator, batch, classes, small, 6),
        "features": torch.randn(batch, width, *size, generator=generator).add_(0.5).relu_(),
        "other_features": torch.randn(batch, width, *small, generator=generator).add_(0.5).relu_(),
        "image_labels": image_labels,
        "draws": torch.rand(2, batch, *small, generator=generator),
    }


def step_flop(direction, *, other_features, cams, **_):
    """Products of both views' pixels with the prototypes of both, at the small size."""
    once = 2 * 2 * 2 * other_features.numel() * cams.shape[1]
    return 2 * once if direction == TRAINING else once


def step_ours(**arguments):
    return contrast_where_drawn(**arguments, **STEP)["loss"]


def both_views(cams, other_cams, features, other_features, image_labels):
    """Features (B, D, P), pseudo labels (B * P) and prototypes of each view."""
    size, views = other_features.shape[2:], []
    for maps, x in ((cams, features), (other_cams, other_features)):
        if maps.shape[2:] != size:
            maps, x = (F.interpolate(t, size=size, mode="bilinear", align_corners=True) for t in (maps, x))
        with torch.no_grad():
            scores = reference.confidence(maps, STEP["background_score"])
            labels = reference.pseudo_labels(scores, image_labels)
            best = reference.prototype_candidates(x.detach().flatten(2), scores.relu().flatten(2), None, STEP["k"])
        views.append((x.flatten(2), labels.flatten(), reference.prototypes_of(*best)))
    return views


def step_published(cams, other_cams, features, other_features, image_labels, draws):
    """The published sequence: a loop over classes for prototypes, rows of prototypes gathered for every pixel."""
    size, views = other_features.shape[2:], []
    for maps, x in ((cams, features), (other_cams, other_features)):
        if maps.shape[2:] != size:
            maps, x = (F.interpolate(t, size=size, mode="bilinear", align_corners=True) for t in (maps, x))
        with torch.no_grad():
            scores = reference.confidence(maps, STEP["background_score"])
            labels = reference.pseudo_labels(scores, image_labels).flatten()
            ranked = scores.transpose(0, 1).flatten(1).sort(dim=1, descending=True, stable=True)
            rows = x.detach().permute(0, 2, 3, 1).reshape(-1, x.shape[1])
            prototypes = rows.new_zeros(len(ranked.values), x.shape[1])
            for c in range(len(prototypes)):
                weights = ranked.values[c, : STEP["k"]].relu()
                chosen = rows[ranked.indices[c, : STEP["k"]]]
                prototypes[c] = (weights[:, None] * chosen).sum(dim=0) / weights.sum()
        views.append((x, labels, F.normalize(prototypes, dim=1)))
    (x, labels, prototypes), (y, other_labels, other_prototypes) = views
    x, y = (F.normalize(t.permute(0, 2, 3, 1).reshape(-1, t.shape[1]), dim=1) for t in (x, y))
    cross_prototype = contrast_by_rows(x, labels, other_prototypes) + contrast_by_rows(y, other_labels, prototypes)
    cross_cam = contrast_by_rows(x, other_labels, prototypes) + contrast_by_rows(y, labels, other_prototypes)
    intra = mined_by_rows(x, labels, prototypes, draws[0]) + mined_by_rows(y, other_labels, other_prototypes, draws[1])
    return 0.1 * (cross_prototype + cross_cam + intra) / 2


def contrast_by_rows(rows, labels, prototypes):
    """As published: the exponential of every similarity, and the label's prototype repeated for every pixel."""
    positive = torch.exp((rows * prototypes[labels]).sum(dim=1) / 0.1)
    return -torch.log(positive / torch.exp(rows @ prototypes.T / 0.1).sum(dim=1)).mean()


def mined_by_rows(rows, labels, prototypes, draws):
    """As published: all prototypes repeated for every pixel, the semi-hard ones gathered and multiplied again."""
    first, last = reference.semi_hard_ranks(len(prototypes))
    positives = prototypes[labels]
    ranked = (rows @ prototypes.T).sort(dim=1, descending=True, stable=True).indices[:, first:last]
    repeated = prototypes[None].expand(len(rows), -1, -1).contiguous()
    negatives = repeated.gather(1, ranked[:, :, None].expand(-1, -1, rows.shape[1]))
    compared = torch.cat([positives[:, None], negatives], dim=1)
    similarity = torch.exp(torch.bmm(rows[:, None], compared.mT)[:, 0] / 0.1)
    losses = -torch.log(similarity[:, 0] / similarity.sum(dim=1))
    similar = (rows * positives).sum(dim=1).detach()
    draws, total, present = draws.flatten(), 0, labels.unique()
    for c in present:
        chosen = (labels == c).nonzero()[:, 0]
        half, end = len(chosen) // 2, len(chosen) * 6 // 10
        if half:
            drawn = chosen[draws[chosen].sort(stable=True).indices[:half]]
            hard = chosen[similar[chosen].sort(stable=True).indices[end - half : end]]
            total = total + losses[torch.cat([drawn, hard])].mean()
    return total / len(present)


def step_rewrite(cams, other_cams, features, other_features, image_labels, draws):
    """One product for all scores, and mining by sorts of the whole batch: no loop, nothing waits for the host.

    Sorted by class, and within it by similarity or by draw, a pixel's place minus its class's first place is its rank.
    """
    views = both_views(cams, other_cams, features, other_features, image_labels)
    (x, labels, prototypes), (y, other_labels, other_prototypes) = views
    both = torch.cat([prototypes, other_prototypes])
    total = 0
    for rows, mine, theirs, own, others, drawn in (
        (x, labels, other_labels, slice(0, len(prototypes)), slice(len(prototypes), None), draws[0]),
        (y, other_labels, labels, slice(len(prototypes), None), slice(0, len(prototypes)), draws[1]),
    ):
        scores = torch.matmul(both, F.normalize(rows, dim=1)).mul(10).transpose(0, 1).flatten(1).T  # (n, 2 C)
        total = total + F.cross_entropy(scores[:, others], mine) + F.cross_entropy(scores[:, own], theirs)
        total = total + mined_by_sorts(scores[:, own], mine, drawn.flatten())
    return total * 0.05


def mined_by_sorts(scores, labels, draws):
    first, last = reference.semi_hard_ranks(scores.shape[1])
    ranked = scores.topk(last, dim=1).values[:, first:]
    positive = scores.gather(1, labels[:, None])
    losses = torch.cat([positive, ranked], dim=1).logsumexp(dim=1) - positive[:, 0]
    counts = torch.zeros_like(scores[0]).index_add_(0, labels, torch.ones_like(draws))
    starts, half, end = counts.cumsum(0) - counts, (counts / 2).floor(), (counts * 6 / 10 + 1e-6).floor()
    share = 1 / (2 * half.clamp_min(1) * (counts > 0).sum())
    weights = torch.zeros_like(draws)
    for keys, low, high in ((draws, torch.zeros_like(half), half), (positive[:, 0].detach(), end - half, end)):
        order = keys.argsort(stable=True)
        order = order[labels[order].argsort(stable=True)]
        rank = torch.empty_like(draws).scatter_(0, order, torch.arange(len(draws), device=draws.device).to(draws.dtype))
        rank = rank - starts[labels]
        weights += ((rank >= low[labels]) & (rank < high[labels])) * share[labels]
    return (losses * weights).sum()


STEP_BENCH = Bench(
    room="prototype_contrast",
    op="pixel_prototype_contrast",
    providers={"toco_kernels": step_ours, "published": step_published, "rewrite": step_rewrite},
    inputs=step_inputs,
    differentiable=("features", "other_features"),
    flop=step_flop,
    tiny={"batch": 1, "side": 6, "other_side": 4, "width": 8},
    cases=[
        Case("PPC on SEAM", {"batch": 8}, decisive=True),
        Case("views of one size, 28", {"batch": 8, "side": 28, "other_side": 28}),
    ],
)


@STEP_BENCH.every_case
def test_pixel_prototype_contrast(case, direction, compare):
    compare(STEP_BENCH, case, direction)
