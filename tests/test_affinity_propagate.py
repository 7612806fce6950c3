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


def with_attention(weights):
    """Queries and keys (1, N, N) whose attention are these rows, each of sum 1."""
    width = len(weights)
    keys = torch.eye(width, dtype=torch.float64, device=weights.device)
    return weights.log()[None] * width**0.5, keys[None]


def test_sinkhorn_by_hand(device):
    """Columns first, then rows. Rows first would change nothing here, and end with others: 2/3, 11/30 and 3/5.

    1/2 1/2      2/3 2/5      5/8   3/8
    1/4 3/4  ->  1/3 3/5  ->  5/14  9/14
    """
    queries, keys = with_attention(torch.tensor([[1 / 2, 1 / 2], [1 / 4, 3 / 4]], dtype=torch.float64, device=device))
    cams = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]], dtype=torch.float64, device=device)
    rows = propagate_attention(cams, queries, keys, sinkhorn=1)[0]
    mean = (3 / 8 + 5 / 14) / 2
    assert rows[:2].tolist() == [pytest.approx([5 / 8, mean]), pytest.approx([mean, 9 / 14])]
    assert rows[2].tolist() == pytest.approx([111 / 112, 113 / 112]), "rows sum to 1, columns only nearly"
    twice = propagate_attention(cams[:, :1], queries, keys, sinkhorn=1, steps=2)[0, 0]
    assert twice.tolist() == pytest.approx([25 / 64 + mean**2, mean * (5 / 8 + 9 / 14)])


def test_sinkhorn_of_a_symmetric_matrix_by_hand(device):
    """Columns, then rows, by sums of 7/12, 11/12 and 6/4 each: the first round of

    1/3 1/6 1/12          1/3 : 7/12   1/6 : 11/12   1/12 : 6/4       4/7   2/11  1/18
    1/6 1/3 5/12    ->    1/6 : 7/12   1/3 : 11/12   5/12 : 6/4   =   2/7   4/11  5/18
    1/12 5/12 1           1/12 : 7/12  5/12 : 11/12  1 : 6/4          1/7   5/11  2/3

    as attention with a class token that takes what is missing to rows of 3/2.
    """
    weights = torch.tensor([[4.0, 2, 1], [2, 4, 5], [1, 5, 12]], dtype=torch.float64, device=device) / 12
    queries, keys = with_attention(torch.eye(4, dtype=torch.float64, device=device) * 0.6 + 0.1)
    token = 3 / 2 - weights.sum(dim=1, keepdim=True) + 1e-9
    queries = torch.cat([token, weights], dim=1).log()[None] * 2.0
    columns = torch.tensor([[4 / 7, 2 / 11, 1 / 18], [2 / 7, 4 / 11, 5 / 18], [1 / 7, 5 / 11, 2 / 3]]).double()
    expected = columns / columns.sum(dim=1, keepdim=True)
    eye = torch.eye(3, dtype=torch.float64, device=device)[None]
    moves = propagate_attention(eye, queries, keys, sinkhorn=1)[0].cpu()
    torch.testing.assert_close(moves, (expected + expected.T) / 2, rtol=1e-8, atol=0)


