"""ToCo without its training step: CAMs, predictions, the criterion alone, and what is refused."""

import re
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from toco_inputs import sharper, tiny_batch, tiny_toco
from torch import nn

from toco_kernels import merge_cams
from toco_kernels.methods import TINY, VOC, Backbone, Stage, ToCo, ToCoCriterion
from toco_kernels.methods.published import forward

pytestmark = pytest.mark.usefixtures("one_thread")


# Inference


def test_cams_are_those_of_the_step():
    model, batch = sharper(tiny_toco()), tiny_batch(size=(70, 61))
    images, labels = batch["images"], batch["image_labels"]
    torch.testing.assert_close(model.cams(images, labels), model(**batch).cams)
    cams, aux_cams = model.cams(images, aux=True)
    assert cams.shape == aux_cams.shape == (2, 5, 70, 61)
    assert cams[labels == 0].amax() > 0.5  # without image labels, all classes
    maps = []
    for size in ((70, 61), (35, 30), (105, 91)):
        x = F.interpolate(images, size=size, mode="bilinear")
        maps.append(forward(model, torch.cat([x, x.flip(-1)]))[5].detach())
    torch.testing.assert_close(aux_cams, merge_cams(maps, (70, 61)), atol=1e-5, rtol=1e-5)
    assert model.cams(images, scales=(1.0,), size=(30, 20)).shape == (2, 5, 30, 20)


@pytest.mark.parametrize(("flip", "merge"), [(None, "max"), ("sum", "max"), ("max", "sum")])  # the last two: VOC, COCO
def test_predictions(flip, merge):
    model, images = tiny_toco(), torch.randn(2, 3, 64, 64)
    expected = []
    for scale in (1.0, 1.5):
        x = F.interpolate(images, scale_factor=scale, mode="bilinear")
        logits, mirrored = (
            F.interpolate(forward(model, y)[2].detach(), size=(64, 64), mode="bilinear") for y in (x, x.flip(-1))
        )
        mirrored = mirrored.flip(-1)
        expected.append({None: logits, "sum": logits + mirrored, "max": torch.maximum(logits, mirrored)}[flip])
    expected = torch.stack(expected)
    expected = expected.amax(0) if merge == "max" else expected.sum(0)
    actual = model.predict(images, scales=(1.0, 1.5), flip=flip, merge=merge)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)


# The criterion alone


class Convolutions(nn.Module):
    """Someone's own network, without tokens."""

    def __init__(self):
        super().__init__()
        self.features, self.classes, self.segments = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 5, 1), nn.Conv2d(8, 6, 1)

    def forward(self, images):
        x = self.features(images).relu()
        return x, self.classes(x), self.segments(x)


def test_criterion_with_another_network():
    torch.manual_seed(0)
    network, batch = Convolutions(), tiny_batch()
    config = replace(TINY, stages=(Stage(None, {"cls": 1.0, "ptc": 0.2, "seg": 0.1, "reg": 0.05}),))
    criterion = ToCoCriterion(config, skip_unweighted=True)
    images, labels = batch["images"], batch["image_labels"]
    x, scores, segmentation = network(images)
    maps = [network(torch.cat([images, images.flip(-1)]))[1].detach()]
    arguments = {"logits": scores.amax((2, 3)), "aux_logits": scores.amax((2, 3)), "tokens": x.flatten(2).mT}
    arguments |= {"grid": (8, 8), "maps": maps, "aux_maps": maps, "step": 0, "boxes": batch["boxes"]}
    output = criterion(images, labels, **arguments, segmentation=segmentation)
    output.loss.backward()
    assert all(p.grad.isfinite().all() for p in network.parameters())
    assert output.losses["ctc"] == output.losses["cls_aux"] == 0
    with pytest.raises(ValueError, match="segmentation must be given for seg and reg"):
        criterion(images, labels, **arguments)
    assert [*criterion.state_dict()] == []


# What is refused


def changed(**changes):
    return lambda batch: batch | changes


def viewed(**changes):
    return lambda batch: batch | {"views": {k: x for k, x in (batch["views"] | changes).items() if x is not None}}


def on_another_device(argument):
    return f"{argument} must be on images's device, cpu, got meta"


