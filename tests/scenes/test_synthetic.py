import tracemalloc
import zlib

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st

from rsseglab.errors import UserError
from rsseglab.scenes import synthetic
from rsseglab.scenes.raster import RasterWriter, Window
from rsseglab.scenes.scene import IGNORE_INDEX, Scene
from rsseglab.scenes.synthetic import (
    CLASSES,
    IGNORE_VALUES,
    RIM_PX,
    SCENES,
    ensure_synthetic,
    hash_bits,
    noise,
    render,
    stream_key,
    write_synthetic_scene,
)

# A piece of land with corners of lattice cells in it, on both sides of the origin.
LAND = Window(-100, 300, 400, 300)


@pytest.fixture(scope="module")
def land() -> tuple[np.ndarray, np.ndarray]:
    return render(33, LAND)


def hash_bits_plain(key: int, row: int, col: int) -> int:
    mask = 2**32 - 1
    bits = (row * 0x9E3779B1 + key) & mask
    bits = ((bits ^ (bits >> 15)) * 0x85EBCA6B) & mask
    bits ^= (col * 0xC2B2AE35) & mask
    bits ^= bits >> 16
    bits = (bits * 0x85EBCA6B) & mask
    bits ^= bits >> 13
    bits = (bits * 0xC2B2AE35) & mask
    return bits ^ (bits >> 16)


def noise_plain(row: int, col: int, period_px: float, key: int) -> float:
    """The sum over the whole neighbourhood, one lattice point at a time."""

    def b3(x: float) -> float:
        x = abs(x)
        if x < 1:
            return 2 / 3 - x**2 + x**3 / 2
        return max(2 - x, 0) ** 3 / 6

    y, x = (row + 0.5) / period_px, (col + 0.5) / period_px
    total = 0.0
    for i in range(int(np.floor(y)) - 3, int(np.floor(y)) + 5):
        for j in range(int(np.floor(x)) - 3, int(np.floor(x)) + 5):
            value = hash_bits_plain(key, i, j) * 2.0**-31 - 1
            total += value * b3(y - i) * b3(x - j)
    return total * 3**0.5 * 315 / 151


@given(st.integers(0, 2**32 - 1), st.integers(-(2**31), 2**31 - 1), st.integers(-(2**31), 2**31 - 1))
def test_the_hash_is_the_same_in_plain_integers(key: int, row: int, col: int) -> None:
    assert int(hash_bits(key, np.array([row]), np.array([col]))[0]) == hash_bits_plain(key, row, col)


@settings(max_examples=25, deadline=None)
@given(st.integers(-3000, 3000), st.integers(-3000, 3000), st.floats(2.5, 900))
def test_noise_is_a_sum_of_splines(row: int, col: int, period_px: float) -> None:
    field = noise(Window(row, col, 3, 2), period_px, 77)
    expected = [[noise_plain(row + i, col + j, period_px, 77) for j in range(2)] for i in range(3)]
    np.testing.assert_allclose(field, expected, atol=2e-5)


def test_noise_has_mean_zero_and_variance_one_and_fields_are_independent() -> None:
    window = Window(0, 0, 1000, 1000)
    one, other = (noise(window, 7.3, stream_key(3, name)) for name in ("one", "other"))
    assert abs(one.mean()) < 0.02
    assert abs(one.var() - 1) < 0.03
    assert abs((one * other).mean()) < 0.02


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_any_window_is_a_piece_of_the_whole(land: tuple[np.ndarray, np.ndarray], data: st.DataObject) -> None:
    assert len(np.unique(land[1])) == len(CLASSES)
    row, col = data.draw(st.integers(0, LAND.height - 1)), data.draw(st.integers(0, LAND.width - 1))
    height = data.draw(st.integers(1, LAND.height - row))
    width = data.draw(st.integers(1, LAND.width - col))
    pixels, values = render(33, Window(LAND.row + row, LAND.col + col, height, width))
    np.testing.assert_array_equal(pixels, land[0][:, row : row + height, col : col + width])
    np.testing.assert_array_equal(values, land[1][row : row + height, col : col + width])


