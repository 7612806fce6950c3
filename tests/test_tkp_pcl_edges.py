"""TKP-PCL beside its training step: shapes, precision, labels, other backbones, and what is refused."""

import copy
import pickle
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tkp_pcl_inputs import TINY, batch_of, tiny_tkp_pcl
from toco_inputs import finite

from toco_kernels.methods import TKPPCL_COCO, TKPPCL_VOC, TKPPCLConfig, TKPPCLCriterion
from toco_kernels.methods.tkp_pcl import HVBiLSTM
from toco_kernels.methods.tkp_pcl.criterion import LOSSES

pytestmark = pytest.mark.usefixtures("one_thread")


def test_output_has_the_documented_shapes():
    batch = batch_of(size=(70, 61))
    output = finite(tiny_tkp_pcl(), batch)
    assert output.loss.shape == ()
    assert {loss.shape for loss in output.losses.values()} == {()}
    assert output.cams.shape == (2, 6, 8, 7)
    torch.testing.assert_close(output.cams.sum(1), torch.ones(2, 8, 7))
    assert (output.cams[:, 1:][batch["image_labels"] == 0] == 0).all()
    assert output.pseudo_labels.shape == (2, 8, 7)
    assert output.pseudo_labels.dtype == torch.int64
    assert output.tokens.shape == (2, 8 * 7, 32)


@pytest.mark.parametrize("size", [(5, 64), (12, 9)])
def test_images_of_few_patches(size):
    """Fewer than K: all are pooled."""
    finite(tiny_tkp_pcl(), batch_of(size=size))


@pytest.mark.parametrize("config", [TINY, replace(TINY, form="log", conditioning="hv_bilstm")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype, config):
    model, batch = tiny_tkp_pcl(config).eval(), batch_of()
    exact = copy.deepcopy(model)(**batch)
    with torch.autocast("cpu", dtype):
        output = finite(model, batch)
    for name in LOSSES:
        assert output.losses[name].dtype == torch.float32
        torch.testing.assert_close(output.losses[name], exact.losses[name], rtol=0.1, atol=0.02, msg=name)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_throughout(dtype):
    batch = batch_of()
    output = finite(tiny_tkp_pcl().to(dtype), batch | {"images": batch["images"].to(dtype)})
    assert output.loss.dtype == torch.float32
    assert output.tokens.dtype == dtype


def test_a_batch_without_images_costs_nothing():
    model, batch = tiny_tkp_pcl(), batch_of()
    output = model(batch["images"][:0], batch["image_labels"][:0], step=0)
    output.loss.backward()
    assert output.loss == 0
    assert all((p.grad == 0).all() for p in model.parameters() if p.grad is not None)
    assert model.eval().cams(batch["images"][:0], batch["image_labels"][:0]).shape == (0, 6, 64, 64)


def test_scores_that_are_as_sure_as_can_be():
    """Cross-entropy is finite where a probability is 0 or 1, on the wrong side too."""
    scores = torch.eye(6)[None, torch.arange(8) % 6].requires_grad_()
    output = TKPPCLCriterion(replace(TINY, k=1))(scores, torch.randn(1, 8, 4), torch.zeros(1, 5), grid=(2, 4), step=0)
    output.loss.backward()
    assert output.losses["mce"].item() == pytest.approx(5 / 6 * 16, rel=0.02)
    assert scores.grad.isfinite().all()


# Labels


def test_labels_by_hand():
    """Absent classes cleared, each divided by its largest, made probabilities, resized with aligned corners."""
    model, batch = tiny_tkp_pcl().eval(), batch_of(size=(64, 48))
    images, labels = batch["images"], batch["image_labels"]
    z = model.scores(images).detach()
    expected = torch.zeros_like(z)
    for b in range(2):
        for c in [0, *(labels[b].nonzero().flatten() + 1).tolist()]:
            expected[b, c] = z[b, c] / z[b, c].max()
    expected /= expected.sum(1, keepdim=True)
    torch.testing.assert_close(model(**batch).cams, expected)
    full = F.interpolate(expected, size=(64, 48), mode="bilinear", align_corners=True)
    torch.testing.assert_close(model.cams(images, labels), full)
    assert torch.equal(model.pseudo_labels(images, labels), model.cams(images, labels).argmax(1))
    assert model.pseudo_labels(images, labels, size=(20, 30)).shape == (2, 20, 30)


def test_scales_and_mirror_images():
    model, images, labels = tiny_tkp_pcl().eval(), batch_of()["images"], batch_of()["image_labels"]
    both = model.cams(images, labels, flip=True)
    torch.testing.assert_close(model.cams(images.flip(-1), labels, flip=True).flip(-1), both)
    assert (both - model.cams(images, labels)).abs().max() > 1e-3
    torch.testing.assert_close(model.cams(images, labels, scales=(1.0, 1.0)), model.cams(images, labels))
    assert model.cams(images, labels, scales=(1.0, 1.5)).shape == (2, 6, 64, 64)


def test_images_are_squashed_before_they_are_labelled():
    images, labels = batch_of(size=(50, 70))["images"], batch_of()["image_labels"]
    square = F.interpolate(images, size=(96, 96), mode="bilinear", align_corners=False)
    expected = tiny_tkp_pcl().eval().cams(square, labels, scales=(1.0, 0.5), size=(50, 70))
    model = tiny_tkp_pcl(replace(TINY, label_size=96)).eval()
    assert torch.equal(model.cams(images, labels, scales=(1.0, 0.5)), expected)
    assert model.scores(images).shape == (2, 6, 6, 8), "which are those of the images as they are"


# Networks


def test_compiled_across_the_end_of_the_frozen_steps():
    """The step is a symbol in the graphs, not a constant of each."""
    model, batch, graphs = tiny_tkp_pcl(replace(TINY, frozen_steps=3), options={"depth": 1}).eval(), batch_of(), []
    compiled = torch.compile(model, backend=lambda module, _: graphs.append(module) or module, fullgraph=True)
    for step in (1, 2, 3, 4):
        loss = compiled(**batch | {"step": step}).loss
        torch.testing.assert_close(loss, model(**batch | {"step": step}).loss)
    assert len(graphs) == 3, "of the first step, of those before the end, of those after it"


def test_frozen_positions_are_not_said_to_be_trained():
    must = r"train_positions must be False where all but 1 blocks are frozen \(trained_blocks\), got True"
    with pytest.raises(ValueError, match=must):
        tiny_tkp_pcl(replace(TINY, trained_blocks=1), train_positions=True)
    assert tiny_tkp_pcl(train_positions=True).backbone.vit.pos_embed.requires_grad


@pytest.mark.parametrize(
    ("name", "options", "positions"),
    [
        ("vit_tiny_patch16_224", {"class_token": False, "global_pool": "avg"}, "toco"),
        ("vit_tiny_patch16_224", {"reg_tokens": 2, "no_embed_class": True}, "toco"),
        ("eva02_tiny_patch14_224", {"img_size": 64}, "timm"),
    ],
)
def test_other_backbones(name, options, positions):
    for config in (TINY, replace(TINY, trained_blocks=1)):
        model = tiny_tkp_pcl(config, name, options, positions=positions)
        finite(model, batch_of(size=(48, 64)))
        untrained = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
        assert untrained == []


def test_recurrent_layers_read_rows_and_columns():
    torch.manual_seed(0)
    layer = HVBiLSTM(8).eval()
    tokens = torch.randn(1, 12, 8)
    before = layer(tokens, (3, 4)).unflatten(1, (3, 4))
    tokens[0, 5] += 1  # row 1, column 1
    changed = (layer(tokens, (3, 4)).unflatten(1, (3, 4)) != before).any(3)[0]
    expected = torch.zeros(3, 4, dtype=torch.bool)
    expected[1], expected[:, 1] = True, True
    assert torch.equal(changed, expected)
    assert sum(p.numel() for p in HVBiLSTM(768).parameters()) == 4 * 4 * 192 * (768 + 192 + 2)
    with pytest.raises(ValueError, match="width must be a multiple of 4 for hv_bilstm, got 6"):
        HVBiLSTM(6)


def test_model_can_be_copied_and_pickled():
    model, batch = tiny_tkp_pcl().eval(), batch_of()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(**batch).loss, model(**batch).loss)
    assert [*model.criterion.state_dict()] == []


