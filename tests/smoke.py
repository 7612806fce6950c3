"""Every operator once, on its sample, against its reference: whether an installed package works. `python tests/smoke.py`

It needs torch, NumPy and pytest, and takes less than a minute.
"""

import time

import toco_kernels
import torch
from rooms import ROOMS

from toco_kernels.testing import assert_labels_match, assert_matches_reference, run, to_dtype


def main() -> None:
    """Judge all; an assertion fails where one is wrong."""
    start = time.perf_counter()
    for room in ROOMS:
        inputs, exact = to_dtype(room.sample(), torch.float32), to_dtype(room.sample(), torch.float64)
        if room.scores:
            (actual, *_), (expected, *_) = (run(f, i, ())[0] for f, i in ((room.function, inputs), (room.reference, exact)))
            assert_labels_match(actual, expected, exact=room.scores(exact), eager=room.scores(inputs))
        else:
            sizes = {"terms": room.terms, "magnitude": room.magnitude}
            options = {"differentiable": room.differentiable, **sizes, "by_chance": True}
            assert_matches_reference(room.function, room.reference, inputs, **options)
    seconds = time.perf_counter() - start
    print(f"{len(ROOMS)} functions of {toco_kernels.__file__} are right, {seconds:.0f} s")


if __name__ == "__main__":
    main()
