"""What torch promises beside values: views and in-place writes, ties, overloads, bounds, histories."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from equality import relative
from torch import nn
from torch.utils.checkpoint import checkpoint

from rsseglab.spatial import Layout, SpatialError, cut, join

LAYOUTS = [Layout(1), Layout(2), Layout(5), Layout(2, 2), Layout(2, 3), Layout(1, 4)]


def x64(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


# ---------------------------------------------------------------- histories that tiles do not have


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_autograd_functions_and_reentrant_checkpoints_are_refused_not_forgotten():
    conv = nn.Conv2d(3, 4, 3, padding=1)
    scene = conv(cut(torch.randn(1, 3, 12, 8), Layout(3)))
    with pytest.raises(SpatialError, match=r"autograd\.Function"):
        Swish.apply(scene) * 2
    with pytest.raises(SpatialError, match="use_reentrant=False"):
        join(checkpoint(lambda t: t * 2, scene, use_reentrant=True))
    with torch.no_grad():
        assert torch.allclose(join(Swish.apply(scene)), Swish.apply(join(scene)))
    checkpoint(lambda t: (t * 2).sum(), scene, use_reentrant=False).backward()
    assert conv.weight.grad is not None


# ---------------------------------------------------------------- in place


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, 1:],
        lambda x: x[:, :, 2:9],
        lambda x: x.flatten(2),
        lambda x: x.view(2, 4, -1),
        lambda x: x.flatten(1),
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: x.view(2, 4, 3, 4, 8),
        lambda x: x.contiguous(),
        lambda x: x.transpose(1, 2)[:, 3:],
    ],
)
def test_writing_to_a_view_reaches_the_scene_or_is_refused(layout, view):
    x = x64(2, 4, 12, 8)
    plain, scene = x.clone(), cut(x.clone(), layout)
    view(plain).mul_(3)
    written = view(scene).mul_(3)
    assert relative(join(written), view(plain)) == 0
    try:
        assert torch.equal(join(scene), plain)
    except SpatialError as error:
        assert "overwritten through a view" in str(error)
    assert torch.equal(join(view(written) if written.dim() == 0 else written), view(plain))


def test_a_copy_made_after_the_write_is_up_to_date():
    scene = cut(torch.ones(1, 1, 12, 8), Layout(5)).mul_(2)
    windows = scene.view(1, 1, 3, 4, 8)  # crosses tiles
    assert join(windows + scene.view(1, 1, 3, 4, 8)).unique().tolist() == [4.0]
    assert join(scene).unique().tolist() == [2.0]


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x[:, :, 3].fill_(0),
        lambda x: x.select(2, 3).zero_(),
        lambda x: x.unbind(2)[1].mul_(2),
        lambda x: x[:, :, 3].__setitem__(0, 1.0),
        lambda x: x[:, :, 3].__iadd__(1),
    ],
)
def test_writing_to_a_row_of_the_cut_dimension_is_refused(write):
    with pytest.raises(SpatialError, match=r"in place|torch\.where"):
        write(cut(torch.ones(1, 4, 12, 8), Layout(3)))


def test_a_row_is_otherwise_a_plain_tensor():
    scene = cut(x64(1, 4, 12, 8), Layout(3))
    row = scene[:, :, 3]
    assert torch.equal(row + 1, join(scene)[:, :, 3] + 1)
    assert type(row * 2) is torch.Tensor and type(torch.stack([row, row])) is torch.Tensor
    assert relative(join(scene * row[:, :, None]), join(scene) * join(scene)[:, :, 3:4]) == 0


def test_writing_broadcasts():
    plain, scene = torch.ones(2, 4, 12, 8), cut(torch.ones(2, 4, 12, 8), Layout(2, 2))
    for x in (plain, scene):
        x[:, 0] = torch.arange(8.0)
        x[:, 1:3] = 5
    assert torch.equal(join(scene), plain)


# ---------------------------------------------------------------- ties, NaN, infinity

TIED = {
    "amax space": lambda x: x.amax((2, 3)),
    "amin all": lambda x: x.amin(),
    "max rows": lambda x: x.max(2).values,
    "min cols": lambda x: x.min(3).values,
    "max all": lambda x: x.max(),
    "adaptive_max many": lambda x: F.adaptive_max_pool2d(x, (7, 5)),
    "adaptive_max few": lambda x: F.adaptive_max_pool2d(x, 2),
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", TIED)
def test_gradients_of_ties_go_where_torch_sends_them(name, layout):
    whole = torch.randint(0, 2, (2, 3, 13, 11), generator=torch.Generator().manual_seed(1)).double()
    found = []
    for how in (None, layout):
        x = whole.clone().requires_grad_()
        y = join(TIED[name](x if how is None else cut(x, how)))
        (y * torch.arange(1.0, y.numel() + 1).reshape(y.shape)).sum().backward()
        found.append((y, x.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert relative(found[1][1], found[0][1]) < 1e-12


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["argmax", "argmin"])
def test_of_equal_values_the_first_is_named(name, layout):
    x = torch.randint(0, 2, (2, 3, 13, 11))
    for dim in (1, 2, 3):
        assert torch.equal(join(getattr(cut(x, layout), name)(dim)), getattr(x, name)(dim))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nan_and_infinity_are_passed_on(layout):
    x = x64(1, 2, 13, 11)
    x[0, 0, 3, 4], x[0, 1, 7, 7] = float("nan"), float("inf")
    for function in (
        lambda x: x.min(2).values,
        lambda x: x.max(3).values,
        lambda x: x.amax((2, 3)),
        lambda x: x.amin((2, 3)),
        lambda x: F.adaptive_avg_pool2d(x, (7, 5)),
        lambda x: F.interpolate(x, size=(5, 4), mode="area"),
        lambda x: torch.full_like(x, float("-inf")).logsumexp((2, 3)),
        lambda x: x.mean((2, 3)),
    ):
        assert torch.allclose(join(function(cut(x, layout))), function(x), equal_nan=True)


# ---------------------------------------------------------------- overloads, bounds, broadcasting

OVERLOADS = {
    "var(False)": lambda x: x.var(False),
    "std(x, False)": lambda x: torch.std(x, False),
    "var of rows": lambda x: x.var(2, False),
    "var_mean": lambda x: torch.stack(torch.var_mean(x, (2, 3), correction=0)),
    "torch.softmax with dtype": lambda x: torch.softmax(x, 1, torch.float64),
    "x.softmax over rows with dtype": lambda x: x.softmax(2, torch.float64),
    "F.log_softmax": lambda x: F.log_softmax(x, 1, 3, torch.float64),
    "x.norm()": lambda x: x.norm(),
    "torch.norm(p=1)": lambda x: torch.norm(x, 1, (2, 3)),
    "linalg.norm of rows": lambda x: torch.linalg.norm(x, dim=2),
    "vector_norm with dtype": lambda x: torch.linalg.vector_norm(x, 3, (2, 3), dtype=torch.float64),
    "narrow from the end": lambda x: x.narrow(2, -3, 2),
    "mT": lambda x: x.mT,
    "plus a row": lambda x: x + torch.arange(11.0),
    "times channels": lambda x: x * torch.arange(4.0)[:, None, None],
    "clamp by a row": lambda x: x.clamp(max=torch.arange(11.0)),
    "flip": lambda x: x.flip(2, 3) + torch.flip(x, (1,)),
    "rot90": lambda x: x.rot90(1, (2, 3)),
    "rot90 back": lambda x: torch.rot90(x, -1, [2, 3]),
    "half turn": lambda x: torch.rot90(x, 2, (2, 3)),
    "numpy integer": lambda x: x[:, torch.tensor([1])[0].item()],
    "amax of a mask": lambda x: (x > 0).amax((2, 3)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OVERLOADS)
def test_every_spelling_means_what_torch_means(name, layout):
    x = torch.randn(2, 4, 13, 11, generator=torch.Generator().manual_seed(0))
    ours, plain = join(OVERLOADS[name](cut(x, layout))), OVERLOADS[name](x)
    assert ours.dtype == plain.dtype and ours.shape == plain.shape
    assert torch.allclose(ours, plain, rtol=1e-5, atol=1e-6)


REFUSED = {
    "unfold": lambda x: x.unfold(2, 3, 1),
    "matrices": lambda x: torch.linalg.norm(x, 1, dim=(2, 3)),
    "nuc": lambda x: x.norm(p="nuc"),
    "same": lambda x: F.conv2d(x, torch.ones(1, 4, 3, 3), padding="same", stride=2),
    "undefined": lambda x: x.long().mean(),
    "where": lambda x: torch.where(x > 0),
    "not a Layout": lambda x: cut(torch.ones(1, 1, 8, 8), 4),
    "different layouts": lambda x: F.cross_entropy(x, cut(torch.zeros(1, 12, 8).long(), Layout(2))),
    "by different layouts": lambda x: x.add_(cut(torch.ones(1, 4, 12, 8), Layout(2))),
    "layouts or meshes": lambda x: x.__setitem__((slice(None), 0), cut(torch.ones(1, 12, 8), Layout(2))),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_the_same_function_is_refused(name):
    with pytest.raises(SpatialError, match=name):
        REFUSED[name](cut(torch.ones(1, 4, 12, 8), Layout(3)))


def test_rows_out_of_bounds():
    scene = cut(torch.ones(1, 4, 12, 8), Layout(3))
    for wrong in (
        lambda: scene[:, :, 100],
        lambda: scene[:, :, -13],
        lambda: scene.select(1, 4),
        lambda: scene.narrow(2, 10, 5),
    ):
        with pytest.raises(IndexError):
            wrong()


# ---------------------------------------------------------------- float32


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4)])
@pytest.mark.parametrize("mean", [0, 100, 10_000])
def test_float32_norms_of_raw_numbers_are_as_exact_as_the_plain_call(norm, mean):
    """Mean square error over scenes and layouts against float64, at most 1.5 x the plain call's."""
    ours, plain = [], []
    for seed in range(6):
        x = torch.randn(2, 4, 40, 32, generator=torch.Generator().manual_seed(seed)) * 50 + mean
        exact = norm.double()(x.double()).detach()
        norm.float()
        plain.append((norm(x).detach() - exact).square().mean())
        for layout in (Layout(3), Layout(7), Layout(2, 2)):
            ours.append((join(norm(cut(x, layout))).detach() - exact).square().mean())
    assert torch.stack(ours).mean().sqrt() <= 1.5 * torch.stack(plain).mean().sqrt()


