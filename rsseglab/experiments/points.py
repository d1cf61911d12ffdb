"""Points by the names of data sets: sample them, grow them, show them, and take them for labels.

A folder of points has one file a scene, ``NAME.geojson``; a folder of grown labels one ``NAME.tif``.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rsseglab.errors import UserError
from rsseglab.penet.growing import MOST_SHARE, grow_points
from rsseglab.penet.sam import Discs, MaskSource, SegmentAnything, StoredMasks, Superpixels
from rsseglab.plots import class_legend, colorize, draw, label_thumbnail, save, thumbnail
from rsseglab.scenes.points import (
    Point,
    PointLabel,
    class_points,
    innermost_points,
    object_points,
    read_points,
    share_points,
    unused_value,
    with_errors,
    with_points,
    write_points,
)
from rsseglab.scenes.raster import BLOCK_PX
from rsseglab.scenes.scene import IGNORE_INDEX, Scene, class_values, label_writer

SAMPLERS = ("innermost", "objects", "classes", "share")
SOURCES = ("sam", "superpixels", "discs")


def sample(
    scene: Scene, how: str, seed: int = 0, *, each: int = 1, share: float = 1e-4, least_px: int = 100
) -> list[Point]:
    """Clicks in a scene with a label.

    Args:
        scene: with a label.
        how: one of `SAMPLERS`; see `rsseglab.scenes.points`.
        seed: of the draws.
        each: clicks an object or a class.
        share: of the labelled pixels.
        least_px: objects of so many px or fewer are not clicked.

    Raises:
        UserError: there is no such way, no label, or nothing to click.
    """
    if how == "innermost":
        return innermost_points(scene, least_px)
    if how == "objects":
        return object_points(scene, seed, each, least_px)
    if how == "classes":
        return class_points(scene, seed, each)
    if how == "share":
        return share_points(scene, seed, share)
    raise UserError(f"there is no way '{how}' to sample points; choose one of {', '.join(SAMPLERS)}.")


def sample_and_write(
    scenes: Sequence[Scene],
    out: Path,
    how: str,
    seed: int = 0,
    *,
    wrong: float = 0.0,
    off_px: float = 0.0,
    leave_out: Sequence[str] = (),
    **options: Any,
) -> None:
    """Sample clicks of scenes, write a GeoJSON each, and print how many there are of each class.

    Args:
        scenes: with labels.
        out: the folder to write to.
        how: see `sample`.
        seed: of the draws.
        wrong: see `rsseglab.scenes.points.with_errors`.
        off_px: likewise.
        leave_out: names of classes that nobody clicks.
        **options: of `sample`.

    Raises:
        UserError: as `sample`; there is no such class; the folder can't be written to.
    """
    table = {}
    for scene in scenes:
        names = [c.name for c in scene.classes]
        if unknown := [name for name in leave_out if name not in names]:
            raise UserError(f"scene {scene.name} has no class '{unknown[0]}'; it has {', '.join(names)}.")
        points = [p for p in sample(scene, how, seed, **options) if p.name not in leave_out]
        points = with_errors(points, scene, seed, wrong, off_px, [name for name in names if name not in leave_out])
        write_points(out / f"{scene.name}.geojson", points, scene)
        table[scene.name] = _counts(points, scene)
    print(pd.DataFrame(table).T.to_string())
    print(f"points are in {out}; 'rsseglab points show' draws them")


def _counts(points: Sequence[Point], scene: Scene) -> dict[str, int]:
    return {c.name: sum(p.name == c.name for p in points) for c in scene.classes} | {"all": len(points)}


def points_of(scene: Scene, folder: Path) -> list[Point]:
    """A scene's clicks, from ``NAME.geojson`` or ``NAME.csv`` in a folder.

    Raises:
        UserError: there is neither; or as `rsseglab.scenes.points.read_points`.
    """
    paths = [folder / f"{scene.name}{ending}" for ending in (".geojson", ".csv")]
    path = next((p for p in paths if p.is_file()), None)
    if path is None:
        raise UserError(
            f"{paths[0]} does not exist; click the scene, or sample with 'rsseglab points sample --out {folder}'."
        )
    return read_points(path, scene)


def source_of(by: str, scene: Scene, made: dict[str, MaskSource], **options: Any) -> MaskSource:
    """What proposes masks in a scene.

    Args:
        by: one of `SOURCES`, or a folder with a raster of segment numbers for each scene, ``NAME.tif``.
        scene: that masks are wanted of.
        made: sources that serve all scenes; one that is missing is added.
        **options: of the source's class.

    Raises:
        UserError: there is no such source; or as the source's own class.
    """
    if by not in SOURCES:
        folder = Path(by)
        if not folder.is_dir():
            raise UserError(f"'{by}' is no folder, and no source of masks; choose one of {', '.join(SOURCES)}.")
        return StoredMasks(folder / f"{scene.name}.tif", scene)
    if by not in made:
        kinds: dict[str, Callable[..., MaskSource]]
        kinds = {"sam": SegmentAnything, "superpixels": Superpixels, "discs": Discs}
        made[by] = kinds[by](**options)
    return made[by]


def grow_and_write(
    scenes: Sequence[Scene],
    points: Path,
    out: Path,
    by: str = "sam",
    *,
    most_share: float = MOST_SHARE,
    conflicts: str = "smaller",
    **options: Any,
) -> None:
    """Grow the clicks of scenes to labels, write a GeoTIFF each, and print how much they cover and how much is right.

    Args:
        scenes: with labels or without; what is right is told where there are some.
        points: folder of their clicks.
        out: the folder to write to.
        by: see `source_of`.
        most_share: see `rsseglab.penet.growing.grow_points`.
        conflicts: likewise.
        **options: of `rsseglab.penet.sam.SegmentAnything`.

    Raises:
        UserError: as `points_of`, `source_of` and ``grow_points``.
    """
    table: dict[str, dict[str, Any]] = {}
    made: dict[str, MaskSource] = {}
    for scene in scenes:
        source = source_of(by, scene, made, **options)
        grown = grow_points(scene, points_of(scene, points), source, most_share=most_share, conflicts=conflicts)
        write_grown(out / f"{scene.name}.tif", grown.label, scene, {"grown_by": by})
        shares = {name: f"{share:.1%}" for name, share in coverage(grown.label, scene).items()}
        table[scene.name] = {"clicks": grown.clicks, "without mask": grown.bare, **shares}
    print(pd.DataFrame.from_dict(table, orient="index").to_string())
    print(f"labels are in {out}; 'rsseglab points show --grown {out}' draws them")


def coverage(label: NDArray[np.uint8], scene: Scene) -> dict[str, float]:
    """How much of a scene a grown label covers, and how much of that is right: shares of its labelled pixels.

    Args:
        label: shape (H, W), class indices.
        scene: with a label, or without.
    """
    if not scene.has_label:
        return {"covered": float((label != IGNORE_INDEX).mean())}
    truth = scene.read_label()
    counts, has = truth != IGNORE_INDEX, label != IGNORE_INDEX
    both = counts & has
    right = (label == truth)[both].mean() if both.any() else float("nan")
    return {"covered": float(both.sum() / max(1, counts.sum())), "right": float(right)}


def write_grown(path: Path, label: NDArray[np.uint8], scene: Scene, tags: Mapping[str, str] | None = None) -> None:
    """Write a grown label as a raster of the label file's values.

    Raises:
        UserError: it can't be written.
    """
    nodata = unused_value(scene.classes)
    with label_writer(path, scene, scene.classes, nodata, tags) as writer:
        for row in range(0, scene.height, BLOCK_PX):
            writer.write(class_values(label[row : row + BLOCK_PX], scene.classes, nodata), row)


def as_points(
    scenes: Sequence[Scene], points: Path, grown: Path | None = None
) -> tuple[list[Scene], dict[Scene, Scene]]:
    """Scenes with clicks for labels, and for each the one with the label that they have grown to.

    Args:
        scenes: with labels or without.
        points: folder of clicks.
        grown: folder of grown labels, if any.

    A class that nobody clicks in any scene is never learnt; which these are is said on the screen.

    Raises:
        UserError: a file is missing or does not fit its scene.
    """
    clicked = [with_points(scene, points_of(scene, points)) for scene in scenes]
    values = {int(value) for scene in clicked for value in scene._label.values}  # type: ignore[union-attr]
    if never := [c.name for c in scenes[0].classes if c.value not in values]:
        print(f"no point of {', '.join(never)}: not learnt", file=sys.stderr)
    if grown is None:
        return clicked, {}
    return clicked, {c: _with_label(scene, grown) for c, scene in zip(clicked, scenes, strict=True)}


def point_labels(
    scenes: Sequence[Scene], folder: Path, by: str | None = None
) -> tuple[list[Scene], dict[Scene, Scene]]:
    """Scenes with innermost clicks for labels, and what these have grown to; made once and kept in a folder.

    Args:
        scenes: with labels.
        folder: for clicks, grown labels and embeddings.
        by: one of `SOURCES`; nothing has grown if not given.

    Raises:
        UserError: as `sample` and `grow_points`.
    """
    clicks = _once(folder / "clicks", lambda place: _sample_all(scenes, place))
    if by is None:
        return as_points(scenes, clicks)
    return as_points(scenes, clicks, _once(folder / by, lambda place: _grow_all(scenes, clicks, place, by, folder)))


def _sample_all(scenes: Sequence[Scene], place: Path) -> None:
    for scene in scenes:
        write_points(place / f"{scene.name}.geojson", innermost_points(scene), scene)


def _grow_all(scenes: Sequence[Scene], clicks: Path, place: Path, by: str, folder: Path) -> None:
    made: dict[str, MaskSource] = {}
    # Ablations are on scenes at a coarser resolution, where objects have fewer pixels than superpixels' own default.
    choices: dict[str, dict[str, Any]] = {"sam": {"cache": folder / "embeddings"}, "superpixels": {"area_px": 256}}
    options = choices.get(by, {})
    for scene in scenes:
        source = source_of(by, scene, made, **options)
        write_grown(place / f"{scene.name}.tif", grow_points(scene, points_of(scene, clicks), source).label, scene)


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """A folder, made aside and renamed, so that runs side by side never see half of it."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=folder.parent))
        try:
            make(aside)
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():  # if it is, another run was faster
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


