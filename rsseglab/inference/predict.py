"""A scene in, a georeferenced label raster out."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rsseglab.errors import UserError
from rsseglab.evaluation.confusion import Confusion
from rsseglab.inference.crops import Cropping, crop_and_merge
from rsseglab.measure import Measure
from rsseglab.scenes.raster import RasterWriter
from rsseglab.scenes.scene import IGNORE_INDEX, Scene, Window, class_values, label_writer, probability_writer
from rsseglab.training.checkpoint import TrainedNetwork


@dataclass(frozen=True)
class Prediction:
    """What labelling a scene left and cost.

    Attributes:
        path: the label raster.
        probabilities: the raster of class probabilities, where asked for.
        seconds: wall-clock time, reading and writing included.
        peak_mib: peak memory above what stood before, in MiB.
        confusion: of the scene's label, where it was counted (`predict_whole`).
    """

    path: Path
    probabilities: Path | None
    seconds: float
    peak_mib: float
    confusion: Confusion | None = None


def predict_scene(
    trained: TrainedNetwork,
    scene: Scene,
    path: Path,
    cropping: Cropping,
    *,
    probabilities: Path | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
) -> Prediction:
    """Label a whole scene by cropping and write a GeoTIFF on its grid.

    The raster holds the numbers of the data set's label files (`LabelClass.value`), with its colours and, as tags,
    its class names and the window placement; pixels without data hold nodata.

    Args:
        trained: from `rsseglab.training.checkpoint.load_checkpoint`.
        scene: of any size; a label is not needed.
        path: the GeoTIFF to write.
        cropping: windows and blending.
        probabilities: a GeoTIFF to write class probabilities to, one float32 band a class.
        device: where to compute; a GPU if there is one.
        progress: whether to draw a progress bar.

    Raises:
        UserError: the bands do not fit, the image is damaged, or the raster cannot be written.
    """
    trained.check_fits(scene)
    device = pick_device(device)
    network = trained.network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    bands = crop_and_merge(
        network,
        lambda row, stop: read_normalized(trained, scene, row, stop),
        scene.height,
        scene.width,
        cropping,
        device,
        f"labelling {scene.name}" if progress else None,
    )
    return write_prediction(bands, trained, scene, path, placement_tags(cropping, scene), probabilities, device)


def write_prediction(
    bands: Iterator[tuple[int, Tensor]],
    trained: TrainedNetwork,
    scene: Scene,
    path: Path,
    tags: dict[str, str],
    probabilities: Path | None,
    device: torch.device,
) -> Prediction:
    """Write a scene's logits as labels, a band of rows at a time, and measure what making them costs.

    Args:
        bands: first row and logits (K, rows, width) of each band, made as they are asked for.
        trained: whose classes they are.
        scene: on whose grid.
        path: the GeoTIFF of labels.
        tags: of that file, beside the scene's name.
        probabilities: the GeoTIFF of class probabilities, where asked for.
        device: that works.

    Raises:
        UserError: a raster cannot be written.
    """
    nodata = prediction_nodata(trained)
    writer = label_writer(path, scene, trained.classes, nodata, {"scene": scene.name, **tags})
    with Measure(device) as cost, writer:
        if probabilities is None:
            _write(bands, scene, trained, nodata, writer, None)
        else:
            with probability_writer(probabilities, scene, trained.classes) as probability:
                _write(bands, scene, trained, nodata, writer, probability)
    return Prediction(path, probabilities, cost.seconds, cost.peak_mib)


def pick_device(name: torch.device | str | None = None) -> torch.device:
    """The device of a name; a GPU if there is one where no name is given.

    Raises:
        UserError: there is no such device here.
    """
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"there is no device '{name}' here ({reason}); use --device cpu.") from None
    return device


def prediction_nodata(trained: TrainedNetwork) -> int:
    """The number that stands for "no class" in a prediction: the data set's first ignore value, else a free one."""
    taken = {c.value for c in trained.classes}
    return next(v for v in (*trained.ignore_values, *range(255, -1, -1)) if 0 <= v <= 255 and v not in taken)


def read_normalized(trained: TrainedNetwork, scene: Scene, row: int, stop: int) -> Tensor:
    """Rows of a scene as the network wants them: (bands, rows, width), 0 where there is no data."""
    window = Window(row, 0, stop - row, scene.width)
    image = trained.normalize(torch.from_numpy(scene.read(window).astype("float32")))
    valid = torch.from_numpy(scene.read_valid(window))
    return image if valid.all() else image * valid


def _write(
    bands: Iterator[tuple[int, Tensor]],
    scene: Scene,
    trained: TrainedNetwork,
    nodata: int,
    labels: RasterWriter,
    probabilities: RasterWriter | None,
) -> None:
    for row, logits in bands:
        valid = scene.read_valid(Window(row, 0, logits.shape[1], scene.width))
        index = logits.argmax(dim=0).to(torch.uint8).cpu().numpy()
        index[~valid] = IGNORE_INDEX
        labels.write(class_values(index, trained.classes, nodata), row)
        if probabilities is not None:
            shares = logits.softmax(dim=0).cpu().numpy()
            shares[:, ~valid] = float("nan")
            probabilities.write(shares, row)


def placement_tags(cropping: Cropping, scene: Scene) -> dict[str, str]:
    """Where windows lie, as tags of a raster that the seam error reads."""
    starts = {"row_starts": cropping.starts(scene.height), "col_starts": cropping.starts(scene.width)}
    return {
        "window_px": str(cropping.window_px),
        "blend": cropping.blend,
        "merge": cropping.merge,
        **{key: ",".join(map(str, values)) for key, values in starts.items()},
    }
