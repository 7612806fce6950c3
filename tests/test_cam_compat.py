"""The published names for CAMs, their labels, crops and losses, against the published behaviour in words."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rooms import crop_inputs
from torch import nn

from toco_kernels import compat
from toco_kernels.cam import reference


def golden(name, device="cpu"):
    arrays = np.load(Path(__file__).parent / "golden" / f"{name}.npz")
    return SimpleNamespace(**{key: torch.from_numpy(array).to(device) for key, array in arrays.items()})


def config(bkg, high, low, ignore_index=255):
    return SimpleNamespace(
        cam=SimpleNamespace(bkg_score=bkg, high_thre=high, low_thre=low),
        dataset=SimpleNamespace(ignore_index=ignore_index),
    )


# Labels.


def test_golden(device):
    """Boxes stay where the data loader left them, on the CPU; absent classes were cleared in the valid CAM."""
    theirs = golden("cam", device)
    arguments = {"bkg_thre": 0.5, "high_thre": 0.7, "low_thre": 0.25, "ignore_mid": True, "ignore_index": 255}
    for boxes in (theirs.boxes.cpu(), theirs.boxes.tolist(), list(theirs.boxes.cpu())):
        valid, label = compat.cam_to_label(theirs.cams, theirs.image_labels, boxes, **arguments)
        assert torch.equal(valid, theirs.valid)
        assert torch.equal(label, theirs.label_in_box)
        assert label.dtype == torch.int64
    by_position = theirs.cams, theirs.image_labels, theirs.boxes, True, config(0.5, 0.7, 0.25)
    assert torch.equal(compat.cam_to_label(*by_position)[1], theirs.label_in_box)
    by_keyword = {"img_box": theirs.boxes, "ignore_mid": True, "cfg": config(0.5, 0.7, 0.25)}
    assert torch.equal(compat.cam_to_label(theirs.cams, theirs.image_labels, **by_keyword)[1], theirs.label_in_box)
    roi = compat.cam_to_roi_mask2(theirs.cams, theirs.image_labels, low_thre=0.25, hig_thre=0.7)
    assert roi.dtype == torch.int16
    assert torch.equal(roi, theirs.roi)
    assert torch.equal(compat.get_valid_cam(theirs.cams, theirs.image_labels), theirs.valid)


def label_case(device):
    generator = torch.Generator().manual_seed(0)
    cams = torch.rand(2, 4, 21, 17, generator=generator).to(device)
    labels = torch.tensor([[1.0, 0, 1, 0], [0, 0, 0, 0]], device=device)
    value, index = (labels[:, :, None, None] * cams).max(dim=1)
    return cams, labels, value, index + 1


BOX = [[0, 21, 0, 17], [3, 11, -9, 99]]


def in_box(label):
    expected = torch.full_like(label, 255)
    for b, (y0, y1, x0, x1) in enumerate(BOX):
        expected[b, y0:y1, x0:x1] = label[b, y0:y1, x0:x1]
    return expected


def test_forms_of_cam_to_label(device):
    """What the box and `ignore_mid` change, in both families."""
    cams, labels, value, index = label_case(device)
    hard = index.masked_fill(value <= 0.5, 0)
    soft = index.masked_fill(value <= 0.7, 255).masked_fill(value <= 0.25, 0)
    options = {"bkg_thre": 0.5, "high_thre": 0.7, "low_thre": 0.25, "ignore_index": 255}

    def call(**others):
        return compat.cam_to_label(cams, labels, **options, **others)

    assert torch.equal(call(), hard)
    assert torch.equal(call(ignore_mid=True), hard), "without a box, ToCo's form comes back early"
    assert torch.equal(call(img_box=BOX)[1], in_box(hard))
    assert torch.equal(call(img_box=BOX, ignore_mid=True)[1], in_box(soft))
    assert torch.equal(call(always_pair=True)[1], hard)
    assert torch.equal(call(always_pair=True, ignore_mid=True)[1], soft)
    assert torch.equal(call(always_pair=True, ignore_mid=True, img_box=BOX)[1], in_box(soft))
    assert torch.equal(call(img_box=BOX)[0], labels[:, :, None, None] * cams)


@pytest.mark.parametrize(("bkg", "high", "low"), [(0.9, 0.7, 0.25), (0.1, 0.3, 0.6), (0.5, 0.2, 0.9)])
def test_thresholds_in_any_order(bkg, high, low, device):
    """Assignments follow each other: background, doubt, background again."""
    cams, labels, value, index = label_case(device)
    expected = index.masked_fill(value <= bkg, 0).masked_fill(value <= high, 255).masked_fill(value <= low, 0)
    for limits in ((bkg, high, low), tuple(torch.full((2, 1, 1), x, device=device) for x in (bkg, high, low))):
        options = dict(zip(("bkg_thre", "high_thre", "low_thre"), limits, strict=True))
        options |= {"img_box": BOX, "ignore_mid": True, "ignore_index": 255}
        assert torch.equal(compat.cam_to_label(cams, labels, **options)[1], in_box(expected))


def test_boxes_in_pixels_on_the_patch_grid(device):
    """As published: a box that begins at row 60 leaves nothing of a grid of 28 rows."""
    cams = torch.ones(2, 1, 28, 28, device=device)
    boxes = torch.tensor([[60, 400, 0, 448], [5, 440, 0, 20]])
    options = {"bkg_thre": 0.5, "high_thre": 0.7, "low_thre": 0.25, "ignore_mid": True, "ignore_index": 255}
    _, label = compat.cam_to_label(cams, torch.ones(2, 1, device=device), boxes, **options)
    assert (label[0] == 255).all()
    assert (label[1, 5:, :20] == 1).all()
    assert (label == 1).sum() == 23 * 20


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8], ids=str)
def test_ignore_img_box(dtype, device):
    label = torch.randint(9, (2, 21, 17)).to(dtype).to(device)
    boxed = compat.ignore_img_box(label, torch.tensor(BOX), 255)
    assert boxed.dtype == dtype
    assert torch.equal(boxed, in_box(label))


def test_missing_arguments_are_named():
    cams, labels, _, _ = label_case("cpu")
    for name, options in [
        ("bkg_thre", {}),
        ("ignore_index", {"bkg_thre": 0.5, "img_box": BOX}),
        ("high_thre", {"bkg_thre": 0.5, "low_thre": 0.2, "img_box": BOX, "ignore_mid": True, "ignore_index": 255}),
    ]:
        with pytest.raises(TypeError, match=f"{name} must be given, got None"):
            compat.cam_to_label(cams, labels, **options)
    with pytest.raises(TypeError, match="hig_thre must be given, got None"):
        compat.cam_to_roi_mask2(cams, labels)
    with pytest.raises(TypeError, match="roi_mask must be given, got None"):
        compat.crop_from_roi_neg(torch.rand(1, 3, 9, 9))


# CAMs from a network.


class Network(nn.Module):
    """Two outputs of a sixteenth of the size, which a flip of the input changes."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, cam_only):
        assert cam_only
        self.seen.append(tuple(x.shape))
        ramp = torch.linspace(0, 1, x.shape[-1] // 16, device=x.device)
        patches = F.avg_pool2d(x, 16)
        return patches.sin() * ramp, patches - 0.5 * ramp


def expected_cams(inputs, scales, output):
    maps = []
    for scale in scales:
        x = F.interpolate(inputs, scale_factor=scale, mode="bilinear")
        maps.append(Network()(torch.cat([x, x.flip(-1)]), True)[output])
    return reference.merge_cams(maps, None, (96, 96), (96, 96))


def test_golden_multi_scale_cam2(device):
    """The network is the one that the golden maps come from."""
    theirs = golden("merge_cams", device)

    def network(x, cam_only):
        maps = vars(theirs)[f"maps_{x.shape[-1]}"]
        return maps + 1, maps

    for scales in ((1.0, 0.5, 1.5), (0.5, 1.5)):
        cam, cam_aux = compat.multi_scale_cam2(network, torch.rand(2, 3, 96, 96, device=device), scales)
        torch.testing.assert_close(cam, theirs.merged, rtol=0, atol=1e-6)
        assert not torch.allclose(cam_aux, cam)


def test_multi_scale_cam(device):
    """The scale 1 comes first and once; outputs come back in the order of each repository."""
    inputs = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)).to(device)
    first, second = (expected_cams(inputs, (1.0, 0.5, 1.5), output) for output in (0, 1))
    network = Network()
    torch.testing.assert_close(compat.multi_scale_cam(network, inputs, [0.5, 1.0, 1.5]), first, rtol=0, atol=2e-6)
    assert network.seen == [(4, 3, n, n) for n in (96, 48, 144)]
    for pair, expected in [
        (compat.multi_scale_cam(network, inputs, [1.0, 0.5, 1.5], aux=True), (first, second)),
        (compat.multi_scale_cam2(network, inputs, [1.0, 0.5, 1.5]), (second, first)),
    ]:
        torch.testing.assert_close(pair, expected, rtol=0, atol=2e-6)


