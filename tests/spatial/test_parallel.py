"""Data groups: each scene is dealt once, and what is drawn for it depends on nothing but its index."""

import pytest
import torch

from rsseglab.spatial import Layout, SceneSampler, SpatialError, augmentation, cut, join, read_scene


def test_sampler_in_one_process():
    sampler = SceneSampler(6)
    first = list(sampler)
    sampler.set_epoch(1)
    assert sorted(first) == sorted(sampler) == list(range(6)) and first != list(sampler)
    assert list(SceneSampler(3, shuffle=False)) == [0, 1, 2]


def test_orders_of_a_run_are_not_those_of_another_seed():
    def order(seed, epoch):
        sampler = SceneSampler(50, seed=seed)
        sampler.set_epoch(epoch)
        return tuple(sampler)

    assert len({order(seed, epoch) for seed in range(8) for epoch in range(8)}) == 64


def test_augmentation_depends_on_sample_epoch_and_seed():
    def draw(*key):
        return torch.randint(10**9, (), generator=augmentation(*key)).item()

    assert draw(3) == draw(3)
    assert len({draw(3), draw(4), draw(3, 1), draw(3, 0, 1)}) == 4


def test_augmentation_never_meets_another_samples():
    samples = (*range(40), 7_919, 1_000_003)
    keys = [(sample, epoch, seed) for sample in samples for epoch in range(20) for seed in range(5)]
    seeds = {augmentation(*key).initial_seed() for key in keys}
    assert len(seeds) == len(keys)
    assert len({seed % 2**32 for seed in seeds}) == len(keys)  # the part that torch takes on the CPU


@pytest.mark.parametrize("layout", [Layout(1), Layout(3), Layout(2, 3), Layout(1, 4)], ids=str)
@pytest.mark.parametrize("shape", [(1, 2, 9, 8), (1, 9, 8)])
def test_read_scene_is_cut_window_by_window(layout, shape):
    x = torch.randn(shape, requires_grad=True)
    asked = []

    def read(row, col, height, width):
        asked.append((row, col, height, width))
        return x[..., row : row + height, col : col + width]

    scene = read_scene(read, layout, 9, 8)
    assert asked == layout.windows(9, 8)
    assert scene.axes == cut(x, layout).axes and torch.equal(join(scene), x)
    (2 * join(scene)).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2))


def test_read_scene_refuses_what_is_not_the_window():
    with pytest.raises(SpatialError, match="window of 3 x 8 px at row 3"):
        read_scene(lambda r, c, h, w: torch.zeros(1, 2, h - (r == 3), w), Layout(3), 9, 8)
    with pytest.raises(SpatialError, match="float64"):
        read_scene(lambda r, c, h, w: torch.zeros(1, 2, h, w, dtype=torch.float64 if r else None), Layout(3), 9, 8)


def test_too_few_scenes():
    with pytest.raises(SpatialError, match="0 scenes"):
        SceneSampler(0)
