"""Train PENet as the cropped baseline is trained: same crops, augmentation, steps, schedule and seeds; few labels.

Training scenes have clicks for their labels (`rsseglab.scenes.points.with_points`), and maybe a second label that the
clicks have grown to (`rsseglab.penet.growing`). Validation scenes have dense labels, so that runs are selected alike:
who has points alone selects by points.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from rsseglab.scenes.datamodule import CropDataset, Sample, SceneDataModule, place_of
from rsseglab.scenes.scene import IGNORE_INDEX, Scene, fingerprint
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


class GrownDataset(Dataset[Sample]):
    """Crops with clicks, each with what the clicks have grown to, flipped and turned as it is.

    Args:
        crops: of scenes whose labels are clicks.
        grown: for each of these scenes the one that has the grown label; nothing has grown in others.
    """

    def __init__(self, crops: CropDataset, grown: Mapping[Scene, Scene]) -> None:
        self.crops, self.grown = crops, grown

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, index: int) -> Sample:
        """The crop's ``image`` and ``mask``, of clicks, and ``grown`` (H, W)."""
        sample = self.crops[index]
        scene, window, augmentation, _ = place_of(self.crops, index)
        if scene not in self.grown:
            return {**sample, "grown": torch.full_like(sample["mask"], IGNORE_INDEX)}
        label = torch.from_numpy(self.grown[scene].read_label(window)).long()
        return {**sample, "grown": augmentation.move(label)}


class PointDataModule(SceneDataModule):
    """The crops and windows of `SceneDataModule`, the crops with grown labels.

    Args:
        train: scenes whose labels are clicks.
        val: scenes with labels.
        grown: see `GrownDataset`.
        **kwargs: of `SceneDataModule`.
    """

    def __init__(
        self, train: Sequence[Scene], val: Sequence[Scene], *, grown: Mapping[Scene, Scene], **kwargs: Any
    ) -> None:
        super().__init__(train, val, **kwargs)
        self.grown = grown

    def setup(self, stage: str) -> None:
        """Make the data sets; called by Lightning."""
        super().setup(stage)
        self.train_dataset = GrownDataset(self.train_dataset, self.grown)  # type: ignore[arg-type]


def fit_points(
    train: Sequence[Scene],
    val: Sequence[Scene],
    config: TrainConfig,
    folder: Path,
    resume: bool = False,
    progress: bool = True,
    grown: Mapping[Scene, Scene] | None = None,
) -> TrainResult:
    """Train `PENet`.

    A seed gives the very crops, in the same order and augmented alike, that `rsseglab.training.fit.fit` gives for it.

    Args:
        train: scenes whose labels are clicks.
        val: scenes to select by.
        config: the run; see `PENet` for its options.
        folder: where checkpoints and the log go.
        resume: go on from ``last.ckpt``, where there is one.
        progress: whether to draw a progress bar.
        grown: for a training scene the one with the label that its clicks have grown to.

    Raises:
        UserError: as ``fit``; or the run asks for tiles or ranks.
        KeyboardInterrupt: Ctrl-C; ``last.ckpt`` stays.
    """
    check_in_one_process(config)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.manual_seed(config.seed)
    config = replace(config, options={**(config.options or {}), "steps": config.steps})
    data = PointDataModule(train, val, grown=grown or {}, **data_settings(config))
    settings, resumed = task_settings(config, data), (folder / "last.ckpt").is_file()
    # What a run is resumed with has to be what it began with.
    settings["metadata"]["scenes"]["grown"] = [[s.name for s in data.grown], fingerprint(list(data.grown.values()))]
    task = SceneSegmentationTask(**settings)
    start_from(task.model, config, resumed)
    if not resumed:
        task.model.criterion.restart()
    return run_fit(task, data, config, folder, resume, progress)
