"""Both stages on the commands: seeds, AffinityNet trained on them, their labels after the walk."""

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision", reason='needs pip install "toco-kernels[train]"')
pytest.importorskip("timm", reason='needs pip install "toco-kernels[train]"')

from affinity_net_inputs import SMALL, small_job
from ppc_inputs import SMALL as SMALL_PPC
from test_training_loop import assert_same_weights, losses, quiet
from voc_folder import CLASSES, LABELS, SIZE, make_folder

from toco_kernels.__main__ import main
from toco_kernels.training import batches, certify, files, folder, pseudo_labels, seeds
from toco_kernels.training.files import DataError
from toco_kernels.training.labelled_view import LabelledCrop, LabelledView
from toco_kernels.training.recipes.affinitynet import Recipe
from toco_kernels.training.refine import Settings, pseudo_label
from toco_kernels.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("one_thread")


def command(*words):
    return main([str(word) for word in words])


def changes(small):
    return [word for text in small for word in ("--set", text)]


def make_seeds(out, root, *, maps=True, names=LABELS):
    """What a first stage could have found in the small folder: the masks, open in some rows, and soft maps of them."""
    out.mkdir()
    random = np.random.default_rng(2)
    for name in names:
        mask = files.read_mask(root / "SegmentationClass" / f"{name}.png", 3, SIZE)
        mask[10:14] = 255
        files.write_mask(out / f"{name}.png", mask)
        shown = [CLASSES.index(label) for label in LABELS[name]]
        soft = np.stack([np.where(mask == c, 0.9, 0.2) for c in shown]) * random.uniform(0.5, 1, (len(shown), *SIZE))
        if maps:
            seeds.write_maps(out / f"{name}.npz", soft, shown)
    return out


@pytest.fixture
def data(tmp_path):
    """A folder and its seeds."""
    root = make_folder(tmp_path / "voc")
    return {"data": "folder", "root": root, "seeds": make_seeds(tmp_path / "seeds", root)}


# All of it


def test_both_stages(tmp_path, capsys):
    root, first, second = make_folder(tmp_path / "voc"), tmp_path / "first", tmp_path / "second"
    found, labels = tmp_path / "found", tmp_path / "labels"
    place = ("--data", "folder", "--root", root, "--preset", "shapes", "--device", "cpu")
    assert command("train", "--method", "ppc", "--out", first, *place, *changes((*SMALL_PPC, "steps=1"))) == 0
    keep = ("--split", "train,val", "--keep-maps", "--alphas", "0.5,2", "--refine", "affinitynet", "--device", "cpu")
    assert command("pseudo-label", "--run", first, "--out", found, *keep) == 0
    assert "4 labels written, 3 were there" in capsys.readouterr().out  # a, b and c are in both splits
    assert files.read_json(found / "settings.json")["alphas"] == [0.5, 2.0]
    one, both = (seeds.read_maps(found / f"{name}.npz", 3, SIZE) for name in "ac")
    assert one[0].any()
    assert not one[1].any(), "a shows a cat and no dog"
    assert both.shape == (2, *SIZE)

    arguments = ("--method", "affinitynet", "--seeds", found, *place, *changes(SMALL))
    assert command("train", "--out", second, "--log-every", 1, *arguments) == 0
    metrics = json.loads((second / "metrics.json").read_text())
    assert all(0 <= metrics[f"{name}_miou"] <= 1 for name in ("seed", "cam", "pseudo_label"))
    assert f"seed_miou          {100 * metrics['seed_miou']:.2f}" in capsys.readouterr().out
    assert all(line["background"] > 0 for line in losses(second))
    assert command("pseudo-label", "--run", second, "--out", labels, "--refine", "none", "--device", "cpu") == 0
    files.read_mask(labels / "a.png", 3, SIZE)
    assert files.read_json(labels / "settings.json")["seeds"] == str(found)
    assert command("evaluate", "--protocol", "run", "--run", second, "--device", "cpu") == 0
    printed = capsys.readouterr().out
    assert f"{100 * metrics['cam_miou']:.2f}" in printed
    assert "seed" in printed
    arguments = ("--method", "affinitynet", "--seed-maps", found, *place, *changes(SMALL))
    assert command("certify", "--certify-steps", 2, "--seeds", 1, "--out", tmp_path, *arguments) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("passed; ratios", "background", "foreground", "negative"))


