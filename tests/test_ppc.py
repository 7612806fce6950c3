"""PPC's training step against the published one."""

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from ppc_inputs import CONFIGS, TINY_EPS, tiny_batch, tiny_ppc
from test_toco import assert_close
from toco_inputs import gradients

from toco_kernels.common.measure import Syncs
from toco_kernels.methods import PPC_EPS, PPC_TINY, PPCCriterion
from toco_kernels.methods.ppc.config import CONTRAST
from toco_kernels.methods.ppc.published import published_step

pytestmark = pytest.mark.usefixtures("one_thread")


def no_class(batch):
    return batch | {"image_labels": torch.zeros_like(batch["image_labels"])}


def without(batch, *views):
    return batch | {"views": {name: x for name, x in batch["views"].items() if name not in views}}


CASES = {
    "SEAM": (PPC_TINY, tiny_batch()),
    "EPS": (TINY_EPS, tiny_batch()),
    "sizes that nothing divides": (replace(PPC_TINY, second_size=37), tiny_batch(2, (70, 61), grid=(5, 5))),
    "EPS, sizes that nothing divides": (replace(TINY_EPS, second_size=37), tiny_batch(2, (70, 61), grid=(5, 5))),
    "second view larger than the first": (replace(PPC_TINY, second_size=72), tiny_batch(2, (40, 50), grid=(9, 9))),
    "one image": (PPC_TINY, tiny_batch(1)),
    "EPS, one image": (TINY_EPS, tiny_batch(1)),
    "no class": (PPC_TINY, no_class(tiny_batch())),
    "EPS, one image without class": (TINY_EPS, no_class(tiny_batch(1))),
    "draws of the module's own": (PPC_TINY, without(tiny_batch(), "draws", "saliency")),
    "published prototypes": (replace(PPC_TINY, published_prototypes=True), tiny_batch()),
    "other options": (
        replace(TINY_EPS, ecr_share=0.5, temperature=0.3, background_score=0.4, saliency_mix=0.3, dropout=0.3),
        tiny_batch(5),
    ),
}


def steps(config, batch, **arguments):
    """Ours and the published one, with the same random numbers."""
    model = tiny_ppc(config, **arguments)
    other, outputs = copy.deepcopy(model), []
    for step in (model, lambda **batch: published_step(other, **batch)):
        torch.manual_seed(7)  # of dropout
        outputs.append(step(**batch))
    return model, other, *outputs


@pytest.mark.parametrize("case", CASES)
def test_step_is_the_published_one(case):
    model, other, ours, theirs = steps(*CASES[case])
    assert [*ours.losses] == [*theirs.losses] == [*model.config.weights]
    for name, loss in ours.losses.items():
        assert_close(loss, theirs.losses[name], name)
    assert_close(ours.loss, theirs.loss, "loss")
    assert torch.equal(ours.pseudo_labels, theirs.pseudo_labels)
    torch.testing.assert_close(ours.cams, theirs.cams, atol=1e-5, rtol=0)
    assert_close(ours.features, theirs.features, "features")
    expected = gradients(other, theirs.loss)
    for name, grad in gradients(model, ours.loss).items():
        assert_close(grad, expected[name], name)


@pytest.mark.parametrize("variant", CONFIGS)
def test_every_loss_has_the_published_gradient(variant):
    model, other, ours, theirs = steps(CONFIGS[variant], tiny_batch())
    for loss in ours.losses:
        expected = gradients(other, theirs.losses[loss], again=True)
        largest = max(grad.norm() for grad in expected.values())
        assert largest > 0, "the case is not trivial"
        for name, grad in gradients(model, ours.losses[loss], again=True).items():
            error = (grad - expected[name]).norm()
            # A gradient that cancels to almost nothing is rounding: judge it beside the largest, too.
            assert error <= 1e-4 * max(expected[name].norm(), 1e-3 * largest), f"{loss}: {name}"


def test_cases_are_not_trivial():
    """Labels have objects and background, everything trained gets a gradient, saliency has classes on both sides."""
    for variant, config in CONFIGS.items():
        model = tiny_ppc(config)
        output = model(**tiny_batch())
        assert len(output.pseudo_labels.unique()) >= 3, variant
        assert 0 in output.pseudo_labels
        assert all(grad.norm() > 0 for grad in gradients(model, output.loss).values()), variant


def test_dropout_and_draws_matter():
    """Else the comparison would not see whether both steps have the same ones."""
    batch = tiny_batch()
    dropped = [tiny_ppc()(**batch).loss for _ in range(2)]
    assert torch.equal(*dropped), "from the same seed"
    model = tiny_ppc()
    assert not torch.equal(model(**batch).loss, model(**batch).loss)
    model.eval()
    first = model(**batch)
    batch["views"]["draws"] = 1 - batch["views"]["draws"]
    second = model(**batch)
    assert first.losses["intra"] != second.losses["intra"]
    assert first.losses["cross_cam"] == second.losses["cross_cam"]


@pytest.fixture
def golden():
    """The inputs of the authors' own function, whose background is last, and the mean of what it gives."""
    golden = np.load(Path(__file__).parent / "golden" / "pixel_prototype_contrast.npz")
    cams = (torch.from_numpy(golden[name]).roll(1, dims=1) for name in ("cam", "other_cam"))
    others = (torch.from_numpy(golden[name]) for name in ("features", "other_features", "image_labels"))
    return (*cams, *others), golden["parts_over_64_seeds"].mean()


