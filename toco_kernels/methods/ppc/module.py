"""PPC as one module: from a batch of images with image labels to a loss."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from ...cam_regularization import max_norm
from ...common.checks import checked_image_labels
from ...common.errors import bad_type, bad_value, integer
from ...pixel_correlation import correlation_maps, pixel_correlation
from ..checks import at_scale, check_images, checked_scales, checked_size
from .config import PPC_SEAM, PPCConfig
from .criterion import PPCCriterion, PPCOutput
from .feature_maps import FeatureMaps

VIEW_KEYS = ("saliency", "draws")


class View(NamedTuple):
    """What the network makes of one view."""

    cams: Tensor  # (B, C + 1, h, w)
    revised: Tensor  # (B, C + 1, h, w)
    features: Tensor  # (B, D, h, w)


class PPC(nn.Module):
    """Pixel-to-prototype contrast, on SEAM or on EPS: a dilated network, two 1 × 1 heads, and pixel correlation.

    **The published backbone, ResNet-38, is not in timm: here it is a dilated ResNet-50**, or any network of timm's with
    features of stride 8, of which all below stride 8 is frozen where the published network freezes what is below 4. So
    published numbers are not to be expected to the digit. What else differs, prototypes of equal scores and the CAMs on
    EPS, is listed in docs/ppc.md with its switches.

    `forward` is one training step without the optimiser's; `cams` is for everything else. There is no segmentation: it
    is trained on the pseudo labels that the CAMs make.

    Args:
        backbone: the name of one of timm's networks, see `FeatureMaps`.
        num_classes: with the background; None: that of the configuration.
        config: `PPC_SEAM`, `PPC_EPS` or one of your own.
        pretrained: False: random weights; True: those of timm's tag, downloaded if need be; a path: a local file.
        freeze_norms, freeze_stem: what of the backbone stays as it is, see `FeatureMaps`. Published: both. With random
            weights give False: timm's ResNets begin with norms of 0, and blocks would stay what they are. Training
            that begins so warns.
        checkpointing: recompute the backbone's parts in the backward instead of keeping them in memory.
        process_group, generator: see `PPCCriterion`.
        backbone_options: further ones for `timm.create_model`.

    Raises:
        ImportError: timm is missing.
        ValueError: an option is out of its range.

    Attributes `backbone`, `classifier`, `projector`, and the pixel correlation's `low`, `middle` and `correlation` are
    trained; `criterion` has no state.

    Source: PPC (Du et al., CVPR 2022).
    """

    def __init__(
        self,
        backbone: str = "resnet50.tv_in1k",
        num_classes: int | None = None,
        *,
        config: PPCConfig = PPC_SEAM,
        pretrained: bool | str | Path = False,
        freeze_norms: bool = True,
        freeze_stem: bool = True,
        checkpointing: bool = False,
        process_group: "dist.ProcessGroup | None" = None,
        generator: torch.Generator | None = None,
        backbone_options: Mapping | None = None,
    ):
        super().__init__()
        self.config = config
        self.num_classes = integer(config.num_classes if num_classes is None else num_classes, "num_classes", least=2)
        self.backbone = FeatureMaps(
            backbone,
            pretrained=pretrained,
            freeze_norms=freeze_norms,
            freeze_stem=freeze_stem,
            checkpointing=checkpointing,
            **(backbone_options or {}),
        )
        low, middle, top = self.backbone.widths
        of_low, of_middle, out = config.correlation
        self.classifier = nn.Conv2d(top, self.num_classes, 1, bias=False)
        self.projector = nn.Conv2d(top, config.projection, 1, bias=False)
        self.low = nn.Conv2d(low, of_low, 1, bias=False)
        self.middle = nn.Conv2d(middle, of_middle, 1, bias=False)
        self.correlation = nn.Conv2d(3 + of_low + of_middle, out, 1, bias=False)
        for head, gain in ((self.classifier, 1), (self.projector, 1), (self.correlation, 4)):
            nn.init.xavier_uniform_(head.weight, gain=gain)
        for head in (self.low, self.middle):
            nn.init.kaiming_normal_(head.weight)
        self.criterion = PPCCriterion(config, process_group=process_group, generator=generator)

    def forward(
        self,
        images: Tensor,  # (B, 3, H, W)
        image_labels: Tensor,  # (B, C)
        *,
        views: Mapping[str, Tensor] | None = None,
        boxes: Tensor | None = None,
        step: int = 0,
    ) -> PPCOutput:
        """One step's losses and labels. The second view is the first, resized to `config.second_size`.

        Args:
            images: (B, 3, H, W) float, normalised by `config.mean` and `config.std`.
            image_labels: (B, C) multi-hot without background, any dtype, C = num_classes - 1.
            views: what else there is of the same photographs: `saliency` (B, 1, H, W) in [0, 1], which EPS needs; and
                optionally `draws` (B, 2, h, w), random numbers in [0, 1) on the second view's grid.
            boxes: not read: padding takes part, as published. For the signature that all methods have.
            step: counted from 0; `config.contrast_from` depends on it, and nothing else.

        Returns:
            The output: call `backward` on its `loss`.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        check_images(images)
        image_labels = checked_image_labels(image_labels, len(images), self.num_classes - 1, images, "images")
        if views is not None and not isinstance(views, Mapping):
            raise bad_type("views", "be a mapping", type(views).__name__)
        views = views or {}
        if unknown := [key for key in views if key not in VIEW_KEYS]:
            raise bad_value("views", f"have keys of {VIEW_KEYS}", unknown)
        if views.get("saliency") is None and self.criterion.needs(step, "saliency"):
            must = f"have saliency, (B, 1, H, W) in [0, 1], for variant {self.config.variant!r}"
            raise bad_value("views", must, [*views])

        size = self.config.second_size, self.config.second_size
        with record_function("ppc::first view"):
            first = self.view(images)
        with record_function("ppc::second view"):
            second = self.view(F.interpolate(images, size=size, mode="bilinear", align_corners=True))
        return self.criterion(
            first.cams,
            second.cams,
            first.features,
            second.features,
            image_labels,
            step=step,
            revised=first.revised,
            other_revised=second.revised,
            sizes=(tuple(images.shape[2:]), size) if self.config.variant == "seam" else None,
            **views,
        )

    def view(
        self,
        images: Tensor,  # (B, 3, H, W)
    ) -> View:
        """The network: class maps, those after pixel correlation, and projections."""
        maps = self.backbone(images)
        top = F.dropout2d(maps.top, self.config.dropout, self.training)
        cams = self.classifier(top)
        colours = F.interpolate(images, size=cams.shape[2:], mode="bilinear", align_corners=True)
        branches = self.low(maps.low.detach()).relu(), self.middle(maps.middle.detach()).relu()
        similar = self.correlation(torch.cat([colours.to(branches[0].dtype), *branches], dim=1))
        return View(cams, pixel_correlation(similar, correlation_maps(cams)), self.projector(top).relu())

    @torch.no_grad()
    def cams(
        self,
        images: Tensor,  # (B, 3, H, W)
        image_labels: Tensor | None = None,  # (B, C)
        *,
        scales: Sequence[float] | None = None,
        size: tuple[int, int] | None = None,
    ) -> Tensor:  # (B, C, *size)
        """CAMs, merged over scales, images and mirror images.

        On SEAM the sum of the revised maps, stretched to 0 … 1 for each class. On EPS the sum of the probabilities of
        the classes, divided by each class's largest, as EPS makes them: of maps before pixel correlation, which EPS has
        not. PPC's code for this does not run; revised maps are in [0, 1], where a softmax is nearly flat.

        Args:
            images: (B, 3, H, W), normalised.
            image_labels: (B, C): absent classes are 0. None: all classes are computed.
            scales: of the passes; None: those of the configuration.
            size: of the result; None: that of the images.

        Returns:
            (B, C, *size) in [0, 1], float32 (float64 for float64 images).
        """
        check_images(images)
        scales, size = checked_scales(self.config.cam_scales if scales is None else scales), checked_size(size, images)
        total, seam = 0, self.config.variant == "seam"
        for scale in scales:
            scaled = at_scale(images, scale)
            view = self.view(torch.cat([scaled, scaled.flip(-1)]))
            maps = view.revised if seam else view.cams
            maps = maps.double() if maps.dtype == torch.float64 else maps.float()
            maps = (maps if seam else maps.softmax(dim=1))[:, 1:]
            plain, mirrored = maps.chunk(2)
            merged = torch.cat([plain, mirrored.flip(-1)], dim=1)
            merged = F.interpolate(merged, size=size, mode="bilinear", align_corners=False)
            total = total + merged.unflatten(1, (2, -1)).sum(dim=1)
        cams = max_norm(total) if seam else total / (total.amax(dim=(2, 3), keepdim=True) + 1e-5)
        if image_labels is None:
            return cams
        image_labels = checked_image_labels(image_labels, len(images), self.num_classes - 1, images, "images")
        return cams * (image_labels != 0)[:, :, None, None]

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        return f"num_classes={self.num_classes}, variant={self.config.variant!r}"
