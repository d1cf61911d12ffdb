"""Training with contexts: the crops of the cropped baseline, contexts that move as they do, stages, resumed runs."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made import CLASSES, make_scene

from rsseglab.errors import UserError
from rsseglab.fctl.model import FCtL
from rsseglab.fctl.predict import predict_contexts
from rsseglab.fctl.training import ContextDataModule, fit_fctl
from rsseglab.inference.crops import Cropping
from rsseglab.scenes import ArraySource, Scene
from rsseglab.scenes.datamodule import SceneDataModule
from rsseglab.scenes.raster import RasterSource
from rsseglab.training.checkpoint import load_checkpoint, load_state
from rsseglab.training.fit import TrainConfig

TINY = TrainConfig(
    encoder="mobilenetv3_small_050", decoder="fcn", method="fctl", options={"contexts": [1, 2, "scene"]}, steps=4,
    batch_size=2, crop_px=40, val_every=2, val_window_px=40, lr=3e-3,
)  # fmt: skip


@pytest.fixture
def scenes(tmp_path):
    return [make_scene(tmp_path, "a", 130, 150, seed=0)], [make_scene(tmp_path, "b", 90, 100, seed=1)]


def batches(data, training=True):
    """What a network would see: the loader's batches, transferred."""
    data.trainer = SimpleNamespace(
        training=training, validating=not training, sanity_checking=False, global_step=0, testing=False,
        fit_loop=SimpleNamespace(restarting=False),
    )  # fmt: skip
    data.setup("fit")
    loader = data.train_dataloader() if training else data.val_dataloader()
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def test_the_crops_are_those_of_the_cropped_baseline(scenes):
    settings = {"crop_px": 32, "batch_size": 6, "steps": 2, "val_window_px": 32, "seed": 3}
    plain = SceneDataModule(*scenes, **settings)
    with_contexts = ContextDataModule(*scenes, scales=(2, "scene"), **settings)
    for training in (True, False):
        pairs = list(zip(batches(plain, training), batches(with_contexts, training), strict=True))
        assert pairs
        for one, two in pairs:
            assert torch.equal(one["image"], two["image"]) and torch.equal(one["mask"], two["mask"])
            assert two["contexts"].shape == (len(one["image"]), 2, 3, 32, 32)


def ramp(height, width):
    """Each pixel tells its place."""
    rows, cols = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    image = np.stack([rows, cols, rows + 2 * cols], axis=-1).astype(np.float32)
    label = np.random.default_rng(0).choice([1, 2, 5], (height, width)).astype(np.uint8)
    return Scene(ArraySource(image), ArraySource(label), CLASSES)


def test_contexts_move_and_shine_as_their_crop_does():
    """The middle of a context of scale 2 is the crop, seen by half: also flipped, turned and shaded."""
    scene = ramp(200, 220)
    data = ContextDataModule([scene], [scene], scales=(2,), crop_px=32, batch_size=24, steps=1, val_window_px=32)
    data.mean = data.mean * 0 + 100
    (batch,) = batches(data)
    inside = 0
    for image, (context,) in zip(batch["image"], batch["contexts"], strict=True):
        middle = image.reshape(3, 16, 2, 16, 2).mean((2, 4))
        if (context == 0).all(0).any():  # reaches past the scene
            continue
        inside += 1
        assert (context[:, 8:24, 8:24] - middle).abs().max() < 1e-4
    assert inside > 5 and len({tuple(image[:, 0, 0].tolist()) for image in batch["image"]}) == 24


def test_what_lies_past_the_edge_is_the_mean(scenes):
    data = ContextDataModule(*scenes, scales=(4,), crop_px=64, batch_size=2, steps=1, val_window_px=64, augment=False)
    (batch, *_) = batches(data, training=False)
    assert (batch["contexts"][0, 0, :, 0, 0] == 0).all()


def test_masks_are_given_as_they_are(scenes):
    data = ContextDataModule(*scenes, scales=(2,), raw=True, crop_px=32, batch_size=16, steps=1, val_window_px=32)
    (batch,) = batches(data)
    assert batch["image"].min() >= 0 and (batch["image"] == batch["image"].round()).all()
    assert (batch["contexts"][:, 0].amax((1, 2, 3)) <= 255).all()


def test_it_trains_labels_and_tells_what_it_is(scenes, tmp_path):
    done = fit_fctl(*scenes, TINY, tmp_path / "run", progress=False)
    trained = load_checkpoint(done.checkpoint)
    assert trained.method == "fctl" and isinstance(trained.network, FCtL) and trained.network.scales == (2, "scene")
    scene = scenes[1][0]
    cropping = Cropping(40, 0.5, "flat", step_px=1)
    labelled = predict_contexts(trained, scene, tmp_path / "b.tif", cropping, progress=False)
    again = predict_contexts(trained, scene, tmp_path / "c.tif", replace(cropping, batch_size=1), progress=False)
    one, two = (RasterSource(p.path).read(scene.window) for p in (labelled, again))
    assert (one == two).mean() > 0.999
    other = make_scene(tmp_path, "other", 90, 100, seed=5)
    control = predict_contexts(trained, scene, tmp_path / "d.tif", cropping, context_scene=other, progress=False)
    assert control.path.is_file()


