"""Drop-in modules."""

from torch import Tensor, nn

from ..common.errors import integer
from .loss import segmentation_loss


class SegmentationLoss(nn.Module):
    """`segmentation_loss` with fixed options.

    Args:
        ignore_index: the label of pixels that take no part.
    """

    def __init__(self, ignore_index: int = 255):
        super().__init__()
        self.ignore_index = integer(ignore_index, "ignore_index", least=-(2**31))

    def forward(
        self,
        logits: Tensor,  # (B, C, H, W)
        labels: Tensor,  # (B, H, W)
    ) -> Tensor:  # ()
        """See `segmentation_loss`."""
        return segmentation_loss(logits, labels, ignore_index=self.ignore_index)

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        return f"ignore_index={self.ignore_index}"
