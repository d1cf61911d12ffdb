"""Views of a scene that are scenes themselves: a downsampled one, a part of it, and one with a single class.

A view has the interface of a `Scene` and reads through to the files of the scene that it was made of, window by
window; nothing is copied to disk. A random crop of a view by 4 decodes 16 times its pixels each time, so a
downsampled scene that is trained on is best kept: ``in_memory(decimated(scene, 4))``.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from scipy import sparse

from rsseglab.errors import UserError
from rsseglab.scenes.raster import BLOCK_PX, Array, RasterSource, Source, Window
from rsseglab.scenes.scene import IGNORE_INDEX, LabelClass, Scene

BACKGROUND = (230, 230, 230)  # the colour of what a single-class view leaves out

Indices = NDArray[np.uint8]


def decimated(scene: Scene, factor: int) -> Scene:
    r"""The scene at a coarser resolution: each pixel stands for a block of factor x factor pixels.

    The image is the mean of the block's valid pixels, and not valid where there is none. The label is the class that
    most of the block's labelled pixels have, the first in the order of the classes where several have as many, and
    `IGNORE_INDEX` where none is labelled. The last blocks of a row and a column may be partial.

    What is finer than a block is gone: on twin scenes (`rsseglab.scenes.twins`), whose keys are stripes of period
    ``detail_px`` = 8, a view with a factor of 8 or a multiple shows both twins alike, so no network can tell them
    apart there. Smaller factors that divide 8 leave the stripes, or a part of their contrast.

    Args:
        scene: with or without a label.
        factor: side of a block, in px of the scene.

    Returns:
        A scene of :math:`\lceil H / f \rceil \times \lceil W / f \rceil` px and of the same name, with transform and
        ``gsd_m`` of its pixels; float32, or float64 where the scene holds 32-bit integers or more.

    Raises:
        UserError: the factor is not at least 1.
    """
    if factor < 1:
        raise UserError(f"factor is {factor}; it is the side of the block that becomes a pixel, such as 4.")
    images = [_DecimatedImage(source, scene, factor) for source in scene._images]
    label = _LabelView(scene, images[0], partial(_majority, scene, factor), scene.classes)
    return Scene(
        images,
        label if scene.has_label else None,
        scene.classes,
        scene.ignore_values,
        name=scene.name,
        bands=scene.bands,
        gsd_m=scene.gsd_m and scene.gsd_m * factor,
    )


class _DecimatedImage:
    """Block means of one source of a scene; a pixel counts where the whole scene holds data."""

    def __init__(self, source: Source, scene: Scene, factor: int) -> None:
        if hasattr(source, "path"):
            self.path = source.path
        self.source, self.scene, self.factor = source, scene, factor
        self.height, self.width = -(-scene.height // factor), -(-scene.width // factor)
        self.count = source.count
        self.dtype = np.result_type(source.dtype, np.float32)
        self.crs = scene.crs
        self.transform = _scaled(scene.transform, factor)

    def read(self, window: Window) -> Array:
        """Pixels of shape (count, height, width)."""
        means = np.zeros((self.count, window.height, window.width), self.dtype)
        for rows, full in _strips(window, self.scene, self.factor):
            valid = self.scene.read_valid(full)
            sums = _block_sums(np.where(valid, self.source.read(full), 0).astype(np.float64), self.factor)
            means[:, rows] = sums / np.maximum(_block_sums(valid, self.factor), 1)
        return means

    def read_valid(self, window: Window) -> NDArray[np.bool_]:
        """Shape (height, width): True where a pixel of the block is."""
        valid = np.zeros((window.height, window.width), dtype=bool)
        for rows, full in _strips(window, self.scene, self.factor):
            valid[rows] = _block_sums(self.scene.read_valid(full), self.factor) > 0
        return valid


def _scaled(transform: Affine, factor: int) -> Affine:
    if transform == Affine.identity():  # no georeference stays none: a scaled identity would pass for coordinates
        return transform
    a, b, c, d, e, f = transform[:6]
    return Affine(a * factor, b * factor, c, d * factor, e * factor, f)


def _majority(scene: Scene, factor: int, window: Window) -> Indices:
    index = np.full((window.height, window.width), IGNORE_INDEX, np.uint8)
    for rows, full in _strips(window, scene, factor):
        label = scene.read_label(full)
        most = np.zeros(index[rows].shape, np.int64)
        for k in np.unique(label[label != IGNORE_INDEX]):  # ascending: a later class must have more pixels
            votes = _block_sums(label == k, factor)
            index[rows][votes > most] = k
            most = np.maximum(votes, most)
    return index


def _strips(window: Window, scene: Scene, factor: int) -> list[tuple[slice, Window]]:
    """A decimated window in strips: rows of the window, and the pixels of the scene that they stand for."""
    # As many rows as a block of the file has, so that memory does not grow with the window's height times factor.
    step = max(1, BLOCK_PX // factor)
    col, right = window.col * factor, min((window.col + window.width) * factor, scene.width)
    strips = []
    for first in range(0, window.height, step):
        last = min(first + step, window.height)
        row, bottom = (window.row + first) * factor, min((window.row + last) * factor, scene.height)
        strips.append((slice(first, last), Window(row, col, bottom - row, right - col)))
    return strips


def _block_sums(pixels: Array, factor: int) -> Array:
    """Sums over blocks of the last two axes; the last ones may be partial."""
    *front, height, width = pixels.shape
    pixels = np.pad(pixels, [*([(0, 0)] * len(front)), (0, -height % factor), (0, -width % factor)])
    pixels = pixels.astype(np.int32) if pixels.dtype == bool else pixels
    blocks = pixels.reshape(*front, -(-height // factor), factor, -(-width // factor), factor)
    sums: Array = np.einsum("...iajb->...ij", blocks)
    return sums


def part_of(scene: Scene, window: Window, name: str) -> Scene:
    """A part of a scene: nothing outside its window can be read through it, neither image nor label.

    Args:
        scene: with or without a label.
        window: inside the scene.
        name: of the part.

    Raises:
        UserError: the window is empty or reaches past the scene.
    """
    bottom, right = window.row + window.height, window.col + window.width
    if min(window.row, window.col) < 0 or min(window[2:]) < 1 or bottom > scene.height or right > scene.width:
        raise UserError(
            f"part {name} has rows {window.row} to {bottom} and columns {window.col} to {right}, but scene "
            f"{scene.name} is {scene.width} x {scene.height} px (width x height); give a window inside it."
        )
    images = [_PartImage(source, scene, window) for source in scene._images]
    label = _LabelView(scene, images[0], partial(_label_in_part, scene, window), scene.classes)
    return Scene(
        images,
        label if scene.has_label else None,
        scene.classes,
        scene.ignore_values,
        name=name,
        bands=scene.bands,
        gsd_m=scene.gsd_m,
    )


class _PartImage:
    """A window of one source of a scene."""

    def __init__(self, source: Source, scene: Scene, part: Window) -> None:
        if hasattr(source, "path"):
            self.path = source.path
        self.source, self.part = source, part
        self.height, self.width, self.count, self.dtype = part.height, part.width, source.count, source.dtype
        self.crs = scene.crs
        self.transform = _moved(scene.transform, part)

    def read(self, window: Window) -> Array:
        """Pixels of shape (count, height, width)."""
        return self.source.read(_in_whole(window, self.part))

    def read_valid(self, window: Window) -> NDArray[np.bool_]:
        """Shape (height, width): False where the source holds no data."""
        return self.source.read_valid(_in_whole(window, self.part))


def _moved(transform: Affine, part: Window) -> Affine:
    if transform == Affine.identity():  # no georeference stays none
        return transform
    a, b, c, d, e, f = transform[:6]
    return Affine(a, b, c + a * part.col + b * part.row, d, e, f + d * part.col + e * part.row)


def _in_whole(window: Window, part: Window) -> Window:
    return Window(part.row + window.row, part.col + window.col, window.height, window.width)


def _label_in_part(scene: Scene, part: Window, window: Window) -> Indices:
    return scene.read_label(_in_whole(window, part))


def single_class(scene: Scene, names: str | Sequence[str]) -> Scene:
    """The scene's label as one class against the rest, such as water: a binary problem.

    Args:
        scene: of any classes.
        names: one or several of them; several are merged.

    Returns:
        A scene of the classes "background" (0) and the named one (1); what is ignored stays ignored.

    Raises:
        UserError: a name is no class, or nothing is left as background.
    """
    names = [names] if isinstance(names, str) else list(names)
    known = [c.name for c in scene.classes]
    strange = [name for name in names if name not in known]
    if strange or not names:
        raise UserError(f"scene {scene.name} has no class {strange or ''}; choose from {', '.join(known)}.")
    if set(names) == set(known):
        raise UserError(f"{', '.join(names)} are all classes of scene {scene.name}; leave one as background.")
    chosen = [known.index(name) for name in names]
    classes = (
        LabelClass("background", 0, BACKGROUND),
        LabelClass(" or ".join(names), 1, scene.classes[chosen[0]].color),
    )
    label = _LabelView(scene, scene._images[0], partial(_is_one_of, scene, chosen), classes)
    return Scene(
        scene._images,
        label if scene.has_label else None,
        classes,
        [IGNORE_INDEX],
        name=scene.name,
        bands=scene.bands,
        gsd_m=scene.gsd_m,
    )


def _is_one_of(scene: Scene, chosen: Sequence[int], window: Window) -> Indices:
    table = np.zeros(IGNORE_INDEX + 1, np.uint8)
    table[list(chosen)], table[IGNORE_INDEX] = 1, IGNORE_INDEX
    return table[scene.read_label(window)]


def with_image(scene: Scene, image: Source | Path, bands: Sequence[str]) -> Scene:
    """The scene's label, name and classes with another image on its grid, such as a map of probabilities.

    Args:
        scene: with or without a label.
        image: a raster of the scene's size, or its path.
        bands: names of its bands.

    Raises:
        UserError: the image is of another size, or lies elsewhere.
    """
    return Scene(
        image, scene._label, scene.classes, scene.ignore_values, name=scene.name, bands=bands, gsd_m=scene.gsd_m,
        label_encoding=scene.label_encoding,
    )  # fmt: skip


class _LabelView:
    """A label computed from another scene's, on the grid of an image, as the numbers of the given classes."""

    def __init__(
        self, scene: Scene, grid: Source, index: Callable[[Window], Indices], classes: Sequence[LabelClass]
    ) -> None:
        if path := getattr(scene._label, "path", None):
            self.path = path
        self.height, self.width, self.count = grid.height, grid.width, 1
        self.crs, self.transform = grid.crs, grid.transform
        values = [c.value for c in classes] or [0]
        self.nodata = min(values) - 1
        self.dtype: np.dtype[Any] = np.result_type(np.min_scalar_type(self.nodata), np.min_scalar_type(max(values)))
        self._index = index
        self._values = np.full(IGNORE_INDEX + 1, self.nodata, self.dtype)
        self._values[: len(classes)] = [c.value for c in classes]

    def read(self, window: Window) -> Array:
        """Class values of shape (1, height, width)."""
        values: Array = self._values[self._index(window)][None]
        return values

    def read_valid(self, window: Window) -> NDArray[np.bool_]:
        """All True: where there is no class the value says so."""
        return np.ones((window.height, window.width), dtype=bool)


