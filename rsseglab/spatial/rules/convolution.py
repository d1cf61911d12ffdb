"""Convolution and transposed convolution: any stride, padding, dilation, groups, kernel.

    conv2d:            y[o] = sum_j w[j] x[o s - p + d j]
    needs rows         o0 s - p  to  (o1 - 1) s - p + d (k - 1)

    conv_transpose2d:  y[i s - p + d j] += w[j] x[i]
    needs rows         ceil((o0 + p - d (k - 1)) / s)  to  floor((o1 - 1 + p) / s)

A convolution is linear, so the halo need not be glued to the tile: the stock kernel runs on the tile as if
zeros lay around it, and again on the thin halo alone, whose few rows of output are added to the border. The
tile is never copied, and autograd saves the tile itself, which the layer before has saved already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rsseglab.spatial.cut import Interval, window_of
from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.exchange import Rect, fetch
from rsseglab.spatial.lazy import LazyTensor
from rsseglab.spatial.tensor import SceneTensor, is_cut, named, refusal, rule
from rsseglab.spatial.windows import (
    Needs,
    View,
    as_map,
    clip,
    connected,
    intervals,
    missing,
    needed,
    out_axes,
    pair,
    samplewise,
    windowed,
)


def conv_needs(kernel: int, stride: int, before: int, dilation: int) -> Needs:
    """Input rows [low, high) of output rows [first, last): the windows' union."""

    def needs(first: int, last: int) -> Interval:
        return first * stride - before, (last - 1) * stride - before + dilation * (kernel - 1) + 1

    return needs


def touched(rows: Interval, out: Interval, kernel: int, stride: int, before: int, dilation: int) -> Interval:
    """The rows of ``out`` whose windows meet the input rows: the inverse of ``conv_needs``."""
    first = -(-(rows[0] + before - dilation * (kernel - 1)) // stride)
    last = (rows[1] - 1 + before) // stride + 1
    first = min(max(first, out[0]), out[1])
    return first, max(first, min(last, out[1]))


def _padding(
    padding: str | int | Sequence[int], kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int]
) -> list[Interval]:
    """Rows of zeros (before, after) for each dimension."""
    if padding == "same" and stride != (1, 1):
        raise SpatialError("conv2d: padding='same' is not supported for strided convolutions; give numbers.")
    if padding == "valid":
        return [(0, 0), (0, 0)]
    if padding == "same":  # torch puts the odd one after
        totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    assert not isinstance(padding, str)
    return [(p, p) for p in pair(padding)]


