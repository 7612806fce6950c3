"""The losses of PPC, SEAM and EPS, under the names of wseg and SEAM."""

import torch
from torch import Tensor

from ..cam_regularization import adaptive_min_pooling_loss as _adaptive_min_pooling_loss
from ..cam_regularization import max_norm as _max_norm
from ..common.errors import bad_value
from ..prototype_contrast.step import contrast_where_drawn


def get_contrast_loss(
    cam1: Tensor,  # (B, C, H, W), the background last
    cam2: Tensor,  # (B, C, h, w)
    f_proj1: Tensor,  # (B, D, H, W)
    f_proj2: Tensor,  # (B, D, h, w)
    label: Tensor,  # (B, C - 1)
    gamma: float = 0.05,
    bg_thres: float = 0.05,
) -> Tensor:  # ()
    """PPC's three contrasts, as its branch for EPS computes them: `toco_kernels.pixel_prototype_contrast`.

    The background is the last class, prototypes come from a sixteenth of the second view's pixels, and all terms weigh
    `gamma`. As published, `torch.topk` decides which pixels of the constant background channel make its prototype, and
    negative scores weigh too. Random pixels come from torch's generator of the device, where the published code asks
    Python's `random`; and a class whose scores add up to 0 has the prototype zero where the published one is NaN.

    Args:
        cam1: (B, C, H, W) of the first view, which is resized to the second's size.
        cam2: (B, C, h, w) of the second view.
        f_proj1: (B, D, H, W) projections of the first view's pixels.
        f_proj2: (B, D, h, w) of the second's.
        label: (B, C - 1) image labels, on any device.
        gamma: the weight of each term. The published script: 0.1.
        bg_thres: the score of the background. The published script: 0.1.

    Returns:
        The scalar loss, differentiable in both projections.

    Source: `get_contrast_loss` of usr922/wseg, branch esp.
    """
    if label.ndim != 2:
        raise bad_value("label", "have shape (B, C - 1)", f"shape {tuple(label.shape)}")
    cam1, cam2 = (cam.detach().roll(1, dims=1) for cam in (cam1, cam2))
    batch, _, height, width = f_proj2.shape
    draws = torch.rand(2, batch, height, width, device=f_proj2.device)
    return contrast_where_drawn(
        cam1,
        cam2,
        f_proj1,
        f_proj2,
        label.to(f_proj1.device),
        draws,
        background_score=bg_thres,
        k=max(height * width // 16, 1),
        weights=(gamma, gamma, gamma),
        published=True,
    )["loss"]


def adaptive_min_pooling_loss(
    x: Tensor,  # (B, C, H, W)
) -> Tensor:  # ()
    """`toco_kernels.adaptive_min_pooling_loss`."""
    return _adaptive_min_pooling_loss(x)


def max_norm(
    p: Tensor,  # (B, C, H, W)
    version: str = "torch",
    e: float = 1e-5,
) -> Tensor:  # (B, C, H, W)
    """`toco_kernels.max_norm`, on tensors; also of one image, (C, H, W), as published.

    The published `version="numpy"` is for arrays and scales otherwise; it is an error here.
    """
    if version != "torch":
        raise bad_value("version", "be 'torch'", repr(version))
    return _max_norm(p[None], e)[0] if p.ndim == 3 else _max_norm(p, e)


def max_onehot(
    x: Tensor,  # (B, C, H, W)
) -> Tensor:  # (B, C, H, W)
    """Only the largest object score of each pixel; class 0 stays. As published, `x` itself is changed and returned."""
    objects = x[:, 1:]
    objects[objects != objects.amax(dim=1, keepdim=True)] = 0
    return x
