"""patch_token_contrast and patch_contrastive_error as differentiable PyTorch operators."""

import torch
import torch.distributed as dist
from torch import Tensor

from .._library import accumulate_dtype, define_loss, register_triton
from ..common.checks import check_floating, check_same_device, check_tensor
from ..common.errors import bad_type, bad_value, integer, number
from ..common.tokens import checked_labels, checked_tokens, tokens_first
from . import reference

_contrast = define_loss(
    "patch_token_contrast(Tensor tokens, Tensor labels, Tensor? pairs, int ignore_index, bool with_grad)"
    " -> (Tensor loss, Tensor grad_tokens)",
    room="patch_contrast",
    reference=reference.patch_token_contrast,
)
_error = define_loss(
    "patch_contrastive_error(Tensor tokens, Tensor scores, Tensor classes, float threshold, str form, bool with_grad)"
    " -> (Tensor loss, Tensor grad_tokens)",
    room="patch_contrast",
    reference=reference.patch_contrastive_error,
)
register_triton("patch_token_contrast")
register_triton("patch_contrastive_error")

FORMS = ("linear", "log")


def patch_token_contrast(
    tokens: Tensor,  # (B, N, D) or (B, D, H, W)
    labels: Tensor,  # (B, N) or (B, H, W), N = H * W
    *,
    ignore_index: int = 255,
    process_group: "dist.ProcessGroup | None" = None,
) -> Tensor:  # ()
    """Contrast of patch tokens: those with the same pseudo label agree, those with different labels do not.

        c[i, j] = |<x[i], x[j]>| / (max(|x[i]|, 1e-8) * max(|x[j]|, 1e-8))      two tokens of one image
        loss    = 1/2 * (1 - Σ c[i, j] over pairs with the same label / (n+ + 1))
                + 1/2 *      Σ c[i, j] over pairs with different labels / (n- + 1)

    over ordered pairs i ≠ j of which neither is ignored; n+ and n- count them in the whole batch. A cosine of exactly 0
    has the gradient 0. Loss and gradient come from one pass, and ignored tokens are never read. The kernels keep two
    bits for each pair and no N × N matrix of numbers. On GPUs below compute capability 8.0, in float64 on a GPU and
    where no kernel is built, the reference answers, which does have the matrices.

    Args:
        tokens: (B, N, D) or (B, D, H, W) patch tokens, float32, float64, float16 or bfloat16. Under autocast they are
            cast as the inputs of a matrix product are.
        labels: (B, N) or (B, H, W) pseudo labels of the patches, any integer dtype. A constant.
        ignore_index: the label of patches that take no part.
        process_group: None, this process alone; else the processes whose batches are one: counts and sums are those of
            the joined batch, the value is the same on every rank, and gradients are scaled so that their mean over the
            ranks, as DistributedDataParallel takes it, is the gradient of the joined batch.

    Returns:
        The scalar loss, float32 (float64 for float64 tokens), differentiable once in `tokens`.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree, or `ignore_index` is no integer.

    Source: ToCo (Ru et al., CVPR 2023), patch token contrast; `get_masked_ptc_loss`, `label_to_aff_mask` in its code.
    """
    tokens = checked_tokens(tokens, "tokens")
    labels = checked_labels(labels, tokens, "tokens")
    ignore_index = integer(ignore_index, "ignore_index", least=-(2**63))
    if process_group is None:
        return _contrast(tokens, labels, None, ignore_index)
    if not isinstance(process_group, dist.ProcessGroup):
        raise bad_type("process_group", "be None or a torch.distributed.ProcessGroup", type(process_group).__name__)
    pairs = count_pairs(labels, ignore_index)
    dist.all_reduce(pairs, group=process_group)
    return 0.5 + _SumOverGroup.apply(_contrast(tokens, labels, pairs, ignore_index) - 0.5, process_group)


