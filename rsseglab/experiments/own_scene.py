"""Bring your own scene: from a GeoTIFF and labels drawn in a GIS to a trained network, a map, and its polygons.

1. Labels are read and burnt on the scene's grid (`rsseglab.scenes.polygons`); what is under no label is ignored, or
   the class ``rest``.
2. The scene is split in blocks, some of them for validation (`rsseglab.scenes.split`).
3. Both are written down as a manifest, ``scene.toml`` (`rsseglab.experiments.own_labels`).
4. A network is trained on the training blocks, and the checkpoint chosen on the others; from points by PENet.
5. The whole scene is labelled, scored on the validation blocks, and written for a GIS (`rsseglab.inference.gis`).
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import geopandas as gpd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke

from rsseglab.encoders import local_weights
from rsseglab.errors import UserError
from rsseglab.evaluation import Evaluation, evaluate_scene, pool
from rsseglab.evaluation.evaluate import index_reader
from rsseglab.experiments.budget import budget, describe
from rsseglab.experiments.methods import cropping_of, predict_by_crops
from rsseglab.experiments.own_labels import Prepared, prepare
from rsseglab.experiments.points import grow_and_write
from rsseglab.experiments.run import train_and_record
from rsseglab.inference.gis import write_for_gis
from rsseglab.penet.sam_network import local_sam_weights
from rsseglab.plots import class_legend, colorize, draw, label_thumbnail, prediction_thumbnail, save, thumbnail
from rsseglab.scenes.manifest import Part
from rsseglab.scenes.points import Point, write_points
from rsseglab.scenes.scene import Scene
from rsseglab.scenes.split import Split
from rsseglab.training.checkpoint import load_checkpoint
from rsseglab.training.fit import TrainConfig, TrainResult
from rsseglab.training.records import RunRecord

ENCODER = "tf_efficientnet_lite0"
WINDOW = 2  # crops that a window is wide which the scene is validated and labelled in
OVERLAP = 0.5  # of the windows that it is labelled in
MAX_PX = 1200  # a side of a panel of the picture
SAME_SCENE = (
    "These blocks are of the same scene and have chosen the checkpoint: expect less on another scene, and nothing is "
    "known of places that no label is near to."
)


@dataclass(frozen=True)
class OwnScene:
    """What a run left.

    Attributes:
        folder: where all of it is.
        prepared: the scenes and their labels.
        checkpoint: the network.
        scores: of the map on the validation blocks, pooled.
        maps: the label raster of each scene, a Cloud Optimised GeoTIFF.
        table: classes with their labels, their IoU and the area that they have on the map.
    """

    folder: Path
    prepared: Prepared
    checkpoint: Path
    scores: Evaluation
    maps: tuple[Path, ...]
    table: pd.DataFrame


def own_scene(
    images: Sequence[Path],
    labels: Path,
    out: Path,
    *,
    class_column: str | None = None,
    rest: str | None = None,
    conflicts: str = "smaller",
    bands: Sequence[str] = (),
    val_share: float = 0.25,
    grow_by: str | None = None,
    encoder: str = ENCODER,
    weights: str | None = None,
    decoder: str | None = None,
    crop_px: int | None = None,
    batch_size: int = 8,
    steps: int = 300,
    lr: float = 1e-3,
    sieve_px: int = 0,
    seed: int = 0,
    resume: bool = False,
) -> OwnScene:
    """Train on labels drawn in scenes, label all of them, and write what a GIS wants.

    Args:
        images: see `rsseglab.experiments.own_labels.prepare`.
        labels: likewise.
        out: the folder to write to.
        class_column: likewise.
        rest: likewise.
        conflicts: likewise.
        bands: likewise.
        val_share: likewise.
        grow_by: what points are grown by, see `rsseglab.experiments.points.source_of`; Segment Anything where its
            weights are there, superpixels otherwise, if not given.
        encoder: see `rsseglab.encoders`.
        weights: of the encoder, or "none"; ImageNet's where the folder ``RSSEGLAB_WEIGHTS`` holds them, if not given.
        decoder: see `rsseglab.decoders`; "unet", from points "fpn", if not given.
        crop_px: see ``prepare``.
        batch_size: crops a step.
        steps: length of the run.
        lr: highest learning rate.
        sieve_px: smaller regions are no polygons, see `rsseglab.inference.gis.region_polygons`.
        seed: of everything random.
        resume: go on with a run that was interrupted.

    Raises:
        UserError: scenes, labels, settings or disk are wrong.
    """
    start = perf_counter()
    if sieve_px < 0:
        raise UserError(f"a sieve of {sieve_px} px is none; give 0 or more.")
    if (out / "run" / "last.ckpt").is_file() and not resume:
        raise UserError(f"{out} holds a run already; give --resume to go on with it, or another --out.")
    drawing = {"class_column": class_column, "rest": rest, "conflicts": conflicts, "val_share": val_share}
    prepared = prepare(images, labels, out, bands=bands, crop_px=crop_px, **drawing)  # type: ignore[arg-type]
    for note in prepared.notes:
        print(f"note: {note}")
    if grow_by and not prepared.clicks:
        raise UserError("polygons need no growing; leave --grow-by out, or give points.")
    chosen = "pretrained" if local_weights(encoder) else None
    config = TrainConfig(
        encoder=encoder,
        weights=chosen if weights is None else None if weights == "none" else weights,
        decoder=decoder or ("fpn" if prepared.clicks else "unet"),
        method="penet" if prepared.clicks else "stock",
        crop_px=prepared.crop_px,
        batch_size=batch_size,
        steps=steps,
        lr=lr,
        val_every=max(1, steps // 5),
        val_window_px=WINDOW * prepared.crop_px,
        seed=seed,
    )
    print(_plan(prepared, config, out))
    by = (grow_by or _best_source()) if prepared.clicks else None
    fitted = _fit(prepared, config, out, by, resume)
    maps, regions = _map_all(prepared, fitted.checkpoint, out, sieve_px)
    scores = validation_scores(prepared, maps)
    files = {"scenes": [path.name for path in images], "labels": labels.name}
    configuration = files | drawing | {"grown_by": by, "sieve_px": sieve_px, **asdict(config)}
    _record(prepared, configuration, scores, fitted, start).write(out / "record.json")
    table = summary(prepared, scores, regions)
    print(f"\n{table.to_string()}\n\n{_verdict(prepared, scores)}\n\n{_written(out, maps)}")
    return OwnScene(out, prepared, fitted.checkpoint, scores, tuple(maps), table)


def _fit(prepared: Prepared, config: TrainConfig, out: Path, grow_by: str | None, resume: bool) -> TrainResult:
    """Train on the manifest's parts; on points with what they have grown to."""
    clicks, grown = (out / "points", out / "grown") if grow_by else (None, None)
    if clicks and grown and grow_by:
        grow_and_write(_write_clicks(prepared, clicks), clicks, grown, grow_by)
    data = str(prepared.manifest.path)
    return train_and_record(data, out, config, out / "run", resume, points=clicks, grown=grown)


