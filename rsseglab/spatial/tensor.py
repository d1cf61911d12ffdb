"""``SceneTensor``: a tensor that is as large as the scene, of which each worker holds a tile.

``__torch_function__`` sees every call that a model makes, above autograd, and looks up the call's rule in
``RULES``. A rule works on tiles, which are plain tensors, with ordinary differentiable code. What has no rule
raises: there is no silent fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeGuard, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import resolve_name

from rsseglab.spatial.cut import (
    Axes,
    Axis,
    local_shape,
    map_axes,
    plainest,
    unfolded,
    window_of,
)
from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.exchange import Rect, Traffic, agree, all_reduce_, fetch
from rsseglab.spatial.layout import Layout, bounds

Rule = Callable[..., Any]
Handler = TypeVar("Handler", bound=Rule)
RULES: dict[Any, Rule] = {}
METADATA: set[Any] = set()  # answered from the wrapper's own shape, dtype and device


class SceneTensor(Tensor):
    """A cut tensor: ``shape`` is the whole scene's, ``tiles`` are what this process holds of it.

    Made by ``cut`` or ``from_tile``, never by hand.

    Attributes:
        layout: who holds what.
        axes: which dimensions are cut, and where (``rsseglab.spatial.cut.Axis``).
    """

    axes: Axes
    _tiles: list[Tensor]
    _layout: Layout
    _shape: torch.Size

    @staticmethod
    def __new__(cls, tiles: Sequence[Tensor], layout: Layout, shape: Sequence[int], axes: Axes) -> SceneTensor:
        """Wrap the held tiles of a tensor of global ``shape``."""
        self: SceneTensor = Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=tiles[0].dtype, device=tiles[0].device
        )
        self._tiles, self._layout, self.axes, self._shape = list(tiles), layout, axes, torch.Size(shape)
        return self

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        """The whole scene's shape."""
        return self._shape

    @property
    def layout(self) -> Layout:  # type: ignore[override]
        """Who holds what (every tile is dense, so torch's own meaning of the word is not missed)."""
        return self._layout

    @property
    def tiles(self) -> tuple[Tensor, ...]:
        """The tiles that this process holds, in row-major order."""
        return tuple(self._tiles)

    @property
    def tile_windows(self) -> tuple[Rect, ...]:
        """For every tile of the layout, the interval of each cut axis that it holds."""
        return tuple(window_of(self.axes, t) for t in range(self.layout.parts))

    def like(
        self, tiles: Sequence[Tensor], shape: Sequence[int] | None = None, axes: Axes | None = None
    ) -> SceneTensor:
        """New tiles on this tensor's layout; shape and axes stay unless given."""
        return SceneTensor(
            tiles, self.layout, self.shape if shape is None else shape, self.axes if axes is None else axes
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> SceneTensor:
        """Apply a shape-preserving function tile by tile."""
        return self.like([function(tile) for tile in self._tiles])

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        cuts = ", ".join(f"dim {a.dim} at {list(a.bounds)}" for a in self.axes)
        held = list(self.layout.held)
        return f"SceneTensor(shape={list(self.shape)}, dtype={self.dtype}, cut: {cuts}, holds {held})"

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Find the call's rule, or refuse."""
        rule = RULES.get(func)
        if rule is not None:
            return rule(*args, **(kwargs or {}))
        if func in METADATA:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        raise refusal(func, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Below autograd nothing may happen to a wrapper: whatever got here went round the rules."""
        raise refusal(func, args, kwargs)


def is_cut(x: Any) -> TypeGuard[SceneTensor]:
    """True if ``x`` is a ``SceneTensor``."""
    return isinstance(x, SceneTensor)


def _cut_arguments(values: Any) -> list[SceneTensor]:
    found = []
    for value in values:
        if isinstance(value, SceneTensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _cut_arguments(value)
    return found


def refusal(func: Any, args: Any = (), kwargs: Any = None, why: str = "has no rule for a cut scene") -> SpatialError:
    """The error for a call that can't be kept exact."""
    name = func if isinstance(func, str) else (resolve_name(func) or getattr(func, "__name__", str(func)))
    shapes = [list(x.shape) for x in _cut_arguments([*args, *(kwargs or {}).values()])]
    return SpatialError(
        f"{name} {why} (global shapes {shapes}); apply it to spatial.replicate(x), which holds the whole "
        "tensor on every worker, or write a rule for it."
    )


def rule(*functions: Any) -> Callable[[Handler], Handler]:
    """Register the decorated function as the rule of ``functions`` (None entries are passed over)."""

    def register(handler: Handler) -> Handler:
        for function in functions:
            if function is not None:
                RULES[function] = handler
        return handler

    return register


def named(*names: str) -> list[Any]:
    """Every spelling of an operation: ``torch.x``, ``Tensor.x``, ``F.x``, and in ``torch._C._nn``."""
    homes = (torch, Tensor, F, torch._C._nn, torch.special, torch.linalg)
    found: list[Any] = []
    for name in names:
        candidates = [getattr(home, name, None) for home in homes]
        found += [f for f in candidates if callable(f) and f not in found]
    return found


def getter(name: str) -> Any:
    """What ``__torch_function__`` is called with when ``x.name`` is read."""
    return getattr(Tensor, name).__get__


# ---------------------------------------------------------------- from whole to cut, and back


def _agree_on(layout: Layout, shape: Sequence[int], fits: bool, name: str) -> None:
    facts = agree(layout, [len(shape), *(list(shape) + [0] * 8)[:8], int(fits)], name)
    sizes = {tuple(row[1 : 1 + row[0]]) for row in facts}
    if len(sizes) > 1:
        raise SpatialError(
            f"{name}: ranks disagree on the scene's shape ({sorted(map(list, sizes))}); give every rank of a "
            "spatial group the same scene."
        )
    wrong = [rank for rank, row in enumerate(facts) if not row[-1]]
    if wrong:
        raise SpatialError(
            f"{name}: the tile of tile number {wrong} is not of its window's size for a scene of "
            f"{list(shape)}; read the window that layout.windows(height, width) names."
        )


class _Cut(torch.autograd.Function):
    """Take the held windows; backward puts them together again, on every rank (see the convention)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout, axes: Axes) -> tuple[Tensor, ...]:
        ctx.layout, ctx.axes, ctx.shape = layout, axes, x.shape
        return tuple(window(x, axes, tile).clone() for tile in layout.held)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        whole = grads[0].new_zeros(ctx.shape)
        for tile, grad in zip(ctx.layout.held, grads, strict=True):
            window(whole, ctx.axes, tile).copy_(grad)
        if ctx.layout.mesh is not None:
            all_reduce_(whole, ctx.layout, "backward of cut").div_(ctx.layout.parts)
        return whole, None, None


class _Own(torch.autograd.Function):
    """The tile that a rank has read; its gradient is that of the mean over ranks of their losses."""

    @staticmethod
    def forward(ctx: Any, tile: Tensor, layout: Layout) -> Tensor:
        ctx.parts = layout.parts
        return tile.view_as(tile)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad / ctx.parts, None


def window(x: Tensor, axes: Axes, tile: int) -> Tensor:
    """What ``tile`` holds of a plain tensor of the global size; a view wherever the cuts are simple."""
    if not _simple(axes):
        sizes, simple = unfolded(tuple(x.shape), axes)
        return window(x.reshape(sizes), simple, tile).reshape(local_shape(x.shape, axes, tile))
    for axis, (start, stop) in zip(axes, window_of(axes, tile), strict=True):
        x = x.narrow(axis.dim, start, stop - start)
    return x


def _simple(axes: Axes) -> bool:
    return all(axis.simple for axis in axes) and len({axis.dim for axis in axes}) == len(axes)


def cut(x: Tensor, layout: Layout) -> SceneTensor:
    """Cut a whole scene in the layout's tiles; each rank keeps its own.

    Args:
        x: (B, C, H, W), or a label map (B, H, W). With a mesh, every rank passes the same scene; where
            that is too large to read everywhere, use ``from_tile``.
        layout: the tiles.

    Returns:
        A ``SceneTensor`` of the same shape; gradients flow back to ``x``, whole on every rank.

    Raises:
        SpatialError: if there are more tiles than rows or columns, or ranks disagree on the shape.
    """
    if isinstance(x, SceneTensor):
        raise SpatialError(f"cut: the tensor {list(x.shape)} is already cut; join it first.")
    if x.dim() not in (3, 4):
        raise SpatialError(f"cut: {list(x.shape)} is neither (B, C, H, W) nor (B, H, W); unsqueeze the batch.")
    _agree_on(layout, x.shape, True, "cut")
    height, width = x.shape[-2:]
    layout.windows(height, width)  # refuses more tiles than rows
    axes = map_axes(layout, height, width, (x.dim() - 2, x.dim() - 1))
    if layout.mesh is None or not x.requires_grad:
        return SceneTensor([window(x, axes, tile) for tile in layout.held], layout, x.shape, axes)
    return SceneTensor(_Cut.apply(x, layout, axes), layout, x.shape, axes)


def from_tile(tile: Tensor, layout: Layout, height: int, width: int) -> SceneTensor:
    """Make a scene of tiles that each rank has read for itself.

    Args:
        tile: this rank's window of the scene, (B, C, h, w) or (B, h, w), as ``layout.windows`` names it.
        layout: a layout with a mesh, or of a single tile.
        height: rows of the scene, in pixels.
        width: columns of the scene, in pixels.

    Returns:
        A ``SceneTensor`` of the scene's shape; the gradient that reaches ``tile`` is its part of the one that
        the whole scene would have in one process.

    Raises:
        SpatialError: on every rank, if a tile is not of its window's size or the ranks' scenes differ.
    """
    if layout.mesh is None and layout.parts > 1:
        raise SpatialError(
            f"from_tile: this process holds all {layout.parts} tiles; use cut, or give the layout a mesh."
        )
    if isinstance(tile, SceneTensor) or tile.dim() not in (3, 4):
        raise SpatialError(f"from_tile: {list(tile.shape)} is not a plain (B, C, h, w) or (B, h, w) tile.")
    _, _, rows, cols = layout.windows(height, width)[layout.rank]
    shape = (*tile.shape[:-2], height, width)
    _agree_on(layout, shape, tuple(tile.shape[-2:]) == (rows, cols), "from_tile")
    if tile.requires_grad:
        tile = _Own.apply(tile, layout)
    return SceneTensor([tile], layout, shape, map_axes(layout, height, width, (tile.dim() - 2, tile.dim() - 1)))


def join(y: Any) -> Any:
    """The whole tensor on every worker, differentiable; a plain tensor passes through.

    Lists, tuples and dicts of tensors are joined inside.
    """
    if isinstance(y, SceneTensor):
        return _whole(y)
    if isinstance(y, list | tuple):
        joined = [join(each) for each in y]
        return type(y)(*joined) if hasattr(y, "_fields") else type(y)(joined)
    if isinstance(y, dict):
        return {key: join(value) for key, value in y.items()}
    return y


def replicate(x: Any) -> Any:
    """The whole tensor on every worker: the honest way out where an operation has no rule.

    The same as ``join``, by the name that it has in the middle of a model: exact, at the memory and
    the traffic of the whole tensor.
    """
    return join(x)


def _whole(x: SceneTensor) -> Tensor:
    """Join in one process by concatenation; over ranks by fetching everything."""
    sizes, simple = unfolded(tuple(x.shape), x.axes)
    dims = tuple(axis.dim for axis in simple)
    tiles = [tile.reshape(local_shape(sizes, simple, t)) for t, tile in zip(x.layout.held, x._tiles, strict=True)]
    if len(tiles) == x.layout.parts == 1:
        return tiles[0].reshape(x.shape)
    if x.layout.mesh is None:
        whole: Tensor = _Join.apply(x.layout, sizes, simple, *tiles)
        return whole.reshape(x.shape)
    everything = (tuple((0, axis.length) for axis in simple),)
    windows = tuple(window_of(simple, t) for t in range(x.layout.parts))
    _, [[whole]] = fetch(x.layout, tiles, dims, windows, (everything,) * x.layout.parts, "join")
    return whole.reshape(x.shape)


class _Join(torch.autograd.Function):
    """All tiles of one process put together; over ranks each would send its own to all others."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, shape: Sequence[int], axes: Axes, *tiles: Tensor) -> Tensor:
        ctx.layout, ctx.axes = layout, axes
        Traffic.join(tiles)
        cols = len(axes[-1].bounds) - 1
        if len(axes) == 2:
            tiles = tuple(torch.cat(tiles[k : k + cols], axes[1].dim) for k in range(0, len(tiles), cols))
        return torch.cat(tiles, axes[0].dim)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grads = [window(grad, ctx.axes, tile) for tile in ctx.layout.held]
        Traffic.join(grads, backward=True)
        return None, None, None, *grads


# ---------------------------------------------------------------- from one cut to another


def simplified(x: SceneTensor) -> SceneTensor:
    """The same tensor viewed so that each cut has a dimension of its own."""
    if _simple(x.axes):
        return x
    sizes, simple = unfolded(tuple(x.shape), x.axes)
    tiles = [t.reshape(local_shape(sizes, simple, k)) for k, t in zip(x.layout.held, x._tiles, strict=True)]
    return x.like(tiles, sizes, simple)


def fetch_windows(x: SceneTensor, requests: Sequence[Rect], name: str) -> list[Tensor]:
    """For each held tile, the window of ``x`` (one interval an axis, within the scene) that it asks for.

    ``x`` has simple axes. Where no tile asks for more than it holds, views of the tiles are returned.
    """
    windows = x.tile_windows
    dims = tuple(axis.dim for axis in x.axes)
    if all(_inside(rect, own) for rect, own in zip(requests, windows, strict=True)):
        tiles = []
        for tile, held in zip(x._tiles, x.layout.held, strict=True):
            for dim, (a, b), (c, d) in zip(dims, requests[held], windows[held], strict=True):
                tile = tile if (a, b) == (c, d) else tile.narrow(dim, a - c if a < b else 0, b - a)
            tiles.append(tile)
        return tiles
    _, rects = fetch(x.layout, x._tiles, dims, windows, tuple((r,) for r in requests), name)
    return [rect for (rect,) in rects]


def _inside(rect: Rect, own: Rect) -> bool:
    return all((c <= a and b <= d) or a == b for (a, b), (c, d) in zip(rect, own, strict=True))


def relaid(x: SceneTensor, axes: Axes, name: str) -> SceneTensor:
    """The same tensor on another cut."""
    if axes == x.axes:
        return x
    shape = tuple(x.shape)
    (sizes, old), (new_sizes, new) = unfolded(shape, x.axes), unfolded(shape, axes)
    if sizes != new_sizes:
        (sizes, old), (new_sizes, new) = unfolded(shape, plainest(x.axes)), unfolded(shape, plainest(axes))
    if sizes != new_sizes:  # one cut inside a batch of them, say: no rectangle of one is a rectangle of the other
        whole = _whole(x)
        return x.like([window(whole, axes, t) for t in x.layout.held], shape, axes)
    locals_ = [local_shape(sizes, old, t) for t in x.layout.held]
    spread = x.like([t.reshape(s) for t, s in zip(x._tiles, locals_, strict=True)], sizes, old)
    tiles = _turned(spread, new, name)
    shapes = [local_shape(shape, axes, t) for t in x.layout.held]
    return x.like([t.reshape(s) for t, s in zip(tiles, shapes, strict=True)], shape, axes)


def banded(x: SceneTensor, dim: int, name: str) -> SceneTensor:
    """The same tensor in bands of all tiles, each a contiguous range of ``dim`` (a simple axis)."""
    if len(x.axes) > 1:
        axis = min((a for a in x.axes if a.dim == dim), key=lambda a: a.outer)
        x = relaid(x, (Axis(dim, bounds(axis.length, x.layout.parts), axis.outer, axis.inner),), name)
    if x.axes[0].outer > 1:
        x = relaid(x, (Axis(dim, bounds(x.shape[dim], x.layout.parts)),), name)
    return x.like(x.tiles, x.shape, plainest(x.axes))


def _turned(x: SceneTensor, new: Axes, name: str) -> list[Tensor]:
    """Fetch where other dimensions are cut than before: ask in all dimensions that either cut touches."""
    dims = sorted({axis.dim for axis in (*x.axes, *new)})

    def rects(axes: Axes) -> tuple[Rect, ...]:
        found = []
        for tile in range(x.layout.parts):
            at = {a.dim: i for a, i in zip(axes, window_of(axes, tile), strict=True)}
            found.append(tuple(at.get(d, (0, x.shape[d])) for d in dims))
        return tuple(found)

    requests = tuple((rect,) for rect in rects(new))
    _, fetched = fetch(x.layout, x._tiles, tuple(dims), rects(x.axes), requests, name)
    return [rect for (rect,) in fetched]
