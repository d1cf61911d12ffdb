"""The published settings against the facts in the authors' code, and how steps follow from epochs."""

import math

import pytest
from made import make_scene

from rsseglab.cli import _method, _options, _parser, _take_preset, main
from rsseglab.errors import UserError
from rsseglab.evaluation.padding import padded_size
from rsseglab.experiments.presets import load_preset, preset_names
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


def settings_of(name):
    return load_preset(f"bicor-{name}").settings


def patches(height, width, stride):
    """Windows of 1024 px of a scene that is padded to a multiple of 1024 px."""
    height, width = padded_size(height, width, 1024)
    return ((height - 1024) // stride + 1) * ((width - 1024) // stride + 1)


@pytest.mark.parametrize("name", FACTS)
def test_settings_are_as_published(name):
    settings, (layers, top_k, crop_px, batch, lr, epochs) = settings_of(name), FACTS[name]
    assert (settings["layers"], settings["top_k"], settings["reading"]) == (layers, top_k, "code")
    assert (settings["crop"], settings["batch_size"], settings["lr"]) == (crop_px, batch, lr)
    assert (settings["weight_decay"], settings["schedule"], settings["precision"]) == (0.01, "cosine", "32-true")
    assert settings["encoder"].startswith("convnext_base.") and settings["weights"] == "pretrained"
    assert settings["steps"] == epochs * settings["val_every"]
    assert (settings["heatmap_weight"], settings["fisher_weight"]) == (0.1, 0.1)


def test_an_epoch_is_a_pass_over_patches():
    assert settings_of("loveda")["val_every"] == math.ceil((2522 + 1669) / 8)
    train = {name: len(load_manifest(name).split("train")) for name in ("vaihingen", "potsdam")}
    of_vaihingen = train["vaihingen"] * patches(2557, 1887, 512) * 3
    assert settings_of("vaihingen")["val_every"] == math.ceil(of_vaihingen / 4)
    assert settings_of("potsdam")["val_every"] == math.ceil(train["potsdam"] * patches(6000, 6000, 1024) / 4)


@pytest.mark.parametrize("name", FACTS)
def test_selection_is_on_scenes_that_are_neither_trained_nor_tested_on(name):
    manifest = load_manifest(settings_of(name)["data"])
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


def test_presets_are_known():
    assert {one for one in preset_names() if one.startswith("bicor")} == {f"bicor-{name}" for name in FACTS}
    with pytest.raises(UserError, match="unknown preset 'bicor-isprs'; choose one of bicor-loveda, bicor-pots"):
        load_preset("bicor-isprs")
