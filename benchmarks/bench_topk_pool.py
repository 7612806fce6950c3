"""Top-K pooling: dispatch at the sizes of a training step, one reading of the scores at large ones."""

import torch
from harness import TRAINING, Bench, Case

from toco_kernels import linear_topk_pool, topk_pool


def inputs(generator, *, batch, patches, classes, k, distinct=False):
    if not distinct:
        return {"scores": torch.randn(batch, patches, classes, generator=generator), "k": k}
    # A class's scores are different in bfloat16 too: which of two equals the rivals take is up to them.
    order = torch.rand(batch, patches, classes, generator=generator).argsort(dim=1)
    return {"scores": (order + 0x3000).short().view(torch.bfloat16).float(), "k": k}


def flop(direction, *, scores, k):
    return scores.numel()  # each score is compared once


def published(scores, k):
    """As people write it."""
    return scores.topk(k, dim=1).values.mean(1)


class Rewrite(torch.autograd.Function):
    """Unsorted, and the gradient by one scatter; for one winner a maximum. Contiguous columns cost more."""

    @staticmethod
    def forward(ctx, scores, k):
        if k == 1:
            pooled, indices = scores.max(dim=1, keepdim=True)
            pooled = pooled[:, 0]
        else:
            values, indices = scores.topk(k, dim=1, sorted=False)
            pooled = values.mean(1)
        ctx.save_for_backward(indices)
        ctx.patches = scores.shape[1]
        return pooled

    @staticmethod
    def backward(ctx, grad):
        (indices,) = ctx.saved_tensors
        share = (grad / indices.shape[1])[:, None].expand(indices.shape)
        return grad.new_zeros(len(grad), ctx.patches, grad.shape[1]).scatter_(1, indices, share), None


def rewrite(scores, k):
    return Rewrite.apply(scores, k)


VOC = {"batch": 4, "patches": 784, "classes": 20}
LARGE = {"batch": 16, "patches": 4096, "classes": 80}

BENCH = Bench(
    room="topk_pool",
    op="topk_pool",
    providers={"toco_kernels": topk_pool, "published": published, "rewrite": rewrite},
    inputs=inputs,
    differentiable=("scores",),
    flop=flop,
    tiny={"batch": 1, "patches": 8, "classes": 3, "k": 2},
    cases=[
        Case("VOC, K = 6", {**VOC, "k": 6}),
        Case("VOC, K = 1", {**VOC, "k": 1}),
        Case("VOC, K = 6, bfloat16", {**VOC, "k": 6, "distinct": True}, torch.bfloat16),
        Case("odd, K = 12", {"batch": 3, "patches": 577, "classes": 21, "k": 12}),
        Case("large, K = 6", {**LARGE, "k": 6}, decisive=True),
        Case("large, K = 409", {**LARGE, "k": 409}),
        Case("large, K = 409, bfloat16", {**LARGE, "k": 409, "distinct": True}, torch.bfloat16),
    ],
)


@BENCH.every_case
def test_topk_pool(case, direction, compare):
    compare(BENCH, case, direction)


def linear_inputs(generator, *, batch, patches, width, classes, k, softmax=False):
    """Each class is in k patches of each image, so clearly that rounded scores have the same winners."""
    tokens = torch.randn(batch, patches, width, generator=generator)
    weight = torch.randn(width, classes, generator=generator) * 0.05
    shows = torch.rand(batch, patches, classes, generator=generator).argsort(dim=1) < k
    tokens += 12 * shows.float() @ (weight / weight.norm(dim=0)).T
    return {"tokens": tokens, "weight": weight, "k": k, "softmax": softmax}


def linear_flop(direction, *, tokens, weight, k, softmax):
    scores = 2 * tokens.numel() * weight.shape[1]
    winners = 2 * len(tokens) * k * weight.numel()  # a winner's token times its gradient, and its weight
    return scores + (2 * winners if direction == TRAINING else 0)


def linear_published(tokens, weight, k, softmax):
    scores = tokens @ weight
    return published(scores.softmax(dim=2) if softmax else scores, k)


class LinearRewrite(torch.autograd.Function):
    """One matrix product for the whole batch; the backward gathers the winners, and adds to zeros."""

    @staticmethod
    def forward(ctx, tokens, weight, k):
        scores = torch.mm(tokens.flatten(0, 1), weight).unflatten(0, tokens.shape[:2])
        values, indices = scores.topk(k, dim=1, sorted=False)
        ctx.save_for_backward(tokens, weight, indices)
        return values.mean(1)

    @staticmethod
    def backward(ctx, grad):
        tokens, weight, indices = ctx.saved_tensors
        batch, k, classes = indices.shape
        share = grad / k  # (B, C)
        rows = indices + torch.arange(batch, device=indices.device)[:, None, None] * tokens.shape[1]
        won = tokens.flatten(0, 1)[rows.flatten()].view(batch, k, classes, -1)
        grad_weight = torch.einsum("bkcd,bc->dc", won, share)
        updates = (share[:, None, :, None] * weight.T).expand(batch, k, classes, -1)
        grad_tokens = torch.zeros_like(tokens)
        grad_tokens.view(-1, tokens.shape[2]).index_add_(0, rows.flatten(), updates.reshape(-1, tokens.shape[2]))
        return grad_tokens, grad_weight, None


def linear_rewrite(tokens, weight, k, softmax):
    if softmax:
        return rewrite((tokens @ weight).softmax(dim=2), k)
    return LinearRewrite.apply(tokens, weight, k)


LINEAR = Bench(
    room="topk_pool",
    op="linear_topk_pool",
    providers={"toco_kernels": linear_topk_pool, "published": linear_published, "rewrite": linear_rewrite},
    inputs=linear_inputs,
    differentiable=("tokens", "weight"),
    flop=linear_flop,
    tiny={"batch": 1, "patches": 8, "width": 4, "classes": 3, "k": 2},
    cases=[
        Case("VOC", {"batch": 16, "patches": 784, "width": 768, "classes": 20, "k": 6}, decisive=True),
        Case("VOC, bfloat16", {"batch": 16, "patches": 784, "width": 768, "classes": 20, "k": 6}, torch.bfloat16),
        Case("TKP-PCL", {"batch": 8, "patches": 576, "width": 768, "classes": 21, "k": 6, "softmax": True}),
        Case("COCO", {"batch": 4, "patches": 784, "width": 768, "classes": 80, "k": 6}),
    ],
    blas=lambda direction, *, tokens, weight, **_: tokens @ weight,
)


@LINEAR.every_case
def test_linear_topk_pool(case, direction, compare):
    compare(LINEAR, case, direction)
