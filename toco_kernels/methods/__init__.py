"""Whole training methods, built from the operators: modules for a training loop of one's own.

`ToCo` is the method of Ru et al. (CVPR 2023); `ToCoCriterion` its losses and labels for another network. `TKPPCL` and
`TKPPCLCriterion` are TKP-PCL, as far as it is known. Backbones come from timm, which is installed by
`pip install 'toco-kernels[train]'`.
"""

from .backbone import Backbone, Tokens
from .checkpoints import load_authors_checkpoint
from .config import COCO, CONFIGS, TINY, VOC, Optimisation, Quirks, Stage, ToCoConfig
from .criterion import ToCoCriterion, ToCoOutput
from .distributed import shard_
from .optimisation import learning_rate_factor, parameter_groups
from .tkp_pcl import TKPPCL, TKPPCL_COCO, TKPPCL_VOC, TKPPCLConfig, TKPPCLCriterion, TKPPCLOutput
from .toco import ToCo

__all__ = [
    "COCO",
    "CONFIGS",
    "TINY",
    "TKPPCL",
    "TKPPCL_COCO",
    "TKPPCL_VOC",
    "VOC",
    "Backbone",
    "Optimisation",
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
    "learning_rate_factor",
    "load_authors_checkpoint",
    "parameter_groups",
    "shard_",
]
