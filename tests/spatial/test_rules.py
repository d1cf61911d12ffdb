"""Every rule against the plain call on the whole scene, float64: output and all gradients."""

import pytest
import torch
import torch.nn.functional as F
from equality import relative
from torch import nn

from rsseglab.spatial import Layout, SceneTensor, cut, join
from rsseglab.spatial.rules.randomness import global_index

LAYOUTS = [Layout(p) for p in (1, 2, 3, 5, 7, 8, 11)] + [
    Layout(2, 2),
    Layout(2, 3),
    Layout(3, 3),
    Layout(1, 4),
]
SHORT = [Layout(2), Layout(5), Layout(2, 3)]


def w(*shape):
    """A weight, the same in every call: a leaf whose gradient is compared."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64) / 3


def tokens(x):
    return x.flatten(2).transpose(1, 2)


def windows(x, size):
    """Window partition and its reverse, as Swin does them, with work on the windows between."""
    b, c, h, wd = x.shape
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, -wd % size, 0, -h % size))
    x = torch.roll(x, (-size // 2, -size // 2), (1, 2))
    _, hp, wp, _ = x.shape
    p = x.view(b, hp // size, size, wp // size, size, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, c)
    p = p @ p.transpose(1, 2).softmax(-1) @ p.new_ones(size * size, c)[None] + p
    x = p.view(b, hp // size, wp // size, size, size, c).permute(0, 1, 3, 2, 4, 5).reshape(b, hp, wp, c)
    x = torch.roll(x, (size // 2, size // 2), (1, 2))
    return x[:, :h, :wd].permute(0, 3, 1, 2)


def written(x):
    y = x.clone()
    y[:, 1] = 0
    y[:, 2:] = x[:, :2]
    return y


POSITION = w(1, 4, 13, 11)

# name -> (function of x and its parameters, parameters); x is (B, 4, 13, 11)
CASES = {
    # convolution
    "conv 3x3": (lambda x, a, b: F.conv2d(x, a, b, padding=1), [w(5, 4, 3, 3), w(5)]),
    "conv 1x1 s2": (lambda x, a: F.conv2d(x, a, stride=2), [w(5, 4, 1, 1)]),
    "conv 7x7 s2 p3": (lambda x, a: F.conv2d(x, a, stride=2, padding=3), [w(5, 4, 7, 7)]),
    "conv 2x2": (lambda x, a: F.conv2d(x, a), [w(5, 4, 2, 2)]),
    "conv 4x4 s4 p1": (lambda x, a: F.conv2d(x, a, stride=4, padding=1), [w(5, 4, 4, 4)]),
    "conv dilated wider than a tile": (lambda x, a: F.conv2d(x, a, padding=5, dilation=5), [w(5, 4, 3, 3)]),
    "conv depthwise": (lambda x, a: F.conv2d(x, a, padding=2, groups=4), [w(4, 1, 5, 5)]),
    "conv same, even": (lambda x, a, b: F.conv2d(x, a, b, padding="same"), [w(5, 4, 4, 2), w(5)]),
    "conv valid s3": (lambda x, a: F.conv2d(x, a, stride=3, padding="valid"), [w(5, 4, 3, 5)]),
    "conv uneven padding": (lambda x, a: F.conv2d(x, a, padding=(0, 2), stride=(1, 2)), [w(5, 4, 1, 3)]),
    "conv padded beyond its kernel": (lambda x, a, b: F.conv2d(x, a, b, padding=3), [w(5, 4, 2, 2), w(5)]),
    "conv_transpose k2 s2": (lambda x, a, b: F.conv_transpose2d(x, a, b, 2), [w(4, 5, 2, 2), w(5)]),
    "conv_transpose k4 s2 p1": (lambda x, a: F.conv_transpose2d(x, a, None, 2, 1), [w(4, 5, 4, 4)]),
    "conv_transpose k3 s2 p1 op1": (
        lambda x, a, b: F.conv_transpose2d(x, a, b, 2, 1, 1),
        [w(4, 5, 3, 3), w(5)],
    ),
    "conv_transpose k1 s3": (lambda x, a, b: F.conv_transpose2d(x, a, b, 3), [w(4, 5, 1, 1), w(5)]),
    "conv_transpose dilated groups": (
        lambda x, a: F.conv_transpose2d(x, a, None, 1, 2, 0, 2, 3),
        [w(4, 2, 3, 3)],
    ),
    # pooling
    "max_pool 3 2 1": (lambda x: F.max_pool2d(x, 3, 2, 1), []),
    "max_pool 2": (lambda x: F.max_pool2d(x, 2), []),
    "max_pool ceil": (lambda x: F.max_pool2d(x, 3, 2, 0, 1, True), []),
    "max_pool dilated": (lambda x: F.max_pool2d(x, 3, 1, 1, 2), []),
    "avg_pool 3 2 1": (lambda x: F.avg_pool2d(x, 3, 2, 1), []),
    "avg_pool without padding": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), []),
    "avg_pool ceil": (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), []),
    "avg_pool ceil without padding": (lambda x: F.avg_pool2d(x, 3, 3, 1, True, False), []),
    "avg_pool divisor": (lambda x: F.avg_pool2d(x, 2, divisor_override=3), []),
    "adaptive_avg 1": (lambda x: F.adaptive_avg_pool2d(x, 1), []),
    "adaptive_avg 6": (lambda x: F.adaptive_avg_pool2d(x, 6), []),
    "adaptive_avg many": (lambda x: F.adaptive_avg_pool2d(x, (12, 7)), []),
    "adaptive_avg None": (lambda x: F.adaptive_avg_pool2d(x, (None, 1)), []),
    "adaptive_max 3": (lambda x: F.adaptive_max_pool2d(x, 3), []),
    "adaptive_max many": (lambda x: F.adaptive_max_pool2d(x, (12, 11)), []),
    # resize
    "nearest x2": (lambda x: F.interpolate(x, scale_factor=2), []),
    "nearest size": (lambda x: F.interpolate(x, size=(29, 7)), []),
    "nearest x1.7": (lambda x: F.interpolate(x, scale_factor=1.7), []),
    "nearest-exact": (lambda x: F.interpolate(x, size=(7, 30), mode="nearest-exact"), []),
    "bilinear x2": (lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"), []),
    "bilinear x3 by size": (lambda x: F.interpolate(x, size=(39, 33), mode="bilinear"), []),
    "bilinear x1.05, of equal size": (lambda x: F.interpolate(x, scale_factor=1.05, mode="bilinear"), []),
    "bilinear x4 rows": (lambda x: F.interpolate(x, scale_factor=(4, 1), mode="bilinear"), []),
    "bilinear x4 corners": (
        lambda x: F.interpolate(x, scale_factor=4, mode="bilinear", align_corners=True),
        [],
    ),
    "bilinear x1.7": (lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear"), []),
    "bilinear recomputed": (
        lambda x: F.interpolate(x, scale_factor=1.7, mode="bilinear", recompute_scale_factor=True),
        [],
    ),
    "bilinear down": (lambda x: F.interpolate(x, size=(5, 4), mode="bilinear"), []),
    "bilinear to one": (lambda x: F.interpolate(x, size=(1, 1), mode="bilinear", align_corners=True), []),
    "bicubic": (lambda x: F.interpolate(x, size=(20, 6), mode="bicubic"), []),
    "bicubic corners": (lambda x: F.interpolate(x, size=(20, 26), mode="bicubic", align_corners=True), []),
    "area": (lambda x: F.interpolate(x, size=(5, 4), mode="area"), []),
    "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), []),
    "pixel_unshuffle": (lambda x: F.pixel_unshuffle(F.pad(x, (0, 1, 0, 2)), 3), []),
    "unfold": (lambda x: F.unfold(x, 3, padding=1, stride=2), []),
    "unfold dilated": (lambda x: F.unfold(x, (3, 2), dilation=2), []),
    "fold with rows to spare": (lambda x: F.fold(F.unfold(x, 3, stride=3) ** 2, (13, 11), 3, stride=3), []),
    "fold": (
        lambda x: F.fold(F.unfold(x, 3, padding=1, stride=2) ** 2, (13, 11), 3, padding=1, stride=2),
        [],
    ),
    # padding
    "pad constant": (lambda x: F.pad(x, (1, 2, 3, 1), value=0.5), []),
    "pad crop": (lambda x: F.pad(x, (-1, 2, -4, -1)), []),
    "pad reflect": (lambda x: F.pad(x, (1, 2, 3, 1), mode="reflect"), []),
    "pad replicate": (lambda x: F.pad(x, (1, 2, 3, 1), mode="replicate"), []),
    "pad circular": (lambda x: F.pad(x, (1, 2, 3, 1), mode="circular"), []),
    # norms
    "batch_norm train": (lambda x, a, b: F.batch_norm(x, None, None, a, b, True), [w(4), w(4)]),
    "batch_norm plain": (lambda x: F.batch_norm(x * 3 + 1e4, None, None, None, None, True), []),
    "group_norm": (lambda x, a, b: F.group_norm(x, 2, a, b), [w(4), w(4)]),
    "instance_norm": (lambda x, a, b: F.instance_norm(x, None, None, a, b), [w(4), w(4)]),
    "layer_norm channels": (lambda x, a, b: F.layer_norm(x.permute(0, 2, 3, 1), (4,), a, b), [w(4), w(4)]),
    "layer_norm scene": (lambda x, a: F.layer_norm(x, (4, 13, 11), a), [w(4, 13, 11)]),
    "local response norm by hand": (lambda x: x / (x.square().mean(1, True) + 1).sqrt(), []),
    # reductions
    "mean all": (lambda x: x.mean(), []),
    "mean rows": (lambda x: x.mean(2), []),
    "mean cols keep": (lambda x: x.mean(3, True), []),
    "mean space": (lambda x: x.mean((2, 3)), []),
    "mean channels": (lambda x: x.mean(1, keepdim=True), []),
    "sum batch and space": (lambda x: x.sum((0, 2, 3)), []),
    "var": (lambda x: x.var((2, 3)), []),
    "std rows": (lambda x: torch.std(x, 2, keepdim=True), []),
    "norm": (lambda x: x.norm(dim=(2, 3)), []),
    "norm of zeros": (lambda x: (x * 0).norm(dim=(2, 3)) + x.norm(dim=(2, 3)), []),
    "norm channels": (lambda x: torch.linalg.vector_norm(x, dim=1), []),
    "normalize channels": (lambda x: F.normalize(x, dim=1), []),
    "normalize rows": (lambda x: F.normalize(x, dim=2), []),
    "amax space": (lambda x: x.amax((2, 3)), []),
    "amin rows": (lambda x: x.amin(2), []),
    "max channels": (lambda x: x.max(1)[0], []),
    "max rows": (lambda x: x.max(2).values, []),
    "topk channels": (lambda x: x.topk(2, 1).values, []),
    "topk tokens": (lambda x: x.flatten(2).topk(9, -1).values, []),
    "logsumexp": (lambda x: x.logsumexp((2, 3)), []),
    "squeeze and excite": (
        lambda x, a: x * F.linear(x.mean((2, 3)), a).sigmoid()[:, :, None, None],
        [w(4, 4)],
    ),
    "coordinate attention": (lambda x: x * x.mean(3, True).sigmoid() * x.mean(2, True).sigmoid(), []),
    # softmax
    "softmax channels": (lambda x: x.softmax(1), []),
    "softmax rows": (lambda x: F.softmax(x, 2), []),
    "softmax tokens": (lambda x: F.softmax(x.flatten(2), -1), []),
    "log_softmax cols": (lambda x: F.log_softmax(x, 3), []),
    # pointwise
    "pointwise": (lambda x: F.gelu(x) + x.clamp(-1, 1) * torch.sigmoid(x) - x / 3 + 2**x, []),
    "in place": (lambda x: F.relu_((x * 2).add_(x).mul_(3)), []),
    "where and comparison": (lambda x: torch.where(x > 0, x, 0.1 * x), []),
    "prelu": (lambda x, a: F.prelu(x, a), [w(4)]),
    "two cuts meet": (lambda x: x[:, :, :11] * x[:, :, :11].transpose(2, 3), []),
    "position map": (lambda x, a: x + a, [POSITION]),
    "position rows": (lambda x, a: x * a, [w(13, 1)]),
    "mask": (lambda x: x.masked_fill((POSITION > 0), 0.0), []),
    "expand": (lambda x: x[:, :1].expand(-1, 3, -1, -1), []),
    "repeat": (lambda x: x.repeat(1, 2, 1, 1), []),
    # shapes
    "tokens and back": (lambda x: tokens(x).square().transpose(1, 2).reshape(x.shape), []),
    "view as channels": (lambda x: tokens(x).reshape(x.shape), []),
    "permute": (lambda x: x.permute(0, 2, 3, 1).contiguous(), []),
    "movedim": (lambda x: x.movedim(1, -1).movedim((1, 2), (2, 3)), []),
    "unsqueeze squeeze": (lambda x: x[:, None].squeeze(1).unsqueeze(-1), []),
    "roll": (lambda x: torch.roll(x, (3, -2), (2, 3)), []),
    "roll far": (lambda x: x.roll(-9, 2), []),
    "windows of 4": (lambda x: windows(x, 4), []),
    "windows of 7": (lambda x: windows(x, 7), []),
    # joining and indexing
    "cat channels": (lambda x: torch.cat([x, x * 2, POSITION.expand(x.shape[0], -1, -1, -1)], 1), []),
    "cat rows": (lambda x: torch.cat([x[:, :, :2], x * 2, x], 2), []),
    "cat class token": (
        lambda x, a: torch.cat([a.expand(x.shape[0], -1, -1), tokens(x)], 1)[:, 1:],
        [w(1, 1, 4)],
    ),
    "class token": (lambda x, a: torch.cat([a.expand(x.shape[0], -1, -1), tokens(x)], 1)[:, 0], [w(1, 1, 4)]),
    "stack": (lambda x: torch.stack([x, x * 2]), []),
    "stack last": (lambda x: torch.stack([x, x * 2], -1).sum(-1), []),
    "split": (lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1), []),
    "chunk rows": (lambda x: x.chunk(2, 2)[1], []),
    "slice": (lambda x: x[:, 1:3, 2:-3, 1:], []),
    "slice with steps": (lambda x: torch.cat([x[:, :, 0:12:2], x[:, :, 1::2]], 1), []),
    "row": (lambda x: x[:, :, 5], []),
    "pixel": (lambda x: x[..., 5, 7], []),
    "unbind": (lambda x: torch.stack(x.unbind(1)[::2]), []),
    "take channels": (lambda x: x.gather(1, x.argmax(1, True)), []),
    "write channels": (lambda x: written(x), []),
    "index channels": (lambda x: x[:, [2, 0]], []),
    # contraction
    "linear": (lambda x, a, b: F.linear(x.permute(0, 2, 3, 1), a, b), [w(6, 4), w(6)]),
    "linear over rows": (lambda x, a, b: F.linear(x.transpose(2, 3), a, b), [w(6, 13), w(6)]),
    "matmul tokens": (lambda x: tokens(x) @ tokens(x).transpose(1, 2), []),
    "gram": (lambda x: tokens(x).transpose(1, 2) @ tokens(x), []),
    "class vectors": (lambda x: torch.einsum("bkhw,bchw->bkc", x.softmax(1), x), []),
    "write back": (lambda x, a: torch.einsum("bkhw,kc->bchw", x, a), [w(4, 5)]),
    "einsum rows": (lambda x, a: torch.einsum("...hw,hk->...kw", x, a), [w(13, 5)]),
    "baddbmm": (
        lambda x: torch.baddbmm(w(x.shape[0], 4, 4), x.flatten(2), x.flatten(2).transpose(1, 2), beta=0.5, alpha=2),
        [],
    ),
    "bmm": (lambda x: torch.bmm(x.flatten(0, 1), x.flatten(0, 1).transpose(1, 2)), []),
    "attention": (lambda x: F.scaled_dot_product_attention(tokens(x), tokens(x) * 2, tokens(x) + 1), []),
    "attention with bias": (
        lambda x, a: F.scaled_dot_product_attention(*[tokens(x)[:, None]] * 3, attn_mask=a),
        [w(1, 143, 143)],
    ),
    "attention with a mask of two dimensions": (
        lambda x, a: F.scaled_dot_product_attention(*[tokens(x)[:, None]] * 3, attn_mask=a),
        [w(143, 143)],
    ),
    "attention causal": (lambda x: F.scaled_dot_product_attention(*[tokens(x)] * 3, is_causal=True), []),
    "attention by hand": (lambda x: (tokens(x) @ x.flatten(2)).softmax(-1) @ tokens(x), []),
    "attention reduced keys": (
        lambda x, a: F.scaled_dot_product_attention(tokens(x), *[tokens(F.conv2d(x, a, stride=4))] * 2),
        [w(4, 4, 4, 4)],
    ),
}


def run(function, x, parameters, layout):
    x = x.clone().requires_grad_()
    parameters = [p.clone().requires_grad_() for p in parameters]
    y = join(function(x if layout is None else cut(x, layout), *parameters))
    away = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (y * away).sum().backward()
    return [y, x.grad, *(p.grad for p in parameters)]


@pytest.mark.parametrize("name", CASES)
def test_rule_equals_the_plain_call(name):
    function, parameters = CASES[name]
    for batch, layouts in ((1, LAYOUTS), (3, SHORT)):
        x = torch.randn(batch, 4, 13, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        plain = run(function, x, parameters, None)
        for layout in layouts:
            ours = run(function, x, parameters, layout)
            for what, a, b in zip(("output", "dx", "dw", "db"), ours, plain, strict=False):
                assert a.shape == b.shape, (layout, what, a.shape, b.shape)
                assert relative(a, b) < 1e-10, (layout, what, relative(a, b))


INTEGER = {
    "argmax channels": lambda x: x.argmax(1),
    "argmax rows": lambda x: x.argmax(2),
    "max indices": lambda x: x.max(2).indices,
    "comparison": lambda x: (x > 0).sum((2, 3)),
    "topk places": lambda x: x.flatten(2).topk(5, -1).indices,
}


@pytest.mark.parametrize("name", INTEGER)
def test_integers_are_equal(name):
    x = torch.randn(2, 4, 13, 11, dtype=torch.float64)
    for layout in LAYOUTS:
        assert torch.equal(join(INTEGER[name](cut(x, layout))), INTEGER[name](x)), layout


LOSSES = {
    "cross_entropy": lambda x, t, s: F.cross_entropy(x, t),
    "ignore and weight": lambda x, t, s: F.cross_entropy(x, t, w(4).abs(), ignore_index=2),
    "smoothing": lambda x, t, s: F.cross_entropy(x, t, w(4).abs(), ignore_index=1, label_smoothing=0.1),
    "sum": lambda x, t, s: F.cross_entropy(x, t, reduction="sum"),
    "none": lambda x, t, s: F.cross_entropy(x, t, reduction="none"),
    "soft": lambda x, t, s: F.cross_entropy(x, s.softmax(1), label_smoothing=0.2),
    "nll": lambda x, t, s: F.nll_loss(F.log_softmax(x, 1), t),
    "bce": lambda x, t, s: F.binary_cross_entropy_with_logits(x, s.sigmoid(), pos_weight=w(4, 1, 1).abs()),
    "bce weight": lambda x, t, s: F.binary_cross_entropy_with_logits(x, s.sigmoid(), w(13, 11), reduction="sum"),
    "mse": lambda x, t, s: F.mse_loss(x, s),
    "smooth l1 by place": lambda x, t, s: F.smooth_l1_loss(x, s, None, None, "sum", 0.3),
    "bce by place": lambda x, t, s: F.binary_cross_entropy_with_logits(x, s.sigmoid(), w(13, 11), None, None, "mean"),
    "one hot": lambda x, t, s: (x.softmax(1) * F.one_hot(t, 4).movedim(-1, 1)).mean(),
    "dice": lambda x, t, s: 1 - 2 * (x.softmax(1) * s).sum((0, 2, 3)) / (x.softmax(1) + s).sum((0, 2, 3)),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_equals_the_plain_call(name):
    x, s = (torch.randn(2, 4, 13, 11, dtype=torch.float64) for _ in range(2))
    t = torch.randint(4, (2, 13, 11))
    for layout in LAYOUTS:
        plain = run(lambda x: LOSSES[name](x, t, s), x, [], None)
        for target, soft in ((t, s), (cut(t, layout), cut(s, layout))):
            ours = run(lambda x, t=target, s=soft: LOSSES[name](x, t, s), x, [], layout)
            for a, b in zip(ours, plain, strict=True):
                assert a.shape == b.shape and relative(a, b) < 1e-10, layout


@pytest.mark.parametrize("make", [lambda: nn.BatchNorm2d(4), lambda: nn.InstanceNorm2d(4, track_running_stats=True)])
def test_running_statistics_of_raw_numbers(make):
    x = torch.randn(3, 4, 13, 11, dtype=torch.float64) * 7 + 10000
    for layout in LAYOUTS:
        plain, ours = make().double(), make().double()
        for _ in range(3):
            plain(x)
            ours(cut(x, layout))
        for p, q in zip(ours.buffers(), plain.buffers(), strict=True):
            assert relative(p, q) < 1e-10


def test_dropout_does_not_depend_on_the_cut():
    x = torch.ones(2, 4, 13, 11)
    for drop in (nn.Dropout(0.3), nn.Dropout2d(0.3)):
        masks = []
        for layout in LAYOUTS:
            torch.manual_seed(5)
            masks.append(join(drop(cut(x, layout))))
        assert all(torch.equal(m, masks[0]) for m in masks)
        assert 0.15 < (masks[0] == 0).float().mean() < 0.5
    torch.manual_seed(5)
    token_mask = join(F.dropout(tokens(cut(torch.ones(1, 8, 64, 64), Layout(2, 3))), 0.3))
    assert abs((token_mask == 0).float().mean() - 0.3) < 0.01


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_multi_head_attention(batch_first, need_weights):
    """Self-attention over tokens, and class vectors that look at the scene."""
    torch.manual_seed(0)
    net = nn.MultiheadAttention(4, 2, batch_first=batch_first).double()
    other = nn.MultiheadAttention(4, 2, kdim=4, vdim=3, batch_first=batch_first).double()
    classes = w(5, 2, 4) if not batch_first else w(2, 5, 4)

    def both(x, *_):
        t = tokens(x) if batch_first else tokens(x).transpose(0, 1)
        y, seen = net(t, t, t, need_weights=need_weights)
        z, _ = other(classes, y, t[..., :3], need_weights=need_weights)
        return (join(y).sum() if seen is None else join(seen).square().sum()) + join(y).square().sum() + z.sum()

    x = torch.randn(2, 4, 13, 11, dtype=torch.float64)
    for layout in SHORT:
        found = []
        for where in (layout, None):
            net.zero_grad()
            other.zero_grad()
            results = run(both, x, [], where)
            found.append([*results, *(p.grad for m in (net, other) for p in m.parameters())])
        for a, b in zip(*found, strict=True):
            assert relative(a, b, 1e-6) < 1e-10


def test_attention_dropout_does_not_depend_on_the_cut():
    """Attention, nn.MultiheadAttention and a transformer's layer in train mode: one seed, one function."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3, batch_first=True).double().train()
    x = torch.randn(2, 4, 13, 11, dtype=torch.float64)
    for function in (lambda t: F.scaled_dot_product_attention(t, t, t, dropout_p=0.4), layer):
        found = []
        for layout in LAYOUTS:
            torch.manual_seed(7)
            found.append(join(function(tokens(cut(x, layout)))))
        assert all(relative(y, found[0]) < 1e-12 for y in found)
        torch.manual_seed(8)
        assert relative(join(function(tokens(cut(x, Layout(3))))), found[0]) > 0.01


