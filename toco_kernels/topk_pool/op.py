"""topk_pool and linear_topk_pool as differentiable PyTorch operators."""

import torch
from torch import Tensor

from .._library import accumulate_dtype, define, refuse_forward_ad
from ..common.checks import check_floating, check_same_device, check_tensor, in_autocast_dtype
from ..common.errors import bad_type, bad_value, integer
from . import reference

# `counts` (B, C) int64, where given, replaces `k`, clamped to 1 … N. Operators return the winners of each class as
# `indices` (B, K, C) int32, lowest first; K is N where there are counts, and -1 follows the last winner.


def _most(patches: int, k: int, counts: Tensor | None) -> int:
    return k if counts is None else patches


def _pool_fallback(scores: Tensor, k: int, counts: Tensor | None):
    patches = scores.shape[1]
    ranked = reference.ranking(scores)
    if counts is None:
        kept, indices = k, ranked[:, :k]
    else:
        kept = counts.clamp(1, patches)
        beyond = torch.arange(patches, device=scores.device)[:, None] >= kept[:, None]
        indices = ranked.masked_fill(beyond, patches)
    indices = indices.sort(dim=1).values
    pooled = reference.topk_pool(scores.to(accumulate_dtype(scores.dtype)), kept).to(scores.dtype)
    return pooled, indices.masked_fill(indices == patches, -1).int()


def _spread(grad: Tensor, indices: Tensor, patches: int) -> Tensor:  # (B, C), (B, K, C) -> (B, N, C)
    """grad / k at the winners, zero elsewhere."""
    won = indices >= 0
    share = (grad / won.sum(1))[:, None] * won
    spread = grad.new_zeros(len(grad), patches, grad.shape[1])
    return spread.scatter_add(1, indices.clamp_min(0).long(), share)


def _gather(scores: Tensor, indices: Tensor) -> Tensor:  # (B, N, C), (B, K, C) -> (B, C)
    """The mean over the winners: the transpose of `_spread`, in operations that have derivatives of their own."""
    won = indices >= 0
    return scores.gather(1, indices.clamp_min(0).long()).masked_fill(~won, 0).sum(1) / won.sum(1)


def _linear_fallback(tokens: Tensor, weight: Tensor, bias: Tensor | None, k: int, counts: Tensor | None, softmax: bool):
    dtype = accumulate_dtype(tokens.dtype)
    inputs = (None if x is None else x.to(dtype) for x in (tokens, weight, bias))
    pooled, indices = _pool_fallback(reference.class_scores(*inputs, softmax), k, counts)
    return pooled.to(tokens.dtype), indices


def _linear_backward_fallback(
    grad: Tensor,
    tokens: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    indices: Tensor,
    softmax: bool,
    with_tokens: bool,
):
    dtype = accumulate_dtype(tokens.dtype)
    grad, x, w, b = (None if t is None else t.to(dtype) for t in (grad, tokens, weight, bias))
    grad_scores = _spread(grad, indices, tokens.shape[1])
    if softmax:
        z = reference.class_scores(x, w, b, True)
        grad_scores = z * (grad_scores - (z * grad_scores).sum(2, keepdim=True))
    grad_tokens = grad_scores @ w.T if with_tokens else x.new_empty(0)
    grad_weight = x.flatten(0, 1).T @ grad_scores.flatten(0, 1)
    return tuple(g.to(tokens.dtype) for g in (grad_tokens, grad_weight, grad_scores.sum((0, 1))))


_forward = define(
    "topk_pool(Tensor scores, SymInt k, Tensor? counts) -> (Tensor pooled, Tensor indices)",
    room="topk_pool",
    reference=_pool_fallback,
    fake=lambda scores, k, counts: (
        scores.new_empty(scores.shape[0], scores.shape[2]),
        scores.new_empty(scores.shape[0], _most(scores.shape[1], k, counts), scores.shape[2], dtype=torch.int32),
    ),
)
_backward = define(
    "topk_pool_backward(Tensor grad, Tensor indices, SymInt patches) -> Tensor",
    room="topk_pool",
    reference=_spread,
    fake=lambda grad, indices, patches: grad.new_empty(grad.shape[0], patches, grad.shape[1]),
)
_linear = define(
    "linear_topk_pool(Tensor tokens, Tensor weight, Tensor? bias, SymInt k, Tensor? counts, bool softmax)"
    " -> (Tensor pooled, Tensor indices)",
    room="topk_pool",
    reference=_linear_fallback,
    fake=lambda tokens, weight, bias, k, counts, softmax: (
        tokens.new_empty(tokens.shape[0], weight.shape[1]),
        tokens.new_empty(tokens.shape[0], _most(tokens.shape[1], k, counts), weight.shape[1], dtype=torch.int32),
    ),
)
_linear_backward = define(
    "linear_topk_pool_backward(Tensor grad, Tensor tokens, Tensor weight, Tensor? bias, Tensor indices, bool softmax,"
    " bool with_tokens) -> (Tensor grad_tokens, Tensor grad_weight, Tensor grad_bias)",
    room="topk_pool",
    reference=_linear_backward_fallback,
    fake=lambda grad, tokens, weight, bias, indices, softmax, with_tokens: (
        tokens.new_empty(tokens.shape if with_tokens else 0),
        weight.new_empty(weight.shape),
        weight.new_empty(weight.shape[1]),
    ),
)


