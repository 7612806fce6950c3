"""PPC's module beyond the published step: shapes, state, precision, CAMs, networks of one's own, mistakes."""

import copy
import pickle
import re
from dataclasses import replace

import pytest
import torch
from ppc_inputs import CONFIGS, RESNET, TINY_EPS, tiny_batch, tiny_ppc
from toco_inputs import finite
from torch import nn

from toco_kernels.methods import (
    PPC,
    PPC_EPS,
    PPC_SEAM,
    PPC_TINY,
    FeatureMaps,
    PPCCriterion,
    parameter_groups,
)
from toco_kernels.methods.ppc.config import CONTRAST

pytestmark = pytest.mark.usefixtures("one_thread")

VIT = {"img_size": 64, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}


@pytest.mark.parametrize("variant", CONFIGS)
def test_output_has_the_documented_shapes(variant):
    config = CONFIGS[variant]
    output = tiny_ppc(config)(**tiny_batch(size=(70, 61)))
    assert output.loss.shape == ()
    assert set(output.losses) == {"cls", "min_pooling", "er", "ecr", *CONTRAST} | ({"saliency"} & {*config.weights})
    assert {loss.shape for loss in output.losses.values()} == {()}
    assert output.cams.shape == (3, 5, 9, 8)
    assert 0 <= output.cams.min() <= output.cams.max() <= 1
    assert output.pseudo_labels.shape == (3, 4, 4)
    assert output.pseudo_labels.dtype == torch.int64
    assert output.features.shape == (3, 16, 9, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("variant", CONFIGS)
def test_autocast(variant, dtype):
    config = replace(CONFIGS[variant], dropout=0.0)
    exact = tiny_ppc(config)(**tiny_batch())
    with torch.autocast("cpu", dtype):
        output = finite(model := tiny_ppc(config), tiny_batch())
        assert model.eval().cams(tiny_batch()["images"]).isfinite().all()
    for name, loss in output.losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact.losses[name], rtol=0.15, atol=0.02, msg=name)
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_throughout(dtype):
    batch = tiny_batch()
    finite(tiny_ppc().to(dtype), batch | {"images": batch["images"].to(dtype)})


def test_weights_decide_what_is_computed():
    batch = tiny_batch()
    config = replace(PPC_TINY, weights={"cls": 1.0, "er": 0.0})
    model = tiny_ppc(config)
    output = model(**batch)
    assert output.losses["er"] == 0
    assert [*output.losses] == ["cls", "er"]
    assert torch.equal(output.loss, output.losses["cls"])
    output.loss.backward()
    assert model.projector.weight.grad is None
    assert model.classifier.weight.grad.norm() > 0
    assert tiny_ppc(replace(PPC_TINY, weights={}))(**batch).loss == 0


def test_contrast_begins_at_a_step():
    config, batch = replace(PPC_TINY, contrast_from=10, dropout=0.0), tiny_batch()
    model = tiny_ppc(config)
    before, after = (model(**batch | {"step": step}) for step in (9, 10))
    assert all(before.losses[name] == 0 for name in CONTRAST)
    assert all(after.losses[name] > 0 for name in CONTRAST)
    assert torch.equal(before.pseudo_labels, after.pseudo_labels)
    contrast = sum(0.1 * after.losses[name] for name in CONTRAST)
    torch.testing.assert_close(after.loss - contrast, before.loss)


def test_model_can_be_copied_and_pickled():
    model, batch = tiny_ppc(generator=torch.Generator()).eval(), tiny_batch()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(**batch).loss, model(**batch).loss)


# CAMs


@pytest.mark.parametrize("variant", CONFIGS)
def test_cams(variant):
    model, batch = tiny_ppc(CONFIGS[variant]).eval(), tiny_batch(size=(70, 61))
    images, labels = batch["images"], batch["image_labels"]
    cams = model.cams(images, labels)
    assert cams.shape == (3, 5, 70, 61)
    assert 0 <= cams.min() <= cams.max() <= 1
    every = model.cams(images)
    assert torch.equal(cams, every * labels[:, :, None, None])
    assert (every.amax((2, 3)) > 0.1).any(dim=1).all(), "of every image"
    assert model.cams(images, size=(20, 30)).shape == (3, 5, 20, 30)
    assert not torch.equal(every, model.cams(images, scales=(1.0,)))
    torch.testing.assert_close(model.cams(images.flip(-1), labels).flip(-1), cams, atol=1e-4, rtol=1e-4)


