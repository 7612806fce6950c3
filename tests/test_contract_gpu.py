"""What every room owes on a GPU (CONTRIBUTING.md): streams, graphs, and memory that runs out."""

from contextlib import suppress

import pytest
import torch
from test_contract import all_tensors, assert_same_bits, every_differentiable_room, every_room, prepared

from toco_kernels.testing import change_tensors, run


@pytest.mark.gpu
@every_room
def test_current_stream(room):
    """Kernels run on torch's current stream: work queued before them there comes first."""
    inputs = prepared(room.sample(), "cuda")
    expected = room.function(**inputs)
    stream = torch.cuda.Stream()
    late = change_tensors(inputs, torch.zeros_like)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        for tensor, value in zip(all_tensors(late), all_tensors(inputs), strict=True):
            tensor.copy_(value)
        actual = room.function(**late)
    stream.synchronize()
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.gpu
@every_differentiable_room
def test_graph_capture(room):
    inputs = prepared(room.sample(), "cuda")
    leaves = {name: inputs[name].clone().requires_grad_() for name in room.differentiable}

    def step():
        for leaf in leaves.values():
            leaf.grad = None
        room.function(**inputs | leaves).sum().backward()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    expected = {name: leaf.grad.clone() for name, leaf in leaves.items()}
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    graph.replay()
    torch.cuda.synchronize()
    for name, leaf in leaves.items():
        assert torch.equal(leaf.grad, expected[name])


@pytest.mark.gpu
@every_room
def test_out_of_memory_leaves_everything_usable(room):
    """An operator that gets no memory raises what torch raises, and works again once there is some."""
    inputs = prepared(room.sample(), "cuda")
    expected = run(room.function, inputs, room.differentiable)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties("cuda").total_memory
    torch.cuda.set_per_process_memory_fraction(torch.cuda.memory_reserved() / total)
    try:
        hog = []
        for shift in range(24, 8, -1):  # what the allocator has is used up to its smallest block
            with suppress(torch.OutOfMemoryError):
                while True:
                    hog.append(torch.empty(1 << shift, dtype=torch.uint8, device="cuda"))
        with pytest.raises(torch.OutOfMemoryError):
            run(room.function, inputs, room.differentiable)
        del hog
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert_same_bits(run(room.function, inputs, room.differentiable), expected)
