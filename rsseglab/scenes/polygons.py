r"""Labels that were drawn in a GIS: polygons or points of any format and coordinate system, on a scene's grid.

A file, or a folder of files, of features with a class each: GeoPackage, GeoJSON, Shapefile, FlatGeobuf. The class is in
a column, or it is the name of the layer: one file (or one layer of a GeoPackage) a class.

A pixel has the class of the polygon that its *centre* lies in, as GDAL has it. Where polygons of several classes hold
a pixel, the smallest of them is on top ("smaller": a pond in a field; of two as large the one that is read later), or
the pixel has no label ("ignore"). Pixels in no polygon have no label, or are of one more class, the rest.

What can be mended is mended and said (`Drawn.notes`): rings that cross themselves, features without shape or class,
features outside of the scene.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pyogrio
import shapely
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import rasterize

from rsseglab.errors import UserError
from rsseglab.scenes.manifest import nearest
from rsseglab.scenes.points import Point, unused_value
from rsseglab.scenes.raster import Array, Window
from rsseglab.scenes.scene import LabelClass, Scene

ENDINGS = (".gpkg", ".geojson", ".json", ".shp", ".fgb")
CONFLICTS = ("smaller", "ignore")
CLASS = "class"  # the column that classes are looked for in, where no other is named
BENDS = 100  # an edge is straight in its own coordinate system: pieces of the longest side, before it is moved


@dataclass(frozen=True)
class Drawn:
    """Features with a class each.

    Attributes:
        frame: columns ``class`` (text) and ``geometry`` (valid, one part each), in one coordinate system.
        kind: "polygons" or "points".
        notes: what was mended or left out, a sentence each.
    """

    frame: gpd.GeoDataFrame
    kind: str
    notes: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        """How many features each class has, classes in alphabetical order."""
        return {str(name): int(n) for name, n in self.frame[CLASS].value_counts().sort_index().items()}

    def in_crs(self, crs: CRS) -> Drawn:
        """The same features in another coordinate system.

        Raises:
            UserError: they have no place there.
        """
        return replace(self, frame=_moved(self.frame, crs, "the labels"))


# --- files ---


def read_drawn(path: Path, crs: CRS, class_column: str | None = None) -> Drawn:
    """Read features and bring them to a coordinate system.

    Args:
        path: a file, or a folder of files (`ENDINGS`).
        crs: the scene's.
        class_column: the column that names a feature's class; when not given it is ``class`` where all layers have
            one, else the layer's name is the class of all its features.

    Raises:
        UserError: there is no such file, layer or column; a layer is empty, unreadable, of several kinds, has no
            coordinate system or no place in the scene's; a layer is there in several formats.
    """
    layers = {name: _read(file, layer) for name, (file, layer) in _layers(path).items()}
    if class_column is None and all(CLASS in frame for frame in layers.values()):
        class_column = CLASS
    notes: list[str] = []
    frames = []
    for name, frame in layers.items():
        its = _named(frame, name, class_column, notes)
        frames.append(_moved(its, crs, f"layer {name}"))
    frame = pd.concat(frames, ignore_index=True)
    kind = _kind(frame, path)
    return Drawn(gpd.GeoDataFrame(_mended(frame, kind, notes), crs=frames[0].crs), kind, tuple(notes))


def _layers(path: Path) -> dict[str, tuple[Path, str]]:
    """From a layer's name to its file and its name there."""
    if not path.exists():
        raise UserError(f"{path} does not exist; give a file or a folder of polygons or points.")
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS)
        if not files:
            raise UserError(f"{path} holds no file of features ({', '.join(ENDINGS)}); give another folder.")
    found: dict[str, tuple[Path, str]] = {}
    for file in files:
        inside = _layers_of(file)
        for layer in inside:
            name = file.stem if len(inside) == 1 else layer
            if name in found:
                raise UserError(f"layer {name} is there twice, in {found[name][0].name} and {file.name}; keep one.")
            found[name] = file, layer
    return found


