"""What every room owes, written once (CONTRIBUTING.md). A room is described in tests/rooms.

More of it: what losses owe their second backward, in test_contract_losses.py; streams, graphs and memory of a GPU, in
test_contract_gpu.py.
"""

import os

import pytest
import torch
from rooms import ROOMS, needs_kernel
from synchronisations import Synchronisations
from torch import Tensor

import toco_kernels
from toco_kernels._library import NOT_LOADED, OPERATORS
from toco_kernels.testing import (
    assert_labels_match,
    assert_matches_reference,
    change_tensors,
    reference_only,
    run,
    to_dtype,
)

UNOPTIMISED = "TOCO_UNOPTIMISED" in os.environ  # tests/sanitized.py: sums have another order, and memory is judged
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
EDGES = [pytest.param(room, edge, id=f"{room}-{edge}") for room in ROOMS for edge in room.edges]
BAD = [pytest.param(room, bad, id=f"{room}-{bad}") for room in ROOMS for bad in room.bad]

every_room = pytest.mark.parametrize("room", ROOMS, ids=str)
every_differentiable_room = pytest.mark.parametrize("room", [room for room in ROOMS if room.differentiable], ids=str)
every_loss = pytest.mark.parametrize("room", [room for room in ROOMS if room.is_loss], ids=str)


def all_tensors(inputs):
    """Every tensor of `inputs`, also those in lists."""
    seen = []
    change_tensors(inputs, seen.append)
    return seen


def prepared(inputs, device, dtype=torch.float32):
    return to_dtype(change_tensors(inputs, lambda tensor: tensor.to(device)), dtype)


def judge(room, inputs, wrap=lambda function: function, *, by_chance=False):
    if room.scores:
        assert_labels_match(
            wrap(room.function)(**inputs),
            wrap(room.reference)(**to_dtype(inputs, torch.float64)),
            exact=lambda: room.scores(to_dtype(inputs, torch.float64)),
            eager=lambda: room.scores(to_dtype(inputs, torch.float32)),
        )
    else:
        assert_matches_reference(
            wrap(room.function),
            wrap(room.reference),
            inputs,
            differentiable=room.differentiable,
            terms=1 if by_chance else room.terms,
            magnitude=room.magnitude,
            by_chance=by_chance or UNOPTIMISED,
        )


def assert_same_bits(left, right):
    (outputs, grads), (other_outputs, other_grads) = left, right
    for a, b in [*zip(outputs, other_outputs, strict=True), *((grads[name], other_grads[name]) for name in grads)]:
        assert torch.equal(a, b)


def test_every_operator_is_described():
    """A room that nobody entered in tests/rooms would owe nothing."""
    for name in toco_kernels.ROOMS:
        getattr(toco_kernels, name)
    described = {overload for room in ROOMS for overload, _ in room.operators(room.sample())}
    assert {operator.overload for operator in OPERATORS.values()} == described


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@every_room
def test_values_and_gradients(room, dtype, device):
    inputs = prepared(room.sample(), device, dtype)
    judge(room, inputs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("room", "edge"), EDGES)
def test_edges(room, edge, dtype, device):
    needs_kernel(room, device)
    inputs = prepared(room.edges[edge](), device, dtype)
    judge(room, inputs, by_chance=edge in room.by_chance)


@pytest.mark.skipif("_torch_cpu" in NOT_LOADED, reason="no CPU kernels here")
@pytest.mark.parametrize("isa", [0, 1, 2], ids=["portable", "avx2", "avx512"])
@pytest.mark.parametrize(("room", "edge"), EDGES)
def test_every_instruction_set(room, edge, isa):
    before = torch.ops.toco_kernels.limit_isa(-1)
    try:
        if torch.ops.toco_kernels.limit_isa(isa) != isa:
            pytest.skip("this processor does not have it")
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            inputs = prepared(room.edges[edge](), "cpu", dtype)
            judge(room, inputs, by_chance=edge in room.by_chance)
    finally:
        torch.ops.toco_kernels.limit_isa(before)


