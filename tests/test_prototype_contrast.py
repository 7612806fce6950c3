"""What is particular to prototype_contrast; the rest is in test_contract.py."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rooms import (
    PROTOTYPE_CONTRAST,
    contrast_inputs,
    needs_kernel,
    prototype_inputs,
    step_inputs,
)

from toco_kernels import (
    PixelPrototypeContrastLoss,
    PrototypeContrastLoss,
    compat,
    estimate_prototypes,
    pixel_prototype_contrast,
    prototype_contrast,
)
from toco_kernels.prototype_contrast import reference
from toco_kernels.prototype_contrast.step import _Terms, _terms, contrast_where_drawn
from toco_kernels.testing import assert_within_budget, reference_only, to_dtype

GOLDEN = Path(__file__).parent / "golden" / "pixel_prototype_contrast.npz"


@pytest.fixture
def golden(device):
    """What the authors' code returns, for 64 seeds of its random numbers."""
    return {name: torch.from_numpy(array).to(device) for name, array in np.load(GOLDEN).items()}


def assert_same_distribution(values, expected):
    """Means that differ by less than four standard errors, and deviations by less than a half."""
    values, expected = (x.flatten().double().cpu() for x in (values, expected))
    error = (values.var() / len(values) + expected.var() / len(expected)).sqrt()
    assert abs(values.mean() - expected.mean()) < 4 * error
    assert 0.5 < values.std() / expected.std() < 2


@pytest.mark.parametrize("fallback", [False, True], ids=["kernel", "reference"])
def test_golden(golden, fallback):
    """`torch.topk` chooses among equal background scores; the golden arrays come from the one on the CPU."""
    if golden["cam"].is_cuda:
        pytest.skip("another torch.topk")
    inputs = [golden[name] for name in ("cam", "other_cam", "features", "other_features", "image_labels")]
    with reference_only() if fallback else torch.no_grad():
        values = [compat.get_contrast_loss(*inputs, gamma=0.1, bg_thres=0.1) for _ in range(24 if fallback else 64)]
    assert values[0].dtype == torch.float64
    assert_same_distribution(torch.stack(values), golden["parts_over_64_seeds"])


def test_public_step_is_the_golden_one_but_for_ties(golden):
    """The background's prototype comes from other pixels, which is seen in the fourth digit."""
    cams = golden["cam"].roll(1, dims=1), golden["other_cam"].roll(1, dims=1)
    inputs = *cams, golden["features"], golden["other_features"], golden["image_labels"]
    values = [pixel_prototype_contrast(*inputs, background_score=0.1, k=16)["loss"] for _ in range(16)]
    assert torch.stack(values).mean().item() == pytest.approx(golden["parts_over_64_seeds"].mean().item(), rel=1e-3)


def test_loss_by_hand(device):
    features = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64, device=device).T.reshape(1, 2, 1, 2)
    prototypes = torch.eye(2, dtype=torch.float64, device=device)
    labels = torch.tensor([[[0, 1]]], device=device)
    loss = prototype_contrast(features, labels, prototypes, temperature=0.5)
    expected = [math.log(1 + math.exp((0.8 - 0.6) / 0.5)), math.log(1 + math.exp((0 - 1) / 0.5))]
    assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-14)


def test_prototype_by_hand(device):
    features = torch.tensor([[1.0, 0.0], [0.0, 1.0], [5.0, 5.0]], device=device).T.reshape(1, 2, 1, 3)
    cams = torch.tensor([[3.0, 1.0, 0.5], [0.0, 2.0, 0.0]], device=device).reshape(1, 2, 1, 3)
    expected = F.normalize(torch.tensor([[3.0, 1.0], [0.0, 2.0]], device=device), dim=1)
    torch.testing.assert_close(estimate_prototypes(features, cams, 2), expected)


def test_prototypes_have_length_one_or_zero(device):
    inputs = to_dtype(prototype_inputs(image_labels=torch.eye(3, 4)), torch.float32)
    inputs = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
    lengths = estimate_prototypes(**inputs).norm(dim=1)
    torch.testing.assert_close(lengths, torch.tensor([1.0, 1, 1, 1, 0], device=device))


def test_ties_go_to_the_lowest_pixel(device):
    """Also to that of the lowest image: three images of one constant channel, of which only the first pixels count."""
    features = torch.randn(3, 8, 2, 2, dtype=torch.float64, device=device)
    cams = torch.full((3, 1, 2, 2), 0.2, dtype=torch.float64, device=device)
    expected = F.normalize(features[:2].flatten(2).mT.flatten(0, 1)[:6].mean(dim=0, keepdim=True), dim=1)
    torch.testing.assert_close(estimate_prototypes(features, cams, 6), expected)


