"""Point labels: files, painting, samplers."""

import json

import numpy as np
import pytest
from affine import Affine
from made import make_scene
from scipy.spatial.distance import cdist

from rsseglab.errors import UserError
from rsseglab.scenes import IGNORE_INDEX, ArraySource, LabelClass, Scene, Window
from rsseglab.scenes.points import (
    Point,
    PointLabel,
    class_points,
    innermost_points,
    object_points,
    read_points,
    share_points,
    with_errors,
    with_points,
    write_points,
)

CLASSES = [LabelClass("a", 1, (0, 0, 255)), LabelClass("b", 2, (0, 255, 0)), LabelClass("c", 7, (255, 0, 0))]


def scene_of(values, **where):
    values = np.asarray(values, np.uint8)
    image = ArraySource(np.repeat(values[..., None], 3, 2), **where)
    return Scene(image, ArraySource(values, **where), CLASSES, [0], name="s")


@pytest.fixture
def scene():
    """Three objects of a (one of 4 px), two of b, one ragged of c; the rest is unlabelled."""
    values = np.zeros((60, 80))
    values[2:22, 3:33], values[40:55, 5:20], values[30:32, 70:72] = 1, 1, 1
    values[5:30, 50:66], values[45:58, 40:52] = 2, 2
    draw = np.random.default_rng(0)
    values[36:58, 58:78] = 7 * (draw.random((22, 20)) < 0.8)
    return scene_of(values)


# --- files ---


@pytest.mark.parametrize("name", ["p.geojson", "p.csv"])
@pytest.mark.parametrize("georeferenced", [True, False])
def test_clicks_come_back_from_a_file(tmp_path, name, georeferenced):
    where = {"crs": "EPSG:32633", "transform": Affine(0.5, 0, 5e5, 0, -0.5, 4e6)} if georeferenced else {}
    scene = scene_of(np.ones((50, 40)), **where)
    points = [Point(3.25, 7.5, "a", "Ann"), Point(49.9, 0.0, "b", 'O"Neil, Bob'), Point(0.5, 39.5, "c")]
    write_points(tmp_path / name, points, scene)
    back = read_points(tmp_path / name, scene)
    assert [(p.name, p.who) for p in back] == [(p.name, p.who) for p in points]
    assert max(abs(p.row - q.row) + abs(p.col - q.col) for p, q in zip(points, back, strict=True)) < 1e-5


def test_a_geojson_of_a_georeferenced_scene_is_in_longitude_and_latitude(tmp_path):
    scene = scene_of(np.ones((50, 40)), crs="EPSG:32633", transform=Affine(0.5, 0, 5e5, 0, -0.5, 4e6))
    write_points(tmp_path / "p.geojson", [Point(0, 0, "a")], scene)
    lon, lat = json.loads((tmp_path / "p.geojson").read_text())["features"][0]["geometry"]["coordinates"]
    assert abs(lon - 15) < 1e-9 and abs(lat - 36.1445) < 1e-3  # zone 33's meridian; 4000 km north of the equator


def test_other_systems_are_read_where_the_file_names_them(tmp_path):
    scene = scene_of(np.ones((50, 40)), crs="EPSG:32633", transform=Affine(0.5, 0, 5e5, 0, -0.5, 4e6))
    data = {
        "crs": {"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32633"}},
        "features": [feature(500_010, 3_999_990)],
    }
    (tmp_path / "p.geojson").write_text(json.dumps(data))
    (point,) = read_points(tmp_path / "p.geojson", scene)
    assert abs(point.row - 20) < 1e-6 and abs(point.col - 20) < 1e-6
    (tmp_path / "p.csv").write_text("x,y,class\n500010,3999990,a\n")
    (point,) = read_points(tmp_path / "p.csv", scene)
    assert (point.row, point.col, point.name) == (20, 20, "a")


def feature(x, y, name="a", kind="Point"):
    return {"geometry": {"type": kind, "coordinates": [x, y]}, "properties": {"class": name}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no GeoJSON of points"),
        (json.dumps({"features": [feature(1, 2) | {"properties": {}}]}), "no GeoJSON of points"),
        (json.dumps({"features": [feature(1, 2), feature(1, 2, kind="Polygon")]}), "1 features that are no points"),
        (json.dumps({"features": [feature(1, 2)]}), "no georeference"),
        (json.dumps({"crs": {"properties": {"name": "EPSG:1"}}, "features": [feature(1, 2)]}), "that is unknown"),
        (json.dumps({"pixel_coordinates": True, "features": []}), "has no point"),
        (json.dumps({"pixel_coordinates": True, "features": [feature(80, 2)]}), "lies outside scene s of 60 x 80 px"),
        (json.dumps({"pixel_coordinates": True, "features": [feature(1, 2, "tree")]}), "is of class 'tree', but"),
        (
            json.dumps({"pixel_coordinates": True, "features": [feature(1, 2), feature(1.5, 2.5, "b")]}),
            "is b and a; delete one",
        ),
    ],
)
def test_bad_geojson_is_refused(tmp_path, scene, text, message):
    (tmp_path / "p.geojson").write_text(text)
    with pytest.raises(UserError, match=message):
        read_points(tmp_path / "p.geojson", scene)


