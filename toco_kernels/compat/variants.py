"""Published functions of one name and several meanings: here each meaning has a name, and exactly its own signature.

`toco_kernels.compat` has the most frequent meaning under the published name, and reaches the others by options.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from ..affinity_refine import PAR
from .cams import cam_to_label, multi_scale_cam
from .energy import DenseEnergyLoss
from .losses import get_seg_loss
from .refinement import refine_cams_with_bkg_v2

__all__ = [
    "DenseEnergyLossByFactor",
    "PARResizingImages",
    "cam_to_label_and_cam",
    "cam_to_label_of_config",
    "get_seg_loss_finite",
    "multi_scale_cam_and_aux",
    "refine_cams_with_config",
]


def get_seg_loss_finite(
    pred: Tensor,  # (B, C, H, W)
    label: Tensor,  # (B, H, W)
    ignore_index: int = 255,
) -> Tensor:  # ()
    """`compat.get_seg_loss` of DuPL, SeCo, MoRe and ExCEL: finite where a batch has no background or no objects.

    The 1e-6 that these add to the number of pixels is not added.
    """
    return get_seg_loss(pred, label, ignore_index, nan_safe=True)


def cam_to_label_of_config(
    cam: Tensor,  # (B, C, H, W)
    cls_label: Tensor,  # (B, C)
    img_box: Tensor | Sequence | None = None,  # (B, 4)
    ignore_mid: bool = False,
    cfg=None,
) -> Tensor | tuple[Tensor, Tensor]:  # (B, H, W), or (B, C, H, W) and (B, H, W)
    """`compat.cam_to_label` of AFA, WeCLIP and ExCEL: the thresholds are in a configuration."""
    return cam_to_label(cam, cls_label, img_box, ignore_mid=ignore_mid, cfg=cfg)


def cam_to_label_and_cam(
    cam: Tensor,  # (B, C, H, W)
    cls_label: Tensor,  # (B, C)
    img_box: Tensor | Sequence | None = None,  # (B, 4)
    bkg_thre: float | Tensor | None = None,
    high_thre: float | Tensor | None = None,
    low_thre: float | Tensor | None = None,
    ignore_mid: bool = False,
    ignore_index: int | None = None,
) -> tuple[Tensor, Tensor]:  # (B, C, H, W), (B, H, W)
    """`compat.cam_to_label` of MoRe and FSR: always a pair, and `bkg_thre` counts only without `ignore_mid`."""
    return cam_to_label(
        cam, cls_label, img_box, bkg_thre, high_thre, low_thre, ignore_mid, ignore_index, always_pair=True
    )


def multi_scale_cam_and_aux(
    model: Callable,
    inputs: Tensor,  # (B, 3, H, W)
    scales: Sequence[float],
) -> tuple[Tensor, Tensor]:  # (B, C, H, W), (B, C, H, W)
    """`compat.multi_scale_cam` of FSR: the CAM and the auxiliary CAM."""
    return multi_scale_cam(model, inputs, scales, aux=True)


def refine_cams_with_config(
    ref_mod: Callable[[Tensor, Tensor], Tensor] | None = None,
    images: Tensor | None = None,  # (B, colours, H, W)
    cams: Tensor | None = None,  # (B, C, H, W)
    cls_labels: Tensor | None = None,  # (B, C)
    cfg=None,
    img_box: Tensor | Sequence | None = None,  # (B, 4)
    down_scale: int = 2,
) -> Tensor:  # (B, H, W)
    """`compat.refine_cams_with_bkg_v2` of AFA, WeCLIP and ExCEL: the thresholds are in a configuration."""
    return refine_cams_with_bkg_v2(ref_mod, images, cams, cls_labels, img_box=img_box, down_scale=down_scale, cfg=cfg)


class PARResizingImages(PAR):
    """PAR of WeCLIP, WeCLIP+ and ExCEL: where sizes differ, the image is resized to the masks.

    Args:
        dilations: distances of the rings of neighbours.
        num_iter: iterations; 20 there.
    """

    def __init__(self, dilations: Sequence[int], num_iter: int):
        super().__init__(dilations, num_iter, resize="image")


class DenseEnergyLossByFactor(DenseEnergyLoss):
    """`compat.DenseEnergyLoss` of AFA and WeCLIP, whose resizing takes positions from `scale_factor` itself.

    The others take them from the sizes before and after. Where both are whole numbers of steps, nothing differs.
    """

    recompute_scale_factor = False
