"""`memory.profile` finds peaks that are known, and the command measures, fits and reports what it should."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

from toco_kernels import memory
from toco_kernels.__main__ import main
from toco_kernels.cli import memory as command
from toco_kernels.common import benchmarks, measure
from toco_kernels.memory import methods
from toco_kernels.memory.fit import Model
from toco_kernels.memory.store import Store

KIB = 1024
N = 256  # a square of N float32 has N KiB


class Block(nn.Module):
    """Keeps the result of exp for the backward, and drops that of the product."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(N, N, bias=False)

    def forward(self, x):
        return self.linear(x).exp()


class Wasteful(nn.Module):
    """Sixteen squares at once, in the middle of it, which die before it ends."""

    def forward(self, x):
        return x.repeat(16, 1).view(16, N, N).sum(0)


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_forward_whose_peak_is_known():
    model = nn.Sequential(Block(), Wasteful(), nn.ReLU())
    x = torch.ones(N, N)
    with torch.no_grad(), memory.profile(model) as report:
        model(x)
    # exp's result is alive, sixteen squares, and their sum.
    assert report.peak == (1 + 16 + 1) * N * KIB
    assert report.place == ("1", "aten::sum", "forward")
    assert report.modules["1"].peak == report.peak
    assert report.modules["1"].added == 16 * N * KIB
    assert report.modules["0"].peak == 2 * N * KIB
    assert report.modules["0.linear"].peak == N * KIB
    assert report.modules[""].peak == report.peak
    assert report.operators["aten::repeat"].added == 16 * N * KIB
    assert report.operators["aten::repeat"].at_peak == 16 * N * KIB
    assert report.operators["aten::exp"].at_peak == N * KIB
    assert report.operators["aten::mm"].at_peak == 0, "it died before"


def test_a_training_step_is_attributed_to_the_modules_of_its_forward():
    model = nn.Sequential(Block(), Block())
    x = torch.ones(N, N)
    with memory.profile(model) as report:
        model(x).sum().backward()
    # The results of both exp, the gradient of the second product, and what that makes: gradients of weight and input.
    # Beside them the loss and its gradient.
    assert report.peak == 4 * N * KIB + 4 + 4
    assert report.place == ("1.linear", "aten::mm", "backward")
    assert sum(row.at_peak for row in report.operators.values()) == report.peak
    assert report.modules["0.linear"].calls > 0
    assert report.modules[""].calls == sum(row.calls for name, row in report.operators.items()) - (
        report.modules["(outside of modules)"].calls
    )


def test_our_operators_are_seen_by_name():
    from toco_kernels import patch_token_contrast

    tokens = torch.randn(1, 64, 32, requires_grad=True)
    with memory.profile() as report:
        patch_token_contrast(tokens, torch.arange(64)[None] % 3).backward()
    assert "toco_kernels::patch_token_contrast" in report.operators
    assert report.operators["toco_kernels::patch_token_contrast"].added >= 64 * 32 * 4, "the gradient"
    assert "patch_token_contrast" in str(report)
    json.dumps(report.as_dict())


def test_what_was_there_before_does_not_count_and_hooks_are_gone_afterwards():
    model, x = Block(), torch.ones(N, N)
    with memory.profile() as report:
        x.add_(1)
        x.view(-1).mul_(2)
    assert report.peak == 0
    model.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), torch.no_grad(), memory.profile(model) as report:
        model(x)
    assert report.peak == 2 * N * KIB, "complete although it ended early"
    calls = report.operators["aten::mm"].calls
    Block()(x)
    assert report.operators["aten::mm"].calls == calls


def test_nothing_ran():
    with memory.profile() as report:
        pass
    assert str(report) == "nothing ran"


def test_the_fit_finds_the_coefficients_it_was_made_of():
    truth = Model(fixed=300.0, linear=0.8, quadratic=2e-4, each=90.0)
    cases = [(crop, batch) for crop, batch in ((448, 4), (640, 4), (768, 4), (1024, 4), (448, 1))]
    fit = Model.of([(*case, truth.peak_mb(*case)) for case in cases])
    assert vars(fit) == pytest.approx(vars(truth), rel=1e-6)
    linear = Model.of([(crop, batch, 100 + batch * crop**2 / 256) for crop, batch in cases])
    assert vars(linear) == pytest.approx({"fixed": 100, "linear": 1, "quadratic": 0, "each": 0}, abs=1e-6)
    few = Model.of([(crop, batch, 100 + batch * crop**2 / 256) for crop, batch in ((224, 2), (448, 2), (224, 1))])
    assert vars(few) == pytest.approx(vars(linear), abs=1e-6), "as few terms as explain it"
    assert Model.of([(448, 1, 50.0)]).peak_mb(448, 1) == pytest.approx(50)
    with pytest.raises(ValueError, match="measured must have a case"):
        Model.of([])


