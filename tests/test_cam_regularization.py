"""cam_regularization: SEAM's and EPS's losses, against the published sequence of operations."""

import math

import pytest
import torch
import torch.nn.functional as F

from toco_kernels import adaptive_min_pooling_loss, compat, max_norm, max_onehot, saliency_loss, seam_losses
from toco_kernels.cam_regularization.maps import stretched_mean


def maps(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def views(device, classes=5):
    """CAMs of two views, revised ones, image labels."""
    sizes = (9, 12), (5, 7), (9, 12), (5, 7)
    labels = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.float64)
    return [*(maps(2, classes, *size, seed=i).to(device) for i, size in enumerate(sizes)), labels.to(device)]


def normalised_by_loops(cams):
    """SEAM's max_norm."""
    out = torch.empty_like(cams)
    for image, result in zip(cams, out, strict=True):
        for c, channel in enumerate(image):
            positive = channel.clamp_min(0)
            low, high = positive.min(), positive.max()
            result[c] = (positive - low - 1e-5).clamp_min(0) / (high - low + 1e-5)
    return out


def published_losses(cams, other_cams, revised, other_revised, image_labels):
    """Both losses with `topk`."""
    size = other_cams.shape[2:]
    present = torch.cat([torch.ones_like(image_labels[:, :1]), image_labels], dim=1)[:, :, None, None]

    def prepared(x):
        return F.interpolate(max_norm(x), size=size, mode="bilinear", align_corners=True) * present

    cams, other_cams, revised, other_revised = (prepared(x) for x in (cams, other_cams, revised, other_revised))
    er = (cams[:, 1:] - other_cams[:, 1:]).abs().mean()
    total = 0
    for target, x in ((other_cams, revised), (cams, other_revised)):
        target = target.detach().clone()
        target[:, 0] = 1 - target[:, 1:].amax(dim=1)
        difference = (compat.max_onehot(target) - x).abs().flatten(1)
        total = total + difference.topk(int(0.2 * difference.shape[1]), dim=1).values.mean()
    return er, total


def test_max_norm(device):
    cams = maps(2, 3, 4, 5).to(device)
    torch.testing.assert_close(max_norm(cams), normalised_by_loops(cams))
    torch.testing.assert_close(compat.max_norm(cams[0]), normalised_by_loops(cams)[0])


def test_max_onehot(device):
    cams = torch.tensor([5.0, 1, 3, 3, 2], device=device).view(1, 5, 1, 1)
    assert max_onehot(cams).flatten().tolist() == [5, 0, 3, 3, 0]
    assert cams.flatten().tolist() == [5, 1, 3, 3, 2]
    assert compat.max_onehot(cams) is cams  # as published, in place
    assert cams.flatten().tolist() == [5, 0, 3, 3, 0]


def test_seam_losses(device):
    *leaves, labels = views(device)
    leaves = [x.requires_grad_() for x in leaves]
    actual, expected = seam_losses(*leaves, labels), published_losses(*leaves, labels)
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b)
    for a, b in zip(torch.autograd.grad(sum(actual), leaves), torch.autograd.grad(sum(expected), leaves), strict=True):
        torch.testing.assert_close(a, b)


def test_largest_differences_with_ties(device):
    """Where the threshold is shared, its value counts as often as is missing: all differences are equal here."""
    ones = torch.ones(1, 2, 1, 1, device=device).expand(1, 2, 4, 5) * torch.tensor([0.0, 1.0], device=device).view(
        1, 2, 1, 1
    )
    cams = ones + torch.eye(4, 5, device=device)
    er, ecr = seam_losses(cams, cams, cams, cams, torch.ones(1, 1, device=device), share=0.35)
    assert er == 0
    assert ecr.isfinite()


