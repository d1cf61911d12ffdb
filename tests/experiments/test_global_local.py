from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made import CLASSES, make_scene

from rsseglab.errors import UserError
from rsseglab.experiments import global_local as module
from rsseglab.experiments.global_local import GlobalLocalDataModule, fit_global_local, load_global_local
from rsseglab.inference.crops import Cropping
from rsseglab.inference.fusion import cut_out, predict_fusion, scene_thumbnail
from rsseglab.scenes import IGNORE_INDEX, ArraySource, Scene
from rsseglab.scenes.datamodule import SceneDataModule
from rsseglab.training.checkpoint import load_state
from rsseglab.training.fit import StepProgress, TrainConfig, fit

TINY = TrainConfig(
    encoder="mobilenetv3_small_050", steps=8, batch_size=2, crop_px=64, val_every=4, val_window_px=64, lr=3e-3
)


@pytest.fixture
def scenes(tmp_path):
    return [make_scene(tmp_path, "a", seed=0)], [make_scene(tmp_path, "b", 70, 100, seed=1)]


def ramp(height, width):
    """Each pixel tells its place."""
    rows, cols = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    image = np.stack([rows, cols, rows + 2 * cols], axis=-1).astype(np.float32)
    label = np.random.default_rng(0).choice([1, 2, 5], (height, width)).astype(np.uint8)
    return Scene(ArraySource(image), ArraySource(label), CLASSES)


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
    settings = {"crop_px": 32, "batch_size": 6, "steps": 2, "val_window_px": 64, "seed": 3}
    plain = SceneDataModule(*scenes, **settings)
    fused = GlobalLocalDataModule(*scenes, global_px=32, **settings)
    for training in (True, False):
        pairs = list(zip(batches(plain, training), batches(fused, training), strict=True))
        assert pairs
        for one, two in pairs:
            assert torch.equal(one["image"], two["image"]) and torch.equal(one["mask"], two["mask"])
            assert two["scene"].shape == (len(one["image"]), 3, 32, 32) and two["box"].shape == (len(one["image"]), 4)


def test_scene_and_box_are_flipped_turned_and_brightened_as_the_crop_is():
    """The crop's part of the augmented thumbnail is the augmented crop, as far as a ramp tells."""
    scene = ramp(128, 192)
    data = GlobalLocalDataModule([scene], [scene], global_px=64, crop_px=32, batch_size=64, steps=1, seed=1)
    (batch,) = batches(data)
    part = cut_out(batch["scene"], batch["box"], (32, 32))
    # Past the middles of the outermost pixels of the thumbnail, 1.5 px, it is no ramp any more.
    inner = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    assert torch.allclose(part[inner], batch["image"][inner], atol=2e-4)
    turned = [(b[3] - b[1]) > (b[2] - b[0]) for b in batch["box"]]  # 32 px are more of the height than of the width
    assert any(turned) and not all(turned)
    steps = (batch["image"][:, 0, 0, -1] - batch["image"][:, 0, 0, 0]).sign()
    assert set(steps.tolist()) == {-1.0, 0.0, 1.0}  # flipped, turned and neither


def test_without_augmentation_a_box_says_where_the_window_lies():
    scene = ramp(96, 80)
    data = GlobalLocalDataModule([scene], [scene], global_px=32, crop_px=32, steps=1, augment=False, val_window_px=64)
    for batch in (*batches(data), *batches(data, training=False)):
        for image, mask, box in zip(batch["image"], batch["mask"], batch["box"], strict=True):
            row, col = (image[:2, 0, 0] * data.std[:2] + data.mean[:2]).round().int().tolist()
            side = image.shape[-1]
            expected = torch.tensor([row / 96, col / 80, (row + side) / 96, (col + side) / 80])
            assert torch.allclose(box, expected, atol=1e-5)
            assert (mask != IGNORE_INDEX).sum() == min(96 - row, side) * min(80 - col, side)


def test_training_and_prediction_see_the_same_thumbnail(tmp_path, scenes):
    """Also where there is no data."""
    (scene,), val = scenes
    image = scene.read().transpose(1, 2, 0).copy()
    image[:40, :40] = 0
    holey = Scene(ArraySource(image, nodata=0), ArraySource(scene._label.read(scene.window)[0]), CLASSES, [0])
    data = GlobalLocalDataModule([holey], val, global_px=32, crop_px=32, steps=1, augment=False)
    seen = batches(data)[0]["scene"][:1]
    trained = SimpleNamespace(normalize=lambda x: (x - data.mean[:, None, None]) / data.std[:, None, None])
    assert torch.allclose(seen, scene_thumbnail(trained, holey, 32), atol=1e-5)
    assert (seen[:, :, :8, :8].abs() < 1e-6).all() and (seen != 0).any()