@pytest.mark.parametrize("name", ["background", "negative"])
def test_a_loss_that_is_wrong_by_a_thousandth_fails(name, tmp_path, data, monkeypatch):
    right = Recipe.step

    def wrong(self, module, batch, step):
        output = right(self, module, batch, step)
        return output._replace(losses=output.losses | {name: 1.001 * output.losses[name]})

    monkeypatch.setattr(Recipe, "step", wrong)
    certificate = certify.certify(
        small_job(tmp_path / "run", data.pop("seeds"), **data), steps=2, seeds=(0,), show_progress=False
    )
    assert not certificate.passed
    assert certificate.ratios[name] > 20


def test_resumed_bit_for_bit(tmp_path, data, monkeypatch):
    found = data.pop("seeds")
    whole, parts = (small_job(tmp_path / name, found, checkpoint_every=2, **data) for name in ("whole", "parts"))
    metrics = quiet(whole)
    take = Trainer.take

    def interrupted(self, step, batch):
        if step == 3:
            raise KeyboardInterrupt
        return take(self, step, batch)

    monkeypatch.setattr(Trainer, "take", interrupted)
    with pytest.raises(KeyboardInterrupt):
        quiet(parts)
    monkeypatch.undo()
    torch.manual_seed(123)  # what ran before does not matter
    assert quiet(parts, resume=True)["cam_miou"] == metrics["cam_miou"]
    assert losses(parts.run) == losses(whole.run)
    assert_same_weights(parts.run, whole.run)


def test_the_walk_is_that_of_the_class_maps(tmp_path, data):
    """Without steps it is what was found, at the grid's resolution; the setting of the background decides."""
    found = data.pop("seeds")
    metrics = quiet(small_job(tmp_path / "few", found, "config.walk_steps=0", "config.background_score=0.3", **data))
    assert metrics["cam_miou"] > 0.5
    metrics = quiet(small_job(tmp_path / "none", found, "config.background_score=1.0", **data))
    assert metrics["details"]["cam"]["per_class"]["cat"] == 0


def test_maps_with_a_background_of_their_own(tmp_path):
    settings = small_job(tmp_path, None).settings
    recipe = Recipe(settings, CLASSES)
    module = recipe.build().eval()
    images, labels, own = torch.randn(1, 3, 24, 32), torch.ones(1, 2), torch.rand(1, 3, 24, 32)
    maps = recipe.cams(module, images, labels, own)
    assert torch.equal(maps["seed"], own)
    assert maps["cam"].shape == own.shape
    added = recipe.cams(module, images, labels, own[:, 1:])
    assert (added["seed"][:, 0] == settings["seed_background"]).all()
    torch.testing.assert_close(added["cam"][:, 1:], maps["cam"][:, 1:])
    one = recipe.cams(module, images[..., :16, :20], torch.tensor([[0, 1.0]]), own)["cam"]  # squashed; a dog alone
    assert one.shape == own.shape
    assert not one[:, 1].any()
    assert one[:, 2].any()


# Labels by two exponents


def test_two_sets_of_labels():
    """(1 - m)^a against m: an object in both sets, in one, in none."""
    cams = np.zeros((2, 8, 8), np.float32)
    cams[1, 0], cams[1, 1], cams[1, 2], cams[0, 3] = 0.7, 0.3, 0.05, 0.7
    image = np.zeros((8, 8, 3), np.uint8)
    label = pseudo_label(image, cams, np.ones(2), Settings("none", None, None, alphas=(1, 4)))
    assert label[:5, 0].tolist() == [2, 255, 0, 1, 0]
    assert label.tolist() == np.repeat(label[:, :1], 8, 1).tolist()
    one = pseudo_label(image, cams, np.ones(2), Settings("none", None, None, alphas=(4, 4)))
    assert one[:5, 0].tolist() == [2, 2, 0, 1, 0], "one exponent leaves nothing open"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas": (4, 1)}, "alphas must be 0 < low <= high, without thresholds"),
        ({"alphas": (0, 1)}, "alphas must be 0 < low <= high"),
        ({"alphas": (1, 2), "high": 0.5}, "alphas must be .* without thresholds"),
    ],
)
def test_bad_exponents(options, message):
    with pytest.raises(ValueError, match=message):
        Settings("none", **({"high": None, "low": None} | options))


# Files of seeds


