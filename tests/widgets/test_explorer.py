"""The explorer: every setting's picture is the one that was drawn for it, and the browser finds it (in node)."""

import io
import json
import shutil
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from rsseglab.errors import UserError
from rsseglab.widgets import Explorer

SCRIPT = Path(__file__).parents[2] / "rsseglab" / "widgets" / "explorer.js"
KNOBS = {"gray": [0.0, 0.4, 0.8], "shape": {"low": 1, "high": 2}}


def square(gray, shape):
    """A figure whose pixels tell its setting."""
    figure = plt.figure(figsize=(1, shape))
    figure.add_axes((0, 0, 1, 1), xticks=[], yticks=[]).set_facecolor(str(gray))
    return figure


@pytest.fixture(scope="module")
def widget():
    return Explorer(square, KNOBS, {"shape": 2}, "a square of {gray}, {shape}", dpi=40, progress=False)


@pytest.mark.parametrize("gray", [0.0, 0.4, 0.8])
@pytest.mark.parametrize("shape", ["low", "high"])
def test_the_picture_of_a_setting(widget, gray, shape):
    picture = np.asarray(Image.open(io.BytesIO(widget.png(gray=gray, shape=shape))).convert("L"))
    assert abs(int(np.median(picture)) - round(255 * gray)) <= 1
    assert picture.shape[0] > 1.5 * picture.shape[1] if shape == "high" else picture.shape[0] < 1.5 * picture.shape[1]


def test_what_the_browser_is_told(widget):
    assert widget.knobs == [
        {"name": "gray", "values": ["0.0", "0.4", "0.8"], "slider": True},
        {"name": "shape", "values": ["low", "high"], "slider": False},
    ]
    assert widget.chosen == [0, 1] and len(widget.pictures) == 6


def test_no_figure_is_left_open():
    before = plt.get_fignums()
    Explorer(square, KNOBS, {"shape": 2}, "a square of {gray}, {shape}", dpi=40, progress=False)
    assert plt.get_fignums() == before


@pytest.mark.parametrize(
    ("knobs", "start", "message"),
    [
        ({}, {}, "0 settings"),
        ({"a": []}, {}, "0 settings"),
        ({"a": range(30), "b": range(30)}, {}, "900 settings; give 1 to 200"),
        ({"a": [1, 2]}, {"a": 3}, "a has no value 3; choose one of 1, 2"),
    ],
)
def test_what_can_not_be_explored(knobs, start, message):
    with pytest.raises(UserError, match=message):
        Explorer(lambda **_: plt.figure(), knobs, start, progress=False)


@pytest.mark.skipif(not shutil.which("node"), reason="node is not here; install Node.js to test the browser's part")
def test_the_browser_finds_the_same_picture(widget):
    settings = [[i, j] for i in range(3) for j in range(2)]
    script = f"""
    import * as w from {json.dumps(SCRIPT.as_uri())};
    const knobs = {json.dumps(widget.knobs)};
    console.log(JSON.stringify([
      {json.dumps(settings)}.map((chosen) => w.numberOf(knobs, chosen)),
      w.filled({json.dumps(widget.alt)}, knobs, [2, 1]),
    ]));
    """
    done = subprocess.run(["node", "--input-type=module", "-e", script], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [[0, 1, 2, 3, 4, 5], "a square of 0.8, high"]
