"""Which part of a tensor each tile holds, for any shape that a map is brought into.

A map (B, C, H, W) is cut along H, along W, or along both. After ``view`` or ``permute`` the cut may sit
anywhere, and inside a merged dimension: tokens (B, H*W, C) of a scene in bands hold, in dimension 1, the
index h * W + w with h cut. An ``Axis`` says so: dimension ``dim`` is read as (outer, length, inner) and
``length`` is cut at ``bounds``. A grid has two axes, rows then columns; bands have one.

    index in dim = (o * length + l) * inner + i,    tile p holds bounds[p] <= l < bounds[p + 1]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.layout import Layout

Interval = tuple[int, int]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Axis:
    """One cut: dimension ``dim`` = (outer, length, inner), ``length`` cut at ``bounds``."""

    dim: int
    bounds: tuple[int, ...]
    outer: int = 1
    inner: int = 1

    @property
    def length(self) -> int:
        """The length that is cut."""
        return self.bounds[-1]

    @property
    def simple(self) -> bool:
        """True if the whole dimension is what is cut."""
        return self.outer == 1 and self.inner == 1

    def part(self, index: int) -> Interval:
        """Where part ``index`` begins and ends."""
        return self.bounds[index], self.bounds[index + 1]


Axes = tuple[Axis, ...]


def part_of(axes: Axes, tile: int) -> tuple[int, ...]:
    """The part of each axis that ``tile`` holds: its band, or its row and column in the grid."""
    if len(axes) == 1:
        return (tile,)
    return divmod(tile, len(axes[1].bounds) - 1)


def window_of(axes: Axes, tile: int) -> tuple[Interval, ...]:
    """The interval of each axis that ``tile`` holds."""
    return tuple(axis.part(part) for axis, part in zip(axes, part_of(axes, tile), strict=True))


def local_shape(shape: Sequence[int], axes: Axes, tile: int) -> Shape:
    """The shape of ``tile`` of a tensor of global ``shape``."""
    local = list(shape)
    for axis, (start, stop) in zip(axes, window_of(axes, tile), strict=True):
        local[axis.dim] = local[axis.dim] // axis.length * (stop - start)
    return tuple(local)


def map_axes(layout: Layout, height: int, width: int, dims: tuple[int, int] = (2, 3)) -> Axes:
    """The engine's own cut of a map of ``height`` x ``width`` whose rows and columns are ``dims``."""
    rows, cols = Axis(dims[0], layout.bounds(height, layout.rows)), Axis(dims[1], layout.bounds(width, layout.cols))
    if layout.cols == 1:
        return (rows,)
    return (cols,) if layout.rows == 1 else (rows, cols)


def unfolded(shape: Shape, axes: Axes) -> tuple[Shape, Axes]:
    """The same tensor viewed so that each cut has a dimension of its own."""
    sizes: list[int] = []
    simple: dict[int, Axis] = {}
    for dim, size in enumerate(shape):
        left = size
        for k, axis in sorted(((k, a) for k, a in enumerate(axes) if a.dim == dim), key=lambda ka: ka[1].outer):
            below = axis.length * axis.inner
            if left != below:
                sizes.append(left // below)
            simple[k] = Axis(len(sizes), axis.bounds)
            sizes.append(axis.length)
            left = axis.inner
        if left != 1 or not any(a.dim == dim for a in axes):
            sizes.append(left)
    return tuple(sizes), tuple(simple[k] for k in range(len(axes)))


def viewed(shape: Shape, axes: Axes, new_shape: Shape) -> tuple[Axes, tuple[int, ...]]:
    """Follow the cuts through ``view(new_shape)``.

    Returns:
        The axes in the new shape, and for each axis the unit: its bounds must be multiples of it for the
        view to be local (a window partition with windows of w rows needs bounds that are multiples of w).

    Raises:
        SpatialError: if the new shape breaks the cut dimension in a way that no cut can follow.
    """
    followed: list[Axis] = []
    units: list[int] = []
    for axis in axes:
        below = axis.inner * prod(shape[axis.dim + 1 :])  # elements under one step of the cut index
        if axis.length == 1 and (place := _of_one_row(new_shape, below, {a.dim for a in followed})) is not None:
            followed.append(Axis(place, axis.bounds))
            units.append(1)
            continue
        for dim in range(len(new_shape)):
            under = prod(new_shape[dim + 1 :])
            if under < below * axis.length:
                break
        # `dim` holds the leading digits of the cut index; one step there is `step` elements
        step = max(under, below)
        unit, inner, length = step // below, step // under, below * axis.length // step
        if step % below or step % under or (below * axis.length) % step or new_shape[dim] % (inner * length):
            raise SpatialError(
                f"view of {list(shape)} as {list(new_shape)}: the cut dimension of {axis.length} is split "
                "across the new dimensions; reshape it apart from the others, or spatial.replicate it first."
            )
        followed.append(Axis(dim, tuple(-(-b // unit) for b in axis.bounds), new_shape[dim] // (inner * length), inner))
        units.append(unit)
    return plainest(tuple(followed)), tuple(units)


def _of_one_row(shape: Shape, below: int, taken: set[int]) -> int | None:
    """Where a cut of one row goes: the dimension of one row that stands at its place, if there is one.

    At the very end of the shape any dimension of one row will do, and one must be found.
    """
    free = [d for d, n in enumerate(shape) if n == 1 and d not in taken]
    there = [d for d in free if prod(shape[d + 1 :]) == below]
    if not there and below == 1:
        if not free:
            raise SpatialError(f"view as {list(shape)}: no dimension of one row is left for the cut one.")
        there = free
    return there[-1] if there else None


def plainest(axes: Axes) -> Axes:
    """A cut that leads its dimension alone is a cut of the whole dimension, whatever is inside."""
    return tuple(
        Axis(a.dim, tuple(b * a.inner for b in a.bounds))
        if a.outer == 1 and sum(other.dim == a.dim for other in axes) == 1
        else a
        for a in axes
    )


def moved(axes: Axes, position: dict[int, int]) -> Axes:
    """The axes after dimension ``d`` has become dimension ``position[d]``."""
    return tuple(replace(axis, dim=position[axis.dim]) for axis in axes)


def on_multiples(axis: Axis, unit: int) -> Axis:
    """The axis with each bound moved to the nearest multiple of ``unit``."""
    moved_bounds = [min(axis.length, (b + unit // 2) // unit * unit) for b in axis.bounds[:-1]]
    return replace(axis, bounds=(*moved_bounds, axis.length))
