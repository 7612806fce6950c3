"""PPC: pixel-to-prototype contrast (Du et al., CVPR 2022), on SEAM and on EPS."""

from .config import PPC_EPS, PPC_SEAM, PPC_TINY, PPCConfig
from .criterion import PPCCriterion, PPCOutput
from .feature_maps import FeatureMaps, Maps
from .module import PPC

__all__ = ["PPC", "PPC_EPS", "PPC_SEAM", "PPC_TINY", "FeatureMaps", "Maps", "PPCConfig", "PPCCriterion", "PPCOutput"]
