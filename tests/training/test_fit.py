import csv

import pytest
import torch
from conftest import CLASSES, make_scene

from rsseglab.errors import UserError
from rsseglab.training import fit as module
from rsseglab.training.checkpoint import load_checkpoint
from rsseglab.training.fit import TrainConfig, fit
from rsseglab.training.task import SceneSegmentationTask, rate

TINY = TrainConfig(
    encoder="mobilenetv3_small_050", steps=8, batch_size=2, crop_px=64, val_every=4, val_window_px=64, lr=3e-3
)


@pytest.fixture
def scenes(tmp_path):
    return [make_scene(tmp_path, "a", seed=0)], [make_scene(tmp_path, "b", 70, 100, seed=1)]


def state(folder):
    return torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]


def test_a_killed_run_resumes_as_if_it_had_not_been(tmp_path, scenes, monkeypatch):
    whole = fit(*scenes, TINY, tmp_path / "whole", progress=False)

    advance = module.StepProgress.on_train_batch_end

    def killed(self, trainer, *rest):
        advance(self, trainer, *rest)
        if trainer.global_step == 7:  # between two checkpoints
            raise KeyboardInterrupt

    monkeypatch.setattr(module.StepProgress, "on_train_batch_end", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(*scenes, TINY, tmp_path / "killed")
    monkeypatch.undo()
    assert torch.load(tmp_path / "killed" / "last.ckpt", weights_only=True)["global_step"] == 6
    resumed = fit(*scenes, TINY, tmp_path / "killed", resume=True, progress=False)

    for key, value in state(tmp_path / "whole").items():
        assert torch.equal(value, state(tmp_path / "killed")[key]), key
    assert resumed.val_mean_iou == whole.val_mean_iou
    assert (tmp_path / "killed" / "metrics.1.csv").is_file()


def test_a_seed_gives_the_same_network_again(tmp_path, scenes):
    config = TrainConfig(**{**vars(TINY), "steps": 2, "val_every": 2})
    for name in ("one", "two"):
        fit(*scenes, config, tmp_path / name, progress=False)
    fit(*scenes, TrainConfig(**{**vars(config), "seed": 1}), tmp_path / "other", progress=False)
    key = "model.segmentation_head.0.weight"
    assert torch.equal(state(tmp_path / "one")[key], state(tmp_path / "two")[key])
    assert not torch.equal(state(tmp_path / "one")[key], state(tmp_path / "other")[key])


def test_it_learns_and_the_checkpoint_describes_itself(tmp_path, scenes):
    result = fit(*scenes, TrainConfig(**{**vars(TINY), "steps": 40, "val_every": 20}), tmp_path / "run", progress=False)
    assert result.val_mean_iou > 0.6  # three classes told apart by colour
    trained = load_checkpoint(result.checkpoint)
    assert trained.classes == CLASSES and trained.ignore_values == (0,) and trained.bands == scenes[0][0].bands
    assert (trained.encoder, trained.decoder, trained.crop_px) == ("mobilenetv3_small_050", "unet", 64)
    assert trained.mean.shape == trained.std.shape == (3,) and not trained.network.training
    with (tmp_path / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert any(row["val_mean_iou"] for row in rows) and any(row["train_loss"] for row in rows)


def test_validation_counts_what_the_label_counts(scenes):
    """The macro mean IoU that selects equals the one of the confusion over the same windows."""
    task = SceneSegmentationTask(backbone="mobilenetv3_small_050", num_classes=3)
    label = torch.randint(0, 3, (2, 32, 32))
    label[:, :8] = 255
    logits = torch.randn(2, 3, 32, 32)
    task.val_metrics(logits, label)
    guess, counts = logits.argmax(1), label != 255
    ious = [
        ((guess == k) & (label == k) & counts).sum() / (((guess == k) | (label == k)) & counts).sum() for k in range(3)
    ]
    assert torch.allclose(task.val_metrics.compute()["val_mean_iou"], torch.stack(ious).mean())


def test_rates():
    assert rate(0, 100, 10, "cosine") == pytest.approx(0.1)
    assert rate(50, 100, 10, "cosine") == pytest.approx(0.5)
    assert rate(100, 100, 10, "cosine") == pytest.approx(0.0)
    assert rate(50, 100, 0, "poly") == pytest.approx(0.5**0.9)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"crop_px": 100}, "crop_px is 100; it must be a multiple of 32"),
        ({"schedule": "step"}, "unknown schedule 'step'; choose one of cosine, poly"),
        ({"loss": "focal"}, "unknown loss 'focal'"),
    ],
)
def test_bad_settings(change, message):
    with pytest.raises(UserError, match=message):
        TrainConfig(**change)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(UserError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(UserError, match="is a folder"):
        load_checkpoint(tmp_path)
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save({"a": torch.ones(1)}, tmp_path / "other.ckpt")
    torch.save(torch.nn.Linear(1, 1), tmp_path / "pickle.ckpt")  # code, which weights_only refuses
    for name in ("text", "other", "pickle"):
        with pytest.raises(UserError, match="is not a checkpoint of rsseglab"):
            load_checkpoint(tmp_path / f"{name}.ckpt")
