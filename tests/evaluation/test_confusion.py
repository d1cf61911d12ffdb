"""The confusion against a loop over pixels, torchmetrics, and what must hold for any map."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.classification import (
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_jaccard_index,
    multiclass_precision,
    multiclass_recall,
)

from rsseglab.errors import UserError
from rsseglab.evaluation.confusion import Confusion
from rsseglab.scenes.scene import IGNORE_INDEX

NAMES = ("water", "land", "road", "building")
K = len(NAMES)


def random_maps(seed, shape=(24, 31), classes=K, empty=0.1):
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, shape).astype(np.uint8)
    prediction = np.where(rng.random(shape) < 0.6, label, rng.integers(0, classes, shape)).astype(np.uint8)
    label[rng.random(shape) < 0.2] = IGNORE_INDEX
    prediction[rng.random(shape) < empty] = IGNORE_INDEX
    return prediction, label


def counted(prediction, label, names=NAMES):
    confusion = Confusion(names)
    confusion.update(prediction, label)
    return confusion


def slow_scores(prediction, label, c):
    """Intersection, union and the rest of one class, pixel by pixel."""
    tp = fp = fn = 0
    for guess, true in zip(prediction.ravel().tolist(), label.ravel().tolist(), strict=True):
        if true == IGNORE_INDEX:
            continue
        tp += guess == c and true == c
        fp += guess == c and true != c
        fn += guess != c and true == c
    return tp / (tp + fp + fn), 2 * tp / (2 * tp + fp + fn), tp / (tp + fp), tp / (tp + fn)


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_a_loop_over_pixels(seed):
    prediction, label = random_maps(seed)
    confusion = counted(prediction, label)
    slow = np.array([slow_scores(prediction, label, c) for c in range(K)])
    fast = np.stack([confusion.iou(), confusion.f1(), confusion.precision(), confusion.recall()], axis=1)
    np.testing.assert_allclose(fast, slow, rtol=1e-12)
    scored = label != IGNORE_INDEX
    assert confusion.pixels == scored.sum()
    assert confusion.overall_accuracy() == pytest.approx((prediction == label)[scored].mean())


def test_equals_torchmetrics():
    prediction, label = random_maps(7, empty=0)
    confusion = counted(prediction, label)
    given = {"preds": torch.from_numpy(prediction), "target": torch.from_numpy(label), "num_classes": K}
    given["ignore_index"] = IGNORE_INDEX
    np.testing.assert_array_equal(confusion.matrix[:, :K], multiclass_confusion_matrix(**given).numpy())
    for ours, theirs in (
        (confusion.iou(), multiclass_jaccard_index),
        (confusion.f1(), multiclass_f1_score),
        (confusion.precision(), multiclass_precision),
        (confusion.recall(), multiclass_recall),
    ):
        np.testing.assert_allclose(ours, theirs(**given, average="none").numpy(), rtol=1e-6)
    assert confusion.mean_iou() == pytest.approx(multiclass_jaccard_index(**given, average="macro").item())


def test_equals_torchmetrics_where_pixels_got_no_class():
    prediction, label = random_maps(8, empty=0.3)
    theirs = multiclass_confusion_matrix(
        torch.from_numpy(np.minimum(prediction, K)).long(), torch.from_numpy(label).long(), K + 1, ignore_index=255
    )
    np.testing.assert_array_equal(counted(prediction, label).matrix, theirs.numpy()[:K])


def test_no_class_is_an_error_and_ignored_pixels_do_not_exist():
    label = np.array([0, 0, 1, 1, IGNORE_INDEX, IGNORE_INDEX], np.uint8)
    prediction = np.array([0, IGNORE_INDEX, 1, 0, 0, IGNORE_INDEX], np.uint8)
    confusion = counted(prediction, label, ("a", "b"))
    np.testing.assert_array_equal(confusion.matrix, [[1, 0, 1], [1, 1, 0]])
    assert confusion.overall_accuracy() == 0.5
    np.testing.assert_allclose(confusion.recall(), [0.5, 0.5])
    np.testing.assert_allclose(confusion.iou(), [1 / 3, 1 / 2])


def test_as_many_classes_as_fit_a_byte():
    names = [str(i) for i in range(255)]
    label = np.arange(255, dtype=np.uint8)
    confusion = counted(label, label, names)
    assert confusion.mean_iou() == 1.0
    confusion.update(np.full(255, IGNORE_INDEX, np.uint8), label)
    assert confusion.mean_iou() == 0.5


def test_which_classes_enter_a_mean_is_explicit():
    label = np.array([0, 0, 0, 0, 1, 1], np.uint8)
    prediction = np.array([0, 0, 0, 1, 1, 0], np.uint8)
    confusion = counted(prediction, label, ("background", "building"))
    building, both = 1 / 3, (3 / 5 + 1 / 3) / 2
    assert confusion.mean_iou(["building"]) == pytest.approx(building)
    assert confusion.mean_iou() == pytest.approx(both)
    assert confusion.mean_f1(["building"]) == pytest.approx(0.5)
    assert confusion.mean_precision(["building"]) == pytest.approx(0.5)
    assert confusion.mean_recall(["background"]) == pytest.approx(0.75)
    with pytest.raises(UserError, match=r"roof.*choose from background, building"):
        confusion.mean_iou(["roof"])


def test_absent_classes_have_no_score_and_a_class_never_found_scores_zero():
    label = np.array([0, 0, 1, 1], np.uint8)
    confusion = counted(np.array([0, 0, 0, 0], np.uint8), label, ("a", "b", "absent"))
    for measure in (confusion.iou(), confusion.f1(), confusion.precision(), confusion.recall()):
        assert np.isnan(measure[2])
        assert measure[1] == 0  # also precision, which is 0/0
    assert confusion.mean_iou() == 0.25
    assert np.isnan(confusion.mean_iou(["absent"]))
    only_predicted = counted(np.array([2, 0], np.uint8), np.array([0, 0], np.uint8), ("a", "b", "c"))
    assert only_predicted.iou()[2] == 0
    empty = Confusion(["a"])
    assert np.isnan(empty.overall_accuracy())
    assert np.isnan(empty.mean_iou())


def test_majority_class_is_a_constant_prediction():
    prediction, label = random_maps(3)
    confusion = counted(prediction, label)
    constant = counted(np.full_like(label, 2), label)
    baseline = confusion.majority_class([5, 7, 90, 1])
    np.testing.assert_array_equal(baseline.matrix, constant.matrix)
    with pytest.raises(UserError, match="one a class"):
        confusion.majority_class([1, 2])


def test_json_and_table():
    prediction, label = random_maps(4)
    confusion = counted(prediction, label)
    again = Confusion.from_json(json.loads(json.dumps(confusion.to_json())))
    assert again.classes == confusion.classes
    np.testing.assert_array_equal(again.matrix, confusion.matrix)
    table = confusion.table()
    assert list(table.index) == list(NAMES)
    assert table.loc["road", "iou"] == confusion.iou()[2]
    assert table["labelled_px"].sum() == confusion.pixels


def test_what_is_predicted_without_a_label_is_kept_apart():
    label = np.array([0, 1, *[IGNORE_INDEX] * 5], np.uint8)
    prediction = np.array([0, 0, 0, 1, 1, IGNORE_INDEX, 77], np.uint8)  # 77 is no class, and nobody asked for one
    confusion = counted(prediction, label, ("a", "b"))
    assert confusion.ignored.tolist() == [1, 2, 2] and confusion.pixels == 2
    assert (confusion + confusion).ignored.tolist() == [2, 4, 4]
    assert confusion.majority_class([0, 1]).ignored.tolist() == [0, 5, 0]
    again = Confusion.from_json(json.loads(json.dumps(confusion.to_json())))
    assert again.ignored.tolist() == [1, 2, 2]
    old = Confusion.from_json({"classes": ["a", "b"], "matrix": [[1, 0, 0], [1, 0, 0]]})
    assert old.ignored is None and (old + confusion).ignored is None and (confusion + old).ignored is None
    assert old.majority_class([0, 1]).ignored is None and "ignored" not in old.to_json()
    old.update(prediction, label)
    assert old.ignored is None and old.pixels == 4


def test_bad_input():
    confusion = Confusion(NAMES)
    with pytest.raises(UserError, match="shape"):
        confusion.update(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8))
    with pytest.raises(UserError, match="the prediction holds indices 4 to 4 for 4 classes"):
        confusion.update(np.array([4]), np.array([0]))
    with pytest.raises(UserError, match="the label holds indices -1 to 0"):
        confusion.update(np.array([0, 0]), np.array([0, -1]))
    with pytest.raises(UserError, match="different names"):
        Confusion(["a", "a"])
    with pytest.raises(UserError, match=r"shape \(4,\), not \(5,\)"):
        Confusion(NAMES, ignored=np.zeros(4))
    with pytest.raises(UserError, match="do not add"):
        confusion + Confusion(["a"])
    assert confusion.pixels == 0


@given(seed=st.integers(0, 2**32 - 1), cut=st.integers(0, 24))
def test_blocks_add_up_to_the_whole(seed, cut):
    prediction, label = random_maps(seed)
    parts = counted(prediction[:cut], label[:cut]) + counted(prediction[cut:], label[cut:])
    whole = counted(prediction, label)
    np.testing.assert_array_equal(parts.matrix, whole.matrix)
    np.testing.assert_array_equal(parts.ignored, whole.ignored)


@given(seed=st.integers(0, 2**32 - 1))
def test_f1_follows_from_iou(seed):
    confusion = counted(*random_maps(seed, shape=(5, 6)))
    iou, precision, recall = confusion.iou(), confusion.precision(), confusion.recall()
    np.testing.assert_allclose(confusion.f1(), 2 * iou / (1 + iou), rtol=1e-12)
    found = iou > 0
    harmonic = 2 * precision[found] * recall[found] / (precision[found] + recall[found])
    np.testing.assert_allclose(confusion.f1()[found], harmonic, rtol=1e-12)


@given(seed=st.integers(0, 2**32 - 1), order=st.permutations(range(K)))
def test_renaming_classes_moves_scores_and_keeps_means(seed, order):
    prediction, label = random_maps(seed)
    table = np.append(np.array(order, np.uint8), np.full(256 - K, IGNORE_INDEX, np.uint8))
    one, other = counted(prediction, label), counted(table[prediction], table[label])
    np.testing.assert_allclose(other.iou()[list(order)], one.iou())
    assert other.mean_f1() == pytest.approx(one.mean_f1())
    assert other.overall_accuracy() == one.overall_accuracy()