def test_prediction_is_the_network_on_patches_and_contexts(scenes, tmp_path):
    """One patch in the middle of a scene, by hand."""
    scene = scenes[1][0]
    done = fit_fctl(*scenes, replace(TINY, lr=3e-2), tmp_path / "run", progress=False)
    trained = load_checkpoint(done.checkpoint)
    for correlation in trained.network.correlations:
        torch.nn.init.ones_(correlation.gamma)
    shares = tmp_path / "shares.tif"
    cropping = Cropping(40, 0, "flat", step_px=1)
    predict_contexts(trained, scene, tmp_path / "b.tif", cropping, probabilities=shares, progress=False)
    data = ContextDataModule(*scenes, scales=(2, "scene"), crop_px=40, val_window_px=40, batch_size=1, steps=1)
    batch = batches(data, training=False)[0]  # the window at the upper left
    with torch.no_grad():
        expected = trained.network(batch["image"], batch["contexts"]).softmax(1)[0]
    ours = torch.from_numpy(RasterSource(shares).read(scene.window))[:, 4:40, :40]  # 4 rows are not labelled
    assert (ours - expected[:, 4:]).abs().max() < 1e-5


def test_probabilities_are_averaged_where_asked_to(scenes, tmp_path):
    done = fit_fctl(*scenes, TINY, tmp_path / "run", progress=False)
    trained, scene = load_checkpoint(done.checkpoint), scenes[1][0]
    for correlation in trained.network.correlations:
        torch.nn.init.ones_(correlation.gamma)
    shares = {}
    for merge in ("logits", "probabilities"):
        cropping = Cropping(40, 0.5, "flat", merge=merge, step_px=1)
        predict_contexts(trained, scene, tmp_path / "b.tif", cropping, probabilities=tmp_path / merge, progress=False)
        shares[merge] = RasterSource(tmp_path / merge).read(scene.window)[:, 4:]
        assert np.allclose(shares[merge].sum(0), 1, atol=1e-5)
    assert np.abs(shares["logits"] - shares["probabilities"]).max() > 1e-6


def test_published_stages_train_one_context_each_and_freeze_them(scenes, tmp_path):
    config = replace(TINY, options={"contexts": [1, 2, "scene"], "stages": "published"})
    done = fit_fctl(*scenes, config, tmp_path / "run", progress=False)
    last = load_checkpoint(done.checkpoint).network
    for number, scale in enumerate(last.scales):
        stage = load_checkpoint(tmp_path / "run" / f"context_{scale}" / "best.ckpt").network
        ours, its = (n.state_dict() for n in (last.context_encoders[number], stage.encoder))
        assert all(torch.equal(ours[key], its[key]) for key in its)


@pytest.mark.parametrize("stages", ["joint", "published"])
def test_a_resumed_run_is_the_one_that_was_not_interrupted(scenes, tmp_path, stages, monkeypatch):
    config = replace(TINY, steps=4, options={"contexts": [1, 2], "stages": stages})
    whole = fit_fctl(*scenes, config, tmp_path / "whole", progress=False)
    from rsseglab.training.task import SceneSegmentationTask

    step, seen = SceneSegmentationTask.training_step, []

    def killed(self, *args):
        seen.append(1)
        if len(seen) == (4 if stages == "joint" else 7):
            raise KeyboardInterrupt
        return step(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SceneSegmentationTask, "training_step", killed)
        fit_fctl(*scenes, config, tmp_path / "cut", progress=False)
    fit_fctl(*scenes, config, tmp_path / "cut", resume=True, progress=False)
    one, two = (load_state(tmp_path / name / "last.ckpt")["state_dict"] for name in ("whole", "cut"))
    assert all(torch.equal(one[key], two[key]) for key in one) and whole.checkpoint.is_file()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": {"stages": "none"}}, "there are no stages"),
        ({"spatial": "2"}, "leave out --spatial"),
        ({"crop_px": 96}, "larger than scene b|smaller than a patch"),
        ({"crop_px": None, "batch_size": 1}, "none of a whole scene"),
        ({"options": {"contexts": [2, 2], "stages": "published"}}, "name none twice"),
    ],
)
def test_runs_that_are_none(scenes, tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        fit_fctl(*scenes, replace(TINY, **change), tmp_path / "run", progress=False)


def test_without_options_contexts_are_those_of_the_network(scenes, tmp_path):
    done = fit_fctl(*scenes, replace(TINY, options=None), tmp_path / "run", progress=False)
    assert load_checkpoint(done.checkpoint).network.contexts == (1, 2, 3)


def test_a_rank_of_many_is_refused(scenes, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(UserError, match="without torchrun"):
        fit_fctl(*scenes, TINY, tmp_path / "run", progress=False)


def test_networks_without_contexts_are_labelled_otherwise(scenes, tmp_path):
    from rsseglab.training.fit import fit

    config = replace(TINY, method="stock", options=None, crop_px=32, val_window_px=32)
    trained = load_checkpoint(fit(*scenes, config, tmp_path / "run", progress=False).checkpoint)
    with pytest.raises(UserError, match="reads no contexts"):
        predict_contexts(trained, scenes[1][0], tmp_path / "b.tif", Cropping(32), progress=False)
