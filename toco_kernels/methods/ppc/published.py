"""PPC's training step as published: what the module is tested, measured and certified against. Never optimised.

It uses the parameters of a `PPC` and nothing else of it, and the plain references of the operators: pixel correlation
stores all pairs of pixels, class maps are compared at the size of the images, what differs most is found by sorting,
and pixels are mined in a loop over classes, in the joined batch of one process.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from ...pixel_correlation.reference import pixel_correlation
from ...prototype_contrast import reference
from .config import CONTRAST
from .criterion import PPCOutput
from .module import PPC

EPSILON = 1e-5


def published_step(
    model: PPC,
    images: Tensor,  # (B, 3, H, W)
    image_labels: Tensor,  # (B, C)
    *,
    views: Mapping[str, Tensor] | None = None,
    boxes: Tensor | None = None,
    step: int = 0,
) -> PPCOutput:
    """What `model.forward` computes, in the published order. The background is class 0 in both variants.

    Args:
        model: whose parameters are used.
        images, image_labels, views, boxes, step: as for `PPC.forward`. Dropout and missing `draws` come from the global
            generators, as there.
    """
    config, views = model.config, views or {}
    second_size = [config.second_size] * 2
    labels = F.pad((image_labels != 0).to(images.dtype), (1, 0), value=1)[:, :, None, None]
    with record_function("published::network"):
        cams1, revised1, features1 = network(model, images)
        second = F.interpolate(images, size=second_size, mode="bilinear", align_corners=True)
        cams2, revised2, features2 = network(model, second)
    losses = dict.fromkeys(config.weights, images.new_zeros(()))

    with record_function("published::losses of CAMs"):
        if "saliency" in losses:
            four = [saliency(x, views["saliency"], labels, config) for x in (cams1, cams2, revised1, revised2)]
            losses["saliency"] = (four[0] + four[1]) / 2 + (four[2] + four[3]) / 2
        large = (cams1, revised1), (cams2, revised2)
        if config.variant == "seam":
            sizes = images.shape[2:], second_size
            large = [[stretched(x, size) for x in view] for view, size in zip(large, sizes, strict=True)]
        (large1, large_revised1), (large2, large_revised2) = large
        cls = [
            F.multilabel_soft_margin_loss(F.adaptive_avg_pool2d(x, 1)[:, 1:, 0, 0], labels[:, 1:, 0, 0])
            for x in (large1, large2)
        ]
        losses["cls"] = (cls[0] + cls[1]) / 2
        losses["min_pooling"] = (min_pooling(large_revised1 * labels) + min_pooling(large_revised2 * labels)) / 2
        losses["er"], losses["ecr"] = seam(
            *(
                stretched(max_norm(x), large2.shape[2:]) * labels
                for x in (large1, large2, large_revised1, large_revised2)
            ),
            config.ecr_share,
        )
    with record_function("published::contrast"):
        size = features2.shape[2:]
        draws = views.get("draws")
        draws = torch.rand(len(images), 2, *size, device=images.device) if draws is None else draws
        pseudo_labels, contrast = prototypes_and_terms(
            stretched(revised1, size).detach(),
            revised2.detach(),
            stretched(features1, size),
            features2,
            image_labels,
            draws.to(features2.dtype),
            config,
        )
        if step >= config.contrast_from:
            losses |= {name: contrast[name] for name in CONTRAST if name in losses}
    losses = {name: losses[name] for name in config.weights}
    loss = sum(config.weight(name, step) * losses[name] for name in losses)
    return PPCOutput(loss, losses, (max_norm(revised1) * labels)[:, 1:].detach(), pseudo_labels, features1)


def network(model: PPC, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Class maps, revised class maps and projections of one view."""
    low, middle, top = model.backbone.network(images)
    top = F.dropout2d(top, model.config.dropout, model.training)
    cams, features = model.classifier(top), F.relu(model.projector(top))
    with torch.no_grad():
        objects = F.relu(cams.detach())
        objects = F.relu(objects - EPSILON) / (objects.amax(dim=(2, 3), keepdim=True) + EPSILON)
        maps = torch.cat([1 - objects[:, 1:].amax(dim=1, keepdim=True), objects[:, 1:]], dim=1)
        maps[:, 1:] = maps[:, 1:] * (maps[:, 1:] == maps[:, 1:].amax(dim=1, keepdim=True))
    branches = F.relu(model.low(low.detach())), F.relu(model.middle(middle.detach()))
    similar = model.correlation(torch.cat([stretched(images, cams.shape[2:]), *branches], dim=1))
    revised = pixel_correlation(similar.flatten(2), maps.flatten(2))
    return cams, revised.unflatten(2, cams.shape[2:]), features


