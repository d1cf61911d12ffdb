"""Train or evaluate by the names of data sets, and leave a run record."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd

from rsseglab.errors import UserError
from rsseglab.evaluation import PROTOCOLS, Evaluation, evaluate_scene, pool
from rsseglab.evaluation.protocols import PAD_TO_PX, score
from rsseglab.experiments.compare import Tiled
from rsseglab.experiments.methods import cropping_of, digest, fit_method, predict_by_crops
from rsseglab.experiments.points import as_points, point_counts
from rsseglab.experiments.presets import TrainPreset
from rsseglab.scenes.manifest import Manifest, load_protocol
from rsseglab.scenes.raster import read_legend, read_tags
from rsseglab.scenes.scene import Scene
from rsseglab.scenes.views import single_class
from rsseglab.spatial import Layout
from rsseglab.training.checkpoint import load_checkpoint
from rsseglab.training.fit import TrainConfig, TrainResult
from rsseglab.training.ranks import Grid
from rsseglab.training.records import RunRecord


def train_and_record(
    data: str,
    root: Path | None,
    config: TrainConfig,
    out: Path,
    resume: bool = False,
    one_class: Sequence[str] = (),
    segmenter: Path | None = None,
    points: Path | None = None,
    grown: Path | None = None,
    preset: TrainPreset | None = None,
) -> TrainResult:
    """Train on a data set's split ``train``, select on ``val``, and write ``record.json`` beside the checkpoints.

    By a preset the run says first what it will take, and in the end labels and scores the split ``test``, where it has
    labels, so that its record can stand beside the published number.

    Args:
        data: name of a data set, "NAME:PROTOCOL" for another protocol of it, or path of a manifest.
        root: where its files are; searched for when not given.
        config: the run.
        out: folder for checkpoints, log and record.
        resume: go on from ``out/last.ckpt``.
        one_class: names of classes; where given, these as one class against all others are learnt.
        segmenter: checkpoint whose masks a refinement learns to mend.
        points: folder of the training scenes' clicks, which then are their labels.
        grown: folder of the labels that these clicks have grown to.
        preset: whose settings these are, but for those that were given.

    Raises:
        UserError: data, settings or disk are wrong.
    """
    manifest, prefix = load_protocol(data)
    start = perf_counter()
    train, val = (as_one_class(manifest.scenes(prefix + split, root), one_class) for split in ("train", "val"))
    clicked, labels = as_points(train, points, grown) if points else (train, {})
    test = as_one_class(_labelled(manifest, prefix + "test", root), one_class) if preset else []
    if preset and os.environ.get("RANK", "0") == "0":
        from rsseglab.experiments.budget import budget, describe

        print(describe(preset.name, budget(config, train, val, test), out), flush=True)
    result = fit_method(clicked, val, config, out, resume, segmenter=segmenter, grown=labels)
    if os.environ.get("RANK", "0") != "0":  # one of torchrun's ranks: the first one writes
        return result
    scores, scenes = _score_test(test, config, result.checkpoint, out / "test", preset) if preset and test else ({}, {})
    RunRecord(
        command=["rsseglab", *sys.argv[1:]],
        configuration={
            **({"preset": preset.name} if preset else {}),
            "data": manifest.name + (f":{prefix.rstrip('/')}" if prefix else ""),
            "manifest_sha256": manifest.sha256,
            "single_class": list(one_class),
            "segmenter_sha256": None if segmenter is None else digest(segmenter),
            **({"points": point_counts(clicked), "grown": grown is not None} if points else {}),
            **asdict(config),
        },
        metrics={
            "pooled": {
                "val_mean_iou": result.val_mean_iou,
                "parameters": result.parameters,
                **({"training_seconds": result.seconds, "test": scores} if preset else {}),
            },
            "scenes": scenes,
        },
        seeds=[config.seed],
        minutes=(perf_counter() - start) / 60,
    ).write(out / "record.json")
    return result


def _labelled(manifest: Manifest, split: str, root: Path | None) -> list[Scene]:
    """Scenes of a split; none where there is no such split, or its labels are hidden."""
    hidden = split in manifest.unlabelled or any(manifest.is_unlabelled(one) for one in manifest.splits.get(split, ()))
    return [] if hidden or split not in manifest.splits else manifest.scenes(split, root)


def _score_test(
    scenes: Sequence[Scene], config: TrainConfig, checkpoint: Path, folder: Path, preset: TrainPreset
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Label scenes as a preset says, in windows of the validation's side; scores of all together and of each."""
    trained = load_checkpoint(checkpoint)
    if (grid := Grid.parse(config.spatial)).parts > 1:  # labelled as it was trained
        trained = replace(trained, network=Tiled(trained.network, Layout(grid.rows, grid.cols)))
    its = dict(preset.test)
    protocol, no_boundary_px = its.pop("protocol", None), its.pop("no_boundary_px", 0)
    cropping = cropping_of(trained, config.val_window_px, **its)
    scored = []
    for scene in scenes:
        path = folder / f"{scene.name}.tif"
        predict_by_crops(trained, scene, path, cropping)
        scored.append(
            evaluate_scene(path, scene, no_boundary_px=no_boundary_px, pad_to_px=PAD_TO_PX.get(protocol or ""))
        )
    pooled = _metrics(pool(scored), None, protocol)
    print(table({"test scenes": pooled}).to_string())
    return pooled, {evaluation.scene: _metrics(evaluation, None, protocol) for evaluation in scored}


