"""Published definitions of scores against counts by hand."""

import numpy as np
import pytest

from rsseglab.errors import UserError
from rsseglab.evaluation import PROTOCOLS, Confusion, Padding, evaluate_scene, pool
from rsseglab.evaluation.padding import padded_size
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
    with pytest.raises(UserError, match="there is no protocol 'glnet'; choose from fctl, geoseg"):
        score(Confusion(["a"]), "glnet")
    with pytest.raises(UserError, match="evaluate the prediction anew"):
        score(Confusion(["a"], np.ones((1, 2))), "fctl")
    assert list(PROTOCOLS) == ["fctl", "geoseg"]


ISPRS = ("clutter", "impervious surface", "building", "low vegetation", "tree", "car")  # as in the manifests


def made_maps(height, width, names=ISPRS, seed=0):
    """A label with some pixels that have none, and a prediction that is right in two thirds of them."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, len(names), (height, width)).astype(np.uint8)
    prediction = np.where(rng.random(label.shape) < 0.6, label, rng.integers(0, len(names), label.shape))
    label[rng.random(label.shape) < 0.05] = I
    return prediction.astype(np.uint8), label


def really_padded(prediction, label, multiple, padding_label=1):
    """The plain twin of the protocol: arrays are padded, pixels counted one by one, scores taken from three sums."""
    height, width = (-(-side // multiple) * multiple for side in label.shape)
    full = np.full((height, width), padding_label)
    full[: label.shape[0], : label.shape[1]] = label
    if prediction.shape == label.shape:  # the best case: the padding is called what it is labelled
        called = np.full((height, width), padding_label)
        called[: label.shape[0], : label.shape[1]] = prediction
        prediction = called
    f1, iou, right, scored = {}, {}, 0, 0
    for k, name in enumerate(ISPRS):
        found = missed = invented = 0
        for true, guess in zip(full.ravel().tolist(), prediction.ravel().tolist(), strict=True):
            if true != I:
                found += true == k and guess == k
                missed += true == k and guess != k
                invented += true != k and guess == k
        f1[name], iou[name] = 2 * found / (2 * found + missed + invented), found / (found + missed + invented)
        right, scored = right + found, scored + found + missed
    return {"f1": f1, "iou": iou, "overall_accuracy": right / scored}


def assert_is(scores, twin):
    assert scores["f1"] == twin["f1"] and scores["iou"] == twin["iou"]
    assert scores["overall_accuracy"] == twin["overall_accuracy"]
    assert scores["mean_over"] == list(ISPRS[1:])  # clutter is predicted, but in no mean
    assert scores["mean_f1"] == pytest.approx(np.mean([twin["f1"][name] for name in ISPRS[1:]]))
    assert scores["mean_iou"] == pytest.approx(np.mean([twin["iou"][name] for name in ISPRS[1:]]))


def test_geoseg_counts_padding_as_if_scenes_were_really_padded():
    """The inflation, on a small scene: where padding is assumed to be called impervious surface."""
    prediction, label = made_maps(21, 30)
    evaluation = evaluate_scene(prediction, made_scene(label, ISPRS), pad_to_px=16, block_px=7)
    assert (evaluation.padding.pixels, evaluation.padding.unseen) == (32 * 32 - 21 * 30,) * 2
    scores = score(evaluation.confusion, "geoseg", evaluation.padding)
    assert_is(scores.metrics, really_padded(prediction, label, 16))
    honest = evaluation.confusion
    assert honest.pixels == (label != I).sum()  # not a pixel of padding
    assert scores.metrics["f1"]["impervious surface"] > honest.f1()[1] + 0.1  # as published, it is lifted
    assert [scores.metrics["f1"][name] for name in ISPRS[2:]] == honest.f1()[2:].tolist()  # it alone
    alone = scores.metrics["without_padding"]
    assert alone == {"mean_iou": honest.mean_iou(ISPRS[1:]), "mean_f1": honest.mean_f1(ISPRS[1:])}
    assert scores.metrics["mean_iou"] > alone["mean_iou"]
    assert scores.metrics["padding_px"] == scores.metrics["padding_assumed_px"] == 394
    share = 394 / (394 + honest.pixels)
    assert f"(394 px, {share:.1%} of what is scored)" in scores.explanation and "best case" in scores.explanation
    assert "means are over 5 classes" in scores.explanation and "\n" not in scores.explanation


def test_geoseg_counts_what_was_predicted_on_padding():
    prediction, label = made_maps(21, 30)
    padded = np.random.default_rng(1).integers(0, len(ISPRS), (32, 32)).astype(np.uint8)
    padded[25:28, 3:9] = I  # no class there
    padded[:21, :30] = prediction
    scene = made_scene(label, ISPRS)
    evaluation = evaluate_scene(padded, scene, pad_to_px=16, block_px=5)
    assert evaluation.padding.unseen == 0 and evaluation.padding.pixels == 32 * 32 - 21 * 30
    assert evaluation.padding.predicted[-1] == 3 * 6
    scores = score(evaluation.confusion, "geoseg", evaluation.padding)
    assert_is(scores.metrics, really_padded(padded, label, 16))
    assert "(as predicted)" in scores.explanation and scores.metrics["padding_assumed_px"] == 0
    # Of the scene itself all is as without padding.
    plain = evaluate_scene(prediction, scene)
    np.testing.assert_array_equal(evaluation.confusion.matrix, plain.confusion.matrix)
    np.testing.assert_array_equal(evaluation.boundary.predicted, plain.boundary.predicted)


def test_geoseg_of_several_scenes_is_of_their_pooled_counts():
    seen, label = made_maps(21, 30)
    other, its_label = made_maps(16, 10, seed=3)
    parts = [evaluate_scene(p, made_scene(one, ISPRS), pad_to_px=16) for p, one in ((seen, label), (other, its_label))]
    both = pool(parts)
    assert both.padding.pixels == both.padding.unseen == 394 + 16 * 6
    joined = np.full((37, 30), I, np.uint8)
    joined[:21], joined[21:, :10] = label, its_label
    stacked = np.zeros((37, 30), np.uint8)
    stacked[:21], stacked[21:, :10] = seen, other
    twin = evaluate_scene(stacked, made_scene(joined, ISPRS)).confusion
    matrix = twin.matrix.copy()
    matrix[1, 1] += 394 + 16 * 6
    assert score(both.confusion, "geoseg", both.padding).metrics["mean_iou"] == Confusion(ISPRS, matrix).mean_iou(
        ISPRS[1:]
    )
    assert pool([parts[0], evaluate_scene(other, made_scene(its_label, ISPRS))]).padding is None
    total = Padding(16, np.array([1, 2]), 3) + Padding(16, np.array([10, 20]), 30)
    assert total.predicted.tolist() == [11, 22] and total.unseen == 33 and total.pixels == 66
    with pytest.raises(UserError, match="paddings to 16 and 8 px do not add"):
        pool([parts[0], evaluate_scene(seen, made_scene(label, ISPRS), pad_to_px=8)])


def test_the_published_arithmetic_of_padding():
    """23 % of padding that is all right takes an F1 of 94.0 to 94.5 to 97.1 to 97.4, and Potsdam's 4.6 % do less."""
    assert padded_size(2557, 1887, 1024) == (3072, 2048) and padded_size(1024, 1024, 1024) == (1024, 1024)
    assert round(1 - 2557 * 1887 / (3072 * 2048), 2) == 0.23
    assert padded_size(6000, 6000, 1024) == (6144, 6144) and round(1 - 6000**2 / 6144**2, 3) == 0.046
    for honest, published in ((0.940, 0.971), (0.945, 0.974)):
        paved = 0.275 * 1e8  # its share of the labels
        wrong = round(paved * (1 - honest))  # as many missed as invented, so that F1 is TP / (TP + wrong)
        matrix = np.zeros((6, 7), np.int64)
        matrix[1, 1], matrix[1, 2], matrix[2, 1], matrix[2, 2] = paved - wrong, wrong, wrong, 1e8 - paved - wrong
        confusion = Confusion(ISPRS, matrix)
        assert confusion.f1()[1] == pytest.approx(honest, abs=1e-6)
        padding = Padding(1024, np.zeros(7, np.int64), round(1e8 * 0.23 / 0.77))
        assert score(confusion, "geoseg", padding).metrics["f1"]["impervious surface"] == pytest.approx(
            published, abs=5e-4
        )


