"""Label a scene whole: one pass of the network over all of it, so that there are no windows and no seams.

Over ranks each reads its own tile of the scene, and of its logits keeps the argmax: a byte a pixel. These bytes go to
the first rank, 256 rows at a time, which writes them, as a compressed GeoTIFF has one writer. Each counts its own tile,
and the counts are summed.

What may fail on one rank alone (a file, a label, the disk) is done by all and then agreed on, so that all raise and
none waits for another; a rank that fails inside the network ends, and its peers with it.
"""

import math
import os
import signal
import socket
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from rsseglab.errors import UserError
from rsseglab.evaluation.confusion import Confusion
from rsseglab.inference.estimate import estimate_mib, free_mib
from rsseglab.inference.predict import Prediction, pick_device, prediction_nodata
from rsseglab.launch import launch, leave, under_torchrun
from rsseglab.measure import Measure
from rsseglab.scenes.scene import IGNORE_INDEX, Scene, Window, class_values, fingerprint, label_writer
from rsseglab.spatial import Layout, SceneTensor, SpatialError, read_scene
from rsseglab.spatial.exchange import all_reduce_, fetch
from rsseglab.training.checkpoint import TrainedNetwork, load_checkpoint
from rsseglab.training.ranks import Grid, join_ranks

MULTIPLE_PX = 32  # what networks that halve five times need
ROWS = 256  # read, counted and written at a time: as many as a block of the raster has

Labels = NDArray[np.uint8]
T = TypeVar("T")


