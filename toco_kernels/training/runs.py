"""A finished or unfinished run, opened again: its network, and the data it was trained on."""

from dataclasses import dataclass
from pathlib import Path

from . import checkpoints, recipes
from .data import SPLITS, open_data
from .files import DataError, read_json
from .predictor import Predictor
from .processes import Processes
from .pseudo_labels import Data


@dataclass(frozen=True)
class Run:
    """What `train` wrote into a folder.

    Args:
        folder: of the run.
        config: config.json.
        state: the newest checkpoint.
    """

    folder: Path
    config: dict
    state: dict

    @classmethod
    def open(cls, folder: Path) -> "Run":
        """Read it."""
        config = read_json(folder / "config.json")
        state = checkpoints.newest(folder / "checkpoints")
        if state is None:
            raise DataError(folder, "has no checkpoint yet")
        return cls(folder, config, state)

    def predictor(self, processes: Processes, *, size: int | None = None, changes: dict | None = None) -> Predictor:
        """Its network; `changes` are of its settings."""
        settings = self.config["settings"] | (changes or {})
        recipe = recipes.find(self.config["method"])({**settings, "pretrained": False}, self.config["classes"])
        module = recipe.build()
        module.load_state_dict(self.state["module"])
        return Predictor(
            recipe, module, processes.device, precision=self.config["precision"], size=size, seeds_of=self.seeds
        )

    @property
    def seeds(self) -> Path | None:
        """What its class maps are made of; None: of photographs alone."""
        return Path(self.config["seeds"]) if self.config.get("seeds") else None

    def data(self, split: str | None = None) -> Data:
        """A split of the data it was trained on; None: the one that is measured."""
        config = self.config
        root, sbd = (Path(config[name]) if config[name] else None for name in ("root", "sbd"))
        name = config["data"]
        return open_data(name, split or SPLITS[name][2], root, sbd=sbd, labels=config["labels"])

    def background(self) -> float | None:
        """The score of the background that its CAMs are evaluated with; None: they have a map for it."""
        return self.config["settings"]["background"]
