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
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with Measure(device) as cost, _Rows(path, scene, network, resume) as rows:
            with _spill_folder(spill or path.parent, path.name) as folder:
                _label(trained, scene, network, rows, memory_mib, folder, device, progress)
            with writer:
                confusion = count(trained, scene, [scene.window], [rows.index])
                for strip in strips(scene.window):
                    index = rows.index[strip.row : strip.row + strip.height]
                    writer.write(class_values(index, trained.classes, nodata), strip.row)
    except SpatialError as error:
        raise UserError(str(error)) from error
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error}); free some space, or choose another folder.") from error
    return Prediction(path, None, cost.seconds, cost.peak_mib, confusion)


def _label(
    trained: TrainedNetwork, scene: Scene, network: nn.Module, rows: "_Rows", memory_mib: float | None, spill: Path,
    device: torch.device, progress: bool,
) -> None:  # fmt: skip
    """Fill in the rows that are missing."""
    if rows.done >= scene.height:
        return
    height, width = padded_size(scene)
    plan = stream.plan(
        network, height, width, scene.count, start=rows.done, memory_mib=memory_mib or SHARE * free_mib(device)
    )
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

    with tqdm(total=len(plan.steps), desc=f"labelling {scene.name}", unit="step", disable=not progress) as bar:
        for first, end, logits in plan.run(read, spill, bar.update):
            rows.put(first, end, logits[0, :, :, : scene.width])


@contextmanager
def _spill_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder by a name of its own, so that what a kill has left is found, and cleaned, by the next run."""
    folder = parent / f"{name}.spill"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Rows:
    """Class indices of the rows that are labelled so far, in a file beside the raster.

    Attributes:
        index: (height, width), on disk.
        done: rows that are there.
    """

    def __init__(self, path: Path, scene: Scene, network: nn.Module, resume: bool) -> None:
        self.data, self.state = (path.with_name(f"{path.name}.{end}") for end in ("rows", "rows.json"))
        self.facts = {
            "scene": [scene.name, scene.height, scene.width, *(p.stat().st_size for p in scene.paths if p.exists())],
            "weights": weights_sum(network),
        }
        self.done = 0
        shape = (scene.height, scene.width)
        if resume and self.state.is_file() and self.data.is_file():
            found = json.loads(self.state.read_text())
            if found["facts"] != self.facts:
                raise UserError(f"{self.data} was made of another scene or network; leave out --resume to start anew.")
            self.done = found["done"]
        self.index = np.memmap(self.data, np.uint8, "r+" if self.done else "w+", shape=shape)

    def put(self, first: int, end: int, logits: Tensor) -> None:
        """Label the rows of a band (K, rows, width)."""
        assert first == self.done, (first, self.done)
        end = min(end, len(self.index))
        if first >= end:
            return
        self.index[first:end] = logits[:, : end - first].argmax(0).to(torch.uint8).cpu().numpy()
        self.index.flush()
        self.done = end
        part = self.state.with_name(f"{self.state.name}.part")
        part.write_text(json.dumps({"facts": self.facts, "done": end}))
        part.replace(self.state)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        """The file stays where there is something to go on from."""
        del self.index
        if kind is None or not self.done:
            self.data.unlink()
            self.state.unlink(missing_ok=True)
