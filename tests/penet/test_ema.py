"""EMA against a plain twin, and what follows from its equations."""

import pytest
import torch

from rsseglab.errors import UserError
from rsseglab.penet import EfficientMultiScaleAttention
from rsseglab.spatial import Layout, cut, join


def plain(module, x):
    """The equations, group by group and channel by channel."""
    batch, dim, height, width = x.shape
    k = dim // module.groups
    w1, b1 = module.along.weight[:, :, 0, 0], module.along.bias
    out = torch.empty_like(x)
    for b in range(batch):
        for g in range(module.groups):
            group = x[b, g * k : (g + 1) * k]
            a_h = torch.stack([w1 @ group[:, i].mean(1) + b1 for i in range(height)], 1)  # (k, H)
            a_w = torch.stack([w1 @ group[:, :, j].mean(1) + b1 for j in range(width)], 1)  # (k, W)
            gated = group * a_h.sigmoid()[:, :, None] * a_w.sigmoid()[:, None]
            mean = gated.mean((1, 2), keepdim=True)
            var = ((gated - mean) ** 2).mean((1, 2), keepdim=True)
            first = (gated - mean) / (var + module.norm.eps).sqrt()
            first = first * module.norm.weight[:, None, None] + module.norm.bias[:, None, None]
            second = torch.nn.functional.conv2d(group[None], module.around.weight, module.around.bias, padding=1)[0]
            q1, q2 = first.mean((1, 2)).softmax(0), second.mean((1, 2)).softmax(0)
            m = torch.einsum("k,khw->hw", q1, second) + torch.einsum("k,khw->hw", q2, first)
            out[b, g * k : (g + 1) * k] = group * m.sigmoid()
    return out


@pytest.fixture
def module():
    torch.manual_seed(0)
    module = EfficientMultiScaleAttention(12, 3).double()
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return module


def test_equals_the_equations_and_their_gradients(module):
    x = torch.randn(2, 12, 7, 9, dtype=torch.float64, requires_grad=True)
    ours, theirs = module(x), plain(module, x)
    assert (ours - theirs).abs().max() < 1e-12
    up = torch.randn_like(ours)
    inputs = [x, *module.parameters()]
    for a, b in zip(torch.autograd.grad(ours, inputs, up), torch.autograd.grad(theirs, inputs, up), strict=True):
        assert (a - b).abs().max() < 1e-12


@pytest.mark.parametrize(("dim", "groups", "count"), [(512, 32, 2624), (256, 32, 672), (128, 32, 176), (256, 8, 10368)])
def test_parameters(dim, groups, count):
    k = dim // groups
    module = EfficientMultiScaleAttention(dim, groups)
    assert sum(p.numel() for p in module.parameters()) == 10 * k**2 + 4 * k == count


def test_the_mean_of_the_normalised_map_is_its_shift(module):
    for seed in range(3):
        x = torch.randn(1, 4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        assert (module.norm(x).mean((2, 3)) - module.norm.bias).abs().max() < 1e-12


def test_groups_share_their_weights(module):
    order = [8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7]
    x = torch.randn(1, 12, 8, 8, dtype=torch.float64)  # whole vectors of a CPU: equal to the bit
    assert torch.equal(module(x[:, order]), module(x)[:, order])
    x = torch.randn(1, 12, 5, 5, dtype=torch.float64)  # torch rounds the sigmoid of what is left over another way
    assert (module(x[:, order]) - module(x)[:, order]).abs().max() < 1e-12


@pytest.mark.parametrize("layout", [Layout(1), Layout(2), Layout(4), Layout(2, 2)])
def test_tiles_are_one_scene(module, layout):
    x = torch.randn(2, 12, 16, 12, dtype=torch.float64, requires_grad=True)
    ours, theirs = join(module(cut(x, layout))), module(x)
    assert (ours - theirs).abs().max() < 1e-12
    up = torch.randn_like(theirs)
    inputs = [x, *module.parameters()]
    for a, b in zip(torch.autograd.grad(ours, inputs, up), torch.autograd.grad(theirs, inputs, up), strict=True):
        assert (a - b).abs().max() < 1e-12


def test_channels_that_cannot_be_grouped_are_refused():
    with pytest.raises(UserError, match="10 channels can't be put in 4 groups"):
        EfficientMultiScaleAttention(10, 4)
