"""The shape of a rule that mixes space: what a window needs, and what to compute on it.

A rule gives, for each of the two spatial dimensions, ``needs``: the interval of input rows (columns) that an
interval of output rows (columns) is made of, as if the scene had no end; and ``compute``: the stock kernel on
that window. What the window lacks, because the scene ends there or, in ``convolution``, because another tile
holds it, is told to ``compute`` as a number of missing rows before and after. ``windowed`` does the rest:
output cut, exchange, tiles that are empty.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rsseglab.spatial.cut import Axes, Axis, Interval, map_axes, window_of
from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.tensor import Handler, SceneTensor, fetch_windows, is_cut, relaid

Needs = Callable[[int, int], Interval]


class Span(NamedTuple):
    """An interval of input of which [start, stop) is there, and ``before`` and ``after`` rows are not."""

    start: int
    stop: int
    before: int
    after: int


class View(NamedTuple):
    """Along one dimension: the output interval to compute, and the input there is for it."""

    out: Interval
    span: Span


Compute = Callable[[Tensor, View, View], Tensor]


def clip(needed: Interval, there: Interval) -> Span:
    """Split what is needed in what is there and what is missing before and after it."""
    (low, high), (first, last) = needed, there
    start = min(max(low, first), last)
    stop = max(start, min(high, last))
    return Span(start, stop, max(0, min(high, first) - low), max(0, high - max(low, last)))


def samplewise(function: Callable[..., Any]) -> Callable[[Handler], Handler]:
    """Where whole samples are shared out, and none is cut, ``function`` itself is the rule, tile by tile."""

    def is_batch_of(y: Any, x: Tensor) -> bool:
        return isinstance(y, Tensor) and len(y) == len(x)  # neither (values, indices) nor a padded batch

    def decorate(handler: Handler) -> Handler:
        @wraps(handler)
        def rule(input: Any, *args: Any, **kwargs: Any) -> Any:
            if not (is_cut(input) and _whole_samples(input)) or any(map(is_cut, (*args, *kwargs.values()))):
                return handler(input, *args, **kwargs)
            tiles = [function(tile, *args, **kwargs) for tile in input.tiles]
            if not all(is_batch_of(y, x) for y, x in zip(tiles, input.tiles, strict=True)):
                return handler(input, *args, **kwargs)
            return input.like(tiles, (input.shape[0], *tiles[0].shape[1:]))

        return rule  # type: ignore[return-value]

    return decorate


def _whole_samples(x: SceneTensor) -> bool:
    """True for (B, C, H, W) of which each tile holds samples, at least one."""
    if x.dim() != 4 or len(x.axes) != 1 or x.axes[0].dim != 0 or not x.axes[0].simple:
        return False
    return all(a < b for a, b in pairwise(x.axes[0].bounds))


def as_map(x: SceneTensor, name: str) -> SceneTensor:
    """Check for a map (B, C, H, W) and cut it along its rows and columns alone."""
    if x.dim() != 4:
        raise SpatialError(
            f"{name} on a cut tensor of shape {list(x.shape)}: the engine's maps are (B, C, H, W); "
            "unsqueeze the batch, or spatial.replicate it."
        )
    if {axis.dim for axis in x.axes} <= {2, 3} and all(axis.simple for axis in x.axes):
        return x
    return relaid(x, map_axes(x.layout, x.shape[2], x.shape[3]), name)


def out_axes(x: SceneTensor, sizes: tuple[int, int]) -> Axes:
    """The cut of an output map of ``sizes``, along the dimensions in which ``x`` is cut."""
    return tuple(Axis(a.dim, x.layout.bounds(sizes[a.dim - 2], len(a.bounds) - 1)) for a in x.axes)


def intervals(axes: Axes, tile: int, sizes: tuple[int, int]) -> tuple[Interval, Interval]:
    """Rows and columns that ``tile`` holds of a map of ``sizes``; all of them along an uncut dimension."""
    held = {axis.dim: interval for axis, interval in zip(axes, window_of(axes, tile), strict=True)}
    return held.get(2, (0, sizes[0])), held.get(3, (0, sizes[1]))


def needed(needs: tuple[Needs, Needs], out: tuple[Interval, Interval]) -> tuple[Interval, Interval]:
    """What an output window is made of; nothing, if it is empty."""
    if any(a >= b for a, b in out):
        return (0, 0), (0, 0)
    return needs[0](*out[0]), needs[1](*out[1])


def windowed(
    x: SceneTensor,
    sizes: tuple[int, int],
    channels: int,
    needs: tuple[Needs, Needs],
    compute: Compute,
    name: str,
) -> SceneTensor:
    """Run a rule that makes a map of ``sizes`` and ``channels`` from windows of a map.

    Args:
        x: a map (B, C, H, W).
        sizes: output rows and columns.
        channels: output channels.
        needs: for rows and for columns, output interval -> input interval (it may reach out of the scene).
        compute: (window, rows, columns) -> output tile.
        name: the operation, for error messages.
    """
    x = as_map(x, name)
    if min(sizes) < 1:
        raise SpatialError(f"{name} on {list(x.shape)}: the output would have {sizes} rows and columns.")
    axes = out_axes(x, sizes)
    size = (x.shape[2], x.shape[3])
    views, requests = [], []
    for tile in range(x.layout.parts):
        out = intervals(axes, tile, sizes)
        need = needed(needs, out)
        spans = [clip(n, (0, s)) for n, s in zip(need, size, strict=True)]
        views.append([View(o, s) for o, s in zip(out, spans, strict=True)])
        requests.append(tuple((spans[a.dim - 2].start, spans[a.dim - 2].stop) for a in axes))
    tiles = []
    for tile, window in zip(x.layout.held, fetch_windows(x, requests, name), strict=True):
        rows, cols = views[tile]
        shape = (x.shape[0], channels, rows.out[1] - rows.out[0], cols.out[1] - cols.out[0])
        for dim, view in ((2, rows), (3, cols)):  # an uncut dimension is there in full: take what is needed
            if window.shape[dim] != view.span.stop - view.span.start:
                window = window.narrow(dim, view.span.start, view.span.stop - view.span.start)
        tiles.append(connected(shape, window) if 0 in shape else compute(window, rows, cols))
    return x.like(tiles, (x.shape[0], channels, *sizes), axes)


def connected(shape: Sequence[int], *sources: Tensor) -> Tensor:
    """An empty tile that stays in the graph: its rank must join every exchange of the backward pass."""
    empty = sources[0].new_zeros(shape)
    for source in sources:
        empty = empty + 0 * source.sum()
    return empty


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """An int, or one or two of them, as (rows, columns)."""
    if isinstance(value, int):
        return value, value
    values = tuple(int(v) for v in value)
    return (values[0], values[0]) if len(values) == 1 else (values[0], values[1])


def missing(window: Tensor, rows: View, cols: View, value: float = 0.0) -> Tensor:
    """Fill in what the window lacks with ``value``."""
    pads = (cols.span.before, cols.span.after, rows.span.before, rows.span.after)
    return torch.nn.functional.pad(window, pads, value=value) if any(pads) else window