def test_the_scene_does_not_depend_on_the_block_height(tmp_path, monkeypatch) -> None:
    scenes = []
    for block_px, tile_px in [(256, 1024), (37, 101), (1000, 64)]:
        monkeypatch.setattr(synthetic, "_TILE_PX", tile_px)
        paths = write_synthetic_scene(tmp_path / str(block_px), "a", 301, 260, 3, block_px=block_px)
        scenes.append(Scene(*paths, CLASSES, IGNORE_VALUES))
    for scene in scenes[1:]:
        np.testing.assert_array_equal(scene.read(), scenes[0].read())
        np.testing.assert_array_equal(scene.read_label(), scenes[0].read_label())


def test_the_files_are_a_georeferenced_scene(tmp_path) -> None:
    image, label = write_synthetic_scene(tmp_path, "a", 300, 270, 9)
    assert (image.name, label.name) == ("a_image.tif", "a_label.tif")
    pixels, values = render(9, Window(0, 0, 300, 270))
    scene = Scene(image, label, CLASSES, IGNORE_VALUES)
    np.testing.assert_array_equal(scene.read(), pixels)
    assert scene.read_valid().all()
    index = scene.read_label()
    inner = (slice(RIM_PX, -RIM_PX), slice(RIM_PX, -RIM_PX))
    np.testing.assert_array_equal(index[inner], values[inner] - 1)
    index[inner] = IGNORE_INDEX
    assert (index == IGNORE_INDEX).all()
    for path in (image, label):
        with rasterio.open(path) as dataset:
            assert dataset.crs.to_epsg() == 32633
            assert dataset.res == (0.5, 0.5)
            assert dataset.profile["tiled"] and dataset.profile["compress"] == "deflate"
    with rasterio.open(label) as dataset:
        assert dataset.colormap(1)[CLASSES[0].value][:3] == CLASSES[0].color
        assert dataset.tags()["class_3"] == "building"


def test_a_larger_scene_begins_with_the_smaller_one(tmp_path) -> None:
    small, _ = write_synthetic_scene(tmp_path, "small", 100, 90, 4)
    large, _ = write_synthetic_scene(tmp_path, "large", 130, 150, 4)
    np.testing.assert_array_equal(Scene(large).read(Window(0, 0, 100, 90)), Scene(small).read())


def test_memory_does_not_grow_with_the_height(tmp_path) -> None:
    peaks = []
    for height in (512, 2048):
        tracemalloc.start()
        write_synthetic_scene(tmp_path, "a", height, 128, 1, block_px=64)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_every_class_has_a_share_in_most_seeds() -> None:
    shares = []
    for seed in range(100, 112):
        _, values = render(seed, Window(0, 0, 1024, 1024))
        shares.append(np.bincount(values.ravel(), minlength=8)[1:] / values.size)
    share = np.array(shares)
    np.testing.assert_allclose(share.sum(axis=1), 1)
    assert (np.median(share, axis=0) > 0.02).all(), share.round(3)
    assert (share.min(axis=1) > 0.005).sum() >= 9, share.round(3)
    assert np.median(share.max(axis=1)) < 0.5


def test_colours_overlap_between_classes_but_tell_something(land) -> None:
    # The nearest class mean labels a pixel better than the largest class does, and far from well.
    pixels, values = render(SCENES["train_1"][2], Window(0, 0, 1024, 1024))
    pixels, values = pixels[:, ::4, ::4].reshape(3, -1).T.astype(float), values[::4, ::4].ravel()
    means = np.stack([pixels[values == c.value].mean(axis=0) for c in CLASSES])
    guess = ((pixels[:, None] - means) ** 2).sum(axis=2).argmin(axis=1) + 1
    largest = np.bincount(values).max() / values.size
    assert largest + 0.1 < (guess == values).mean() < 0.8


