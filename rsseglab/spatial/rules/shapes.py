"""Shape changes: the cut follows, and no data moves but to bring a cut onto the multiples of a window.

``view`` reads the same elements by other dimensions (``cut.viewed`` follows the cut index through it);
``permute`` renames dimensions; ``roll`` asks for the rows that come round the scene's end.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from rsseglab.spatial.cut import local_shape, map_axes, moved, on_multiples, viewed, window_of
from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.exchange import Rect, fetch
from rsseglab.spatial.tensor import (
    SceneTensor,
    copied,
    fetch_windows,
    getter,
    join,
    named,
    refusal,
    relaid,
    rule,
    view_rule,
    window,
    wrap,
)


def _sizes(given: Sequence[Any]) -> tuple[int, ...]:
    """Sizes given one by one or as a sequence."""
    return tuple(int(n) for n in (given[0] if len(given) == 1 and isinstance(given[0], list | tuple) else given))


@view_rule(*named("view", "reshape"))
def view(x: SceneTensor, *sizes: Any, **kwargs: Any) -> Any:
    """Read the same elements by other dimensions."""
    sizes = sizes or tuple(kwargs.values())
    if len(sizes) == 1 and isinstance(sizes[0], torch.dtype):
        raise refusal("view(dtype)", (x,))
    shape = _sizes(sizes)
    known = prod(n for n in shape if n != -1)
    if -1 in shape:
        shape = tuple(x.numel() // max(known, 1) if n == -1 else n for n in shape)
    if prod(shape) != x.numel():
        raise SpatialError(f"view: {list(x.shape)} can't be read as {list(shape)}; the numbers of elements differ.")
    try:
        axes, units = viewed(tuple(x.shape), x.axes, shape)
    except SpatialError:
        return _reread(x, shape)
    if any(b % unit for axis, unit in zip(x.axes, units, strict=True) for b in axis.bounds):
        aligned = tuple(on_multiples(axis, unit) for axis, unit in zip(x.axes, units, strict=True))
        x = relaid(x, aligned, "view")
        axes, _ = viewed(tuple(x.shape), x.axes, shape)
    tiles = [t.reshape(local_shape(shape, axes, k)) for k, t in zip(x.layout.held, x.tiles, strict=True)]
    return x.like(tiles, shape, axes)


def _reread(x: SceneTensor, shape: tuple[int, ...]) -> Any:
    """A view that tears the cut index apart (tokens read as channels, say): by way of the whole tensor.

    A map is cut again; any other shape stays plain.
    """
    whole = join(x).reshape(shape)
    if len(shape) != 4:
        return copied(whole)
    axes = map_axes(x.layout, shape[2], shape[3])
    return x.like([window(whole, axes, tile) for tile in x.layout.held], shape, axes)


@view_rule(*named("view_as", "reshape_as"))
def view_as(x: SceneTensor, other: Tensor) -> Any:
    """``view`` with another tensor's shape."""
    return view(x, *other.shape)


@view_rule(*named("flatten"))
def flatten(x: SceneTensor, start_dim: int = 0, end_dim: int = -1) -> Any:
    """Merge dimensions."""
    first, last = wrap(start_dim, x.dim()), wrap(end_dim, x.dim())
    return view(x, *x.shape[:first], prod(x.shape[first : last + 1]), *x.shape[last + 1 :])


