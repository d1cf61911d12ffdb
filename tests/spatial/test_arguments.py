"""Every family that has arguments over drawn ones: where the plain call runs, ours is equal."""

import torch
import torch.nn.functional as F
from equality import relative
from hypothesis import given, settings
from hypothesis import strategies as st

from rsseglab.spatial import Layout, cut, join

layouts = st.sampled_from([Layout(p) for p in (1, 2, 3, 5, 7)] + [Layout(2, 2), Layout(3, 2)])
sizes = st.tuples(st.integers(7, 20), st.integers(3, 12))
few = settings(max_examples=60, deadline=None)


def two(values):
    return st.tuples(values, values)


def equal(function, size, layout, batch=1):
    x = torch.randn(batch, 4, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    try:
        plain = function(a)
    except (RuntimeError, ValueError):
        return  # the plain call refuses these arguments
    if not plain.numel():
        return
    ours = join(function(cut(b, layout)))
    assert ours.shape == plain.shape and relative(ours, plain) < 1e-10
    away = torch.randn(plain.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (plain * away).sum().backward()
    (ours * away).sum().backward()
    assert relative(b.grad, a.grad) < 1e-10


@few
@given(
    layouts,
    sizes,
    two(st.integers(1, 5)),
    two(st.integers(1, 4)),
    two(st.integers(0, 4)),
    two(st.integers(1, 3)),
    st.sampled_from([1, 2, 4]),
)
def test_conv2d(layout, size, kernel, stride, padding, dilation, groups):
    weight = torch.randn(4, 4 // groups, *kernel, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    bias = torch.ones(4, dtype=torch.float64)
    equal(lambda x: F.conv2d(x, weight, bias, stride, padding, dilation, groups), size, layout)


@few
@given(
    layouts,
    sizes,
    two(st.integers(1, 5)),
    two(st.integers(1, 4)),
    two(st.integers(0, 3)),
    two(st.integers(0, 2)),
    two(st.integers(1, 3)),
)
def test_conv_transpose2d(layout, size, kernel, stride, padding, extra, dilation):
    weight = torch.randn(4, 3, *kernel, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    equal(lambda x: F.conv_transpose2d(x, weight, None, stride, padding, extra, 1, dilation), size, layout)


@few
@given(
    layouts,
    sizes,
    two(st.integers(1, 5)),
    two(st.integers(1, 4)),
    st.integers(0, 2),
    st.integers(1, 2),
    st.booleans(),
)
def test_max_pool2d(layout, size, kernel, stride, padding, dilation, ceil):
    equal(lambda x: F.max_pool2d(x, kernel, stride, padding, dilation, ceil), size, layout)


@few
@given(
    layouts,
    sizes,
    two(st.integers(1, 5)),
    two(st.integers(1, 4)),
    st.integers(0, 2),
    st.booleans(),
    st.booleans(),
)
def test_avg_pool2d(layout, size, kernel, stride, padding, ceil, counted):
    equal(lambda x: F.avg_pool2d(x, kernel, stride, padding, ceil, counted), size, layout)


@few
@given(layouts, sizes, two(st.integers(1, 25)))
def test_adaptive_pooling(layout, size, out):
    equal(lambda x: F.adaptive_avg_pool2d(x, out), size, layout)
    equal(lambda x: F.adaptive_max_pool2d(x, out), size, layout)


modes = st.sampled_from(["nearest", "nearest-exact", "bilinear", "bicubic", "area"])


@few
@given(layouts, sizes, modes, st.booleans(), two(st.integers(1, 40)))
def test_interpolate_to_a_size(layout, size, mode, corners, out):
    corners = corners if mode in ("bilinear", "bicubic") else None
    equal(lambda x: F.interpolate(x, out, mode=mode, align_corners=corners), size, layout)


@few
@given(layouts, sizes, modes, st.booleans(), two(st.floats(0.3, 4)), st.booleans())
def test_interpolate_by_a_factor(layout, size, mode, corners, factor, again):
    corners = corners if mode in ("bilinear", "bicubic") else None
    equal(
        lambda x: F.interpolate(x, scale_factor=factor, mode=mode, align_corners=corners, recompute_scale_factor=again),
        size,
        layout,
    )


@few
@given(
    layouts,
    sizes,
    st.tuples(*[st.integers(-3, 6)] * 4),
    st.sampled_from(["constant", "reflect", "replicate", "circular"]),
)
def test_pad(layout, size, pads, mode):
    if mode != "constant":
        pads = tuple(abs(p) for p in pads)
    equal(lambda x: F.pad(x, pads, mode=mode), size, layout)


@few
@given(
    layouts,
    sizes,
    st.integers(-30, 30),
    st.integers(-30, 30),
    st.integers(0, 5),
    st.integers(1, 12),
    st.integers(1, 3),
)
def test_roll_and_slice(layout, size, down, right, start, stop, step):
    equal(lambda x: x.roll((down, right), (2, 3)), size, layout)
    if stop > start:
        equal(lambda x: x[:, 1:, start:stop:step, 1:-1], size, layout)


@few
@given(
    layouts,
    sizes,
    st.sampled_from(["batch", "group", "instance", "layer"]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1e-5, 0.1]),
    st.booleans(),
    st.integers(1, 3),
    st.sampled_from([0.0, 1e4]),
)
def test_norms(layout, size, kind, groups, eps, affine, batch, shift):
    weight, bias = (torch.arange(1.0, 5.0).double(), torch.ones(4).double()) if affine else (None, None)

    def norm(x):
        x = x + shift
        if kind == "batch":
            return F.batch_norm(x, None, None, weight, bias, True, 0.1, eps)
        if kind == "group":
            return F.group_norm(x, groups, weight, bias, eps)
        if kind == "instance":
            return F.instance_norm(x, None, None, weight, bias, True, 0.1, eps)
        return F.layer_norm(x.permute(0, 2, 3, 1), (4,), weight, bias, eps)

    equal(norm, size, layout, batch)


@few
@given(
    layouts,
    sizes,
    st.sampled_from(["sum", "mean", "var", "std", "amax", "amin", "logsumexp", "norm", "softmax", "log_softmax"]),
    st.sets(st.integers(-4, 3), min_size=1, max_size=3),
    st.booleans(),
    st.integers(1, 3),
)
def test_reductions(layout, size, name, dims, keepdim, batch):
    dims = tuple({d % 4: d for d in dims}.values())
    if name in ("softmax", "log_softmax"):
        equal(lambda x: getattr(x, name)(dims[0]), size, layout, batch)
    elif name in ("var", "std"):
        equal(lambda x: getattr(x, name)(dims, correction=0, keepdim=keepdim), size, layout, batch)
    elif name == "norm":
        equal(lambda x: x.norm(dim=dims, keepdim=keepdim), size, layout, batch)
    else:
        equal(lambda x: getattr(x, name)(dims, keepdim=keepdim), size, layout, batch)


@few
@given(
    layouts,
    sizes,
    st.sampled_from(["mean", "sum", "none"]),
    st.sampled_from([-100, 0, 2]),
    st.sampled_from([0.0, 0.1]),
    st.booleans(),
    st.integers(1, 3),
)
def test_cross_entropy(layout, size, reduction, ignored, smoothing, weighted, batch):
    target = torch.randint(0, 4, (batch, *size), generator=torch.Generator().manual_seed(3))
    weight = torch.arange(1.0, 5.0).double() if weighted else None
    equal(lambda x: F.cross_entropy(x, target, weight, None, ignored, None, reduction, smoothing), size, layout, batch)


@few
@given(layouts, sizes, st.sampled_from([1, 2, 4]), st.integers(1, 4), st.booleans(), st.integers(1, 3))
def test_attention(layout, size, heads, reduced, causal, batch):
    def attend(x):
        kept = F.avg_pool2d(x, min(reduced, *size)) if reduced > 1 else x
        q, k = (t.flatten(2).reshape(batch, heads, 4 // heads, -1).transpose(2, 3) for t in (x, kept))
        return F.scaled_dot_product_attention(q, k, k * 2, is_causal=causal and reduced == 1)

    equal(attend, size, layout, batch)