@rule(*named("conv2d"))
@samplewise(F.conv2d)
def conv2d(
    input: Any,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: str | int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> SceneTensor:
    """Convolution of a map with plain weights."""
    if is_cut(weight) or is_cut(bias) or not is_cut(input):
        raise refusal("conv2d", (input, weight, bias), why="takes a cut map and plain weights")
    x = as_map(input, "conv2d")
    kernel, strides, dilations = (weight.shape[2], weight.shape[3]), pair(stride), pair(dilation)
    pads = _padding(padding, kernel, strides, dilations)
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    sizes = tuple(
        (length + sum(p) - span) // s + 1 for length, p, span, s in zip(x.shape[2:], pads, spans, strides, strict=True)
    )
    geometry = [(k, s, p[0], d) for k, s, p, d in zip(kernel, strides, pads, dilations, strict=True)]
    needs = (conv_needs(*geometry[0]), conv_needs(*geometry[1]))

    def compute(window: Tensor, rows: View, cols: View, with_bias: bool = True) -> Tensor:
        want = [view.out[1] - view.out[0] for view in (rows, cols)]
        zeros = [view.span.before for view in (rows, cols)]  # the kernel's own padding, if it gives the right rows
        for n, size, z, span, s in zip(want, window.shape[2:], zeros, spans, strides, strict=True):
            if (size + 2 * z - span) // s + 1 != n or size + 2 * z < span or not size:
                window, zeros = missing(window, rows, cols), [0, 0]
                break
        y = F.conv2d(window, weight, bias if with_bias else None, strides, zeros, dilations, groups)
        return y[:, :, : want[0], : want[1]] if list(y.shape[2:]) != want else y

    sizes = (sizes[0], sizes[1])
    glued = min(sizes) < 1 or isinstance(x.tiles[0], LazyTensor)  # nothing is written in place before it is there
    split = None if glued else _frames(x, sizes, needs, geometry)
    if split is None:
        return windowed(x, sizes, weight.shape[0], needs, compute, "conv2d")
    return _superposed(x, sizes, weight.shape[0], needs, compute, geometry, split)


def _frames(
    x: SceneTensor, sizes: tuple[int, int], needs: tuple[Needs, Needs], geometry: Any
) -> tuple[tuple[Rect, ...], ...] | None:
    """For each tile the foreign rectangles around it: above, below, left, right.

    None unless every tile holds all of its window but a halo thinner than itself.
    """
    axes, size = out_axes(x, sizes), (x.shape[2], x.shape[3])
    frames = []
    for tile in range(x.layout.parts):
        own = window_of(x.axes, tile)
        need = needed(needs, intervals(axes, tile, sizes))
        spans = [clip(need[a.dim - 2], (0, size[a.dim - 2])) for a in x.axes]
        for (start, stop), span in zip(own, spans, strict=True):
            if max(0, start - span.start) + max(0, span.stop - stop) >= stop - start:
                return None
        (top, bottom), *rest = own
        rows, *cols = spans
        beside = tuple((c.start, c.stop) for c in cols)
        frame: list[Rect] = [((rows.start, top), *beside), ((bottom, rows.stop), *beside)]
        for (left, right), span in zip(rest, cols, strict=True):
            frame += [((top, bottom), (span.start, left)), ((top, bottom), (right, span.stop))]
        frames.append(tuple(rect for rect in frame if all(a < b for a, b in rect)))
    return tuple(frames)


class _AddBorders(torch.autograd.Function):
    """Add the halo's share to the border of ``y``, in place; the gradient of both is the same tensor."""

    @staticmethod
    def forward(ctx: Any, where: list[tuple[Interval, Interval]], y: Tensor, *shares: Tensor) -> Tensor:
        ctx.where = where
        ctx.mark_dirty(y)
        for (rows, cols), share in zip(where, shares, strict=True):
            y[:, :, slice(*rows), slice(*cols)].add_(share)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return None, grad, *(grad[:, :, slice(*rows), slice(*cols)] for rows, cols in ctx.where)


def _superposed(
    x: SceneTensor,
    sizes: tuple[int, int],
    channels: int,
    needs: tuple[Needs, Needs],
    compute: Any,
    geometry: Any,
    frames: tuple[tuple[Rect, ...], ...],
) -> SceneTensor:
    """The kernel on each tile, and on the rectangles of its frame, added up."""
    axes, size = out_axes(x, sizes), (x.shape[2], x.shape[3])
    own: list[Tensor] = list(x.tiles)
    halos: list[list[Tensor]] = [[] for _ in x.tiles]
    if any(frames):
        dims = tuple(a.dim for a in x.axes)
        own, halos = fetch(x.layout, x.tiles, dims, x.tile_windows, frames, "conv2d", own=True)

    def views(there: Any, out: Any) -> list[View]:
        need = needed(needs, out)
        return [View(o, clip(n, t)) for o, n, t in zip(out, need, there, strict=True)]

    tiles = []
    for tile, window, halo in zip(x.layout.held, own, halos, strict=True):
        out, there = intervals(axes, tile, sizes), intervals(x.axes, tile, size)
        if any(a >= b for a, b in out):
            shape = (x.shape[0], channels, *(b - a for a, b in out))
            tiles.append(connected(shape, window, *halo))
            continue
        rows, cols = views(there, out)
        for dim, view, (start, _) in ((2, rows, there[0]), (3, cols, there[1])):
            if view.span.start > start:  # rows that a stride passes over
                window = window.narrow(dim, view.span.start - start, window.shape[dim] - view.span.start + start)
        y = compute(window, rows, cols)
        where, shares = [], []
        for rect, strip in zip(frames[tile], halo, strict=True):
            held = {a.dim: i for a, i in zip(x.axes, rect, strict=True)}
            there = (held.get(2, (0, size[0])), held.get(3, (0, size[1])))
            part = [touched(t, o, *g) for t, o, g in zip(there, out, geometry, strict=True)]
            if any(a >= b for a, b in part):
                continue
            rows, cols = views(there, part)
            strip = strip[
                :,
                :,
                rows.span.start - there[0][0] : rows.span.stop - there[0][0],
                cols.span.start - there[1][0] : cols.span.stop - there[1][0],
            ]
            shares.append(compute(strip, rows, cols, with_bias=False))
            where.append(tuple((a - o, b - o) for (a, b), (o, _) in zip(part, out, strict=True)))
        tiles.append(_AddBorders.apply(where, y, *shares) if shares else y)
    return x.like(tiles, (x.shape[0], channels, *sizes), axes)


@rule(*named("conv_transpose2d"))
@samplewise(F.conv_transpose2d)
def conv_transpose2d(
    input: Any,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> SceneTensor:
    """Transposed convolution of a map with plain weights."""
    if is_cut(weight) or is_cut(bias) or not is_cut(input):
        raise refusal("conv_transpose2d", (input, weight, bias), why="takes a cut map and plain weights")
    x = as_map(input, "conv_transpose2d")
    strides, pads, extra, dilations = pair(stride), pair(padding), pair(output_padding), pair(dilation)
    reach = [d * (k - 1) for k, d in zip(weight.shape[2:], dilations, strict=True)]
    sizes = tuple(
        (n - 1) * s - 2 * p + r + e + 1 for n, s, p, r, e in zip(x.shape[2:], strides, pads, reach, extra, strict=True)
    )

    def needs_along(dim: int) -> Needs:
        s, p, r, n = strides[dim], pads[dim], reach[dim], x.shape[dim + 2]

        def needs(first: int, last: int) -> Interval:
            low = min(max(0, -(-(first + p - r) // s)), n - 1)
            return low, max(low + 1, min(n, (last - 1 + p) // s + 1))

        return needs

    def compute(window: Tensor, rows: View, cols: View) -> Tensor:
        cuts = []  # a dimension each: where the output begins in the kernel's, its length, rows that no input reaches
        for dim, view in ((0, rows), (1, cols)):
            made = (window.shape[dim + 2] - 1) * strides[dim] + reach[dim] + 1
            offset = view.out[0] - (view.span.start * strides[dim] - pads[dim])
            want = view.out[1] - view.out[0]
            cuts.append((offset, want, max(0, -offset), max(0, offset + want - made)))
        bare = any(lead or short for *_, lead, short in cuts)  # such rows hold the bias alone
        y = F.conv_transpose2d(window, weight, None if bare else bias, strides, 0, 0, groups, dilations)
        if bare:
            (_, _, top, bottom), (_, _, left, right) = cuts
            y = F.pad(y, (left, right, top, bottom))
        for dim, (offset, want, lead, _) in enumerate(cuts):
            if y.shape[dim + 2] != want:
                y = y.narrow(dim + 2, offset + lead, want)
        return y if bias is None or not bare else y + bias[:, None, None].to(y.dtype)

    channels = weight.shape[1] * groups
    return windowed(x, (sizes[0], sizes[1]), channels, (needs_along(0), needs_along(1)), compute, "conv_transpose2d")
