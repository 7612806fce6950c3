"""`python -m toco_kernels run`: whole scripts, their children, ranks, checkpoints and failures."""

import functools
import importlib
import json
import os
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from imitated import IMITATION, VARIANTS, known

from toco_kernels import compat
from toco_kernels.port import importer

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def also(tmp_path_factory):
    file = tmp_path_factory.mktemp("also") / "known.json"
    file.write_text(json.dumps(known()))
    return ["--also", str(file)]


def python(*arguments, folder=IMITATION):
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, capture_output=True, text=True, env=ENVIRONMENT, timeout=300
    )


def run(*arguments, folder=IMITATION):
    return python("-m", "toco_kernels", "run", *arguments, folder=folder)


@pytest.fixture(scope="module")
def published():
    """What the imitated functions give by themselves: step(seed)."""
    before = set(sys.modules)
    sys.path.insert(0, str(IMITATION))
    sys.modules["bilateralfilter"] = SimpleNamespace(bilateralfilter_batch=compat.bilateralfilter_batch)
    yield functools.cache(importlib.import_module("train").step)
    sys.path.remove(str(IMITATION))
    for name in set(sys.modules) - before:
        if name.split(".")[0] in ("model", "utils", "train", "bilateralfilter"):
            del sys.modules[name]


@pytest.fixture(scope="module")
def trained(also, tmp_path_factory):
    """A script that is its own main module, with a child of every kind. What it wrote, printed and reported."""
    folder = tmp_path_factory.mktemp("trained")
    methods = ["fork", "spawn", "forkserver"]
    done = run(*also, "--report", folder / "report.json", "train.py", folder / "out", "--children", *methods)
    assert done.returncode == 0, done.stderr
    results = {method: torch.load(folder / f"out.{method}", weights_only=False) for method in methods}
    results["main"] = torch.load(folder / "out", weights_only=False)
    return SimpleNamespace(done=done, results=results, report=json.loads((folder / "report.json").read_text()))


@pytest.mark.parametrize("process", ["main", "fork", "spawn", "forkserver"])
def test_the_numbers_are_the_published_ones(process, trained, published):
    """Also gradients, buffers, and what is drawn at random afterwards; ours have no buffer `kernel`."""
    actual, expected = trained.results[process], published(0 if process == "main" else 1)
    buffers = {name: x for name, x in expected["network"].items() if name != "par.kernel"}
    torch.testing.assert_close(actual, expected | {"network": buffers}, rtol=1e-4, atol=1e-5)


def test_checkpoints_load(trained, published):
    """One that was saved with the published module loads strictly into a network with ours."""
    checkpoint = published(0)["network"]
    assert checkpoint["par.kernel"].shape == (8, 1, 3, 3)
    network = torch.nn.Module()
    network.par, network.features = compat.PAR([1], 1), sys.modules["train"].Network(compat.PAR([1], 1)).features
    network.load_state_dict(dict(checkpoint))
    torch.testing.assert_close(network.state_dict(), trained.results["main"]["network"])


def test_everything_is_replaced_in_every_process(trained):
    found = {(row["file"], row["name"]): row for row in trained.report["replaced"]}
    inner = {"get_valid_cam", "ignore_img_box", "DenseEnergyLossFunction"}  # what others of ours do without
    for file, names in VARIANTS.items():
        for name, ours in names.items() if file != "train_ranks.py" else ():
            row = found.pop((file, name))
            assert row["replacement"].endswith(f".{ours}")
            state = "verified"
            if "nergy" in name:
                state = "original not importable"
                assert "bilateralfilter" in row["detail"] or row["calls"] == 0
            used = name not in inner and (file, name) != ("model/losses.py", "DenseEnergyLoss")
            assert row["state"] == (state if used else "never called"), row
            assert row["calls"] == (4 if used else 0), row
            if row["state"] == "verified":
                assert row["before"]["ms"] > 0 < row["after"]["ms"]
    assert not found
    assert trained.report["children"] == 3


def test_the_report_is_printed(trained):
    assert trained.done.stdout == "trained -1\n"
    said = trained.done.stderr
    assert "calls include those of 3 child processes" in said
    assert "shim: model/losses.py:11: the extension bilateralfilter" in said
    for shim in trained.report["shims"]:
        assert shim["why"] in said
    assert {shim["file"] for shim in trained.report["shims"]} == {"train.py", "model/losses.py"}
    assert "get_masked_ptc_loss      " in said
    assert "Warning" not in said


