import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from made import CLASSES, write_raster
from rasterio.transform import from_origin

from rsseglab.errors import UserError
from rsseglab.scenes import IGNORE_INDEX, ArraySource, LabelClass, Scene, Window, class_index, class_values


def whole(scene):
    with rasterio.open(scene._images[0].path) as file:
        return file.read()


def test_a_window_is_the_same_part_of_the_whole(scene):
    window = Window(7, 11, 20, 30)
    assert np.array_equal(scene.read(window), whole(scene)[:, 7:27, 11:41])


@settings(max_examples=60, deadline=None)
@given(st.integers(-40, 120), st.integers(-40, 120), st.integers(1, 60), st.integers(1, 60))
def test_windows_past_the_edge_are_padded_and_ignored(row, col, height, width):
    draw = np.random.default_rng(0)
    image = draw.integers(1, 255, (50, 70, 2), dtype=np.uint8)
    label = draw.choice(np.array([1, 2, 5], np.uint8), (50, 70))
    scene = Scene(ArraySource(image), ArraySource(label), CLASSES)
    window = Window(row, col, height, width)
    pixels, index = scene.read(window), scene.read_label(window)
    for r in range(height):
        for c in range(width):
            y, x = row + r, col + c
            if 0 <= y < 50 and 0 <= x < 70:
                assert (pixels[:, r, c] == image[y, x]).all()
                assert CLASSES[index[r, c]].value == label[y, x]
            else:
                assert (pixels[:, r, c] == 0).all() and index[r, c] == IGNORE_INDEX


def test_label_values_become_indices_and_back(scene):
    index = scene.read_label()
    assert set(np.unique(index)) == {0, 1, 2, IGNORE_INDEX}
    assert (index[:4] == IGNORE_INDEX).all()
    with rasterio.open(scene._label.path) as file:
        assert np.array_equal(class_values(index, CLASSES, 0), file.read(1))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32"])
def test_every_dtype_of_label_gives_the_same_indices(dtype):
    values = np.array([[1, 2], [5, 0]], dtype)
    assert class_index(values, CLASSES, [0], "x").tolist() == [[0, 1], [2, IGNORE_INDEX]]


def test_colour_coded_labels():
    colors = np.array([[(0, 114, 178), (230, 159, 0)], [(0, 158, 115), (0, 0, 0)]], np.uint8)
    classes = [*CLASSES, LabelClass("black", 9, (0, 0, 0))]
    scene = Scene(ArraySource(colors), ArraySource(colors), classes, label_encoding="color")
    assert scene.read_label().tolist() == [[0, 1], [2, 3]]


def test_one_file_a_band_and_their_order(tmp_path):
    draw = np.random.default_rng(0)
    bands = draw.integers(0, 10000, (3, 20, 30)).astype(np.uint16)
    files = [write_raster(tmp_path / f"B{i}.tif", band) for i, band in enumerate(bands)]
    scene = Scene(files, bands=["B0", "B1", "B2"])
    assert scene.dtype == np.uint16 and scene.count == 3 and scene.bands == ("B0", "B1", "B2")
    assert np.array_equal(scene.read(), bands)
    assert np.array_equal(Scene(files[::-1]).read(), bands[::-1])


def test_npy_cube_is_mapped_not_read(tmp_path):
    cube = np.arange(20 * 30 * 7, dtype=np.uint16).reshape(20, 30, 7)
    np.save(tmp_path / "cube.npy", cube)
    scene = Scene(tmp_path / "cube.npy")
    assert isinstance(scene._images[0].array, np.memmap)
    assert np.array_equal(scene.read(Window(3, 4, 5, 6)), cube[3:8, 4:10].transpose(2, 0, 1))


def test_nodata_is_ignored_whatever_its_label(tmp_path):
    image = np.full((3, 10, 10), 7, np.uint16)
    image[:, 2] = 0  # a row without data
    image[0, 5] = 0  # one band only: still data
    label = np.full((10, 10), 1, np.uint8)
    write_raster(tmp_path / "i.tif", image, nodata=0)
    write_raster(tmp_path / "l.tif", label)
    scene = Scene(tmp_path / "i.tif", tmp_path / "l.tif", CLASSES)
    index = scene.read_label()
    assert (index[2] == IGNORE_INDEX).all() and (np.delete(index, 2, axis=0) == 0).all()
    assert not scene.read_valid()[2].any() and scene.read_valid()[5].all()


def test_nodata_given_by_the_caller_and_alpha(tmp_path):
    image = np.full((4, 8, 8), 200, np.uint8)
    image[3] = 255
    image[3, 0] = 0  # transparent row
    write_raster(tmp_path / "rgba.tif", image, photometric="RGB", alpha="yes")
    scene = Scene(tmp_path / "rgba.tif")
    assert scene.count == 3 and not scene.read_valid()[0].any() and scene.read_valid()[1:].all()
    # Four names say that the band marked as alpha is a band (near infrared, say) like the others.
    assert Scene(tmp_path / "rgba.tif", bands=["red", "green", "blue", "nir"]).count == 4
    write_raster(tmp_path / "i.tif", image[:3])
    assert not Scene(tmp_path / "i.tif", nodata=200).read_valid().any()


