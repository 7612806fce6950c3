"""The launchers of the exact dense energy, on tensors of the CPU. tests/test_dense_energy_triton.py starts this."""

import functools

import pytest
import torch
from rooms import DENSE_ENERGY, crf_inputs, energy_inputs, filter_inputs, logit_inputs
from torch.overrides import TorchFunctionMode

from toco_kernels._library import OPERATORS
from toco_kernels.dense_energy import triton_kernel
from toco_kernels.testing import assert_matches_reference, assert_within_budget, run, to_dtype

NAMES = "exact_energy", "exact_energy_from_logits", "exact_filter", "exact_crf"
ROOMS = {room.name: room for room in DENSE_ENERGY if room.name in NAMES}
CASES = {
    "exact_energy": {
        "81 classes": lambda: energy_inputs("exact", 1, 81, 6, 9),
        "two parts": lambda: energy_inputs("exact", 1, 2, 32, 60),
    },
    "exact_energy_from_logits": {
        "nine times as large": lambda: logit_inputs("exact", 1, 3, 2, 3, scale_factor=9.0, boxes=None),
        "an eighth": lambda: logit_inputs("exact", 1, 3, 16, 70, scale_factor=0.125, boxes=None),
    },
    "exact_filter": {"magnitudes": lambda: magnitudes(filter_inputs("exact", 2, 4))},
    "exact_crf": {},
}
SMALL = {
    "exact_energy": lambda: energy_inputs("exact", 2, 3, 7, 11),
    "exact_energy_from_logits": lambda: logit_inputs("exact", 2, 3, 9, 14),
    "exact_filter": lambda: filter_inputs("exact", 2, 3, 7, 11),
    "exact_crf": lambda: crf_inputs("exact", 2, 3, 7, 11, iterations=1),
}
EDGES = {  # of those in tests/rooms: what the kernels could treat differently, and is small
    "exact_energy": "one pixel, one class, many classes, empty roi, no class is likely, colours do not matter, "
    "nothing matters, small sigmas, many images, empty batch",
    "exact_energy_from_logits": "one pixel, one pixel left, one class, many classes, a third, empty box, empty batch",
    "exact_filter": "one pixel, one value, whole vectors, positions do not matter, empty batch",
    "exact_crf": "one pixel, many classes, no iterations, empty batch",
}
for name, room in ROOMS.items():
    CASES[name] |= {"sample": room.sample}
    CASES[name] |= {edge: room.edges[edge] for edge in EDGES[name].split(", ")}


class Interpreted(TorchFunctionMode):
    """Operators of the exact kernel are what a GPU would launch."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        for name in NAMES:
            if func is OPERATORS[name].overload:
                func = getattr(triton_kernel, name)
        return func(*args, **kwargs or {})


def interpreted(function):
    @functools.wraps(function)
    def launched(**inputs):
        with Interpreted():
            return function(**inputs)

    return launched


def judge(room, inputs):
    assert_matches_reference(interpreted(room.function), room.reference, inputs, differentiable=room.differentiable)


def magnitudes(inputs):
    """Channels that float16 could not hold together, nor alone."""
    return inputs | {"values": inputs["values"] * torch.tensor([1e-12, 1.0, 1e9, 1e30])[:, None, None].double()}


@pytest.mark.parametrize(("name", "case"), [(name, case) for name in NAMES for case in CASES[name]])
def test_float32(name, case):
    judge(ROOMS[name], to_dtype(CASES[name][case](), torch.float32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["exact_energy", "exact_energy_from_logits"])
def test_half_precision(name, dtype):
    """Of the maps, as they arrive: the others are float32 before they come here."""
    judge(ROOMS[name], to_dtype(SMALL[name](), dtype))


def test_every_channel_keeps_its_digits():
    inputs = to_dtype(magnitudes(filter_inputs("exact", 2, 4)), torch.float32)
    actual = interpreted(ROOMS["exact_filter"].function)(**inputs)
    eager, exact = (
        ROOMS["exact_filter"].reference(**to_dtype(inputs, dtype)) for dtype in (torch.float32, torch.float64)
    )
    for k in range(4):
        assert_within_budget(actual[:, k], eager=eager[:, k], exact=exact[:, k], what=f"channel {k}")


def lay_out(tensor):
    """The same values with every stride unusual, amid NaN."""
    if not isinstance(tensor, torch.Tensor):
        return tensor
    larger = torch.full([2 * n + 2 for n in tensor.shape[::-1]], float("nan") if tensor.is_floating_point() else 3)
    view = larger.to(tensor)[tuple(slice(1, -1, 2) for _ in tensor.shape)].permute(*reversed(range(tensor.ndim)))
    return view.copy_(tensor)


@pytest.mark.parametrize("name", NAMES)
def test_layouts_and_neighbouring_memory(name):
    """The operators themselves, which may be called with strides that public functions do not produce."""
    ((_, arguments),) = ROOMS[name].operators(to_dtype(SMALL[name](), torch.float32))
    launcher = getattr(triton_kernel, name)
    for actual, expected in zip(launcher(*map(lay_out, arguments)), launcher(*arguments), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", NAMES)
def test_nan_in_nan_out(name):
    for argument, value in SMALL[name]().items():
        if not isinstance(value, torch.Tensor) or not value.is_floating_point():
            continue
        inputs = to_dtype(SMALL[name](), torch.float32)
        inputs[argument].view(-1)[0] = float("nan")
        outputs, grads = run(interpreted(ROOMS[name].function), inputs, ROOMS[name].differentiable)
        assert outputs[0].isnan().any(), f"a NaN in {argument} vanished"
        assert all(grad.isnan().any() for grad in grads.values()), f"a NaN in {argument} left no trace in gradients"


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), 3e38])
def test_values_beyond_float16(bad):
    """Not a number or infinite exactly in channels where the reference is."""
    inputs = to_dtype(SMALL["exact_filter"](), torch.float32)
    inputs["values"][0, 0, 3, 4] = bad
    actual = interpreted(ROOMS["exact_filter"].function)(**inputs)
    assert torch.equal(actual.isfinite(), ROOMS["exact_filter"].reference(**inputs).isfinite())


@pytest.mark.parametrize("name", ["exact_energy", "exact_energy_from_logits"])
def test_without_gradient(name):
    ((_, arguments),) = ROOMS[name].operators(to_dtype(SMALL[name](), torch.float32))
    launcher = getattr(triton_kernel, name)
    loss, grad = launcher(*arguments[:-1], False)
    assert grad.numel() == 0
    assert torch.equal(loss, launcher(*arguments)[0])


def test_sums_in_parts(monkeypatch):
    """More parts than a small image gets, the last one shorter than the others."""
    monkeypatch.setattr(triton_kernel, "PART", 100)
    judge(ROOMS["exact_filter"], to_dtype(filter_inputs("exact", 1, 3, 14, 20), torch.float32))


@pytest.fixture
def tf32():
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.usefixtures("tf32")
def test_tf32_where_torch_allows_it():
    """The large parts of affinities and values alone: as many digits as TF32 has."""
    inputs = to_dtype(SMALL["exact_filter"](), torch.float32)
    actual = interpreted(ROOMS["exact_filter"].function)(**inputs)
    expected = ROOMS["exact_filter"].reference(**to_dtype(inputs, torch.float64))
    error = ((actual - expected).abs().max() / expected.abs().max()).item()
    assert 1e-6 < error < 1e-3
