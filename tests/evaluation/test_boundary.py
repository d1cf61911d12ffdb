"""Boundary F1 against distance transforms on the whole scene, and known outlines."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import distance_transform_edt, gaussian_filter

from rsseglab.errors import UserError
from rsseglab.evaluation import Placement, evaluate_scene, pool
from rsseglab.evaluation.boundary import BoundaryF1, far_from_boundary
from rsseglab.scenes import LabelClass, Scene
from rsseglab.scenes.raster import ArraySource
from rsseglab.scenes.scene import IGNORE_INDEX

NAMES = ("a", "b", "c")


def smooth_map(rng, shape, sigma=2.0):
    return np.stack([gaussian_filter(rng.standard_normal(shape), sigma) for _ in NAMES]).argmax(0).astype(np.uint8)


def random_maps(seed, shape=(37, 45)):
    rng = np.random.default_rng(seed)
    label, prediction = smooth_map(rng, shape), smooth_map(rng, shape)
    prediction = np.where(smooth_map(rng, shape) == 0, prediction, label)
    label[smooth_map(rng, shape, 3.0) == 1] = IGNORE_INDEX
    prediction[rng.random(shape) < 0.01] = IGNORE_INDEX
    return prediction, label


def slow_boundary(index, label, c):
    """Pixels of class c with a labelled 4-neighbour of another class, one by one."""
    height, width = index.shape
    edge = np.zeros(index.shape, dtype=bool)
    for row in range(height):
        for col in range(width):
            if index[row, col] != c or label[row, col] == IGNORE_INDEX:
                continue
            for r, k in ((row - 1, col), (row + 1, col), (row, col - 1), (row, col + 1)):
                inside = 0 <= r < height and 0 <= k < width
                if inside and label[r, k] != IGNORE_INDEX and index[r, k] != c:
                    edge[row, col] = True
    return edge


def slow_counts(prediction, label, c, tolerance):
    """All and matched boundary pixels of prediction and label, by Euclidean distance transforms."""
    guess, true = slow_boundary(prediction, label, c), slow_boundary(label, label, c)
    to_true = distance_transform_edt(~true) if true.any() else np.full(true.shape, np.inf)
    to_guess = distance_transform_edt(~guess) if guess.any() else np.full(true.shape, np.inf)
    return [guess.sum(), (to_true[guess] <= tolerance).sum()], [true.sum(), (to_guess[true] <= tolerance).sum()]


def in_blocks(prediction, label, tolerance, block, names=NAMES):
    score = BoundaryF1(names, tolerance)
    halo, (height, width) = score.halo_px, label.shape
    padded = [np.pad(x, halo, constant_values=IGNORE_INDEX) for x in (prediction, label)]
    for row in range(0, height, block):
        for col in range(0, width, block):
            rows = slice(row, min(row + block, height) + 2 * halo)
            cols = slice(col, min(col + block, width) + 2 * halo)
            score.update(*(x[rows, cols] for x in padded))
    return score


def whole(prediction, label, tolerance, names=NAMES):
    return in_blocks(prediction, label, tolerance, 10**6, names)


@pytest.mark.parametrize("tolerance", [0, 1, 2, 5])
def test_counts_equal_distance_transforms(tolerance):
    prediction, label = random_maps(1)
    score = whole(prediction, label, tolerance)
    everything, matched = score.predicted.sum(axis=0)
    assert everything > matched > 0  # the case tells matched from missed
    for c in range(len(NAMES)):
        guess, true = slow_counts(prediction, label, c, tolerance)
        np.testing.assert_array_equal(score.predicted[c], guess)
        np.testing.assert_array_equal(score.labelled[c], true)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), tolerance=st.integers(0, 6), block=st.integers(1, 40))
def test_blocks_with_halo_equal_the_whole_scene(seed, tolerance, block):
    prediction, label = random_maps(seed, (23, 29))
    one, many = whole(prediction, label, tolerance), in_blocks(prediction, label, tolerance, max(block, 4))
    np.testing.assert_array_equal(one.predicted, many.predicted)
    np.testing.assert_array_equal(one.labelled, many.labelled)


def test_a_line_moved_by_two_px():
    label = np.zeros((20, 30), np.uint8)
    label[:, 15:] = 1
    prediction = np.zeros_like(label)
    prediction[:, 17:] = 1
    assert whole(prediction, label, 1, ("a", "b")).mean_f1() == 0
    assert whole(prediction, label, 2, ("a", "b")).mean_f1() == 1
    assert whole(label, label, 0, ("a", "b")).mean_f1() == 1


def test_precision_recall_and_f1_of_a_half_found_outline():
    label = np.zeros((40, 60), np.uint8)
    label[:, 20:] = 1  # 40 px of boundary a class
    prediction = np.zeros_like(label)
    prediction[:30, 20:] = 1  # 30 px of it, then 40 px along row 30
    score = whole(prediction, label, 0, ("a", "b"))
    # Class b: 30 px down and 40 px along row 29 share the corner; 30 of its 69 px are right. The label's are 40.
    np.testing.assert_array_equal(score.predicted[1], [69, 30])
    np.testing.assert_array_equal(score.labelled[1], [40, 30])
    precision, recall = 30 / 69, 30 / 40
    assert score.precision()[1] == precision
    assert score.recall()[1] == recall
    assert score.f1()[1] == pytest.approx(2 * precision * recall / (precision + recall))


def test_ignored_pixels_are_no_boundary_and_make_none():
    label = np.zeros((12, 30), np.uint8)
    label[:, 10:20] = IGNORE_INDEX
    label[:, 20:] = 1
    prediction = np.zeros_like(label)
    prediction[:, 20:] = 1
    assert np.isnan(whole(prediction, label, 3, ("a", "b")).mean_f1())
    prediction[:, 12:15] = 1  # rubbish where nobody looks
    assert whole(prediction, label, 3, ("a", "b")).predicted.sum() == 0


def test_the_edge_of_the_scene_is_no_boundary():
    assert whole(np.ones((9, 9), np.uint8), np.ones((9, 9), np.uint8), 2).predicted.sum() == 0


def test_nan_only_where_neither_has_a_boundary():
    label = np.zeros((10, 10), np.uint8)
    label[:, 5:] = 1
    score = whole(np.zeros_like(label), label, 2)
    np.testing.assert_array_equal(score.f1(), [0, 0, np.nan])
    assert score.mean_f1() == 0
    assert np.isnan(score.mean_f1(["c"]))
    with pytest.raises(UserError, match="no classes"):
        score.mean_f1(["d"])


def test_scenes_add_and_bad_settings_are_named():
    one, two = (whole(*random_maps(seed), 2) for seed in (5, 6))
    both = one + two
    np.testing.assert_array_equal(both.predicted, one.predicted + two.predicted)
    np.testing.assert_array_equal(both.labelled, one.labelled + two.labelled)
    with pytest.raises(UserError, match="do not add"):
        one + BoundaryF1(NAMES, 3)
    with pytest.raises(UserError, match="at least 0"):
        BoundaryF1(NAMES, -1)


def slow_far(label, radius):
    """Labelled pixels without another class as near as that, by comparing each with each."""
    far = label != IGNORE_INDEX
    for row, col in np.argwhere(far):
        for r, k in np.argwhere(label != IGNORE_INDEX):
            if label[r, k] != label[row, col] and (r - row) ** 2 + (k - col) ** 2 <= radius**2:
                far[row, col] = False
    return far


@pytest.mark.parametrize("radius", [1, 3, 5])
def test_far_from_boundary_against_each_pixel_with_each(radius):
    _, label = random_maps(radius, (19, 23))
    around = np.pad(label, radius, constant_values=IGNORE_INDEX)  # nothing past the scene's edge
    far = slow_far(label, radius)
    np.testing.assert_array_equal(far_from_boundary(around, radius), far)
    assert 0 < far.sum() < (label != IGNORE_INDEX).sum()


def test_far_from_boundary_is_erosion_by_a_disc():
    """A straight border loses 3 px on each side, and a pixel at just that distance is in the disc."""
    label = np.zeros((1 + 2 * 3, 20 + 2 * 3), np.uint8)
    label[:, 3 + 10 :] = 1
    assert np.flatnonzero(~far_from_boundary(label, 3)[0]).tolist() == [7, 8, 9, 10, 11, 12]


def made_scene(label, name="made"):
    classes = [LabelClass(one, k, (k, 0, 0)) for k, one in enumerate(NAMES)]
    image = ArraySource(np.ones((*label.shape, 3), np.uint8))
    return Scene(image, ArraySource(label), classes, [IGNORE_INDEX], name=name)


@pytest.mark.parametrize("block_px", [1024, 8])
@pytest.mark.parametrize("radius", [1, 3, 6])  # less and more than the boundary F1's tolerance
def test_scores_without_boundary_block_by_block(radius, block_px):
    prediction, label = random_maps(0)
    scene = made_scene(label)
    far = far_from_boundary(np.pad(label, radius, constant_values=IGNORE_INDEX), radius)
    eroded = np.where(far, label, np.uint8(IGNORE_INDEX))
    result = evaluate_scene(prediction, scene, no_boundary_px=radius, tolerance_px=2, block_px=block_px)
    np.testing.assert_array_equal(
        result.confusion.matrix, evaluate_scene(prediction, made_scene(eroded)).confusion.matrix
    )
    whole = evaluate_scene(prediction, scene, tolerance_px=2)
    # What is near a border has a label: it is neither scored nor counted among what has none.
    np.testing.assert_array_equal(result.confusion.ignored, whole.confusion.ignored)
    np.testing.assert_array_equal(result.boundary.predicted, whole.boundary.predicted)
    np.testing.assert_array_equal(result.boundary.labelled, whole.boundary.labelled)
    assert result.metrics()["no_boundary_px"] == radius and "no_boundary_px" not in whole.metrics()
    assert pool([result, result]).no_boundary_px == radius
    with pytest.raises(UserError, match=rf"scores without \[0, {radius}\] px of boundary do not add"):
        pool([result, whole])


def test_seams_are_scored_without_boundary_too():
    prediction, label = random_maps(0)
    where = Placement([0, 12, 21], [0, 12, 24, 29], 16)
    far = far_from_boundary(np.pad(label, 3, constant_values=IGNORE_INDEX), 3)
    eroded = np.where(far, label, np.uint8(IGNORE_INDEX))
    settings = {"placement": where, "seam_distance_px": 2, "block_px": 10}
    result = evaluate_scene(prediction, made_scene(label), no_boundary_px=3, **settings)
    np.testing.assert_array_equal(
        result.seams.blocks, evaluate_scene(prediction, made_scene(eroded), **settings).seams.blocks
    )


def test_no_boundary_that_leaves_nothing_or_is_no_distance():
    label = np.kron(np.indices((8, 8)).sum(0) % 2, np.ones((2, 2))).astype(np.uint8)  # a chequerboard of 2 px
    with pytest.raises(UserError, match="farther than 3 px from another class; leave out less"):
        evaluate_scene(label, made_scene(label), no_boundary_px=3)
    for wrong in (-1, 33):
        with pytest.raises(UserError, match=f"boundary is {wrong} px to each side; give 0 to 32"):
            evaluate_scene(label, made_scene(label), no_boundary_px=wrong)
