"""Click points in a scene of any size, in a notebook.

The scene is a pyramid of tiles of 256 px: at level l a pixel of a tile is the mean of a square of 2^l px of the scene.
Tiles are read when the view needs them, from the file's overviews where there are some, so that no more of the scene is
read than is looked at. Without a kernel, as on a page of the book, a small picture of the whole scene stands in for the
tiles, and points are saved by download.

==================  ==========================================
click, Enter        a point, at the pointer or at the crosshair
1 to 9              the class
drag, arrows        move the view
wheel, + and -      zoom
u, Ctrl-Z           undo
Delete              remove the point nearest to the crosshair
s                   save
==================  ==========================================
"""

from __future__ import annotations

import base64
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets
from numpy.typing import NDArray
from PIL import Image

from rsseglab.errors import UserError
from rsseglab.penet.growing import MOST_SHARE, choose, windows_around
from rsseglab.penet.sam import MaskSource
from rsseglab.plots import rgb_bands, stretched, thumbnail
from rsseglab.scenes.points import Point, check_points, read_points, write_points
from rsseglab.scenes.scene import Scene, Window
from rsseglab.scenes.views import read_small
from rsseglab.widgets.scripts import script

TILE_PX = 256
PREVIEW_PX = 1024


class PointAnnotator(anywidget.AnyWidget):
    """A scene to click points in; see the module.

    Args:
        scene: with classes; of any size.
        path: the file that is saved to, GeoJSON or CSV; read at once where it exists.
        masks: what proposes a mask of the last click, such as `rsseglab.penet.sam.SegmentAnything`; none is shown if
            not given.
        who: is clicking.

    Attributes:
        points: ``[row, column, class number, who]`` of each point, in px; the browser's own list.

    Raises:
        UserError: the scene has no classes, or the file is of another scene.
    """

    _esm = script("point_annotator")
    _css = Path(__file__).with_name("point_annotator.css")

    size: Any = traitlets.List().tag(sync=True)  # rows and columns
    classes: Any = traitlets.List().tag(sync=True)  # {name, color}
    points: Any = traitlets.List().tag(sync=True)
    current = traitlets.Int(0).tag(sync=True)
    who = traitlets.Unicode().tag(sync=True)
    preview = traitlets.Unicode().tag(sync=True)
    file_name = traitlets.Unicode().tag(sync=True)
    has_masks = traitlets.Bool(False).tag(sync=True)
    said = traitlets.Unicode().tag(sync=True)  # what went wrong, or well, last

    def __init__(
        self, scene: Scene, path: str | Path = "points.geojson", masks: MaskSource | None = None, who: str = ""
    ) -> None:
        if not scene.classes:
            raise UserError(f"scene {scene.name} has no classes to click; give some, as rsseglab.scenes.LabelClass.")
        self.scene, self.path, self.masks = scene, Path(path), masks
        small = thumbnail(scene, PREVIEW_PX)
        self._stretch = _stretch_of(scene)
        super().__init__(
            size=[scene.height, scene.width],
            classes=[{"name": c.name, "color": "#{:02x}{:02x}{:02x}".format(*c.color)} for c in scene.classes],
            who=who,
            preview="data:image/jpeg;base64," + base64.b64encode(_encoded(small, "JPEG")).decode(),
            file_name=self.path.name,
            has_masks=masks is not None,
        )
        if self.path.is_file():
            self.load(self.path)
        self.on_msg(self._answer)

    @property
    def clicked(self) -> list[Point]:
        """The points as `rsseglab.scenes.points` has them."""
        names = [c.name for c in self.scene.classes]
        return [Point(float(row), float(col), names[int(k)], str(who)) for row, col, k, who in self.points]

    def load(self, path: str | Path) -> None:
        """Take the points of a file.

        Raises:
            UserError: as `rsseglab.scenes.points.read_points`.
        """
        numbers = {c.name: k for k, c in enumerate(self.scene.classes)}
        self.points = [[p.row, p.col, numbers[p.name], p.who] for p in read_points(Path(path), self.scene)]

    def save(self, path: str | Path | None = None) -> Path:
        """Write the points.

        Args:
            path: another file than the widget's own.

        Raises:
            UserError: as `rsseglab.scenes.points.write_points`.
        """
        target = Path(path or self.path)
        write_points(target, self.clicked, self.scene)
        return target

    def tile(self, level: int, row: int, col: int) -> NDArray[np.uint8]:
        """A tile of the pyramid in true colour.

        Args:
            level: l, 0 for the scene's own pixels.
            row: of the tile.
            col: likewise.

        Returns:
            Shape (height, width, 3), up to 256 px a side; the last of a row or a column may be smaller.
        """
        step = 2**level
        top, left = row * TILE_PX * step, col * TILE_PX * step
        height = min(TILE_PX, -(-(self.scene.height - top) // step))
        width = min(TILE_PX, -(-(self.scene.width - left) // step))
        pixels, valid = read_small(self.scene, Window(top, left, height * step, width * step), height, width)
        rgb = stretched(pixels[list(rgb_bands(self.scene.bands))].transpose(1, 2, 0), *self._stretch)
        rgb[~valid] = 255
        return rgb

    def mask(self, number: int) -> tuple[Window, NDArray[np.bool_]] | None:
        """The mask of a point, by the widget's source: its window and what it covers there; None if it has none.

        Args:
            number: of the point.
        """
        if self.masks is None:
            return None
        places = np.array([[row, col] for row, col, _, _ in self.points], float)
        kinds = np.array([k for _, _, k, _ in self.points])
        here = places[number : number + 1]
        ((window, _),) = windows_around(here, self.scene.height, self.scene.width, self.masks.window_px)
        local = places - (window.row, window.col)
        inside = ((local >= 0) & (local < (window.height, window.width))).all(1)
        others = local[inside & (kinds != kinds[number])]
        (proposals,) = self.masks.propose(self.scene, window, local[number : number + 1], [others])
        found = choose(proposals, local[number], others, MOST_SHARE * window.height * window.width)
        return None if found is None else (window, found)

    # --- messages of the browser ---

    def _answer(self, _: Any, content: dict[str, Any], buffers: Sequence[bytes]) -> None:
        try:
            getattr(self, f"_on_{content['kind']}")(content)
        except UserError as error:
            self.said = str(error)

    def _on_tile(self, content: dict[str, Any]) -> None:
        level, row, col = (int(content[key]) for key in ("level", "row", "col"))
        picture = _encoded(self.tile(level, row, col), "JPEG")
        self.send({"kind": "tile", "level": level, "row": row, "col": col}, [picture])

    def _on_mask(self, content: dict[str, Any]) -> None:
        number = int(content["number"])
        found = self.mask(number) if 0 <= number < len(self.points) else None
        if found is None:
            self.send({"kind": "mask", "number": number, "box": None})
            return
        window, mask = found
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        cut = mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
        color = self.scene.classes[int(self.points[number][2])].color
        picture = np.zeros((*cut.shape, 4), np.uint8)
        picture[cut] = (*color, 130)
        box = [int(window.row + rows[0]), int(window.col + cols[0]), *map(int, cut.shape)]
        self.send({"kind": "mask", "number": number, "box": box}, [_encoded(picture, "PNG")])

    def _on_save(self, content: dict[str, Any]) -> None:
        self.said = f"{len(self.points)} points are in {self.save()}"

    def _on_load(self, content: dict[str, Any]) -> None:
        ending = ".csv" if str(content["name"]).lower().endswith(".csv") else ".geojson"
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"points{ending}"
            path.write_text(str(content["text"]), encoding="utf-8")
            self.load(path)
        self.said = f"{len(self.points)} points of {content['name']}"

    @traitlets.validate("points")
    def _validate_points(self, proposal: Any) -> Any:
        points = proposal["value"]
        if points:
            names = [c.name for c in self.scene.classes]
            check_points([Point(float(r), float(c), names[int(k)], str(w)) for r, c, k, w in points], self.scene)
        return points


def _stretch_of(scene: Scene) -> tuple[Any, Any]:
    """What of each band becomes black and white: bytes as they are, else the 2nd and 98th percentiles of a few rows."""
    if scene.dtype == np.uint8:
        return 0.0, 255.0
    step = max(1, scene.height // 16)
    bands = list(rgb_bands(scene.bands))
    rows = [scene.read(Window(row, 0, 1, scene.width))[bands] for row in range(0, scene.height, step)]
    low, high = np.percentile(np.concatenate(rows, 1).reshape(len(bands), -1), (2, 98), axis=1)
    return low, high


def _encoded(picture: NDArray[np.uint8], kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(picture).save(out, kind, **({"quality": 88} if kind == "JPEG" else {}))
    return out.getvalue()
