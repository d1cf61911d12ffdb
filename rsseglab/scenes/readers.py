"""Scenes of a data set, read from its published folder layout or through torchgeo's data set classes.

Five of the papers' data sets have a class in torchgeo: `TorchgeoFolder` asks that class for its samples and
picks them by our manifest's identifiers, so images and labels are what every torchgeo user gets while the
splits are the papers'. The others are read from their folders as published (`FileFolder`), window by window.
"""

import threading
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from rsseglab.errors import UserError
from rsseglab.scenes.manifest import Manifest, nearest
from rsseglab.scenes.raster import Array, ArraySource, RasterSource, Source, Window
from rsseglab.scenes.scene import Scene


class DataFolder(Protocol):
    """A data set on disk."""

    root: Path

    def identifiers(self) -> list[str]:
        """The identifiers of the scenes on disk, in order."""

    def scene(self, identifier: str) -> Scene:
        """Open one scene."""


def open_folder(manifest: Manifest, root: Path) -> DataFolder:
    """Open a data set's folder the way its manifest says.

    Raises:
        UserError: the folder is missing, or torchgeo finds none of the data in it.
    """
    if not root.is_dir():
        raise UserError(f"{root} is no folder; see 'rsseglab data get {manifest.name}'.")
    return TorchgeoFolder(manifest, root) if manifest.layout.torchgeo else FileFolder(manifest, root)


# --- Published folder layouts --------------------------------------------------------------------------------


class FileFolder:
    """Scenes whose files lie where the manifest's patterns say.

    Args:
        manifest: gives the patterns.
        root: the data set's folder.
    """

    def __init__(self, manifest: Manifest, root: Path) -> None:
        self.manifest, self.root = manifest, root

    def identifiers(self) -> list[str]:
        """The identifiers of the scenes on disk, in order."""
        layout = self.manifest.layout
        pattern = layout.image[0].format_map(dict.fromkeys(layout.fields, "*"))
        found = (layout.identifier(path.relative_to(self.root).as_posix()) for path in self.root.glob(pattern))
        return sorted(one for one in found if one is not None)

    def scene(self, identifier: str) -> Scene:
        """Open one scene; see `Manifest.scene`."""
        layout = self.manifest.layout
        names = [layout.fill(pattern, identifier) for pattern in layout.image]
        if names[0] is None or not (self.root / names[0]).exists():
            self._check_known(identifier)
        images = [self._image(self.root / str(name)) for name in names]
        return _scene(self.manifest, identifier, images, self._label(identifier))

    def _image(self, path: Path) -> Source:
        bands = self.manifest.layout.image_bands
        source = _open(path, max(bands) if bands else len(self.manifest.bands))
        return AdaptedSource(source, bands=bands) if bands else source

    def _label(self, identifier: str) -> Source | None:
        layout = self.manifest.layout
        if layout.label is None:
            return None
        path = self.root / str(layout.fill(layout.label, identifier))
        if not path.exists() and self.manifest.is_unlabelled(identifier):
            return None
        source = _open(path)
        return AdaptedSource(source, codes=layout.recode) if layout.recode else source

    def _check_known(self, identifier: str) -> None:
        known = {one for split in self.manifest.splits.values() for one in split} | set(self.identifiers())
        if identifier not in known:
            raise _unknown(self.manifest, identifier, sorted(known))


def _open(path: Path, count: int | None = None) -> RasterSource | ArraySource:
    if path.suffix == ".npy":
        return ArraySource(path)
    return RasterSource(path, count=count)


