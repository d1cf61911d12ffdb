"""Train a cropped baseline on scenes, and keep the best checkpoint by validation."""

import logging
import signal
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.states import TrainerStatus
from tqdm.auto import tqdm

from rsseglab.errors import UserError
from rsseglab.scenes.datamodule import SceneDataModule
from rsseglab.scenes.scene import Scene
from rsseglab.training.checkpoint import describe
from rsseglab.training.losses import LOSSES
from rsseglab.training.task import SceneSegmentationTask


@dataclass(frozen=True)
class TrainConfig:
    """What a run depends on, beside the scenes.

    Attributes:
        encoder: name, see `rsseglab.encoders`.
        decoder: name, see `rsseglab.decoders`.
        weights: of the encoder, see `rsseglab.encoders`; ``None`` for random.
        steps: length of the run.
        batch_size: crops a step.
        crop_px: side of a crop, a multiple of 32.
        lr: highest learning rate.
        weight_decay: of AdamW.
        schedule: "cosine" or "poly".
        loss: "ce", "dice" or "ce+dice".
        val_every: steps between two validations.
        val_window_px: side of a validation window; ``None`` for whole scenes.
        augment: whether crops are flipped, turned and varied in brightness and contrast.
        seed: of everything random.
        num_workers: processes that read ahead.
        precision: Lightning's name; "auto" for bfloat16 or float16 AMP where the device has it.
    """

    encoder: str = "resnet18"
    decoder: str = "unet"
    weights: str | None = None
    steps: int = 1000
    batch_size: int = 8
    crop_px: int = 256
    lr: float = 1e-3
    weight_decay: float = 1e-2
    schedule: str = "cosine"
    loss: str = "ce+dice"
    val_every: int = 100
    val_window_px: int | None = 512
    augment: bool = True
    seed: int = 0
    num_workers: int = 0
    precision: str = "auto"

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "val_every", "lr"):
            if getattr(self, name) <= 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be greater than 0.")
        for name in ("crop_px", "val_window_px"):
            side = getattr(self, name)
            if side is not None and (side <= 0 or side % 32):
                raise UserError(f"{name} is {side}; it must be a multiple of 32, such as {max(side // 32, 1) * 32}.")
        for name, known in (("schedule", ("cosine", "poly")), ("loss", LOSSES)):
            if getattr(self, name) not in known:
                raise UserError(f"unknown {name} '{getattr(self, name)}'; choose one of {', '.join(known)}.")


@dataclass(frozen=True)
class TrainResult:
    """What a run left.

    Attributes:
        checkpoint: the best by validation.
        val_mean_iou: its mean IoU over the classes on validation windows.
        seconds: training time, of this session only where the run was resumed.
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
        resume: go on from ``last.ckpt`` if there is one: the run then repeats, step by step, the one that was not
            interrupted.
        progress: whether to draw a progress bar.

    Raises:
        UserError: a scene or a setting is wrong.
        KeyboardInterrupt: Ctrl-C; ``last.ckpt`` stays.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no news of devices, no advertisements
    torch.manual_seed(config.seed)
    data = SceneDataModule(
        train,
        val,
        crop_px=config.crop_px,
        batch_size=config.batch_size,
        steps_per_epoch=min(config.val_every, config.steps),
        val_window_px=config.val_window_px,
        augment=config.augment,
        seed=config.seed,
        num_workers=config.num_workers,
    )
    task = SceneSegmentationTask(
        model=config.decoder,
        backbone=config.encoder,
        weights=config.weights,
        in_channels=train[0].count,
        num_classes=len(train[0].classes),
        loss=config.loss,
        lr=config.lr,
        weight_decay=config.weight_decay,
        schedule=config.schedule,
        steps=config.steps,
        warmup_steps=min(20, config.steps // 10),
        seed=config.seed,
        metadata=describe(train[0], data.mean, data.std, config.crop_px),
    )
    last = folder / "last.ckpt"
    resume = resume and last.is_file()
    _keep_log(folder)
    best = ModelCheckpoint(
        folder,
        "best",
        monitor=task.monitor,
        mode=task.mode,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )
    trainer = make_trainer(config, folder, [best, _keep_last(folder, config), *([StepProgress()] if progress else [])])
    start = perf_counter()
    with warnings.catch_warnings():
        # Advice of Lightning's on workers and loggers that does not apply to runs of minutes.
        warnings.filterwarnings("ignore", module="lightning")
        _run(trainer, task, data, last if resume else None)
    return TrainResult(
        checkpoint=Path(best.best_model_path),
        val_mean_iou=float(best.best_model_score) if best.best_model_score is not None else float("nan"),
        seconds=perf_counter() - start,
        parameters=sum(p.numel() for p in task.model.parameters()),
    )


def make_trainer(config: TrainConfig, folder: Path, callbacks: list[Callback]) -> Trainer:
    """Lightning's trainer for a run: one device, as many steps as asked, a CSV log."""
    return Trainer(
        accelerator="auto",
        devices=1,
        precision=_precision(config.precision),  # type: ignore[arg-type]
        max_steps=config.steps,
        check_val_every_n_epoch=1,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        logger=CSVLogger(folder, name="", version=""),
        callbacks=callbacks,
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


def _keep_last(folder: Path, config: TrainConfig) -> ModelCheckpoint:
    every = max(1, min(config.val_every, config.steps) // 2)
    return ModelCheckpoint(folder, "last", every_n_train_steps=every, save_top_k=1, enable_version_counter=False)


def _precision(name: str) -> str:
    if name != "auto":
        return name
    if not torch.cuda.is_available():
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
