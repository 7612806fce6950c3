"""What is particular to patch_contrast; the rest is in test_contract.py."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rooms import PATCH_CONTRASTIVE_ERROR, PATCH_TOKEN_CONTRAST, error_inputs, needs_kernel, token_inputs

from toco_kernels import (
    PatchContrastiveErrorLoss,
    PatchTokenContrastLoss,
    compat,
    patch_contrastive_error,
    patch_token_contrast,
)
from toco_kernels.patch_contrast import reference
from toco_kernels.patch_contrast.op import count_pairs
from toco_kernels.testing import assert_matches_reference, assert_within_budget, to_dtype

GOLDEN = Path(__file__).parent / "golden" / "patch_token_contrast.npz"
LOSSES = [
    pytest.param(PATCH_TOKEN_CONTRAST, token_inputs, id="token contrast"),
    pytest.param(PATCH_CONTRASTIVE_ERROR, error_inputs, id="error"),
    pytest.param(PATCH_CONTRASTIVE_ERROR, lambda *sizes: error_inputs(*sizes, form="log"), id="error, logarithmic"),
]
every_loss = pytest.mark.parametrize(("room", "make"), LOSSES)


def on(device, inputs, dtype=torch.float32):
    inputs = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    return to_dtype(inputs, dtype)


def value_and_grad(function, inputs):
    """The loss, and its gradient."""
    tokens = inputs["tokens"].detach().requires_grad_()
    loss = function(**inputs | {"tokens": tokens})
    return loss.detach(), *torch.autograd.grad(loss, tokens)


@pytest.fixture
def golden(device):
    """What the authors' code returns."""
    arrays = {name: torch.from_numpy(array) for name, array in np.load(GOLDEN).items()}
    return {name: array.to(device) for name, array in arrays.items()}


def by_reference(tokens, labels):
    return reference.patch_token_contrast(tokens.flatten(2).mT, labels.flatten(1), None, 255)


def by_compat(tokens, labels):
    return compat.get_masked_ptc_loss(tokens, compat.label_to_aff_mask(labels))


def by_compat_with_plain_mask(tokens, labels):
    return compat.get_masked_ptc_loss(tokens, compat.label_to_aff_mask(labels) + 0)


@pytest.mark.parametrize("function", [patch_token_contrast, by_reference, by_compat, by_compat_with_plain_mask])
def test_golden(golden, function):
    tokens = golden["tokens"].requires_grad_()
    loss = function(tokens, golden["labels"])
    loss.backward()
    assert loss.item() == pytest.approx(golden["loss"].item(), rel=1e-14)
    np.testing.assert_allclose(tokens.grad.cpu(), golden["grad_tokens"].cpu(), rtol=1e-10, atol=1e-17)


def test_golden_mask(golden):
    assert torch.equal(compat.label_to_aff_mask(golden["labels"][:1]), golden["mask"])


def test_count_pairs(device):
    labels = torch.randint(-2, 3, (3, 17), generator=torch.Generator().manual_seed(0))
    labels[0, 3:9] = 255
    labels[1, :] = 255
    same = different = 0
    for image in labels.tolist():
        for a, b in itertools.permutations(image, 2):
            if 255 not in (a, b):
                same, different = same + (a == b), different + (a != b)
    assert count_pairs(labels.to(device), 255).tolist() == [same, different]


@every_loss
def test_lengths_far_from_one(room, make, device):
    """Up to 1e20 in float32, whose squares overflow. Directions matter, and lengths are powers of two: no rounding."""
    needs_kernel(room, device)
    inputs = on(device, make(2, 50, 24))
    powers = torch.linspace(-24, 66, 50).round().to(device)[:, None]
    loss, grad = value_and_grad(room.function, inputs | {"tokens": inputs["tokens"] * 2**powers})
    eager_loss, eager_grad = value_and_grad(room.reference, inputs)
    exact_loss, exact_grad = value_and_grad(room.reference, on(device, inputs, torch.float64))
    assert_within_budget(loss, exact=exact_loss, eager=eager_loss)
    assert_within_budget(grad * 2**powers, exact=exact_grad, eager=eager_grad, what="grad_tokens")


