"""One table of methods, one budget: cropping, downsampling, fusion, contexts, and the four interactions of REST.

Every method has the same encoder and decoder, sees the same number of pixels a step, the same steps, schedule and
seeds, is selected on validation scenes labelled its own way, and is scored on whole test scenes. What can't be equal is
reported beside the scores: parameters, FLOPs, seconds, memory, and the thumbnail that fusion sees in addition.

A run is one method with one seed; it leaves one record, and a comparison that is interrupted goes on with the runs
that have none. Tables, differences and the claim matrix are made of records alone (`rsseglab.experiments.tables`).
"""

import hashlib
import multiprocessing
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rsseglab.encoders import local_weights
from rsseglab.errors import UserError
from rsseglab.evaluation import count_blocks, evaluate_scene, pool
from rsseglab.evaluation.evaluate import index_reader
from rsseglab.evaluation.seams import Placement
from rsseglab.experiments.folds import merge_folds
from rsseglab.experiments.global_local import fit_global_local, load_global_local
from rsseglab.experiments.methods import fit_method, predict_by_crops
from rsseglab.experiments.points import point_labels
from rsseglab.experiments.tables import read_records
from rsseglab.fctl.contexts import GLOBAL
from rsseglab.inference import Cropping, predict_scene
from rsseglab.inference.fusion import predict_decimated, predict_fusion
from rsseglab.inference.whole import predict_whole
from rsseglab.measure import Measure
from rsseglab.rest.cost import flop_counter
from rsseglab.scenes.manifest import load_protocol
from rsseglab.scenes.raster import read_tags
from rsseglab.scenes.scene import Scene
from rsseglab.scenes.twins import label_pair_accuracy, twin_scenes, twins_in_memory
from rsseglab.scenes.views import decimated, in_memory
from rsseglab.spatial import Layout, cut, join
from rsseglab.training.checkpoint import TrainedNetwork, load_checkpoint
from rsseglab.training.fit import TrainConfig, TrainResult, fit
from rsseglab.training.ranks import Grid
from rsseglab.training.records import RunRecord

OVERLAPS = (0.0, 0.5)
CROPPED = ("crops", "fusion", "contexts", "embeddings", "points", "refined")  # kinds that label by crops
NAMES = {
    "contexts": "fctl",
    "embeddings": "bicor_seg",
    "points": "penet",
    "refined": "refinement",
}  # methods of `rsseglab.training.networks` by kind
EARLY_SHARE = 0.4  # of the steps, after which a segmenter is stopped whose masks are learnt from: 20 of 50 epochs
BLOCK_PX = 256  # side of the bootstrap's blocks, in px of the scenes as they are on disk


@dataclass(frozen=True)
class Method:
    """How a method trains and how it labels.

    Attributes:
        title: in tables.
        kind: "crops", "downsampled", "fusion", "contexts", "embeddings", "points", "refined" or "scene" (a large
            window, cut in tiles).
        interaction: of REST; None for the stock network.
        crop_px: side of what it trains on; the preset's crop or window when None.
        stage: 2 where it waits for another method: it goes on from the stock network's checkpoint of crops, early
            stages frozen; or it refines another's masks.
        options: of FCtL, BiCoR-Seg or PENet.
        of: the method whose masks are refined.
        grown: what the points have grown by, one of `rsseglab.experiments.points.SOURCES`; they have not if None.
    """

    title: str
    kind: str
    interaction: str | None = None
    crop_px: int | None = None
    stage: int = 1
    options: Mapping[str, Any] | None = None
    of: str | None = None
    grown: str | None = None