@pytest.mark.parametrize(
    ("text", "message"),
    [("row,class\n1,a\n", "give class, and row"), ("row,col,class\n1,x,a\n", "no number"), ("", "has no point")],
)
def test_bad_csv_is_refused(tmp_path, scene, text, message):
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_points(tmp_path / "p.csv", scene)


def test_a_file_that_is_not_there_is_named(tmp_path, scene):
    with pytest.raises(UserError, match=r"none\.csv does not exist"):
        read_points(tmp_path / "none.csv", scene)


# --- painting ---


def slow_label(points, scene, block_px):
    """Pixel by pixel: the click's class, else the one class whose blocks reach it, else nothing."""
    names = [c.name for c in scene.classes]
    label = np.full((scene.height, scene.width), IGNORE_INDEX)
    for i in range(scene.height):
        for j in range(scene.width):
            away = [(max(abs(p.pixel[0] - i), abs(p.pixel[1] - j)), names.index(p.name)) for p in points]
            reach, here = ({k for px, k in away if px <= most} for most in (block_px // 2, 0))
            found = here or reach
            label[i, j] = found.pop() if len(found) == 1 else IGNORE_INDEX
    return label


@pytest.mark.parametrize("block_px", [1, 3, 7])
def test_clicks_paint_blocks_and_the_click_wins(scene, block_px):
    draw = np.random.default_rng(1)
    places = {(int(r), int(c)) for r, c in zip(draw.integers(0, 60, 60), draw.integers(0, 80, 60), strict=True)}
    points = [Point(r + draw.random(), c, str(draw.choice(["a", "b", "c"]))) for r, c in sorted(places)]
    clicked = with_points(scene, points, block_px)
    label = slow_label(points, scene, block_px)
    assert np.array_equal(clicked.read_label(), label)
    for window in (Window(10, 20, 17, 9), Window(-5, 70, 30, 30), Window(59, 0, 1, 1)):
        whole = np.pad(label, 40, constant_values=IGNORE_INDEX)
        part = whole[40 + window.row :, 40 + window.col :][: window.height, : window.width]
        assert np.array_equal(clicked.read_label(window), part)
    assert np.array_equal(clicked.read(), scene.read())


def test_an_even_block_is_refused(scene):
    with pytest.raises(UserError, match="an odd side"):
        PointLabel([Point(1, 1, "a")], scene, 2)


# --- samplers ---


def test_innermost_points_are_farthest_from_the_edge(scene):
    label = scene.read_label()
    points = innermost_points(scene, least_px=30)
    assert sorted(p.name for p in points) == ["a", "a", "b", "b", "c"]
    for point in points:
        k = "abc".index(point.name)
        assert label[point.pixel] == k
        # The slow distance of each pixel of the class to all that is not of it, what lies outside included.
        padded = np.pad(label == k, 1)
        inside, outside = np.argwhere(padded), np.argwhere(~padded)
        distance = cdist(inside, outside).min(1)
        mine = distance[(inside == np.array(point.pixel) + 1).all(1)][0]
        near = cdist(inside, [np.array(point.pixel) + 1])[:, 0] < 12
        assert mine >= distance[near].max() - 1e-9


def test_objects_that_are_too_small_are_not_clicked(scene):
    assert len(innermost_points(scene, 3)) == len(innermost_points(scene, 4)) + 1
    with pytest.raises(UserError, match="no object of more than 10000 px"):
        innermost_points(scene, 10_000)


@pytest.mark.parametrize(
    "sample",
    [
        lambda s, seed: object_points(s, seed, 2, 3),
        lambda s, seed: class_points(s, seed, 5),
        lambda s, seed: share_points(s, seed, 0.05),
    ],
)
def test_samples_stay_in_their_regions_and_follow_the_seed(scene, sample):
    label = scene.read_label()
    for seed in range(5):
        points = sample(scene, seed)
        assert all(label[p.pixel] == "abc".index(p.name) for p in points)
        assert points == sample(scene, seed)
    assert sample(scene, 0) != sample(scene, 1)


def test_how_many_points_there_are(scene):
    label = scene.read_label()
    assert len(object_points(scene, 0, 3, 3)) >= 3 * 6
    assert [sum(p.name == n for p in class_points(scene, 0, 5)) for n in "abc"] == [5, 5, 5]
    assert len(share_points(scene, 0, 0.1)) == round(0.1 * (label != IGNORE_INDEX).sum())
    one = scene_of([[1, 1], [2, 0]])
    assert sorted(p.name for p in class_points(one, 0, 9)) == ["a", "a", "b"]


def test_an_annotator_errs_as_often_as_told(scene):
    points = share_points(scene, 0, 1.0)
    same = with_errors(points, scene, 0)
    assert same == points
    wrong = with_errors(points, scene, 0, wrong=0.3)
    share = np.mean([p.name != q.name for p, q in zip(points, wrong, strict=True)])
    assert abs(share - 0.3) < 0.05
    off = with_errors(points[::40], scene, 1, off_px=2.0)
    moved = [abs(p.row - q.row) for p, q in zip(points[::40], off, strict=False)]
    assert len(off) <= len(points[::40]) and max(moved) > 1
    assert all(0 <= p.pixel[0] < 60 and 0 <= p.pixel[1] < 80 for p in with_errors(points, scene, 2, off_px=30))


def test_clicks_that_miss_come_back_from_a_georeferenced_file(tmp_path):
    scene = scene_of(np.ones((50, 40)), crs="EPSG:32633", transform=Affine(0.5, 0, 5e5, 0, -0.5, 4e6))
    off = with_errors(share_points(scene, 0, 0.2), scene, 1, off_px=40.0)
    edge = [Point(0.0, 0.0, "b"), Point(49.9999999, 39.9999999, "b")]
    kept = [p for p in off if p.pixel not in {q.pixel for q in edge}] + edge
    write_points(tmp_path / "p.geojson", kept, scene)
    back = read_points(tmp_path / "p.geojson", scene)
    assert [p.pixel for p in back] == [p.pixel for p in kept]


@pytest.mark.parametrize("x", ["nan", "inf"])
def test_places_that_are_none_are_refused(tmp_path, scene, x):
    (tmp_path / "p.csv").write_text(f"row,col,class\n1,{x},a\n")
    with pytest.raises(UserError, match="is no place in scene s"):
        read_points(tmp_path / "p.csv", scene)


def test_map_coordinates_without_their_system_are_refused(tmp_path):
    scene = scene_of(np.ones((50, 40)), crs="EPSG:32633", transform=Affine(0.5, 0, 5e5, 0, -0.5, 4e6))
    (tmp_path / "p.geojson").write_text(json.dumps({"features": [feature(500_010, 3_999_990)]}))
    with pytest.raises(UserError, match="can't be brought from EPSG:4326"):
        read_points(tmp_path / "p.geojson", scene)


@pytest.mark.parametrize(
    ("sample", "message"),
    [
        (lambda s: class_points(s, -1, 5), "must not be negative"),
        (lambda s: class_points(s, 0, 0), "at least one click"),
        (lambda s: object_points(s, 0, -1), "at least one click"),
        (lambda s: with_errors([], s, 0, wrong=3), "give a share"),
        (lambda s: with_errors([], s, 0, off_px=-1), "no negative distance"),
    ],
)
def test_numbers_out_of_range_are_refused(scene, sample, message):
    with pytest.raises(UserError, match=message):
        sample(scene)


def test_scenes_without_labels_and_shares_that_are_none_are_refused(tmp_path, scene):
    with pytest.raises(UserError, match="no label"):
        innermost_points(Scene(ArraySource(np.zeros((9, 9))), classes=CLASSES, name="s"))
    with pytest.raises(UserError, match="no share"):
        share_points(scene, 0, 0)


def test_a_scene_on_disk_keeps_its_place(tmp_path):
    scene = make_scene(tmp_path)
    clicked = with_points(scene, innermost_points(scene, 50))
    assert (clicked.crs, clicked.transform, clicked.name) == (scene.crs, scene.transform, scene.name)
    label, truth = clicked.read_label(), scene.read_label()
    assert set(np.unique(label)) == {0, 1, 2, IGNORE_INDEX} and (label != IGNORE_INDEX).mean() < 0.05
    assert ((label == truth) | (label == IGNORE_INDEX) | (truth == IGNORE_INDEX)).mean() > 0.99
