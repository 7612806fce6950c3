"""ToCo's module beyond the published step: shapes, state, precision, and the published quirks, switched."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from toco_inputs import finite, sharper, tiny_batch, tiny_toco

from toco_kernels import cam_to_label, merge_cams, patch_boxes
from toco_kernels.methods import TINY, Quirks, Stage
from toco_kernels.methods.config import LOSSES

pytestmark = pytest.mark.usefixtures("one_thread")


def quirky(**changes):
    return replace(TINY, quirks=Quirks(**changes))


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


@pytest.mark.parametrize(
    ("training", "grad", "asked", "moves"),
    [(True, False, None, False), (True, True, False, False), (False, True, True, True), (True, False, True, True)],
)
def test_whether_the_teacher_moves(training, grad, asked, moves):
    """Neither when a loss is only looked at, nor twice in a step of the optimiser."""
    model = tiny_toco().train(training)
    with torch.no_grad():
        model.projector.directions.weight.add_(1)
    before = model.teacher.directions.weight.clone()
    with torch.set_grad_enabled(grad):
        model(**tiny_batch(), update_teacher=asked)
    assert torch.equal(before, model.teacher.directions.weight) != moves


def test_weights_of_zero():
    config = replace(TINY, stages=(Stage(None, {"cls": 1.0, "cls_aux": 1.0}),))
    batch = tiny_batch()
    model, lean = tiny_toco(config), tiny_toco(config, skip_unweighted=True)
    ours, theirs = model(**batch), lean(**batch)
    assert all(ours.losses[name] != 0 for name in LOSSES)
    assert [name for name in LOSSES if theirs.losses[name] != 0] == ["cls", "cls_aux"]
    torch.testing.assert_close(ours.loss, theirs.loss)
    assert ours.cams is not None
    assert (theirs.cams, theirs.pseudo_labels) == (None, None)
    ours.loss.backward()
    theirs.loss.backward()
    assert model.decoder.conv1.weight.grad.count_nonzero() == 0
    assert lean.decoder.conv1.weight.grad is None
    assert torch.equal(lean.teacher.directions.weight, tiny_toco().teacher.directions.weight)


@pytest.mark.parametrize(("loss", "passes", "labels"), [("cls", 1, False), ("ptc", 4, False), ("seg", 4, True)])
def test_what_no_loss_needs_is_not_computed(loss, passes, labels):
    config = replace(TINY, stages=(Stage(None, {loss: 1.0}),))
    model, batch = sharper(tiny_toco(config, skip_unweighted=True)), tiny_batch()
    expected, counted = sharper(tiny_toco(config))(**batch), []
    model.backbone.register_forward_hook(lambda *_: counted.append(1))
    output = model(**batch)
    assert len(counted) == passes  # the images; their mirror images, and both at two other scales
    assert torch.equal(output.loss, expected.loss)
    assert (output.cams is None) == (passes == 1)
    assert torch.equal(output.pseudo_labels, expected.pseudo_labels) if labels else output.pseudo_labels is None


def test_no_loss_at_all():
    model = tiny_toco(replace(TINY, stages=(Stage(None, {}),)), skip_unweighted=True)
    assert torch.equal(model(**tiny_batch()).loss, torch.zeros(()))


def test_model_can_be_copied_and_pickled():
    model, batch = tiny_toco().eval(), tiny_batch()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        with torch.no_grad():
            other.backbone.vit.pos_embed.add_(1)  # of its own: the copy does not use the first model's
        assert not torch.equal(other(**batch).loss, model(**batch).loss)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(**batch).loss, model(**batch).loss)


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
