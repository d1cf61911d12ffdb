"""Train the global-local baseline as the cropped one is trained: same crops, augmentation, steps, schedule and seeds.

A crop brings the whole scene with it, as a thumbnail, and its place there. What a step costs more than a cropped
baseline's is the global stream: a thumbnail of global_px x global_px pixels beside each crop, and twice the parameters.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from rsseglab.errors import UserError
from rsseglab.inference.fusion import GlobalLocal, window_box
from rsseglab.scenes.datamodule import CropDataset, Sample, SceneDataModule, WindowDataset, place_of
from rsseglab.scenes.scene import Scene
from rsseglab.scenes.views import thumbnail
from rsseglab.training.checkpoint import TrainedNetwork, load_state, trained_network
from rsseglab.training.fit import TrainConfig, TrainResult, data_settings, run_fit, task_settings
from rsseglab.training.task import SceneSegmentationTask


class GlobalLocalDataset(Dataset[Sample]):
    """Windows of scenes, each with its scene's thumbnail and its place there.

    Args:
        windows: where the windows lie.
        thumbnails: of every scene, shape (bands, global_px, global_px).
    """

    def __init__(self, windows: CropDataset | WindowDataset, thumbnails: Mapping[Scene, Tensor]) -> None:
        self.windows, self.thumbnails = windows, thumbnails

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Sample:
        """The window's ``image`` and ``mask``, and of its scene ``scene`` (the thumbnail) and ``box``.

        The box is top, left, bottom and right as fractions of the scene, see `rsseglab.inference.fusion.cut_out`.
        """
        scene, window, augmentation, shade = place_of(self.windows, index)
        small = shade(augmentation.move(self.thumbnails[scene]))
        box = augmentation.move_box(window_box(*window, scene))
        return {**self.windows[index], "scene": small, "box": torch.tensor(box)}


class GlobalLocalDataModule(SceneDataModule):
    """The crops and windows of `SceneDataModule`, with thumbnails and places that are augmented as the crops are.

    Args:
        train: scenes with labels to train on.
        val: scenes with labels to validate on.
        global_px: side of a thumbnail; all are kept in memory.
        **kwargs: of `SceneDataModule`.

    Raises:
        UserError: as `SceneDataModule`.
    """

    def __init__(self, train: Sequence[Scene], val: Sequence[Scene], *, global_px: int = 256, **kwargs: Any) -> None:
        super().__init__(train, val, **kwargs)
        self.global_px = global_px
        self.thumbnails = {scene: self._thumbnail(scene) for scene in (*train, *val)}

    def _thumbnail(self, scene: Scene) -> Tensor:
        pixels, valid = (torch.from_numpy(part) for part in thumbnail(scene, self.global_px))
        return torch.where(valid, pixels, self.mean[:, None, None])

    def setup(self, stage: str) -> None:
        """Make the data sets; called by Lightning."""
        super().setup(stage)
        self.train_dataset = GlobalLocalDataset(self.train_dataset, self.thumbnails)  # type: ignore[arg-type]
        self.val_dataset = GlobalLocalDataset(self.val_dataset, self.thumbnails)  # type: ignore[arg-type]

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Normalise both."""
        batch = super().on_after_batch_transfer(batch, dataloader_idx)
        return {**batch, "scene": self.normalize(batch["scene"])}


class GlobalLocalTask(SceneSegmentationTask):
    """`SceneSegmentationTask` with a two-stream network, whose batches hold ``scene`` and ``box`` too.

    Args:
        global_px: side of a thumbnail.
        **kwargs: of `SceneSegmentationTask`.
    """

    def __init__(self, global_px: int = 256, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def configure_models(self) -> None:
        """Build the network."""
        h = self.hparams
        weights = self.weights if isinstance(self.weights, str) else None
        network = GlobalLocal(
            h["backbone"], h["model"], h["num_classes"], h["in_channels"], global_px=h["global_px"], weights=weights
        )
        self.model = network.to(memory_format=torch.channels_last)


def fit_global_local(
    train: Sequence[Scene],
    val: Sequence[Scene],
    config: TrainConfig,
    folder: Path,
    *,
    global_px: int = 256,
    resume: bool = False,
    progress: bool = True,
) -> TrainResult:
    """Train a `GlobalLocal` network on random crops, as `rsseglab.training.fit.fit` trains a cropped one.

    A seed gives the very crops, in the same order and augmented alike, that ``fit`` gives for it.

    Args:
        train: scenes to train on.
        val: scenes to select by.
        config: the run; encoder, decoder and weights are those of both streams.
        folder: where checkpoints and the log go.
        global_px: side of the thumbnail, a multiple of 32.
        resume: go on from ``last.ckpt``, where there is one.
        progress: whether to draw a progress bar.

    Raises:
        UserError: as ``fit``; ``global_px`` is no multiple of 32; the decoder has no last map to fuse; the run asks for
            a method, a first stage or tiles, which two streams do not know.
        KeyboardInterrupt: Ctrl-C; ``last.ckpt`` stays.
    """
    plain = {"method": "stock", "options": None, "init": None, "freeze_early": False, "spatial": "1"}
    if unknown := [name for name, value in plain.items() if getattr(config, name) != value]:
        raise UserError(f"the global-local baseline trains without {', '.join(unknown)}; leave that out.")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    torch.manual_seed(config.seed)
    data = GlobalLocalDataModule(train, val, global_px=global_px, **data_settings(config))
    settings = task_settings(config, data)
    settings["metadata"]["config"]["global_px"] = global_px
    task = GlobalLocalTask(global_px=global_px, **settings)
    return run_fit(task, data, config, folder, resume, progress)


def load_global_local(path: str | Path) -> TrainedNetwork:
    """Load a checkpoint that `fit_global_local` wrote, in eval mode on the CPU.

    Args:
        path: ``best.ckpt`` or ``last.ckpt`` of a run.

    Returns:
        Its network is a `GlobalLocal`; label with `rsseglab.inference.fusion.predict_fusion`.

    Raises:
        UserError: the file is missing or holds another kind of network.
    """
    state = load_state(Path(path))
    h = state["hyper_parameters"]
    if "global_px" not in h:
        raise UserError(f"{path} holds no two-stream network; load it with load_checkpoint.")
    network = GlobalLocal(h["backbone"], h["model"], h["num_classes"], h["in_channels"], global_px=h["global_px"])
    return trained_network(state, network)