@dataclass(frozen=True)
class Preset:
    """What a comparison runs on.

    Attributes:
        data: a data set's name, "NAME:PROTOCOL" for another protocol of its manifest, or "twins".
        encoder: name.
        decoder: name.
        decimate: scenes are averaged over so many px a side first.
        window_px: side of the window that is spread over tiles.
        crop_px: side of a crop, and of a tile at least.
        crop_sizes: crops whose best is the cropped baseline.
        tiles: that the window, and a whole test scene, is cut in.
        batch: windows a step; as many pixels are seen a step by every method.
        steps: of training.
        second_steps: of the second of two stages.
        downsample: factor of the downsampled whole scene.
        downsampled_px: side of its crops.
        global_px: side of fusion's thumbnail.
        contexts: scales of FCtL's.
        strides: that get a SPIM.
        heads: of SPIM.
        loss: of training; a refinement has its own.
        lr: highest learning rate.
        augment: whether windows are flipped, turned and varied.
        context_px: of twin scenes: how far the key is at least. Most look-alike pixels are farther from it, so even
            where this is less than a crop's side, crops can answer for those few alone that share one with the key.
        seeds: of training.
        folds: protocols of the data set that are compared one by one, and whose test scenes are then scored together.
        merging: of the crops whose masks are refined, one of `croppings`.
    """

    data: str
    encoder: str = "tf_efficientnet_lite0"
    decoder: str = "unet"
    decimate: int = 1
    window_px: int = 512
    crop_px: int = 256
    crop_sizes: tuple[int, ...] = (128, 256, 512)
    tiles: str = "2x2"
    batch: int = 1
    steps: int = 150
    second_steps: int = 50
    downsample: int = 4
    downsampled_px: int = 128
    global_px: int = 256
    contexts: tuple[float | str, ...] = (1, 2, 3)
    strides: tuple[int, ...] = (16, 32)
    heads: int = 8
    loss: str = "ce+dice"
    lr: float = 1e-3
    augment: bool = True
    context_px: int = 0
    seeds: tuple[int, ...] = (0, 1, 2)
    folds: tuple[str, ...] = ()
    merging: str = ""

    @property
    def methods(self) -> dict[str, Method]:
        """The table of methods, by the name that records and folders have."""
        table = {f"crops-{px}": Method(f"crops of {px} px", "crops", crop_px=px) for px in self.crop_sizes}
        table |= {
            "crops+spim": Method("crops, SPIM inside the crop", "crops", "spim", self.crop_px),
            "downsampled": Method("whole scene, downsampled", "downsampled"),
            # On twin scenes no thumbnail that a network takes (a multiple of 32 px) erases the keys in px as 8 does.
            **({} if self.context_px else {"fusion": Method("global-local fusion", "fusion", crop_px=self.crop_px)}),
            "fctl": Method(
                "FCtL: patches with contexts", "contexts", crop_px=self.crop_px, options={"contexts": self.contexts}
            ),
            "rest-none": Method("REST: tiles alone", "scene", "none"),
            "rest-spim": Method("REST: tiles meet in SPIM", "scene", "spim"),
            "rest-exact": Method("REST: exact", "scene", "exact"),
            "rest-exact+spim": Method("REST: exact, with SPIM", "scene", "exact+spim"),
        }
        if not self.context_px:
            small = f"REST: SPIM, trained on windows of {self.crop_px} px"
            table |= {
                "rest-spim-small": Method(small, "scene", "spim", crop_px=self.crop_px),
                "two-stage-control": Method("two stages, without SPIM", "scene", "none", stage=2),
                "two-stage-spim": Method("two stages, SPIM added", "scene", "spim", stage=2),
            }
        return table

    def croppings(self, side: int) -> dict[str, Cropping]:
        """The ways to merge crops that a method is labelled by; the best on validation counts."""
        return {f"overlap {overlap:g}": Cropping(side, overlap) for overlap in OVERLAPS}