def test_a_class_that_the_file_calls_nodata_stays_a_class(tmp_path):
    label = np.array([[0, 1], [1, 0]], np.uint8)
    write_raster(tmp_path / "l.tif", label, nodata=0)
    classes = [LabelClass("clear", 0, (0, 0, 0)), LabelClass("cloud", 1, (255, 255, 255))]
    scene = Scene(ArraySource(np.ones((2, 2, 1), np.uint8)), tmp_path / "l.tif", classes)
    assert scene.read_label().tolist() == label.tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_errors_unless_declared(tmp_path, bad):
    image = np.ones((2, 6, 6), np.float32)
    image[1, 3, 4] = bad
    write_raster(tmp_path / "f.tif", image)
    with pytest.raises(
        UserError, match=r"NaN or infinite values in this window, the first in band band_2 at row 3, column 4"
    ):
        Scene(tmp_path / "f.tif").read()
    assert np.array_equal(Scene(tmp_path / "f.tif").read(Window(0, 0, 3, 6)), image[:, :3])  # elsewhere it is fine
    if np.isnan(bad):
        write_raster(tmp_path / "g.tif", image, nodata=np.nan)
        scene = Scene(tmp_path / "g.tif")
        assert not scene.read_valid()[3, 4] and scene.read_valid().sum() == 35
        assert np.isfinite(scene.read()).all()


def test_errors_name_cause_and_remedy(tmp_path, scene):
    image = scene._images[0].path
    with pytest.raises(UserError, match="does not exist"):
        Scene(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("no raster")
    with pytest.raises(UserError, match="is not a raster"):
        Scene(tmp_path / "text.tif")
    write_raster(tmp_path / "small.tif", np.ones((1, 5, 6), np.uint8))
    with pytest.raises(UserError, match="6 x 5 px but scene a_image is 130 x 96 px"):
        Scene(image, tmp_path / "small.tif", CLASSES)
    write_raster(tmp_path / "crs.tif", np.ones((1, 96, 130), np.uint8), crs="EPSG:3857")
    with pytest.raises(UserError, match="is in EPSG:3857 but scene a_image is in EPSG:32633"):
        Scene(image, tmp_path / "crs.tif", CLASSES)
    far = from_origin(5e5 + 10, 4e6, 0.5, 0.5)
    write_raster(tmp_path / "far.tif", np.ones((1, 96, 130), np.uint8), transform=far)
    with pytest.raises(UserError, match=r"lies 20.0 px beside scene a_image"):
        Scene(image, tmp_path / "far.tif", CLASSES)
    with pytest.raises(UserError, match=r"values \[5\], which are no class"):
        Scene(image, scene._label.path, CLASSES[:2], [0]).read_label()
    with pytest.raises(UserError, match="no label"):
        Scene(image).read_label()
    with pytest.raises(UserError, match="3 bands but 2 band names"):
        Scene(image, bands=["a", "b"])


def test_labels_and_arrays_of_the_wrong_kind(tmp_path, scene):
    image = scene._images[0].path
    write_raster(tmp_path / "rgb.tif", np.ones((3, 96, 130), np.uint8))
    with pytest.raises(UserError, match="has 3 bands; a label of class values has one"):
        Scene(image, tmp_path / "rgb.tif", CLASSES)
    with pytest.raises(UserError, match="has 1 bands"):
        Scene(image, scene._label.path, CLASSES, label_encoding="color")
    for name, array in (("words", np.array([["a"]])), ("complex", np.ones((2, 2), complex))):
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(UserError, match=r"is not a .npy array of real numbers"):
            Scene(tmp_path / f"{name}.npy")
    np.savez(tmp_path / "x.npz", a=np.ones((2, 2)))
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(UserError, match=r"is not a .npy array of real numbers"):
        Scene(tmp_path / "x.npy")


def test_a_truncated_file_is_an_error(tmp_path):
    draw = np.random.default_rng(0)
    path = write_raster(tmp_path / "t.tif", draw.integers(0, 255, (3, 300, 300), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(UserError, match=r"damaged|not a raster"):
        Scene(path).read()


def test_a_changed_file_is_read_anew(tmp_path):
    path = write_raster(tmp_path / "x.tif", np.full((1, 5, 5), 1, np.uint8))
    assert Scene(path).read().max() == 1
    write_raster(path, np.full((1, 6, 6), 2, np.uint8))
    assert Scene(path).read().shape == (1, 6, 6) and Scene(path).read().min() == 2
