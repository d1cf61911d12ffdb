r"""Point labels: a few clicks in a scene, each with a class, and samplers that click where a dense label tells.

A click at (row, col) lies in the pixel :math:`(\lfloor row \rfloor, \lfloor col \rfloor)`; (0, 0) is the upper left
corner of the scene. Files are

- **GeoJSON**, features of geometry Point with the properties ``class`` and ``who``: longitude and latitude as the
  standard has it (RFC 7946), or another system where the older member ``crs`` names one, as QGIS writes it; in a scene
  without georeference column and row, marked by the member ``"pixel_coordinates": true``.
- **CSV** with the columns ``class``, optionally ``who``, and either ``row`` and ``col`` in px or ``x`` and ``y`` in the
  scene's own coordinate system.

Sources of the samplers' protocols: innermost points, one an object of more than 100 px, painted 3 x 3: Wu et al.,
DBFNet, TIP 2022 (there in crops of 256 px, here in whole scenes); a share of the pixels: Hua et al., FESTA, GRSL 2021
(1 %). CRGNet (Xu, Ghamisi, TIP 2022) has points of four annotators.

Samplers read the label at once and look at it object by object: some 10 bytes a pixel, and 30 more for each pixel of
the box around the largest object.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError
from rasterio.warp import transform as warp
from scipy import ndimage

from rsseglab.errors import UserError
from rsseglab.scenes.raster import Array
from rsseglab.scenes.scene import IGNORE_INDEX, LabelClass, Scene, Window

LONGITUDE_LATITUDE = CRS.from_epsg(4326)
ROUNDING_PX = 1e-4  # of coordinates there and back
CORNERS_TOUCH = np.ones((3, 3), int)  # pixels that meet at a corner are of one object


@dataclass(frozen=True)
class Point:
    """A click.

    Attributes:
        row: px from the scene's upper edge.
        col: px from its left edge.
        name: of the class.
        who: clicked it.
    """

    row: float
    col: float
    name: str
    who: str = ""

    @property
    def pixel(self) -> tuple[int, int]:
        """Row and column of the pixel that it lies in."""
        return int(np.floor(self.row)), int(np.floor(self.col))


def check_points(points: Sequence[Point], scene: Scene) -> None:
    """Whether clicks can be labels of a scene.

    Raises:
        UserError: one lies outside the scene, has a class that the scene has not, or shares its pixel with one of
            another class; or there is none.
    """
    if not points:
        raise UserError(f"scene {scene.name} has no point; click at least one of each class.")
    known = [c.name for c in scene.classes]
    seen: dict[tuple[int, int], str] = {}
    for point in points:
        where = f"point ({point.row:g}, {point.col:g}), row and column,"
        if not np.isfinite([point.row, point.col]).all():
            raise UserError(f"{where} is no place in scene {scene.name}; correct its coordinates.")
        row, col = point.pixel
        if not (0 <= row < scene.height and 0 <= col < scene.width):
            raise UserError(
                f"{where} lies outside scene {scene.name} of {scene.height} x {scene.width} px (rows x columns); "
                "give points of this scene."
            )
        if point.name not in known:
            raise UserError(
                f"{where} is of class '{point.name}', but scene {scene.name} has {', '.join(known)}; correct the name."
            )
        if seen.setdefault((row, col), point.name) != point.name:
            raise UserError(f"{where} is {point.name} and {seen[row, col]}; delete one of the two points.")


class PointLabel:
    """Clicks as a label raster of class values, painted window by window.

    Each click paints a block of pixels with its class. Where blocks of several classes meet, the pixel is ignored; but
    a clicked pixel always has the click's class.

    Args:
        points: of the scene.
        scene: that they lie in.
        block_px: side of a block, odd.

    Raises:
        UserError: as `check_points`; the block's side is not odd.
    """

    def __init__(self, points: Sequence[Point], scene: Scene, block_px: int = 3) -> None:
        check_points(points, scene)
        if block_px < 1 or block_px % 2 == 0:
            raise UserError(f"block_px is {block_px}; a block around a pixel has an odd side, such as 3.")
        value = {c.name: c.value for c in scene.classes}
        self.pixels = np.array([p.pixel for p in points])  # (n, 2)
        self.values = np.array([value[p.name] for p in points], np.uint8)
        self.reach = block_px // 2
        self.height, self.width, self.count = scene.height, scene.width, 1
        self.crs, self.transform, self.dtype = scene.crs, scene.transform, np.dtype(np.uint8)
        self.nodata = unused_value(scene.classes)

    def read(self, window: Window) -> Array:
        """Class values of shape (1, height, width)."""
        label = np.full((window.height, window.width), self.nodata, np.uint8)
        contested = np.zeros(label.shape, bool)
        places = self.pixels - (window.row, window.col)
        near = ((places >= -self.reach) & (places < np.array(label.shape) + self.reach)).all(1)
        for (row, col), value in zip(places[near], self.values[near], strict=True):
            block = tuple(slice(max(0, i - self.reach), max(0, i + self.reach + 1)) for i in (row, col))
            contested[block] |= (label[block] != self.nodata) & (label[block] != value)
            label[block] = value
        label[contested] = self.nodata
        inside = near & ((places >= 0) & (places < label.shape)).all(1)
        label[tuple(places[inside].T)] = self.values[inside]
        return label[None]

    def read_valid(self, window: Window) -> NDArray[np.bool_]:
        """Shape (height, width): True where there is a label."""
        return np.asarray(self.read(window)[0] != self.nodata)


def with_points(scene: Scene, points: Sequence[Point], block_px: int = 3) -> Scene:
    """The scene with clicks for its label.

    Args:
        scene: with or without a label.
        points: of it.
        block_px: side of the block of pixels that a click labels, odd.

    Raises:
        UserError: as `PointLabel`.
    """
    label = PointLabel(points, scene, block_px)
    return Scene(scene._images, label, scene.classes, name=scene.name, bands=scene.bands, gsd_m=scene.gsd_m)


def unused_value(classes: Sequence[LabelClass]) -> int:
    """A value that no class has, for pixels without a label: `IGNORE_INDEX` if it is free."""
    used = {c.value for c in classes}
    values: Iterable[int] = (IGNORE_INDEX, *range(256))
    return next(value for value in values if value not in used)


# --- files ---


def read_points(path: Path, scene: Scene) -> list[Point]:
    """Clicks in a scene, from GeoJSON or CSV; see the module.

    Raises:
        UserError: the file is missing, damaged or of another kind; its coordinate system does not fit the scene; or as
            `check_points`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error}); give a GeoJSON or CSV file.") from error
    points = _from_csv(text, path, scene) if path.suffix.lower() == ".csv" else _from_geojson(text, path, scene)
    check_points(points, scene)
    return points


