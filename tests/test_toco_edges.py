"""ToCo's module beyond the published step: backbones, precision, quirks, inference, and what it refuses."""

import copy
import pickle
import re
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from toco_inputs import VIT, gradients, sharper, tiny_batch, tiny_toco, twins
from torch import nn

from toco_kernels import cam_to_label, merge_cams, patch_boxes
from toco_kernels.methods import TINY, VOC, Backbone, Quirks, Stage, ToCo, ToCoCriterion
from toco_kernels.methods.config import LOSSES
from toco_kernels.methods.published import forward, tokens_of

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.usefixtures("one_thread")


def quirky(**changes):
    return replace(TINY, quirks=Quirks(**changes))


def finite(model, batch):
    output = model(**batch)
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    return output


# Shapes


def test_output_has_the_documented_shapes():
    output = tiny_toco()(**tiny_batch(size=(70, 61)))
    assert output.loss.shape == ()
    assert [*output.losses] == [*LOSSES]
    assert {loss.shape for loss in output.losses.values()} == {()}
    assert output.cams.shape == (2, 5, 70, 61)
    assert output.pseudo_labels.shape == (2, 70, 61)
    assert output.pseudo_labels.dtype == torch.int64
    assert output.tokens.shape == (2, 8 * 7, 32)


@pytest.mark.parametrize("crop", [5, 8, 13])
def test_crops_smaller_than_a_patch(crop):
    finite(tiny_toco(), tiny_batch(given_crops=True, crop=crop))


def test_images_smaller_than_a_patch_at_a_scale():
    config = replace(TINY, local_size=5)
    output = finite(tiny_toco(config), tiny_batch(size=(12, 64)))  # 6 pixels at half the size
    assert output.tokens.shape == (2, 8, 32)


def test_second_view_of_another_size():
    batch = tiny_batch()
    batch["views"]["second_global"] = torch.randn(2, 3, 40, 56)
    finite(tiny_toco(), batch)


def test_crops_as_a_list_with_all_flags():
    batch = tiny_batch(given_crops=True)
    views = batch["views"]
    listed = views | {"local_crops": [*views["local_crops"]], "flags": torch.cat([torch.ones(2, 2), views["flags"]], 1)}
    model = tiny_toco().eval()
    assert torch.equal(model(**batch).loss, model(**batch | {"views": listed}).loss)


def test_crops_are_random_unless_drawn():
    batch, model = tiny_batch(), sharper(tiny_toco()).eval()
    assert torch.equal(model(**batch).losses["ctc"], model(**batch).losses["ctc"])
    batch["views"].pop("draws")
    assert len({model(**batch).losses["ctc"].item() for _ in range(4)}) > 1


# State


def test_nothing_but_the_step_decides_the_stage():
    config = replace(TINY, stages=(Stage(9, {"cls": 1.0}), Stage(None, {"cls": 2.0})))
    model, batch = tiny_toco(config).eval(), tiny_batch()
    early, late, again = (model(**batch | {"step": step}).loss for step in (9, 10, 0))
    torch.testing.assert_close(late, 2 * early)
    assert torch.equal(early, again)
    assert [*model.buffers()] == []


def test_teacher_moves_in_training_alone():
    model, batch = tiny_toco(), tiny_batch()
    with torch.no_grad():
        for parameter in model.projector.parameters():
            parameter.add_(1)
    before = [p.clone() for p in model.teacher.parameters()]
    model.eval()(**batch)
    assert all(map(torch.equal, before, model.teacher.parameters()))
    model.train()(**batch)
    for old, new, student in zip(before, model.teacher.parameters(), model.projector.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * student)


def test_weights_of_zero():
    config = replace(TINY, stages=(Stage(None, {"cls": 1.0, "cls_aux": 1.0}),))
    batch = tiny_batch()
    model, lean = tiny_toco(config), tiny_toco(config, skip_unweighted=True)
    ours, theirs = model(**batch), lean(**batch)
    assert all(ours.losses[name] != 0 for name in LOSSES)
    assert [name for name in LOSSES if theirs.losses[name] != 0] == ["cls", "cls_aux"]
    torch.testing.assert_close(ours.loss, theirs.loss)
    assert torch.equal(ours.pseudo_labels, theirs.pseudo_labels)
    ours.loss.backward()
    theirs.loss.backward()
    assert model.decoder.conv1.weight.grad.count_nonzero() == 0
    assert lean.decoder.conv1.weight.grad is None


def test_model_can_be_copied_and_pickled():
    model, batch = tiny_toco().eval(), tiny_batch()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            other.backbone.vit.pos_embed.add_(1)  # of its own: the copy does not use the first model's
        assert not torch.equal(other(**batch).loss, model(**batch).loss)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(**batch).loss, model(**batch).loss)


# Backbones


