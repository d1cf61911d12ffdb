import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rsseglab.inference.crops import Cropping, crop_and_merge
from rsseglab.inference.windows import BLENDS, PLACEMENTS, blend_weights


class Position(nn.Module):
    """Logits that depend on the place in the window, so that every blending mistake shows."""

    def forward(self, image):
        rows = torch.linspace(-1, 1, image.shape[2])[:, None]
        cols = torch.linspace(-2, 1, image.shape[3])
        return torch.cat([image.sum(1, keepdim=True) * rows, image[:, :1] + cols, image[:, :1] * rows * cols], 1)


def merged(network, image, cropping):
    bands = list(crop_and_merge(network, lambda a, b: image[:, a:b], *image.shape[1:], cropping))
    assert [row for row, _ in bands] == list(np.cumsum([0] + [band.shape[1] for _, band in bands])[:-1])
    return torch.cat([band for _, band in bands], 1)


def plain(network, image, cropping):
    """The slow twin: the whole scene's logits and weights in memory, one window after the other."""
    side = cropping.window_px
    height, width = image.shape[1:]
    padded = torch.zeros(image.shape[0], max(height, side), max(width, side))
    padded[:, :height, :width] = image
    total = torch.zeros(3, *padded.shape[1:], dtype=torch.float64)
    norm = torch.zeros(padded.shape[1:], dtype=torch.float64)
    weights = blend_weights(cropping.blend, side).double()
    for row in cropping.starts(height):
        for col in cropping.starts(width):
            place = (slice(row, row + side), slice(col, col + side))
            total[:, *place] += network(padded[None, :, *place])[0].double() * weights
            norm[place] += weights
    return (total / norm)[:, :height, :width]


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 150), st.integers(1, 150), st.sampled_from([32, 64]), st.floats(0, 0.8),
    st.sampled_from(BLENDS), st.sampled_from(PLACEMENTS), st.integers(1, 5),
)  # fmt: skip
def test_equals_the_plain_twin(height, width, window, overlap, blend, placement, batch):
    image = torch.from_numpy(np.random.default_rng(0).normal(size=(2, height, width)).astype(np.float32))
    cropping = Cropping(window, overlap, blend, placement, batch)
    assert torch.allclose(merged(Position(), image, cropping).double(), plain(Position(), image, cropping), atol=1e-5)


def test_a_network_that_looks_at_single_pixels_has_no_seams():
    image = torch.randn(3, 200, 230)
    network = nn.Conv2d(3, 4, 1)
    whole = network(image[None])[0]
    for blend in BLENDS:
        assert torch.allclose(merged(network, image, Cropping(64, 0.5, blend)), whole, atol=1e-5)


def test_memory_does_not_grow_with_the_scene_height():
    def peak(height):
        image = torch.zeros(1, 1, 1).expand(1, height, 96)  # takes no memory itself
        tracemalloc.start()
        live = most = 0
        for _, band in crop_and_merge(nn.Conv2d(1, 2, 1), lambda a, b: image[:, a:b], height, 96, Cropping(32, 0.5)):
            live = band.untyped_storage().nbytes()
            most = max(most, live)
        tracemalloc.stop()
        return most

    assert peak(320) == peak(3200)


def test_matches_monai():
    monai = pytest.importorskip("monai.inferers", reason="install the extra: pip install 'rsseglab[benchmark]'")
    torch.manual_seed(0)
    network = nn.Conv2d(3, 4, 9, padding=4).eval()
    image = torch.randn(3, 150, 210)
    for ours, theirs in (("flat", "constant"), ("gaussian", "gaussian")):
        with torch.no_grad():
            expected = monai.sliding_window_inference(image[None], 64, 3, network, 0.4, theirs)[0]
        assert (merged(network, image, Cropping(64, 0.4, ours)) - expected).abs().max() < 1e-5