def _map_all(
    prepared: Prepared, checkpoint: Path, out: Path, sieve_px: int
) -> tuple[list[Path], list[gpd.GeoDataFrame]]:
    """Map each scene, one in the folder itself, several in folders of their own; the maps and their polygons."""
    maps, regions = [], []
    for scene in prepared.scenes:
        folder = out if len(prepared.scenes) == 1 else out / scene.name
        regions.append(_map_scene(checkpoint, scene, folder, sieve_px))
        maps.append(folder / "labels.tif")
        clicks = prepared.clicks.get(scene.name, ())
        save(overview(scene, maps[-1], prepared.split, clicks), folder / "overview.png")
    return maps, regions


def _map_scene(checkpoint: Path, scene: Scene, folder: Path, sieve_px: int) -> gpd.GeoDataFrame:
    """Label a scene, write the map for a GIS, and give its polygons."""
    trained, raw = load_checkpoint(checkpoint), folder / f".{scene.name}.{os.getpid()}.tif"
    try:
        predict_by_crops(trained, scene, raw, cropping_of(trained, WINDOW * int(trained.crop_px or 0), overlap=OVERLAP))
        return write_for_gis(raw, folder, sieve_px, progress=True)
    finally:
        raw.unlink(missing_ok=True)


def _record(
    prepared: Prepared, configuration: dict[str, Any], scores: Evaluation, fitted: TrainResult, start: float
) -> RunRecord:
    means = validated(prepared)
    more = {
        "majority_class_mean_iou": _majority(prepared, scores),
        "training_seconds": fitted.seconds,
        "parameters": fitted.parameters,
        "drawn": dict(prepared.drawn),
        "notes": list(prepared.notes),
    }
    known = {"manifest_sha256": prepared.manifest.sha256, "gap_px": prepared.split.gap_px}
    return RunRecord(
        command=["rsseglab", *sys.argv[1:]],
        configuration=known | configuration,
        metrics={"pooled": scores.metrics(means) | more, "scenes": {}},
        seeds=[configuration["seed"]],
        minutes=(perf_counter() - start) / 60,
    )


