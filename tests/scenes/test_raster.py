import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import rasterio
from click.testing import CliRunner
from made import CLASSES
from rasterio.rio.main import main_group

from rsseglab.errors import UserError
from rsseglab.scenes import RasterWriter, label_writer, probability_writer
from rsseglab.scenes.raster import read_legend


def test_a_label_raster_keeps_grid_colours_names_and_pixels(tmp_path, scene):
    values = np.random.default_rng(0).choice(np.array([0, 1, 2, 5], np.uint8), (scene.height, scene.width))
    with label_writer(tmp_path / "p.tif", scene, CLASSES, nodata=0) as writer:
        writer.write(values[50:], row=50)  # windows in any order
        writer.write(values[:50, 60:], row=0, col=60)
        writer.write(values[:50, :60], row=0)
    with rasterio.open(tmp_path / "p.tif") as file:
        assert np.array_equal(file.read(1), values)
        assert file.crs == scene.crs and file.transform == scene.transform and file.nodata == 0
        assert file.profile["tiled"] and file.profile["compress"] == "deflate"
        assert file.colormap(1)[5][:3] == CLASSES[2].color
    legend, nodata = read_legend(tmp_path / "p.tif")
    assert legend == {c.value: (c.name, c.color) for c in CLASSES} and nodata == 0


def test_probabilities_have_a_band_a_class(tmp_path, scene):
    shares = np.random.default_rng(0).random((3, scene.height, scene.width), dtype=np.float32)
    with probability_writer(tmp_path / "p.tif", scene, CLASSES) as writer:
        writer.write(shares, row=0)
    with rasterio.open(tmp_path / "p.tif") as file:
        assert np.array_equal(file.read(), shares) and file.descriptions == ("water", "land", "road")


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_no_half_written_file_is_left(tmp_path, scene, error):
    (tmp_path / "p.tif").write_text("what was there before")
    with pytest.raises(error), label_writer(tmp_path / "p.tif", scene, CLASSES) as writer:
        writer.write(np.ones((10, scene.width), np.uint8), row=0)
        raise error
    assert (tmp_path / "p.tif").read_text() == "what was there before"
    assert not list(tmp_path.glob("*.part"))


FULL_DISK = """
import resource, signal, sys
import numpy as np
from pathlib import Path
from rsseglab.scenes import RasterWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # then a write past the limit fails, as on a full disk
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
noise = np.random.default_rng(0).integers(0, 255, (1024, 1024), dtype=np.uint8)
try:
    with RasterWriter(Path(sys.argv[1]), 1024, 1024, 1, "uint8") as writer:
        for row in range(0, 1024, 100):
            writer.write(noise[row : row + 100], row)
except ValueError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a system with a limit on file sizes (Linux, macOS)")
@pytest.mark.parametrize("limit", [2_000, 300_000, 1_040_000])
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path, limit):
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / "p.tif"), str(limit)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (
        done.stdout.startswith("UserError") and "cannot be written" in done.stdout and "free some space" in done.stdout
    )
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot be written"),
        RasterWriter(tmp_path / "file" / "p.tif", 8, 8, 1, "uint8"),
    ):
        pass


def test_classes_that_do_not_fit_a_byte_are_refused(tmp_path, scene):
    with pytest.raises(UserError, match=r"class values \[1\]"):
        label_writer(tmp_path / "p.tif", scene, CLASSES, nodata=1)


def test_rio_info_reads_it(tmp_path, scene):
    with label_writer(tmp_path / "p.tif", scene, CLASSES) as writer:
        writer.write(scene.read_label(), row=0)
    done = CliRunner().invoke(main_group, ["info", str(tmp_path / "p.tif")])
    info = json.loads(done.output)
    assert (info["width"], info["height"], info["crs"]) == (130, 96, "EPSG:32633")
