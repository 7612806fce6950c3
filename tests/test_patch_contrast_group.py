"""patch_token_contrast over a process group: two processes, gloo, and what each of them got."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from rooms import token_inputs
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from toco_kernels import PatchTokenContrastLoss, patch_token_contrast

pytestmark = pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo")

RANKS = 2
PATCHES, WIDTH = 40, 12


def shares(case):
    """What each rank has."""
    first = token_inputs(3, PATCHES, WIDTH, ignored=0.5)
    second = token_inputs(1, PATCHES, WIDTH, ignored=0.1)
    if case == "one rank ignores all":
        second["labels"] = torch.full_like(second["labels"], 255)
    if case == "one rank has nothing":
        second = {name: x[:0] for name, x in second.items()}
    return [first, second]


CASES = ["batches differ", "one rank ignores all", "one rank has nothing"]


def joined(case):
    return {name: torch.cat([share[name] for share in shares(case)]) for name in ("tokens", "labels")}


def linear():
    torch.manual_seed(0)
    return nn.Linear(WIDTH, WIDTH, dtype=torch.float64)


def work(rank, folder):
    """What one process does: every case, then a training step of DistributedDataParallel."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    results = {}
    for case in CASES:
        share = shares(case)[rank]
        tokens = share["tokens"].requires_grad_()
        loss = patch_token_contrast(tokens, share["labels"], process_group=dist.group.WORLD)
        (grad,) = torch.autograd.grad(loss, tokens)
        with torch.no_grad():
            results[case] = loss.detach(), grad, patch_token_contrast(**share, process_group=dist.group.WORLD)

    share = shares(CASES[0])[rank]
    network, criterion = DistributedDataParallel(linear()), PatchTokenContrastLoss(process_group=dist.group.WORLD)
    criterion(network(share["tokens"]), share["labels"]).backward()
    copies = copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))
    results["copies share their group"] = [x.process_group is dist.group.WORLD for x in copies]
    results["DDP"] = [parameter.grad for parameter in network.parameters()]
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
    """The value is that of the joined batch on every rank; the mean of the gradients over the ranks is its gradient."""
    inputs = joined(case)
    tokens = inputs["tokens"].requires_grad_()
    loss = patch_token_contrast(**inputs)
    (grad,) = torch.autograd.grad(loss, tokens)
    first, second = (result[case] for result in results)
    assert torch.equal(first[0], second[0])
    for value, _, without_gradient in (first, second):
        assert torch.equal(value, without_gradient)
        torch.testing.assert_close(value, loss.detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(torch.cat([first[1], second[1]]) / RANKS, grad, rtol=1e-12, atol=1e-16)
    if case == "one rank ignores all":
        assert (second[1] == 0).all()


def test_batches_apart_are_another_loss(results):
    """The counts of the joined batch matter: a mean of the ranks' own losses is something else."""
    case = CASES[0]
    apart = torch.stack([patch_token_contrast(**share) for share in shares(case)]).mean()
    assert abs(apart - results[0][case][0]) > 1e-6


def test_distributed_data_parallel(results):
    network = linear()
    inputs = joined(CASES[0])
    patch_token_contrast(network(inputs["tokens"]), inputs["labels"]).backward()
    for first, second, parameter in zip(results[0]["DDP"], results[1]["DDP"], network.parameters(), strict=True):
        assert torch.equal(first, second)
        torch.testing.assert_close(first, parameter.grad, rtol=1e-12, atol=1e-16)


def test_loss_with_a_group_can_be_copied_and_pickled(results):
    assert results[0]["copies share their group"] == [True, False]