@every_loss
def test_lengths_far_from_one_in_float16(room, make, device):
    inputs = make(2, 50, 24)
    powers = torch.linspace(-4, 4, 50, dtype=torch.float64)[:, None]
    inputs["tokens"] = inputs["tokens"].clamp(-3, 3) * 10**powers
    assert inputs["tokens"].half().isfinite().all()
    assert inputs["tokens"].half().square().isinf().any()
    assert_matches_reference(
        room.function, room.reference, on(device, inputs, torch.float16), differentiable=("tokens",)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@every_loss
def test_shorter_than_epsilon(room, make, dtype, device):
    """Below 1e-8 a length counts as 1e-8, as in F.normalize: such tokens have small cosines and large gradients."""
    inputs = make(2, 50, 24)
    inputs["tokens"] *= 10 ** torch.linspace(-20, -4, 50, dtype=torch.float64)[:, None]
    assert_matches_reference(
        room.function,
        room.reference,
        on(device, inputs, dtype),
        differentiable=("tokens",),
        terms=50 * 24,
        magnitude=1.0,
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("form", ["linear", "log"])
def test_error_of_zero_vectors(form, dtype, device):
    """Their cosines are 0, and without a direction they get no gradient."""
    inputs = error_inputs(2, 60, 16, form=form)
    inputs["tokens"][:, ::3] = 0
    room, inputs = PATCH_CONTRASTIVE_ERROR, on(device, inputs, dtype)
    assert_matches_reference(
        room.function, room.reference, inputs, differentiable=("tokens",), terms=60 * 16, magnitude=1.0
    )
    assert value_and_grad(room.function, inputs)[1][:, ::3].count_nonzero() == 0


@pytest.mark.parametrize("common", [0.1, 1.0, 10.0])
def test_tokens_that_share_a_direction(common):
    """As those of trained transformers do. Labels at random are the hardest case: autograd's sums then stay small.

    On a GPU, where pairs are summed label by label, errors were up to 2.2 times those of autograd here.
    """
    needs_kernel(PATCH_TOKEN_CONTRAST, "cpu")
    inputs = on("cpu", token_inputs(1, 784, 192))
    inputs["tokens"] = inputs["tokens"] + common * torch.randn(192, generator=torch.Generator().manual_seed(0))
    assert_matches_reference(
        PATCH_TOKEN_CONTRAST.function, PATCH_TOKEN_CONTRAST.reference, inputs, differentiable=("tokens",)
    )


@every_loss
def test_one_channel(room, make, device):
    """All cosines are 1 or -1, whatever the lengths are."""
    inputs = on(device, make(2, 50, 1))
    loss, grad = value_and_grad(room.function, inputs)
    exact = room.reference(**on(device, inputs, torch.float64))
    assert loss.item() == pytest.approx(exact.item(), rel=1e-6)
    assert (grad * inputs["tokens"]).abs().max() <= 1e-6


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@every_loss
def test_images_of_tokens(room, make, memory_format, device):
    inputs = on(device, make(2, 35, 12))
    loss, grad = value_and_grad(room.function, inputs)
    image = inputs | {"tokens": inputs["tokens"].mT.unflatten(2, (5, 7)).contiguous(memory_format=memory_format)}
    if "labels" in inputs:
        image["labels"] = inputs["labels"].unflatten(1, (5, 7))
    image_loss, image_grad = value_and_grad(room.function, image)
    assert torch.equal(image_loss, loss)
    assert torch.equal(image_grad.flatten(2).mT, grad)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int16, torch.int32, torch.uint8, torch.uint16, torch.uint32], ids=str
)
def test_labels_of_any_integer_dtype(dtype, device):
    inputs = on(device, token_inputs(2, 35, 12))
    labels = inputs["labels"].masked_fill(inputs["labels"] == 255, 100)
    expected = patch_token_contrast(inputs["tokens"], inputs["labels"])
    assert torch.equal(patch_token_contrast(inputs["tokens"], labels.to(dtype), ignore_index=100), expected)


@pytest.mark.parametrize("integer", [np.int64, np.int32, np.uint8])
def test_ignore_index_of_any_integer_type(integer, device):
    inputs = on(device, token_inputs(2, 35, 12))
    inputs["labels"] = inputs["labels"].masked_fill(inputs["labels"] == 255, 100)
    expected = patch_token_contrast(**inputs, ignore_index=100)
    assert torch.equal(patch_token_contrast(**inputs, ignore_index=integer(100)), expected)


