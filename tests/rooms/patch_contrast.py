"""Sample inputs of patch_contrast."""

import torch

import toco_kernels
from toco_kernels.patch_contrast import reference

from .room import Room


def token_inputs(batch=3, patches=63, width=24, *, classes=4, ignored=0.3, labels=None, scale=1.0, image=None):
    generator = torch.Generator().manual_seed(batch * patches * width)
    tokens = torch.randn(batch, patches, width, generator=generator, dtype=torch.float64) * scale
    if labels is None:
        labels = torch.randint(classes, (batch, patches), generator=generator)
        labels[:, 1:][torch.rand(batch, patches - 1, generator=generator) < ignored] = 255
    if image:
        tokens, labels = tokens.mT.unflatten(2, image), labels.unflatten(1, image)
    return {"tokens": tokens, "labels": labels}


def alike(inputs):
    """Tokens that share a direction, as those of trained transformers do: nearly all of a gradient lies along it."""
    tokens = inputs["tokens"]
    return inputs | {"tokens": tokens[:, :1] + tokens / 10}


def with_zeros(inputs):
    """Some tokens are zero vectors, some have no channel in common: cosines of exactly zero."""
    tokens = inputs["tokens"].clone()
    tokens[:, 1::7] = 0
    half = tokens.shape[2] // 2
    tokens[:, 2::4, :half] = 0
    tokens[:, 3::4, half:] = 0
    return inputs | {"tokens": tokens}


def with_nan(inputs):
    """NaN in ignored tokens changes nothing."""
    tokens = inputs["tokens"].clone()
    tokens[inputs["labels"] == 255] = float("nan")
    return inputs | {"tokens": tokens}


def of_norms(inputs, smallest, largest):
    """Tokens whose lengths span these powers of ten."""
    powers = torch.linspace(smallest, largest, inputs["tokens"].shape[1], dtype=torch.float64)
    return inputs | {"tokens": inputs["tokens"] * 10 ** powers[:, None]}