@pytest.mark.parametrize("size", [(64, 64), (40, 72)])
def test_positions_by_timm(size):
    backbone = tiny_toco(positions="timm").backbone
    images = torch.randn(1, 3, *size)
    x = backbone.vit.forward_features(images)
    torch.testing.assert_close(backbone(images).cls, x[:, 0])
    torch.testing.assert_close(backbone(images).patches, x[:, 1:])
    ours = tiny_toco().backbone(images)
    assert torch.allclose(ours.cls, x[:, 0], atol=1e-6) == (size == (64, 64))  # no resizing: both rules agree
    cls, patches, aux = tokens_of(backbone.vit, images, -3, False)
    torch.testing.assert_close(ours.cls, cls)
    torch.testing.assert_close(ours.patches, patches.flatten(2).mT)
    torch.testing.assert_close(ours.aux, aux.flatten(2).mT)


@pytest.mark.parametrize(
    ("name", "options", "positions"),
    [
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, "toco"),  # norms behind the pooling
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg", "fc_norm": False}, "toco"),
        ("vit_tiny_patch16_224", {"reg_tokens": 2, "no_embed_class": True}, "toco"),
        ("deit_tiny_distilled_patch16_224", {}, "toco"),
        ("vit_base_patch16_siglip_224", {}, "toco"),  # pools by attention, without a class token
        ("eva02_tiny_patch14_224", {"img_size": 64}, "timm"),
    ],
)
def test_other_backbones(name, options, positions):
    model = tiny_toco(TINY, name, options, positions=positions)
    images = torch.randn(2, 3, 64, 64)
    tokens = model.backbone(images)
    assert tokens.patches.shape == tokens.aux.shape == (2, 64, 32)
    assert tokens.patches.std(-1).mean().item() == pytest.approx(1, abs=0.05)  # normalised
    if model.backbone.vit.cls_token is None:
        torch.testing.assert_close(tokens.cls, tokens.patches.mean(1))
    finite(model, tiny_batch(size=(48, 64)))
    untrained = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert untrained == []


def test_frozen_backbone():
    model, batch = sharper(tiny_toco()), tiny_batch()
    frozen = copy.deepcopy(model)
    frozen.backbone.requires_grad_(False)
    expected = gradients(model, model(**batch).loss)
    grads = gradients(frozen, frozen(**batch).loss)
    assert grads.keys() == {name for name in expected if not name.startswith("backbone")}
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name])


def test_checkpointing_keeps_less_and_changes_nothing():
    batch = tiny_batch(given_crops=True)

    def run(model):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.nbytes) or x, lambda x: x):
            loss = model(**batch).loss
        return sum(kept), loss, gradients(model, loss)

    plenty, loss, expected = run(tiny_toco())
    few, same_loss, grads = run(tiny_toco(checkpointing=True))
    assert few < 0.7 * plenty
    assert torch.equal(loss, same_loss)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected[name], msg=name)


def test_compiled_backbone():
    """Without inductor, which takes a minute: no graph breaks, and the same numbers."""
    batch = tiny_batch(given_crops=True)
    model, other = twins(tiny_toco(replace(TINY, cam_scales=(1.0,)), options={"depth": 3}))
    model.backbone.compile(backend="aot_eager", fullgraph=True)
    ours, theirs = model(**batch), other(**batch)
    torch.testing.assert_close(ours.loss, theirs.loss)
    expected = gradients(other, theirs.loss)
    for name, grad in gradients(model, ours.loss).items():
        torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_local_weights(tmp_path):
    options = {**VIT, "num_classes": 7}
    torch.manual_seed(3)
    vit = timm.create_model("vit_tiny_patch16_224", **options)
    file = tmp_path / "vit.pth"
    torch.save(vit.state_dict(), file)
    model = tiny_toco(pretrained=file)
    assert torch.equal(model.backbone.vit.pos_embed, vit.pos_embed)
    assert torch.equal(model.backbone.vit.blocks[3].mlp.fc2.weight, vit.blocks[3].mlp.fc2.weight)
    with pytest.raises(ValueError, match="pretrained must be True, False or a file, got"):
        tiny_toco(pretrained=tmp_path / "nothing.pth")


