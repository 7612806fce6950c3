"""The prototype contrasts on NVIDIA GPUs of compute capability 8.0 and later.

Launchers with the signatures of the operators. Shapes and grids depend on the shapes of the inputs alone, so nothing
waits for the GPU and everything can be captured in a CUDA graph; no sum depends on which program ends first.
"""

import torch
import triton
from torch import Tensor

from ..common.triton_corners import most_targets, scale_of
from ..common.triton_precision import dot_precision
from . import reference
from .triton_contrast import contrast_kernel, count_kernel, mean_kernel
from .triton_resize import resize_backward_kernel

COUNTED = 4096  # labels that one program counts


def prototype_contrast(
    features: Tensor,  # (B, D, P)
    labels: Tensor,  # (B, P) int64
    prototypes: Tensor,  # (C, D) float32
    temperature: float,
    ignore_index: int,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient in float32, in three launches: labels are counted, then all pixels, then all sums."""
    batch, width, pixels = features.shape
    classes = prototypes.shape[0]
    torch._check(labels.shape == (batch, pixels), lambda: "labels must have the shape (B, P) of the features")
    torch._check(prototypes.shape == (classes, width), lambda: "prototypes must have the features' width")
    torch._check(prototypes.dtype == torch.float32, lambda: "prototypes must be float32")
    for x in (labels, prototypes):
        torch._check(x.device == features.device, lambda: "all tensors must be on the device of the features")

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=features.device)

    loss, grad = new(), new(batch, width, pixels) if with_grad else new(0)
    if batch * pixels == 0:
        return loss.zero_(), grad
    labels, prototypes = labels.contiguous(), prototypes.contiguous()
    counts = new(triton.cdiv(labels.numel(), COUNTED), dtype=torch.int32)
    count_kernel[(len(counts),)](labels, counts, labels.numel(), ignore_index, BLOCK=COUNTED)
    tile = _tile(classes)
    blocks = triton.cdiv(pixels, tile["BLOCK_P"])
    parts = new(batch * blocks)
    contrast_kernel[(blocks, batch)](
        features,
        *features.stride(),
        labels,
        prototypes,
        counts,
        parts,
        grad,
        pixels,
        width,
        classes,
        len(counts),
        1 / temperature,
        ignore_index,
        WITH_GRAD=with_grad,
        PRECISION=dot_precision(),
        **tile,
    )
    mean_kernel[(1,)](parts, counts, loss, len(parts), len(counts), BLOCK=1024)
    return loss, grad


def _tile(classes: int) -> dict[str, int]:
    """Blocks for so many classes, such that registers suffice."""
    block_c = max(16, triton.next_power_of_2(classes))
    block_p = max(16, min(64, 4096 // block_c))
    return {"BLOCK_P": block_p, "BLOCK_C": block_c, "BLOCK_D": 16, "num_warps": 4 if block_c <= 32 else 8}


def pixel_prototype_contrast(
    features: Tensor,  # (B, D, P)
    other_features: Tensor,  # (B, D, P)
    labels: Tensor,  # (B, P)
    other_labels: Tensor,  # (B, P)
    prototypes: Tensor,  # (C, D)
    other_prototypes: Tensor,  # (C, D)
    draws: Tensor,  # (2, B, P)
    temperature: float,
) -> tuple[Tensor, Tensor]:  # (3), (2, 3, B, C, P)
    """The three terms and their slopes, in plain PyTorch: no loop over classes, nothing waits for the GPU."""
    batch, _, pixels = features.shape
    terms, slopes = [], []
    mine, theirs = labels.flatten(), other_labels.flatten()
    views = (
        (features, prototypes, other_prototypes, mine, theirs, draws[0]),
        (other_features, other_prototypes, prototypes, theirs, mine, draws[1]),
    )
    for x, own, others, label, other_label, drawn in views:
        own_scores, other_scores = (s / temperature for s in reference.cosines(x, own, others))
        found = [
            _cross_entropy(other_scores, label),
            _cross_entropy(own_scores, other_label),
            _mined(own_scores, label, drawn.flatten()),
        ]
        terms.append(torch.stack([value for value, _ in found]) / 2)
        slopes.append(torch.stack([slope for _, slope in found]) / (2 * temperature))  # (3, n, C)
    return sum(terms), torch.stack(slopes).unflatten(2, (batch, pixels)).mT.contiguous()


def _cross_entropy(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:  # (n, C), (n) -> (), (n, C)
    """The mean, and its derivatives by scores."""
    count = max(len(scores), 1)
    logs = scores.log_softmax(dim=1)
    return -logs.gather(1, labels[:, None]).sum() / count, (logs.exp() - _one_hot(logs, labels)) / count


def _one_hot(scores: Tensor, labels: Tensor) -> Tensor:  # (n, C)
    return torch.zeros_like(scores).scatter_(1, labels[:, None], 1)


def _mined(
    scores: Tensor,  # (n, C)
    labels: Tensor,  # (n)
    draws: Tensor,  # (n)
) -> tuple[Tensor, Tensor]:  # (), (n, C)
    """`reference.mined_contrast` and its derivatives.

    Sorted by class, and within it by draw or by similarity, a pixel's place minus its class's first place is its rank.
    """
    first, last = reference.semi_hard_ranks(scores.shape[1])
    semi_hard = torch.zeros_like(scores)
    semi_hard.scatter_(1, scores.sort(dim=1, descending=True, stable=True).indices[:, first:last], 1)
    positive = scores.gather(1, labels[:, None])
    largest = scores.amax(dim=1, keepdim=True)
    shares = (scores - largest).exp() * (semi_hard + _one_hot(scores, labels))  # the label's can be there twice
    sums = shares.sum(dim=1, keepdim=True)
    losses = (sums.log() + largest - positive)[:, 0]

    counts = _one_hot(scores, labels).sum(dim=0).long()  # of each class; exact: below 2^24 each
    starts, half, end = counts.cumsum(0) - counts, counts // 2, counts * 6 // 10
    share = 1 / (2 * half * (counts > 0).sum()).clamp_min(1).to(scores.dtype)
    places = torch.arange(len(labels), device=labels.device)
    weights = torch.zeros_like(losses)
    for keys, low, high in ((draws, torch.zeros_like(half), half), (positive[:, 0], end - half, end)):
        order = keys.sort(stable=True).indices
        order = order.gather(0, labels[order].sort(stable=True).indices)
        rank = torch.empty_like(places).scatter_(0, order, places) - starts[labels]
        weights += ((rank >= low[labels]) & (rank < high[labels])) * share[labels]
    slopes = (shares / sums - _one_hot(scores, labels)) * weights[:, None]
    return (losses * weights).sum(), slopes


def resize_corners_backward(
    grad: Tensor,  # (B, D, h, w) float32
    size: list[int],
) -> Tensor:  # (B, D, H, W)
    """The gradient of the maps, in one launch. Of resizing itself PyTorch's kernel is as good."""
    torch._check(grad.ndim == 4, lambda: "grad must be (B, D, h, w)")
    batch, channels, *resized = grad.shape
    grad_maps = torch.empty(batch, channels, *size, dtype=torch.float32, device=grad.device)
    if grad_maps.numel() == 0:
        return grad_maps
    (height, width), planes, block_x, block_p = size, batch * channels, 64, 32
    resize_backward_kernel[(triton.cdiv(width, block_x), height, triton.cdiv(planes, block_p))](
        grad.contiguous(),
        grad_maps,
        planes,
        *size,
        *resized,
        *(scale_of(*n) for n in zip(size, resized, strict=True)),
        *(most_targets(*n) for n in zip(size, resized, strict=True)),
        BLOCK_X=block_x,
        BLOCK_P=block_p,
    )
    return grad_maps
