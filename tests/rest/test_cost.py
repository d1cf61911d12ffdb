"""Cost of SPIM and of halos: equal to what torch counts and to what the exchange counts; what predictions say."""

from itertools import product

import pytest
import torch
import torch.nn.functional as F
from ranks import spawn
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from rsseglab.errors import UserError
from rsseglab.rest import SPIM, cost
from rsseglab.rest.cost import (
    A100,
    PREDICTED,
    SWIN_LARGE,
    Bend,
    bend,
    flop_counter,
    grid,
    halo_cost,
    level_cost,
    level_seconds,
    measure_rates,
    network_cost,
    predict_exact,
    predict_spim,
    scene_cost,
)
from rsseglab.spatial import Layout, cut
from rsseglab.spatial.exchange import Traffic
from rsseglab.spatial.rules import ring
from rsseglab.spatial.scale import UNet

SHAPES = [  # height and width of the map, channels, heads, pool, mlp_ratio
    (12, 10, 32, 8, 1, 4),
    (17, 9, 24, 4, 1, 2.5),
    (20, 14, 16, 1, 2, 4),
    (13, 11, 16, 2, 3, 4),
]
LAYOUTS = [Layout(1), Layout(2), Layout(3), Layout(5), Layout(2, 2)]


def counted(spim, x):
    """FLOPs of forward and of backward, as torch counts them."""
    with flop_counter() as forward:
        y = spim(x)
    with flop_counter() as backward:
        y.mean().backward()
    return forward.get_total_flops(), backward.get_total_flops()


def costs(height, width, channels, heads, pool, ratio, layout, **options):
    """Of a float64 map, at stride 1."""
    options = {"heads": heads, "pool": pool, "mlp_ratio": ratio, "element_bytes": 8} | options
    return level_cost(height, width, 1, channels, layout, **options)


def flops(level, backward=False):
    return level.total("linear_flops", backward) + level.total("attention_flops", backward)


@pytest.mark.parametrize(("shape", "layout"), list(product(SHAPES, LAYOUTS)), ids=str)
def test_flops_and_bytes_are_those_counted(shape, layout):
    height, width, channels, heads, pool, ratio = shape
    spim = SPIM(channels, heads, ratio, pool=pool).double()
    x = torch.randn(1, channels, height, width).double().requires_grad_()
    level = costs(*shape, layout)
    Traffic.reset()
    assert counted(spim, cut(x, layout)) == (flops(level), flops(level, backward=True))
    for tile in range(layout.parts):
        forward, backward = level.forward[tile], level.backward[tile]
        assert Traffic.sent["SPIM", tile] == forward.sent_bytes
        assert Traffic.sent["backward of SPIM", tile] == backward.sent_bytes
        if pool == 1:  # else pooling has its halo
            assert Traffic.messages[tile] == forward.messages + backward.messages


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_map_that_is_not_cut_costs_the_same(shape):
    height, width, channels, heads, pool, ratio = shape
    spim, x = SPIM(channels, heads, ratio, pool=pool), torch.randn(1, channels, height, width, requires_grad=True)
    level = costs(*shape, Layout(1))
    assert counted(spim, x) == (flops(level), flops(level, backward=True))
    assert level.forward[0].sent_bytes == level.forward[0].messages == level.backward[0].sent_bytes == 0


@pytest.mark.parametrize("heads", [4, "world"])
@pytest.mark.parametrize("layout", [Layout(3), Layout(6), Layout(2, 2)], ids=str)
def test_each_workers_scores_are_those_of_its_kernel(heads, layout, monkeypatch):
    """A worker's exponentials: the elements of the score matrix that it would fill, were it kept."""
    scores, kernel = [], F.scaled_dot_product_attention

    def recorded(q, k, v):
        scores.append(q.shape[0] * q.shape[1] * q.shape[2] * k.shape[2])
        return kernel(q, k, v)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    SPIM(24, heads)(cut(torch.randn(1, 24, 13, 8), layout))
    level = level_cost(13, 8, 1, 24, layout, heads=heads)
    works = [w for w in level.forward if w.exponentials]  # a worker without a head calls no kernel
    assert [w.exponentials for w in works] == scores
    assert [w.attention_flops for w in works] == [4 * level.head_channels * s for s in scores]


