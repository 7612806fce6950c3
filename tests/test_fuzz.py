"""A few hundred drawn cases of every operator, always the same ones; `make fuzz` draws tens of thousands of others."""

import json
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest
import torch

CASES = {"affinity_refine": 100, "lattice_crf": 100, "exact_crf": 100, "lattice_energy_from_logits": 100}  # slow ones


@pytest.mark.parametrize("name", fuzz.BY_NAME)
def test_drawn_cases(name, one_thread):
    fuzz.search(name, CASES.get(fuzz.BY_NAME[name].name, 200), None)


def test_a_wrong_kernel_is_found(monkeypatch):
    """One that forgets the last of more than thirty patches: the case is made as small as it can be."""
    room = fuzz.BY_NAME["topk_pool"]

    def forgetful(scores, k):
        return room.function(scores=scores[:, :30], k=k.clamp(max=30) if isinstance(k, torch.Tensor) else min(k, 30))

    wrong = type(room)(**{**vars(room), "function": forgetful})
    monkeypatch.setitem(fuzz.BY_NAME, "topk_pool", wrong)
    with pytest.raises(AssertionError) as raised:
        fuzz.search("topk_pool", 200, 0)
    assert "'patches': 31" in "\n".join(raised.value.__notes__)


def test_the_night_goes_on_where_it_ended(tmp_path):
    state = tmp_path / "fuzz.json"
    options = ["--cases", "2", "--only", "topk_pool", "--seed", "7", "--state", str(state)]
    command = [sys.executable, str(Path(fuzz.__file__)), *options]
    done = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert "topk_pool, seed 7: 2 cases" in done[0]
    assert "topk_pool, seed 7" not in done[1]
    assert json.loads(state.read_text()) == {"topk_pool 7": "passed"}
    state.write_text('{"topk_pool 7": "AssertionError: wrong"}')
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "1 failed: topk_pool 7" in again.stdout
