from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rsseglab.errors import UserError
from rsseglab.inference.crops import Cropping
from rsseglab.inference.windows import BLENDS, PLACEMENTS, blend_weights, stride_px, window_starts

LENGTHS = st.integers(1, 400)
WINDOWS = st.integers(1, 130)


@given(LENGTHS, WINDOWS, st.floats(0, 0.95), st.sampled_from(PLACEMENTS))
def test_windows_cover_every_pixel_and_stay_inside(length, window, overlap, placement):
    starts = window_starts(length, window, stride_px(window, overlap), placement)
    assert starts == sorted(set(starts)) and starts[0] == 0
    covered = {p for start in starts for p in range(start, start + window)}
    assert covered >= set(range(length))
    assert length <= window or starts[-1] == length - window
    assert all(b - a <= stride_px(window, overlap) for a, b in pairwise(starts))


@given(LENGTHS, WINDOWS, st.floats(0, 0.95))
def test_even_placement_needs_no_more_windows(length, window, overlap):
    stride = stride_px(window, overlap)
    assert len(window_starts(length, window, stride, "even")) == len(window_starts(length, window, stride))


def test_known_placements():
    assert window_starts(100, 32, 32) == [0, 32, 64, 68]
    assert window_starts(96, 32, 32) == [0, 32, 64]
    assert window_starts(20, 32, 16) == [0]
    # FCtL, DeepGlobe: 2448 px in patches of 508 with at least 50 px overlap are 6 a side, 388 px apart.
    starts = window_starts(2448, 508, 458, "even")
    assert len(starts) == 6 and {b - a for a, b in pairwise(starts)} == {388}
    # FCtL, Inria: 5000 px, 11 a side.
    assert len(window_starts(5000, 508, 458, "even")) == 11


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("side", [1, 2, 31, 32, 64])
def test_weights_are_positive_symmetric_and_peak_in_the_middle(blend, side):
    weights = blend_weights(blend, side)
    assert weights.shape == (side, side) and (weights > 0).all()
    assert torch.allclose(weights, weights.flip(0)) and torch.allclose(weights, weights.T)
    assert weights[side // 2, side // 2] == weights.max()


@given(LENGTHS, LENGTHS, st.integers(16, 60), st.floats(0, 0.8), st.sampled_from(BLENDS), st.sampled_from(PLACEMENTS))
def test_blended_weights_sum_to_one_everywhere(height, width, window, overlap, blend, placement):
    stride = stride_px(window, overlap)
    weights = blend_weights(blend, window).double()
    rows, cols = (window_starts(n, window, stride, placement) for n in (height, width))
    total = torch.zeros(max(height, window), max(width, window), dtype=torch.float64)
    places = [(slice(r, r + window), slice(c, c + window)) for r in rows for c in cols]
    for place in places:
        total[place] += weights
    shares = torch.zeros_like(total)
    for place in places:
        shares[place] += weights / total[place]
    assert torch.allclose(shares[:height, :width], torch.ones(()).double())


def test_bad_settings_name_the_remedy():
    with pytest.raises(UserError, match=r"overlap is 1\.0"):
        Cropping(overlap=1.0)
    with pytest.raises(UserError, match="overlap is -0"):
        Cropping(overlap=-0.1)
    with pytest.raises(UserError, match="multiple of 32"):
        Cropping(window_px=100)
    with pytest.raises(UserError, match="unknown blend 'box'; choose one of flat"):
        Cropping(blend="box")
    with pytest.raises(UserError, match="unknown placement"):
        Cropping(placement="left")
    with pytest.raises(UserError, match="batch size"):
        Cropping(batch_size=0)
