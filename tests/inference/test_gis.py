"""Maps for a GIS: the polygons are the raster, areas are those of the Earth, styles name every class in its colour."""

from xml.etree import ElementTree

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from made import CLASSES, CRS, write_raster
from pyproj import Geod
from rasterio.features import rasterize
from rasterio.transform import from_origin

from rsseglab.errors import UserError
from rsseglab.inference.gis import (
    area_m2,
    polygon_qml,
    polygon_sld,
    raster_qml,
    region_polygons,
    write_cog,
    write_for_gis,
    write_polygons,
)
from rsseglab.scenes import ArraySource, Scene, label_writer
from rsseglab.scenes.raster import read_legend

LEGEND = {c.value: (c.name, c.color) for c in CLASSES}
ROTATED = Affine(0.47, 0.27, 5e5, 0.17, -0.75, 4e6)


def made_scene(height, width, crs=CRS, transform=None):
    crs = rasterio.crs.CRS.from_user_input(crs) if crs else None
    return Scene(ArraySource(np.ones((height, width), np.uint8), crs, transform or from_origin(5e5, 4e6, 0.5, 0.5)))


def made_map(path, height=83, width=97, seed=0, crs=CRS, transform=None, side=1):
    """A label raster as `rsseglab predict` writes it: noise, in places without a class."""
    draw = np.random.default_rng(seed)
    coarse = draw.choice([1, 2, 5, 255], (height // side + 1, width // side + 1), p=[0.4, 0.3, 0.2, 0.1])
    values = np.kron(coarse, np.ones((side, side), int))[:height, :width].astype(np.uint8)
    with label_writer(path, made_scene(height, width, crs, transform), CLASSES, 255, {"scene": "a"}) as writer:
        writer.write(values, 0)
    return values


@pytest.mark.parametrize("transform", [None, ROTATED], ids=["north-up", "rotated"])
def test_polygons_rasterise_to_the_labels_and_are_valid(tmp_path, transform):
    values = made_map(tmp_path / "m.tif", transform=transform)
    polygons = region_polygons(tmp_path / "m.tif")
    assert polygons.geometry.is_valid.all() and set(polygons.geometry.geom_type) == {"Polygon"}
    with rasterio.open(tmp_path / "m.tif") as raster:
        back = rasterize(
            zip(polygons.geometry, polygons["value"], strict=True), values.shape, 255, transform=raster.transform
        )
    np.testing.assert_array_equal(back, values)
    assert {LEGEND[v][0] for v in polygons["value"]} == set(polygons["class"])
    # Regions that touch share no class, or they would be one.
    assert len(polygons) == sum(_regions(values == v) for v in LEGEND)


def _regions(mask):
    from scipy import ndimage

    return ndimage.label(mask)[1]


def test_a_sieve_takes_small_regions_that_have_neighbours(tmp_path):
    values = np.full((20, 30), 1, np.uint8)
    values[3:6, 3:6] = 2  # 9 px in a field
    values[:, 20:] = 255
    values[8:10, 25:27] = 5  # 4 px in nothing
    with label_writer(tmp_path / "m.tif", made_scene(20, 30), CLASSES) as writer:
        writer.write(values, 0)
    expected = {0: {"water": 391, "land": 9, "road": 4}, 9: {"water": 391, "land": 9, "road": 4}}
    expected[10] = {"water": 400, "road": 4}
    for least, pixels in expected.items():
        polygons = region_polygons(tmp_path / "m.tif", least)
        assert dict(zip(polygons["class"], polygons.geometry.area * 4, strict=True)) == pixels


@pytest.mark.parametrize(
    ("crs", "transform", "sides"),
    [
        ("EPSG:32633", from_origin(5e5, 4e6, 0.5, 0.5), (0.5, 0.5)),
        ("EPSG:3857", from_origin(1e6, 7e6, 2.0, 2.0), (2.0, 2.0)),
        ("EPSG:4326", from_origin(12.0, 52.0, 1e-5, 2e-5), None),
        ("EPSG:2263", from_origin(9.8e5, 2e5, 3.0, 3.0), None),  # feet
    ],
)
def test_areas_are_those_on_the_ellipsoid(crs, transform, sides):
    a, _, c, _, e, f = transform[:6]
    shapes = [shapely.box(c + 7 * a, f + (10 + n) * e, c + (7 + n) * a, f + 10 * e) for n in (1, 40, 900)]
    geometry = gpd.GeoSeries(shapes, crs=crs)
    geod = Geod(ellps="WGS84")
    expected = [abs(geod.geometry_area_perimeter(shape)[0]) for shape in geometry.segmentize(30 * a).to_crs(4326)]
    np.testing.assert_allclose(area_m2(geometry), expected, rtol=2e-4)
    if crs == "EPSG:32633":  # known by hand: 0.5 m a side, at the map's scale of 0.9996
        assert area_m2(geometry)[0] == pytest.approx(0.25 / 0.9996**2, rel=1e-5)
    if crs == "EPSG:3857":  # web mercator is no map of areas
        assert area_m2(geometry)[1] < 0.5 * geometry.area[1]


def test_a_cog_with_overviews_colours_and_names(tmp_path):
    values = made_map(tmp_path / "m.tif", 700, 900, side=7)
    write_cog(tmp_path / "m.tif", tmp_path / "deep" / "labels.tif")
    with rasterio.open(tmp_path / "deep" / "labels.tif") as cog:
        assert cog.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG" and cog.overviews(1) == [2, 4]
        assert cog.profile["tiled"] and cog.nodata == 255 and str(cog.crs) == CRS
        np.testing.assert_array_equal(cog.read(1), values)
        assert {v: cog.colormap(1)[v][:3] for v in LEGEND} == {v: color for v, (_, color) in LEGEND.items()}
        # An overview holds classes, the most frequent of each block, and no mean of their numbers.
        small = cog.read(1, out_shape=(175, 225))
        assert set(np.unique(small)) <= {1, 2, 5, 255}
    assert read_legend(tmp_path / "deep" / "labels.tif") == (LEGEND, 255)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["labels.tif"]


def test_all_files_and_their_styles(tmp_path):
    made_map(tmp_path / "m.tif", side=5)
    polygons = write_for_gis(tmp_path / "m.tif", tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"labels.tif", "labels.qml", "polygons.gpkg", "polygons.qml", "polygons.sld"}
    read = gpd.read_file(tmp_path / "out" / "polygons.gpkg", layer="polygons")
    assert list(read.columns) == ["class", "value", "area_m2", "geometry"] and str(read.crs) == CRS
    assert read["area_m2"].sum() == pytest.approx(polygons["area_m2"].sum())
    assert read["area_m2"].sum() == pytest.approx(read.geometry.area.sum(), rel=2e-3)  # UTM, so nearly the map's own


TRICKY = {1: ("a & b <c>", (1, 2, 3)), 7: ('"quoted" ü', (255, 0, 16))}


@pytest.mark.parametrize("legend", [LEGEND, TRICKY], ids=["plain", "tricky names"])
def test_styles_name_all_classes_with_their_colours(legend):
    entries = ElementTree.fromstring(raster_qml(legend)).findall(".//rasterrenderer[@type='paletted']//paletteEntry")
    found = {int(e.get("value")): (e.get("label"), _rgb(e.get("color"))) for e in entries}
    assert found == legend

    root = ElementTree.fromstring(polygon_qml(legend))
    renderer = root.find("renderer-v2[@type='categorizedSymbol'][@attr='class']")
    symbols = {s.get("name"): s.find(".//Option[@name='color']").get("value") for s in renderer.iter("symbol")}
    colors = {c.get("value"): symbols[c.get("symbol")] for c in renderer.iter("category")}
    assert colors == {name: f"{r},{g},{b},255" for name, (r, g, b) in legend.values()}

    sld = "{http://www.opengis.net/sld}"
    rules = ElementTree.fromstring(polygon_sld(legend).encode()).iter(f"{sld}Rule")
    fills = {
        r.find(".//{http://www.opengis.net/ogc}Literal").text: _rgb(r.find(f".//{sld}CssParameter").text) for r in rules
    }
    assert fills == dict(legend.values())


def _rgb(text):
    return tuple(bytes.fromhex(text.removeprefix("#")))


def test_what_can_not_be_written(tmp_path):
    made_map(tmp_path / "m.tif")
    with pytest.raises(UserError, match="a sieve of -1 px"):
        region_polygons(tmp_path / "m.tif", -1)
    made_map(tmp_path / "flat.tif", crs=None)
    with pytest.raises(UserError, match="has no coordinate system"):
        region_polygons(tmp_path / "flat.tif")
    write_raster(tmp_path / "other.tif", np.ones((1, 9, 9), np.uint8))
    with pytest.raises(UserError, match="does not name its classes"):
        region_polygons(tmp_path / "other.tif")
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match="can't be written"):
        write_cog(tmp_path / "m.tif", tmp_path / "file" / "labels.tif")
    with pytest.raises(UserError, match="can't be written"):
        write_polygons(region_polygons(tmp_path / "m.tif"), tmp_path / "file" / "polygons.gpkg")
