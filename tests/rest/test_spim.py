"""SPIM against a plain multi-head attention, for every number of tiles, in one process and over ranks."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from rsseglab.errors import UserError
from rsseglab.rest import SPIM
from rsseglab.spatial import Layout, cut, from_tile, join
from rsseglab.spatial.exchange import Traffic
from tests.spatial.ranks import spawn

LAYOUTS = [Layout(p) for p in (1, 2, 3, 4, 8, 17)] + [Layout(2, 2), Layout(2, 3), Layout(1, 5)]
SIZE = (2, 24, 19, 13)


def spim(**options):
    torch.manual_seed(0)
    module = SPIM(24, **{"heads": 6, **options}).double()
    for parameter in module.parameters():  # no zero biases: they would hide a wrong one
        nn.init.normal_(parameter, std=0.3)
    return module


def twin(module, x):
    """The same in torch's own modules: nn.MultiheadAttention, residuals, FFN."""
    mha = nn.MultiheadAttention(module.dim, module.heads, batch_first=True).double()
    with torch.no_grad():
        mha.in_proj_weight.copy_(module.qkv.weight)
        mha.in_proj_bias.copy_(module.qkv.bias)
        mha.out_proj.load_state_dict(module.out.state_dict())
    tokens = x.flatten(2).transpose(1, 2)
    h = module.norm1(tokens)
    kv = h
    if module.pool > 1:
        pooled = nn.AvgPool2d(module.pool, ceil_mode=True)(h.transpose(1, 2).reshape(x.shape))
        kv = pooled.flatten(2).transpose(1, 2)
    y = tokens + mha(h, kv, kv, need_weights=True)[0]
    z = y + module.ffn(module.norm2(y))
    z = tokens + z if module.residual == "published" else z
    return z.transpose(1, 2).reshape(x.shape)


def scene():
    return torch.randn(SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def run(function, x, module):
    """Output, gradient of the input, gradients of the parameters, of a loss that weighs every output apart."""
    x = x.clone().requires_grad_()
    module.zero_grad()
    y = function(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


def worst(ours, theirs):
    return max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    "options", [{}, {"residual": "plain"}, {"heads": 1}, {"pool": 2}, {"pool": 4, "residual": "plain"}]
)
def test_equals_a_plain_attention(options):
    module = spim(**options)
    with torch.no_grad():
        assert (module(scene()) - twin(module, scene())).abs().max() < 1e-12


@pytest.mark.parametrize("options", [{}, {"heads": 3}, {"pool": 3}, {"exchange": "ring"}], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda a: f"{a.rows}x{a.cols}")
def test_does_not_depend_on_the_tiles(layout, options):
    module, x = spim(**options), scene()
    plain = run(module, x, module)
    assert worst(run(lambda x: join(module(cut(x, layout))), x, module), plain) < 1e-10


def _on_ranks(rank, rows, cols, options):
    layout = Layout(rows, cols, mesh=init_device_mesh("cpu", (rows * cols,)))
    module, x = spim(**options), scene()
    plain = run(module, x, module)
    ours = run(lambda x: join(module(cut(x, layout))), x, module)
    for grad in ours[2:]:  # each rank holds its share
        dist.all_reduce(grad)
        grad /= layout.parts
    assert worst(ours, plain) < 1e-10
    row, col, height, width = layout.windows(*SIZE[2:])[rank]
    tile = x[:, :, row : row + height, col : col + width].clone()
    assert (join(module(from_tile(tile, layout, *SIZE[2:]))) - plain[0]).abs().max() < 1e-10


@pytest.mark.parametrize("grid", [(2, 1), (3, 1), (2, 2)])
@pytest.mark.parametrize("options", [{}, {"heads": 2, "pool": 2}], ids=["6 heads", "2 heads, pooled"])
def test_does_not_depend_on_the_ranks(grid, options):
    spawn(grid[0] * grid[1], _on_ranks, *grid, options)


@pytest.mark.slow
def test_eight_ranks():
    spawn(8, _on_ranks, 4, 2, {"heads": 6})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_other_precisions(dtype):
    module, x = spim().to(dtype), scene().to(dtype)
    with torch.no_grad():
        error = (join(module(cut(x, Layout(3)))) - module(x)).abs().max()
    assert error < {torch.bfloat16: 0.25, torch.float32: 1e-5}[dtype]


def test_every_token_sees_every_tile():
    module, x = spim(), scene()
    moved = x.clone()
    moved[0, 0, -1, -1] += 1  # not all channels alike: the norm would take that away
    with torch.no_grad():
        change = (join(module(cut(moved, Layout(4)))) - join(module(cut(x, Layout(4))))).abs().amax(1)
    assert (change[0] > 0).all() and not change[1].any()


def test_the_order_of_tokens_does_not_matter():
    module, x = spim(), scene()
    order = torch.randperm(19, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert (module(x)[:, :, order] - module(x[:, :, order])).abs().max() < 1e-12


def test_one_message_a_peer_and_exchange():
    Traffic.reset()
    with torch.no_grad():
        spim()(cut(scene(), Layout(3)))
    assert set(Traffic.messages.values()) == {4}  # two exchanges, two peers


def test_heads_as_many_as_tiles_make_the_answer_depend_on_them():
    module, fixed, x = spim(heads="world"), spim(heads=4), scene()
    with torch.no_grad():
        on = {p: join(module.eval()(cut(x, Layout(p)))) for p in (2, 4, 8)}
        assert (on[4] - fixed(x)).abs().max() < 1e-12  # four tiles: four heads
        for p in (2, 8):
            assert (on[p] - on[4]).norm() / on[4].norm() > 0.01
    assert (module(x) - spim(heads=1)(x)).abs().max() < 1e-12


def test_trained_heads_go_with_the_weights():
    state = spim(heads=6).state_dict()
    spim(heads=6).load_state_dict(state)
    with pytest.raises(UserError, match="trained with 6 heads"):
        spim(heads=4).load_state_dict(state)
    world = spim(heads="world")
    world(cut(scene(), Layout(4)))
    other = spim(heads="world").eval()
    other.load_state_dict(world.state_dict())
    other(cut(scene(), Layout(2, 2)))
    with pytest.raises(UserError, match="trained on 4 tiles"):
        other(cut(scene(), Layout(2)))
    spim(heads=4).load_state_dict(world.state_dict())
    with pytest.raises(UserError, match="trained with 4 heads"):
        spim(heads=8).load_state_dict(world.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "5 heads do not divide the 24 channels"),
        ({"heads": 0}, "0 heads"),
        ({"residual": "double"}, "knows the residuals"),
        ({"exchange": "gather"}, "knows the residuals"),
        ({"pool": 0}, "cannot pool"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(UserError, match=message):
        SPIM(24, **options)


def test_world_heads_that_do_not_divide_the_channels():
    with pytest.raises(UserError, match="5 heads do not divide"):
        spim(heads="world")(cut(scene(), Layout(5)))