# The network sees 142 px far at most. On larger scenes (384 px) SPIM too finds the key, but not with every seed in so
# few steps.
TWINS = Preset(
    "twins", "test_resnet", "fcn", window_px=288, crop_px=128, crop_sizes=(128,), tiles="2x2", batch=3, steps=300,
    downsample=8, downsampled_px=32, contexts=(1, "scene"), strides=(16,), heads=4, lr=3e-3, augment=False,
)  # fmt: skip
PRESETS = {
    "quick": Preset(
        "synthetic", decimate=4, window_px=192, crop_px=96, crop_sizes=(64, 96), steps=12, second_steps=4,
        downsample=2, downsampled_px=64, global_px=64, seeds=(0,),
    ),
    "synthetic": Preset("synthetic", decimate=1),
    "dubai": Preset("dubai", decimate=2),
    # As large as fits at full resolution; two windows, as UPerNet's pooled map has one pixel and a batch norm. Each
    # group of scenes that show the same ground is left out in turn.
    "dubai-gpu": Preset(
        "dubai", "convnext_tiny", "upernet", window_px=2048, crop_px=512, crop_sizes=(256, 512, 1024), batch=2,
        steps=4000, second_steps=500, downsampled_px=512, global_px=512, strides=(8, 16, 32),
        folds=("without_1_3", "without_2", "without_5", "without_4_7_8"),
    ),
    "twins-near": replace(TWINS, context_px=32),
    "twins-far": replace(TWINS, context_px=160),
}  # fmt: skip


@dataclass(frozen=True)
class Split:
    """The scenes of a comparison."""

    train: list[Scene]
    val: list[Scene]
    test: list[Scene]


def scenes_of(preset: Preset, root: Path | None = None) -> Split:
    """Scenes of a preset, in memory: decimated ones, or twins that are made."""
    if preset.data == "twins":
        side = preset.window_px

        def pairs(first: int, count: int) -> list[Scene]:
            made = ((i, twin_scenes(side, side, preset.context_px, i)) for i in range(first, first + count))
            return [scene for i, twins in made for scene in twins_in_memory(twins, f"twins_{i}")]

        return Split(pairs(100_000, 150), pairs(50_000, 4), pairs(0, 8))
    manifest, prefix = load_protocol(preset.data)
    splits = (manifest.scenes(prefix + split, root) for split in ("train", "val", "test"))
    factor = preset.decimate
    return Split(*([in_memory(decimated(s, factor)) if factor > 1 else s for s in split] for split in splits))


