"""Scenes for Lightning: random crops to train on, windows or whole scenes to validate on."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchgeo.datamodules import NonGeoDataModule

from rsseglab.errors import UserError
from rsseglab.scenes.augment import Augmentation
from rsseglab.scenes.scene import IGNORE_INDEX, Scene, Window

Sample = dict[str, Tensor]
#: Which part of a window of so many rows and columns this process reads: a rank's tile.
Part = Callable[[int, int], Window]
AS_IT_IS = Augmentation()
STATISTICS_PX = 64  # of the crops that statistics are taken of


def read_sample(
    scene: Scene, window: Window, fill: Tensor | None = None, shade: Callable[[Tensor], Tensor] | None = None
) -> Sample:
    """Read one window as torchgeo's sample dict.

    Args:
        scene: a scene with a label.
        window: may reach past the scene.
        fill: shape (bands), the value of pixels without data (the mean, so that they become 0 when
            normalised); 0 when not given.
        shade: what else is done to the image's pixels, but to those without data.

    Returns:
        ``image``, float32 (bands, height, width); ``mask``, int64 (height, width).
    """
    image = torch.from_numpy(scene.read(window).astype(np.float32))
    image = shade(image) if shade else image
    valid = torch.from_numpy(scene.read_valid(window))
    if fill is not None and not valid.all():
        image = torch.where(valid, image, fill[:, None, None].to(image.dtype))
    return {"image": image, "mask": torch.from_numpy(scene.read_label(window).astype(np.int64))}


class CropDataset(Dataset[Sample]):
    """Endless random crops: crop *i* and its augmentation depend on the seed and *i* alone.

    A scene is drawn with a probability proportional to its area, a crop uniformly from its positions.

    Args:
        scenes: scenes with labels.
        crop_px: side of a crop; ``None`` for whole scenes.
        seed: seed of the draws.
        fill: see `read_sample`.
        statistics: mean and standard deviation of each band, by which crops are augmented; as they are when not given.
        part: which part of an augmented crop is read, see `Part`; all of it when not given.

    Attributes:
        shades: whether augmentation varies brightness and contrast too.

    Raises:
        UserError: a scene is smaller than a crop.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        crop_px: int | None,
        seed: int = 0,
        fill: Tensor | None = None,
        *,
        statistics: tuple[Tensor, Tensor] | None = None,
        part: Part | None = None,
    ) -> None:
        for scene in scenes:
            if crop_px is not None and min(scene.height, scene.width) < crop_px:
                raise UserError(
                    f"a crop of {crop_px} px is larger than scene {scene.name} ({scene.width} x {scene.height} px); "
                    f"train with --crop {min(scene.height, scene.width) // 32 * 32} or less."
                )
        self.scenes, self.crop_px, self.seed, self.fill = list(scenes), crop_px, seed, fill
        self.statistics, self.part, self.shades = statistics, part, True
        areas = np.array([scene.height * scene.width for scene in scenes], dtype=float)
        self._share = areas / areas.sum()

    def window(self, index: int) -> tuple[Scene, Window]:
        """Where crop ``index`` lies."""
        draw = np.random.default_rng((self.seed, index))
        scene = self.scenes[draw.choice(len(self.scenes), p=self._share)]
        if self.crop_px is None:
            return scene, _padded(scene)
        row = int(draw.integers(scene.height - self.crop_px + 1))
        col = int(draw.integers(scene.width - self.crop_px + 1))
        return scene, Window(row, col, self.crop_px, self.crop_px)

    def augmentation(self, index: int) -> Augmentation:
        """What is done to crop ``index``."""
        if self.statistics is None:
            return AS_IT_IS
        drawn = Augmentation.draw(self.seed, index, bool(self.crop_px))
        return drawn if self.shades else Augmentation(drawn.turns, drawn.flip)

    def __len__(self) -> int:
        return 2**62  # as many as asked for; the sampler says which

    def __getitem__(self, index: int) -> Sample:
        return read_part(*self.window(index), self.fill, self.part, self.augmentation(index), self.statistics)


class WindowDataset(Dataset[Sample]):
    """Scenes cut in a grid without overlap, the last row and column padded and ignored there.

    Args:
        scenes: scenes with labels.
        window_px: side of a window; ``None`` for whole scenes, padded to a multiple of 32 px.
        fill: see `read_sample`.
        part: which part of a window is read, see `Part`; all of it when not given.
    """

    def __init__(
        self, scenes: Sequence[Scene], window_px: int | None, fill: Tensor | None = None, part: Part | None = None
    ) -> None:
        self.fill, self.part = fill, part
        self.items = [
            (scene, window)
            for scene in scenes
            for window in ([_padded(scene)] if window_px is None else _grid(scene, window_px))
        ]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        return read_part(*self.items[index], self.fill, self.part)


