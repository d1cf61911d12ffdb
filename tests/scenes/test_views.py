import pickle

import numpy as np
import pytest
from affine import Affine
from made import CLASSES, make_scene

from rsseglab.errors import UserError
from rsseglab.scenes import IGNORE_INDEX, ArraySource, LabelClass, Scene, Window
from rsseglab.scenes.twins import CLASSES as TWIN_CLASSES
from rsseglab.scenes.twins import DETAIL_PX, twin_scenes
from rsseglab.scenes.views import decimated, in_memory, part_of, single_class, thumbnail


def gappy(height=37, width=50, seed=0):
    """Random pixels and labels with holes in both, one image part without data where the other has some."""
    draw = np.random.default_rng(seed)
    rgb = draw.integers(1, 255, (height, width, 3), dtype=np.uint8)
    nir = draw.normal(1000, 50, (height, width)).astype(np.float32)
    rgb[3:19, 5:12] = 0
    nir[8:25, 9:16] = np.nan
    label = draw.integers(0, 4, (height, width), dtype=np.uint8)
    classes = [
        LabelClass("water", 0, (0, 0, 255)),
        LabelClass("land", 2, (0, 255, 0)),
        LabelClass("road", 3, (9, 9, 9)),
    ]
    where = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 5e5, 0, -0.5, 4e6)}
    parts = [ArraySource(rgb, nodata=0, **where), ArraySource(nir, nodata=float("nan"), **where)]
    return Scene(parts, ArraySource(label, **where), classes, [1], name="gappy", gsd_m=0.5)


