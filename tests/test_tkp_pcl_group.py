"""TKP-PCL and the patch contrastive error in two processes, with gloo: as one process on the joined batch."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from tkp_pcl_inputs import TINY, batch_of, tiny_tkp_pcl
from torch.nn.parallel import DistributedDataParallel

from toco_kernels import PatchContrastiveErrorLoss, patch_contrastive_error

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo"),
    pytest.mark.usefixtures("one_thread"),
]

RANKS = 2
CONFIG = replace(TINY, dropout=0.0, weight=1.0)
CASES = ["linear", "log", "one rank is sure of nothing", "nobody is sure of anything"]


def inputs(rank, case):
    """Batches of other sizes, and of other numbers of sure patches."""
    generator = torch.Generator().manual_seed(3 + rank)
    shape = (3 - rank, 20, 4)
    tokens = torch.randn(*shape[:2], 6, generator=generator, dtype=torch.float64)
    scores = (4 * torch.randn(shape, generator=generator, dtype=torch.float64)).softmax(2)
    if case == "nobody is sure of anything" or (case == "one rank is sure of nothing" and rank == 1):
        scores = torch.full_like(scores, 0.25)
    labels = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]])[: shape[0]]
    form = "log" if case == "log" else "linear"
    return tokens, scores, labels, {"form": form, "threshold": 0.7}


def work(rank, folder):
    """What one process does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    results = {}
    for case in CASES:
        tokens, scores, labels, options = inputs(rank, case)
        criterion = PatchContrastiveErrorLoss(**options, process_group=dist.group.WORLD)
        loss = criterion(tokens.requires_grad_(), scores, labels)
        results[case] = loss.detach(), torch.autograd.grad(loss, tokens)[0]
    model = tiny_tkp_pcl(CONFIG, process_group=dist.group.WORLD)
    wrapped = DistributedDataParallel(model)
    output = wrapped(**batch_of(seed=1 + rank))
    output.loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    results["step"] = output.losses["mce"].detach(), output.losses["pce"].detach(), grads
    model = tiny_tkp_pcl(replace(CONFIG, frozen_steps=1), process_group=dist.group.WORLD)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)  # as the tutorial says
    for step in range(2):
        model.zero_grad()
        wrapped(**batch_of(seed=1 + rank) | {"step": step}).loss.backward()
        results[f"frozen until 1, step {step}"] = {
            name: p.grad for name, p in model.named_parameters() if p.grad is not None
        }
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What every rank got."""
    folder = tmp_path_factory.mktemp("group")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("case", CASES)
def test_patch_contrastive_error_of_the_joined_batch(case, results):
    shares = [inputs(rank, case) for rank in range(RANKS)]
    tokens, scores, labels = (torch.cat([share[i] for share in shares]) for i in range(3))
    loss = patch_contrastive_error(tokens.requires_grad_(), scores, labels, **shares[0][3])
    (grad,) = torch.autograd.grad(loss, tokens)
    assert (loss > 0) == (case != "nobody is sure of anything")
    first, second = (result[case] for result in results)
    assert torch.equal(first[0], second[0])
    torch.testing.assert_close(first[0], loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.cat([first[1], second[1]]) / RANKS, grad, rtol=1e-10, atol=1e-15)


def test_batches_apart_are_another_loss(results):
    apart = [patch_contrastive_error(*inputs(rank, "linear")[:3], **inputs(rank, "linear")[3]) for rank in range(RANKS)]
    assert abs(sum(apart) / RANKS - results[0]["linear"][0]) > 1e-4


def test_a_step_of_two_processes_is_that_of_one(results):
    shares = [batch_of(seed=1 + rank) for rank in range(RANKS)]
    joined = {name: torch.cat([share[name] for share in shares]) for name in ("images", "image_labels")}
    model = tiny_tkp_pcl(CONFIG)
    output = model(**joined, step=0)
    output.loss.backward()
    (mce, pce, grads), (other_mce, other_pce, other_grads) = (result["step"] for result in results)
    torch.testing.assert_close((mce + other_mce) / 2, output.losses["mce"])
    torch.testing.assert_close(pce, output.losses["pce"])
    assert torch.equal(pce, other_pce)
    assert pce > 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(grads[name], other_grads[name])
            error = (grads[name] - parameter.grad).norm() / parameter.grad.norm().clamp(min=1e-9)
            assert error < 1e-4, name


def test_frozen_steps_in_two_processes(results):
    frozen, trained = ([result[f"frozen until 1, step {step}"] for result in results] for step in range(2))
    assert {name for grads in frozen for name, grad in grads.items() if grad.any()} == {"classifier.weight"}
    assert torch.equal(frozen[0]["classifier.weight"], frozen[1]["classifier.weight"])
    for name, grad in results[0]["step"][2].items():
        torch.testing.assert_close(trained[0][name], grad)


def test_what_is_no_group_is_refused():
    tokens, scores, labels, options = inputs(0, "linear")
    with pytest.raises(TypeError, match=r"process_group must be None or a torch.distributed.ProcessGroup, got str"):
        patch_contrastive_error(tokens, scores, labels, **options, process_group="all")
