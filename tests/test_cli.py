"""The commands as a user types them: results, and one line with cause and remedy where something is wrong."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from made import make_scene, write_raster

from rsseglab.cli import main
from rsseglab.experiments.ablate import page as ablation_page
from rsseglab.training.checkpoint import load_checkpoint
from rsseglab.training.records import RunRecord

MANIFEST = """
name = "tiny"
title = "A tiny data set"
page = "none"
get = "made by the test"
bands = ["red", "green", "blue"]
ignore_values = [0]
classes = [
    { name = "water", value = 1, color = [0, 114, 178] },
    { name = "land", value = 2, color = [230, 159, 0] },
    { name = "road", value = 5, color = [0, 158, 115] },
]
traps = []
[layout]
image = "{id}_image.tif"
label = "{id}_label.tif"
[splits]
train = ["a", "b"]
val = ["c"]
test = ["d", "e"]
"""
SMALL = ["--encoder", "mobilenetv3_small_050", "--crop", "64", "--batch-size", "2", "--val-window", "64"]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    for seed, name in enumerate("abcde"):
        make_scene(folder, name, 96 + 7 * seed, 130 - 9 * seed, seed)
    (folder / "tiny.toml").write_text(MANIFEST)
    return folder


def options(data):
    return ["--data", str(data / "tiny.toml"), "--root", str(data)]


@pytest.fixture(scope="session")
def run(data, tmp_path_factory):
    """A trained network, by the command itself."""
    out = tmp_path_factory.mktemp("run")
    assert main(["train", *options(data), *SMALL, "--steps", "30", "--lr", "3e-3", "--out", str(out)]) == 0
    return out


def refused(capsys, *arguments):
    assert main([str(a) for a in arguments]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("rsseglab: ")
    return message


def test_train_predict_evaluate(data, run, tmp_path, capsys):
    record = RunRecord.read(run / "record.json")
    assert record.configuration["data"] == "tiny" and record.configuration["steps"] == 30
    checkpoint = ["--checkpoint", str(run / "best.ckpt")]
    assert main(["predict", *options(data), *checkpoint, "--output", str(tmp_path), "--window", "64"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d.tif", "e.tif"]
    out = ["--json", str(tmp_path / "scores.json")]
    assert main(["evaluate", str(tmp_path / "d.tif"), str(tmp_path / "e.tif"), *options(data), *out]) == 0
    shown = capsys.readouterr().out
    assert "IoU water" in shown and "pooled" in shown and "seam error" in shown
    scores = json.loads((tmp_path / "scores.json").read_text())["metrics"]
    assert scores["pooled"]["mean_iou"] > 0.5 and set(scores["scenes"]) == {"d", "e"}
    # The same without a manifest: the raster itself names its classes.
    assert main(["evaluate", str(tmp_path / "d.tif"), "--label", str(data / "d_label.tif")]) == 0
    assert f"{scores['scenes']['d']['mean_iou']:.3f}" in capsys.readouterr().out
    # A mean over chosen classes is another number.
    assert main(["evaluate", str(tmp_path / "d.tif"), *options(data), "--classes", "road"]) == 0
    assert "mean IoU of road alone" in capsys.readouterr().out


def test_evaluate_by_a_published_protocol(data, tmp_path, capsys):
    """All of a scene called land: what lies on its strip without a label is wrong by FCtL's count alone."""
    with rasterio.open(data / "d_label.tif") as file:
        label, profile = file.read(1), file.profile
    write_raster(tmp_path / "d.tif", np.full_like(label, 2), transform=profile["transform"])
    command = ["evaluate", str(tmp_path / "d.tif"), *options(data), "--json", str(tmp_path / "s.json")]
    assert main([*command, "--protocol", "fctl"]) == 0
    shown = capsys.readouterr().out
    record = RunRecord.read(tmp_path / "s.json")
    assert record.configuration["protocol"] == "fctl"
    land, strip = int((label == 2).sum()), int((label == 0).sum())
    for scores in (record.metrics["pooled"], record.metrics["scenes"]["d"]):
        assert scores["iou"]["land"] == land / (label.size - strip)
        published = scores["protocols"]["fctl"]
        assert published["iou"]["land"] == land / label.size and published["mean_iou"] == land / label.size / 3
        assert published["explanation"] in shown and f"({strip:,} here)" in shown
    lines = [line.split() for line in shown.splitlines()]
    ours, theirs = land / (label.size - strip), land / label.size
    assert ["honest", "fctl"] in lines and ["IoU", "land", f"{ours:.3f}", f"{theirs:.3f}"] in lines
    assert ["mean", "IoU", f"{ours / 3:.3f}", f"{theirs / 3:.3f}"] in lines
    # Without it, the record is what it was.
    assert main(command) == 0
    record = RunRecord.read(tmp_path / "s.json")
    assert "protocol" not in record.configuration and "protocols" not in record.metrics["pooled"]
    assert (
        main([*command, "--protocol", "honest"]) == 0
        and "protocols" not in RunRecord.read(tmp_path / "s.json").metrics["pooled"]
    )
    assert "there is no protocol 'glnet'; choose from fctl, geoseg" in refused(capsys, *command, "--protocol", "glnet")