# Crops.


@pytest.mark.parametrize("size", [12, 13])
@pytest.mark.parametrize("candidates", ["some", "few"])
def test_crops_are_those_of_the_seed(candidates, size, device):
    inputs = crop_inputs()
    images, roi = inputs["images"].float().to(device), inputs["roi"].to(torch.int16)
    if candidates == "few":
        roi.fill_(2)[:, 20, 20:23] = 0
    torch.manual_seed(11)
    crops, flags = compat.crop_from_roi_neg(images, roi_mask=roi.to(device), crop_num=5, crop_size=size)
    assert [tuple(crop.shape) for crop in crops] == [(3, 3, size, size)] * 5
    assert flags.shape == (3, 7)
    assert flags.device == images.device
    assert (flags[:, :2] == 1).all()
    torch.manual_seed(11)
    half = size // 2
    for b in range(3):
        window = roi[b, half:-half, half:-half]
        places = ((window <= 1) if candidates == "some" else (window >= 0)).nonzero()
        for i, (y, x) in enumerate(places[torch.randperm(len(places))[:5]].tolist()):
            assert torch.equal(crops[i][b], images[b, :, y : y + size, x : x + size])
            assert flags[b, i + 2] == (roi[b, y : y + size, x : x + size].float().mean() > 0.2)