@every_room
def test_fallback_is_the_reference(room, device):
    """Where no kernel is registered, the reference answers, with its gradient."""
    inputs = prepared(room.sample(), device)
    with reference_only():
        actual = run(room.function, inputs, room.differentiable)
    expected = run(room.reference, inputs, room.differentiable)
    for a, b in zip(actual[0], expected[0], strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(actual[1], expected[1])


@every_room
def test_opcheck(room, device):
    for overload, args in room.operators(prepared(room.sample(), device)):
        torch.library.opcheck(overload, args)


@pytest.mark.parametrize("room", [room for room in ROOMS if room.differentiable and room.is_derivative], ids=str)
def test_gradcheck(room, device):
    inputs = prepared(room.sample(), device, torch.float64)
    leaves = tuple(inputs[name].requires_grad_() for name in room.differentiable)

    def function(*leaves):
        return room.function(**inputs | dict(zip(room.differentiable, leaves, strict=True)))

    assert torch.autograd.gradcheck(function, leaves)


@every_differentiable_room
def test_expanded_gradient(room, device):
    """`.sum()` sends back gradients of stride 0; they must not be read as if they were dense."""
    inputs = prepared(room.sample(), device)
    leaves = [inputs[name].requires_grad_() for name in room.differentiable]
    one = torch.ones((), device=device)
    expected = torch.autograd.grad(room.function(**inputs), leaves, one.repeat(room.function(**inputs).shape))
    actual = torch.autograd.grad(room.function(**inputs), leaves, one.expand(room.function(**inputs).shape))
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


def strided(tensor):
    """The same values, every second element of a larger tensor in each dimension."""
    larger = tensor.new_zeros([2 * n for n in tensor.shape])
    view = larger[tuple(slice(None, None, 2) for _ in tensor.shape)]
    return view.copy_(tensor)


def transposed(tensor):
    """The same values, first dimension fastest: channels last, for images."""
    order = tuple(reversed(range(tensor.ndim)))
    return tensor.permute(order).contiguous().permute(order)


@pytest.mark.parametrize("layout", [strided, transposed])
@every_room
def test_any_layout(room, layout, device):
    inputs = prepared(room.sample(), device)
    leaves = {name: layout(inputs[name]).requires_grad_() for name in room.differentiable}
    assert not any(leaf.is_contiguous() for leaf in leaves.values())
    laid_out = run(
        lambda **leaves: room.function(**change_tensors(inputs, layout) | leaves), leaves, room.differentiable
    )
    assert_same_bits(laid_out, run(room.function, inputs, room.differentiable))


@every_room
def test_neighbouring_memory(room, device):
    """Inputs lie amid NaN: whoever reads beside them, or writes to them, is seen."""
    inputs = prepared(room.sample(), device)
    buffers = []

    def embed(tensor):
        if not tensor.is_floating_point():
            return tensor
        buffer = torch.full((tensor.numel() + 128,), float("nan"), device=device, dtype=tensor.dtype)
        buffers.append(buffer)
        return buffer[64:-64].view(tensor.shape).copy_(tensor)

    expected = run(room.function, inputs, room.differentiable)
    embedded = change_tensors(inputs, embed)
    assert_same_bits(run(room.function, embedded, room.differentiable), expected)
    for tensor, before in zip(all_tensors(embedded), all_tensors(inputs), strict=True):
        assert torch.equal(tensor, before)
    assert all(buffer[:64].isnan().all() and buffer[-64:].isnan().all() for buffer in buffers)


@every_room
def test_same_bits_again_and_with_other_threads(room, threads):
    needs_kernel(room, "cpu")
    inputs = prepared(max((make() for make in room.edges.values()), key=size), "cpu")
    threads(1)
    expected = run(room.function, inputs, room.differentiable)
    for count in (1, 2, 3, 5):
        threads(count)
        assert_same_bits(run(room.function, inputs, room.differentiable), expected)


@pytest.mark.gpu
@every_room
def test_same_bits_again_on_a_gpu(room):
    inputs = prepared(max((make() for make in room.edges.values()), key=size), "cuda")
    expected = run(room.function, inputs, room.differentiable)
    for _ in range(5):
        assert_same_bits(run(room.function, inputs, room.differentiable), expected)


def size(inputs):
    return sum(tensor.numel() for tensor in all_tensors(inputs))


@every_room
def test_compiled(room, device):
    """torch.compile, whole graph, dynamic shapes: the same numbers, for other sizes too.

    Of rooms with one function, code is generated for one, since that takes longest; the others differ in the operator.
    """
    torch.compiler.reset()  # functions under no_grad share one limit of recompilations
    first = next(other for other in ROOMS if other.function is room.function)
    backend = "inductor" if room is first else "aot_eager"
    compiled = torch.compile(room.function, backend=backend, fullgraph=True, dynamic=True)
    for make in (room.sample, next(iter(room.edges.values()))):
        inputs = prepared(make(), device)
        actual, expected = (run(f, inputs, room.differentiable) for f in (compiled, room.function))
        for a, b in zip(actual[0], expected[0], strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(actual[1], expected[1])


@every_room
def test_autocast(room, device):
    inputs = prepared(room.sample(), device)
    with torch.autocast(device, torch.bfloat16):
        actual = run(room.function, inputs, room.differentiable)
    inputs |= to_dtype({name: inputs[name] for name in room.autocast_casts}, torch.bfloat16)
    expected = run(room.function, inputs, room.differentiable)
    for a, b in zip(actual[0], expected[0], strict=True):
        assert torch.equal(a, b)
    for name, grad in actual[1].items():
        assert grad.dtype == torch.float32
        torch.testing.assert_close(grad, expected[1][name].float())


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.sum()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: torch.equal(x, x),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.numpy(),
    ],
)
def test_synchronisations_are_seen(wait):
    with Synchronisations() as waits:
        wait(torch.ones(3))
    assert waits.seen


@every_room
def test_no_host_synchronisation(room, device):
    needs_kernel(room, device)
    inputs = prepared(room.sample(), device)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    try:
        with Synchronisations() as waits:
            leaves = {name: inputs[name].clone().requires_grad_() for name in room.differentiable}
            output = room.function(**inputs | leaves)
            if leaves:
                output.sum().backward()
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")
    assert waits.seen == []


@pytest.mark.parametrize(("room", "bad"), BAD)
def test_bad_arguments_are_named(room, bad, device):
    argument = bad.split(":")[0]
    inputs = room.bad[bad](prepared(room.sample(), device))
    with pytest.raises((TypeError, ValueError), match=rf"^{argument} must .+, got .+"):
        room.function(**inputs)


@every_differentiable_room
def test_nan_in_nan_out(room, device):
    """A NaN in any floating-point input reaches the output, and one in a differentiable input its gradient."""
    for name, value in prepared(room.sample(), device).items():
        if not isinstance(value, Tensor) or not value.is_floating_point() or name in room.nan_free:
            continue
        inputs = prepared(room.sample(), device)
        inputs[name].view(-1)[0] = float("nan")
        outputs, grads = run(room.function, inputs, room.differentiable)
        assert outputs[0].isnan().any(), f"a NaN in {name} vanished"
        if room.is_loss:
            assert all(grad.isnan().any() for grad in grads.values()), f"a NaN in {name} left no trace in gradients"


@every_loss
def test_loss_dtype(room, device):
    for dtype in DTYPES:
        loss = room.function(**prepared(room.sample(), device, dtype))
        assert loss.shape == ()
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