def isprs(folder):
    """A scene of 50 x 70 px with the classes of Vaihingen, all building but a paved corner, and a map of it: paved."""
    colors = "[[255, 0, 0], [255, 255, 255], [0, 0, 255]]"
    classes = zip(("clutter", "impervious surface", "building"), json.loads(colors), strict=True)
    text = "\n".join(f'    {{ name = "{name}", value = {k}, color = {c} }},' for k, (name, c) in enumerate(classes))
    head, tail = MANIFEST.split("classes = [")[0], MANIFEST.split("]\ntraps")[1]
    (folder / "isprs.toml").write_text(f"{head.replace('[0]', '[]')}classes = [\n{text}\n]\ntraps{tail}")
    label = np.full((50, 70), 2, np.uint8)
    label[:20, :30] = 1
    write_raster(folder / "d_image.tif", np.full((3, 50, 70), 9, np.uint8))
    write_raster(folder / "d_label.tif", label)
    write_raster(folder / "d.tif", np.full((50, 70), 1, np.uint8))
    return label


def test_evaluate_by_geoseg(tmp_path, capsys):
    """Beside a scene of 50 x 70 px there are 1024^2 - 3500 px of padding: all right, or as they were predicted."""
    isprs(tmp_path)
    command = ["evaluate", str(tmp_path / "d.tif"), "--data", str(tmp_path / "isprs.toml"), "--root", str(tmp_path)]
    command += ["--json", str(tmp_path / "s.json"), "--protocol", "geoseg"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    record = RunRecord.read(tmp_path / "s.json")
    scores = record.metrics["pooled"]
    published, padding = scores["protocols"]["geoseg"], 1024**2 - 3500
    assert scores["iou"]["impervious surface"] == 600 / 3500 and scores["overall_accuracy"] == 600 / 3500
    assert published["iou"]["impervious surface"] == (600 + padding) / 1024**2 == published["overall_accuracy"]
    assert published["mean_over"] == ["impervious surface", "building"] and published["explanation"] in shown
    assert "no_boundary_px" not in record.configuration
    f1 = 2 * (600 + padding) / (1024**2 + 600 + padding)
    lines = [line.split() for line in shown.splitlines()]
    assert ["F1", "impervious", "surface", f"{2 * 600 / 4100:.3f}", f"{f1:.3f}"] in lines
    assert ["overall", "accuracy", f"{600 / 3500:.3f}", f"{(600 + padding) / 1024**2:.3f}"] in lines
    # A map of the padded scene says itself what lies there: here, building, which is wrong.
    padded = np.full((1024, 1024), 2, np.uint8)
    padded[:50, :70] = 1
    write_raster(tmp_path / "d.tif", padded)
    assert main(command) == 0
    assert "(as predicted)" in capsys.readouterr().out
    again = RunRecord.read(tmp_path / "s.json").metrics["pooled"]
    assert again["iou"] == scores["iou"]
    assert again["protocols"]["geoseg"]["iou"]["impervious surface"] == 600 / 1024**2
    assert again["protocols"]["geoseg"]["iou"]["building"] == 0


def test_evaluate_without_boundary(tmp_path, capsys):
    label = isprs(tmp_path)
    command = ["evaluate", str(tmp_path / "d.tif"), "--data", str(tmp_path / "isprs.toml"), "--root", str(tmp_path)]
    assert main([*command, "--json", str(tmp_path / "s.json"), "--no-boundary", "3"]) == 0
    record = RunRecord.read(tmp_path / "s.json")
    corner = 17 * 27  # what is farther than 3 px from the paved corner's two borders
    beside = sum(1 for row, col in np.argwhere(label == 2) if min_distance(row, col) > 3)
    assert record.metrics["pooled"]["pixels"] == corner + beside
    assert record.metrics["pooled"]["iou"]["impervious surface"] == corner / (corner + beside)
    assert record.configuration["no_boundary_px"] == 3
    assert "give 0 to 32" in refused(capsys, *command, "--no-boundary", "99")


def min_distance(row, col):
    """From a pixel to the nearest of the corner of 20 x 30 px."""
    return float(np.hypot(max(row - 19, 0), max(col - 29, 0)))


def test_given_options_win_over_a_preset(data, tmp_path):
    given = ["--steps", "2", "--crop", "64", "--batch-size", "1", "--val-window", "64", "--val-every", "2"]
    out = ["--out", str(tmp_path / "r"), "--encoder", "test_resnet"]
    assert main(["train", *options(data), *given, *out, "--preset", "rest-stage1"]) == 0
    configuration = RunRecord.read(tmp_path / "r" / "record.json").configuration
    assert (configuration["steps"], configuration["crop_px"], configuration["batch_size"]) == (2, 64, 1)
    assert (configuration["lr"], configuration["schedule"], configuration["warmup_steps"]) == (6e-5, "linear", 1500)


def test_what_would_do_nothing_is_refused(data, capsys):
    assert "--checkpointing is REST's" in refused(capsys, "train", *options(data), "--checkpointing")
    assert "unknown preset 'rest'" in refused(capsys, "train", *options(data), "--preset", "rest")


def test_rest_from_the_command_line(data, tmp_path, capsys):
    rest = ["--interaction", "exact+spim", "--strides", "16", "--spatial", "2x2", "--in-process"]
    small = ["--encoder", "test_resnet", "--steps", "2", "--crop", "64", "--batch-size", "1", "--val-window", "64"]
    assert main(["train", *options(data), *rest, *small, "--out", str(tmp_path / "r")]) == 0
    checkpoint = ["--checkpoint", str(tmp_path / "r" / "best.ckpt")]
    assert main(["predict", *options(data), *checkpoint, "--whole", "--output", str(tmp_path / "p")]) == 0
    assert "mean IoU" in capsys.readouterr().out
    assert len(list((tmp_path / "p").glob("*.tif"))) == 2


def test_predict_files_and_folders(data, run, tmp_path):
    checkpoint = ["--checkpoint", str(run / "best.ckpt"), "--window", "64"]
    images = tmp_path / "images"
    images.mkdir()
    for name in "ab":
        (images / f"{name}.tif").write_bytes((data / f"{name}_image.tif").read_bytes())
    assert main(["predict", str(images / "a.tif"), *checkpoint, "--output", str(tmp_path / "one.tif")]) == 0
    assert main(["predict", str(images), *checkpoint, "--output", str(tmp_path / "all"), "--probabilities"]) == 0
    written = [str(p.relative_to(tmp_path / "all")) for p in (tmp_path / "all").rglob("*.tif")]
    assert sorted(written) == ["a.tif", "b.tif", "probabilities/a.tif", "probabilities/b.tif"]
    with rasterio.open(tmp_path / "one.tif") as one, rasterio.open(tmp_path / "all" / "a.tif") as other:
        assert np.array_equal(one.read(), other.read()) and str(one.crs) == "EPSG:32633"


def test_one_scene_by_name_whole_and_streamed(data, run, tmp_path, capsys):
    """A name of --data, whatever its split; both ways give the same file."""
    command = ["predict", "b", *options(data), "--checkpoint", str(run / "best.ckpt")]
    ways = [tmp_path / "--whole", tmp_path / "--stream"]
    for way in ways:
        assert main([*command, way.name, "--output", str(way)]) == 0
    whole, streamed = (rasterio.open(way / "b.tif").read() for way in ways)
    assert np.array_equal(whole, streamed)
    assert "did you mean" in refused(capsys, *command[:1], "bb", *command[2:])


def test_quickstart_leaves_its_three_files(data, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("RSSEGLAB_WEIGHTS", raising=False)
    monkeypatch.setattr("rsseglab.experiments.quickstart.CROP_PX", 64)
    assert main(["quickstart", *options(data), "--steps", "2", "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    for row in ("IoU water", "mean IoU of 3 classes", "seam error", "seconds", "peak MiB", "majority class"):
        assert row in shown
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    assert "errors of overlap 0.5" in (tmp_path / "swipe.html").read_text()
    record = RunRecord.read(tmp_path / "record.json")
    assert set(record.metrics["pooled"]) >= {"overlap 0", "overlap 0.5", "majority class"}
    with rasterio.open(tmp_path / "prediction.tif") as file:
        assert (file.width, file.height, str(file.crs)) == (103, 117, "EPSG:32633")


def test_data_commands(capsys):
    assert main(["data", "list"]) == 0
    assert "deepglobe" in capsys.readouterr().out
    assert main(["data", "show", "dubai"]) == 0
    assert "tile7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "dubay"], "dubai"),
        (["train", "--crop", "64", "--encoder", "resnet81"], "unknown encoder 'resnet81'; the nearest names are"),
        (["train", "--crop", "64", "--decoder", "unett"], "unknown decoder 'unett'; the nearest names are unet"),
        (["train", "--crop", "2048"], "is larger than scene"),
        (["train", "--crop", "100"], "must be a multiple of 32"),
        (["predict", "--checkpoint", "none.ckpt", "x.tif"], "no checkpoint at none.ckpt"),
        (["evaluate", "none.tif"], "either --data NAME, or --label"),
    ],
)
def test_wrong_arguments(data, tmp_path, capsys, arguments, message):
    if arguments[0] == "train":
        arguments = [*arguments, "--out", str(tmp_path / "run"), "--steps", "1"]
        if "--data" not in arguments:
            arguments += options(data)
    assert message in refused(capsys, *arguments)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_wrong_files(data, run, tmp_path, capsys):
    predict = ["predict", "--checkpoint", run / "best.ckpt", "--output", tmp_path / "p.tif"]
    assert "does not exist" in refused(capsys, *predict, tmp_path / "none.tif")
    four = write_raster(tmp_path / "five.tif", np.ones((5, 80, 80), np.uint8))
    assert "has 5 bands but the checkpoint was trained on 3 (red, green, blue)" in refused(capsys, *predict, four)
    cut = tmp_path / "cut.tif"
    cut.write_bytes((data / "a_image.tif").read_bytes()[:15_000])
    assert "cut.tif" in refused(capsys, *predict, cut)
    nan = write_raster(tmp_path / "nan.tif", np.full((3, 80, 80), np.nan, np.float32))
    assert "NaN or infinite values" in refused(capsys, *predict, nan)
    assert "no checkpoint" in refused(capsys, "predict", data / "a_image.tif", "--checkpoint", tmp_path / "none.ckpt")
    (tmp_path / "no.ckpt").write_text("x")
    assert "is not a checkpoint of rsseglab" in refused(capsys, "predict", cut, "--checkpoint", tmp_path / "no.ckpt")
    png = tmp_path / "cut.png"
    rasterio.shutil.copy(str(data / "a_image.tif"), str(png), driver="PNG")
    png.write_bytes(png.read_bytes()[: png.stat().st_size * 95 // 100])
    assert "is damaged (it is cut short)" in refused(capsys, *predict, png)
    own = tmp_path / "own.tif"
    own.write_bytes((data / "a_image.tif").read_bytes())
    assert "would be overwritten by its own labels" in refused(capsys, *predict[:3], own, "--output", own)
    assert own.read_bytes() == (data / "a_image.tif").read_bytes()
    own.unlink()
    assert "overlap is 1.0" in refused(capsys, *predict, data / "a_image.tif", "--overlap", "1")
    assert "there is no device 'warp'" in refused(capsys, *predict, data / "a_image.tif", "--device", "warp")
    (tmp_path / "file").write_text("")
    out = ["--output", tmp_path / "file" / "x"]
    assert "cannot be written" in refused(capsys, *predict[:3], data / "a_image.tif", *out)
    (tmp_path / "empty").mkdir()
    assert "no raster in" in refused(capsys, *predict, tmp_path / "empty")
    assert not (tmp_path / "p.tif").exists() and not list(tmp_path.glob("*.part"))


def test_a_scene_without_any_label(data, run, tmp_path, capsys):
    write_raster(tmp_path / "d_label.tif", np.zeros((117, 103), np.uint8))
    main(["predict", str(data / "d_image.tif"), "--checkpoint", str(run / "best.ckpt"), "--output",
          str(tmp_path / "d.tif"), "--window", "64"])  # fmt: skip
    message = refused(capsys, "evaluate", tmp_path / "d.tif", "--label", tmp_path / "d_label.tif")
    assert "no labelled pixel" in message


def test_identifiers_with_folders(data, run, tmp_path, capsys):
    """As in LoveDA: Train/Urban/1366."""
    for folder in ("north", "south"):
        (tmp_path / folder).mkdir()
        for part in ("image", "label"):
            (tmp_path / folder / f"x_{part}.tif").write_bytes((data / f"a_{part}.tif").read_bytes())
    text = MANIFEST.replace("{id}_", "{area}/{id}_").replace('"d", "e"', '"north/x", "south/x"')
    (tmp_path / "nested.toml").write_text(text.replace('"a", "b"', '"y/a"').replace('"c"', '"y/c"'))
    nested = ["--data", str(tmp_path / "nested.toml")]  # its files lie beside it
    out = tmp_path / "out"
    assert main(["predict", *nested, "--checkpoint", str(run / "best.ckpt"), "--output", str(out)]) == 0
    predictions = [str(out / area / "x.tif") for area in ("north", "south")]
    assert main(["evaluate", *predictions, *nested]) == 0
    assert "south/x" in capsys.readouterr().out


def test_a_class_that_the_label_file_calls_nodata_is_scored(data, run, tmp_path, capsys):
    prediction = tmp_path / "d.tif"
    predict = ["predict", str(data / "d_image.tif"), "--checkpoint", str(run / "best.ckpt")]
    assert main([*predict, "--output", str(prediction)]) == 0
    rasterio.shutil.copy(str(data / "d_label.tif"), str(tmp_path / "l.tif"), driver="GTiff", nodata=2)
    tables = []
    for label in (data / "d_label.tif", tmp_path / "l.tif"):
        capsys.readouterr()
        assert main(["evaluate", str(prediction), "--label", str(label)]) == 0
        tables.append(capsys.readouterr().out)
    assert tables[0] == tables[1]


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs a system with signals (Linux, macOS)")
def test_ctrl_c_is_exit_code_130(data, tmp_path):
    command = [sys.executable, "-m", "rsseglab.cli", "train", *options(data), *SMALL, "--steps", "100000"]
    command += ["--out", str(tmp_path), "--val-every", "4"]
    hears = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what a shell runs in the background is deaf to it
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=hears)
    until = time.monotonic() + 120
    while not (tmp_path / "last.ckpt").exists() and time.monotonic() < until:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted" in errors.splitlines()[-1] and "Traceback" not in errors


FCTL = ["--method", "fctl", "--encoder", "test_resnet", "--decoder", "fcn", "--steps", "2", "--crop", "40"]
QUICKLY = ["--batch-size", "2", "--val-every", "2"]


def test_patches_with_contexts_from_the_command_line(data, tmp_path, capsys):
    """FCtL trains and labels; a refinement learns from its masks and mends them."""
    runs = {name: str(tmp_path / name / "best.ckpt") for name in ("fctl", "refined")}
    train = ["train", *options(data), *QUICKLY]
    assert main([*train, *FCTL, "--contexts", "1", "2", "scene", "--out", str(tmp_path / "fctl")]) == 0
    assert load_checkpoint(runs["fctl"]).network.contexts == (1, 2, "scene")
    refine = ["--method", "refinement", "--segmenter", runs["fctl"], "--steps", "2", "--crop", "48", "--loss", "focal"]
    assert main([*train, *refine, "--out", str(tmp_path / "refined")]) == 0
    for more in ([], ["--refine", runs["refined"]], ["--merge", "probabilities", "--blend", "flat"]):
        out = tmp_path / f"p{len(more)}"
        assert main(["predict", *options(data), "--checkpoint", runs["fctl"], *more, "--output", str(out)]) == 0
        assert len(list(out.glob("*.tif"))) == 2
        assert main(["evaluate", *map(str, out.glob("*.tif")), *options(data)]) == 0
    assert "mean IoU" in capsys.readouterr().out
    alone = refused(capsys, "predict", *options(data), "--checkpoint", runs["refined"], "--output", tmp_path / "x")
    assert "give that as --checkpoint, this as --refine" in alone
    whole = refused(capsys, "predict", *options(data), "--checkpoint", runs["fctl"], "--whole")
    assert "labels patches" in whole
    stream = ["--stream", "--merge", "probabilities"]
    assert "leave out --window, --merge" in refused(
        capsys, "predict", *options(data), "--checkpoint", "a.ckpt", *stream
    )
    no = refused(capsys, "predict", *options(data), "--checkpoint", runs["fctl"], "--refine", runs["fctl"])
    assert "refines no masks" in no


def test_ablate_class_embeddings_from_the_command_line(tmp_path, capsys):
    methods = ["all", "attention", "layers-0"]
    out = ["--out", str(tmp_path)]
    assert main(["ablate", "bicor_seg", "--quick", "--methods", *methods, *out]) == 0
    shown = capsys.readouterr().out
    assert "cross attention, map losses" in shown and "detectable" in shown
    shutil.copytree(tmp_path / "records", tmp_path / "bicor_seg" / "synthetic")
    page = ablation_page(tmp_path / "bicor_seg")
    assert "BiCoR-Seg in parts" in page and "| no refinement |" in page and "paper (seed 0)" in page


@pytest.mark.slow
def test_ablate_points_from_the_command_line(tmp_path, capsys):
    methods = ["points", "superpixels", "soft", "dense"]
    if not os.environ.get("RSSEGLAB_WEIGHTS"):
        methods.remove("soft")  # grows by Segment Anything
    assert main(["ablate", "penet", "--quick", "--methods", *methods, "--out", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "superpixels for SAM" in shown and "of dense, %" in shown and "100" in shown
    assert {"clicks", "superpixels"} <= {p.name for p in (tmp_path / "labels").iterdir()}
    shutil.copytree(tmp_path / "records", tmp_path / "penet" / "synthetic")
    page = ablation_page(tmp_path / "penet")
    assert "PENet in parts" in page and "| points alone |" in page and "penet (seed 0)" in page


def test_class_embeddings_from_the_command_line(data, tmp_path, capsys):
    """BiCoR-Seg trains, in tiles too; it labels by crops, whole and streamed, the last two alike."""
    method = ["--method", "bicor_seg", "--encoder", "test_resnet", "--layers", "1", "--top-k", "0.1"]
    train = ["train", *options(data), *QUICKLY, "--steps", "2", "--crop", "64", "--val-window", "64", *method]
    runs = {name: tmp_path / name for name in ("plain", "tiles")}
    assert main([*train, "--out", str(runs["plain"])]) == 0
    tiles = ["--spatial", "2", "--in-process", "--reading", "paper", "--refine-by", "hbis"]
    assert main([*train, *tiles, "--out", str(runs["tiles"])]) == 0
    checkpoint = ["--checkpoint", str(runs["plain"] / "best.ckpt")]
    for way in ([], ["--whole"], ["--stream"]):
        out = tmp_path / f"labels{''.join(way)}"
        assert main(["predict", *options(data), *checkpoint, *way, "--output", str(out)]) == 0
    whole, streamed = (rasterio.open(tmp_path / f"labels{way}" / "d.tif").read() for way in ("--whole", "--stream"))
    assert np.array_equal(whole, streamed)
    capsys.readouterr()
    assert "leave out --loss" in refused(capsys, *train, "--loss", "ce")
    assert "--decoder is for networks that take any" in refused(capsys, *train, "--decoder", "fpn")
    assert "--top-k is of HBIS" in refused(capsys, *train, "--refine-by", "attention")
    assert "--top-k is BiCoR-Seg's" in refused(capsys, "train", *options(data), "--top-k", "0.1")


def test_refinement_of_one_class_and_of_another_segmenter(data, tmp_path, capsys):
    """The scenes' own classes are not the networks'; masks of two segmenters are never mixed up."""
    train, one = ["train", *options(data), *QUICKLY], ["--single-class", "water"]
    for name, more in (("one", one), ("all", []), ("more", ["--seed", "1"])):
        assert main([*train, *FCTL, *more, "--out", str(tmp_path / name)]) == 0
    runs = {name: tmp_path / name / "best.ckpt" for name in ("one", "all", "more")}

    def refine(segmenter, *more):
        what = ["--method", "refinement", "--segmenter", segmenter, "--steps", "2", "--crop", "48"]
        return [*train, *what, *more, "--out", tmp_path / "refined"]

    assert "labels background, water" in refused(capsys, *refine(runs["one"]))
    assert "labels water, land, road" in refused(capsys, *refine(runs["all"], *one))
    assert main([str(a) for a in refine(runs["one"], *one)]) == 0
    pair = ["--checkpoint", runs["one"], "--refine", tmp_path / "refined" / "best.ckpt"]
    for more in ([], one):
        assert main([str(a) for a in ("predict", *options(data), *more, *pair, "--output", tmp_path / "p")]) == 0
    shutil.rmtree(tmp_path / "refined")
    assert main([str(a) for a in refine(runs["all"])]) == 0
    masks = {path: path.stat().st_mtime_ns for path in tmp_path.glob("refined/masks_*/*.tif")}
    assert len(masks) == 3
    assert "holds a run already" in refused(capsys, *refine(runs["all"]))
    assert "resume it with its own settings and data" in refused(capsys, *refine(runs["more"], "--resume"))
    assert main([str(a) for a in refine(runs["all"], "--resume")]) == 0
    assert masks == {path: path.stat().st_mtime_ns for path in masks}


def test_options_of_patches_that_would_do_nothing_are_refused(data, tmp_path, capsys):
    train = ["train", *options(data), *QUICKLY, "--out", tmp_path / "r"]
    assert "--whiten is FCtL's; give --method fctl" in refused(capsys, *train, "--whiten")
    assert "--contexts is for patches with contexts" in refused(capsys, *train, "--contexts", "2")
    assert "is no scale of a context" in refused(capsys, *train, *FCTL, "--contexts", "wide")
    assert "smaller than its patch" in refused(capsys, *train, *FCTL, "--contexts", "0.5")
    assert "method rest needs to know" in refused(capsys, *train, "--method", "rest")
    assert "has no tiles" in refused(capsys, *train, *FCTL, "--interaction", "exact")
    assert "--segmenter" in refused(capsys, *train, "--method", "refinement")
    assert "mends no masks" in refused(capsys, *train, *FCTL, "--segmenter", tmp_path / "a.ckpt")
    assert "unknown method 'glnet'" in refused(capsys, *train, "--method", "glnet")
    assert "leave out --spatial" in refused(capsys, *train, *FCTL, "--spatial", "2", "--in-process")
    assert "none of a whole scene" in refused(capsys, *train, *FCTL, "--crop", "0", "--batch-size", "1")
    assert "leave out --spatial, --in-process" in refused(capsys, *train, *FCTL, "--in-process")
    assert "--val-window is for methods without patches" in refused(capsys, *train, *FCTL, "--val-window", "64")
    mend = ["--method", "refinement", "--segmenter", tmp_path / "a.ckpt"]
    assert "--encoder is for networks on an encoder" in refused(capsys, *train, *mend, "--encoder", "test_resnet")
    published = ["--method", "fctl", "--encoder", "vgg16", "--decoder", "fpn"]
    assert "leave out --decoder" in refused(capsys, *train, *published)


def test_the_published_presets_of_fctl(data, tmp_path):
    """All that is published, but what is too large for a test."""
    small = ["--encoder", "test_resnet", "--weights", "none", "--steps", "2", "--val-every", "2", "--crop", "41"]
    out = ["--out", str(tmp_path / "r"), "--batch-size", "1"]
    assert main(["train", *options(data), *small, *out, "--preset", "fctl-inria"]) == 0
    configuration = RunRecord.read(tmp_path / "r" / "record.json").configuration
    assert (configuration["loss"], configuration["lr"], configuration["schedule"]) == ("focal", 5e-5, "poly")
    assert configuration["options"]["stages"] == "published" and configuration["options"]["contexts"] == [1, 2, 3]
    assert (tmp_path / "r" / "context_3" / "best.ckpt").is_file()


@pytest.mark.slow
def test_ablate_from_the_command_line(tmp_path, capsys):
    methods = ["contexts-1-2-3", "contexts-none", "refined-none"]
    out = ["--out", str(tmp_path)]
    assert main(["ablate", "fctl", "--quick", "--methods", *methods, *out]) == 0
    shown = capsys.readouterr().out
    assert "no context, masks refined" in shown and "logit sum" in shown
    assert (tmp_path / "records" / "table.csv").is_file()
    shutil.copytree(tmp_path / "records", tmp_path / "fctl" / "synthetic")
    page = ablation_page(tmp_path / "fctl")
    assert "## synthetic" in page and "| no context |" in page and "concatenation (seed 0)" in page
    assert "there is no ablation of rest" in refused(capsys, "ablate", "rest", *out)
    assert "refined starts from contexts-1-2-3" in refused(
        capsys, "ablate", "fctl", "--quick", "--methods", "refined", *out
    )


def test_points_are_sampled_grown_shown_and_trained_on(data, tmp_path, capsys):
    points, grown = tmp_path / "points", tmp_path / "grown"
    assert main(["points", "sample", *options(data), "--out", str(points), "--how", "objects", "--each", "2"]) == 0
    assert {p.name for p in points.iterdir()} == {"a.geojson", "b.geojson"}
    few = ["points", "sample", *options(data), "--out", str(tmp_path / "few"), "--leave-out", "water"]
    assert main(few) == 0 and '"water"' not in (tmp_path / "few" / "a.geojson").read_text()
    assert main([*few, "sea"]) == 2 and "has no class 'sea'" in capsys.readouterr().err
    assert main(["points", "grow", *options(data), "--points", str(points), "--by", "discs", "--out", str(grown)]) == 0
    said = capsys.readouterr().out
    assert "without mask" in said and "covered" in said and "right" in said
    with rasterio.open(grown / "a.tif") as file:
        assert set(np.unique(file.read(1))) <= {1, 2, 5, 255} and file.crs is not None
    show = ["--points", str(points), "--grown", str(grown), "--out", str(tmp_path)]
    assert main(["points", "show", *options(data), *show]) == 0 and (tmp_path / "a.png").is_file()
    run = ["train", *options(data), "--method", "penet", "--encoder", "test_resnet", "--decoder", "fpn", "--steps", "2"]
    run += ["--crop", "64", "--batch-size", "2", "--val-window", "64", "--out", str(tmp_path / "run")]
    assert main([*run, "--points", str(points), "--grown", str(grown)]) == 0
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["configuration"]["grown"] and record["configuration"]["points"]["a"] > 4
    maps = ["--checkpoint", str(tmp_path / "run" / "best.ckpt"), "--output", str(tmp_path / "maps")]
    assert main(["predict", "d", *options(data), *maps]) == 0


@pytest.mark.parametrize("preset", ["penet-vaihingen", "penet-vaihingen-crgnet", "penet-potsdam"])
def test_the_presets_of_points(data, tmp_path, preset):
    assert main(["points", "sample", *options(data), "--out", str(tmp_path / "points")]) == 0
    run = ["--points", str(tmp_path / "points"), "--encoder", "test_resnet", "--weights", "none", "--steps", "1"]
    run += ["--crop", "64", "--batch-size", "1", "--val-window", "64", "--out", str(tmp_path / "run")]
    assert main(["train", *options(data), *run, "--preset", preset]) == 0
    assert load_checkpoint(tmp_path / "run" / "best.ckpt").method == "penet"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["train", "--method", "penet"], "learns from points; give --points"),
        (["train", "--method", "penet", "--points", "none", "--loss", "ce"], "has a loss of its own"),
        (["train", "--points", "none"], "--points is PENet's"),
        (["train", "--method", "penet", "--points", "none"], "a.geojson does not exist; click the scene"),
        (["train", "--method", "penet", "--points", "none", "--grown-weight", "2"], "give it with --grown"),
        (["points", "grow"], "name a folder of clicks to grow"),
        (["points", "sample", "--how", "magic"], "no way 'magic'"),
        (["points", "sample", "--each", "3"], "--each is of 'rsseglab points sample --how objects or classes'"),
        (["points", "sample", "--grown", "none"], "--grown is of 'rsseglab points show'"),
        (["points", "show", "--seed", "3"], "--seed is of 'rsseglab points sample'"),
        (
            ["points", "grow", "--by", "discs", "--network", "sam_vit_b"],
            "--network is of 'rsseglab points grow --by sam'",
        ),
        (["points", "sample", "--how", "share", "--share", "2"], "no share of the pixels"),
    ],
)
def test_points_that_are_none(data, capsys, given, message):
    command, *rest = given
    action = rest[:1] if command == "points" else []
    assert main([command, *action, *options(data), *rest[len(action) :]]) == 2
    assert message in capsys.readouterr().err
