"""Label a whole scene through one device in bounded memory, exactly: no windows, no seams, any height.

The network is planned once for the scene's size (`rsseglab.spatial.stream`), then the scene is read from top to bottom,
a band of rows at a time, and labels come out from top to bottom. They are kept in a file beside the raster, a byte a
pixel, until all are there; so a run that was killed goes on at the first band that is missing, and no half raster is
ever seen.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from rsseglab.errors import UserError
from rsseglab.inference.estimate import free_mib
from rsseglab.inference.predict import Prediction, pick_device, prediction_nodata, read_normalized
from rsseglab.inference.whole import count, padded_size, strips, weights_sum
from rsseglab.measure import Measure
from rsseglab.scenes.scene import Scene, class_values, label_writer
from rsseglab.spatial import SpatialError, stream
from rsseglab.training.checkpoint import TrainedNetwork

SHARE = 0.5  # of the memory that is free, for results; what is more goes to disk


def predict_stream(
    trained: TrainedNetwork,
    scene: Scene,
    path: Path,
    *,
    memory_mib: float | None = None,
    spill: Path | None = None,
    resume: bool = False,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Prediction:
    """Label a scene band by band and write a GeoTIFF on its grid: the labels of `predict_whole`.

    Args:
        trained: from `rsseglab.training.checkpoint.load_checkpoint`.
        scene: of any height; where it has a label of the network's classes, the prediction is scored.
        path: the GeoTIFF to write.
        memory_mib: most that results may take; beyond it they are moved to disk. Half of what is free if not given.
        spill: folder for what is moved to disk; that of the raster if not given.
        resume: go on with a run that was killed, where there is one.
        device: where to compute; a GPU if there is one.
        progress: whether to print the plan's memory and disk, and to draw a progress bar.

    Raises:
        UserError: bands do not fit, the network can't be planned, a file is damaged or cannot be written, or the run
            that is to be resumed is another one.
    """
    trained.check_fits(scene)
    device = pick_device(device)
    network = trained.network.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    nodata = prediction_nodata(trained)
    writer = label_writer(path, scene, trained.classes, nodata, {"scene": scene.name, "tiles": "1 x 1"})
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with Measure(device) as cost, _Rows(path, trained, scene, resume) as rows:
        with _spill_folder(spill or path.parent, path) as folder:
            _label(trained, scene, network, rows, memory_mib, folder, device, progress)
        index = rows.all()
        confusion = count(trained, scene, [scene.window], [index])
        with _writing(path), writer:
            for strip in strips(scene.window):
                part = index[strip.row : strip.row + strip.height]
                writer.write(class_values(part, trained.classes, nodata), strip.row)
    return Prediction(path, None, cost.seconds, cost.peak_mib, confusion)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """A full disk, and the like, as such."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}); free some space, or choose another folder.") from error


def _label(
    trained: TrainedNetwork, scene: Scene, network: nn.Module, rows: "_Rows", memory_mib: float | None, spill: Path,
    device: torch.device, progress: bool,
) -> None:  # fmt: skip
    """Fill in the rows that are missing."""
    if rows.done >= scene.height:
        return
    height, width = padded_size(scene)
    memory_mib = memory_mib or SHARE * free_mib(device)
    with _one_line():
        plan = stream.plan(network, height, width, scene.count, start=rows.done, memory_mib=memory_mib)
    if progress:
        what = f"streaming {scene.name}, {scene.width} x {scene.height} px"
        disk = f", {plan.disk_bytes / 2**20:.0f} MiB of disk" if plan.disk_bytes else ""
        passes = f"{plan.passes} pass{'es' * (plan.passes > 1)}"
        print(f"{what}: {passes}, about {plan.peak_bytes / 2**20:.0f} MiB of results{disk}", flush=True)
    if plan.shape[2:] != (height, width):
        raise UserError(f"the network makes {list(plan.shape)} of {height} x {width} px; it must keep the size.")

    def read(row0: int, row1: int) -> Tensor:
        band = torch.zeros(1, scene.count, row1 - row0, width).contiguous(memory_format=torch.channels_last)
        stop = min(row1, scene.height)
        if row0 < stop:
            band[0, :, : stop - row0, : scene.width] = read_normalized(trained, scene, row0, stop)
        return band

    name = f"labelling {scene.name}"
    with _one_line(), tqdm(total=len(plan.steps), desc=name, unit="step", disable=not progress) as bar:
        for first, end, logits in plan.run(read, spill, bar.update):
            rows.put(first, end, logits[0, :, :, : scene.width])


@contextmanager
def _one_line() -> Iterator[None]:
    """What the engine refuses, as a user's error."""
    try:
        yield
    except SpatialError as error:
        raise UserError(str(error)) from error


@contextmanager
def _spill_folder(parent: Path, path: Path) -> Iterator[Path]:
    """A folder by a raster's own name, so that what a kill has left is found, and cleaned, by the next run."""
    folder = parent / f"{path.name}.{sha256(str(path.resolve()).encode()).hexdigest()[:8]}.spill"
    shutil.rmtree(folder, ignore_errors=True)
    with _writing(folder):
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Rows:
    """Class indices of the rows that are labelled so far, in a file beside the raster.

    Attributes:
        done: rows that are there.
    """

    def __init__(self, path: Path, trained: TrainedNetwork, scene: Scene, resume: bool) -> None:
        self.data, self.state = (path.with_name(f"{path.name}.{end}") for end in ("rows", "rows.json"))
        self.shape = (scene.height, scene.width)
        files = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in scene.paths if p.exists()]
        numbers = (trained.mean.tolist(), trained.std.tolist(), [c.value for c in trained.classes])
        facts = (scene.name, self.shape, files, weights_sum(trained.network), numbers)
        self.facts = sha256(json.dumps(facts).encode()).hexdigest()
        self.done = self._resumed() if resume and self.state.is_file() else 0
        if not self.done:
            self.state.unlink(missing_ok=True)  # before the rows that it speaks of
        with _writing(self.data):
            self.file = self.data.open("r+b" if self.done else "w+b", buffering=0)

    def _resumed(self) -> int:
        """How many rows an earlier run has left."""
        try:
            found = json.loads(self.state.read_text())
            facts, done = found["facts"], found["done"]
            whole = 0 < done <= self.shape[0] and self.data.stat().st_size >= done * self.shape[1]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{self.state} is damaged ({error}); leave out --resume to start anew.") from error
        if facts != self.facts:
            raise UserError(f"{self.data} was made of another scene or network; leave out --resume to start anew.")
        if not whole:
            raise UserError(f"{self.data} is damaged; leave out --resume to start anew.")
        return int(done)

    def put(self, first: int, end: int, logits: Tensor) -> None:
        """Label the rows of a band (K, rows, width); where it begins before the last one ended, alike."""
        end = min(end, self.shape[0])
        if first >= end:
            return
        index = logits[:, : end - first].argmax(0).to(torch.uint8).cpu().numpy()
        with _writing(self.data):
            self.file.seek(first * self.shape[1])
            left = memoryview(index.tobytes())
            while left:
                left = left[self.file.write(left) :]
            self.done = end
            part = self.state.with_name(f"{self.state.name}.part")
            part.write_text(json.dumps({"facts": self.facts, "done": end}))
            part.replace(self.state)

    def all(self) -> np.memmap:
        """All rows, (height, width), on disk."""
        return np.memmap(self.data, np.uint8, "r+", shape=self.shape)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """The file stays where there is something to go on from."""
        self.file.close()
        if kind is None or not self.done:
            self.data.unlink()
            self.state.unlink(missing_ok=True)
