"""The first run: train a small U-Net, label whole scenes by cropping at two overlaps, and compare."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

from rsseglab.encoders import local_weights
from rsseglab.evaluation import Confusion, Evaluation, count_labels, evaluate_scene, pool
from rsseglab.experiments.run import table
from rsseglab.inference.crops import Cropping
from rsseglab.inference.predict import predict_scene
from rsseglab.plots import comparison, save
from rsseglab.scenes.datamodule import check_labelled
from rsseglab.scenes.manifest import load_manifest
from rsseglab.scenes.scene import Scene
from rsseglab.training.checkpoint import TrainedNetwork, load_checkpoint
from rsseglab.training.fit import TrainConfig, fit
from rsseglab.training.records import RunRecord

ENCODER = "tf_efficientnet_lite0"
OVERLAPS = (0.0, 0.5)
CROP_PX = WINDOW_PX = 256


def quickstart(
    data: str = "synthetic", root: Path | None = None, out: Path | None = None, steps: int | None = None, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Train on a data set's split ``train`` for minutes, label its split ``test``, and print what two overlaps give.

    Writes into ``out``: ``prediction.tif`` (the first test scene at the larger overlap), ``comparison.png`` (scene,
    label, prediction and errors of each test scene), ``swipe.html`` (the first of them, to swipe in a browser),
    ``record.json``, the checkpoints, and each scene's prediction at each overlap. The encoder starts from ImageNet
    weights where the folder ``RSSEGLAB_WEIGHTS`` holds them, else from random ones.

    Args:
        data: name of a data set, or path of a manifest.
        root: where its files are; searched for when not given.
        out: where results go; ``outputs/quickstart/NAME`` when not given.
        steps: training steps; 300 when not given.
        seed: of everything random.

    Returns:
        The metrics shown, by column of the table.

    Raises:
        UserError: data, settings or disk are wrong.
    """
    start = perf_counter()
    manifest = load_manifest(data)
    out = out or Path("outputs/quickstart") / manifest.name
    train, val, test = (manifest.scenes(split, root) for split in ("train", "val", "test"))
    check_labelled(test)
    config = TrainConfig(
        encoder=ENCODER,
        weights="pretrained" if local_weights(ENCODER) else None,
        steps=300 if steps is None else steps,
        crop_px=CROP_PX,
        val_every=max(1, (300 if steps is None else steps) // 4),
        seed=seed,
    )
    print(f"{manifest.title}: training on {_names(train)}, selecting on {_names(val)}, scoring {_names(test)} whole.")
    print(f"U-Net on {ENCODER}, {'ImageNet' if config.weights else 'random'} weights, {config.steps} steps.")
    for earlier in (out / "best.ckpt", out / "last.ckpt"):  # of a quickstart before this one
        earlier.unlink(missing_ok=True)
    fitted = fit(train, val, config, out)
    trained = load_checkpoint(fitted.checkpoint)

    runs = {f"overlap {overlap:g}": _label_and_score(trained, test, out, overlap) for overlap in OVERLAPS}
    majority = pool(next(iter(runs.values()))[0]).confusion.majority_class(count_labels(train))
    columns = {name: pool(scored).metrics() | cost for name, (scored, cost) in runs.items()}
    shown: dict[str, dict[str, Any]] = columns | {"majority class": constant_metrics(majority)}

    title = f"U-Net on {ENCODER}, {config.steps} steps, crops of {WINDOW_PX} px with overlap {OVERLAPS[-1]:g}"
    figure = comparison([(scene, prediction_path(out, scene, OVERLAPS[-1])) for scene in test], title)
    save(figure, out / "comparison.png")
    written = [out / "prediction.tif", out / "comparison.png", out / "record.json"]
    if find_spec("anywidget"):  # of the notebooks' extra
        written.append(_swipe(test[0], out))
    shutil.copyfile(prediction_path(out, test[0], OVERLAPS[-1]), out / "prediction.tif")
    RunRecord(
        command=["rsseglab", *sys.argv[1:]],
        configuration={
            "data": manifest.name,
            "manifest_sha256": manifest.sha256,
            **asdict(config),
            "overlaps": list(OVERLAPS),
            "window_px": WINDOW_PX,
        },
        metrics={
            "pooled": shown | {"val_mean_iou": fitted.val_mean_iou, "training_seconds": fitted.seconds},
            "scenes": {
                scene.name: {name: scored[i].metrics() for name, (scored, _) in runs.items()}
                for i, scene in enumerate(test)
            },
        },
        seeds=[seed],
        minutes=(perf_counter() - start) / 60,
    ).write(out / "record.json")
    print(f"\n{table(shown).to_string()}\n")
    ratio = columns[f"overlap {OVERLAPS[-1]:g}"]["mean_iou"] / majority.mean_iou()
    print(f"mean IoU is {ratio:.1f} x that of labelling every pixel with the training scenes' most frequent class.")
    print(f"written: {', '.join(map(str, written))}")
    return shown


def _swipe(scene: Scene, out: Path) -> Path:
    from rsseglab.widgets import swipe

    maps = {f"overlap {overlap:g}": prediction_path(out, scene, overlap) for overlap in OVERLAPS}
    return swipe(scene, maps).save(out / "swipe.html", f"{scene.name}: scene, label, predictions")


def _label_and_score(
    trained: TrainedNetwork, scenes: Sequence[Scene], out: Path, overlap: float
) -> tuple[list[Evaluation], dict[str, float]]:
    cropping = Cropping(WINDOW_PX, overlap)
    scored, seconds, peak_mib = [], 0.0, 0.0
    for scene in scenes:
        path = prediction_path(out, scene, overlap)
        done = predict_scene(trained, scene, path, cropping)
        seconds, peak_mib = seconds + done.seconds, max(peak_mib, done.peak_mib)
        scored.append(evaluate_scene(path, scene))
    return scored, {"seconds": seconds, "peak_mib": peak_mib}


def prediction_path(out: Path, scene: Scene, overlap: float) -> Path:
    """Where the prediction of a scene at an overlap lies."""
    return out / f"overlap_{overlap:g}" / f"{scene.name}.tif"


def constant_metrics(constant: Confusion) -> dict[str, Any]:
    """The scores of a constant prediction; it has neither boundaries nor seams."""
    return {
        "mean_over": list(constant.classes),
        "iou": dict(zip(constant.classes, constant.iou().tolist(), strict=True)),
        "mean_iou": constant.mean_iou(),
        "mean_f1": constant.mean_f1(),
        "overall_accuracy": constant.overall_accuracy(),
    }


def _names(scenes: Sequence[Scene]) -> str:
    return ", ".join(scene.name for scene in scenes)
