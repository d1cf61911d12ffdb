"""Rasters on disk, window by window.

A *source* is anything with a size, a number of bands and a georeference that can read one window:
a GeoTIFF or any other file that GDAL opens (`RasterSource`), an array in memory or a ``.npy`` cube on
disk (`ArraySource`). A *writer* takes windows in any order and leaves either the whole file or none.
"""

import os
import shutil
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

# GDAL's block cache takes 5 % of the machine's memory by default and so grows with the scene.
# It is read once, before the first block is cached, hence here.
os.environ.setdefault("GDAL_CACHEMAX", "128")  # MiB

import rasterio
from affine import Affine
from rasterio.crs import CRS
from rasterio.enums import ColorInterp, Resampling
from rasterio.errors import NotGeoreferencedWarning, RasterioError, RasterioIOError
from rasterio.windows import Window as _GdalWindow

from rsseglab.errors import UserError

Array = NDArray[Any]

BLOCK_PX = 256  # side of a block in the files we write


class Window(NamedTuple):
    """A rectangle of a scene in px: first row, first column, height, width."""

    row: int
    col: int
    height: int
    width: int


class Source(Protocol):
    """What a scene reads its pixels from. Windows lie inside the raster."""

    height: int
    width: int
    count: int
    dtype: np.dtype[Any]
    crs: CRS | None
    transform: Affine

    def read(self, window: Window) -> Array:
        """Pixels of shape (count, height, width), in the source's dtype."""

    def read_valid(self, window: Window) -> NDArray[np.bool_]:
        """Shape (height, width): False where the source holds no data."""


@lru_cache(maxsize=64)
def _open(path: str, modified_ns: int, size: int, process: int, thread: int) -> Any:
    # A GDAL handle belongs to one thread of one process, and to one state of the file.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(path)


def _open_raster(path: Path) -> Any:
    try:
        stat = path.stat()
        return _open(str(path), stat.st_mtime_ns, stat.st_size, os.getpid(), threading.get_ident())
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path, or fetch it with 'rsseglab data get'.") from None
    except (RasterioError, OSError) as error:
        raise UserError(f"{path} is not a raster that GDAL can open ({error}); fetch it again.") from error


class RasterSource:
    """A raster file that GDAL opens; reads decode only the blocks that a window touches.

    Args:
        path: the file.
        nodata: the value that means "no data" where the file itself does not say so.
        count: number of bands, where known; a band marked as alpha is read as a mask unless it is counted.

    Raises:
        UserError: the file is missing or is no raster.
    """

    def __init__(self, path: Path, nodata: float | None = None, count: int | None = None) -> None:
        self.path = path
        dataset = _open_raster(path)
        if dataset.driver == "PNG":
            _check_png(path)
        alpha = [i for i, kind in zip(dataset.indexes, dataset.colorinterp, strict=True) if kind == ColorInterp.alpha]
        self.has_alpha = bool(alpha) and count != dataset.count
        self.bands = tuple(i for i in dataset.indexes if not (self.has_alpha and i in alpha))
        self.nodata = dataset.nodata if nodata is None else nodata
        self.height, self.width, self.count = dataset.height, dataset.width, len(self.bands)
        self.dtype = np.dtype(dataset.dtypes[self.bands[0] - 1])
        if self.dtype.kind not in "uif":
            raise UserError(f"{path} holds {self.dtype} pixels; give real numbers, such as the amplitude.")
        self.crs, self.transform = dataset.crs, dataset.transform
        self.descriptions = tuple(dataset.descriptions[i - 1] for i in self.bands)

    def read(self, window: Window) -> Array:
        """Pixels of shape (count, height, width)."""
        return self._call("read", list(self.bands), window)

    def read_valid(self, window: Window) -> NDArray[np.bool_]:
        """Shape (height, width): valid where alpha says so, or where a pixel `differs` from nodata."""
        if self.has_alpha:
            return np.asarray(self._call("dataset_mask", None, window) > 0)
        if self.nodata is None:
            return np.ones((window.height, window.width), dtype=bool)
        return differs(self.read(window), self.nodata)

    def read_small(self, window: Window, height: int, width: int) -> tuple[Array, NDArray[np.bool_]] | None:
        """Means over the cells of a height x width grid on a window, from overviews where there are any.

        Returns:
            Pixels (count, height, width) in the source's dtype, and where they are valid, (height, width); None where
            the file does not say itself which pixels hold no data.
        """
        own = _open_raster(self.path).nodata
        if not self.has_alpha and self.nodata != own and not (self.nodata != self.nodata and own != own):  # both NaN
            return None
        small = {"resampling": Resampling.average}
        pixels = self._call("read", list(self.bands), window, out_shape=(self.count, height, width), **small)
        if not self.has_alpha and self.nodata is None:  # GDAL would average a mask of ones in full resolution
            return pixels, np.ones((height, width), dtype=bool)
        valid = self._call("dataset_mask", None, window, out_shape=(height, width), **small) > 0
        return pixels, np.asarray(valid)

    def _call(self, method: str, bands: list[int] | None, window: Window, **options: Any) -> Array:
        dataset = _open_raster(self.path)
        gdal_window = _GdalWindow(window.col, window.row, window.width, window.height)
        try:
            pixels: Array = getattr(dataset, method)(*([] if bands is None else [bands]), window=gdal_window, **options)
        except RasterioError as error:
            cause = error.__cause__ or error
            raise UserError(
                f"{self.path} is damaged: rows {window.row} to {window.row + window.height} cannot be read "
                f"({cause}); fetch it again, 'rsseglab data verify' tells whether its sum is right."
            ) from error
        return pixels


