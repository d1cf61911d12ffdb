"""Training from points: crops and labels, whole runs, what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from made import make_scene

from rsseglab.errors import UserError
from rsseglab.experiments.points import as_points, coverage, grow_and_write, sample_and_write
from rsseglab.inference import Cropping, predict_scene
from rsseglab.penet.training import PointDataModule, fit_points
from rsseglab.scenes import IGNORE_INDEX
from rsseglab.scenes.datamodule import CropDataset
from rsseglab.training.checkpoint import load_checkpoint
from rsseglab.training.fit import TrainConfig

TINY = TrainConfig(
    encoder="test_resnet", decoder="fpn", method="penet", steps=4, batch_size=2, crop_px=32, val_every=2,
    val_window_px=64, precision="32-true",
)  # fmt: skip


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("points")
    made = [make_scene(folder, name, seed=seed) for seed, name in enumerate("ab")]
    sample_and_write(made[:1], folder / "points", "innermost")
    grow_and_write(made[:1], folder / "points", folder / "grown", "discs")
    return made, *as_points(made[:1], folder / "points", folder / "grown")


def test_crops_are_those_of_the_baseline_and_grown_labels_move_with_them(scenes):
    (dense, val), clicked, grown = scenes
    data = PointDataModule(clicked, [val], grown=grown, crop_px=32, batch_size=2, steps=4, val_window_px=64, seed=3)
    data.setup("fit")
    crops = CropDataset([dense], 32, 3, data.mean, statistics=(data.mean, data.std))
    seen = 0
    for index in range(20):
        sample, truth = data.train_dataset[index], crops[index]
        assert torch.equal(sample["image"], truth["image"])
        for key in ("mask", "grown"):
            has = (sample[key] != IGNORE_INDEX) & (truth["mask"] != IGNORE_INDEX)
            seen += int(has.sum())
            assert (sample[key] == truth["mask"])[has].float().mean() > 0.7 if has.sum() > 5 else True
        clicks = sample["mask"] != IGNORE_INDEX
        assert (sample["grown"] == sample["mask"])[clicks].float().mean() > 0.9 if clicks.any() else True
    assert seen > 100
    without = PointDataModule(clicked, [val], grown={}, crop_px=32, batch_size=2, steps=4, val_window_px=64)
    without.setup("fit")
    assert (without.train_dataset[0]["grown"] == IGNORE_INDEX).all()


def test_it_trains_labels_and_tells_what_it_is(scenes, tmp_path):
    (_, val), clicked, grown = scenes
    done = fit_points(clicked, [val], TINY, tmp_path / "run", progress=False, grown=grown)
    trained = load_checkpoint(done.checkpoint)
    assert trained.method == "penet" and trained.network.criterion.steps == 4
    prediction = predict_scene(trained, val, tmp_path / "map.tif", Cropping(64, 0), progress=False)
    assert prediction.path.is_file() and 0 <= done.val_mean_iou <= 1


@pytest.mark.parametrize("expansion", ["similarity", "regions"])
def test_a_resumed_run_is_the_one_that_was_not_interrupted(scenes, tmp_path, expansion, monkeypatch):
    (_, val), clicked, grown = scenes
    config = replace(TINY, options={"expansion": expansion})
    fit_points(clicked, [val], config, tmp_path / "whole", progress=False, grown=grown)
    from rsseglab.penet import PointLoss

    forward, calls = PointLoss.forward, []

    def stop(self, *args):
        calls.append(self.training)
        if sum(calls) == 4:  # training steps
            raise KeyboardInterrupt
        return forward(self, *args)

    monkeypatch.setattr(PointLoss, "forward", stop)
    with pytest.raises(KeyboardInterrupt):
        fit_points(clicked, [val], config, tmp_path / "cut", progress=False, grown=grown)
    monkeypatch.setattr(PointLoss, "forward", forward)
    fit_points(clicked, [val], config, tmp_path / "cut", resume=True, progress=False, grown=grown)
    one, two = (torch.load(tmp_path / n / "last.ckpt", weights_only=False)["state_dict"] for n in ("whole", "cut"))
    assert one.keys() == two.keys() and any("step" in key for key in one)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_run_is_not_resumed_with_other_grown_labels(scenes, tmp_path):
    (_, val), clicked, grown = scenes
    fit_points(clicked, [val], replace(TINY, steps=2), tmp_path / "run", progress=False, grown=grown)
    with pytest.raises(UserError):
        fit_points(clicked, [val], replace(TINY, steps=2), tmp_path / "run", resume=True, progress=False)


@pytest.mark.parametrize("change", [{"spatial": "2"}, {"spatial": "2", "in_process": True}, {"freeze_early": True}])
def test_runs_that_are_none(scenes, tmp_path, change):
    (_, val), clicked, _ = scenes
    with pytest.raises(UserError, match="penet trains on patches in one process; leave out --spatial"):
        fit_points(clicked, [val], replace(TINY, **change), tmp_path / "run", progress=False)


def test_coverage_counts_labelled_pixels_alone(scenes):
    (dense, _), _, _ = scenes
    truth = dense.read_label()
    label = truth.copy()
    label[: dense.height // 2] = IGNORE_INDEX
    found = coverage(label, dense)
    counted = truth != IGNORE_INDEX
    assert found["right"] == 1 and abs(found["covered"] - counted[dense.height // 2 :].sum() / counted.sum()) < 1e-12
    label[-10:] = (label[-10:] + 1) % 3
    assert 0.5 < coverage(label, dense)["right"] < 1
    assert np.isnan(coverage(np.full_like(label, IGNORE_INDEX), dense)["right"])