class _Pool(torch.autograd.Function):
    """An autograd.Function around the operators, not `register_autograd` on them: it costs several times less."""

    @staticmethod
    def forward(ctx, scores: Tensor, k: int, counts: Tensor | None) -> Tensor:
        pooled, indices = _forward(scores, k, counts)
        ctx.save_for_backward(indices)
        ctx.patches = scores.shape[1]
        return pooled

    @staticmethod
    def backward(ctx, grad: Tensor):
        (indices,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return _spread(grad, indices, ctx.patches), None, None
        return _backward(grad, indices, ctx.patches), None, None


class _LinearPool(torch.autograd.Function):
    """As `_Pool`. A second derivative takes the way through plain PyTorch, at the winners that were found."""

    @staticmethod
    def forward(ctx, tokens: Tensor, weight: Tensor, bias: Tensor | None, *others) -> Tensor:
        pooled, indices = _linear(tokens, weight, bias, *others)
        ctx.save_for_backward(tokens, weight, bias, indices)
        ctx.softmax = others[-1]
        return pooled

    @staticmethod
    def backward(ctx, grad: Tensor):
        tokens, weight, bias, indices = ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            inputs = (tokens, weight, bias)
            wanted = [x for x, needed in zip(inputs, ctx.needs_input_grad, strict=False) if needed]
            pooled = _gather(reference.class_scores(*inputs, ctx.softmax), indices)
            found = iter(torch.autograd.grad(pooled, wanted, grad, create_graph=True))
            grads = [next(found) if needed else None for needed in ctx.needs_input_grad[:3]]
        else:
            grads = _linear_backward(grad, tokens, weight, bias, indices, ctx.softmax, ctx.needs_input_grad[0])
            grads = [g if needed else None for g, needed in zip(grads, ctx.needs_input_grad, strict=False)]
        return *grads, None, None, None


def topk_pool(
    scores: Tensor,  # (B, N, C)
    k: "int | Tensor",  # or (B, C)
) -> Tensor:  # (B, C)
    """Mean of the k largest scores of each class.

        pooled[b, c] = 1/k * sum of scores[b, n, c] over the k patches n with the largest

    Of equal scores the lowest index wins, on every device; NaN counts as the largest, as in `torch.topk`. k = 1 is max
    pooling, k = N the mean. The gradient is 1/k at the winners: their indices are kept, the scores are not.

    Args:
        scores: (B, N, C) float32, float64, float16 or bfloat16; sums are taken in higher precision.
        k: how many patches each class keeps, 1 … N; or (B, C) integers, one for each class of each image. Reading these
            would make a GPU's host wait, so values outside 1 … N are not refused but count as the nearest inside.

    Returns:
        (B, C) means in the scores' dtype, differentiable in `scores`.

    Raises:
        TypeError: scores are no tensor or have a dtype not listed above, or a tensor k holds no integers.
        ValueError: k is outside 1 … N, shapes or devices disagree, or there are no patches.

    Complexity: O(B N C) time, for k > 8 a few times that for k <= 8. Memory beyond inputs and outputs: k int32 per
    class, kept for the backward (N for a tensor k), and on the CPU, for k > 8 or a tensor k, numbers in the precision
    of sums for each thread: N per class of an image and 16 N more, or 32 N where there are fewer images than threads.

    Source: TKP-PCL (top-K pooling with patch contrastive learning), after the max pooling of ViT-PCM; its authors have
    published no code.
    """
    check_tensor(scores, "scores", 3, "(B, N, C)")
    check_floating(scores, "scores")
    batch, patches, classes = scores.shape
    k, counts = _kept(k, scores, "scores", batch, patches, classes)
    refuse_forward_ad("topk_pool has", scores)
    if scores.requires_grad and torch.is_grad_enabled():
        return _Pool.apply(scores, k, counts)
    return _forward(scores, k, counts)[0]


def linear_topk_pool(
    tokens: Tensor,  # (B, N, D) or (B, D, H, W), N = H * W
    weight: Tensor,  # (D, C)
    k: "int | Tensor",  # or (B, C)
    *,
    bias: Tensor | None = None,  # (C)
    softmax: bool = False,
) -> Tensor:  # (B, C)
    """A patch classifier and the mean of the k largest scores of each class, fused.

        scores[b, n]  = tokens[b, n] @ weight + bias,  or the softmax of that over classes
        pooled[b, c]  = 1/k * sum of scores[b, n, c] over the k patches n with the largest

    Equal scores and NaN are treated as in `topk_pool`. Scores are neither kept nor rounded to half precision, and the
    backward touches the tokens of winning patches only: a losing patch has the gradient 0 whatever its token.

    Args:
        tokens: (B, N, D) or (B, D, H, W), float32, float64, float16 or bfloat16. Under autocast, tokens, weight and
            bias are cast as the inputs of a matrix product are.
        weight: (D, C), the same dtype: `linear.weight.T` of an nn.Linear.
        k: how many patches each class keeps, 1 … N; or (B, C) integers, clamped to 1 … N as in `topk_pool`.
        bias: (C), the same dtype, or None.
        softmax: whether scores are probabilities; then the order of patches within a class is that of probabilities.

    Returns:
        (B, C) means in the dtype of the (cast) tokens, differentiable in tokens, weight and bias.

    Raises:
        TypeError: an argument is no tensor or has a dtype not listed above, or softmax is no bool.
        ValueError: k is outside 1 … N, shapes or devices disagree, or there are no patches.

    Source: TKP-PCL (top-K pooling with patch contrastive learning), after ViT-PCM: softmax, then pool.
    """
    check_tensor(tokens, "tokens", (3, 4), "(B, N, D) or (B, D, H, W)")
    check_tensor(weight, "weight", 2, "(D, C)")
    check_floating(tokens, "tokens")
    check_floating(weight, "weight")
    if tokens.ndim == 4:
        tokens = tokens.flatten(2).mT
    check_same_device(weight, "weight", tokens, "tokens")
    batch, patches, width = tokens.shape
    classes = weight.shape[1]
    if weight.shape[0] != width:
        raise bad_value("weight", f"have a row per channel, D = {width}", f"shape {tuple(weight.shape)}")
    tokens, weight = in_autocast_dtype(tokens), in_autocast_dtype(weight)
    if weight.dtype != tokens.dtype:
        raise bad_type("weight", f"have tokens' dtype, {tokens.dtype}", weight.dtype)
    if bias is not None:
        check_tensor(bias, "bias", 1, "(C)")
        check_floating(bias, "bias")
        check_same_device(bias, "bias", tokens, "tokens")
        if bias.shape[0] != classes:
            raise bad_value("bias", f"have an element per class, C = {classes}", f"shape {tuple(bias.shape)}")
        bias = in_autocast_dtype(bias)
        if bias.dtype != tokens.dtype:
            raise bad_type("bias", f"have tokens' dtype, {tokens.dtype}", bias.dtype)
    if not isinstance(softmax, bool):
        raise bad_type("softmax", "be a bool", type(softmax).__name__)
    k, counts = _kept(k, tokens, "tokens", batch, patches, classes)
    inputs = tokens, weight, bias
    refuse_forward_ad("linear_topk_pool has", *inputs)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
        return _LinearPool.apply(*inputs, k, counts, softmax)
    return _linear(*inputs, k, counts, softmax)[0]


def _kept(
    k: "int | Tensor", x: Tensor, argument: str, batch: int, patches: int, classes: int
) -> tuple[int, Tensor | None]:
    """The operators' k and counts. `x`, the tensor of that argument, says where counts must be."""
    if isinstance(k, Tensor):
        if k.is_floating_point() or k.is_complex() or k.dtype == torch.bool:
            raise bad_type("k", "be an integer or a tensor of integers", k.dtype)
        if k.shape != (batch, classes):
            raise bad_value("k", f"have shape (B, C) = {(batch, classes)}", f"shape {tuple(k.shape)}")
        check_same_device(k, "k", x, argument)
        if patches < 1:
            raise bad_value(argument, "have at least one patch", f"shape {tuple(x.shape)}")
        return 0, k.long()
    k = integer(k, "k", least=1)
    if k > patches:
        raise bad_value("k", f"be at most the number of patches, {patches}", k)
    return k, None
