"""The names, signatures, defaults and quirks that existing repositories call. Frozen."""

from .affinity_mask import AffinityMask
from .losses import CTCLoss_neg, get_masked_ptc_loss, label_to_aff_mask
from .refinement import PAMR, PAR, refine_cams_with_bkg_v2, refine_cams_with_dynamic_thres

__all__ = [
    "PAMR",
    "PAR",
    "AffinityMask",
    "CTCLoss_neg",
    "get_masked_ptc_loss",
    "label_to_aff_mask",
    "refine_cams_with_bkg_v2",
    "refine_cams_with_dynamic_thres",
]
