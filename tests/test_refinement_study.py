"""The study of refinements, on a few of its photographs where they are at hand."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS = ROOT.parent / "shared" / "minivoc"  # not distributed

sys.path.insert(0, str(ROOT / "benchmarks"))
study = pytest.importorskip("refinement_study")


@pytest.mark.skipif(not PHOTOGRAPHS.exists(), reason="the photographs are not distributed")
def test_refinements_improve_degraded_masks():
    """By several points of mIoU: on all photographs of this part by 11 and 12."""
    names = "degraded", "PAR", "CRF, as in ViT-PCM"
    photographs, scores = study.study(PHOTOGRAPHS / "msrc", 10, {name: study.REFINEMENTS[name] for name in names})
    assert photographs == 10
    assert scores["degraded"] < 75
    assert scores["PAR"] > scores["degraded"] + 5
    assert scores["CRF, as in ViT-PCM"] > scores["degraded"] + 5


def test_mean_iou():
    """By hand: class 0 is 3 of 4, class 1 is 1 of 2, class 2 is nowhere."""
    confusion = np.array([[3, 1, 0], [0, 1, 0], [0, 0, 0]])
    assert study.mean_iou(confusion) == pytest.approx(100 * (3 / 4 + 1 / 2) / 2)


def test_degraded_masks_are_probabilities():
    labels = np.zeros((20, 30), np.int64)
    labels[5:, 10:], labels[0] = 7, 255
    maps = study.degraded(labels, np.array([0, 7]), seed=0)
    assert maps.shape == (1, 2, 20, 30)
    assert maps.min() > 0
    torch.testing.assert_close(maps.sum(dim=1), torch.ones(1, 20, 30))
    assert torch.equal(maps, study.degraded(labels, np.array([0, 7]), seed=0))
    assert not torch.equal(maps, study.degraded(labels, np.array([0, 7]), seed=1))
