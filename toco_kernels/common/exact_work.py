"""How long sums over all pairs of pixels take, without torch."""

import os

# Pairs of pixels with up to 32 channels in a minute, in float32: measured with AVX-512, 1.04 ns a pair and core;
# predicted for an H100, 0.64 ps a pair.
PER_CORE, PER_GPU = 6e10, 1e14
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
DOUBLE = 6  # times as long in float64


def refuse_minutes(
    operator: str,
    shape: tuple[int, int, int, int],  # B, K, H, W
    filters: int,
    *,
    double: bool,
    gpu: bool = False,
    cores: int = CORES,
) -> None:
    """Raise before so many exact filters of B images with K channels if they would take more than a minute."""
    batch, channels, height, width = shape
    work = batch * (height * width) ** 2 * ((channels + 31) // 32) * filters * (DOUBLE if double else 1)
    if work > (PER_GPU if gpu else PER_CORE * cores):
        where = "a GPU" if gpu else f"{cores} core{'s' if cores > 1 else ''}"
        raise RuntimeError(
            f"{operator}: the exact kernel takes the square of the pixels, and would take minutes on {where} for "
            f"{batch} x {height} x {width} pixels and {channels} classes: use kernel='lattice' or smaller images"
        )