def test_255_is_ignored_in_uint8(device):
    inputs = on(device, token_inputs(2, 35, 12))
    actual = patch_token_contrast(inputs["tokens"], inputs["labels"].to(torch.uint8))
    assert torch.equal(actual, patch_token_contrast(**inputs))


def used(room, inputs):
    """Which tokens take part: (B, N)."""
    if "labels" in inputs:
        return inputs["labels"] != 255
    scores, labels = inputs["scores"], inputs["image_labels"]
    present = torch.cat([torch.ones_like(labels[:, :1]), labels], dim=1)[:, None] != 0
    return ((scores > 0.95) | (scores < 1 - 0.95)).logical_and(present).any(dim=2)


def in_doubt(room, make):
    """Inputs of which some tokens take no part."""
    inputs = make(3, 63, 24)
    if "scores" in inputs:
        inputs["scores"][:, 1::3] = 1 / inputs["scores"].shape[2]
    assert 0 < used(room, inputs).sum() < used(room, inputs).numel()
    return inputs


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@every_loss
def test_ignored_tokens_are_never_read(room, make, value, device):
    inputs = on(device, in_doubt(room, make))
    ignored = ~used(room, inputs)
    expected = value_and_grad(room.function, inputs)
    loss, grad = value_and_grad(
        room.function, inputs | {"tokens": inputs["tokens"].masked_fill(ignored[:, :, None], value)}
    )
    assert torch.equal(loss, expected[0])
    assert torch.equal(grad, expected[1])
    assert (grad[ignored] == 0).all()


@every_loss
def test_nan_in_any_used_token_reaches_the_loss(room, make, device):
    inputs = on(device, in_doubt(room, make))
    for b, n in used(room, inputs).nonzero().tolist()[::5]:
        tokens = inputs["tokens"].clone()
        tokens[b, n, (7 * n) % 24] = math.nan
        loss, grad = value_and_grad(room.function, inputs | {"tokens": tokens})
        assert loss.isnan(), f"token {n} of image {b}"
        assert grad[b, n].isnan().any(), f"token {n} of image {b}"


def sure(*signs):
    """(1, N, 2) scores of background and one class: 1 shows it, -1 does not, 0 in doubt."""
    score = 0.5 + 0.49 * torch.tensor(signs)
    return torch.stack([torch.full_like(score, 0.5), score], dim=1)[None]


EAST, NORTH, WEST = (1.0, 0.0), (0.0, 3.0), (-2.0, 0.0)
HALF = math.log(2)  # minus the logarithm of 1/2
COUNTED = {  # tokens and what they are sure of -> the linear and the logarithmic error, counted by hand
    "three high, one low": ([EAST, EAST, NORTH, WEST], [1, 1, 1, -1], 1 / 3 + 1 / 6, 2 / 3 * HALF + 1 / 3 * HALF),
    "no high": ([EAST, NORTH, WEST], [0, -1, -1], 0.0, 0.0),
    "one high": ([EAST, NORTH], [1, 0], 0.0, 0.0),
    "one high, two low": ([EAST, NORTH, WEST], [1, -1, -1], 1 / 4, HALF / 2),
    "no low": ([EAST, NORTH, WEST], [1, 1, 0], 1 / 2, HALF),
    "all right": ([EAST, EAST, WEST], [1, 1, -1], 0.0, 0.0),
    "all wrong": ([EAST, WEST, EAST], [1, 1, -1], 1 + 1 / 2, -math.log(1e-6) * 1.5),
}


@pytest.mark.parametrize("example", COUNTED)
def test_error_counted_by_hand(example, device):
    tokens, signs, linear, logarithmic = COUNTED[example]
    inputs = {"tokens": torch.tensor([tokens]), "scores": sure(*signs), "image_labels": torch.ones(1, 1)}
    inputs = on(device, inputs, torch.float64)
    for form, expected in (("linear", linear), ("log", logarithmic)):
        actual = patch_contrastive_error(**inputs, form=form, background=False)
        assert actual.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_error_averages_over_images_and_classes_that_have_a_term(device):
    """Attraction over those with two patches in high, repulsion over those with one in high and one in low."""
    tokens = [[EAST, EAST, NORTH, WEST], [EAST, NORTH, EAST, EAST], [EAST, NORTH, NORTH, EAST], [EAST] * 4]
    scores = [sure(1, 1, 1, -1), sure(1, 1, 0, 0), sure(1, -1, 0, 0), sure(1, 1, -1, -1)]
    inputs = {"tokens": torch.tensor(tokens), "scores": torch.cat(scores)}
    inputs["image_labels"] = torch.tensor([[1], [1], [1], [0]])
    attraction, repulsion = (1 / 3 + 1 / 2) / 2, (1 / 6 + 1 / 2) / 2
    actual = patch_contrastive_error(**on(device, inputs, torch.float64), background=False)
    assert actual.item() == pytest.approx(attraction + repulsion, rel=1e-12)


