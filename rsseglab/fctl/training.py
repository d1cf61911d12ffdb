"""Train FCtL as the cropped baseline is trained: same crops, augmentation, steps, schedule and seeds, and contexts.

Joint training trains everything at once, the contexts seen by the patch's own encoder. Staged training is the
published way: for each context a network of its own, patch and context seen by one encoder; then the whole network,
whose contexts are seen by frozen copies of these encoders.

What the published stages have and these do not: a stage of the whole scene alone (DeepGlobe's), which trains an FCN-8s
on thumbnails without patches, is here a stage like the others.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from rsseglab.errors import UserError
from rsseglab.fctl.contexts import Contexts
from rsseglab.scenes.datamodule import CropDataset, Sample, SceneDataModule, WindowDataset, place_of
from rsseglab.scenes.scene import Scene
from rsseglab.training.checkpoint import load_checkpoint
from rsseglab.training.fit import (
    TrainConfig,
    TrainResult,
    check_in_one_process,
    data_settings,
    run_fit,
    start_from,
    task_settings,
)
from rsseglab.training.task import SceneSegmentationTask

STAGES = ("joint", "published")


class ContextDataset(Dataset[Sample]):
    """Windows of scenes, each with its contexts, which are flipped, turned and shaded as it is.

    Args:
        windows: where the windows lie.
        contexts: of every scene.
        fill: shape (bands), the value of what has no data.
    """

    def __init__(
        self, windows: CropDataset | WindowDataset, contexts: Mapping[Scene, Contexts], fill: torch.Tensor
    ) -> None:
        self.windows, self.contexts, self.fill = windows, contexts, fill

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Sample:
        """The window's ``image`` and ``mask``, and ``contexts`` (S, bands, patch_px, patch_px)."""
        scene, window, augmentation, shade = place_of(self.windows, index)
        wide = []
        for pixels, valid in self.contexts[scene].read(window):
            image = shade(torch.from_numpy(pixels))
            wide.append(augmentation.move(torch.where(torch.from_numpy(valid), image, self.fill[:, None, None])))
        side = self.contexts[scene].patch_px
        stack = torch.stack(wide) if wide else torch.empty(0, scene.count, side, side)
        return {**self.windows[index], "contexts": stack}


