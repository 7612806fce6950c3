"""Losses as in ToCo: means that are NaN without pixels, an extension for the filter, a required box."""

import sys

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

sys.path.append("./wrapper/bilateralfilter/build")
from bilateralfilter import bilateralfilter_batch


def get_masked_ptc_loss(inputs, mask):
    """Patches alike agree, others do not."""
    tokens = F.normalize(inputs.flatten(2), dim=1, eps=1e-8)
    cosine = (tokens.mT @ tokens).abs()  # quirk: the sign is lost
    alike, different = mask == 1, mask == 0
    pull = 1 - (alike * cosine).sum() / (alike.sum() + 1)
    push = (different * cosine).sum() / (different.sum() + 1)
    return 0.5 * pull + 0.5 * push


def get_seg_loss(pred, label, ignore_index=255):
    background, objects = label.clone(), label.clone()
    background[label != 0] = ignore_index
    objects[label == 0] = ignore_index
    halves = [F.cross_entropy(pred, x.long(), ignore_index=ignore_index) for x in (background, objects)]
    return sum(halves) / 2


def get_energy_loss(
    img, logit, label, img_box, loss_layer, mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]
):
    scores = logit.softmax(1)
    inside = torch.zeros_like(scores[:, 0])
    for i, box in enumerate(img_box):
        inside[i, box[0] : box[1], box[2] : box[3]] = 1
    image = torch.stack([img[:, c] * std[c] + mean[c] for c in range(3)], dim=1)
    return loss_layer(image, scores, inside, label.to(torch.uint8)[:, None])


class DenseEnergyLossFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, segmentations, sigma_rgb, sigma_xy, ROIs, unlabel_region):
        shape = segmentations.shape
        gate = (ROIs - segmentations.amax(1)).masked_fill(unlabel_region, 1).clamp(min=0)[:, None].numpy()
        inside = (segmentations * ROIs[:, None]).numpy()
        filtered = np.zeros(shape, dtype=np.float32)
        bilateralfilter_batch(images.contiguous().numpy(), inside, filtered, *shape, sigma_rgb, sigma_xy)
        ctx.filtered, ctx.inside = torch.from_numpy(filtered * gate), ROIs[:, None]
        return torch.tensor([-(inside * filtered * gate).sum() / shape[0]], dtype=torch.float32)

    @staticmethod
    def backward(ctx, grad_output):
        gradient = -2 / len(ctx.filtered) * grad_output * ctx.filtered * ctx.inside
        return None, gradient, None, None, None, None


class DenseEnergyLoss(nn.Module):
    def __init__(self, weight, sigma_rgb, sigma_xy, scale_factor):
        super(DenseEnergyLoss, self).__init__()  # as they were written
        self.weight, self.sigma_rgb, self.sigma_xy, self.scale_factor = weight, sigma_rgb, sigma_xy, scale_factor

    def forward(self, images, segmentations, ROIs, seg_label):
        resize = {"scale_factor": self.scale_factor, "recompute_scale_factor": True}
        region = F.interpolate(seg_label, mode="nearest", **resize)[:, 0].long() == 255
        return self.weight * DenseEnergyLossFunction.apply(
            F.interpolate(images, **resize),
            F.interpolate(segmentations, mode="bilinear", align_corners=False, **resize),
            self.sigma_rgb,
            self.sigma_xy * self.scale_factor,
            F.interpolate(ROIs[:, None], **resize)[:, 0],
            region,
        )


class CTCLoss_neg(nn.Module):
    def __init__(self, ncrops=10, temp=1.0):
        super().__init__()
        self.ncrops, self.temp = ncrops, temp

    def forward(self, student_output, teacher_output, flags):
        images = len(flags)
        student = student_output.reshape(self.ncrops, images, -1).transpose(0, 1)
        teacher = teacher_output.reshape(2, images, -1).transpose(0, 1)
        exponents = (teacher @ student.mT / self.temp).exp()
        total = 0
        for pairs, flag in zip(exponents, flags):
            negatives = pairs[:, flag == 0].sum(1)
            positives = flag.nonzero()[:, 0]
            loss = -(1 / (1 + negatives + 1e-4)).log()  # quirk: one term more, always
            for crop in positives:
                loss = loss - (pairs[:, crop] / (pairs[:, crop] + negatives + 1e-4)).log()
            total = total + loss.sum() / 2 / (len(positives) + 1e-4)
        return total / images