def _majority(prepared: Prepared, scores: Evaluation) -> float:
    """Mean IoU of the training labels' most frequent class everywhere."""
    return scores.confusion.majority_class(prepared.split.train_px).mean_iou(validated(prepared))


def _verdict(prepared: Prepared, scores: Evaluation) -> str:
    means, confusion = validated(prepared), scores.confusion
    return (
        f"validation blocks: mean IoU {confusion.mean_iou(means):.3f} of {len(means)} classes, overall accuracy "
        f"{confusion.overall_accuracy():.3f}; the most frequent class everywhere has a mean IoU of "
        f"{_majority(prepared, scores):.3f}.\n{SAME_SCENE}"
    )


def _written(out: Path, maps: Sequence[Path]) -> str:
    folder, manifest = maps[0].parent, out / "scene.toml"
    more = f", and likewise for {len(maps) - 1} more" if len(maps) > 1 else ""
    return "\n".join(
        [
            f"for a GIS: {folder / 'labels.tif'}, {folder / 'polygons.gpkg'}, styles beside them{more}",
            f"picture: {folder / 'overview.png'}; record: {out / 'record.json'}",
            f"the same blocks again: rsseglab train --data {manifest} --out ...",
            f"another scene: rsseglab predict SCENE.tif --checkpoint {out / 'run' / 'best.ckpt'}",
        ]
    )


# --- before ---


def _plan(prepared: Prepared, config: TrainConfig, out: Path) -> str:
    """What is about to happen, and what it will take."""
    split = prepared.split
    kind = "points" if prepared.clicks else "polygons"
    sizes = ", ".join(f"{scene.name} ({scene.width} x {scene.height} px)" for scene in prepared.scenes)
    train, val = (prepared.manifest.scenes(name, prepared.manifest.path.parent) for name in ("train", "val"))
    its = budget(config, train, val, prepared.scenes)
    parts = "training, validations and the map" + (", without growing the points" if prepared.clicks else "")
    return "\n".join(
        [
            f"{sizes}: {sum(prepared.drawn.values())} {kind}, {len(prepared.scenes[0].classes)} classes",
            f"training on {len(split.train)} parts ({split.train_px.sum():,} labelled px), validating on "
            f"{len(split.val)} blocks ({split.val_px.sum():,} px), {split.gap_px} px or more apart",
            f"{config.decoder} on {config.encoder}, {'pretrained' if config.weights else 'random'} weights, "
            f"{config.steps} steps of {config.batch_size} crops of {config.crop_px} px",
            describe(parts, its, out),
        ]
    )


def _best_source() -> str:
    """Segment Anything where its weights are on this machine, else superpixels."""
    return "sam" if local_sam_weights("mobile_sam") else "superpixels"


def _write_clicks(prepared: Prepared, folder: Path) -> list[Scene]:
    """Write the clicks of training parts, a file each, and give the parts that have some.

    Clicks of validation blocks are not seen. A part may have labelled pixels and no click: of one in the gap beside it.
    """
    parts = []
    for scene in prepared.manifest.scenes("train", prepared.manifest.path.parent):
        part = prepared.manifest.parts[scene.name]
        row, col, height, width = part.window
        moved = [Point(p.row - row, p.col - col, p.name, p.who) for p in prepared.clicks[part.of]]
        inside = [p for p in moved if 0 <= p.row < height and 0 <= p.col < width]
        if inside:
            write_points(folder / f"{scene.name}.geojson", inside, scene)
            parts.append(scene)
    return parts


# --- after ---


