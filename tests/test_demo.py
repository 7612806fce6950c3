"""python -m toco_kernels demo."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from toco_kernels.__main__ import main
from toco_kernels.cli.demo import class_contrast, compare, patch_contrast, pictures, refinement

Image = pytest.importorskip("PIL.Image", reason='needs pip install "toco-kernels[demo]"')
pytest.importorskip("timm", reason='needs pip install "toco-kernels[demo]"')
pytest.importorskip("skimage", reason='needs pip install "toco-kernels[demo]"')

HEIGHT, WIDTH = 60, 80
PANEL, CAPTION, GAP = 240, 24, 8  # of the picture, for photographs narrower than a panel


@pytest.fixture
def picture(tmp_path):
    """A file with a flat left half and a noisy right half."""
    pixels = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    pixels[:, WIDTH // 2 :] = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH // 2, 3))
    file = tmp_path / "half.png"
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture
def disc(tmp_path):
    """A photograph of a disc, and its mask: class 7 on class 3, and a corner that nobody labelled."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    inside = (rows - 30) ** 2 + (columns - 40) ** 2 < 20**2
    noise = np.random.default_rng(0).integers(0, 12, (HEIGHT, WIDTH, 3))
    Image.fromarray((np.where(inside[..., None], 200, 40) + noise).astype(np.uint8)).save(tmp_path / "disc.png")
    labels = np.where(inside, 7, 3).astype(np.uint8)
    labels[:8, :8] = 255
    mask = Image.fromarray(labels)
    mask.putpalette(np.random.default_rng(1).integers(0, 256, 768, np.uint8).tobytes())
    mask.save(tmp_path / "mask.png")
    return tmp_path / "disc.png", tmp_path / "mask.png", labels


