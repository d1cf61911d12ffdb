import weakref

import numpy as np
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
    """Strips that were read and bands that were given are let go of; no tensor is as high as the scene."""
    width, cropping = 96, Cropping(32, 0.5)

    def most_alive(height):
        strips, bands, most = [], [], 0

        def read(start, stop):
            strip = torch.zeros(1, stop - start, width)
            strips.append(weakref.ref(strip))
            return strip

        for _, band in crop_and_merge(nn.Conv2d(1, 2, 1), read, height, width, cropping):
            bands.append(weakref.ref(band))
            assert band.untyped_storage().nbytes() <= 2 * cropping.window_px * width * 4
            del band  # and that must do: who waits for the collector of cycles waits for memory
            most = max(most, sum(r() is not None for r in (*strips, *bands)))
        return most, len(bands)

    (low, few), (high, many) = most_alive(160), most_alive(1600)
    assert many > 9 * few and low == high <= 2
