"""What is particular to crops and to the segmentation loss; the rest is in test_contract.py."""

import pytest
import torch
from rooms import crop_inputs

import toco_kernels
from toco_kernels import SegmentationLoss, crop_uncertain, segmentation_loss
from toco_kernels.cam.crops import crop_where_drawn
from toco_kernels.testing import change_tensors


def float32(inputs, device):
    return change_tensors(inputs, lambda x: (x.float() if x.is_floating_point() else x).to(device))


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


def test_one_compilation_serves_every_size():
    compilations = []

    def backend(graph, _):
        compilations.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(crop_where_drawn, fullgraph=True, dynamic=True, backend=backend)
    for size in (12, 16, 20):
        inputs = float32(crop_inputs(size=size), "cpu")
        assert torch.equal(compiled(**inputs)[0], crop_where_drawn(**inputs)[0])
    assert len(compilations) == 1


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
