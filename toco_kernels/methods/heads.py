"""What stands on the backbone: the decoder of the segmentation, and the projection of class tokens."""

import torch.nn.functional as F
from torch import Tensor, nn


class LargeFOV(nn.Module):
    """DeepLab's decoder with a large field of view: two 3 × 3 convolutions of dilation 5, and a classifier.

    Args:
        width: channels of the tokens.
        num_classes: with the background.
        hidden: channels of the two convolutions. ToCo: 512.
    """

    def __init__(self, width: int, num_classes: int, hidden: int = 512):
        super().__init__()
        self.conv1 = nn.Conv2d(width, hidden, 3, padding=5, dilation=5)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=5, dilation=5)
        self.classifier = nn.Conv2d(hidden, num_classes, 1, bias=False)

    def forward(
        self,
        tokens: Tensor,  # (B, D, h, w)
    ) -> Tensor:  # (B, num_classes, h, w)
        """Segmentation logits on the patch grid."""
        return self.classifier(self.conv2(self.conv1(tokens).relu()).relu())


class ClassTokenHead(nn.Module):
    """Projects class tokens: three linear layers with GELU, a unit vector, and its cosines with learned directions.

    The published last layer is weight-normalised with a gain frozen at 1, which is what these cosines are. The output
    is not normalised.

    Args:
        width: of class tokens.
        hidden, bottleneck, out: widths of the layers. ToCo: 2048, 256 and 1024.
    """

    def __init__(self, width: int, hidden: int = 2048, bottleneck: int = 256, out: int = 1024):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.directions = nn.Linear(bottleneck, out, bias=False)

    def forward(
        self,
        cls: Tensor,  # (n, D)
    ) -> Tensor:  # (n, out)
        """The projected class tokens."""
        unit = F.normalize(self.layers(cls), dim=1)
        return F.linear(unit, F.normalize(self.directions.weight, dim=1))