def slowly_decimated(scene, factor):
    """Block by block, pixel by pixel."""
    image, valid, label = scene.read(), scene.read_valid(), scene.read_label()
    height, width = -(-scene.height // factor), -(-scene.width // factor)
    means = np.zeros((scene.count, height, width))
    mask, index = np.zeros((height, width), bool), np.full((height, width), IGNORE_INDEX)
    for i in range(height):
        for j in range(width):
            pixels, votes = [], [0] * len(scene.classes)
            for row in range(i * factor, min((i + 1) * factor, scene.height)):
                for col in range(j * factor, min((j + 1) * factor, scene.width)):
                    if valid[row, col]:
                        pixels.append(image[:, row, col].astype(float))
                    if label[row, col] != IGNORE_INDEX:
                        votes[label[row, col]] += 1
            if pixels:
                mask[i, j], means[:, i, j] = True, np.mean(pixels, axis=0)
            if max(votes):
                index[i, j] = votes.index(max(votes))
    return means, mask, index


@pytest.mark.parametrize("factor", [1, 3, 4, 7, 300])
def test_a_decimated_scene_is_block_by_block_what_the_slow_one_is(factor):
    scene = gappy()
    view = decimated(scene, factor)
    means, valid, label = slowly_decimated(scene, factor)
    assert np.array_equal(view.read_valid(), valid) and np.array_equal(view.read_label(), label)
    assert np.allclose(view.read(), means, rtol=1e-6) and view.dtype == np.float32
    assert valid.all() == (factor > 4) and (label == IGNORE_INDEX).any() == (factor <= 4)  # holes


def test_a_window_of_a_view_is_that_part_of_it(tmp_path):
    scene = make_scene(tmp_path, "a", 300, 330)
    for view in (decimated(scene, 3), single_class(scene, "road"), in_memory(scene)):
        for window in (Window(5, 70, 90, 20), Window(-4, -7, 50, 60), Window(90, 100, 400, 300)):
            rows = np.clip(np.arange(window.row, window.row + window.height), 0, view.height - 1)
            cols = np.clip(np.arange(window.col, window.col + window.width), 0, view.width - 1)
            inside = np.outer(
                rows == np.arange(window.row, window.row + window.height),
                cols == np.arange(window.col, window.col + window.width),
            )
            assert np.array_equal(view.read(window), view.read()[:, rows][:, :, cols] * inside)
            assert np.array_equal(view.read_valid(window), view.read_valid()[rows][:, cols] & inside)
            expected = np.where(inside, view.read_label()[rows][:, cols], IGNORE_INDEX)
            assert np.array_equal(view.read_label(window), expected)


def test_a_read_touches_its_own_pixels_alone(monkeypatch):
    scene, seen = gappy(200, 200), []
    view = decimated(scene, 4)
    read = ArraySource.read
    monkeypatch.setattr(ArraySource, "read", lambda self, window: seen.append(window) or read(self, window))
    view.read(Window(10, 20, 5, 6))
    assert set(seen) == {Window(40, 80, 20, 24)}


def test_the_grid_of_a_view_is_on_the_ground_where_the_scene_is(tmp_path):
    scene = make_scene(tmp_path)
    view = decimated(scene, 4)
    assert (view.height, view.width, view.name, view.bands) == (24, 33, "a", scene.bands)
    assert view.transform == Affine(2, 0, 5e5, 0, -2, 4e6) and view.crs == scene.crs
    assert view.classes == CLASSES and view.ignore_values == (0,) and view.paths == scene.paths
    assert decimated(gappy(), 4).gsd_m == 2.0 and view.gsd_m is None
    assert decimated(Scene(ArraySource(np.ones((8, 8), np.uint8))), 2).transform == Affine.identity()
    assert not decimated(Scene(ArraySource(np.ones((8, 8), np.uint8))), 2).has_label
    assert np.array_equal(pickle.loads(pickle.dumps(view)).read_label(), view.read_label())  # for worker processes


def test_one_class_against_the_rest():
    scene = gappy()
    label = scene.read_label()
    view = single_class(scene, "road")
    assert np.array_equal(view.read_label(), np.where(label == IGNORE_INDEX, IGNORE_INDEX, label == 2))
    assert [(c.name, c.value) for c in view.classes] == [("background", 0), ("road", 1)]
    assert view.classes[1].color == scene.classes[2].color and view.gsd_m == 0.5
    assert np.array_equal(view.read(), scene.read()) and np.array_equal(view.read_valid(), scene.read_valid())
    both = single_class(scene, ["water", "road"])
    assert np.array_equal(both.read_label(), np.where(label == IGNORE_INDEX, IGNORE_INDEX, label != 1))
    assert both.classes[1].name == "water or road"
    twice = decimated(view, 5).read_label()
    assert np.array_equal(twice, slowly_decimated(view, 5)[2]) and {0, 1} < set(np.unique(twice))


def test_classes_that_are_not_there_are_refused():
    scene = gappy()
    with pytest.raises(UserError, match=r"scene gappy has no class \['sea'\]; choose from water, land, road"):
        single_class(scene, ["water", "sea"])
    with pytest.raises(UserError, match="are all classes of scene gappy"):
        single_class(scene, ["water", "land", "road"])
    with pytest.raises(UserError, match="factor is 0"):
        decimated(scene, 0)


def test_nothing_is_read_outside_a_part():
    scene, window = gappy(), Window(5, 7, 20, 30)
    part = part_of(scene, window, "part")
    rows, cols = slice(5, 25), slice(7, 37)
    assert np.array_equal(part.read(), scene.read()[:, rows, cols])
    assert np.array_equal(part.read_valid(), scene.read_valid()[rows, cols])
    assert np.array_equal(part.read_label(), scene.read_label()[rows, cols])
    around = Window(-3, -4, 40, 50)
    assert np.array_equal(part.read_valid(around), np.pad(part.read_valid(), ((3, 17), (4, 16))))
    outside = np.pad(np.zeros((20, 30), bool), ((3, 17), (4, 16)), constant_values=True)
    assert not part.read(around)[:, outside].any() and (part.read_label(around)[outside] == IGNORE_INDEX).all()
    # Pixel (0, 0) of the part lies where pixel (5, 7) of the scene does; without a georeference there is none.
    assert part.transform @ (0, 0) == scene.transform @ (7, 5) and part.name == "part" and part.gsd_m == 0.5
    plain = Scene(ArraySource(np.ones((9, 9), np.uint8)))
    assert part_of(plain, Window(2, 2, 5, 5), "b").transform == Affine.identity()
    for wrong in (Window(-1, 0, 5, 5), Window(0, 0, 38, 5), Window(0, 0, 0, 5)):
        with pytest.raises(UserError, match="give a window inside it"):
            part_of(scene, wrong, "wrong")


def test_what_is_kept_is_read_once(monkeypatch):
    scene = gappy()
    kept = in_memory(scene)
    monkeypatch.setattr(ArraySource, "read", None)
    assert kept.read().shape == (4, 37, 50) and kept.transform == scene.transform
    monkeypatch.undo()
    assert np.array_equal(kept.read(), scene.read()) and np.array_equal(kept.read_valid(), scene.read_valid())
    assert np.array_equal(kept.read_label(), scene.read_label()) and kept.ignore_values == scene.ignore_values


@pytest.mark.parametrize("side", [5, 16, 64])
def test_a_thumbnail_is_the_mean_over_areas(side):
    """Against a scene whose pixels are drawn so finely that no area cuts one."""
    scene = gappy()
    image, covered = thumbnail(scene, side)
    fine = [np.kron(x, np.ones((side, side))) for x in (*scene.read().astype(float), scene.read_valid())]
    blocks = [x.reshape(side, scene.height, side, scene.width).sum((1, 3)) for x in [f * fine[-1] for f in fine]]
    assert np.array_equal(covered, blocks[-1] > 0)
    assert np.allclose(image, np.stack(blocks[:-1]) / np.where(covered, blocks[-1], 1), rtol=1e-5)


@pytest.mark.parametrize(("view", "alike"), [(8, True), (16, True), (4, False), (12, False)])
def test_twins_averaged_by_their_detail_are_alike(view, alike):
    """What a view can never tell apart, and which views can."""
    twins = twin_scenes(192, 192, 40, seed=0)
    assert twins.detail_px == DETAIL_PX == 8
    scenes = [
        Scene(ArraySource(image.transpose(1, 2, 0)), ArraySource(label), TWIN_CLASSES)
        for image, label in zip(twins.images, twins.labels, strict=True)
    ]
    small = [decimated(scene, view).read() for scene in scenes]
    assert np.array_equal(*small) == alike
    thumbs = [thumbnail(scene, 192 // view)[0] for scene in scenes]
    assert np.array_equal(*thumbs) == alike
    assert np.allclose(thumbs[0], small[0], rtol=1e-6)