def test_cams_of_eps_are_probabilities_beside_the_largest():
    """As EPS's own code makes them: over all classes and the background, then summed."""
    model, images = tiny_ppc(TINY_EPS).eval(), tiny_batch()["images"]
    with torch.no_grad():
        maps = [model.view(x).cams.softmax(1)[:, 1:] for x in (images, images.flip(-1))]
    total = maps[0] + maps[1].flip(-1)
    expected = total / (total.amax((2, 3), keepdim=True) + 1e-5)
    torch.testing.assert_close(model.cams(images, scales=(1,), size=(8, 8)), expected)
    assert model.cams(images, torch.eye(3, 5)).amax((2, 3)).sum() == pytest.approx(3, abs=1e-3)


# Networks of one's own


def test_criterion_for_a_network_of_ones_own():
    """It makes CAMs and has no pixel correlation; one projection is added beside it."""
    torch.manual_seed(0)
    base, projector = nn.Conv2d(3, 12, 8, 8), nn.Conv2d(12, 16, 1)
    classifier = nn.Conv2d(12, 6, 1)
    images, labels = tiny_batch()["images"], tiny_batch()["image_labels"]
    features = [base(x).relu() for x in (images, images[:, :, ::2, ::2])]
    criterion = PPCCriterion(replace(PPC_TINY, weights=dict.fromkeys(CONTRAST, 0.1)))
    output = criterion(*(classifier(x) for x in features), *(projector(x) for x in features), labels)
    output.loss.backward()
    assert base.weight.grad.norm() > 0
    assert projector.weight.grad.norm() > 0
    assert classifier.weight.grad is None, "labels and prototypes are constants"
    everything = PPCCriterion(PPC_TINY)
    output = everything(*(classifier(x) for x in features), *(projector(x) for x in features), labels)
    assert output.loss.isfinite()
    generator = torch.Generator().manual_seed(3)
    same = PPCCriterion(PPC_TINY, generator=generator)
    inputs = *(classifier(x) for x in features), *(projector(x) for x in features), labels
    first = same(*inputs).losses["intra"]
    generator.manual_seed(3)
    assert torch.equal(same(*inputs).losses["intra"], first)


# Backbones


@pytest.mark.parametrize(
    ("name", "options", "frozen"),
    [
        ("resnet10t", RESNET, ("conv1", "bn1", "layer1")),
        ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 16, 24, 32)}, ("stem_", "stages_0")),
        ("mobilenetv3_small_050", {}, ("conv_stem", "bn1", "blocks.0")),
        ("vit_tiny_patch16_224", VIT, ()),
    ],
)
def test_backbones(name, options, frozen):
    model = tiny_ppc(name=name, options=options)
    finite(model, tiny_batch(2, (70, 61)))
    for parameter, p in model.backbone.network.named_parameters():
        stem, norm = parameter.startswith(frozen) if frozen else False, _of_batch_norm(model, parameter)
        assert p.requires_grad == (not stem and not norm), parameter
    free = tiny_ppc(name=name, options=options, freeze_norms=False, freeze_stem=False)
    assert all(p.requires_grad for p in free.parameters())


def _of_batch_norm(model, parameter):
    module = model.backbone.network.get_submodule(parameter.rpartition(".")[0])
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def test_frozen_norms_stay_in_training():
    model = tiny_ppc()
    before = {name: x.clone() for name, x in model.backbone.named_buffers()}
    model.train()(**tiny_batch())
    assert all(torch.equal(x, before[name]) for name, x in model.backbone.named_buffers())
    free = tiny_ppc(freeze_norms=False).train()
    free(**tiny_batch())
    assert not torch.equal(free.backbone.network.bn1.running_mean, before["network.bn1.running_mean"])


