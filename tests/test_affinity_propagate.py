"""What is particular to affinity_propagate; the rest is in test_contract.py."""

import pytest
import torch

from toco_kernels import component_boxes, propagate_attention, random_walk
from toco_kernels.affinity_propagate import reference


def test_attention_by_hand(device):
    """Each patch attends to one other; a class token takes half of what the last one has to give."""
    keys = torch.eye(4, dtype=torch.float64, device=device)[None] * 2e3  # the first is the class token
    queries = keys[0, [[1, 1], [3, 3], [0, 2]]].mean(dim=1)[None] * 2e3
    cams = torch.tensor([[[3.0, 5.0, 7.0]]], dtype=torch.float64, device=device)
    assert propagate_attention(cams, queries, keys).flatten().tolist() == pytest.approx([3.0, 7.0, 2.5])
    assert propagate_attention(cams, queries, keys, steps=2).flatten().tolist() == pytest.approx([3.0, 2.5, 3.5])


def test_34_neighbours_of_published_code():
    assert len(reference.offsets(5)) == 34


def test_an_edge_stops_the_walk(device):
    edges = torch.zeros(1, 1, 6, 9, device=device)
    edges[..., 4] = 1
    cams = torch.zeros(1, 1, 6, 9, device=device)
    cams[..., :4] = 1
    walked = random_walk(edges, cams)
    torch.testing.assert_close(walked[..., :4], cams[..., :4])
    assert (walked[..., 4:] == 0).all()


def test_boxes_by_hand(device):
    """Two regions, one of them a diagonal; what is not above the threshold has no box."""
    cams = torch.zeros(1, 2, 4, 6, device=device)
    cams[0, 0, [0, 1], [0, 1]] = 1.0
    cams[0, 0, 3, 4] = 0.6
    boxes = component_boxes(cams, threshold=0.5)[0]
    expected = torch.zeros(4, 6, dtype=torch.bool, device=device)
    expected[:2, :2] = expected[3, 4] = True
    assert torch.equal(boxes[0], expected)
    assert not boxes[1].any()


@pytest.mark.parametrize("argument", ["cams", "queries", "keys"])
def test_nan_in_nan_out(argument, device):
    inputs = {name: torch.rand(1, 40, 8, device=device) for name in ("queries", "keys")}
    inputs["cams"] = torch.rand(1, 3, 40, device=device)
    inputs[argument].view(-1)[0] = float("nan")
    assert propagate_attention(**inputs).isnan().any()


@pytest.mark.parametrize("argument", ["edges", "cams"])
def test_nan_in_nan_out_of_the_walk(argument, device):
    inputs = {"edges": torch.rand(1, 1, 7, 8, device=device), "cams": torch.rand(1, 3, 7, 8, device=device)}
    inputs[argument].view(-1)[0] = float("nan")
    assert random_walk(**inputs, steps=2).isnan().any()
