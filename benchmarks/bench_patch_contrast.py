"""Patch-token contrast at the sizes of ToCo: matrix products, unless one looks closer."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from by_hand import by_hand
from harness import DEVICE, TRAINING, Bench, Case

from toco_kernels import patch_token_contrast
from toco_kernels.patch_contrast import reference
from toco_kernels.patch_contrast.op import count_pairs

IGNORED = 255
CHUNK = 512  # rows of a matrix of cosines: a megabyte, which stays in the cache


def smooth(generator, batch, channels, side, knots):
    """Random maps (B, channels, side, side) that change slowly from patch to patch."""
    coarse = torch.randn(batch, channels, knots, knots, generator=generator)
    return F.interpolate(coarse, size=(side, side), mode="bicubic")


def inputs(generator, *, batch, patches, width, ignored, classes=4, common=None):
    """Tokens (B, N, D), and labels as CAMs give them: each class a few blobs, what lies between two blobs ignored.

    Tokens are random, unless `common` is given: half of their cosines are then negative, in every block. Tokens of a
    trained ViT are not like that. No trained weights can be had where this must run, and an untrained ViT would be no
    better, so `common` builds correlated tokens: sixteen directions whose strengths change slowly over the image, as
    contents do, each with the mean `common`, and noise. At 0.5 an eighth of the cosines is negative, with some in
    every block of 64 patches of a class; at 1.0, a thousandth, and half of such blocks have none, as when tokens are
    over-smoothed. These shares are a choice, not measured on a trained network.
    """
    side = round(patches**0.5)
    best = smooth(generator, batch, classes, side, 5).flatten(2).topk(2, dim=1)
    in_doubt = (best.values[:, 0] - best.values[:, 1]).argsort(dim=1)[:, : round(ignored * patches)]
    labels = best.indices[:, 0].scatter(1, in_doubt, IGNORED)
    tokens = torch.randn(batch, patches, width, generator=generator)
    if common is not None:
        strengths = smooth(generator, batch, 16, side, 7).flatten(2).mT + common
        tokens = strengths @ torch.randn(16, width, generator=generator) / 4 + tokens / 2
    return {"tokens": clear_of_zero(generator, tokens), "labels": labels}


def clear_of_zero(generator, tokens):
    """These tokens, some of them moved, so that no cosine is within 1e-6 of 0; in numbers that bfloat16 holds.

    The gradient is made of the signs of cosines. Where float32 cannot tell a sign, or where a GPU that multiplies in
    less precision rounds the tokens first, one right answer differs from another by far more than verification allows.
    """
    tokens = tokens.bfloat16().float()
    for x in tokens:
        near = torch.ones(len(x), dtype=torch.bool)
        while near.any():
            unit = F.normalize(x, dim=1)
            near = ((unit @ unit.T).abs_() < 1e-6).any(dim=1)
            x[near] += torch.randn(int(near.sum()), x.shape[1], generator=generator) / 2
            x.copy_(x.bfloat16())
    return tokens


def flop(direction, *, tokens, labels):
    """Each cosine of two patches that are not ignored once, by symmetry; one product with them for the gradient."""
    once = int((labels != IGNORED).sum(dim=1).square().sum()) * tokens.shape[2]
    return 3 * once if direction == TRAINING else once


def blas(direction, *, tokens, labels):
    """The products of a straightforward implementation: all cosines, and one product with them for the gradient."""
    cosines = tokens @ tokens.mT
    if direction == TRAINING:
        cosines @ tokens


def published(tokens, labels):
    return reference.patch_token_contrast(tokens, labels, None, IGNORED)


def rewrite(tokens, labels):
    """The gradient by hand; on a CPU by blocks of classes, on a GPU, where waiting for sizes costs more, all at once.

    Tried on a CPU at ToCo's size, where the published code takes 134 ms:

        all rows against all, batched, in chunks of 64, 256 and all rows, weights from labels by broadcast: 49 to 61
        the same without ignored patches, image by image, against rows not before them: 23 to 31
        the same sorted by label, a chunk against the rest of its class, then against all later classes: 27 to 33
        `by_blocks` with sums for the loss, which is a by-product of the gradient, in chunks of 128 to all: 30
        `by_blocks`, in chunks of 192 to 1024: 21 to 22
        its products in float32 for bfloat16 tokens: 1.3 times the time of products in bfloat16

    With 4096 patches they differ less, and chunks smaller than 512 are slower.
    """
    function = all_at_once if DEVICE == "cuda" else by_blocks
    return by_hand(function, tokens, labels)


def unit_vectors(tokens):
    """Tokens of length 1, and the lengths they had, in float32 at least."""
    unit = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    norm = unit.norm(dim=-1, keepdim=True).clamp_min_(reference.EPSILON)
    return unit / norm, norm


def through_lengths(unit, norm, grad):
    """The gradient by tokens from the one by unit vectors, and how much of that is along each of them."""
    along = torch.linalg.vecdot(unit, grad).unsqueeze_(-1)
    return grad.addcmul_(unit, along, value=-1).div_(norm), along


def all_at_once(tokens, labels, with_grad):
    """Matrices for the whole batch, ignored tokens as zeros; nothing waits for the host."""
    unit, norm = unit_vectors(tokens)
    unit.masked_fill_((labels == IGNORED).unsqueeze(2), 0)
    same, different = count_pairs(labels, IGNORED)
    cosines = unit.to(tokens.dtype) @ unit.to(tokens.dtype).mT
    cosines.diagonal(dim1=1, dim2=2).zero_()
    weights = torch.where(labels[:, :, None] == labels[:, None], -1 / (same + 1), 1 / (different + 1))
    if not with_grad:
        return 0.5 + (cosines.abs_() * weights).sum() / 2, None
    grad = (cosines.sign_().mul_(weights) @ unit.to(tokens.dtype)).to(unit.dtype)
    grad, along = through_lengths(unit, norm, grad)
    return 0.5 + along.sum() / 2, grad


def by_blocks(tokens, labels, with_grad):
    """Sorted by label, without ignored patches, only blocks on and above the diagonal.

    A block belongs to one class or to two, so its weight is a number, and its gradient the signs of its cosines.
    """
    ordered, order = labels.sort(dim=1)  # the ignored ones are last
    sizes = []  # of the classes of each image
    for row in ordered:
        found, counts = row.unique_consecutive(return_counts=True)
        sizes.append(counts[found != IGNORED].tolist())
    squares, kept = sum(n * n for row in sizes for n in row), [sum(row) for row in sizes]
    alike, apart = -1 / (squares - sum(kept) + 1), 1 / (sum(n * n for n in kept) - squares + 1)
    loss = tokens.new_full((), 0.5, dtype=torch.promote_types(tokens.dtype, torch.float32))
    grads = torch.zeros_like(tokens, dtype=loss.dtype) if with_grad else None
    for b, row in enumerate(sizes):
        chosen = order[b, : kept[b]]
        unit, norm = unit_vectors(tokens[b, chosen])
        factors = unit.to(tokens.dtype)
        grad = torch.zeros_like(unit) if with_grad else unit
        blocks, start = [], 0
        for c, n in enumerate(row):
            pieces = -(-n // CHUNK)
            ends = [start + n * piece // pieces for piece in range(pieces + 1)]
            blocks += [(c, factors[i:j], grad[i:j]) for i, j in pairwise(ends)]
            start += n
        for i, (c, x, grad_x) in enumerate(blocks):
            for other, y, grad_y in blocks[i:]:
                weight = alike if c == other else apart
                cosines = x @ y.T
                if y is x:
                    cosines.fill_diagonal_(0)
                if not with_grad:
                    total = torch.linalg.vector_norm(cosines, 1, dtype=loss.dtype)
                    loss.add_(total, alpha=weight / 2 if y is x else weight)
                    continue
                add_product(grad_x, cosines.sign_(), y, weight)
                if y is not x:
                    add_product(grad_y, cosines.T, x, weight)
        if with_grad:
            grads[b, chosen], along = through_lengths(unit, norm, grad)
            loss.add_(along.sum(), alpha=0.5)
    return loss, grads


def add_product(total, x, y, weight):
    """Add weight * x @ y to a matrix in float32, whatever x and y are in."""
    if x.dtype == total.dtype:
        total.addmm_(x, y, alpha=weight)
    else:
        total.add_(x @ y, alpha=weight)


DECISIVE = {"width": 768, "ignored": 0.3}
TOCO = {"batch": 4, "patches": 784} | DECISIVE
LARGE = {"batch": 2, "patches": 4096} | DECISIVE

BENCH = Bench(
    room="patch_contrast",
    op="patch_token_contrast",
    providers={"toco_kernels": patch_token_contrast, "published": published, "rewrite": rewrite},
    inputs=inputs,
    differentiable=("tokens",),
    flop=flop,
    blas=blas,
    tiny={"batch": 1, "patches": 64, "width": 16, "ignored": 0.3},
    cases=[
        Case("B=4 N=784 D=768 ignored 0.3", TOCO, decisive=True),
        Case("B=2 N=4096 D=768 ignored 0.3", LARGE, decisive=True),
        Case("nothing ignored", TOCO | {"ignored": 0.0}),
        Case("ignored 0.6", TOCO | {"ignored": 0.6}),
        Case("DeiT-S, D=384", TOCO | {"width": 384}),
        Case("DeiT-Ti, D=192", TOCO | {"width": 192}),
        Case("N=1600", TOCO | {"patches": 1600}),
        Case("N=2304, two images", TOCO | {"patches": 2304, "batch": 2}),
        Case("correlated tokens, an eighth of cosines negative", TOCO | {"common": 0.5}),
        Case("correlated tokens, a thousandth negative", TOCO | {"common": 1.0}),
        Case("N=4096, correlated, a thousandth negative", LARGE | {"common": 1.0}),
        # Not random tokens: the published code rounds unit vectors to bfloat16, and gets other signs near 0.
        Case("correlated, a thousandth negative, bfloat16", TOCO | {"common": 1.0}, torch.bfloat16),
    ],
)


@BENCH.every_case
def test_patch_token_contrast(case, direction, compare):
    compare(BENCH, case, direction)
