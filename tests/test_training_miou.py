"""mIoU by the field's rule, on cases counted by hand."""

import numpy as np
import pytest

pytest.importorskip("PIL", reason='needs pip install "toco-kernels[train]"')

from toco_kernels.training.miou import Confusion


def confusion(classes, *pairs):
    counted = Confusion(classes)
    for truth, prediction in pairs:
        counted.update(np.array(truth), np.array(prediction))
    return counted


def test_two_classes_by_hand():
    # class 0: 2 right, 1 of it called 1, 1 of class 1 called 0: 2 / 4; class 1: 1 right: 1 / 3
    counted = confusion(2, ([0, 0, 0, 1, 1], [0, 0, 1, 1, 0]))
    np.testing.assert_allclose(counted.iou(), [2 / 4, 1 / 3])
    assert counted.miou() == pytest.approx((2 / 4 + 1 / 3) / 2)


def test_one_matrix_for_all_images_and_no_mean_over_them():
    # One image wholly right in 9 pixels, one wholly wrong in 1: over images the mean would be 0.5 and more.
    counted = confusion(2, ([0] * 9, [0] * 9), ([0], [1]))
    np.testing.assert_allclose(counted.iou(), [9 / 10, 0])
    assert counted.miou() == pytest.approx(0.45)
    together = confusion(2, ([0] * 10, [0] * 9 + [1]))
    np.testing.assert_array_equal(counted.counts, together.counts)


def test_a_class_that_occurs_nowhere_does_not_count():
    counted = confusion(5, ([0, 0, 3, 3], [0, 3, 3, 3]))
    np.testing.assert_allclose(counted.iou(), [1 / 2, np.nan, np.nan, 2 / 3, np.nan])
    assert counted.miou() == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_a_class_that_is_only_predicted_counts_as_zero():
    counted = confusion(3, ([0, 0, 0, 0], [0, 0, 0, 2]))
    np.testing.assert_allclose(counted.iou(), [3 / 4, np.nan, 0])
    assert counted.miou() == pytest.approx(3 / 8)


def test_pixels_without_truth_do_not_count():
    counted = confusion(2, ([255, 255, 0, 1], [0, 255, 0, 1]))
    assert counted.counts.sum() == 2
    assert counted.miou() == 1


def test_open_pixels_both_ways():
    # class 0: 3 pixels, 2 right, 1 open; class 1: 2 pixels, 1 right, 1 open
    counted = confusion(2, ([0, 0, 0, 1, 1], [0, 0, 255, 1, 255]))
    np.testing.assert_allclose(counted.iou(), [1, 1])
    np.testing.assert_allclose(counted.iou(open_is_wrong=True), [2 / 3, 1 / 2])
    report = counted.report(["background", "cat"])
    assert report["miou_without_open"] == 1
    assert report["miou"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert report["open"] == pytest.approx(2 / 5)
    assert report["per_class"] == {"background": pytest.approx(2 / 3), "cat": 1 / 2}


def test_a_class_that_is_left_open_everywhere():
    # Without open pixels class 1 does not occur at all; as a segmentation it is missed.
    counted = confusion(2, ([0, 0, 1], [0, 0, 255]))
    assert counted.miou() == 1
    assert counted.miou(open_is_wrong=True) == pytest.approx(0.5)


def test_nothing_at_all():
    counted = Confusion(3)
    assert np.isnan(counted.miou())
    report = counted.report(["background", "cat", "dog"])
    assert report == {
        "miou": None,
        "miou_without_open": None,
        "open": 0.0,
        "per_class": {"background": None, "cat": None, "dog": None},
    }


def test_many_classes_against_sets():
    random = np.random.default_rng(0)
    truth, prediction = random.integers(0, 21, (2, 6, 40, 50))
    truth[random.random(truth.shape) < 0.1] = 255
    counted = Confusion(21)
    for t, p in zip(truth, prediction, strict=True):
        counted.update(t.astype(np.uint8), p)
    known = truth != 255
    for c in range(21):
        t, p = (truth == c) & known, (prediction == c) & known
        assert counted.iou()[c] == (t & p).sum() / (t | p).sum()


@pytest.mark.parametrize(
    ("truth", "prediction", "message"),
    [
        ([0, 1], [0, 1, 1], r"prediction must have truth's shape, \(2,\), got \(3,\)"),
        ([0, 3], [0, 1], "truth must hold classes below 3 or 255, got 3"),
        ([0, 1], [0, 254], "prediction must hold classes below 3 or 255, got 254"),
        ([0, 1], [-1, 1], "prediction must hold classes below 3 or 255, got -1"),
    ],
)
def test_bad_labels(truth, prediction, message):
    with pytest.raises(ValueError, match=message):
        confusion(3, (truth, prediction))
