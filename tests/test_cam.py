"""What is particular to cam; the rest is in test_contract.py."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rooms import BOXES, cam_inputs, crop_inputs, map_inputs

import toco_kernels
from toco_kernels import (
    SegmentationLoss,
    cam_to_label,
    cam_to_roi,
    crop_uncertain,
    merge_cams,
    merge_cams_to_labels,
    merge_cams_to_roi,
    patch_boxes,
    refine_cam_labels,
    segmentation_loss,
)
from toco_kernels.cam import reference
from toco_kernels.testing import assert_within_budget, change_tensors, reference_only

LIMITS = {"high": 0.7, "low": 0.25}
PRESENT = torch.tensor([[0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 1, 1, 1, 1]])  # no class, one, all


def golden(name, device="cpu"):
    arrays = np.load(Path(__file__).parent / "golden" / f"{name}.npz")
    return SimpleNamespace(**{key: torch.from_numpy(array).to(device) for key, array in arrays.items()})


def float32(inputs, device):
    return change_tensors(inputs, lambda x: (x.float() if x.is_floating_point() else x).to(device))


# What the authors' code returns.


def golden_maps(device, dtype=torch.float32):
    theirs = golden("merge_cams", device)
    return [x.to(dtype) for x in (theirs.maps_96, theirs.maps_48, theirs.maps_144)], theirs.merged


def test_golden_merge_cams(device):
    """As near to float64 as the authors' own float32, and the reference is what they computed."""
    maps, merged = golden_maps(device)
    exact = reference.merge_cams(golden_maps(device, torch.float64)[0], None, (96, 96), (96, 96))
    torch.testing.assert_close(reference.merge_cams(maps, None, (96, 96), (96, 96)), merged, rtol=0, atol=1e-6)
    assert_within_budget(merge_cams(maps, (96, 96)), exact=exact, eager=merged)


def test_golden_labels(device):
    theirs = golden("cam", device)
    for labels in (theirs.image_labels, theirs.image_labels.bool(), theirs.image_labels.to(torch.int16)):
        assert torch.equal(cam_to_label(theirs.cams, labels, boxes=theirs.boxes, **LIMITS), theirs.label_in_box)
        assert torch.equal(cam_to_roi(theirs.cams, labels, **LIMITS), theirs.roi.byte())


def test_golden_segmentation_loss(device):
    theirs = golden("segmentation_loss", device)
    exact = reference.segmentation_loss(theirs.logits.double(), theirs.labels, 255)
    assert_within_budget(segmentation_loss(theirs.logits, theirs.labels), exact=exact, eager=theirs.published)
    torch.testing.assert_close(segmentation_loss(theirs.logits, theirs.labels), theirs.nan_safe)
    all_ignored = torch.full_like(theirs.labels, 255)
    assert torch.equal(segmentation_loss(theirs.logits, all_ignored), theirs.nan_safe_all_ignored)


# Merging.


@pytest.mark.parametrize("out_size", [None, (14, 19), (4, 5), (60, 50)])
def test_labels_are_those_of_the_cam(out_size, device):
    """To the bit: both come from the same numbers."""
    inputs = float32(map_inputs(present=PRESENT), device)
    cams = merge_cams(**inputs, out_size=out_size)
    boxes = {"boxes": BOXES.to(device)}
    expected = cam_to_label(cams, inputs["image_labels"], **LIMITS, **boxes)
    assert torch.equal(merge_cams_to_labels(**inputs, out_size=out_size, **LIMITS, **boxes), expected)
    expected = cam_to_roi(cams, inputs["image_labels"], **LIMITS)
    assert torch.equal(merge_cams_to_roi(**inputs, out_size=out_size, **LIMITS), expected)
    assert out_size == (4, 5) or set(expected.unique().tolist()) == {0, 1, 2}


@pytest.mark.parametrize("out_size", [(48, 48), (6, 6), (31, 97)])
def test_other_sizes_are_resized_cams(out_size, device):
    maps, merged = golden_maps(device)
    resized = F.interpolate(merged, size=out_size, mode="bilinear")
    torch.testing.assert_close(merge_cams(maps, (96, 96), out_size=out_size), resized, rtol=0, atol=2e-6)


