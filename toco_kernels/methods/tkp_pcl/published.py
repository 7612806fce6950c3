"""TKP-PCL's training step formula by formula: what the module is tested and certified against. Never optimised.

There is no published code; this is a naive program for the same reading, in plain PyTorch, image by image, class by
class and pair by pair. It uses the parameters of a `TKPPCL` and nothing else of it but its conditioning.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..published import tokens_of
from .criterion import TKPPCLOutput
from .module import TKPPCL


def published_step(
    model: TKPPCL,
    images: Tensor,  # (B, 3, H, W)
    image_labels: Tensor,  # (B, C - 1)
    *,
    step: int,
    contrast: Callable[..., Tensor] | None = None,
) -> TKPPCLOutput:
    """What `model.forward` computes, for a plain ViT with a class token. Arguments as there.

    It draws the random numbers of dropout in the same order.

    Args:
        contrast: another program for the patch contrastive error than this one, which stores the products of all pairs
            of tokens: `(tokens, scores, classes (B, C), threshold, form) -> ()`, as the operator's reference.
    """
    config = model.config
    with torch.set_grad_enabled(step >= config.frozen_steps):
        _, maps, _ = tokens_of(model.backbone.vit, images, -1, False)
    grid = tuple(maps.shape[2:])
    tokens = maps.flatten(2).mT.contiguous()
    if model.conditioning is not None:
        tokens = model.conditioning(tokens, grid)
    logits = F.dropout(tokens, config.dropout, model.training) @ model.classifier.weight.T
    scores = logits.float().softmax(dim=2) if logits.dtype != torch.float64 else logits.softmax(dim=2)

    mce, alike, apart, labels = [], [], [], []
    for x, z, shown in zip(tokens, scores, image_labels, strict=True):
        present = [True, *(shown != 0).tolist()]
        k = len(z) if step < config.mean_steps else min(config.k, len(z))
        pooled = z.topk(k, dim=0).values.mean(dim=0)
        mce.append(_cross_entropy(pooled, torch.tensor(present).to(pooled)))
        for c in range(0 if config.contrast_background else 1, len(present)):
            if present[c] and contrast is None:
                positive, negative = _contrast(x, z[:, c], config.threshold, config.form)
                alike += [positive] if positive is not None else []
                apart += [negative] if negative is not None else []
        labels.append(_maps(z.detach(), present).unflatten(0, grid).permute(2, 0, 1))
    mce = torch.stack(mce).mean()
    pce = mce.new_zeros(())
    if config.weight != 0 and contrast is not None:
        classes = F.pad((image_labels != 0).long(), (1, 0), value=int(config.contrast_background))
        pce = contrast(tokens, scores, classes, config.threshold, config.form)
    elif config.weight != 0:
        pce = sum((torch.stack(terms).mean() for terms in (alike, apart) if terms), pce)
    cams = torch.stack(labels)
    return TKPPCLOutput(mce + config.weight * pce, {"mce": mce, "pce": pce}, cams, cams.argmax(dim=1), tokens)


def _cross_entropy(p: Tensor, y: Tensor) -> Tensor:  # (C), (C) -> ()
    p = p.clamp(1e-7, 1 - 1e-7)
    return torch.stack([-torch.log(p[c]) if y[c] else -torch.log(1 - p[c]) for c in range(len(p))]).mean()


def _contrast(
    tokens: Tensor,  # (N, D)
    scores: Tensor,  # (N)
    threshold: float,
    form: str,
) -> tuple[Tensor | None, Tensor | None]:
    """Means over ordered pairs of two high patches, and over pairs of a high and a low one; None without pairs."""
    high, low = tokens[scores > threshold], tokens[scores < 1 - threshold]
    same = (1 + F.cosine_similarity(high[:, None], high[None], dim=2)) / 2
    other = (1 + F.cosine_similarity(high[:, None], low[None], dim=2)) / 2
    same = same[~torch.eye(len(high), dtype=torch.bool, device=high.device)]
    if form == "log":
        same, other = -same.clamp_min(1e-6).log(), -(1 - other).clamp_min(1e-6).log()
    else:
        same = 1 - same
    return (same.mean() if same.numel() else None), (other.mean() if other.numel() else None)


def _maps(scores: Tensor, present: list[bool]) -> Tensor:  # (N, C)
    """ViT-PCM's: absent classes cleared, each divided by its largest, made probabilities."""
    columns = [z / z.max() if shown else torch.zeros_like(z) for z, shown in zip(scores.T, present, strict=True)]
    maps = torch.stack(columns, dim=1)
    return maps / maps.sum(dim=1, keepdim=True)
