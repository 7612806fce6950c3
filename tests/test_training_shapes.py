"""From nothing to pseudo labels: the first steps of the preset on the shapes. docs/shapes_study.py takes all."""

from pathlib import Path

import pytest

pytest.importorskip("torchvision", reason='needs pip install "toco-kernels[train]"')
pytest.importorskip("timm", reason='needs pip install "toco-kernels[train]"')

from toco_kernels.training.predictor import Predictor
from toco_kernels.training.processes import Processes
from toco_kernels.training.recipes import find
from toco_kernels.training.refine import Settings
from toco_kernels.training.shapes import Shapes
from toco_kernels.training.trainer import Job, Trainer


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")  # faster where other programs run too
@pytest.mark.parametrize(("method", "steps"), [("toco", 20), ("ppc", 30)])
def test_a_few_steps_make_pseudo_labels(method, steps, tmp_path):
    trainer = Trainer(Job(Path(tmp_path), method, find(method).preset("shapes")), Processes.join())
    for step, batch in enumerate(trainer.batches(0, steps)):
        batch.pop("problems")
        trainer.take(step, batch)
    background = trainer.settings["background"]
    predictor = Predictor(trainer.recipe, trainer.module, trainer.processes.device)
    settings = Settings("par", background, background)
    results = predictor.evaluate(Shapes("test"), settings, range(32), show_progress=False)
    raw, refined = results["cam"].miou(), results["pseudo_label"].miou()
    assert refined >= 0.55, (raw, refined)
    assert refined > raw
