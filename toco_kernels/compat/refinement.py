"""PAR, PAMR and the pseudo labels made with them, under the names of ToCo, AFA and the repositories grown from them.

PAR and PAMR are the package's own modules, whose constructors are the published ones already. Where an image and its
masks differ in size, `PAR(..., resize="image")` follows WeCLIP, WeCLIP+ and ExCEL, and the default all others.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..affinity_refine import PAMR, PAR, refine_cam_labels
from ..common.errors import bad_type
from .boxes import stacked_boxes

__all__ = ["PAMR", "PAR", "refine_cams_with_bkg_v2", "refine_cams_with_dynamic_thres"]


def refine_cams_with_bkg_v2(
    ref_mod: Callable[[Tensor, Tensor], Tensor] | None = None,
    images: Tensor | None = None,  # (B, colours, H, W)
    cams: Tensor | None = None,  # (B, C, H, W)
    cls_labels: Tensor | None = None,  # (B, C)
    high_thre: float | Tensor | None = None,
    low_thre: float | Tensor | None = None,
    ignore_index: int = False,
    img_box: Tensor | Sequence | None = None,  # (B, 4), on any device
    down_scale: int = 2,
    *,
    cfg=None,
) -> Tensor:  # (B, H, W)
    """Pseudo labels from CAMs: `toco_kernels.refine_cam_labels`, as its callers know it.

    All published forms are understood:

        refine_cams_with_bkg_v2(par, images, cams, labels, high_thre=…, low_thre=…, ignore_index=255, img_box=boxes)
        refine_cams_with_bkg_v2(par, images, cams, labels, high_thre=…, low_thre=…, ignore_index=255)
        refine_cams_with_bkg_v2(par, images, cams, labels, cfg, boxes)      # AFA, WeCLIP, ExCEL; also cfg=, img_box=

    Args:
        ref_mod: a PAR or PAMR of this package: its dilations and iterations are used, for the whole batch at once. Any
            other module is called as published, twice for each image, with softmax scores of the background and of the
            present classes; what it computes is its own affair.
        images: (B, colours, H, W).
        cams: (B, C, H, W); classes that are absent by `cls_labels` take no part.
        cls_labels: (B, C) multi-hot without background.
        high_thre, low_thre: the background's score, numbers or tensors that broadcast to (B, 1, H, W).
        ignore_index: the label of pixels in doubt. False, as published, is 0.
        img_box: B boxes y0, y1, x0, x1, as a tensor or a sequence; None: whole images.
        down_scale: refinement runs at 1 / down_scale of the size.
        cfg: holds cam.high_thre, cam.low_thre and dataset.ignore_index, in place of the three arguments.

    Returns:
        (B, H, W) labels in float32, as published.

    Raises:
        TypeError, ValueError: an argument is missing or wrong; `refine_cam_labels` calls `cls_labels` image_labels,
            `high_thre` high, `low_thre` low and `img_box` boxes.
    """
    if hasattr(high_thre, "cam"):  # (…, cls_labels, cfg, img_box, down_scale) by position
        cfg, img_box, down_scale = high_thre, img_box if low_thre is None else low_thre, ignore_index or down_scale
    if cfg is not None:
        high_thre, low_thre, ignore_index = cfg.cam.high_thre, cfg.cam.low_thre, cfg.dataset.ignore_index
    required = {"ref_mod": ref_mod, "images": images, "cams": cams, "cls_labels": cls_labels}
    required |= {"high_thre": high_thre, "low_thre": low_thre}
    for name, value in required.items():
        if value is None:
            raise bad_type(name, "be given", value)

    shape = (len(cams), 1, *cams.shape[2:])
    high, low = (t.to(cams.device).expand(shape) if isinstance(t, Tensor) else t for t in (high_thre, low_thre))
    if img_box is not None:
        img_box = stacked_boxes(img_box, cams.device)
    if getattr(type(ref_mod), "forward", None) not in (PAR.forward, PAMR.forward):  # a subclass may compute anything
        return _refine_with(ref_mod, images, cams, cls_labels, high, low, int(ignore_index), img_box, down_scale)
    return refine_cam_labels(
        images,
        cams,
        cls_labels,
        img_box,
        high=high,
        low=low,
        ignore_index=int(ignore_index),
        down_scale=down_scale,
        dilations=ref_mod.dilations,
        iterations=ref_mod.num_iter,
        kind=ref_mod.kind,
    ).float()


def refine_cams_with_dynamic_thres(
    ref_mod: Callable[[Tensor, Tensor], Tensor] | None = None,
    images: Tensor | None = None,  # (B, colours, H, W)
    cams: Tensor | None = None,  # (B, C, H, W)
    cls_labels: Tensor | None = None,  # (B, C)
    high_thre_map: Tensor | None = None,  # (B, 1, H, W), on any device
    low_thre: float | None = None,
    ignore_index: int = False,
    img_box: Tensor | Sequence | None = None,  # (B, 4), on any device
    down_scale: int = 2,
) -> Tensor:  # (B, H, W)
    """DuPL's form of `refine_cams_with_bkg_v2`: the background's high score is a map, its low score a number."""
    return refine_cams_with_bkg_v2(
        ref_mod, images, cams, cls_labels, high_thre_map, low_thre, ignore_index, img_box, down_scale
    )


@torch.no_grad()
def _refine_with(
    ref_mod: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,  # (B, colours, H, W)
    cams: Tensor,  # (B, C, H, W)
    cls_labels: Tensor,  # (B, C)
    high: float | Tensor,  # Tensor: (B, 1, H, W)
    low: float | Tensor,
    ignore_index: int,
    boxes: Tensor | None,  # (B, 4)
    down_scale: int,
) -> Tensor:  # (B, H, W)
    """The published way, for a module of which nothing is known: image by image, with a high and a low background."""
    height, width = cams.shape[2:]

    def resized(x: Tensor, size: Sequence[int]) -> Tensor:
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def label(image: Tensor, scores: Tensor, background: float | Tensor, classes: Tensor) -> Tensor:
        scores = torch.cat([torch.zeros_like(scores[:, :1]) + background, scores], dim=1)[:, classes]
        refined = ref_mod(image, resized(scores, image.shape[2:]).softmax(dim=1))
        return classes[resized(refined, (height, width)).argmax(dim=1)[0]]

    labels = cams.new_full((len(cams), height, width), ignore_index, dtype=torch.float32)
    for b in range(len(cams)):
        image = resized(images[b : b + 1], (height // down_scale, width // down_scale))
        present = cls_labels[b].nonzero()[:, 0] + 1
        classes = torch.cat([present.new_zeros(1), present])
        with_high, with_low = (
            label(image, cams[b : b + 1], score[b] if isinstance(score, Tensor) else score, classes)
            for score in (high, low)
        )
        in_doubt = (with_high == 0) & (with_low > 0)
        y0, y1, x0, x1 = (0, height, 0, width) if boxes is None else boxes[b].tolist()
        labels[b, y0:y1, x0:x1] = with_high.masked_fill(in_doubt, ignore_index).float()[y0:y1, x0:x1]
    return labels
