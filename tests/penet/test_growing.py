"""Clicks grown to labels: which mask, which windows, who wins."""

import numpy as np
import pytest

from rsseglab.errors import UserError
from rsseglab.penet.growing import choose, grow_points, windows_around
from rsseglab.penet.sam import Discs, Proposal
from rsseglab.scenes import IGNORE_INDEX, ArraySource, LabelClass, Scene
from rsseglab.scenes.points import Point

CLASSES = [LabelClass(n, k, (0, 0, 9 * k)) for k, n in enumerate("abc")]


def blank(height=60, width=80):
    return Scene(ArraySource(np.zeros((height, width, 3), np.uint8)), None, CLASSES, name="s")


class Given:
    """Proposes the masks it was given, by the click's place in the scene."""

    window_px = 64

    def __init__(self, masks):
        self.masks, self.asked = masks, []

    def propose(self, scene, window, clicks, others):
        self.asked.append((window, len(clicks), [len(o) for o in others]))
        rows, cols = slice(window.row, window.row + window.height), slice(window.col, window.col + window.width)
        places = [(int(r) + window.row, int(c) + window.col) for r, c in clicks]
        return [[Proposal(m[rows, cols], s) for m, s in self.masks.get(place, [])] for place in places]


def box(top, left, bottom, right, height=60, width=80):
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def test_the_best_proposal_that_counts_is_the_mask():
    click, other = np.array([10.5, 10.5]), np.array([[30.2, 30.9]])
    good, better = Proposal(box(5, 5, 15, 15), 0.7), Proposal(box(8, 8, 12, 12), 0.8)
    large, beside = Proposal(box(0, 0, 25, 60), 0.9), Proposal(box(20, 20, 25, 25), 0.95)
    with_other, empty = Proposal(box(5, 5, 35, 35), 0.99), Proposal(box(0, 0, 0, 0), 1.0)
    all_of_them = [good, better, large, beside, with_other, empty]
    assert choose(all_of_them, click, other, 1000) is better.mask
    assert choose([good, large, beside, with_other, empty], click, other, 1000) is good.mask
    assert choose(all_of_them, click, other[:0], 1000) is with_other.mask
    assert choose([beside, empty], click, other, 1000) is None
    assert choose([], click, other, 1000) is None


@pytest.mark.parametrize(("conflicts", "middle"), [("smaller", 1), ("ignore", IGNORE_INDEX)])
def test_conflicts_and_clicks(conflicts, middle):
    points = [Point(10, 10, "a"), Point(20, 20, "b"), Point(50, 70, "c"), Point(12, 24, "a")]
    masks = {(10, 10): [(box(5, 5, 21, 23), 1.0)], (20, 20): [(box(18, 15, 26, 29), 1.0)]}
    masks[10, 10][0][0][20, 20] = False  # does not hold the other's click
    source = Given(masks)
    grown = grow_points(blank(), points, source, conflicts=conflicts, progress=False)
    assert (grown.clicks, grown.bare) == (4, 2)
    assert grown.label[6, 6] == 0 and grown.label[25, 28] == 1 and grown.label[18, 15] == middle
    assert grown.contested_px == 3 * 8 - 1
    assert grown.label[50, 70] == 2 and grown.label[12, 24] == 0 and grown.label[40, 40] == IGNORE_INDEX
    assert sum(n for _, n, _ in source.asked) == 4


def test_a_click_wins_over_a_mask_that_another_window_laid_over_it():
    """Two clicks that no window has both: the mask of one holds the other, and only its pixel stays the other's."""
    points = [Point(30, 60, "a"), Point(30, 105, "b")]
    masks = {(30, 60): [(box(20, 50, 40, 108, 60, 200), 1.0)]}
    masks[30, 60][0][0][:, 92:] = False  # as far as its window sees
    masks[30, 105] = [(box(25, 80, 35, 115, 60, 200), 1.0)]
    grown = grow_points(blank(60, 200), points, Given(masks), most_share=1, progress=False)
    assert grown.label[30, 60] == 0 and grown.label[30, 105] == 1 and grown.bare == 0
    assert grown.label[30, 85] == 1 and grown.label[22, 85] == 0  # the smaller mask on top


def test_many_clicks_of_a_window_are_asked_for_a_few_at_a_time():
    points = [Point(r + 0.5, c + 0.5, "a") for r in range(20, 40, 2) for c in range(20, 40, 2)]
    source = Given({})
    grown = grow_points(blank(60, 60), points, source, progress=False)
    assert grown.bare == 100 and max(n for _, n, _ in source.asked) <= 32 and sum(n for _, n, _ in source.asked) == 100


def test_windows_see_every_click_once_and_what_is_around_it():
    draw = np.random.default_rng(0)
    for height, width, side in [(300, 500, 64), (50, 40, 64), (64, 200, 64), (65, 65, 64)]:
        places = draw.random((80, 2)) * (height, width)
        windows = windows_around(places, height, width, side)
        assert sorted(np.concatenate([which for _, which in windows])) == list(range(80))
        for window, which in windows:
            assert (window.height, window.width) == (min(side, height), min(side, width))
            assert 0 <= window.row <= height - window.height and 0 <= window.col <= width - window.width
            for r, c in places[which] - (window.row, window.col):
                far = min(window.row + r, r, c, window.col + c)
                assert 0 <= r < window.height and 0 <= c < window.width and far >= 0
                assert r >= side // 4 or window.row == 0
                assert c >= side // 4 or window.col == 0
                assert window.height - r >= side // 4 - 1 or window.row + window.height == height
    assert len(windows_around(places, 65, 65, 64)) <= 4


def test_discs_grow_from_clicks():
    grown = grow_points(blank(), [Point(10, 10, "a"), Point(40, 60, "c")], Discs(3), progress=False)
    assert (grown.label == 0).sum() == (grown.label == 2).sum() == 29 and grown.bare == 0


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        ([], {}, "has no point"),
        ([Point(60, 0, "a")], {}, "lies outside"),
        ([Point(0, 0, "d")], {}, "is of class 'd'"),
        ([Point(0, 0, "a"), Point(0.9, 0, "b")], {}, "is b and a"),
        ([Point(0, 0, "a")], {"conflicts": "larger"}, "no rule 'larger'"),
        ([Point(0, 0, "a")], {"most_share": 0}, "no share of a window"),
    ],
)
def test_what_cannot_be_grown_is_refused(points, options, message):
    with pytest.raises(UserError, match=message):
        grow_points(blank(), points, Discs(3), progress=False, **options)