def as_one_class(scenes: Sequence[Scene], names: Sequence[str]) -> list[Scene]:
    """Scenes by `rsseglab.scenes.views.single_class` where names are given, else as they are."""
    return [single_class(scene, names) for scene in scenes] if names else list(scenes)


def evaluate_and_print(
    predictions: Sequence[Path],
    scenes: Sequence[Scene],
    classes: Sequence[str] | None = None,
    tolerance_px: int = 3,
    seam_distance_px: int = 8,
    out: Path | None = None,
    protocol: str | None = None,
    no_boundary_px: int = 0,
) -> list[Evaluation]:
    """Score predictions, print a table a scene and one of all scenes pooled, and write a record where asked to.

    With a protocol, a second table shows the pooled scenes' scores by our definition ("honest") and by the published
    one, and a sentence how they differ; the record has both.

    Args:
        predictions: label rasters.
        scenes: with labels, one a prediction.
        classes: the classes that enter the means; all when not given.
        tolerance_px: of the boundary F1.
        seam_distance_px: how near to a window border a pixel counts as at the seam.
        out: a file for the run record.
        protocol: one of `rsseglab.evaluation.PROTOCOLS`, if any.
        no_boundary_px: labelled pixels at most so near to another class do not count, but for the boundary F1.

    Raises:
        UserError: a raster is missing or does not fit its scene, or its own legend names other classes; there is no
            such protocol.
    """
    if out and out.suffix != ".json":
        raise UserError(f"{out} is no name for a record; give one that ends in .json.")
    if protocol and protocol not in PROTOCOLS:
        raise UserError(f"there is no protocol '{protocol}'; choose from {', '.join(PROTOCOLS)}.")
    start = perf_counter()
    for path, scene in zip(predictions, scenes, strict=True):
        _check_legend(path, scene)
    scored = [
        evaluate_scene(
            path,
            scene,
            tolerance_px=tolerance_px,
            seam_distance_px=seam_distance_px,
            no_boundary_px=no_boundary_px,
            pad_to_px=PAD_TO_PX.get(protocol or ""),
            progress=True,
        )
        for path, scene in zip(predictions, scenes, strict=True)
    ]
    columns = {e.scene: _metrics(e, classes, protocol) for e in scored}
    pooled = _metrics(pool(scored), classes, protocol)
    print(table(columns | {"pooled": pooled} if len(scored) > 1 else columns).to_string())
    if protocol:
        print(f"\n{protocol_table(pooled, protocol).to_string()}\n{pooled['protocols'][protocol]['explanation']}")
    if out:
        RunRecord(
            command=["rsseglab", *sys.argv[1:]],
            configuration={
                "scenes": [scene.name for scene in scenes],
                "predictions": {path.name: read_tags(path) for path in predictions},
                "classes": list(classes or pooled["mean_over"]),
                "tolerance_px": tolerance_px,
                "seam_distance_px": seam_distance_px,
                **({"protocol": protocol} if protocol else {}),
                **({"no_boundary_px": no_boundary_px} if no_boundary_px else {}),
            },
            metrics={"pooled": pooled, "scenes": columns},
            seeds=[],
            minutes=(perf_counter() - start) / 60,
        ).write(out)  # fmt: skip
    return scored


