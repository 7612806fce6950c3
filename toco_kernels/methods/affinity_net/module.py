"""AffinityNet as one module: trained on labels that are sure of some pixels, applied to class maps."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from ...affinity_propagate import random_walk
from ...common.checks import check_floating, check_same_device, check_tensor
from ...common.errors import bad_type, bad_value
from ...common.group import WithProcessGroup
from ..ppc.feature_maps import STRIDE, FeatureMaps
from .config import AFFINITY_NET, AffinityNetConfig
from .criterion import AffinityNetOutput, affinity_net_losses
from .pairs import inner, pair_affinity


class AffinityNet(WithProcessGroup):
    """Which neighbouring pixels belong together, learned from labels that are sure of some of them.

    A dilated network; three 1 × 1 projections of its low, middle and top features, joined by a fourth; the affinity of
    two pixels is that of their features, `pair_affinity`. `walk` spreads class maps along it. It is the second stage of
    PPC, SEAM and many others: class maps of a first network make the labels that it is trained on, and are then walked.

    **The published backbone, ResNet-38, is not in timm: here it is a dilated ResNet-50**, or any network of timm's with
    features of stride 8, as in `PPC`. So published numbers are not to be expected to the digit, and published
    checkpoints cannot be loaded.

    Args:
        backbone: the name of one of timm's networks, see `FeatureMaps`.
        config: `AFFINITY_NET` or one of your own.
        pretrained: False: random weights; True: those of timm's tag, downloaded if need be; a path: a local file.
        freeze_norms, freeze_stem: what of the backbone stays as it is, see `FeatureMaps`. Published: both. With random
            weights give False.
        checkpointing: recompute the backbone's parts in the backward instead of keeping them in memory.
        process_group: None, or the processes whose batches are one for the loss. Copies share it.
        backbone_options: further ones for `timm.create_model`.

    Raises:
        ImportError: timm is missing.
        ValueError: an option is out of its range.

    Source: AffinityNet (Ahn & Kwak, CVPR 2018), with the settings of PPC (Du et al., CVPR 2022).
    """

    def __init__(
        self,
        backbone: str = "resnet50.tv_in1k",
        *,
        config: AffinityNetConfig = AFFINITY_NET,
        pretrained: bool | str | Path = False,
        freeze_norms: bool = True,
        freeze_stem: bool = True,
        checkpointing: bool = False,
        process_group: "dist.ProcessGroup | None" = None,
        backbone_options: Mapping | None = None,
    ):
        super().__init__()
        self.config, self.process_group = config, process_group
        self.backbone = FeatureMaps(
            backbone,
            pretrained=pretrained,
            freeze_norms=freeze_norms,
            freeze_stem=freeze_stem,
            checkpointing=checkpointing,
            **(backbone_options or {}),
        )
        self.low, self.middle, self.top = (
            nn.Conv2d(width, out, 1, bias=False)
            for width, out in zip(self.backbone.widths, config.projections, strict=True)
        )
        self.joint = nn.Conv2d(sum(config.projections), config.features, 1, bias=False)
        for head in (self.low, self.middle, self.top):
            nn.init.kaiming_normal_(head.weight)
        nn.init.xavier_uniform_(self.joint.weight, gain=4)

    def forward(
        self,
        images: Tensor,  # (B, 3, H, W)
        image_labels: Tensor | None = None,
        *,
        views: Mapping[str, Tensor],
        boxes: Tensor | None = None,
        step: int = 0,
    ) -> AffinityNetOutput:
        """One step's losses.

        Args:
            images: (B, 3, H, W) float, normalised by `config.mean` and `config.std`; sides are multiples of 8.
            views: `labels` (B, H / 8, W / 8), integers: 0 background, 255 where nobody is sure; see `grid_labels`.
            image_labels, boxes, step: not read. For the signature that all methods have.

        Returns:
            The output: call `backward` on its `loss`.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        self._check_images(images)
        if not isinstance(views, Mapping):
            raise bad_type("views", "be a mapping", type(views).__name__)
        if [*views] != ["labels"]:
            raise bad_value("views", "have labels, (B, H / 8, W / 8), and nothing else", [*views])
        if images.shape[2] % STRIDE or images.shape[3] % STRIDE:
            raise bad_value("images", f"have sides that are multiples of {STRIDE}", f"shape {tuple(images.shape)}")
        affinities = self.affinities(images)
        with record_function("affinity_net::losses"):
            return affinity_net_losses(
                affinities, views["labels"], config=self.config, process_group=self.process_group
            )

    def affinities(
        self,
        images: Tensor,  # (B, 3, H, W)
    ) -> Tensor:  # (B, P, h, w)
        """The affinities of each pixel of the network's grid to its neighbours, as `random_walk` takes them."""
        with record_function("affinity_net::network"):
            joined = self.features(images)
        with record_function("affinity_net::pairs"):
            return pair_affinity(joined, radius=self.config.radius)

    def features(
        self,
        images: Tensor,  # (B, 3, H, W)
    ) -> Tensor:  # (B, D, h, w)
        """What pixels are compared by."""
        maps = self.backbone(images)
        heads = zip((self.low, self.middle, self.top), maps, strict=True)
        return F.elu(self.joint(torch.cat([F.elu(head(x)) for head, x in heads], dim=1)))

    @torch.no_grad()
    def walk(
        self,
        images: Tensor,  # (B, 3, H, W)
        maps: Tensor,  # (B, K, H, W)
        *,
        beta: float | None = None,
        steps: int | None = None,
    ) -> Tensor:  # (B, K, H, W)
        """Class maps after a random walk along the affinities of their images.

        The mean of each 8 × 8 pixels walks on the network's grid; the result is bilinear between its cells. Images and
        maps are continued by zeros to multiples of 8, as published.

        Args:
            images: (B, 3, H, W), normalised.
            maps: (B, K, H, W) scores of that size, the background's among them: `with_background(cams, …)`.
            beta, steps: of the walk; None: those of the configuration.

        Returns:
            (B, K, H, W), in the dtype of the maps. The argmax are the labels.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        self._check_images(images)
        check_tensor(maps, "maps", 4, "(B, K, H, W)")
        check_floating(maps, "maps")
        check_same_device(maps, "maps", images, "images")
        height, width = images.shape[2:]
        if (len(maps), *maps.shape[2:]) != (len(images), height, width):
            must = f"have the images' batch and size, {(len(images), height, width)}"
            raise bad_value("maps", must, f"shape {tuple(maps.shape)}")
        beyond = (0, -width % STRIDE, 0, -height % STRIDE)
        affinities = self.affinities(F.pad(images, beyond))
        if self.config.inner_pairs:
            affinities = affinities * inner(*affinities.shape[2:], self.config.radius, affinities.device)
        walked = random_walk(
            affinities,
            F.avg_pool2d(F.pad(maps, beyond), STRIDE),
            radius=self.config.radius,
            beta=self.config.beta if beta is None else beta,
            steps=self.config.walk_steps if steps is None else steps,
        )
        size = height + beyond[3], width + beyond[1]
        return F.interpolate(walked, size=size, mode="bilinear", align_corners=False)[..., :height, :width]

    def _check_images(self, images: Tensor) -> None:
        check_tensor(images, "images", 4, "(B, 3, H, W)")
        check_floating(images, "images")
        if images.shape[1] != 3:
            raise bad_value("images", "have three colours", f"shape {tuple(images.shape)}")

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        return f"radius={self.config.radius}, beta={self.config.beta:g}, walk_steps={self.config.walk_steps}"
