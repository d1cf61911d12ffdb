"""``SceneTensor``: a tensor that is as large as the scene, of which each worker holds a tile.

``__torch_function__`` sees every call that a model makes, above autograd, and looks up the call's rule in
``RULES``. A rule works on tiles, which are plain tensors, with ordinary differentiable code. What has no rule
raises: there is no silent fallback.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeGuard, TypeVar
from zlib import crc32

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
from rsseglab.spatial.lazy import LazyTensor, everywhere

Rule = Callable[..., Any]
Handler = TypeVar("Handler", bound=Rule)
RULES: dict[Any, Rule] = {}
METADATA: set[Any] = set()  # answered from the wrapper's own shape, dtype and device


class Memory:
    """What tensors share that are views of one another in torch: who of them was written to last.

    A cut may have to copy where torch gives a view (a window partition whose windows cross tiles). That is fine
    until one of the two is overwritten: then the other, read again, would be out of date.
    """

    writer: object = None  # the storage that was written to last
    writes: int = 0


class SceneTensor(Tensor):
    """A cut tensor: ``shape`` is the whole scene's, ``tiles`` are what this process holds of it.

    Made by ``cut`` or ``from_tile``, never by hand.

    Attributes:
        layout: who holds what.
        axes: which dimensions are cut, and where (``rsseglab.spatial.cut.Axis``).
        memory: shared with the tensors of which torch would make this one a view.
        store: the same object for tensors whose tiles share memory.
        writes: how many writes to ``memory`` this one's tiles have seen.
    """

    axes: Axes
    memory: Memory
    store: object
    writes: int
    _tiles: list[Tensor]
    _layout: Layout
    _shape: torch.Size

    @staticmethod
    def __new__(cls, tiles: Sequence[Tensor], layout: Layout, shape: Sequence[int], axes: Axes) -> SceneTensor:
        """Wrap the held tiles of a tensor of global ``shape``."""
        wanted = torch.is_grad_enabled() and any(tile.requires_grad for tile in tiles)
        self: SceneTensor = Tensor._make_wrapper_subclass(
            cls, tuple(shape), dtype=tiles[0].dtype, device=tiles[0].device, requires_grad=wanted
        )
        self._tiles, self._layout, self.axes, self._shape = list(tiles), layout, axes, torch.Size(shape)
        self.memory, self.store, self.writes = Memory(), object(), 0
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
            kwargs = kwargs or {}
            for x in _cut_arguments((*args, *kwargs.values()) if kwargs else args):
                _check_usable(x, func)
            if kwargs.get("out") is not None:
                raise refusal(func, args, why="with out=... can't write across tiles: use the returned tensor")
            try:
                return rule(*args, **{k: v for k, v in kwargs.items() if k != "out"})
            except TypeError as error:
                if "unexpected keyword argument" in str(error) or "positional argument" in str(error):
                    raise refusal(func, args, kwargs, why=f"is not known to the engine as called ({error})") from error
                raise
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


def _check_usable(x: SceneTensor, func: Any) -> None:
    """Refuse what has a history that the tiles do not have: both would be silently wrong."""
    with torch._C.DisableTorchFunctionSubclass():
        foreign = x.grad_fn is not None
    if foreign:
        raise refusal(
            func,
            (x,),
            why="meets the result of a torch.autograd.Function or of a reentrant checkpoint, whose backward pass the "
            "engine can't follow; use operations that have rules, and checkpoint(..., use_reentrant=False)",
        )
    if x.writes < x.memory.writes and x.memory.writer is not x.store:
        raise refusal(
            func,
            (x,),
            why="meets a tensor that was overwritten through a view of it, which crosses tiles and so was a copy; "
            "build the new tensor out of place (torch.where, torch.cat)",
        )


def written(x: SceneTensor) -> None:
    """Say that ``x``'s tiles were overwritten: copies of them, where torch has views, are out of date."""
    x.memory.writes += 1
    x.memory.writer = x.store


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


def refusal(
    func: Any, args: Any = (), kwargs: Any = None, why: str = "has no rule for a cut scene: write one"
) -> SpatialError:
    """The error for a call that can't be kept exact."""
    name = func if isinstance(func, str) else (resolve_name(func) or getattr(func, "__name__", str(func)))
    shapes = [list(x.shape) for x in _cut_arguments([*args, *(kwargs or {}).values()])]
    return SpatialError(
        f"{name} {why} (global shapes {shapes}); or apply it to spatial.replicate(x), which holds the whole tensor on "
        "every worker."
    )


def rule(*functions: Any) -> Callable[[Handler], Handler]:
    """Register the decorated function as the rule of ``functions`` (None entries are passed over)."""

    def register(handler: Handler) -> Handler:
        for function in functions:
            if function is not None:
                RULES[function] = handler
        return handler

    return register