def in_memory(scene: Scene) -> Scene:
    """The scene with its pixels read once and kept: for a decimated one, whose every read costs a larger one.

    Args:
        scene: that fits in memory.
    """
    grid = scene._images[0]
    return Scene(
        [_Kept(source, scene.window) for source in scene._images],
        _LabelView(scene, grid, partial(_cut, scene.read_label()), scene.classes) if scene.has_label else None,
        scene.classes,
        scene.ignore_values,
        name=scene.name,
        bands=scene.bands,
        gsd_m=scene.gsd_m,
    )


class _Kept:
    """All pixels of a source."""

    def __init__(self, source: Source, whole: Window) -> None:
        if hasattr(source, "path"):
            self.path = source.path
        self.height, self.width, self.count, self.dtype = source.height, source.width, source.count, source.dtype
        self.crs, self.transform = source.crs, source.transform
        self._pixels, self._valid = source.read(whole), source.read_valid(whole)

    def read(self, window: Window) -> Array:
        """Pixels of shape (count, height, width)."""
        return _cut(self._pixels, window)

    def read_valid(self, window: Window) -> NDArray[np.bool_]:
        """Shape (height, width): False where the source holds no data."""
        return _cut(self._valid, window)


def _cut(pixels: Array, window: Window) -> Array:
    return pixels[..., window.row : window.row + window.height, window.col : window.col + window.width]


