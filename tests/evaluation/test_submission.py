"""What LoveDA's evaluation server takes, and every map that it does not."""

import io
import zipfile

import numpy as np
import pytest
from made import write_raster
from PIL import Image

from rsseglab.cli import main
from rsseglab.errors import UserError
from rsseglab.evaluation import submission
from rsseglab.evaluation.submission import write_loveda_submission
from rsseglab.scenes import Scene
from rsseglab.scenes.manifest import load_manifest
from rsseglab.scenes.raster import ArraySource
from rsseglab.scenes.scene import IGNORE_INDEX, class_values, label_writer

CLASSES = load_manifest("loveda").classes


@pytest.fixture
def few(monkeypatch):
    """A test set of three tiles of 32 px."""
    monkeypatch.setattr(submission, "LOVEDA_TILES", range(4191, 4194))
    monkeypatch.setattr(submission, "LOVEDA_PX", 32)


def write_map(path, seed=0, side=32, classes=CLASSES):
    """As 'rsseglab predict' writes it: label values, "no class" 0."""
    indices = np.random.default_rng(seed).integers(0, 7, (side, side)).astype(np.uint8)
    scene = Scene(ArraySource(np.ones((side, side, 3), np.uint8)), name="Test/Urban/4191")
    with label_writer(path, scene, classes, 0) as writer:
        writer.write(class_values(indices, classes, 0), 0)
    return indices


def test_a_submission_holds_each_tile_as_the_server_wants_it(few, tmp_path, capsys):
    """In folders as predict leaves them; in the zip there are none."""
    maps = tmp_path / "maps"
    written = {n: write_map(maps / f"Test/{area}/{n}.tif", n) for n, area in ((4192, "Urban"), (4191, "Rural"))}
    written[4193] = write_map(tmp_path / "4193.tif", 4193)
    write_raster(tmp_path / "share.tif", np.ones((7, 32, 32), np.float32))
    (maps / "probabilities/Test").mkdir(parents=True)
    (tmp_path / "share.tif").rename(maps / "probabilities/Test/4192.tif")
    out = tmp_path / "new/loveda.zip"
    assert main(["submit", "loveda", str(maps), str(tmp_path / "4193.tif"), "--output", str(out)]) == 0
    assert "3 tiles, for https://www.codabench.org/competitions/13030/" in capsys.readouterr().out
    with zipfile.ZipFile(out) as archive:
        assert archive.namelist() == ["4191.png", "4192.png", "4193.png"]
        assert {(one.date_time[0], one.external_attr >> 16) for one in archive.infolist()} == {(1980, 0o644)}
        for number, indices in written.items():
            image = Image.open(io.BytesIO(archive.read(f"{number}.png")))
            assert (image.format, image.mode) == ("PNG", "L")
            np.testing.assert_array_equal(np.asarray(image), indices)  # 0 to 6, where the label files have 1 to 7
    assert list(out.parent.iterdir()) == [out]  # nothing half-written


def test_the_whole_test_set():
    assert len(submission.LOVEDA_TILES) == 1796 and submission.LOVEDA_PX == 1024
    assert [one.name for one in CLASSES] == [
        "background", "building", "road", "water", "barren", "forest", "agriculture",
    ]  # fmt: skip


def test_the_same_maps_make_the_same_file(few, tmp_path):
    for number in submission.LOVEDA_TILES:
        write_map(tmp_path / f"{number}.tif", number)
    first, second = tmp_path / "a.zip", tmp_path / "b.zip"
    assert write_loveda_submission([tmp_path], first) == write_loveda_submission([tmp_path], second) == 3
    assert first.read_bytes() == second.read_bytes()


def test_missing_tiles_are_told_or_allowed(few, tmp_path):
    write_map(tmp_path / "4192.tif")
    with pytest.raises(UserError, match=r"2 of 3 tiles are missing, 4191 the first; .*--partial"):
        write_loveda_submission([tmp_path], tmp_path / "s.zip")
    assert write_loveda_submission([tmp_path], tmp_path / "s.zip", partial=True) == 1


def test_wrong_maps_leave_no_file(few, tmp_path, capsys):
    out = tmp_path / "s.zip"

    def refused(match, *maps):
        with pytest.raises(UserError, match=match) as error:
            write_loveda_submission(maps, out, partial=True)
        assert "\n" not in str(error.value)
        assert not list(tmp_path.glob("s.zip*"))

    good = tmp_path / "good/4191.tif"
    write_map(good)
    wrong = tmp_path / "wrong/4192.tif"
    write_map(wrong, side=48)
    refused("has 48 x 48 px and 1 bands, a tile 32 x 32", good, wrong)
    write_raster(wrong, np.ones((32, 32), np.uint8))
    refused("does not name LoveDA's classes", good, wrong)
    write_map(wrong, classes=load_manifest("dubai").classes + CLASSES[6:])
    refused("does not name LoveDA's classes", good, wrong)
    write_map(wrong)
    damaged(wrong, 0)
    refused("has no class in 5 px", good, wrong)
    damaged(wrong, 9)
    refused(r"holds the values \[9\]", good, wrong)
    refused("does not exist", tmp_path / "4193.tif")
    refused("d_4191.tif is named as no tile of LoveDA's Test", tmp_path / "d_4191.tif")
    refused("1366.tif is named as no tile", tmp_path / "1366.tif")  # of Train
    refused("tile 4191 is there twice", good, good)
    (tmp_path / "empty").mkdir()
    refused("no map", tmp_path / "empty")
    with pytest.raises(UserError, match=r"give one that ends in \.zip"):
        write_loveda_submission([good], tmp_path / "s.tar")
    assert main(["submit", "isprs", str(good), "--output", str(out)]) == 2
    assert "no server of 'isprs'; choose from loveda" in capsys.readouterr().err


def damaged(path, value):
    """Five pixels of a map get another value."""
    import rasterio

    with rasterio.open(path, "r+") as file:
        pixels = file.read(1)
        pixels[3, :5] = value
        file.write(pixels, 1)
    assert IGNORE_INDEX not in pixels
