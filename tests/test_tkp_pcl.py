"""TKP-PCL's training step against the naive one, and what it costs."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from tkp_pcl_inputs import TINY, batch_of, tiny_tkp_pcl
from toco_inputs import gradients, twins

from toco_kernels import linear_topk_pool
from toco_kernels.common.measure import Syncs
from toco_kernels.methods import TKPPCLCriterion
from toco_kernels.methods.tkp_pcl.criterion import LOSSES
from toco_kernels.methods.tkp_pcl.published import published_step

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-4


def assert_close(actual, expected, what):
    error = (actual - expected).norm() / expected.norm().clamp(min=1e-12)
    assert error <= TOLERANCE, f"{what}: relative error {error:.2e}"


def no_class(batch):
    return batch | {"image_labels": torch.zeros_like(batch["image_labels"])}


CASES = {
    "as it is": (TINY, batch_of()),
    "no multiple of the patch": (TINY, batch_of(size=(70, 61))),
    "one image": (TINY, batch_of(1, seed=6)),
    "five images": (TINY, batch_of(5)),
    "no class": (TINY, no_class(batch_of())),
    "one image without class": (TINY, no_class(batch_of(1))),
    "max pooling": (replace(TINY, k=1), batch_of()),
    "more than all patches": (replace(TINY, k=100), batch_of()),
    "all patches at first": (replace(TINY, mean_steps=1), batch_of()),
    "no longer all patches": (replace(TINY, mean_steps=1), batch_of() | {"step": 1}),
    "logarithms": (replace(TINY, form="log"), batch_of()),
    "without the background": (replace(TINY, contrast_background=False), batch_of()),
    "without the contrast": (replace(TINY, weight=0.0), batch_of()),
    "recurrent layers": (replace(TINY, conditioning="hv_bilstm"), batch_of(size=(64, 48))),
    "frozen": (replace(TINY, frozen_steps=1), batch_of()),
    "two trained blocks": (replace(TINY, trained_blocks=2), batch_of()),
}


@pytest.mark.parametrize("case", CASES)
def test_step_is_the_naive_one(case):
    config, batch = CASES[case]
    model, other = twins(tiny_tkp_pcl(config))
    torch.manual_seed(5)  # of dropout
    ours = model(**batch)
    torch.manual_seed(5)
    theirs = published_step(other, **batch)

    assert [*ours.losses] == [*LOSSES]
    for name in LOSSES:
        assert_close(ours.losses[name], theirs.losses[name], name)
    assert_close(ours.loss, theirs.loss, "loss")
    torch.testing.assert_close(ours.cams, theirs.cams, atol=1e-5, rtol=0)
    assert torch.equal(ours.pseudo_labels, theirs.pseudo_labels)
    assert_close(ours.tokens, theirs.tokens, "tokens")
    expected = gradients(other, theirs.loss)
    for name, grad in gradients(model, ours.loss).items():
        assert_close(grad, expected[name], name)


def test_cases_are_not_trivial():
    """The step that is compared has several classes, and both losses have gradients."""
    model = tiny_tkp_pcl()
    output = model(**batch_of())
    assert len(output.pseudo_labels.unique()) > 2
    for name in LOSSES:
        grads = gradients(model, output.losses[name], again=True)
        assert all(grad.norm() > 0 for name, grad in grads.items() if name.startswith("backbone.vit.blocks")), name


def test_what_is_trained():
    """Blocks before the last two are frozen for good, the others for some steps."""
    config = replace(TINY, trained_blocks=2, frozen_steps=3)
    for step, names in ((2, {"classifier"}), (3, {"classifier", "2", "3", "norm"})):
        model = tiny_tkp_pcl(config)
        model(**batch_of() | {"step": step}).loss.backward()
        moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.norm() > 0}
        assert {name.removeprefix("backbone.vit.").removeprefix("blocks.").split(".")[0] for name in moved} == names


def test_both_losses_by_hand():
    """Without dropout, from the scores: cross-entropy by torch, and all pairs of one class."""
    model, batch = tiny_tkp_pcl().eval(), batch_of(1)
    output = model(**batch)
    z = model.scores(batch["images"]).flatten(2)[0].detach()  # (C, N)
    shown = torch.cat([torch.ones(1), batch["image_labels"][0]])
    pooled = z.sort(dim=1, descending=True).values[:, :6].mean(1)
    torch.testing.assert_close(output.losses["mce"], F.binary_cross_entropy(pooled, shown))
    unit = F.normalize(output.tokens[0].detach(), dim=1)
    similar, alike, apart = (1 + unit @ unit.T) / 2, [], []
    for c in shown.nonzero().flatten().tolist():
        high, low = (z[c] > 0.8).nonzero().flatten().tolist(), (z[c] < 0.2).nonzero().flatten().tolist()
        pairs = [1 - similar[i, j] for i in high for j in high if i != j]
        alike += [sum(pairs) / len(pairs)] if pairs else []
        pairs = [similar[i, j] for i in high for j in low]
        apart += [sum(pairs) / len(pairs)] if pairs else []
    assert alike
    assert apart
    torch.testing.assert_close(output.losses["pce"], sum(alike) / len(alike) + sum(apart) / len(apart))


# Pooling


def test_one_patch_is_max_pooling():
    """K = 1 is ViT-PCM's, value and gradient, to the bit."""
    model, batch = tiny_tkp_pcl(replace(TINY, k=1, weight=0.0)).eval(), batch_of()
    tokens = model.backbone(batch["images"]).patches
    scores = model.classifier(tokens).softmax(dim=2)
    pooled = F.adaptive_max_pool1d(scores.mT, 1)[:, :, 0].clamp(1e-7, 1 - 1e-7)
    y = torch.cat([torch.ones(2, 1), batch["image_labels"]], dim=1)
    loss = -(y * pooled.log() + (1 - y) * torch.log1p(-pooled)).mean()
    output = model(**batch)
    assert torch.equal(output.loss, loss)
    expected = gradients(model, loss)
    for name, grad in gradients(model, output.loss).items():
        assert torch.equal(grad, expected[name]), name


