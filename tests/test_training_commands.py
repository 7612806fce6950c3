"""python -m toco_kernels train | pseudo-label | evaluate | certify."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision", reason='needs pip install "toco-kernels[train]"')
pytest.importorskip("timm", reason='needs pip install "toco-kernels[train]"')

from voc_folder import CLASSES, LABELS, make_folder

from toco_kernels.__main__ import main
from toco_kernels.cli import pseudo_label as pseudo_label_command
from toco_kernels.cli import train as train_command
from toco_kernels.training import (
    coco,
    evaluation,
    files,
    folder,
    image_labels,
    protocols,
    pseudo_labels,
    recipes,
    refine,
)
from toco_kernels.training.data import spread
from toco_kernels.training.miou import Confusion
from toco_kernels.training.protocols import PROTOCOLS

TINY = str(Path(__file__).with_name("tiny_method.py"))
MINIVOC = Path(__file__).parents[2] / "shared" / "minivoc"

pytestmark = pytest.mark.usefixtures("one_thread")


def command(*words):
    return main([str(word) for word in words])


def trained(run, *more):
    arguments = ("--method", TINY, "--device", "cpu", "--log-every", 2, "--evaluate-images", 4)
    assert command("train", "--out", run, *arguments, *more) == 0
    return run


# On the shapes


def test_train_label_evaluate(tmp_path, capsys):
    run = trained(tmp_path / "run", "--steps", 4, "--set", "dropout=0.0", "--set", "augmentation.size=24")
    config = json.loads((run / "config.json").read_text())
    assert (config["settings"]["steps"], config["settings"]["dropout"]) == (4, 0.0)
    assert config["settings"]["augmentation"]["size"] == 24
    metrics = json.loads((run / "metrics.json").read_text())
    printed = capsys.readouterr().out
    for name in ("cam_miou", "pseudo_label_miou", "seg_miou"):
        assert f"{name:18} {100 * metrics[name]:.2f}   (test, 4 images)" in printed

    labels = tmp_path / "labels"
    arguments = ("--run", run, "--out", labels, "--split", "val", "--refine", "none", "--device", "cpu")
    assert command("pseudo-label", *arguments) == 0
    assert "256 labels written, 0 were there" in capsys.readouterr().out
    assert len([*labels.glob("*.png")]) == 256
    assert command("pseudo-label", *arguments) == 0
    assert "0 labels written, 256 were there" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"error: .*holds labels made otherwise \(high: 0.4 then, 0.6 now"):
        command("pseudo-label", *arguments, "--high", 0.6)

    table = tmp_path / "scores.json"
    where = ("--data", "shapes", "--split", "val", "--labels", labels, "--json", table)
    assert command("evaluate", "--protocol", "labels", *where) == 0
    report = json.loads(table.read_text())["labels"]
    assert f"{100 * report['miou']:.2f}" in capsys.readouterr().out
    assert set(report["per_class"]) == set(config["classes"])

    (labels / "val_00007.png").unlink()
    with pytest.raises(SystemExit, match=r"val_00007\.png: is missing"):
        command("evaluate", "--protocol", "labels", *where)


def test_evaluate_a_run_gives_the_numbers_of_its_end(tmp_path, capsys, monkeypatch):
    run = trained(tmp_path / "run")
    metrics = json.loads((run / "metrics.json").read_text())
    monkeypatch.setattr(evaluation, "range", lambda n: spread(n, 4), raising=False)
    capsys.readouterr()
    assert command("evaluate", "--protocol", "run", "--run", run, "--device", "cpu") == 0
    lines = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines == {name: f"{100 * metrics[f'{name}_miou']:.2f}" for name in ("cam", "pseudo_label", "seg")}


def test_resume(tmp_path, capsys):
    run = trained(tmp_path / "run")
    with pytest.raises(SystemExit, match=r"error: .*holds a run already: --resume it"):
        trained(run)
    trained(run, "--resume")
    with pytest.raises(SystemExit, match=r"error: .*says otherwise"):
        trained(run, "--resume", "--seed", 5)


def test_labels_of_a_segmentation_and_of_more_scales(tmp_path, capsys):
    run = trained(tmp_path / "run", "--data", "folder", "--root", make_folder(tmp_path / "voc"), "--preset", "voc")
    for name, more in (
        ("seg", ("--source", "seg", "--refine", "toco-test")),
        ("scales", ("--scales", "1,0.5", "--high", 0.6, "--low", 0.2)),
        ("squashed", ("--size", 32, "--workers", 1, "--refine", "label-crf")),
    ):
        assert command("pseudo-label", "--run", run, "--out", tmp_path / name, "--device", "cpu", *more) == 0
        for file in sorted((tmp_path / name).glob("*.png")):
            files.read_mask(file, 3, (24, 32))
        assert len([*(tmp_path / name).glob("*.png")]) == 3
    settings = json.loads((tmp_path / "scales" / "settings.json").read_text())
    assert settings["scales"] == [1, 0.5]
    assert (settings["high"], settings["low"], settings["refinement"]) == (0.6, 0.2, "par")


WITHOUT_SEGMENTATION = """
import tiny_method
from toco_kernels.training import recipes

