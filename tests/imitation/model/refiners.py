"""PAR as in ToCo, which resizes masks, and PAMR. Their buffers are in checkpoints."""

import torch
import torch.nn as nn
import torch.nn.functional as F


def stencil(centre):
    kernel = torch.zeros(9, 1, 3, 3)
    kernel.view(9, 9).fill_diagonal_(1)
    return kernel if centre else kernel[[0, 1, 2, 3, 5, 6, 7, 8]]


def gather(x, kernel, dilation):
    """(B, C, H, W) -> (B, C, 8 or 9, H, W)"""
    padded = F.pad(x.flatten(0, 1)[:, None], [dilation] * 4, mode="replicate")
    return F.conv2d(padded, kernel, dilation=dilation).unflatten(0, x.shape[:2])


def resized(x, like):
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)


class Refiner(nn.Module):
    def __init__(self, dilations, num_iter):
        super().__init__()
        self.dilations, self.num_iter = dilations, num_iter
        self.register_buffer("kernel", stencil(False))

    def around(self, x):
        return torch.cat([gather(x, self.kernel, d) for d in self.dilations], dim=2)

    def weights(self, imgs):
        around = self.around(imgs)
        deviation = around.std(dim=2, keepdim=True) + 1e-8
        colour = -(((around - imgs.unsqueeze(2)).abs() / deviation / 0.3) ** 2).mean(1, keepdim=True)
        steps = [2**0.5, 1, 2**0.5, 1, 1, 2**0.5, 1, 2**0.5]
        distance = torch.tensor([d * step for d in self.dilations for step in steps])
        place = -((distance / (distance.std() + 1e-8) / 0.3) ** 2)
        return colour.softmax(2) + 0.01 * place.softmax(0).view(1, 1, -1, 1, 1)  # quirk: rows sum to 1.01

    def refine(self, imgs, masks):
        weights = self.weights(imgs)
        for _ in range(self.num_iter):
            masks = (self.around(masks) * weights).sum(2)
        return masks


class PAR(Refiner):
    def forward(self, imgs, masks):
        return self.refine(imgs, resized(masks, imgs))


class PAMR(nn.Module):
    def __init__(self, num_iter=1, dilations=[1]):
        super(PAMR, self).__init__()
        self.num_iter, self.dilations = num_iter, dilations
        self.aff_x, self.aff_m, self.aff_std = Gather(False), Gather(False), Gather(True)

    def forward(self, x, mask):
        mask = resized(mask, x)
        around = torch.cat([self.aff_x(x, d) for d in self.dilations], dim=2)
        deviation = torch.cat([self.aff_std(x, d) for d in self.dilations], dim=2).std(2, keepdim=True)
        weights = -((around - x.unsqueeze(2)).abs() / (1e-8 + 0.1 * deviation)).mean(1, keepdim=True)
        weights = weights.softmax(2)
        for _ in range(self.num_iter):
            mask = (torch.cat([self.aff_m(mask, d) for d in self.dilations], dim=2) * weights).sum(2)
        return mask


class Gather(nn.Module):
    def __init__(self, centre):
        super().__init__()
        self.register_buffer("kernel", stencil(centre))

    def forward(self, x, dilation):
        return gather(x, self.kernel, dilation)