def stretched(maps: Tensor, size: torch.Size | list[int]) -> Tensor:
    """Bilinear, with aligned corners."""
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=True)


def max_norm(maps: Tensor) -> Tensor:  # (B, C, H, W)
    """Stretched to 0 … 1."""
    maps = F.relu(maps)
    low, high = maps.amin(dim=(2, 3), keepdim=True), maps.amax(dim=(2, 3), keepdim=True)
    return F.relu(maps - low - EPSILON) / (high - low + EPSILON)


def min_pooling(maps: Tensor) -> Tensor:  # (B, C + 1, H, W) -> ()
    """The quarter of the pixels that show the image's classes least."""
    shown = F.relu(maps[:, 1:].amax(dim=1).flatten(1))
    return shown.topk(shown.shape[1] // 4, dim=1, largest=False).values.mean()


def seam(
    cams1: Tensor, cams2: Tensor, revised1: Tensor, revised2: Tensor, share: float
) -> tuple[Tensor, Tensor]:  # (B, C + 1, h, w) each
    """ER and ECR."""
    er = (cams1[:, 1:] - cams2[:, 1:]).abs().mean()
    targets = []
    for maps in (cams1.detach().clone(), cams2.detach().clone()):
        maps[:, 0] = 1 - maps[:, 1:].amax(dim=1)
        maps[:, 1:] = maps[:, 1:] * (maps[:, 1:] == maps[:, 1:].amax(dim=1, keepdim=True))
        targets.append(maps)
    ecr = 0
    for target, revised in ((targets[1], revised1), (targets[0], revised2)):
        difference = (target - revised).abs().flatten(1)
        ecr = ecr + difference.topk(int(share * difference.shape[1]), dim=1).values.mean()
    return er, ecr


def saliency(cams: Tensor, saliency: Tensor, labels: Tensor, config) -> Tensor:  # (B, C + 1, h, w) -> ()
    """EPS's loss, image by image and class by class."""
    probabilities = F.softmax(cams, dim=1)
    saliency = F.interpolate(saliency.to(cams.dtype), size=cams.shape[2:])
    objects, background = torch.zeros_like(saliency), probabilities[:, :1].clone()
    for b in range(len(cams)):
        for c in range(1, cams.shape[1]):
            if labels[b, c] == 0:
                continue
            sure = probabilities[b, c].round()
            overlap = (sure * saliency[b, 0].round()).sum() / (sure + 1e-4).sum()
            if overlap > config.saliency_threshold:
                objects[b, 0] = objects[b, 0] + probabilities[b, c]
            else:
                background[b, 0] = background[b, 0] + probabilities[b, c]
    mix = config.saliency_mix
    return F.mse_loss(mix * objects + (1 - mix) * (1 - background), saliency)


def prototypes_and_terms(
    revised1: Tensor,  # (B, C + 1, h, w)
    revised2: Tensor,
    features1: Tensor,  # (B, D, h, w)
    features2: Tensor,
    image_labels: Tensor,  # (B, C)
    draws: Tensor,  # (B, 2, h, w)
    config,
) -> tuple[Tensor, dict[str, Tensor]]:  # (B, h, w)
    """Pseudo labels of the first view, and the three terms."""
    height, width = features2.shape[2:]
    k = max(1, height * width // config.prototype_share)
    pixels, labels, prototypes = [], [], []
    for revised, features in ((revised1, features1), (revised2, features2)):
        scores = reference.confidence(revised, config.background_score)
        labels.append(reference.pseudo_labels(scores, image_labels))
        pixels.append(features.flatten(2))
        if config.published_prototypes:
            best = scores.flatten(2).transpose(0, 1).flatten(1).topk(k, dim=1)
            chosen = best.values, reference.pixels(features.detach().flatten(2))[best.indices]
        else:
            chosen = reference.prototype_candidates(
                features.detach().flatten(2), scores.flatten(2).clamp_min(0), None, k
            )
        prototypes.append(reference.prototypes_of(*chosen))
    own, others = reference.cosines(pixels[0], *prototypes), reference.cosines(pixels[1], *prototypes[::-1])
    draws = draws.transpose(0, 1).flatten(1)
    terms = reference.three_terms(own, others, labels[0].flatten(), labels[1].flatten(), draws, config.temperature)
    return labels[0], dict(zip(CONTRAST, terms.unbind(), strict=True))
