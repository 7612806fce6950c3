"""What is particular to cam; the rest is in test_contract.py."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rooms import BOXES, cam_inputs, map_inputs

from toco_kernels import (
    cam_to_label,
    cam_to_roi,
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


@pytest.mark.gpu
def test_labels_need_no_full_map():
    """Peak memory of the labels is that of the labels."""
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


@pytest.mark.parametrize("function", [merge_cams, merge_cams_to_labels, merge_cams_to_roi])
def test_one_compilation_serves_every_size(function):
    compilations = []

    def backend(graph, _):
        compilations.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True, backend=backend)
    limits = {} if function is merge_cams else LIMITS
    for size, out_size in [((29, 38), (14, 19)), ((40, 31), (20, 15)), ((64, 50), (9, 7))]:
        inputs = float32(map_inputs(size=size), "cpu")
        actual = compiled(**inputs, out_size=out_size, **limits)
        assert torch.equal(actual, function(**inputs, out_size=out_size, **limits))
    assert len(compilations) == 1


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
