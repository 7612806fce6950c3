"""Contrasts of patch tokens at the sizes of ToCo and TKP-PCL: matrix products, unless one looks closer."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from harness import DEVICE, TRAINING, Bench, Case

from toco_kernels import patch_contrastive_error, patch_token_contrast
from toco_kernels.patch_contrast import reference
from toco_kernels.patch_contrast.op import count_pairs

IGNORED = 255
THRESHOLD = 0.95
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
    if tokens.requires_grad:
        return Rewrite.apply(function, tokens, labels)
    return function(tokens, labels, with_grad=False)[0]


class Rewrite(torch.autograd.Function):
    """A function that returns a loss and its gradient."""

    @staticmethod
    def forward(ctx, function, tokens, *args):
        loss, grad = function(tokens, *args, with_grad=True)
        ctx.save_for_backward(grad.to(tokens.dtype))
        ctx.others = len(args)
        return loss

    @staticmethod
    def backward(ctx, grad_loss):
        return None, ctx.saved_tensors[0] * grad_loss, *[None] * ctx.others


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


def error_inputs(generator, *, batch, patches, width, classes, form, present=2):
    """Random tokens (B, N, D), and scores (B, N, C) of blobs: sure within, in doubt between them."""
    side = round(patches**0.5)
    labels = torch.zeros(batch, classes - 1)
    for row in labels:
        row[torch.randperm(classes - 1, generator=generator)[:present]] = 1
    there = F.pad(labels, (1, 0), value=1.0)
    scores = 6 * smooth(generator, batch, classes, side, 5).flatten(2).mT + 20 * there[:, None]
    return {
        "tokens": torch.randn(batch, patches, width, generator=generator),
        "scores": scores.softmax(dim=2),
        "image_labels": labels,
        "form": form,
    }


def sides(scores, image_labels):
    """Who is high and who is low in which class (B, N, K); absent classes are left out where the host may wait."""
    there = F.pad(image_labels != 0, (1, 0), value=True)
    if DEVICE != "cuda":
        classes = there.int().topk(int(there.sum(dim=1).max()), dim=1).indices
        scores = scores.gather(2, classes[:, None].expand(-1, scores.shape[1], -1))
        there = there.gather(1, classes)
    there = there.unsqueeze(1)
    return (scores > THRESHOLD) & there, (scores < 1 - THRESHOLD) & there


def error_flop(direction, *, tokens, scores, image_labels, form):
    """Linear: sums of unit vectors, and back from them. Logarithmic: products, those of high and high by symmetry."""
    high, low = (side.sum(dim=1) for side in sides(scores, image_labels))
    once = int((high * high + 2 * high * low).sum() if form == "log" else (high + low).sum()) * tokens.shape[2]
    return 3 * once if direction == TRAINING else once


def published_error(tokens, scores, image_labels, form):
    classes = F.pad(image_labels, (1, 0), value=1.0)
    return reference.patch_contrastive_error(tokens, scores, classes, THRESHOLD, form)


def rewrite_error(tokens, scores, image_labels, form):
    """The gradient by hand, absent classes left out.

    The linear form is two products with the masks of high and low, for the batch at once. Tried besides, on a CPU with
    21 classes: all of them instead of the three that are present, 1.4 times the time; autograd instead of hands, 1.6.
    The logarithmic form is the published loop, with lengths divided out once for each image.
    """
    if tokens.requires_grad:
        return Rewrite.apply(error_at_once, tokens, scores, image_labels, form)
    return error_at_once(tokens, scores, image_labels, form, with_grad=False)[0]


def error_at_once(tokens, scores, image_labels, form, with_grad):
    high, low = sides(scores, image_labels)
    unit, norm = unit_vectors(tokens)
    loss, grad = (logarithmic if form == "log" else linear)(unit, high, low, with_grad)
    return loss, through_lengths(unit, norm, grad)[0] if with_grad else None


def linear(unit, high, low, with_grad):
    """The loss, and its gradient by unit vectors but for what is parallel to them."""
    members = torch.cat([high, low], dim=2).to(unit.dtype)  # (B, N, 2K)
    n, m = members.sum(dim=1).chunk(2, dim=1)  # (B, K)
    u, v = (members.mT @ unit).to(unit.dtype).chunk(2, dim=1)  # (B, K, D)
    alike = (n > 1) / (n * (n - 1)).clamp_min(1) / (n > 1).sum().clamp_min(1)
    both = n * m > 0
    apart = both / (2 * n * m).clamp_min(1) / both.sum().clamp_min(1)
    square, dot = torch.linalg.vecdot(u, u), torch.linalg.vecdot(u, v)
    loss = (alike * (n * n - square) / 2 + apart * (n * m + dot)).sum()
    if not with_grad:
        return loss, None
    alike, apart = alike.unsqueeze(2), apart.unsqueeze(2)
    return loss, (members @ torch.cat([apart * v - alike * u, apart * u], dim=1)).to(unit.dtype)


def logarithmic(unit, high, low, with_grad):
    """The same for the logarithmic form."""
    n, m = high.sum(dim=1).tolist(), low.sum(dim=1).tolist()
    terms = [(b, k) for b, row in enumerate(n) for k in range(len(row))]
    alike = 1 / max(1, sum(n[b][k] > 1 for b, k in terms))
    apart = 1 / max(1, sum(n[b][k] > 0 and m[b][k] > 0 for b, k in terms))
    loss, grad = unit.new_zeros(()), torch.zeros_like(unit) if with_grad else None

    def add(b, rows, columns, sign, weight):
        """Minus the logarithm of (1 + sign * cosine) / 2 of some pairs; those of one patch with itself are none."""
        x, y = unit[b, rows], unit[b, columns]
        share = (x @ y.T).to(unit.dtype).mul_(sign).add_(1).div_(2)
        if columns is rows:
            share.fill_diagonal_(1)
        loss.sub_(share.clamp_min(reference.LEAST).log_().sum(), alpha=weight)
        if with_grad:
            slope = share.reciprocal().mul_(share >= reference.LEAST)
            if columns is rows:
                grad[b].index_add_(0, rows, (slope.fill_diagonal_(0) @ x).to(unit.dtype), alpha=-sign * weight)
            else:
                grad[b].index_add_(0, rows, (slope @ y).to(unit.dtype), alpha=-sign * weight / 2)
                grad[b].index_add_(0, columns, (slope.T @ x).to(unit.dtype), alpha=-sign * weight / 2)

    for b, k in terms:
        rows, columns = high[b, :, k].nonzero()[:, 0], low[b, :, k].nonzero()[:, 0]
        if len(rows) > 1:
            add(b, rows, rows, 1, alike / (len(rows) * (len(rows) - 1)))
        if len(rows) and len(columns):
            add(b, rows, columns, -1, apart / (len(rows) * len(columns)))
    return loss, grad


TKP_PCL = {"batch": 8, "patches": 576, "width": 768, "classes": 21, "form": "linear"}

ERROR = Bench(
    room="patch_contrast",
    op="patch_contrastive_error",
    providers={"toco_kernels": patch_contrastive_error, "published": published_error, "rewrite": rewrite_error},
    inputs=error_inputs,
    differentiable=("tokens",),
    flop=error_flop,
    tiny={"batch": 1, "patches": 64, "width": 16, "classes": 4, "form": "linear"},
    cases=[
        Case("linear, VOC", TKP_PCL, decisive=True),
        Case("linear, VOC, bfloat16", TKP_PCL, torch.bfloat16),
        Case("linear, COCO, five classes", TKP_PCL | {"classes": 81, "present": 5}),
        Case("logarithmic, VOC", TKP_PCL | {"form": "log"}, decisive=True),
        Case("logarithmic, N=1600", TKP_PCL | {"form": "log", "patches": 1600, "batch": 2}),
    ],
)


@ERROR.every_case
def test_patch_contrastive_error(case, direction, compare):
    compare(ERROR, case, direction)
