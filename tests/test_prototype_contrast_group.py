"""estimate_prototypes over a process group: two processes, gloo, and what each of them got."""

import pytest
import torch
import torch.distributed as dist
from rooms import prototype_inputs

from toco_kernels import estimate_prototypes

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo")

RANKS, K = 2, 9
CASES = ["batches differ", "ties", "fewer pixels than k", "one rank has nothing", "absent classes"]


def shares(case):
    """What each rank has."""
    first, second = prototype_inputs(3, k=K), prototype_inputs(1, k=K)
    if case == "ties":
        first["cams"], second["cams"] = ((share["cams"] * 2).round() for share in (first, second))
    if case == "fewer pixels than k":
        first, second = prototype_inputs(1, size=(2, 2), k=K), prototype_inputs(2, size=(2, 1), k=K)
        second["features"], second["cams"] = (second[n].repeat(1, 1, 1, 2) for n in ("features", "cams"))
    if case == "one rank has nothing":
        second |= {name: second[name][:0] for name in ("features", "cams")}
    if case == "absent classes":
        first["image_labels"], second["image_labels"] = torch.eye(3, 5), torch.eye(1, 5)
    return [first, second]


def joined(case):
    both = shares(case)
    return {
        name: torch.cat([share[name] for share in both]) if isinstance(value, torch.Tensor) else value
        for name, value in both[0].items()
    }


def work(rank, folder):
    """What one process does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    results = {case: estimate_prototypes(**shares(case)[rank], process_group=dist.group.WORLD) for case in CASES}
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What every rank got."""
    folder = tmp_path_factory.mktemp("group")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("case", CASES)
def test_the_batches_are_one(case, results):
    """The prototypes are those of the joined batch, on every rank."""
    first, second = (result[case] for result in results)
    assert torch.equal(first, second)
    assert torch.equal(first, estimate_prototypes(**joined(case)))
