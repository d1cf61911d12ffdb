"""Each tile a scene of its own: equal to the plain network on the tiles as a batch, and nothing is sent."""

import pytest
import torch
import torch.nn.functional as F

from rsseglab.spatial import Layout, SpatialError, apart, cut, join, together
from rsseglab.spatial.exchange import Traffic
from tests.spatial.networks import build

LAYOUTS = [Layout(4), Layout(2, 2), Layout(1, 3), Layout(2, 3)]


def tiles_of(x, layout, multiple=1):
    """The tiles of a scene, cut with plain slices, tile after tile in the batch."""
    tall, wide = (
        -(-n // (p * multiple)) * multiple for n, p in zip(x.shape[2:], (layout.rows, layout.cols), strict=True)
    )
    x = F.pad(x, (0, wide * layout.cols - x.shape[3], 0, tall * layout.rows - x.shape[2]))
    rows = [x[:, :, tall * i : tall * (i + 1)] for i in range(layout.rows)]
    return torch.cat([row[..., wide * j : wide * (j + 1)] for row in rows for j in range(layout.cols)])


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda a: f"{a.rows}x{a.cols}")
def test_tiles_and_back(layout):
    x = torch.randn(2, 3, 61, 58)
    batch = apart(cut(x, layout), 8)
    assert torch.equal(join(batch), tiles_of(x, layout, 8))
    assert torch.equal(join(together(batch))[:, :, :61, :58], x)


@pytest.mark.parametrize("network", [("Unet", "resnet18"), ("Unet", "mit_b0"), ("DeepLabV3Plus", "resnet18")], ids=str)
def test_a_network_on_each_tile_alone(network):
    model, layout = build(*network).train(), Layout(2, 2)
    x = torch.randn(2, 3, 128, 192, dtype=torch.float64)
    for module in model.modules():
        if type(module).__name__ == "DropPath":
            module.drop_prob = 0.0
    theirs = model(tiles_of(x, layout))
    theirs.square().mean().backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    batch = apart(cut(x, layout))
    Traffic.reset()
    ours = model(batch)
    assert {name for name, _ in Traffic.sent} <= {"batch_norm"}  # sums of statistics, and no pixel
    assert (join(ours) - theirs).abs().max() < 1e-10
    join(ours).square().mean().backward()
    assert max(float((p.grad - g).abs().max()) for p, g in zip(model.parameters(), wanted, strict=True)) < 1e-10


def test_is_not_the_whole_scene():
    model, x = build("Unet", "resnet18").eval(), torch.randn(1, 3, 128, 128, dtype=torch.float64)
    with torch.no_grad():
        alone = join(together(model(apart(cut(x, Layout(2))))))
        assert (alone - model(x)).abs().max() > 0.01


def test_refusals():
    with pytest.raises(SpatialError, match="leave one that holds nothing of the scene; use at most 2 bands of rows"):
        apart(cut(torch.randn(1, 3, 40, 64), Layout(3)), 32)
    with pytest.raises(SpatialError, match="not a map"):
        apart(cut(torch.randn(2, 8, 8), Layout(2)))
    with pytest.raises(SpatialError, match="not a batch of tiles"):
        together(cut(torch.randn(2, 3, 8, 8), Layout(2)))


def test_what_is_no_batch_of_maps_goes_the_long_way():
    x = torch.randn(4, 3, 8, 8)
    batch = apart(cut(x, Layout(2)))
    assert torch.equal(join(F.pad(batch, (0, 0, 0, 0, 0, 0, 0, 1))), F.pad(join(batch), (0, 0, 0, 0, 0, 0, 0, 1)))
    with pytest.raises(SpatialError, match="indices"):
        F.max_pool2d(batch, 2, return_indices=True)
