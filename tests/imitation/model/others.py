"""The other variants of these losses."""

import torch
import torch.nn as nn
import torch.nn.functional as F

from .losses import DenseEnergyLossFunction


def get_seg_loss(pred, label, ignore_index=255):
    """As in DuPL: finite without pixels."""
    losses = F.cross_entropy(pred, label.long(), ignore_index=ignore_index, reduction="none")
    loss = 0
    for half in (label == 0, (label != 0) & (label != ignore_index)):
        loss = loss + losses[half].sum() / (half.sum() + 1e-6) / 2
    return loss


def get_aff_loss(inputs, targets):
    """As in AFA."""
    alike, different = (targets == 1), (targets == 0)
    pos_count, neg_count = alike.sum() + 1, different.sum() + 1
    pull = (alike.type_as(inputs) * (1 - inputs)).sum() / pos_count
    push = (different.type_as(inputs) * inputs).sum() / neg_count
    return (pull + push) / 2, pos_count, neg_count


def get_energy_loss(
    img, logit, label, img_box, loss_layer, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]
):
    """As in MoRe: without a box everything is inside."""
    scores = logit.softmax(1)
    inside = torch.ones_like(scores[:, 0])
    if img_box is not None:
        inside.zero_()
        for i, box in enumerate(img_box):
            inside[i, box[0] : box[1], box[2] : box[3]] = 1
    image = torch.stack([img[:, c] * std[c] + mean[c] for c in range(3)], dim=1)
    return loss_layer(image, scores, inside, label.to(torch.uint8)[:, None])


class DenseEnergyLoss(nn.Module):
    """As in AFA: positions from the factor."""

    def __init__(self, weight, sigma_rgb, sigma_xy, scale_factor):
        super().__init__()
        self.weight, self.sigma_rgb, self.sigma_xy, self.scale_factor = weight, sigma_rgb, sigma_xy, scale_factor

    def forward(self, images, segmentations, ROIs, seg_label):
        resize = {"scale_factor": self.scale_factor}
        region = F.interpolate(seg_label, mode="nearest", **resize)[:, 0].long() == 255
        return self.weight * DenseEnergyLossFunction.apply(
            F.interpolate(images, **resize),
            F.interpolate(segmentations, mode="bilinear", align_corners=False, **resize),
            self.sigma_rgb,
            self.sigma_xy * self.scale_factor,
            F.interpolate(ROIs[:, None], **resize)[:, 0],
            region,
        )
