"""Published definitions of mean IoU against counts by hand."""

import numpy as np
import pytest

from rsseglab.errors import UserError
from rsseglab.evaluation import PROTOCOLS, Confusion, evaluate_scene
from rsseglab.evaluation.protocols import score
from rsseglab.scenes import LabelClass, Scene
from rsseglab.scenes.raster import ArraySource
from rsseglab.scenes.scene import IGNORE_INDEX

I = IGNORE_INDEX  # noqa: E741


def made_scene(label, names):
    """A scene in memory; what is `I` in its label has none."""
    label = np.array(label, np.uint8)
    classes = [LabelClass(name, k, (k, 0, 0)) for k, name in enumerate(names)]
    return Scene(ArraySource(np.ones((*label.shape, 3), np.uint8)), ArraySource(label), classes, [I], name="made")


def test_fctl_by_hand_where_unknown_is_ignored():
    """As DeepGlobe: all classes enter the mean, and a class on an unknown pixel is a false positive."""
    scene = made_scene([[0, 0, 1, 1], [2, 2, I, I], [2, 2, I, I]], ("urban", "water", "barren"))
    prediction = np.array([[0, 1, 1, 1], [2, 2, 1, 1], [2, 0, 2, I]], np.uint8)
    confusion = evaluate_scene(prediction, scene, block_px=2).confusion
    assert confusion.iou().tolist() == [1 / 3, 2 / 3, 3 / 4]
    scores = score(confusion, "fctl")
    expected = {"urban": 1 / 3, "water": 2 / 5, "barren": 3 / 5}
    assert scores.metrics["iou"] == expected
    assert scores.metrics["mean_over"] == ["urban", "water", "barren"]
    assert scores.metrics["mean_iou"] == pytest.approx(np.mean(list(expected.values())))
    assert "over 3 classes" in scores.explanation and "(3 here)" in scores.explanation
    assert "\n" not in scores.explanation


def test_fctl_by_hand_of_two_classes():
    """As Inria: the mean is of buildings alone, and what is called background without a label costs background."""
    scene = made_scene([[0, 0, 0, 1], [0, 0, 1, 1], [0, I, I, I]], ("background", "building"))
    prediction = np.array([[0, 0, 1, 1], [0, 0, 1, 0], [0, 0, 1, I]], np.uint8)
    confusion = evaluate_scene(prediction, scene).confusion
    assert confusion.iou().tolist() == [5 / 7, 2 / 4]
    scores = score(confusion, "fctl").metrics
    assert scores == {"mean_over": ["building"], "mean_iou": 2 / 5, "iou": {"background": 5 / 8, "building": 2 / 5}}
    assert "of building alone, without background" in score(confusion, "fctl").explanation


def test_inria_as_published():
    """Building 74.39 and background 97.58: "mIoU" is the first; the mean of both is more than 11 points higher."""
    # With b right, m missed and as many invented of 1 in all: b / (b + 2 m) = .7439, (1 - b - 2 m) / (1 - b) = .9758.
    building, background = 0.7439, 0.9758
    missed = (1 - building) / 2 / building  # a building pixel that is found
    share = (1 - background) / (2 * missed + 1 - background)
    matrix = np.rint(1e8 * share * np.array([[1 / share - 1 - 2 * missed, missed, 0], [missed, 1, 0]])).astype(int)
    confusion = Confusion(("background", "building"), matrix, np.zeros(3))
    assert confusion.iou() == pytest.approx([background, building], abs=1e-6)
    assert round(100 * score(confusion, "fctl").metrics["mean_iou"], 1) == 74.4
    assert confusion.mean_iou() == pytest.approx(0.85985, abs=1e-6)


def test_fctl_is_ours_where_every_pixel_is_labelled():
    rng = np.random.default_rng(0)
    confusion = Confusion(("a", "b", "c", "never"))
    confusion.update(rng.integers(0, 3, 500), rng.integers(0, 3, 500))
    scores = score(confusion, "fctl").metrics
    assert list(scores["iou"].values())[:3] == confusion.iou()[:3].tolist() and np.isnan(scores["iou"]["never"])
    assert scores["mean_iou"] == confusion.mean_iou()


def test_background_among_many_classes_is_one_of_them():
    """As LoveDA, whose class 0 is what has no label."""
    confusion = Confusion(("background", "building", "road"))
    confusion.update(np.array([0, 1, 2]), np.array([0, 1, 1]))
    assert score(confusion, "fctl").metrics["mean_over"] == ["background", "building", "road"]


def test_what_is_no_protocol_or_lacks_its_counts():
    with pytest.raises(UserError, match="there is no protocol 'glnet'; choose from fctl"):
        score(Confusion(["a"]), "glnet")
    with pytest.raises(UserError, match="evaluate the prediction anew"):
        score(Confusion(["a"], np.ones((1, 2))), "fctl")
    assert list(PROTOCOLS) == ["fctl"]