def test_buildings_cast_shadows_to_the_south_east() -> None:
    stands = np.zeros((20, 20), np.uint8)
    stands[5:8, 5:8] = 4
    dark = synthetic._shadow(stands)
    assert dark[8:11, 9].all()
    assert not dark[:5].any() and not dark[:, :5].any() and not dark[5:8, 5:8].any() and not dark[12:].any()


def test_the_land_of_a_seed_stays_what_it_is() -> None:
    # The default data set is written once and kept: who changes the land raises GENERATOR as well.
    pixels, values = render(6, Window(500, 500, 64, 64))
    assert (zlib.crc32(pixels.tobytes()), zlib.crc32(values.tobytes())) == (3955554020, 203882173)


def test_seeds_give_different_lands() -> None:
    window = Window(0, 0, 64, 64)
    images = [render(seed, window)[0] for seed in range(6)]
    assert all((images[i] != images[j]).mean() > 0.5 for i in range(6) for j in range(i))


def test_bad_sizes_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="positive height and width"):
        write_synthetic_scene(tmp_path, "a", 0, 10, 1)


def test_a_failure_leaves_neither_file(tmp_path, monkeypatch) -> None:
    write, calls = RasterWriter.write, []

    def fail_later(self: RasterWriter, pixels: np.ndarray, row: int, col: int = 0) -> None:
        calls.append(row)
        if len(calls) > 3:
            raise KeyboardInterrupt
        write(self, pixels, row, col)

    monkeypatch.setattr(RasterWriter, "write", fail_later)
    with pytest.raises(KeyboardInterrupt):
        write_synthetic_scene(tmp_path, "a", 100, 40, 1, block_px=20)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_set(monkeypatch) -> dict[str, tuple[int, int, int]]:
    small = {name: (40 + k, 50 - k, k) for k, name in enumerate(SCENES)}
    monkeypatch.setattr(synthetic, "SCENES", small)
    return small


def test_ensure_writes_what_is_missing_and_only_that(tmp_path, small_set) -> None:
    root = tmp_path / "not" / "yet"
    ensure_synthetic(root)
    names = sorted(p.name for p in root.iterdir())
    assert names == sorted(f"{n}_{part}.tif" for n in SCENES for part in ("image", "label"))
    for name, (height, width, _) in small_set.items():
        scene = Scene(root / f"{name}_image.tif", root / f"{name}_label.tif", CLASSES, IGNORE_VALUES)
        assert (scene.height, scene.width) == (height, width)
    stamps = {p.name: p.stat().st_mtime_ns for p in root.iterdir()}
    (root / "val_1_label.tif").unlink()
    ensure_synthetic(root)
    changed = {p.name for p in root.iterdir() if p.stat().st_mtime_ns != stamps[p.name]}
    assert changed == {"val_1_image.tif", "val_1_label.tif"}


def test_ensure_writes_anew_what_an_older_generator_wrote(tmp_path, small_set, monkeypatch) -> None:
    monkeypatch.setattr("rsseglab.scenes.synthetic.GENERATOR", 0)
    ensure_synthetic(tmp_path)
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    monkeypatch.undo()
    monkeypatch.setattr("rsseglab.scenes.synthetic.SCENES", small_set)
    ensure_synthetic(tmp_path)
    assert all(p.stat().st_mtime_ns != before[p.name] for p in tmp_path.iterdir())


def test_ensure_says_where_it_cannot_write(tmp_path, small_set) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written to"):
        ensure_synthetic(tmp_path / "file" / "set")


def test_the_default_scenes_differ_in_size_and_seed() -> None:
    assert len({seed for _, _, seed in SCENES.values()}) == len(SCENES)
    assert len({size[:2] for size in SCENES.values()}) > 3
    assert any(h % 2 and w % 2 for h, w, _ in SCENES.values())
    assert {name.split("_")[0] for name in SCENES} == {"train", "val", "test"}
