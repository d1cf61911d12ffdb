"""The gloo path: 2, 3 and 4 spawned ranks give what one process gives; refusals reach every rank."""

import copy
import time

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from equality import relative, same
from ranks import spawn
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.utils.checkpoint import checkpoint

from rsseglab.spatial import (
    Layout,
    SceneSampler,
    SpatialError,
    augmentation,
    cut,
    from_tile,
    join,
    read_scene,
    sync_gradients,
)
from rsseglab.spatial.rules import ring as ring_rule


class Mixed(nn.Module):
    """A small network with a halo, a stride, norms, global context, attention and dropout's drop-path."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 8, 5, padding=2)
        self.norm = nn.BatchNorm2d(8)
        self.group = nn.GroupNorm(2, 8)
        self.down = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.gate = nn.Linear(8, 8)
        self.qkv = nn.Linear(8, 24)
        self.up = nn.ConvTranspose2d(8, 4, 4, stride=2, padding=1)

    def forward(self, x):
        x = F.relu_(self.group(self.norm(self.a(x))))
        x = self.down(F.max_pool2d(x, 3, 2, 1))
        x = x * self.gate(x.mean((2, 3))).sigmoid()[:, :, None, None]
        b, c, h, w = x.shape
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, -1)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, c, h, w)
        x = torch.roll(x + y, 2, 2)
        return F.interpolate(self.up(x), scale_factor=2, mode="bilinear", align_corners=True)


def whole_networks(rank):
    torch.manual_seed(0)
    mixed = Mixed().double()
    x = torch.randn(2, 3, 61, 52).double()
    for ranks, rows, cols in ((2, 2, 1), (3, 3, 1), (4, 4, 1), (4, 2, 2)):
        mesh = DeviceMesh("cpu", list(range(ranks)))
        if rank < ranks:
            layout = Layout(rows, cols, mesh)
            same(mixed, x, layout)
            same(mixed.eval(), x, layout)
            mixed.train()


def replicated_loss(rank):
    """cross_entropy on cut scores, checkpointed, from tiles: gradients after the sync are the plain ones."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "spatial"))["spatial"]
    layout = Layout(2, 1, mesh)
    torch.manual_seed(0)
    plain, ours = Mixed().double(), Mixed().double()
    ours.load_state_dict(plain.state_dict())
    x, target = torch.randn(1, 3, 61, 52).double(), torch.randint(-1, 4, (1, 64, 52))
    loss = F.cross_entropy(plain(x), target, ignore_index=-1)
    loss.backward()
    row, col, height, width = layout.windows(61, 52)[layout.rank]
    scene = from_tile(x[:, :, row : row + height, col : col + width], layout, 61, 52)
    scene = checkpoint(lambda s: ours.norm(ours.a(s)), scene, use_reentrant=False)
    scene = ours.group(scene)
    y = _after(ours, scene)
    mine = F.cross_entropy(y, target, ignore_index=-1)
    mine.backward()
    sync_gradients(ours, layout)
    assert relative(mine, loss) < 1e-10
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        assert relative(p.grad, q.grad, 1e-6) < 1e-9


