"""The memory that labelling a scene whole will take: known answers, and what is measured."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rsseglab.decoders import create_network
from rsseglab.inference.estimate import MARGIN, MARGIN_MIB, _estimate_mib, estimate_mib, free_mib
from rsseglab.measure import Measure
from rsseglab.rest import SPIM
from rsseglab.spatial import Layout

SIDE = 256
MAP_MIB = SIDE * SIDE * 4 / 2**20  # of a channel


def counted(network, side=SIDE, layout=None, bands=3):
    """In maps of one channel; without the margin, and without the labels, a quarter of one."""
    return ((estimate_mib(network.eval(), bands, side, side, layout) - MARGIN_MIB) / MARGIN) / MAP_MIB - 0.25


def test_maps_that_live_together():
    chain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1), nn.Conv2d(16, 2, 1))
    assert counted(chain) == pytest.approx(3 + 8 + 16)  # the image stands; of the others two at a time
    assert counted(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=True))) == pytest.approx(3 + 8)
    pooled = nn.Sequential(nn.Conv2d(3, 8, 1), nn.MaxPool2d(2))
    assert counted(pooled) == pytest.approx(3 + 8 + 2 + 4)  # and indices of 8 bytes, that nobody sees

    class Skip(nn.Module):
        def forward(self, x):
            a = x.repeat(1, 4, 1, 1)
            b = a * 2
            del a
            return torch.cat([x, b], 1)

    assert counted(Skip()) == pytest.approx(3 + 12 + 15)
    assert not any(parameter.is_meta for parameter in chain.parameters())


def test_fused_attention_holds_no_scores():
    class Attention(nn.Module):
        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)[:, None]  # a view: channels are last
            return F.scaled_dot_product_attention(tokens, tokens, tokens)

    assert counted(Attention(), bands=4) == pytest.approx(4 + 4)

    class ByHand(Attention):
        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)[:, None]  # a view: channels are last
            return (tokens @ tokens.transpose(-1, -2)).softmax(-1) @ tokens

    scores = SIDE * SIDE  # maps
    assert counted(ByHand(), bands=4) == pytest.approx(4 + 2 * scores)


def test_a_worker_of_several():
    chain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 1))
    assert counted(chain, layout=Layout(4)) + 0.25 == pytest.approx((3 + 8 + 16 + 0.25) / 4)
    rows = nn.Conv2d(3, 1, (3, 1), padding=(1, 0))
    with_halo = counted(rows, layout=Layout(4)) + 0.25 - (3 + 1 + 0.25) / 4
    assert 0 < with_halo < 1  # a halo of two rows, and a copy of the tile with it at most
    # keys of all tiles are the same number however many the tiles are; queries are shared out
    spim = nn.Sequential(nn.Conv2d(3, 32, 8, 8), SPIM(32))
    one, two, eight = (counted(spim, layout=Layout(p)) for p in (1, 2, 8))
    assert one > two > 3.5 * eight


@pytest.mark.parametrize(("heads", "workers"), [(1, 2), (3, 2), (2, 3)])
def test_the_worker_with_most_heads_counts(heads, workers):
    """Heads that can't be shared out evenly: who attends in one more holds more keys."""
    spim = nn.Sequential(nn.Conv2d(3, 48, 8, 8), SPIM(48, heads=heads))
    layout = Layout(workers)
    each = [_estimate_mib(spim, 3, 960, 960, layout, "cpu", rank) for rank in range(workers)]
    assert max(each) > 1.02 * min(each) and estimate_mib(spim, 3, 960, 960, layout) >= 0.99 * max(each)


@pytest.mark.parametrize(
    ("encoder", "decoder"), [("resnet18", "unet"), ("tf_efficientnet_lite0", "unet"), ("mit_b0", "segformer")]
)
def test_over_tiles_a_worker_takes_its_share(encoder, decoder):
    network = create_network(encoder, decoder, 3, 6)
    one, four = (counted(network, 1024, layout) for layout in (None, Layout(2, 2)))
    assert 0.24 < four / one < 0.35


def test_measured_memory_is_below_the_estimate_and_near_what_is_counted():
    network = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 6, 1)).eval()
    network = network.to(memory_format=torch.channels_last)
    side = 768
    with torch.inference_mode():
        network(torch.zeros(1, 3, 32, 32))
        with Measure() as cost:
            network(torch.rand(1, side, side, 3).permute(0, 3, 1, 2))
    estimate = estimate_mib(network, 3, side, side)
    assert cost.peak_mib <= estimate
    assert 0.75 < cost.peak_mib / ((estimate - MARGIN_MIB) / MARGIN) < 1.5


def test_free_memory_is_that_of_the_machine():
    assert 0 < free_mib(torch.device("cpu")) < 2**25