def view_rule(*functions: Any) -> Callable[[Handler], Handler]:
    """Register the rule of functions whose result is, in torch, a view of the first operand."""

    def register(handler: Handler) -> Handler:
        @wraps(handler)
        def viewing(x: Any, *args: Any, **kwargs: Any) -> Any:
            y = handler(x, *args, **kwargs)
            if isinstance(x, SceneTensor):
                for each in y if isinstance(y, tuple) else (y,):
                    _share(x, each)
            return y

        rule(*functions)(viewing)
        return viewing  # type: ignore[return-value]

    return register


def _share(x: SceneTensor, view: Any) -> None:
    if isinstance(view, SceneTensor) and view is not x:
        view.memory, view.writes = x.memory, x.memory.writes
        if all(_memory(a) == _memory(b) for a, b in zip(x._tiles, view._tiles)):  # noqa: B905
            view.store = x.store


def _memory(tile: Tensor) -> int:
    """The same number for tensors that share memory."""
    return id(tile.root) if isinstance(tile, LazyTensor) else tile.untyped_storage()._cdata


def wrap(dim: int, dims: int) -> int:
    """A dimension counted from the front.

    Raises:
        IndexError: as torch has it, if there is no such dimension.
    """
    if not -dims <= dim < dims:
        raise IndexError(f"Dimension out of range (expected to be in range of [{-dims}, {dims - 1}], but got {dim})")
    return dim % dims


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


def _agree_on(layout: Layout, x: Any, shape: Sequence[int], wrong: str, name: str) -> None:
    """All ranks go on, or all refuse: each says what it was given, and what is wrong with it, before anything else.

    Random numbers that a network draws for itself (drop-path's coins) must be the same on all ranks; where their
    default generators differ, the first rank's state becomes everyone's.
    """
    if layout.mesh is None:
        if wrong:
            raise SpatialError(f"{name}: {wrong}")
        return
    kinds = [crc32(str(kind).encode()) for kind in (x.dtype, x.device.type)]
    coins = [int((state.long() * torch.arange(1, len(state) + 1)).sum()) for state in _generators(x)]
    sizes = [len(shape), *shape[:8], *[0] * (8 - len(shape))]
    facts = agree(layout, [*sizes, *kinds, int(x.requires_grad), crc32(wrong.encode()), *coins], name)
    if wrong:
        raise SpatialError(f"{name}: {wrong}")
    if any(row[12] for row in facts):
        ranks = [rank for rank, row in enumerate(facts) if row[12]]
        raise SpatialError(f"{name}: refused by tile {ranks}, whose message says why; mend that one.")
    for columns, what in ((slice(0, 9), "shape"), (slice(9, 11), "dtype or device"), (slice(11, 12), "requires_grad")):
        if len({tuple(row[columns]) for row in facts}) > 1:
            found = sorted({tuple(row[1 : 1 + row[0]]) for row in facts}) if what == "shape" else "rank by rank"
            raise SpatialError(
                f"{name}: ranks disagree on the scene's {what} ({found}); give every rank of a spatial group the same."
            )
    if len({tuple(row[13:]) for row in facts}) > 1:
        _same_coins(layout, x)


def _generators(x: Tensor) -> list[Tensor]:
    """States of the default generators that a network on ``x`` may draw from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(x.device)] if x.is_cuda else [])]


def _same_coins(layout: Layout, x: Tensor) -> None:
    states = []
    for state in _generators(x):
        mine = state.to(x.device, torch.int64)  # a sum of bytes, all but the first rank's zero
        states.append(all_reduce_(mine if layout.rank == 0 else mine.zero_(), layout, "the random state"))
    torch.set_rng_state(states[0].to("cpu", torch.uint8))
    if x.is_cuda:
        torch.cuda.set_rng_state(states[1].to("cpu", torch.uint8), x.device)


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

    Over ranks, default random generators that differ are set to the first rank's state, so that a network that draws
    for itself (drop-path) draws alike everywhere.

    Args:
        x: (B, C, H, W), or a label map (B, H, W). With a mesh, every rank passes the same scene; where
            that is too large to read everywhere, use ``from_tile``.
        layout: the tiles.

    Returns:
        A ``SceneTensor`` of the same shape; gradients flow back to ``x``, whole on every rank.

    Raises:
        SpatialError: if there are more tiles than rows or columns, or ranks disagree on the shape.
    """
    _check_layout(layout, "cut")
    wrong = ""
    if isinstance(x, SceneTensor):
        wrong = f"the tensor {list(x.shape)} is already cut; join it first."
    elif x.dim() not in (3, 4):
        wrong = f"{list(x.shape)} is neither (B, C, H, W) nor (B, H, W); unsqueeze the batch."
    height, width = x.shape[-2:] if x.dim() > 1 else (1, 1)
    _agree_on(layout, x, x.shape, wrong or _too_many(layout, height, width), "cut")
    axes = map_axes(layout, height, width, (x.dim() - 2, x.dim() - 1))
    if layout.mesh is None or not x.requires_grad:
        return SceneTensor([window(x, axes, tile) for tile in layout.held], layout, x.shape, axes)
    return SceneTensor(_Cut.apply(x, layout, axes), layout, x.shape, axes)


