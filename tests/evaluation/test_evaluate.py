"""A prediction on disk against a scene, block by block, and every wrong pair of files."""

import subprocess
import sys

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image

from rsseglab.errors import UserError
from rsseglab.evaluation import (
    Confusion,
    Placement,
    SeamCounter,
    count_labels,
    evaluate_scene,
    pool,
)
from rsseglab.inference.windows import window_starts
from rsseglab.scenes.raster import ArraySource
from rsseglab.scenes.scene import IGNORE_INDEX, LabelClass, Scene, class_values, label_writer

CLASSES = (LabelClass("water", 10, (0, 0, 255)), LabelClass("land", 20, (0, 255, 0)), LabelClass("road", 30, (9, 9, 9)))
HEIGHT, WIDTH = 90, 70
GRID = Affine(0.5, 0, 1000, 0, -0.5, 2000)


@pytest.fixture
def maps():
    """Class indices of a prediction and a label, coarse blobs, with 255 in both."""
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(0, 3, (9, 7)), np.ones((10, 10))).astype(np.uint8)
    prediction = np.where(rng.random(label.shape) < 0.8, label, rng.integers(0, 3, label.shape)).astype(np.uint8)
    label[40:55, 3:20] = IGNORE_INDEX
    prediction[80:, :30] = IGNORE_INDEX
    return prediction, label


def write_scene(folder, label, crs="EPSG:32640", ignore=99, name="scene"):
    image = ArraySource(np.ones((*label.shape, 3), np.uint8), rasterio.CRS.from_user_input(crs), GRID)
    path = folder / f"{name}_label.tif"
    write(path, class_values(label, CLASSES, ignore), crs)
    return Scene(image, path, CLASSES, [ignore], name=name)


def write(path, values, crs="EPSG:32640", transform=GRID, nodata=None, count=1):
    height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=values.dtype, crs=crs,
        transform=transform, nodata=nodata,
    ) as file:  # fmt: skip
        for band in range(1, count + 1):
            file.write(values, band)
    return path


def write_prediction(path, prediction, scene):
    with label_writer(path, scene, CLASSES) as writer:
        writer.write(class_values(prediction, CLASSES, IGNORE_INDEX), 0)
    return path


@pytest.mark.parametrize("block_px", [1024, 32])
def test_scores_from_disk_equal_scores_in_memory(tmp_path, maps, block_px):
    prediction, label = maps
    scene = write_scene(tmp_path, label)
    path = write_prediction(tmp_path / "prediction.tif", prediction, scene)
    where = Placement(window_starts(HEIGHT, 32, 16), window_starts(WIDTH, 32, 16), 32)
    result = evaluate_scene(path, scene, placement=where, seam_distance_px=2, tolerance_px=2, block_px=block_px)

    confusion = Confusion([one.name for one in CLASSES])
    confusion.update(prediction, label)
    np.testing.assert_array_equal(result.confusion.matrix, confusion.matrix)
    assert result.confusion.matrix[:, -1].sum() > 0  # nodata in the prediction did not vanish
    seams = SeamCounter(HEIGHT, WIDTH, where, 2)
    seams.update(prediction, label, 0, 0)
    assert result.seams.seam_error == seams.result().seam_error

    in_memory = evaluate_scene(prediction, scene, tolerance_px=2, block_px=17)
    np.testing.assert_array_equal(in_memory.confusion.matrix, confusion.matrix)
    np.testing.assert_array_equal(in_memory.boundary.predicted, result.boundary.predicted)
    np.testing.assert_array_equal(in_memory.boundary.labelled, result.boundary.labelled)
    assert in_memory.seams is None


def test_the_label_itself_is_perfect(tmp_path, maps):
    scene = write_scene(tmp_path, maps[1])
    metrics = evaluate_scene(tmp_path / "scene_label.tif", scene).metrics()
    assert metrics["mean_iou"] == metrics["overall_accuracy"] == metrics["mean_boundary_f1"] == 1.0
    assert metrics["mean_over"] == ["water", "land", "road"]


def test_a_class_that_the_file_declares_as_nodata_stays_a_class(tmp_path, maps):
    scene = write_scene(tmp_path, maps[1])
    path = write(tmp_path / "p.tif", class_values(maps[1], CLASSES, 99), nodata=10)
    assert evaluate_scene(path, scene).confusion.overall_accuracy() == 1.0


