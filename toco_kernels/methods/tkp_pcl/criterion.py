"""TKP-PCL's losses, for a network of anyone's."""

import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.profiler import record_function

from ...common.checks import check_floating, check_same_device, check_tensor, checked_image_labels
from ...common.errors import bad_value, integer
from ...common.group import WithProcessGroup
from ...patch_contrast import patch_contrastive_error
from ...topk_pool import topk_pool
from ..checks import integers
from .config import TKPPCL_VOC, TKPPCLConfig

LOSSES = ("mce", "pce")
LEAST = 1e-7  # of probabilities that a logarithm is taken of


class TKPPCLOutput(NamedTuple):
    """What a training step gives, with the fields that every method's has.

    Args:
        loss: () the weighted sum of the losses, to call `backward` on.
        losses: `mce` and `pce`, each () and not weighted; `pce` is 0 where its weight is.
        cams: (B, C, h, w) in [0, 1], the normalised class scores of patches that labels are made of, the background
            first, 0 for classes that an image does not show. Not class activation maps: the method has none.
        pseudo_labels: (B, h, w) int64, the class of each patch: 0 background, c + 1 class c.
        tokens: (B, N, D) patch tokens, conditioned, with their graph, for losses of one's own.

    `cams` and `pseudo_labels` are those of the patch grid: no loss needs them larger. `TKPPCL.cams` has any size.
    """

    loss: Tensor
    losses: dict[str, Tensor]
    cams: Tensor
    pseudo_labels: Tensor
    tokens: Tensor


class TKPPCLCriterion(WithProcessGroup):
    """Our reading of TKP-PCL's losses: its authors published no code, and K, the threshold, the weight and the form of
    the patch contrastive error could not be looked up. It has no parameters and no state.

        p[b, c] = mean of the k largest scores of class c among the patches of image b
        mce     = -mean over images and classes of  y log p + (1 - y) log(1 - p),  the background being always present
        pce     = `patch_contrastive_error` of the tokens, the sure patches chosen by the same scores
        loss    = mce + weight * pce

    p is held within [1e-7, 1 - 1e-7], beyond which it has no gradient, as in ViT-PCM; half precision is computed in
    float32. A batch without images costs 0.

    Args:
        config: k, threshold, form and weight.
        process_group: None, or the processes whose batches are one for `pce`, whose terms are means over the pairs of
            image and class that have them. Copies share it, pickled modules have None.

    Source: TKP-PCL (Wu et al., arXiv 2310.09828), after ViT-PCM (Rossetti et al., ECCV 2022).
    """

    def __init__(
        self,
        config: TKPPCLConfig = TKPPCL_VOC,
        *,
        process_group: "dist.ProcessGroup | None" = None,
    ):
        super().__init__()
        self.config = config
        self.process_group = process_group

    def forward(
        self,
        scores: Tensor,  # (B, N, C)
        tokens: Tensor,  # (B, N, D)
        image_labels: Tensor,  # (B, C - 1)
        *,
        grid: tuple[int, int],
        step: int,
    ) -> TKPPCLOutput:
        """Both losses of one step.

        Args:
            scores: (B, N, C) probabilities of the classes for each patch, the background first, with their graph.
            tokens: (B, N, D) patch tokens, row by row.
            image_labels: (B, C - 1) multi-hot without background.
            grid: (h, w) with N = h * w.
            step: counted from 0; whether all patches are pooled depends on it, and nothing else.

        Returns:
            The output; its `tokens` are those given.

        Raises:
            TypeError, ValueError: an argument is not as above.
        """
        check_tensor(scores, "scores", 3, "(B, N, C)")
        check_floating(scores, "scores")
        check_tensor(tokens, "tokens", 3, "(B, N, D)")
        check_floating(tokens, "tokens")
        check_same_device(tokens, "tokens", scores, "scores")
        if 0 in scores.shape[1:]:
            raise bad_value("scores", "have a patch and a class, (B, N, C)", f"shape {tuple(scores.shape)}")
        if tokens.shape[:2] != scores.shape[:2]:
            must = f"have a token for each of the scores, (B, N) = {tuple(scores.shape[:2])}"
            raise bad_value("tokens", must, f"shape {tuple(tokens.shape)}")
        if math.prod(integers(grid, "grid", 2)) != scores.shape[1]:
            raise bad_value("grid", f"have the {scores.shape[1]} patches of the scores", grid)
        config, scores, step = self.config, _wide(scores), integer(step, "step", least=0)
        image_labels = checked_image_labels(image_labels, len(scores), scores.shape[2] - 1, scores, "scores")
        shown = with_background(image_labels).to(scores.dtype)

        with record_function("tkp_pcl::losses"):
            # Scores are needed for `pce` and for labels too: that is why this is not `linear_topk_pool`.
            patches = scores.shape[1]
            k = patches if step < config.mean_steps else min(config.k, patches)
            pooled = topk_pool(scores, k).clamp(LEAST, 1 - LEAST)
            mce = -(shown * pooled.log() + (1 - shown) * torch.log1p(-pooled)).sum() / max(1, pooled.numel())
            pce = mce.new_zeros(())
            if config.weight != 0:
                pce = patch_contrastive_error(
                    tokens,
                    scores,
                    image_labels,
                    threshold=config.threshold,
                    form=config.form,
                    background=config.contrast_background,
                    process_group=self.process_group,
                )
        with record_function("tkp_pcl::labels"):
            cams = normalised_scores(scores.detach().mT.unflatten(2, grid), shown)
        return TKPPCLOutput(mce + config.weight * pce, {"mce": mce, "pce": pce}, cams, cams.argmax(dim=1), tokens)


def with_background(
    image_labels: Tensor,  # (B, C - 1)
) -> Tensor:  # (B, C) bool
    """The classes that an image shows; the background is always there."""
    shown = image_labels != 0
    return torch.cat([shown.new_ones(len(shown), 1), shown], dim=1)


def normalised_scores(
    scores: Tensor,  # (B, C, h, w)
    shown: Tensor,  # (B, C), 0 where absent
) -> Tensor:  # (B, C, h, w)
    """Scores of present classes, each divided by its largest; then made probabilities again.

    Source: ViT-PCM's pseudo labels.
    """
    scores = scores * shown[:, :, None, None].to(scores.dtype)
    least = torch.finfo(scores.dtype).tiny
    scores = scores / scores.amax(dim=(2, 3), keepdim=True).clamp_min(least)
    return scores / scores.sum(dim=1, keepdim=True).clamp_min(least)


def _wide(x: Tensor) -> Tensor:
    """Half precision in float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