def test_class_maps_survive(tmp_path):
    maps = np.random.default_rng(0).random((2, 5, 7))
    seeds.write_maps(tmp_path / "x.npz", maps, [0, 3])
    read = seeds.read_maps(tmp_path / "x.npz", 5, (5, 7))
    assert read.shape == (5, 5, 7)
    np.testing.assert_allclose(read[[0, 3]], maps, atol=5e-4)
    assert not read[[1, 2, 4]].any()
    seeds.write_maps(tmp_path / "x.npz", maps[:0], [])
    assert seeds.read_maps(tmp_path / "x.npz", 5, (5, 7)).shape == (4, 5, 7)
    assert [file.name for file in tmp_path.iterdir()] == ["x.npz"]


def test_class_maps_are_written_before_their_label(tmp_path, monkeypatch):
    """So that a command which was killed in between writes both again."""
    data = folder.open_folder(make_folder(tmp_path / "voc"), "train")
    arguments = (data, lambda image, labels: labels[:, None, None] * np.ones((2, *SIZE)), tmp_path / "out")

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(pseudo_labels, "write_mask", killed)
    with pytest.raises(KeyboardInterrupt):
        pseudo_labels.make(*arguments, Settings("none"), keep_maps=True, show_progress=False)
    assert [file.name for file in sorted(tmp_path.glob("out/[a-z].*"))] == ["a.npz"]
    monkeypatch.undo()
    report = pseudo_labels.make(*arguments, Settings("none"), keep_maps=True, show_progress=False)
    assert (report.written, report.kept) == (3, 0)
    assert len([*tmp_path.glob("out/*.npz")]) == 3


class Pickled:
    """Must never be made from a file."""


