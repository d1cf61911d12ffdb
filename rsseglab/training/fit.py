"""Train a cropped baseline on scenes, and keep the best checkpoint by validation."""

import logging
import math
import signal
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.trainer.states import TrainerStatus
from tqdm.auto import tqdm

from rsseglab.errors import UserError
from rsseglab.scenes.datamodule import SceneDataModule
from rsseglab.scenes.scene import Scene
from rsseglab.training.checkpoint import describe, load_state
from rsseglab.training.losses import LOSSES
from rsseglab.training.task import SceneSegmentationTask

PRECISIONS = ("auto", "32-true", "16-mixed", "bf16-mixed", "64-true")


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
        precision: Lightning's name, one of `PRECISIONS`; "auto" for bfloat16 or float16 AMP where the device has it.
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
            if not 0 < getattr(self, name) < 2**31:
                raise UserError(f"{name} is {getattr(self, name)}; it must be greater than 0, and no huge number.")
        for name in ("seed", "num_workers", "weight_decay"):
            if not 0 <= getattr(self, name) < 2**31:
                raise UserError(f"{name} is {getattr(self, name)}; it must be neither negative nor huge.")
        for name in ("crop_px", "val_window_px"):
            side = getattr(self, name)
            if side is not None and (not 0 < side < 2**16 or side % 32):
                raise UserError(f"{name} is {side}; it must be a multiple of 32, such as 256.")
        choices = {"schedule": ("cosine", "poly"), "loss": LOSSES, "precision": PRECISIONS}
        for name, known in choices.items():
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
        resume: go on from ``last.ckpt``, where there is one: the run repeats, step by step and validation by
            validation, the one that was not interrupted.
        progress: whether to draw a progress bar.

    Raises:
        UserError: a scene or a setting is wrong; the folder holds another run; the loss is not finite; the disk is
            full.
        KeyboardInterrupt: Ctrl-C; ``last.ckpt`` stays.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # no news of devices, no advertisements
    torch.manual_seed(config.seed)
    data = SceneDataModule(
        train,
        val,
        crop_px=config.crop_px,
        batch_size=config.batch_size,
        steps=config.steps,
        val_every=config.val_every,
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
        metadata={**describe(train[0], data.mean, data.std, config.crop_px), "config": asdict(config)},
    )
    last = folder / "last.ckpt"
    if last.is_file():
        _check_same_run(last, task, resume)
    keep = KeepCheckpoints(folder, every=max(1, config.val_every // 2))
    start = perf_counter()
    try:
        _keep_log(folder)
        trainer = make_trainer(config, folder, [keep, *([StepProgress()] if progress else [])])
        with warnings.catch_warnings():
            # Advice of Lightning's on workers and loggers that does not apply to runs of minutes.
            warnings.filterwarnings("ignore", module="lightning")
            _run(trainer, task, data, last if last.is_file() else None)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}); free some space or choose another --out.") from error
    return TrainResult(
        checkpoint=keep.best,
        val_mean_iou=keep.best_score,
        seconds=perf_counter() - start,
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
    """Lightning's trainer for a run: one device, as many steps as asked, a CSV log."""
    return Trainer(
        accelerator="auto",
        devices=1,
        precision=_precision(config.precision),  # type: ignore[arg-type]
        max_steps=config.steps,
        check_val_every_n_epoch=1,
        reload_dataloaders_every_n_epochs=1,  # the last epoch may be shorter
        num_sanity_val_steps=0,
        log_every_n_steps=10,
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


class KeepCheckpoints(Callback):
    """Keeps ``best.ckpt`` by validation, and ``last.ckpt`` after each validation and between two of them.

    Lightning's own callback would also save after the last step *before* a validation, and a run resumed from there
    skips that validation; and it keeps absolute paths, so that a run's folder could not be moved.

    Args:
        folder: where they go.
        every: steps between two checkpoints.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self.best_score = -math.inf

    @property
    def best(self) -> Path:
        """The best checkpoint so far."""
        return self.folder / "best.ckpt"

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know."""
        return {"best_score": self.best_score}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        self.best_score = state["best_score"]

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """Save between two validations."""
        ends_epoch = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if trainer.global_step % self.every == 0 and not ends_epoch:
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
            trainer.save_checkpoint(part)
            part.replace(path)
        finally:
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