def test_more_crops_than_places():
    with pytest.raises(ValueError, match="crop_num must be at most 4, the number of places for crops, got 8"):
        compat.crop_from_roi_neg(torch.rand(1, 3, 14, 14), torch.zeros(1, 14, 14), crop_size=12)


# Losses.


def published_seg_loss(pred, label, ignore_index=255, epsilon=0.0):
    """Both halves as means over their pixels, which may be none; or as sums over their number plus epsilon."""
    halves = []
    for half in ((label == 0) & (label != ignore_index), (label != 0) & (label != ignore_index)):
        own = label.long().masked_fill(~half, ignore_index)
        total = F.cross_entropy(pred, own, ignore_index=ignore_index, reduction="sum")
        halves.append(total / (half.sum() + epsilon))
    return (halves[0] + halves[1]) * 0.5


@pytest.mark.parametrize("label", ["all", "background", "objects", "ignored"])
@pytest.mark.parametrize("nan_safe", [False, True])
def test_get_seg_loss(nan_safe, label, device):
    """Float labels; NaN where a half is empty, in the value and not in the gradient, or no NaN at all."""
    generator = torch.Generator().manual_seed(0)
    pred = torch.randn(2, 4, 9, 8, generator=generator).to(device).requires_grad_()
    label = {
        "all": torch.randint(4, (2, 9, 8), generator=generator).float(),
        "background": torch.zeros(2, 9, 8),
        "objects": torch.full((2, 9, 8), 3.0),
        "ignored": torch.full((2, 9, 8), 255.0),
    }[label].to(device)
    label[0, 3, 3] = 255
    expected = published_seg_loss(pred, label, epsilon=1e-6 if nan_safe else 0.0)
    loss = compat.get_seg_loss(pred, label, nan_safe=True) if nan_safe else compat.get_seg_loss(pred, label, 255)
    torch.testing.assert_close(loss, expected, equal_nan=True)
    (grad,) = torch.autograd.grad(loss, pred)
    assert grad.isfinite().all()
    if expected.isfinite():
        torch.testing.assert_close(grad, torch.autograd.grad(expected, pred)[0])


def test_golden_seg_loss(device):
    theirs = golden("segmentation_loss", device)
    torch.testing.assert_close(compat.get_seg_loss(theirs.logits, theirs.labels), theirs.published)
    torch.testing.assert_close(compat.get_seg_loss(theirs.logits, theirs.labels, nan_safe=True), theirs.nan_safe)


def test_affinity_label(device):
    """1 alike, 0 different, ignored beside ignored patches and where the mask says so; the diagonal counts."""
    label = torch.tensor([[[0.0, 1], [1, 255]]]).repeat_interleave(16, 1).repeat_interleave(16, 2).to(device)
    label[:, 5, 5] = 7  # only the first pixel of a patch counts
    expected = torch.tensor([[[1, 0, 0, 255], [0, 1, 1, 255], [0, 1, 1, 255], [255] * 4]], device=device)
    assert torch.equal(compat.cams_to_affinity_label(label), expected)
    assert torch.equal(compat.cams_to_affinity_label(label[:, ::2, ::2], clip_flag=8), expected)
    mask = torch.eye(4)
    assert compat.cams_to_affinity_label(label, mask).tolist() == [
        [[1, 255, 255, 255], [255, 1, 255, 255], [255, 255, 1, 255], [255] * 4]
    ]
    assert torch.equal(compat.cams_to_affinity_label(label, np.ones((4, 4)), 255), expected)


def test_aff_loss(device):
    inputs = torch.tensor([[0.2, 0.9], [0.6, 0.5]], device=device, requires_grad=True)
    targets = torch.tensor([[1, 0], [0, 255]], device=device)
    loss, positive, negative = compat.get_aff_loss(inputs, targets)
    assert (positive.item(), negative.item()) == (2, 3)
    torch.testing.assert_close(loss.item(), 0.5 * 0.8 / 2 + 0.5 * 1.5 / 3)
    (grad,) = torch.autograd.grad(loss, inputs)
    torch.testing.assert_close(grad, torch.tensor([[-0.25, 1 / 6], [1 / 6, 0]], device=device))