def _check_layout(layout: Any, name: str) -> None:
    if not isinstance(layout, Layout):
        raise SpatialError(f"{name}: {layout!r} is not a Layout; write Layout(4), or Layout(2, 3).")


def _too_many(layout: Layout, height: int, width: int) -> str:
    """What is wrong with a scene that has fewer rows or columns than the layout has bands of them."""
    try:
        layout.windows(height, width)
    except SpatialError as error:
        return str(error)
    return ""


def from_tile(tile: Tensor, layout: Layout, height: int, width: int) -> SceneTensor:
    """Make a scene of tiles that each rank has read for itself.

    Random generators are brought to one state over ranks, as by ``cut``.

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
    _check_layout(layout, "from_tile")
    if layout.mesh is None and layout.parts > 1:
        raise SpatialError(
            f"from_tile: this process holds all {layout.parts} tiles; use cut, or give the layout a mesh."
        )
    wrong = _too_many(layout, height, width)
    if isinstance(tile, SceneTensor) or tile.dim() not in (3, 4):
        wrong = f"{list(tile.shape)} is not a plain (B, C, h, w) or (B, h, w) tile."
    elif not wrong:
        _, _, rows, cols = layout.windows(height, width)[layout.rank]
        if tuple(tile.shape[-2:]) != (rows, cols):
            wrong = (
                f"the tile of {list(tile.shape[-2:])} is not of its window's size, {[rows, cols]}, for a scene of "
                f"{[height, width]}; read the window that layout.windows(height, width) names."
            )
    shape = (*tile.shape[:-2], height, width)
    _agree_on(layout, tile, shape, wrong, "from_tile")
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
        return type(y)((key, join(value)) for key, value in y.items())
    return y


def replicate(x: Any) -> Any:
    """The whole tensor on every worker: the honest way out where an operation has no rule.

    The same as ``join``, by the name that it has in the middle of a model: exact, at the memory and
    the traffic of the whole tensor.
    """
    return join(x)


def same_layout(operands: Sequence[Any], name: str) -> None:
    """Refuse operands that are cut by different layouts or meshes."""
    cut_ones = [o for o in operands if is_cut(o)]
    if any(one.layout != cut_ones[0].layout for one in cut_ones):
        raise SpatialError(
            f"{name} on {[list(o.shape) for o in cut_ones]}: the tensors are cut by different layouts or meshes; "
            "cut them by one layout."
        )


IN_PLACE = {
    f"__{name}__"
    for name in ["setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "iand", "ior", "ixor", "imod"]
}


class Copied(Tensor):
    """A part of a scene that all workers hold, where torch has a view: writing to it would not reach the scene."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As a plain tensor, but for in-place operations."""
        name = getattr(func, "__name__", "")
        writes = name in IN_PLACE or (name[-1:] == "_" and name[-2:] != "__" and name != "requires_grad_")
        if writes and isinstance(args[0], Copied):
            raise refusal(name, (), why="writes in place to a row of a cut scene; build the scene with torch.where")
        if SceneTensor in types:
            plain = [a.as_subclass(Tensor) if isinstance(a, Copied) else a for a in args]
            return SceneTensor.__torch_function__(func, types, plain, kwargs)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


def copied(x: Tensor) -> Tensor:
    """Mark a copy where torch has a view."""
    if isinstance(x, LazyTensor):
        x.copied = True
        return x
    return x.as_subclass(Copied)


def _whole(x: SceneTensor) -> Tensor:
    """Join in one process by concatenation; over ranks by fetching everything."""
    _check_usable(x, "join")
    sizes, simple = unfolded(tuple(x.shape), x.axes)
    dims = tuple(axis.dim for axis in simple)
    tiles = [tile.reshape(local_shape(sizes, simple, t)) for t, tile in zip(x.layout.held, x._tiles, strict=True)]
    if len(tiles) == x.layout.parts == 1:
        return tiles[0].reshape(x.shape)
    if x.layout.mesh is None:
        whole: Tensor = _Join.apply(x.layout, sizes, simple, *tiles)
        return everywhere(whole).reshape(x.shape)
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
