"""Checkpoints in the layout of the authors' code, optimiser groups, schedule and configurations."""

import copy
import json
import pickle
import re
from dataclasses import asdict, replace

import pytest
import torch
from toco_inputs import tiny_batch, tiny_toco
from torch import nn

from toco_kernels.methods import COCO, TINY, VOC, Stage, ToCo, learning_rate_factor, load_authors_checkpoint
from toco_kernels.methods import parameter_groups as groups_of

pytestmark = pytest.mark.usefixtures("one_thread")
HEAD = {"layers.": "mlp.", "directions.weight": "last_layer.weight_v"}
DECODER = {"conv1.": "conv6.", "conv2.": "conv7.", "classifier.": "conv8."}


def as_authors(model):
    """A model's state in the authors' names and shapes, saved from DistributedDataParallel."""
    state = {}
    for name, value in model.state_dict().items():
        part, rest = name.split(".", 1)
        if part == "backbone":
            name = "encoder." + rest.removeprefix("vit.")
        elif part in ("projector", "teacher"):
            for ours, theirs in HEAD.items():
                rest = rest.replace(ours, theirs)
            name = {"projector": "proj_head.", "teacher": "proj_head_t."}[part] + rest
            if name.endswith("weight_v"):
                state[f"module.{name[:-1]}g"] = torch.ones(len(value), 1)
        elif part == "decoder":
            for ours, theirs in DECODER.items():
                rest = rest.replace(ours, theirs)
            name = "decoder." + rest
        else:  # classifiers are 1 x 1 convolutions
            value = value[:, :, None, None]
        state["module." + name] = value
    return state


def save(state, folder):
    file = folder / "model_iter_20000.pth"
    torch.save(state, file)
    return file


def test_weights_are_those_of_the_checkpoint(tmp_path):
    model, other = tiny_toco(), tiny_toco()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.normal_(std=0.02 + 0.001 * i)
    loaded = load_authors_checkpoint(save(as_authors(model), tmp_path), other)
    assert loaded is other
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    batch = tiny_batch()
    torch.testing.assert_close(other(**batch).loss, model(**batch).loss, rtol=0, atol=0)


@pytest.mark.parametrize(("classes", "high"), [(21, VOC.high), (81, COCO.high)])
def test_shapes_of_the_checkpoint_choose_the_model(tmp_path, classes, high):
    model = ToCo("deit_tiny_patch16_224", classes)
    state = as_authors(model)
    state["module.encoder.head.weight"] = torch.zeros(1000, 192)  # ImageNet's classifier, which nothing uses
    loaded = load_authors_checkpoint(save({"state_dict": state}, tmp_path))
    assert (loaded.backbone.width, loaded.num_classes, loaded.config.high) == (192, classes, high)
    assert torch.equal(loaded.backbone.vit.pos_embed, model.backbone.vit.pos_embed)


def without(name):
    return lambda state: {key: value for key, value in state.items() if key != name}


BAD = {
    "missing": (without("module.decoder.conv7.weight"), "missing decoder.conv2.weight"),
    "unknown": (lambda state: state | {"module.extra.weight": torch.zeros(3)}, "unknown extra.weight"),
    "shape": (
        lambda state: state | {"module.encoder.pos_embed": torch.zeros(1, 5, 32)},
        "backbone.vit.pos_embed of shape (1, 5, 32), expected (1, 65, 32)",
    ),
    "gain": (
        lambda state: state | {"module.proj_head.last_layer.weight_g": torch.full((32, 1), 2.0)},
        "have proj_head.last_layer.weight_g of 1, at which it is frozen, got [2.0, 2.0, 2.0]",
    ),
    "no tensors": (lambda state: {"epoch": 3}, "hold a state dict of tensors, got dict"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_named(tmp_path, case):
    change, message = BAD[case]
    model = tiny_toco()
    before = model.classifier.weight.clone()
    with pytest.raises(ValueError, match=re.escape(message)):
        load_authors_checkpoint(save(change(as_authors(tiny_toco())), tmp_path), model)
    assert torch.equal(model.classifier.weight, before)


def test_unknown_backbone_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"width \[192, 384, 768\].*got 32"):
        load_authors_checkpoint(save(as_authors(tiny_toco()), tmp_path))


class Pickled:
    pass


def test_nothing_but_tensors_is_unpickled(tmp_path):
    with pytest.raises(Exception, match="weights_only"):
        load_authors_checkpoint(save({"model": Pickled()}, tmp_path), tiny_toco())


# Optimiser and schedule


def test_groups_hold_every_trained_parameter_once():
    model = tiny_toco()
    groups = groups_of(model, VOC.optimisation)
    assert [group["name"] for group in groups] == ["backbone", "norms", "classifiers", "decoder"]
    assert [group["lr"] for group in groups] == pytest.approx([6e-5, 6e-5, 6e-4, 6e-4])
    assert [group["initial_lr"] for group in groups] == [group["lr"] for group in groups]
    assert {group["weight_decay"] for group in groups} == {0.01}
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == trained
    assert id(model.backbone.vit.pos_embed) not in trained
    assert not trained & {id(parameter) for parameter in model.teacher.parameters()}
    torch.optim.AdamW(groups, betas=VOC.optimisation.betas)


@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,  # which compiles nothing before the first call
        lambda model: nn.ModuleDict({"module": torch.compile(model)}),  # as DistributedDataParallel
        lambda model: nn.ModuleDict({"segmenter": nn.ModuleDict({"toco": model})}),
    ],
    ids=["compiled", "wrapped twice", "a module of one's own"],
)
def test_groups_of_a_wrapped_model(wrap):
    model = tiny_toco()
    expected, groups = (groups_of(x, VOC.optimisation) for x in (model, wrap(model)))
    for group, same in zip(expected, groups, strict=True):
        assert [id(parameter) for parameter in group.pop("params")] == [id(x) for x in same.pop("params")]
        assert group == same


