"""Train on crops, large windows or whole scenes, over any number of ranks, and keep the best by validation."""

import hashlib
import logging
import math
import os
import signal
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.environments import TorchElasticEnvironment
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerStatus
from tqdm.auto import tqdm

from rsseglab.encoders import band_wavelengths, local_weights
from rsseglab.errors import UserError
from rsseglab.launch import launch, under_torchrun
from rsseglab.scenes.datamodule import SceneDataModule
from rsseglab.scenes.scene import Scene, fingerprint
from rsseglab.spatial import Layout
from rsseglab.training.checkpoint import describe, load_checkpoint, load_state
from rsseglab.training.losses import LOSSES
from rsseglab.training.networks import ANY_SIZE, METHODS, load_weights_of
from rsseglab.training.ranks import Grid, Ranks, check_same, join_ranks
from rsseglab.training.task import SceneSegmentationTask

PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed", "64-true")


@dataclass(frozen=True)
class TrainConfig:
    """What a run depends on, beside the scenes.

    Attributes:
        encoder: name, see `rsseglab.encoders`.
        decoder: name, see `rsseglab.decoders`.
        weights: of the encoder, see `rsseglab.encoders`; ``None`` for random.
        method: a key of `rsseglab.training.networks.METHODS`.
        options: of the method, in plain types.
        init: checkpoint of a run to start from: the first of two stages.
        freeze_early: whether the encoder's early stages stay as they are (methods that know how).
        spatial: tiles that each crop is cut in, "4" or "2x2", a rank each.
        in_process: whether this process holds all tiles instead: a laptop, a single GPU.
        steps: length of the run.
        batch_size: crops a step, of each data group.
        crop_px: side of a crop, a multiple of 32 but for methods that take any; ``None`` for whole scenes.
        lr: highest learning rate.
        weight_decay: of AdamW.
        schedule: "cosine", "poly" or "linear".
        warmup_steps: steps over which the rate grows; a tenth of the run, at most 20, when not given.
        clip: norm that the gradient, of all parameters and ranks together, is cut down to; not when not given.
        loss: "ce", "dice", "ce+dice" or "focal".
        val_every: steps between two validations.
        val_window_px: side of a validation window; ``None`` for whole scenes.
        augment: whether crops are flipped, turned and varied in brightness and contrast.
        seed: of everything random.
        num_workers: processes that read ahead.
        offload: whether what the backward pass needs waits in the computer's memory instead of the GPU's.
        precision: Lightning's name, one of `PRECISIONS`; "auto" for bfloat16 or float16 AMP where the device has it.
    """

    encoder: str = "resnet18"
    decoder: str = "unet"
    weights: str | None = None
    method: str = "stock"
    options: dict[str, Any] | None = None
    init: str | None = None
    freeze_early: bool = False
    spatial: str = "1"
    in_process: bool = False
    steps: int = 1000
    batch_size: int = 8
    crop_px: int | None = 256
    lr: float = 1e-3
    weight_decay: float = 1e-2
    schedule: str = "cosine"
    warmup_steps: int | None = None
    clip: float | None = None
    loss: str = "ce+dice"
    val_every: int = 100
    val_window_px: int | None = 512
    augment: bool = True
    seed: int = 0
    num_workers: int = 0
    offload: bool = False
    precision: str = "auto"

    def __post_init__(self) -> None:
        choices = {
            "method": tuple(METHODS),
            "schedule": ("cosine", "poly", "linear"),
            "loss": LOSSES,
            "precision": PRECISIONS,
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UserError(f"unknown {name} '{getattr(self, name)}'; choose one of {', '.join(known)}.")
        for name in ("steps", "batch_size", "val_every", "lr"):
            if not 0 < getattr(self, name) < 2**31:
                raise UserError(f"{name} is {getattr(self, name)}; it must be greater than 0, and no huge number.")
        for name in ("seed", "num_workers", "weight_decay"):
            if not 0 <= getattr(self, name) < 2**31:
                raise UserError(f"{name} is {getattr(self, name)}; it must be neither negative nor huge.")
        step_px = 1 if self.method in ANY_SIZE else 32
        for name in ("crop_px", "val_window_px"):
            side = getattr(self, name)
            if side is not None and (not 0 < side < 2**16 or side % step_px):
                raise UserError(f"{name} is {side}; it must be a multiple of {step_px}, such as 256.")
        if self.clip is not None and not self.clip > 0:
            raise UserError(f"clip is {self.clip}; it must be greater than 0, such as 1.")
        Grid.parse(self.spatial)


@dataclass(frozen=True)
class TrainResult:
    """What a run left.

    Attributes:
        checkpoint: the best by validation.
        val_mean_iou: its mean IoU over the classes on validation windows.
        seconds: training time, of all sessions where the run was resumed.
        parameters: number of trained parameters.
    """

    checkpoint: Path
    val_mean_iou: float
    seconds: float
    parameters: int


def fit(
    train: Sequence[Scene],
    val: Sequence[Scene],
    config: TrainConfig,
    folder: Path,
    resume: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train on random crops.

    ``folder`` then holds ``best.ckpt`` (by validation), ``last.ckpt`` (to resume from) and ``metrics.csv``.

    Args:
        train: scenes to train on.
        val: scenes to select by.
        config: the run.
        folder: where checkpoints and the log go.
        resume: go on from ``last.ckpt``, where there is one: the run repeats, step by step and validation by
            validation, the one that was not interrupted.
        progress: whether to draw a progress bar.

    Under ``torchrun`` this process is one rank of many; else a run whose crops are cut in tiles starts its ranks
    itself, unless ``in_process``.

    Raises:
        UserError: a scene or a setting is wrong; the folder holds another run; the loss is not finite; the disk is
            full; ranks see different files.
        KeyboardInterrupt: Ctrl-C; ``last.ckpt`` stays.
    """
    grid = Grid.parse(config.spatial)
    if under_torchrun() or (grid.parts > 1 and not config.in_process):
        _check_tiles(grid, [*train, *val], config)
        kind = "cuda" if torch.cuda.is_available() else "cpu"
        args = (kind, train, val, config, folder, resume, progress)
        if under_torchrun():
            _check_gpus(kind, int(os.environ["LOCAL_WORLD_SIZE"]))
            return _fit_as_rank(*args)
        _check_gpus(kind, grid.parts)
        way_out = "use more machines (torchrun), smaller crops (--crop), or --checkpointing"
        return launch(grid.parts, kind, _fit_as_rank, *args, way_out=way_out)
    layout = Layout(grid.rows, grid.cols) if grid.parts > 1 else None
    return _fit(train, val, config, folder, resume, progress, layout)


def _check_tiles(grid: Grid, scenes: Sequence[Scene], config: TrainConfig) -> None:
    for side in (config.crop_px, config.val_window_px):
        for scene in scenes:
            height, width = (side, side) if side else (scene.height, scene.width)
            if height < grid.rows or width < grid.cols:
                raise UserError(f"{width} x {height} px can't be cut in {grid} tiles; choose fewer with --spatial.")


def _check_gpus(kind: str, here: int) -> None:
    if kind == "cuda" and torch.cuda.device_count() < here:
        raise UserError(
            f"{here} ranks need a GPU each and there are {torch.cuda.device_count()}; hold all tiles in one process "
            "(--in-process), or train on the CPU (CUDA_VISIBLE_DEVICES=)."
        )


def _fit_as_rank(
    kind: str,
    train: Sequence[Scene],
    val: Sequence[Scene],
    config: TrainConfig,
    folder: Path,
    resume: bool,
    progress: bool,
) -> TrainResult:
    ranks = join_ranks(Grid.parse(config.spatial), kind)
    check_same([asdict(config), [(s.name, s.height, s.width, s.bands) for s in (*train, *val)]], "settings or scenes")
    last = folder / "last.ckpt"
    step = load_state(last).get("global_step") if last.is_file() else None
    check_same(step, f"checkpoints in {folder.name}")
    files = (config.init, local_weights(config.encoder) if config.weights == "pretrained" else config.weights)
    check_same([_sha256(file) for file in files], "weights")
    return _fit(train, val, config, folder, resume, progress and dist.get_rank() == 0, ranks.layout, ranks)


def _fit(
    train: Sequence[Scene],
    val: Sequence[Scene],
    config: TrainConfig,
    folder: Path,
    resume: bool,
    progress: bool,
    layout: Layout | None,
    ranks: Ranks | None = None,
) -> TrainResult:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no news of devices, no advertisements
    torch.manual_seed(config.seed)
    data = SceneDataModule(
        train,
        val,
        **data_settings(config),
        part=ranks.part if ranks else None,
        group=ranks.group if ranks else 0,
        groups=ranks.groups if ranks else 1,
    )
    settings = task_settings(config, data)
    if ranks:
        check_same(settings["metadata"]["scenes"], "pixels or labels in the scenes")
    task = SceneSegmentationTask(**settings)
    task.layout, task.group = layout, ranks.group if ranks else 0
    start_from(task.model, config, resumed=(folder / "last.ckpt").is_file())
    return run_fit(task, data, config, folder, resume, progress)


def check_in_one_process(config: TrainConfig) -> None:
    """Whether a run is one of a single process, on patches that are not cut.

    Raises:
        UserError: it is not.
    """
    if under_torchrun():  # each rank would train by itself, and all of them write the same files
        raise UserError(f"{config.method} trains in one process; start it without torchrun.")
    if config.spatial != "1" or config.in_process or config.freeze_early:
        raise UserError(
            f"{config.method} trains on patches in one process; leave out --spatial, --in-process and --freeze-early."
        )


def data_settings(config: TrainConfig) -> dict[str, Any]:
    """What a run says to its data module, as arguments of `SceneDataModule`."""
    names = ["crop_px", "batch_size", "steps", "val_every", "val_window_px", "augment", "seed", "num_workers"]
    return {name: getattr(config, name) for name in names}


def task_settings(config: TrainConfig, data: SceneDataModule) -> dict[str, Any]:
    """What a run says to its task, as arguments of `SceneSegmentationTask`."""
    scene = data.train_scenes[0]
    same = ["weights", "loss", "lr", "weight_decay", "schedule", "steps", "seed", "method", "offload"]
    return {name: getattr(config, name) for name in same} | {
        "model": config.decoder,
        "backbone": config.encoder,
        "in_channels": scene.count,
        "num_classes": len(scene.classes),
        "warmup_steps": min(20, config.steps // 10) if config.warmup_steps is None else config.warmup_steps,
        "options": _options(config, scene),
        "metadata": {
            **describe(scene, data.mean, data.std, config.crop_px),
            "scenes": {
                split: [[s.name for s in scenes], fingerprint(scenes)]
                for split, scenes in (("train", data.train_scenes), ("val", data.val_scenes))
            },
            "config": asdict(config),
        },
    }


def _sha256(path: str | Path | None) -> str | None:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if path and Path(path).is_file() else None


def _options(config: TrainConfig, scene: Scene) -> dict[str, Any]:
    """A method's options, and what foundation models have to know of the scenes."""
    options = dict(config.options or {})
    if config.encoder.startswith(("dofa", "scalemae")):
        wavelengths = band_wavelengths(scene.bands)
        options |= {"gsd_m": scene.gsd_m, "wavelengths_um": None if wavelengths is None else list(wavelengths)}
    return options


def start_from(network: Any, config: TrainConfig, resumed: bool) -> None:
    """Take the first stage's weights, unless the run goes on with its own; freeze what the second does not train.

    Args:
        network: of the second stage.
        config: the run.
        resumed: whether the run goes on with its own weights.

    Raises:
        UserError: the first stage is of another network, or the method has no early stages.
    """
    if config.init is not None and not resumed:
        earlier = load_checkpoint(config.init).network
        if hasattr(network, "load_baseline"):
            network.load_baseline(earlier)
        else:
            load_weights_of(network, earlier)
    if config.freeze_early:
        if not hasattr(network, "freeze_early_stages"):
            raise UserError(f"method {config.method} has no early stages to freeze; leave --freeze-early out.")
        network.freeze_early_stages()


def run_fit(
    task: SceneSegmentationTask,
    data: SceneDataModule,
    config: TrainConfig,
    folder: Path,
    resume: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train a task on the windows of a data module; what `fit` and other methods of training share.

    Args:
        task: what is trained.
        data: what it is trained on.
        config: the run.
        folder: where checkpoints and the log go.
        resume: go on from ``last.ckpt``, where there is one.
        progress: whether to draw a progress bar.

    Raises:
        UserError: as `fit`.
        KeyboardInterrupt: Ctrl-C; ``last.ckpt`` stays.
    """
    last = folder / "last.ckpt"
    if last.is_file():
        _check_same_run(last, task, resume)
    if config.precision == "64-true":
        task.double()  # Lightning does so only after it has read a checkpoint, whose numbers would be cut to float32
    keep = KeepCheckpoints(folder, config.val_every)
    try:
        if not dist.is_initialized() or dist.get_rank() == 0:
            _keep_log(folder)
        trainer = make_trainer(config, folder, [keep, *([StepProgress()] if progress else [])])
        with warnings.catch_warnings():
            # Advice of Lightning's on workers and loggers that does not apply to runs of minutes.
            warnings.filterwarnings("ignore", module="lightning")
            warnings.filterwarnings("ignore", message=".*find_unused_parameters=True.*")
            _run(trainer, task, data, last if last.is_file() else None)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}); free some space or choose another --out.") from error
    return TrainResult(
        checkpoint=keep.best,
        val_mean_iou=keep.best_score,
        seconds=keep.seconds,
        parameters=sum(p.numel() for p in task.model.parameters()),
    )


def _check_same_run(last: Path, task: SceneSegmentationTask, resume: bool) -> None:
    if not resume:
        raise UserError(f"{last.parent} holds a run already; give --resume to go on with it, or another --out.")
    before, now = load_state(last)["hyper_parameters"]["metadata"], task.hparams["metadata"]
    for old, new in ((before.get("config", {}), now["config"]), (before, now)):
        for key in new:
            if old.get(key) != new[key]:
                raise UserError(
                    f"the run in {last.parent} has {key} = {old.get(key)}, not {new[key]}; "
                    "resume it with its own settings and data, or choose another --out."
                )


def make_trainer(config: TrainConfig, folder: Path, callbacks: list[Callback]) -> Trainer:
    """Lightning's trainer for a run: one device, or the ranks there are; as many steps as asked, a CSV log."""
    place: dict[str, Any] = {"accelerator": "auto", "devices": 1}
    if dist.is_initialized():
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        place = {
            "accelerator": "gpu" if dist.get_backend() == "nccl" else "cpu",
            "devices": here,
            "num_nodes": dist.get_world_size() // here,
            # A parameter may be idle, such as a level that a decoder does not look at.
            "strategy": DDPStrategy(find_unused_parameters=True),
            "plugins": [TorchElasticEnvironment()],
        }
    return Trainer(
        **place,
        gradient_clip_val=config.clip,
        use_distributed_sampler=False,
        precision=_precision(config.precision, place["accelerator"] != "cpu"),  # type: ignore[arg-type]
        max_steps=config.steps,
        check_val_every_n_epoch=1,
        reload_dataloaders_every_n_epochs=1,  # the last epoch may be shorter
        num_sanity_val_steps=0,
        log_every_n_steps=min(10, max(1, config.steps // 50)),
        logger=CSVLogger(folder, name="", version=""),
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )


def _keep_log(folder: Path) -> None:
    # Lightning starts metrics.csv anew; the log of the session before it moves aside.
    log = folder / "metrics.csv"
    if log.is_file():
        earlier = len(list(folder.glob("metrics.*.csv")))
        log.rename(folder / f"metrics.{earlier + 1}.csv")


def _precision(name: str, gpu: bool) -> str:
    if name != "auto":
        return name
    if not (gpu and torch.cuda.is_available()):
        return "32-true"
    return "bf16-mixed" if torch.cuda.is_bf16_supported() else "16-mixed"


def _run(trainer: Trainer, task: LightningModule, data: SceneDataModule, checkpoint: Path | None) -> None:
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(task, data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        # Lightning answers Ctrl-C by SystemExit(1) and leaves the signal ignored.
        if trainer.state.status == TrainerStatus.INTERRUPTED:
            signal.signal(signal.SIGINT, handler)
            raise KeyboardInterrupt from None
        raise


class KeepCheckpoints(Callback):
    """Keeps ``best.ckpt`` by validation, and ``last.ckpt`` after each validation and between two of them.

    Lightning's own callback would also save after the last step *before* a validation, and a run resumed from there
    skips that validation; and it keeps absolute paths, so that a run's folder could not be moved.

    Args:
        folder: where they go.
        val_every: steps between two validations.
    """

    def __init__(self, folder: Path, val_every: int) -> None:
        self.folder, self.val_every = folder, val_every
        self.best_score = -math.inf
        self._before, self._start = 0.0, perf_counter()

    @property
    def best(self) -> Path:
        """The best checkpoint so far."""
        return self.folder / "best.ckpt"

    @property
    def seconds(self) -> float:
        """Wall-clock time so far, of the sessions before included."""
        return self._before + perf_counter() - self._start

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know."""
        return {"best_score": self.best_score, "seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        self.best_score, self._before = state["best_score"], state["seconds"]

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Save half-way between two validations."""
        ends_epoch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if trainer.global_step % self.val_every == self.val_every // 2 and not ends_epoch:
            self._save(trainer, self.folder / "last.ckpt")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Save after a validation."""
        score = float(trainer.callback_metrics["val_mean_iou"])
        if score > self.best_score:
            self.best_score = score
            self._save(trainer, self.best)
        self._save(trainer, self.folder / "last.ckpt")

    def _save(self, trainer: Trainer, path: Path) -> None:
        # Lightning copies the file into place; a full disk or a kill would leave half of it, and no older one.
        part = path.with_name(f"{path.name}.part")
        try:
            trainer.save_checkpoint(part)  # all ranks meet here, the first one writes
            if trainer.is_global_zero:
                part.replace(path)
        finally:
            if trainer.is_global_zero:
                part.unlink(missing_ok=True)


class StepProgress(Callback):
    """One bar over all steps, with the loss and the last validation's mean IoU."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Draw the bar."""
        self._bar = tqdm(total=trainer.max_steps, initial=trainer.global_step, desc="training", unit="step")

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, outputs: Any, *_: Any) -> None:
        """Advance it."""
        shown = {"loss": f"{float(outputs['loss']):.3f}"}
        if "val_mean_iou" in trainer.callback_metrics:
            shown["val_mIoU"] = f"{float(trainer.callback_metrics['val_mean_iou']):.3f}"
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Close it."""
        self.teardown(trainer, module, "fit")

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """Close it."""
        if hasattr(self, "_bar"):
            self._bar.close()
