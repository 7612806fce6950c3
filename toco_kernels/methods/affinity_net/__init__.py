"""AffinityNet: a network learns which neighbouring pixels belong together, and class maps walk along that."""

from .config import AFFINITY_NET, AFFINITY_NET_TINY, AffinityNetConfig
from .criterion import AffinityNetOutput, affinity_net_losses
from .labels import grid_labels, with_background
from .module import AffinityNet
from .pairs import pair_affinity

__all__ = [
    "AFFINITY_NET",
    "AFFINITY_NET_TINY",
    "AffinityNet",
    "AffinityNetConfig",
    "AffinityNetOutput",
    "affinity_net_losses",
    "grid_labels",
    "pair_affinity",
    "with_background",
]