def test_parameters_that_have_no_group_are_named():
    with pytest.raises(ValueError, match="model must be or hold one of ToCo, PPC, AffinityNet, got Linear"):
        groups_of(nn.Linear(2, 2), VOC.optimisation)
    model = nn.ModuleDict({"toco": tiny_toco(), "head": nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"nothing beside it: pass the ToCo alone, got head\.weight, head\.bias"):
        groups_of(model, VOC.optimisation)
    model["head"].requires_grad_(False)
    assert len(groups_of(model, VOC.optimisation)) == 4


def test_groups_of_a_frozen_backbone():
    model = tiny_toco()
    model.backbone.requires_grad_(False)
    assert [group["name"] for group in groups_of(model, TINY.optimisation)] == ["classifiers", "decoder"]


def test_schedule_is_the_published_one():
    factor = [learning_rate_factor(step, VOC.optimisation) for step in (0, 750, 1499, 1500, 10_000, 20_000, 20_001)]
    warm = 1 - (1 / 1500) * (1 - 1e-6)
    assert factor == pytest.approx([1e-6, 0.5 + 0.5e-6, warm, 0.932, 0.5**0.9, 0, 0], abs=1e-3)
    assert factor[0] == pytest.approx(1e-6)
    assert learning_rate_factor(1500, replace(VOC.optimisation, restart_after_warmup=False)) == 1
    no_warmup = replace(VOC.optimisation, warmup_steps=0)
    assert learning_rate_factor(0, no_warmup) == 1


# Configurations


@pytest.mark.parametrize(
    ("config", "step", "weights", "labels_from"),
    [
        (VOC, 0, (1, 1, 0.2, 0.5, 0, 0), "main"),
        (VOC, 2000, (1, 1, 0.2, 0.5, 0, 0), "main"),
        (VOC, 2001, (1, 1, 0.2, 0.5, 0.1, 0.05), "main"),
        (COCO, 8000, (1, 1, 0, 0, 0, 0), "aux"),
        (COCO, 8001, (1, 1, 0, 0, 0.1, 0.05), "aux"),
        (COCO, 12_000, (1, 1, 0, 0, 0.1, 0.05), "aux"),
        (COCO, 12_001, (1, 1, 0.2, 0.5, 0.1, 0.05), "main"),
    ],
)
def test_stages(config, step, weights, labels_from):
    stage = config.stage(step)
    assert tuple(stage.weight(loss) for loss in ("cls", "cls_aux", "ptc", "ctc", "seg", "reg")) == weights
    assert stage.labels_from == labels_from


def test_configurations_are_constants():
    """They are shared, and keys of dictionaries."""
    for change in (
        lambda weights: weights.update(seg=1.0),
        lambda weights: weights.pop("cls"),
        lambda weights: weights.__setitem__("cls", 2.0),
        lambda weights: weights.__ior__({"cls": 2.0}),
    ):
        with pytest.raises(TypeError, match="weights must not be changed"):
            change(VOC.stages[0].weights)
    assert VOC.stages[0].weights | {"seg": 1.0} == {"cls": 1.0, "cls_aux": 1.0, "ptc": 0.2, "ctc": 0.5, "seg": 1.0}
    assert len({VOC, COCO, replace(VOC), copy.deepcopy(VOC), pickle.loads(pickle.dumps(VOC))}) == 2
    stages = json.loads(json.dumps(asdict(VOC)["stages"]))  # as a run keeps them
    assert tuple(Stage(**stage) for stage in stages) == VOC.stages


def test_coco_is_not_voc():
    assert (COCO.high, COCO.low, COCO.background, COCO.temperature, COCO.num_classes) == (0.65, 0.25, 0.45, 1.0, 81)
    assert (VOC.high, VOC.low, VOC.background, VOC.temperature, VOC.num_classes) == (0.7, 0.25, 0.5, 0.5, 21)
    assert (COCO.optimisation.steps, VOC.optimisation.steps) == (80_000, 20_000)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: replace(VOC, num_classes=1), "num_classes must be an integer >= 2, got 1"),
        (lambda: replace(VOC, temperature=0.0), "temperature must be positive, got 0.0"),
        (lambda: replace(VOC, cam_scales=()), "cam_scales must be positive numbers, at least one, got ()"),
        (lambda: replace(VOC, stages=(Stage(None, {}), Stage(None, {}))), "stages must be ordered by `until`"),
        (lambda: replace(VOC, stages=(Stage(5, {}),)), "the last one end with None, got [5]"),
        (lambda: Stage(None, {"crf": 1.0}), "weights must name losses of"),
        (lambda: Stage(None, {}, labels_from="seg"), "labels_from must be 'main' or 'aux', got 'seg'"),
    ],
)
def test_bad_configurations_are_named(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()