def test_a_pixel_of_zeros_has_no_gradient(device):
    inputs = to_dtype(contrast_inputs(ignored=0.0), torch.float32)
    inputs = {name: x.to(device) for name, x in inputs.items()}
    features = inputs["features"].clone()
    features[:, :, 2, 3] = 0
    features.requires_grad_()
    prototype_contrast(**inputs | {"features": features}).backward()
    assert (features.grad[:, :, 2, 3] == 0).all()
    assert (features.grad[:, :, 2, 4] != 0).any()


@pytest.mark.parametrize("power", [-60, 60])
def test_lengths_far_from_one(power, device):
    """Squares of such float32 numbers are no numbers; cosines do not depend on lengths, which are powers of two."""
    needs_kernel(PROTOTYPE_CONTRAST, device)
    inputs = {name: x.to(device) for name, x in to_dtype(contrast_inputs(), torch.float32).items()}
    # 2^-60 is above 1e-12 in squares only in double, and below in length: only the long ones keep their directions
    scale = 2.0 ** (power if power > 0 else power / 2)

    def value_and_grad(function, features, **others):
        features = features.clone().requires_grad_()
        loss = function(features, **others)
        return loss.detach(), torch.autograd.grad(loss, features)[0]

    features = inputs.pop("features")
    loss, grad = value_and_grad(prototype_contrast, features * scale, **inputs)
    eager_loss, eager_grad = value_and_grad(PROTOTYPE_CONTRAST.reference, features, **inputs)
    exact_loss, exact_grad = value_and_grad(
        PROTOTYPE_CONTRAST.reference, features.double(), **to_dtype(inputs, torch.float64)
    )
    assert_within_budget(loss, exact=exact_loss, eager=eager_loss)
    assert_within_budget(grad * scale, exact=exact_grad, eager=eager_grad, what="grad_features")


def test_labels_out_of_range(device):
    """NaN, and no access out of bounds."""
    needs_kernel(PROTOTYPE_CONTRAST, device)
    inputs = {name: x.to(device) for name, x in to_dtype(contrast_inputs(), torch.float32).items()}
    for label in (5, -1, 2**40, -(2**40)):
        labels = inputs["labels"].clone()
        labels[1, 2, 3] = label
        assert prototype_contrast(**inputs | {"labels": labels}).isnan()


def step_arguments(device, dtype=torch.float32, **sizes):
    inputs = to_dtype(step_inputs(**sizes), dtype)
    return {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}


