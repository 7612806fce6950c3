"""Whole training methods, built from the operators: modules for a training loop of one's own.

`ToCo` is the method of Ru et al. (CVPR 2023), `PPC` that of Du et al. (CVPR 2022), `TKPPCL` is TKP-PCL as far as it is
known; `ToCoCriterion`, `PPCCriterion` and `TKPPCLCriterion` are their losses for another network. `AffinityNet` (Ahn &
Kwak, CVPR 2018) is the second stage, which refines what another one found. Backbones come from timm, which is installed
by `pip install 'toco-kernels[train]'`.
"""

from .affinity_net import (
    AFFINITY_NET,
    AFFINITY_NET_TINY,
    AffinityNet,
    AffinityNetConfig,
    AffinityNetOutput,
    affinity_net_losses,
    grid_labels,
    pair_affinity,
    with_background,
)
from .backbone import Backbone, Tokens
from .checkpoints import load_authors_checkpoint
from .config import COCO, CONFIGS, TINY, VOC, Optimisation, Quirks, Stage, ToCoConfig
from .criterion import ToCoCriterion, ToCoOutput
from .distributed import shard_
from .optimisation import learning_rate_factor, parameter_groups
from .ppc import PPC, PPC_EPS, PPC_SEAM, PPC_TINY, FeatureMaps, PPCConfig, PPCCriterion, PPCOutput
from .tkp_pcl import TKPPCL, TKPPCL_COCO, TKPPCL_VOC, TKPPCLConfig, TKPPCLCriterion, TKPPCLOutput
from .toco import ToCo

__all__ = [
    "AFFINITY_NET",
    "AFFINITY_NET_TINY",
    "COCO",
    "CONFIGS",
    "PPC",
    "PPC_EPS",
    "PPC_SEAM",
    "PPC_TINY",
    "TINY",
    "TKPPCL",
    "TKPPCL_COCO",
    "TKPPCL_VOC",
    "VOC",
    "AffinityNet",
    "AffinityNetConfig",
    "AffinityNetOutput",
    "Backbone",
    "FeatureMaps",
    "Optimisation",
    "PPCConfig",
    "PPCCriterion",
    "PPCOutput",
    "Quirks",
    "Stage",
    "TKPPCLConfig",
    "TKPPCLCriterion",
    "TKPPCLOutput",
    "ToCo",
    "ToCoConfig",
    "ToCoCriterion",
    "ToCoOutput",
    "Tokens",
    "affinity_net_losses",
    "grid_labels",
    "learning_rate_factor",
    "load_authors_checkpoint",
    "pair_affinity",
    "parameter_groups",
    "shard_",
    "with_background",
]
