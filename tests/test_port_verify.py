"""First calls of replaced functions: what is compared, what is restored, what becomes of failures."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from toco_kernels.port.registry import Approximate, Exact, Stochastic
from toco_kernels.port.verify import OriginalRaises, verify

EXACT, CLOSE = Exact(), Approximate(1e-5)


def double(x):
    return x * 2


def tensor(*shape):
    return torch.randn(*shape, requires_grad=True)


def judged(original, ours, *args, guarantee=EXACT, **kwargs):
    return verify(original, ours, args, kwargs, guarantee)


def test_equal_is_verified_and_measured():
    verdict = judged(double, lambda x: x + x, tensor(4, 3))
    assert (verdict.ours, verdict.state, verdict.detail) == (True, "verified", "")
    for cost in (verdict.before, verdict.after):
        assert cost.ms > 0
        assert cost.mb is None or cost.mb >= 0


@pytest.mark.parametrize(
    ("ours", "guarantee", "problem"),
    [
        (lambda x: x * 2 + 1e-3, EXACT, "12 of 12 values differ"),
        (lambda x: x * (2 + 1e-3), CLOSE, "the bound is 1e-05 of it"),
        (lambda x: x.detach() * 2, EXACT, "gradients: only one of the two has them"),
        (lambda x: x * 2 + (x - x.detach()), CLOSE, "gradient 0: "),
        (lambda x: x.flatten() * 2, EXACT, "the original has shape torch.Size([4, 3])"),
        (lambda x: x.double() * 2, EXACT, "the original has dtype torch.float32"),
        (lambda x: (x * 2, x), EXACT, "ours a tuple of 2"),
        (lambda x: (x * 2).masked_fill(x == x.max(), torch.nan), CLOSE, "not finite where"),
        (lambda x: x.mul_(2), EXACT, "the original writes to 0 of its inputs, ours to 1"),
        (lambda x: torch.rand(1) * 0 + x * 2, EXACT, "generators of random numbers"),
        (lambda x: x * 2 + np.random.rand() * 0, CLOSE, "generators of random numbers"),
        (lambda x: x * 2 + random.random() * 0, CLOSE, "generators of random numbers"),
        (lambda x: x.reshape(7), EXACT, "ours raises RuntimeError"),
    ],
)
def test_what_differs(ours, guarantee, problem):
    verdict = judged(double, ours, tensor(4, 3), guarantee=guarantee)
    assert (verdict.ours, verdict.state) == (False, "differs")
    assert problem in verdict.detail


def test_what_a_guarantee_allows():
    x = tensor(4, 3)
    assert judged(double, lambda x: x * (2 + 1e-6), x, guarantee=CLOSE).ours
    assert judged(double, lambda x: torch.rand_like(x) * x, x, guarantee=Stochastic()).ours
    assert not judged(double, lambda x: torch.full_like(x, torch.nan) * x, x, guarantee=Stochastic()).ours
    half = x.detach().to(torch.bfloat16)
    assert judged(double, lambda x: x * 2.02, half, guarantee=CLOSE).ours, "half precision has its own rounding"
    labels = torch.zeros(100)
    few = Approximate(labels=0.05)
    assert judged(torch.clone, lambda x: x.index_fill(0, torch.arange(5), 7), labels, guarantee=few).ours
    assert not judged(torch.clone, lambda x: x.index_fill(0, torch.arange(6), 7), labels, guarantee=few).ours


def test_nan_equals_nan():
    x = torch.tensor([1.0, torch.nan, torch.inf])
    assert judged(double, lambda x: x + x, x).ours
    assert judged(double, lambda x: x + x, x, guarantee=CLOSE).ours


def test_the_callers_things_stay():
    """Inputs, generators, buffers and gradients are afterwards what they were."""
    network = nn.BatchNorm1d(3)
    network.extra = nn.Buffer(torch.ones(2))
    x, array = tensor(4, 3), torch.zeros(2)
    generator = torch.Generator().manual_seed(5)

    def careless(network, x, array, generator):
        array += 1
        network.extra = torch.zeros(2)
        return network(x) + torch.rand(1) + torch.rand(1, generator=generator) + np.random.rand() + random.random()

    before = {name: value.clone() for name, value in network.state_dict().items()}
    extra, kept = network.extra, x.detach().clone()
    states = torch.get_rng_state(), np.random.get_state()[1], random.getstate(), generator.get_state()
    assert judged(careless, careless, network, x, array, generator).ours
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])
    assert states[2] == random.getstate()
    assert torch.equal(states[3], generator.get_state())
    assert network.extra is extra
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(x, kept)
    assert x.grad is None
    assert network.weight.grad is None
    assert not array.any()


def test_inputs_may_be_written_to():
    """In place, also where they require a gradient and are no leaves; one tensor given twice stays one."""

    def in_place(x, same):
        same.mul_(2)
        return x + 1

    x = tensor(3) * 1
    assert judged(in_place, lambda x, same: x.mul_(2) + 1, x, x).ours
    assert not judged(in_place, lambda x, same: x * 2 + 1, x, x).ours


class Memory:
    """An original that has room for some images only."""

    def __init__(self, images, error):
        self.images, self.error, self.seen = images, error, []

    def __call__(self, x, boxes, scale):
        self.seen.append((len(x), len(boxes)))
        if len(x) > self.images:
            raise self.error
        return x * scale


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("not enough memory: you tried"), MemoryError()]
)
def test_out_of_memory(error):
    boxes = [[0, 1, 0, 1]] * 8
    original = Memory(3, error)
    verdict = judged(original, lambda x, boxes, scale: scale * x, torch.ones(8, 2), boxes, 3.0)
    assert (verdict.ours, verdict.state) == (True, "verified")
    assert verdict.detail == "on 2 of 8 images, for the memory that comparing takes"
    assert list(dict.fromkeys(original.seen)) == [(8, 8), (4, 4), (2, 2)]
    verdict = judged(Memory(0, error), lambda x, boxes, scale: scale * x, torch.ones(8, 2), boxes, 3.0)
    assert (verdict.ours, verdict.state) == (True, "original out of memory")


def test_out_of_memory_of_ours():
    """Beside what the original has left; where ours alone is short of it, the original stays."""
    x, boxes = torch.ones(8, 2), [[0, 1, 0, 1]] * 8
    ours = Memory(4, MemoryError())
    verdict = judged(Memory(8, None), ours, x, boxes, 3.0)
    assert (verdict.ours, verdict.state) == (True, "verified")
    assert verdict.detail.startswith("on 4 of 8 images")
    verdict = judged(Memory(8, None), Memory(0, MemoryError("none")), x, boxes, 3.0)
    assert (verdict.ours, verdict.detail) == (False, "ours raises MemoryError: none")


def test_an_original_that_cannot_run():
    def raising(error):
        def original(x):
            raise error

        return original

    x = torch.ones(2)
    for error in (ModuleNotFoundError("No module named 'bilateralfilter'"), NameError("bilateralfilter_batch")):
        verdict = judged(raising(error), double, x)
        assert (verdict.ours, verdict.state) == (True, "original not importable")
        assert verdict.detail == str(error)
    if not torch.cuda.is_available():
        verdict = judged(raising(AssertionError("Torch not compiled with CUDA enabled")), double, x)
        assert (verdict.ours, verdict.state) == (True, "original needs CUDA")
    with pytest.raises(OriginalRaises):
        judged(raising(ValueError("bad label")), double, x)


def test_arrays_are_copied_and_inference_is_no_obstacle():
    array = np.zeros(2)

    def original(x, array):
        array += 1
        return x * float(array[0])

    with torch.inference_mode():
        assert judged(original, lambda x, array: x * (array[0] + 1), tensor(3), array).ours
    assert not array.any()


def test_a_parallel_model_is_compared_alone():
    """Its inner module: the parallel one might wait for ranks that do not compare just now."""
    seen = []

    def original(model, x):
        seen.append(type(model))
        return model(x)

    assert judged(original, original, nn.DataParallel(nn.Linear(2, 2)), torch.ones(3, 2)).ours
    assert set(seen) == {nn.Linear}
