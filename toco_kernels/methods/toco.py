"""ToCo as one module: from a batch of images with image labels to a loss."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from ..cam import merge_cams
from ..class_contrast import update_ema_
from ..common.checks import checked_boxes, checked_image_labels
from ..common.errors import bad_value, integer
from .backbone import Backbone, Tokens
from .checks import at_scale, check_images, checked_scales, checked_size
from .config import VOC, ToCoConfig
from .criterion import OF_CAMS, ToCoCriterion, ToCoOutput
from .heads import ClassTokenHead, LargeFOV
from .views import Views, checked_views, local_crops

MERGES = {"sum": torch.add, "max": torch.maximum}


class ToCo(nn.Module):
    """Token contrast: a ViT, two classifiers whose weights are CAMs, a decoder, and two class-token heads.

    `forward` is one training step without the optimiser's; `cams` and `predict` are for everything else.

    Teacher and student share one backbone pass, the first global crop and the CAMs of the images themselves are the
    main pass, and the decoder runs in it alone: the same losses as published, from 30 % fewer operations.

    Args:
        backbone: the name of one of timm's ViTs (EVA with positions="timm"), see `Backbone`. ToCo:
            "deit_base_patch16_224.fb_in1k", or "vit_base_patch16_224.orig_in21k_ft_in1k".
        num_classes: with the background; None: that of the configuration.
        config: `VOC`, `COCO` or one of your own.
        pretrained: False: random weights; True: those of timm's tag, downloaded if need be; a path: a local file.
        positions: "toco": embeddings resized as ToCo does; "timm": as timm does.
        train_positions: whether they are trained. ToCo: no.
        checkpointing: recompute the backbone's blocks in the backward instead of keeping them in memory.
        energy_kernel, process_group, skip_unweighted: see `ToCoCriterion`.
        backbone_options: further ones for `timm.create_model`.

    Raises:
        ImportError: timm is missing.
        ValueError: an option is out of its range.

    Attributes `backbone`, `classifier`, `aux_classifier`, `decoder`, `projector` are trained; `teacher` is the moving
    average of `projector`, and `criterion` has no state. `backbone.requires_grad_(False)` freezes the backbone, and
    `backbone.compile()` compiles it.

    Source: ToCo (Ru et al., CVPR 2023).
    """

    def __init__(
        self,
        backbone: str = "deit_base_patch16_224.fb_in1k",
        num_classes: int | None = None,
        *,
        config: ToCoConfig = VOC,
        pretrained: bool | str | Path = False,
        positions: str = "toco",
        train_positions: bool = False,
        checkpointing: bool = False,
        energy_kernel: str = "auto",
        process_group: "dist.ProcessGroup | None" = None,
        skip_unweighted: bool = False,
        backbone_options: Mapping | None = None,
    ):
        super().__init__()
        self.config = config
        self.num_classes = integer(config.num_classes if num_classes is None else num_classes, "num_classes", least=2)
        self.backbone = Backbone(
            backbone,
            pretrained=pretrained,
            aux_layer=config.aux_layer,
            positions=positions,
            train_positions=train_positions,
            checkpointing=checkpointing,
            **(backbone_options or {}),
        )
        width = self.backbone.width
        self.classifier = nn.Linear(width, self.num_classes - 1, bias=False)
        self.aux_classifier = nn.Linear(width, self.num_classes - 1, bias=False)
        self.decoder = LargeFOV(width, self.num_classes, config.decoder_width)
        self.projector = ClassTokenHead(width, *config.projection)
        self.teacher = copy.deepcopy(self.projector).requires_grad_(False)
        self.criterion = ToCoCriterion(
            config, energy_kernel=energy_kernel, process_group=process_group, skip_unweighted=skip_unweighted
        )

    def forward(
        self,
        images: Tensor,  # (B, 3, H, W)
        image_labels: Tensor,  # (B, C)
        *,
        views: Mapping[str, Tensor],
        boxes: Tensor | None = None,  # (B, 4)
        step: int,
        update_teacher: bool | None = None,
    ) -> ToCoOutput:
        """One step's losses and labels. The teacher is moved first.

        Args:
            images: (B, 3, H, W) float, normalised by `config.mean` and `config.std`: the first global crop.
            image_labels: (B, C) multi-hot without background, any dtype, C = num_classes - 1.
            views: what else is seen of the same photographs, normalised alike:
                `second_global` (B, 3, H', W'), another crop of them, of any size;
                either `local_source` (B, 3, H, W), another augmentation of `images`, from whose uncertain regions local
                crops are cut, and optionally `draws` (B, crops), the random numbers in [0, 1) that choose them;
                or `local_crops` (crops, B, 3, h, w) and `flags` (B, crops), 0 for crops that show background.
            boxes: (B, 4) integers y0, y1, x0, x1, half-open, in pixels of the images: where they show the photograph
                and not padding; None: everywhere.
            step: counted from 0; which losses count depends on it, and nothing else.
            update_teacher: whether the teacher moves; None: in training mode where gradients are computed. Published:
                once for each step of the optimiser, so with gradients of several batches give False for all but one
                of them. With `skip_unweighted` it stands still at steps without `ctc`.

        Returns:
            The output: call `backward` on its `loss`.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        check_images(images)
        image_labels = checked_image_labels(image_labels, len(images), self.num_classes - 1, images, "images")
        boxes = checked_boxes(boxes, len(images), images, "images")
        views = checked_views(views, images, self.config.local_crops)
        step = integer(step, "step", least=0)
        if update_teacher is None:
            update_teacher = self.training and torch.is_grad_enabled()
        size = tuple(images.shape[2:])

        with record_function("toco::main pass"):
            main = self.backbone(images)
            logits, aux_logits = self.classifier(_pooled(main.patches)), self.aux_classifier(_pooled(main.aux))
        maps = aux_maps = None
        if self.criterion.needs(step, *OF_CAMS):
            with record_function("toco::cam passes"):
                maps, aux_maps = self._cam_maps(images, self.config.cam_scales, main)
        contrast = {}
        if self.criterion.needs(step, "ctc"):
            contrast = self._project(main, views, aux_maps, size, image_labels, update_teacher)
        segmentation = None
        if self.criterion.needs(step, "seg", "reg"):
            with record_function("toco::decoder"):
                segmentation = self.decoder(_as_map(main.patches, main.grid))
        return self.criterion(
            images,
            image_labels,
            step=step,
            logits=logits,
            aux_logits=aux_logits,
            tokens=main.patches,
            grid=main.grid,
            maps=maps,
            aux_maps=aux_maps,
            segmentation=segmentation,
            boxes=boxes,
            **contrast,
        )

    @torch.no_grad()
    def cams(
        self,
        images: Tensor,  # (B, 3, H, W)
        image_labels: Tensor | None = None,  # (B, C)
        *,
        scales: Sequence[float] | None = None,
        aux: bool = False,
        size: tuple[int, int] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # (B, C, *size)
        """Merged CAMs of images and mirror images, normalised at the size of the result.

        The published evaluation merges and normalises at 448 × 448 and then resizes: do the same, by not giving `size`.

        Args:
            images: (B, 3, H, W), normalised.
            image_labels: (B, C): absent classes are 0. None: all classes are computed.
            scales: of the passes; None: those of the configuration.
            aux: return the pair of the main and the auxiliary classifier's, from one pass.
            size: of the result; None: that of the images.

        Returns:
            (B, C, *size) in [0, 1], or two of them.
        """
        check_images(images)
        scales, size = checked_scales(self.config.cam_scales if scales is None else scales), checked_size(size, images)
        maps, aux_maps = self._cam_maps(images, scales, None)
        cams = merge_cams(maps, size, image_labels)
        return (cams, merge_cams(aux_maps, size, image_labels)) if aux else cams

    @torch.no_grad()
    def predict(
        self,
        images: Tensor,  # (B, 3, H, W)
        *,
        scales: Sequence[float] = (1.0,),
        flip: str | None = None,
        merge: str = "max",
        size: tuple[int, int] | None = None,
    ) -> Tensor:  # (B, num_classes, *size)
        """Segmentation logits, merged over scales, and with `flip` over images and mirror images at each scale.

        Args:
            images: (B, 3, H, W), normalised.
            scales: of the passes. ToCo's results with multiple scales: (1, 1.5, 1.25) on VOC; on COCO (1, 1.25, 1.5),
                of images that are resized to 448 × 448.
            flip: None; "sum", as ToCo on VOC; "max", as on COCO.
            merge: of scales: "max", as ToCo on VOC; "sum", as on COCO.
            size: of the result; None: that of the images.

        Returns:
            (B, num_classes, *size) logits; `argmax(1)` is the segmentation.
        """
        if flip not in (None, *MERGES):
            raise bad_value("flip", "be None, 'sum' or 'max'", repr(flip))
        if merge not in MERGES:
            raise bad_value("merge", "be 'sum' or 'max'", repr(merge))
        check_images(images)
        size, merged = checked_size(size, images), None
        for scale in checked_scales(scales):
            scaled = at_scale(images, scale)
            main = self.backbone(scaled if flip is None else torch.cat([scaled, scaled.flip(-1)]))
            logits = self.decoder(_as_map(main.patches, main.grid))
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
            if flip is not None:
                logits, mirrored = logits[: len(images)], logits[len(images) :].flip(-1)
                logits = MERGES[flip](logits, mirrored)
            merged = logits if merged is None else MERGES[merge](merged, logits)
        return merged

    def _project(
        self,
        main: Tokens,
        views: Views,
        aux_maps: list[Tensor],
        size: tuple[int, int],
        image_labels: Tensor,
        update_teacher: bool,
    ) -> dict[str, Tensor]:
        """Class tokens of all crops, projected by student and teacher. The first global crop is the main pass."""
        config = self.config
        with record_function("toco::second global pass"):
            second = self.backbone(views.second_global).cls
        with record_function("toco::local passes"):
            roi = None
            if views.local_source is not None:
                roi = self.criterion.regions(aux_maps, size, image_labels)
            crops, flags = local_crops(views, roi, config.local_crops, config.local_size)
            local = self.backbone(crops.flatten(0, 1)).cls
        with record_function("toco::heads"):
            if update_teacher:
                self._check_teacher_is_a_unit()
                update_ema_(self.teacher, self.projector, config.momentum)
            both = torch.cat([main.cls, second])
            with torch.no_grad():
                teacher = self.teacher(both)
            student = self.projector(torch.cat([both, local]))
        return {"student": student, "teacher": teacher, "flags": flags}

    def _check_teacher_is_a_unit(self) -> None:
        """FSDP2 gathers parameters for a unit's forward; what is written to them there is lost."""
        if type(self) is ToCo:  # FSDP2 makes a class of its own
            return
        from torch.distributed.fsdp import FSDPModule

        if isinstance(self, FSDPModule) and not isinstance(self.teacher, FSDPModule):
            raise RuntimeError("teacher must be a unit of its own for FSDP2: use toco_kernels.methods.shard_")

    @torch.no_grad()
    def _cam_maps(
        self, images: Tensor, scales: Sequence[float], main: Tokens | None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Small CAMs of both classifiers, (2B, C, h_s, w_s) for each scale; the main pass has half of those at 1."""
        maps, aux_maps = [], []
        for scale in scales:
            scaled = at_scale(images, scale)
            if scale == 1 and main is not None:
                passes = [main, self.backbone(scaled.flip(-1))]
            else:
                passes = [self.backbone(torch.cat([scaled, scaled.flip(-1)]))]
            maps.append(torch.cat([_as_map(self.classifier(x.patches), x.grid) for x in passes]))
            aux_maps.append(torch.cat([_as_map(self.aux_classifier(x.aux), x.grid) for x in passes]))
        return maps, aux_maps

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        return f"num_classes={self.num_classes}"


def _pooled(tokens: Tensor) -> Tensor:  # (B, N, D) -> (B, D)
    """The largest of each channel; its gradient goes to one patch, also among equals."""
    return tokens.max(dim=1).values


def _as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:  # (B, h * w, D) -> (B, D, h, w)
    return tokens.mT.unflatten(2, grid)
