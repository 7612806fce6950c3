"""ToCo's losses and pseudo labels, for a network of anyone's."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import record_function

from ..affinity_refine import refine_cam_labels
from ..cam import merge_cams, merge_cams_to_labels, merge_cams_to_roi, patch_boxes, segmentation_loss
from ..class_contrast import class_token_contrast
from ..common.checks import check_tensor
from ..common.errors import bad_value, integer
from ..common.group import WithProcessGroup
from ..dense_energy import dense_energy_from_logits
from ..dense_energy.op import LATTICE_SHARE
from ..patch_contrast import patch_token_contrast
from .config import LOSSES, VOC, Stage, ToCoConfig

IGNORE = 255
ENERGY_KERNELS = ("auto", "lattice", "exact")
OF_CAMS = ("ptc", "ctc", "seg", "reg")  # the losses that CAMs are made for


class ToCoOutput(NamedTuple):
    """What a training step gives.

    Args:
        loss: () the weighted sum of the losses, to call `backward` on.
        losses: `cls`, `cls_aux`, `ptc`, `ctc`, `seg` and `reg`, each () and not weighted.
        cams: (B, C, H, W) in [0, 1], the merged CAM of the main classifier, 0 for classes that an image does not have;
            None where `skip_unweighted` left out all losses that need CAMs.
        pseudo_labels: (B, H, W) int64, the refined labels: 0 background, c + 1 class c, 255 in doubt; None where
            `skip_unweighted` left out `seg` and `reg`.
        tokens: (B, N, D) patch tokens of the images, with their graph, for losses of one's own.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    cams: Tensor | None
    pseudo_labels: Tensor | None
    tokens: Tensor