@pytest.mark.parametrize("steps", [0, 1, 2, 5])
def test_steps_are_a_power(steps, device):
    """T² x = T (T x). After many rounds rows and columns sum to 1, so that a constant map stays one."""
    weights = torch.rand(6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.1
    weights = (weights / weights.sum(dim=1, keepdim=True)).to(device)
    cams = torch.rand(1, 3, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)
    queries, keys = with_attention(weights)
    power = torch.linalg.matrix_power(weights, steps)
    spread = propagate_attention(cams, queries, keys, steps=steps)
    torch.testing.assert_close(spread[0].mT, power @ cams[0].mT, rtol=1e-12, atol=0)
    constant = propagate_attention(torch.ones_like(cams), queries, keys, steps=steps, sinkhorn=60)
    torch.testing.assert_close(constant, torch.ones_like(cams), rtol=1e-12, atol=0)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_matrix_larger_than_what_is_kept(threads, device):
    """Rounds of Sinkhorn keep 4 MB of the matrix; of 756 patches in float64 the last rows are found anew."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randn(1, 2, 756 + extra, 8, generator=generator).double() for extra in (0, 1))
    cams = torch.rand(1, 3, 756, generator=generator).double()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        spread = propagate_attention(*(x.to(device) for x in (cams, queries, keys)), steps=2, sinkhorn=2)
    finally:
        torch.set_num_threads(before)
    moves = reference.transition(queries, keys, 2)
    torch.testing.assert_close(spread.cpu(), cams @ moves.mT @ moves.mT, rtol=1e-12, atol=0)


def test_walk_by_hand(device):
    """An edge of 1/2 on the middle of three pixels: affinities of 1/2, weights of 1/4, columns of sum 1."""
    edges = torch.tensor([[[[0.0, 0.5, 0.0]]]], dtype=torch.float64, device=device)
    cams = torch.tensor([[[[1.0, 2.0, 4.0]]]], dtype=torch.float64, device=device)
    walked = random_walk(edges, cams, radius=2, beta=2, steps=1)
    expected = [(1 + 1 / 4) / (5 / 4), (1 / 4 + 1 + 4 / 4) / (6 / 4), (1 / 4 + 4) / (5 / 4)]
    assert walked.flatten().tolist() == pytest.approx(expected)


def test_affinities_by_hand(device):
    """Right; below to the left, below, below to the right. What leads out of the image is not read."""
    assert reference.offsets(2) == [(0, 1), (1, -1), (1, 0), (1, 1)]
    affinities = torch.full((1, 4, 2, 2), torch.nan, dtype=torch.float64, device=device)
    affinities[0, 0, :, 0] = affinities[0, 2, 0, :] = affinities[0, 1, 0, 1] = 0
    affinities[0, 3, 0, 0] = 0.5  # (0, 0) and (1, 1)
    cams = torch.tensor([[[[9.0, 2.0], [3.0, 0.0]]]], dtype=torch.float64, device=device)
    walked = random_walk(affinities, cams, radius=2, beta=1, steps=1)
    assert walked.flatten().tolist() == pytest.approx([6.0, 2.0, 3.0, 3.0])


def test_walk_against_a_power_of_the_dense_matrix(device):
    """The matrix from its description: pairs nearer than the radius, the strongest edge less than 1 off their line."""
    height, width, radius, beta = 5, 6, 4, 3.0
    edges = torch.rand(height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cams = torch.rand(2, height * width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pixels = [(y, x) for y in range(height) for x in range(width)]
    moves = torch.eye(len(pixels), dtype=torch.float64)
    for i, (y0, x0) in enumerate(pixels):
        for j, (y1, x1) in enumerate(pixels[:i]):
            dy, dx = y1 - y0, x1 - x0
            if dy**2 + dx**2 < radius**2:
                near = (
                    edges[y, x]
                    for y, x in pixels
                    if min(y0, y1) <= y <= max(y0, y1) and min(x0, x1) <= x <= max(x0, x1)
                    if abs(dy * (x - x0) - dx * (y - y0)) < (dy**2 + dx**2) ** 0.5
                )
                moves[i, j] = moves[j, i] = (1 - max(near)) ** beta
    power = torch.linalg.matrix_power(moves / moves.sum(dim=0), 16)
    walked = random_walk(
        edges[None, None].to(device),
        cams.view(1, 2, height, width).to(device),
        radius=radius,
        beta=beta,
        steps=16,
    )
    expected = (cams * (1 - edges.flatten())) @ power
    torch.testing.assert_close(walked.flatten(2)[0].cpu(), expected, rtol=1e-11, atol=0)


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