def test_nothing_is_downloaded_unasked(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a download")

    monkeypatch.setattr("timm.models._builder.load_pretrained", refuse)
    tiny_toco()
    with pytest.raises(AssertionError, match="a download"):
        tiny_toco(pretrained=True)


def test_pinned_weights():
    """The tags that the paper used; plain names mean other weights today."""
    deit = timm.get_pretrained_cfg("deit_base_patch16_224.fb_in1k")
    vit = timm.get_pretrained_cfg("vit_base_patch16_224.orig_in21k_ft_in1k")
    assert (deit.tag, vit.tag) == ("fb_in1k", "orig_in21k_ft_in1k")
    assert timm.get_pretrained_cfg("vit_base_patch16_224").tag != vit.tag
    assert [mean / 255 for mean in VOC.mean] == pytest.approx(deit.mean, abs=1e-5)
    assert [std / 255 for std in VOC.std] == pytest.approx(deit.std, abs=1e-5)


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model, batch = sharper(tiny_toco()), tiny_batch(given_crops=True)
    exact = copy.deepcopy(model)(**batch)
    with torch.autocast("cpu", dtype):
        output = finite(model, batch)
    for name in LOSSES:
        assert output.losses[name].dtype == torch.float32
        torch.testing.assert_close(output.losses[name], exact.losses[name], rtol=0.1, atol=0.02, msg=name)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_throughout(dtype):
    batch = tiny_batch(given_crops=True)
    batch["views"] = {name: x.to(dtype) for name, x in batch["views"].items()}
    finite(tiny_toco().to(dtype), batch | {"images": batch["images"].to(dtype)})


# Quirks


def test_boxes_on_the_patch_grid():
    batch = tiny_batch()
    images, labels, boxes = batch["images"], batch["image_labels"], torch.tensor([[16, 60, 0, 64], [0, 64, 24, 64]])
    models = [sharper(tiny_toco(config)) for config in (TINY, quirky(boxes_in_pixels=False))]
    maps = models[0]._cam_maps(images, TINY.cam_scales, None)[1]
    cams = merge_cams(maps, (64, 64), labels, out_size=(8, 8))
    published, fixed = (m.criterion.patch_labels(maps, (64, 64), (8, 8), labels, boxes) for m in models)
    limits = {"high": TINY.high, "low": TINY.low}
    assert torch.equal(published, cam_to_label(cams, labels, boxes=boxes, **limits))
    assert torch.equal(fixed, cam_to_label(cams, labels, boxes=patch_boxes(boxes, 8), **limits))
    assert (published == 255).all()  # the boxes begin outside of the grid
    assert (fixed != 255).any()


def test_term_that_is_always_added():
    batch = tiny_batch(given_crops=True, batch=3)
    batch["views"]["flags"] = torch.tensor([[0.0, 1, 0], [0, 0, 0], [1, 1, 1]])
    models = [tiny_toco(config) for config in (TINY, quirky(always_count_negatives=False))]
    with_term, without = (model(**batch).losses["ctc"] for model in models)

    model = models[0]  # whose projections are computed again, image by image
    crops = [batch["images"], batch["views"]["second_global"], *batch["views"]["local_crops"]]
    student = torch.stack([model.projector(model.backbone(x).cls) for x in crops])  # (5, B, D)
    teacher = torch.stack([model.teacher(model.backbone(x).cls) for x in crops[:2]])
    flags, term = torch.cat([torch.ones(3, 2), batch["views"]["flags"]], dim=1), 0
    for i in range(3):
        similar = torch.exp(teacher[:, i] @ student[:, i].T / TINY.temperature)  # (2, 5)
        negatives = similar[:, flags[i] == 0].sum(1) + 1e-4
        term += torch.log(1 + negatives).mean() / (flags[i].sum() + 1e-4) / 3
    torch.testing.assert_close(with_term - without, term, rtol=1e-4, atol=1e-6)


def test_segmentation_loss_that_is_nan():
    batch = tiny_batch() | {"image_labels": torch.zeros(2, 5)}  # no object
    assert tiny_toco()(**batch).loss.isfinite()
    assert tiny_toco(quirky(nan_segmentation=True))(**batch).loss.isnan()
    batch = tiny_batch()
    models = [sharper(tiny_toco(config)) for config in (TINY, quirky(nan_segmentation=True))]
    ours, theirs = (model(**batch).losses["seg"] for model in models)
    torch.testing.assert_close(ours, theirs)


def test_exact_energy_is_scaled():
    batch = tiny_batch()
    lattice, exact = (sharper(tiny_toco(energy_kernel=kernel))(**batch).losses["reg"] for kernel in ("auto", "exact"))
    assert lattice != exact
    assert 0.3 < lattice / exact < 3  # a rough approximation, but of the same thing


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


@pytest.mark.parametrize("flip", [None, "sum", "max"])
def test_predictions(flip):
    model, images = tiny_toco(), torch.randn(2, 3, 64, 64)
    expected = []
    for scale in (1.0, 1.5):
        x = F.interpolate(images, scale_factor=scale, mode="bilinear")
        logits, mirrored = (
            F.interpolate(forward(model, y)[2].detach(), size=(64, 64), mode="bilinear") for y in (x, x.flip(-1))
        )
        mirrored = mirrored.flip(-1)
        expected.append({None: logits, "sum": logits + mirrored, "max": torch.maximum(logits, mirrored)}[flip])
    expected = torch.stack(expected).amax(0)
    torch.testing.assert_close(model.predict(images, scales=(1.0, 1.5), flip=flip), expected, atol=1e-5, rtol=1e-4)


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
    "draws": (viewed(draws=torch.zeros(3, 3)), "draws must have images' batch, 2"),
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
