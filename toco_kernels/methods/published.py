"""ToCo's training step as published: what the module is tested, measured and certified against. Never optimised.

It uses the parameters of a `ToCo` and nothing else of it, and the plain references of the operators. It runs the
backbone as often as the published step does: for the CAMs of every scale, image and mirror image, with the decoder; for
the teacher's global crops; again for the student's; for the local crops; and for the images.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from ..affinity_refine.reference import refine_cam_labels
from ..cam.reference import cam_to_label, cam_to_roi, crop_uncertain, merge_cams, present_cams
from ..class_contrast.reference import class_token_contrast
from ..dense_energy.reference import dense_energy_from_logits
from ..patch_contrast.reference import affinity_mask, masked_contrast
from .config import LOSSES, ToCoConfig
from .criterion import ToCoOutput
from .toco import ToCo

DILATIONS = [1, 2, 4, 8, 12, 24]


def published_step(
    model: ToCo,
    images: Tensor,  # (B, 3, H, W)
    image_labels: Tensor,  # (B, C)
    *,
    views: Mapping[str, Tensor],
    boxes: Tensor | None = None,  # (B, 4)
    step: int,
    fused_attention: bool = False,
    energy: Callable[..., Tensor] | None = None,
) -> ToCoOutput:
    """What `model.forward` computes, in the published order, for a plain ViT with a class token.

    Args:
        model: whose parameters are used; its teacher is moved, as by `model.forward` in training mode.
        images, image_labels, views, boxes, step: as for `ToCo.forward`.
        fused_attention: use `scaled_dot_product_attention`, which the published code does not.
        energy: another one than the lattice's reference, `(image in 0..255, logits, labels, boxes) -> ()`.
    """
    config, size = model.config, tuple(images.shape[2:])
    boxes = torch.tensor([[0, size[0], 0, size[1]]] * len(images)) if boxes is None else boxes
    limits = {"high": config.high, "low": config.low}
    energy = energy or partial(lattice_energy, config=config)

    def network(images: Tensor) -> tuple[Tensor, ...]:
        return forward(model, images, fused_attention)

    with torch.no_grad():
        with record_function("published::cam passes"):
            maps, aux_maps = cam_maps(model, images, network)
        with record_function("published::merged CAMs and crops"):
            cams, aux_cams = (merge_cams(x, None, size, size) for x in (maps, aux_maps))
            crops, flags = local_crops(model, views, cam_to_roi(aux_cams, image_labels, **limits))

    with record_function("published::teacher's and student's passes"):
        student, teacher = projections(model, [images, views["second_global"]], crops, fused_attention)
    with record_function("published::main pass"):
        logits, aux_logits, segmentation, tokens, _, _ = network(images)

    stage = config.stage(step)
    with torch.no_grad(), record_function("published::labels"):
        chosen = present_cams(cams if stage.labels_from == "main" else aux_cams, image_labels)
        colours = denormalised(images, config)
        quantised = colours.clamp(0, 255).to(torch.uint8) / 255.0 if config.quirks.quantise_image else colours / 255.0
        labels = refine_cam_labels(
            quantised.to(images.dtype),
            chosen,
            image_labels,
            boxes,
            *(torch.full_like(chosen[:, 0], limits[name]) for name in ("high", "low")),
            255,
            2,
            DILATIONS,
            10,
            "par",
            -1,
        )
        small = F.interpolate(aux_cams, size=tokens.shape[2:], mode="bilinear", align_corners=False)
        patch_labels = cam_to_label(small, image_labels, boxes, config.high, config.low, 255)  # the boxes as they are

    with record_function("published::losses"):
        segmentation = F.interpolate(segmentation, size=size, mode="bilinear", align_corners=False)
        mask = affinity_mask(patch_labels.flatten(1), 255)
        losses = {
            "cls": F.multilabel_soft_margin_loss(logits, image_labels.to(logits.dtype)),
            "cls_aux": F.multilabel_soft_margin_loss(aux_logits, image_labels.to(logits.dtype)),
            "ptc": masked_contrast(tokens.flatten(2).mT, mask),
            "ctc": class_token_contrast(student, teacher, flags, config.temperature),
            "seg": segmentation_loss(segmentation, labels),
            "reg": config.energy_weight * energy(colours, segmentation, labels, boxes),
        }
    loss = sum(stage.weight(name) * losses[name] for name in LOSSES)
    return ToCoOutput(loss, losses, present_cams(cams, image_labels), labels, tokens.flatten(2).mT)


def tokens_of(vit: nn.Module, images: Tensor, aux_layer: int, fused: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Class token (B, D), patch tokens and those of block `aux_layer` (B, D, h, w), with attention matrices."""
    x = F.conv2d(images, vit.patch_embed.proj.weight, vit.patch_embed.proj.bias, stride=vit.patch_embed.proj.stride)
    height, width = x.shape[2:]
    x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x.flatten(2).mT], dim=1)
    old_height, old_width = vit.patch_embed.grid_size
    positions = vit.pos_embed[:, 1:].mT.reshape(1, -1, old_height, old_width)
    positions = F.interpolate(positions, size=(height, width), mode="bicubic", align_corners=False).flatten(2).mT
    x = x + torch.cat([vit.pos_embed[:, :1], positions], dim=1)
    for i, block in enumerate(vit.blocks):
        query, key, value = (
            block.attn.qkv(block.norm1(x)).unflatten(2, (3, block.attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        )
        if fused:
            attended = F.scaled_dot_product_attention(query, key, value)
        else:
            attended = (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1) @ value
        x = x + block.attn.proj(attended.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
        if i == aux_layer % len(vit.blocks):
            aux = x
    x = vit.norm(x)
    return x[:, 0], x[:, 1:].mT.unflatten(2, (height, width)), aux[:, 1:].mT.unflatten(2, (height, width))


def forward(model: ToCo, images: Tensor, fused: bool = False) -> tuple[Tensor, ...]:
    """The network: logits, aux_logits (B, C), segmentation, patch tokens, CAM and auxiliary CAM (B, …, h, w)."""
    _, tokens, aux = tokens_of(model.backbone.vit, images, model.backbone.aux_layer, fused)
    weights = model.classifier.weight[:, :, None, None], model.aux_classifier.weight[:, :, None, None]
    pooled = (F.conv2d(F.adaptive_max_pool2d(x, 1), w).flatten(1) for x, w in zip((tokens, aux), weights, strict=True))
    cams = (F.conv2d(x, w).detach() for x, w in zip((tokens, aux), weights, strict=True))
    return *pooled, model.decoder(tokens), tokens, *cams


def cam_maps(
    model: ToCo, images: Tensor, network: Callable[[Tensor], tuple[Tensor, ...]]
) -> tuple[list[Tensor], list[Tensor]]:
    """The small CAMs of all scales, each of images and mirror images."""
    maps, aux_maps = [], []
    for scale in model.config.cam_scales:
        size = [int(scale * n) for n in images.shape[2:]]
        scaled = F.interpolate(images, size=size, mode="bilinear", align_corners=False)
        *_, cams, aux_cams = network(torch.cat([scaled, scaled.flip(-1)]))
        maps.append(cams)
        aux_maps.append(aux_cams)
    return maps, aux_maps


def local_crops(model: ToCo, views: Mapping[str, Tensor], roi: Tensor) -> tuple[Tensor, Tensor]:
    """Crops (crops, B, 3, h, w), and flags (B, 2 + crops)."""
    if "local_crops" in views:
        crops, flags = views["local_crops"], views["flags"]
    else:
        source, config = views["local_source"], model.config
        shape = len(source), config.local_crops
        draws = views["draws"] if "draws" in views else torch.rand(shape, device=source.device, dtype=torch.float64)
        crops, flags = crop_uncertain(source, roi, draws, config.local_size)
    return crops, torch.cat([flags.new_ones(len(flags), 2), flags], dim=1)


def projections(
    model: ToCo, global_crops: list[Tensor], crops: Tensor, fused: bool
) -> tuple[Tensor, Tensor]:  # (crops * B, D'), (2 * B, D')
    """Student and teacher. Global crops may differ in size, which the published ones do not."""

    def cls(images: Tensor) -> Tensor:
        return tokens_of(model.backbone.vit, images, model.backbone.aux_layer, fused)[0]

    with torch.no_grad():
        for old, new in zip(model.teacher.parameters(), model.projector.parameters(), strict=True):
            old.mul_(model.config.momentum).add_((1 - model.config.momentum) * new)
    teacher = model.teacher(torch.cat([cls(x) for x in global_crops]).detach()).detach()
    student = model.projector(torch.cat([*(cls(x) for x in global_crops), cls(crops.flatten(0, 1))]))
    return student, teacher


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Background and objects, half each; 0 instead of NaN for one that is missing."""
    halves = (labels.masked_fill(labels != 0, 255), labels.masked_fill(labels == 0, 255))
    terms = (
        F.cross_entropy(logits, half, ignore_index=255, reduction="sum") / (half != 255).sum().clamp(min=1)
        for half in halves
    )
    return 0.5 * sum(terms)


def denormalised(images: Tensor, config: ToCoConfig) -> Tensor:
    """Colours in 0..255."""
    return torch.stack([images[:, i] * config.std[i] + config.mean[i] for i in range(3)], dim=1)


def lattice_energy(
    image: Tensor,  # (B, 3, H, W) in 0..255
    logits: Tensor,  # (B, K, H, W)
    labels: Tensor,  # (B, H, W)
    boxes: Tensor,  # (B, 4)
    config: ToCoConfig,
) -> Tensor:  # ()
    """The published energy, at half the size on VOC and COCO, by the reference of the lattice."""
    region = torch.zeros_like(logits[:, 0])
    for b, (y0, y1, x0, x1) in enumerate(boxes.tolist()):
        region[b, y0:y1, x0:x1] = 1
    half = {"scale_factor": config.scale_factor, "recompute_scale_factor": True}
    image, region = F.interpolate(image.float(), **half), F.interpolate(region[:, None], **half)[:, 0]
    unlabeled = F.interpolate(labels[:, None].float(), **half)[:, 0] == 255
    sigmas = config.sigma_rgb, config.sigma_xy * config.scale_factor
    return dense_energy_from_logits(logits, image, region, unlabeled, *sigmas, kernel="lattice")