class AdaptedSource:
    """A source of which some bands are read, or that holds other numbers than the manifest's classes.

    Args:
        source: the pixels as they lie on disk.
        bands: 1-based numbers of the bands to read; all when not given.
        codes: from numbers on disk to numbers as read (``{255: 1}``).

    Raises:
        UserError: the source lacks a band.
    """

    def __init__(
        self, source: RasterSource | ArraySource, bands: Sequence[int] = (), codes: Mapping[int, int] | None = None
    ) -> None:
        self.source, self.path, self.nodata = source, source.path, source.nodata
        self.bands, self.codes = tuple(bands or range(1, source.count + 1)), dict(codes or {})
        if max(self.bands) > source.count:
            raise UserError(f"{self.path} has {source.count} bands, not the bands {self.bands}; fetch it again.")
        self.height, self.width, self.count, self.dtype = source.height, source.width, len(self.bands), source.dtype
        self.crs: CRS | None = source.crs
        self.transform: Affine = source.transform

    def read(self, window: Window) -> Array:
        """Pixels of shape (count, height, width)."""
        pixels = self.source.read(window)[[band - 1 for band in self.bands]]
        recoded = pixels.copy()
        for old, new in self.codes.items():
            recoded[pixels == old] = new
        return recoded

    def read_valid(self, window: Window) -> NDArray[np.bool_]:
        """Shape (height, width)."""
        return self.source.read_valid(window)


# --- torchgeo's data sets ------------------------------------------------------------------------------------

#: How much decoded imagery a process keeps: torchgeo reads whole samples, a crop needs a part of one.
CACHE_MIB = 1024


class TorchgeoFolder:
    """Scenes read by a class of torchgeo.datasets, whatever split of its own it files them under.

    Args:
        manifest: names the class and gives the pattern of its image paths.
        root: the folder that the class is given.

    Raises:
        UserError: the class finds none of its data there, or pairs images with other images' labels.
    """

    def __init__(self, manifest: Manifest, root: Path) -> None:
        self.manifest, self.root = manifest, root
        self._samples: dict[str, _Sample] = {}
        datasets = _torchgeo_datasets(manifest, root)
        for dataset in datasets:
            for index, (image, mask) in enumerate(_paths(dataset)):
                identifier = manifest.layout.identifier(image.relative_to(root).as_posix())
                self._check_pair(identifier, image, mask)
                if identifier is not None:
                    self._samples[identifier] = _Sample(dataset, index, image, mask, manifest.layout.image_bands)
        if not datasets:
            raise UserError(
                f"torchgeo's {manifest.layout.torchgeo} finds no data in {root}; "
                f"see 'rsseglab data get {manifest.name}'."
            )

    def _check_pair(self, identifier: str | None, image: Path, mask: Path | None) -> None:
        # torchgeo's Inria pairs sorted lists: one missing label would shift all others.
        pattern = self.manifest.layout.label
        if mask is None or pattern is None or identifier is None:
            return
        if self.manifest.layout.identifier(mask.relative_to(self.root).as_posix(), pattern) != identifier:
            raise UserError(f"torchgeo pairs {image} with {mask.name}: a label is missing; fetch the data again.")

    def identifiers(self) -> list[str]:
        """The identifiers of the scenes on disk, in order."""
        return sorted(self._samples)

    def scene(self, identifier: str) -> Scene:
        """Open one scene; see `Manifest.scene`."""
        if identifier not in self._samples:
            if any(identifier in split for split in self.manifest.splits.values()):
                raise UserError(
                    f"scene {identifier} of {self.manifest.name} is not in {self.root}; "
                    f"see 'rsseglab data get {self.manifest.name}'."
                )
            raise _unknown(self.manifest, identifier, self.identifiers())
        sample = self._samples[identifier]
        label = None if sample.mask_path is None else TorchgeoSource(sample, "mask")
        return _scene(self.manifest, identifier, [TorchgeoSource(sample, "image")], label)


def _torchgeo_datasets(manifest: Manifest, root: Path) -> list[Any]:
    import torchgeo.datasets  # seconds, and only five data sets need it

    kind = getattr(torchgeo.datasets, str(manifest.layout.torchgeo), None)
    if not isinstance(kind, type):
        raise UserError(
            f"{manifest.path}: the key layout.torchgeo is wrong (torchgeo {torchgeo.__version__} has no class "
            f"{manifest.layout.torchgeo}); correct it, or install the torchgeo that rsseglab asks for."
        )
    found = []
    for split in getattr(kind, "splits", ("train", "val", "test")):
        try:
            found.append(kind(root=str(root), split=split))
        except FileNotFoundError:  # this split is not there, others may be
            continue
        except (OSError, RuntimeError, zipfile.BadZipFile) as error:
            raise UserError(
                f"torchgeo cannot read {root} ({error}); "
                f"'rsseglab data verify {manifest.name}' says which file is wrong."
            ) from error
    return found


