"""PPC in two processes, with gloo: one batch for the contrast, and the gradients of one process with both halves."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from ppc_inputs import TINY_EPS, tiny_batch, tiny_ppc
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from toco_kernels.methods import PPC_TINY, shard_

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo"),
    pytest.mark.usefixtures("one_thread"),
]

RANKS, CASES = 2, {"seam": replace(PPC_TINY, dropout=0.0), "eps": TINY_EPS}


def joined():
    return tiny_batch(4)


def share(rank):
    """Half of the batch."""
    return {
        name: {key: x[2 * rank : 2 * rank + 2] for key, x in value.items()}
        if isinstance(value, dict)
        else value[2 * rank : 2 * rank + 2]
        if isinstance(value, torch.Tensor)
        else value
        for name, value in joined().items()
    }


def after_step(model, module, batch, whole=lambda x: x):
    """Losses and gradients."""
    output = model(**batch)
    output.loss.backward()
    losses = {name: loss.detach() for name, loss in output.losses.items()}
    return losses, {name: whole(p.grad).clone() for name, p in module.named_parameters() if p.requires_grad}


def work(rank, folder):
    """What one process does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    results = {}
    for name, config in CASES.items():
        model = tiny_ppc(config, process_group=dist.group.WORLD)
        results[name] = after_step(DistributedDataParallel(model), model, share(rank))
    model = shard_(tiny_ppc(CASES["seam"], process_group=dist.group.WORLD), init_device_mesh("cpu", (RANKS,)))
    results["FSDP2"] = after_step(model, model, share(rank), lambda x: x.full_tensor())
    results["cams"] = model.eval().cams(share(rank)["images"])
    model = tiny_ppc(CASES["seam"])
    results["alone"] = after_step(DistributedDataParallel(model), model, share(rank))
    copies = copy.deepcopy(model := tiny_ppc(process_group=dist.group.WORLD)), pickle.loads(pickle.dumps(model))
    results["copies share their group"] = [x.criterion.process_group is dist.group.WORLD for x in copies]
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


@pytest.mark.parametrize("case", [*CASES, "FSDP2"])
def test_two_processes_are_one(results, case):
    model = tiny_ppc(CASES.get(case, CASES["seam"]))
    losses, grads = after_step(model, model, joined())
    for name, loss in losses.items():
        both = [result[case][0][name] for result in results]
        torch.testing.assert_close(sum(both) / RANKS, loss, msg=name)
        if name in ("cross_prototype", "cross_cam", "intra"):
            assert torch.equal(*both), f"{name} is the same on every rank"
    for result in results:
        for name, grad in result[case][1].items():
            assert (grad - grads[name]).norm() <= 1e-4 * grads[name].norm(), name


def test_without_a_group_batches_are_apart(results):
    """Each has prototypes of its own."""
    first, second = (result["alone"][0]["cross_prototype"] for result in results)
    assert first != second
    model = tiny_ppc(CASES["seam"])
    torch.testing.assert_close(first, after_step(model, model, share(0))[0]["cross_prototype"])


def test_cams_of_a_sharded_model(results):
    expected = tiny_ppc(CASES["seam"]).eval().cams(share(1)["images"])
    torch.testing.assert_close(results[1]["cams"], expected, atol=1e-4, rtol=1e-4)


def test_copies_share_their_group(results):
    assert results[0]["copies share their group"] == [True, False]
