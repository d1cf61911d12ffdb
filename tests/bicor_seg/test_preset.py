"""The published settings against the facts in the authors' code, and how steps follow from epochs."""

import math

import pytest

from rsseglab.bicor_seg.preset import PUBLISHED, published
from rsseglab.cli import PRESETS, _parser, _take_preset
from rsseglab.errors import UserError
from rsseglab.evaluation.padding import padded_size
from rsseglab.scenes.manifest import load_manifest
from rsseglab.training.fit import TrainConfig

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
    assert (settings["layers"], settings["top_k"], settings["hbis"]) == (layers, top_k, "code")
    assert (settings["crop_px"], settings["batch_size"], settings["lr"]) == (crop_px, batch, lr)
    assert (settings["weight_decay"], settings["schedule"], settings["precision"]) == (0.01, "cosine", "32-true")
    assert settings["encoder"].startswith("convnext_base.") and settings["weights"] == "pretrained"
    assert settings["steps"] == epochs * settings["val_every"]
    weights = settings["loss_weights"]
    assert (weights["auxiliary"], weights["heatmap"], weights["fisher"], weights["smoothing"]) == (0.4, 0.1, 0.1, 0.05)
    assert weights["last_fisher"] == (1 if name == "loveda" else 0)


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
    assert args.preset == f"bicor-{name}"  # and not HBIS's preset of that name
    # What training knows without the method is right: names and kinds.
    known = {key: value for key, value in published(f"bicor-{name}").items() if key in TrainConfig.__annotations__}
    TrainConfig(**{**known, "method": "stock"})


def test_presets_are_known_and_nobody_changes_them():
    assert set(PUBLISHED) == {f"bicor-{name}" for name in FACTS} == {one for one in PRESETS if one.startswith("bicor")}
    published("bicor-loveda")["loss_weights"]["fisher"] = 7
    assert published("bicor-loveda")["loss_weights"]["fisher"] == 0.1
    with pytest.raises(UserError, match="unknown preset 'bicor-isprs'; choose one of bicor-loveda, bicor-vaih"):
        published("bicor-isprs")
