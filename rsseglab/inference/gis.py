"""A label raster as GIS people expect it: Cloud Optimised GeoTIFF, polygons with areas, and styles.

==================  ==================================================================================================
``labels.tif``      `write_cog`: the same pixels, tiled, with overviews by the most frequent class and a colour table
``labels.qml``      `raster_qml`: QGIS finds a style of the file's own name, and draws the raster by it
``polygons.gpkg``   `region_polygons` and `write_polygons`: a polygon each connected region of a class
``polygons.qml``    `polygon_qml`: likewise, a colour a class; ``polygons.sld`` (`polygon_sld`) is for other programs
==================  ==================================================================================================

Raster and polygons have other names, for both would read the same ``.qml`` else.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import geopandas as gpd
import numpy as np
import pyogrio
import rasterio
import rasterio.shutil
import shapely
from numpy.typing import NDArray
from pyproj.exceptions import ProjError
from rasterio.features import shapes, sieve
from tqdm.auto import tqdm

from rsseglab.errors import UserError
from rsseglab.scenes.raster import BLOCK_PX, RasterSource, read_legend

#: A label raster's legend: from a class's value to its name and colour.
Legend = Mapping[int, tuple[str, tuple[int, int, int]]]

EQUAL_AREA = "EPSG:6933"  # cylindrical, so that parallels and meridians stay straight: EASE-Grid 2.0
OUTLINE = "35,35,35,255"


def write_cog(source: Path, path: Path) -> None:
    """Copy a label raster to a Cloud Optimised GeoTIFF; colours, names and nodata stay.

    Args:
        source: of one band of class values.
        path: the file to write.

    Raises:
        UserError: the source is no raster, or the file can't be written.
    """
    RasterSource(source)
    with _whole(path) as part:
        rasterio.shutil.copy(
            source, part, driver="COG", compress="DEFLATE", blocksize=BLOCK_PX, bigtiff="IF_SAFER",
            overview_resampling="MODE",  # a mean of class numbers would be another class
        )  # fmt: skip


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file aside to write to, which then gets the name that is wanted: it appears whole or not at all.

    Raises:
        UserError: it can't be written.
    """
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        part.replace(path)
    except Exception as error:  # GDAL's errors have no public class
        reason = " ".join(str(error).split())[:150]
        raise UserError(f"{path} can't be written ({reason}); free some space or choose another folder.") from error
    finally:
        with suppress(OSError):  # the folder itself may be what failed
            part.unlink()


def region_polygons(path: Path, least_px: int = 0, progress: bool = False) -> gpd.GeoDataFrame:
    """The connected regions of a label raster: pixels that share a side and a class are one polygon.

    Without a sieve the polygons rasterise to the very labels. Held are four bytes a pixel of the raster.

    Args:
        path: a label raster of `rsseglab predict`, in one coordinate system.
        least_px: regions of fewer pixels become part of their largest neighbour (GDAL's sieve); those without one stay.
        progress: whether to draw a progress bar.

    Returns:
        Columns ``class`` (name), ``value`` (in the raster), ``area_m2`` (see `area_m2`), ``geometry``.

    Raises:
        UserError: the raster is missing or names no classes; or it has no coordinate system; the sieve is negative.
    """
    if least_px < 0:
        raise UserError(f"a sieve of {least_px} px is none; give 0 or more.")
    legend, nodata = read_legend(path)
    source = RasterSource(path)
    if not legend:
        raise UserError(f"{path} does not name its classes; give a raster of 'rsseglab predict'.")
    if source.crs is None:
        raise UserError(f"{path} has no coordinate system, so that its polygons have no place; georeference the scene.")
    with rasterio.open(path) as raster:
        values = raster.read(1)
    valid = np.ones(values.shape, bool) if nodata is None else values != nodata
    if least_px > 1:
        values = sieve(values, least_px, mask=valid, connectivity=4)
    found = shapes(values, mask=valid, connectivity=4, transform=source.transform)
    polygons, numbers = [], []
    for polygon, value in tqdm(found, desc="drawing polygons", unit="polygon", disable=not progress):
        polygons.append(shapely.geometry.shape(polygon))
        numbers.append(int(value))
    frame = gpd.GeoDataFrame(
        {"class": [legend[n][0] for n in numbers], "value": numbers}, geometry=polygons, crs=source.crs.to_wkt()
    )
    frame["area_m2"] = area_m2(frame.geometry)
    return frame[["class", "value", "area_m2", "geometry"]]


def area_m2(geometry: gpd.GeoSeries) -> NDArray[np.float64]:
    """Areas on the ellipsoid in square metres, whatever the coordinate system: degrees, feet, web mercator.

    By an equal-area projection (EASE-Grid 2.0). Edges are straight in it; those along parallels and meridians are so
    in coordinates of degrees and in web mercator too, and elsewhere a region's edges are of a pixel or some.

    Raises:
        UserError: a polygon has no place there.
    """
    try:
        areas = np.asarray(geometry.to_crs(EQUAL_AREA).area, np.float64)
    except (ProjError, ValueError) as error:
        raise UserError(f"areas can't be had in {geometry.crs} ({error}); check the coordinate system.") from error
    return areas


