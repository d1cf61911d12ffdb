"""Drawn labels on a scene's grid, against point in polygon by shapely; and what people draw wrongly."""

import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine
from made import write_raster
from rasterio.crs import CRS
from rasterio.transform import from_origin

from rsseglab.errors import UserError
from rsseglab.scenes import IGNORE_INDEX, LabelClass, Scene, Window
from rsseglab.scenes.polygons import (
    PolygonLabel,
    as_points,
    check_georeference,
    label_classes,
    on_scenes,
    read_drawn,
    to_map,
    with_label,
)

UTM = CRS.from_epsg(32633)
NORTH_UP = from_origin(5e5, 4e6, 0.5, 0.5)
ROTATED = Affine(0.47, 0.27, 5e5, 0.17, -0.75, 4e6)  # and of pixels that are no squares
CLASSES = tuple(LabelClass(name, value, (value, 0, 0)) for value, name in enumerate(("field", "pond", "road"), start=1))
VALUES = {c.name: c.value for c in CLASSES}


def scene_at(folder, transform=NORTH_UP, height=90, width=120, crs="EPSG:32633"):
    return Scene(write_raster(folder / "s.tif", np.ones((1, height, width), np.uint8), crs, transform=transform))


def blobs(scene, count=12, seed=0):
    """Polygons here and there in a scene, with corners at odd places, some with a hole; class by class."""
    draw, shapes = np.random.default_rng(seed), []
    for _ in range(count):
        middle, angles = draw.uniform((0, 0), (scene.width, scene.height)), np.sort(draw.uniform(0, 2 * np.pi, 9))
        radius = draw.uniform(3, 22)
        ring = middle + radius * draw.uniform(0.5, 1, 9)[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        hole = [middle + 0.2 * radius * (corner - middle) / radius for corner in ring]
        shape = shapely.Polygon(ring, [hole] if draw.random() < 0.3 else [])
        shapes.append(shapely.transform(shape, lambda xy: np.stack(to_map(scene.transform, *xy.T), 1)).buffer(0))
    names = [CLASSES[k % 3].name for k in range(count)]
    return gpd.GeoDataFrame({"class": names}, geometry=shapes, crs=UTM.to_wkt())


def saved(frame, path, **options):
    frame.to_file(path, **options)
    return path


def centres(scene):
    """Map coordinates of all pixels' centres, by the definition of a transform."""
    rows, cols = np.mgrid[: scene.height, : scene.width] + 0.5
    a, b, c, d, e, f = scene.transform[:6]
    return a * cols + b * rows + c, d * cols + e * rows + f


def twin(frame, scene, rule="smaller", rest=None):
    """Each pixel's centre, looked for in each polygon, the largest first."""
    out = np.full((scene.height, scene.width), IGNORE_INDEX if rest is None else rest, np.uint8)
    found = [set() for _ in range(out.size)]
    for i in sorted(range(len(frame)), key=lambda i: -frame.geometry[i].area):
        for pixel in np.flatnonzero(shapely.contains_xy(frame.geometry[i], *centres(scene))):
            found[pixel].add(frame["class"][i])
            several = rule == "ignore" and len(found[pixel]) > 1
            out.flat[pixel] = IGNORE_INDEX if several else VALUES[frame["class"][i]]
    return out


@pytest.mark.parametrize("transform", [NORTH_UP, ROTATED], ids=["north-up", "rotated, oblong"])
@pytest.mark.parametrize("rule", ["smaller", "ignore"])
def test_each_pixel_has_the_class_that_its_centre_lies_in(tmp_path, transform, rule):
    scene = scene_at(tmp_path, transform)
    path = saved(blobs(scene), tmp_path / "labels.gpkg")
    (drawn,) = on_scenes(read_drawn(path, UTM), [scene])
    label = PolygonLabel(drawn, scene, CLASSES, conflicts=rule)
    expected = twin(drawn.frame, scene, rule)
    assert len(np.unique(expected)) == 4
    np.testing.assert_array_equal(label.read(scene.window)[0], expected)
    contested = label.paint(scene.window)[1]
    if rule == "ignore":
        assert contested.any() and (expected[contested] == IGNORE_INDEX).all()
    # Windows of it are the same, and the label is one of a scene.
    part = Window(17, 31, 40, 53)
    np.testing.assert_array_equal(label.read(part)[0], expected[17:57, 31:84])
    np.testing.assert_array_equal(
        with_label(scene, label, CLASSES).read_label(),
        np.where(expected == IGNORE_INDEX, IGNORE_INDEX, expected - 1),
    )


def test_the_rest_is_a_class_where_it_is_asked_for(tmp_path):
    scene = scene_at(tmp_path)
    (drawn,) = on_scenes(read_drawn(saved(blobs(scene), tmp_path / "l.geojson", driver="GeoJSON"), UTM), [scene])
    classes = [LabelClass("background", 0, (9, 9, 9)), *CLASSES]
    label = PolygonLabel(drawn, scene, classes, rest="background").read(scene.window)[0]
    np.testing.assert_array_equal(label, twin(drawn.frame, scene, rest=0))


@pytest.mark.parametrize("epsg", [4326, 3857, 32632, 3035])
def test_other_coordinate_systems_land_within_a_pixel(tmp_path, epsg):
    """Long edges too: the scene is 60 km wide, and a straight line of degrees bends there by hundreds of metres."""
    scene = scene_at(tmp_path, from_origin(5e5, 6e6, 400, 400), 150, 150)
    there = gpd.GeoSeries([shapely.box(5.05e5, 5.95e6, 5.55e5, 5.995e6)], crs=UTM.to_wkt()).to_crs(epsg)
    box = shapely.box(*there.total_bounds)  # straight in the other system
    path = saved(gpd.GeoDataFrame({"class": ["field"]}, geometry=[box], crs=epsg), tmp_path / "l.gpkg")
    (drawn,) = on_scenes(read_drawn(path, UTM), [scene])
    label = PolygonLabel(drawn, scene, CLASSES).read(scene.window)[0] == 1
    middles = gpd.points_from_xy(*(v.ravel() for v in centres(scene)), crs=UTM.to_wkt()).to_crs(epsg)
    x, y = np.asarray(middles.x), np.asarray(middles.y)
    west, south, east, north = box.bounds
    expected = ((x > west) & (x < east) & (y > south) & (y < north)).reshape(label.shape)
    assert label.any() and not label.all()
    differ = label != expected
    # Only pixels whose centre is a hair from the edge may differ.
    assert differ.sum() < 5


def test_classes_by_file_by_layer_and_by_column(tmp_path):
    scene = scene_at(tmp_path)
    frame = blobs(scene).assign(kind=lambda f: f["class"].str.upper(), number=[1.0, 2.0, 3.0] * 4)
    folder = tmp_path / "files"
    folder.mkdir()
    for name, its in frame.groupby("class"):
        its[["geometry"]].to_crs(4326).to_file(folder / f"{name}.shp")
        its[["geometry"]].to_file(tmp_path / "layers.gpkg", layer=name)
    by_column = read_drawn(saved(frame, tmp_path / "all.gpkg"), UTM)
    assert by_column.counts == {"field": 4, "pond": 4, "road": 4} and by_column.kind == "polygons"
    assert read_drawn(folder, UTM).counts == read_drawn(tmp_path / "layers.gpkg", UTM).counts == by_column.counts
    assert set(read_drawn(tmp_path / "all.gpkg", UTM, "kind").counts) == {"FIELD", "POND", "ROAD"}
    assert set(read_drawn(tmp_path / "all.gpkg", UTM, "number").counts) == {"1", "2", "3"}
    areas = [
        d.frame.groupby("class").geometry.apply(lambda g: g.union_all().area)
        for d in (by_column, read_drawn(folder, UTM))
    ]
    np.testing.assert_allclose(*areas, rtol=1e-5)


def test_what_can_be_mended_is_mended_and_said(tmp_path):
    scene = scene_at(tmp_path)
    west, north = 5e5, 4e6
    bow = shapely.Polygon([(west + x, north - y) for x, y in ((5, 5), (15, 15), (15, 5), (5, 15))])
    two = shapely.MultiPolygon([shapely.box(west + x, north - 30, west + x + 4, north - 22) for x in (20, 30)])
    far = shapely.box(west + 5000, north, west + 5010, north + 10)
    frame = gpd.GeoDataFrame(
        {"class": ["field", "pond", "road", None, "road"]},
        geometry=[bow, two, None, bow, far],
        crs=UTM.to_wkt(),
    )
    frame.loc[5] = {
        "class": "road",
        "geometry": shapely.force_3d(shapely.box(west + 40, north - 9, west + 44, north - 2)),
    }
    drawn = read_drawn(saved(frame, tmp_path / "l.gpkg"), UTM)
    (here,) = on_scenes(drawn, [scene])
    assert here.counts == {"field": 2, "pond": 2, "road": 1}
    said = " | ".join(here.notes)
    assert "2 of 6 features of layer l have no class or no shape" in said
    assert "1 shapes cross or touch themselves: made valid" in said and "1 polygons lie outside" in said
    assert here.frame.geometry.is_valid.all()
    label = PolygonLabel(here, scene, CLASSES).read(scene.window)[0]
    assert (label == 1).sum() == pytest.approx(4 * 50, rel=0.1)  # of the bow's 50 m2, at 4 px a m2


def test_points_of_any_file(tmp_path):
    scene = scene_at(tmp_path, ROTATED)
    places = np.array([(10.3, 20.6), (80.5, 3.2), (44.0, 71.9)])  # rows and columns
    x, y = to_map(scene.transform, places[:, 1], places[:, 0])
    frame = gpd.GeoDataFrame({"class": ["field", "pond", "road"]}, geometry=gpd.points_from_xy(x, y), crs=UTM.to_wkt())
    drawn = read_drawn(saved(frame.to_crs(4326), tmp_path / "p.gpkg"), UTM)
    points = as_points(on_scenes(drawn, [scene])[0], scene)
    np.testing.assert_allclose([(p.row, p.col) for p in points], places, atol=1e-3)
    assert [p.name for p in points] == ["field", "pond", "road"]


# --- what is refused


def line(crs=UTM):
    return gpd.GeoDataFrame(
        {"class": ["a"]}, geometry=[shapely.LineString([(5e5, 4e6), (5e5 + 9, 4e6)])], crs=crs.to_wkt()
    )


def refused(match, *args, **kwargs):
    with pytest.raises(UserError, match=match) as error:
        read_drawn(*args, **kwargs)
    assert "\n" not in str(error.value)


def test_bad_files(tmp_path):
    scene = scene_at(tmp_path)
    frame = blobs(scene)
    refused("nowhere.gpkg does not exist", tmp_path / "nowhere.gpkg", UTM)
    (tmp_path / "empty").mkdir()
    refused("holds no file of features", tmp_path / "empty", UTM)
    (tmp_path / "bad.gpkg").write_text("no database")
    refused("bad.gpkg can't be read as features", tmp_path / "bad.gpkg", UTM)
    saved(frame.iloc[:0], tmp_path / "none.gpkg")
    refused("layer none of none.gpkg is empty", tmp_path / "none.gpkg", UTM)
    saved(frame.set_crs(None, allow_override=True), tmp_path / "placeless.shp")
    refused("names no coordinate system.*prj", tmp_path / "placeless.shp", UTM)
    path = saved(frame.assign(kind=1), tmp_path / "all.gpkg")
    refused(r"has no column 'knid' \(did you mean kind\?\); it has class, kind", path, UTM, "knid")
    saved(line(), tmp_path / "line.gpkg")
    refused("mixes kinds of shapes.*LineString", tmp_path / "line.gpkg", UTM)
    twice = tmp_path / "twice"
    twice.mkdir()
    saved(frame, twice / "roads.shp")
    saved(frame.to_crs(4326), twice / "roads.geojson", driver="GeoJSON")
    refused("layer roads is there twice, in roads.geojson and roads.shp", twice, UTM)
    mixed = gpd.GeoDataFrame(
        {"class": ["a", "b"]}, geometry=[frame.geometry[0], shapely.Point(5e5, 4e6)], crs=UTM.to_wkt()
    )
    refused("1 of Polygon, 1 of Point|1 of Point, 1 of Polygon", saved(mixed, tmp_path / "mixed.gpkg"), UTM)
    unnamed = frame.assign(**{"class": None})
    refused("no feature with a class and a shape", saved(unnamed, tmp_path / "unnamed.gpkg"), UTM, "class")


def test_labels_elsewhere_and_scenes_without_a_place(tmp_path):
    scene = scene_at(tmp_path)
    drawn = read_drawn(saved(blobs(scene).translate(9000).to_frame("geometry").assign(a=1), tmp_path / "l.gpkg"), UTM)
    with pytest.raises(UserError, match=r"no label lies in scene s: its x is 500000 to 500060"):
        on_scenes(drawn, [scene])
    bare = write_raster(tmp_path / "bare.tif", np.ones((1, 9, 9), np.uint8), None)
    with pytest.raises(UserError, match=r"bare.tif names no coordinate system.*rio edit-info"):
        check_georeference(Scene(bare))
    lost = write_raster(tmp_path / "lost.tif", np.ones((1, 9, 9), np.uint8), transform=Affine.identity())
    with pytest.raises(UserError, match="does not say where it lies"):
        check_georeference(Scene(lost))


def test_classes_are_counted():
    colors = {str(i): (0, 0, 0) for i in range(300)} | {"rest": (1, 1, 1)}
    names = [str(i) for i in range(254)]
    assert [c.value for c in label_classes(names, colors, "rest")] == list(range(255))
    with pytest.raises(UserError, match="255 classes"):
        label_classes([*names, "254"], colors, None)
    with pytest.raises(UserError, match="all labels are of one class"):
        label_classes(["0"], colors, None)
    with pytest.raises(UserError, match="choose another --rest"):
        label_classes(["0", "1"], colors, "0")


def test_unknown_rules_and_classes(tmp_path):
    scene = scene_at(tmp_path)
    drawn = read_drawn(saved(blobs(scene), tmp_path / "l.gpkg"), UTM)
    with pytest.raises(UserError, match="no rule 'larger'"):
        PolygonLabel(drawn, scene, CLASSES, conflicts="larger")
    with pytest.raises(UserError, match="'road' is no class"):
        PolygonLabel(drawn, scene, CLASSES[:2])