def test_the_same_seed_gives_the_same_step(device):
    inputs = step_arguments(device)
    del inputs["draws"]
    losses = [
        pixel_prototype_contrast(**inputs, generator=torch.Generator(device).manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert torch.equal(losses[0]["loss"], losses[1]["loss"])
    assert not torch.equal(losses[0]["intra"], losses[2]["intra"])
    for name in ("cross_prototype", "cross_cam"):  # nothing random in these
        assert torch.equal(losses[0][name], losses[2][name])


def test_every_term_has_its_own_gradient(device):
    """So that they can be weighed again, or left out."""
    inputs = step_arguments(device, torch.float64)
    leaves = [inputs[name].requires_grad_() for name in ("features", "other_features")]
    terms = contrast_where_drawn(**inputs)
    grads = {name: torch.autograd.grad(term, leaves, retain_graph=True) for name, term in terms.items()}
    total = grads.pop("loss")
    for view in (0, 1):
        torch.testing.assert_close(sum(grad[view] for grad in grads.values()), total[view])
        assert all(grad[view].abs().max() > 0 for grad in grads.values())


def test_step_gradient_is_the_derivative_where_prototypes_are_constants(device):
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(2, 3, 9, generator=generator, dtype=torch.float64).to(device) for _ in range(2)]
    prototypes = F.normalize(torch.randn(2, 5, 3, generator=generator, dtype=torch.float64), dim=2).to(device)
    labels = torch.randint(5, (2, 2, 9), generator=generator).to(device)
    draws = torch.rand(2, 2, 9, generator=generator, dtype=torch.float64).to(device)
    leaves = [x.requires_grad_() for x in features]
    assert torch.autograd.gradcheck(lambda x, y: _Terms.apply(x, y, *prototypes, *labels, draws, 0.5), leaves)


def test_step_has_no_second_derivative(device):
    inputs = step_arguments(device)
    x = inputs["features"].requires_grad_()
    (grad,) = torch.autograd.grad(contrast_where_drawn(**inputs)["loss"], x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.square().sum().backward()


@pytest.mark.parametrize("name", ["cams", "other_cams"])
def test_nan_in_an_object_map_reaches_the_loss(name, device):
    inputs = step_arguments(device)
    inputs[name][0, 1, 0, 0] = float("nan")
    assert contrast_where_drawn(**inputs)["loss"].isnan()


def test_nan_in_some_pixels_leaves_the_others_their_ranks(device):
    """NaN is the largest similarity, as in a sort of PyTorch's; without an order, sorting would leave its memory."""
    needs_kernel(PROTOTYPE_CONTRAST, device)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 2, 6, 400, generator=generator)
    x[torch.rand(2, 400, generator=generator)[:, None].expand_as(x) < 0.3] = torch.nan
    prototypes = F.normalize(torch.randn(2, 5, 6, generator=generator), dim=2)
    labels, draws = torch.randint(5, (2, 2, 400), generator=generator), torch.rand(2, 2, 400, generator=generator)
    arguments = [t.to(device) for t in (x, y, *labels, *prototypes, draws)]
    actual, expected = (f(*arguments, 0.1) for f in (torch.ops.toco_kernels.pixel_prototype_contrast, _terms))
    assert actual[0].isnan().all()
    torch.testing.assert_close(actual[1][1], expected[1][1])
    known = ~x[:, 0].isnan()[None, :, None].expand(3, -1, 5, -1)
    torch.testing.assert_close(actual[1][0][known.to(device)], expected[1][0][known.to(device)])


def test_semi_hard_ranks():
    """Of 21 prototypes those of rank 4 to 13, as published."""
    assert reference.semi_hard_ranks(21) == (3, 13)
    assert reference.semi_hard_ranks(81) == (12, 49)
    assert reference.semi_hard_ranks(1) == (0, 1)


def test_hard_pixels_by_hand():
    """Ten pixels of a class: five drawn, and those of rank 2 to 6 of the least similar; a lone pixel adds nothing."""
    similarity = torch.arange(10.0, dtype=torch.float64)
    scores = torch.stack([similarity / 10, torch.full((10,), 0.3, dtype=torch.float64)], dim=1)
    scores = torch.cat([scores, torch.ones(1, 2, dtype=torch.float64)])
    labels = torch.tensor([0] * 10 + [1])
    draws = torch.tensor([9, 0, 8, 1, 7, 2, 6, 3, 5, 4, 0.5], dtype=torch.float64)
    losses = torch.log1p(torch.exp(scores.amax(dim=1) - scores[:, 0]))  # of two, only the most similar is semi-hard
    chosen = [1, 3, 5, 7, 9, 1, 2, 3, 4, 5]
    expected = losses[chosen].mean() / 2
    assert reference.semi_hard_ranks(2) == (0, 1)
    torch.testing.assert_close(reference.mined_contrast(scores, labels, draws), expected)


def test_modules(device):
    inputs = {name: x.to(device) for name, x in to_dtype(contrast_inputs(), torch.float32).items()}
    inputs["labels"][inputs["labels"] == 255] = 7
    module = PrototypeContrastLoss(temperature=0.2, ignore_index=7)
    assert torch.equal(module(**inputs), prototype_contrast(**inputs, temperature=0.2, ignore_index=7))
    assert "temperature=0.2" in repr(module)
    inputs = step_arguments(device)
    del inputs["draws"], inputs["k"], inputs["background_score"]
    step = PixelPrototypeContrastLoss(0.2, 6, generator=torch.Generator(device).manual_seed(3))
    expected = pixel_prototype_contrast(
        **inputs, background_score=0.2, k=6, generator=torch.Generator(device).manual_seed(3)
    )
    assert torch.equal(step(**inputs)["loss"], expected["loss"])
    assert "k=6" in repr(step)
    with pytest.raises(ValueError, match="temperature must be positive"):
        PrototypeContrastLoss(temperature=0)


@pytest.mark.parametrize("generator", [7, "seed"])
def test_bad_generators_are_named(generator, device):
    inputs = step_arguments(device)
    del inputs["draws"]
    with pytest.raises(TypeError, match=r"^generator must be None or a torch.Generator, got"):
        pixel_prototype_contrast(**inputs, generator=generator)


def test_any_dtype_of_cams(device):
    """Prototypes of half-precision features with CAMs in float32, as under autocast, and the reverse."""
    inputs = {name: x.to(device) if isinstance(x, torch.Tensor) else x for name, x in prototype_inputs().items()}
    exact = estimate_prototypes(**inputs)
    for dtypes in ((torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)):
        features, cams = (inputs[name].to(dtype) for name, dtype in zip(("features", "cams"), dtypes, strict=True))
        torch.testing.assert_close(estimate_prototypes(features, cams, inputs["k"]), exact.float(), rtol=0, atol=1e-2)