@pytest.fixture
def quick(monkeypatch):
    """No network, no fresh processes, and one thread: what else runs here does not matter."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(
        class_contrast, "class_tokens", lambda crops: torch.randn(sum(map(len, crops)), 192, device=compare.device())
    )
    monkeypatch.setattr(patch_contrast, "SIDE", 96)
    monkeypatch.setattr(
        patch_contrast, "patch_tokens", lambda images: torch.rand(len(images), 16, 6, 6, device=compare.device())
    )
    monkeypatch.setattr(compare.measure, "peak_mb", lambda *_: 0.0)
    yield
    torch.set_num_threads(threads)


def panels(file):
    """The three panels of a picture with one row."""
    pixels = np.array(Image.open(file))
    assert pixels.shape == (CAPTION + HEIGHT, 3 * PANEL + 2 * GAP, 3)
    assert all(pixels[:CAPTION, i * (PANEL + GAP) :][:, :PANEL].min() < 128 for i in range(3)), "captions"
    return [pixels[CAPTION:, i * (PANEL + GAP) :][:, :WIDTH] for i in range(3)]


def test_demo(picture, tmp_path):
    out = tmp_path / "out.png"
    command = [sys.executable, "-m", "toco_kernels", "demo", "--threads", "1", "--image", str(picture)]
    child = subprocess.run([*command, "--out", str(out)], check=False, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout + child.stderr
    assert ", 1 threads" in child.stdout
    assert "half.png (4, 60, 80)" in child.stdout
    number = r"[\d.]+"
    cost = rf"{number} ms +{number} - {number} +{number}x +({number} MB|unknown)"
    lines = {
        rf"^published +{cost} +\d\.\de-\d\d +sets the budget$": 3,
        rf"^toco_kernels +{cost} +\d\.\de-\d\d +yes$": 3,
        r"^toco_kernels\.numpy: .* verified: yes$": 2,
        r"^labels: \d+ of 4800 differ .* verified: yes$": 1,
        rf"^agreement .*: {number}% .*, {number}% when refined$": 1,
        rf"^picture +{re.escape(str(out))}$": 1,
    }
    for line, times in lines.items():
        assert len(re.findall(line, child.stdout, re.MULTILINE)) == times, f"{line}\n{child.stdout}"
    sections = ["refinement by PAR", "\nclass-token contrast", "\npatch-token contrast"]
    assert sorted(sections, key=child.stdout.index) == sections

    photograph, coarse, refined = panels(out)
    np.testing.assert_array_equal(photograph, np.array(Image.open(picture)))
    assert (coarse != photograph).any(axis=2).mean() > 0.9
    assert (refined != coarse).any()
    assert {file.name for file in tmp_path.iterdir()} == {"half.png", "out.png"}


def test_a_mask_replaces_k_means(disc, quick, tmp_path, capsys):
    photograph, mask, labels = disc
    out = tmp_path / "out.png"
    assert main(["demo", "--image", str(photograph), "--mask", str(mask), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "of the mask" in text
    assert f"disc.png (2, {HEIGHT}, {WIDTH})" in text
    before, after = map(float, re.search(r"([\d.]+)% of pixels when coarse, ([\d.]+)% when", text).groups())
    assert before < 98
    assert after > 99  # the border of the disc is found
    # The refined panel has the colour of class 3 in one place and of class 7 in another, over nearly the same grey.
    refined = panels(out)[2].astype(int)
    assert np.ptp(refined[30, 35:45], axis=0).max() < 20
    assert np.ptp(refined[50:, :8].reshape(-1, 3), axis=0).max() < 20
    assert abs(refined[30, 40] - refined[55, 4]).max() > 100
    scene = refinement.coarse_scene(pictures.read_photograph(str(photograph)), pictures.read_mask(str(mask)))
    assert scene.classes.tolist() == [3, 7]
    np.testing.assert_array_equal(scene.labels, labels)
    np.testing.assert_array_equal(scene.labels_of(scene.maps) == 7, scene.maps[0, 1] > scene.maps[0, 0])


def test_masks_are_resized_to_nearest(disc):
    photograph, _, labels = disc
    larger = np.kron(labels, np.ones((3, 2), np.uint8)).astype(np.int64)
    scene = refinement.coarse_scene(pictures.read_photograph(str(photograph)), larger)
    np.testing.assert_array_equal(scene.labels, labels)


@pytest.mark.parametrize("mode", ["1", "L", "I;16"])
def test_masks_of_any_mode(mode, tmp_path):
    labels = np.zeros((5, 6), bool if mode == "1" else np.uint16 if mode == "I;16" else np.uint8)
    labels[2:] = 1
    Image.fromarray(labels).save(tmp_path / "mask.png")
    assert Image.open(tmp_path / "mask.png").mode == mode
    mask = pictures.read_mask(str(tmp_path / "mask.png"))
    assert mask.dtype == np.int64
    np.testing.assert_array_equal(mask, labels)


@pytest.mark.parametrize(
    ("module", "spoil"),
    [
        (class_contrast, lambda loss: loss * 1.0001),
        (class_contrast, lambda loss: loss + 1e-4),  # the right gradient
        (class_contrast, lambda loss: loss.detach() + 2 * (loss - loss.detach())),  # the right value
        (class_contrast, lambda loss: loss * float("nan")),
        (class_contrast.on_arrays, lambda result: (result[0], 2 * result[1])),
    ],
    ids=["both", "value", "gradient", "NaN", "NumPy"],
)
def test_a_wrong_contrast_is_caught(module, spoil, picture, quick, monkeypatch, tmp_path, capsys):
    right = module.class_token_contrast
    monkeypatch.setattr(module, "class_token_contrast", lambda *args, **options: spoil(right(*args, **options)))
    assert_caught(module, picture, tmp_path / "out.png", capsys)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda loss: loss * 1.0001,
        lambda loss: loss + 1e-4,  # the right gradient
        lambda loss: loss.detach() + 2 * (loss - loss.detach()),  # the right value
        lambda loss: loss * float("nan"),
    ],
    ids=["both", "value", "gradient", "NaN"],
)
def test_a_wrong_patch_contrast_is_caught(spoil, picture, quick, monkeypatch, tmp_path, capsys):
    right = patch_contrast.patch_token_contrast
    monkeypatch.setattr(patch_contrast, "patch_token_contrast", lambda *args, **options: spoil(right(*args, **options)))
    assert_caught(patch_contrast, picture, tmp_path / "out.png", capsys)


@pytest.mark.parametrize(
    ("module", "spoil", "labels"),
    [
        (refinement, lambda maps: maps * 1.0001, "yes"),
        (refinement, lambda maps: maps.roll(1, -1), "NO"),
        (refinement, lambda maps: maps.flip(1), "NO"),
        (refinement, lambda maps: maps * float("nan"), "NO"),
        (refinement.on_arrays, lambda maps: maps * np.float32(1.0001), "yes"),
    ],
    ids=["scaled", "shifted", "other classes", "NaN", "NumPy"],
)
def test_a_wrong_refinement_is_caught(module, spoil, labels, picture, quick, monkeypatch, tmp_path, capsys):
    right = module.affinity_refine
    monkeypatch.setattr(module, "affinity_refine", lambda *args, **options: spoil(right(*args, **options)))
    text = assert_caught(module, picture, tmp_path / "out.png", capsys)
    assert re.search(rf"^labels: .* verified: {labels}$", text, re.MULTILINE), text


def test_wrong_labels_are_enough_to_fail(picture, quick, monkeypatch, tmp_path, capsys):
    def refuse(labels, published, *, exact, eager):
        assert labels.shape == published.shape == (1, HEIGHT, WIDTH)
        assert [scores.shape[1:] for scores in (*exact, *eager)] == [(HEIGHT, WIDTH)] * 2
        raise AssertionError("these are wrong")

    monkeypatch.setattr(refinement, "assert_labels_match", refuse)
    assert main(["demo", "--image", str(picture), "--out", str(tmp_path / "out.png")]) == 1
    assert "\n  labels: these are wrong\n" in capsys.readouterr().out
    assert not (tmp_path / "out.png").exists()


def assert_caught(module, picture, out, capsys):
    """The demo fails, says who is wrong, shows no speed of it, and writes nothing. Returns what it printed."""
    assert main(["demo", "--image", str(picture), "--out", str(out)]) == 1
    text = capsys.readouterr().out
    assert "WRONG" in text
    rows = re.findall(r"^toco_kernels +(-|[\d.]+ ms) .*(NO|yes)$", text, re.MULTILINE)
    arrays = re.findall(r"^toco_kernels\.numpy: .* verified: (NO|yes)$", text, re.MULTILINE)
    if module in (refinement, class_contrast, patch_contrast):
        assert sorted(verdict for _, verdict in rows) == ["NO", "yes", "yes"], text
        assert all((speed == "-") == (verdict == "NO") for speed, verdict in rows), text
        assert arrays == ["yes", "yes"], text
    else:
        assert [verdict for _, verdict in rows] == ["yes"] * 3, text
        assert sorted(arrays) == ["NO", "yes"], text
    assert [file.name for file in out.parent.iterdir()] == [picture.name]
    return text


def test_the_picture_is_written_whole_or_not_at_all(tmp_path):
    class Full:
        def save(self, file, format):
            file.write_bytes(b"half of it")
            raise OSError("no space left on device")

    file = tmp_path / "out.png"
    file.write_bytes(b"an older picture")
    with pytest.raises(OSError, match="no space left"):
        pictures.write(Full(), file)
    assert file.read_bytes() == b"an older picture"
    assert list(tmp_path.iterdir()) == [file]
    pictures.write(Image.new("RGB", (3, 2)), file)
    assert Image.open(file).size == (3, 2)
    assert list(tmp_path.iterdir()) == [file]


def test_rows_of_different_widths_are_stacked():
    rows = [Image.new("RGB", (5, 2), "red"), Image.new("RGB", (3, 4), "blue")]
    pixels = np.array(pictures.stack(rows))
    assert pixels.shape == (6, 5, 3)
    assert (pixels[:2] == [255, 0, 0]).all()
    assert (pixels[2:, :3] == [0, 0, 255]).all()
    assert (pixels[2:, 3:] == 255).all()


def test_agreement_ignores_what_nobody_labelled():
    assert pictures.agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 4, 255])) == pytest.approx(2 / 3)


@pytest.mark.parametrize("argument", ["--image", "--mask"])
@pytest.mark.parametrize("content", [None, b"", b"not a picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_unreadable_files_are_named(content, argument, tmp_path, capsys):
    file = tmp_path / "picture.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SystemExit) as exit_:
        main(["demo", argument, str(file)])
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert f"argument {argument}: must be a picture that Pillow can read, got" in message
    assert str(file) in message


@pytest.mark.parametrize(
    ("pixels", "complaint"),
    [
        (np.zeros((4, 5, 3), np.uint8), "one class index per pixel"),
        (np.zeros((4, 5), np.uint8), "2 to 32 classes beside 255, which is ignored"),
        (np.array([[0, 255]], np.uint8), "2 to 32 classes beside 255"),
        (np.arange(33, dtype=np.uint8)[None], "2 to 32 classes beside 255"),
    ],
    ids=["RGB", "one class", "one class and 255", "33 classes"],
)
def test_bad_masks_are_named(pixels, complaint, picture, tmp_path, capsys):
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    with pytest.raises(SystemExit) as exit_:
        main(["demo", "--image", str(picture), "--mask", str(tmp_path / "mask.png")])
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert "argument --mask: must" in message
    assert complaint in message
    assert str(tmp_path / "mask.png") in message


def test_a_mask_needs_its_image(disc, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["demo", "--mask", str(disc[1])])
    assert exit_.value.code == 2
    assert "argument --mask: needs --image FILE" in capsys.readouterr().err


@pytest.mark.parametrize("out", [".", "missing/out.png"])
def test_bad_out_is_named(out, picture, tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["demo", "--image", str(picture), "--out", str(tmp_path / out)])
    assert exit_.value.code == 2
    assert "argument --out: must be a file in a folder that you can write to, got" in capsys.readouterr().err


def test_bad_threads_are_named(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--threads", "0"])
    assert "argument --threads: must be an integer of at least 1, got '0'" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["timm", "PIL.Image", "skimage"])
def test_missing_packages_are_named(missing, picture, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit, match=r'missing: pip install "toco-kernels\[demo\]"$'):
        main(["demo", "--image", str(picture)])


@pytest.mark.parametrize(
    ("mode", "size"),
    [
        ("L", (300, 200)),
        ("LA", (40, 40)),
        ("RGBA", (3, 50)),
        ("P", (1, 1)),
        ("1", (9, 7)),
        ("I;16", (64, 64)),
        ("RGB", (2, 900)),
    ],
)
def test_any_mode_and_size(mode, size, tmp_path):
    file = tmp_path / "picture.png"
    Image.new(mode, size).save(file)
    photograph = pictures.read_photograph(str(file))
    crops, flags = class_contrast.cut_crops([photograph])
    assert [tuple(crop.shape) for crop in crops] == [(1, 3, 224, 224)] * 2 + [(1, 3, 96, 96)] * 8
    assert flags.tolist() == [[1, 1, 0, 0, 0, 0, 0, 0, 0, 0]]  # no crop of one colour is an object
    images = patch_contrast.cut_images([photograph])
    assert images.shape == (1, 3, 448, 448)
    assert patch_contrast.patch_labels(images).shape == (1, 28, 28)

    scene = refinement.coarse_scene(photograph, None)
    height, width = scene.labels.shape
    shrink = max(1, max(size) / 320)
    assert (width, height) == tuple(max(1, round(side / shrink)) for side in size)
    assert scene.pixels.shape == (height, width, 3)
    assert scene.maps.shape == (1, len(scene.classes), height, width)
    torch.testing.assert_close(scene.maps.sum(dim=1), torch.ones(1, height, width))


def test_flags_follow_the_colours(picture):
    crops, flags = class_contrast.cut_crops([pictures.read_photograph(str(picture))])
    flat = [bool((crop == crop[:, :, :1, :1]).all()) for crop in crops]
    noisy = [bool((crop[..., 8:].diff(dim=-1) != 0).float().mean() > 0.9) for crop in crops]
    local_flags = flags[0, class_contrast.GLOBALS :].tolist()
    assert any(flat)
    assert any(noisy)
    assert all(flag == 0 for flag, is_flat in zip(local_flags, flat[class_contrast.GLOBALS :], strict=True) if is_flat)
    assert all(
        flag == 1 for flag, is_noisy in zip(local_flags, noisy[class_contrast.GLOBALS :], strict=True) if is_noisy
    )


def test_patches_are_labelled_by_their_colours():
    """Two flat halves and a strip of which nobody can be sure: its patches lie across the border."""
    images = torch.zeros(1, 3, 448, 448)
    images[:, :, :, 232:] = 1  # in the middle of the patches from 224 to 240
    labels = patch_contrast.patch_labels(images)[0]
    assert labels.shape == (28, 28)
    assert (labels[:, 14] == 255).all()
    left, right = (set(half.unique().tolist()) - {255} for half in (labels[:, :14], labels[:, 15:]))
    assert left
    assert right
    assert not left & right


def test_patch_tokens_are_those_of_the_patches():
    images = torch.rand(2, 3, 448, 448, generator=torch.Generator().manual_seed(0))
    tokens = patch_contrast.patch_tokens(images)
    assert tokens.shape == (2, 192, 28, 28)
    assert tokens.is_contiguous()
    vit = class_contrast.random_vit()
    with torch.no_grad():
        row_by_row = vit.forward_features(class_contrast.normalized(images))[:, -28 * 28 :]
    torch.testing.assert_close(tokens[1, :, 3, 5], row_by_row[1, 3 * 28 + 5])


def test_shipped_photographs_are_photographs():
    photographs = pictures.shipped_photographs()
    assert [photograph.name for photograph in photographs] == list(pictures.SHIPPED)
    for photograph in photographs:
        assert photograph.image.mode == "RGB"
        assert torch.from_numpy(np.array(photograph.image)).float().std() > 10


def test_coarse_maps_are_patch_averages():
    columns = np.arange(96)
    labels = np.tile((columns >= 40).astype(np.int64), (64, 1))
    photograph = pictures.Photograph("", Image.new("RGB", (96, 64)))
    maps = refinement.coarse_scene(photograph, labels).maps
    knots = np.arange(8, 96, 16)  # the centres of the patches
    expected = np.interp(columns + 0.5, knots, [0, 0, 0.5, 1, 1, 1]).astype(np.float32)
    torch.testing.assert_close(maps[0, 1], torch.from_numpy(expected).expand(64, 96))


def test_k_means_finds_what_is_apart():
    centres = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0], [5.0, 5.0]])
    assert len(centres) == refinement.CLUSTERS
    truth = torch.arange(4).repeat_interleave(torch.tensor([50, 3, 20, 7]))
    noise = torch.rand(len(truth), 2, generator=torch.Generator().manual_seed(0))
    found = refinement.k_means(centres[truth] + noise)
    same = found[:, None] == found
    assert torch.equal(same, truth[:, None] == truth)