def patch_contrastive_error(
    tokens: Tensor,  # (B, N, D) or (B, D, H, W)
    scores: Tensor,  # (B, N, C) or (B, C, H, W), N = H * W
    image_labels: Tensor,  # (B, C - 1) without background, or (B, C)
    *,
    threshold: float = 0.95,
    form: str = "linear",
    background: bool = True,
) -> Tensor:  # ()
    """Patch contrastive error: patches sure to show a class agree, and differ from patches sure not to.

    For each image and each class present in it, with the cosines S of tokens:

        high = patches with score > threshold,  low = patches with score < 1 - threshold,  S' = (1 + S) / 2
        linear:  mean of 1 - S'[i, j]   over i ≠ j in high   +   mean of S'[i, j]           over i in high, j in low
        log:     mean of -log S'[i, j]  over i ≠ j in high   +   mean of -log(1 - S'[i, j]) over i in high, j in low

    The first term is averaged over the images and classes with two patches in high, the second over those with one in
    high and one in low; a term that no image and class has is 0. Arguments of logarithms are at least 1e-6. All other
    patches are ignored and never read. A zero vector has no direction: its cosines are 0, and it gets no gradient. The
    linear form costs O(N * D) per class: the sum over pairs of unit vectors is the square of their sum.

    Args:
        tokens: (B, N, D) or (B, D, H, W) patch tokens, float32, float64, float16 or bfloat16. Under autocast they are
            cast as the inputs of a matrix product are.
        scores: (B, N, C) or (B, C, H, W) probabilities of the classes for each patch. They choose patches, and get no
            gradient.
        image_labels: which classes an image shows, not 0 where it does: (B, C - 1) when class 0 of `scores` is the
            background, or (B, C), then used as it is.
        threshold: in [0.5, 1). The paper does not give it; 0.95 is this package's choice.
        form: "linear" or "log".
        background: whether class 0 counts as present in every image, for `image_labels` of C - 1 columns.

    Returns:
        The scalar loss, float32 (float64 for float64 tokens), differentiable once in `tokens`.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above.
        ValueError: shapes or devices disagree, the threshold is out of range, or the form is unknown.

    Source: TKP-PCL (top-K pooling with patch contrastive learning), patch contrastive error; its authors have published
    no code, and the linear form is the most defensible reading of the text.
    """
    tokens = checked_tokens(tokens, "tokens")
    check_tensor(scores, "scores", (3, 4), "(B, N, C) or (B, C, H, W)")
    check_floating(scores, "scores")
    check_same_device(scores, "scores", tokens, "tokens")
    shape, scores = tuple(scores.shape), tokens_first(scores.detach())
    if scores.shape[:2] != tokens.shape[:2]:
        raise bad_value("scores", f"have a row per patch, (B, N) = {tuple(tokens.shape[:2])}", f"shape {shape}")
    check_tensor(image_labels, "image_labels", 2, "(B, C - 1) or (B, C)")
    if image_labels.is_complex():
        raise bad_type("image_labels", "be bool, integer or floating point", image_labels.dtype)
    check_same_device(image_labels, "image_labels", tokens, "tokens")
    batch, _, count = scores.shape
    if image_labels.shape not in ((batch, count), (batch, count - 1)):
        must = f"have shape (B, C - 1) = {(batch, count - 1)} or (B, C) = {(batch, count)}"
        raise bad_value("image_labels", must, f"shape {tuple(image_labels.shape)}")
    threshold = number(threshold, "threshold")
    if not 0.5 <= threshold < 1:
        raise bad_value("threshold", "be in [0.5, 1)", threshold)
    if form not in FORMS:
        raise bad_value("form", f"be one of {FORMS}", repr(form))
    classes = image_labels != 0
    if classes.shape[1] < count:
        classes = torch.cat([classes.new_full((batch, 1), bool(background)), classes], dim=1)
    return _error(tokens, scores.to(accumulate_dtype(tokens.dtype)), classes, threshold, form)


def count_pairs(
    labels: Tensor,  # (B, N)
    ignore_index: int,
) -> Tensor:  # (2) int64
    """How many ordered pairs of two patches of one image have the same label, and how many have different ones."""
    ordered = labels.sort(dim=1).values
    alike = torch.searchsorted(ordered, labels, right=True) - torch.searchsorted(ordered, labels)
    valid = labels != ignore_index
    patches, alike = valid.sum(dim=1), (alike * valid).sum()
    return torch.stack([alike - patches.sum(), patches.square().sum() - alike])


class _SumOverGroup(torch.autograd.Function):
    """The sum over the ranks. Its gradient on each is multiplied by their number, which a mean over ranks undoes."""

    @staticmethod
    def forward(ctx, x: Tensor, process_group: "dist.ProcessGroup") -> Tensor:
        ctx.ranks = process_group.size()
        total = x.clone()
        dist.all_reduce(total, group=process_group)
        return total

    @staticmethod
    def backward(ctx, grad: Tensor):
        return grad * ctx.ranks, None
