"""Training over ranks: the run of one process, whatever the number of ranks."""

import csv
import os
import signal
import time

import numpy as np
import psutil
import pytest
import torch
import torch.distributed as dist
from made import CLASSES, make_scene
from torch import multiprocessing as mp

from rsseglab.errors import UserError
from rsseglab.launch import launch
from rsseglab.scenes import ArraySource, Scene
from rsseglab.training.fit import KeepCheckpoints, TrainConfig, fit
from rsseglab.training.ranks import Grid

EXACT = TrainConfig(
    encoder="test_resnet",
    method="rest",
    options={"interaction": "exact+spim", "strides": [16, 32]},
    steps=6,
    batch_size=2,
    crop_px=96,
    val_every=3,
    val_window_px=64,
    lr=3e-3,
    clip=1.0,
    precision="64-true",
)


def config(**changes):
    return TrainConfig(**{**vars(EXACT), **changes})


@pytest.fixture
def scenes(tmp_path):
    return [make_scene(tmp_path, "a", 160, 190, seed=0)], [make_scene(tmp_path, "b", 130, 140, seed=1)]


def losses(folder):
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    return torch.tensor([float(row["train_loss"]) for row in rows if row.get("train_loss")], dtype=torch.float64)


def weights(folder):
    state = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    return torch.cat([v.double().flatten() for v in state.values() if isinstance(v, torch.Tensor)])


def test_two_ranks_train_as_one_process(tmp_path, scenes):
    """And so do two tiles in one process; each rank has read its own part of the augmented crops."""
    runs = {"one": {}, "tiles": {"spatial": "2x2", "in_process": True}, "ranks": {"spatial": "2"}}
    results = {k: fit(*scenes, config(**v), tmp_path / k, progress=False) for k, v in runs.items()}
    for name in ("tiles", "ranks"):
        assert (weights(tmp_path / name) - weights(tmp_path / "one")).abs().max() < 1e-9
        assert results[name].val_mean_iou == pytest.approx(results["one"].val_mean_iou, abs=1e-12)
        assert results[name].parameters == results["one"].parameters
        assert results[name].checkpoint.is_file() and not list((tmp_path / name).glob("*.part"))


def _killed_at_step_four(*args):
    """Rank 1 is killed, as by a machine that runs out of memory, right after step 4 was kept."""
    save = KeepCheckpoints._save

    def save_and_end(self, trainer, path):
        save(self, trainer, path)
        if trainer.global_step == 4 and path.name == "last.ckpt":
            dist.barrier()
            if dist.get_rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)

    KeepCheckpoints._save = save_and_end
    _fit_here(*args)


@pytest.mark.slow
def test_a_run_of_ranks_resumes_as_if_it_had_not_been_killed(tmp_path, scenes):
    settings = config(spatial="2", val_every=2)
    whole = fit(*scenes, settings, tmp_path / "whole", progress=False)
    with pytest.raises(UserError, match="a rank was killed, as when memory runs out; use a larger machine"):
        launch(2, "cpu", _killed_at_step_four, *scenes, settings, tmp_path / "part", way_out="use a larger machine")
    assert torch.load(tmp_path / "part" / "last.ckpt", weights_only=True)["global_step"] == 4
    resumed = fit(*scenes, settings, tmp_path / "part", resume=True, progress=False)
    assert (weights(tmp_path / "part") - weights(tmp_path / "whole")).abs().max() < 1e-12  # of Adam's steps of 3e-3
    assert resumed.val_mean_iou == pytest.approx(whole.val_mean_iou, abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["64-true", "32-true"])
