"""The launchers of pixel_correlation, on tensors of the CPU. tests/test_pixel_correlation_triton.py starts this."""

import pytest
import torch
from rooms import PIXEL_CORRELATION, correlation_inputs

from toco_kernels import pixel_correlation
from toco_kernels.pixel_correlation import reference, triton_kernel
from toco_kernels.testing import assert_matches_reference, run, to_dtype

SLOW = {"as in SEAM", "whole blocks", "many blocks"}
CASES = {name: make for name, make in PIXEL_CORRELATION.edges.items() if name not in SLOW} | {
    "sample": PIXEL_CORRELATION.sample,
    "two blocks of channels and of classes": lambda: correlation_inputs(1, 140, (5, 7), classes=70),
}


@pytest.fixture(autouse=True)
def launched(monkeypatch):
    """Also in the backward, where no mode of torch functions is active."""
    from toco_kernels.pixel_correlation import op

    monkeypatch.setattr(op, "_forward", triton_kernel.pixel_correlation)
    monkeypatch.setattr(op, "_backward", triton_kernel.pixel_correlation_backward)


def judge(inputs):
    assert_matches_reference(
        pixel_correlation, PIXEL_CORRELATION.reference, inputs, differentiable=PIXEL_CORRELATION.differentiable
    )


@pytest.mark.parametrize("case", CASES)
def test_float32(case):
    judge(to_dtype(CASES[case](), torch.float32))


@pytest.mark.parametrize("case", ["sample", "lengths", "zero vectors", "several blocks"])
def test_float16(case):
    judge(to_dtype(CASES[case](), torch.float16))


def flat(inputs, dtype=torch.float32):
    return [x.flatten(2) for x in to_dtype(inputs, dtype).values()]


@pytest.mark.parametrize("case", ["sample", "several blocks", "zero vectors"])
def test_signs_and_sums(case):
    """Bits of pixels beyond the last are zero; with more pixels than a tile has, each word is written once."""
    features, cams = flat(CASES[case]())
    revised, sums, signs = triton_kernel.pixel_correlation(features, cams, True)
    assert torch.equal(signs, reference.signs(features))
    torch.testing.assert_close(sums, reference.cosines(features).relu().sum(dim=1) + reference.EPSILON)
    without, *kept = triton_kernel.pixel_correlation(features, cams, False)
    assert torch.equal(without, revised)
    assert [x.numel() for x in kept] == [0, 0]


def test_layouts_and_neighbouring_memory():
    """Every stride unusual, amid NaN: the same bits."""
    inputs = to_dtype(correlation_inputs(), torch.float32)
    expected = run(pixel_correlation, inputs, ("features",))

    def lay_out(x):
        larger = torch.full([2 * n + 2 for n in x.shape[::-1]], float("nan"))
        return larger[tuple(slice(1, -1, 2) for _ in x.shape)].permute(3, 2, 1, 0).copy_(x)

    actual = run(pixel_correlation, {name: lay_out(x) for name, x in inputs.items()}, ("features",))
    assert torch.equal(actual[0][0], expected[0][0])
    assert torch.equal(actual[1]["features"], expected[1]["features"])


@pytest.mark.parametrize("name", ["features", "cams"])
def test_nan_in_nan_out(name):
    inputs = to_dtype(correlation_inputs(), torch.float32)
    inputs[name][0, 3, 0, 0] = float("nan")
    (revised,), grads = run(pixel_correlation, inputs, ("features",))
    assert revised[0].isnan().any()
    assert revised[1].isfinite().all()  # the other image
    assert grads["features"][0].isnan().any()


@pytest.fixture
def tf32():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.usefixtures("tf32")
def test_tf32_where_torch_allows_it():
    features, cams = flat(correlation_inputs())
    expected = reference.pixel_correlation(features, cams)
    revised, *_ = triton_kernel.pixel_correlation(features, cams, False)
    torch.testing.assert_close(revised, expected, rtol=2e-3, atol=1e-4)
