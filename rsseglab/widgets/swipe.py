"""Swipe between two pictures of one scene: what is left of the handle, and what is right of it.

Pictures are made once, when the widget is, so that it works on a page without a kernel as it does in JupyterLab. Both
sides choose among all pictures; classes are named below, and the handle moves by mouse, finger or arrow keys.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import anywidget
import traitlets
from numpy.typing import NDArray
from PIL import Image

from rsseglab.errors import UserError
from rsseglab.plots import (
    RIGHT_COLOR,
    WRONG_COLOR,
    colorize,
    error_map,
    label_thumbnail,
    prediction_thumbnail,
    thumbnail,
)
from rsseglab.scenes.scene import Scene
from rsseglab.widgets.scripts import script

MAX_PX = 1000  # of a picture's longer side
CSS = Path(__file__).with_name("swipe.css")
#: A page without a kernel: the widget's own script, on a model that lives in the page.
PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>body {{ max-width: 900px; margin: 1em auto; padding: 0 1em; }} {css}</style>
<h1 style="font: 600 18px system-ui">{title}</h1>
<main></main>
<script type="module">
{script}
const state = {state};
const set = (name, value) => (state[name] = value);
const model = {{ get: (name) => state[name], set, save_changes() {{}}, on() {{}} }};
widget.render({{ model, el: document.querySelector("main") }});
</script>
"""


class Swipe(anywidget.AnyWidget):
    """Pictures of one scene, two at a time; see the module.

    Args:
        pictures: title -> picture, uint8 of shape (height, width, 3), all of one shape.
        legend: name -> colour, red, green and blue from 0 to 255.
        left: title of what is left at first; the first if not given.
        right: likewise on the right; the last if not given.
        alt: what the pictures show, for readers who can't see them.

    Attributes:
        left: title of what is left now.
        right: of what is right.
        place: of the handle, percent of the width.

    Raises:
        UserError: there are fewer than two pictures, they differ in shape, or a title is of none.
    """

    _esm = script("swipe")
    _css = CSS

    pictures: Any = traitlets.List().tag(sync=True)  # {title, data}
    legend: Any = traitlets.List().tag(sync=True)  # {name, color}
    left = traitlets.Unicode().tag(sync=True)
    right = traitlets.Unicode().tag(sync=True)
    place = traitlets.Float(50.0, min=0.0, max=100.0).tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        pictures: Mapping[str, NDArray[Any]],
        legend: Mapping[str, tuple[int, int, int]] | None = None,
        left: str | None = None,
        right: str | None = None,
        alt: str = "pictures of one scene",
    ) -> None:
        titles = list(pictures)
        shapes = {tuple(picture.shape) for picture in pictures.values()}
        if len(titles) < 2 or len(shapes) != 1:
            raise UserError(f"{len(titles)} pictures of {len(shapes)} shapes; give two or more of one shape to swipe.")
        for title in (left, right):
            if title is not None and title not in titles:
                raise UserError(f"there is no picture '{title}'; there are: {', '.join(titles)}.")
        super().__init__(
            pictures=[{"title": title, "data": data_uri(picture)} for title, picture in pictures.items()],
            legend=[
                {"name": name, "color": "#{:02x}{:02x}{:02x}".format(*rgb)} for name, rgb in (legend or {}).items()
            ],
            left=left or titles[0],
            right=right or titles[-1],
            alt=alt,
        )

    def save(self, path: str | Path, title: str = "swipe") -> Path:
        """Write a page of its own, which any browser opens without a kernel or a network.

        Args:
            path: of the HTML file.
            title: of the page.
        """
        state = {name: getattr(self, name) for name in ("pictures", "legend", "left", "right", "place", "alt")}
        inline = script("swipe").replace("export default {", "const widget = {").replace("export ", "")
        page = PAGE.format(
            title=escape(title),
            css=CSS.read_text(encoding="utf-8"),
            script=inline,
            state=json.dumps(state).replace("</", "<\\/"),  # no text may end the script
        )
        Path(path).write_text(page, encoding="utf-8")
        return Path(path)


def swipe(scene: Scene, predictions: Mapping[str, Path], max_px: int = MAX_PX) -> Swipe:
    """A scene, its label if it has one, label rasters of it, and where each of them is wrong.

    Args:
        scene: with classes.
        predictions: title -> label raster, as `rsseglab.inference` writes them.
        max_px: of the pictures' longer side; larger scenes are thinned, rows and columns left out evenly.

    Raises:
        UserError: there is neither a label nor a prediction.
    """
    pictures, classes = {"scene": thumbnail(scene, max_px)}, list(scene.classes)
    label = label_thumbnail(scene, max_px) if scene.has_label else None
    if label is not None:
        pictures["label"] = colorize(label, classes)
    for title, path in predictions.items():
        labels = prediction_thumbnail(path, scene, max_px)
        pictures[title] = colorize(labels, classes)
        if label is not None:
            pictures[f"errors of {title}"] = error_map(labels, label)
    legend = {c.name: c.color for c in classes}
    if label is not None and predictions:
        legend |= {"right": RIGHT_COLOR, "wrong": WRONG_COLOR}
    first = next(iter(predictions), "label")
    return Swipe(
        pictures, legend, "scene", first, alt=f"Scene {scene.name}, its label and predictions, to be compared."
    )


def data_uri(picture: NDArray[Any]) -> str:
    """A picture (height, width, 3) of bytes as a data URI: PNG, or JPEG where that is far smaller."""
    kinds = {kind: io.BytesIO() for kind in ("png", "jpeg")}
    for kind, file in kinds.items():
        Image.fromarray(picture).save(file, kind.upper(), **({"quality": 85} if kind == "jpeg" else {"optimize": True}))
    png, jpeg = (file.getvalue() for file in kinds.values())
    kind, data = ("jpeg", jpeg) if len(png) > 3 * len(jpeg) else ("png", png)
    return f"data:image/{kind};base64," + base64.b64encode(data).decode()