def test_criterion_is_the_golden_contrast(golden):
    """Over the random numbers of 64 seeds; the arrays have the sum of the three terms alone."""
    inputs, expected = golden
    criterion = PPCCriterion(replace(PPC_EPS, weights=dict.fromkeys(CONTRAST, 0.1)))
    assert criterion.prototype_pixels(*inputs[3].shape[2:]) == 16
    losses = torch.stack([criterion(*inputs).loss for _ in range(16)])
    assert losses.mean().item() == pytest.approx(expected, rel=1e-3)


def test_each_term_of_the_golden_contrast_pixel_by_pixel(golden):
    """Each by its formula, in NumPy and with nothing of ours: terms that are mixed up would have the same sum."""
    inputs, expected = golden
    draws = torch.rand(2, 2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    losses = PPCCriterion(replace(PPC_EPS, weights=dict.fromkeys(CONTRAST, 0.1)))(*inputs, draws=draws).losses

    first, second, features, other_features, image_labels = inputs
    small = {"size": (16, 16), "mode": "bilinear", "align_corners": True}
    maps = [F.interpolate(first, **small).numpy(), second.numpy()]
    pixels = [F.interpolate(features, **small), other_features]
    pixels = [x.permute(0, 2, 3, 1).reshape(512, -1).numpy() for x in pixels]
    present = np.concatenate([np.ones((2, 1)), image_labels.numpy()], axis=1)
    labels, prototypes = [], []
    for of_view, vectors in zip(maps, pixels, strict=True):
        scores = np.empty((21, 2, 256))
        for c in range(21):
            for b in range(2):
                map_ = np.maximum(of_view[b, c].ravel(), 0)
                low, high = map_.min(), map_.max()
                map_[map_ < low + 1e-5] = 0
                scores[c, b] = 0.1 if c == 0 else (map_ - low - 1e-5) / (high - low + 1e-5)
        labels.append(
            [max(range(21), key=lambda c: scores[c, i // 256, i % 256] * present[i // 256, c]) for i in range(512)]
        )
        means = []
        for of_class in scores.reshape(21, 512):
            best = sorted(range(512), key=lambda i: -of_class[i])[:16]  # stable: of equal ones, the first
            means.append(sum(of_class[i] * vectors[i] for i in best))
        prototypes.append([mean / np.linalg.norm(mean) for mean in means])

    def loss(view, i, of, label):
        exps = [np.exp(pixels[view][i] @ p / np.linalg.norm(pixels[view][i]) / 0.1) for p in prototypes[of]]
        return -np.log(exps[label] / sum(exps))

    def mined(view):
        terms = []
        for c in sorted(set(labels[view])):
            chosen = [i for i in range(512) if labels[view][i] == c]
            half, most = len(chosen) // 2, int(0.6 * len(chosen))
            similar = {
                i: sorted(
                    ((p @ pixels[view][i] / np.linalg.norm(pixels[view][i]), k) for k, p in enumerate(prototypes[view]))
                )
                for i in chosen
            }
            own = {i: next(s for s, k in similar[i] if k == c) for i in chosen}
            drawn = sorted(chosen, key=lambda i: draws[i // 256, view].ravel()[i % 256])[:half]
            hard = sorted(chosen, key=own.get)[most - half : most]
            of_pixels = []
            for i in drawn + hard:
                ranks = [s for s, _ in similar[i][::-1][3:13]]
                exps = np.exp(np.array([own[i], *ranks]) / 0.1)
                of_pixels.append(-np.log(exps[0] / exps.sum()))
            terms.append(np.mean(of_pixels) if half else 0.0)
        return np.mean(terms)

    by_hand = {
        "cross_prototype": np.mean([[loss(v, i, 1 - v, labels[v][i]) for i in range(512)] for v in range(2)]),
        "cross_cam": np.mean([[loss(v, i, v, labels[1 - v][i]) for i in range(512)] for v in range(2)]),
        "intra": (mined(0) + mined(1)) / 2,
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(by_hand, rel=1e-9)
    assert 0.1 * sum(by_hand.values()) == pytest.approx(expected, rel=5e-3), "and they are the authors', up to draws"


@pytest.mark.parametrize("variant", CONFIGS)
def test_step_never_waits_for_the_host(variant):
    model, batch = tiny_ppc(CONFIGS[variant]), without(tiny_batch(), "draws")
    with Syncs() as syncs:
        model(**batch).loss.backward()
    assert syncs.count == 0
    with Syncs() as syncs:
        published_step(model, **batch).loss.backward()
    assert syncs.count > 5, "they are seen"


@pytest.mark.gpu
@pytest.mark.parametrize("variant", CONFIGS)
def test_step_never_waits_for_a_gpu(variant):
    model, batch = tiny_ppc(CONFIGS[variant]).cuda(), tiny_batch()
    views = {name: x.cuda() for name, x in batch["views"].items()}
    batch = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in batch.items()} | {"views": views}
    model(**batch).loss.backward()  # what a process loads once may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(**batch).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