def test_fifty_steps_on_four_ranks(tmp_path, scenes, precision):
    """Losses as in one process; in float32 within twice the gap between two plain runs with different kernels."""
    settings = {"steps": 50, "val_every": 50, "precision": precision, "options": {"interaction": "exact"}}
    settings |= {"crop_px": 128, "clip": None}
    fit(*scenes, config(**settings), tmp_path / "one", progress=False)
    fit(*scenes, config(**settings, spatial="2x2"), tmp_path / "ranks", progress=False)
    one, ranks = losses(tmp_path / "one"), losses(tmp_path / "ranks")
    assert len(one) == len(ranks) == 50 and one[-5:].mean() < one[:5].mean()
    gap = (ranks - one).abs().max()
    if precision == "64-true":
        print(f"losses of 50 steps differ by {gap:.1e}")
        assert gap < 1e-8
        return
    with torch.backends.mkldnn.flags(enabled=False):  # torch's own convolutions instead of oneDNN's
        fit(*scenes, config(**settings), tmp_path / "other", progress=False)
    plain = (losses(tmp_path / "other") - one).abs()
    print(f"float32: ranks {gap:.1e}, plain against plain {plain.max():.1e}")
    assert gap <= 2 * plain.max()


@pytest.mark.slow
def test_data_groups_beside_spatial_groups(tmp_path, scenes):
    """Two groups of two ranks are one process with twice the batch, where every pixel counts.

    Where some do not, each group's mean is over its own, and the mean of the two is another one.
    """
    settings = {"steps": 4, "val_every": 4, "loss": "ce"}
    train, val = ([labelled(scene) for scene in part] for part in scenes)
    fit(train, val, config(**settings, batch_size=4), tmp_path / "one", progress=False)
    launch(4, "cpu", _fit_here, train, val, config(**settings, spatial="2"), tmp_path / "groups")
    assert (weights(tmp_path / "groups") - weights(tmp_path / "one")).abs().max() < 1e-9


def labelled(scene):
    """The scene with a label everywhere."""
    values = np.maximum(scene._label.read(scene.window)[0], 1)
    return Scene(ArraySource(scene.read().transpose(1, 2, 0)), ArraySource(values), CLASSES, name=scene.name)


def _fit_here(train, val, settings, folder):
    fit(train, val, settings, folder, progress=False)


def _sees_other_files(train, val, settings, folder):
    fit(train if os.environ["RANK"] == "0" else val, val, settings, folder, progress=False)


def test_ranks_that_see_different_files_all_stop(tmp_path, scenes):
    with pytest.raises(UserError, match=r"rank 1 has other settings or scenes than rank 0; give every rank the same"):
        launch(2, "cpu", _sees_other_files, *scenes, config(spatial="2"), tmp_path / "run")
    assert not (tmp_path / "run" / "last.ckpt").exists()


def _folders_differ(train, val, settings, folder):
    mine = folder if os.environ["RANK"] == "0" else folder / "elsewhere"
    fit(train, val, settings, mine, resume=True, progress=False)


@pytest.mark.slow
def test_ranks_that_see_different_folders_all_stop(tmp_path, scenes):
    settings = config(spatial="2", steps=2, val_every=2)
    launch(2, "cpu", _fit_here, *scenes, settings, tmp_path / "run")
    with pytest.raises(UserError, match=r"rank 1 has other checkpoints in .* than rank 0"):
        launch(2, "cpu", _folders_differ, *scenes, settings, tmp_path / "run")


def _pixels_differ(train, val, settings, folder):
    fit(train if os.environ["RANK"] == "0" else [changed(train[0], 9)], val, settings, folder, progress=False)


def _labels_of_validation_differ(train, val, settings, folder):
    fit(train, val if os.environ["RANK"] == "0" else [changed(val[0], 0, 2)], settings, folder, progress=False)


def changed(scene, brighter, land=1):
    """The same name and size, and other pixels, or labels."""
    pixels = np.minimum(scene.read().astype(int) + brighter, 255).astype(np.uint8).transpose(1, 2, 0)
    values = scene._label.read(scene.window)[0]
    values[values == 1] = land
    return Scene(ArraySource(pixels), ArraySource(values), CLASSES, [0], name=scene.name, bands=scene.bands)


@pytest.mark.parametrize("differ", [_pixels_differ, pytest.param(_labels_of_validation_differ, marks=pytest.mark.slow)])
def test_ranks_that_see_different_pixels_all_stop(tmp_path, scenes, differ):
    with pytest.raises(UserError, match=r"rank 1 has other pixels or labels in the scenes than rank 0"):
        launch(2, "cpu", differ, *scenes, config(spatial="2"), tmp_path / "run")