def _from_csv(text: str, path: Path, scene: Scene) -> list[Point]:
    rows = list(csv.DictReader(text.splitlines()))
    have = set(rows[0]) if rows else set()
    mapped = {"x", "y"} <= have
    if rows and not ("class" in have and (mapped or {"row", "col"} <= have)):
        raise UserError(f"{path} has the columns {', '.join(map(str, have))}; give class, and row and col or x and y.")
    try:
        places = [(float(r["x"]), float(r["y"])) if mapped else (float(r["col"]), float(r["row"])) for r in rows]
    except (TypeError, ValueError) as error:
        raise UserError(f"{path} has a coordinate that is no number ({error}); correct it.") from error
    if mapped:
        places = [_moved(~scene.transform, place) for place in places]
    return [Point(y, x, r["class"], r.get("who") or "") for (x, y), r in zip(places, rows, strict=True)]


def _from_geojson(text: str, path: Path, scene: Scene) -> list[Point]:
    try:
        data = json.loads(text)
        features = data["features"]
        points = [f for f in features if f["geometry"]["type"] == "Point"]
        names = [(str(f["properties"]["class"]), str(f["properties"].get("who") or "")) for f in points]
        places = [(float(x), float(y)) for x, y, *_ in (f["geometry"]["coordinates"] for f in points)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path} is no GeoJSON of points with a property 'class' ({type(error).__name__}: {error}); see the "
            "documentation of rsseglab.scenes.points."
        ) from error
    if len(points) < len(features):
        raise UserError(f"{path} has {len(features) - len(points)} features that are no points; leave them out.")
    if not data.get("pixel_coordinates"):
        places = _to_pixels(places, _crs_of(data, path), path, scene)
    return [Point(y, x, *name) for (x, y), name in zip(places, names, strict=True)]


def _crs_of(data: dict[str, Any], path: Path) -> CRS:
    try:
        named = data["crs"]["properties"]["name"] if data.get("crs") else None
        # The standard's own name for longitude before latitude.
        return CRS.from_user_input(named) if named and not str(named).endswith("CRS84") else LONGITUDE_LATITUDE
    except (CRSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} names a coordinate system that is unknown ({error}); save it anew.") from error