def _with_label(scene: Scene, folder: Path) -> Scene:
    path = folder / f"{scene.name}.tif"
    if not path.is_file():
        raise UserError(f"{path} does not exist; grow the points with 'rsseglab points grow --out {folder}'.")
    return Scene(scene._images, path, scene.classes, scene.ignore_values, name=scene.name, bands=scene.bands)


def point_counts(clicked: Sequence[Scene]) -> dict[str, int]:
    """How many clicks each scene of `as_points` has."""
    labels = {scene.name: scene._label for scene in clicked}
    return {name: len(label.pixels) for name, label in labels.items() if isinstance(label, PointLabel)}


def show(scenes: Sequence[Scene], points: Path, grown: Path | None, out: Path) -> None:
    """Draw the clicks of scenes, beside what they have grown to and the dense label where there are some.

    Args:
        scenes: of any size.
        points: folder of their clicks.
        grown: folder of grown labels, if any.
        out: folder for a PNG a scene.

    Raises:
        UserError: a file is missing or does not fit its scene.
    """
    out.mkdir(parents=True, exist_ok=True)
    for scene in scenes:
        label = _with_label(scene, grown) if grown else None
        save(points_figure(scene, points_of(scene, points), label), out / f"{scene.name}.png")
        print(out / f"{scene.name}.png")