def predict_whole(
    trained: TrainedNetwork,
    scene: Scene,
    path: Path,
    layout: Layout | None = None,
    *,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Prediction:
    """Label a scene in one pass of the network and write a GeoTIFF on its grid.

    The raster is as that of `predict_scene`. The image is normalised, 0 where there is no data, and padded with zeros
    below and to the right to a multiple of 32 px. Over ranks, all call this alike.

    Args:
        trained: from `rsseglab.training.checkpoint.load_checkpoint`.
        scene: of any size; where it has a label of the network's classes, the prediction is scored.
        path: the GeoTIFF to write.
        layout: one tile if not given; with a mesh a tile a rank, without all tiles in this process.
        device: where to compute; a GPU if there is one.
        progress: whether to print the memory that it will take, and to draw a progress bar.

    Returns:
        On every rank the same, with the counts of the whole scene; the peak is of the rank with most.

    Raises:
        UserError: on every rank: bands or sizes do not fit, memory will not do, a file is damaged or cannot be
            written, ranks have different scenes or weights, or one of them was lost.
    """
    layout, device = layout or Layout(1), pick_device(device)
    network = trained.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    height, width = padded_size(scene)
    nodata = prediction_nodata(trained)
    tags = {"scene": scene.name, "tiles": f"{layout.rows} x {layout.cols}"}
    writer = label_writer(path, scene, trained.classes, nodata, tags)
    first = layout.rank == 0
    with _one_line(scene):
        with torch.inference_mode(), Measure(device) as cost, ExitStack() as files:

            def prepare() -> list[Window]:
                trained.check_fits(scene)
                windows = [Window(*window) for window in layout.windows(height, width)]
                if first:
                    files.enter_context(writer)
                return windows

            windows = _by_all(layout, prepare)
            held = [windows[tile] for tile in layout.held]
            _check_alike(layout, scene, network)
            _check_memory(trained, scene, layout, (height, width), device, progress and first)
            tiles = _by_all(layout, lambda: [_read(trained, scene, window).to(device) for window in held])
            with _bar(network, f"labelling {scene.name} whole" if progress and first else None):
                labels = _labels(network, tiles, layout, height, width)
            confusion = _by_all(layout, lambda: count(trained, scene, held, labels))
            if confusion is not None:
                counts = all_reduce_(torch.from_numpy(confusion.matrix).to(device), layout, "counts")
                confusion = Confusion(confusion.classes, counts.cpu().numpy())

            def write() -> None:
                rows = _rows(layout, windows, labels, scene, device)
                try:
                    for row, index in rows:
                        if first:
                            writer.write(class_values(index, trained.classes, nodata), row)
                    files.close()
                finally:
                    for _ in rows:  # a rank that cannot write takes what the others send all the same
                        pass

            _by_all(layout, write)
        peak_mib = max(_of_all(layout, cost.peak_mib))
    return Prediction(path, None, cost.seconds, peak_mib, confusion)


def predict_scenes_whole(
    checkpoint: Path,
    scenes: Sequence[Scene],
    paths: Sequence[Path],
    grid: Grid | None = None,
    device: torch.device | str | None = None,
) -> list[Prediction]:
    """Label scenes whole over ranks: those of torchrun where it started this process, else ranks of its own.

    Args:
        checkpoint: of `rsseglab train`.
        scenes: any number of them.
        paths: a GeoTIFF for each.
        grid: of tiles; bands of rows, as many as torchrun has ranks, or one, if not given.
        device: "cuda": a GPU a rank; "cpu". GPUs if there are any.

    Returns:
        A prediction a scene; under torchrun on the first rank alone.

    Raises:
        UserError: as `predict_whole`; or there are not as many ranks or GPUs as tiles.
    """
    kind = pick_device(device).type
    jobs = list(zip(scenes, paths, strict=True))
    there = int(os.environ["WORLD_SIZE"]) if under_torchrun() else None
    grid = grid or Grid(there or 1)
    if there is not None:
        if grid.parts != there:
            raise UserError(
                f"{grid} tiles need {grid.parts} ranks and torchrun started {there}; start as many, or leave out "
                "--spatial."
            )
        done = _as_rank(grid, kind, checkpoint, jobs)
        leave()
        return done if int(os.environ["RANK"]) == 0 else []
    if grid.parts == 1:
        trained = load_checkpoint(checkpoint)
        return [predict_whole(trained, scene, path, device=device) for scene, path in jobs]
    if kind == "cuda" and grid.parts > torch.cuda.device_count():
        raise UserError(
            f"{grid} tiles need as many GPUs and {torch.cuda.device_count()} are here; cut the scene in fewer, "
            "start torchrun on more machines, or use --device cpu."
        )
    way_out = "use more machines, or leave out --whole"
    try:
        done = launch(grid.parts, kind, _as_rank, grid, kind, checkpoint, jobs, way_out=way_out)
    finally:
        for path in paths:  # what a rank that was killed could not clean up
            path.with_name(path.name + ".part").unlink(missing_ok=True)
    return done


# ------------------------------------------------------------------------------------------ the ranks

Jobs = Sequence[tuple[Scene, Path]]


def _as_rank(grid: Grid, kind: str, checkpoint: Path, jobs: Jobs) -> list[Prediction]:
    """What one rank does, launched or torchrun's."""
    layout = join_ranks(grid, kind).layout
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # files are cleaned up
    device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if kind == "cuda" else kind)
    trained = load_checkpoint(checkpoint)
    return [predict_whole(trained, scene, path, layout, device=device) for scene, path in jobs]


def _of_all(layout: Layout, fact: T) -> list[T]:
    """Every rank's fact, on every rank."""
    if layout.mesh is None:
        return [fact]
    facts: list[Any] = [None] * layout.parts
    try:
        dist.all_gather_object(facts, fact, group=layout.group)
    except RuntimeError as error:
        raise SpatialError(
            f"rank {layout.rank} of {layout.parts} lost its peers ({str(error).splitlines()[0]}); look for the first "
            "rank that failed, and start all again."
        ) from error
    return facts


def _by_all(layout: Layout, step: Callable[[], T]) -> T:
    """Do a step on every rank. Where one fails all raise: it its own error, the others the same in its name."""
    wrong, done = None, None
    try:
        done = step()
    except Exception as error:
        wrong = error
    try:
        messages = _of_all(layout, "" if wrong is None else str(wrong) or type(wrong).__name__)
    finally:
        if wrong is not None:
            raise wrong
    for rank, message in enumerate(messages):
        if message:
            raise UserError(f"{message} (on rank {rank})")
    return done  # type: ignore[return-value]