def _metrics(evaluation: Evaluation, classes: Sequence[str] | None, protocol: str | None) -> dict[str, Any]:
    metrics = evaluation.metrics(classes)
    if protocol:
        scores = score(evaluation.confusion, protocol, evaluation.padding)
        metrics["protocols"] = {protocol: scores.metrics | {"explanation": scores.explanation}}
    return metrics


def protocol_table(metrics: Mapping[str, Any], protocol: str) -> pd.DataFrame:
    """Scores of each class and their means, by our definition ("honest") and by a protocol's, to print.

    IoU, and F1 and overall accuracy where the protocol has them.

    Args:
        metrics: of `Evaluation.metrics`, with the protocol's under ``protocols``.
        protocol: its name.
    """
    columns: dict[str, Mapping[str, Any]] = {"honest": metrics, protocol: metrics["protocols"][protocol]}
    rows = {f"IoU {name}": [_share(m["iou"][name]) for m in columns.values()] for name in metrics["iou"]}
    rows["mean IoU"] = [_share(m["mean_iou"]) for m in columns.values()]
    if "f1" in columns[protocol]:
        rows |= {f"F1 {name}": [_share(m["f1"][name]) for m in columns.values()] for name in metrics["f1"]}
        rows["mean F1"] = [_share(m["mean_f1"]) for m in columns.values()]
        rows["overall accuracy"] = [_share(m["overall_accuracy"]) for m in columns.values()]
    over = [m["mean_over"] for m in columns.values()]
    rows["  means are of" if "f1" in columns[protocol] else "  which is of"] = [
        f"{len(names)} classes" if len(names) > 1 else f"{names[0]} alone" for names in over
    ]
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(columns))


def _check_legend(path: Path, scene: Scene) -> None:
    """Numbers alone do not tell a map of water (0, 1) from one of seven classes (1 to 7)."""
    legend = {value: name for value, (name, _) in read_legend(path)[0].items()}
    if not legend.items() <= {c.value: c.name for c in scene.classes}.items():
        raise UserError(
            f"{path} shows {', '.join(legend.values())}, but scene {scene.name} is labelled as "
            f"{', '.join(c.name for c in scene.classes)}; give --single-class as in training, or the data set that the "
            "network was trained on."
        )


def table(columns: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Metrics of `Evaluation.metrics` as a table to print: one row a measure, one column a run or scene."""
    if not columns:
        raise UserError("there is nothing to show; evaluate at least one scene.")
    first = next(iter(columns.values()))
    rows: dict[str, list[str]] = {}
    for name in first["iou"]:
        rows[f"IoU {name}"] = [_share(m["iou"][name]) for m in columns.values()]
    over = first["mean_over"]
    title = f"mean IoU of {len(over)} classes" if len(over) > 1 else f"mean IoU of {over[0]} alone"
    rows[title] = [_share(m["mean_iou"]) for m in columns.values()]
    rows["mean F1"] = [_share(m["mean_f1"]) for m in columns.values()]
    rows["overall accuracy"] = [_share(m["overall_accuracy"]) for m in columns.values()]
    rows[f"boundary F1 ({first['boundary_tolerance_px']} px)"] = [
        _share(m.get("mean_boundary_f1")) for m in columns.values()
    ]
    rows["seam error, % points"] = [_points(m.get("seam_error")) for m in columns.values()]
    rows["  its 95 % interval"] = [_interval(m.get("seam_error_interval95")) for m in columns.values()]
    for key, title, digits in (("seconds", "seconds", 1), ("peak_mib", "peak MiB", 0)):
        if any(key in m for m in columns.values()):
            rows[title] = [f"{m[key]:.{digits}f}" if key in m else "" for m in columns.values()]
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(columns))


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _points(value: float | None) -> str:
    return "" if value is None or value != value else f"{100 * value:+.2f}"


def _interval(ends: Sequence[float] | None) -> str:
    return "" if ends is None or ends[0] != ends[0] else f"{100 * ends[0]:+.2f} to {100 * ends[1]:+.2f}"