def _to_pixels(places: list[tuple[float, float]], crs: CRS, path: Path, scene: Scene) -> list[tuple[float, float]]:
    if scene.crs is None:
        raise UserError(
            f"{path} is in {crs} but scene {scene.name} has no georeference; give pixels, with the member "
            '"pixel_coordinates": true.'
        )
    if not places:
        return []
    mapped = _warped(crs, scene.crs, places, f"the points of {path}")
    pixels = (_moved(~scene.transform, place) for place in mapped)
    return [(_onto(x, scene.width), _onto(y, scene.height)) for x, y in pixels]


def _onto(place: float, length: int) -> float:
    """A place that rounding has put a hair beside the scene, on its edge."""
    inside = min(max(place, 0.0), float(np.nextafter(length, 0)))
    return inside if abs(inside - place) < ROUNDING_PX else place


def _warped(there: CRS, here: CRS, places: Sequence[tuple[float, float]], what: str) -> list[tuple[float, float]]:
    """Places in another coordinate system.

    Raises:
        UserError: they have none there.
    """
    try:
        xs, ys = warp(there, here, *zip(*places, strict=True))
        found = list(zip(xs, ys, strict=True))
    except Exception as error:  # GDAL's errors have no public class
        found, reason = [], f" ({' '.join(str(error).split())[:100]})"
    else:
        reason = ""
    if not found or not np.isfinite(found).all():
        raise UserError(
            f"{what} can't be brought from {there} to {here}{reason}; name the file's own coordinate system in it, or "
            "give pixels."
        )
    return found


def _moved(transform: Affine, place: tuple[float, float]) -> tuple[float, float]:
    (a, b, c, d, e, f), (x, y) = transform[:6], place
    return a * x + b * y + c, d * x + e * y + f


def write_points(path: Path, points: Sequence[Point], scene: Scene) -> None:
    """Write clicks as GeoJSON, or as CSV of rows and columns where the name ends so.

    Raises:
        UserError: as `check_points`; the file can't be written.
    """
    check_points(points, scene)
    text = _as_csv(points) if path.suffix.lower() == ".csv" else json.dumps(as_geojson(points, scene), indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.rstrip() + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} can't be written ({error}); choose another folder.") from error


def _as_csv(points: Sequence[Point]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", "col", "class", "who"])
    writer.writerows([repr(p.row), repr(p.col), p.name, p.who] for p in points)
    return text.getvalue()


def as_geojson(points: Sequence[Point], scene: Scene) -> dict[str, Any]:
    """Clicks as the object that a GeoJSON file holds; see the module."""
    places = [(p.col, p.row) for p in points]
    if scene.crs and points:
        mapped = [_moved(scene.transform, place) for place in places]
        places = _warped(scene.crs, LONGITUDE_LATITUDE, mapped, f"the points of scene {scene.name}")
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [float(x), float(y)]},
            "properties": {"class": p.name, "who": p.who},
        }
        for p, (x, y) in zip(points, places, strict=True)
    ]
    marked = {} if scene.crs else {"pixel_coordinates": True}
    return {"type": "FeatureCollection", **marked, "features": features}


# --- samplers ---


def innermost_points(scene: Scene, least_px: int = 100) -> list[Point]:
    r"""One click an object, at the pixel that is farthest from its edge.

    .. math:: x_o = \arg\max_{x \in o} \min_{y \notin c} |x - y|

    An object o is a set of connected pixels of a class c, those that meet at a corner included; what lies outside the
    scene is of no class.

    Args:
        scene: with a label, which is read at once.
        least_px: objects of so many px or fewer are not clicked.

    Raises:
        UserError: there is no label, or no object so large.
    """
    label, points = scene.read_label(), []
    for k in _classes_in(label):
        for (row, col), mask in _objects(label == k, least_px):
            distance = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
            r, c = np.unravel_index(int(distance.argmax()), mask.shape)
            points.append(_point_in((row + r, col + c), scene, k))
    return _found(points, scene, f"no object of more than {least_px} px")


def object_points(scene: Scene, seed: int, each: int = 1, least_px: int = 100) -> list[Point]:
    """Clicks at random pixels of each object: what an annotator does who does not look for its middle.

    Args:
        scene: with a label, which is read at once.
        seed: of the draws.
        each: clicks an object.
        least_px: objects of so many px or fewer are not clicked.

    Raises:
        UserError: there is no label, or no object so large.
    """
    label, draw, points = scene.read_label(), _draws(seed), []
    _check_each(each)
    for k in _classes_in(label):
        for (row, col), mask in _objects(label == k, least_px):
            places = np.flatnonzero(mask)
            for place in draw.choice(places, min(each, len(places)), replace=False):
                r, c = np.unravel_index(int(place), mask.shape)
                points.append(_point_in((row + r, col + c), scene, k))
    return _found(points, scene, f"no object of more than {least_px} px")