def count_on_ranks(rank):
    mesh = init_device_mesh("cpu", (2,))
    layout = Layout(2, 1, mesh)
    for exchange, heads in (("all_to_all", 4), ("all_to_all", 3), ("all_to_all", 1), ("ring", 3)):
        ring.RING_BYTES = 0
        spim = SPIM(24, heads, exchange=exchange).double()
        Traffic.reset()
        found = counted(spim, cut(torch.randn(1, 24, 11, 7).double().requires_grad_(), layout))
        level = costs(11, 7, 24, heads, 1, 4, layout, exchange=exchange)
        works = level.forward[rank], level.backward[rank]
        assert found == tuple(w.linear_flops + w.attention_flops for w in works)
        names = ("SPIM", "backward of SPIM")
        if exchange == "ring":
            names = ("scaled_dot_product_attention", "backward of scaled_dot_product_attention")
        assert [Traffic.sent[name, rank] for name in names] == [w.sent_bytes for w in works]
        assert Traffic.messages[rank] == sum(w.messages for w in works)


def test_two_ranks_count_the_same():
    spawn(2, count_on_ranks)


def test_the_ring_has_work_for_more_workers_than_heads():
    few = [level_cost(64, 64, 1, 32, Layout(16), heads=4, exchange=e) for e in ("all_to_all", "ring")]
    assert few[0].total("exponentials") == few[1].total("exponentials") == 4 * 4096**2
    assert [level.busiest("exponentials") for level in few] == [4096**2, 4096**2 // 4]


def test_known_numbers_of_a_whole_scene():
    """GLH-Water's 12800 x 12800 px on 8 workers, one head each: worked out by hand from N = 3200^2."""
    level = level_cost(12800, 12800, 4, 192, Layout(8), heads="world", element_bytes=2)
    n = 3200**2
    assert (level.tokens, level.keys, level.heads, level.head_channels) == (n, n, 8, 24)
    assert level.busiest("attention_flops") == 4 * n**2 * 192 // 8 == 10_066_329_600_000_000
    assert level.busiest("exponentials") == n**2
    assert level.busiest("linear_flops") == 24 * (n // 8) * 192**2
    assert level.busiest("sent_bytes") == level.busiest("sent_bytes", backward=True) == 2 * 4 * (n // 8) * 192 * 7 // 8
    assert level.busiest("messages") == 2 * 7


def test_stride_4_has_most_of_the_attention():
    levels = scene_cost(6912, 7296, SWIN_LARGE, Layout(4))
    flops = [level.total("attention_flops") for level in levels]
    assert flops[0] / sum(flops) == pytest.approx(1 / (1 + 1 / 8 + 1 / 64 + 1 / 512))  # 87.5 %
    pooled = scene_cost(6912, 7296, SWIN_LARGE, Layout(4), pools={4: 4})
    assert pooled[0].total("attention_flops") == flops[0] / 16 and pooled[1:] == levels[1:]


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(UserError, match="give heads that divide 192"):
        level_cost(64, 64, 4, 192, Layout(5), heads="world")


# ------------------------------------------------------------------------------------------- halos


@pytest.mark.parametrize("layout", [Layout(2), Layout(5), Layout(20), Layout(3, 2), Layout(4, 4)], ids=str)
@pytest.mark.parametrize("kernel", [3, 7])
def test_halo_bytes_are_those_counted(layout, kernel):
    layers = [nn.Conv2d(6, 6, kernel, padding=kernel // 2) for _ in range(3)]
    Traffic.reset()
    with torch.no_grad():
        nn.Sequential(*layers).to("meta")(cut(torch.empty(1, 6, 23, 19, device="meta"), layout))
    assert halo_cost(23, 19, layout, 6, kernel_px=kernel, layers=3).sent_bytes == Traffic.most()[0]


def test_the_halo_of_thin_bands_is_as_large_as_they_are():
    thick, thin = (halo_cost(256, 100, Layout(parts), 8) for parts in (4, 128))
    assert thick.share == 2 / 64 and thin.share == 2 / 2
    assert thick.sent_bytes == thin.sent_bytes == 2 * 100 * 8 * 4  # more workers send as much each
    assert halo_cost(256, 256, grid(64), 8).sent_bytes < halo_cost(256, 256, Layout(64), 8).sent_bytes


@pytest.mark.parametrize("training", [False, True])
def test_a_networks_cost_is_that_of_real_tensors(training):
    layout, network = Layout(4), UNet(width=2, depth=2)
    found = network_cost(network, 64, 32, layout, training=training)

    def run(x):
        Traffic.reset()
        with flop_counter() as counter:
            y = network.train(training)(x)
            if training:
                y.mean().backward()
        return counter.get_total_flops()

    x = torch.randn(1, 3, 64, 32)
    whole, tiles = run(x), run(cut(x, layout))
    assert found.flops * 4 == whole and (found.flops + found.halo_flops) * 4 == tiles
    gradients = 4 * sum(p.numel() for p in network.parameters()) * 2 * 3 // 4 if training else 0
    assert (found.sent_bytes - gradients, found.messages) == Traffic.most()[:2]
    assert found.sums == Traffic.sums + training


def test_borders_are_computed_again():
    """Bands of 4 rows: a 3 x 3 convolution of a halo of one row reaches one row of the tile."""
    network = nn.Conv2d(3, 5, 3, padding=1)
    found = network_cost(network, 16, 32, Layout(4))
    row = 2 * 9 * 3 * 5 * 32
    assert found.flops == 4 * row and found.halo_flops * 4 == 6 * row


# ------------------------------------------------------------------------------------------- predictions


def test_all_that_is_predicted_says_so():
    rows = predict_spim(512, 512, SWIN_LARGE, A100, workers=(1, 2))
    rows += predict_exact(UNet(width=2), 64, 64, A100, workers=(1, 2))
    assert PREDICTED == "predicted, unvalidated" and all(row["status"] == PREDICTED for row in rows)


def test_seconds_add_up():
    """By hand, one worker: d = 24 is computed as 32 on an A100."""
    level = level_cost(400, 400, 4, 192, Layout(1))
    parts = level_seconds(level, A100)
    assert parts["linear"] == pytest.approx(24 * 10_000 * 192**2 / 312e12)
    assert parts["attention"] == pytest.approx(4 * 10_000**2 * 8 * 32 / 312e12)
    assert parts["softmax"] == pytest.approx(8 * 10_000**2 / (108 * 16 * 1.41e9))
    assert parts["exchange"] == 0
    (row,) = predict_spim(400, 400, {4: 192}, A100, workers=(1,))
    assert row["seconds"] == pytest.approx(sum(parts.values())) == pytest.approx(row["stride_4_seconds"])
    training = level_seconds(level, A100, training=True)
    assert [training[p] / parts[p] for p in ("linear", "attention", "softmax")] == pytest.approx([3, 3.5, 2])


def test_workers_of_another_node_talk_over_the_network():
    assert [A100.bytes_per_s(workers) for workers in (8, 9)] == [300e9, 25e9]


def whole_scene(**options):
    return predict_spim(7300, 6908, SWIN_LARGE, A100, element_bytes=2, **options)


def test_enough_fixed_heads_scale_straight():
    rows = whole_scene(heads=64)
    assert bend(rows) is None and rows[-1]["efficiency"] > 0.99


def test_one_head_a_worker_bends_at_the_softmax():
    rows = whole_scene(heads="world")
    assert bend(rows) == Bend(4, "softmax", 4)
    assert rows[-1]["softmax_seconds"] == pytest.approx(rows[0]["softmax_seconds"], rel=1e-3)  # N^2, whatever P is


def test_fewer_heads_than_workers_bend_where_heads_end_but_not_in_a_ring():
    assert bend(whole_scene(heads=8)).workers == 16
    assert bend(whole_scene(heads=8, exchange="ring")) is None


def test_a_scene_that_grows_bends_at_stride_4():
    rows = predict_spim(1024, 1024, SWIN_LARGE, A100, heads=64, weak=True, workers=(1, 2, 4))
    assert bend(rows).workers == 2 and bend(rows).stride == 4
    assert rows[2]["efficiency"] == pytest.approx(1 / 4, rel=0.02)  # N^2 work for N pixels


def test_thin_bands_bend_at_the_halo():
    network, workers = UNet(width=4, depth=2), (1, 2, 8, 16)
    slow_link = cost.Rates("made up", 1e12, 1e12, link_bytes_per_s=1e9, latency_s=0, sum_latency_s=0)
    rows = predict_exact(network, 256, 256, slow_link, workers=workers)
    assert bend(rows).part == "bytes" and rows[2]["sent_bytes"] == rows[3]["sent_bytes"]
    tiles = predict_exact(network, 256, 256, slow_link, workers=workers, layout_of=grid)
    assert tiles[3]["sent_bytes"] < rows[3]["sent_bytes"]
    measured = predict_exact(network, 256, 256, slow_link, workers=workers, one_worker_seconds=8.0)
    assert [row["compute_seconds"] for row in measured] == pytest.approx([8, 4, 1, 0.5])


def test_grids_are_near_square():
    assert [(grid(p).rows, grid(p).cols) for p in (1, 2, 7, 8, 12, 64)] == [
        (1, 1), (1, 2), (1, 7), (2, 4), (3, 4), (8, 8),
    ]  # fmt: skip


def test_rates_are_measured():
    rates = measure_rates(link_bytes_per_s=1e9, latency_s=1e-4, sum_latency_s=1e-4, repeats=1)
    assert 1e8 < rates.matmul_flops_per_s < 1e14 and 1e6 < rates.exponentials_per_s < 1e13
    assert rates.name == "this CPU, measured" and rates.bytes_per_s(64) == 1e9