PATCH_TOKEN_CONTRAST = Room(
    name="patch_token_contrast",
    function=toco_kernels.patch_token_contrast,
    reference=lambda tokens, labels: reference.patch_token_contrast(
        *((tokens, labels) if tokens.ndim == 3 else (tokens.flatten(2).mT, labels.flatten(1))), None, 255
    ),
    operators=lambda inputs: [
        (torch.ops.toco_kernels.patch_token_contrast.default, (inputs["tokens"], inputs["labels"], pairs, 255, True))
        for pairs in (None, torch.tensor([100, 300], device=inputs["tokens"].device))
    ],
    sample=token_inputs,
    edges={
        "more than one block": lambda: token_inputs(2, 300, 40),
        "as in ToCo": lambda: token_inputs(1, 196, 384, image=(14, 14)),
        "many blocks": lambda: token_inputs(1, 523, 33, ignored=0.05),
        "whole blocks": lambda: token_inputs(1, 256, 16, ignored=0.0),
        "a shared direction": lambda: alike(token_inputs(1, 300, 40, labels=torch.arange(300)[None] // 75)),
        "all ignored": lambda: token_inputs(2, 20, 8, labels=torch.full((2, 20), 255)),
        "one image ignored": lambda: token_inputs(2, 20, 8, labels=torch.tensor([[255] * 20, [1, 2] * 10])),
        "one class": lambda: token_inputs(2, 70, 8, classes=1),
        "every token its own class": lambda: token_inputs(2, 70, 8, labels=torch.arange(140).view(2, 70)),
        "negative and large labels": lambda: token_inputs(
            2, 20, 8, labels=torch.tensor([[-7, 2**40, 0, 255, 2**40, -7, 254, 256, -(2**62), 9] * 2] * 2)
        ),
        "one patch": lambda: token_inputs(2, 1, 8),
        "no channels": lambda: token_inputs(2, 37, 0),
        "no patches": lambda: token_inputs(2, 0, 8, labels=torch.zeros(2, 0, dtype=torch.long)),
        "zero vectors": lambda: with_zeros(token_inputs(2, 90, 24)),
        "only zero vectors": lambda: token_inputs(2, 20, 8, scale=0.0),
        "NaN in ignored tokens": lambda: with_nan(token_inputs(2, 90, 24)),
        "lengths": lambda: of_norms(token_inputs(2, 50, 24), -3, 3),
        "empty batch": lambda: token_inputs(0, 20, 8, labels=torch.zeros(0, 20, dtype=torch.long)),
    },
    bad={
        "tokens: not a tensor": lambda i: i | {"tokens": [[1.0]]},
        "tokens: wrong rank": lambda i: i | {"tokens": i["tokens"][0]},
        "tokens: integers": lambda i: i | {"tokens": i["tokens"].long()},
        "tokens: complex": lambda i: i | {"tokens": i["tokens"].cfloat()},
        "labels: not a tensor": lambda i: i | {"labels": i["labels"].tolist()},
        "labels: wrong rank": lambda i: i | {"labels": i["labels"][0]},
        "labels: patches missing": lambda i: i | {"labels": i["labels"][:, 1:]},
        "labels: other batch": lambda i: i | {"labels": i["labels"][1:]},
        "labels: fractions": lambda i: i | {"labels": i["labels"].float()},
        "labels: other device": lambda i: i | {"labels": i["labels"].to("meta")},
        "ignore_index: a fraction": lambda i: i | {"ignore_index": 0.5},
        "ignore_index: yes or no": lambda i: i | {"ignore_index": True},
        "process_group: a name": lambda i: i | {"process_group": "world"},
    },
    differentiable=("tokens",),
    terms=523 * 384,
    magnitude=1.0,
    is_loss=True,
    autocast_casts=("tokens",),
)


def error_inputs(batch=3, patches=63, width=24, *, classes=4, background=True, confidence=6.0, **others):
    generator = torch.Generator().manual_seed(batch * patches * width)
    scores = torch.randn(batch, patches, classes, generator=generator, dtype=torch.float64) * confidence
    present = (torch.rand(batch, classes - background, generator=generator) < 0.6).double()
    if present.numel():
        present[0, 0] = 1
    if patches:
        scores[:, 0] = torch.arange(classes)[None] * -50.0  # the first patch surely shows class 0
    return {
        "tokens": torch.randn(batch, patches, width, generator=generator, dtype=torch.float64),
        "scores": scores.softmax(dim=2).float().double(),  # thresholds cut the same in float32 and float64
        "image_labels": present,
    } | others


def error_reference(tokens, scores, image_labels, threshold=0.95, form="linear"):
    if tokens.ndim == 4:
        tokens, scores = tokens.flatten(2).mT, scores.flatten(2).mT
    if image_labels.shape[1] < scores.shape[2]:
        image_labels = torch.cat([image_labels.new_ones(len(image_labels), 1), image_labels], dim=1)
    return reference.patch_contrastive_error(tokens, scores, image_labels, threshold, form)


def error_operator(inputs):
    classes = torch.ones(inputs["scores"].shape[::2], dtype=torch.bool, device=inputs["scores"].device)
    return [
        (
            torch.ops.toco_kernels.patch_contrastive_error.default,
            (inputs["tokens"], inputs["scores"], classes, 0.95, form, True),
        )
        for form in ("linear", "log")
    ]


def as_image(inputs, size):
    return inputs | {name: inputs[name].mT.unflatten(2, size) for name in ("tokens", "scores")}


def unsure(inputs, kept):
    """Scores in doubt but for `kept`, whose class is sure."""
    scores = torch.full_like(inputs["scores"], 0.5)
    scores[:, kept] = inputs["scores"][:, kept].round()
    return inputs | {"scores": scores}


PATCH_CONTRASTIVE_ERROR = Room(
    name="patch_contrastive_error",
    function=toco_kernels.patch_contrastive_error,
    reference=error_reference,
    operators=error_operator,
    sample=error_inputs,
    edges={
        "more than one block": lambda: error_inputs(2, 300, 40),
        "logarithmic": lambda: error_inputs(form="log"),
        "logarithmic, many blocks": lambda: error_inputs(1, 400, 33, form="log", threshold=0.8),
        "a shared direction": lambda: alike(error_inputs(1, 100, 40)),
        "as in TKP-PCL": lambda: error_inputs(1, 196, 384, classes=21),
        "an image": lambda: as_image(error_inputs(2, 35, 16), (5, 7)),
        "every class labelled": lambda: error_inputs(background=False),
        "low threshold": lambda: error_inputs(confidence=1.0, threshold=0.5),
        "nothing sure": lambda: unsure(error_inputs(), slice(0, 0)),
        "one patch sure": lambda: unsure(error_inputs(), slice(0, 1)),
        "one patch sure, logarithmic": lambda: unsure(error_inputs(form="log"), slice(0, 1)),
        "no class present": lambda: error_inputs(background=False, image_labels=torch.zeros(3, 4)),
        "boolean labels": lambda: error_inputs(image_labels=torch.ones(3, 3, dtype=torch.bool)),
        "background alone": lambda: error_inputs(classes=1, image_labels=torch.ones(3, 0)),
        "one patch": lambda: error_inputs(2, 1, 8),
        "no channels": lambda: error_inputs(2, 37, 0),
        "no patches": lambda: error_inputs(2, 0, 8),
        "zero vectors": lambda: with_zeros(error_inputs(2, 90, 24)),
        "zero vectors, logarithmic": lambda: with_zeros(error_inputs(2, 90, 24, form="log")),
        "lengths": lambda: of_norms(error_inputs(2, 50, 24), -3, 3),
        "empty batch": lambda: error_inputs(0),
    },
    bad={
        "tokens: wrong rank": lambda i: i | {"tokens": i["tokens"][0]},
        "tokens: integers": lambda i: i | {"tokens": i["tokens"].long()},
        "scores: not a tensor": lambda i: i | {"scores": i["scores"].tolist()},
        "scores: wrong rank": lambda i: i | {"scores": i["scores"][0]},
        "scores: integers": lambda i: i | {"scores": i["scores"].long()},
        "scores: patches missing": lambda i: i | {"scores": i["scores"][:, 1:]},
        "scores: other device": lambda i: i | {"scores": i["scores"].to("meta")},
        "image_labels: not a tensor": lambda i: i | {"image_labels": i["image_labels"].tolist()},
        "image_labels: wrong rank": lambda i: i | {"image_labels": i["image_labels"][0]},
        "image_labels: classes missing": lambda i: i | {"image_labels": i["image_labels"][:, 1:]},
        "image_labels: other batch": lambda i: i | {"image_labels": i["image_labels"][1:]},
        "image_labels: complex": lambda i: i | {"image_labels": i["image_labels"].cfloat()},
        "image_labels: other device": lambda i: i | {"image_labels": i["image_labels"].to("meta")},
        "threshold: too low": lambda i: i | {"threshold": 0.4},
        "threshold: one": lambda i: i | {"threshold": 1.0},
        "threshold: NaN": lambda i: i | {"threshold": float("nan")},
        "threshold: text": lambda i: i | {"threshold": "0.95"},
        "form: unknown": lambda i: i | {"form": "infonce"},
    },
    differentiable=("tokens",),
    terms=400 * 384,
    magnitude=1.0,
    is_loss=True,
    nan_free=("scores", "image_labels"),
    autocast_casts=("tokens",),
)
