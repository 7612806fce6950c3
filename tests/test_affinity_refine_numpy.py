"""The NumPy entry of affinity_refine."""

import inspect
import subprocess
import sys
import time
from threading import Thread

import numpy as np
import pytest
import torch
from rooms import refine_inputs

import toco_kernels
import toco_kernels.numpy
from toco_kernels import affinity_refine

KINDS = ["par", "pamr"]


def arrays(dtype=np.float32, **options):
    inputs = refine_inputs(2, 4, 21, 19, **options)
    image, masks = (inputs.pop(name).numpy().astype(dtype) for name in ("image", "masks"))
    return image, masks, inputs


def on_tensors(image, masks, **options):
    return affinity_refine(torch.from_numpy(image.copy()), torch.from_numpy(masks.copy()), **options).numpy()


@pytest.fixture(params=["compiled", "without its extension"])
def numpy(request, monkeypatch):
    if request.param == "without its extension":
        monkeypatch.setattr(toco_kernels.numpy, "_numpy", None)
    elif toco_kernels.numpy._numpy is None:
        pytest.skip("_numpy is not built")
    return toco_kernels.numpy


@pytest.mark.parametrize("threads", [1, 2, 50])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_numpy(numpy, kind, dtype, threads):
    """The bits of the torch operator, whatever the number of threads."""
    image, masks, options = arrays(dtype, kind=kind)
    refined = numpy.affinity_refine(image, masks, **options, threads=threads)
    assert refined.dtype == dtype
    np.testing.assert_array_equal(refined, on_tensors(image, masks, **options))


def test_numpy_inputs(numpy):
    """One image alone, any layout, read-only arrays, no images at all, and an image of another precision."""
    image, masks, options = arrays()
    refined = numpy.affinity_refine(image, masks, **options)
    np.testing.assert_array_equal(numpy.affinity_refine(image[1], masks[1], **options), refined[1])

    channels_last = np.ascontiguousarray(image.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    flipped = np.ascontiguousarray(masks[..., ::-1])[..., ::-1]
    for array in (channels_last, flipped):
        array.flags.writeable = False
        assert not array.flags.c_contiguous
    np.testing.assert_array_equal(numpy.affinity_refine(channels_last, flipped, **options), refined)

    assert numpy.affinity_refine(image[:0], masks[:0], **options).shape == (0, 4, 21, 19)
    np.testing.assert_array_equal(numpy.affinity_refine(image.astype(np.float64), masks, **options), refined)
    twice = numpy.affinity_refine(image, masks.astype(np.float64), **options)
    assert twice.dtype == np.float64
    np.testing.assert_allclose(twice, refined, rtol=1e-5)


def test_numpy_defaults():
    """They are written twice, since importing the operator's would import torch."""
    here, there = (
        {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}
        for function in (toco_kernels.numpy.affinity_refine, affinity_refine)
    )
    assert here.pop("threads") == 1
    assert here == {name: there[name] for name in here}


def test_numpy_never_imports_torch():
    program = """
import sys, numpy, toco_kernels.numpy as kernels
image = numpy.ones((3, 5, 5), numpy.float32)
if kernels._numpy is not None:
    kernels.affinity_refine(image, image)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.skipif(toco_kernels.numpy._numpy is None, reason="_numpy is not built")
def test_numpy_lets_other_threads_run():
    image = np.ones((3, 128, 128), np.float32)
    worker = Thread(target=toco_kernels.numpy.affinity_refine, args=(image, image), kwargs={"iterations": 2000})
    worker.start()
    moments = 0
    while worker.is_alive():
        moments += 1
        time.sleep(1e-3)
    assert moments > 5


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("image", [[[1.0]]]),
        ("image", np.ones((21, 19), np.float32)),
        ("image", np.ones((2, 3, 21, 19), np.uint8)),
        ("image", np.ones((2, 3, 21, 19), np.float16)),
        ("image", np.ones((2, 0, 21, 19), np.float32)),
        ("image", np.ones((2, 3, 0, 19), np.float32)),
        ("masks", torch.ones(2, 4, 21, 19)),
        ("masks", np.ones((4, 21, 19), np.float32)),
        ("masks", np.ones((2, 4, 21, 19), np.int64)),
        ("masks", np.ones((3, 4, 21, 19), np.float32)),
        ("masks", np.ones((2, 4, 21, 18), np.float32)),
        ("masks", np.ones((2, 4, 20, 19), np.float32)),
        ("dilations", []),
        ("dilations", [1, 0]),
        ("dilations", [1.5]),
        ("dilations", 3),
        ("iterations", -1),
        ("iterations", 1.5),
        ("kind", "crf"),
        ("threads", 0),
    ],
)
def test_numpy_bad_arguments_are_named(argument, value):
    image, masks, options = arrays()
    arguments = {"image": image, "masks": masks, **options, "threads": 1}
    toco_kernels.numpy.affinity_refine(**arguments)
    with pytest.raises((TypeError, ValueError), match=rf"^{argument} must .+, got .+"):
        toco_kernels.numpy.affinity_refine(**arguments | {argument: value})


def test_numpy_one_image_with_a_batch_of_masks():
    image, masks, options = arrays()
    with pytest.raises(ValueError, match=r"^masks must have 3 dimensions \(C, H, W\), got shape \(2, 4, 21, 19\)"):
        toco_kernels.numpy.affinity_refine(image[0], masks, **options)