def thumbnail(scene: Scene, side_px: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    r"""The whole scene as a square of side_px x side_px pixels, whatever its shape.

    Pixel (i, j) is the mean over the area that it covers, of the valid pixels alone; a pixel of the scene that lies
    on the border of two areas counts in both by the part that lies there:

    .. math:: t = \frac{A_r (x \cdot v) A_c^T}{A_r\, v\, A_c^T}, \qquad
              (A_r)_{ip} = \left| \left[ i \tfrac{H}{n}, (i + 1) \tfrac{H}{n} \right] \cap [p, p + 1] \right|

    On twin scenes it shows both twins alike where H / n and W / n are multiples of ``detail_px``; other ratios leave
    a rest of the stripes' contrast.

    Args:
        scene: of any size; read strip by strip.
        side_px: side n of the square.

    Returns:
        The image, float32 of shape (bands, side_px, side_px), 0 where nothing is valid; and where it is valid, of
        shape (side_px, side_px).
    """
    rows, cols = _area_shares(scene.height, side_px), _area_shares(scene.width, side_px)
    sums = np.zeros((scene.count, side_px, side_px))
    weights = np.zeros((side_px, side_px))
    for row in range(0, scene.height, BLOCK_PX):
        strip = Window(row, 0, min(BLOCK_PX, scene.height - row), scene.width)
        here = rows[:, row : row + strip.height]  # (n, strip)
        valid = scene.read_valid(strip)
        weights += here @ (valid @ cols.T)
        for band, pixels in enumerate(scene.read(strip)):
            sums[band] += here @ (np.where(valid, pixels, 0).astype(np.float64) @ cols.T)
    covered = weights > 0
    return (sums / np.where(covered, weights, 1)).astype(np.float32), covered


def read_small(scene: Scene, window: Window, height: int, width: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """The image in a window at a coarser resolution: means over the cells of a height x width grid.

    Raster files are read decimated, from overviews where they have any (GDAL's average, in the file's dtype); other
    sources are read whole and averaged. The window may reach past the scene; the cells there are not valid, to the
    nearest cell.

    Args:
        scene: of any size.
        window: at least as large as the grid.
        height: of the grid.
        width: of the grid.

    Returns:
        The image, float32 of shape (bands, height, width), 0 where nothing is valid; and where it is valid, of shape
        (height, width).

    Raises:
        UserError: the window is smaller than the grid.
    """
    if window.height < height or window.width < width:
        raise UserError(
            f"a window of {window.width} x {window.height} px is smaller than {width} x {height} px; choose a wider "
            "context, or smaller patches."
        )
    pixels = np.zeros((scene.count, height, width), np.float32)
    valid = np.zeros((height, width), bool)
    inside = scene._inside(window)
    rows = _cells(inside.row - window.row, inside.height, height, window.height)
    cols = _cells(inside.col - window.col, inside.width, width, window.width)
    size = rows.stop - rows.start, cols.stop - cols.start
    if min(size) > 0:
        parts = [_small(source, inside, *size) for source in scene._images]
        valid[rows, cols] = np.logical_and.reduce([part for _, part in parts])
        pixels[:, rows, cols] = np.concatenate([part for part, _ in parts])
        pixels[:, ~valid] = 0  # NaN, where that says that there is no data
    return pixels, valid


def _cells(first: int, length: int, cells: int, pixels: int) -> slice:
    """The cells of a grid over an axis that lie on some of its pixels, to the nearest cell."""
    return slice(round(first * cells / pixels), round((first + length) * cells / pixels))


def _small(source: Source, window: Window, height: int, width: int) -> tuple[Array, NDArray[np.bool_]]:
    found = source.read_small(window, height, width) if isinstance(source, RasterSource) else None
    if found is not None:
        return found
    valid = source.read_valid(window)
    rows, cols = _area_shares(window.height, height), _area_shares(window.width, width)
    weights = rows @ (valid @ cols.T)
    sums = [rows @ (np.where(valid, band, 0).astype(np.float64) @ cols.T) for band in source.read(window)]
    return np.stack(sums) / np.where(weights > 0, weights, 1), weights > 0


def _area_shares(length: int, parts: int) -> Any:
    """How much of each pixel lies in each of so many equal parts of an axis: sparse, shape (parts, length)."""
    pixels, edges = np.arange(length), np.arange(parts + 1) * length / parts
    first, last = (np.clip(edge[:, None] - pixels, 0, 1) for edge in (edges[:-1], edges[1:]))
    return sparse.csr_array(last - first)