def _check_png(path: Path) -> None:
    # GDAL reads a PNG that is cut short without a word, and makes up the missing rows.
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 1024, 0))
        if b"IEND" not in file.read():
            raise UserError(f"{path} is damaged (it is cut short); fetch it again.")


class ArraySource:
    """An array in memory or a memory-mapped ``.npy`` file, of shape (height, width[, bands]).

    Args:
        array: the pixels, or the path of a ``.npy`` file, which is mapped and not read.
        crs: coordinate reference system, if any.
        transform: from (column, row) to map coordinates.
        nodata: the value that means "no data".

    Raises:
        UserError: the file is missing or no array of numbers, or the array has another number of axes.
    """

    def __init__(
        self,
        array: Array | Path,
        crs: CRS | None = None,
        transform: Affine | None = None,
        nodata: float | None = None,
    ) -> None:
        self.path = array if isinstance(array, Path) else Path("array")
        pixels = _map_npy(array) if isinstance(array, Path) else array
        if pixels.ndim not in (2, 3):
            raise UserError(
                f"{self.path} has shape {pixels.shape}; a scene is height x width or height x width x bands."
            )
        self.array = pixels[..., None] if pixels.ndim == 2 else pixels
        self.height, self.width, self.count = self.array.shape
        self.dtype = self.array.dtype
        self.crs, self.transform, self.nodata = crs, transform or Affine.identity(), nodata

    def read(self, window: Window) -> Array:
        """Pixels of shape (count, height, width)."""
        rows = slice(window.row, window.row + window.height)
        cols = slice(window.col, window.col + window.width)
        return np.ascontiguousarray(self.array[rows, cols].transpose(2, 0, 1))

    def read_valid(self, window: Window) -> NDArray[np.bool_]:
        """Shape (height, width): valid where a pixel `differs` from nodata."""
        if self.nodata is None:
            return np.ones((window.height, window.width), dtype=bool)
        return differs(self.read(window), self.nodata)


def differs(pixels: Array, nodata: float) -> NDArray[np.bool_]:
    """Where a pixel holds data: any band differs from nodata (GDAL's convention), or no band is NaN."""
    if np.isnan(nodata):
        return np.asarray(~np.isnan(pixels).any(axis=0))
    return np.asarray((pixels != nodata).any(axis=0))


def _map_npy(path: Path) -> Array:
    try:
        array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; check the path, or fetch it with 'rsseglab data get'.") from None
    except (ValueError, OSError, EOFError) as error:
        raise UserError(f"{path} is not a .npy array of numbers ({error}); fetch it again.") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "uif":
        raise UserError(f"{path} is not a .npy array of real numbers; save the pixels alone with numpy.save.")
    return array