def config_of(preset: Preset, method: Method, seed: int, folder: Path) -> TrainConfig:
    """The training run of a method: the same pixels a step, steps, schedule and seed for each."""
    pixels = preset.batch * preset.window_px**2
    side = method.crop_px or (preset.downsampled_px if method.kind == "downsampled" else preset.window_px)
    goes_on = method.stage == 2 and method.of is None
    steps = preset.second_steps if goes_on else preset.steps
    options = None if method.options is None else _plain(method.options)
    if method.interaction:
        options = {"interaction": method.interaction, "strides": list(preset.strides), "heads": preset.heads}
    return TrainConfig(
        encoder=preset.encoder,
        decoder=preset.decoder,
        weights="pretrained" if local_weights(preset.encoder) else None,
        method="rest" if method.interaction else NAMES.get(method.kind, "stock"),
        options=options,
        init=str(_stage_one(preset, folder, seed)) if goes_on else None,
        freeze_early=goes_on,
        spatial=preset.tiles if method.kind == "scene" else "1",
        in_process=method.kind == "scene",
        steps=steps,
        batch_size=max(1, pixels // side**2),
        crop_px=side,
        lr=preset.lr / 3 if goes_on else preset.lr,
        loss="focal" if method.kind == "refined" else preset.loss,
        val_every=max(1, steps // 5),
        val_window_px=side if method.kind in CROPPED else None,
        augment=preset.augment,
        seed=seed,
    )


def _plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """As they come back from a checkpoint or a record."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}


def _stage_one(preset: Preset, folder: Path, seed: int) -> Path:
    return folder / f"crops-{preset.crop_px}" / f"seed{seed}" / "best.ckpt"


class Tiled(nn.Module):
    """A network that cuts what it is given in tiles, in this process."""

    def __init__(self, network: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.network, self.layout = network, layout

    def forward(self, image: Tensor) -> Tensor:
        """Logits of an image."""
        logits: Tensor = join(self.network(cut(image, self.layout)))
        return logits


def run_method(
    preset: Preset, name: str, seed: int, folder: Path, records: Path, root: Path | None = None, jobs: int = 1
) -> Path:
    """Train a method with a seed, label and score the test scenes, and write the run's record.

    Args:
        preset: what the comparison runs on.
        name: of the method.
        seed: of training.
        folder: for checkpoints and predictions.
        records: for the record, which is left alone where it is there.
        root: where the data set's files are.
        jobs: how many runs there are side by side; seconds are comparable where there is one.

    Returns:
        The record's path.
    """
    target = records / f"{name}_seed{seed}.json"
    if target.is_file():
        return target
    start, method, split = perf_counter(), preset.methods[name], scenes_of(preset, root)
    here = folder / name / f"seed{seed}"
    config = config_of(preset, method, seed, folder)
    afresh = not (here / "last.ckpt").is_file()
    with Measure() as cost:
        fitted = _train(preset, method, split, config, here, seed)
    trained = (load_global_local if method.kind == "fusion" else load_checkpoint)(fitted.checkpoint)
    ways = _ways(preset, method, trained, folder, seed)
    scored = {way: _score(preset, label, split.test, here / way) for way, label in ways.items()}
    chosen = _chosen(preset, method, ways, split, here)
    RunRecord(
        command=["rsseglab", *sys.argv[1:]],
        configuration={"preset": asdict(preset), "compared": name, "jobs": jobs, **asdict(config)},
        metrics={
            "pooled": {
                "title": method.title,
                "ways": {way: pooled for way, (pooled, _) in scored.items()},
                "chosen": chosen,
                "val_mean_iou": fitted.val_mean_iou,
                "training_seconds": fitted.seconds,
                "training_peak_mib": cost.peak_mib if afresh else None,  # of a part of the run
                "parameters": fitted.parameters + (_parameters(_segmenter(method, folder, seed)) if method.of else 0),
                "gflops_per_mpx": None
                if method.of
                else _gflops(preset, method, trained, split.test[-1], chosen["way"]),
                "pixels_seen": _pixels_seen(preset, method, config),
                "checkpoint_sha256": hashlib.sha256(fitted.checkpoint.read_bytes()).hexdigest(),
            },
            "scenes": {way: {"scenes": scenes} for way, (_, scenes) in scored.items()},
        },
        seeds=[seed],
        minutes=(perf_counter() - start) / 60,
    ).write(target)
    return target


def _pixels_seen(preset: Preset, method: Method, config: TrainConfig) -> int:
    """Of training; the first stage or segmenters, fusion's thumbnails and contexts included."""
    seen = config.steps * config.batch_size * (config.crop_px or 0) ** 2
    first = preset.steps * preset.batch * preset.window_px**2 if method.stage == 2 and not method.of else 0
    small = config.steps * config.batch_size * preset.global_px**2 if method.kind == "fusion" else 0
    if method.of:  # both segmenters, the one in full and the one stopped early
        its = preset.methods[method.of]
        seen += int((1 + EARLY_SHARE) * preset.steps * preset.batch * preset.window_px**2 * (1 + _wide(its)))
        return seen + config.steps * config.batch_size * (config.crop_px or 0) ** 2 * _wide(method)
    return seen * (1 + _wide(method)) + first + small


def _parameters(trained: TrainedNetwork) -> int:
    return sum(p.numel() for p in trained.network.parameters())


def _wide(method: Method) -> int:
    """How many contexts are seen beside a patch."""
    return sum(scale != 1 for scale in (method.options or {}).get("contexts", ()))


def _train(preset: Preset, method: Method, split: Split, config: TrainConfig, folder: Path, seed: int) -> TrainResult:
    resume = (folder / "last.ckpt").is_file()
    if method.kind == "fusion":
        return fit_global_local(
            split.train, split.val, config, folder, global_px=preset.global_px, resume=resume, progress=False
        )
    if method.kind == "downsampled":
        train, val = ([in_memory(decimated(s, preset.downsample)) for s in part] for part in (split.train, split.val))
        return fit(train, val, config, folder, resume, progress=False)
    if method.kind == "points":
        clicked, grown = point_labels(split.train, folder.parents[1] / "labels", method.grown)
        return fit_method(clicked, split.val, config, folder, resume, progress=False, grown=grown)
    segmenter = _stopped_early(preset, method, split, folder, seed) if method.of else None
    return fit_method(split.train, split.val, config, folder, resume, progress=False, segmenter=segmenter)


def _segmenter(method: Method, folder: Path, seed: int) -> TrainedNetwork:
    """The network, trained in full, whose masks a method refines."""
    return load_checkpoint(folder / str(method.of) / f"seed{seed}" / "best.ckpt")


def _stopped_early(preset: Preset, method: Method, split: Split, folder: Path, seed: int) -> Path:
    """Checkpoint of the segmenter whose masks a refinement learns to mend: trained for a part of its steps.

    The schedule ends with them, where the paper stops one that would have gone on.
    """
    assert method.of is not None
    its = preset.methods[method.of]
    config = config_of(preset, its, seed, folder)
    config = replace(config, steps=max(1, int(EARLY_SHARE * config.steps)))
    place = folder / "segmenter"
    resume = (place / "last.ckpt").is_file()
    fit_method(split.train, split.val, config, place, resume, progress=False)
    return place / "last.ckpt"


def _ways(preset: Preset, method: Method, trained: TrainedNetwork, folder: Path, seed: int) -> dict[str, Any]:
    """The ways in which a trained method labels a scene: name -> function (scene, path) -> Prediction."""
    if method.kind == "downsampled":
        return {"whole": lambda s, path: predict_decimated(trained, s, preset.downsample, path, progress=False)}
    croppings = preset.croppings(method.crop_px or preset.crop_px)
    if method.of:  # the segmenter that was not stopped, its masks refined patch by patch and laid side by side
        segmenter = _segmenter(method, folder, seed)
        merging = croppings[preset.merging] if preset.merging else next(iter(croppings.values()))
        side_by_side = Cropping(merging.window_px, 0, "flat")
        refine = partial(predict_by_crops, refiner=trained, refining=side_by_side, progress=False)
        return {"whole": lambda s, p: refine(segmenter, s, p, merging)}
    if method.kind == "fusion":
        return {n: lambda s, p, c=c: predict_fusion(trained, s, p, c, progress=False) for n, c in croppings.items()}
    if method.kind in ("crops", "contexts", "embeddings", "points"):
        return {n: lambda s, p, c=c: predict_by_crops(trained, s, p, c, progress=False) for n, c in croppings.items()}
    grid = Grid.parse(preset.tiles)
    layout = Layout(grid.rows, grid.cols)
    ways: dict[str, Any] = {"whole": lambda s, path: predict_whole(trained, s, path, layout, progress=False)}
    if preset.data != "twins":  # by test window, beside the published curves
        tiled = replace(trained, network=Tiled(trained.network, layout))
        sides = [side for side in (preset.crop_px, preset.window_px) if side // max(grid.rows, grid.cols) >= 32]
        for side in sides:
            c = Cropping(side, 0)
            ways[f"windows of {side} px"] = lambda s, p, c=c: predict_scene(tiled, s, p, c, progress=False)
    return ways


def _score(
    preset: Preset, label: Any, scenes: Sequence[Scene], folder: Path
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Label the scenes in one way; the pooled scores with what it cost, and each scene's block counts."""
    seconds, peak_mib, evaluations, counts, indices = 0.0, 0.0, [], {}, []
    for scene in scenes:
        path = folder / f"{scene.name}.tif"
        done = label(scene, path)
        seconds, peak_mib = seconds + done.seconds, max(peak_mib, done.peak_mib)
        evaluations.append(evaluate_scene(path, scene, placement=_borders(preset, scene, path)))
        if preset.data == "twins":
            indices.append(index_reader(path, scene)(scene.window))
        counts[scene.name] = count_blocks(path, scene, block_px=max(32, BLOCK_PX // preset.decimate)).to_json()
    pooled: dict[str, Any] = pool(evaluations).metrics()
    if folder.name.startswith("windows of"):  # the raster names the windows, and not the tiles that these are cut in
        pooled = {key: value for key, value in pooled.items() if not key.startswith("seam")}
    if preset.data == "twins":
        truth = [scene.read_label() for scene in scenes]
        pooled["pair_accuracy"] = label_pair_accuracy(np.stack(indices), np.stack(truth))
        pooled["pair_accuracies"] = [
            label_pair_accuracy(np.stack(indices[i : i + 2]), np.stack(truth[i : i + 2]))
            for i in range(0, len(scenes), 2)
        ]
    pixels = sum(scene.height * scene.width for scene in scenes)
    return {**pooled, "seconds_per_mpx": seconds / pixels * 1e6, "peak_mib": peak_mib}, counts


def _borders(preset: Preset, scene: Scene, path: Path) -> Placement | None:
    """Where seams would be: window borders that the raster names; for a whole scene in tiles, the tiles'."""
    if "tiles" not in read_tags(path):
        return None
    grid = Grid.parse(preset.tiles)
    tall, wide = (-(-n // (p * 32)) * 32 for n, p in ((scene.height, grid.rows), (scene.width, grid.cols)))
    return Placement(range(0, scene.height, tall), range(0, scene.width, wide), (tall, wide))


def _chosen(preset: Preset, method: Method, ways: dict[str, Any], split: Split, folder: Path) -> dict[str, Any]:
    """Of several ways the one that labels the validation scenes best, and all their scores; else the whole scene."""
    if method.kind in ("scene", "downsampled", "refined"):
        return {"way": "whole", "val_mean_iou": None, "scores": {}}
    scores = {}
    for way, label in ways.items():
        paths = [folder / "val" / way / f"{scene.name}.tif" for scene in split.val]
        for scene, path in zip(split.val, paths, strict=True):
            label(scene, path)
        pairs = zip(paths, split.val, strict=True)
        scores[way] = pool([evaluate_scene(path, scene) for path, scene in pairs]).confusion.mean_iou()
    best = max(scores, key=lambda way: scores[way])
    return {"way": best, "val_mean_iou": scores[best], "scores": scores}


def _gflops(preset: Preset, method: Method, trained: TrainedNetwork, scene: Scene, way: str) -> float:
    """Of labelling a scene that way, per million of its pixels: overlapping windows count as often as they are."""
    network, bands = trained.network.eval(), len(trained.bands)
    height, width = (-(-n // 32) * 32 for n in (scene.height, scene.width))
    windows = 1
    with torch.no_grad(), flop_counter() as counter:
        if method.kind == "scene":
            grid = Grid.parse(preset.tiles)
            Tiled(network, Layout(grid.rows, grid.cols))(torch.zeros(1, bands, height, width))
        elif method.kind == "downsampled":
            small = (-(-n // (32 * preset.downsample)) * 32 for n in (scene.height, scene.width))
            network(torch.zeros(1, bands, *small))
        else:
            side = method.crop_px or preset.crop_px
            cropping = preset.croppings(side)[way]
            windows = len(cropping.starts(scene.height)) * len(cropping.starts(scene.width))
            crop = torch.zeros(1, bands, side, side)
            if method.kind == "contexts":
                network(crop, torch.zeros(1, _wide(method), bands, side, side))
            elif method.kind == "fusion":
                small_scene = torch.zeros(1, bands, preset.global_px, preset.global_px)
                network(crop, small_scene, torch.tensor([[0.0, 0.0, 0.5, 0.5]]))
            else:
                network(crop)
    with torch.no_grad(), flop_counter() as shared:  # the whole scene, as a context, is looked at once for all windows
        for _ in range((method.options or {}).get("contexts", ()).count(GLOBAL)):
            network.look(0, crop)  # type: ignore[operator]
    flops = counter.get_total_flops() * windows - shared.get_total_flops() * (windows - 1)
    return float(flops) / 1e9 / (scene.height * scene.width / 1e6)


def preset_of(data: str, quick: bool = False, gpu: bool = False) -> Preset:
    """The comparison on a data set: for a CPU in an hour or two, in minutes (``quick``), or for a GPU.

    Args:
        data: as `Preset.data`; of a protocol such as "dubai:without_2" all but the split is the data set's, and that
            one fold is compared alone.
        quick: a few steps on small scenes.
        gpu: large windows, a larger network, many steps.

    Raises:
        UserError: there is no such comparison.
    """
    if quick and not data.startswith("twins"):
        return replace(PRESETS["quick"], data=data)
    name = data.partition(":")[0] + ("-gpu" if gpu else "")
    if name not in PRESETS or quick:
        known = ", ".join(n for n in PRESETS if n != "quick")
        raise UserError(f"there is no comparison '{name}'{' --quick' if quick else ''}; choose one of {known}.")
    preset = PRESETS[name]
    return replace(preset, data=data, folds=()) if ":" in data else preset


def compare(
    what: Preset,
    *,
    seeds: Sequence[int] | None = None,
    methods: Sequence[str] | None = None,
    out: Path | None = None,
    records: Path | None = None,
    root: Path | None = None,
    jobs: int = 1,
) -> Path:
    """Run what of a comparison has not been run yet.

    Args:
        what: the comparison.
        seeds: its own when not given.
        methods: names of methods; all when not given.
        out: for checkpoints and predictions.
        records: for the records, one a run; ``out/records`` when not given.
        root: where the data set's files are.
        jobs: runs side by side, a thread each.

    Returns:
        The folder of records.

    Raises:
        UserError: a name is unknown; data or disk are wrong.
    """
    if unknown := sorted(set(methods or ()) - what.methods.keys()):
        raise UserError(f"unknown method '{unknown[0]}'; choose among {', '.join(what.methods)}.")
    out = out or Path("outputs/compare") / what.data
    records = records or out / "records"
    if what.folds:
        _compare_folds(what, records, out, seeds=seeds, methods=methods, root=root, jobs=jobs)
        return records
    names = [name for name in what.methods if not methods or name in methods]
    # The second stage starts from a checkpoint of the first, so it waits for all first ones.
    for stage in (1, 2):
        runs = [(n, s) for s in (seeds or what.seeds) for n in names if what.methods[n].stage == stage]
        earlier = {what.methods[n].of or f"crops-{what.crop_px}": n for n, _ in runs} if stage == 2 else {}
        for first, second in earlier.items():
            if first not in names:
                raise UserError(f"{second} starts from {first}; compare that too.")
        _run_all(what, runs, out, records, root, jobs)
    return records


def _compare_folds(what: Preset, records: Path, out: Path, **how: Any) -> None:
    """A comparison on each fold, in a folder of its own, and records of all folds together."""
    ones = {fold: replace(what, data=f"{what.data}:{fold}", folds=()) for fold in what.folds}
    of_folds = [read_records(compare(one, out=out / fold, **how)) for fold, one in ones.items()]
    for name, runs in merge_folds(of_folds, asdict(what)).items():
        for seed, record in runs.items():
            record.write(records / f"{name}_seed{seed}.json")


def _run_all(
    preset: Preset, runs: Sequence[tuple[str, int]], out: Path, records: Path, root: Path | None, jobs: int
) -> None:
    todo = [(n, s) for n, s in runs if not (records / f"{n}_seed{s}.json").is_file()]
    if jobs == 1:
        for name, seed in todo:
            _say(run_method(preset, name, seed, out, records, root, jobs))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, context, initializer=_begin_worker) as pool_:
        waiting = [pool_.submit(run_method, preset, name, seed, out, records, root, jobs) for name, seed in todo]
        for future in waiting:
            _say(future.result())


def _begin_worker() -> None:
    """One thread; and an end when the parent process ends, however it does: a run by itself would go on for minutes."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _say(path: Path) -> None:
    record = RunRecord.read(path)
    pooled = record.metrics["pooled"]
    way = pooled["ways"][pooled["chosen"]["way"]]
    score = f"pair accuracy {way['pair_accuracy']:.3f}" if "pair_accuracy" in way else f"mIoU {way['mean_iou']:.3f}"
    print(f"{path.stem}: {score}, {record.minutes:.1f} min", flush=True)