def test_every_pixel_tosses_its_own_coin():
    for layout in LAYOUTS:
        scene = cut(torch.zeros(2, 3, 13, 11), layout)
        index = scene.like([global_index(tuple(scene.shape), scene.axes, tile, scene.device) for tile in layout.held])
        assert torch.equal(join(index), torch.arange(2 * 3 * 13 * 11).reshape(2, 3, 13, 11))


def test_modules_with_padding_modes():
    x = torch.randn(1, 4, 13, 11, dtype=torch.float64)
    for mode in ("reflect", "replicate", "circular"):
        conv = nn.Conv2d(4, 5, 3, padding=2, padding_mode=mode).double()
        for layout in SHORT:
            assert relative(join(conv(cut(x, layout))), conv(x)) < 1e-12


def test_formats_modes_and_autocast():
    x = torch.randn(1, 4, 16, 12).to(memory_format=torch.channels_last)
    conv = nn.Conv2d(4, 8, 3, padding=1).to(memory_format=torch.channels_last)
    layout = Layout(3)
    tile = conv(cut(x, layout)).tiles[1]
    assert tile.is_contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.allclose(join(conv(cut(x, layout))), conv(x), atol=1e-6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        ours, plain = join(conv(cut(x, layout))), conv(x)
        assert ours.dtype == plain.dtype == torch.bfloat16
        assert torch.allclose(ours, plain, atol=0.05)


def test_nan_is_passed_on():
    x = torch.zeros(1, 1, 12, 8)
    x[0, 0, 5, 4] = float("nan")
    kernel = torch.ones(1, 1, 3, 3)
    ours = join(F.conv2d(cut(x, Layout(4)), kernel, padding=1))
    assert torch.equal(ours.isnan(), F.conv2d(x, kernel, padding=1).isnan())


def test_a_scene_tensor_says_what_it_is():
    scene = cut(torch.zeros(1, 2, 8, 8, requires_grad=True), Layout(2))
    assert isinstance(scene, SceneTensor) and scene.shape == (1, 2, 8, 8)
    assert [t.shape for t in scene.tiles] == [(1, 2, 4, 8)] * 2
    assert scene.requires_grad and "dim 2 at [0, 4, 8]" in repr(scene)
