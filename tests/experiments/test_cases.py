"""Hyperspectral scenes, a single class, drone images: what is unlike three bands and seven classes, from end to end."""

import copy
import json
import re

import numpy as np
import pytest
import rasterio
import torch
from made import write_raster

from rsseglab.cli import main
from rsseglab.rest import INTERACTIONS, REST
from rsseglab.scenes import IGNORE_INDEX, Window
from rsseglab.scenes.manifest import load_manifest
from rsseglab.scenes.synthetic import render
from rsseglab.spatial import Layout, cut, join
from rsseglab.training.checkpoint import load_checkpoint
from rsseglab.training.records import RunRecord

TINY = ["--encoder", "test_resnet", "--decoder", "fcn", "--strides", "16", "32", "--batch-size", "2"]
SIZES = {32: (96, 160), 200: (72, 145)}  # WHU-OHS as a part of it, Indian Pines' training part


def network(bands, interaction):
    torch.manual_seed(0)
    options = {} if interaction == "none" else {"strides": (16, 32)}
    return REST("test_resnet", "unet", 16, interaction, bands=bands, **options).double().train()


def step(model, image, layout=None):
    """Logits and gradients, of the bands' own layer first."""
    model = copy.deepcopy(model)
    logits = model(image) if layout is None else join(model(cut(image, layout)))
    logits.square().mean().backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads[0].shape[1] == image.shape[1]
    return [logits.detach(), *grads]


@pytest.mark.parametrize("bands", SIZES)
@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_many_bands_in_tiles_against_the_plain_scene(bands, interaction):
    """Of a size that no tile's side divides: exact to rounding, tile by tile another function."""
    image = torch.randn(1, bands, *SIZES[bands], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = network(bands, interaction)
    plain, tiled = step(model, image), step(model, image, Layout(2, 2))
    worst = max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in zip(tiled, plain, strict=True))
    assert tiled[0].shape == (1, 16, *SIZES[bands])
    assert worst < 1e-10 if interaction.startswith("exact") else worst > 1e-2


# --- Hyperspectral data sets, in their own layouts, from the command line


def made_cube(height, width, bands, classes, seed):
    """A cube of smooth spectra, one a class, in vertical stripes: (bands, height, width), labels 1 to classes."""
    draw = np.random.default_rng(seed)
    label = 1 + np.arange(width) * classes // width * np.ones((height, 1), int)
    wave = np.arange(bands) / bands
    spectra = np.stack([1 + 0.5 * np.sin(2 * np.pi * (wave * (1 + k % 4) + k / classes)) for k in range(classes)])
    cube = 2000 * spectra[label - 1].transpose(2, 0, 1) + draw.normal(0, 60, (bands, height, width))
    label[:2] = 0
    return cube.clip(0).astype(np.uint16), label.astype(np.uint8)


def indian_pines(root):
    cube, label = made_cube(145, 145, 200, 4, 0)
    np.save(root / "Indian_pines_corrected.npy", cube.transpose(1, 2, 0))
    np.save(root / "Indian_pines_gt.npy", label)
    return {"south": label[112:145]}


def whu_ohs(root):
    expected = {}
    for seed, (part, name) in enumerate((("tr", "O1_0001"), ("tr", "O1_0002"), ("val", "S1_0001"), ("ts", "T8_0001"))):
        cube, label = made_cube(96, 128, 32, 4, seed)
        for folder, pixels in (("image", cube.astype(np.int16)), ("label", label)):
            (root / part / folder).mkdir(parents=True, exist_ok=True)
            write_raster(root / part / folder / f"{name}.tif", pixels)
        expected[f"{part}/{name}"] = label
    return {"ts/T8_0001": expected["ts/T8_0001"]}


