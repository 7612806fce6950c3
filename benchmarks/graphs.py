"""GPU time without dispatch: CUDA graphs, replayed with a warm and with a cold L2 cache."""

from collections.abc import Callable

import torch

from toco_kernels.common.measure import Rotation, Timing

STEPS = 10  # calls in a graph that is replayed warm, so that launching it weighs little
Calls = dict[str, Callable[[], object]]


def warm(calls: Calls, rounds: int = 50) -> dict[str, Timing]:
    """Time per call of those that can be captured, in graphs of `STEPS` calls."""
    rotation = Rotation({name: graph.replay for name, graph in _capture(calls, STEPS).items()})
    for _ in range(rounds):
        rotation()
    return {name: Timing.of([s / STEPS for s in seconds]) for name, seconds in rotation.seconds.items()}


def cold(calls: Calls, rounds: int = 50) -> dict[str, Timing]:
    """Time of one call after a buffer four times the size of the L2 cache has been written."""
    graphs = _capture(calls, 1)
    cache = torch.cuda.get_device_properties("cuda").L2_cache_size
    flush = torch.empty(4 * cache, dtype=torch.uint8, device="cuda")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    seconds = {name: [] for name in graphs}
    for _ in range(rounds):
        for name, graph in graphs.items():
            flush.zero_()  # keeps the GPU busy while the rest is enqueued: no launch is waited for
            start.record()
            graph.replay()
            end.record()
            end.synchronize()
            seconds[name].append(start.elapsed_time(end) / 1e3)
    return {name: Timing.of(of_call) for name, of_call in seconds.items()}


def _capture(calls: Calls, steps: int) -> dict[str, torch.cuda.CUDAGraph]:
    return {name: _graph(call, steps) for name, call in calls.items() if not _waits_for_host(call)}


def _waits_for_host(call: Callable[[], object]) -> bool:
    """Whether the call synchronizes with the host. Asked beforehand: a capture that fails leaves CUDA in disorder."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def _graph(call: Callable[[], object], steps: int) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(steps):
            call()
    return graph
