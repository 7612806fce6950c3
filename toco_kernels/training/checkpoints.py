"""Checkpoints: written whole or not at all, the newest good one found again."""

import hashlib
import re
from pathlib import Path

import torch
from torch import nn

from .files import DataError, write_whole

KEPT = 2  # how many of the newest stay


def save(folder: Path, step: int, state: dict) -> Path:
    """Write a checkpoint of the training before `step`, and remove old ones."""
    file = folder / f"step-{step:08d}.pt"
    for unfinished in folder.glob(".step-*.partial"):  # of a process that was killed
        unfinished.unlink(missing_ok=True)
    write_whole(file, lambda path: torch.save({"step": step, **state}, path))
    for old in files(folder)[:-KEPT]:
        old.unlink(missing_ok=True)
    return file


def files(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first. What a killed process was writing is none."""
    found = folder.glob("step-*.pt")
    return sorted(file for file in found if re.fullmatch(r"step-\d{8}\.pt", file.name))


def load(file: Path) -> dict:
    """A checkpoint's content; no code in it is run."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise DataError(file, "is missing") from None
    except Exception as error:  # a damaged file raises whatever it likes
        raise DataError(file, f"is no checkpoint: {error}") from None


def newest(folder: Path) -> dict | None:
    """The content of the newest checkpoint; None: there is none."""
    found = files(folder)
    return load(found[-1]) if found else None


def hash_of(module: nn.Module) -> str:
    """SHA-256 of all weights and buffers, names included."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