def validation_scores(prepared: Prepared, maps: Sequence[Path]) -> Evaluation:
    """The scores of maps of the whole scenes, on the validation blocks alone.

    Args:
        prepared: scenes and split.
        maps: the label raster of each scene.

    Raises:
        UserError: a map does not fit its scene.
    """
    readers = {scene.name: index_reader(path, scene) for scene, path in zip(prepared.scenes, maps, strict=True)}
    blocks = prepared.manifest.scenes("val", prepared.manifest.path.parent)
    scored = []
    for block in blocks:
        part = prepared.manifest.parts[block.name]
        scored.append(evaluate_scene(readers[part.of](part.window), block))
    return pool(scored)


def validated(prepared: Prepared) -> list[str]:
    """Names of the classes with labels in the validation blocks."""
    classes = prepared.scenes[0].classes
    return [c.name for c, n in zip(classes, prepared.split.val_px, strict=True) if n]


def summary(prepared: Prepared, scores: Evaluation, regions: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """A row a class: what was drawn, how much of it is for what, the score, and the area on the map.

    Args:
        prepared: scenes and split.
        scores: of the validation blocks.
        regions: polygons of each map.
    """
    names, known = [c.name for c in prepared.scenes[0].classes], validated(prepared)
    areas = pd.concat([its[["class", "area_m2"]] for its in regions]).groupby("class")["area_m2"].sum()
    iou = dict(zip(names, scores.confusion.iou(), strict=True))
    return pd.DataFrame(
        {
            "points" if prepared.clicks else "polygons": [prepared.drawn.get(name, 0) for name in names],
            "px to train on": prepared.split.train_px,
            "px to validate on": prepared.split.val_px,
            "IoU": [f"{iou[name]:.3f}" if name in known else "-" for name in names],
            "mapped, m2": [f"{areas.get(name, 0):,.0f}" for name in names],
        },
        index=names,
    )


def overview(scene: Scene, path: Path, split: Split, clicks: Sequence[Point] = ()) -> Figure:
    """A scene, its labels with the parts that they are split in, and the map of it.

    Args:
        scene: with its label.
        path: the map.
        split: its parts.
        clicks: in it, where labels are points.
    """
    tall = scene.height > 1.5 * scene.width
    height = 5 * scene.height / scene.width
    rows, cols, size = (1, 3, (16, height + 1)) if tall or height > 2.5 else (3, 1, (11, 3 * 11 * height / 5 + 1.4))
    figure, grid = plt.subplots(rows, cols, figsize=size, layout="constrained", squeeze=False)
    axes = grid.ravel()
    step = -(-max(scene.height, scene.width) // MAX_PX)
    draw(axes[0], thumbnail(scene, MAX_PX), f"{scene.name}, {scene.width} x {scene.height} px")
    draw(axes[1], colorize(label_thumbnail(scene, MAX_PX), scene.classes), "labels")
    draw(axes[2], colorize(prediction_thumbnail(path, scene, MAX_PX), scene.classes), "map")
    for c in scene.classes:
        its = np.array([(p.col / step - 0.5, p.row / step - 0.5) for p in clicks if p.name == c.name]).reshape(-1, 2)
        axes[1].scatter(*its.T, s=14, color=np.array(c.color) / 255, edgecolors="0.4", linewidths=0.5)
    styles: tuple[tuple[str, Sequence[Part], str, Literal["--", "-"]], ...]
    styles = (("training", split.train, "0.25", "--"), ("validation", split.val, "black", "-"))
    for _, parts, color, line in styles:
        for row, col, high, wide in (part.window for part in parts if part.of == scene.name):
            for axis in axes[:2]:
                frame = Rectangle(
                    (col / step - 0.5, row / step - 0.5), wide / step, high / step, fill=False, edgecolor=color,
                    linestyle=line, linewidth=1.6, path_effects=[withStroke(linewidth=3, foreground="white")],
                )  # fmt: skip
                axis.add_patch(frame)
    handles = [
        *class_legend(scene.classes),
        *(Line2D([], [], color=color, linestyle=line, label=f"{name} part") for name, _, color, line in styles),
    ]
    figure.legend(
        handles=handles, loc="outside lower center", ncols=min(len(handles), 10 if cols > 1 else 6), frameon=False
    )
    return figure
