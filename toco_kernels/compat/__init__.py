"""The names, signatures, defaults and quirks that existing repositories call. Frozen."""

from .energy import (
    DenseEnergyLoss,
    DenseEnergyLossFunction,
    bilateralfilter,
    bilateralfilter_batch,
    get_energy_loss,
)
from .losses import CTCLoss_neg
from .refinement import PAMR, PAR, refine_cams_with_bkg_v2, refine_cams_with_dynamic_thres

__all__ = [
    "PAMR",
    "PAR",
    "CTCLoss_neg",
    "DenseEnergyLoss",
    "DenseEnergyLossFunction",
    "bilateralfilter",
    "bilateralfilter_batch",
    "get_energy_loss",
    "refine_cams_with_bkg_v2",
    "refine_cams_with_dynamic_thres",
]