def test_training_frozen_norms_of_random_weights_warns(recwarn):
    """Once, and not where weights were loaded, norms are trained, or nothing is."""
    batch, options = tiny_batch(), {"config": PPC_TINY, "backbone_options": {**RESNET, "zero_init_last": True}}
    model = PPC("resnet10t", **options)
    weights = copy.deepcopy(model.state_dict())
    model.eval()(**batch)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="random weights whose batch norms are frozen: give pretrained=True or"):
        model.train()(**batch)
    model(**batch)
    loaded = PPC("resnet10t", **options)
    loaded.load_state_dict(weights)
    for other in (loaded, PPC("resnet10t", **options, freeze_norms=False), pickle.loads(pickle.dumps(model))):
        other.train()(**batch)
    assert not recwarn.list


def test_checkpointing_gives_the_same():
    config = replace(PPC_TINY, dropout=0.0)
    plain, other = tiny_ppc(config), tiny_ppc(config, checkpointing=True)
    losses = [finite(model, tiny_batch()).loss for model in (plain, other)]
    torch.testing.assert_close(*losses)
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        if a.requires_grad:
            torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize(
    ("name", "options", "strides"),
    [
        ("resnet10t", RESNET | {"output_stride": 16}, [8, 16, 16]),
        ("vit_tiny_patch16_224", VIT | {"patch_size": 16}, [16, 16, 16]),
    ],
)
def test_other_strides_are_refused(name, options, strides):
    message = re.escape(f"backbone must have three features with a stride of 8, got '{name}' with {strides}")
    with pytest.raises(ValueError, match=message):
        FeatureMaps(name, **options)


def test_local_weights(tmp_path):
    import timm

    whole = timm.create_model("resnet10t", **RESNET)
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    model = tiny_ppc(pretrained=tmp_path / "weights.pth")
    assert torch.equal(model.backbone.network.layer4[0].conv1.weight, whole.layer4[0].conv1.weight)
    with pytest.raises(ValueError, match=r"pretrained must be True, False or a file, got .*nothing\.pth"):
        tiny_ppc(pretrained=tmp_path / "nothing.pth")


def test_published_groups():
    groups = {group["name"]: group for group in parameter_groups(tiny_ppc(), PPC_SEAM.optimisation)}
    assert groups["backbone"]["lr"] == 0.01
    assert groups["classifiers"]["lr"] == 0.1
    assert len(groups["classifiers"]["params"]) == 5
    assert {group["weight_decay"] for group in groups.values()} == {5e-4}


# Mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(3, 4, 64, 64)}, "images must have three colours"),
        ({"image_labels": torch.zeros(3, 6)}, r"image_labels must have shape \(B, C\) = \(3, 5\)"),
        ({"views": [1]}, "views must be a mapping, got list"),
        ({"views": {"second": 1}}, r"views must have keys of \('saliency', 'draws'\), got \['second'\]"),
        ({"views": {}}, r"views must have saliency, \(B, 1, H, W\) in \[0, 1\], for variant 'eps', got \[\]"),
        ({"views": {"saliency": torch.zeros(3, 2, 4, 4)}}, r"saliency must have shape \(3, 1, H, W\), got"),
        (
            {"views": {"saliency": torch.zeros(3, 1, 4, 4), "draws": torch.zeros(2, 3, 4, 4)}},
            r"draws must have shape \(B, 2, h, w\) = \(3, 2, 4, 4\), got",
        ),
        ({"step": -1}, "step must be"),
    ],
)
def test_mistakes(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        tiny_ppc(TINY_EPS)(**tiny_batch() | change)


def test_configurations_are_the_published_ones():
    assert (PPC_SEAM.background_score, PPC_SEAM.prototype_share, PPC_SEAM.dropout) == (0.2, 8, 0.5)
    assert (PPC_EPS.background_score, PPC_EPS.prototype_share, PPC_EPS.dropout) == (0.1, 16, 0.0)
    assert PPCCriterion(PPC_SEAM).prototype_pixels(16, 16) == 32
    assert hash(PPC_SEAM) != hash(PPC_EPS)
    with pytest.raises(TypeError, match="weights must not be changed"):
        PPC_SEAM.weights["cls"] = 2
