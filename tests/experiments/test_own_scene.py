"""One's own scene, from drawn labels to a map for a GIS, on tiny made scenes; and what can't be used."""

import json

import geopandas as gpd
import numpy as np
import pytest
import rasterio
import shapely
from made import write_raster
from rasterio.transform import from_origin
from scipy import ndimage

from rsseglab.cli import main
from rsseglab.errors import UserError
from rsseglab.experiments.own_labels import class_colors, default_crop_px, gsd_m, prepare
from rsseglab.scenes import Scene
from rsseglab.scenes.manifest import load_manifest
from rsseglab.training.records import RunRecord

TINY = ["--encoder", "test_resnet", "--decoder", "unet", "--crop", "32", "--batch-size", "4", "--steps", "40"]
NAMES = {1: "field", 2: "pond"}
PX = 0.5


def made(folder, name="town", height=160, width=192, seed=0, bands=3, dtype="uint8", **profile):
    """A scene of fields with ponds, whose colours tell them apart; its raster and where the ponds are."""
    draw = np.random.default_rng(seed)
    rows, cols = np.mgrid[:height, :width]
    pond = np.zeros((height, width), bool)
    for _ in range(height * width // 1500):
        row, col, radius = draw.integers(height), draw.integers(width), draw.integers(7, 13)
        pond |= (rows - row) ** 2 + (cols - col) ** 2 < radius**2
    levels = np.where(pond, 60, 160) + 10 * np.arange(bands)[:, None, None]
    image = (levels + draw.normal(0, 12, levels.shape)).clip(1, 255).astype(dtype)
    return write_raster(folder / f"{name}.tif", image, **profile), pond


def outlined(pond, path, crs=4326, least=30):
    """Polygons of ponds, and of what is well inside the fields, as somebody would draw some of them."""
    shapes, names = [], []
    inner = ndimage.binary_erosion(~pond, iterations=6)
    for mask, name in ((pond, "pond"), (inner, "field")):
        numbers, _ = ndimage.label(mask)
        cut = numbers * 100 + (np.arange(mask.shape[0])[:, None] // 40) * 10 + np.arange(mask.shape[1]) // 40
        cut = np.where(mask, cut, 0).astype(np.int32)
        for shape, number in rasterio.features.shapes(cut, mask=mask, transform=from_origin(5e5, 4e6, PX, PX)):
            if number and shapely.geometry.shape(shape).area > least * PX**2:
                shapes.append(shapely.geometry.shape(shape))
                names.append(name)
    frame = gpd.GeoDataFrame({"class": names}, geometry=shapes, crs=32633).iloc[:: 2 if len(shapes) > 20 else 1]
    frame.to_crs(crs).to_file(path)
    return path


def test_from_polygons_to_a_map_and_back_to_all_other_commands(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RSSEGLAB_WEIGHTS", raising=False)
    image, pond = made(tmp_path)
    labels, out = outlined(pond, tmp_path / "drawn.gpkg"), tmp_path / "out"
    run = ["own", str(image), "--labels", str(labels), "--out", str(out), *TINY]
    assert main([*run, "--lr", "3e-3", "--sieve", "8"]) == 0
    said = capsys.readouterr().out
    assert "expect less on another scene" in said and "2 classes" in said and "16 px or more apart" in said
    files = {p.name for p in out.iterdir() if p.is_file()}
    assert files == {
        "labels.tif", "labels.qml", "polygons.gpkg", "polygons.qml", "polygons.sld", "overview.png", "record.json",
        "scene.toml",
    }  # fmt: skip

    with rasterio.open(out / "labels.tif") as raster, rasterio.open(image) as scene:
        assert (raster.crs, raster.transform, raster.shape) == (scene.crs, scene.transform, scene.shape)
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        mapped = raster.read(1)
    assert set(np.unique(mapped)) == {1, 2}
    assert ((mapped == 2) == pond).mean() > 0.9  # labels were drawn in a part of it
    polygons = gpd.read_file(out / "polygons.gpkg")
    assert set(polygons["class"]) == {"field", "pond"}
    assert polygons["area_m2"].sum() == pytest.approx(pond.size * PX**2, rel=2e-3)

    record = RunRecord.read(out / "record.json")
    pooled = record.metrics["pooled"]
    assert pooled["mean_iou"] > 0.75 > pooled["majority_class_mean_iou"]
    assert f"mean IoU {pooled['mean_iou']:.3f}" in said
    text = json.dumps(record.to_json())
    assert str(tmp_path) not in text

    # The manifest serves all other commands, and its validation blocks give the same score.
    manifest = load_manifest(out / "scene.toml")
    assert [c.name for c in manifest.classes] == ["field", "pond"]
    whole = manifest.scene("town", out)
    assert (whole.height, whole.width) == pond.shape and whole.gsd_m == pytest.approx(PX, rel=1e-3)
    data = ["--data", str(out / "scene.toml")]
    checkpoint = ["--checkpoint", str(out / "run" / "best.ckpt")]
    assert main(["predict", *data, "--split", "val", *checkpoint, "--output", str(tmp_path / "val")]) == 0
    blocks = sorted((tmp_path / "val").glob("*.tif"))
    assert len(blocks) == len(manifest.splits["val"])
    scores = tmp_path / "scores.json"
    assert main(["evaluate", *map(str, blocks), *data, "--json", str(scores)]) == 0
    # Blocks that are labelled alone see nothing beyond their edge.
    assert RunRecord.read(scores).metrics["pooled"]["mean_iou"] == pytest.approx(pooled["mean_iou"], abs=0.1)
    assert RunRecord.read(scores).metrics["pooled"]["pixels"] == pooled["pixels"]
    train = ["--encoder", "test_resnet", "--crop", "32", "--val-window", "32", "--steps", "2", "--batch-size", "2"]
    assert main(["train", *data, *train, "--out", str(tmp_path / "again")]) == 0

    # A second run in the same folder is refused, and with --resume goes on: here it has nothing left to do.
    capsys.readouterr()
    assert main(run) == 2
    assert "holds a run already; give --resume" in capsys.readouterr().err
    assert main([*run, "--lr", "3e-3", "--resume"]) == 0
    with rasterio.open(out / "labels.tif") as raster:
        np.testing.assert_array_equal(raster.read(1), mapped)


def test_from_points_to_a_map(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RSSEGLAB_WEIGHTS", raising=False)
    image, pond = made(tmp_path)
    draw, rows = np.random.default_rng(1), []
    for mask, name in ((pond, "pond"), (~pond, "field")):
        places = np.argwhere(ndimage.binary_erosion(mask, iterations=3))
        rows += [(name, *place) for place in draw.choice(places, 40, replace=False)]
    (tmp_path / "clicks.csv").write_text("class,row,col\n" + "".join(f"{n},{r},{c}\n" for n, r, c in rows))
    out = tmp_path / "out"
    run = ["own", str(image), "--labels", str(tmp_path / "clicks.csv"), "--out", str(out), *TINY]
    assert main([*run, "--decoder", "fpn", "--grow-by", "discs", "--lr", "3e-3"]) == 0
    with rasterio.open(out / "labels.tif") as raster:
        assert ((raster.read(1) == 2) == pond).mean() > 0.85
    record = RunRecord.read(out / "record.json")
    assert record.configuration["method"] == "penet" and record.configuration["grown_by"] == "discs"
    # What validates is not what has grown: no click of a validation block is among the training parts'.
    manifest = load_manifest(out / "scene.toml")
    parts = [manifest.parts[name] for name in manifest.splits["train"]]
    count = sum(len(json.loads(file.read_text())["features"]) for file in (out / "points").glob("*.geojson"))
    inside = [
        any(
            p.window.row <= r < p.window.row + p.window.height and p.window.col <= c < p.window.col + p.window.width
            for p in parts
        )
        for _, r, c in rows
    ]
    assert count == sum(inside) < len(rows)
    assert len(list((out / "grown").glob("*.tif"))) == len(parts)


@pytest.mark.parametrize(
    "profile",
    [
        {"bands": 1},
        {"bands": 1, "dtype": "float32", "nodata": float("nan")},
        {"bands": 4, "dtype": "uint16", "nodata": 0},
        {"crs": "EPSG:4326", "transform": from_origin(12.0, 52.0, 1e-5, 1e-5)},
        {"crs": "EPSG:32633", "transform": rasterio.Affine(0.4, 0.3, 5e5, 0.3, -0.4, 4e6)},
    ],
    ids=["one band", "float with NaN", "four bands with nodata", "degrees, oblong", "rotated"],
)
def test_scenes_of_all_kinds_are_made_ready(tmp_path, profile):
    image, pond = made(tmp_path, **profile)
    with rasterio.open(image, "r+") as file:
        pixels, transform, crs = file.read(), file.transform, file.crs
        if file.nodata is not None:
            pixels[:, :20] = file.nodata
            file.write(pixels)
    shapes = [
        (shapely.geometry.shape(shape), NAMES[int(value)])
        for shape, value in rasterio.features.shapes(np.where(pond, 2, 1).astype(np.uint8), transform=transform)
    ]
    frame = gpd.GeoDataFrame({"class": [n for _, n in shapes]}, geometry=[s for s, _ in shapes], crs=crs.to_wkt())
    frame.to_file(tmp_path / "l.gpkg")
    prepared = prepare([image], tmp_path / "l.gpkg", tmp_path / "out", crop_px=32)
    (scene,) = prepared.scenes
    expected = pond.astype(np.uint8)
    if "nodata" in profile:
        expected[:20] = 255
    np.testing.assert_array_equal(scene.read_label(), expected)
    assert scene.count == profile.get("bands", 3)
    oblong = [note for note in prepared.notes if "objects look stretched" in note]
    assert len(oblong) == (profile.get("crs") == "EPSG:4326")


def test_the_rest_and_overlaps_and_what_can_not_be_validated(tmp_path):
    image, _ = made(tmp_path)
    box = lambda row, col, high, wide: shapely.box(  # noqa: E731
        5e5 + col * PX, 4e6 - (row + high) * PX, 5e5 + (col + wide) * PX, 4e6 - row * PX
    )
    frame = gpd.GeoDataFrame(
        {"kind": ["field", "field", "Pond", "pond"]},
        geometry=[box(0, 0, 100, 80), box(40, 90, 100, 100), box(10, 10, 8, 8), box(90, 130, 20, 20)],
        crs=32633,
    )
    frame.to_file(tmp_path / "l.gpkg")
    options = {"class_column": "kind", "rest": "background", "crop_px": 32}
    prepared = prepare([image], tmp_path / "l.gpkg", tmp_path / "out", **options)
    classes = [c.name for c in prepared.scenes[0].classes]
    assert classes == ["background", "Pond", "field", "pond"]
    label = prepared.scenes[0].read_label()
    counts = dict(zip(classes, np.bincount(label.ravel(), minlength=4).tolist(), strict=True))
    assert counts == {"background": 160 * 192 - 18000, "Pond": 64, "field": 18000 - 464, "pond": 400}
    said = " | ".join(prepared.notes)
    assert "differ in capitals alone" in said
    assert "overlap on 464 px of town: the smallest is on top" in said
    assert "class 'Pond' is learnt and not validated: it has one of the polygons alone" in said


def refused(match, *args, **kwargs):
    with pytest.raises(UserError, match=match) as error:
        prepare(*args, **kwargs)
    assert "\n" not in str(error.value)


def test_what_can_not_be_used(tmp_path):
    image, pond = made(tmp_path)
    labels, out = outlined(pond, tmp_path / "drawn.gpkg"), tmp_path / "out"
    bare, _ = made(tmp_path, "bare", crs=None)
    refused("bare.tif names no coordinate system", [bare], labels, out)
    refused("several scenes are named town", [image, image], labels, out)
    gray, _ = made(tmp_path, "gray", bands=1)
    refused("gray has the bands band_1", [image, gray], labels, out)
    refused("a crop of 100 px is no crop", [image], labels, out, crop_px=100)
    refused("none can be spared for validation", [image], labels, out, crop_px=128)
    (tmp_path / "clicks.csv").write_text("class,row,col\nfield,3,4\npond,999,4\n")
    refused("lies outside scene town", [image], tmp_path / "clicks.csv", out)
    (tmp_path / "clicks.csv").write_text("kind,row,col\nfield,3,4\n")
    refused("has the columns", [image], tmp_path / "clicks.csv", out)
    (tmp_path / "clicks.csv").write_text("class,row,col\nfield,3,4\npond,9,4\n")
    refused("leave --rest out", [image], tmp_path / "clicks.csv", out, rest="background")
    tiny = gpd.read_file(labels).to_crs(32633)
    tiny.loc[len(tiny)] = {"class": "speck", "geometry": shapely.box(5e5 + 10.01, 4e6 - 10.2, 5e5 + 10.2, 4e6 - 10.01)}
    tiny.to_file(tmp_path / "tiny.gpkg")
    refused("class 'speck' has no pixel", [image], tmp_path / "tiny.gpkg", out)


def test_one_line_on_the_screen(tmp_path, capsys):
    image, pond = made(tmp_path)
    labels = outlined(pond, tmp_path / "drawn.gpkg")
    for more, said in (
        (["--class-column", "knd"], "has no column 'knd'"),
        (["--sieve", "-3"], "a sieve of -3 px is none"),
        (["--grow-by", "sam"], "polygons need no growing"),
        (["--conflicts", "larger"], "no rule 'larger'"),
    ):
        assert main(["own", str(image), "--labels", str(labels), "--out", str(tmp_path / "o"), *more]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("rsseglab: ") and said in error


def test_colours_sizes_and_names(tmp_path):
    colors = class_colors([str(i) for i in range(254)], "rest")
    assert len(set(colors.values())) > 240 and colors["0"] == (0, 114, 178)
    assert len({colors[str(i)] for i in range(24)}) == 24
    image, _ = made(tmp_path, "a name [1]", crs="EPSG:4326", transform=from_origin(12.0, 52.0, 1e-5, 1e-5))
    scene = Scene(image)
    assert default_crop_px([scene]) == 32 * (160 // 4 // 32)
    assert gsd_m(scene) == pytest.approx((1e-5 * 111_200) * np.cos(np.deg2rad(52)) ** 0.5, rel=0.01)
