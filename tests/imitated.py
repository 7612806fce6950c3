"""What tests/imitation has of published variants, and the fingerprints under which tests register them."""

import ast
from pathlib import Path

from toco_kernels.port.fingerprints import definitions

IMITATION = Path(__file__).parent / "imitation"

VARIANTS = {  # file -> name there -> name of ours
    "model/losses.py": {
        "get_masked_ptc_loss": "get_masked_ptc_loss",
        "get_seg_loss": "get_seg_loss",
        "get_energy_loss": "get_energy_loss",
        "DenseEnergyLossFunction": "DenseEnergyLossFunction",
        "DenseEnergyLoss": "DenseEnergyLoss",
        "CTCLoss_neg": "CTCLoss_neg",
    },
    "model/others.py": {
        "get_seg_loss": "get_seg_loss_finite",
        "get_aff_loss": "get_aff_loss",
        "get_energy_loss": "get_energy_loss",
        "DenseEnergyLoss": "DenseEnergyLossByFactor",
    },
    "model/pooling.py": {"adaptive_min_pooling_loss": "adaptive_min_pooling_loss", "max_onehot": "max_onehot"},
    "model/refiners.py": {"PAR": "PAR", "PAMR": "PAMR"},
    "model/resizing.py": {"PAR": "PARResizingImages"},
    "utils/camutils.py": {
        "get_valid_cam": "get_valid_cam",
        "ignore_img_box": "ignore_img_box",
        "cam_to_label": "cam_to_label",
        "cam_to_roi_mask2": "cam_to_roi_mask2",
        "crop_from_roi_neg": "crop_from_roi_neg",
        "multi_scale_cam2": "multi_scale_cam2",
        "label_to_aff_mask": "label_to_aff_mask",
        "refine_cams_with_bkg_v2": "refine_cams_with_bkg_v2",
        "refine_cams_with_dynamic_thres": "refine_cams_with_dynamic_thres",
    },
    "utils/camutils_config.py": {
        "cam_to_label": "cam_to_label_of_config",
        "multi_scale_cam": "multi_scale_cam",
        "multi_scale_cam_with_aff_mat": "multi_scale_cam_with_aff_mat",
        "cams_to_affinity_label": "cams_to_affinity_label",
        "propagte_aff_cam_with_bkg": "propagte_aff_cam_with_bkg",
        "refine_cams_with_bkg_v2": "refine_cams_with_config",
    },
    "utils/camutils_pair.py": {
        "cam_to_label": "cam_to_label_and_cam",
        "multi_scale_cam": "multi_scale_cam_and_aux",
        "cams_to_affinity_label": "cams_to_affinity_label",
        "refine_cams_with_bkg_v2": "refine_cams_with_bkg_v2",
    },
    "utils/propagation.py": {
        "compute_trans_mat": "compute_trans_mat",
        "refine_cams_with_aff": "refine_cams_with_aff",
        "propagate_to_edge": "propagate_to_edge",
    },
    "train.py": {"get_aff_loss": "get_aff_loss"},
    "train_ranks.py": {
        "get_seg_loss": "get_seg_loss",
        "get_aff_loss": "get_aff_loss",
        "get_valid_cam": "get_valid_cam",
    },
}


def fingerprints(source):
    """name -> fingerprint, of the definitions at the top of a file."""
    return {found.name: found.fingerprint for found in definitions(ast.parse(source))}


def known():
    """fingerprint -> name of ours, of all imitated variants."""
    return {
        fingerprints((IMITATION / file).read_text())[name]: ours
        for file, names in VARIANTS.items()
        for name, ours in names.items()
    }
