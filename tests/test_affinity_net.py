"""AffinityNet: pairs and losses by hand, against the published sequence of operations and dense matrices."""

import copy
import math
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from affinity_net_inputs import tiny_batch, tiny_net
from torch.distributed.device_mesh import init_device_mesh

from toco_kernels import methods
from toco_kernels.affinity_propagate.reference import offsets
from toco_kernels.methods import (
    AFFINITY_NET,
    AFFINITY_NET_TINY,
    AffinityNetConfig,
    Optimisation,
    affinity_net_losses,
    grid_labels,
    pair_affinity,
    parameter_groups,
    shard_,
    with_background,
)
from toco_kernels.methods.affinity_net import criterion
from toco_kernels.methods.affinity_net.pairs import pair_kinds
from toco_kernels.methods.affinity_net.published import indices, published_step, published_walk
from toco_kernels.training import recipes

pytestmark = pytest.mark.usefixtures("one_thread")
TUTORIAL = (Path(__file__).parents[1] / "docs" / "affinitynet.md").read_text()
ALL_PAIRS = replace(AFFINITY_NET_TINY, inner_pairs=False)


# Pairs


def test_affinities_by_hand(device):
    """Two channels of a map of 2 x 3; radius 2: to the right, and the three below."""
    features = torch.tensor([[[[0.0, 1, 1], [0, 0, 4]], [[0, 2, 2], [0, 2, 0]]]], device=device)
    right, left_below, below, right_below = pair_affinity(features, radius=2)[0].log().tolist()
    assert right == [[-1.5, 0, -math.inf], [-1, -3, -math.inf]]
    assert left_below == [[-math.inf, -1.5, -0.5], [-math.inf] * 3]
    assert below == [[0, -0.5, -2.5], [-math.inf] * 3]
    assert right_below == [[-1, -2.5, -math.inf], [-math.inf] * 3]


@pytest.mark.parametrize("radius", [3, 5])
@pytest.mark.parametrize("size", [(4, 5), (7, 2), (1, 1), (0, 3)], ids=str)
def test_affinities_of_all_pairs(size, radius):
    """What gathering both ends gives, and its gradient."""
    features = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    affinities = pair_affinity(features, radius=radius)
    assert affinities.shape == (2, len(offsets(radius)), *size)
    cotangent = torch.randn_like(affinities)
    expected, flat = torch.zeros_like(affinities).flatten(2), features.flatten(2)
    place = {step: k for k, step in enumerate(offsets(radius))}
    for starts, ends, step in indices(*size, radius, inner_pairs=False):
        found = torch.exp(-(flat[..., starts] - flat[..., ends]).abs().mean(dim=1))
        expected[:, place[step], starts] = found
    torch.testing.assert_close(affinities.flatten(2), expected)
    grads = [
        torch.autograd.grad(x.view_as(cotangent), features, cotangent, allow_unused=True)[0]
        for x in (affinities, expected)
    ]
    grads = [torch.zeros_like(features) if grad is None else grad for grad in grads]
    torch.testing.assert_close(*grads)


