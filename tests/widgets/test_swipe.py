"""The swipe: its pictures are the scene's, and the browser's arithmetic (in node)."""

import base64
import io
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from made import make_scene
from PIL import Image

from rsseglab.errors import UserError
from rsseglab.plots import WRONG_COLOR, colorize, label_thumbnail
from rsseglab.widgets import Swipe, swipe

SCRIPT = Path(__file__).parents[2] / "rsseglab" / "widgets" / "swipe.js"


def opened(widget, title):
    """A picture as the browser gets it."""
    data = next(p["data"] for p in widget.pictures if p["title"] == title)
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))).convert("RGB"))


def test_scene_label_prediction_and_errors(tmp_path):
    scene = make_scene(tmp_path, height=64, width=80)
    widget = swipe(scene, {"ours": scene.paths[1]})
    assert [p["title"] for p in widget.pictures] == ["scene", "label", "ours", "errors of ours"]
    assert (widget.left, widget.right) == ("scene", "ours")
    np.testing.assert_array_equal(opened(widget, "label"), colorize(label_thumbnail(scene), scene.classes))
    assert not (opened(widget, "errors of ours") == WRONG_COLOR).all(-1).any()  # the label itself has none
    assert {entry["name"] for entry in widget.legend} == {c.name for c in scene.classes} | {"right", "wrong"}


def test_large_scenes_are_thinned(tmp_path):
    scene = make_scene(tmp_path, height=64, width=80)
    assert opened(swipe(scene, {}, max_px=40), "label").shape == (32, 40, 3)


def test_flat_pictures_are_exact_and_photographs_small():
    flat = np.zeros((50, 60, 3), np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (200, 300, 3)).astype(np.uint8)
    widget = Swipe({"a": flat, "b": flat + 7})
    np.testing.assert_array_equal(opened(widget, "b"), flat + 7)
    smooth = np.asarray(Image.fromarray(noise[:10, :10]).resize((300, 200), Image.Resampling.BICUBIC))
    kinds = [p["data"][:16] for p in Swipe({"photograph": smooth, "flat": np.zeros_like(smooth)}).pictures]
    assert kinds == ["data:image/jpeg;", "data:image/png;b"]


@pytest.mark.parametrize(
    ("pictures", "options", "message"),
    [
        ({}, {}, "0 pictures"),
        ({"a": np.zeros((4, 4, 3), np.uint8)}, {}, "give two or more"),
        ({"a": np.zeros((4, 4, 3), np.uint8), "b": np.zeros((4, 5, 3), np.uint8)}, {}, "of 2 shapes"),
        ({k: np.zeros((4, 4, 3), np.uint8) for k in "ab"}, {"right": "c"}, "there is no picture 'c'; there are: a, b"),
    ],
)
def test_what_can_not_be_swiped(pictures, options, message):
    with pytest.raises(UserError, match=message):
        Swipe(pictures, **options)


@pytest.mark.skipif(not shutil.which("node"), reason="node is not here; install Node.js to test the browser's part")
def test_the_browsers_arithmetic():
    script = f"""
    import * as w from {json.dumps(SCRIPT.as_uri())};
    console.log(JSON.stringify([
      w.moved(50, "ArrowLeft"), w.moved(95, "PageUp"), w.moved(3, "Home"), w.moved(3, "End"), w.moved(7, "x"),
      w.placeOf(150, 100, 200), w.placeOf(0, 100, 200), w.placeOf(999, 100, 200),
    ]));
    """
    done = subprocess.run(["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [49, 100, 0, 100, 7, 25, 0, 100]


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def test_a_page_of_its_own_has_everything_and_asks_for_nothing(tmp_path):
    pictures = {"a": np.zeros((4, 4, 3), np.uint8), "</script>": np.ones((4, 4, 3), np.uint8)}
    page = Swipe(pictures, {"water": (0, 114, 178)}).save(tmp_path / "s.html", "a < b").read_text()
    assert "<title>a &lt; b</title>" in page and page.count("</script>") == 1
    assert "http:" not in page and "https:" not in page and "export" not in page


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; install it (Debian: apt install chromium)")
def test_the_page_is_drawn(tmp_path):
    path = Swipe({"a": np.zeros((40, 60, 3), np.uint8), "b": np.full((40, 60, 3), 9, np.uint8)}).save(
        tmp_path / "s.html"
    )
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=2000", "--dump-dom"]
    drawn = subprocess.run([CHROMIUM, *flags, path.as_uri()], capture_output=True, text=True, timeout=120, check=False)
    if drawn.returncode or "<main>" not in drawn.stdout:
        pytest.skip(f"Chromium does not start here: {drawn.stderr[-200:]}")
    assert "Left: a; right: b." in drawn.stdout and 'aria-label="picture on the left"' in drawn.stdout