@pytest.mark.parametrize("budget", [500.0, 3000.0, 24000.0])
def test_the_largest_fits_and_the_next_does_not(budget):
    model = Model(300.0, 0.8, 2e-4)
    crop, batch = model.largest_crop(4, budget), model.largest_batch(448, budget)
    assert model.peak_mb(crop, 4) <= budget < model.peak_mb(crop + 16, 4)
    assert crop % 16 == 0
    assert batch == 0 or model.peak_mb(448, batch) <= budget
    assert model.peak_mb(448, batch + 1) > budget
    assert model.largest_crop(4, 299.0) == 0


# Processes of their own


def allocate(megabytes):
    return lambda: torch.ones(int(megabytes * 1e6 / 4))


def test_a_child_that_runs_out_of_memory_is_a_result(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    outcome = measure.try_peak_mb("test_memory:allocate", 3000, limit_mb=500)
    assert outcome == (None, "out of memory")


@pytest.mark.parametrize(
    ("code", "said", "why"),
    [
        (-9, "", "out of memory (ended by SIGKILL by the system)"),
        (-11, "", "ended by SIGSEGV"),
        (1, "Traceback\n  …\nValueError: size must be …\n", "ValueError: size must be …"),
        (3, "", "exit code 3"),
    ],
)
def test_a_child_that_fails_says_how(code, said, why, monkeypatch):
    ended = subprocess.CompletedProcess([], code, stdout="", stderr=said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: ended)
    assert measure.try_peak_mb("a:function") == (None, why)
    with pytest.raises(RuntimeError, match=f"a:function: {re.escape(why)}"):
        measure.peak_mb("a:function")


# The command


@pytest.fixture
def imagined(monkeypatch):
    """Peaks by a formula, in place of processes; returns the cases that were asked for."""
    asked = []

    def peak(function, *where, limit_mb=None):
        asked.append((function, *where))
        if function == "harness:prepare_training":
            return measure.Outcome(10.0 if where[3] == "published" else 5.0, "")
        _, provider, _, _, batch, crop = where
        if crop >= 2000:
            return measure.Outcome(None, "out of memory")
        # Not of the fitted form: the answer must be corrected by measuring.
        mb = 300 + batch * (crop / 16) ** 2.2 * (1.0 if provider == "published" else 0.3)
        return measure.Outcome(mb, "")

    place = {"module": "backbone", "operator": "aten::mm", "phase": "backward", "mb": 150.0}
    place["held"] = [{"operator": "aten::exp", "mb": 90.0}]

    def value(function, *where, limit_mb=None):
        asked.append((function, *where))
        return measure.Outcome({"cls": 2e-6, "gradient": 1e-7} if function.endswith("errors") else place, "")

    monkeypatch.setattr(measure, "try_peak_mb", peak)
    monkeypatch.setattr(measure, "in_process", value)
    return asked


def run(capsys, *options):
    assert main(["memory", *options]) == 0
    return capsys.readouterr().out


def test_what_fits_is_measured_until_it_does(imagined, capsys):
    pytest.importorskip("timm")
    found = json.loads(run(capsys, "--crops", "448,640,768", "--budget", "24GB", "--json"))
    assert (found["batch"], found["classes"], found["budget_mb"]) == (4, 80, 24000)
    assert {row["operator"] for row in found["operators"]} >= {"refine_cam_labels", "patch_token_contrast"}
    answers = {(row["provider"], row["wanted"], row["crop"], row["batch"]): row for row in found["largest"]}
    by_crop = {row["provider"]: row for row in found["largest"] if row["wanted"] == "crop"}
    for provider, factor in (("published", 1.0), ("toco_kernels", 0.3)):
        crop = by_crop[provider]["crop"]
        assert by_crop[provider]["how"] == "measured"
        assert 300 + 4 * (crop / 16) ** 2.2 * factor == pytest.approx(by_crop[provider]["mb"], rel=1e-3)
        assert by_crop[provider]["mb"] <= 24000 < 300 + 4 * (crop / 16 + 2) ** 2.2 * factor
    assert len(answers) == 2 * (1 + 3)
    assert {row["how"] for row in found["largest"]} == {"measured", "predicted"}


def test_one_crop_and_one_image_are_not_enough_to_predict(imagined, capsys):
    pytest.importorskip("timm")
    options = "--batch", "1", "--budget", "2GB", "--no-check", "--json"
    found = json.loads(run(capsys, "--crops", "448", *options))
    assert {(row["crop"], row["batch"]) for row in found["steps"]} == {(448, 1), (448, 2)}
    assert all(448 < row["crop"] < 2000 for row in found["largest"] if row["wanted"] == "crop")
    found = json.loads(run(capsys, "--crops", "448,2000", *options))  # the larger runs out of memory
    assert {row["how"] for row in found["largest"]} == {"too few cases to tell"}


def test_the_table_says_what_ran_out(imagined, capsys, tmp_path):
    pytest.importorskip("timm")
    pytest.importorskip("matplotlib")
    text = run(capsys, "--crops", "448,2000", "--budget", "100GB", "--no-check", "--plot", str(tmp_path / "m.png"))
    assert "step                      2000  4      out of memory" in text
    assert re.search(r"published  4 x 448  aten::mm  backbone  backward  150: aten::exp 90", text)
    assert "verified: losses and gradients of fused and published differ by 2e-06 at most" in text
    assert "predicted" in text
    assert (tmp_path / "m.png").stat().st_size > 10_000


def test_methods_are_those_of_the_command():
    benchmarks.make_importable()
    from whole_step import METHODS

    assert set(command.METHODS) == set(METHODS) == set(methods.METHODS)


@pytest.mark.parametrize("method", ["ppc", "tkp-pcl"])
def test_operators_take_their_sizes(method):
    benchmarks.make_importable()
    from harness import prepare_training

    for operator in methods.METHODS[method].operators:
        for provider in ("published", "toco_kernels"):
            sizes = operator.sizes(methods.Setting(112, 1, 5, 32))
            outputs = prepare_training(operator.bench, operator.name, sizes, provider)()
            assert all(x.isfinite().all() for x in outputs)


TINY_BACKBONES = {"toco": "deit_tiny_patch16_224", "tkp-pcl": "deit_tiny_patch16_224"}


@pytest.mark.parametrize("method", command.METHODS)
def test_the_fused_step_is_the_published_one(method, one_thread):
    pytest.importorskip("timm")
    benchmarks.make_importable()
    import whole_step

    backbone = TINY_BACKBONES.get(method, "resnet10t")
    found = whole_step.errors(method, backbone, 5, 2, 112)
    assert len(found) > 2
    assert max(found.values()) < 1e-3


def test_a_step_that_is_another_is_seen(monkeypatch, one_thread):
    pytest.importorskip("timm")
    benchmarks.make_importable()
    import whole_step

    def another(*args, **kwargs):
        output = method.published(*args, **kwargs)
        return output._replace(losses=output.losses | {"pce": 1.1 * output.losses["pce"]}, loss=2 * output.loss)

    method = whole_step.METHODS["tkp-pcl"]
    monkeypatch.setitem(whole_step.METHODS, "tkp-pcl", replace(method, published=another))
    found = whole_step.errors("tkp-pcl", "deit_tiny_patch16_224", 5, 2, 112)
    assert found["mce"] < 1e-3
    assert found["pce"] == pytest.approx(0.1 / 1.1, rel=1e-3)
    assert found["gradient"] == pytest.approx(0.5, rel=1e-3)


def test_a_step_is_measured_in_a_process_of_its_own():
    """Ours of a tiny network: parameters, gradients and both moments of AdamW at least."""
    pytest.importorskip("timm")
    benchmarks.make_importable()
    peak = measure.peak_mb("whole_step:prepare", "toco", "toco_kernels", "deit_tiny_patch16_224", 3, 1, 112)
    assert 4 * 4 * 5.7 < peak < 1500


@pytest.mark.parametrize("method", command.METHODS)
def test_a_method_is_measured_by_its_name(method, imagined, capsys):
    pytest.importorskip("timm")
    found = json.loads(run(capsys, "--method", method, "--crops", "448", "--batch", "1", "--json"))
    (whole,) = {
        where for function, *where, _, _ in imagined if function == "whole_step:errors" for where in [(*where,)]
    }
    assert whole == (method, methods.METHODS[method].backbone, 80)
    assert {row["operator"] for row in found["operators"]} == {
        operator.name for operator in methods.METHODS[method].operators
    }


def test_nothing_is_measured_that_is_wrong(imagined, monkeypatch):
    pytest.importorskip("timm")
    for value, message in (
        (measure.Outcome({"cls": 0.5, "gradient": 1e-7}, ""), r"not measured: cls \(error 0\.5\)$"),
        (measure.Outcome({"cls": math.nan}, ""), r"not measured: cls \(error nan\)$"),
        (
            measure.Outcome(None, "ValueError: no"),
            "backbone must be one whose step runs here, got deit_base_patch16_224: V",
        ),
    ):
        monkeypatch.setattr(measure, "in_process", lambda *_, value=value, **__: value)
        with pytest.raises(SystemExit, match=message):
            main(["memory", "--crops", "448"])
    assert not imagined


def test_an_interrupted_command_prints_what_it_has_and_goes_on(imagined, capsys, monkeypatch, tmp_path):
    pytest.importorskip("timm")
    pytest.importorskip("matplotlib")
    whole, peak = [], measure.try_peak_mb
    picture = tmp_path / "memory.svg"
    options = ["memory", "--method", "tkp-pcl", "--crops", "448", "--batch", "1", "--plot", str(picture)]

    def interrupted(*args, **kwargs):
        if len(imagined) > limit:
            raise KeyboardInterrupt
        return peak(*args, **kwargs)

    monkeypatch.setattr(measure, "try_peak_mb", interrupted)
    for limit, cases in ((0, []), (3, ["--cases", str(tmp_path / "cases.json")])):
        imagined.clear()
        assert main([*options, *cases]) == 130
        said = capsys.readouterr()
        assert ("topk_pool                448   1      10         5" in said.out) == bool(limit)
        assert "<svg" in picture.read_text()
        whole.append(said.err.splitlines()[-1])
    assert whole[0] == "interrupted; --cases FILE would have kept what was measured"
    assert whole[1].startswith("interrupted; the same command goes on: ")

    monkeypatch.setattr(measure, "try_peak_mb", peak)
    imagined.clear()
    assert main([*options, *cases]) == 0
    functions = [function for function, *_ in imagined]
    assert "whole_step:errors" not in functions, "it is known"
    assert functions.count("harness:prepare_training") == 1
    imagined.clear()
    assert main([*options, *cases]) == 0
    assert not imagined


def test_cases_of_something_else_are_refused(tmp_path):
    file = tmp_path / "cases.json"
    store = Store(file, {"device": "cpu", "torch": "2"})
    assert store.get("a", lambda: measure.Outcome(None, "out of memory")).failure
    assert store.get("a", lambda: measure.Outcome(3.0, "")).value == 3, "what failed is asked again"
    assert Store(file, {"device": "cpu", "torch": "2"}).get("a", None).value == 3
    with pytest.raises(ValueError, match=r"--cases must be of the same torch as now, got .* of another"):
        Store(file, {"device": "cpu", "torch": "3"})
    for text in ("nothing", "[1]", '{"made_with": 3}'):
        file.write_text(text)
        with pytest.raises(ValueError, match="--cases must be a file that this command has written, or a new one"):
            Store(file, {})
    with pytest.raises(ValueError, match="--cases must be in a folder that exists"):
        Store(tmp_path / "no" / "cases.json", {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone", "vgg17"], "backbone must be the name of a network that timm has, got 'vgg17'"),
        (["--backbone", "resnet18"], "backbone must be one of timm's ViTs"),
        (["--method", "ppc", "--backbone", "deit_tiny_patch16_224"], "backbone must have three features with a stride"),
    ],
)
def test_a_backbone_is_refused_before_anything_is_measured(options, message, imagined):
    pytest.importorskip("timm")
    with pytest.raises(SystemExit, match=f"error: {message}"):
        main(["memory", *options])
    assert not imagined


def test_a_missing_matplotlib_is_said_first(imagined, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r'matplotlib is missing: pip install "toco-kernels\[plot\]"'):
        main(["memory", "--plot", str(tmp_path / "m.png")])
    assert not imagined


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--crops", "450"], "must be different multiples of 16 from 112 on, as 448,640, got '450'"),
        (["--crops", "80"], "must be different multiples"),
        (["--budget", "24"], "must be a size as 24GB, 24GiB or 800MB, got '24'"),
        (["--batch", "0"], "must be an integer of at least 1"),
        (["--method", "afa"], "invalid choice: 'afa'"),
        (["--plot", "memory.bmp"], "must be FILE.png, .svg or .pdf in a folder that exists, got 'memory.bmp'"),
        (["--plot", "no/such/memory.png"], "in a folder that exists, got 'no/such/memory.png'"),
    ],
)
def test_bad_options_are_refused(option, message, capsys):
    with pytest.raises(SystemExit):
        main(["memory", *option])
    assert message in capsys.readouterr().err


def test_sizes():
    assert [command.megabytes(text) for text in ("24GB", "800mb", "1.5 GiB")] == [24000, 800, 1610.612736]