def test_gradcheck_and_what_is_kept():
    features = torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: pair_affinity(x, radius=2), features)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()), lambda _: None):
        pair_affinity(features, radius=3)
    assert sum(kept) == features.numel() + len(offsets(3)) * 12, "no copies of the features for each neighbour"
    (grad,) = torch.autograd.grad(pair_affinity(features, radius=3).sum(), features, create_graph=True)
    with pytest.raises(RuntimeError, match="affinities have no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype):
    features = torch.randn(1, 4, 5, 6).to(dtype)
    leaf = features.clone().requires_grad_()
    affinities = pair_affinity(leaf)
    assert affinities.dtype == torch.float32
    assert torch.equal(affinities, pair_affinity(features.float()))
    affinities.sum().backward()
    assert leaf.grad.dtype == dtype


# Losses


def test_losses_by_hand(device):
    """Two rows of two cells; radius 2: pairs to the right and below, and across. One cell is open."""
    labels = torch.tensor([[[0, 0], [7, 255]], [[7, 7], [0, 0]]], device=device)
    affinities = torch.full((2, 4, 2, 2), 0.5, device=device)
    affinities[0, 0, 0, 0] = 0.25  # background and background
    affinities[1, 0, 0, 0] = 0.125  # 7 and 7
    affinities[0, 2, 0, 0] = 0.75  # 0 above 7
    affinities[0, 2, 0, 1] = math.nan  # 0 above an open one: never read
    affinities.requires_grad_()
    output = affinity_net_losses(affinities, labels, config=replace(AFFINITY_NET, radius=2, inner_pairs=False))
    expected = {
        "background": (math.log(4) + math.log(2)) / 2,  # one pair in each image
        "foreground": math.log(8),
        "negative": (math.log(4) + 5 * math.log(2)) / 6,
    }
    for name, value in expected.items():
        assert output.losses[name].item() == pytest.approx(value, abs=2e-4), name
    total = expected["background"] / 4 + expected["foreground"] / 4 + expected["negative"] / 2
    assert output.loss.item() == pytest.approx(total, abs=2e-4)
    output.loss.backward()
    grad = affinities.grad[0]
    assert grad[2, 0, 1] == 0
    assert grad[0, 0, 0].item() == pytest.approx(-1 / 0.25 / 2 / 4, rel=1e-3)
    assert grad[2, 0, 0].item() == pytest.approx(1 / 0.25 / 6 / 2, rel=1e-3)


def test_no_pair_costs_nothing():
    affinities = torch.rand(1, 34, 6, 6, requires_grad=True)
    output = affinity_net_losses(affinities, torch.full((1, 6, 6), 255))
    output.loss.backward()
    assert output.loss == 0
    assert (affinities.grad == 0).all()


def test_inner_pairs_are_the_published_ones():
    labels = torch.zeros(1, 56, 56, dtype=torch.int64)
    background, foreground, negative = pair_kinds(labels, 5, inner_pairs=True)
    assert background.sum() == 34 * 52 * 48
    assert not foreground.any()
    assert not negative.any()
    assert pair_kinds(labels, 5, inner_pairs=False)[0].sum() == sum((56 - y) * (56 - abs(x)) for y, x in offsets(5))


# The module


@pytest.mark.parametrize("config", [AFFINITY_NET_TINY, ALL_PAIRS], ids=["inner pairs", "all pairs"])
def test_the_published_step(config):
    model, batch = tiny_net(config), tiny_batch()
    results = []
    for step in (model, lambda *a, **k: published_step(model, *a, **k)):
        model.zero_grad()
        output = step(**batch)
        output.loss.backward()
        results.append((output.losses, {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}))
    (losses, grads), (expected, expected_grads) = results
    assert all(loss > 0 for loss in losses.values())
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=0)
    for name, grad in expected_grads.items():
        assert (grads[name] - grad).norm() <= 1e-4 * grad.norm(), name