def _paths(dataset: Any) -> list[tuple[Path, Path | None]]:
    """The image and label paths of a torchgeo data set, in the order of its samples."""
    if hasattr(dataset, "image_fns"):
        pairs = list(zip(dataset.image_fns, dataset.mask_fns, strict=True))
    else:
        pairs = [(file["image"], file.get("mask") or file.get("label")) for file in dataset.files]
    return [(Path(image), None if mask is None else Path(mask)) for image, mask in pairs]


class _Sample:
    """One sample of a torchgeo data set, decoded when first asked for and kept while there is room."""

    def __init__(
        self, dataset: Any, index: int, image_path: Path, mask_path: Path | None, bands: Sequence[int] | None
    ) -> None:
        self.dataset, self.index, self.bands = dataset, index, bands
        self.image_path, self.mask_path = image_path, mask_path

    def arrays(self) -> dict[str, Array]:
        """``image`` (bands, height, width) in the file's dtype; ``mask`` (1, height, width), uint8."""
        with _lock:
            if self not in _decoded:
                _decoded[self] = self._decode()
            _decoded.move_to_end(self)
            while len(_decoded) > 1 and sum(map(_mib, _decoded.values())) > CACHE_MIB:
                _decoded.popitem(last=False)
            return _decoded[self]

    def _decode(self) -> dict[str, Array]:
        try:
            sample = self.dataset[self.index]
        except (OSError, SyntaxError, ValueError) as error:  # what PIL and rasterio raise on damaged files
            raise UserError(f"{self.image_path} or its label cannot be read ({error}); fetch it again.") from error
        image = sample["image"].numpy()
        if self.bands is not None:
            image = image[[band - 1 for band in self.bands]]
        arrays = {"image": image.astype(RasterSource(self.image_path).dtype)}
        if self.mask_path is not None:
            arrays["mask"] = sample["mask"].numpy().astype(np.uint8)[None]
            if arrays["mask"].shape[1:] != image.shape[1:]:
                raise UserError(f"{self.mask_path} has another size than {self.image_path}; fetch both again.")
        return arrays


_lock = threading.Lock()
_decoded: "OrderedDict[_Sample, dict[str, Array]]" = OrderedDict()


def _mib(arrays: dict[str, Array]) -> float:
    return sum(array.nbytes for array in arrays.values()) / 2**20


class TorchgeoSource:
    """The image or the mask of a torchgeo sample, as a `Source`; size and georeference from the image file.

    Args:
        sample: which sample.
        part: "image" or "mask".

    Raises:
        UserError: the image file is missing or no raster.
    """

    def __init__(self, sample: _Sample, part: str) -> None:
        header = RasterSource(sample.image_path)
        self.sample, self.part, self.path = sample, part, sample.image_path
        self.height, self.width = header.height, header.width
        self.crs: CRS | None = header.crs
        self.transform: Affine = header.transform
        is_mask = part == "mask"
        self.count = 1 if is_mask else len(sample.bands) if sample.bands else header.count
        self.dtype = np.dtype(np.uint8) if is_mask else header.dtype

    def read(self, window: Window) -> Array:
        """Pixels of shape (count, height, width)."""
        rows = slice(window.row, window.row + window.height)
        return self.sample.arrays()[self.part][:, rows, window.col : window.col + window.width].copy()

    def read_valid(self, window: Window) -> NDArray[np.bool_]:
        """Shape (height, width): these data sets declare no nodata in their images."""
        return np.ones((window.height, window.width), dtype=bool)


# --- Both ----------------------------------------------------------------------------------------------------


def _scene(manifest: Manifest, identifier: str, images: Sequence[Source], label: Source | None) -> Scene:
    return Scene(
        images,
        label,
        manifest.classes,
        manifest.ignore_values,
        name=identifier,
        bands=manifest.bands,
        gsd_m=manifest.gsd_m,
        label_encoding=manifest.label_encoding,
    )


def _unknown(manifest: Manifest, identifier: str, known: Sequence[str]) -> UserError:
    hint = nearest(identifier, known) or f"; the first of them: {', '.join(known[:5])}" if known else ""
    return UserError(f"{manifest.name} has no scene {identifier!r}{hint}.")
