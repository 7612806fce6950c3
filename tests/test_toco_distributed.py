"""ToCo in two processes, with gloo: DistributedDataParallel and FSDP2 train as one process does on its share."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from toco_inputs import sharper, tiny_batch, tiny_toco
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from toco_kernels.methods import shard_

pytestmark = [
    pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo"),
    pytest.mark.usefixtures("one_thread"),
]

RANKS = 2
LOSSES = ("cls", "cls_aux", "ptc", "ctc", "seg", "reg")


def model_of(**arguments):
    return sharper(tiny_toco(**arguments))


def share(rank):
    return tiny_batch(given_crops=True, seed=1 + rank)


def state_after_step(model, module, rank, whole=lambda x: x):
    """Losses, gradients, and the teacher, after one backward pass."""
    output = model(**share(rank))
    output.loss.backward()
    grads = {name: whole(p.grad).clone() for name, p in module.named_parameters() if p.requires_grad}
    teacher = {name: whole(p.detach()).clone() for name, p in module.teacher.named_parameters()}
    return {name: output.losses[name].detach() for name in LOSSES}, grads, teacher


def work(rank, folder):
    """What one process does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    mesh, results = init_device_mesh("cpu", (RANKS,)), {}

    for case, arguments in {"DDP": {}, "DDP with checkpointing": {"checkpointing": True}}.items():
        model = model_of(**arguments)
        results[case] = state_after_step(DistributedDataParallel(model), model, rank)

    model = shard_(model_of(), mesh)
    results["FSDP2"] = state_after_step(model, model, rank, lambda x: x.full_tensor())
    results["cams"] = model.cams(share(rank)["images"])

    model = model_of(process_group=dist.group.WORLD)
    results["joined ptc"] = state_after_step(DistributedDataParallel(model), model, rank)[0]["ptc"]

    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    results["copies share their group"] = [x.criterion.process_group is dist.group.WORLD for x in copies]
    results["copies are of their own"] = [x.criterion is not model.criterion for x in copies]

    try:
        fully_shard(model_of(), mesh=mesh)(**share(rank))
    except RuntimeError as error:
        results["refused"] = str(error)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt") for rank in range(RANKS)]


def alone(rank):
    model = model_of()
    return state_after_step(model, model, rank)


@pytest.mark.parametrize("case", ["DDP", "DDP with checkpointing", "FSDP2"])
def test_as_one_process(results, case):
    expected = [alone(rank) for rank in range(RANKS)]
    for rank in range(RANKS):
        losses, grads, teacher = results[rank][case]
        for name in LOSSES:
            torch.testing.assert_close(losses[name], expected[rank][0][name], msg=name)
        for name, grad in grads.items():
            mean = sum(e[1][name] for e in expected) / RANKS
            assert (grad - mean).norm() <= 1e-4 * mean.norm() + 1e-9, name
        for name, value in teacher.items():
            torch.testing.assert_close(value, expected[rank][2][name], msg=name)


def test_cams_of_a_sharded_model(results):
    for rank in range(RANKS):
        torch.testing.assert_close(results[rank]["cams"], model_of().cams(share(rank)["images"]), atol=1e-5, rtol=1e-5)


def test_patch_contrast_of_the_joined_batch(results):
    first, second = share(0), share(1)
    joined = {name: torch.cat([first[name], second[name]]) for name in ("images", "image_labels", "boxes")}
    views = {"second_global": torch.cat([first["views"]["second_global"], second["views"]["second_global"]])}
    views["local_crops"] = torch.cat([first["views"]["local_crops"], second["views"]["local_crops"]], dim=1)
    views["flags"] = torch.cat([first["views"]["flags"], second["views"]["flags"]])
    expected = model_of()(**joined, views=views, step=0).losses["ptc"]
    for result in results:
        torch.testing.assert_close(result["joined ptc"], expected)


def test_lost_teacher_is_refused(results):
    assert all("teacher must be a unit of its own for FSDP2" in result["refused"] for result in results)


def test_model_with_a_group_can_be_copied_and_pickled(results):
    assert results[0]["copies share their group"] == [True, False]
    assert results[0]["copies are of their own"] == [True, True]
