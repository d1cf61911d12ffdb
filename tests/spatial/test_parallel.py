"""Data groups: each scene is dealt once, and what is drawn for it depends on nothing but its index."""

import pytest
import torch

from rsseglab.spatial import Layout, SceneSampler, SpatialError, augmentation, join, read_scene


def test_sampler_in_one_process():
    sampler = SceneSampler(6)
    first = list(sampler)
    sampler.set_epoch(1)
    assert sorted(first) == sorted(sampler) == list(range(6)) and first != list(sampler)
    assert list(SceneSampler(3, shuffle=False)) == [0, 1, 2]


def test_augmentation_depends_on_sample_epoch_and_seed():
    def draw(*key):
        return torch.randint(10**9, (), generator=augmentation(*key)).item()

    assert draw(3) == draw(3)
    assert len({draw(3), draw(4), draw(3, 1), draw(3, 0, 1)}) == 4


def test_read_scene_of_one_tile():
    x = torch.randn(1, 2, 5, 4)
    scene = read_scene(lambda r, c, h, w: x[:, :, r : r + h, c : c + w], Layout(1), 5, 4)
    assert torch.equal(join(scene), x)


def test_too_few_scenes():
    with pytest.raises(SpatialError, match="0 scenes"):
        SceneSampler(0)
