import dataclasses

import numpy as np
import pytest
import rasterio
import torch
from made import CLASSES, CRS, make_scene, write_raster
from torch import nn

from rsseglab.errors import UserError
from rsseglab.inference.crops import Cropping
from rsseglab.inference.predict import predict_scene, prediction_nodata, read_normalized
from rsseglab.scenes import LabelClass, Scene, Window
from rsseglab.training.checkpoint import TrainedNetwork


def trained(bands=3, ignore_values=(0,)):
    """A network that looks at single pixels: its answer must not depend on the windows."""
    torch.manual_seed(0)
    names = tuple(f"band_{i}" for i in range(1, bands + 1))
    mean, std = torch.full((bands,), 80.0), torch.full((bands,), 40.0)
    return TrainedNetwork(nn.Conv2d(bands, 3, 1).eval(), names, mean, std, CLASSES, ignore_values, 64, 0.5, "e", "d")


def expected(network, scene):
    image = network.normalize(torch.from_numpy(scene.read().astype(np.float32)))
    with torch.no_grad():
        logits = network.network(image[None])[0]
    return np.array([1, 2, 5], np.uint8)[logits.argmax(0).numpy()], logits.softmax(0).numpy()


@pytest.mark.parametrize("size", [(96, 130), (40, 50), (33, 300)])
@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_writes_the_whole_scene_on_its_grid(tmp_path, size, overlap):
    scene, network = make_scene(tmp_path, "a", *size), trained()
    done = predict_scene(
        network, scene, tmp_path / "p.tif", Cropping(64, overlap), probabilities=tmp_path / "q.tif", progress=False
    )
    values, shares = expected(network, scene)
    with rasterio.open(done.path) as file:
        assert np.array_equal(file.read(1), values)
        assert file.crs == CRS and file.transform == scene.transform and file.nodata == 0
        assert file.tags()["window_px"] == "64" and file.tags()["class_5"] == "road"
    with rasterio.open(done.probabilities) as file:
        assert np.allclose(file.read(), shares, atol=1e-5)
    assert done.seconds > 0


def test_pixels_without_data_get_no_class(tmp_path):
    image = np.full((3, 60, 70), 90, np.uint8)
    image[:, 10:20] = 0
    write_raster(tmp_path / "i.tif", image, nodata=0)
    predict_scene(
        trained(ignore_values=()), Scene(tmp_path / "i.tif"), tmp_path / "p.tif", Cropping(32, 0.5), progress=False,
        probabilities=tmp_path / "q.tif",
    )  # fmt: skip
    with rasterio.open(tmp_path / "p.tif") as file:
        labels = file.read(1)
        assert (
            file.nodata == 255 and (labels[10:20] == 255).all() and (np.delete(labels, range(10, 20), 0) != 255).all()
        )
    with rasterio.open(tmp_path / "q.tif") as file:
        assert np.isnan(file.read()[:, 10:20]).all() and np.isfinite(file.read()[:, :10]).all()


def test_what_the_network_sees_where_there_is_no_data(tmp_path):
    image = np.full((3, 8, 9), 120, np.uint8)
    image[:, 3] = 0
    write_raster(tmp_path / "i.tif", image, nodata=0)
    seen = read_normalized(trained(), Scene(tmp_path / "i.tif"), 2, 6)
    assert seen.shape == (3, 4, 9) and (seen[:, 1] == 0).all() and (seen[:, [0, 2, 3]] == 1).all()


def test_bands_of_other_names_are_refused_and_other_pixels_warned_of(tmp_path):
    image = write_raster(tmp_path / "i.tif", np.ones((3, 8, 8), np.uint8))
    network = dataclasses.replace(trained(), bands=("red", "green", "blue"))
    network.check_fits(Scene(image, bands=["Red", "Green", "Blue"]))
    network.check_fits(Scene(image))  # a file without names is taken at its word
    with pytest.raises(UserError, match="has the bands nir, red, green but the checkpoint was trained on red, green"):
        network.check_fits(Scene(image, bands=["nir", "red", "green"]))
    with pytest.warns(UserWarning, match="pixels of 10 m, the checkpoint was trained on 0.5 m"):
        network.check_fits(Scene(image, gsd_m=10))


@pytest.mark.parametrize(("ignored", "values", "nodata"), [((0,), (1, 2), 0), ((), (0, 1), 255), ((), (0, 255), 254)])
def test_nodata_of_a_prediction_is_no_class(ignored, values, nodata):
    classes = tuple(LabelClass(str(v), v, (0, 0, 0)) for v in values)
    assert prediction_nodata(dataclasses.replace(trained(), classes=classes, ignore_values=ignored)) == nodata


def test_another_number_of_bands_is_refused(tmp_path):
    scene = make_scene(tmp_path, "a", bands=4)
    with pytest.raises(UserError, match="scene a has 4 bands but the checkpoint was trained on 3"):
        predict_scene(trained(), scene, tmp_path / "p.tif", Cropping(64), progress=False)
    assert not (tmp_path / "p.tif").exists()


def test_a_damaged_image_leaves_no_raster(tmp_path):
    draw = np.random.default_rng(0)
    path = write_raster(tmp_path / "i.tif", draw.integers(0, 255, (3, 300, 300), dtype=np.uint8), blockysize=16)
    scene = Scene(path)
    path.write_bytes(path.read_bytes()[:150_000])
    with pytest.raises(UserError, match=r"damaged|not a raster"):
        predict_scene(trained(), scene, tmp_path / "p.tif", Cropping(64), progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["i.tif"]


def test_rows_are_read_once_without_overlap(tmp_path, monkeypatch):
    scene, rows = make_scene(tmp_path, "a", 200, 90), []
    read = Scene.read
    monkeypatch.setattr(Scene, "read", lambda self, window: rows.append(window) or read(self, window))
    predict_scene(trained(), scene, tmp_path / "p.tif", Cropping(64, 0.0), progress=False)
    assert rows == [Window(0, 0, 64, 90), Window(64, 0, 64, 90), Window(128, 0, 64, 90), Window(136, 0, 64, 90)]
