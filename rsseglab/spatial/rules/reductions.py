"""Sums, means, extremes and moments over any dimensions.

Over uncut dimensions tile by tile. Over all cut dimensions each tile reduces what it holds and the parts
are merged to a plain tensor, the same on all workers. Over one cut dimension of a grid the map is first
laid in bands along the other. Means divide by the scene's count, variances are taken about the scene's
mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rsseglab.spatial.cut import Axis, moved, window_of
from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.exchange import all_reduce_, gather, reduce_sum
from rsseglab.spatial.layout import Layout, bounds
from rsseglab.spatial.lazy import everywhere
from rsseglab.spatial.rules.pointwise import elementwise
from rsseglab.spatial.tensor import SceneTensor, banded, is_cut, named, refusal, relaid, rule, wrap
from rsseglab.spatial.windows import connected

Dims = int | Sequence[int] | None


def _dims(x: SceneTensor, dim: Dims) -> tuple[int, ...]:
    if dim is None or (not isinstance(dim, int) and len(dim) == 0):
        return tuple(range(x.dim()))
    return tuple(wrap(d, x.dim()) for d in ((dim,) if isinstance(dim, int) else dim))


def reduced(
    x: SceneTensor,
    dim: Dims,
    keepdim: bool,
    local: Callable[[Tensor, tuple[int, ...]], Tensor],
    merge: Callable[[list[Tensor]], Tensor],
    name: str,
) -> Any:
    """Reduce each tile by ``local`` (keeping dimensions), the tiles by ``merge`` if the cut is reduced."""
    dims = _dims(x, dim)
    kept = [a for a in x.axes if a.dim not in dims]
    if kept and len(kept) < len(x.axes):
        band = Axis(kept[0].dim, bounds(kept[0].length, x.layout.parts), kept[0].outer, kept[0].inner)
        x = relaid(x, (band,), name)
    parts = [local(tile, dims) for tile in x.tiles]
    left = [d for d in range(x.dim()) if d not in dims]
    if not kept:
        whole = merge(parts)
        return whole if keepdim else whole.reshape([x.shape[d] for d in left])
    y = x.like(parts, [1 if d in dims else n for d, n in enumerate(x.shape)])
    if keepdim:
        return y
    axes = moved(y.axes, {d: k for k, d in enumerate(left)})
    return y.like([t.squeeze(dims) for t in y.tiles], [x.shape[d] for d in left], axes)


def _wide(x: Tensor) -> torch.dtype:
    """Sums of halves are kept in float32 until they are merged."""
    return torch.promote_types(x.dtype, torch.float32) if x.is_floating_point() else torch.int64


@rule(*named("sum"))
def sum_(x: SceneTensor, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    """Sum."""
    target = dtype or (x.dtype if x.dtype.is_floating_point else torch.int64)
    wide = torch.promote_types(target, torch.float32) if target.is_floating_point else target
    total = reduced(
        x,
        dim,
        keepdim,
        lambda t, dims: t.sum(dims, keepdim=True, dtype=wide),
        lambda parts: reduce_sum(x.layout, parts, "sum"),
        "sum",
    )
    return total.to(target)


@rule(*named("mean"))
def mean(x: SceneTensor, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None) -> Any:
    """Mean over the scene's count."""
    if not (dtype or x.dtype).is_floating_point:
        raise SpatialError(
            f"mean: the scene {list(x.shape)} is of {x.dtype}, whose mean is undefined; convert it first."
        )
    target = dtype or x.dtype
    count = prod(x.shape[d] for d in _dims(x, dim))
    return (sum_(x, dim, keepdim, dtype=torch.promote_types(target, torch.float32)) / count).to(target)


def _widened(x: Tensor) -> Tensor:
    """Squares of halves may overflow: they are taken in float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) if x.is_floating_point() else x


def _no_dim(dim: Any, unbiased: bool) -> tuple[Any, bool]:
    """``x.var(False)`` means the whole scene, biased."""
    return (None, dim) if isinstance(dim, bool) else (dim, unbiased)


def _centred(x: SceneTensor, dim: Dims) -> Any:
    return elementwise(torch.sub)(x, mean(x, dim, True))


@rule(*named("var"))
def var(
    x: SceneTensor,
    dim: Dims | bool = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Any:
    """Variance about the scene's mean, in two passes."""
    dim, unbiased = _no_dim(dim, unbiased)
    correction = (1 if unbiased else 0) if correction is None else correction
    count = prod(x.shape[d] for d in _dims(x, dim))
    wide = x.map(_widened)
    squares = elementwise(torch.square)(_centred(wide, dim))
    return (sum_(squares, dim, keepdim) / max(count - correction, 0)).to(x.dtype)