def _layers_of(file: Path) -> list[str]:
    try:
        layers = [str(name) for name, geometry in pyogrio.list_layers(file) if geometry is not None]
    except Exception as error:  # pyogrio's and GDAL's errors have no common class
        raise _unreadable(file, error) from error
    if not layers:
        raise UserError(f"{file} has no layer with shapes; save the polygons or points anew.")
    return layers


def _read(file: Path, layer: str) -> gpd.GeoDataFrame:
    try:
        frame = pyogrio.read_dataframe(file, layer=layer)
    except Exception as error:
        raise _unreadable(file, error) from error
    what = f"layer {layer} of {file.name}"
    if not len(frame):
        raise UserError(f"{what} is empty; draw something in it, or take it out of the folder.")
    if frame.crs is None:
        hint = " (a Shapefile's is in its .prj)" if file.suffix.lower() == ".shp" else ""
        raise UserError(f"{what} names no coordinate system{hint}; save it anew with the one that it was drawn in.")
    return frame


def _unreadable(file: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:150]
    return UserError(f"{file} can't be read as features ({reason}); save it anew as GeoPackage or GeoJSON.")


def _named(frame: gpd.GeoDataFrame, layer: str, column: str | None, notes: list[str]) -> gpd.GeoDataFrame:
    """Class and shape alone; what lacks one of the two is left out."""
    if column is None:
        names: Sequence[str | None] = [layer] * len(frame)
    elif column in frame and column != frame.geometry.name:
        names = [_name(value) for value in frame[column]]
    else:
        columns = [str(one) for one in frame.columns if one != frame.geometry.name]
        raise UserError(
            f"layer {layer} has no column '{column}'{nearest(column, columns)}; it has {', '.join(columns) or 'none'}."
        )
    named = gpd.GeoDataFrame({CLASS: list(names)}, geometry=frame.geometry.to_numpy(), crs=frame.crs)
    whole = named[CLASS].notna() & named.geometry.notna() & ~named.geometry.is_empty
    if lacking := int((~whole).sum()):
        notes.append(f"{lacking} of {len(named)} features of layer {layer} have no class or no shape: left out")
    if not whole.any():
        raise UserError(f"layer {layer} has no feature with a class and a shape; draw some, or take it out.")
    return named[whole]


def _name(value: Any) -> str | None:
    """A class as text; numbers as people write them."""
    if value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NA:
        return None
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    return text or None


def _moved(frame: gpd.GeoDataFrame, crs: CRS, what: str) -> gpd.GeoDataFrame:
    target = crs.to_wkt()
    try:
        if frame.crs == target:
            return frame
        # What is straight in one system is bent in another: a long edge gets corners on its way.
        west, south, east, north = frame.total_bounds
        longest = max(east - west, north - south)
        bent = frame.set_geometry(frame.geometry.segmentize(longest / BENDS)) if longest else frame
        moved = bent.to_crs(target)
    except Exception as error:
        reason = " ".join(str(error).split())[:100]
        raise UserError(f"{what} can't be brought from {frame.crs} to the scene's {crs} ({reason}).") from error
    if not np.isfinite(moved.total_bounds).all():
        raise UserError(
            f"{what} has no place in the scene's coordinate system {crs}; check that it was drawn in {frame.crs}."
        )
    return moved


def _kind(frame: gpd.GeoDataFrame, path: Path) -> str:
    """What all features are."""
    kinds = frame.geometry.geom_type.str.removeprefix("Multi").value_counts()
    if set(kinds.index) == {"Polygon"}:
        return "polygons"
    if set(kinds.index) == {"Point"}:
        return "points"
    found = ", ".join(f"{n} of {kind}" for kind, n in kinds.items())
    raise UserError(f"{path} mixes kinds of shapes ({found}); give polygons alone, or points alone.")


def _mended(frame: gpd.GeoDataFrame, kind: str, notes: list[str]) -> gpd.GeoDataFrame:
    """Flat and valid, one part a row."""
    flat = frame.set_geometry(shapely.force_2d(frame.geometry.to_numpy()))
    broken = ~flat.geometry.is_valid
    if broken.any():
        notes.append(f"{int(broken.sum())} shapes cross or touch themselves: made valid")
        flat = flat.set_geometry(flat.geometry.make_valid())
    parts = flat.explode(ignore_index=True)
    # What making valid leaves of a spike is a line, which holds no pixel.
    return parts[parts.geometry.geom_type == kind.removesuffix("s").capitalize()].reset_index(drop=True)


