"""One's own scenes with labels drawn in a GIS, made ready to train on: burnt, split, and written down as a manifest.

All other commands then work on the folder: ``rsseglab train --data FOLDER/scene.toml``. It holds, beside the manifest,
``scenes/NAME_image.vrt`` (a pointer to the raster that was given, of any size) and ``scenes/NAME_label.tif``.
"""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import geopandas as gpd
import numpy as np
import rasterio.shutil
from rasterio.errors import RasterioError
from tqdm.auto import tqdm

from rsseglab.errors import UserError
from rsseglab.evaluation import count_labels
from rsseglab.inference.gis import area_m2
from rsseglab.plots import OKABE_ITO
from rsseglab.scenes.manifest import Manifest, Part, load_manifest
from rsseglab.scenes.points import Point, PointLabel, read_points
from rsseglab.scenes.polygons import (
    CLASS,
    Drawn,
    PolygonLabel,
    as_points,
    check_georeference,
    footprint,
    label_classes,
    on_scenes,
    read_drawn,
    to_map,
    with_label,
)
from rsseglab.scenes.raster import BLOCK_PX, Window
from rsseglab.scenes.scene import IGNORE_INDEX, LabelClass, Scene, class_values, label_writer
from rsseglab.scenes.split import Split, split_scenes
from rsseglab.scenes.views import BACKGROUND


@dataclass(frozen=True)
class Prepared:
    """Scenes with labels, ready to train on.

    Attributes:
        manifest: of the scenes, ``scene.toml``; its splits are train, val and map (the whole scenes).
        scenes: the whole scenes.
        split: parts of them to train on and to validate on.
        crop_px: side of the crops that they were split for.
        drawn: how many polygons or points each class has.
        clicks: of each scene by its name, where labels are points; empty where they are polygons.
        notes: what was mended, left out or can't be done, a sentence each.
    """

    manifest: Manifest
    scenes: tuple[Scene, ...]
    split: Split
    crop_px: int
    drawn: Mapping[str, int]
    clicks: Mapping[str, Sequence[Point]]
    notes: tuple[str, ...]


def prepare(
    images: Sequence[Path],
    labels: Path,
    out: Path,
    *,
    class_column: str | None = None,
    rest: str | None = None,
    conflicts: str = "smaller",
    bands: Sequence[str] = (),
    crop_px: int | None = None,
    val_share: float = 0.25,
) -> Prepared:
    """Burn labels on the grid of scenes, split these, and write the manifest.

    Args:
        images: the scene's raster, or several scenes'.
        labels: file or folder of polygons or points, see `rsseglab.scenes.polygons`; or a CSV of points.
        out: the folder to write to.
        class_column: see `rsseglab.scenes.polygons.read_drawn`.
        rest: name of the class of pixels in no polygon; they are ignored if not given.
        conflicts: see `rsseglab.scenes.polygons.PolygonLabel`.
        bands: their names; the file's if not given.
        crop_px: side of a crop; 256, or less in a small scene, if not given.
        val_share: of the labels that is for validation.

    Raises:
        UserError: scenes or labels are wrong, or the disk is full.
    """
    if crop_px is not None and (crop_px < 32 or crop_px % 32):
        raise UserError(f"a crop of {crop_px} px is no crop; give a multiple of 32, such as 256.")
    scenes, notes = _open_scenes(images, bands, out), []
    crop_px = crop_px or default_crop_px(scenes)
    placed, are_points = _placed(labels, scenes, class_column)
    if are_points and rest:
        raise UserError("points say nothing of what lies between them; leave --rest out, or click it too.")
    names = sorted({str(name) for its in placed for name in its.frame[CLASS]})
    notes += [*placed[0].notes, *_alike(names), *filter(None, map(_oblong, scenes))]
    classes = label_classes(names, class_colors(names, rest), rest)
    clicks = {s.name: as_points(its, s) for s, its in zip(scenes, placed, strict=True)} if are_points else {}
    written = []
    for scene, its in zip(scenes, placed, strict=True):
        named = with_label(scene, None, classes)
        label: PolygonLabel | PointLabel | None
        if are_points:
            label = PointLabel(clicks[scene.name], named) if clicks[scene.name] else None
        else:
            label = PolygonLabel(its, scene, classes, rest, conflicts)
        written.append(_write_scene(scene, label, classes, out, notes, conflicts))
    _check_counts(written)
    split = split_scenes(written, crop_px, val_share)
    drawn = {name: sum(its.counts.get(name, 0) for its in placed) for name in names}
    notes += _not_validated(classes, drawn, split, "points" if are_points else "polygons")
    path = out / "scene.toml"
    path.write_text(manifest_text(written, split, out.resolve().name), encoding="utf-8")
    manifest = load_manifest(path)
    whole = tuple(manifest.scenes("map", out))
    return Prepared(manifest, whole, split, crop_px, drawn, clicks, tuple(notes))


