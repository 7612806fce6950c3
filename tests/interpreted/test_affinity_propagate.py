"""The launchers of affinity_propagate, on tensors of the CPU. tests/test_affinity_propagate_triton.py starts this."""

import pytest
import torch
from rooms import PROPAGATE_ATTENTION, RANDOM_WALK
from rooms.affinity_propagate import walk_inputs

from toco_kernels.affinity_propagate import attention, triton_kernel, walk
from toco_kernels.testing import assert_matches_reference, to_dtype

OTHERS = {"random_walk": {"as in IRN": lambda: walk_inputs(1, 5, 10, 14, beta=10.0, steps=8)}}
HALF = ("sample", "as in CLIP-ES", "several blocks", "as in IRN", "affinities")


def launch(module, operator):
    """The public function with its launcher behind it."""

    def call(**inputs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_operator", getattr(triton_kernel, operator))
            return getattr(module, operator)(**inputs)

    return call


propagate_attention, random_walk = launch(attention, "propagate_attention"), launch(walk, "random_walk")


def each(room):
    """Cases in float32, and some in float16."""
    cases = {"sample": room.sample} | room.edges | OTHERS.get(room.name, {})
    found = [pytest.param(make, torch.float32, id=f"{name}-float32") for name, make in cases.items()]
    return found + [pytest.param(cases[name], torch.float16, id=f"{name}-float16") for name in HALF if name in cases]


@pytest.mark.parametrize(("make", "dtype"), each(PROPAGATE_ATTENTION))
def test_propagate_attention(make, dtype):
    assert_matches_reference(propagate_attention, PROPAGATE_ATTENTION.reference, to_dtype(make(), dtype))


@pytest.mark.parametrize(("make", "dtype"), each(RANDOM_WALK))
def test_random_walk(make, dtype):
    assert_matches_reference(random_walk, RANDOM_WALK.reference, to_dtype(make(), dtype))
