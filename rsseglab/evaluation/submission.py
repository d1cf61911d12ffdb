"""Maps of a test set whose labels are hidden, as the file that its evaluation server takes.

**LoveDA**: https://www.codabench.org/competitions/13030/ (the server of the published numbers, CodaLab 421, is closed).
A flat zip, no folder in it, with one PNG a tile of Test, 4191.png to 5986.png, of one band of 1024 x 1024 px: 0
background, 1 building, 2 road, 3 water, 4 barren, 5 forest, 6 agriculture. The label files' own numbers are one more,
as 0 there means "no data".

Source:
    Of the old server: its organisers' answers in the issues 6, 13 and 32 of github.com/Junjue-Wang/LoveDA (indices 0 to
    6, 1024 x 1024 px, no folder in the zip: else the score is 0), and of users the tiles' names (issue 2 of
    github.com/EnzeZhu2001/UNetMamba). *Not verified*: that the new server wants the same (two public projects upload
    one-band masks in one zip to it; its own page could not be read here), and what it makes of a part of the tiles.
"""

import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from tqdm.auto import tqdm

from rsseglab.errors import UserError
from rsseglab.scenes.manifest import load_manifest
from rsseglab.scenes.raster import RasterSource, Window, read_legend
from rsseglab.scenes.scene import IGNORE_INDEX, LabelClass, class_index

SERVERS = {"loveda": "https://www.codabench.org/competitions/13030/"}
LOVEDA_TILES = range(4191, 5987)  # of Test
LOVEDA_PX = 1024  # side of a tile


def write_loveda_submission(
    predictions: Sequence[Path], path: Path, partial: bool = False, progress: bool = False
) -> int:
    """Write the file that LoveDA's evaluation server takes, or none where something is wrong.

    Args:
        predictions: label rasters of ``rsseglab predict --data loveda --split test``, named by their tiles
            (``4191.tif``), or folders that hold them at any depth.
        path: the zip to write.
        partial: whether tiles may be missing.
        progress: whether to draw a progress bar.

    Returns:
        How many tiles are in it.

    Raises:
        UserError: the path does not end in .zip; a raster is missing, damaged, of another size, no tile of Test or of
            other classes; a pixel has no class; a tile is there twice, or missing.
    """
    if path.suffix != ".zip":
        raise UserError(f"{path} is no name for a submission; give one that ends in .zip.")
    tiles = _tiles([file for one in predictions for file in _files(one)])
    missing = [number for number in LOVEDA_TILES if number not in tiles]
    if not tiles or (missing and not partial):
        raise UserError(
            f"{len(missing)} of {len(LOVEDA_TILES)} tiles are missing, {missing[0]} the first; label all of them "
            "('rsseglab predict --data loveda --split test'), or give --partial."
        )
    classes = load_manifest("loveda").classes
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with zipfile.ZipFile(part, "w") as archive:  # not compressed: PNGs are
            for number, file in tqdm(sorted(tiles.items()), desc="packing", unit="tile", disable=not progress):
                entry = zipfile.ZipInfo(f"{number}.png")  # not dated, so that the same maps make the same file
                entry.external_attr = 0o644 << 16  # else nobody may read what unzip makes of it
                archive.writestr(entry, _png(_indices(file, classes)))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return len(tiles)


def _files(path: Path) -> list[Path]:
    """A raster, or those of a folder, without the probabilities that 'rsseglab predict' writes beside its maps."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.rglob("*.tif") if "probabilities" not in file.relative_to(path).parts)
    if not files:
        raise UserError(f"no map (.tif) in {path}; give the folder that 'rsseglab predict' wrote to.")
    return files


def _tiles(files: Sequence[Path]) -> dict[int, Path]:
    """The raster of each tile."""
    tiles: dict[int, Path] = {}
    for file in files:
        number = int(file.stem) if file.stem.isdecimal() else -1
        if number not in LOVEDA_TILES:
            raise UserError(
                f"{file} is named as no tile of LoveDA's Test ({LOVEDA_TILES[0]} to {LOVEDA_TILES[-1]}); "
                "give maps of that split alone."
            )
        if number in tiles:
            raise UserError(f"tile {number} is there twice, {tiles[number]} and {file}; give one of them.")
        tiles[number] = file
    return tiles


def _indices(file: Path, classes: Sequence[LabelClass]) -> NDArray[np.uint8]:
    """A map's class indices, shape (1024, 1024), once they are known to be LoveDA's."""
    source = RasterSource(file)
    if (source.height, source.width, source.count) != (LOVEDA_PX, LOVEDA_PX, 1):
        raise UserError(
            f"{file} has {source.height} x {source.width} px and {source.count} bands, a tile {LOVEDA_PX} x "
            f"{LOVEDA_PX} px and one; label the tile as it is."
        )
    # Numbers alone do not tell label values (1 to 7) from the server's (0 to 6): a map has to say what they mean.
    legend, nodata = read_legend(file)
    if {value: name for value, (name, _) in legend.items()} != {one.value: one.name for one in classes}:
        raise UserError(
            f"{file} does not name LoveDA's classes ({', '.join(one.name for one in classes)}); give maps that "
            "'rsseglab predict' made with a network trained on loveda."
        )
    values = source.read(Window(0, 0, LOVEDA_PX, LOVEDA_PX))[0]
    indices = class_index(values, classes, [] if nodata is None else [nodata], f"the map {file}")
    empty = int((indices == IGNORE_INDEX).sum())
    if empty:
        raise UserError(f"{file} has no class in {empty:,} px, and the server no value for it; label the tile anew.")
    return indices


def _png(indices: NDArray[np.uint8]) -> bytes:
    with MemoryFile() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        profile = {"driver": "PNG", "count": 1, "dtype": "uint8", "height": LOVEDA_PX, "width": LOVEDA_PX}
        with memory.open(**profile) as image:
            image.write(indices, 1)
        return bytes(memory.read())