def test_half_size_is_what_refinement_starts_from(device):
    """The CAM that refine_cam_labels shrinks itself, or the half that is there already."""
    maps, merged = golden_maps(device)
    half = merge_cams(maps, (96, 96), out_size=(48, 48))
    torch.testing.assert_close(F.avg_pool2d(merged, 2), half, rtol=0, atol=2e-6)
    image = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)).to(device)
    options = LIMITS | {"down_scale": 1, "iterations": 3}
    labels = torch.eye(20, device=device)[:2]
    small_image = F.interpolate(image, size=(48, 48), mode="bilinear")
    small = refine_cam_labels(small_image, half, labels, **options)
    full = refine_cam_labels(image, merged, labels, **options | {"down_scale": 2})
    centre = full[:, 1::2, 1::2]  # one of the four pixels of each
    assert (small == centre).float().mean() > 0.95


def test_absent_classes_are_zero(device):
    inputs = float32(map_inputs(present=PRESENT), device)
    everything = merge_cams(inputs["maps"], inputs["size"])
    expected = everything * PRESENT[:, :, None, None].to(device)
    assert torch.equal(merge_cams(**inputs), expected)
    flat = merge_cams(**inputs).flatten(2)
    largest, smallest = flat.amax(dim=2), flat.amin(dim=2)
    torch.testing.assert_close(largest, PRESENT.float().to(device), rtol=0, atol=1e-4)
    assert (smallest == 0).all()