@pytest.mark.parametrize("k", [1, 6])
def test_pooled_scores_are_linear_topk_pools(k):
    """The fused operator gives the same p; here the scores themselves are needed, too."""
    model = tiny_tkp_pcl().eval()
    tokens = model.backbone(batch_of()["images"]).patches
    expected = linear_topk_pool(tokens, model.classifier.weight.T, k, softmax=True)
    criterion = TKPPCLCriterion(replace(TINY, k=k, weight=0.0))
    for c in range(6):  # the loss of one image that shows nothing else, undone
        labels = torch.eye(6)[c][None, 1:].expand(2, -1)
        output = criterion(model.classifier(tokens).softmax(2), tokens, labels, grid=(8, 8), step=0)
        y = torch.cat([torch.ones(2, 1), labels], dim=1)
        torch.testing.assert_close(output.losses["mce"], F.binary_cross_entropy(expected, y))


# What it costs


def test_step_never_waits_for_the_host():
    for config in (TINY, replace(TINY, form="log"), replace(TINY, conditioning="hv_bilstm", frozen_steps=1)):
        model, batch = tiny_tkp_pcl(config), batch_of()
        with Syncs() as syncs:
            model(**batch).loss.backward()
        assert syncs.count == 0
    with Syncs() as syncs:
        published_step(tiny_tkp_pcl(), **batch_of()).loss.backward()
    assert syncs.count > 10, "which are seen"


@pytest.mark.gpu
def test_step_never_waits_for_a_gpu():
    model, batch = tiny_tkp_pcl().cuda(), batch_of()
    batch = {name: x.cuda() if isinstance(x, torch.Tensor) else x for name, x in batch.items()}
    model(**batch).loss.backward()  # what a process loads once may wait
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(**batch).loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
