"""Which sample comes when, and the views of it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("torchvision", reason='needs pip install "toco-kernels[train]"')

from toco_kernels.training import batches, recipes
from toco_kernels.training.predictor import Predictor
from toco_kernels.training.views import Augmentation, Views, keyed


def test_every_epoch_has_every_sample_once():
    def order(start, stop, **options):
        return list(batches.Order(10, 4, start, stop, seed=3, **{"rank": 0, "world": 1, **options}))

    steps = order(0, 10)
    flat = [key for batch in steps for key in batch]
    assert sorted(flat) == [(epoch, index) for epoch in range(4) for index in range(10)]
    assert [index for _, index in flat[:10]] != [index for _, index in flat[10:20]]
    assert order(7, 10) == steps[7:], "resumed"
    halves = [order(0, 10, rank=rank, world=2) for rank in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == steps
    with pytest.raises(ValueError, match=r"batch_size must be divisible by the number of processes, 3, got 4"):
        order(0, 1, world=3)


def test_random_numbers_depend_on_the_key_alone():
    with keyed(0, 1, 2):
        first = torch.rand(3)
    state = torch.get_rng_state()
    with keyed(0, 1, 2):
        assert torch.equal(first, torch.rand(3))
    assert torch.equal(state, torch.get_rng_state())
    with keyed(0, 2, 1):
        assert not torch.equal(first, torch.rand(3))


def test_views_show_what_they_say():
    plain = {"jitter": (0, 0, 0, 0), "grey": 0.0, "blur": (0, 0, 0), "solarise": 0.0}
    image = np.full((40, 60, 3), 200, np.uint8)
    mean, std = (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)
    views = Views(Augmentation(64, **plain, shared_flip=True), mean, std)
    seen = set()
    for key in range(20):
        with keyed(key):
            sample = views(image)
        y0, y1, x0, x1 = sample["boxes"].tolist()
        seen.add((y1 - y0, x1 - x0))
        shown = torch.zeros(64, 64, dtype=bool)
        shown[y0:y1, x0:x1] = True
        for view in (sample["images"], sample["views"]["local_source"]):
            assert view.shape == (3, 64, 64)
            for channel in range(3):
                inside, outside = view[channel][shown], view[channel][~shown]
                assert inside.sub((200 - mean[channel]) / std[channel]).abs().max() < 1e-6
                assert not outside.numel() or outside.abs().max() < 1e-6, "the mean colour around it"
        assert sample["views"]["second_global"].shape == (3, 64, 64)
    assert len(seen) > 10, "rescaled at random"


def test_boxes_are_wrong_only_as_published():
    # A photograph narrower than the crop, with a mark: the published box is mirrored in half of the samples.
    image = np.full((64, 20, 3), 250, np.uint8)
    plain = {"rescale": None, "jitter": (0, 0, 0, 0), "grey": 0.0, "blur": (0, 0, 0), "solarise": 0.0}
    image = np.ascontiguousarray(image.transpose(1, 0, 2)) if image.shape[0] < image.shape[1] else image
    right = {}
    for shared in (False, True):
        views = Views(Augmentation(64, **plain, shared_flip=shared), (0.0,) * 3, (1.0,) * 3)
        views.augmentation = replace(views.augmentation, rescale=(1.0, 1.0))
        right[shared] = 0
        for key in range(40):
            with keyed(key):
                sample = views(image)
            _, _, x0, x1 = sample["boxes"].tolist()
            right[shared] += bool((sample["images"][0, :, x0:x1] == 250).all())
    assert right[True] == 40
    assert 8 < right[False] < 32


def test_views_of_a_photograph_smaller_or_larger_than_the_crop():
    for size in ((8, 200), (300, 9), (64, 64)):
        image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
        for rescale in (None, (0.5, 2.0)):
            with keyed(5):
                sample = Views(Augmentation(48, rescale=rescale), (0.0,) * 3, (1.0,) * 3)(image)
            y0, y1, x0, x1 = sample["boxes"].tolist()
            assert 0 <= y0 < y1 <= 48
            assert 0 <= x0 < x1 <= 48
            assert all(view.shape == (3, 48, 48) for view in (sample["images"], *sample["views"].values()))


@pytest.mark.parametrize("method", recipes.METHODS)
def test_photographs_to_be_labelled_are_normalised_as_those_trained_on(method):
    settings = recipes.find(method).preset("shapes")
    settings["config"] = settings["config"] | {"mean": [10, 20, 30], "std": [2, 4, 8]}
    colours = 10 + 2 * 3, 20 + 4 * 3, 30 + 8 * 3
    predictor = Predictor(recipes.find(method)(settings, tuple("abcdef")), torch.nn.Identity(), torch.device("cpu"))
    assert (predictor._input(np.full((8, 8, 3), colours, np.uint8)) == 3).all()