def _talks(length):
    raise RuntimeError("x" * length)


def _waits(folder):
    (folder / os.environ["RANK"]).write_text(str(os.getpid()))
    time.sleep(60)


def test_no_rank_is_left_behind_where_the_launcher_is_killed(tmp_path):
    launcher = mp.get_context("spawn").Process(target=launch, args=(2, "cpu", _waits, tmp_path))
    launcher.start()
    ranks = [_written(tmp_path / str(rank)) for rank in range(2)]
    launcher.kill()
    for _ in range(100):
        time.sleep(0.1)
        left = [rank for rank in ranks if psutil.pid_exists(rank) and psutil.Process(rank).status() != "zombie"]
        if not left:
            return
    pytest.fail(f"ranks {left} go on")


def _written(path):
    for _ in range(600):
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.1)
    pytest.fail("no rank has started")


def test_a_rank_may_have_much_to_say():
    """More than a pipe holds."""
    with pytest.raises(RuntimeError, match=r"rank \d failed:\nx+"):
        launch(2, "cpu", _talks, 200_000)


def test_ranks_that_do_not_fit_the_layout(tmp_path, scenes):
    with pytest.raises(UserError, match=r"2 ranks can't be shared out among spatial groups of 3"):
        launch(2, "cpu", _fit_here, *scenes, config(spatial="3"), tmp_path / "run")
    with pytest.raises(UserError, match="can't be cut in 300x1 tiles"):
        fit(*scenes, config(spatial="300"), tmp_path / "run", progress=False)


def test_a_rank_that_fails_ends_the_run(tmp_path, scenes):
    with pytest.raises(UserError, match="lower the learning rate"):
        fit(*scenes, config(spatial="2", lr=1e9, clip=None, precision="32-true"), tmp_path / "run", progress=False)


@pytest.mark.parametrize(("text", "rows", "cols"), [("1", 1, 1), ("4", 4, 1), ("2x3", 2, 3), ("2X2", 2, 2)])
def test_grids(text, rows, cols):
    assert Grid.parse(text) == Grid(rows, cols)


@pytest.mark.parametrize("text", ["", "0", "x", "2x", "2x2x2", "-1", "two", "1.5"])
def test_what_is_no_grid(text):
    with pytest.raises(UserError, match="is no number of tiles"):
        Grid.parse(text)


def test_checkpointing_and_offload_change_nothing(tmp_path, scenes):
    plain = config(steps=3)
    again = config(steps=3, options={**EXACT.options, "checkpointing": True}, offload=True)
    fit(*scenes, plain, tmp_path / "plain", progress=False)
    fit(*scenes, again, tmp_path / "again", progress=False)
    assert torch.equal(weights(tmp_path / "plain"), weights(tmp_path / "again"))


def test_two_stages(tmp_path, scenes):
    base = config(method="stock", options=None, steps=3)
    first = fit(*scenes, base, tmp_path / "first", progress=False)
    second = config(steps=2, init=str(first.checkpoint), freeze_early=True, spatial="2x2", in_process=True)
    fit(*scenes, second, tmp_path / "second", progress=False)
    before = torch.load(first.checkpoint, weights_only=True)["state_dict"]
    after = torch.load(tmp_path / "second" / "last.ckpt", weights_only=True)["state_dict"]
    stem = [k for k in before if "model.encoder.model.conv1" in k or "stem" in k]
    assert stem
    for key in stem:
        moved = after[key.replace("model.", "model.network.", 1)] - before[key]
        assert moved.abs().max() < 1e-6  # a checkpoint is read in float32
    first.checkpoint.unlink()  # it goes on with its own weights
    assert fit(*scenes, second, tmp_path / "second", resume=True, progress=False).checkpoint.exists()
    with pytest.raises(UserError, match="no early stages to freeze"):
        fit(*scenes, config(method="stock", options=None, freeze_early=True), tmp_path / "third", progress=False)