class RasterWriter:
    """Writes a tiled, compressed GeoTIFF window by window, and leaves the whole file or none.

    Used as a context manager. Pixels go to ``PATH.part``; leaving the block without an error checks that
    every block is on disk and gives the file its name, leaving it with one (Ctrl-C too) removes it.

    Args:
        path: the file to write.
        height: rows in px.
        width: columns in px.
        count: number of bands.
        dtype: NumPy's name of the pixel type.
        crs: coordinate reference system, if any.
        transform: from (column, row) to map coordinates.
        nodata: the value of pixels that hold no data.
        colors: colour table of a one-band uint8 raster, from value to (red, green, blue).
        tags: metadata of the file.
        descriptions: one name a band.

    Raises:
        UserError: the folder cannot be written to, or no space is left.
    """

    def __init__(
        self,
        path: Path,
        height: int,
        width: int,
        count: int,
        dtype: str,
        crs: CRS | None = None,
        transform: Affine | None = None,
        nodata: float | None = None,
        colors: Mapping[int, tuple[int, int, int]] | None = None,
        tags: Mapping[str, str] | None = None,
        descriptions: Sequence[str] = (),
    ) -> None:
        self.path = path
        self._part = path.with_name(path.name + ".part")
        self._profile: dict[str, Any] = {
            "driver": "GTiff", "height": height, "width": width, "count": count, "dtype": dtype,
            "nodata": nodata, "crs": crs, "interleave": "band", "BIGTIFF": "IF_SAFER",
            "tiled": True, "blockxsize": BLOCK_PX, "blockysize": BLOCK_PX,
            "compress": "deflate", "predictor": 3 if np.dtype(dtype).kind == "f" else 1,
        }  # fmt: skip
        if transform is not None and transform != Affine.identity():
            self._profile["transform"] = transform
        self._colors, self._tags, self._descriptions = colors, tags or {}, descriptions
        self._dataset: Any = None

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", NotGeoreferencedWarning)
                self._dataset = rasterio.open(self._part, "w", **self._profile)
        except (RasterioError, OSError) as error:
            self._discard()
            raise self._failure(error) from error
        if self._colors:
            self._dataset.write_colormap(1, dict(self._colors))
        self._dataset.update_tags(**self._tags)
        for band, description in enumerate(self._descriptions, start=1):
            self._dataset.set_band_description(band, description)
        return self

    def write(self, pixels: Array, row: int, col: int = 0) -> None:
        """Write a window.

        Args:
            pixels: shape (count, height, width), or (height, width) for a raster of one band.
            row: first row in px.
            col: first column in px.

        Raises:
            UserError: no space is left, or the disk fails.
        """
        pixels = pixels[None] if pixels.ndim == 2 else pixels
        window = _GdalWindow(col, row, pixels.shape[2], pixels.shape[1])
        try:
            self._dataset.write(pixels, window=window)
        except (RasterioError, OSError) as error:
            raise self._failure(error) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._dataset.close()
            if kind is None:
                self._check_complete()
                self._part.replace(self.path)
        except (RasterioError, OSError) as failure:
            raise self._failure(failure) from failure
        finally:
            self._discard()

    def _discard(self) -> None:
        with suppress(OSError):  # the folder itself may be what failed
            self._part.unlink()

    def _check_complete(self) -> None:
        # GDAL loses an error of its last flush (a full disk): look whether each block is there and whole.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with rasterio.open(self._part) as dataset:
                for band in dataset.indexes:
                    for (row, col), window in dataset.block_windows(band):
                        if dataset.get_tag_item(f"BLOCK_OFFSET_{col}_{row}", "TIFF", bidx=band) is None:
                            raise RasterioIOError(f"block {row}, {col} of band {band} is not on disk")
                        dataset.read(band, window=window)

    def _failure(self, error: Exception) -> UserError:
        folder = self.path.parent
        try:
            free = f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB free"
        except OSError:
            free = "folder not reachable"
        return UserError(
            f"{self.path} cannot be written ({error.__cause__ or error}; {free}); "
            "free some space or choose another folder."
        )


def read_tags(path: Path) -> dict[str, str]:
    """Metadata of a raster file.

    Raises:
        UserError: the file is missing or is no raster.
    """
    return dict(_open_raster(path).tags())


def read_legend(path: Path) -> tuple[dict[int, tuple[str, tuple[int, int, int]]], int | None]:
    """Class names and colours of a label raster that `rsseglab predict` wrote.

    Returns:
        From a class's value to its name and colour, and the value that means "no class", if there is one.

    Raises:
        UserError: the file is missing or is no raster.
    """
    dataset = _open_raster(path)
    names = {
        int(key.removeprefix("class_")): name
        for key, name in dataset.tags().items()
        if key.removeprefix("class_").isdigit() and key.startswith("class_")
    }
    try:
        colors = dataset.colormap(1) if names else {}
    except ValueError:
        raise UserError(f"{path} names its classes but has no colour table; label the scene anew.") from None
    nodata = None if dataset.nodata is None else int(dataset.nodata)
    return {v: (name, colors[v][:3]) for v, name in sorted(names.items())}, nodata


def offset_px(here: Affine, there: Affine, height: int, width: int) -> float:
    """Largest distance in px between the corners of a raster on two grids; 0 where one has no georeference."""
    if Affine.identity() in (here, there):
        return 0.0
    own, other = (np.array(t, np.float64)[:6].reshape(2, 3) for t in (here, there))
    corners = np.array([(col, row, 1) for col in (0, width) for row in (0, height)])
    shift = corners @ (other - own).T  # (4, 2) in map units
    return float(np.linalg.norm(np.linalg.solve(own[:, :2], shift.T), axis=0).max())