def test_linear_error_is_half_of_the_raw_form(device):
    """Reading B of the text takes 1 - S and 1 + S, of cosines as they are."""
    inputs = on(device, error_inputs(2, 40, 16, image_labels=torch.ones(2, 3)), torch.float64)
    unit = torch.nn.functional.normalize(inputs["tokens"], dim=2)
    attraction, repulsion = [], []
    for b, c in itertools.product(range(2), range(4)):
        high, low = (unit[b][side[b, :, c]] for side in (inputs["scores"] > 0.95, inputs["scores"] < 0.05))
        pairs = [(1 - x @ y).item() for x, y in itertools.permutations(high, 2)]
        attraction += [sum(pairs) / len(pairs)] if pairs else []
        pairs = [(1 + x @ y).item() for x, y in itertools.product(high, low)]
        repulsion += [sum(pairs) / len(pairs)] if pairs else []
    raw = sum(attraction) / len(attraction) + sum(repulsion) / len(repulsion)
    assert len(attraction) > 1
    assert patch_contrastive_error(**inputs).item() == pytest.approx(raw / 2, rel=1e-12)


@every_loss
def test_the_order_of_patches_does_not_matter(room, make, device):
    inputs = on(device, make(2, 150, 24))
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0)).to(device)
    patches = {name for name in ("tokens", "labels", "scores") if name in inputs}
    loss, grad = value_and_grad(room.function, inputs | {name: inputs[name][:, order] for name in patches})
    eager_loss, eager_grad = value_and_grad(room.reference, inputs)
    exact_loss, exact_grad = value_and_grad(room.reference, on(device, inputs, torch.float64))
    assert_within_budget(loss, exact=exact_loss, eager=eager_loss)
    assert_within_budget(grad, exact=exact_grad[:, order], eager=eager_grad[:, order], what="grad_tokens")


def test_autocast_leaves_scores_alone(device):
    """0.951 is above the threshold, and what bfloat16 makes of it is not."""
    inputs = on(device, {"tokens": torch.randn(1, 6, 8), "scores": torch.full((1, 6, 1), 0.951)})
    inputs["image_labels"] = torch.ones(1, 1, device=device)
    assert not (inputs["scores"].bfloat16() > 0.95).any()
    with torch.autocast(device, torch.bfloat16):
        actual = patch_contrastive_error(**inputs)
    assert actual > 0
    assert torch.equal(actual, patch_contrastive_error(**inputs | {"tokens": inputs["tokens"].bfloat16()}))


def test_modules(device):
    inputs = on(device, token_inputs(2, 35, 12))
    inputs["labels"] = inputs["labels"].masked_fill(inputs["labels"] == 255, 7)
    module = PatchTokenContrastLoss(ignore_index=7)
    assert torch.equal(module(**inputs), patch_token_contrast(**inputs, ignore_index=7))
    assert repr(module) == "PatchTokenContrastLoss(ignore_index=7)"

    inputs = on(device, error_inputs(2, 35, 12))
    module = PatchContrastiveErrorLoss(0.8, "log", background=False)
    options = {"threshold": 0.8, "form": "log", "background": False}
    assert torch.equal(module(**inputs), patch_contrastive_error(**inputs, **options))
    assert not torch.equal(module(**inputs), PatchContrastiveErrorLoss()(**inputs))
    assert repr(module) == "PatchContrastiveErrorLoss(threshold=0.8, form='log', background=False)"


def test_modules_bad_arguments():
    with pytest.raises(ValueError, match=r"^threshold must be in \[0.5, 1\), got 0.4"):
        PatchContrastiveErrorLoss(0.4)
    with pytest.raises(ValueError, match=r"^form must be one of .*, got 'quadratic'"):
        PatchContrastiveErrorLoss(form="quadratic")
