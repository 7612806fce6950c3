"""PPC's losses, for a network of anyone's."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from ..._library import accumulate_dtype
from ...cam_regularization import adaptive_min_pooling_loss, max_norm, saliency_loss, seam_losses
from ...cam_regularization.maps import stretched_mean
from ...common.checks import check_floating, check_same_device, check_tensor, checked_image_labels
from ...common.errors import bad_value, integer
from ...common.group import WithProcessGroup, gathered
from ...prototype_contrast.reference import confidence, pseudo_labels
from ...prototype_contrast.resize import resized
from ...prototype_contrast.step import check_step, contrast_where_drawn
from .config import CONTRAST, PPC_SEAM, PPCConfig

Size = tuple[int, int]


class PPCOutput(NamedTuple):
    """What a training step gives.

    Args:
        loss: () the weighted sum of the losses, to call `backward` on.
        losses: those that the configuration's weights name, each () and not weighted; 0 where the weight is.
        cams: (B, C, h, w) in [0, 1], the revised CAMs of the first view on the network's grid, 0 for classes that an
            image does not have.
        pseudo_labels: (B, h', w') int64, on the second view's grid, the labels that the first view's pixels are
            contrasted with: 0 background, c + 1 class c.
        features: (B, D, h, w) projections of the first view, with their graph, for losses of one's own.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    cams: Tensor
    pseudo_labels: Tensor
    features: Tensor


