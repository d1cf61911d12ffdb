"""Taking parts: slices, steps, single rows, split, chunk, unbind.

A slice of the cut dimension leaves every row with the tile that holds it: output o is row start + o step,
so the new bounds are ceil((b - start) / step). A single row of it is wanted by all, and comes as a plain
tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import index
from typing import Any

import torch
from torch import Tensor

from rsseglab.spatial.cut import Axis, moved, part_of
from rsseglab.spatial.rules.pointwise import aligned, local_to
from rsseglab.spatial.tensor import (
    SceneTensor,
    banded,
    copied,
    is_cut,
    join,
    named,
    refusal,
    rule,
    view_rule,
    wrap,
    written,
)


def _expanded(index: Any, dims: int) -> list[Any]:
    """The index as a list with one entry a dimension (and None for new ones)."""
    entries = list(index) if isinstance(index, tuple) else [index]
    used = sum(1 for e in entries if e is not None and e is not Ellipsis)
    at = next((k for k, e in enumerate(entries) if e is Ellipsis), len(entries))
    return entries[:at] + [slice(None)] * (dims - used) + entries[at + 1 :]


@view_rule(*named("__getitem__"))
def getitem(x: SceneTensor, key: Any) -> Any:
    """Basic indexing anywhere; tensors as indices outside the cut dimensions."""
    if not is_cut(x):
        raise refusal("indexing a plain tensor by a cut one", (key,))
    key = tuple(_as_tensor(e) for e in key) if isinstance(key, tuple) else _as_tensor(key)
    if any(isinstance(e, Tensor) and e.dtype == torch.bool for e in (key if isinstance(key, tuple) else (key,))):
        raise refusal("indexing by masks", (x,), why="has as many results as the mask has of them")
    entries = _expanded(key, x.dim())
    tensors = [e for e in entries if isinstance(e, list | Tensor)]
    if any(is_cut(e) for e in tensors) or len(tensors) > 1 or any(isinstance(e, bool) for e in entries):
        raise refusal("indexing by masks or by several tensors", (x,))
    cut_dims = {a.dim for a in x.axes}
    local: list[Any] = []
    single: list[int] = []  # dimensions, in the local result, of which one row is wanted by all
    position: dict[int, int] = {}
    dim = out = 0
    for entry in entries:
        if entry is None:
            local.append(None)
            out += 1
            continue
        if not isinstance(entry, slice | list | Tensor):
            entry = index_of(entry, x, dim)
        if dim in cut_dims and isinstance(entry, int):
            row = entry
            x = _sliced(x, dim, slice(row, row + 1))
            single.append(out)
            entry = slice(None)
        elif dim in cut_dims and isinstance(entry, slice):
            if entry != slice(None):
                x, entry = _sliced(x, dim, entry), slice(None)
        elif dim in cut_dims:
            raise refusal("indexing the cut dimension by a tensor", (x,))
        position[dim] = out
        if not isinstance(entry, int):
            out += entry.dim() if isinstance(entry, Tensor) else 1
        local.append(entry)
        dim += 1
    here = tuple(local)
    shape = torch.empty(1).expand(x.shape)[here].shape
    y: Any = x.like([tile[here] for tile in x.tiles], shape, moved(x.axes, position))
    if single:
        y = join(y)
        for d in reversed(single):
            y = y.select(d, 0)
        y = copied(y)
    return y


def _as_tensor(entry: Any) -> Any:
    """Arrays and lists as tensors; the rest as it is."""
    array = not isinstance(entry, Tensor) and getattr(entry, "ndim", 0) > 0
    return torch.as_tensor(entry) if array or isinstance(entry, list) else entry


def index_of(entry: Any, x: SceneTensor, dim: int) -> int:
    """A single index, counted from the front."""
    row, length = index(entry), x.shape[dim]
    if not -length <= row < length:
        raise IndexError(f"index {row} is out of bounds for dimension {dim} with size {length}")
    return row % length


def _sliced(x: SceneTensor, dim: int, rows: slice) -> SceneTensor:
    """Rows start, start + step, ... of a cut dimension, each where it lies."""
    start, stop, step = rows.indices(x.shape[dim])
    if start == 0 and stop >= x.shape[dim] and step == 1:
        return x
    if step < 1:
        raise refusal("slicing with a negative step", (x,))
    if sum(a.dim == dim for a in x.axes) > 1 or not all(a.simple for a in x.axes if a.dim == dim):
        x = banded(x, dim, "slice")
    total = max(0, -(-(stop - start) // step))
    k = next(k for k, a in enumerate(x.axes) if a.dim == dim)
    old = x.axes[k]
    inner = (min(max(0, -(-(b - start) // step)), total) for b in old.bounds[1:-1])
    new = Axis(dim, (0, *inner, total))
    tiles = []
    for tile_number, tile in zip(x.layout.held, x.tiles, strict=True):
        part = part_of(x.axes, tile_number)[k]
        (first, last), (begin, _) = new.part(part), old.part(part)
        count = last - first
        offset = start + first * step - begin if count else 0
        tile = tile.narrow(dim, offset, (count - 1) * step + 1 if count else 0)
        tiles.append(tile[(slice(None),) * dim + (slice(None, None, step),)] if step > 1 else tile)
    shape = (*x.shape[:dim], total, *x.shape[dim + 1 :])
    return x.like(tiles, shape, tuple(new if i == k else a for i, a in enumerate(x.axes)))


@view_rule(*named("narrow"))
def narrow(x: SceneTensor, dim: int, start: int, length: int) -> Any:
    """A slice of one dimension."""
    dim = wrap(dim, x.dim())
    start = start + x.shape[dim] if start < 0 else start
    if start + length > x.shape[dim] or length < 0:
        raise IndexError(f"start ({start}) + length ({length}) exceeds dimension size ({x.shape[dim]}).")
    return getitem(x, (*[slice(None)] * dim, slice(start, start + length)))


@view_rule(*named("select"))
def select(x: SceneTensor, dim: int, index: int) -> Any:
    """One row of one dimension."""
    return getitem(x, (*[slice(None)] * (wrap(dim, x.dim())), index))


@view_rule(*named("unbind"))
def unbind(x: SceneTensor, dim: int = 0) -> tuple[Any, ...]:
    """All rows of one dimension, one by one."""
    return tuple(select(x, dim, k) for k in range(x.shape[dim]))


@view_rule(*named("split", "split_with_sizes"))
def split(x: SceneTensor, split_size: int | Sequence[int], dim: int = 0) -> tuple[Any, ...]:
    """Consecutive parts of one dimension."""
    length = x.shape[dim]
    if isinstance(split_size, int):
        split_size = [min(split_size, length - k) for k in range(0, length, split_size)]
    starts = [sum(split_size[:k]) for k in range(len(split_size))]
    return tuple(narrow(x, dim, start, size) for start, size in zip(starts, split_size, strict=True))


@view_rule(*named("chunk"))
def chunk(x: SceneTensor, chunks: int, dim: int = 0) -> tuple[Any, ...]:
    """About equal parts of one dimension."""
    return split(x, -(-x.shape[dim] // chunks), dim)


@rule(*named("index_select"))
def index_select(x: SceneTensor, dim: int, index: Tensor) -> SceneTensor:
    """Rows of an uncut dimension."""
    dim = wrap(dim, x.dim())
    if any(a.dim == dim for a in x.axes):
        raise refusal("index_select on the cut dimension", (x,))
    shape = (*x.shape[:dim], len(index), *x.shape[dim + 1 :])
    return x.like([t.index_select(dim, index) for t in x.tiles], shape)


@rule(*named("take_along_dim"))
def take_along_dim(input: Any, indices: Any, dim: int | None = None) -> SceneTensor:
    """``gather`` with its arguments the other way round."""
    if dim is None:
        raise refusal("take_along_dim without dim", (input, indices))
    return gather(input, dim, indices)


@rule(*named("gather"))
def gather(x: Any, dim: int, index: Any) -> SceneTensor:
    """Look up an uncut dimension, position by position."""
    ndim = index.dim()
    dim = wrap(dim, ndim)
    lead = x if is_cut(x) else index
    if any(a.dim == dim for a in lead.axes):
        raise refusal("gather along the cut dimension", (x, index))
    if [n for d, n in enumerate(x.shape) if d != dim] != [n for d, n in enumerate(index.shape) if d != dim]:
        raise refusal("gather with a smaller index", (x, index))
    one = x.narrow(dim, 0, 1), index.narrow(dim, 0, 1)  # agree on the cut by what both share
    _, axes, _, _ = aligned(one, "gather")
    values, places = local_to(x, lead, axes, "gather"), local_to(index, lead, axes, "gather")
    return lead.like([v.gather(dim, i) for v, i in zip(values, places, strict=True)], index.shape, axes)


@rule(*named("__setitem__"))
def setitem(x: Any, place: Any, value: Any) -> None:
    """Write to uncut dimensions: a number, or a cut tensor of the part's shape."""
    if not is_cut(x):
        raise refusal("writing a cut tensor into a plain one", (value,), why="would gather it silently")
    entries = _expanded(place, x.dim())
    kept = [e for e in entries if e is not None]
    crosses = any(kept[a.dim] != slice(None) for a in x.axes) if not _has_tensor(kept) else True
    if crosses:
        raise refusal("an in-place write", (x,), why="crosses tiles; build the tensor with torch.where or torch.cat")
    key = tuple(entries)
    if not isinstance(value, Tensor) or value.dim() == 0:
        values = [value] * len(x.tiles)
    else:
        part = getitem(x, place)
        if not is_cut(value):
            value = value.expand(part.shape)
        elif value.shape != part.shape:
            raise refusal("an in-place write", (x, value), why=f"takes a tensor of {list(part.shape)}")
        values = local_to(value, x, part.axes, "an in-place write")
    for target, here in zip(x.tiles, values, strict=True):
        target[key] = here
    written(x)


def _has_tensor(entries: list[Any]) -> bool:
    return any(isinstance(e, list | Tensor) for e in entries)
