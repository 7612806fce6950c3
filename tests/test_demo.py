"""python -m toco_kernels demo."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from toco_kernels.__main__ import main
from toco_kernels.cli import demo

Image = pytest.importorskip("PIL.Image", reason='needs pip install "toco-kernels[demo]"')
pytest.importorskip("timm", reason='needs pip install "toco-kernels[demo]"')
pytest.importorskip("skimage", reason='needs pip install "toco-kernels[demo]"')


@pytest.fixture
def picture(tmp_path):
    """A file with a flat left half and a noisy right half."""
    pixels = np.full((120, 160, 3), 90, np.uint8)
    pixels[:, 80:] = np.random.default_rng(0).integers(0, 256, (120, 80, 3))
    file = tmp_path / "half.png"
    Image.fromarray(pixels).save(file)
    return file


def test_demo(picture):
    command = [sys.executable, "-m", "toco_kernels", "demo", "--threads", "2", "--image", str(picture)]
    child = subprocess.run(command, check=False, capture_output=True, text=True)
    assert child.returncode == 0, child.stdout + child.stderr
    assert "half.png" in child.stdout
    number = r"[\d.]+"
    cost = rf"{number} ms +{number} - {number} +{number}x +({number} MB|unknown)"
    assert re.search(rf"^published +{cost} +\d\.\de-\d\d +sets the budget$", child.stdout, re.MULTILINE)
    assert re.search(rf"^toco_kernels +{cost} +\d\.\de-\d\d +yes$", child.stdout, re.MULTILINE), child.stdout
    assert re.search(r"^toco_kernels\.numpy: .* verified: yes$", child.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("where", "spoil"),
    [
        (demo, lambda loss: loss * 1.0001),
        (demo, lambda loss: loss + 1e-4),  # the right gradient
        (demo, lambda loss: loss.detach() + 2 * (loss - loss.detach())),  # the right value
        (demo, lambda loss: loss * float("nan")),
        (demo.on_arrays, lambda result: (result[0], 2 * result[1])),
    ],
    ids=["both", "value", "gradient", "NaN", "NumPy"],
)
def test_a_wrong_kernel_is_caught(where, spoil, picture, monkeypatch, capsys):
    right = where.class_token_contrast
    monkeypatch.setattr(where, "class_token_contrast", lambda *args, **options: spoil(right(*args, **options)))
    monkeypatch.setattr(demo, "class_tokens", lambda crops: torch.randn(len(crops), 192, device=demo.device()))
    monkeypatch.setattr(demo.measure, "peak_mb", lambda *_: 0.0)
    assert main(["demo", "--image", str(picture)]) == 1
    text = capsys.readouterr().out
    assert "WRONG" in text
    if where is demo:
        assert re.search(r"^toco_kernels +- +- +- +- +\S+ +NO$", text, re.MULTILINE), text  # and no speed of it
    else:
        assert re.search(r"^toco_kernels\.numpy: .* verified: NO$", text, re.MULTILINE), text


@pytest.mark.parametrize("content", [None, b"", b"not a picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"])
def test_bad_image_is_named(content, tmp_path, capsys):
    file = tmp_path / "picture.png"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SystemExit) as exit_:
        main(["demo", "--image", str(file)])
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert "argument --image: must be a picture that Pillow can read, got" in message
    assert str(file) in message


def test_bad_threads_are_named(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--threads", "0"])
    assert "argument --threads: must be an integer of at least 1, got '0'" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["timm", "PIL.Image"])
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
    crops, flags = demo.cut_crops([demo.read_photograph(str(file))])
    assert [tuple(crop.shape) for crop in crops] == [(1, 3, 224, 224)] * 2 + [(1, 3, 96, 96)] * 8
    assert flags.tolist() == [[1, 1, 0, 0, 0, 0, 0, 0, 0, 0]]  # no crop of one colour is an object


def test_flags_follow_the_colours(picture):
    crops, flags = demo.cut_crops([demo.read_photograph(str(picture))])
    flat = [bool((crop == crop[:, :, :1, :1]).all()) for crop in crops]
    noisy = [bool((crop[..., 8:].diff(dim=-1) != 0).float().mean() > 0.9) for crop in crops]
    local_flags = flags[0, demo.GLOBALS :].tolist()
    assert any(flat)
    assert any(noisy)
    assert all(flag == 0 for flag, is_flat in zip(local_flags, flat[demo.GLOBALS :], strict=True) if is_flat)
    assert all(flag == 1 for flag, is_noisy in zip(local_flags, noisy[demo.GLOBALS :], strict=True) if is_noisy)


def test_shipped_photographs_are_photographs():
    photographs = demo.shipped_photographs()
    assert [photograph.name for photograph in photographs] == list(demo.SHIPPED)
    for photograph in photographs:
        assert photograph.image.mode == "RGB"
        assert torch.from_numpy(np.array(photograph.image)).float().std() > 10