# --- on a scene ---


def to_map(transform: Affine, col: Any, row: Any) -> tuple[Any, Any]:
    """Map coordinates x and y of places in px, numbers or arrays."""
    a, b, c, d, e, f = transform[:6]
    return a * col + b * row + c, d * col + e * row + f


def footprint(scene: Scene, window: Window | None = None) -> shapely.Polygon:
    """The outline of a window of a scene (all of it if not given), in its coordinate system."""
    row, col, height, width = window or scene.window
    corners = [(col, row), (col + width, row), (col + width, row + height), (col, row + height)]
    return shapely.Polygon([to_map(scene.transform, *corner) for corner in corners])


def check_georeference(scene: Scene) -> None:
    """Whether a scene knows its place on Earth.

    Raises:
        UserError: it does not.
    """
    where = getattr(scene._images[0], "path", scene.name)
    if scene.crs is None:
        raise UserError(
            f"{where} names no coordinate system, so that no drawn label finds its place; give it one, such as "
            f"'rio edit-info --crs EPSG:32633 {Path(where).name}'."
        )
    if scene.transform == Affine.identity():
        raise UserError(f"{where} does not say where it lies (no geotransform); georeference it first.")


def on_scenes(drawn: Drawn, scenes: Sequence[Scene]) -> list[Drawn]:
    """The features that meet each scene, in its coordinate system; those that meet none are said in the notes.

    Args:
        drawn: in any coordinate system.
        scenes: of any.

    Returns:
        One a scene, which may be without features.

    Raises:
        UserError: no feature meets any scene.
    """
    placed, outside = [], np.ones(len(drawn.frame), bool)
    for scene in scenes:
        there = drawn.in_crs(scene.crs)
        hits = there.frame.geometry.intersects(footprint(scene)).to_numpy()
        outside &= ~hits
        placed.append(replace(there, frame=there.frame[hits].reset_index(drop=True)))
    if outside.all():
        moved = drawn.in_crs(scenes[0].crs).frame.total_bounds
        raise UserError(
            f"no label lies in scene {scenes[0].name}: its {_box(footprint(scenes[0]).bounds)}, theirs "
            f"{_box(moved)} in {scenes[0].crs}; give labels of this place, or correct their coordinate system."
        )
    said = (f"{int(outside.sum())} {drawn.kind} lie outside: left out",) if outside.any() else ()
    return [replace(one, notes=(*drawn.notes, *said)) for one in placed]


def _box(bounds: Sequence[float]) -> str:
    west, south, east, north = (f"{value:.6g}" for value in bounds)
    return f"x is {west} to {east} and y {south} to {north}"


def as_points(drawn: Drawn, scene: Scene) -> list[Point]:
    """Drawn points as clicks of a scene; those on its far edge lie outside.

    Args:
        drawn: points, in the scene's coordinate system.
        scene: that they lie in.
    """
    x, y = drawn.frame.geometry.x.to_numpy(), drawn.frame.geometry.y.to_numpy()
    columns, rows = to_map(~scene.transform, x, y)
    places = zip(rows, columns, drawn.frame[CLASS], strict=True)
    inside = [(r, c, name) for r, c, name in places if 0 <= r < scene.height and 0 <= c < scene.width]
    return [Point(float(row), float(col), str(name), "drawn") for row, col, name in inside]


