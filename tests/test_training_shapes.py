"""From nothing to pseudo labels: the first twenty steps of the preset on the shapes. docs/shapes_study.py takes all."""

from pathlib import Path

import pytest

pytest.importorskip("torchvision", reason='needs pip install "toco-kernels[train]"')
pytest.importorskip("timm", reason='needs pip install "toco-kernels[train]"')

from toco_kernels.training.predictor import Predictor
from toco_kernels.training.processes import Processes
from toco_kernels.training.recipes.toco import Recipe
from toco_kernels.training.refine import Settings
from toco_kernels.training.shapes import Shapes
from toco_kernels.training.trainer import Job, Trainer


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")  # faster where other programs run too
def test_twenty_steps_make_pseudo_labels(tmp_path):
    trainer = Trainer(Job(Path(tmp_path), "toco", Recipe.preset("shapes")), Processes.join())
    for step, batch in enumerate(trainer.batches(0, 20)):
        batch.pop("problems")
        trainer.take(step, batch)
    background = trainer.settings["background"]
    predictor = Predictor(trainer.recipe, trainer.module, trainer.processes.device)
    settings = Settings("par", background, background)
    results = predictor.evaluate(Shapes("test"), settings, range(32), show_progress=False)
    raw, refined = results["cam"].miou(), results["pseudo_label"].miou()
    assert refined >= 0.55, (raw, refined)
    assert refined > raw
