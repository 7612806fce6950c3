"""Sample inputs of topk_pool."""

import torch

import toco_kernels
from toco_kernels.topk_pool import reference

from .room import Room


def pool_inputs(batch=3, patches=63, classes=5, *, k=6):
    generator = torch.Generator().manual_seed(batch * patches * classes)
    return {"scores": torch.randn(batch, patches, classes, generator=generator, dtype=torch.float64), "k": k}


def with_ties(inputs):
    """Every score has equals, in every dtype."""
    return inputs | {"scores": inputs["scores"].mul(2).round()}


def with_specials(inputs):
    """Both infinities, both zeros and NaN."""
    scores = inputs["scores"].clone()
    for i, special in enumerate((float("inf"), float("-inf"), 0.0, -0.0)):
        scores[:, i::7] = special
    scores[0, 40:44, :2] = float("nan")
    return inputs | {"scores": scores}


def own_counts(batch, patches, classes):
    """A k for each class of each image; some beyond what there is."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(-1, patches + 3, (batch, classes), generator=generator)


def pool_operators(inputs):
    batch, patches, classes = inputs["scores"].shape
    operators = torch.ops.toco_kernels
    counts = own_counts(batch, patches, classes).to(inputs["scores"].device)
    _, indices = operators.topk_pool(inputs["scores"], 6, None)
    return [
        (operators.topk_pool.default, (inputs["scores"], 6, None)),
        (operators.topk_pool.default, (inputs["scores"], 0, counts)),
        (operators.topk_pool_backward.default, (inputs["scores"][:, 0], indices, patches)),
    ]


def clamped(k, patches):
    return k.clamp(1, patches) if isinstance(k, torch.Tensor) else k


# Changes of k that both functions refuse; the sample has 63 patches.
BAD_K = {
    "k: zero": lambda i: i | {"k": 0},
    "k: beyond the patches": lambda i: i | {"k": 64},
    "k: a fraction": lambda i: i | {"k": 1.5},
    "k: a bool": lambda i: i | {"k": True},
    "k: None": lambda i: i | {"k": None},
    "k: fractions": lambda i: i | {"k": torch.ones(3, 5)},
    "k: flags": lambda i: i | {"k": torch.ones(3, 5, dtype=torch.bool)},
    "k: other classes": lambda i: i | {"k": torch.ones(3, 4, dtype=torch.long)},
    "k: wrong rank": lambda i: i | {"k": torch.ones(5, dtype=torch.long)},
    "k: other device": lambda i: i | {"k": torch.ones(3, 5, dtype=torch.long, device="meta")},
}

TOPK_POOL = Room(
    name="topk_pool",
    function=toco_kernels.topk_pool,
    reference=lambda scores, k: reference.topk_pool(scores, clamped(k, scores.shape[1])),
    operators=pool_operators,
    sample=pool_inputs,
    edges={
        "as in TKP-PCL": lambda: pool_inputs(2, 784, 20),
        "largest": lambda: pool_inputs(k=1),
        **{f"k = {k}": lambda k=k: pool_inputs(2, 133, 17, k=k) for k in (2, 3, 4, 5, 7, 8, 9, 40)},
        "a tenth of many": lambda: pool_inputs(2, 1111, 21, k=111),
        "almost all of many": lambda: pool_inputs(1, 1030, 18, k=1029),
        "few of many": lambda: pool_inputs(1, 1030, 18, k=10),
        "all": lambda: pool_inputs(k=63),
        "one patch": lambda: pool_inputs(2, 1, 20, k=1),
        "one class": lambda: pool_inputs(2, 50, 1),
        "whole columns": lambda: pool_inputs(2, 70, 32),
        "no classes": lambda: pool_inputs(2, 20, 0),
        "ties": lambda: with_ties(pool_inputs(2, 90, 17)),
        "many ties": lambda: with_ties(pool_inputs(2, 900, 17, k=77)),
        "one value": lambda: pool_inputs(2, 40, 5, k=9) | {"scores": torch.full((2, 40, 5), -1.5).double()},
        "specials": lambda: with_specials(pool_inputs(2, 90, 17)),
        "many specials": lambda: with_specials(pool_inputs(2, 900, 17, k=300)),
        "a k for each class": lambda: pool_inputs(3, 63, 21, k=own_counts(3, 63, 21)),
        "a k for each class, int32": lambda: pool_inputs(2, 600, 3, k=own_counts(2, 600, 3).int()),
        "empty batch": lambda: pool_inputs(0, 20, 5),
        "empty batch, a k for each class": lambda: pool_inputs(0, 20, 5, k=own_counts(0, 20, 5)),
    },
    bad={
        "scores: not a tensor": lambda i: i | {"scores": [[[1.0]]]},
        "scores: wrong rank": lambda i: i | {"scores": i["scores"][0]},
        "scores: integers": lambda i: i | {"scores": i["scores"].long()},
        "scores: complex": lambda i: i | {"scores": i["scores"].cfloat()},
        "scores: no patches": lambda i: {"scores": i["scores"][:, :0], "k": torch.ones(3, 5, dtype=torch.long)},
        **BAD_K,
    },
    differentiable=("scores",),
    terms=1029,
    magnitude=1.0,
)


def linear_inputs(batch=3, patches=63, width=24, classes=5, *, k=6, bias=True, softmax=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = {
        "tokens": torch.randn(batch, patches, width, generator=generator, dtype=torch.float64),
        "weight": torch.randn(width, classes, generator=generator, dtype=torch.float64) / max(width, 1) ** 0.5,
        "k": k,
        "bias": torch.randn(classes, generator=generator, dtype=torch.float64) if bias else None,
        "softmax": softmax,
    }
    return inputs


def as_image(inputs, size):
    return inputs | {"tokens": inputs["tokens"].mT.unflatten(2, size)}


def linear_reference(tokens, weight, k, bias=None, softmax=False):
    if tokens.ndim == 4:
        tokens = tokens.flatten(2).mT
    return reference.linear_topk_pool(tokens, weight, clamped(k, tokens.shape[1]), bias, softmax)


def linear_operators(i):
    tokens, weight, bias = i["tokens"], i["weight"], i["bias"]
    batch, patches, classes = *tokens.shape[:2], weight.shape[1]
    operators = torch.ops.toco_kernels
    counts = own_counts(batch, patches, classes).to(tokens.device)
    _, indices = operators.linear_topk_pool(tokens, weight, bias, 6, None, False)
    grad = tokens.new_ones(batch, classes)
    return [
        (operators.linear_topk_pool.default, (tokens, weight, bias, 6, None, False)),
        (operators.linear_topk_pool.default, (tokens, weight, None, 0, counts, True)),
        (operators.linear_topk_pool_backward.default, (grad, tokens, weight, bias, indices, True, True)),
        (operators.linear_topk_pool_backward.default, (grad, tokens, weight, None, indices, False, False)),
    ]


def with_shared_direction(inputs):
    """As the tokens of a ViT's last layers: they have a direction in common, as long as what tells them apart."""
    generator = torch.Generator().manual_seed(1)
    shared = torch.randn(inputs["tokens"].shape[2], generator=generator, dtype=torch.float64)
    return inputs | {"tokens": inputs["tokens"] + shared}


