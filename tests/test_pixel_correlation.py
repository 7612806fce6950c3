"""What is particular to pixel_correlation; the rest is in test_contract.py."""

import pytest
import torch
from rooms import PIXEL_CORRELATION, correlation_inputs, needs_kernel

from toco_kernels import correlation_maps, pixel_correlation
from toco_kernels.pixel_correlation import reference
from toco_kernels.testing import to_dtype


def on(device, inputs, dtype=torch.float32):
    return {name: x.to(device, dtype) for name, x in inputs.items()}


def test_by_hand(device):
    """Two pixels of one direction, one across, one opposite: means over the first two, and over oneself."""
    features = torch.tensor([[1.0, 2, 0, -1], [0, 0, 3, 0]], dtype=torch.float64, device=device).view(1, 2, 2, 2)
    cams = torch.tensor([1.0, 3, 5, 7], dtype=torch.float64, device=device).view(1, 1, 2, 2)
    revised = pixel_correlation(features * 1e6, cams)
    assert revised.flatten().tolist() == pytest.approx([2.0, 2.0, 5.0, 7.0], rel=1e-4)


def test_signs_are_those_of_the_cosines(device):
    needs_kernel(PIXEL_CORRELATION, device)
    inputs = on(device, correlation_inputs(2, 16, (9, 15)))
    features, cams = (x.flatten(2) for x in inputs.values())
    _, _, signs = torch.ops.toco_kernels.pixel_correlation(features, cams, True)
    assert torch.equal(signs, reference.signs(features))


def test_nothing_is_kept_without_a_gradient(device):
    features, cams = (x.flatten(2) for x in on(device, correlation_inputs()).values())
    revised, *kept = torch.ops.toco_kernels.pixel_correlation(features, cams, False)
    assert [x.numel() for x in kept] == [0, 0]
    assert torch.equal(revised, torch.ops.toco_kernels.pixel_correlation(features, cams, True)[0])


def test_zero_features_give_zero(device):
    """A pixel similar to none, not to itself either."""
    inputs = on(device, correlation_inputs())
    inputs["features"][:, :, 2, 3] = 0
    assert (pixel_correlation(**inputs)[:, :, 2, 3] == 0).all()


def test_no_second_derivative(device):
    inputs = on(device, correlation_inputs())
    x = inputs["features"].requires_grad_()
    (grad,) = torch.autograd.grad(pixel_correlation(**inputs).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="pixel_correlation has no second derivative"):
        grad.square().sum().backward()


def test_no_forward_derivative(device):
    inputs = on(device, correlation_inputs())
    x = inputs.pop("features")
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(lambda x: pixel_correlation(x, **inputs), (x,), (x,))


def test_dtypes_that_differ_are_promoted(device):
    inputs = on(device, correlation_inputs())
    assert pixel_correlation(inputs["features"].bfloat16(), inputs["cams"]).dtype == torch.float32
    assert pixel_correlation(**to_dtype(inputs, torch.bfloat16)).dtype == torch.bfloat16


def test_correlation_maps(device):
    cams = torch.tensor([[[9.0, 9.0]], [[2.0, 1.0]], [[-1.0, 4.0]]], device=device)[None]  # (1, 3, 1, 2)
    maps = correlation_maps(cams)[0, :, 0]
    expected = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], device=device)
    torch.testing.assert_close(maps, expected, rtol=0, atol=2e-5)
    assert not correlation_maps(cams.requires_grad_()).requires_grad


def test_correlation_maps_of_nothing(device):
    """Where no class has a score, everything is background."""
    maps = correlation_maps(torch.zeros(2, 4, 3, 3, device=device))
    assert (maps[:, 0] == 1).all()
    assert (maps[:, 1:] == 0).all()


@pytest.mark.parametrize("cams", [torch.ones(2, 1, 3, 3), torch.ones(3, 3, 3)])
def test_bad_maps_are_named(cams):
    with pytest.raises(ValueError, match=r"^cams must .+, got .+"):
        correlation_maps(cams)