def class_points(scene: Scene, seed: int, each: int) -> list[Point]:
    """So many clicks a class, at random pixels of it; all its pixels where there are fewer.

    Args:
        scene: with a label, which is read at once.
        seed: of the draws.
        each: clicks a class.

    Raises:
        UserError: there is no label.
    """
    label, draw, points = scene.read_label(), _draws(seed), []
    _check_each(each)
    for k in _classes_in(label):
        places = np.flatnonzero(label == k)
        chosen = draw.choice(places, min(each, len(places)), replace=False)
        points += [_point_in(np.unravel_index(int(place), label.shape), scene, k) for place in np.sort(chosen)]
    return _found(points, scene, "no labelled pixel")


def share_points(scene: Scene, seed: int, share: float) -> list[Point]:
    """A share of the labelled pixels, at random: classes as often as they are large.

    Args:
        scene: with a label, which is read at once.
        seed: of the draws.
        share: above 0 and at most 1.

    Raises:
        UserError: there is no label; the share is none, or so small that it is no pixel.
    """
    if not 0 < share <= 1:
        raise UserError(f"share {share} is no share of the pixels; give more than 0 and at most 1.")
    label, draw = scene.read_label(), _draws(seed)
    places = np.flatnonzero(label != IGNORE_INDEX)
    chosen = np.sort(draw.choice(places, round(share * len(places)), replace=False))
    pixels = [np.unravel_index(int(place), label.shape) for place in chosen]
    points = [_point_in(pixel, scene, int(label[pixel])) for pixel in pixels]
    return _found(points, scene, f"no pixel at a share of {share:g}")


def with_errors(
    points: Sequence[Point],
    scene: Scene,
    seed: int,
    wrong: float = 0.0,
    off_px: float = 0.0,
    among: Sequence[str] = (),
) -> list[Point]:
    """The clicks of an annotator who errs.

    Args:
        points: as they should be.
        scene: that they lie in; a click never leaves it.
        seed: of the draws.
        wrong: share of the clicks that get another class.
        off_px: standard deviation of the distance, in rows and in columns, by which clicks miss.
        among: names of the classes that wrong ones are drawn from; all of the scene's if not given.

    Raises:
        UserError: a number is out of range.
    """
    if not (0 <= wrong <= 1 and 0 <= off_px < np.inf):
        raise UserError(f"{wrong} wrong clicks, {off_px} px off: give a share of 0 to 1, and no negative distance.")
    draw, names = _draws(seed), among or [c.name for c in scene.classes]
    out: dict[tuple[int, int], Point] = {}
    for point in points:
        others = [name for name in names if name != point.name]
        err = draw.random() < wrong and others
        name = str(draw.choice(others)) if err else point.name
        drow, dcol = draw.normal(0, off_px, 2) if off_px else (0.0, 0.0)
        row = float(np.clip(point.row + drow, 0.5, scene.height - 0.5))  # as far as the last pixel's middle
        col = float(np.clip(point.col + dcol, 0.5, scene.width - 0.5))
        moved = Point(row, col, name, point.who) if err or off_px else point
        out.setdefault(moved.pixel, moved)  # of two clicks on one pixel the first stays
    return list(out.values())


def _draws(seed: int) -> np.random.Generator:
    if seed < 0:
        raise UserError(f"seed is {seed}; it must not be negative.")
    return np.random.default_rng(seed)


def _check_each(each: int) -> None:
    if each < 1:
        raise UserError(f"each is {each}; give at least one click.")


def _classes_in(label: NDArray[np.uint8]) -> list[int]:
    return [int(k) for k in np.unique(label) if k != IGNORE_INDEX]


def _objects(mask: NDArray[np.bool_], least_px: int) -> Iterator[tuple[tuple[int, int], NDArray[np.bool_]]]:
    """Objects that are large enough, each cut out: its first row and column, and where it is in there."""
    objects, _ = ndimage.label(mask, CORNERS_TOUCH)
    for number, box in enumerate(ndimage.find_objects(objects), start=1):
        its = objects[box] == number
        if its.sum() > least_px:
            yield (box[0].start, box[1].start), its


def _point_in(pixel: Any, scene: Scene, k: int) -> Point:
    """A click on the middle of a pixel."""
    return Point(float(pixel[0]) + 0.5, float(pixel[1]) + 0.5, scene.classes[k].name, "sampled")


def _found(points: list[Point], scene: Scene, lack: str) -> list[Point]:
    if not points:
        raise UserError(f"scene {scene.name} has {lack}; ask for less.")
    return points
