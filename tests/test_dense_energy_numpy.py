"""Dense CRFs on NumPy arrays."""

import subprocess
import sys
import time
from threading import Thread

import numpy as np
import pytest
import torch
from rooms import crf_inputs

import toco_kernels
import toco_kernels.numpy as dcrf
from toco_kernels import numpy_crf
from toco_kernels.numpy import DenseCRF2D, dense_crf, unary_from_labels, unary_from_softmax


def arrays(kernel="lattice", dtype=np.float32, **others):
    inputs = crf_inputs(kernel, **others)
    return {k: v.numpy().astype(dtype) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}


@pytest.fixture(params=["kernel", "reference"])
def either(request, monkeypatch):
    """With the extension, and as if the package had been installed without a compiler."""
    if request.param == "reference":
        monkeypatch.setattr(numpy_crf, "_numpy", None)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kernel", ["lattice", "exact"])
def test_same_as_torch(kernel, dtype, either):
    inputs = arrays(kernel, dtype)
    tensors = {k: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for k, v in inputs.items()}
    expected = toco_kernels.dense_crf(**tensors).numpy()
    for threads in (1, 2):
        actual = dense_crf(**inputs, threads=threads)
        assert actual.dtype == dtype
        np.testing.assert_allclose(actual, expected, atol=1e-5 if dtype == np.float32 else 1e-12)
    inputs |= {"image": inputs["image"][0], "probabilities": inputs["probabilities"][0]}
    np.testing.assert_allclose(dense_crf(**inputs), expected[0], atol=1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("kernel", ["lattice", "exact"])
def test_pydensecrf_interface(kernel, either):
    """The published use of it gives `dense_crf`."""
    inputs = arrays(kernel)
    image, probabilities = inputs["image"][0].round(), inputs["probabilities"][0]
    classes, height, width = probabilities.shape
    crf = DenseCRF2D(width, height, classes, kernel=kernel)
    crf.setUnaryEnergy(unary_from_softmax(probabilities))
    crf.addPairwiseGaussian(sxy=2, compat=3)
    crf.addPairwiseBilateral(sxy=(9, 9), srgb=13, rgbim=image.transpose(1, 2, 0).astype(np.uint8), compat=4)
    q = crf.inference(3)
    assert q.shape == (classes, height * width)
    assert q.dtype == np.float32
    inputs |= {"image": image, "probabilities": probabilities}
    np.testing.assert_allclose(q.reshape(classes, height, width), dense_crf(**inputs), atol=2e-5)


def test_scales_of_each_axis(either):
    """A scale that is infinite along y lets columns agree: each keeps its own class."""
    columns = np.linspace(0.2, 0.8, 7, dtype=np.float32) * np.ones((9, 1), np.float32)
    noisy = columns + np.random.default_rng(0).normal(0, 0.05, columns.shape).astype(np.float32)
    spread = {}
    for sxy in ((0.1, 1e6), (1e6, 0.1)):
        crf = DenseCRF2D(7, 9, 2, kernel="exact")
        crf.setUnaryEnergy(unary_from_softmax(np.stack([noisy, 1 - noisy])))
        crf.addPairwiseGaussian(sxy=sxy, compat=1.0)
        spread[sxy] = crf.inference(1)[0].reshape(9, 7)
    assert np.ptp(spread[0.1, 1e6], axis=1).min() > np.ptp(spread[1e6, 0.1], axis=1).max()


def test_constants(either):
    """`import toco_kernels.numpy as dcrf`, and calls as segmentation code writes them, give the defaults."""
    image, probabilities = arrays()["image"][0].round(), arrays()["probabilities"][0]
    image = np.ascontiguousarray(image.transpose(1, 2, 0).astype(np.uint8))
    found = []
    for options in ({"kernel": dcrf.DIAG_KERNEL, "normalization": dcrf.NORMALIZE_SYMMETRIC}, {}):
        crf = dcrf.DenseCRF2D(image.shape[1], image.shape[0], len(probabilities))
        crf.setUnaryEnergy(np.ascontiguousarray(dcrf.unary_from_softmax(probabilities)))
        crf.addPairwiseGaussian((3, 3), 3, **options)
        crf.addPairwiseBilateral(sxy=(50, 50), srgb=(5, 5, 5), rgbim=np.copy(image), compat=10, **options)
        found.append(np.array(crf.inference(niter=2)).reshape(probabilities.shape))
    assert np.array_equal(*found)
    assert [dcrf.CONST_KERNEL, dcrf.DIAG_KERNEL, dcrf.FULL_KERNEL] == [0, 1, 2]
    assert [dcrf.NO_NORMALIZATION, dcrf.NORMALIZE_BEFORE, dcrf.NORMALIZE_AFTER, dcrf.NORMALIZE_SYMMETRIC] == [
        0,
        1,
        2,
        3,
    ]


def test_unary_is_copied():
    """As pydensecrf does: what is done to the array afterwards changes nothing."""
    unary = unary_from_softmax(np.array([[0.2, 0.9], [0.8, 0.1]]))
    crf = DenseCRF2D(2, 1, 2)
    crf.setUnaryEnergy(unary)
    unary[:] = 0
    np.testing.assert_allclose(crf.inference(0), [[0.2, 0.9], [0.8, 0.1]], rtol=1e-6)


def test_other_threads_run():
    """The interpreter's lock is released."""
    if numpy_crf._numpy is None:
        pytest.skip("no NumPy kernels here")
    crf = DenseCRF2D(160, 120, 4)
    crf.setUnaryEnergy(np.zeros((4, 160 * 120), np.float32))
    crf.addPairwiseGaussian(3, 3)
    worker = Thread(target=crf.inference, args=(200,))
    worker.start()
    moments = 0
    while worker.is_alive():
        moments += 1
        time.sleep(1e-3)
    assert moments > 5


def test_inference_without_pairs_is_the_softmax():
    unary = unary_from_softmax(np.array([[0.2, 0.9], [0.8, 0.1]]))
    crf = DenseCRF2D(2, 1, 2)
    crf.setUnaryEnergy(unary)
    np.testing.assert_allclose(crf.inference(5), [[0.2, 0.9], [0.8, 0.1]], rtol=1e-6)


def test_unary_from_softmax():
    sm = np.array([[[1.0, 0.25]], [[0.0, 0.75]]])
    np.testing.assert_allclose(unary_from_softmax(sm), -np.log([[1.0, 0.25], [1e-5, 0.75]]), rtol=1e-6)
    np.testing.assert_allclose(unary_from_softmax(sm, scale=0.5), -np.log([[0.75, 0.375], [0.25, 0.625]]), rtol=1e-6)
    assert np.isinf(unary_from_softmax(sm, clip=None)).any()
    assert unary_from_softmax(sm).dtype == np.float32
    with pytest.raises(ValueError, match=r"^scale must be in \(0, 1\], got 0"):
        unary_from_softmax(sm, scale=0)


def test_unary_from_labels():
    labels = np.array([[0, 1], [2, 3]])
    sure, other, unsure = -np.log(0.7), -np.log(0.15), np.log(3)
    expected = [[unsure, sure, other, other], [unsure, other, sure, other], [unsure, other, other, sure]]
    np.testing.assert_allclose(unary_from_labels(labels, 3, 0.7), expected, rtol=1e-6)
    sure, other = -np.log(0.7), -np.log(0.1)
    energies = unary_from_labels(labels, 4, 0.7, zero_unsure=False)
    np.testing.assert_allclose(energies, np.where(np.eye(4), sure, other), rtol=1e-6)
    with pytest.raises(ValueError, match=r"^labels must be in 0..2, got 0..3"):
        unary_from_labels(labels, 3, 0.7, zero_unsure=False)
    with pytest.raises(ValueError, match=r"^gt_prob must be in \(0, 1\), got 1"):
        unary_from_labels(labels, 3, 1)


def bad_calls():
    unary, image = np.zeros((2, 12), np.float32), np.zeros((3, 4, 3), np.uint8)

    def crf():
        return DenseCRF2D(4, 3, 2)

    def ready():
        ready = crf()
        ready.setUnaryEnergy(unary)
        return ready

    return {
        "w": lambda: DenseCRF2D(0, 3, 2),
        "nlabels": lambda: DenseCRF2D(4, 3, 2.5),
        "kernel": lambda: DenseCRF2D(4, 3, 2, kernel="gauss"),
        "threads": lambda: DenseCRF2D(4, 3, 2, threads=0),
        "u": lambda: crf().setUnaryEnergy(unary[:, 1:]),
        "u ": lambda: crf().setUnaryEnergy(unary.astype(complex)),
        "sxy": lambda: crf().addPairwiseGaussian(0, 3),
        "compat": lambda: crf().addPairwiseGaussian(3, np.eye(2)),
        "normalization": lambda: crf().addPairwiseGaussian(3, 3, normalization=numpy_crf.NO_NORMALIZATION),
        "rgbim": lambda: crf().addPairwiseBilateral(3, 3, image[1:], 3),
        "rgbim ": lambda: crf().addPairwiseBilateral(3, 3, image.astype(str), 3),
        "niter": lambda: ready().inference(-1),
        "srgb": lambda: crf().addPairwiseBilateral(3, (1, 2), image, 3),
        "image": lambda: dense_crf(**arrays() | {"image": np.zeros((2, 3, 4, 4))}),
        "probabilities": lambda: dense_crf(**arrays() | {"probabilities": np.zeros((2, 3, 4, 4), int)}),
        "gaussian": lambda: dense_crf(**arrays() | {"gaussian": (3,)}),
        "bilateral": lambda: dense_crf(**arrays() | {"bilateral": (3, -1, 3)}),
        "iterations": lambda: dense_crf(**arrays() | {"iterations": 0.5}),
    }


@pytest.mark.parametrize("argument", bad_calls())
def test_bad_arguments_are_named(argument):
    with pytest.raises((TypeError, ValueError), match=rf"^{argument.strip()} must .+, got .+"):
        bad_calls()[argument]()


def test_inference_wants_a_unary():
    with pytest.raises(RuntimeError, match="call setUnaryEnergy before inference"):
        DenseCRF2D(4, 3, 2).inference(1)


def test_no_torch():
    """A worker that uses the CRF never imports torch."""
    if numpy_crf._numpy is None:
        pytest.skip("no NumPy kernels here")
    code = (
        "import sys, numpy as np; from toco_kernels.numpy import DenseCRF2D; crf = DenseCRF2D(3, 2, 2);"
        "crf.setUnaryEnergy(np.zeros((2, 6), np.float32)); crf.addPairwiseGaussian(3, 3); crf.inference(2);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