BROKEN = {
    "absent": (lambda f: f.unlink(), "is missing, the seed of a photograph"),
    "no archive": (lambda f: f.write_bytes(b"maps"), "holds no class maps"),
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[:60]), "holds no class maps"),
    "a pickle": (
        lambda f: np.savez(f, maps=np.array([Pickled()]), classes=np.zeros(1)),
        "holds no class maps: Object arrays cannot be loaded",
    ),
    "other arrays": (lambda f: np.savez(f, cams=np.zeros(3)), "holds no class maps"),
    "no numbers for classes": (
        lambda f: np.savez(f, maps=np.zeros((2, *SIZE)), classes=np.zeros(1)),
        "must hold floating-point maps",
    ),
    "another size": (
        lambda f: seeds.write_maps(f, np.zeros((1, 3, 4)), [1]),
        "is 4 x 3 pixels, its photograph 32 x 24",
    ),
    "unknown class": (
        lambda f: seeds.write_maps(f, np.zeros((1, *SIZE)), [3]),
        r"holds the classes \[3\]; there are 3",
    ),
    "a class twice": (lambda f: seeds.write_maps(f, np.zeros((2, *SIZE)), [1, 1]), "each once"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_class_maps(case, tmp_path):
    file = tmp_path / "a.npz"
    seeds.write_maps(file, np.ones((1, *SIZE)), [1])
    do, message = BROKEN[case]
    do(file)
    with pytest.raises(DataError, match=rf"a\.npz: .*{message}"):
        seeds.read_maps(file, 3, SIZE)


def test_photographs_without_a_label_are_left_out(tmp_path, data):
    found = data.pop("seeds")
    (found / "b.png").unlink()
    job = small_job(tmp_path / "run", found, **data)
    trainer = Trainer(job, batches_processes())
    assert trainer.data.warnings[-1] == f"{found}: 1 of 3 photographs have no label; left out"
    assert [trainer.data.names[i] for i in trainer.samples.indices] == ["a", "c"]
    drawn = [trainer.samples[0, index]["image_labels"].tolist() for index in range(2)]
    assert drawn == [[1, 0], [1, 1]]
    for name in "ac":
        (found / f"{name}.png").unlink()
    with pytest.raises(DataError, match=r"a\.png: is missing; so are all 3 labels"):
        Trainer(job, batches_processes())


def batches_processes():
    from toco_kernels.training.processes import Processes

    return Processes(0, 1, torch.device("cpu"))


def test_a_broken_label_is_skipped(tmp_path, data):
    found = data.pop("seeds")
    files.write_mask(found / "b.png", np.zeros((3, 3), np.uint8))
    metrics = quiet(small_job(tmp_path / "run", found, **data))
    assert metrics["skipped"] == [f"{found}/b.png: is 3 x 3 pixels, its photograph 32 x 24"]


def test_what_cannot_be_measured(tmp_path, data):
    """No class maps of the measured split: nothing is measured. Some of them: an error before the first step."""
    found = data.pop("seeds")
    (found / "d.npz").unlink()
    with pytest.raises(DataError, match=r"d\.npz: is missing, a seed of val; so are 0 of 4"):
        quiet(small_job(tmp_path / "some", found, **data))
    for file in found.glob("*.npz"):
        file.unlink()
    with pytest.warns(UserWarning, match="there are no class maps of val: none is measured or drawn"):
        metrics = quiet(small_job(tmp_path / "none", found, picture_every=2, evaluate_every=2, **data))
    assert metrics["cam_miou"] is None


def test_other_seeds_end_a_resumed_run(tmp_path, data):
    found = data.pop("seeds")
    files.write_json(found / "settings.json", {"weights_sha256": "one"})
    job = small_job(tmp_path / "run", found, "steps=1", **data)
    quiet(job)
    files.write_json(found / "settings.json", {"weights_sha256": "other"})
    with pytest.raises(DataError, match=r"says otherwise \(seeds_made_with: .*one.* then, .*other.* now\)"):
        quiet(job, resume=True)


def test_seeds_are_for_second_stages(tmp_path, data):
    with pytest.raises(ValueError, match=r"seeds must be the folder that pseudo-label --keep-maps wrote, .* got None"):
        quiet(small_job(tmp_path / "run", None, **{k: data[k] for k in ("data", "root")}))
    arguments = ("--data", "folder", "--root", data["root"], "--preset", "shapes", *changes(SMALL_PPC))
    with pytest.raises(SystemExit, match="seeds must not be given, for method ppc, got "):
        command("train", "--method", "ppc", "--out", tmp_path / "run", "--seeds", data["seeds"], *arguments)


def test_mistakes_in_arguments_of_labels(tmp_path, data):
    found = data.pop("seeds")
    run = tmp_path / "run"
    quiet(small_job(run, found, **data))
    start = ("pseudo-label", "--run", run, "--out", tmp_path / "out", "--device", "cpu")
    for words, message in (
        (("--alphas", "1,4"), "--alphas: the class maps of this run have a background of their own"),
        (("--source", "seg", "--keep-maps"), "--alphas and --keep-maps are for CAMs"),
        (("--scales", "1,2"), r"cam_scales must be \[1.0\]"),
        (("--seeds", tmp_path / "nowhere"), None),
    ):
        if message is None:  # every photograph is left out, and named
            assert command(*start, *words) == 1
            continue
        with pytest.raises(SystemExit, match=message):
            command(*start, *words)


# The view


def test_view_and_label_show_the_same():
    """A picture of three grey levels, each of which is its label."""
    levels = np.random.default_rng(0).integers(0, 3, (6, 8)).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    image = np.repeat((levels * 100)[:, :, None], 3, axis=2)
    for scale in (1.0, 0.5):
        view = LabelledView(LabelledCrop(64, scale, (0, 0, 0, 0)), (0.0,) * 3, (1.0,) * 3, stride=8)
        padded = 0
        for seed in range(20):
            torch.manual_seed(seed)
            sample = view(image, levels)
            labels, colours = sample["views"]["labels"], sample["images"][0].view(8, 8, 8, 8).transpose(1, 2).flatten(2)
            assert labels.shape == (8, 8)
            whole = (colours.amin(2) == colours.amax(2)) & (labels != 255)  # cells within one block
            assert torch.equal(colours.amax(2)[whole].round(), 100.0 * labels[whole])
            padded += (labels == 255).sum().item()
        assert (padded > 0) == (scale == 0.5), "nothing is known around a smaller photograph"


def test_samples_take_the_label_of_their_photograph(data):
    opened = folder.open_folder(data["root"], "train")
    samples = batches.Samples(opened, lambda image, label: {"label": label}, 0, seeds_of=data["seeds"])
    for index, name in enumerate("abc"):
        expected = files.read_mask(data["seeds"] / f"{name}.png", 3)
        assert np.array_equal(samples[0, index]["label"], expected)


# The study in docs/affinitynet.md


def test_the_table_is_that_of_the_study():
    page = Path(__file__).parents[1] / "docs" / "affinitynet.md"
    script = runpy.run_path(str(page.with_name("affinitynet_study.py")))
    rows = json.loads(script["RESULTS"].read_text())
    assert len(rows) == 6
    written = re.search(f"{script['START']}(.*?){script['END']}", page.read_text(), re.DOTALL)[1]
    assert written == script["table"](rows)
    assert {row["steps"] for row in rows} == {Recipe.presets["shapes"]["steps"]}