# ---------------------------------------------------------------- found by attack: each was wrong once


def gradient_of(function, x, layout):
    x = x.clone().requires_grad_()
    y = join(function(x if layout is None else cut(x, layout)))
    (y * torch.cos(torch.arange(1.0, y.numel() + 1, dtype=y.dtype)).reshape(y.shape)).sum().backward()
    return y.detach(), x.grad


class ByHand(nn.Module):
    """Batch norm from its equation: torch's own CPU kernel misreads some tensors with dimensions of one row."""

    def forward(self, x):
        dims = [d for d in range(x.dim()) if d != 1]
        mean = x.mean(dims, keepdim=True)
        return (x - mean) / (x.var(dims, unbiased=False, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("layout", [Layout(1, 8), Layout(12), Layout(3), Layout(2, 2)])
def test_batch_norm_of_tiles_of_one_row_or_column(layout):
    def around(norm):
        return lambda x: F.gelu(norm(x.permute(0, 3, 2, 1).softmax(2).permute(0, 3, 2, 1)))

    x = x64(2, 4, 12, 8)
    ours = gradient_of(around(nn.BatchNorm2d(4, affine=False).double()), x, layout)
    for a, b in zip(ours, gradient_of(around(ByHand()), x, None), strict=True):
        assert relative(a, b) < 1e-10
    trained = nn.BatchNorm2d(4).double().eval()
    for a, b in zip(gradient_of(around(trained), x, layout), gradient_of(around(trained), x, None), strict=True):
        assert relative(a, b) < 1e-10


SIZES = {
    "batch_norm of tokens": (lambda x: nn.BatchNorm1d(4).double()(x.flatten(2)), (4, 4, 12, 8)),
    "std of a dead channel": (lambda x: F.relu(x - 100).std((2, 3)) + x.std((2, 3)), (2, 4, 12, 8)),
    "plain.to(scene)": (lambda x: x + torch.arange(4.0).reshape(1, 4, 1, 1).to(x), (2, 4, 12, 8)),
    "plain.type_as(scene)": (lambda x: x * torch.arange(4.0).reshape(1, 4, 1, 1).type_as(x), (2, 4, 12, 8)),
    "scene.to(plain)": (lambda x: x.to(torch.zeros(3)).double(), (2, 4, 12, 8)),
    "cropped to nothing": (lambda x: F.pad(F.avg_pool2d(x, (4, 1)), (-2, 0, 2, 0)), (2, 4, 12, 8)),
    "fold of one pixel": (lambda x: F.fold(F.unfold(x, 3, padding=1), (1, 1), 3, padding=1), (2, 4, 1, 1)),
    "one row viewed": (lambda x: x.view(x.shape[0], 4, 2, 6, 1, 1) * 2, (1, 4, 12, 1)),
    "axial attention": (
        lambda x: torch.einsum("bchw,bchv->bhwv", x, x).softmax(-1) @ x.permute(0, 2, 3, 1),
        (2, 4, 12, 8),
    ),
    "Softmax()": (lambda x: nn.Softmax()(x), (2, 4, 12, 8)),
    "roll by one of a tuple": (lambda x: torch.roll(torch.roll(x, 1, (2,)), (2,), 3), (2, 4, 12, 8)),
    "take_along_dim": (lambda x: torch.take_along_dim(x, x.argmax(1, True), 1), (2, 4, 12, 8)),
    "array as index": (lambda x: x[:, np.array([0, 2])], (2, 4, 12, 8)),
    "baddbmm, beta 0": (
        lambda x: torch.baddbmm(torch.full((1,), torch.nan).double(), x[:, 0], x[:, 1].mT, beta=0),
        (2, 4, 12, 8),
    ),
}


@pytest.mark.filterwarnings("ignore:Implicit dimension")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", SIZES)
def test_sizes_and_spellings_that_were_wrong_once(name, layout):
    function, shape = SIZES[name]
    x = x64(*shape)
    if layout.rows > shape[2] or layout.cols > shape[3]:
        whole = x64(2, 4, 12, 12)  # a map that shrinks to this one inside the network
        x, inner = whole, function
        function = lambda x: inner(F.adaptive_avg_pool2d(x, shape[2:]) if shape[2:] != (1, 1) else F.avg_pool2d(x, 12))  # noqa: E731
    for a, b in zip(gradient_of(function, x, layout), gradient_of(function, x, None), strict=True):
        assert a.shape == b.shape and relative(a, b) < 1e-10


@pytest.mark.parametrize("layout", LAYOUTS)
def test_halves_do_not_overflow_where_torch_does_not(layout):
    x = torch.full((1, 1, 70, 70), 100.0).half()
    for function in (
        lambda x: F.avg_pool2d(x, 32, 16, ceil_mode=True),
        lambda x: F.adaptive_avg_pool2d(x, 3),
        lambda x: (x * 3).norm(dim=(2, 3)),
        lambda x: (x[:, :, ::2] * 5).var((2, 3)),
        lambda x: x.sum((2, 3)) * 0 + x.mean((2, 3)),
    ):
        ours, plain = join(function(cut(x, layout))), function(x)
        assert ours.dtype == plain.dtype and torch.allclose(ours, plain, rtol=2e-3, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_model_wholly_in_bfloat16(layout):
    net = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()).bfloat16()
    x = torch.randn(2, 3, 16, 16).bfloat16()
    y = join(net(cut(x, layout)))
    assert y.dtype == torch.bfloat16 and torch.allclose(y, net(x), atol=0.1)
    y.float().sum().backward()


def test_places_of_the_largest_are_real_places_whatever_the_values():
    x = torch.full((1, 1, 13, 4), float("-inf"))
    x[..., 5, 2] = 1.0
    places = join(cut(x, Layout(7)).flatten(2).topk(40, -1).indices)
    assert places[0, 0, 0] == 22 and len(set(places[0, 0].tolist())) == 40
    with pytest.raises(SpatialError, match="give at most"):
        cut(x, Layout(7)).flatten(2).topk(60, -1)


def test_dropout_of_channels_in_place():
    scene = cut(torch.ones(4, 8, 12, 8), Layout(3))
    torch.manual_seed(0)
    F.dropout2d(scene, 0.5, True, inplace=True)
    dropped = join(scene)
    assert dropped.unique().tolist() == [0.0, 2.0] and torch.equal(dropped.amax((2, 3)), dropped.amin((2, 3)))


def test_odd_calls_are_refused_or_answered_as_torch_does():
    scene = cut(torch.ones(1, 4, 12, 8), Layout(3))
    assert (scene == None) is False and (scene != None) is True  # noqa: E711
    for wrong in (lambda: scene.sum(9), lambda: scene.unsqueeze(9), lambda: scene.flatten(5), lambda: scene.max(4)):
        with pytest.raises(IndexError, match="out of range"):
            wrong()
    for name, wrong in {
        "masks": lambda: scene[torch.ones(1, 4, dtype=torch.bool)],
        "uint8": lambda: F.interpolate(scene.byte(), scale_factor=1.5, mode="bilinear"),
        "channels": lambda: F.pad(scene, (1,) * 6, mode="replicate"),
    }.items():
        with pytest.raises(SpatialError, match=name):
            wrong()
    assert torch.equal(join(F.max_pool2d(scene.byte(), 3, 2, 1)), F.max_pool2d(join(scene).byte(), 3, 2, 1))