def points_figure(scene: Scene, points: Sequence[Point], grown: Scene | None = None, max_px: int = 1200) -> Figure:
    """A scene with its clicks, and beside it what they have grown to and its label, where there are some.

    Args:
        scene: with a label or without.
        points: clicks in it.
        grown: the scene with the grown label.
        max_px: pixels are thinned to at most so many a side.
    """
    panels = [] if grown is None else [("what they have grown to", grown)]
    panels += [("dense label", scene)] if scene.has_label else []
    height = scene.height / scene.width
    figure, axes = plt.subplots(
        1, 1 + len(panels), figsize=(5.5 * (1 + len(panels)), 5.5 * height + 0.9), layout="constrained", squeeze=False
    )
    step = -(-max(scene.height, scene.width) // max_px)
    draw(axes[0, 0], thumbnail(scene, max_px), f"{scene.name}, {len(points)} clicks")
    for c in scene.classes:
        its = np.array([(p.col / step - 0.5, p.row / step - 0.5) for p in points if p.name == c.name]).reshape(-1, 2)
        axes[0, 0].scatter(*its.T, s=22, color=np.array(c.color) / 255, edgecolors="white", linewidths=0.8)
    for axis, (title, its_scene) in zip(axes[0, 1:], panels, strict=True):
        draw(axis, colorize(label_thumbnail(its_scene, max_px), scene.classes), title)
    handles = class_legend(scene.classes)
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 10), frameon=False)
    return figure