def test_no_label_map_is_preceded_by_a_full_map():
    """Peak memory of the labels stays far below that of one CAM of full size."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        inputs = float32(map_inputs(2, 20, (448, 448), scales=((28, 28), (14, 14), (42, 42))), "cuda")
        before = torch.cuda.memory_allocated()
        merge_cams_to_labels(**inputs, **LIMITS)
        assert torch.cuda.max_memory_allocated() - before < 2 * 448 * 448 * 8 + (1 << 20)


def test_nan_spoils_its_map(device):
    """As in the published code: the least and the largest value of a map are NaN when one of them is."""
    inputs = float32(map_inputs(present=PRESENT), device)
    for maps in inputs["maps"]:
        maps[2, 1, 0, 0] = torch.nan  # of the last image
    cams = merge_cams(**inputs)
    with reference_only():
        assert torch.equal(cams.isnan(), merge_cams(**inputs).isnan())
    assert cams[2, 1].isnan().all()
    assert not cams[2, 0].isnan().any()
    with reference_only():
        expected = merge_cams_to_labels(**inputs, **LIMITS), merge_cams_to_roi(**inputs, **LIMITS)
    assert torch.equal(merge_cams_to_labels(**inputs, **LIMITS)[2], expected[0][2])
    assert torch.equal(merge_cams_to_roi(**inputs, **LIMITS)[2], expected[1][2])
    assert (expected[0][2] == 2).all()


# Labels of CAMs.


def test_nan_wins(device):
    inputs = float32(cam_inputs(present=PRESENT), device)
    inputs["cams"][2, 3, :, 5] = torch.nan
    inputs["cams"][2, 1, :4, 5] = torch.nan
    for function in (cam_to_label, cam_to_roi):
        with reference_only():
            expected = function(**inputs)
        assert torch.equal(function(**inputs), expected)
    labels = cam_to_label(**inputs)
    assert (labels[2, :4, 5] == 2).all()
    assert (labels[2, 4:, 5] == 4).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("ties", [False, True])
def test_labels_are_exact(ties, dtype, device):
    """There is nothing to round: the reference decides, to the last pixel."""
    inputs = change_tensors(cam_inputs(2, 7, (61, 83), boxes=BOXES[1:]), lambda x: x.to(device))
    inputs["cams"] = ((inputs["cams"] * 4).round() / 4 if ties else inputs["cams"]).to(dtype)
    inputs |= {"high": 0.75, "low": 0.5} if ties else {}
    boxes = inputs.pop("boxes")
    with reference_only():
        expected = cam_to_label(**inputs, boxes=boxes), cam_to_roi(**inputs)
    assert torch.equal(cam_to_label(**inputs, boxes=boxes), expected[0])
    assert torch.equal(cam_to_roi(**inputs), expected[1])


def test_crossed_thresholds(device):
    """low > high: the published order of assignments leaves nothing in doubt."""
    inputs = float32(cam_inputs(present=PRESENT), device) | {"high": 0.25, "low": 0.7}
    value = reference.present_cams(inputs["cams"], inputs["image_labels"]).amax(dim=1)
    labels, roi = cam_to_label(**inputs), cam_to_roi(**inputs)
    assert torch.equal(labels == 0, value <= 0.7)
    assert not (labels == 255).any()
    assert torch.equal(roi == 2, value >= 0.25)


@pytest.mark.parametrize(
    "box",
    [[0, 22, 0, 27], [3, 9, 5, 6], [-7, 999, -5, -2], [8, 8, 0, 27], [9, 3, 0, 27], [40, 50, 0, 27], [-99, 4, 1, 8]],
)
def test_boxes_are_python_slices(box, device):
    inputs = float32(cam_inputs(), device)
    everywhere = cam_to_label(**inputs)
    expected = torch.full_like(everywhere, 255)
    y0, y1, x0, x1 = box
    expected[:, y0:y1, x0:x1] = everywhere[:, y0:y1, x0:x1]
    assert torch.equal(cam_to_label(**inputs, boxes=torch.tensor([box] * 3, device=device)), expected)


@pytest.mark.parametrize("patch", [1, 2, 7, 16])
def test_patch_boxes(patch, device):
    """A patch is inside when its centre is."""
    centres = [(patch * i + patch / 2) for i in range(40)]
    bounds = [(a, b) for a in range(0, 3 * patch, max(1, patch // 5)) for b in range(a, 40 * patch, 2 * patch + 1)]
    boxes = torch.tensor([[a, b, b // 2, b] for a, b in bounds], device=device)
    for (y0, y1, x0, x1), (p0, p1, q0, q1) in zip(boxes.tolist(), patch_boxes(boxes, patch).tolist(), strict=True):
        inside = [y0 <= c < y1 for c in centres]
        assert inside == [p0 <= i < p1 for i in range(40)]
        assert [x0 <= c < x1 for c in centres] == [q0 <= i < q1 for i in range(40)]
    assert patch_boxes(boxes.int(), patch).dtype == torch.int32


def test_patch_boxes_explain_themselves():
    boxes = torch.zeros(2, 4, dtype=torch.int64)
    for arguments, error in [
        (([[0, 1, 0, 1]], 16), "boxes must be a torch.Tensor, got list"),
        ((boxes[0], 16), "boxes must have 2 dimensions"),
        ((boxes[:, :3], 16), "boxes must have shape"),
        ((boxes.float(), 16), "boxes must be integers, got torch.float32"),
        ((boxes, 0), "patch must be an integer >= 1, got 0"),
        ((boxes, 0.5), "patch must be an integer >= 1, got 0.5"),
    ]:
        with pytest.raises((TypeError, ValueError), match=error):
            patch_boxes(*arguments)


# Crops.


def crop_case(device, **sizes):
    inputs = float32(crop_inputs(**sizes), device)
    return inputs["images"], inputs["roi"]


def test_crops_are_where_their_flags_say(device):
    """Every crop is cut around a candidate, no candidate is taken twice, and flags are what the region shows."""
    _, roi = crop_case(device, height=60, width=80)
    rows, columns = torch.meshgrid(torch.arange(60.0), torch.arange(80.0), indexing="ij")
    images = torch.stack([rows, columns, torch.zeros(60, 80)]).expand(3, 3, 60, 80).to(device)
    crops, flags = crop_uncertain(images, roi, size=20, generator=torch.Generator(device).manual_seed(3))
    assert crops.shape == (8, 3, 3, 20, 20)
    assert flags.shape == (3, 8)
    assert set(flags.unique().tolist()) == {0, 1}
    corners = crops[:, :, :2, 0, 0].long()  # (crops, B, 2)
    for b in range(3):
        assert len({tuple(corner) for corner in corners[:, b].tolist()}) == 8
        for i, (y, x) in enumerate(corners[:, b].tolist()):
            assert torch.equal(crops[i, b], images[b, :, y : y + 20, x : x + 20])
            assert roi[b, y + 10, x + 10] <= 1
            assert flags[b, i] == (roi[b, y : y + 20, x : x + 20].float().mean() > 0.2)


def test_crops_are_drawn_evenly(device):
    """Each candidate with the same probability, first or last: within five deviations."""
    _, roi = crop_case(device, height=14, width=14)
    roi = roi[:1].fill_(2)
    roi[0, 5:9, 5:8] = torch.tensor([[0, 1, 2], [1, 0, 1], [0, 0, 2], [1, 2, 0]], device=device)
    images = torch.arange(196.0, device=device).view(1, 1, 14, 14)
    generator = torch.Generator(device).manual_seed(0)
    rounds, candidates = 3000, 9
    drawn = torch.stack(
        [crop_uncertain(images, roi, crops=4, size=4, generator=generator)[0][:, 0, 0, 0, 0] for _ in range(rounds)]
    ).long()
    corners = {(y - 2) * 14 + x - 2 for y, x in (roi[0] <= 1).nonzero().tolist()}
    assert set(drawn.unique().tolist()) == corners
    deviation = (rounds / candidates * (1 - 1 / candidates)) ** 0.5
    for position in range(4):
        counts = drawn[:, position].bincount()[sorted(corners)]
        assert (counts - rounds / candidates).abs().max() < 5 * deviation


def test_crops_follow_their_generator(device):
    images, roi = crop_case(device)
    first, second = (
        crop_uncertain(images, roi, size=12, generator=torch.Generator(device).manual_seed(5)) for _ in range(2)
    )
    assert torch.equal(first[0], second[0])
    other = crop_uncertain(images, roi, size=12, generator=torch.Generator(device).manual_seed(6))
    assert not torch.equal(first[0], other[0])
    torch.manual_seed(7)
    default = crop_uncertain(images, roi.int(), size=12)
    torch.manual_seed(7)
    assert torch.equal(default[0], crop_uncertain(images, roi, size=12)[0])


def test_crop_options_explain_themselves(device):
    images, roi = crop_case(device)
    for options, error in [
        ({"crops": 0}, "crops must be an integer >= 1, got 0"),
        ({"crops": 99999, "size": 12}, "crops must be at most 950, the number of pixels between margins, got 99999"),
        ({"generator": 5}, "generator must be None or a torch.Generator, got int"),
        ({"size": 96}, r"size must leave pixels between margins of half of it, in \(37, 50\), got 96"),
    ]:
        with pytest.raises((TypeError, ValueError), match=error):
            crop_uncertain(images, roi, **options)


# The loss.


def test_labels_out_of_range_are_seen():
    """Neither is memory read beside the logits, nor do they pass for a class."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key("toco_kernels::segmentation_loss", "CPU"):
        pytest.skip("no kernel here")
    logits = torch.randn(1, 4, 6, 7)
    for wrong in (4, -1, 2**40, 254):
        labels = torch.ones(1, 6, 7, dtype=torch.int64)
        labels[0, 3, 2] = wrong
        leaf = logits.clone().requires_grad_()
        loss = segmentation_loss(leaf, labels)
        (grad,) = torch.autograd.grad(loss, leaf)
        assert loss.isnan()
        assert grad[0, :, 3, 2].isnan().all()
        assert segmentation_loss(logits, labels).isnan()


def test_segmentation_loss_module(device):
    logits, labels = torch.randn(2, 5, 9, 8, device=device), torch.randint(5, (2, 9, 8), device=device)
    assert torch.equal(SegmentationLoss()(logits, labels), segmentation_loss(logits, labels))
    assert torch.equal(SegmentationLoss(3)(logits, labels), segmentation_loss(logits, labels, ignore_index=3))
    assert repr(SegmentationLoss()) == "SegmentationLoss(ignore_index=255)"
    with pytest.raises(ValueError, match="ignore_index must be an integer"):
        SegmentationLoss("255")
    assert toco_kernels.segmentation_loss is segmentation_loss