def default_crop_px(scenes: Sequence[Scene]) -> int:
    """Crops that the smallest scene is at least four wide and high of, at most 256 px."""
    shorter = min(min(scene.height, scene.width) for scene in scenes)
    return max(32, min(256, shorter // 4 // 32 * 32))


def _open_scenes(images: Sequence[Path], bands: Sequence[str], out: Path) -> list[Scene]:
    scenes = []
    for path in images:
        name = _plain(path.stem)
        scene = Scene(path, name=name, bands=bands or None)
        check_georeference(scene)
        if path.resolve().parent == out.resolve() and path.name == "labels.tif":
            raise UserError(f"{path} would be overwritten by its own labels; choose another --out.")
        scenes.append(scene)
    names = [scene.name for scene in scenes]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"several scenes are named {', '.join(twice)}; rename their files.")
    for scene in scenes[1:]:
        if scene.bands != scenes[0].bands:
            raise UserError(
                f"{scene.name} has the bands {', '.join(scene.bands)}, {scenes[0].name} {', '.join(scenes[0].bands)}; "
                "give scenes of one sensor, or name the bands of all with --bands."
            )
    return scenes


def _placed(labels: Path, scenes: Sequence[Scene], class_column: str | None) -> tuple[list[Drawn], bool]:
    """The labels of each scene, and whether they are points."""
    if labels.suffix.lower() == ".csv":
        return [_from_csv(labels, scenes)], True
    drawn = read_drawn(labels, scenes[0].crs, class_column)
    return on_scenes(drawn, scenes), drawn.kind == "points"


def _from_csv(path: Path, scenes: Sequence[Scene]) -> Drawn:
    if len(scenes) > 1:
        raise UserError(f"{path} does not say which scene its rows and columns are of; give scenes one by one.")
    scene = scenes[0]
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines()))
        names = sorted({row[CLASS] for row in rows})
    except (OSError, UnicodeDecodeError, KeyError, TypeError):
        names = []  # read_points says what is wrong
    named = with_label(scene, None, [LabelClass(name, value, BACKGROUND) for value, name in enumerate(names)])
    points = read_points(path, named)
    places = [to_map(scene.transform, point.col, point.row) for point in points]
    geometry = gpd.points_from_xy(*np.array(places).T)
    frame = gpd.GeoDataFrame({CLASS: [p.name for p in points]}, geometry=geometry, crs=_wkt(scene))
    return Drawn(frame, "points")


def _alike(names: Sequence[str]) -> list[str]:
    folded: dict[str, str] = {}
    notes = []
    for name in names:
        other = folded.setdefault(name.casefold(), name)
        if other != name:
            notes.append(f"classes '{other}' and '{name}' differ in capitals alone: taken as two")
    return notes