class PolygonLabel:
    """Polygons as a label raster of class values, painted window by window; see the module.

    Args:
        drawn: polygons in the scene's coordinate system.
        scene: that they lie in.
        classes: of the label; a polygon's class is one of them.
        rest: name of the class of pixels in no polygon; they have no label if not given.
        conflicts: one of `CONFLICTS`.

    Raises:
        UserError: there is no such rule or class.
    """

    def __init__(
        self,
        drawn: Drawn,
        scene: Scene,
        classes: Sequence[LabelClass],
        rest: str | None = None,
        conflicts: str = "smaller",
    ) -> None:
        if conflicts not in CONFLICTS:
            raise UserError(f"there is no rule '{conflicts}' for conflicts; choose {' or '.join(CONFLICTS)}.")
        values = {c.name: c.value for c in classes}
        if unknown := sorted({*drawn.frame[CLASS], *([rest] if rest else [])} - values.keys()):
            raise UserError(f"'{unknown[0]}' is no class of the label; it has {', '.join(values)}.")
        order = np.argsort(
            -shapely.area(drawn.frame.geometry.to_numpy()), kind="stable"
        )  # the smallest is painted last
        self._shapes: NDArray[Any] = drawn.frame.geometry.to_numpy()[order]
        self._values = drawn.frame[CLASS].map(values).to_numpy(dtype=np.int64)[order]
        self._tree = shapely.STRtree(self._shapes)
        self._scene, self._conflicts = scene, conflicts
        self.height, self.width, self.count = scene.height, scene.width, 1
        self.crs, self.transform, self.dtype = scene.crs, scene.transform, np.dtype(np.uint8)
        self.nodata = unused_value(classes)
        self._fill = values[rest] if rest else self.nodata

    def paint(self, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Class values in a window inside the scene, and where polygons of several classes hold a pixel.

        Returns:
            Two arrays of shape (height, width).
        """
        label = np.full((window.height, window.width), self._fill, np.uint8)
        contested = np.zeros(label.shape, bool)
        hits = np.sort(self._tree.query(footprint(self._scene, window), predicate="intersects"))
        if not len(hits):
            return label, contested
        shapes, values = self._shapes[hits], self._values[hits]
        (a, b, _, d, e, _), (c, f) = self.transform[:6], to_map(self.transform, window.col, window.row)
        grid: dict[str, Any] = {"out_shape": label.shape, "transform": Affine(a, b, c, d, e, f)}
        label = rasterize(zip(shapes, values, strict=True), fill=self._fill, dtype=np.uint8, **grid)
        several = np.unique(values)
        if len(several) > 1:
            held = np.zeros(label.shape, np.uint8)
            for value in several:
                held += rasterize(shapes[values == value], fill=0, default_value=1, dtype=np.uint8, **grid)
            contested = held > 1
        if self._conflicts == "ignore":
            label[contested] = self.nodata
        return label, contested

    def read(self, window: Window) -> Array:
        """Class values of shape (1, height, width)."""
        return self.paint(window)[0][None]

    def read_valid(self, window: Window) -> NDArray[np.bool_]:
        """Shape (height, width): True where there is a label."""
        return np.asarray(self.read(window)[0] != self.nodata)


def with_label(scene: Scene, label: Any, classes: Sequence[LabelClass]) -> Scene:
    """The scene with another label.

    Args:
        scene: with or without a label.
        label: such as a `PolygonLabel`, of the scene's size and place; None for none.
        classes: of it.
    """
    return Scene(scene._images, label, classes, name=scene.name, bands=scene.bands, gsd_m=scene.gsd_m)


def label_classes(
    names: Sequence[str], colors: Mapping[str, tuple[int, int, int]], rest: str | None
) -> list[LabelClass]:
    """Classes numbered from 1 in the order of their names, the rest 0.

    Args:
        names: of the drawn classes.
        colors: of all classes.
        rest: name of the class of what is not drawn, if it is one.

    Raises:
        UserError: there are too few or too many, or the rest is drawn as well.
    """
    if rest in names:
        raise UserError(f"'{rest}' is drawn, and the name of what is not drawn as well; choose another --rest.")
    if len(names) + bool(rest) < 2:
        raise UserError(
            f"all labels are of one class ('{names[0]}'); draw what is not {names[0]} too, name the column of classes "
            "(--class-column), or say that all else is another class (--rest background)."
        )
    if len(names) > 254:
        few = ", ".join(names[:5])
        raise UserError(
            f"the labels have {len(names)} classes ({few}, ...), and a label raster holds 254; name another column."
        )
    drawn = [LabelClass(name, value, colors[name]) for value, name in enumerate(names, start=1)]
    return ([LabelClass(rest, 0, colors[rest])] if rest else []) + drawn
