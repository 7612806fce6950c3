"""Backbones of ToCo: positions, other ViTs, frozen, recomputed, compiled, and their weights."""

import copy
from dataclasses import replace

import pytest
import torch
from toco_inputs import VIT, finite, gradients, sharper, tiny_batch, tiny_toco, twins

from toco_kernels.methods import TINY, VOC
from toco_kernels.methods.positions import resize_positions
from toco_kernels.methods.published import tokens_of

timm = pytest.importorskip("timm")

pytestmark = pytest.mark.usefixtures("one_thread")


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
    model, other = twins(tiny_toco(replace(TINY, cam_scales=(1.0,), aux_layer=0), options={"depth": 1}))
    model.backbone.compile(backend="aot_eager", fullgraph=True)
    ours, theirs = model(**batch), other(**batch)
    torch.testing.assert_close(ours.loss, theirs.loss)
    expected = gradients(other, theirs.loss)
    for name, grad in gradients(model, ours.loss).items():
        torch.testing.assert_close(grad, expected[name], atol=1e-5, rtol=1e-4, msg=name)


def test_compiled_backbone_at_many_sizes():
    """A graph for the first size and one for all others (torch 2.11: two); one for each size would soon be too many."""
    graphs = []
    model = tiny_toco(replace(TINY, aux_layer=0), options={"depth": 1}).eval()
    compiled = copy.deepcopy(model)
    compiled.backbone.compile(backend=lambda module, _: graphs.append(module) or module, fullgraph=True)
    for size in ((64, 64), (70, 90), (61, 99), (96, 48)):
        images = torch.randn(1, 3, *size)
        expected, actual = (x.predict(images, scales=(1, 1.5, 1.25), flip="sum") for x in (model, compiled))
        torch.testing.assert_close(actual, expected)
    assert 2 <= len(graphs) <= 3


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_resized_positions_keep_their_precision(dtype):
    positions = torch.randn(1, 17, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    exact = resize_positions(positions.double(), (4, 4), (5, 3), 1)
    resized = resize_positions(positions, (4, 4), (5, 3), 1)
    assert resized.dtype == dtype
    rounding = max(torch.finfo(dtype).eps, 0 if dtype == torch.float64 else 1e-6)
    torch.testing.assert_close(resized.double(), exact, rtol=2 * rounding, atol=2 * rounding)
    if dtype == torch.float64:
        grid = positions[:, 1:].mT.reshape(1, 8, 4, 4)
        expected = torch.nn.functional.interpolate(grid, (5, 3), mode="bicubic").flatten(2).mT
        assert torch.equal(resized[:, 1:], expected)


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
