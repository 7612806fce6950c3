"""The launchers of prototype_contrast, on tensors of the CPU. tests/test_prototype_contrast_triton.py starts this."""

import pytest
import torch
from rooms import PROTOTYPE_CONTRAST, contrast_inputs, step_inputs
from rooms.prototype_contrast import after_relu, step_operators

from toco_kernels._library import OPERATORS, _Loss
from toco_kernels.prototype_contrast import triton_kernel
from toco_kernels.prototype_contrast.step import _terms
from toco_kernels.testing import assert_matches_reference, run, to_dtype

SLOW = {"as in PPC", "several blocks", "whole blocks"}
CASES = {name: make for name, make in PROTOTYPE_CONTRAST.edges.items() if name not in SLOW} | {
    "sample": PROTOTYPE_CONTRAST.sample,
    "after a ReLU": lambda: after_relu(contrast_inputs(1, 70, (9, 9), classes=21)),
}


def contrast(features, labels, prototypes, temperature=0.1, ignore_index=255):
    return _Loss.apply(
        triton_kernel.prototype_contrast,
        features.flatten(2),
        labels.flatten(1).long(),
        prototypes.float(),
        temperature,
        ignore_index,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_contrast(case, dtype):
    inputs = to_dtype(CASES[case](), dtype)
    options = {"differentiable": ("features",), "by_chance": case == "one pixel"}
    assert_matches_reference(contrast, PROTOTYPE_CONTRAST.reference, inputs, **options)


def test_layouts_and_neighbouring_memory():
    """Features with every stride unusual, amid NaN, give the same bits."""
    inputs = to_dtype(contrast_inputs(), torch.float32)
    expected = run(contrast, inputs, ("features",))
    x = inputs["features"]
    larger = torch.full([2 * n + 2 for n in x.shape[::-1]], float("nan"))
    laid_out = larger[tuple(slice(1, -1, 2) for _ in x.shape)].permute(3, 2, 1, 0).copy_(x)
    actual = run(contrast, inputs | {"features": laid_out}, ("features",))
    assert torch.equal(actual[0][0], expected[0][0])
    assert torch.equal(actual[1]["features"], expected[1]["features"])


def test_nan_in_nan_out():
    inputs = to_dtype(contrast_inputs(), torch.float32)
    inputs["features"][0, 3, 0, 0] = float("nan")
    (loss,), grads = run(contrast, inputs, ("features",))
    assert loss.isnan()
    assert grads["features"].isnan().any()


def test_labels_out_of_range():
    inputs = to_dtype(contrast_inputs(), torch.float32)
    for label in (5, -1, 2**40):
        inputs["labels"][1, 2, 3] = label
        assert contrast(**inputs).isnan()


def test_without_gradient():
    inputs = to_dtype(contrast_inputs(), torch.float32)
    arguments = inputs["features"].flatten(2), inputs["labels"].flatten(1), inputs["prototypes"], 0.1, 255
    loss, grad = triton_kernel.prototype_contrast(*arguments, False)
    assert grad.numel() == 0
    assert torch.equal(loss, triton_kernel.prototype_contrast(*arguments, True)[0])


@pytest.mark.parametrize("power", [-20, 20])
def test_lengths_whose_squares_are_no_numbers(power):
    """Cosines do not depend on lengths above 1e-12; squares of 1e20 overflow in float32, and 1e-20 is below."""
    inputs = to_dtype(contrast_inputs(), torch.float32)
    long = inputs | {"features": inputs["features"] * 2.0 ** (power * 3 if power > 0 else power)}
    (loss,), grads = run(contrast, inputs, ("features",))
    (long_loss,), long_grads = run(contrast, long, ("features",))
    torch.testing.assert_close(long_loss, loss)
    scaled = long_grads["features"] * 2.0 ** (power * 3 if power > 0 else power)
    torch.testing.assert_close(scaled, grads["features"], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("sizes", [{}, {"classes": 21, "k": 9}, {"classes": 1}, {"batch": 1, "other_size": (1, 1)}])
def test_terms_of_a_step(sizes):
    """No kernel of Triton's: plain PyTorch without loops. Values and slopes of the reference."""
    inputs = step_inputs(**sizes)
    if inputs["other_features"].numel() != step_inputs()["other_features"].numel() or "classes" in sizes:
        generator = torch.Generator().manual_seed(1)
        batch, width, *size = inputs["other_features"].shape
        count, classes = size[0] * size[1], sizes.get("classes", 5)
        x, y = torch.randn(2, batch, width, count, generator=generator, dtype=torch.float64)
        labels = torch.randint(classes, (2, batch, count), generator=generator)
        prototypes = torch.randn(2, classes, width, generator=generator, dtype=torch.float64)
        arguments = x, y, *labels, *prototypes, inputs["draws"].flatten(2), 0.1
    else:
        (_, arguments), *_ = step_operators(inputs)
    for actual, expected in zip(triton_kernel.pixel_prototype_contrast(*arguments), _terms(*arguments), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("size", "resized"),
    [
        ((23, 9), (6, 4)),
        ((7, 5), (5, 4)),
        ((5, 4), (9, 66)),
        ((3, 66), (1, 1)),
        ((1, 1), (4, 3)),
        ((1, 6), (6, 1)),
        ((8, 8), (8, 8)),
    ],
)
def test_gradient_of_resizing(size, resized):
    """Smaller, larger, from one pixel and to one."""
    grad = torch.randn(2, 3, *resized, generator=torch.Generator().manual_seed(0))
    expected = OPERATORS["resize_corners_backward"].reference(grad.double(), [*size])
    actual = triton_kernel.resize_corners_backward(grad.mT.contiguous().mT, [*size])
    torch.testing.assert_close(actual, expected.float(), rtol=1e-5, atol=1e-5)