@pytest.mark.skipif(not dist.is_available() or not dist.is_gloo_available(), reason="torch without gloo")
def test_two_ranks_take_one_decision(also, tmp_path):
    """Under torchrun. The loss differs on one rank's labels only; a function that one rank calls hangs nobody."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "toco_kernels", "run"]
    done = python(*launcher, *also, "--report", tmp_path / "report.json", "train_ranks.py", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    first, second = (torch.load(tmp_path / f"out.{rank}") for rank in range(2))
    assert min(second["seg"]) > 1, "the original's, of which one is a part"
    assert first["aff"] == second["aff"]
    assert "cam" in second
    rows = {row["name"]: row for row in json.loads((tmp_path / "report.json").read_text())["replaced"]}
    assert (rows["get_seg_loss"]["state"], rows["get_seg_loss"]["ours"]) == ("differs elsewhere", False)
    assert rows["get_seg_loss"]["detail"].startswith("rank 1: output 0:")
    assert rows["get_aff_loss"]["state"] == "verified"
    assert done.stderr.count("RuntimeWarning: toco_kernels: get_seg_loss") == 1
    assert done.stderr.count("first call") == 1, "one rank reports"


SCRIPT = """
    import sys

    def get_seg_loss(pred, label, ignore_index=255):
        return 0

    if __name__ == "__main__":
        print(sys.argv, __file__, sys.path[0], __name__, get_seg_loss.__module__)
        raise KeyError("label")
"""


def test_a_script_that_fails(tmp_path):
    """Arguments are its own, the traceback and the exit code are Python's, and an unknown variant is reported."""
    (tmp_path / "script.py").write_text(textwrap.dedent(SCRIPT))
    done = run("script.py", "--trust", "x", folder=tmp_path)
    plain = python("script.py", "--trust", "x", folder=tmp_path)
    assert done.returncode == plain.returncode == 1
    assert done.stdout == plain.stdout
    assert done.stderr.startswith(plain.stderr)
    assert "nothing was replaced" in done.stderr
    assert "left alone: script.py:4: get_seg_loss: not a known variant (fingerprint " in done.stderr
    assert "To have ours tried in place of get_seg_loss all the same, write" in done.stderr


USER = """
    import losses
    import torch

    torch.manual_seed(0)
    print(losses.get_masked_ptc_loss(torch.randn(1, 4, 2, 2), torch.ones(1, 4, 4, dtype=torch.long)).item())
    raise SystemExit(3)
"""


def test_trust_and_exit_codes(tmp_path, also):
    """Nothing is compared, and nothing is written, no bytecode either."""
    folder = tmp_path / "repository"
    folder.mkdir()
    (folder / "script.py").write_text(textwrap.dedent(USER))
    (folder / "losses.py").write_text((IMITATION / "model/losses.py").read_text())
    done = run(*also, "--trust", "--report", tmp_path / "report.json", "script.py", folder=folder)
    assert done.returncode == 3, done.stderr
    assert {path.name for path in folder.iterdir()} == {"script.py", "losses.py"}
    rows = {row["name"]: row for row in json.loads((tmp_path / "report.json").read_text())["replaced"]}
    assert (rows["get_masked_ptc_loss"]["state"], rows["get_masked_ptc_loss"]["calls"]) == ("trusted", 1)
    torch.manual_seed(0)
    expected = compat.get_masked_ptc_loss(torch.randn(1, 4, 2, 2), torch.ones(1, 4, 4, dtype=torch.long))
    assert float(done.stdout) == pytest.approx(expected.item(), rel=1e-5)


def test_what_is_installed_is_not_theirs():
    """Also in the environment that another one builds on."""
    for folder in ("/usr/lib/python3/dist-packages", "/other/.venv/lib/python3.11/site-packages"):
        assert not importer.is_theirs(f"{folder}/package/module.py")
    assert not importer.is_theirs(compat.__file__)
    assert not importer.is_theirs(json.__file__)
    assert importer.is_theirs("/home/me/package/module.py")


def test_run_refuses_what_is_not_there():
    done = run("no_such_script.py")
    assert done.returncode == 2
    assert "argument SCRIPT: must be a file, got 'no_such_script.py'" in done.stderr