def wider_norm(rank):
    """Statistics over data x spatial: two scenes of two tiles each give what a batch of two gives."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "spatial"))
    layout = Layout(2, 1, mesh["spatial"], norm_mesh=DeviceMesh("cpu", [0, 1, 2, 3]))
    torch.manual_seed(0)
    x = torch.randn(2, 3, 9, 8).double() * 5 + 100
    plain, ours = nn.BatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
    index = mesh["data"].get_local_rank()
    mine = join(ours(cut(x[index : index + 1], layout)))
    assert relative(mine, plain(x)[index : index + 1]) < 1e-12
    assert relative(ours.running_var, plain.running_var) < 1e-12
    own = nn.BatchNorm2d(3).double()
    by_scene = join(own(cut(x[index : index + 1], Layout(2, 1, mesh["spatial"]))))
    assert relative(by_scene, nn.BatchNorm2d(3).double()(x[index : index + 1])) < 1e-12
    same_scene(mesh)


def same_scene(mesh):
    """All ranks of a spatial group draw one index and one augmentation; each reads its own window."""
    sampler = SceneSampler(5, mesh["data"], seed=3)
    drawn = list(sampler)
    mine = torch.tensor([*drawn, int(torch.randint(1000, (), generator=augmentation(drawn[0], 1)))])
    everyone = [torch.empty_like(mine) for _ in range(4)]
    dist.all_gather(everyone, mine)
    assert torch.equal(everyone[0], everyone[1]) and torch.equal(everyone[2], everyone[3])
    assert not set(everyone[0][:2].tolist()) & set(everyone[2][:2].tolist())
    whole, layout, windows = torch.randn(1, 3, 9, 8), Layout(2, 1, mesh["spatial"]), []

    def read(row, col, height, width):
        windows.append((row, height))
        return whole[:, :, row : row + height, col : col + width]

    dist.broadcast(whole, 0)
    assert torch.equal(join(read_scene(read, layout, 9, 8)), whole)
    assert windows == [layout.windows(9, 8)[layout.rank][::2]]


def _after(net, x):
    first, net.a, norm, net.norm, group, net.group = (
        net.a,
        nn.Identity(),
        net.norm,
        nn.Identity(),
        net.group,
        nn.Identity(),
    )
    y = net(x)
    net.a, net.norm, net.group = first, norm, group
    return y


def sync_batch_norm(rank):
    """A converted model on two ranks (stock SyncBatchNorm has no CPU kernel at all) equals BatchNorm on the whole."""
    layout = Layout(2, 1, DeviceMesh("cpu", [0, 1]))
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)).double()
    x = torch.randn(1, 3, 9, 8).double() + 100
    ours = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    away = torch.randn(1, 4, 9, 8).double()
    (plain(x) * away).sum().backward()
    row, _, height, _ = layout.windows(9, 8)[rank]
    tile = x[:, :, row : row + height].clone().requires_grad_()
    (join(ours(from_tile(tile, layout, 9, 8))) * away).sum().backward()
    sync_gradients(ours, layout)
    for p, q in zip(ours.parameters(), plain.parameters(), strict=True):
        assert relative(p.grad, q.grad, 1e-3) < 1e-10
    assert relative(ours[1].running_var, plain[1].running_var) < 1e-12
    assert int(ours[1].num_batches_tracked) == 1


def gradient_of_a_tile(rank):
    """What a rank has read gets the gradient that its window has in one process, not a multiple of it."""
    layout = Layout(2, 1, DeviceMesh("cpu", [0, 1]))
    torch.manual_seed(0)
    x, kernel = torch.randn(1, 2, 9, 8).double(), torch.randn(3, 2, 5, 5).double()
    whole = x.clone().requires_grad_()
    F.conv2d(whole, kernel, padding=2).square().mean().backward()
    row, _, height, _ = layout.windows(9, 8)[rank]
    tile = x[:, :, row : row + height].clone().requires_grad_()
    F.conv2d(from_tile(tile, layout, 9, 8), kernel, padding=2).square().mean().backward()
    assert relative(tile.grad, whole.grad[:, :, row : row + height]) < 1e-12


def ring(rank, ranks):
    """Keys that go round give what gathered keys give: uneven tiles, grids, three and four dimensions."""
    layouts = [Layout(ranks, 1, DeviceMesh("cpu", list(range(ranks))))]
    if ranks == 4:
        layouts.append(Layout(2, 2, layouts[0].mesh))
    torch.manual_seed(0)
    x = torch.randn(2, 6, 7, 9, dtype=torch.float64)
    away = torch.randn(2, 63, 6, dtype=torch.float64)

    def attention(scene, heads):
        t = scene.flatten(2).transpose(1, 2)
        q, k, v = t, t * 2, t + 1
        if heads:
            q, k, v = (z.reshape(2, 63, 2, 3).transpose(1, 2) for z in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, scale=0.3)
        return y.transpose(1, 2).reshape(2, 63, 6) if heads else y

    for heads in (False, True):
        found = []
        for how in (None, *layouts):
            mine = x.clone().requires_grad_()
            y = join(attention(mine if how is None else cut(mine, how), heads))
            (y * away).sum().backward()
            found.append((y, mine.grad))
        for y, grad in found[1:]:
            assert relative(y, found[0][0]) < 1e-12 and relative(grad, found[0][1]) < 1e-12


def rings(rank, ranks):
    ring_rule.RING_BYTES = 0
    calls = []
    stock, ring_rule._Ring.apply = ring_rule._Ring.apply, lambda *a: (calls.append(1), stock(*a))[1]
    ring(rank, ranks)
    assert calls


def refusals(rank):
    mesh = DeviceMesh("cpu", [0, 1])
    layout = Layout(2, 1, mesh)
    with pytest.raises(SpatialError, match="disagree"):
        cut(torch.zeros(1, 1, 8 + rank, 8), layout)
    with pytest.raises(SpatialError, match="not of its window's size" if rank else r"refused by tile \[1\]"):
        from_tile(torch.zeros(1, 1, 4 + rank, 8), layout, 8, 8)
    with pytest.raises(SpatialError, match="at most 1"):
        cut(torch.zeros(1, 1, 1, 8), layout)
    with pytest.raises(SpatialError, match="at most 1" if rank else r"refused by tile \[1\]"):
        from_tile(torch.zeros(1, 1, 4, 8), layout, 1 if rank else 8, 8)
    with pytest.raises(SpatialError, match="neither" if rank else r"refused by tile \[1\]"):
        cut(torch.zeros(8, 8) if rank else torch.zeros(1, 1, 8, 8), layout)
    with pytest.raises(SpatialError, match="disagree on the scene's dtype"):
        cut(torch.zeros(1, 1, 8, 8, dtype=torch.float64 if rank else torch.float32), layout)
    with pytest.raises(SpatialError, match="disagree on the scene's requires_grad"):
        cut(torch.zeros(1, 1, 8, 8, requires_grad=bool(rank)), layout)
    with pytest.raises(SpatialError, match="fft2"):
        torch.fft.fft2(cut(torch.zeros(1, 1, 8, 8), layout))
    with pytest.raises(SpatialError, match="4 ranks, the mesh has 2"):
        Layout(4, 1, mesh)
    with pytest.raises(SpatialError, match="dimensions"):
        Layout(2, 1, init_device_mesh("cpu", (2, 1)))


def different_parameters(rank):
    layout = Layout(2, 1, DeviceMesh("cpu", [0, 1]))
    model = nn.Conv2d(1, 1, 3, padding=1)
    model.bias.requires_grad_(bool(rank))
    join(model(cut(torch.ones(1, 1, 8, 8), layout))).sum().backward()
    with pytest.raises(SpatialError, match="which parameters are trained"):
        sync_gradients(model, layout)


def own_coins(rank):
    """Ranks seeded apart draw alike: a network may drop samples by torch.rand, as smp's EfficientNet does."""
    layout = Layout(2, 1, DeviceMesh("cpu", [0, 1]))
    torch.manual_seed(rank)
    scene = cut(torch.ones(8, 1, 8, 8), layout)
    drawn = torch.rand(8)
    everyone = [torch.empty(8) for _ in range(2)]
    dist.all_gather(everyone, drawn)
    assert torch.equal(*everyone)
    torch.manual_seed(0)
    assert torch.equal(drawn, torch.rand(8))  # the first rank's
    assert scene.shape == (8, 1, 8, 8)