@pytest.mark.parametrize("function", [adaptive_min_pooling_loss, compat.adaptive_min_pooling_loss])
def test_adaptive_min_pooling_loss(function, device):
    cams = maps(3, 4, 7, 9).to(device).requires_grad_()
    shown = cams.amax(dim=1).flatten(1)
    expected = F.relu(shown.topk(7 * 9 // 4, dim=1, largest=False).values).sum() / (7 * 9 // 4 * 3)
    assert expected > 0
    torch.testing.assert_close(function(cams), expected)
    actual, expected = (torch.autograd.grad(loss, cams)[0] for loss in (function(cams), expected))
    torch.testing.assert_close(actual, expected)


def test_saliency_loss(device):
    """By loops over images and classes; class 0 is the background, one class of the image misses what is salient."""
    logits = 4 * maps(2, 4, 6, 6).to(device)
    logits[0, 1, :3] += 12
    logits[0, 2, 3:] += 12
    saliency = torch.zeros(2, 1, 12, 12, dtype=torch.float64, device=device)
    saliency[:, :, :6] = 1
    labels = torch.tensor([[1, 1, 0], [0, 0, 1]], device=device)
    small = F.interpolate(saliency, size=(6, 6), mode="nearest")
    probabilities, explained, missed = logits.softmax(dim=1), [], 0
    for p, s, label in zip(probabilities, small[:, 0], labels, strict=True):
        objects, rest = torch.zeros_like(s), p[0]
        for c, shown in enumerate(label.tolist(), start=1):
            sure = p[c].round()
            overlaps = (sure * s.round()).sum() / (sure + 1e-4).sum() > 0.4
            missed += bool(shown and not overlaps)
            if shown:
                objects, rest = (objects + p[c], rest) if overlaps else (objects, rest + p[c])
        explained.append(0.5 * objects + 0.5 * (1 - rest))
    assert missed
    expected = (torch.stack(explained) - small[:, 0]).square().mean()
    torch.testing.assert_close(saliency_loss(logits, saliency, labels, threshold=0.4), expected)


def losses_of(views):
    """Every loss of the room."""
    *cams, labels = views
    return [
        *seam_losses(*cams, labels),
        adaptive_min_pooling_loss(cams[0]),
        saliency_loss(cams[0], cams[1][:, :1], labels),
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(dtype, device):
    rounded = [x.to(dtype) for x in views(device)]
    for actual, expected in zip(losses_of(rounded), losses_of([x.float() for x in rounded]), strict=True):
        assert actual.dtype == torch.float32
        assert torch.equal(actual, expected)
    large = torch.full((1, 1, 32, 32), 300.0, dtype=torch.float16, device=device)  # the sum is no number of float16
    assert adaptive_min_pooling_loss(large) == 300


def test_nothing_is_zero(device):
    """Of no images; and of so few pixels that less than one difference is among the largest, one counts."""
    assert [loss.item() for loss in losses_of([x[:0] for x in views(device)])] == [0, 0, 0, 0]
    *cams, labels = views(device)
    assert seam_losses(*cams, labels, share=1e-6)[1] >= seam_losses(*cams, labels)[1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("sizes", [None, ((20, 31), (12, 13))])
def test_what_is_not_finite_is_not_lost(value, sizes, device):
    """Wherever it is read, also in a class that the image does not show; where nobody reads it, nothing changes."""
    for name, channel, er, ecr in (
        *(("cams", c, True, True) for c in (1, 2)),
        ("cams", 0, False, False),
        *(("revised", c, False, True) for c in (0, 1, 2)),
        ("other_revised", 4, False, True),
    ):
        *maps, labels = views(device)
        maps = dict(zip(("cams", "other_cams", "revised", "other_revised"), maps, strict=True))
        maps[name][0, channel, 1, 2] = value
        for x in maps.values():
            x.requires_grad_()
        losses = seam_losses(**maps, image_labels=labels, sizes=sizes)
        assert [loss.isnan().item() for loss in losses] == [er, ecr], (name, channel)
        if er or ecr:
            assert torch.autograd.grad(sum(losses), maps[name])[0].isnan().any()


def test_stretched_mean(device):
    for grid, size in (((5, 7), (20, 31)), ((9, 12), (4, 5)), ((1, 3), (8, 9)), ((6, 6), (6, 6))):
        x = maps(2, 3, *grid).to(device)
        expected = F.interpolate(x, size=size, mode="bilinear", align_corners=True).mean(dim=(2, 3))
        torch.testing.assert_close(stretched_mean(x, size), expected)


def test_nothing_waits_for_the_host(device):
    if device != "cuda":
        pytest.skip("a CPU never waits")
    *leaves, labels = views(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        sum(seam_losses(*leaves, labels))
        adaptive_min_pooling_loss(leaves[0])
        saliency_loss(leaves[0], leaves[1][:, :1], labels)
    finally:
        torch.cuda.set_sync_debug_mode("default")


BAD = {
    "cams": lambda v: seam_losses(v[0][0], *v[1:]),
    "other_cams": lambda v: seam_losses(v[0], v[1].long(), *v[2:]),
    "revised": lambda v: seam_losses(*v[:2], v[3], *v[3:]),
    "other_revised": lambda v: seam_losses(*v[:3], v[2], v[4]),
    "image_labels": lambda v: seam_losses(*v[:4], v[4][:, 1:]),
    "share": lambda v: seam_losses(*v, share=0.0),
    "saliency": lambda v: saliency_loss(v[0], v[1], v[4]),
    "logits": lambda v: saliency_loss(v[0][0], v[1][:, :1], v[4]),
    "threshold": lambda v: saliency_loss(v[0], v[1][:, :1], v[4], threshold="0.4"),
    "version": lambda v: compat.max_norm(v[0], version="numpy"),
    "label": lambda v: compat.get_contrast_loss(*v[:2], v[0], v[1], v[4][0]),
}


@pytest.mark.parametrize("argument", BAD)
def test_bad_arguments_are_named(argument, device):
    with pytest.raises((TypeError, ValueError), match=rf"^{argument} must .+, got .+"):
        BAD[argument](views(device))


def test_too_few_pixels_are_named(device):
    with pytest.raises(ValueError, match=r"^cams must have at least one class and four pixels"):
        adaptive_min_pooling_loss(torch.ones(1, 2, 1, 3, device=device))
