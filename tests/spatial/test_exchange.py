"""The exchange: exact adjoint, gradcheck, plans that cover what is asked for; layouts and cuts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rsseglab.spatial import Layout, SpatialError, cut, from_tile, join
from rsseglab.spatial.cut import Axis, local_shape, unfolded, viewed, window_of
from rsseglab.spatial.exchange import fetch, plan
from rsseglab.spatial.layout import bounds
from rsseglab.spatial.tensor import relaid


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.integers(1, 17), st.sampled_from([64, 4, 2]))
def test_bounds_cut_all_and_nothing_twice(length, parts, rows_kept):
    b = bounds(length, parts, rows_kept)
    assert len(b) == parts + 1 and b[0] == 0 and b[-1] == length and list(b) == sorted(b)
    if length >= parts:
        assert all(b[k] < b[k + 1] for k in range(parts))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(7, 12))
def test_a_halved_map_is_cut_at_half_the_rows(parts, halvings):
    length = 2**halvings * parts
    assert bounds(length, parts) == tuple(2 * b for b in bounds(length // 2, parts))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 300))
def test_few_rows_kept_keep_deep_maps_on_the_grid(parts, units):
    """Of at least two units of 32 rows a part: down to stride 16 at least, whatever the height."""
    length = 32 * (2 * parts + units)
    for halvings in range(5):
        assert bounds(length >> halvings, parts, 4) == tuple(b >> halvings for b in bounds(length, parts, 4))


def test_parts_of_a_large_scene_are_about_equal():
    for length in (1000, 2048, 5123, 20000):
        for parts in (2, 3, 5, 8, 11):
            b = bounds(length, parts)
            sizes = [b[k + 1] - b[k] for k in range(parts)]
            assert max(sizes) <= 1.05 * length / parts


def test_rows_kept_are_checked():
    with pytest.raises(SpatialError, match="keep at least 2"):
        Layout(2, rows_kept=1)


@st.composite
def asked(draw):
    rows, cols = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    height, width = draw(st.integers(rows, 9)), draw(st.integers(cols, 7))

    def interval(n):
        a, b = sorted((draw(st.integers(0, n)), draw(st.integers(0, n))))
        return a, b

    axes = cut(torch.empty(1, 1, height, width), Layout(rows, cols)).axes
    sizes = {2: height, 3: width}
    requests = tuple(
        tuple(tuple(interval(sizes[a.dim]) for a in axes) for _ in range(draw(st.integers(1, 2))))
        for _ in range(rows * cols)
    )
    return Layout(rows, cols), height, width, requests


@settings(max_examples=40, deadline=None)
@given(asked(), st.booleans())
def test_fetch_brings_what_the_whole_holds_and_its_adjoint_takes_it_back(case, own):
    """<fetch(x), y> = <x, fetch*(y)>, and every rectangle equals the slice of the whole scene."""
    layout, height, width, requests = case
    x = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    scene = cut(x, layout)
    dims = tuple(a.dim for a in scene.axes)
    tiles, rects = fetch(layout, scene.tiles, dims, scene.tile_windows, requests, "test", own)
    inner = torch.zeros((), dtype=torch.float64)
    gradient = torch.zeros_like(x)
    for tile, got in enumerate(rects):
        for rect, piece in zip(requests[tile], got, strict=True):
            index = [slice(None)] * 4
            for dim, interval in zip(dims, rect, strict=True):
                index[dim] = slice(*interval)
            assert torch.equal(piece, x[tuple(index)])
            y = torch.randn_like(piece)
            inner = inner + (piece * y).sum()
            gradient[tuple(index)] += y
    for tile, held in enumerate(tiles):
        y = torch.randn_like(held)
        inner = inner + (held * y).sum()
        index = [slice(None)] * 4
        for dim, interval in zip(dims, scene.tile_windows[tile], strict=True):
            index[dim] = slice(*interval)
        gradient[tuple(index)] += y
    inner.backward()
    assert torch.allclose(x.grad, gradient, atol=1e-12)


def test_gradcheck_of_the_exchange():
    layout = Layout(2, 2)

    def function(x):
        scene = cut(x, layout)
        requests = tuple((((0, 3), (1, 4)), ((2, 5), (0, 2))) for _ in range(4))
        _, rects = fetch(layout, scene.tiles, (2, 3), scene.tile_windows, requests, "test")
        return [r * (k + 1) for rect in rects for k, r in enumerate(rect)]

    assert torch.autograd.gradcheck(function, torch.randn(1, 2, 5, 4, dtype=torch.float64, requires_grad=True))


def test_a_plan_that_does_not_cover_is_refused():
    with pytest.raises(SpatialError, match="reach out of the scene"):
        plan((((0, 2),), ((2, 4),)), ((((1, 5),),), (((0, 1),),)))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(4, 12), st.integers(3, 9), st.data())
def test_relaying_keeps_the_tensor(rows, cols, height, width, data):
    layout = Layout(rows, cols)
    x = torch.randn(2, height, width, dtype=torch.float64)
    scene = cut(x, layout)
    length = data.draw(st.sampled_from([1, 2]))
    inner = sorted(data.draw(st.integers(0, x.shape[length])) for _ in range(rows * cols - 1))
    band = (Axis(length, (0, *inner, x.shape[length])),)
    moved = relaid(scene, band, "test")
    assert moved.axes == band and torch.equal(join(moved), x)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4))
def test_a_cut_follows_a_view_and_back(rows, cols, size, high, wide):
    """Window partition by views: what the axes say each tile holds is what it holds."""
    layout = Layout(rows, cols)
    height, width = size * max(high, rows), size * max(wide, cols)
    x = torch.arange(2 * height * width * 3).reshape(2, height, width, 3)
    scene = cut(x.permute(0, 3, 1, 2), layout).permute(0, 2, 3, 1)
    y = scene.view(2, height // size, size, width // size, size, 3).permute(0, 1, 3, 2, 4, 5)
    z = y.reshape(-1, size * size, 3)
    plain = (
        x.view(2, height // size, size, width // size, size, 3).permute(0, 1, 3, 2, 4, 5).reshape(-1, size * size, 3)
    )
    assert torch.equal(join(z), plain)
    for tile, held in zip(layout.held, z.tiles, strict=True):
        assert tuple(held.shape) == local_shape(z.shape, z.axes, tile)


def test_a_view_that_tears_the_cut_apart_is_named():
    with pytest.raises(SpatialError, match="split across"):
        viewed((1, 6, 5), (Axis(1, (0, 3, 6)),), (1, 5, 6))
    assert unfolded((2, 12), (Axis(1, (0, 1, 3), outer=2, inner=2),))[0] == (2, 2, 3, 2)
    assert window_of((Axis(0, (0, 1, 3)),), 1) == ((1, 3),)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Layout(0), "rows=0"),
        (lambda: Layout(9).windows(8, 8), "at most 8"),
        (lambda: cut(torch.zeros(1, 1, 4, 4), Layout(5)), "at most 4"),
        (lambda: cut(torch.zeros(4, 4), Layout(2)), "unsqueeze"),
        (lambda: from_tile(torch.zeros(1, 1, 4, 4), Layout(2), 8, 4), "holds all 2 tiles"),
        (lambda: from_tile(torch.zeros(1, 1, 4, 4), Layout(1), 8, 4), "not of its window's size"),
    ],
)
def test_bad_layouts_and_tiles(call, message):
    with pytest.raises(SpatialError, match=message):
        call()