@contextmanager
def _one_line(scene: Scene) -> Iterator[None]:
    """Errors that a user can mend, as such."""
    try:
        yield
    except SpatialError as error:
        raise UserError(str(error)) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise UserError(
            f"memory ran out while scene {scene.name} was labelled whole; use more workers (--spatial, torchrun), or "
            "label it in crops, without --whole."
        ) from error


# ------------------------------------------------------------------------------------------ before it starts


def _check_alike(layout: Layout, scene: Scene, network: nn.Module) -> None:
    """Whether all ranks have one scene and one network."""
    if layout.mesh is None:
        return
    facts = _by_all(
        layout,
        lambda: {
            "scenes": f"{scene.name}: {scene.width} x {scene.height} px, {scene.count} bands, {scene.dtype}",
            "pixels": f"sum {fingerprint([scene], windows=16)} of some",
            "weights": f"sum {weights_sum(network):08x}",
        },
    )
    for what in facts:
        found = _of_all(layout, facts[what])
        if len(set(found)) > 1:
            told = ", ".join(f"rank {rank} {fact}" for rank, fact in enumerate(found))
            raise UserError(f"ranks have different {what} ({told}); give all the same files.")


def padded_size(scene: Scene) -> tuple[int, int]:
    """Height and width of a scene, padded below and to the right to what networks take."""
    height, width = (-(-n // MULTIPLE_PX) * MULTIPLE_PX for n in (scene.height, scene.width))
    return height, width


def weights_sum(network: nn.Module) -> int:
    """A sum by which networks of other weights are told apart."""
    found = 0
    for tensor in network.state_dict().values():
        if isinstance(tensor, Tensor):
            found = zlib.crc32(tensor.cpu().reshape(-1).view(torch.uint8).numpy().tobytes(), found)
    return found


def _check_memory(
    trained: TrainedNetwork, scene: Scene, layout: Layout, size: tuple[int, int], device: torch.device, shown: bool
) -> None:
    """Say what memory it will take, and refuse what does not fit.

    Raises:
        UserError: it does not fit, with the ways out; or the network does not take the size.
    """

    def a_worker(layout: Layout) -> float:
        try:
            return estimate_mib(trained.network, len(trained.bands), *size, layout, device.type)
        except (UserError, SpatialError):
            raise
        except (RuntimeError, AssertionError, ValueError) as error:
            if "meta tensor" in str(error):  # a network that asks for values: it may be labelled all the same
                return math.nan
            raise UserError(
                f"{trained.decoder} on {trained.encoder} does not take {scene.width} x {scene.height} px at once "
                f"({(str(error) or type(error).__name__).splitlines()[0]}); label it in crops, without --whole."
            ) from error

    need = _by_all(layout, lambda: a_worker(layout)) * (layout.parts if layout.mesh is None else 1)
    place = (socket.gethostname(), str(device))
    free = _of_all(layout, (place, free_mib(device)))
    sharing = Counter(place for place, _ in free)  # ranks of one machine share its memory
    least, workers = min(((mib, sharing[place]) for place, mib in free), key=lambda pair: pair[0] - need * pair[1])
    what = f"labelling {scene.name} whole, {scene.width} x {scene.height} px"
    each = " a worker" if layout.mesh is not None else ""
    beside = f", {workers} of them here" if workers > 1 else ""
    if not need * workers > least:
        if shown:
            takes = "memory not known" if math.isnan(need) else f"about {_gib(need)}{each}"
            print(f"{what}: {takes}{beside}, {_gib(least)} free", flush=True)
        return
    ways = ["label it in crops: without --whole"]
    if device.type == "cuda":
        ways.insert(0, "--device cpu")
    for ranks in (2**k for k in range(1, 9) if layout.parts < 2**k <= size[0] // MULTIPLE_PX):
        with suppress(UserError, SpatialError):  # what can't be cut in so many is no way out
            if (its := a_worker(Layout(ranks))) <= least:
                where = "GPUs, --spatial" if device.type == "cuda" else "machines such as this, torchrun --nnodes"
                ways.insert(0, f"{ranks} {where} {ranks} (about {_gib(its)} each)")
                break
    raise UserError(
        f"{what}, takes about {_gib(need)}{each}{beside} and {_gib(least)} are free; ways out: {', or '.join(ways)}."
    )


def _gib(mib: float) -> str:
    return f"{mib / 1024:.1f} GiB"


# ------------------------------------------------------------------------------------------ the work


def strips(window: Window) -> Iterator[Window]:
    """A window's rows, so many at a time."""
    for row in range(0, window.height, ROWS):
        yield Window(window.row + row, window.col, min(ROWS, window.height - row), window.width)


def _read(trained: TrainedNetwork, scene: Scene, window: Window) -> Tensor:
    """The normalised image in a window, (1, bands, height, width), 0 where there is no data."""
    size = (1, len(trained.bands), window.height, window.width)
    image = torch.empty(size, memory_format=torch.channels_last)
    for strip in strips(window):
        pixels = trained.normalize(torch.from_numpy(scene.read(strip).astype("float32")))
        row = strip.row - window.row
        image[0, :, row : row + strip.height] = pixels * torch.from_numpy(scene.read_valid(strip))
    return image


def _labels(network: nn.Module, tiles: list[Tensor], layout: Layout, height: int, width: int) -> list[Labels]:
    """Class indices of each held tile."""
    its = iter(tiles)
    image = next(its) if layout.parts == 1 else read_scene(lambda *_: next(its), layout, height, width)
    logits = network(image)
    outputs = logits.tiles if isinstance(logits, SceneTensor) else (logits,)
    if [tuple(t.shape[-2:]) for t in outputs] != [tuple(t.shape[-2:]) for t in tiles]:
        raise UserError(f"the network makes {list(logits.shape)} of {height} x {width} px; it must keep the size.")
    return [_argmax(output) for output in outputs]


def _argmax(logits: Tensor) -> Labels:
    """(1, K, height, width) to class indices (height, width), some rows at a time: argmax itself makes int64."""
    labels = np.empty(tuple(logits.shape[-2:]), np.uint8)
    for row in range(0, len(labels), ROWS):
        labels[row : row + ROWS] = logits[0, :, row : row + ROWS].argmax(0).to(torch.uint8).cpu().numpy()
    return labels


def count(
    trained: TrainedNetwork, scene: Scene, windows: Sequence[Window], labels: Sequence[Labels]
) -> Confusion | None:
    """Take the class from pixels without data, and count the others where the scene has a label of these classes."""
    names = [c.name for c in trained.classes]
    scored = scene.has_label and [c.name for c in scene.classes] == names
    confusion = Confusion(names) if scored else None
    for window, its in zip(windows, labels, strict=True):
        for strip in strips(window):
            index = its[strip.row - window.row :][: strip.height]
            index[~scene.read_valid(strip)] = IGNORE_INDEX
            if confusion is not None:
                confusion.update(index, scene.read_label(strip))
    return confusion


def _rows(
    layout: Layout, windows: Sequence[Window], labels: Sequence[Labels], scene: Scene, device: torch.device
) -> Iterator[tuple[int, Labels]]:
    """All ranks' labels on the first rank, some rows at a time: the first of them, and all columns (others: none)."""
    tiles = [torch.from_numpy(its).to(device) for its in labels]
    have = tuple(((w.row, w.row + w.height), (w.col, w.col + w.width)) for w in windows)
    for strip in strips(scene.window):
        wanted = ((strip.row, strip.row + strip.height), (0, scene.width))
        requests = ((wanted,), *[(((0, 0), (0, 0)),)] * (layout.parts - 1))
        _, fetched = fetch(layout, tiles, (0, 1), have, requests, "labels")
        yield strip.row, fetched[0][0].cpu().numpy()


@contextmanager
def _bar(network: nn.Module, title: str | None) -> Iterator[None]:
    """A progress bar over the network's layers, as they run."""
    layers = [module for module in network.modules() if not list(module.children())]
    with tqdm(total=len(layers), desc=title, unit="layer", disable=title is None) as bar:
        hooks = [layer.register_forward_hook(lambda *_: bar.update() and None) for layer in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