@pytest.mark.parametrize(
    ("make", "bands", "options"),
    [
        (indian_pines, 200, ["--interaction", "exact+spim", "--spatial", "2", "--in-process"]),
        (whu_ohs, 32, ["--interaction", "spim", "--loss", "ce"]),
    ],
)
def test_hyperspectral_from_the_command_line(make, bands, options, tmp_path, capsys):
    """Trained, labelled in crops and whole, scored, in the data set's own layout, classes and numbers."""
    truth = make(tmp_path)
    data = ["--data", make.__name__, "--root", str(tmp_path)]
    run = ["--crop", "32", "--val-window", "0", "--steps", "40", "--val-every", "5", "--lr", "2e-3"]
    out = tmp_path / "run"
    assert main(["train", *data, *TINY, *run, *options, "--out", str(out)]) == 0
    trained = load_checkpoint(out / "best.ckpt")
    assert len(trained.bands) == bands and trained.network.bands == bands and trained.mean.shape == (bands,)
    predict = ["predict", *data, "--checkpoint", str(out / "best.ckpt"), "--output"]
    assert main([*predict, str(tmp_path / "crops")]) == 0
    assert main([*predict, str(tmp_path / "whole"), "--whole"]) == 0
    manifest = load_manifest(make.__name__)
    for name, label in truth.items():
        for folder in ("crops", "whole"):
            with rasterio.open(tmp_path / folder / f"{name}.tif") as file:
                labels, legend, nodata = file.read(1), file.tags(), file.nodata
            assert labels.shape == label.shape and nodata == 0
            assert set(np.unique(labels)) <= {c.value for c in manifest.classes}
            assert legend["class_2"] == manifest.classes[1].name
        scored = label > 0
        assert np.mean((labels == label)[scored]) > 0.5  # four classes, so chance is 0.25
    paths = [str(path) for path in (tmp_path / "whole").rglob("*.tif")]
    assert main(["evaluate", *paths, *data, "--json", str(tmp_path / "scores.json")]) == 0
    metrics = json.loads((tmp_path / "scores.json").read_text())["metrics"]["pooled"]
    assert metrics["pixels"] == scored.sum() and metrics["overall_accuracy"] == np.mean((labels == label)[scored])


def test_the_parts_of_indian_pines_lie_apart(tmp_path):
    """Each part holds its own pixels, and between two lie 4 px that none reads."""
    indian_pines(tmp_path)
    manifest = load_manifest("indian_pines")
    (whole,) = manifest.scenes("all", tmp_path)
    taken = np.zeros((whole.height, whole.width), int)
    for split in ("train", "val", "test"):
        (scene,) = manifest.scenes(split, tmp_path)
        window = manifest.parts[scene.name].window
        assert np.array_equal(scene.read(), whole.read(window)) and min(scene.height, scene.width) >= 32
        beyond = Window(-4, 0, scene.height + 8, scene.width)
        assert (scene.read_label(beyond)[[0, -1]] == IGNORE_INDEX).all() and not scene.read(beyond)[:, [0, -1]].any()
        taken[window.row : window.row + window.height] += 1
    assert taken.max() == 1 and (np.flatnonzero(taken[:, 0] == 0) == [*range(72, 76), *range(108, 112)]).all()


# --- A single class


@pytest.fixture(scope="module")
def land(tmp_path_factory):
    """Scenes of the synthetic data set's names, small ones with water."""
    root = tmp_path_factory.mktemp("land")
    seeds = {"train_1": 9, "train_2": 11, "train_3": 4, "val_1": 10, "test_1": 5, "test_2": 8}
    for name, seed in seeds.items():
        image, label = render(seed, Window(0, 0, 128, 160))
        label[:4] = 0
        write_raster(root / f"{name}_image.tif", image)
        write_raster(root / f"{name}_label.tif", label)
    return root


@pytest.fixture(scope="module")
def water(land, tmp_path_factory):
    """Maps of water, by the commands themselves; the last is whole."""
    out = tmp_path_factory.mktemp("water")
    data = ["--data", "synthetic", "--root", str(land), "--single-class", "water"]
    run = [*TINY, "--interaction", "spim", "--spatial", "2", "--in-process", "--crop", "64", "--val-window", "128"]
    assert main(["train", *data, *run, "--steps", "10", "--val-every", "10", "--lr", "5e-3", "--out", str(out)]) == 0
    predict = ["predict", *data, "--checkpoint", str(out / "best.ckpt"), "--output"]
    assert main([*predict, str(out / "crops")]) == 0
    assert main([*predict, str(out / "whole"), "--whole"]) == 0
    return out


