"""Scenes for Lightning: random crops to train on, windows or whole scenes to validate on."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import kornia.augmentation as K
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchgeo.datamodules import NonGeoDataModule

from rsseglab.errors import UserError
from rsseglab.scenes.scene import IGNORE_INDEX, Scene, Window

Sample = dict[str, Tensor]


def read_sample(scene: Scene, window: Window, fill: Tensor | None = None) -> Sample:
    """Read one window as torchgeo's sample dict.

    Args:
        scene: a scene with a label.
        window: may reach past the scene.
        fill: shape (bands), the value of pixels without data (the mean, so that they become 0 when
            normalised); 0 when not given.

    Returns:
        ``image``, float32 (bands, height, width); ``mask``, int64 (height, width).
    """
    image = torch.from_numpy(scene.read(window).astype(np.float32))
    valid = torch.from_numpy(scene.read_valid(window))
    if fill is not None and not valid.all():
        image = torch.where(valid, image, fill[:, None, None].to(image.dtype))
    return {"image": image, "mask": torch.from_numpy(scene.read_label(window).astype(np.int64))}


class CropDataset(Dataset[Sample]):
    """Endless random crops: crop *i* depends on the seed and *i* alone.

    A scene is drawn with a probability proportional to its area, a crop uniformly from its positions.

    Args:
        scenes: scenes with labels.
        crop_px: side of a crop.
        seed: seed of the draws.
        fill: see `read_sample`.

    Raises:
        UserError: a scene is smaller than a crop.
    """

    def __init__(self, scenes: Sequence[Scene], crop_px: int, seed: int = 0, fill: Tensor | None = None) -> None:
        for scene in scenes:
            if min(scene.height, scene.width) < crop_px:
                raise UserError(
                    f"a crop of {crop_px} px is larger than scene {scene.name} ({scene.width} x {scene.height} px); "
                    f"train with --crop {min(scene.height, scene.width) // 32 * 32} or less."
                )
        self.scenes, self.crop_px, self.seed, self.fill = list(scenes), crop_px, seed, fill
        areas = np.array([scene.height * scene.width for scene in scenes], dtype=float)
        self._share = areas / areas.sum()

    def window(self, index: int) -> tuple[Scene, Window]:
        """Where crop ``index`` lies."""
        draw = np.random.default_rng((self.seed, index))
        scene = self.scenes[draw.choice(len(self.scenes), p=self._share)]
        row = int(draw.integers(scene.height - self.crop_px + 1))
        col = int(draw.integers(scene.width - self.crop_px + 1))
        return scene, Window(row, col, self.crop_px, self.crop_px)

    def __len__(self) -> int:
        return 2**62  # as many as asked for; the sampler says which

    def __getitem__(self, index: int) -> Sample:
        return read_sample(*self.window(index), self.fill)


class WindowDataset(Dataset[Sample]):
    """Scenes cut in a grid without overlap, the last row and column padded and ignored there.

    Args:
        scenes: scenes with labels.
        window_px: side of a window; ``None`` for whole scenes, padded to a multiple of 32 px.
        fill: see `read_sample`.
    """

    def __init__(self, scenes: Sequence[Scene], window_px: int | None, fill: Tensor | None = None) -> None:
        self.fill = fill
        self.items = [
            (scene, window)
            for scene in scenes
            for window in ([_padded(scene)] if window_px is None else _grid(scene, window_px))
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        return read_sample(*self.items[index], self.fill)


def _padded(scene: Scene) -> Window:
    return Window(0, 0, -(-scene.height // 32) * 32, -(-scene.width // 32) * 32)


def _grid(scene: Scene, side: int) -> list[Window]:
    return [Window(row, col, side, side) for row in range(0, scene.height, side) for col in range(0, scene.width, side)]


class StepSampler(Sampler[int]):
    """Indices of the samples of the coming steps: step *s* always sees samples *s* B to *(s + 1)* B - 1.

    So a run that is resumed at step *s* goes on with the samples it would have seen.

    Args:
        samples: samples an epoch.
        step: tells the number of steps done so far.
        batch_size: samples a step (B).
    """

    def __init__(self, samples: int, step: Callable[[], int], batch_size: int) -> None:
        self.samples, self.step, self.batch_size = samples, step, batch_size

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[int]:
        first = self.step() * self.batch_size
        return iter(range(first, first + self.samples))


def band_statistics(crops: CropDataset, count: int = 256) -> tuple[Tensor, Tensor]:
    r"""Mean and standard deviation of each band over the first crops of a run.

    Blocks are merged by Chan's formula, which does not cancel on raw digital numbers:

    .. math:: M = M_a + M_b + \delta^2 \frac{n_a n_b}{n_a + n_b}, \qquad \delta = \mu_b - \mu_a

    Args:
        crops: where training crops come from; pixels without data do not count.
        count: number of crops.

    Returns:
        Two float64 tensors of shape (bands), in the image's units; a constant band has deviation 1.

    Source:
        Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983.
    """
    bands = crops.scenes[0].count
    n, mean, square = 0, torch.zeros(bands, dtype=torch.float64), torch.zeros(bands, dtype=torch.float64)
    for index in range(count):
        scene, window = crops.window(index)
        pixels = torch.from_numpy(scene.read(window).astype(np.float64))
        pixels = pixels[:, torch.from_numpy(scene.read_valid(window))]  # (bands, n_b)
        n_b = pixels.shape[1]
        if n_b == 0:
            continue
        mean_b = pixels.mean(1)
        delta = mean_b - mean
        square += ((pixels - mean_b[:, None]) ** 2).sum(1) + delta**2 * (n * n_b / (n + n_b))
        mean += delta * (n_b / (n + n_b))
        n += n_b
    std = (square / max(n, 1)).sqrt()
    return mean, torch.where(std > 0, std, 1.0)


class SceneDataModule(NonGeoDataModule):
    """Random crops of training scenes, grid windows of validation scenes, as torchgeo's data modules give them.

    Samples are dicts with ``image`` and ``mask``; normalisation and augmentation (flips, quarter turns, small
    changes of brightness and contrast) run by kornia on the device, as torchgeo does.

    Args:
        train: scenes with labels to train on.
        val: scenes with labels to validate on.
        crop_px: side of a training crop.
        batch_size: crops a step.
        steps: length of the run.
        val_every: steps between two validations, an epoch; the last may be shorter.
        val_window_px: side of a validation window; ``None`` for whole scenes, one a batch.
        augment: whether to augment training crops.
        seed: seed of crops and augmentation.
        num_workers: processes that read ahead.

    Raises:
        UserError: there is nothing to train on, scenes differ in bands or classes, a scene is smaller than a crop.
    """

    def __init__(
        self,
        train: Sequence[Scene],
        val: Sequence[Scene],
        *,
        crop_px: int = 256,
        batch_size: int = 8,
        steps: int = 1000,
        val_every: int = 100,
        val_window_px: int | None = 512,
        augment: bool = True,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        super().__init__(CropDataset, batch_size, num_workers)  # type: ignore[arg-type]
        check_alike([*train, *val])
        check_labelled([*train, *val])
        self.train_scenes, self.val_scenes = list(train), list(val)
        self.crop_px, self.val_window_px, self.seed = crop_px, val_window_px, seed
        self.steps, self.val_every = steps, val_every
        self.val_batch_size = 1 if val_window_px is None else batch_size
        mean, std = band_statistics(CropDataset(train, crop_px, seed))
        self.mean, self.std = mean.float(), std.float()
        normalize = K.Normalize(mean=self.mean, std=self.std)
        self.aug = K.AugmentationSequential(normalize, data_keys=None, keepdim=True)
        if augment:
            self.train_aug = K.AugmentationSequential(
                normalize,
                K.RandomHorizontalFlip(p=0.5),
                K.RandomVerticalFlip(p=0.5),
                K.RandomRotation90(times=(0, 3), p=1.0),
                # In units of the bands' standard deviation, since the image is normalised by now.
                K.RandomBrightness((0.8, 1.2), clip_output=False, p=0.5),
                K.RandomContrast((0.8, 1.2), clip_output=False, p=0.5),
                data_keys=None,
                keepdim=True,
            )

    def setup(self, stage: str) -> None:
        """Make the data sets; called by Lightning."""
        self.train_dataset = CropDataset(self.train_scenes, self.crop_px, self.seed, self.mean)
        self.val_dataset = WindowDataset(self.val_scenes, self.val_window_px, self.mean)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Crops of the coming steps, see `StepSampler`."""
        first = self._step() // self.val_every * self.val_every  # of this epoch, also where a run is resumed in it
        samples = min(self.val_every, self.steps - first) * self.batch_size
        sampler = StepSampler(samples, self._step, self.batch_size)
        return DataLoader(
            self.train_dataset,  # type: ignore[arg-type]
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _step(self) -> int:
        return self.trainer.global_step if self.trainer else 0

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Normalise and augment on the device; the draws depend on seed and step alone."""
        devices: list[Any] = [batch["image"].device] if batch["image"].is_cuda else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed * 1_000_003 + self._step())
            return super().on_after_batch_transfer(batch, dataloader_idx)


def check_alike(scenes: Sequence[Scene]) -> None:
    """Scenes of one run must have the same bands and classes.

    Raises:
        UserError: they differ, or there is none.
    """
    if not scenes:
        raise UserError("there is no scene to train on; name a data set or scenes.")
    first = scenes[0]
    for scene in scenes:
        if scene.count != first.count:
            raise UserError(
                f"scene {scene.name} has {scene.count} bands but {first.name} has {first.count}; "
                "give scenes of one sensor."
            )
        if scene.classes != first.classes:
            raise UserError(f"scenes {scene.name} and {first.name} have other classes; give scenes of one data set.")


def check_labelled(scenes: Sequence[Scene]) -> None:
    """Each scene must have a pixel that counts.

    Raises:
        UserError: a scene has no label, or its label is all ignored.
    """
    for scene in scenes:
        rows = (Window(row, 0, 256, scene.width) for row in range(0, scene.height, 256))
        if not any((scene.read_label(window) != IGNORE_INDEX).any() for window in rows):
            raise UserError(
                f"scene {scene.name} has no labelled pixel: its label holds only ignore values "
                f"{list(scene.ignore_values)} or nodata; give another label, or leave the scene out."
            )
