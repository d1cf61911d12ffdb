"""Contexts of patches: where they lie, what they show, and how little is read for them."""

import numpy as np
import pytest
import rasterio
from made import make_scene, write_raster
from rasterio.enums import Resampling

from rsseglab.errors import UserError
from rsseglab.fctl import Contexts
from rsseglab.scenes import Scene, Window
from rsseglab.scenes.raster import ArraySource, RasterSource
from rsseglab.scenes.views import read_small


@pytest.fixture
def scene(tmp_path):
    return make_scene(tmp_path, "a", 192, 256)


def test_boxes_are_centred_and_padded_or_clipped(scene):
    patch = Window(0, 200, 32, 32)
    padded = Contexts(scene, 32, (1, 2, 3, "scene")).boxes(patch)
    assert padded == [patch, (-16, 184, 64, 64), (-32, 168, 96, 96), scene.window]
    clipped = Contexts(scene, 32, (1, 2, 3, 100), "clip").boxes(patch)
    assert clipped == [patch, (0, 184, 64, 64), (0, 160, 96, 96), scene.window]


def test_a_context_is_the_mean_of_its_cells(scene):
    contexts = Contexts(scene, 32, (1, 2, 4))
    image, valid = scene.read().astype(float), scene.read_valid()
    patch = Window(64, 96, 32, 32)
    for (pixels, there), box in zip(contexts.read(patch), contexts.boxes(patch), strict=True):
        factor = box.height // 32
        part = image[:, box.row : box.row + box.height, box.col : box.col + box.width]
        means = part.reshape(3, 32, factor, 32, factor).mean((2, 4))
        assert pixels.dtype == np.float32 and np.abs(pixels - means).max() <= 0.5 and there.all()  # of whole numbers
    assert valid.all()


def test_what_lies_past_the_edge_is_not_valid(scene):
    (pixels, valid), *_ = Contexts(scene, 32, (3,)).read(Window(0, 0, 32, 32))
    assert not valid[:10].any() and not valid[:, :10].any() and valid[11:, 11:].all() and (pixels[:, ~valid] == 0).all()
    assert Contexts(scene, 32, (3,), "clip").read(Window(0, 0, 32, 32))[0][1].all()


def test_sources_of_all_kinds_show_the_same(tmp_path):
    """A file with its own nodata, the same with nodata that we declare, and an array."""
    image = np.random.default_rng(0).integers(10, 200, (2, 96, 128), dtype=np.uint8).astype(np.float32)
    image[:, 30:50, 20:70] = 7
    declared = RasterSource(write_raster(tmp_path / "own.tif", image, nodata=7))
    stated = RasterSource(write_raster(tmp_path / "ours.tif", image), nodata=7)
    array = ArraySource(image.transpose(1, 2, 0), nodata=7)
    scenes = [Scene(source, name="s", bands=["a", "b"]) for source in (declared, stated, array)]
    assert (
        declared.read_small(Window(0, 0, 96, 128), 24, 32) and stated.read_small(Window(0, 0, 96, 128), 24, 32) is None
    )
    (one, valid), *others = [read_small(s, Window(-8, 0, 96, 128), 24, 32) for s in scenes]
    for other, its in others:
        assert np.allclose(one, other, atol=1e-4) and np.array_equal(valid, its)
    assert not valid[:2].any() and not valid[11:14, 6:16].any() and valid[2:9].all()


def test_the_whole_scene_is_read_once_and_small(tmp_path, monkeypatch):
    """From an overview, where there is one: not a block of the full resolution."""
    image = np.random.default_rng(0).integers(1, 255, (3, 1024, 1024), dtype=np.uint8)
    path = write_raster(tmp_path / "big.tif", image, tiled=True, blockxsize=256, blockysize=256)
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4, 8, 16], Resampling.average)
        assert file.overviews(1) == [2, 4, 8, 16]
    with path.open("r+b") as file:  # the full resolution is destroyed; the overviews stand behind it
        file.seek(4096)
        file.write(bytes(2 * 1024 * 1024))
    contexts, reads = Contexts(Scene(path), 64, (1, "scene")), []
    read = RasterSource.read_small
    monkeypatch.setattr(RasterSource, "read_small", lambda self, *a: reads.append(a) or read(self, *a))
    wholes = [contexts.read(Window(row, 0, 64, 64))[1] for row in (0, 64, 128)]
    assert wholes[0] is wholes[1] is wholes[2] and len(reads) == 1 + 3
    means = image.reshape(3, 64, 16, 64, 16).mean((2, 4))
    assert np.abs(wholes[0][0] - means).max() < 4  # rounded at each of four overviews


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": (0.5,)}, "smaller than its patch"),
        ({"scales": ("world",)}, "smaller than its patch"),
        ({"patch_px": 200}, "smaller than a patch of 200 px"),
        ({"edge": "mirror"}, "there is no edge"),
    ],
)
def test_contexts_that_are_none(scene, options, message):
    with pytest.raises(UserError, match=message):
        Contexts(scene, **{"patch_px": 32} | options)
    with pytest.raises(UserError, match="choose a wider context"):
        read_small(scene, Window(0, 0, 16, 16), 32, 32)
