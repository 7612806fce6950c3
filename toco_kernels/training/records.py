"""What a run writes for people: config.json, losses.jsonl, TensorBoard events, pictures."""

import json
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .. import __version__
from .files import DataError, read_json, voc_colours, write_json, write_whole

_EVERY = ("log_every", "picture_every", "evaluate_every", "checkpoint_every")
FREE = frozenset(("versions", "commit", "device", "workers", "world", "evaluate_images", *_EVERY))  # change no weight


def versions() -> dict[str, str | None]:
    """Of everything that numbers depend on."""
    names = {"python": platform.python_version(), "toco_kernels": __version__, "torch": torch.__version__}
    for name in ("numpy", "PIL", "timm", "torchvision"):
        try:
            names[name] = __import__(name).__version__
        except ImportError:
            names[name] = None
    return names


def commit() -> str | None:
    """The commit of this package's checkout, with -dirty where it was changed; None outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--match=-"]
    try:
        done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def check_same(file: Path, config: dict) -> None:
    """A run is resumed as it was begun; only what changes no number may differ."""
    before = read_json(file)
    config = json.loads(json.dumps(config))
    differing = [key for key in {**before, **config} if key not in FREE and before.get(key) != config.get(key)]
    if differing:
        changes = ", ".join(f"{key}: {before.get(key)} then, {config.get(key)} now" for key in sorted(differing))
        raise DataError(file, f"says otherwise ({changes}): resume with the same arguments, or take another folder")


class Records:
    """The files of a run that grow with it. Resumed at `step`, it forgets what came later.

    Args:
        run: the folder.
        step: from which it goes on.
    """

    def __init__(self, run: Path, step: int):
        self.run, self.file = run, run / "losses.jsonl"
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        kept = [line for line in lines if _step_of(line) < step]
        write_whole(self.file, lambda path: path.write_text("".join(f"{line}\n" for line in kept)))
        self.events = None
        try:
            from torch.utils.tensorboard import SummaryWriter

            self.events = SummaryWriter(str(run), purge_step=step)
        except ImportError:
            print('no TensorBoard events: pip install "toco-kernels[train]"', file=sys.stderr)

    def losses(self, step: int, values: dict[str, float]) -> None:
        """Write the losses of a step."""
        try:
            with open(self.file, "a", encoding="utf-8") as opened:
                opened.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise DataError(self.file, f"cannot be written: {error}") from error
        if self.events:
            for name, value in values.items():
                self.events.add_scalar(f"train/{name}", value, step)

    def scores(self, step: int, values: dict[str, float]) -> None:
        """Show how good it is."""
        if self.events:
            for name, value in values.items():
                self.events.add_scalar(f"evaluation/{name}", value, step)

    def picture(self, step: int, grid: np.ndarray) -> None:  # (H, W, 3) uint8
        """Write a picture."""
        file = self.run / "pictures" / f"step-{step:08d}.png"
        write_whole(file, lambda path: Image.fromarray(grid).save(path, format="PNG"))
        if self.events:
            self.events.add_image("pictures", grid, step, dataformats="HWC")

    def metrics(self, content: dict) -> None:
        """Write metrics.json."""
        write_json(self.run / "metrics.json", content)

    def close(self) -> None:
        """Everything to the disk."""
        if self.events:
            self.events.close()


def _step_of(line: str) -> float:
    """Of a line of losses.jsonl; infinite for one that a killed process did not finish."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")


def grid(rows: list[list[np.ndarray]], side: int = 160) -> np.ndarray:  # (H, W, 3) or (H, W) each
    """Pictures side by side, each `side` pixels wide and high; arrays without colours are classes."""
    return np.vstack([np.hstack([_panel(panel, side) for panel in row]) for row in rows])


def _panel(panel: np.ndarray, side: int) -> np.ndarray:  # (side, side, 3)
    is_labels = panel.ndim == 2
    pixels = voc_colours()[panel] if is_labels else panel
    method = Image.Resampling.NEAREST if is_labels else Image.Resampling.BILINEAR
    return np.pad(np.array(Image.fromarray(pixels).resize((side - 4, side - 4), method)), ((2, 2), (2, 2), (0, 0)))


def heat(image: np.ndarray, cam: np.ndarray) -> np.ndarray:  # (H, W, 3), (H, W) in [0, 1] -> (H, W, 3)
    """A CAM over its photograph: from blue to red."""
    cam = cam[..., None].clip(0, 1)
    colours = 255 * np.concatenate([cam, 1 - abs(2 * cam - 1), 1 - cam], axis=2)
    return (0.4 * image + 0.6 * colours).astype(np.uint8)
