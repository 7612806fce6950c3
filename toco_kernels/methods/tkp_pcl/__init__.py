"""TKP-PCL: top-K pooling with patch contrastive learning (Wu et al., arXiv 2310.09828), as far as it is known."""

from .conditioning import HVBiLSTM
from .config import TKPPCL_COCO, TKPPCL_VOC, TKPPCLConfig
from .criterion import TKPPCLCriterion, TKPPCLOutput
from .module import TKPPCL

__all__ = ["TKPPCL", "TKPPCL_COCO", "TKPPCL_VOC", "HVBiLSTM", "TKPPCLConfig", "TKPPCLCriterion", "TKPPCLOutput"]
