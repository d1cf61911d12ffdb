import numpy as np
import pytest
import torch
from made import make_scene, write_raster

from rsseglab.errors import UserError
from rsseglab.scenes import IGNORE_INDEX, ArraySource, Scene
from rsseglab.scenes.datamodule import CropDataset, SceneDataModule, StepSampler, WindowDataset, band_statistics
from rsseglab.scenes.raster import Window


@pytest.fixture
def scenes(tmp_path):
    return [make_scene(tmp_path, "a", 96, 130, 0), make_scene(tmp_path, "b", 200, 64, 1)]


def test_a_seed_gives_the_same_crops_again(scenes):
    one, two, other = CropDataset(scenes, 32, 7), CropDataset(scenes, 32, 7), CropDataset(scenes, 32, 8)
    assert [one.window(i) for i in range(50)] == [two.window(i) for i in range(50)]
    assert [one.window(i) for i in range(50)] != [other.window(i) for i in range(50)]
    assert torch.equal(one[3]["image"], two[3]["image"])


def test_crops_are_inside_and_cover_scenes_by_area(scenes):
    drawn = [CropDataset(scenes, 32, 0).window(i) for i in range(3000)]
    assert all(0 <= w.row <= s.height - 32 and 0 <= w.col <= s.width - 32 for s, w in drawn)
    assert {w.row for s, w in drawn if s is scenes[0]} == set(range(96 - 32 + 1))  # both ends included
    share = np.mean([s is scenes[0] for s, _ in drawn])
    expected = 96 * 130 / (96 * 130 + 200 * 64)
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 3000)


def test_a_sample_is_what_the_files_hold(scenes):
    data = CropDataset(scenes, 32, 0)
    scene, window = data.window(5)
    sample = data[5]
    assert sample["image"].dtype == torch.float32 and sample["mask"].dtype == torch.int64
    assert np.array_equal(sample["image"].numpy(), scene.read(window))
    assert np.array_equal(sample["mask"].numpy(), scene.read_label(window))


def test_grid_windows_count_every_labelled_pixel_once(scenes):
    for side in (64, None):
        masks = torch.cat([sample["mask"].flatten() for sample in WindowDataset(scenes, side)])
        counted = np.bincount(masks[masks != IGNORE_INDEX], minlength=3)
        labels = np.concatenate([scene.read_label().ravel() for scene in scenes])
        assert np.array_equal(counted, np.bincount(labels[labels != IGNORE_INDEX], minlength=3))


def test_padding_is_filled_with_the_mean(scenes):
    fill = torch.tensor([1.0, 2.0, 3.0])
    sample = WindowDataset(scenes, None, fill)[0]
    assert sample["image"].shape == (3, 96, 160)
    assert torch.equal(sample["image"][:, :, 130:], fill[:, None, None].expand(3, 96, 30))


def test_steps_see_their_own_samples():
    step = 0
    sampler = StepSampler(6, lambda: step, batch_size=3)
    assert list(sampler) == [0, 1, 2, 3, 4, 5]
    step = 5
    assert list(sampler) == [15, 16, 17, 18, 19, 20]


def test_statistics_do_not_cancel_on_large_numbers():
    pixels = np.random.default_rng(0).normal(1e6, 1.0, (64, 64, 2)).astype(np.float64)
    pixels[..., 1] = 5  # a constant band
    crops = CropDataset([Scene(ArraySource(pixels))], 64, 0)
    mean, std = band_statistics(crops, 4)
    assert np.allclose(mean, pixels.mean((0, 1)), rtol=1e-12) and abs(float(std[0]) - pixels[..., 0].std()) < 1e-6
    assert std[1] == 1


def test_statistics_leave_out_pixels_without_data(tmp_path):
    image = np.full((1, 64, 64), 10, np.uint16)
    image[:, ::2] = 0
    write_raster(tmp_path / "n.tif", image, nodata=0)
    mean, _ = band_statistics(CropDataset([Scene(tmp_path / "n.tif")], 32), 8)
    assert mean.tolist() == [10.0]


def test_augmentation_moves_image_and_label_alike(scenes):
    statistics = (torch.full((3,), 80.0), torch.full((3,), 40.0))
    plain, augmented = CropDataset(scenes, 32, 5), CropDataset(scenes, 32, 5, statistics=statistics)
    turns = set()
    for i in range(40):
        before, after, done = plain[i], augmented[i], augmented.augmentation(i)
        assert torch.equal(after["mask"], done.move(before["mask"])) and after["mask"].dtype == torch.int64
        assert torch.allclose(after["image"], done.shade(done.move(before["image"]), *statistics))
        turns.add((done.turns, done.flip))
    assert len(turns) == 8  # every flip and turn of a square


@pytest.mark.parametrize("crop_px", [64, None])
def test_parts_put_together_are_the_sample(scenes, crop_px):
    """Each of two ranks reads its half of the augmented crop."""
    statistics = (torch.full((3,), 80.0), torch.full((3,), 40.0))

    def half(which):
        return lambda height, width: Window(which * (height // 2), 0, [height // 2, height - height // 2][which], width)

    whole = CropDataset(scenes, crop_px, 5, statistics=statistics)
    halves = [CropDataset(scenes, crop_px, 5, statistics=statistics, part=half(k)) for k in (0, 1)]
    for i in range(12):
        samples = [data[i] for data in halves]
        for key in ("image", "mask"):
            assert torch.equal(torch.cat([s[key] for s in samples], dim=-2), whole[i][key])
        assert samples[0]["size"].tolist() == list(whole[i]["mask"].shape)


def test_groups_share_a_step():
    step = 2
    one, two = (list(StepSampler(6, lambda: step, 3, group, 2)) for group in (0, 1))
    assert one == [12, 13, 14, 18, 19, 20] and two == [15, 16, 17, 21, 22, 23]
    assert sorted(one + two) == list(StepSampler(12, lambda: step, 6))


def test_whole_scenes_as_validation_windows(scenes):
    data = SceneDataModule(scenes, scenes, crop_px=32, val_window_px=None)
    data.setup("fit")
    assert [b["image"].shape for b in data.val_dataloader()] == [(1, 3, 96, 160), (1, 3, 224, 64)]


def test_errors_name_cause_and_remedy(tmp_path, scenes):
    with pytest.raises(UserError, match=r"crop of 128 px is larger than scene a .*train with --crop 96 or less"):
        SceneDataModule(scenes, scenes, crop_px=128)
    with pytest.raises(UserError, match="no scene to train on"):
        SceneDataModule([], [])
    four = make_scene(tmp_path, "c", bands=4)
    with pytest.raises(UserError, match="scene c has 4 bands but a has 3"):
        SceneDataModule([*scenes, four], scenes, crop_px=32)


def test_a_scene_without_labels_is_refused(tmp_path, scenes):
    write_raster(tmp_path / "empty.tif", np.zeros((96, 130), np.uint8))
    empty = Scene(tmp_path / "a_image.tif", tmp_path / "empty.tif", scenes[0].classes, [0], bands=scenes[0].bands)
    for train, val in (([empty], scenes), (scenes, [empty])):
        with pytest.raises(UserError, match="scene a_image has no labelled pixel"):
            SceneDataModule(train, val, crop_px=32)