@view_rule(*named("unflatten"))
def unflatten(x: SceneTensor, dim: int, sizes: Sequence[int]) -> Any:
    """Split a dimension."""
    d = wrap(dim, x.dim())
    known = prod(n for n in sizes if n != -1)
    return view(x, *x.shape[:d], *(x.shape[d] // known if n == -1 else n for n in sizes), *x.shape[d + 1 :])


@view_rule(*named("unsqueeze"))
def unsqueeze(x: SceneTensor, dim: int) -> SceneTensor:
    """Insert a dimension of one."""
    d = wrap(dim, x.dim() + 1)
    axes = moved(x.axes, {k: k + (k >= d) for k in range(x.dim())})
    return x.like([t.unsqueeze(d) for t in x.tiles], (*x.shape[:d], 1, *x.shape[d:]), axes)


@view_rule(*named("squeeze"))
def squeeze(x: SceneTensor, dim: int | Sequence[int] | None = None) -> SceneTensor:
    """Drop dimensions of one; a cut dimension of one row stays cut in what is left."""
    dims = range(x.dim()) if dim is None else [wrap(d, x.dim()) for d in ((dim,) if isinstance(dim, int) else dim)]
    gone = {d for d in dims if x.shape[d] == 1}
    if any(a.dim in gone for a in x.axes):
        raise refusal("squeeze", (x,), why="would drop a cut dimension")
    kept = [d for d in range(x.dim()) if d not in gone]
    tiles = [t.squeeze(tuple(gone)) for t in x.tiles]
    return x.like(tiles, [x.shape[d] for d in kept], moved(x.axes, {d: k for k, d in enumerate(kept)}))


@view_rule(*named("permute"))
def permute(x: SceneTensor, *dims: Any, **kwargs: Any) -> SceneTensor:
    """Rename dimensions."""
    order = [wrap(d, x.dim()) for d in _sizes(dims or tuple(kwargs.values()))]
    shape = [x.shape[d] for d in order]
    return x.like([t.permute(order) for t in x.tiles], shape, moved(x.axes, {d: k for k, d in enumerate(order)}))


@view_rule(*named("transpose", "swapaxes", "swapdims"))
def transpose(x: SceneTensor, dim0: int, dim1: int) -> SceneTensor:
    """Exchange two dimensions."""
    order = list(range(x.dim()))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permute(x, *order)


@view_rule(*named("movedim", "moveaxis"))
def movedim(x: SceneTensor, source: Any, destination: Any) -> SceneTensor:
    """Move dimensions."""
    sources, targets = ([wrap(d, x.dim()) for d in ((v,) if isinstance(v, int) else v)] for v in (source, destination))
    order = [d for d in range(x.dim()) if d not in sources]
    for target, dim in sorted(zip(targets, sources, strict=True)):
        order.insert(target, dim)
    return permute(x, *order)


@view_rule(getter("mT"))
def matrix_transpose(x: SceneTensor) -> SceneTensor:
    """Exchange the last two dimensions."""
    return transpose(x, -2, -1)


@view_rule(*named("expand", "broadcast_to"))
def expand(x: SceneTensor, *sizes: Any, **kwargs: Any) -> Any:
    """Repeat dimensions of one, without copies."""
    shape = list(_sizes(sizes or tuple(kwargs.values())))
    ahead = len(shape) - x.dim()
    shape = [x.shape[k - ahead] if n == -1 else n for k, n in enumerate(shape)]
    if any(shape[a.dim + ahead] != x.shape[a.dim] for a in x.axes):
        return copied(join(x).expand(shape))  # a single row, wanted by all
    axes = moved(x.axes, {d: d + ahead for d in range(x.dim())})
    tiles = [t.expand(local_shape(shape, axes, k)) for k, t in zip(x.layout.held, x.tiles, strict=True)]
    return x.like(tiles, shape, axes)


@rule(*named("expand_as"))
def expand_as(x: Any, other: Tensor) -> Any:
    """``expand`` to another's shape; a plain tensor meets a cut one by broadcasting."""
    if isinstance(x, SceneTensor):
        return expand(x, *other.shape)
    return x.expand(other.shape)


@rule(*named("repeat", "tile"))
def repeat(x: SceneTensor, *sizes: Any) -> SceneTensor:
    """Copy along uncut dimensions."""
    times = list(_sizes(sizes))
    ahead = len(times) - x.dim()
    if any(times[a.dim + ahead] != 1 for a in x.axes):
        raise refusal("repeat", (x,), why="would repeat a cut dimension")
    shape = [t * n for t, n in zip(times, [1] * ahead + list(x.shape), strict=True)]
    return x.like([t.repeat(times) for t in x.tiles], shape, moved(x.axes, {d: d + ahead for d in range(x.dim())}))


@rule(*named("flip"))
def flip(x: SceneTensor, *dims: Any, **kwargs: Any) -> SceneTensor:
    """Mirror dimensions: of a cut one, a tile's rows come from the scene's other end."""
    for dim in (wrap(d, x.dim()) for d in _sizes(dims or tuple(kwargs.values()))):
        k = next((k for k, a in enumerate(x.axes) if a.dim == dim), None)
        if k is not None:
            if not x.axes[k].simple:
                raise refusal("flip", (x,), why="can't mirror a dimension in which the cut is merged with others")
            length, windows = x.axes[k].length, x.tile_windows
            mirrored = [(*w[:k], (length - w[k][1], length - w[k][0]), *w[k + 1 :]) for w in windows]
            x = x.like(fetch_windows(x, mirrored, "flip"))
        x = x.map(lambda t, d=dim: t.flip(d))  # type: ignore[misc]
    return x


@rule(*named("fliplr"))
def fliplr(x: SceneTensor) -> SceneTensor:
    """Mirror dimension 1."""
    return flip(x, 1)


@rule(*named("flipud"))
def flipud(x: SceneTensor) -> SceneTensor:
    """Mirror dimension 0."""
    return flip(x, 0)


@rule(*named("rot90"))
def rot90(x: SceneTensor, k: int = 1, dims: Sequence[int] = (0, 1)) -> SceneTensor:
    """Turn by quarters from the first dimension towards the second; the cut turns with the scene."""
    first, second = dims
    if k % 4 == 2:
        return flip(x, first, second)
    if k % 4 == 1:
        return transpose(flip(x, second), first, second)
    return flip(transpose(x, first, second), second) if k % 4 else x


@rule(*named("roll"))
def roll(x: SceneTensor, shifts: int | Sequence[int], dims: int | Sequence[int] | None = None) -> SceneTensor:
    """Shift along dimensions, round the end of the scene."""
    if dims is None:
        raise refusal("roll without dims", (x,))
    each = [(n,) if isinstance(n, int) else tuple(n) for n in (shifts, dims)]
    pairs = list(zip(*each, strict=True))
    for shift, dim in pairs:
        dim = wrap(dim, x.dim())
        axis = next((k for k, a in enumerate(x.axes) if a.dim == dim), None)
        if axis is None:  # noqa: SIM108 - mypy cannot type the lambda in a conditional expression
            x = x.map(lambda t, s=shift, d=dim: torch.roll(t, s, d))  # type: ignore[misc]
        else:
            x = _roll_cut(x, shift, axis)
    return x


def _roll_cut(x: SceneTensor, shift: Any, axis: int) -> SceneTensor:
    """Row o comes from row o - shift, modulo the length: at most two intervals a tile."""
    if not x.axes[axis].simple:
        raise refusal("roll", (x,), why="can't roll a dimension in which the cut is merged with others")
    length, dim = x.axes[axis].length, x.axes[axis].dim
    requests: list[tuple[Rect, ...]] = []
    for tile in range(x.layout.parts):
        own = window_of(x.axes, tile)
        start = (own[axis][0] - shift) % length
        stop = start + own[axis][1] - own[axis][0]
        parts = [(start, min(stop, length)), (0, max(0, stop - length))]
        requests.append(tuple((*own[:axis], part, *own[axis + 1 :]) for part in parts))
    dims = tuple(a.dim for a in x.axes)
    _, pieces = fetch(x.layout, x.tiles, dims, x.tile_windows, tuple(requests), "roll")
    return x.like([torch.cat(two, dim) for two in pieces])
