"""What is particular to pair_contrast: the published code's numbers, and gradients for two sets of tokens."""

import pytest
import torch
import torch.nn.functional as F
from rooms import affinity_inputs, pair_inputs

from toco_kernels import affinity_loss, contrast, patch_token_contrast
from toco_kernels.compat import cams_to_affinity_label, get_aff_loss


def mask_of_radius(height, width, radius):
    """As published: for each patch the patches of a window around it."""
    mask = torch.zeros(height, width, height, width)
    for y in range(height):
        for x in range(width):
            mask[y, x, max(y - radius, 0) : y + radius + 1, max(x - radius, 0) : x + radius + 1] = 1
    return mask.flatten(2).flatten(0, 1)


def published(features, pixel_labels, radius, *, excel):
    """The way from features to the loss in WeCLIP and ExCEL, through matrices."""
    tokens = features.flatten(2)
    if excel:
        tokens = F.normalize(tokens, dim=1)
    scores = tokens.mT.bmm(tokens)
    if excel:
        scores = (scores - scores.mean()) * 3
    mask = mask_of_radius(*features.shape[2:], radius)
    return get_aff_loss(scores.sigmoid(), cams_to_affinity_label(pixel_labels, mask))[0]


@pytest.mark.parametrize("excel", [False, True])
def test_affinity_loss_is_the_published_one(excel):
    inputs = affinity_inputs()
    features = inputs["features"].requires_grad_()
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(4, (3, 7 * 16, 9 * 16), generator=generator)  # a patch's label is its first pixel's
    pixels[:, ::16, ::16] = inputs["labels"]
    options = {"scale": 3.0, "normalize": True, "center": True} if excel else {}
    expected = published(features, pixels, 3, excel=excel)
    actual = affinity_loss(features, pixels[:, ::16, ::16], radius=3, **options)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, features)[0] for loss in (actual, expected)))


def test_cosines_of_a_set_with_itself_are_the_patch_token_contrast():
    """But for each token with itself, which is one more pair alike, of cosine 1."""
    x, labels = pair_inputs(1)["x"], torch.arange(37)[None] // 10
    loss = contrast(x, x, labels, labels, form="abs_cos")
    pairs = int(labels[0].bincount().square().sum())
    positive = 1 - 2 * (patch_token_contrast(x, labels) - 0.5 * negative_mean(x, labels))
    expected = 0.5 * (1 - (positive * (pairs - 37 + 1) + 37) / (pairs + 1)) + 0.5 * negative_mean(x, labels)
    torch.testing.assert_close(loss, expected)


def negative_mean(x, labels):
    unit = F.normalize(x[0], dim=1)
    different = labels[0][:, None] != labels[0]
    return (different * (unit @ unit.T).abs()).sum() / (different.sum() + 1)


def test_uncertain_patches_in_the_denominators():
    """MoRe's class tokens against patches: uncertain patches are no class's, but every softmax has them."""
    inputs = pair_inputs(1, 3, 70)
    tokens, patches = (F.normalize(inputs[name][0], dim=1) for name in ("x", "y"))
    labels = inputs["labels_y"][0]
    classes = torch.arange(3)
    logs = (tokens @ patches.T / 0.5).log_softmax(dim=1)
    expected = -torch.stack([logs[c][labels == c].mean() for c in classes]).mean()
    found = contrast(tokens, patches, classes, labels.masked_fill(labels == 255, -1), form="info_nce", temperature=0.5)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("form", ["abs_cos", "sigmoid", "info_nce"])
def test_gradients_go_where_they_are_wanted(form):
    inputs = pair_inputs(form=form)
    grads = {}
    for wanted in (("x",), ("y",), ("x", "y")):
        leaves = {name: inputs[name].clone().requires_grad_() for name in wanted}
        contrast(**inputs | leaves).backward()
        grads[wanted] = {name: leaf.grad for name, leaf in leaves.items()}
    assert torch.equal(grads["x",]["x"], grads["x", "y"]["x"])
    assert torch.equal(grads["y",]["y"], grads["x", "y"]["y"])
    assert not contrast(**inputs).requires_grad


def test_a_second_backward_through_both():
    inputs = pair_inputs()
    leaves = [inputs[name].requires_grad_() for name in ("x", "y")]
    loss = contrast(**inputs)
    first = [grad.clone() for grad in torch.autograd.grad(loss, leaves, retain_graph=True)]
    for a, b in zip(torch.autograd.grad(loss, leaves, retain_graph=True), first, strict=True):
        assert torch.equal(a, b)
    inputs["labels_y"].zero_()
    with pytest.raises(RuntimeError, match="labels_y is at version"):
        torch.autograd.grad(loss, leaves)


def test_mixed_dtypes_meet_in_the_wider_one():
    """A queue in float32 against tokens in half precision."""
    inputs = pair_inputs()
    x = inputs["x"].bfloat16().requires_grad_()
    loss = contrast(**inputs | {"x": x, "y": inputs["y"].float()})
    torch.testing.assert_close(loss, contrast(**inputs | {"x": x.float(), "y": inputs["y"].float()}))
    (grad,) = torch.autograd.grad(loss, x)
    assert grad.dtype == torch.bfloat16