def dead_peer(rank, seconds):
    layout = Layout(2, 1, init_device_mesh("cpu", (2,)))
    scene = cut(torch.zeros(1, 1, 8, 8), layout)
    if rank == 1:
        time.sleep(seconds + 4)
        dist.destroy_process_group()
        raise SystemExit(0)
    start = time.monotonic()
    with pytest.raises(SpatialError, match="conv2d: tile 0 of 2 lost its peers"):
        F.conv2d(scene, torch.zeros(1, 1, 3, 3), padding=1)
    assert time.monotonic() - start < seconds + 3
    raise SystemExit(0)


def droppath(rank):
    """Ranks with different random states still drop the same samples, and the same pixels."""
    layout = Layout(2, 1, DeviceMesh("cpu", [0, 1]))
    torch.manual_seed(rank)
    scene = cut(torch.ones(16, 1, 8, 8), layout)
    mask = scene.new_empty((16, 1, 1, 1)).bernoulli_(0.5)
    together = [torch.empty(16, 1, 1, 1) for _ in range(2)]
    dist.all_gather(together, mask.contiguous())
    assert torch.equal(*together) and 0 < mask.sum() < 16
    torch.manual_seed(rank)
    dropped = join(F.dropout(scene, 0.5))
    torch.manual_seed(0)
    assert torch.equal(dropped, join(F.dropout(cut(torch.ones(16, 1, 8, 8), Layout(5)), 0.5)))


def test_networks_on_2_3_and_4_ranks_equal_one_process():
    spawn(4, whole_networks)


def test_replicated_loss_from_tiles_under_checkpoint_on_data_x_spatial():
    spawn(4, replicated_loss)


def test_norm_over_data_x_spatial_and_one_scene_a_group():
    spawn(4, wider_norm)


def test_sync_batch_norm_and_the_gradient_of_a_tile():
    spawn(2, sync_batch_norm)
    spawn(2, gradient_of_a_tile)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_keys_in_a_ring_equal_keys_gathered(ranks):
    spawn(ranks, rings, ranks)
    spawn(ranks, ring, ranks)


def test_two_ranks_refuse_together():
    spawn(2, refusals)
    spawn(2, different_parameters)


def test_two_ranks_toss_the_same_coins():
    spawn(2, droppath)
    spawn(2, own_coins)


def test_a_stalled_peer_ends_the_others_with_rank_and_operation():
    spawn(2, dead_peer, 3, seconds=3)
