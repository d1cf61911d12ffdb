"""The published settings against the facts in the authors' code, and how steps follow from epochs."""

import math

import pytest
from made import make_scene

from rsseglab.bicor_seg.preset import PUBLISHED
from rsseglab.cli import PRESETS, _method, _options, _parser, _take_preset, main
from rsseglab.errors import UserError
from rsseglab.evaluation.padding import padded_size
from rsseglab.experiments.presets import published
from rsseglab.scenes.manifest import load_manifest
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
"""
#: layers, share, crop, batch, rate, epochs
FACTS = {
    "loveda": (2, 0.02, 512, 8, 8e-5, 30),
    "vaihingen": (2, 1.0, 512, 4, 5e-5, 45),
    "potsdam": (3, 1.0, 768, 4, 1e-4, 45),
}


def patches(height, width, stride):
    """Windows of 1024 px of a scene that is padded to a multiple of 1024 px."""
    height, width = padded_size(height, width, 1024)
    return ((height - 1024) // stride + 1) * ((width - 1024) // stride + 1)


@pytest.mark.parametrize("name", FACTS)
def test_settings_are_as_published(name):
    settings, (layers, top_k, crop_px, batch, lr, epochs) = published(f"bicor-{name}"), FACTS[name]
    assert (settings["layers"], settings["top_k"], settings["reading"]) == (layers, top_k, "code")
    assert (settings["crop_px"], settings["batch_size"], settings["lr"]) == (crop_px, batch, lr)
    assert (settings["weight_decay"], settings["schedule"], settings["precision"]) == (0.01, "cosine", "32-true")
    assert settings["encoder"].startswith("convnext_base.") and settings["weights"] == "pretrained"
    assert settings["steps"] == epochs * settings["val_every"]
    assert (settings["heatmap_weight"], settings["fisher_weight"]) == (0.1, 0.1)


def test_an_epoch_is_a_pass_over_patches():
    assert published("bicor-loveda")["val_every"] == math.ceil((2522 + 1669) / 8)
    train = {name: len(load_manifest(name).split("train")) for name in ("vaihingen", "potsdam")}
    of_vaihingen = train["vaihingen"] * patches(2557, 1887, 512) * 3
    assert published("bicor-vaihingen")["val_every"] == math.ceil(of_vaihingen / 4)
    assert published("bicor-potsdam")["val_every"] == math.ceil(train["potsdam"] * patches(6000, 6000, 1024) / 4)


@pytest.mark.parametrize("name", FACTS)
def test_selection_is_on_scenes_that_are_neither_trained_nor_tested_on(name):
    manifest = load_manifest(published(f"bicor-{name}")["data"])
    splits = [set(manifest.split(split)) for split in ("train", "val", "test")]
    assert all(splits) and sum(map(len, splits)) == len(set.union(*splits))


@pytest.mark.parametrize("name", FACTS)
def test_the_command_takes_them_and_what_is_given_wins(name):
    arguments = ["train", "--preset", f"bicor-{name}"]
    parser = _parser()
    _take_preset(parser.parse_args(arguments))
    args = parser.parse_args([*arguments, "--lr", "1"])
    assert (args.method, args.data, args.crop, args.lr) == ("bicor_seg", name, FACTS[name][2], 1)
    assert (_method(args), _options(args, "bicor_seg")["preset"]) == ("bicor_seg", "code")
    known = {action.dest for action in args.parser._actions}
    # Each is an option, and so does something; the warm-up is none for want of need, and a crop's option has no unit.
    assert set(published(f"bicor-{name}")) - known == {"crop_px", "warmup_steps"}


def test_a_run_by_a_preset(tmp_path):
    """All that is published, but what is too large for a test; the encoder's weights are named as timm names them."""
    for seed, scene in enumerate("abc"):
        make_scene(tmp_path, scene, 96, 128, seed)
    (tmp_path / "tiny.toml").write_text(MANIFEST)
    small = ["--encoder", "convnext_atto.d2_in1k", "--weights", "none", "--steps", "2", "--val-every", "2"]
    small += ["--crop", "64", "--batch-size", "2", "--val-window", "64", "--out", str(tmp_path / "run")]
    data = ["--data", str(tmp_path / "tiny.toml"), "--root", str(tmp_path)]
    assert main(["train", *data, *small, "--preset", "bicor-potsdam"]) == 0
    configuration = RunRecord.read(tmp_path / "run/record.json").configuration
    assert (configuration["method"], configuration["lr"], configuration["warmup_steps"]) == ("bicor_seg", 1e-4, 0)
    options = configuration["options"]
    assert (options["layers"], options["top_k"], options["preset"]) == (3, 1.0, "code")


def test_presets_are_known_and_nobody_changes_them():
    assert set(PUBLISHED) == {f"bicor-{name}" for name in FACTS} == {one for one in PRESETS if one.startswith("bicor")}
    published("bicor-loveda")["layers"] = 7
    assert published("bicor-loveda")["layers"] == 2
    with pytest.raises(UserError, match="unknown preset 'bicor-isprs'; choose one of bicor-loveda, bicor-vaih"):
        published("bicor-isprs")
