"""Whole training methods, built from the operators: modules for a training loop of one's own.

`ToCo` is the method of Ru et al. (CVPR 2023); `ToCoCriterion` its losses and labels for another network. Backbones come
from timm, which is installed by `pip install 'toco-kernels[train]'`.
"""

from .backbone import Backbone, Tokens
from .checkpoints import load_authors_checkpoint
from .config import COCO, CONFIGS, TINY, VOC, Optimisation, Quirks, Stage, ToCoConfig
from .criterion import ToCoCriterion, ToCoOutput
from .distributed import shard_
from .optimisation import learning_rate_factor, parameter_groups
from .toco import ToCo

__all__ = [
    "COCO",
    "CONFIGS",
    "TINY",
    "VOC",
    "Backbone",
    "Optimisation",
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
