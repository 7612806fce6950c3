"""The launchers of affinity_propagate, on tensors of the CPU. tests/test_affinity_propagate_triton.py starts this."""

import pytest
import torch
from rooms import PROPAGATE_ATTENTION, RANDOM_WALK
from rooms.affinity_propagate import attention_inputs, walk_inputs, with_box

from toco_kernels.affinity_propagate import attention, triton_kernel, walk
from toco_kernels.testing import assert_matches_reference, to_dtype


def launch(module, operator):
    """The public function with its launcher behind it."""

    def call(**inputs):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_operator", getattr(triton_kernel, operator))
            return getattr(module, operator)(**inputs)

    return call


propagate_attention, random_walk = launch(attention, "propagate_attention"), launch(walk, "random_walk")

# As the room's, but smaller: the interpreter takes a second for 50 blocks.
ATTENTION = PROPAGATE_ATTENTION.edges | {
    "sample": PROPAGATE_ATTENTION.sample,
    "as in CLIP-ES": lambda: with_box(attention_inputs(1, 2, (6, 7), classes=20, steps=2, sinkhorn=3)),
    "several blocks": lambda: attention_inputs(1, 2, (6, 11), width=40, classes=35, sinkhorn=1),
    "sinkhorn, one head": lambda: attention_inputs(1, 1, (5, 9), sinkhorn=1, extra=0),
}
WALK = {name: RANDOM_WALK.edges[name] for name in ("no neighbours", "no steps", "no classes", "empty batch")} | {
    "sample": lambda: walk_inputs(1, 1, 5, 6, radius=4, steps=1),
    "as in IRN": lambda: walk_inputs(2, 5, 9, 15, radius=2, beta=10.0, steps=2),
    "affinities": lambda: walk_inputs(1, 2, 5, 6, pairs=True, radius=3, beta=2.5, steps=3),
    "radius beyond the map": lambda: walk_inputs(1, 2, 2, 2, radius=3, steps=2),
    "zero edges": lambda: walk_inputs(1, 1, 4, 5, radius=2, steps=2) | {"edges": torch.zeros(1, 1, 4, 5).double()},
}


def each(cases, half):
    """All in float32, and some in float16."""
    found = [(name, torch.float32) for name in cases] + [(name, torch.float16) for name in half]
    return [pytest.param(*case, id="-".join(map(str, case))) for case in found]


@pytest.mark.parametrize(("case", "dtype"), each(ATTENTION, ["sample"]))
def test_propagate_attention(case, dtype):
    assert_matches_reference(propagate_attention, PROPAGATE_ATTENTION.reference, to_dtype(ATTENTION[case](), dtype))


@pytest.mark.parametrize(("case", "dtype"), each(WALK, ["affinities"]))
def test_random_walk(case, dtype):
    assert_matches_reference(random_walk, RANDOM_WALK.reference, to_dtype(WALK[case](), dtype))


def test_a_program_that_sums_over_all_blocks(monkeypatch):
    monkeypatch.setattr(triton_kernel, "PROGRAMS", 1)
    inputs = to_dtype(ATTENTION["several blocks"](), torch.float32)
    assert_matches_reference(propagate_attention, PROPAGATE_ATTENTION.reference, inputs)


def amid_nan(x):
    """The same numbers with every stride unusual, amid NaN."""
    larger = torch.full([2 * n + 2 for n in x.shape[::-1]], float("nan"), dtype=x.dtype)
    return larger[tuple(slice(1, -1, 2) for _ in x.shape)].permute(3, 2, 1, 0).copy_(x)


def test_layouts_and_neighbouring_memory():
    inputs = to_dtype(attention_inputs(sinkhorn=1), torch.float32)
    laid_out = {name: amid_nan(inputs[name]) for name in ("cams", "queries", "keys")}
    assert torch.equal(propagate_attention(**inputs | laid_out), propagate_attention(**inputs))
    inputs = to_dtype(walk_inputs(1, 3, radius=2, steps=1), torch.float32)
    laid_out = {name: amid_nan(inputs[name]) for name in ("cams", "edges")}
    assert torch.equal(random_walk(**inputs | laid_out), random_walk(**inputs))


def test_what_lies_beyond_the_border_is_not_read():
    inputs = to_dtype(walk_inputs(1, 2, 4, 5, pairs=True, radius=3, steps=1), torch.float32)
    beyond = torch.zeros_like(inputs["edges"], dtype=torch.bool)
    for k, (y, x) in enumerate(walk.reference.offsets(3)):
        beyond[:, k, max(4 - y, 0) :] = True
        beyond[:, k, :, slice(max(5 - x, 0), None) if x > 0 else slice(-x)] = True
    dirty = inputs | {"edges": inputs["edges"].masked_fill(beyond, float("nan"))}
    assert torch.equal(random_walk(**dirty), random_walk(**inputs))


@pytest.mark.parametrize("argument", ["cams", "queries", "keys"])
def test_nan_in_nan_out(argument):
    inputs = to_dtype(attention_inputs(1, 1), torch.float32)
    inputs[argument].view(-1)[0] = float("nan")
    assert propagate_attention(**inputs).isnan().any()


@pytest.mark.parametrize("argument", ["cams", "edges"])
def test_nan_in_nan_out_of_the_walk(argument):
    inputs = to_dtype(walk_inputs(1, 1, 3, 4, radius=2, steps=1), torch.float32)
    inputs[argument].view(-1)[0] = float("nan")
    assert random_walk(**inputs).isnan().any()
