"""The launchers of pair_contrast, on tensors of the CPU. tests/test_pair_contrast_triton.py starts this."""

import pytest
import torch
from rooms import AFFINITY_LOSS, CONTRAST, affinity_inputs, pair_inputs

from toco_kernels._library import _Loss, _LossOfTwo
from toco_kernels.pair_contrast import triton_kernel
from toco_kernels.testing import assert_matches_reference, run, to_dtype

AFFINITIES = ("unit vectors", "centred products", "labels are the image", "one image ignored", "no channels, centred")
AFFINITIES += ("zero vectors", "NaN in ignored tokens", "empty batch")
PAIRS = ("affinities of cosines", "products, InfoNCE", "text prototypes", "no pair alike, cosines", "large labels")
PAIRS += ("all of y ignored", "rising scores", "scores beyond float32's exp", "no channels", "no y", "zero vectors")
PAIRS += ("zero vectors, InfoNCE", "NaN in ignored tokens", "several blocks of cosines")
HALF = ("sample", "centred products", "affinities of cosines")


def each(room, names):
    """Cases in float32, and some in float16."""
    cases = [(name, torch.float32) for name in ("sample", *names)]
    cases += [(name, torch.float16) for name in HALF if name in ("sample", *names)]
    return [pytest.param(room.edges.get(name, room.sample), dtype, id=f"{name}-{dtype}") for name, dtype in cases]


def affinity(features, labels, radius=None, scale=1.0, normalize=False, center=False, ignore_index=255):
    grid_width = features.shape[3] if features.ndim == 4 else labels.shape[-1]
    tokens = features.flatten(2).mT if features.ndim == 4 else features
    where = (0, -1) if radius is None else (grid_width, radius)
    labels = labels.flatten(1)
    return _Loss.apply(triton_kernel.affinity_loss, tokens, labels, *where, scale, normalize, center, ignore_index)


def contrast(x, y, labels_x, labels_y, form, temperature=1.0, normalize=True, ignore_index=255):
    if y.ndim == 2:
        x, labels_x, y, labels_y = x.flatten(0, -2)[None], labels_x.flatten()[None], y[None], labels_y[None]
    options = labels_x, labels_y, form, 1 / temperature, normalize, ignore_index
    return _LossOfTwo.apply(triton_kernel.contrast, (True, True), x, y, *options)


@pytest.mark.parametrize(("make", "dtype"), each(AFFINITY_LOSS, AFFINITIES))
def test_affinity_loss(make, dtype):
    inputs = to_dtype(make(), dtype)
    assert_matches_reference(affinity, AFFINITY_LOSS.reference, inputs, differentiable=("features",))


@pytest.mark.parametrize(("make", "dtype"), each(CONTRAST, PAIRS))
def test_contrast(make, dtype):
    inputs = to_dtype(make(), dtype)
    assert_matches_reference(contrast, CONTRAST.reference, inputs, differentiable=("x", "y"))


def test_layouts_and_neighbouring_memory():
    """Tokens with every stride unusual, amid NaN, give the same bits."""
    inputs = to_dtype(pair_inputs(), torch.float32)
    expected = run(contrast, inputs, ("x", "y"))
    laid_out = {}
    for name in ("x", "y"):
        x = inputs[name]
        larger = torch.full([2 * n + 2 for n in x.shape[::-1]], float("nan"))
        laid_out[name] = larger[tuple(slice(1, -1, 2) for _ in x.shape)].permute(2, 1, 0).copy_(x)
    actual = run(contrast, inputs | laid_out, ("x", "y"))
    assert torch.equal(actual[0][0], expected[0][0])
    for name in ("x", "y"):
        assert torch.equal(actual[1][name], expected[1][name])


def test_nan_in_nan_out():
    inputs = to_dtype(affinity_inputs(), torch.float32)
    inputs["features"][0, 3, 0, 0] = float("nan")
    (loss,), grads = run(affinity, inputs, ("features",))
    assert loss.isnan()
    assert grads["features"].isnan().any()
    inputs = to_dtype(pair_inputs(), torch.float32)
    inputs["y"][0, 0, 3] = float("nan")
    (loss,), grads = run(contrast, inputs, ("x", "y"))
    assert loss.isnan()
    assert all(grad.isnan().any() for grad in grads.values())


@pytest.mark.parametrize("form", ["abs_cos", "sigmoid", "info_nce"])
def test_gradients_that_nobody_wants(form):
    inputs = to_dtype(pair_inputs(form=form, temperature=1.0), torch.float32)
    tokens = [inputs[name] for name in ("x", "y", "labels_x", "labels_y")]
    both = triton_kernel.contrast(*tokens, form, 1.0, True, 255, True, True)
    for wanted in ((True, False), (False, True), (False, False)):
        loss, *grads = triton_kernel.contrast(*tokens, form, 1.0, True, 255, *wanted)
        assert torch.equal(loss, both[0])
        for grad, want, full in zip(grads, wanted, both[1:], strict=True):
            assert torch.equal(grad, full) if want else grad.numel() == 0
