"""TKP-PCL as one module: from a batch of images with image labels to a loss."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import record_function

from ...common.checks import checked_image_labels
from ...common.errors import bad_value, integer
from ..backbone import Backbone
from ..checks import at_scale, check_images, checked_scales, checked_size
from .conditioning import HVBiLSTM
from .config import TKPPCL_VOC, TKPPCLConfig
from .criterion import TKPPCLCriterion, TKPPCLOutput, normalised_scores, with_background


class TKPPCL(nn.Module):
    """Our reading of TKP-PCL: its authors published no code, and K, the threshold, the weight and the form of the patch
    contrastive error could not be looked up. They are options here, with what each changes in `docs/tkp_pcl.md`.

    Top-K pooling with patch contrastive learning: a ViT whose patches are classified, the background being a class;
    an image's score is the mean of its K surest patches, so that image labels suffice; and patches sure to show a class
    agree, and differ from those sure not to. Labels are the patches' classes: there are no class activation maps, and
    no segmenter. A second stage trains one of one's own choice on the pseudo labels.

        tokens = backbone(images),  conditioned if need be        (B, N, D)
        scores = softmax of  dropout(tokens) @ weight             (B, N, C), over classes for each patch
        loss   = `TKPPCLCriterion` of these

    `forward` is one training step without the optimiser's; `scores`, `cams` and `pseudo_labels` are for all else.

    Args:
        backbone: the name of one of timm's ViTs (EVA with positions="timm"), see `Backbone`.
        num_classes: with the background; None: that of the configuration.
        config: `TKPPCL_VOC`, `TKPPCL_COCO` or one of your own; with k=1 the pooling is ViT-PCM's.
        pretrained: False: random weights; True: those of timm's tag, downloaded if need be; a path: a local file.
        positions, checkpointing: see `Backbone`.
        train_positions: whether position embeddings are trained; only with `config.trained_blocks` None.
        process_group: see `TKPPCLCriterion`.
        backbone_options: further ones for `timm.create_model`.

    Raises:
        ImportError: timm is missing.
        ValueError: an option is out of its range.

    Attributes `backbone`, `classifier` and `conditioning` (None, or `HVBiLSTM`) are trained, as far as
    `config.trained_blocks` says; `criterion` has no state.

    Source: TKP-PCL (Wu et al., arXiv 2310.09828), after ViT-PCM (Rossetti et al., ECCV 2022).
    """

    def __init__(
        self,
        backbone: str = "vit_base_patch16_384.orig_in21k_ft_in1k",
        num_classes: int | None = None,
        *,
        config: TKPPCLConfig = TKPPCL_VOC,
        pretrained: bool | str | Path = False,
        positions: str = "toco",
        train_positions: bool = False,
        checkpointing: bool = False,
        process_group: "dist.ProcessGroup | None" = None,
        backbone_options: Mapping | None = None,
    ):
        super().__init__()
        self.config = config
        self.num_classes = integer(config.num_classes if num_classes is None else num_classes, "num_classes", least=2)
        self.backbone = Backbone(
            backbone,
            pretrained=pretrained,
            aux_layer=-1,
            positions=positions,
            train_positions=train_positions,
            checkpointing=checkpointing,
            **(backbone_options or {}),
        )
        if config.trained_blocks is not None:
            if train_positions:
                must = f"be False where all but {config.trained_blocks} blocks are frozen (trained_blocks)"
                raise bad_value("train_positions", must, train_positions)
            self._freeze(config.trained_blocks)
        width = self.backbone.width
        self.conditioning = HVBiLSTM(width, config.dropout) if config.conditioning == "hv_bilstm" else None
        self.classifier = nn.Linear(width, self.num_classes, bias=False)
        nn.init.normal_(self.classifier.weight, std=0.05)  # as ViT-PCM
        self.criterion = TKPPCLCriterion(config, process_group=process_group)

    def _freeze(self, trained_blocks: int) -> None:
        """All of the backbone but its last blocks and its norm."""
        blocks = self.backbone.vit.blocks
        if trained_blocks > len(blocks):
            raise bad_value("trained_blocks", f"be at most the backbone's {len(blocks)}", trained_blocks)
        self.backbone.requires_grad_(False)
        for trained in (*blocks[len(blocks) - trained_blocks :], self.backbone.vit.norm, self.backbone.vit.fc_norm):
            trained.requires_grad_(True)

    def forward(
        self,
        images: Tensor,  # (B, 3, H, W)
        image_labels: Tensor,  # (B, C - 1)
        *,
        step: int,
    ) -> TKPPCLOutput:
        """One step's losses, and the classes of patches.

        Args:
            images: (B, 3, H, W) float, normalised by `config.mean` and `config.std`.
            image_labels: (B, C - 1) multi-hot without background, any dtype.
            step: counted from 0; whether the backbone is frozen, and all patches pooled, depends on it, and
                nothing else.

        Returns:
            The output: call `backward` on its `loss`.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        check_images(images)
        image_labels = checked_image_labels(image_labels, len(images), self.num_classes - 1, images, "images")
        frozen = integer(step, "step", least=0) < self.config.frozen_steps
        # Not `set_grad_enabled`: under `torch.compile` a step is a symbol, of which a branch alone makes a truth.
        with torch.no_grad() if frozen else nullcontext(), record_function("tkp_pcl::backbone"):
            found = self.backbone(images)
        with record_function("tkp_pcl::scores"):
            tokens, scores = self._classified(found.patches, found.grid)
        return self.criterion(scores, tokens, image_labels, grid=found.grid, step=step)

    def scores(
        self,
        images: Tensor,  # (B, 3, H, W)
    ) -> Tensor:  # (B, C, h, w)
        """Probabilities of the classes for each patch, the background first."""
        check_images(images)
        found = self.backbone(images)
        return self._classified(found.patches, found.grid)[1].mT.unflatten(2, found.grid)

    @torch.no_grad()
    def cams(
        self,
        images: Tensor,  # (B, 3, H, W)
        image_labels: Tensor,  # (B, C - 1)
        *,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        size: tuple[int, int] | None = None,
    ) -> Tensor:  # (B, C, *size)
        """What labels are made of, where other methods have CAMs: scores of present classes, each divided by its
        largest, made probabilities again, and resized.

        As ViT-PCM does: images squashed to `config.label_size`, 960 × 960, one scale, no mirror image.

        Args:
            images: (B, 3, H, W), normalised, of any size.
            image_labels: (B, C - 1) multi-hot without background: absent classes are 0.
            scales: of the passes, after the squashing; their scores are averaged on the largest grid.
            flip: whether mirror images are averaged too.
            size: of the result; None: that of the images.

        Returns:
            (B, C, *size) in [0, 1], the background first; they sum to 1, up to the resizing.
        """
        check_images(images)
        shown = checked_image_labels(image_labels, len(images), self.num_classes - 1, images, "images")
        size, side, passes = checked_size(size, images), self.config.label_size, []
        if side is not None:
            images = F.interpolate(images, size=(side, side), mode="bilinear", align_corners=False)
        for scale in checked_scales(scales):
            x = at_scale(images, scale)
            passes += [self.scores(x), *([self.scores(x.flip(-1)).flip(-1)] if flip else [])]
        grid = max((tuple(x.shape[2:]) for x in passes), key=lambda grid: grid[0] * grid[1])
        mean = torch.stack([_resized(x, grid) for x in passes]).mean(dim=0)
        cams = normalised_scores(mean, with_background(shown))
        return _resized(cams, size)

    def pseudo_labels(
        self,
        images: Tensor,  # (B, 3, H, W)
        image_labels: Tensor,  # (B, C - 1)
        **options,
    ) -> Tensor:  # (B, *size) int64
        """The likeliest present class of every pixel, 0 the background, before any CRF. Options: those of `cams`."""
        return self.cams(images, image_labels, **options).argmax(dim=1)

    def _classified(self, tokens: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:  # (B, N, D), (B, N, C)
        """The tokens, conditioned, and their scores: probabilities in float32 at least."""
        if self.conditioning is not None:
            tokens = self.conditioning(tokens, grid)
        logits = self.classifier(F.dropout(tokens, self.config.dropout, self.training))
        return tokens, logits.softmax(dim=2, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)

    def extra_repr(self) -> str:
        """The options, in the module's printed form."""
        config = self.config
        return f"num_classes={self.num_classes}, k={config.k}, threshold={config.threshold}, weight={config.weight}"


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:  # (B, C, h, w) -> (B, C, *size)
    """With aligned corners, as ViT-PCM does."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=True)