LINEAR_TOPK_POOL = Room(
    name="linear_topk_pool",
    function=toco_kernels.linear_topk_pool,
    reference=linear_reference,
    operators=linear_operators,
    sample=linear_inputs,
    edges={
        "as in TKP-PCL": lambda: linear_inputs(2, 196, 384, 21, softmax=True, bias=False),
        "logits": lambda: linear_inputs(2, 196, 384, 20, bias=False),
        "as of ViT-B": lambda: linear_inputs(2, 64, 768, 20, softmax=True, bias=False),
        "as of ViT-L": lambda: linear_inputs(2, 64, 1024, 20, softmax=True, bias=False),
        "a shared direction": lambda: with_shared_direction(linear_inputs(2, 64, 768, 20, softmax=True, bias=False)),
        "probabilities": lambda: linear_inputs(softmax=True),
        "largest": lambda: linear_inputs(k=1),
        "many kept": lambda: linear_inputs(2, 150, 16, 18, k=30),
        "many kept, probabilities": lambda: linear_inputs(2, 150, 16, 18, k=30, softmax=True),
        "all": lambda: linear_inputs(k=63, softmax=True),
        "a k for each class": lambda: linear_inputs(k=own_counts(3, 63, 5)),
        "more images than threads": lambda: linear_inputs(9, 20, 8),
        "many classes": lambda: linear_inputs(2, 37, 16, 81),
        "half a column": lambda: linear_inputs(2, 37, 16, 40, softmax=True),
        "an image": lambda: as_image(linear_inputs(2, 35, 16), (5, 7)),
        "one class": lambda: linear_inputs(2, 37, 16, 1),
        "one class, probabilities": lambda: linear_inputs(2, 37, 16, 1, softmax=True),
        "one patch": lambda: linear_inputs(2, 1, 16, 5, k=1),
        "one channel": lambda: linear_inputs(2, 37, 1),
        "no channels": lambda: linear_inputs(2, 37, 0),
        "no classes": lambda: linear_inputs(2, 37, 8, 0),
        "empty batch": lambda: linear_inputs(0),
    },
    bad={
        "tokens: not a tensor": lambda i: i | {"tokens": [[[1.0]]]},
        "tokens: wrong rank": lambda i: i | {"tokens": i["tokens"][0]},
        "tokens: integers": lambda i: i | {"tokens": i["tokens"].long()},
        "tokens: no patches": lambda i: i | {"tokens": i["tokens"][:, :0], "k": torch.ones(3, 5, dtype=torch.long)},
        "weight: not a tensor": lambda i: i | {"weight": i["weight"].tolist()},
        "weight: wrong rank": lambda i: i | {"weight": i["weight"][0]},
        "weight: transposed": lambda i: i | {"weight": i["weight"].T},
        "weight: integers": lambda i: i | {"weight": i["weight"].long()},
        "weight: other dtype": lambda i: i | {"weight": i["weight"].double()},
        "weight: other device": lambda i: i | {"weight": i["weight"].to("meta")},
        "bias: not a tensor": lambda i: i | {"bias": 0.5},
        "bias: wrong rank": lambda i: i | {"bias": i["bias"][None]},
        "bias: other classes": lambda i: i | {"bias": i["bias"][1:]},
        "bias: other dtype": lambda i: i | {"bias": i["bias"].half()},
        "bias: other device": lambda i: i | {"bias": i["bias"].to("meta")},
        "softmax: a number": lambda i: i | {"softmax": 1},
        **BAD_K,
    },
    differentiable=("tokens", "weight"),
    terms=3 * 63 * 384,
    magnitude=1.0,
    autocast_casts=("tokens", "weight", "bias"),
)