def class_colors(names: Sequence[str], rest: str | None = None) -> dict[str, tuple[int, int, int]]:
    """Colours of classes: Okabe and Ito's, told apart by all; from the ninth class on the same, paler and paler.

    Args:
        names: of the classes.
        rest: the class that is drawn in grey.
    """
    drawn = [name for name in names if name != rest]
    rounds = -(-len(drawn) // len(OKABE_ITO))
    colors = {
        name: _paler(color, i // len(OKABE_ITO) / max(rounds, 1))
        for i, (name, color) in enumerate(zip(drawn, cycle(OKABE_ITO), strict=False))
    }
    return colors | ({rest: BACKGROUND} if rest else {})


def _paler(color: tuple[int, int, int], by: float) -> tuple[int, int, int]:
    red, green, blue = (round(c + (255 - c) * 0.8 * by) for c in color)
    return red, green, blue


def _write_scene(
    scene: Scene,
    label: PolygonLabel | PointLabel | None,
    classes: Sequence[LabelClass],
    out: Path,
    notes: list[str],
    conflicts: str,
) -> Scene:
    """Write a scene's label, which may be none at all, beside a pointer to its image (a VRT), and open it."""
    image, path = out / "scenes" / f"{scene.name}_image.vrt", out / "scenes" / f"{scene.name}_label.tif"
    try:
        image.parent.mkdir(parents=True, exist_ok=True)
        rasterio.shutil.copy(scene.paths[0].resolve(), image, driver="VRT")
    except (RasterioError, OSError) as error:
        raise UserError(f"{image} can't be written ({error}); free some space or choose another --out.") from error
    labelled, contested = with_label(scene, label, classes), 0
    with label_writer(path, scene, classes, IGNORE_INDEX) as writer:
        for row in tqdm(range(0, scene.height, BLOCK_PX), desc=f"burning labels on {scene.name}", unit="strip"):
            strip = Window(row, 0, min(BLOCK_PX, scene.height - row), scene.width)
            index = np.full((strip.height, strip.width), IGNORE_INDEX, np.uint8)
            if labelled.has_label:
                index = labelled.read_label(strip)
            if isinstance(label, PolygonLabel):
                contested += int(label.paint(strip)[1].sum())
            writer.write(class_values(index, classes, IGNORE_INDEX), row)
    if contested:
        how = "the smallest is on top" if conflicts == "smaller" else "they are ignored"
        notes.append(f"polygons of several classes overlap on {contested} px of {scene.name}: {how}")
    return Scene(scene._images, path, classes, [IGNORE_INDEX], name=scene.name, bands=scene.bands, gsd_m=gsd_m(scene))


def gsd_m(scene: Scene) -> float:
    """Ground sampling distance: the side of a square as large as the pixel in the middle of the scene, in metres."""
    pixel = footprint(scene, Window(scene.height // 2, scene.width // 2, 1, 1))
    return float(area_m2(gpd.GeoSeries([pixel], crs=_wkt(scene)))[0] ** 0.5)


def _check_counts(scenes: Sequence[Scene]) -> None:
    counts = count_labels(scenes)
    if not counts.any():
        raise UserError("no label holds a pixel with data; draw larger polygons, or where the scene has data.")
    if empty := [c.name for c, n in zip(scenes[0].classes, counts, strict=True) if not n]:
        raise UserError(
            f"class '{empty[0]}' has no pixel: its shapes hold no pixel's centre, lie under smaller ones, or where the "
            "scene has no data; draw it larger, or take it out."
        )


def _oblong(scene: Scene) -> str | None:
    """What to say of pixels that are no squares on the ground."""
    row, col = scene.height // 2, scene.width // 2
    corners = np.array([to_map(scene.transform, *place) for place in ((col, row), (col + 1, row), (col, row + 1))])
    places = gpd.GeoSeries(gpd.points_from_xy(*corners.T), crs=_wkt(scene)).to_crs(4326)
    x, y, geod = places.x.to_numpy(), places.y.to_numpy(), places.crs.get_geod()
    width, height = (geod.inv(x[0], y[0], x[i], y[i])[2] for i in (1, 2))
    if 0.9 < width / height < 1.1:
        return None
    return (
        f"pixels of {scene.name} are {width:.3g} m wide and {height:.3g} m high, so that objects look stretched to the "
        "network; warp the scene to square pixels (rio warp) for a better map"
    )


def _not_validated(classes: Sequence[LabelClass], drawn: Mapping[str, int], split: Split, kind: str) -> list[str]:
    """What the validation can't say."""
    notes = []
    for c, n in zip(classes, split.val_px, strict=True):
        one = drawn.get(c.name) == 1
        if not n:
            why = f"it has one of the {kind} alone" if one else "its labels lie in one block, or near to it"
            notes.append(f"class '{c.name}' is learnt and not validated: {why}")
        elif one:
            notes.append(f"class '{c.name}' has a single polygon: validated on another part of the very object")
    return notes


def _plain(name: str) -> str:
    """A name that is no pattern and no folder."""
    return re.sub(r"[^\w.-]", "_", name)


def _wkt(scene: Scene) -> str:
    return str(scene.crs.to_wkt()) if scene.crs else ""


# --- the manifest ---


def manifest_text(scenes: Sequence[Scene], split: Split, folder: str) -> str:
    """The manifest of one's own scenes as TOML; see `rsseglab.scenes.manifest`.

    Args:
        scenes: with their labels.
        split: parts of them.
        folder: name of the folder that it lies in.
    """
    first = scenes[0]
    parts = _named_parts(split)
    lines = [
        "# Written by 'rsseglab own'. Images are VRTs that point to the files that were given.",
        f"name = {_quoted('own_' + _plain(folder))}",
        f"title = {_quoted(', '.join(scene.name for scene in scenes) + ', with labels of your own')}",
        'page = "none: your own data"',
        "get = \"Your own scene and labels; make this folder again with 'rsseglab own'.\"",
        f"gsd_m = {first.gsd_m:.6g}",
        f"bands = [{', '.join(map(_quoted, first.bands))}]",
        f"dtype = {_quoted(str(first.dtype))}",
        f"ignore_values = [{IGNORE_INDEX}]",
        "classes = [",
        *(f"    {{ name = {_quoted(c.name)}, value = {c.value}, color = {list(c.color)} }}," for c in first.classes),
        "]",
        "traps = [",
        f'    "train and val are blocks of the same scenes, {split.gap_px} px apart: no score of other scenes.",',
        '    "map is the whole scenes, training blocks included: to label, not to score.",',
        "]",
        "",
        "[layout]",
        'image = "scenes/{id}_image.vrt"',
        'label = "scenes/{id}_label.tif"',
        "",
        "[splits]",
        *(f"{name} = [{', '.join(map(_quoted, ids))}]" for name, ids in _splits(scenes, parts).items()),
        "",
        "[parts] # window: row, column, height, width in px",
        *(
            f"{_quoted(name)} = {{ of = {_quoted(part.of)}, window = {list(part.window)} }}"
            for its in parts.values()
            for name, part in its.items()
        ),
        "",
        "[sizes] # width, height in px",
        *(f"{_quoted(scene.name)} = [{scene.width}, {scene.height}]" for scene in scenes),
    ]
    return "\n".join(lines) + "\n"


def _named_parts(split: Split) -> dict[str, dict[str, Part]]:
    """Parts by identifier, of each split."""
    named: dict[str, dict[str, Part]] = {}
    for name, parts in (("train", split.train), ("val", split.val)):
        named[name] = {f"{part.of}_{name}_{i}": part for i, part in enumerate(parts)}
    return named


def _splits(scenes: Sequence[Scene], parts: Mapping[str, Mapping[str, Part]]) -> dict[str, list[str]]:
    return {name: list(its) for name, its in parts.items()} | {"map": [scene.name for scene in scenes]}


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a basic string of TOML is one of JSON
