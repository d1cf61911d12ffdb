"""What can't be kept exact is refused by name, with the global shape; nothing falls through to a tile."""

import pytest
import torch
import torch.nn.functional as F

from rsseglab.spatial import Layout, SpatialError, cut, join, replicate


@pytest.fixture
def scene():
    return cut(torch.randn(1, 4, 12, 8), Layout(3))


REFUSED = {
    "fft2": lambda x: torch.fft.fft2(x),
    "sort": lambda x: x.sort(2),
    "cumsum": lambda x: x.cumsum(2),
    "grid_sample": lambda x: F.grid_sample(x, torch.zeros(1, 5, 5, 2)),
    "max pooling with indices": lambda x: F.max_pool2d(x, 2, return_indices=True),
    "antialias": lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True),
    "crosses tiles": lambda x: x.__setitem__((slice(None), slice(None), 3), 0.0),
    "masks": lambda x: x[x > 0],
    "any, all": lambda x: (x > 0).any(),
    "different layouts": lambda x: x + cut(torch.zeros(1, 4, 12, 8), Layout(2)),
    "different layouts or": lambda x: torch.cat([x, cut(torch.zeros(1, 4, 12, 8), Layout(2))], 1),
    "already cut": lambda x: cut(x, Layout(3)),
    "item": lambda x: x.item(),
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "repeat": lambda x: x.repeat(1, 1, 2, 1),
    "batch_norm": lambda x: F.batch_norm(x.permute(0, 2, 1, 3), torch.zeros(12), torch.ones(12)),
    r"out=": lambda x: torch.add(x, 1, out=torch.zeros(1, 4, 12, 8)),
    "plain": lambda x: torch.zeros(1, 4, 12, 8).add_(x),
    "cross_entropy": lambda x: F.cross_entropy(x, torch.zeros(1, 12, 9).long()),
    "rand_like": lambda x: torch.rand_like(x),
    "bernoulli_": lambda x: x.bernoulli_(),
    "multi_head": lambda x: torch.nn.MultiheadAttention(8, 2, add_zero_attn=True)(x[:, 0], x[:, 0], x[:, 0]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(scene, name):
    with pytest.raises(SpatialError, match=name):
        REFUSED[name](scene)


def test_the_message_says_what_to_do(scene):
    with pytest.raises(SpatialError, match=r"torch.fft.*\[1, 4, 12, 8\].*spatial.replicate"):
        torch.fft.fft2(scene)
    whole = replicate(scene)
    assert torch.equal(join(torch.fft.fft2(whole)), torch.fft.fft2(whole))


def test_below_autograd_nothing_happens_to_a_wrapper(scene):
    with pytest.raises(SpatialError, match=r"aten\.|sin"), torch._C.DisableTorchFunctionSubclass():
        torch.sin(scene)
