import csv

import pytest
import torch
from made import CLASSES, make_scene

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


def state(folder, name="last"):
    return torch.load(folder / f"{name}.ckpt", weights_only=True)["state_dict"]


def validations(*logs):
    rows = [row for log in logs for row in csv.DictReader(log.open())]
    return [(int(row["step"]), row["val_mean_iou"]) for row in rows if row["val_mean_iou"]]


@pytest.mark.parametrize("steps", [10, 11])
@pytest.mark.parametrize(
    ("hook", "step"), [("on_train_batch_end", 7), ("on_validation_start", 8), ("on_train_batch_start", 8)]
)
def test_a_killed_run_resumes_as_if_it_had_not_been(tmp_path, scenes, monkeypatch, hook, step, steps):
    """Killed between two checkpoints, before a validation, and after one; the last epoch is shorter."""
    config = TrainConfig(**{**vars(TINY), "steps": steps})
    whole = fit(*scenes, config, tmp_path / "whole", progress=False)

    def killed(self, trainer, *rest):
        if trainer.global_step == step:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.StepProgress, hook, killed)
    with pytest.raises(KeyboardInterrupt):
        fit(*scenes, config, tmp_path / "killed")
    monkeypatch.undo()
    (tmp_path / "killed").rename(tmp_path / "moved")
    resumed = fit(*scenes, config, tmp_path / "moved", resume=True, progress=False)

    for name in ("last", "best"):
        expected, found = state(tmp_path / "whole", name), state(tmp_path / "moved", name)
        assert expected.keys() == found.keys()
        assert not [key for key in expected if not torch.equal(expected[key], found[key])]
    assert resumed.val_mean_iou == whole.val_mean_iou and resumed.checkpoint == tmp_path / "moved" / "best.ckpt"
    expected = validations(tmp_path / "whole" / "metrics.csv")
    assert [s for s, _ in expected] == [3, 7, steps - 1]
    logs = [tmp_path / "moved" / name for name in ("metrics.1.csv", "metrics.csv")]
    assert validations(*(log for log in logs if log.exists())) == expected


def test_the_best_checkpoint_is_the_best(tmp_path, scenes):
    result = fit(*scenes, TrainConfig(**{**vars(TINY), "steps": 12, "val_every": 2}), tmp_path, progress=False)
    scores = [float(score) for _, score in validations(tmp_path / "metrics.csv")]
    assert result.val_mean_iou == pytest.approx(max(scores), abs=1e-6) and min(scores) < max(scores)


def test_another_run_is_neither_overwritten_nor_resumed(tmp_path, scenes):
    config = TrainConfig(**{**vars(TINY), "steps": 2, "val_every": 2})
    fit(*scenes, config, tmp_path, progress=False)
    with pytest.raises(UserError, match="holds a run already; give --resume"):
        fit(*scenes, config, tmp_path, progress=False)
    with pytest.raises(UserError, match=r"has lr = 0.003, not 0.5; resume it with its own settings"):
        fit(*scenes, TrainConfig(**{**vars(config), "lr": 0.5}), tmp_path, resume=True, progress=False)
    with pytest.raises(UserError, match="has mean = "):
        fit(scenes[1], scenes[1], config, tmp_path, resume=True, progress=False)
    with pytest.raises(UserError, match=r"has scenes = .*resume it with its own settings and data"):
        fit(scenes[0], scenes[0], config, tmp_path, resume=True, progress=False)


def test_whole_scenes_of_any_size(tmp_path, scenes):
    """A stock network takes multiples of 32 px: what is missing is added, and not labelled."""
    config = TrainConfig(**{**vars(TINY), "steps": 1, "val_every": 1, "batch_size": 1, "crop_px": None})
    assert fit(scenes[1], scenes[1], config, tmp_path, progress=False).checkpoint.exists()


def test_random_numbers_of_a_step_do_not_depend_on_what_came_before():
    task = SceneSegmentationTask(backbone="mobilenetv3_small_050", num_classes=3, seed=3)
    draws = []
    for burn in (0, 17):
        torch.rand(burn)
        task.on_train_batch_start(None, 0)
        draws.append(torch.rand(4))
    assert torch.equal(*draws)


def test_one_crop_where_a_map_is_pooled_to_a_pixel(tmp_path, scenes):
    with pytest.raises(UserError, match="upernet pools a crop to one pixel, whose batch norm needs two"):
        fit(*scenes, TrainConfig(**{**vars(TINY), "decoder": "upernet", "batch_size": 1}), tmp_path, progress=False)


def test_a_lost_loss_and_a_full_disk_are_said_plainly(tmp_path, scenes, monkeypatch):
    with pytest.raises(UserError, match=r"the loss is .* lower the learning rate"):
        fit(
            *scenes,
            TrainConfig(**{**vars(TINY), "lr": 1e9, "steps": 40, "val_every": 40}),
            tmp_path / "a",
            progress=False,
        )

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.Trainer, "save_checkpoint", full)
    with pytest.raises(UserError, match=r"No space left on device.*free some space"):
        fit(*scenes, TINY, tmp_path / "b", progress=False)


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path, scenes, monkeypatch):
    config = TrainConfig(**{**vars(TINY), "steps": 4, "val_every": 2})

    def half(self, path):
        if self.global_step > 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(self, path)

    save = module.Trainer.save_checkpoint
    monkeypatch.setattr(module.Trainer, "save_checkpoint", half)
    with pytest.raises(UserError):
        fit(*scenes, config, tmp_path, progress=False)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    assert not list(tmp_path.glob("*.part"))


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
        ({"lr": float("nan")}, "lr is nan"),
        ({"seed": 2**60}, "seed is"),
        ({"crop_px": 100}, "crop_px is 100; it must be a multiple of 32"),
        ({"schedule": "step"}, "unknown schedule 'step'; choose one of cosine, poly"),
        ({"loss": "huber"}, "unknown loss 'huber'"),
        ({"precision": "foo"}, "unknown precision 'foo'"),
        ({"seed": -1}, "seed is -1"),
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
    torch.save(torch.zeros(3), tmp_path / "tensor.ckpt")
    for name in ("text", "other", "pickle", "tensor"):
        with pytest.raises(UserError, match="is not a checkpoint of rsseglab"):
            load_checkpoint(tmp_path / f"{name}.ckpt")
