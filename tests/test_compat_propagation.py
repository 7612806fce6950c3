"""The published names for propagation: outputs of the authors' code, and dense matrices from the descriptions."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from toco_kernels import compat, propagate_attention


@pytest.fixture
def theirs(device):
    arrays = np.load(Path(__file__).parent / "golden" / "propagation.npz")
    return SimpleNamespace(**{name: torch.from_numpy(array).to(device) for name, array in arrays.items()})


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def attention(layers, patches, width=8):
    """Attention that prefers some patches, and the queries and keys that it is of."""
    queries, keys = ((random(layers, patches, width, seed=seed) - 0.5) * 6 for seed in (1, 2))
    return (queries @ keys.mT * width**-0.5).softmax(dim=2), queries, keys


# AFA: learned affinities.


def test_golden_affinities(theirs):
    affinities = theirs.affinities.clone()
    arguments = {"mask": theirs.mask, "cls_labels": theirs.labels, "bkg_score": 0.35}
    spread = compat.propagte_aff_cam_with_bkg(theirs.cams, aff=affinities, **arguments)
    torch.testing.assert_close(spread, theirs.propagated, rtol=0, atol=1e-6)
    assert torch.equal(affinities[:2] == 0, (theirs.mask == 0).expand(2, -1, -1)), "masked in place, as published"
    assert torch.equal(affinities[2:], theirs.affinities[2:]), "but not those of the mirror images"


@pytest.mark.parametrize("mask", ["none", "an array"])
def test_affinities_by_matrices(mask, device):
    """Column sums, a softmax over what is present, zeros for what is not, and each affinity squared."""
    cams, affinities = random(2, 3, 4, 5, seed=3), random(2, 20, 20, seed=4)
    labels = torch.tensor([[0, 1, 1], [0, 0, 0]])
    far = (random(20, 20, seed=5) > 0.5).double()
    expected = torch.zeros(2, 4, 20, dtype=torch.float64)
    for b, present in enumerate(([0, 2, 3], [0])):
        moves = (affinities[b] if mask == "none" else affinities[b] * far).square()
        moves = moves / (moves.sum(dim=0) + 0.1)
        scores = torch.cat([torch.full((1, 20), 0.6), cams[b].flatten(1)])[present].softmax(dim=0)
        expected[b, present] = scores @ moves
    spread = compat.propagte_aff_cam_with_bkg(
        cams.to(device), affinities.to(device), None if mask == "none" else far.numpy(), labels.to(device), 0.6
    )
    torch.testing.assert_close(spread.cpu(), expected.view(2, 4, 4, 5))
    assert (spread[1, 1:] == 0).all()


@pytest.mark.parametrize("name", ["aff", "cls_labels", "bkg_score"])
def test_missing_arguments_are_named(name):
    given = {"aff": torch.rand(1, 4, 4), "cls_labels": torch.ones(1, 3), "bkg_score": 0.5} | {name: None}
    with pytest.raises(TypeError, match=f"{name} must be given"):
        compat.propagte_aff_cam_with_bkg(torch.rand(1, 3, 2, 2), **given)


@pytest.mark.parametrize(("scales", "kept"), [([1.0, 0.5, 1.5], 144), ([0.5, 1.5], 48), ([0.5], 96), ([2, 1], 96)])
def test_affinities_of_the_largest_scale(scales, kept, device):
    """As published by its place in the list, which is off by one where the scale 1 is not before it."""

    def model(x, cam_only):
        cam = F.avg_pool2d(x, 16)
        return cam, cam.flatten(2).mT @ cam.flatten(2)

    images = random(2, 3, 96, 96).float().to(device)
    cam, affinities = compat.multi_scale_cam_with_aff_mat(model, images, scales)
    assert torch.equal(cam, compat.multi_scale_cam(model, images, scales))
    x = F.interpolate(images, size=(kept, kept), mode="bilinear") if kept != 96 else images
    torch.testing.assert_close(affinities, model(torch.cat([x, x.flip(3)]), True)[1])


# CLIP-ES, WeCLIP, ExCEL: attention, normalised.


def dense_transition(weights, squarings=1):
    """Columns, then rows, to sums of 1, three times; the mean with the transpose; squared."""
    for _ in range(3):
        weights = weights / weights.sum(dim=0)
        weights = weights / weights.sum(dim=1)[:, None]
    return torch.linalg.matrix_power((weights + weights.T) / 2, 2**squarings)


def test_golden_transition(theirs):
    weights = theirs.attention[0, 1:, 1:]
    torch.testing.assert_close(compat.compute_trans_mat(weights), theirs.transition, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(compat.compute_trans_mat(weights, 2), theirs.transition_twice, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_transition_by_matrices(dtype, device):
    weights = attention(1, 30)[0][0].to(device, dtype)
    moves = compat.compute_trans_mat(weights)
    assert moves.dtype == dtype
    error = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 1e-3}[dtype]
    torch.testing.assert_close(moves.double(), dense_transition(weights.double()), rtol=error, atol=1e-12)


def test_the_route_without_matrices(device):
    """What WeCLIP multiplies maps with is what queries and keys do by themselves: a matrix is never needed."""
    weights, queries, keys = (x.to(device) for x in attention(2, 30))
    cams = random(1, 3, 30, seed=6).to(device)
    moves = compat.compute_trans_mat(weights.mean(dim=0))
    spread = propagate_attention(cams, queries[None], keys[None], steps=2, sinkhorn=3)
    torch.testing.assert_close(spread[0].mT, moves @ cams[0].mT)


@pytest.mark.parametrize("decoder", [False, True])
def test_golden_attention(decoder, theirs):
    refined, classes = compat.refine_cams_with_aff(
        theirs.maps.cpu(), theirs.attention, theirs.present, (96, 112), 0.6, 4, theirs.decoder if decoder else None
    )
    expected = theirs.refined_decoder if decoder else theirs.refined
    assert [tuple(cam.shape) for cam in refined] == [(6, 7)] * 3
    torch.testing.assert_close(torch.stack(refined), expected, rtol=1e-5, atol=1e-7)
    assert torch.equal(classes, theirs.classes.cpu())


def test_attention_by_matrices(device):
    """The last layers alone, without the class token; boxes that end before the last row and column."""
    weights = torch.cat([torch.full((1, 31, 31), torch.nan, dtype=torch.float64), attention(3, 31)[0]])
    maps = torch.zeros(30, 3, dtype=torch.float64)
    maps[[8, 15, 2], 0] = torch.tensor([0.9, 0.7, 0.4]).double()  # at (1, 2), (2, 3) and (0, 2) of 5 x 6
    maps[29, 1] = 1.0
    box = torch.zeros(5, 6, dtype=torch.float64)
    box[1:3, 2:4] = 1  # the corners connect; 0.4 is no more than 0.5 of 0.9
    moves = dense_transition(weights[1:, 1:, 1:].mean(dim=0))
    refined, classes = compat.refine_cams_with_aff(
        maps.to(device), weights.to(device), torch.tensor([1, 1, 0], device=device), (80, 96), 0.5, attn_layers=3
    )
    assert classes.tolist() == [0, 1]
    assert refined[0].dtype == torch.float32
    expected = (moves * box.flatten()) @ maps[:, 0]
    torch.testing.assert_close(refined[0].flatten().cpu(), expected.float())
    assert not refined[1].any(), "the only pixel is in the last row"


def test_no_class_is_present(device):
    weights, maps = attention(2, 31)[0].to(device), random(30, 3).to(device)
    refined, classes = compat.refine_cams_with_aff(maps, weights, torch.zeros(3, device=device), (80, 96))
    assert (refined, classes.tolist()) == ([], [])


def test_golden_boxes(theirs):
    """Eighteen contours, holes among them, in the order of OpenCV."""
    scores = theirs.scores.cpu().numpy()
    boxes, count = compat.scoremap2bbox(scores, 0.6, True)
    assert count == len(boxes) == 18
    assert boxes.tolist() == theirs.boxes.tolist()
    box, count = compat.scoremap2bbox(scores, 0.6)
    assert count == 1
    assert box.tolist() == theirs.box.tolist()


def test_boxes_by_hand():
    scores = np.zeros((6, 9), np.float32)
    scores[1:4, 1:4] = 0.8
    scores[2, 2] = 0.2  # a hole
    scores[[3, 4, 5], [5, 6, 7]] = 1.0  # connected by corners, down to the last row
    ring, diagonal = [1, 1, 4, 4], [5, 3, 8, 5]
    boxes, count = compat.scoremap2bbox(scores, threshold=0.5, multi_contour_eval=True)
    assert (boxes.tolist(), count) == ([diagonal, ring, ring], 3), "the hole's contour is the ring's pixels too"
    assert compat.scoremap2bbox(scores, 0.5)[0].tolist() == [ring], "of the diagonal the area is 0"
    boxes, count = compat.scoremap2bbox(np.zeros((3, 4)), 0.5, True)
    assert (boxes.tolist(), count) == ([[0, 0, 0, 0]], 1)


# MCTformer and IRN.


def test_patch_attention(device):
    """The sum over layers as given, and added up before; the mean, by attention."""
    weights, queries, keys = (x.to(device) for x in attention(3, 20))
    cams = random(1, 4, 4, 5, seed=7).to(device)
    expected = (weights.sum(dim=0) @ cams.flatten(2)[0].mT).mT.reshape(1, 4, 4, 5)
    torch.testing.assert_close(compat.patch_attn_refine(weights[:, None], cams), expected)
    torch.testing.assert_close(compat.patch_attn_refine(weights.sum(dim=0, keepdim=True), cams), expected)
    torch.testing.assert_close(propagate_attention(cams, queries[None], keys[None]) * 3, expected)
    with pytest.raises(ValueError, match="patch_attn must have shape"):
        compat.patch_attn_refine(weights[0], cams)


def test_golden_walk(theirs):
    walked = compat.propagate_to_edge(theirs.walk_cams, theirs.edges, radius=5, beta=10, exp_times=8)
    assert walked.shape == (3, 1, 9, 11)
    torch.testing.assert_close(walked, theirs.walked, rtol=1e-4, atol=1e-5)
    one = compat.propagate_to_edge(theirs.walk_cams[0], theirs.edges[0], exp_times=8)
    torch.testing.assert_close(one, theirs.walked[:1], rtol=1e-4, atol=1e-5)