GIVEN = {"local_source": None, "draws": None, "local_crops": torch.zeros(3, 2, 3, 24, 24), "flags": torch.ones(2, 3)}
BAD = {
    "images: rank": (changed(images=torch.zeros(3, 64, 64)), "images must have 4 dimensions"),
    "images: colours": (changed(images=torch.zeros(2, 1, 64, 64)), "images must have three colours"),
    "images: integers": (changed(images=torch.zeros(2, 3, 64, 64).byte()), "images must be float32"),
    "image_labels": (changed(image_labels=torch.zeros(2, 6)), "image_labels must have shape (B, C) = (2, 5)"),
    "boxes": (changed(boxes=torch.zeros(1, 4).long()), "boxes must have shape (B, 4) = (2, 4)"),
    "step": (changed(step=-1), "step must be an integer >= 0, got -1"),
    "step: tensor": (changed(step=torch.tensor(1)), "step must be an integer >= 0"),
    "views: list": (changed(views=[]), "views must be a mapping, got list"),
    "views: unknown": (viewed(third=torch.zeros(1)), "got ['third']"),
    "views: no second": (viewed(second_global=None), "views must have second_global"),
    "views: no local": (viewed(local_source=None, draws=None), "views must have either local_source or local_crops"),
    "views: both": (viewed(local_crops=torch.zeros(3, 2, 3, 24, 24)), "either local_source or local_crops"),
    "views: no flags": (
        viewed(local_source=None, draws=None, local_crops=torch.zeros(3, 2, 3, 24, 24)),
        "views must have local_crops and flags together",
    ),
    "views: draws alone": (
        viewed(local_source=None, local_crops=torch.zeros(3, 2, 3, 24, 24), flags=torch.ones(2, 3)),
        "views must have draws for local_source alone",
    ),
    "second_global": (viewed(second_global=torch.zeros(1, 3, 64, 64)), "second_global must have shape (2, 3, H, W)"),
    "local_source": (viewed(local_source=torch.zeros(2, 3, 64, 32)), "local_source must have the images' shape"),
    "local_crops": (
        viewed(local_source=None, draws=None, local_crops=torch.zeros(3, 1, 3, 24, 24), flags=torch.ones(2, 3)),
        "local_crops must have shape (2, 3, H, W)",
    ),
    "flags": (
        viewed(local_source=None, draws=None, local_crops=torch.zeros(3, 2, 3, 24, 24), flags=torch.ones(2, 4)),
        "flags must have shape (B, crops) = (2, 3)",
    ),
    "draws": (viewed(draws=torch.zeros(3, 3)), "draws must have shape (B, crops) = (2, 3), got shape (3, 3)"),
    "draws: crops": (viewed(draws=torch.zeros(2, 7)), "draws must have shape (B, crops) = (2, 3), got shape (2, 7)"),
    "image_labels: device": (changed(image_labels=torch.zeros(2, 5, device="meta")), on_another_device("image_labels")),
    "second_global: device": (
        viewed(second_global=torch.zeros(2, 3, 64, 64, device="meta")),
        on_another_device("second_global"),
    ),
    "local_source: device": (
        viewed(local_source=torch.zeros(2, 3, 64, 64, device="meta")),
        on_another_device("local_source"),
    ),
    "draws: device": (viewed(draws=torch.zeros(2, 3, device="meta")), on_another_device("draws")),
    "local_crops: device": (
        viewed(**GIVEN | {"local_crops": torch.zeros(3, 2, 3, 24, 24, device="meta")}),
        on_another_device("local_crops"),
    ),
    "flags: device": (viewed(**GIVEN | {"flags": torch.zeros(2, 3, device="meta")}), on_another_device("flags")),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments_are_named(case):
    change, message = BAD[case]
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        tiny_toco()(**change(tiny_batch()))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: tiny_toco(positions="learned"), "positions must be one of ('toco', 'timm'), got 'learned'"),
        (lambda: tiny_toco(energy_kernel="fast"), "energy_kernel must be one of"),
        (lambda: tiny_toco(replace(TINY, aux_layer=4)), "aux_layer must be one of 4 blocks, got 4"),
        (lambda: tiny_toco(replace(TINY, aux_layer=-5)), "aux_layer must be an integer >= -4, got -5"),
        (lambda: tiny_toco(num_classes=1), "num_classes must be an integer >= 2, got 1"),
        (lambda: Backbone("eva02_tiny_patch14_224"), "positions must be 'timm' for eva02_tiny_patch14_224"),
        (lambda: Backbone("resnet18", dynamic_img_size=None), "backbone must be one of timm's ViTs"),
        (lambda: tiny_toco().predict(torch.zeros(1, 3, 64, 64), flip="mean"), "flip must be None, 'sum' or 'max'"),
        (lambda: tiny_toco().predict(torch.zeros(1, 3, 64, 64), merge="mean"), "merge must be 'sum' or 'max'"),
    ],
)
def test_bad_options_are_named(build, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        build()


def test_without_timm_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert ToCoCriterion(VOC).config is VOC
    with pytest.raises(ImportError, match=re.escape("pip install 'toco-kernels[train]'")):
        ToCo()
