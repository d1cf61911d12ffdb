"""The point annotator: what the kernel answers, and the browser's arithmetic (in node)."""

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from affine import Affine
from PIL import Image

from rsseglab.errors import UserError
from rsseglab.penet.sam import Discs
from rsseglab.scenes import ArraySource, LabelClass, Scene
from rsseglab.scenes.points import Point, read_points, write_points
from rsseglab.widgets import PointAnnotator

CLASSES = [LabelClass("water", 1, (0, 114, 178)), LabelClass("land", 2, (230, 159, 0))]
SCRIPT = Path(__file__).parents[2] / "rsseglab" / "widgets" / "point_annotator.js"


def scene_of(height=600, width=900, dtype=np.uint8, **where):
    draw = np.random.default_rng(0)
    coarse = draw.integers(0, 255, (height // 50 + 1, width // 50 + 1, 3))
    image = np.kron(coarse, np.ones((50, 50, 1), int))[:height, :width]
    return Scene(
        ArraySource((image * (1 if dtype == np.uint8 else 40)).astype(dtype), **where), None, CLASSES, name="s"
    )


@pytest.fixture
def widget(tmp_path, monkeypatch):
    """With what it sends kept aside."""
    sent = []
    monkeypatch.setattr(PointAnnotator, "send", lambda self, content, buffers=None: sent.append((content, buffers)))
    made = PointAnnotator(scene_of(), tmp_path / "points.geojson", who="Ann")
    made.sent = sent
    return made


def test_the_preview_is_the_whole_scene(widget):
    head, _, data = widget.preview.partition(",")
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    assert head == "data:image/jpeg;base64" and picture.shape == (600, 900, 3)
    assert widget.size == [600, 900] and widget.classes[0] == {"name": "water", "color": "#0072b2"}


@pytest.mark.parametrize("level", [0, 1, 2])
def test_tiles_are_the_scene_at_their_level(widget, level):
    image, step = widget.scene.read().astype(float), 2**level
    rows, cols = -(-600 // (256 * step)), -(-900 // (256 * step))
    for r in range(rows):
        for c in range(cols):
            tile = widget.tile(level, r, c)
            part = image[:, r * 256 * step : (r + 1) * 256 * step, c * 256 * step : (c + 1) * 256 * step]
            tall, wide = part.shape[1] // step, part.shape[2] // step
            means = part[:, : tall * step, : wide * step].reshape(3, tall, step, wide, step).mean((2, 4))
            assert tile.shape == (-(-part.shape[1] // step), -(-part.shape[2] // step), 3)
            assert np.abs(tile[:tall, :wide].transpose(2, 0, 1) - means).max() <= 1


def test_no_more_of_the_scene_is_read_than_is_looked_at(widget, monkeypatch):
    asked = []
    source = widget.scene._images[0]
    monkeypatch.setattr(source, "read", lambda window, read=source.read: asked.append(window) or read(window))
    widget.tile(0, 1, 2)
    assert sum(w.height * w.width for w in asked) <= 256 * 256


def test_other_numbers_than_bytes_are_stretched_alike_in_all_tiles(tmp_path):
    widget = PointAnnotator(scene_of(dtype=np.uint16), tmp_path / "p.geojson")
    tiles = [widget.tile(0, r, c) for r in range(3) for c in range(4)]
    assert min(t.min() for t in tiles) == 0 and max(t.max() for t in tiles) == 255
    pixel = widget.scene.read()[:, 10, 10], widget.tile(0, 0, 0)[10, 10], widget.tile(1, 0, 0)[5, 5]
    assert np.abs(pixel[1].astype(int) - pixel[2]).max() <= 1


def test_messages_are_answered(widget):
    widget._answer(None, {"kind": "tile", "level": 1, "row": 0, "col": 1}, [])
    (content, buffers), *_ = widget.sent
    assert content == {"kind": "tile", "level": 1, "row": 0, "col": 1}
    assert Image.open(io.BytesIO(buffers[0])).size == (194, 256)
    widget.points = [[10.5, 20.5, 0, "Ann"], [300.0, 450.0, 1, "Ann"]]
    widget._answer(None, {"kind": "save"}, [])
    assert "2 points are in" in widget.said
    assert read_points(widget.path, widget.scene) == widget.clicked == [
        Point(10.5, 20.5, "water", "Ann"), Point(300.0, 450.0, "land", "Ann"),
    ]  # fmt: skip


def test_files_are_loaded_and_what_is_none_is_said(widget, tmp_path):
    write_points(tmp_path / "other.csv", [Point(5, 6, "land")], widget.scene)
    widget._answer(None, {"kind": "load", "name": "other.csv", "text": (tmp_path / "other.csv").read_text()}, [])
    assert widget.points == [[5.0, 6.0, 1, ""]] and "1 points of other.csv" in widget.said
    bad = json.dumps({"pixel_coordinates": True, "features": []})
    widget._answer(None, {"kind": "load", "name": "bad.geojson", "text": bad}, [])
    assert "has no point" in widget.said and widget.points == [[5.0, 6.0, 1, ""]]
    widget.save()
    assert PointAnnotator(widget.scene, widget.path).points == widget.points


def test_a_georeferenced_file_is_in_longitude_and_latitude(tmp_path):
    scene = scene_of(crs="EPSG:32633", transform=Affine(0.5, 0, 5e5, 0, -0.5, 4e6))
    widget = PointAnnotator(scene, tmp_path / "p.geojson")
    widget.points = [[100.0, 200.0, 1, ""]]
    widget.save()
    x, y = json.loads((tmp_path / "p.geojson").read_text())["features"][0]["geometry"]["coordinates"]
    assert 14 < x < 16 and 36 < y < 37


def test_the_mask_of_the_last_click_is_shown(tmp_path, monkeypatch):
    sent = []
    monkeypatch.setattr(PointAnnotator, "send", lambda self, content, buffers=None: sent.append((content, buffers)))
    widget = PointAnnotator(scene_of(), tmp_path / "p.geojson", masks=Discs(10))
    widget.points = [[300.5, 450.5, 0, ""]]
    widget._answer(None, {"kind": "mask", "number": 0}, [])
    content, buffers = sent[-1]
    assert content["box"] == [290, 440, 21, 21]
    picture = np.asarray(Image.open(io.BytesIO(buffers[0])))
    assert tuple(picture[10, 10]) == (0, 114, 178, 130) and picture[0, 0, 3] == 0
    widget.points = [*widget.points, [302.5, 452.5, 1, ""]]  # on the other's object
    widget._answer(None, {"kind": "mask", "number": 1}, [])
    assert sent[-1][0]["box"][2] < 21  # it ends half way to the other
    widget.masks.propose = lambda *args: [[]]
    widget._answer(None, {"kind": "mask", "number": 1}, [])
    assert sent[-1][0]["box"] is None
    widget._answer(None, {"kind": "mask", "number": 7}, [])
    assert sent[-1][0]["box"] is None


def test_what_can_not_be_is_refused(widget, tmp_path):
    with pytest.raises(UserError, match="lies outside"):
        widget.points = [[700, 3, 0, ""]]
    with pytest.raises(UserError, match="has no classes"):
        PointAnnotator(Scene(ArraySource(np.zeros((9, 9, 3), np.uint8)), name="bare"))


@pytest.mark.skipif(not shutil.which("node"), reason="node is not here; install Node.js to test the browser's part")
def test_the_browsers_arithmetic():
    checks = """
    import * as w from %s;
    const same = (a, b, what) => {
      const [is, wanted] = [JSON.stringify(a), JSON.stringify(b)];
      if (is !== wanted) throw new Error(`${what}: ${is}, not ${wanted}`);
    };
    const size = [600, 900], view = { row: 300, col: 450, scale: 0.5 };
    same(w.levelOf(1, size), 0, "level");
    same(w.levelOf(0.5, size), 1, "level");
    same(w.levelOf(0.3, size), 1, "level");
    same(w.levelOf(0.001, size), 2, "level");
    same(w.levelOf(8, size), 0, "level");
    same(w.tilesIn(view, 1, 450, 300, size), [[0, 0], [0, 1], [1, 0], [1, 1]], "tiles");
    same(w.tilesIn({ row: 10, col: 10, scale: 4 }, 0, 400, 300, size), [[0, 0]], "tiles");
    same(w.tilesIn({ row: -9999, col: 0, scale: 1 }, 0, 400, 300, size), [], "tiles");
    const [row, col] = w.toScene(10, 20, view, 450, 300);
    same(w.toScreen(row, col, view, 450, 300), [10, 20], "there and back");
    const near = w.zoomed(view, 4, 10, 20, 450, 300);
    same(near.scale, 2, "zoom");
    same(w.toScreen(row, col, near, 450, 300), [10, 20], "zoom keeps its place");
    const classes = [{ name: "water" }, { name: "land" }];
    const one = w.added([], 3.2, 4.7, 1, "Ann", size, classes).points;
    same(one, [[3.2, 4.7, 1, "Ann"]], "add");
    same(w.added(one, 3.9, 4.1, 0, "", size, classes).points, undefined, "a pixel twice");
    same(w.added(one, 600, 4, 0, "", size, classes).points, undefined, "outside");
    same(w.nearest([...one, [50, 50, 0, ""]], 40, 40), 1, "nearest");
    same(w.nearest([], 0, 0), -1, "nearest");
    same(w.fromGeoJSON(w.asGeoJSON(one, classes), classes).points, one, "file");
    for (const bad of ["{", '{"pixel_coordinates": true}', '{"features": []}'])
      same(w.fromGeoJSON(bad, classes).points, undefined, "bad file");
    console.log(w.asGeoJSON(one, classes));
    """
    script = checks % json.dumps(SCRIPT.as_uri())
    done = subprocess.run(
        ["node", "--input-type=module", "-e", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["pixel_coordinates"] is True and data["features"][0]["geometry"]["coordinates"] == [4.7, 3.2]


@pytest.mark.skipif(not shutil.which("node"), reason="node is not here; install Node.js to test the browser's part")
def test_a_file_of_the_browser_is_read(tmp_path):
    script = f"""
    import * as w from {json.dumps(SCRIPT.as_uri())};
    console.log(w.asGeoJSON([[3.25, 4.75, 1, "Ann"]], [{{ name: "water" }}, {{ name: "land" }}]));
    """
    done = subprocess.run(["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=True)
    (tmp_path / "p.geojson").write_text(done.stdout)
    assert read_points(tmp_path / "p.geojson", scene_of()) == [Point(3.25, 4.75, "land", "Ann")]
    there = scene_of(crs="EPSG:32633", transform=Affine(0.5, 0, 5e5, 0, -0.5, 4e6))
    assert read_points(tmp_path / "p.geojson", there) == [Point(3.25, 4.75, "land", "Ann")]