class ToCoCriterion(WithProcessGroup):
    """The six losses of ToCo from what a network gives, and the labels they need. It has no parameters and no state.

        loss = Σ weight * loss of  cls, cls_aux   multi-label soft margin of the two classifiers
                                   ptc            patch-token contrast along labels of the auxiliary CAM
                                   ctc            class-token contrast of global and local crops
                                   seg            cross-entropy, background and objects half each, on refined labels
                                   reg            dense energy of the segmentation

    Args:
        config: thresholds, weights, temperature, quirks: `VOC`, `COCO` or one of your own.
        energy_kernel: "lattice", as published; "exact", 0.60 times the Gaussian sum; or "auto": exact on CUDA, lattice
            elsewhere. The two are different functions: see `dense_energy`. "auto" warns once where it is exact.
        process_group: None, or the processes whose batches are one for `ptc`. Copies share it, pickled modules have
            None.
        skip_unweighted: leave out losses whose weight is 0 at this step, which are 0 then, and the CAMs and labels that
            nothing else needs, which are None. As published they are computed, so that their parameters get a
            gradient of 0, which DistributedDataParallel expects (else give it `find_unused_parameters=True`), and
            with which AdamW lets weights decay: skipped, decoder and projection head stay as they are.

    Source: ToCo (Ru et al., CVPR 2023) and its training scripts.
    """

    def __init__(
        self,
        config: ToCoConfig = VOC,
        *,
        energy_kernel: str = "auto",
        process_group: "dist.ProcessGroup | None" = None,
        skip_unweighted: bool = False,
    ):
        super().__init__()
        if energy_kernel not in ENERGY_KERNELS:
            raise bad_value("energy_kernel", f"be one of {ENERGY_KERNELS}", repr(energy_kernel))
        self.config = config
        self.energy_kernel = energy_kernel
        self.process_group = process_group
        self.skip_unweighted = skip_unweighted

    def needs(self, step: int, *losses: str) -> bool:
        """Whether any of these losses is computed at a step."""
        stage = self.config.stage(integer(step, "step", least=0))
        return not self.skip_unweighted or any(stage.weight(loss) != 0 for loss in losses)

    def forward(
        self,
        images: Tensor,  # (B, 3, H, W)
        image_labels: Tensor,  # (B, C)
        *,
        step: int,
        logits: Tensor,  # (B, C)
        aux_logits: Tensor,  # (B, C)
        tokens: Tensor,  # (B, h * w, D)
        grid: tuple[int, int],
        maps: Sequence[Tensor] | None = None,  # each (2B, C, h_s, w_s)
        aux_maps: Sequence[Tensor] | None = None,
        segmentation: Tensor | None = None,  # (B, C + 1, h, w)
        student: Tensor | None = None,  # (crops * B, D')
        teacher: Tensor | None = None,  # (2 * B, D')
        flags: Tensor | None = None,  # (B, crops)
        boxes: Tensor | None = None,  # (B, 4)
    ) -> ToCoOutput:
        """All losses of one step.

        Args:
            images: (B, 3, H, W), normalised by the configuration's mean and std.
            image_labels: (B, C) multi-hot without background.
            step: counted from 0; it decides the stage.
            logits, aux_logits: (B, C) of the two classifiers.
            tokens: (B, h * w, D) patch tokens, row by row.
            grid: (h, w).
            maps, aux_maps: small CAMs of the two classifiers as for `merge_cams`: one tensor for each scale, those of
                the images, then those of the mirrored images. Constants.
            segmentation: (B, C + 1, h, w) logits, of any size.
            student, teacher, flags: as for `class_token_contrast`. The teacher is a constant.
            boxes: (B, 4) integers y0, y1, x0, x1 in pixels: where the crop shows the photograph; None: everywhere.

        May be None where `needs` says so: `maps` and `aux_maps` without `ptc`, `ctc`, `seg` and `reg`; `segmentation`
        without the last two; `student`, `teacher` and `flags` without `ctc`.

        Returns:
            The output; its `tokens` are those given.

        Raises:
            TypeError, ValueError: an argument is not what the operators take.
        """
        check_tensor(images, "images", 4, "(B, 3, H, W)")
        config, stage = self.config, self.config.stage(integer(step, "step", least=0))
        size = tuple(images.shape[2:])
        zero = logits.new_zeros((), dtype=torch.float32)
        losses, cams, labels = dict.fromkeys(LOSSES, zero), None, None

        with record_function("toco::labels"):
            if self.needs(step, *OF_CAMS):
                _check_given("ptc, ctc, seg and reg", stage, maps=maps, aux_maps=aux_maps)
                cams = merge_cams(maps, size, image_labels)
            if self.needs(step, "seg", "reg"):
                source = cams if stage.labels_from == "main" else merge_cams(aux_maps, size, image_labels)
                labels = self.refined_labels(images, source, image_labels, boxes)
        with record_function("toco::losses"):
            for name, scores in (("cls", logits), ("cls_aux", aux_logits)):
                if self.needs(step, name):
                    losses[name] = F.multilabel_soft_margin_loss(_wide(scores), image_labels.to(_wide(scores).dtype))
            if self.needs(step, "ptc"):
                patches = self.patch_labels(aux_maps, size, grid, image_labels, boxes)
                losses["ptc"] = patch_token_contrast(tokens, patches.flatten(1), process_group=self.process_group)
            if self.needs(step, "ctc"):
                _check_given("ctc", stage, student=student, teacher=teacher, flags=flags)
                losses["ctc"] = self._class_contrast(student, teacher, flags)
        if self.needs(step, "seg", "reg"):
            _check_given("seg and reg", stage, segmentation=segmentation)
            with record_function("toco::segmentation losses"):
                segmentation = F.interpolate(segmentation, size=size, mode="bilinear", align_corners=False)
                if self.needs(step, "seg"):
                    loss = nan_segmentation_loss if config.quirks.nan_segmentation else segmentation_loss
                    losses["seg"] = loss(segmentation, labels)
                if self.needs(step, "reg"):
                    losses["reg"] = self._energy(images, segmentation, labels, boxes)
        loss = sum((stage.weight(name) * losses[name] for name in LOSSES if self.needs(step, name)), start=zero)
        return ToCoOutput(loss, losses, cams, labels, tokens)

    def regions(
        self,
        aux_maps: Sequence[Tensor],  # each (2B, C, h_s, w_s)
        size: tuple[int, int],
        image_labels: Tensor,  # (B, C)
    ) -> Tensor:  # (B, H, W) uint8
        """Background, uncertain regions and objects by the auxiliary CAM, for `crop_uncertain`."""
        return merge_cams_to_roi(aux_maps, size, image_labels, high=self.config.high, low=self.config.low)

    def refined_labels(
        self,
        images: Tensor,  # (B, 3, H, W)
        cams: Tensor,  # (B, C, H, W) in [0, 1]
        image_labels: Tensor,  # (B, C)
        boxes: Tensor | None = None,  # (B, 4)
    ) -> Tensor:  # (B, H, W) int64
        """Pseudo labels that follow the borders of objects."""
        config = self.config
        colours = self.colours(images)
        if config.quirks.quantise_image:
            colours = colours.clamp(0, 255).to(torch.uint8).to(colours.dtype)
        classes = image_labels.shape[1]
        return refine_cam_labels(
            colours / 255.0,
            cams,
            image_labels,
            boxes,
            high=config.high,
            low=config.low,
            down_scale=min(2, *images.shape[2:]),
            # A number, where None would make the host wait for a GPU. Absent classes cost memory there, and no time.
            max_classes=classes if config.max_classes is None else min(classes, config.max_classes),
        )

    def patch_labels(
        self,
        aux_maps: Sequence[Tensor],  # each (2B, C, h_s, w_s)
        size: tuple[int, int],
        grid: tuple[int, int],
        image_labels: Tensor,  # (B, C)
        boxes: Tensor | None = None,  # (B, 4)
    ) -> Tensor:  # (B, *grid) int64
        """Pseudo labels of patches, by the auxiliary CAM."""
        if boxes is not None and not self.config.quirks.boxes_in_pixels:
            # Patches cover grid * patch pixels; without a remainder, size / grid is the patch's side.
            rows = patch_boxes(boxes, max(1, size[0] // grid[0]))[:, :2]
            boxes = torch.cat([rows, patch_boxes(boxes, max(1, size[1] // grid[1]))[:, 2:]], dim=1)
        limits = {"high": self.config.high, "low": self.config.low}
        return merge_cams_to_labels(aux_maps, size, image_labels, boxes=boxes, out_size=grid, **limits)

    def colours(
        self,
        images: Tensor,  # (B, 3, H, W)
    ) -> Tensor:  # (B, 3, H, W) in 0..255
        """The images without their normalisation. By numbers, since constant tensors would have to be moved along."""
        images, channels = _wide(images.detach()), zip(self.config.std, self.config.mean, strict=True)
        return torch.stack([images[:, i] * std + mean for i, (std, mean) in enumerate(channels)], dim=1)

    def _class_contrast(self, student: Tensor, teacher: Tensor, flags: Tensor) -> Tensor:
        temperature = self.config.temperature
        loss = class_token_contrast(student, teacher, flags, temperature=temperature)
        if not self.config.quirks.always_count_negatives:
            loss = loss - negatives_term(student, teacher, flags, temperature)
        return loss

    def _energy(self, images: Tensor, logits: Tensor, labels: Tensor, boxes: Tensor | None) -> Tensor:
        config, kernel = self.config, self.energy_kernel
        if kernel == "auto":
            kernel = "exact" if images.device.type == "cuda" else "lattice"
            if kernel == "exact":
                warnings.warn(
                    "toco_kernels: on a GPU, reg is 0.60 times the exact Gaussian sum, not the published lattice; "
                    "energy_kernel='lattice' computes that",
                    stacklevel=3,
                )
        energy = dense_energy_from_logits(
            self.colours(images),
            logits,
            labels,
            boxes,
            kernel=kernel,
            scale_factor=config.scale_factor,
            sigma_rgb=config.sigma_rgb,
            sigma_xy=config.sigma_xy,
        )
        return config.energy_weight * (LATTICE_SHARE if kernel == "exact" else 1.0) * energy

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        return f"energy_kernel={self.energy_kernel!r}, skip_unweighted={self.skip_unweighted}"


def negatives_term(
    student: Tensor,  # (crops * B, D)
    teacher: Tensor,  # (2 * B, D)
    flags: Tensor,  # (B, crops)
    temperature: float,
) -> Tensor:  # ()
    """The mean over images of 1 / (n + 1e-4) * 1/2 Σ_a log(1 + N_a), which `class_token_contrast` always adds."""
    batch = len(flags)
    student, teacher = (x.to(_wide(x).dtype).unflatten(0, (-1, batch)).transpose(0, 1) for x in (student, teacher))
    logits = (teacher @ student.mT) / temperature  # (B, 2, crops)
    logits = logits.masked_fill((flags != 0)[:, None], -torch.inf)
    least = logits.new_full((batch, 2, 1), 1e-4).log()
    negatives = torch.cat([logits, least], dim=2).logsumexp(dim=2)  # log N
    return (F.softplus(negatives).mean(dim=1) / ((flags != 0).sum(dim=1) + 1e-4)).sum() / max(batch, 1)


def nan_segmentation_loss(
    logits: Tensor,  # (B, C + 1, H, W)
    labels: Tensor,  # (B, H, W)
) -> Tensor:  # ()
    """The first published form: means over background and objects, each 0 / 0 where there are none."""
    background, objects = (labels.masked_fill(others, IGNORE) for others in (labels != 0, labels == 0))
    terms = (F.cross_entropy(_wide(logits), half, ignore_index=IGNORE) for half in (background, objects))
    return 0.5 * sum(terms)


def _wide(x: Tensor) -> Tensor:
    """Half precision in float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _check_given(losses: str, stage: Stage, **arguments: Tensor | None) -> None:
    for name, value in arguments.items():
        if value is None:
            raise bad_value(name, f"be given for {losses} (weights {stage.weights})", "None")