def test_geoseg_without_padding_or_without_its_classes():
    """LoveDA: sides are multiples of 1024 px, so all seven classes are scored as ours are."""
    prediction, label = made_maps(16, 32, ("background", "building", "road"))
    scene = made_scene(label, ("background", "building", "road"))
    evaluation = evaluate_scene(prediction, scene, pad_to_px=16)
    scores = score(evaluation.confusion, "geoseg", evaluation.padding)
    assert scores.metrics["mean_iou"] == evaluation.confusion.mean_iou() and len(scores.metrics["mean_over"]) == 3
    assert "there is no padding" in scores.explanation and "--no-boundary" not in scores.explanation
    small = evaluate_scene(prediction, scene, pad_to_px=24)
    with pytest.raises(UserError, match="which is none of the classes background, building, road; use it for vaih"):
        score(small.confusion, "geoseg", small.padding)
    with pytest.raises(UserError, match="evaluate with pad_to_px=1024"):
        score(evaluation.confusion, "geoseg")
    with pytest.raises(UserError, match="multiple of 0 px"):
        evaluate_scene(prediction, scene, pad_to_px=0)
    with pytest.raises(UserError, match="has 24 x 48 px but scene made has 16 x 32"):  # padded, and nobody asked for it
        evaluate_scene(np.zeros((24, 48), np.uint8), scene)
