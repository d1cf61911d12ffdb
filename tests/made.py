"""What several tests share: small scenes on disk, made by the tests themselves."""

from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from rsseglab.scenes import LabelClass, Scene

CLASSES = (
    LabelClass("water", 1, (0, 114, 178)),
    LabelClass("land", 2, (230, 159, 0)),
    LabelClass("road", 5, (0, 158, 115)),
)
CRS = "EPSG:32633"


def write_raster(path: Path, pixels: np.ndarray, crs: str | None = CRS, **profile) -> Path:
    """Write (bands, height, width) as a GeoTIFF."""
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    profile = {"driver": "GTiff", "transform": from_origin(5e5, 4e6, 0.5, 0.5), "crs": crs, **profile}
    count, height, width = pixels.shape
    with rasterio.open(path, "w", count=count, height=height, width=width, dtype=pixels.dtype, **profile) as file:
        file.write(pixels)
    return path


def make_scene(
    folder: Path, name: str = "a", height: int = 96, width: int = 130, seed: int = 0, bands: int = 3
) -> Scene:
    """A scene whose colours tell its classes, with a strip of unlabelled pixels (0)."""
    draw = np.random.default_rng(seed)
    values = np.array([1, 2, 5], np.uint8)
    coarse = draw.integers(0, 3, (height // 16 + 1, width // 16 + 1))
    label = values[np.kron(coarse, np.ones((16, 16), int))[:height, :width]]
    image = np.stack([label.astype(float) * 30 + 10 * band for band in range(bands)])
    image = (image + draw.normal(0, 8, image.shape)).clip(1, 255).astype(np.uint8)
    label[:4] = 0
    write_raster(folder / f"{name}_image.tif", image)
    write_raster(folder / f"{name}_label.tif", label)
    names = [f"band_{i}" for i in range(1, bands + 1)]
    return Scene(folder / f"{name}_image.tif", folder / f"{name}_label.tif", CLASSES, [0], name=name, bands=names)