@rule(*named("std"))
def std(x: SceneTensor, dim: Dims | bool = None, *args: Any, **kwargs: Any) -> Any:
    """Standard deviation; with a zero subgradient at zero, as torch has it."""
    variance = var(x, dim, *args, **kwargs)
    return variance.map(lambda t: _root(t, 2)) if is_cut(variance) else _root(variance, 2)


@rule(*named("var_mean"))
def var_mean(
    x: SceneTensor,
    dim: Dims | bool = None,
    unbiased: bool = True,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> tuple[Any, Any]:
    """Variance and mean."""
    dim, unbiased = _no_dim(dim, unbiased)
    return var(x, dim, unbiased, keepdim, correction=correction), mean(x, dim, keepdim)


@rule(torch.linalg.vector_norm)
def vector_norm(
    x: SceneTensor, ord: float = 2, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Any:
    """The p-norm of all values along ``dim``; with a zero subgradient at zero, as torch has it."""
    p = float(ord)
    x = x if dtype is None else x.map(lambda t: t.to(dtype))
    dims = _dims(x, dim)
    if all(a.dim not in dims for a in x.axes):
        return reduced(x, dim, keepdim, lambda t, d: torch.linalg.vector_norm(t, p, d, True), lambda s: s[0], "norm")
    if p == float("inf"):
        return amax(elementwise(torch.abs)(x), dim, keepdim)
    if p <= 0:
        raise refusal(f"norm(p={p})", (x,))
    wide = x.map(_widened)
    powers = elementwise(torch.square)(wide) if p == 2 else elementwise(torch.pow)(elementwise(torch.abs)(wide), p)
    total = sum_(powers, dim, keepdim)
    root = total.map(lambda t: _root(t, p)) if is_cut(total) else _root(total, p)
    return root.to(x.dtype)


def _root(total: Tensor, p: float) -> Tensor:
    zero = total == 0
    return (total.masked_fill(zero, 1.0) ** (1 / p)).masked_fill(zero, 0.0)


@rule(torch.norm, Tensor.norm)
def norm(x: SceneTensor, p: Any = "fro", dim: Dims = None, keepdim: bool = False, dtype: Any = None) -> Any:
    """``torch.norm``: a p-norm of values, of which Frobenius' is the one with p = 2."""
    if p == "nuc":
        raise refusal("norm(p='nuc')", (x,))
    return vector_norm(x, 2.0 if p in (None, "fro") else p, dim, keepdim, dtype=dtype)


@rule(torch.linalg.norm)
def linalg_norm(
    x: SceneTensor, ord: Any = None, dim: Dims = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Any:
    """A vector norm along one dimension, or of all values; of two dimensions it would be a matrix norm."""
    one = isinstance(dim, int) or (dim is not None and len(dim) == 1)
    if not (one or ord is None or (ord == "fro" and dim is not None)):
        raise refusal("linalg.norm of matrices", (x,), why="has no rule: write one, or use torch.linalg.vector_norm")
    return vector_norm(x, 2.0 if ord in (None, "fro") else ord, dim, keepdim, dtype=dtype)


@rule(*named("normalize"))
def normalize(x: SceneTensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12) -> Any:
    """Divide by the norm along ``dim``."""
    if all(a.dim != wrap(dim, x.dim()) for a in x.axes):
        return x.map(lambda t: F.normalize(t, p, dim, eps))
    return elementwise(torch.div)(x, norm(x, p, dim, True).clamp_min(eps))


class _Extreme(torch.autograd.Function):
    """The extreme of all tiles; its gradient is spread evenly over all places that reach it, as torch has it."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, function: Any, dims: tuple[int, ...], name: str, *tiles: Tensor) -> Tensor:
        held = [function(t, dims, keepdim=True) for t in tiles if all(t.shape[d] for d in dims)]
        shape = [1 if d in dims else n for d, n in enumerate(tiles[0].shape)]
        there = torch.full(shape, bool(held), device=tiles[0].device)
        mine = function(torch.stack(held), 0) if held else tiles[0].new_zeros(shape)
        if layout.mesh is None:
            top = everywhere(mine)
        else:  # a rank may hold nothing: the others' extremes count
            every, who = gather(layout, [mine], name), gather(layout, [there.to(mine.dtype)], name)
            top = function(torch.stack([v for v, w in zip(every, who, strict=True) if w.is_meta or bool(w.all())]), 0)
        ctx.layout, ctx.dims, ctx.name = layout, dims, name
        ctx.save_for_backward(top, *tiles)
        return top

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        top, *tiles = ctx.saved_tensors
        reach = [t == top for t in tiles]
        count = torch.stack([r.sum(ctx.dims, keepdim=True) for r in reach]).sum(0)
        name = f"backward of {ctx.name}"
        count = all_reduce_(count, ctx.layout, name)
        share = all_reduce_(grad.clone(), ctx.layout, name) / count
        return (None,) * 4 + tuple(r * share for r in reach)


def _extreme(function: Any, x: SceneTensor, dim: Dims, keepdim: bool, name: str) -> Any:
    dims = _dims(x, dim)
    if any(a.dim not in dims for a in x.axes):  # a cut that stays: no tile is empty along what is reduced
        return reduced(x, dim, keepdim, lambda t, d: function(t, d, keepdim=True), lambda parts: parts[0], name)
    if x.dtype == torch.bool:
        return _extreme(function, x.map(lambda t: t.to(torch.uint8)), dim, keepdim, name).bool()
    top = _Extreme.apply(x.layout, function, dims, name, *x.tiles)
    return top if keepdim else top.reshape([n for d, n in enumerate(x.shape) if d not in dims])


@rule(*named("amax"))
def amax(x: SceneTensor, dim: Dims = None, keepdim: bool = False) -> Any:
    """Largest value."""
    return _extreme(torch.amax, x, dim, keepdim, "amax")


@rule(*named("amin"))
def amin(x: SceneTensor, dim: Dims = None, keepdim: bool = False) -> Any:
    """Smallest value."""
    return _extreme(torch.amin, x, dim, keepdim, "amin")


def _with_index(x: SceneTensor, k: int, dim: int, largest: bool, keepdim: bool, name: str) -> tuple[Any, Any]:
    """The ``k`` extremes along ``dim`` and their places in the scene."""
    dim = wrap(dim, x.dim())
    hit = [a for a in x.axes if a.dim == dim]
    if hit and len(hit) < len(x.axes):
        other = next(a for a in x.axes if a.dim != dim)
        x = relaid(x, (Axis(other.dim, bounds(other.length, x.layout.parts), other.outer, other.inner),), name)
        hit = []
    if not hit:
        both = [_extreme_of(t, dim, largest) if k == 1 else t.topk(k, dim, largest) for t in x.tiles]
        shape = (*x.shape[:dim], k, *x.shape[dim + 1 :])
        return x.like([b.values for b in both], shape), x.like([b.indices for b in both], shape)
    x = banded(x, dim, name)
    if k == 1:
        return _first_extreme(x, dim, largest, name)
    worst = float("-inf") if largest else float("inf")
    values, places = [], []
    for tile_number, tile in zip(x.layout.held, x.tiles, strict=True):
        ((start, _),) = window_of(x.axes, tile_number)
        best = tile.topk(min(k, tile.shape[dim]), dim, largest)
        short = [0, 0] * (x.dim() - 1 - dim) + [0, k - best.values.shape[dim]]
        values.append(F.pad(best.values, short, value=worst))
        places.append(F.pad(best.indices + start, short))
    every, where = gather(x.layout, values, name), gather(x.layout, places, name)
    real = [min(k, stop - start) for ((start, stop),) in x.tile_windows]  # the rest of a tile's k is padding
    all_values = torch.cat([v.narrow(dim, 0, n) for v, n in zip(every, real, strict=True)], dim)
    all_places = torch.cat([p.narrow(dim, 0, n) for p, n in zip(where, real, strict=True)], dim)
    best = all_values.topk(k, dim, largest)
    return best.values, all_places.gather(dim, best.indices)


def _extreme_of(x: Tensor, dim: int, largest: bool) -> Any:
    """The extreme, NaN before all, and the first place that reaches it: what ``topk`` does not promise."""
    return torch.max(x, dim, keepdim=True) if largest else torch.min(x, dim, keepdim=True)


def _first_extreme(x: SceneTensor, dim: int, largest: bool, name: str) -> tuple[Any, Any]:
    """The extreme along the cut dimension and the first place in the scene that reaches it."""
    values, places = [], []
    shape = [1 if d == dim else n for d, n in enumerate(x.tiles[0].shape)]
    for tile_number, tile in zip(x.layout.held, x.tiles, strict=True):
        ((start, stop),) = window_of(x.axes, tile_number)
        if start < stop:
            best = _extreme_of(tile, dim, largest)
            values.append(best.values)
            places.append(best.indices + start)
        else:
            values.append(connected(shape, tile))
            places.append(torch.zeros(shape, dtype=torch.int64, device=tile.device))
    filled = [
        tile
        for tile, ((start, stop),) in enumerate(window_of(x.axes, t) for t in range(x.layout.parts))
        if start < stop
    ]
    all_values = torch.cat([gather(x.layout, values, name)[tile] for tile in filled], dim)
    all_places = torch.cat([gather(x.layout, places, name)[tile] for tile in filled], dim)
    best = _extreme_of(all_values, dim, largest)
    return best.values, all_places.gather(dim, best.indices)


@rule(*named("topk"))
def topk(x: SceneTensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """The ``k`` largest (or smallest) along ``dim`` and their places in the scene."""
    if k > x.shape[dim]:
        raise SpatialError(f"topk: {k} of {x.shape[dim]} values; give at most that many.")
    return torch.return_types.topk(_with_index(x, k, dim, largest, True, "topk"))


def _squeezed(x: Any, dim: int, keepdim: bool) -> Any:
    return x if keepdim else x.squeeze(dim)


def _argument(name: str, largest: bool) -> None:
    stock = getattr(torch, f"arg{name}")

    @rule(*named(f"arg{name}"))
    def argument(x: SceneTensor, dim: int | None = None, keepdim: bool = False) -> Any:
        if dim is None:
            raise refusal(f"arg{name} without dim", (x,))
        if all(a.dim != wrap(dim, x.dim()) for a in x.axes):
            return reduced(x, dim, keepdim, lambda t, d: stock(t, d[0], True), lambda s: s[0], f"arg{name}")
        return _squeezed(_with_index(x, 1, dim, largest, True, f"arg{name}")[1], dim, keepdim)

    pick = getattr(torch, name)
    extreme = amax if largest else amin

    @rule(*named(name))
    def value(x: Any, *args: Any, **kwargs: Any) -> Any:
        other = args[0] if args else kwargs.get("other")
        if isinstance(other, Tensor):
            return elementwise(pick)(x, other)
        if not args and not kwargs:
            return extreme(x)
        dim, keepdim = _dim_and_keep(*args, **kwargs)
        if all(a.dim != wrap(dim, x.dim()) for a in x.axes):
            values = reduced(x, dim, keepdim, lambda t, d: pick(t, d[0], True).values, lambda s: s[0], name)
            return getattr(torch.return_types, name)((values, argument(x, dim, keepdim)))
        both = _with_index(x, 1, dim, largest, True, name)
        return getattr(torch.return_types, name)([_squeezed(b, dim, keepdim) for b in both])


def _dim_and_keep(dim: int, keepdim: bool = False) -> tuple[int, bool]:
    return dim, keepdim


_argument("max", True)
_argument("min", False)


@rule(*named("any", "all", "count_nonzero"))
def no_truth(x: SceneTensor, *args: Any, **kwargs: Any) -> Any:
    """Truth of a whole scene steers Python; say so by a sum."""
    raise refusal("any, all and count_nonzero", (x,), why="have no rule; use (mask.sum() > 0)")


def _finite(top: Tensor) -> Tensor:
    """What is taken off before exp: nothing where all is -inf, or something is inf."""
    top = top.detach()
    return top.masked_fill(top.isinf(), 0)


@rule(*named("logsumexp"))
def logsumexp(x: SceneTensor, dim: Dims, keepdim: bool = False) -> Any:
    """Log sum exp, about the scene's maximum."""
    top = amax(x, dim, True)
    top = _finite(top) if not is_cut(top) else top.map(_finite)
    total = sum_(elementwise(torch.exp)(elementwise(torch.sub)(x, top)), dim, True)
    y = elementwise(torch.add)(elementwise(torch.log)(total), top) if is_cut(total) else total.log() + top
    return y if keepdim else y.squeeze(_dims(x, dim))


@rule(*named("cumsum"))
def cumsum(x: SceneTensor, dim: int, **kwargs: Any) -> SceneTensor:
    """Running sum over an uncut dimension."""
    if any(a.dim == wrap(dim, x.dim()) for a in x.axes):
        raise refusal("cumsum along the cut dimension", (x,))
    return x.map(lambda t: t.cumsum(dim, **kwargs))
