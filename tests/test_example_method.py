"""The method in one file that CONTRIBUTING.md shows."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torchvision", reason='needs pip install "toco-kernels[train]"')

from toco_kernels.__main__ import main

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "docs" / "example_method.py"

pytestmark = pytest.mark.usefixtures("one_thread")


def test_one_file_is_a_method(tmp_path):
    """It learns, is resumed, and its run can be opened again."""
    arguments = ["--method", EXAMPLE, "--out", tmp_path, "--device", "cpu", "--steps", 30, "--log-every", 1]
    arguments += ["--evaluate-images", 4, "--checkpoint-every", 15, "--picture-every", 0]
    arguments += ["--set", "augmentation.size=48", "--set", "width=16", "--batch-size", 8]

    def command(*words):
        return main([str(word) for word in words])

    assert command("train", *arguments) == 0
    losses = [json.loads(line)["cls"] for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert len(losses) == 30
    assert np.mean(losses[-10:]) < np.mean(losses[:10])
    before = json.loads((tmp_path / "metrics.json").read_text())
    (tmp_path / "checkpoints" / "step-00000030.pt").unlink()
    assert command("train", "--resume", *arguments) == 0
    assert [json.loads(line)["cls"] for line in (tmp_path / "losses.jsonl").read_text().splitlines()] == losses
    assert json.loads((tmp_path / "metrics.json").read_text())["details"] == before["details"]


def test_it_is_short_and_shown():
    lines = EXAMPLE.read_text().splitlines()
    assert len(lines) <= 70
    assert "docs/example_method.py" in (ROOT / "CONTRIBUTING.md").read_text()