class Recipe(tiny_method.Recipe):
    predict = recipes.Recipe.predict
"""


def test_what_a_network_has_not_is_said_before_anything_is_measured(tmp_path, monkeypatch):
    root = fake_voc(tmp_path / "voc", monkeypatch)
    run, method = tmp_path / "run", tmp_path / "without_segmentation.py"
    method.write_text(WITHOUT_SEGMENTATION)
    data = ("--data", "folder", "--root", root, "--preset", "voc")
    trained(run, *data, "--method", method, "--steps", 1)
    arguments = ("--run", run, "--device", "cpu", "--out", tmp_path / "out")
    message = r"error: --source must be cam: method .*without_segmentation\.py has no segmentation, got seg"
    with pytest.raises(SystemExit, match=message):
        command("pseudo-label", *arguments, "--source", "seg")
    for name, missing in (("toco-voc-val", "aux_cam, seg"), ("toco-voc-ms-crf", "seg")):
        monkeypatch.setitem(PROTOCOLS, name, replace(PROTOCOLS[name], images=4))
        message = f"error: --protocol must measure what the network has, which is cam, got {name}, which measures"
        with pytest.raises(SystemExit, match=f"{message} {missing}"):
            command("evaluate", "--protocol", name, "--root", root, *arguments)
    with pytest.raises(SystemExit, match="got voc-test, which measures seg"):
        command("evaluate", "--protocol", "voc-test", "--root", root, *arguments)
    assert not (tmp_path / "out").exists()


def test_a_photograph_left_out_shows_in_the_exit_code(tmp_path, capsys):
    root = make_folder(tmp_path / "voc")
    run = trained(tmp_path / "run", "--data", "folder", "--root", root, "--preset", "voc")
    (root / "JPEGImages" / "b.jpg").write_text("gone")
    assert command("pseudo-label", "--run", run, "--out", tmp_path / "labels", "--device", "cpu") == 1
    captured = capsys.readouterr()
    assert "2 labels written, 0 were there, 1 photographs left out" in captured.out
    assert "b.jpg: is no picture" in captured.err


def test_certify(tmp_path, capsys):
    arguments = ("--method", TINY, "--device", "cpu", "--certify-steps", 2, "--seeds", 1, "--out", tmp_path)
    assert command("certify", *arguments) == 0
    assert "passed; ratios" in capsys.readouterr().out
    assert (tmp_path / "certify.svg").read_text().startswith("<svg")
    assert json.loads((tmp_path / "certify.json").read_text())["passed"] is True


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "nosuch=1"), "--set: there is no setting 'nosuch'; there are "),
        (("--preset", "nosuch"), "preset must be one of shapes, voc, got 'nosuch'"),
        (("--data", "folder", "--preset", "voc"), "root must be the folder of folder, got none"),
        (("--data", "folder", "--preset", "voc", "--root", "/nosuch"), "/nosuch: is missing"),
        (
            ("--method", "nosuch"),
            "method must be one of toco, ppc, tkp-pcl, affinitynet, or a Python file, got 'nosuch'",
        ),
        (("--method", "nosuch.py"), "method must be a file that exists, got 'nosuch.py'"),
    ],
)
def test_mistakes_end_train_with_a_line(words, message, tmp_path):
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        command("train", "--method", TINY, "--out", tmp_path / "run", *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("train",), "--out"),
        (("train", "--out", "x", "--set", "lr"), "must be NAME=VALUE, got 'lr'"),
        (("train", "--out", "x", "--steps", 0), "must be an integer of at least 1, got '0'"),
        (("train", "--out", "x", "--workers", -1), "must be an integer of at least 0, got '-1'"),
        (
            ("pseudo-label", "--run", "x", "--out", "y", "--scales", "1,a"),
            "must be positive numbers separated",
        ),
        (("evaluate", "--protocol", "run"), "--protocol run needs --run"),
        (("evaluate", "--protocol", "toco-voc-val", "--run", "x"), "--protocol toco-voc-val needs --root"),
        (("evaluate", "--protocol", "toco-voc-val", "--root", "x"), "needs --run or --checkpoint"),
    ],
)
def test_mistakes_in_arguments(words, message, capsys):
    with pytest.raises(SystemExit) as ended:
        command(*words)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_names_are_those_of_the_trainer():
    assert pseudo_label_command.REFINEMENTS == refine.REFINEMENTS
    assert train_command.METHODS == recipes.METHODS
    assert train_command.assignment("a.b=[1, 2]") == ("a.b", [1, 2])
    assert train_command.assignment("a=text") == ("a", "text")


# Protocols


class Knows:
    """A network that is told the truth: of CAMs, and of the segmentation in all but the first row."""

    def __init__(self, data, background=0.4):
        self.data, self.asked = data, []
        self.truths = {data.image(i).tobytes(): data.mask(i) for i in range(len(data))}
        self.recipe = SimpleNamespace(settings={"background": background})
        self.module = torch.nn.Linear(1, 1)

    def segmentation(self, image, scales=(1.0,), flip=None, merge="max"):
        self.asked.append((scales, flip, merge))
        truth = self.truths[image.tobytes()].copy()
        truth[:2] = 0
        return np.eye(256, dtype=np.float32)[truth].transpose(2, 0, 1)[: len(self.data.classes)]

    def evaluate(self, data, settings, indices):
        results = {name: Confusion(len(data.classes)) for name in ("cam", "aux_cam", "pseudo_label", "seg")}
        for index in indices:
            truth = data.mask(index)
            for result in results.values():
                result.update(truth, np.where(truth == 255, 0, truth))
        return results


def test_protocols_ask_as_published():
    expected = {
        "toco-voc-val": (1449, 448, (1.0,), None, "max", "none"),
        "toco-voc-ms-crf": (1449, None, (1.0, 1.5, 1.25), "sum", "max", "toco-test"),
        "toco-coco-part": (4999, 448, (1.0,), None, "max", "none"),
        "toco-coco-ms-crf": (40_137, 448, (1.0, 1.25, 1.5), "max", "sum", "toco-test"),
    }
    for name, protocol in PROTOCOLS.items():
        assert expected.pop(name) == (
            protocol.images,
            protocol.size,
            protocol.scales,
            protocol.flip,
            protocol.merge,
            protocol.settings().refinement,
        )
        assert all(len(numbers) == len(protocol.quantities) for numbers in protocol.expected.values())
    assert not expected
    assert PROTOCOLS["toco-voc-val"].expected["ViT-B"] == (72.33, 68.35, 69.22)


def fake_voc(root, monkeypatch):
    """VOC2012 with four photographs of val and as many of test."""
    make_folder(root, xml=True)
    monkeypatch.setattr(folder, "VOC_CLASSES", CLASSES)
    (root / "ImageSets" / "Segmentation" / "test.txt").write_text("\n".join(LABELS))
    return root


@pytest.mark.parametrize("name", ["toco-voc-val", "toco-voc-ms-crf"])
def test_a_protocol(name, tmp_path, monkeypatch):
    root = fake_voc(tmp_path / "voc", monkeypatch)
    protocol = PROTOCOLS[name]
    with pytest.raises(files.DataError, match="must have 1449 photographs for this, got 4"):
        protocol.open(root)
    object.__setattr__(protocol, "images", 4)
    try:
        data = protocol.open(root)
    finally:
        object.__setattr__(protocol, "images", 1449)
    network = Knows(data)
    reports = evaluation.by_protocol(protocol, network, data, tmp_path / "out", workers=0)
    assert tuple(reports) == protocol.quantities
    if name == "toco-voc-val":
        assert reports["seg"]["miou"] == 1
    else:
        assert set(network.asked) == {((1.0, 1.5, 1.25), "sum", "max")}
        assert len([*(tmp_path / "out").glob("*.png")]) == 4
        assert reports["seg"]["miou"] > 0.3
    rows = protocols.table([*reports.items()], protocol)
    assert rows[0] == ("", "mIoU", "255 left out", "open", "DeiT-B", "ViT-B")
    assert rows[-1][-2:] == (("68.10", "69.22") if name == "toco-voc-val" else ("69.80", "71.10"))


def test_a_protocol_with_a_crf_says_where_to_keep_it(tmp_path, monkeypatch):
    data = folder.open_voc(fake_voc(tmp_path, monkeypatch), "val")
    with pytest.raises(files.DataError, match="--out: is needed"):
        evaluation.by_protocol(PROTOCOLS["toco-voc-ms-crf"], Knows(data), data, None, workers=0)


def test_the_part_of_coco_needs_its_list(tmp_path, monkeypatch):
    with pytest.raises(files.DataError, match=r"needs the list of the 4999 photographs \(--list FILE\)"):
        PROTOCOLS["toco-coco-part"].open(tmp_path)
    opened = []
    monkeypatch.setattr(protocols, "open_coco", lambda root, split, names: opened.append(names) or names)
    (tmp_path / "part.txt").write_text("\n".join(f"COCO_val2014_{i:012d}" for i in range(4999)))
    PROTOCOLS["toco-coco-part"].open(tmp_path, tmp_path / "part.txt")
    assert len(opened[0]) == 4999
    assert coco.SPLITS["val"] == "val2014"


def test_files_for_vocs_test_server(tmp_path, monkeypatch):
    root = fake_voc(tmp_path / "voc", monkeypatch)
    for file in (root / "SegmentationClass").iterdir():
        truth = files.read_mask(file, 3)
        file.unlink()  # nobody has the truth of the test split
        file.with_suffix(".npy").write_bytes(truth.tobytes())

    class Blind:
        module = torch.nn.Linear(1, 1)

        def quantities(self):
            return ("seg",)

        def segmentation(self, image, scales, flip, merge):
            return np.stack([np.zeros(image.shape[:2]), np.ones(image.shape[:2]), np.zeros(image.shape[:2])])

    monkeypatch.setattr(evaluation, "_predictor", lambda *_: Blind())
    arguments = SimpleNamespace(protocol="voc-test", root=root, out=tmp_path / "out", workers=0)
    assert evaluation.export_voc_test(arguments) == 4
    assert evaluation.export_voc_test(arguments) == 4, "again"
    wanted = tmp_path / "out" / "results" / "VOC2012" / "Segmentation" / "comp6_test_cls"
    assert sorted(file.name for file in wanted.iterdir()) == [f"{name}.png" for name in "abcd"]
    assert (files.read_mask(wanted / "a.png", 3, (24, 32)) == 1).all()


# Photographs, where they are


@pytest.mark.skipif(not MINIVOC.is_dir(), reason="minivoc is not here")
def test_the_fields_image_labels_agree_with_masks(tmp_path):
    assert image_labels.main([str(MINIVOC / "cls_labels_onehot.npy"), str(tmp_path / "labels.json")]) == 0
    data = [folder.open_folder(MINIVOC, "trainval", labels=x) for x in ("masks", str(tmp_path / "labels.json"))]
    assert len(data[0]) == len(data[1]) == 174
    agree = [(data[0].labels(index) == data[1].labels(index)).all() for index in range(174)]
    assert sum(agree) == 173  # as its README says


@pytest.mark.skipif(not MINIVOC.is_dir(), reason="minivoc is not here")
def test_toco_on_real_photographs(tmp_path, capsys):
    """A few steps of the real method on VOC's photographs, labels of them, and their score."""
    small = '{"embed_dim": 48, "depth": 3, "num_heads": 3, "patch_size": 16, "img_size": 96}'
    arguments = ["--data", "folder", "--root", MINIVOC, "--preset", "shapes", "--labels", "masks", "--steps", 3]
    stages = '[{"until": null, "weights": {"cls": 1, "cls_aux": 1, "ptc": 0.2, "ctc": 0.5, "seg": 0.1, "reg": 0.05}}]'
    arguments += ["--set", f"backbone_options={small}", "--set", f"config.stages={stages}", "--batch-size", 2]
    run = tmp_path / "run"
    assert command("train", "--out", run, "--device", "cpu", "--log-every", 1, "--evaluate-images", 3, *arguments) == 0
    config = json.loads((run / "config.json").read_text())
    assert config["label_source"] == "masks"
    assert len(config["classes"]) == 21
    losses = [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]
    assert len(losses) == 3
    assert all(np.isfinite([*line.values()]).all() for line in losses)
    assert 0 <= json.loads((run / "metrics.json").read_text())["pseudo_label_miou"] <= 1
    data = folder.open_folder(MINIVOC, "val", labels="masks")
    predictor = evaluation.Run.open(run).predictor(evaluation.Processes.join("cpu"), size=96)
    report = pseudo_labels.make(
        data,
        lambda image, labels: predictor.cams(image, labels)["cam"],
        tmp_path / "labels",
        refine.Settings("par"),
        indices=range(3),
        show_progress=False,
    )
    assert report.written == 3
    assert 0 <= protocols.compare(data, tmp_path / "labels", range(3), show_progress=False).miou() <= 1