# What is refused


def changed(**changes):
    return lambda: tiny_tkp_pcl()(**batch_of() | changes)


def criterion(**changes):
    given = {"scores": torch.ones(1, 8, 6), "tokens": torch.ones(1, 8, 4), "image_labels": torch.ones(1, 5)}
    return lambda: TKPPCLCriterion(replace(TINY, weight=0.0))(**given | {"grid": (2, 4), "step": 0} | changes)


def cams(**options):
    return lambda: tiny_tkp_pcl().cams(batch_of()["images"], batch_of()["image_labels"], **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (changed(images=torch.zeros(3, 64, 64)), "images must have 4 dimensions"),
        (changed(images=torch.zeros(2, 1, 64, 64)), "images must have three colours"),
        (changed(images=torch.zeros(2, 3, 64, 64).byte()), "images must be float32"),
        (changed(image_labels=torch.zeros(2, 6)), "image_labels must have shape (B, C) = (2, 5)"),
        (changed(step=-1), "step must be an integer >= 0, got -1"),
        (lambda: tiny_tkp_pcl(replace(TINY, trained_blocks=5)), "trained_blocks must be at most the backbone's 4"),
        (lambda: tiny_tkp_pcl(num_classes=1), "num_classes must be an integer >= 2, got 1"),
        (changed(images=torch.zeros(2, 3, 0, 64)), "images must have at least one pixel, got shape (2, 3, 0, 64)"),
        (criterion(grid=(2, 3)), "grid must have the 8 patches of the scores, got (2, 3)"),
        (criterion(grid=(-2, -4)), "grid must be an integer >= 1, got -2"),
        (criterion(grid=8), "grid must be 2 integers >= 1, got 8"),
        (criterion(tokens=torch.ones(1, 9, 4)), "tokens must have a token for each of the scores, (B, N) = (1, 8)"),
        (criterion(tokens=torch.ones(1, 8, 4).long()), "tokens must be float32, float64, float16 or bfloat16"),
        (criterion(scores=torch.ones(1, 0, 6), tokens=torch.ones(1, 0, 4)), "scores must have a patch and a class"),
        (cams(scales=()), "scales must be positive numbers, at least one, got ()"),
        (cams(scales=(1.0, -1.0)), "scales must be positive numbers, at least one, got (1.0, -1.0)"),
        (cams(size=(0, 5)), "size must be an integer >= 1, got 0"),
        (cams(size=5), "size must be 2 integers >= 1, got 5"),
    ],
)
def test_mistakes_are_named(call, message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        call()


def test_configurations():
    """What is documented as this package's choice."""
    config = TKPPCLConfig()
    assert (config.k, config.threshold, config.form, config.weight) == (6, 0.95, "linear", 0.1)
    assert (config.conditioning, config.contrast_background, config.crop_size, config.label_size) == (
        "none",
        True,
        384,
        960,
    )
    assert (TKPPCL_VOC.num_classes, TKPPCL_COCO.num_classes) == (21, 81)
