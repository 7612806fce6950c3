"""A few hundred drawn cases of every operator, always the same ones; `make fuzz` draws tens of thousands of others."""

import json
import sys

import fuzz
import pytest
import torch

SLOW = "lattice", "affinity_refine", "refine_cam_labels", "pixel_prototype_contrast"  # 25 to 60 ms, others 10


@pytest.mark.parametrize("name", fuzz.BY_NAME)
def test_drawn_cases(name, one_thread):
    slow = fuzz.BY_NAME[name].name.startswith(SLOW)
    fuzz.search(name, 60 if slow else 200, None)


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


def test_the_night_goes_on_where_it_ended(tmp_path, monkeypatch, capsys):
    state = tmp_path / "fuzz.json"

    def night():
        options = ["--cases", "2", "--only", "topk_pool", "--seed", "7", "--state", str(state)]
        monkeypatch.setattr(sys, "argv", ["fuzz.py", *options])
        return fuzz.main(), capsys.readouterr().out

    code, said = night()
    assert code == 0
    assert "topk_pool, seed 7: 2 cases" in said
    assert json.loads(state.read_text()) == {"topk_pool 7": "passed"}
    code, said = night()
    assert code == 0
    assert "seed 7: " not in said
    state.write_text('{"topk_pool 7": "AssertionError: wrong"}')
    code, said = night()
    assert code == 1
    assert "1 failed: topk_pool 7" in said


def test_a_failure_says_how_to_repeat_it(tmp_path, monkeypatch, capsys):
    def wrong(*_):
        raise AssertionError("the output: largest error")

    monkeypatch.setattr(fuzz, "judge_case", wrong)
    options = ["--cases", "2", "--only", "topk_pool", "--seed", "7", "--state", str(tmp_path / "state.json")]
    monkeypatch.setattr(sys, "argv", ["fuzz.py", *options])
    assert fuzz.main() == 1
    said = capsys.readouterr().out
    assert "FAILED topk_pool, seed 7: AssertionError: the output: largest error" in said
    assert "'patches': 1" in said, "the smallest case"
    assert "python tests/fuzz.py --only topk_pool --seed 7 --cases 2" in said