def read_part(
    scene: Scene,
    window: Window,
    fill: Tensor | None,
    part: Part | None,
    augmentation: Augmentation = AS_IT_IS,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> Sample:
    """Read what this process needs of an augmented window, and no other pixel.

    Returns:
        As `read_sample`; where ``part`` is given with ``size``, rows and columns of the whole window, int64 (2).
    """
    turned = augmentation.turns % 2
    height, width = (window.width, window.height) if turned else (window.height, window.width)
    wanted = part(height, width) if part else Window(0, 0, height, width)
    row, col, rows, cols = augmentation.source(wanted, window.height, window.width)
    shade = (lambda image: augmentation.shade(image, *statistics)) if statistics else None
    sample = read_sample(scene, Window(window.row + row, window.col + col, rows, cols), fill, shade)
    sample = {key: augmentation.move(pixels) for key, pixels in sample.items()}
    return {**sample, "size": torch.tensor([height, width])} if part else sample


def place_of(
    windows: "CropDataset | WindowDataset", index: int
) -> tuple[Scene, Window, Augmentation, Callable[[Tensor], Tensor]]:
    """Where a sample lies, how it is moved, and how its pixels are shaded: for what is read beside it.

    Returns:
        Its scene and its window there; the augmentation; what brightness and contrast make of an image (bands, H, W).
    """
    if isinstance(windows, WindowDataset):
        return (*windows.items[index], AS_IT_IS, lambda image: image)
    augmentation, statistics = windows.augmentation(index), windows.statistics
    shade = (lambda image: augmentation.shade(image, *statistics)) if statistics else (lambda image: image)
    return (*windows.window(index), augmentation, shade)


def _padded(scene: Scene) -> Window:
    return Window(0, 0, -(-scene.height // 32) * 32, -(-scene.width // 32) * 32)


def _grid(scene: Scene, side: int) -> list[Window]:
    return [Window(row, col, side, side) for row in range(0, scene.height, side) for col in range(0, scene.width, side)]


class StepSampler(Sampler[int]):
    """Indices of the samples of the coming steps: step *s* always sees samples *s* B to *(s + 1)* B - 1.

    So a run that is resumed at step *s* goes on with the samples it would have seen. Of G groups that train side by
    side, group *g* sees the *g*-th B of the G B samples of a step.

    Args:
        samples: samples an epoch and group.
        step: tells the number of steps done so far.
        batch_size: samples a step and group (B).
        group: *g*.
        groups: G.
    """

    def __init__(self, samples: int, step: Callable[[], int], batch_size: int, group: int = 0, groups: int = 1) -> None:
        self.samples, self.step, self.batch_size, self.group, self.groups = samples, step, batch_size, group, groups

    def __len__(self) -> int:
        return self.samples

    def __iter__(self) -> Iterator[int]:
        steps = range(self.step(), self.step() + self.samples // self.batch_size)
        firsts = ((step * self.groups + self.group) * self.batch_size for step in steps)
        return (first + i for first in firsts for i in range(self.batch_size))


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

    Samples are dicts with ``image`` and ``mask``, augmented as they are read (see `Augmentation`), and normalised on
    the device.

    Args:
        train: scenes with labels to train on.
        val: scenes with labels to validate on.
        crop_px: side of a training crop; ``None`` for whole scenes, one a batch.
        batch_size: crops a step, of each data group.
        steps: length of the run.
        val_every: steps between two validations, an epoch; the last may be shorter.
        val_window_px: side of a validation window; ``None`` for whole scenes, one a batch.
        augment: whether to augment training crops.
        seed: seed of crops and augmentation.
        num_workers: processes that read ahead.
        part: which part of a crop or window this process reads, see `Part`; all of it when not given.
        group: number of this process's data group, see `StepSampler`.
        groups: number of data groups.

    Raises:
        UserError: there is nothing to train on, scenes differ in bands or classes, a scene is smaller than a crop.
    """

    def __init__(
        self,
        train: Sequence[Scene],
        val: Sequence[Scene],
        *,
        crop_px: int | None = 256,
        batch_size: int = 8,
        steps: int = 1000,
        val_every: int = 100,
        val_window_px: int | None = 512,
        augment: bool = True,
        seed: int = 0,
        num_workers: int = 0,
        part: Part | None = None,
        group: int = 0,
        groups: int = 1,
    ) -> None:
        super().__init__(CropDataset, batch_size, num_workers)  # type: ignore[arg-type]
        check_alike([*train, *val])
        check_labelled([*train, *val])
        self.train_scenes, self.val_scenes = list(train), list(val)
        self.crop_px, self.val_window_px, self.seed = crop_px, val_window_px, seed
        self.steps, self.val_every = steps, val_every
        self.val_batch_size = 1 if val_window_px is None else batch_size
        self.part, self.group, self.groups, self.augment = part, group, groups, augment
        if crop_px is None and batch_size > 1:
            raise UserError(f"whole scenes have sizes of their own, so {batch_size} make no batch; give a batch of 1.")
        CropDataset(train, crop_px)  # says which scene is too small
        # Small crops will do, and the same for every crop size: what trains on other crops sees the same numbers.
        sample_px = min(STATISTICS_PX, *(min(scene.height, scene.width) for scene in train))
        mean, std = band_statistics(CropDataset(train, sample_px, seed))
        self.mean, self.std = mean.float(), std.float()

    def setup(self, stage: str) -> None:
        """Make the data sets; called by Lightning."""
        statistics = (self.mean, self.std) if self.augment else None
        self.train_dataset = CropDataset(
            self.train_scenes, self.crop_px, self.seed, self.mean, statistics=statistics, part=self.part
        )
        self.val_dataset = WindowDataset(self.val_scenes, self.val_window_px, self.mean, self.part)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Crops of the coming steps, see `StepSampler`."""
        step = self._step()
        if self.trainer and self.trainer.fit_loop.restarting:
            # Resumed after a validation, Lightning ends that epoch once more, by its number of batches.
            step -= self.trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        first = step // self.val_every * self.val_every  # of this epoch, also where a run is resumed in it
        samples = min(self.val_every, self.steps - first) * self.batch_size
        sampler = StepSampler(samples, self._step, self.batch_size, self.group, self.groups)
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
        """Normalise on the device."""
        return {**batch, "image": self.normalize(batch["image"])}

    def normalize(self, image: Tensor) -> Tensor:
        """(image - mean) / std of images (B, bands, H, W)."""
        mean, std = (statistic.to(image)[:, None, None] for statistic in (self.mean, self.std))
        return (image - mean) / std


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