@pytest.mark.parametrize("config", [AFFINITY_NET_TINY, ALL_PAIRS], ids=["inner pairs", "all pairs"])
def test_the_walk_is_that_of_dense_matrices(config):
    """On photographs of odd sizes, with maps of three classes."""
    model = tiny_net(replace(config, walk_steps=64)).eval()
    images = tiny_batch(size=(72, 64))["images"][..., :65, :61]
    maps = with_background(torch.rand(2, 3, 65, 61), background=0.27)
    walked = model.walk(images, maps)
    assert walked.shape == maps.shape
    torch.testing.assert_close(walked, published_walk(model, images, maps), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(walked, model.walk(images, maps, steps=0), atol=1e-2)


def test_a_constant_stays_what_it_is():
    """Where nothing is continued by zeros: each pixel becomes a mean of others."""
    images = tiny_batch()["images"]
    walked = tiny_net(ALL_PAIRS).eval().walk(images, torch.full((2, 1, 64, 72), 0.27))
    torch.testing.assert_close(walked, torch.full_like(walked, 0.27))


def test_it_learns_a_border():
    """One image of two halves: after a few steps the walk stops between them."""
    config = replace(ALL_PAIRS, optimisation=Optimisation(40, lr=1e-2, head_factor=1.0, warmup_steps=0))
    model = tiny_net(config, freeze_norms=False, freeze_stem=False)
    images = torch.full((1, 3, 64, 64), -1.0)
    images[..., 32:] = 1.0
    labels = torch.zeros(1, 8, 8, dtype=torch.int64)
    labels[..., 4:] = 1
    optimizer = torch.optim.Adam(parameter_groups(model, config.optimisation))
    for _ in range(20):
        optimizer.zero_grad()
        output = model(images, views={"labels": labels})
        output.loss.backward()
        optimizer.step()
    maps = torch.zeros(1, 1, 64, 64)
    maps[..., 24:32, 56:] = 1.0  # a spot in the right half
    walked = model.eval().walk(images, maps, steps=64)[0, 0]
    assert walked[:, 40:].amin() > 20 * walked[:, :24].amax()


def test_groups():
    model = tiny_net(freeze_stem=False)
    groups = {group["name"]: group for group in parameter_groups(model, AFFINITY_NET.optimisation)}
    assert {name: group["lr"] for name, group in groups.items()} == pytest.approx(
        {"backbone": 0.01, "classifiers": 0.1}
    )
    assert len(groups["classifiers"]["params"]) == 4


def test_autocast():
    model, batch = tiny_net(), tiny_batch()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
        walked = model.walk(batch["images"], torch.rand(2, 3, 64, 72))
    assert output.affinities.dtype == output.loss.dtype == walked.dtype == torch.float32
    output.loss.backward()
    expected = model(**batch).losses
    for name, loss in output.losses.items():
        assert loss.item() == pytest.approx(expected[name].item(), rel=0.05), name


# Labels and backgrounds


def test_grid_labels_by_hand():
    labels = torch.tensor([[[0, 0, 1, 2], [3, 3, 255, 255], [4, 4, 255, 5], [4, 0, 255, 255]]])
    assert grid_labels(labels, stride=2).tolist() == [[[0, 255], [4, 255]]]
    assert grid_labels(labels[:0], stride=2).shape == (0, 2, 2)
    assert grid_labels(labels.byte(), stride=1).tolist() == labels.tolist()


def test_backgrounds():
    cams = torch.tensor([[[[0.2, 0.9]], [[0.5, 0.1]]]])
    assert with_background(cams, background=0.3).flatten().tolist() == pytest.approx([0.3, 0.3, 0.2, 0.9, 0.5, 0.1])
    powers = with_background(cams, background=0.3, power=2.0)
    assert powers[0, 0].flatten().tolist() == pytest.approx([0.25, 0.01])


# Processes


def test_two_processes_are_one(monkeypatch):
    """Each computes the losses of the joined batch; what gathering does to gradients is tested with PPC."""
    torch.manual_seed(1)
    features, labels = torch.randn(4, 3, 6, 6), torch.randint(0, 3, (4, 6, 6))
    affinities = pair_affinity(features, radius=3)
    expected = affinity_net_losses(affinities, labels, config=ALL_PAIRS)
    others = {torch.float32: affinities[2:], torch.int64: labels[2:]}
    monkeypatch.setattr(criterion, "gathered", lambda x, group: torch.cat([x, others[x.dtype]]))
    output = affinity_net_losses(affinities[:2], labels[:2], config=ALL_PAIRS, process_group="both")
    torch.testing.assert_close(output.losses, expected.losses)
    assert len(output.affinities) == 2
    net = tiny_net(process_group="both")
    assert copy.deepcopy(net).process_group == "both"
    assert pickle.loads(pickle.dumps(net)).process_group is None


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo")
def test_a_sharded_model():
    """FSDP2, on one process: the same losses and maps."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        batch, net = tiny_batch(), tiny_net(ALL_PAIRS)
        maps = torch.rand(2, 3, 64, 72)
        expected = net(**batch).losses, net.walk(batch["images"], maps)
        sharded = shard_(tiny_net(ALL_PAIRS), init_device_mesh("cpu", (1,)))
        walked = sharded.walk(batch["images"], maps)
        output = sharded(**batch)
        output.loss.backward()
        torch.testing.assert_close((output.losses, walked), expected)
        assert sharded.joint.weight.grad.full_tensor().norm() > 0
    finally:
        dist.destroy_process_group()


# Mistakes


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: pair_affinity(b["images"][0]), r"features must have 4 dimensions \(B, D, H, W\), got shape"),
        (lambda b: pair_affinity(b["images"].long()), "features must be float32, float64, float16 or bfloat16, got"),
        (lambda b: pair_affinity(b["images"], radius=0), "radius must be an integer >= 1, got 0"),
        (
            lambda b: affinity_net_losses(torch.rand(2, 33, 8, 9), b["views"]["labels"]),
            "affinities must have a channel for each of the 34 neighbours within a radius of 5, got shape",
        ),
        (
            lambda b: affinity_net_losses(torch.rand(2, 34, 8, 8), b["views"]["labels"]),
            r"labels must have the affinities' batch and grid, \(2, 8, 8\), got shape \(2, 8, 9\)",
        ),
        (
            lambda b: affinity_net_losses(torch.rand(2, 34, 8, 9), b["views"]["labels"].float()),
            "labels must be integers, got torch.float32",
        ),
        (lambda b: tiny_net()(b["images"], views={}), "views must have labels, .* and nothing else, got"),
        (lambda b: tiny_net()(b["images"], views=None), "views must be a mapping, got NoneType"),
        (
            lambda b: tiny_net()(b["images"][..., :60], views=b["views"]),
            "images must have sides that are multiples of 8",
        ),
        (lambda b: tiny_net()(b["images"][:, :2], views=b["views"]), "images must have three colours, got shape"),
        (
            lambda b: tiny_net().walk(b["images"], torch.rand(2, 3, 8, 9)),
            r"maps must have the images' batch and size, \(2, 64, 72\), got shape \(2, 3, 8, 9\)",
        ),
        (lambda b: grid_labels(b["views"]["labels"]), "labels must have sides that are multiples of 8, got shape"),
        (lambda b: grid_labels(b["images"][:, 0]), "labels must be integers, got torch.float32"),
        (lambda b: with_background(b["images"], background=None), "background must be a number, got NoneType"),
        (lambda b: AffinityNetConfig(beta=0), "beta must be > 0 and finite, got 0"),
        (lambda b: AffinityNetConfig(radius=1), "radius must be an integer >= 2, got 1"),
        (lambda b: AffinityNetConfig(projections=(1, 2)), "projections must be three numbers of channels, got"),
        (lambda b: AffinityNetConfig(weights={"foreground": 1}), "weights must name the losses"),
        (lambda b: AffinityNetConfig(optimiser="adam"), "optimiser must be one of"),
        (lambda b: AffinityNetConfig(background_score=27), r"background_score must be in \[0, 1\], got 27"),
        (lambda b: AffinityNetConfig(background_power=0), "background_power must be None or positive, got 0"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(tiny_batch())


# What docs/affinitynet.md tells people to write


def test_the_tutorial_runs(monkeypatch):
    loop, application = re.findall(r"```python\n(.*?)```", TUTORIAL, re.DOTALL)

    def small(name, config, pretrained):
        assert pretrained
        return tiny_net(config)

    monkeypatch.setattr(methods, "AFFINITY_NET", AFFINITY_NET_TINY)
    monkeypatch.setattr(methods, "AffinityNet", small)
    batch = torch.randn(2, 3, 64, 64), torch.randint(0, 2, (2, 64, 64))
    names = {"loader": [batch, batch]}
    exec(loop.replace(".cuda()", ""), names)
    assert names["step"] == 1
    assert names["output"].loss.isfinite()
    assert names["optimizer"].param_groups[0]["momentum"] == 0
    names |= {"images": batch[0], "cams": torch.rand(2, 3, 64, 64)}
    exec(application, names)
    assert names["labels"].shape == (2, 64, 64)


def test_presets_are_documented():
    for preset in recipes.find("affinitynet").presets:
        assert f"`{preset}`" in TUTORIAL
