"""Seam error: planted seams, no seams, edges, and the lines themselves against a pixel-wise twin."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rsseglab.errors import UserError
from rsseglab.evaluation.seams import (
    Placement,
    SeamCounter,
    border_lines,
    near_lines,
    placebo_lines,
)
from rsseglab.inference.windows import window_starts
from rsseglab.scenes.scene import IGNORE_INDEX

WINDOW, STRIDE, SIDE = 64, 32, 320


def placement(side=SIDE, window=WINDOW, stride=STRIDE):
    starts = window_starts(side, window, stride)
    return Placement(starts, starts, window)


def measured(wrong, where=None, distance=4, block=64, label=None):
    """Seam error of a map of wrong pixels."""
    label = np.zeros(wrong.shape, np.uint8) if label is None else label
    counter = SeamCounter(*wrong.shape, where or placement(), distance)
    for row in range(0, wrong.shape[0], block):
        for col in range(0, wrong.shape[1], block):
            at = (slice(row, row + block), slice(col, col + block))
            counter.update(wrong[at].astype(np.uint8), label[at], row, col)
    return counter.result()


def slow_borders(starts, window, length):
    """Lines between two pixels that different windows see."""
    seen = [{s for s in starts if s <= i < s + window} for i in range(length)]
    return [p for p in range(1, length) if seen[p] != seen[p - 1]]


@given(length=st.integers(1, 90), window=st.integers(1, 40), stride=st.integers(1, 40))
def test_borders_are_where_the_set_of_windows_changes(length, window, stride):
    starts = window_starts(length, window, min(stride, window))
    assert border_lines(starts, window, length) == slow_borders(starts, window, length)


@given(lines=st.lists(st.integers(1, 59), max_size=5), distance=st.integers(1, 9))
def test_near_is_a_distance_to_the_nearest_line(lines, distance):
    pixels = [any(abs(i + 0.5 - p) < distance for p in lines) for i in range(60)]
    assert near_lines(lines, 60, distance).tolist() == pixels


def test_the_placebo_is_the_grid_shifted_by_half_the_stride():
    starts = window_starts(320, 64, 32)
    assert border_lines(starts, 64, 320) == list(range(32, 320, 32))
    assert placebo_lines(starts, 64, 320, 4) == list(range(16, 320, 32))
    starts = window_starts(384, 64, 64)  # no overlap
    assert placebo_lines(starts, 64, 384, 8) == [32, 96, 160, 224, 288, 352]
    starts = window_starts(1000, 256, 192)  # a quarter: starts 192 k, ends 64 + 192 k, the last window moved back
    lines, borders = placebo_lines(starts, 256, 1000, 8), border_lines(starts, 256, 1000)
    assert {96, 288, 480, 672, 160, 352, 544} <= set(lines)
    assert min(abs(a - b) for a in lines for b in borders) >= 16


def test_a_placebo_that_would_fall_on_the_borders_is_shifted_by_a_quarter():
    starts = window_starts(64 * 9 + 96, 96, 64)  # a third: starts and ends interleave every 32 px
    length = 64 * 9 + 96
    assert border_lines(starts, 96, length) == list(range(64, length - 63, 32))
    lines = placebo_lines(starts, 96, length, 4)
    assert lines
    assert {line % 32 for line in lines} == {16}


@given(length=st.integers(1, 400), window=st.integers(1, 128), stride=st.integers(1, 128), distance=st.integers(1, 12))
def test_placebo_lines_keep_away_from_borders_and_from_the_edge(length, window, stride, distance):
    starts = window_starts(length, window, min(stride, window))
    lines = placebo_lines(starts, window, length, distance)
    borders = border_lines(starts, window, length)
    for line in lines:
        assert min(abs(line - border) for border in borders) >= 2 * distance
        assert min(line, length - line) >= (starts[1] - starts[0]) // 4


def test_planted_seams_are_found_exactly():
    near = near_lines(border_lines(placement().row_starts, WINDOW, SIDE), SIDE, 4)
    wrong = near[:, None] | near[None, :]  # wrong exactly near borders
    found = measured(wrong)
    assert (found.near_error, found.far_error) == (1.0, 0.0)
    # The placebo's bands meet those of borders only where a row band crosses a column band.
    lines = near_lines(placebo_lines(placement().row_starts, WINDOW, SIDE, 4), SIDE, 4)
    band = lines[:, None] | lines[None, :]
    assert found.placebo_near_error == wrong[band].mean()
    assert found.placebo_far_error == wrong[~band].mean()
    assert found.seam_error == pytest.approx(1 - (wrong[band].mean() - wrong[~band].mean()))
    assert found.near_pixels == wrong.sum()
    assert found.placebo_near_pixels == band.sum()
    assert found.pixels == SIDE**2


def test_errors_along_the_placebo_count_against():
    lines = near_lines(placebo_lines(placement().row_starts, WINDOW, SIDE, 4), SIDE, 4)
    assert measured(lines[:, None] | lines[None, :]).seam_error < -0.9


def test_a_small_excess_is_measured_within_its_interval():
    rng = np.random.default_rng(0)
    near = near_lines(border_lines(placement().row_starts, WINDOW, SIDE), SIDE, 2)
    seam = near[:, None] | near[None, :]
    wrong = rng.random((SIDE, SIDE)) < np.where(seam, 0.15, 0.10)
    found = measured(wrong, distance=2)
    truth = measured(seam, distance=2).seam_error * 0.05
    low, high = found.interval()
    assert low < truth < high
    assert low > 0.02


def test_uniform_errors_have_no_seam():
    outside = 0
    for seed in range(20):
        wrong = np.random.default_rng(seed).random((SIDE, SIDE)) < 0.2
        found = measured(wrong)
        low, high = found.interval()
        assert abs(found.seam_error) < 0.02
        outside += not low <= 0 <= high
    assert outside <= 4  # a 95 % interval


def test_errors_at_the_edge_of_the_scene_are_no_seam():
    wrong = np.zeros((SIDE, SIDE), dtype=bool)
    wrong[:6] = wrong[-6:] = wrong[:, :6] = wrong[:, -6:] = True
    found = measured(wrong)
    assert found.near_error - found.far_error < -0.03  # far from borders lies the edge ...
    assert abs(found.seam_error) < 0.005  # ... for the placebo as well


def test_a_perfect_prediction_has_exactly_none():
    found = measured(np.zeros((SIDE, SIDE), dtype=bool))
    assert found.seam_error == 0.0
    assert found.interval() == (0.0, 0.0)


def test_no_class_is_wrong_and_ignored_pixels_do_not_count():
    prediction = np.zeros((SIDE, SIDE), np.uint8)
    label = np.zeros((SIDE, SIDE), np.uint8)
    prediction[:10], label[10:20] = IGNORE_INDEX, IGNORE_INDEX
    counter = SeamCounter(SIDE, SIDE, placement(), 4)
    counter.update(prediction, label, 0, 0)
    assert counter.result().pixels == SIDE * (SIDE - 10)
    assert counter.result().blocks[..., 1].sum() == SIDE * 10


def test_blocks_do_not_matter_and_scenes_add():
    rng = np.random.default_rng(1)
    wrong = rng.random((SIDE, 200)) < 0.3
    where = Placement(window_starts(SIDE, 64, 48), window_starts(200, 64, 48), 64)
    one, many = measured(wrong, where, block=10**6), measured(wrong, where, block=37)
    assert one.seam_error == many.seam_error
    np.testing.assert_array_equal(one.blocks.sum(axis=0), many.blocks.sum(axis=0))
    np.testing.assert_array_equal((one + many).blocks.sum(axis=0), 2 * one.blocks.sum(axis=0))
    assert (one + one).seam_error == pytest.approx(one.seam_error)
    with pytest.raises(UserError, match="do not add"):
        one + measured(wrong, where, distance=5)


def test_nan_where_there_is_nothing_to_compare():
    wrong = np.zeros((50, 50), dtype=bool)
    assert np.isnan(measured(wrong, Placement([0], [0], 64)).seam_error)  # one window
    assert np.isnan(measured(wrong, placement(50, 32, 4)).seam_error)  # borders everywhere
    assert all(np.isnan(end) for end in measured(wrong, Placement([0], [0], 64)).interval())
    no_label = measured(wrong, placement(50, 16, 16), 2, label=np.full((50, 50), IGNORE_INDEX, np.uint8))
    assert np.isnan(no_label.seam_error)
    assert not np.isnan(measured(wrong, placement(50, 16, 16), 2).seam_error)
    with pytest.raises(UserError, match="at least 1"):
        SeamCounter(50, 50, placement(50), 0)