class ContextDataModule(SceneDataModule):
    """The crops and windows of `SceneDataModule`, each with its contexts.

    Args:
        train: scenes with labels to train on.
        val: scenes with labels to validate on.
        scales: of the contexts that are read, see `rsseglab.fctl.contexts`.
        edge: likewise.
        raw: whether pixels are numbers of their own, such as probabilities: neither normalised, nor varied in
            brightness and contrast, and 0 without data.
        **kwargs: of `SceneDataModule`; validation windows are as large as crops.

    Raises:
        UserError: as `SceneDataModule` and `Contexts`; windows of another size than crops, or whole scenes.
    """

    def __init__(
        self,
        train: Sequence[Scene],
        val: Sequence[Scene],
        *,
        scales: Sequence[float | str] = (2, 3),
        edge: str = "pad",
        raw: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(train, val, **kwargs)
        self.raw = raw
        if raw:
            self.mean, self.std = torch.zeros_like(self.mean), torch.ones_like(self.std)
        if self.crop_px is None:
            raise UserError(
                "a context is that of a patch, so there is none of a whole scene; give patches with --crop."
            )
        if self.val_window_px != self.crop_px:
            raise UserError(
                f"a context is that of a patch of {self.crop_px} px, so validation windows of {self.val_window_px} px "
                "do not fit; give both the same side."
            )
        self.contexts = {scene: Contexts(scene, self.crop_px, scales, edge) for scene in (*train, *val)}

    def setup(self, stage: str) -> None:
        """Make the data sets; called by Lightning."""
        super().setup(stage)
        self.train_dataset.shades = not self.raw  # type: ignore[union-attr]
        self.train_dataset = ContextDataset(self.train_dataset, self.contexts, self.mean)  # type: ignore[arg-type]
        self.val_dataset = ContextDataset(self.val_dataset, self.contexts, self.mean)  # type: ignore[arg-type]

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Normalise both."""
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return {**batch, "contexts": self.normalize(batch["contexts"])}


def fit_contexts(
    train: Sequence[Scene],
    val: Sequence[Scene],
    config: TrainConfig,
    folder: Path,
    *,
    stages: Mapping[float | str, Path] | None = None,
    raw: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train a network that reads contexts, as `rsseglab.training.fit.fit` trains a cropped one.

    A seed gives the very crops, in the same order and augmented alike, that ``fit`` gives for it.

    Args:
        train: scenes to train on.
        val: scenes to select by, in windows of a crop's size.
        config: the run; its ``options`` name the scales of ``contexts``, 2 alone if they do not, and their ``edge``.
        folder: where checkpoints and the log go.
        stages: checkpoints of networks of one context each, by scale, to start from.
        raw: see `ContextDataModule`.
        resume: go on from ``last.ckpt``, where there is one.
        progress: whether to draw a progress bar.

    Raises:
        UserError: as ``fit``; or the run asks for tiles, which patches with contexts are not cut in, or for ranks.
        KeyboardInterrupt: Ctrl-C; ``last.ckpt`` stays.
    """
    check_in_one_process(config)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.manual_seed(config.seed)
    options = config.options or {}
    config = replace(config, val_window_px=config.crop_px)
    scales = [scale for scale in options.get("contexts", (2,)) if scale != 1]
    edge = options.get("edge", "pad")
    data = ContextDataModule(train, val, scales=scales, edge=edge, raw=raw, **data_settings(config))
    task = SceneSegmentationTask(**task_settings(config, data))
    resumed = (folder / "last.ckpt").is_file()
    start_from(task.model, config, resumed)
    if stages and not resumed:
        task.model.load_stages({scale: load_checkpoint(path).network for scale, path in stages.items()})
    return run_fit(task, data, config, folder, resume, progress)


def fit_fctl(
    train: Sequence[Scene],
    val: Sequence[Scene],
    config: TrainConfig,
    folder: Path,
    resume: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train `FCtL`, jointly or in the published stages (``stages`` among the options).

    Stages are runs of their own in ``folder/context_SCALE``, each of as many steps as the last.

    Args:
        train: scenes to train on.
        val: scenes to select by.
        config: the run; see `FCtL` for its options.
        folder: where checkpoints and the log go.
        resume: go on where the run was interrupted, in whichever stage.
        progress: whether to draw a progress bar.

    Raises:
        UserError: as `fit_contexts`; or ``stages`` is unknown, or would train one context twice.
        KeyboardInterrupt: Ctrl-C; ``last.ckpt`` stays.
    """
    options = {"contexts": [1, 2, 3], **(config.options or {})}
    config = replace(config, options=options)
    way = options.get("stages", "joint")
    if way not in STAGES:
        raise UserError(f"there are no stages '{way}'; choose {' or '.join(STAGES)}.")
    wide = [scale for scale in options["contexts"] if scale != 1]
    if way == "joint" or not wide:
        return fit_contexts(train, val, config, folder, resume=resume, progress=progress)
    if len(set(wide)) < len(wide):
        raise UserError("published stages train each context once; name none twice, or train jointly.")
    done: dict[float | str, Path] = {}
    for scale in wide:
        one = replace(config, options={**options, "contexts": [scale], "streams": "shared"})
        place = folder / f"context_{scale}"
        goes_on = resume and (place / "last.ckpt").is_file()
        done[scale] = fit_contexts(train, val, one, place, resume=goes_on, progress=progress).checkpoint
    last = replace(config, init=None, options={**options, "streams": "frozen"})
    goes_on = resume and (folder / "last.ckpt").is_file()
    return fit_contexts(train, val, last, folder, stages=done, resume=goes_on, progress=progress)
