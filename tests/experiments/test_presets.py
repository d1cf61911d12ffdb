"""Presets: each is of a pair that was published, is read as options, and runs on a tiny tree of its data set."""

import json
from dataclasses import replace

import numpy as np
import pytest
import scenes.test_readers as trees

import rsseglab.experiments.run as run
from rsseglab.cli import _parser, main
from rsseglab.evaluation.published import published_numbers
from rsseglab.experiments.presets import load_preset, preset_names
from rsseglab.inference import Cropping
from rsseglab.scenes.manifest import load_manifest, load_protocol
from rsseglab.training.records import RunRecord

values = trees.values
PAIRS = {
    "bicor-loveda": "loveda", "bicor-vaihingen": "vaihingen", "bicor-potsdam": "potsdam", "fctl-deepglobe": "deepglobe",
    "fctl-inria": "inria", "rest-five_billion_pixels": "five_billion_pixels", "rest-glh_water": "glh_water",
    "rest-whu_ohs": "whu_ohs", "rest-uavid": "uavid", "penet-vaihingen": "vaihingen", "penet-potsdam": "potsdam",
    "penet-vaihingen-crgnet": "vaihingen:crgnet",
}  # fmt: skip
SCENES = {
    "loveda": ("Train/Urban/1366", "Val/Urban/3000", "Test/Rural/1"),
    "vaihingen": ("1", "30", "2"),
    "potsdam": ("2_11", "2_10", "2_13"),
    "deepglobe": ("100694", "102122", "10452"),
    "inria": ("vienna27", "kitsap16", "austin27"),
    "glh_water": ("train/0001", "val/0002", "test/0003"),
    "five_billion_pixels": ("GF2_PMS1__L1A1-MSS1", "GF2_PMS2__L1A2-MSS2", "GF2_PMS2__L1A3-MSS3"),
    "whu_ohs": ("tr/O1_0001", "val/S1_0002", "ts/T8_0100"),
    "uavid": ("uavid_train/seq1/000000", "uavid_val/seq16/000100", "uavid_test/seq21/000000"),
}  # fmt: skip
HIDDEN = ("loveda", "uavid")
SMALL = ["--encoder", "test_resnet", "--weights", "none", "--steps", "2", "--val-every", "2", "--batch-size", "2"]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Makes three scenes, one a split, of a data set, and lets runs see no others."""

    def make(data):
        name, _, protocol = data.partition(":")
        monkeypatch.setattr(trees, "HEIGHT", 70)
        monkeypatch.setattr(trees, "WIDTH", 96)
        # In bands, so that some pixels are far from another class.
        monkeypatch.setattr(trees, "values", lambda *its: np.sort(values(*its).ravel()).reshape(1, 70, 96))
        for seed, one in enumerate(SCENES[name]):
            trees.make(name, tmp_path / name, one, seed, label=not (seed == 2 and name in HIDDEN))
        for part in ("Train/Rural/0", "Val/Rural/0", "Test/Urban/0") if name == "loveda" else ():  # torchgeo wants all
            trees.make(name, tmp_path / name, part, label=not part.startswith("Test"))
        prefix = f"{protocol}/" if protocol else ""
        splits = {prefix + split: (one,) for split, one in zip(("train", "val", "test"), SCENES[name], strict=True)}
        few = replace(load_manifest(name), splits=splits)
        monkeypatch.setattr(run, "load_protocol", lambda data: (few, prefix))
        return tmp_path / name

    return make


def test_a_preset_each_for_the_pairs_that_were_published():
    assert set(preset_names()) == {*PAIRS, "rest-stage1", "rest-stage2"}
    numbers = published_numbers()
    for name, data in PAIRS.items():
        preset = load_preset(name)
        assert preset.settings["data"] == data and load_protocol(data)[0] and preset.differs
        if preset.row is None:  # no number of PENet's is known
            assert preset.paper == "penet"
            continue
        beside = numbers[(numbers["paper"] == preset.paper) & (numbers["manifest"] == data)]
        beside = beside[(beside["table"] == preset.row["table"]) & (beside["method"] == preset.row["method"])]
        assert len(beside) >= 2, name
    published = numbers[numbers["table"].isin(["comparison", "headline"])]
    assert {(p, d) for p, d in zip(published["paper"], published["manifest"], strict=True)} == {
        (load_preset(name).paper, data) for name, data in PAIRS.items() if load_preset(name).row
    }


@pytest.mark.parametrize("name", preset_names())
def test_each_setting_is_an_option(name):
    args = _parser().parse_args(["train"])
    known = {action.dest for action in args.parser._actions} | {"warmup_steps"}
    preset = load_preset(name)
    assert set(preset.settings) <= known
    Cropping(64, **{key: value for key, value in preset.test.items() if key in ("overlap", "blend", "placement")})


def test_patches_are_placed_as_published():
    """36 of an image of DeepGlobe, 121 of one of Inria; neighbours share 120 and 58.8 px there."""
    for name, side, patches in (("fctl-deepglobe", 2448, 36), ("fctl-inria", 5000, 121)):
        its = {key: value for key, value in load_preset(name).test.items() if key != "protocol"}
        assert len(Cropping(508, step_px=1, **its).starts(side)) ** 2 == patches


def small(name, root, tmp_path):
    """The command of a preset, with all that is too large for a test replaced."""
    crop = ["--crop", "41"] if name.startswith("fctl") else ["--crop", "64", "--val-window", "64"]
    command = ["train", "--preset", name, "--root", str(root), *SMALL, *crop, "--out", str(tmp_path / "run")]
    if name.startswith("penet"):
        command += ["--points", str(tmp_path / "points")]
    if name.startswith("rest"):
        command += ["--in-process"]
    return command


def run_it(name, tree, tmp_path):
    data = PAIRS[name]
    root = tree(data)
    command = small(name, root, tmp_path)
    if name.startswith("penet"):
        manifest, prefix = run.load_protocol(data)
        from rsseglab.experiments.points import sample_and_write

        sample_and_write(manifest.scenes(prefix + "train", root), tmp_path / "points", "classes", 0, each=1)
    if name.startswith("rest"):
        first = ["--data", data, "--root", str(root), "--decoder", "upernet", "--crop", "64", "--val-window", "64"]
        assert main(["train", "--preset", "rest-stage1", *first, *SMALL, "--out", str(tmp_path / "first")]) == 0
        command += ["--init", str(tmp_path / "first" / "best.ckpt")]
    assert main(command) == 0
    assert main([*command, "--resume"]) == 0
    return RunRecord.read(tmp_path / "run" / "record.json")


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_each_preset_runs_on_a_tree_of_its_data_set(name, tree, tmp_path, capsys):
    record = run_it(name, tree, tmp_path)
    said = capsys.readouterr().out
    assert f"{name}, an estimate before it starts:" in said and "GFLOP/s, measured just now on" in said
    assert record.configuration["preset"] == name
    assert record.configuration["data"].partition(":")[0] == PAIRS[name].partition(":")[0]
    test = record.metrics["pooled"]["test"]
    if PAIRS[name] in HIDDEN:
        assert test == {} == record.metrics["scenes"]
    else:
        assert 0 <= test["mean_iou"] <= 1 and set(record.metrics["scenes"]) == {SCENES[PAIRS[name].split(":")[0]][2]}
        assert set(test.get("protocols", {})) == {load_preset(name).test.get("protocol")} - {None}


def test_a_preset_says_what_it_takes_runs_resumes_and_scores_the_test_scenes(tree, tmp_path, capsys):
    record = run_it("bicor-vaihingen", tree, tmp_path)
    assert "bicor-vaihingen, an estimate before it starts:" in capsys.readouterr().out
    scores = record.metrics["pooled"]["test"]
    assert "geoseg" in scores["protocols"] and record.configuration["lr"] == 5e-5
    assert json.dumps(record.metrics["scenes"]["2"]["iou"]) == json.dumps(scores["iou"])  # there is one scene


def test_what_a_preset_lacks_is_told(tree, tmp_path, capsys, monkeypatch):
    def refused(*command):
        assert main(list(command)) == 2
        return capsys.readouterr().err

    said = refused("train", "--preset", "rest-glh_water")
    assert "is the second of two stages; run 'rsseglab train --preset rest-stage1 --data glh_water" in said
    assert "--encoder swin_large_patch4_window12_384.ms_in22k --weights pretrained --decoder upernet" in said
    assert "learns from points" in refused("train", "--preset", "penet-potsdam")
    assert "unknown preset 'rest-mars'; choose one of rest-five" in refused("train", "--preset", "rest-mars")
    monkeypatch.setenv("RSSEGLAB_DATA", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    said = refused("train", "--preset", "bicor-loveda", "--out", str(tmp_path / "run"))
    assert "loveda is not in" in said and "'rsseglab data get loveda' says how to get it" in said
    said = refused("train", "--preset", "rest-five_billion_pixels", "--init", "x.ckpt", "--root", str(tmp_path))
    assert "has no split 'train'" in said and "copy five_billion_pixels.toml" in said
