"""Whole training methods, built from the operators: modules for a training loop of one's own.

`ToCo` is the method of Ru et al. (CVPR 2023), `PPC` that of Du et al. (CVPR 2022); `ToCoCriterion` and `PPCCriterion`
are their losses and labels for another network. Backbones come from timm, which is installed by
`pip install 'toco-kernels[train]'`.
"""

from .backbone import Backbone, Tokens
from .checkpoints import load_authors_checkpoint
from .config import COCO, CONFIGS, TINY, VOC, Optimisation, Quirks, Stage, ToCoConfig
from .criterion import ToCoCriterion, ToCoOutput
from .distributed import shard_
from .optimisation import learning_rate_factor, parameter_groups
from .ppc import PPC, PPC_EPS, PPC_SEAM, PPC_TINY, FeatureMaps, PPCConfig, PPCCriterion, PPCOutput
from .toco import ToCo

__all__ = [
    "COCO",
    "CONFIGS",
    "PPC",
    "PPC_EPS",
    "PPC_SEAM",
    "PPC_TINY",
    "TINY",
    "VOC",
    "Backbone",
    "FeatureMaps",
    "Optimisation",
    "PPCConfig",
    "PPCCriterion",
    "PPCOutput",
    "Quirks",
    "Stage",
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