def test_a_few_steps_train_both_streams_and_label_a_scene(tmp_path, scenes):
    result = fit_global_local(*scenes, TINY, tmp_path / "run", global_px=32, progress=False)
    trained = load_global_local(result.checkpoint)
    assert trained.classes == CLASSES and trained.network.global_px == 32 and not trained.network.training
    assert result.parameters == sum(p.numel() for p in trained.network.parameters())
    assert load_state(tmp_path / "run" / "last.ckpt")["global_step"] == 8

    torch.manual_seed(TINY.seed)
    fresh = module.GlobalLocalTask(
        global_px=32, model="unet", backbone=TINY.encoder, in_channels=3, num_classes=3
    ).model.state_dict()
    after = trained.network.state_dict()
    for part in ("local_encoder", "local_decoder", "global_encoder", "global_decoder", "head", "mixes"):
        weights = [k for k in after if k.startswith(part) and k.endswith("weight")]
        assert weights and any(not torch.equal(after[k], fresh[k]) for k in weights), part
    assert any(after[k].any() for k in after if k.startswith("mixes"))

    done = predict_fusion(trained, scenes[1][0], tmp_path / "p.tif", Cropping(64), progress=False)
    assert done.path.is_file()


def test_it_learns_and_validation_is_by_whole_scenes_too(tmp_path, scenes):
    config = TrainConfig(**{**vars(TINY), "steps": 40, "val_every": 20, "val_window_px": None})
    assert fit_global_local(*scenes, config, tmp_path, global_px=32, progress=False).val_mean_iou > 0.6


def test_a_killed_run_resumes_as_if_it_had_not_been(tmp_path, scenes, monkeypatch):
    config = TrainConfig(**{**vars(TINY), "steps": 6})
    fit_global_local(*scenes, config, tmp_path / "whole", global_px=32, progress=False)

    def killed(self, trainer, *rest):
        if trainer.global_step == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(StepProgress, "on_train_batch_end", killed)
    with pytest.raises(KeyboardInterrupt):
        fit_global_local(*scenes, config, tmp_path / "killed", global_px=32)
    monkeypatch.undo()
    with pytest.raises(UserError, match="has global_px = 32, not 64; resume it with its own settings"):
        fit_global_local(*scenes, config, tmp_path / "killed", global_px=64, resume=True, progress=False)
    fit_global_local(*scenes, config, tmp_path / "killed", global_px=32, resume=True, progress=False)
    whole, resumed = (load_state(tmp_path / name / "last.ckpt")["state_dict"] for name in ("whole", "killed"))
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_a_cropped_checkpoint_has_no_global_stream(tmp_path, scenes):
    result = fit(*scenes, TrainConfig(**{**vars(TINY), "steps": 1, "val_every": 1}), tmp_path, progress=False)
    with pytest.raises(UserError, match="holds no two-stream network; load it with load_checkpoint"):
        load_global_local(result.checkpoint)
    with pytest.raises(UserError, match="global_px is 50"):
        fit_global_local(*scenes, TINY, tmp_path / "c", global_px=50, progress=False)


def far_key(seed):
    """Its class stands in the far corner, as a colour that survives averaging, 32 px and more from what is asked."""
    draw, which = np.random.default_rng(seed), seed % 2
    image = draw.normal(120, 20, (128, 128, 3))
    image[96:, 96:, 2 * which] += 100
    label = np.full((128, 128), 1 + which, np.uint8)
    label[64:, 64:] = 0  # a crop of 32 px that touches the key has nothing else
    return Scene(ArraySource(image.clip(0, 255).astype(np.uint8)), ArraySource(label), CLASSES[:2], [0])


@pytest.mark.slow
def test_it_learns_what_no_crop_shows(tmp_path):
    """A positive control: fusion can use context, where there is some to use that a thumbnail shows."""
    scenes = [far_key(seed) for seed in range(16)], [far_key(seed) for seed in range(100, 104)]
    settings = {"steps": 200, "val_every": 20, "batch_size": 8, "crop_px": 32, "val_window_px": 32}
    config = TrainConfig(**{**vars(TINY), **settings})
    assert fit_global_local(*scenes, config, tmp_path / "fused", global_px=64, progress=False).val_mean_iou > 0.9
    assert fit(*scenes, config, tmp_path / "cropped", progress=False).val_mean_iou < 0.4  # 1/3 is what guessing gives
