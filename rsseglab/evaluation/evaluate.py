"""Score the prediction of a whole scene, block by block: memory does not grow with the scene."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from rsseglab.errors import UserError
from rsseglab.evaluation.boundary import BoundaryF1, far_from_boundary
from rsseglab.evaluation.confusion import Confusion
from rsseglab.evaluation.padding import Padding, padded_size
from rsseglab.evaluation.seams import Placement, SeamCounter, SeamError
from rsseglab.scenes.raster import RasterSource, Window, offset_px, read_tags
from rsseglab.scenes.scene import IGNORE_INDEX, Scene, class_index

BLOCK_PX = 1024

Indices = NDArray[np.uint8]


@dataclass(frozen=True)
class Evaluation:
    """What a prediction is worth, on one scene or pooled over several.

    Attributes:
        scene: name of the scene.
        confusion: of all labelled pixels.
        boundary: of the outlines of the classes.
        seams: of the window borders; None where no window placement was given.
        padding: what a protocol pads the scene with, none of which is in the confusion; None where not asked for.
        no_boundary_px: how near to another class a labelled pixel is that was not counted, but for ``boundary``.
    """

    scene: str
    confusion: Confusion
    boundary: BoundaryF1
    seams: SeamError | None = None
    padding: Padding | None = None
    no_boundary_px: int = 0

    def metrics(self, classes: Sequence[str] | None = None) -> dict[str, Any]:
        """All measures in plain types, for a run record.

        Args:
            classes: the classes that enter the means; all when not given. The record names them.

        Raises:
            UserError: a name is no class.
        """
        confusion, boundary = self.confusion, self.boundary

        def a_class(scores: NDArray[np.float64]) -> dict[str, float]:
            return dict(zip(confusion.classes, scores.tolist(), strict=True))

        metrics: dict[str, Any] = {
            "pixels": confusion.pixels,
            "mean_over": list(confusion.classes if classes is None else classes),
            "mean_iou": confusion.mean_iou(classes),
            "mean_f1": confusion.mean_f1(classes),
            "mean_precision": confusion.mean_precision(classes),
            "mean_recall": confusion.mean_recall(classes),
            "overall_accuracy": confusion.overall_accuracy(),
            "boundary_tolerance_px": boundary.tolerance_px,
            "mean_boundary_f1": boundary.mean_f1(classes),
            "iou": a_class(confusion.iou()),
            "f1": a_class(confusion.f1()),
            "precision": a_class(confusion.precision()),
            "recall": a_class(confusion.recall()),
            "boundary_f1": a_class(boundary.f1()),
        }
        if self.no_boundary_px:
            metrics["no_boundary_px"] = self.no_boundary_px
        if self.seams is not None:
            metrics |= {
                "seam_error": self.seams.seam_error,
                "seam_error_interval95": list(self.seams.interval()),
                "seam_distance_px": self.seams.distance_px,
                "seam_near_error": self.seams.near_error,
                "seam_far_error": self.seams.far_error,
                "seam_placebo_near_error": self.seams.placebo_near_error,
                "seam_placebo_far_error": self.seams.placebo_far_error,
            }
        return metrics


def evaluate_scene(
    prediction: str | Path | Indices,
    scene: Scene,
    *,
    placement: Placement | None = None,
    tolerance_px: int = 3,
    seam_distance_px: int = 8,
    no_boundary_px: int = 0,
    pad_to_px: int | None = None,
    block_px: int = BLOCK_PX,
    progress: bool = False,
) -> Evaluation:
    """Compare a prediction with a scene's label.

    Args:
        prediction: a raster of the label file's values (`LabelClass.value`) on the scene's grid, whose nodata and
            the scene's ignore values mean "no class"; or class indices in memory, shape (height, width),
            `IGNORE_INDEX` for no class. Without a class a labelled pixel counts as wrong.
        scene: with a label.
        placement: the windows that the prediction was made of, for the seam error; what the tags of a raster of
            `rsseglab predict` say when not given.
        tolerance_px: of the boundary F1.
        seam_distance_px: how far from a window border pixels count as near it.
        no_boundary_px: labelled pixels at most so near to another class are left out of the confusion and of the seam
            error (`far_from_boundary`); the boundary F1 is of the whole label.
        pad_to_px: count the padding of the scene to a multiple of so many px too. The prediction may then have the
            padded size, the scene at its upper left; where it covers the scene alone, the padding counts as unseen.
        block_px: side of the blocks that are read; only the seam error's interval depends on it.
        progress: whether to draw a progress bar.

    Raises:
        UserError: a file is missing or damaged; size, coordinate system or grid differ; a value is no class; the
            scene has no label, or its label has no class anywhere.
    """
    if not 0 <= tolerance_px <= 256:
        raise UserError(f"the tolerance is {tolerance_px} px; give 0 to 256, such as 3.")
    if not 0 <= no_boundary_px <= 32:
        raise UserError(f"the boundary is {no_boundary_px} px to each side; give 0 to 32, such as 3.")
    if pad_to_px is None:
        read, padding = index_reader(prediction, scene), None
    else:
        read, padding = _with_padding(prediction, scene, pad_to_px, block_px)
    if placement is None and not isinstance(prediction, np.ndarray):
        placement = read_placement(Path(prediction))
    names = [one.name for one in scene.classes]
    confusion, boundary = Confusion(names), BoundaryF1(names, tolerance_px)
    seams = placement and SeamCounter(scene.height, scene.width, placement, seam_distance_px)
    halo = max(boundary.halo_px, no_boundary_px)
    for block in scene_blocks(scene, block_px, f"scoring {scene.name}" if progress else None):
        around = Window(block.row - halo, block.col - halo, block.height + 2 * halo, block.width + 2 * halo)
        guess, label = read(around), scene.read_label(around)
        outline = _inner(halo - boundary.halo_px)
        boundary.update(guess[outline], label[outline])
        inner = _inner(halo)
        guess, true = guess[inner], label[inner]
        if no_boundary_px:
            far = far_from_boundary(label[_inner(halo - no_boundary_px)], no_boundary_px)
            counted = far | (true == IGNORE_INDEX)  # what is left out has a label, and so is not among what has none
            confusion.update(guess[counted], true[counted])
            true = np.where(far, true, np.uint8(IGNORE_INDEX))
        else:
            confusion.update(guess, true)
        if seams:
            seams.update(guess, true, block.row, block.col)
    if not confusion.pixels:
        raise UserError(_nothing_scored(scene, no_boundary_px))
    return Evaluation(scene.name, confusion, boundary, seams.result() if seams else None, padding, no_boundary_px)


def _inner(margin: int) -> tuple[slice, slice]:
    """What a margin on all four sides leaves of a block."""
    return (slice(margin, -margin or None),) * 2


def _nothing_scored(scene: Scene, no_boundary_px: int) -> str:
    if no_boundary_px:
        return (
            f"scene {scene.name} has no labelled pixel that is farther than {no_boundary_px} px from another class; "
            "leave out less of the boundary, or leave the scene out."
        )
    return (
        f"scene {scene.name} has no labelled pixel: its label holds only ignore values "
        f"{list(scene.ignore_values)} or nodata; give another label, or leave the scene out."
    )


def _with_padding(
    prediction: str | Path | Indices, scene: Scene, pad_to_px: int, block_px: int
) -> tuple[Callable[[Window], Indices], Padding]:
    """How to read a prediction of a scene that may be padded, and what it says of the padding."""
    height, width = padded_size(scene.height, scene.width, pad_to_px)
    K = len(scene.classes)
    if _size_of(prediction) != (height, width) or (height, width) == (scene.height, scene.width):
        unseen = height * width - scene.height * scene.width
        return index_reader(prediction, scene), Padding(pad_to_px, np.zeros(K + 1, np.int64), unseen)
    read = index_reader(prediction, scene, (height, width))
    counts = np.zeros(IGNORE_INDEX + 1, np.int64)
    right = Window(0, scene.width, scene.height, width - scene.width)
    below = Window(scene.height, 0, height - scene.height, width)
    for strip in (right, below):
        for block in _blocks(strip, block_px):
            counts += np.bincount(read(block).ravel(), minlength=counts.size)
    return read, Padding(pad_to_px, np.append(counts[:K], counts[K:].sum()))


def _size_of(prediction: str | Path | Indices) -> tuple[int, ...]:
    if isinstance(prediction, np.ndarray):
        return prediction.shape
    source = RasterSource(Path(prediction))
    return source.height, source.width


def read_placement(prediction: Path) -> Placement | None:
    """Where the windows of a prediction lay, if its tags say so."""
    tags = read_tags(prediction)
    if "window_px" not in tags:
        return None
    try:
        rows, cols = ([int(start) for start in tags[key].split(",")] for key in ("row_starts", "col_starts"))
        return Placement(rows, cols, int(tags["window_px"]))
    except (KeyError, ValueError):
        raise UserError(
            f"{prediction} has unusable tags of its windows (window_px, row_starts, col_starts); label the scene anew."
        ) from None


def pool(evaluations: Sequence[Evaluation], name: str = "pooled") -> Evaluation:
    """Add up the counts of several scenes, so that every labelled pixel weighs the same.

    The seam error is pooled when all scenes have one.

    Raises:
        UserError: there is no evaluation, or they differ in classes, tolerance, distance, padding or boundary left out.
    """
    if not evaluations:
        raise UserError("there is no evaluation to pool; evaluate at least one scene.")
    no_boundary_px = {e.no_boundary_px for e in evaluations}
    if len(no_boundary_px) > 1:
        raise UserError(
            f"scores without {sorted(no_boundary_px)} px of boundary do not add; leave out the same of all."
        )
    seams = [e.seams for e in evaluations if e.seams is not None]
    padding = [e.padding for e in evaluations if e.padding is not None]
    return Evaluation(
        name,
        reduce(add, (e.confusion for e in evaluations)),
        reduce(add, (e.boundary for e in evaluations)),
        reduce(add, seams) if len(seams) == len(evaluations) else None,
        reduce(add, padding) if len(padding) == len(evaluations) else None,
        no_boundary_px.pop(),
    )


def count_labels(scenes: Iterable[Scene], block_px: int = BLOCK_PX) -> NDArray[np.int64]:
    """Labelled pixels a class over scenes of the same classes, shape (K,); see `Confusion.majority_class`."""
    total = np.zeros(IGNORE_INDEX + 1, np.int64)
    K = 0
    for scene in scenes:
        K = len(scene.classes)
        for block in scene_blocks(scene, block_px):
            total += np.bincount(scene.read_label(block).ravel(), minlength=total.size)
    return total[:K]


def scene_blocks(scene: Scene, block_px: int, title: str | None = None) -> Iterator[Window]:
    """The blocks of a scene row by row, smaller at the far edges; a progress bar of that title, if any."""
    return _blocks(scene.window, block_px, title)


def _blocks(area: Window, block_px: int, title: str | None = None) -> Iterator[Window]:
    if block_px < 1:
        raise UserError(f"block is {block_px} px; it must be at least 1, such as {BLOCK_PX}.")
    bottom, right = area.row + area.height, area.col + area.width
    corners = [(row, col) for row in range(area.row, bottom, block_px) for col in range(area.col, right, block_px)]
    for row, col in tqdm(corners, desc=title, unit="block", disable=title is None):
        yield Window(row, col, min(block_px, bottom - row), min(block_px, right - col))


def index_reader(
    prediction: str | Path | Indices, scene: Scene, size: tuple[int, int] | None = None
) -> Callable[[Window], Indices]:
    """How to read class indices in a window that may reach past the prediction, where they are `IGNORE_INDEX`.

    Args:
        prediction: a raster, or class indices in memory; see `evaluate_scene`.
        scene: which the prediction is of.
        size: height and width of the prediction, in px; the scene's when not given.

    Raises:
        UserError: size, coordinate system or grid of the prediction are others.
    """
    height, width = size or (scene.height, scene.width)
    if isinstance(prediction, np.ndarray):
        _check_size("the prediction", prediction.shape, scene, (height, width))
        indices = prediction

        def read_inside(window: Window) -> Indices:
            return indices[window.row : window.row + window.height, window.col : window.col + window.width]

    else:
        path = Path(prediction)
        source = RasterSource(path)
        _check_grid(path, source, scene, (height, width))
        values = [one.value for one in scene.classes]
        # Like Scene: a class that the file declares as nodata stays a class.
        nodata = [] if source.nodata is None or source.nodata in values else [source.nodata]

        def read_inside(window: Window) -> Indices:
            raw = source.read(window)[0]
            return class_index(raw, scene.classes, [*scene.ignore_values, *nodata], f"the prediction {path}")

    def read(window: Window) -> Indices:
        top, left = max(window.row, 0), max(window.col, 0)
        bottom = min(window.row + window.height, height)
        right = min(window.col + window.width, width)
        padded = np.full((window.height, window.width), IGNORE_INDEX, np.uint8)
        rows = slice(top - window.row, bottom - window.row)
        cols = slice(left - window.col, right - window.col)
        padded[rows, cols] = read_inside(Window(top, left, bottom - top, right - left))
        return padded

    return read


def _check_grid(path: Path, source: RasterSource, scene: Scene, size: tuple[int, int]) -> None:
    _check_size(str(path), (source.height, source.width), scene, size)
    if source.count != 1:
        raise UserError(f"{path} has {source.count} bands; a prediction has one, of class values.")
    if source.crs and scene.crs and source.crs != scene.crs:
        raise UserError(
            f"{path} is in {source.crs} but scene {scene.name} is in {scene.crs}; "
            "warp the prediction to the scene's coordinate system (rio warp)."
        )
    shift = offset_px(scene.transform, source.transform, scene.height, scene.width)
    if shift > 0.5:
        raise UserError(
            f"{path} lies {shift:.1f} px beside scene {scene.name}; "
            "give the prediction of this scene, or warp it to the scene's grid (rio warp)."
        )


def _check_size(what: str, shape: tuple[int, ...], scene: Scene, size: tuple[int, int]) -> None:
    if shape != size:
        raise UserError(
            f"{what} has {' x '.join(map(str, shape))} px but scene {scene.name} has {scene.height} x {scene.width} "
            "(height x width); give the prediction of this scene, on its grid."
        )