class PPCCriterion(WithProcessGroup):
    """The losses of PPC from what a network gives for two views of its images. It has no parameters and no state.

        loss = Σ weight * loss of  cls              multi-label soft margin of the mean of the CAMs, both views
                                   min_pooling      the pixels that show a class least should not show it, both views
                                   saliency         objects and background explain a saliency map, all four maps (EPS)
                                   er, ecr          both views have the same CAMs, and what pixel correlation makes of
                                                    the other's
                                   cross_prototype  contrast of pixels with the other view's prototypes
                                   cross_cam        … by the other view's labels
                                   intra            … within a view, of hard pixels with semi-hard prototypes

    The base network is whatever makes CAMs, and need not change: besides CAMs it gives one projection of its features.
    Losses that it has already are left out of `config.weights`.

    Args:
        config: weights, thresholds, temperature: `PPC_SEAM`, `PPC_EPS` or one of your own.
        process_group: None, or the processes whose batches are one for the contrast. They must be equally large, and
            each sends its maps on the second view's grid. Copies share it, pickled modules have None.
        generator: of the random numbers of `intra`, on the device of the features; None: the device's default one.

    Source: PPC (Du et al., CVPR 2022) on SEAM (Wang et al., CVPR 2020) and EPS (Lee et al., CVPR 2021), as PPC's code
    computes them. Its EPS branch takes class 0, there an object's, for the background in `ecr` and in the pixel
    correlation; here that is the background.
    """

    def __init__(
        self,
        config: PPCConfig = PPC_SEAM,
        *,
        process_group: "dist.ProcessGroup | None" = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        self.config = config
        self.process_group = process_group
        self.generator = generator

    def needs(self, step: int, *losses: str) -> bool:
        """Whether any of these losses is computed at a step."""
        step = integer(step, "step", least=0)
        return any(self.config.weight(loss, step) != 0 for loss in losses)

    def forward(
        self,
        cams: Tensor,  # (B, C + 1, h, w)
        other_cams: Tensor,  # (B, C + 1, h', w')
        features: Tensor,  # (B, D, h, w)
        other_features: Tensor,  # (B, D, h', w')
        image_labels: Tensor,  # (B, C)
        *,
        step: int = 0,
        revised: Tensor | None = None,  # (B, C + 1, h, w)
        other_revised: Tensor | None = None,  # (B, C + 1, h', w')
        sizes: tuple[Size, Size] | None = None,
        saliency: Tensor | None = None,  # (B, 1, H, W)
        draws: Tensor | None = None,  # (B, 2, h', w')
    ) -> PPCOutput:
        """All losses of one step.

        Args:
            cams, other_cams: the network's class maps of the first and the second view, before any activation, class 0
                the background's. Views have grids of their own.
            features, other_features: projections of their pixels, not normalised. Published: not negative.
            image_labels: (B, C) multi-hot without background.
            step: counted from 0; `config.contrast_from` depends on it.
            revised, other_revised: the class maps after pixel correlation, `pixel_correlation(features,
                correlation_maps(cams))`, of which labels and prototypes are made. None, where the network has none: the
                maps themselves, which `saliency` then counts twice.
            sizes: (H, W) of both views in pixels, at which SEAM compares class maps: `cls`, `min_pooling`, `er` and
                `ecr` are as published on SEAM only with them, whatever the configuration. None: on their grids, as
                EPS does.
            saliency: (B, 1, H, W) in [0, 1], of any size, for `saliency`.
            draws: (B, 2, h', w') random numbers in [0, 1) that choose pixels for `intra` in either view; None: drawn.

        Returns:
            The output; its `features` are those given.

        Raises:
            TypeError, ValueError: an argument is not what the operators take, or `saliency` is missing.
        """
        revised = cams if revised is None else revised
        other_revised = other_cams if other_revised is None else other_revised
        check_step(cams, other_cams, features, other_features, image_labels)
        if cams.shape[1] < 2:
            raise bad_value("cams", "have a background and at least one class", f"shape {tuple(cams.shape)}")
        for name, x, like in (("revised", revised, cams), ("other_revised", other_revised, other_cams)):
            if not isinstance(x, Tensor) or x.shape != like.shape:
                raise bad_value(name, f"have shape {tuple(like.shape)}", getattr(x, "shape", type(x).__name__))
        step = integer(step, "step", least=0)
        image_labels = checked_image_labels(image_labels, len(cams), cams.shape[1] - 1, cams, "cams")
        if self.needs(step, "saliency"):
            self._check_saliency(saliency, cams)

        losses = {name: cams.new_zeros((), dtype=accumulate_dtype(cams.dtype)) for name in self.config.weights}
        with torch.autocast(cams.device.type, enabled=False):
            maps = [x.to(accumulate_dtype(x.dtype)) for x in (cams, other_cams, revised, other_revised)]
            with record_function("ppc::losses of CAMs"):
                losses |= self._of_maps(*maps, image_labels, step, sizes, saliency)
            with record_function("ppc::contrast"):
                labels, contrast = self._contrast(maps[2:], features, other_features, image_labels, step, draws)
            with torch.no_grad():
                shown = max_norm(maps[2][:, 1:]) * (image_labels != 0)[:, :, None, None]
        losses |= contrast
        weighted = [self.config.weight(name, step) * losses[name] for name in losses if self.needs(step, name)]
        loss = sum(weighted, start=cams.new_zeros((), dtype=accumulate_dtype(cams.dtype)))
        return PPCOutput(loss, losses, shown, labels, features)

    def _of_maps(
        self,
        cams: Tensor,
        other_cams: Tensor,
        revised: Tensor,
        other_revised: Tensor,
        image_labels: Tensor,
        step: int,
        sizes: tuple[Size, Size] | None,
        saliency: Tensor | None,
    ) -> dict[str, Tensor]:
        """The losses of class maps: those of SEAM and EPS."""
        config, losses = self.config, {}
        if self.needs(step, "saliency"):
            options = {"threshold": config.saliency_threshold, "mix": config.saliency_mix}
            four = [
                saliency_loss(x, saliency, image_labels, **options) for x in (cams, other_cams, revised, other_revised)
            ]
            losses["saliency"] = sum(four) / 2
        views = sizes or (tuple(cams.shape[2:]), tuple(other_cams.shape[2:]))
        if self.needs(step, "cls"):
            scores = [stretched_mean(x[:, 1:], size) for x, size in zip((cams, other_cams), views, strict=True)]
            present = (image_labels != 0).to(cams.dtype)
            losses["cls"] = sum(F.multilabel_soft_margin_loss(x, present) for x in scores) / 2
        if self.needs(step, "min_pooling"):
            both = zip((revised, other_revised), views, strict=True)
            of_views = [adaptive_min_pooling_loss(x[:, 1:], image_labels=image_labels, size=size) for x, size in both]
            losses["min_pooling"] = sum(of_views) / 2
        if self.needs(step, "er", "ecr"):
            options = {"share": config.ecr_share, "sizes": views}
            er, ecr = seam_losses(cams, other_cams, revised, other_revised, image_labels, **options)
            losses |= {name: x for name, x in (("er", er), ("ecr", ecr)) if self.needs(step, name)}
        return losses

    def _contrast(
        self,
        revised: list[Tensor],  # (B, C + 1, h, w), (B, C + 1, h', w')
        features: Tensor,
        other_features: Tensor,
        image_labels: Tensor,
        step: int,
        draws: Tensor | None,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # (B, h', w')
        """The labels of the first view, and the three terms, of the joined batch."""
        config, (batch, _, *size) = self.config, other_features.shape
        maps = [resized(revised[0].detach(), size), revised[1].detach()]
        with torch.no_grad():
            labels = pseudo_labels(confidence(maps[0], config.background_score), image_labels)
        if not self.needs(step, *CONTRAST):
            return labels, {}
        if draws is None:
            draws = torch.rand(batch, 2, *size, generator=self.generator, device=features.device)
        elif draws.shape != (batch, 2, *size):
            raise bad_value("draws", f"have shape (B, 2, h, w) = {(batch, 2, *size)}", f"shape {tuple(draws.shape)}")
        inputs = [
            *maps,
            resized(features, size),
            other_features.to(accumulate_dtype(features.dtype)),
            image_labels,
            draws,
        ]
        if self.process_group is not None:
            inputs = [gathered(x, self.process_group) for x in inputs]
        *inputs, draws = inputs
        found = contrast_where_drawn(
            *inputs,
            draws.transpose(0, 1),
            background_score=config.background_score,
            k=self.prototype_pixels(*size),
            weights=(1.0, 1.0, 1.0),
            temperature=config.temperature,
            published=config.published_prototypes,
        )
        return labels, {name: found[name] for name in CONTRAST if self.needs(step, name)}

    def prototype_pixels(self, height: int, width: int) -> int:
        """How many pixels make a prototype, for a second view of this grid. Published: 32 on SEAM, 16 on EPS."""
        return max(1, height * width // self.config.prototype_share)

    def _check_saliency(self, saliency: Tensor | None, cams: Tensor) -> None:
        if saliency is None:
            must = f"be given for the loss saliency (weight {self.config.weights['saliency']})"
            raise bad_value("saliency", f"{must}, as on EPS", "None")
        check_tensor(saliency, "saliency", 4, "(B, 1, H, W)")
        check_floating(saliency, "saliency")
        check_same_device(saliency, "saliency", cams, "cams")
        if saliency.shape[:2] != (len(cams), 1):
            raise bad_value("saliency", f"have shape ({len(cams)}, 1, H, W)", f"shape {tuple(saliency.shape)}")

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        return f"variant={self.config.variant!r}"