def test_pooled_pixels_weigh_the_same_and_metrics_name_their_classes(tmp_path, maps):
    prediction, label = maps
    scenes = [write_scene(tmp_path, label, name="one"), write_scene(tmp_path, np.full_like(label, 1), name="two")]
    where = Placement(window_starts(HEIGHT, 32, 16), window_starts(WIDTH, 32, 16), 32)
    each = [evaluate_scene(prediction, scene, placement=where, seam_distance_px=2) for scene in scenes]
    pooled = pool(each)
    np.testing.assert_array_equal(pooled.confusion.matrix, each[0].confusion.matrix + each[1].confusion.matrix)
    assert pooled.seams.pixels == pooled.confusion.pixels
    metrics = pooled.metrics(["road"])
    assert metrics["mean_iou"] == metrics["iou"]["road"] == pooled.confusion.iou()[2]
    assert metrics["seam_error"] == pooled.seams.seam_error
    assert pool([each[0], evaluate_scene(prediction, scenes[1])]).seams is None
    with pytest.raises(UserError, match="at least one scene"):
        pool([])


def test_count_labels_feeds_the_majority_baseline(tmp_path, maps):
    prediction, label = maps
    train = [write_scene(tmp_path, label, name="one"), write_scene(tmp_path, np.full_like(label, 1), name="two")]
    counts = count_labels(train, block_px=32)
    expected = [(label == c).sum() + (label.size if c == 1 else 0) for c in range(3)]
    assert counts.tolist() == expected
    result = evaluate_scene(prediction, train[0])
    baseline = evaluate_scene(np.full_like(label, 1), train[0])
    np.testing.assert_array_equal(result.confusion.majority_class(counts).matrix, baseline.confusion.matrix)


def test_wrong_files_are_named_with_cause_and_remedy(tmp_path, maps):
    prediction, label = maps
    scene = write_scene(tmp_path, label)
    values = class_values(prediction, CLASSES, 99)

    def refused(match, path):
        with pytest.raises(UserError, match=match) as error:
            evaluate_scene(path, scene)
        assert "\n" not in str(error.value)

    refused("p.tif has 89 x 70 px but scene scene has 90 x 70", write(tmp_path / "p.tif", values[:-1]))
    refused("the prediction has 90 x 69 px", prediction[:, :-1])
    refused("EPSG:32641 but scene scene is in EPSG:32640", write(tmp_path / "p.tif", values, "EPSG:32641"))
    moved = Affine(GRID.a, 0, GRID.c + 3 * GRID.a, 0, GRID.e, GRID.f + 4 * GRID.e)
    refused("5.0 px beside scene", write(tmp_path / "p.tif", values, transform=moved))
    refused("has 2 bands", write(tmp_path / "p.tif", values, count=2))
    refused(r"prediction .*p.tif holds the values \[77\]", write(tmp_path / "p.tif", np.full_like(values, 77)))
    refused("does not exist", tmp_path / "missing.tif")
    with pytest.raises(UserError, match="block is 0 px"):
        evaluate_scene(prediction, scene, block_px=0)


def test_a_prediction_without_georeference_is_taken_as_it_is(tmp_path, maps):
    scene = write_scene(tmp_path, maps[1])
    values = class_values(maps[1], CLASSES, 99)
    path = tmp_path / "p.png"
    Image.fromarray(values).save(path)
    assert evaluate_scene(path, scene).confusion.overall_accuracy() == 1.0


def test_a_scene_without_any_label(tmp_path, maps):
    prediction, label = maps
    scene = write_scene(tmp_path, np.full_like(label, IGNORE_INDEX))
    with pytest.raises(UserError, match=r"no labelled pixel.*ignore values \[99\].*leave the scene out"):
        evaluate_scene(prediction, scene)
    bare = Scene(ArraySource(np.ones((*label.shape, 3), np.uint8)), classes=CLASSES, name="bare")
    with pytest.raises(UserError, match="no label"):
        evaluate_scene(prediction, bare)


def test_import_pulls_no_torch():
    code = "import sys, rsseglab.evaluation; sys.exit(bool({'torch', 'pandas'} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)
