"""The launchers of patch_contrast, on tensors of the CPU. tests/test_patch_contrast_triton.py starts this."""

import pytest
import torch
from rooms import PATCH_CONTRASTIVE_ERROR, PATCH_TOKEN_CONTRAST, error_inputs, token_inputs

from toco_kernels._library import _Loss
from toco_kernels.common.triton_precision import dot_precision
from toco_kernels.patch_contrast import reference, triton_kernel
from toco_kernels.testing import assert_matches_reference, run, to_dtype

SLOW = {"more than one block", "logarithmic, many blocks", "as in TKP-PCL", "low threshold"}
TOKEN_CASES = {name: make for name, make in PATCH_TOKEN_CONTRAST.edges.items() if name not in SLOW} | {
    "sample": PATCH_TOKEN_CONTRAST.sample,
    "two long runs of a label": lambda: token_inputs(1, 300, 24, labels=torch.arange(300)[None] // 150),
    "channels in several blocks": lambda: token_inputs(1, 40, 150),
}
ERROR_CASES = {name: make for name, make in PATCH_CONTRASTIVE_ERROR.edges.items() if name not in SLOW} | {
    "sample": PATCH_CONTRASTIVE_ERROR.sample,
    "blocks of classes and channels": lambda: error_inputs(1, 150, 130, classes=35),
    "logarithmic, blocks": lambda: error_inputs(1, 100, 130, form="log", threshold=0.8),
    "low threshold, one image": lambda: error_inputs(1, 70, confidence=1.0, threshold=0.5),
}
HALF_TOKENS = ("sample", "a shared direction", "two long runs of a label", "channels in several blocks")
HALF_ERRORS = ("sample", "logarithmic, blocks", "lengths")


def token_contrast(tokens, labels, pairs=None):
    if tokens.ndim == 4:
        tokens, labels = tokens.flatten(2).mT, labels.flatten(1)
    return _Loss.apply(triton_kernel.patch_token_contrast, tokens, labels, pairs, 255)


def contrastive_error(tokens, scores, image_labels, threshold=0.95, form="linear"):
    if tokens.ndim == 4:
        tokens, scores = tokens.flatten(2).mT, scores.flatten(2).mT
    classes = image_labels != 0
    if classes.shape[1] < scores.shape[2]:
        classes = torch.cat([classes.new_ones(len(classes), 1), classes], dim=1)
    return _Loss.apply(triton_kernel.patch_contrastive_error, tokens, scores.float(), classes, threshold, form)


def judge(function, room, inputs):
    assert_matches_reference(function, room.reference, inputs, differentiable=("tokens",))


@pytest.mark.parametrize("case", TOKEN_CASES)
def test_token_contrast(case):
    judge(token_contrast, PATCH_TOKEN_CONTRAST, to_dtype(TOKEN_CASES[case](), torch.float32))


@pytest.mark.parametrize("case", HALF_TOKENS)
def test_token_contrast_in_half_precision(case):
    judge(token_contrast, PATCH_TOKEN_CONTRAST, to_dtype(TOKEN_CASES[case](), torch.float16))


@pytest.mark.parametrize("case", ERROR_CASES)
def test_contrastive_error(case):
    judge(contrastive_error, PATCH_CONTRASTIVE_ERROR, to_dtype(ERROR_CASES[case](), torch.float32))


@pytest.mark.parametrize("case", HALF_ERRORS)
def test_contrastive_error_in_half_precision(case):
    judge(contrastive_error, PATCH_CONTRASTIVE_ERROR, to_dtype(ERROR_CASES[case](), torch.float16))


def test_pairs_of_a_joined_batch():
    inputs = to_dtype(token_inputs(), torch.float32)
    pairs = torch.tensor([100, 7, 300])[::2]
    assert_matches_reference(
        lambda tokens, labels: token_contrast(tokens, labels, pairs),
        lambda tokens, labels: reference.patch_token_contrast(tokens, labels, pairs, 255),
        inputs,
        differentiable=("tokens",),
    )


SAMPLES = [
    pytest.param(token_contrast, token_inputs, id="token contrast"),
    pytest.param(contrastive_error, error_inputs, id="linear"),
    pytest.param(contrastive_error, lambda: error_inputs(form="log"), id="logarithmic"),
]


@pytest.mark.parametrize(("function", "make"), SAMPLES)
def test_layouts_and_neighbouring_memory(function, make):
    """Inputs with every stride unusual, amid NaN, give the same bits."""
    inputs = to_dtype(make(), torch.float32)
    expected = run(function, inputs, ("tokens",))

    def lay_out(x):
        if not isinstance(x, torch.Tensor):
            return x
        larger = torch.full([2 * n + 2 for n in x.shape[::-1]], float("nan") if x.is_floating_point() else 3).to(x)
        return larger[tuple(slice(1, -1, 2) for _ in x.shape)].permute(*reversed(range(x.ndim))).copy_(x)

    laid_out = {name: lay_out(value) for name, value in inputs.items()}
    tokens = laid_out["tokens"].requires_grad_()
    loss = function(**laid_out)
    assert torch.equal(loss, expected[0][0])
    generator = torch.Generator().manual_seed(0)
    (grad,) = torch.autograd.grad(loss, tokens, torch.randn((), generator=generator, dtype=torch.float64).float())
    assert torch.equal(grad, expected[1]["tokens"])


@pytest.mark.parametrize(("function", "make"), SAMPLES)
def test_nan_in_nan_out(function, make):
    inputs = to_dtype(make(), torch.float32)
    inputs["tokens"][:, 0, 3] = float("nan")
    (loss,), grads = run(function, inputs, ("tokens",))
    assert loss.isnan()
    assert grads["tokens"].isnan().any()


def test_without_gradient():
    inputs = to_dtype(token_inputs(), torch.float32)
    arguments = inputs["tokens"], inputs["labels"], None, 255
    loss, grad = triton_kernel.patch_token_contrast(*arguments, False)
    assert grad.numel() == 0
    assert torch.equal(loss, triton_kernel.patch_token_contrast(*arguments, True)[0])


@pytest.mark.parametrize("form", ["linear", "log"])
def test_error_without_gradient(form):
    inputs = to_dtype(error_inputs(), torch.float32)
    arguments = inputs["tokens"], inputs["scores"], torch.ones(3, 4, dtype=torch.bool), 0.95, form
    loss, grad = triton_kernel.patch_contrastive_error(*arguments, False)
    assert grad.numel() == 0
    assert torch.equal(loss, triton_kernel.patch_contrastive_error(*arguments, True)[0])


@pytest.mark.parametrize("power", [-6, 20, 36])
def test_lengths_whose_squares_are_no_numbers(power):
    """Cosines do not depend on lengths; squares of 1e20 overflow in float32, those of 1e-30 vanish."""
    inputs = to_dtype(token_inputs(1, 40, 24), torch.float32)
    long = inputs | {"tokens": inputs["tokens"] * 10.0**power}
    (loss,), grads = run(token_contrast, inputs, ("tokens",))
    (long_loss,), long_grads = run(token_contrast, long, ("tokens",))
    torch.testing.assert_close(long_loss, loss)
    torch.testing.assert_close(
        long_grads["tokens"].double() * 10.0**power, grads["tokens"].double(), rtol=1e-4, atol=1e-8
    )


def test_lengths_below_epsilon():
    """A length below 1e-8 counts as 1e-8, a constant: nothing is projected out of the gradient."""
    inputs = token_inputs(1, 40, 24, labels=torch.arange(40)[None] % 3)
    inputs["tokens"][:, ::3] *= 1e-10
    judge(token_contrast, PATCH_TOKEN_CONTRAST, to_dtype(inputs, torch.float32))
    inputs = error_inputs(1, 40)
    inputs["tokens"][:, ::3] *= 1e-10
    for form in ("linear", "log"):
        judge(contrastive_error, PATCH_CONTRASTIVE_ERROR, to_dtype(inputs, torch.float32) | {"form": form})


@pytest.fixture
def tf32():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def test_float32_is_exact():
    assert dot_precision() == "tf32x3"


@pytest.mark.usefixtures("tf32")
def test_tf32_where_torch_allows_it():
    """The interpreter multiplies in float32 whatever the precision: this sees that it is asked for, no more."""
    assert dot_precision() == "tf32"
    judge(token_contrast, PATCH_TOKEN_CONTRAST, to_dtype(token_inputs(), torch.float32))
