"""Draws cases for every operator and holds it to its reference: shapes, strides, dtypes, labels, thresholds.

    python tests/fuzz.py [--cases 10000] [--only OP …] [--seed N] [--shard I/N] [--state FILE]

runs for a night, in blocks of cases with a seed of their own. What is done is kept in the state file: the same command
again goes on where it ended. A failure is printed with the smallest case that shows it and the command that repeats it;
the case, given to `judge_case`, is a test.
"""

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from unittest import mock

import torch
from fuzz_inputs import SPACES, Space
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from rooms import ROOMS, Room

from toco_kernels.testing import assert_labels_match, assert_matches_reference, change_tensors, run, to_dtype

BLOCK = 250  # cases with one seed
DTYPES = [torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16]
BY_NAME = {str(room): room for room in ROOMS}


class Seeded(torch.Generator):
    """The makers of tests/rooms seed by shape; here the same shape has other numbers each time."""

    drawn = 0

    def manual_seed(self, number):
        return super().manual_seed((number * 1_000_003 + self.drawn) % (1 << 62))


def space_of(room: Room) -> Space:
    """What is drawn for a room: what `SPACES` says, or one of its edges."""
    if room.name in SPACES:
        return SPACES[room.name]
    return Space(lambda edge: room.edges[edge](), {"edge": st.sampled_from([*room.edges])})


@cache
def cases_of(name: str) -> st.SearchStrategy:
    """A dictionary of everything that is drawn for one case of a room."""
    space = space_of(BY_NAME[name])
    return st.fixed_dictionaries(
        {
            "draws": st.fixed_dictionaries(space.draws),
            "change": st.integers(-1, len(space.changes) - 1),
            "dtype": st.sampled_from(DTYPES),
            "layout": st.sampled_from([*LAYOUTS]),
            "isa": st.integers(0, 2),
            "threads": st.sampled_from([1, 3]),
            "seed": st.integers(0, (1 << 31) - 1),
        }
    )


def _strided(tensor):
    larger = tensor.new_zeros([2 * n for n in tensor.shape])
    return larger[tuple(slice(None, None, 2) for _ in tensor.shape)].copy_(tensor)


def _transposed(tensor):
    order = tuple(reversed(range(tensor.ndim)))
    return tensor.permute(order).contiguous().permute(order)


def _cropped(tensor):
    """The middle of a larger tensor, whose first element is aligned to nothing."""
    larger = tensor.new_zeros([n + 3 for n in tensor.shape])
    return larger[tuple(slice(1, 1 + n) for n in tensor.shape)].copy_(tensor)


LAYOUTS = {"contiguous": lambda x: x, "strided": _strided, "transposed": _transposed, "cropped": _cropped}


def inputs_of(room: Room, case: dict) -> dict:
    """The inputs that a case describes, contiguous."""
    space = space_of(room)
    torch.default_generator.manual_seed(case["seed"])  # of the CPU alone: of all devices takes longer than most cases
    Seeded.drawn = case["seed"]
    with mock.patch.object(torch, "Generator", Seeded):
        inputs = space.make(**case["draws"])
        if case["change"] >= 0:
            inputs = space.changes[case["change"]](inputs)
    return to_dtype(inputs, case["dtype"])


def judge_case(name: str, case: dict) -> None:
    """Assert that the operator is as good as its reference on one case.

    Args:
        name: of the room, as pytest shows it.
        case: what `cases_of` draws, or what a failure printed.
    """
    room = BY_NAME[name]
    inputs = inputs_of(room, case)
    lay_out = LAYOUTS[case["layout"]]
    limit_isa = getattr(torch.ops.toco_kernels, "limit_isa", lambda _: -1)  # absent without CPU kernels
    isa, threads = limit_isa(-1), torch.get_num_threads()
    limit_isa(case["isa"])
    torch.set_num_threads(case["threads"])
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "std.*degrees of freedom")  # of the reference, for no images
            judge(room, inputs, lambda **given: room.function(**change_tensors(given, lay_out)))
    finally:
        torch.set_num_threads(threads)
        limit_isa(isa)


def judge(room: Room, inputs: dict, function: Callable) -> None:
    """As the contract judges, with what few values do by chance allowed for."""
    if room.scores is None:
        options = {"differentiable": room.differentiable, "terms": room.terms, "magnitude": room.magnitude}
        assert_matches_reference(function, room.reference, inputs, by_chance=True, **options)
        return
    exact = to_dtype(inputs, torch.float64)
    actual, expected = (run(f, i, ())[0][0] for f, i in ((function, inputs), (room.reference, exact)))
    assert_labels_match(
        actual,
        expected,
        exact=lambda: room.scores(exact),
        eager=lambda: room.scores(to_dtype(inputs, torch.float32)),
    )


def search(name: str, cases: int, number: int | None) -> None:
    """Judge so many cases of a room; the smallest that fails is raised. Without a seed always the same ones."""

    @settings(
        max_examples=cases,
        derandomize=number is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
        print_blob=False,
    )
    @given(case=cases_of(name))
    def judged(case):
        judge_case(name, case)

    if number is not None:
        judged = seed(number)(judged)
    judged()


def main() -> int:
    """Run all blocks of this shard that are not done; the exit code is 1 if any failed, now or before."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="for each operator")
    parser.add_argument("--only", nargs="+", choices=[*BY_NAME], metavar="OP", help="these operators alone")
    parser.add_argument("--seed", type=int, default=0, help="of the first block; the next ones count from there")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="every N-th block, from the I-th on")
    parser.add_argument("--state", type=Path, default=Path("build/fuzz.json"), help="what is done")
    args = parser.parse_args()
    shard, shards = map(int, args.shard.split("/"))
    state = args.state.with_suffix(f".{shard}-of-{shards}.json") if shards > 1 else args.state
    done = json.loads(state.read_text()) if state.exists() else {}
    state.parent.mkdir(parents=True, exist_ok=True)
    blocks = [args.seed + i for i in range(-(-args.cases // BLOCK)) if i % shards == shard - 1]
    for number in blocks:  # all operators advance alike, so that a short night has seen each
        for name in args.only or BY_NAME:
            key = f"{name} {number}"
            if key in done:
                continue
            start = time.perf_counter()
            try:
                search(name, min(BLOCK, args.cases), number)
                done[key] = "passed"
            except Exception as error:
                several = getattr(error, "exceptions", [error])
                notes = "\n".join(note for each in several for note in getattr(each, "__notes__", []))
                done[key] = f"{type(error).__name__}: {error}\n{notes}"
                repeat = f"python tests/fuzz.py --only {name} --seed {number} --cases {min(BLOCK, args.cases)}"
                print(f"FAILED {name}, seed {number}: {done[key]}\nagain: {repeat} --state again.json", flush=True)
            else:
                print(
                    f"{name}, seed {number}: {min(BLOCK, args.cases)} cases, {time.perf_counter() - start:.0f} s",
                    flush=True,
                )
            state.write_text(json.dumps(done, indent=1))
    failed = [key for key, outcome in done.items() if outcome != "passed"]
    print(f"{len(done)} blocks of up to {BLOCK} cases, {len(failed)} failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
