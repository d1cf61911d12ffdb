"""A scene: a whole remote sensing image with its label, on disk, read window by window."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from rsseglab.errors import UserError
from rsseglab.scenes.raster import Array, ArraySource, RasterSource, RasterWriter, Source, offset_px
from rsseglab.scenes.raster import Window as Window

#: The label index, in memory, of pixels that are never trained on and never scored.
IGNORE_INDEX = 255


@dataclass(frozen=True)
class LabelClass:
    """One class of a label raster.

    Attributes:
        name: what maps and tables call it.
        value: the number that stands for it in the label file.
        color: its colour on maps, and in colour-coded label files: red, green, blue, 0 to 255.
    """

    name: str
    value: int
    color: tuple[int, int, int]


class Scene:
    """A whole image with its label, of any size; a read touches only the window asked for.

    In memory a label holds class *indices* 0 to K - 1, in the order of ``classes``, and `IGNORE_INDEX`
    where nothing is to be trained on or scored: ignore values, nodata, and padding outside the scene.

    Args:
        image: a raster with all bands, or a sequence of rasters with one part of the bands each, as paths
            (what GDAL opens, or a ``.npy`` cube of height x width x bands) or as a `Source`.
        label: a raster of one band (or three, if ``label_encoding`` is "color"), likewise.
        classes: the classes of the label, in the order of their indices.
        ignore_values: numbers in the label file that are no class.
        name: what tables call the scene; the first image's file name when not given.
        bands: names of the bands. As many as one raster has mean all of them: GDAL marks the fourth band of a byte
            raster as alpha unless told otherwise, and what is marked as alpha is a mask and no band by default.
        nodata: the image's value for "no data", where the file does not say it.
        gsd_m: ground sampling distance in metres.
        label_encoding: "value" (the file holds `LabelClass.value`) or "color" (`LabelClass.color`).

    Raises:
        UserError: a file is missing or unreadable; sizes or coordinate systems differ.
    """

    def __init__(
        self,
        image: str | Path | Source | Sequence[str | Path | Source],
        label: str | Path | Source | None = None,
        classes: Sequence[LabelClass] = (),
        ignore_values: Sequence[int] = (),
        *,
        name: str | None = None,
        bands: Sequence[str] | None = None,
        nodata: float | None = None,
        gsd_m: float | None = None,
        label_encoding: str = "value",
    ) -> None:
        parts = image if isinstance(image, Sequence) and not isinstance(image, str) else [image]
        self._images = [_source(part, nodata, bands if len(parts) == 1 else None) for part in parts]
        self._label = None if label is None else _source(label, None)
        self.classes, self.ignore_values = tuple(classes), tuple(ignore_values)
        self.label_encoding = label_encoding
        self.gsd_m = gsd_m
        first = self._images[0]
        self.name = name or getattr(first, "path", Path("scene")).stem
        self.height: int = first.height
        self.width: int = first.width
        self.crs: CRS | None = first.crs
        self.transform: Affine = first.transform
        self.count = sum(source.count for source in self._images)
        self.dtype: np.dtype[Any] = np.result_type(*(source.dtype for source in self._images))
        self.bands = tuple(bands) if bands else self._default_bands()
        self._check()

    def _default_bands(self) -> tuple[str, ...]:
        names = [n for source in self._images for n in getattr(source, "descriptions", [None] * source.count)]
        return tuple(name or f"band_{i}" for i, name in enumerate(names, start=1))

    def _check(self) -> None:
        if len(self.bands) != self.count:
            raise UserError(f"scene {self.name} has {self.count} bands but {len(self.bands)} band names; correct them.")
        if len(self.classes) > IGNORE_INDEX:
            raise UserError(f"scene {self.name} has {len(self.classes)} classes; at most {IGNORE_INDEX} fit.")
        if self._label and (self._label.count < 3 if self.label_encoding == "color" else self._label.count != 1):
            raise UserError(
                f"the label of scene {self.name} has {self._label.count} bands; a label of class values has one, "
                'one of colours (label_encoding "color") three.'
            )
        for source in [*self._images[1:], *([self._label] if self._label else [])]:
            kind = "label" if source is self._label else "image"
            where = getattr(source, "path", kind)
            if (source.height, source.width) != (self.height, self.width):
                raise UserError(
                    f"{where} is {source.width} x {source.height} px but scene {self.name} is "
                    f"{self.width} x {self.height} px (width x height); "
                    f"give the {kind} of this scene, or resample it to its grid."
                )
            if source.crs and self.crs and source.crs != self.crs:
                raise UserError(
                    f"{where} is in {source.crs} but scene {self.name} is in {self.crs}; "
                    "warp one to the other's coordinate system (rio warp)."
                )
            shift = offset_px(self.transform, source.transform, self.height, self.width)
            if shift > 0.5:
                raise UserError(
                    f"{where} lies {shift:.1f} px beside scene {self.name}; "
                    f"give the {kind} of this scene, or warp it to its grid (rio warp)."
                )

    @property
    def has_label(self) -> bool:
        """Whether the scene has a label."""
        return self._label is not None

    @property
    def paths(self) -> list[Path]:
        """The files of image and label."""
        sources = [*self._images, *([self._label] if self._label else [])]
        return [source.path for source in sources if hasattr(source, "path")]

    @property
    def window(self) -> Window:
        """The whole scene as a window."""
        return Window(0, 0, self.height, self.width)

    def read(self, window: Window | None = None) -> Array:
        """Read the image in a window.

        Args:
            window: may reach past the scene; there the pixels are 0. The whole scene when not given.

        Returns:
            Shape (bands, height, width), in the scene's dtype.

        Raises:
            UserError: the file is damaged, or holds NaN or infinity where it declares no nodata.
        """
        window = window or self.window
        inside = self._inside(window)
        pixels = np.zeros((self.count, window.height, window.width), self.dtype)
        if inside.height and inside.width:
            rows, cols = _slices(inside, window)
            pixels[:, rows, cols] = np.concatenate([source.read(inside) for source in self._images])
            if self.dtype.kind == "f":
                self._check_finite(pixels, window)
        return pixels

    def read_valid(self, window: Window | None = None) -> NDArray[np.bool_]:
        """Shape (height, width): False on nodata and on padding outside the scene."""
        window = window or self.window
        inside = self._inside(window)
        valid = np.zeros((window.height, window.width), dtype=bool)
        if inside.height and inside.width:
            masks = [source.read_valid(inside) for source in self._images]
            valid[_slices(inside, window)] = np.logical_and.reduce(masks)
        return valid

    def read_label(self, window: Window | None = None) -> NDArray[np.uint8]:
        """Read the label in a window.

        Args:
            window: may reach past the scene; there the label is `IGNORE_INDEX`.

        Returns:
            Shape (height, width): class indices 0 to K - 1, or `IGNORE_INDEX`.

        Raises:
            UserError: the scene has no label, the file is damaged, or it holds a value that is no class.
        """
        if self._label is None:
            raise UserError(f"scene {self.name} has no label; give one to train or to evaluate.")
        window = window or self.window
        inside = self._inside(window)
        label = np.full((window.height, window.width), IGNORE_INDEX, np.uint8)
        if inside.height and inside.width:
            values = self._label.read(inside)
            index = self._color_index(values) if self.label_encoding == "color" else self._value_index(values[0])
            if self._label_nodata() is not None:
                index[~self._label.read_valid(inside)] = IGNORE_INDEX
            rows, cols = _slices(inside, window)
            label[rows, cols] = index
            label[~self.read_valid(window)] = IGNORE_INDEX
        return label

    def _value_index(self, values: Array) -> NDArray[np.uint8]:
        return class_index(values, self.classes, self._ignored(), f"the label of scene {self.name}")

    def _ignored(self) -> tuple[float, ...]:
        # Some files declare a class (background, 0) as nodata: the list of classes knows better.
        nodata = self._label_nodata()
        return (*self.ignore_values, *(() if nodata is None else (nodata,)))

    def _label_nodata(self) -> float | None:
        nodata: float | None = getattr(self._label, "nodata", None)
        return None if nodata in [c.value for c in self.classes] else nodata

    def _color_index(self, values: Array) -> NDArray[np.uint8]:
        # Colours as 24-bit numbers, so that the same look-up serves both encodings.
        red, green, blue = values[:3].astype(np.int64)
        coded = [LabelClass(c.name, _code(c.color), c.color) for c in self.classes]
        return class_index(
            red << 16 | green << 8 | blue,
            coded,
            self.ignore_values,
            f"the label of scene {self.name} (0xRRGGBB)",
        )

    def _check_finite(self, pixels: Array, window: Window) -> None:
        bad = ~np.isfinite(pixels)
        if not bad.any():
            return
        bad &= self.read_valid(window)
        if bad.any():
            band, row, col = (int(i[0]) for i in np.nonzero(bad))
            raise UserError(
                f"scene {self.name} holds {bad.sum()} NaN or infinite values in this window, the first in "
                f"band {self.bands[band]} at row {window.row + row}, column {window.col + col}; "
                "repair the file, or declare NaN as its nodata value."
            )
        pixels[~np.isfinite(pixels)] = 0

    def _inside(self, window: Window) -> Window:
        row, col = max(window.row, 0), max(window.col, 0)
        bottom = min(window.row + window.height, self.height)
        right = min(window.col + window.width, self.width)
        return Window(row, col, max(bottom - row, 0), max(right - col, 0))

    def __repr__(self) -> str:
        size = f"{self.width} x {self.height} px"
        return f"Scene({self.name!r}, {size}, {self.count} bands {self.dtype}, {self.crs})"


def fingerprint(scenes: Sequence[Scene], windows: int = 256, side_px: int = 64) -> str:
    """A sum of images and labels in some windows, by which most other files of the same sizes are told apart.

    Args:
        scenes: of any size.
        windows: in all, spread evenly over the scenes; of many scenes some are left out.
        side_px: of a window.
    """
    found, draw = 0, np.random.default_rng(0)
    for scene in scenes[:: -(-len(scenes) // windows) or 1]:
        height, width = min(side_px, scene.height), min(side_px, scene.width)
        for _ in range(max(1, windows // len(scenes))):
            row, col = draw.integers(scene.height - height + 1), draw.integers(scene.width - width + 1)
            window = Window(int(row), int(col), height, width)
            for pixels in (scene.read(window), *([scene.read_label(window)] if scene.has_label else [])):
                found = zlib.crc32(np.ascontiguousarray(pixels).tobytes(), found)
    return f"{found:08x}"


def class_index(values: Array, classes: Sequence[LabelClass], ignored: Sequence[float], what: str) -> NDArray[np.uint8]:
    """Turn the numbers of a label file into class indices.

    Args:
        values: integers of any shape.
        classes: index k stands for ``classes[k].value``.
        ignored: numbers that become `IGNORE_INDEX`.
        what: what the values are, for the error.

    Returns:
        Same shape: 0 to K - 1, or `IGNORE_INDEX`.

    Raises:
        UserError: a number is neither a class nor ignored.
    """
    index = np.full(values.shape, IGNORE_INDEX, np.uint8)
    known = np.zeros(values.shape, dtype=bool)
    if values.dtype.kind in "ui" and values.dtype.itemsize <= 2:
        # Small integers: one look-up in a table of all values instead of a pass a class.
        low = np.iinfo(values.dtype).min
        table = np.full(np.iinfo(values.dtype).max - low + 1, IGNORE_INDEX, np.uint8)
        is_known = np.zeros(table.size, dtype=bool)
        for k, one in enumerate(classes):
            if 0 <= one.value - low < table.size:
                table[one.value - low], is_known[one.value - low] = k, True
        for value in ignored:
            if 0 <= value - low < table.size:
                table[int(value) - low], is_known[int(value) - low] = IGNORE_INDEX, True
        at = values if low == 0 else values.astype(np.int64) - low
        index, known = table[at], is_known[at]
    else:
        for k, one in enumerate(classes):
            here = values == one.value
            index[here], known = k, known | here
        for value in ignored:
            here = np.isnan(values) if np.isnan(value) else values == value
            index[here], known = IGNORE_INDEX, known | here
    if not known.all():
        strange = np.unique(values[~known])[:5].tolist()
        raise UserError(
            f"{what} holds the values {strange}, which are no class (classes {[c.value for c in classes]}, "
            f"ignored {list(ignored)}); correct the label, or add them to classes or ignore_values."
        )
    return index


def label_writer(
    path: Path,
    scene: Scene,
    classes: Sequence[LabelClass],
    nodata: int = IGNORE_INDEX,
    tags: Mapping[str, str] | None = None,
) -> RasterWriter:
    """A writer for a label raster on a scene's grid, with the classes' colours and names.

    Write file values (`LabelClass.value`), see `class_values`.

    Args:
        path: the GeoTIFF to write.
        scene: gives size, coordinate system and transform.
        classes: give the colour table and, as tags ``class_VALUE=NAME``, the legend.
        nodata: the value of pixels without a class.
        tags: further metadata of the file.

    Raises:
        UserError: a class's value does not fit in a byte or is the nodata value.
    """
    wrong = [c.value for c in classes if not 0 <= c.value <= 255 or c.value == nodata]
    if wrong:
        raise UserError(f"class values {wrong} do not fit a byte raster with nodata {nodata}; renumber them.")
    return RasterWriter(
        path, scene.height, scene.width, 1, "uint8", scene.crs, scene.transform, nodata,
        colors={c.value: c.color for c in classes},
        tags={f"class_{c.value}": c.name for c in classes} | dict(tags or {}),
    )  # fmt: skip


def class_values(index: NDArray[np.uint8], classes: Sequence[LabelClass], nodata: int) -> NDArray[np.uint8]:
    """Turn class indices into the numbers of the label file; `IGNORE_INDEX` becomes nodata."""
    table = np.full(256, nodata, np.uint8)
    table[: len(classes)] = [c.value for c in classes]
    return table[index]


def probability_writer(path: Path, scene: Scene, classes: Sequence[LabelClass]) -> RasterWriter:
    """A writer for class probabilities on a scene's grid: one float32 band a class, NaN without data."""
    return RasterWriter(
        path, scene.height, scene.width, len(classes), "float32", scene.crs, scene.transform, float("nan"),
        descriptions=[c.name for c in classes],
    )  # fmt: skip


def _source(part: str | Path | Source, nodata: float | None, names: Sequence[str] | None = None) -> Source:
    if not isinstance(part, str | Path):
        return part
    path = Path(part)
    if path.suffix == ".npy":
        return ArraySource(path, nodata=nodata)
    return RasterSource(path, nodata=nodata, count=len(names) if names else None)


def _slices(inside: Window, window: Window) -> tuple[slice, slice]:
    row, col = inside.row - window.row, inside.col - window.col
    return slice(row, row + inside.height), slice(col, col + inside.width)


def _code(color: tuple[int, int, int]) -> int:
    return color[0] << 16 | color[1] << 8 | color[2]
