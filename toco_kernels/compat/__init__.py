"""The names, signatures, defaults and quirks that existing repositories call. Frozen.

`patch` and `unpatch` put them into modules that are imported already.
"""

from ..port.patch import patch, unpatch
from .affinity_mask import AffinityMask
from .cams import (
    cam_to_label,
    cam_to_roi_mask2,
    crop_from_roi_neg,
    get_valid_cam,
    ignore_img_box,
    multi_scale_cam,
    multi_scale_cam2,
    multi_scale_cam_with_aff_mat,
)
from .contours import scoremap2bbox
from .contrast import adaptive_min_pooling_loss, get_contrast_loss, max_norm, max_onehot
from .energy import (
    DenseEnergyLoss,
    DenseEnergyLossFunction,
    bilateralfilter,
    bilateralfilter_batch,
    get_energy_loss,
)
from .losses import (
    CTCLoss_neg,
    cams_to_affinity_label,
    get_aff_loss,
    get_masked_ptc_loss,
    get_seg_loss,
    label_to_aff_mask,
)
from .propagation import (
    compute_trans_mat,
    patch_attn_refine,
    propagate_to_edge,
    propagte_aff_cam_with_bkg,
    refine_cams_with_aff,
)
from .refinement import PAMR, PAR, refine_cams_with_bkg_v2, refine_cams_with_dynamic_thres

__all__ = [
    "PAMR",
    "PAR",
    "AffinityMask",
    "CTCLoss_neg",
    "DenseEnergyLoss",
    "DenseEnergyLossFunction",
    "adaptive_min_pooling_loss",
    "bilateralfilter",
    "bilateralfilter_batch",
    "cam_to_label",
    "cam_to_roi_mask2",
    "cams_to_affinity_label",
    "compute_trans_mat",
    "crop_from_roi_neg",
    "get_aff_loss",
    "get_contrast_loss",
    "get_energy_loss",
    "get_masked_ptc_loss",
    "get_seg_loss",
    "get_valid_cam",
    "ignore_img_box",
    "label_to_aff_mask",
    "max_norm",
    "max_onehot",
    "multi_scale_cam",
    "multi_scale_cam2",
    "multi_scale_cam_with_aff_mat",
    "patch",
    "patch_attn_refine",
    "propagate_to_edge",
    "propagte_aff_cam_with_bkg",
    "refine_cams_with_aff",
    "refine_cams_with_bkg_v2",
    "refine_cams_with_dynamic_thres",
    "scoremap2bbox",
    "unpatch",
]