def test_one_class_is_learnt_and_labelled_as_such(water):
    record = RunRecord.read(water / "record.json")
    assert record.configuration["single_class"] == ["water"] and record.configuration["data"] == "synthetic"
    trained = load_checkpoint(water / "best.ckpt")
    blue = load_manifest("synthetic").classes[0].color
    assert [(c.name, c.value) for c in trained.classes] == [("background", 0), ("water", 1)]
    assert trained.classes[1].color == blue
    for folder in ("crops", "whole"):
        with rasterio.open(water / folder / "test_1.tif") as file:
            assert file.nodata == IGNORE_INDEX and set(np.unique(file.read(1))) <= {0, 1}
            assert file.tags()["class_0"] == "background" and file.tags()["class_1"] == "water"
            assert file.colormap(1)[1][:3] == blue and "class_2" not in file.tags()


def iou_of_water(paths, land):
    """From the rasters themselves: water is 1, what is 0 in the label is not scored."""
    both = either = 0
    for path in paths:
        with rasterio.open(path) as guess, rasterio.open(land / f"{path.stem}_label.tif") as label:
            is_water, found = label.read(1) == 1, (guess.read(1) == 1) & (label.read(1) > 0)
        both, either = both + (is_water & found).sum(), either + (is_water | found).sum()
    return both / either


def test_its_score_is_its_own_iou(water, land, tmp_path, capsys):
    """As GLH-Water is reported; the background, which is easy, enters no mean."""
    paths = sorted((water / "crops").glob("*.tif"))
    data = ["--data", "synthetic", "--root", str(land)]
    command = ["evaluate", *map(str, paths), *data, "--json", str(tmp_path / "scores.json")]
    assert main([*command, "--single-class", "water"]) == 0
    shown = capsys.readouterr().out
    assert "mean IoU of water alone" in shown and "2 classes" not in shown
    metrics = json.loads((tmp_path / "scores.json").read_text())["metrics"]["pooled"]
    expected = iou_of_water(paths, land)
    assert metrics["mean_over"] == ["water"] and metrics["mean_iou"] == metrics["iou"]["water"]
    assert metrics["iou"]["water"] == pytest.approx(expected)
    # The mean with the background is another number, to be had by asking for it.
    assert main([*command, "--single-class", "water", "--classes", "background", "water"]) == 0
    assert "mean IoU of 2 classes" in capsys.readouterr().out
    two = json.loads((tmp_path / "scores.json").read_text())["metrics"]["pooled"]["mean_iou"]
    assert abs(two - expected) > 0.01


def test_a_whole_scene_says_its_own_iou(water, land, tmp_path, capsys):
    data = ["--data", "synthetic", "--root", str(land), "--single-class", "water"]
    predict = ["predict", *data, "--checkpoint", str(water / "best.ckpt"), "--whole", "--output", str(tmp_path)]
    assert main(predict) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "test_1.tif" in line]
    assert f"IoU of water {iou_of_water([water / 'whole' / 'test_1.tif'], land):.3f}" in lines[0]


def test_several_classes_are_merged(land, tmp_path, capsys):
    data = ["--data", "synthetic", "--root", str(land), "--single-class", "road", "building"]
    short = [*TINY, "--interaction", "exact", "--crop", "64", "--val-window", "128", "--steps", "1", "--val-every", "1"]
    assert main(["train", *data, *short, "--out", str(tmp_path)]) == 0
    assert load_checkpoint(tmp_path / "best.ckpt").classes[1].name == "road or building"
    assert "over background and the single class" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train --data synthetic --root LAND --single-class sea", r"has no class \['sea'\]; choose from water, road"),
        ("predict MAP --checkpoint CKPT --single-class water", "names classes of --data"),
        ("predict --data synthetic --root LAND --checkpoint CKPT --single-class road", "not road alone"),
        ("evaluate MAP --label MAP --single-class water", "names classes of --data"),
        (
            "evaluate MAP --data synthetic --root LAND",
            "shows background, water, but scene test_1 is labelled as",
        ),
        ("evaluate MAP --data synthetic --root LAND --single-class road", "labelled as background, road"),
    ],
)
def test_what_does_not_go_together_is_refused(command, message, water, land, tmp_path, capsys):
    names = {"LAND": land, "MAP": water / "crops" / "test_1.tif", "CKPT": water / "best.ckpt"}
    words = [str(names.get(word, word)) for word in command.split()]
    out = {"train": ["--out", str(tmp_path)], "predict": ["--output", str(tmp_path)], "evaluate": []}[words[0]]
    assert main([*words, *out]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("rsseglab: ") and re.search(message, error)