def write_polygons(frame: gpd.GeoDataFrame, path: Path) -> None:
    """Write polygons as a GeoPackage of one layer, named as the file.

    Raises:
        UserError: the file can't be written.
    """
    with _whole(path) as part:
        pyogrio.write_dataframe(frame, part, layer=path.stem, driver="GPKG", geometry_type="Polygon")


# --- styles ---


def raster_qml(legend: Legend) -> str:
    """A style of QGIS for a label raster: a colour and a name each value."""
    root = ElementTree.Element("qgis", version="3.28", styleCategories="Symbology")
    pipe = ElementTree.SubElement(root, "pipe")
    renderer = ElementTree.SubElement(
        pipe, "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1", nodataColor=""
    )
    ElementTree.SubElement(renderer, "rasterTransparency")
    palette = ElementTree.SubElement(renderer, "colorPalette")
    for value, (name, color) in legend.items():
        ElementTree.SubElement(
            palette, "paletteEntry", value=str(value), color=_hexadecimal(color), label=name, alpha="255"
        )
    ElementTree.SubElement(root, "blendMode").text = "0"
    return _text(root, "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>")


def polygon_qml(legend: Legend) -> str:
    """A style of QGIS for the polygons: a colour each ``class``."""
    root = ElementTree.Element("qgis", version="3.28", styleCategories="Symbology")
    renderer = ElementTree.SubElement(root, "renderer-v2", type="categorizedSymbol", attr="class", symbollevels="0")
    categories = ElementTree.SubElement(renderer, "categories")
    symbols = ElementTree.SubElement(renderer, "symbols")
    for number, (name, color) in enumerate(legend.values()):
        ElementTree.SubElement(
            categories, "category", value=name, label=name, symbol=str(number), render="true", type="string"
        )
        symbol = ElementTree.SubElement(symbols, "symbol", type="fill", name=str(number), alpha="1")
        layer = ElementTree.SubElement(symbol, "layer", {"class": "SimpleFill"}, enabled="1", locked="0")
        layer.attrib["pass"] = "0"
        options = ElementTree.SubElement(layer, "Option", type="Map")
        for key, value in _fill(color).items():
            ElementTree.SubElement(options, "Option", name=key, value=value, type="QString")
    return _text(root, "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>")


def _fill(color: tuple[int, int, int]) -> dict[str, str]:
    """A symbol's settings by QGIS's names."""
    return {
        "color": f"{','.join(map(str, color))},255", "style": "solid", "outline_color": OUTLINE,
        "outline_style": "solid", "outline_width": "0.1", "outline_width_unit": "MM", "joinstyle": "bevel",
    }  # fmt: skip


def polygon_sld(legend: Legend, layer: str = "polygons") -> str:
    """An OGC style (SLD 1.0) for the polygons: a rule each ``class``.

    Args:
        legend: of the raster that they are from.
        layer: its name.
    """
    root = ElementTree.Element(
        "StyledLayerDescriptor",
        {"version": "1.0.0", "xmlns": "http://www.opengis.net/sld", "xmlns:ogc": "http://www.opengis.net/ogc"},
    )
    named = ElementTree.SubElement(root, "NamedLayer")
    ElementTree.SubElement(named, "Name").text = layer
    style = ElementTree.SubElement(ElementTree.SubElement(named, "UserStyle"), "FeatureTypeStyle")
    for name, color in legend.values():
        rule = ElementTree.SubElement(style, "Rule")
        ElementTree.SubElement(rule, "Name").text = name
        condition = ElementTree.SubElement(ElementTree.SubElement(rule, "ogc:Filter"), "ogc:PropertyIsEqualTo")
        ElementTree.SubElement(condition, "ogc:PropertyName").text = "class"
        ElementTree.SubElement(condition, "ogc:Literal").text = name
        fill = ElementTree.SubElement(ElementTree.SubElement(rule, "PolygonSymbolizer"), "Fill")
        ElementTree.SubElement(fill, "CssParameter", name="fill").text = _hexadecimal(color)
    return _text(root, '<?xml version="1.0" encoding="UTF-8"?>')


def _hexadecimal(color: tuple[int, int, int]) -> str:
    return "#{:02x}{:02x}{:02x}".format(*color)


def _text(root: Any, head: str) -> str:
    ElementTree.indent(root)
    return f"{head}\n{ElementTree.tostring(root, encoding='unicode')}\n"


def write_for_gis(prediction: Path, folder: Path, least_px: int = 0, progress: bool = False) -> gpd.GeoDataFrame:
    """All five files of the module's table, of one label raster.

    Args:
        prediction: a label raster of `rsseglab predict`.
        folder: to write to.
        least_px: see `region_polygons`.
        progress: likewise.

    Returns:
        The polygons.

    Raises:
        UserError: as the functions of the table.
    """
    legend, _ = read_legend(prediction)
    write_cog(prediction, folder / "labels.tif")
    polygons = region_polygons(prediction, least_px, progress)
    write_polygons(polygons, folder / "polygons.gpkg")
    styles = {"labels.qml": raster_qml, "polygons.qml": polygon_qml, "polygons.sld": polygon_sld}
    for name, style in styles.items():
        with _whole(folder / name) as part:
            part.write_text(style(legend), encoding="utf-8")
    return polygons
