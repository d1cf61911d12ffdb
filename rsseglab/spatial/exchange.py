"""How tiles meet: fetch windows from wherever they live, and sum over tiles. Both with their adjoints.

``fetch`` is the one primitive of the engine. Every tile asks for rectangles of the cut axes; a plan, pure
arithmetic that every rank computes alike, says which piece comes from which tile; the pieces are copied (one
process) or sent (one packed message a peer and a call). Its adjoint sends the gradients back the same way and
adds them up: <fetch(x), y> = <x, fetch*(y)>.

Convention for gradients over ranks: what is differentiated is the *mean over ranks of the loss that each rank
computes*. Where all compute the same replicated loss this is the loss; each rank then holds a share of a
weight's gradient, and the mean of the shares (``sync_gradients``) is the gradient of one process.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from rsseglab.spatial.cut import Interval, Shape
from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.layout import Layout
from rsseglab.spatial.lazy import LazyTensor, aten, everywhere, opaque

Rect = tuple[Interval, ...]  # one interval for each cut axis
Requests = tuple[tuple[Rect, ...], ...]  # for each tile, the rectangles that it asks for
Wire = tuple[Any, Tensor, int]  # isend or irecv, what, and the peer


class Traffic:
    """What tiles send each other, by operation: counted where a rank sends it, reckoned where all tiles live here.

    So a run in one process, on ``meta`` tensors even, tells what the same layout sends over ranks.
    ``rsseglab.spatial.scale`` sets one beside the other.

    Attributes:
        sent: bytes by (operation, tile); a sum over P tiles of n bytes costs each 2 (P - 1) / P n, as in a ring.
        messages: point-to-point messages by tile.
        sums: sums and agreements over all tiles, a collective each.
    """

    sent: ClassVar[Counter[tuple[str, int]]] = Counter()
    messages: ClassVar[Counter[int]] = Counter()
    sums: ClassVar[int] = 0

    @classmethod
    def reset(cls) -> None:
        """Start counting from zero."""
        cls.sent.clear()
        cls.messages.clear()
        cls.sums = 0

    @classmethod
    def most(cls) -> tuple[int, int, int]:
        """Bytes and messages of the tile that sends most of them, and the number of sums."""
        by_tile: Counter[int] = Counter()
        for (_, tile), sent in cls.sent.items():
            by_tile[tile] += sent
        return max(by_tile.values(), default=0), max(cls.messages.values(), default=0), cls.sums

    @classmethod
    def pieces(cls, pieces: tuple[Piece, ...], like: Tensor, dims: Sequence[int], name: str) -> None:
        """Count what tiles of one process copy, and ranks would send, of tensors such as ``like``."""
        beside = prod(n for d, n in enumerate(like.shape) if d not in dims) * like.element_size()
        between = [p for p in pieces if p.src != p.dst]
        for p in between:
            cls.sent[name, p.src] += prod(b - a for a, b in p.from_src) * beside
        cls.messages.update(src for src, _ in {(p.src, p.dst) for p in between})

    @classmethod
    def join(cls, tiles: Sequence[Tensor], backward: bool = False) -> None:
        """Count each tile sent to all others; backward, to each its gradient from all others."""
        sizes = [t.numel() * t.element_size() for t in tiles]
        for tile, size in enumerate(sizes):
            sent = sum(sizes) - size if backward else (len(tiles) - 1) * size
            cls.sent["backward of join" if backward else "join", tile] += sent
            cls.messages[tile] += len(tiles) - 1

    @classmethod
    def sum(cls, layout: Layout, x: Tensor, parts: int, name: str) -> None:
        """Count a sum over all tiles."""
        for tile in layout.held:
            cls.sent[name, tile] += 2 * (parts - 1) * x.numel() * x.element_size() // parts
        cls.sums += 1


@dataclass(frozen=True)
class Piece:
    """A part of rectangle ``number`` of tile ``dst`` that lies in tile ``src``."""

    src: int
    dst: int
    number: int
    from_src: Rect  # relative to the tile of src
    into_dst: Rect  # relative to the rectangle


@lru_cache(maxsize=4096)
def plan(windows: tuple[Rect, ...], requests: Requests) -> tuple[Piece, ...]:
    """Which pieces of which tiles make up the requested rectangles; ``windows[t]`` is what tile t holds."""
    pieces = []
    for dst, rects in enumerate(requests):
        for number, rect in enumerate(rects):
            found = 0
            for src, window in enumerate(windows):
                both = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(rect, window, strict=True))
                if all(a < b for a, b in both):
                    from_src = tuple((a - w, b - w) for (a, b), (w, _) in zip(both, window, strict=True))
                    into_dst = tuple((a - r, b - r) for (a, b), (r, _) in zip(both, rect, strict=True))
                    pieces.append(Piece(src, dst, number, from_src, into_dst))
                    found += prod(b - a for a, b in both)
            if found != prod(max(0, b - a) for a, b in rect):
                raise SpatialError(
                    f"exchange: tile {dst} asks for {rect}, of which the tiles hold {found} positions; a "
                    "rule's needs reach out of the scene. Please report this."
                )
    return tuple(pieces)


def _at(tensor: Tensor, dims: Sequence[int], rect: Rect) -> Tensor:
    for dim, (start, stop) in zip(dims, rect, strict=True):
        if stop - start != tensor.shape[dim]:
            tensor = tensor.narrow(dim, start, stop - start)
    return tensor


def _empty(like: Tensor, dims: Sequence[int], rect: Rect) -> Tensor:
    shape = list(like.shape)
    for dim, (start, stop) in zip(dims, rect, strict=True):
        shape[dim] = stop - start
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format(like))


def memory_format(x: Tensor) -> torch.memory_format:
    """channels_last where ``x`` is laid out so, else contiguous."""
    last = x.dim() == 4 and x.stride(1) == 1 and x.shape[1] > 1 and x.stride(3) >= x.shape[1]
    return torch.channels_last if last else torch.contiguous_format


def _start(layout: Layout, wires: list[Wire]) -> list[Any]:
    """Start (isend or irecv, tensor, peer) all at once; what is to be waited for."""
    if not wires or wires[0][1].is_meta:  # no values: a rank that is only played, to reckon its memory
        return []
    group = layout.group
    return dist.batch_isend_irecv(
        [dist.P2POp(how, tensor, dist.get_global_rank(group, peer), group) for how, tensor, peer in wires]
    )


def _transport(layout: Layout, sends: dict[int, list[Tensor]], receives: dict[int, list[Tensor]], name: str) -> None:
    """Send tensors to peers and fill those that come from them: one message each way and peer."""
    wires: list[Wire] = []
    arriving = []
    for peer in sorted(sends.keys() | receives.keys()):
        if peer in sends:
            packed = torch.cat([t.reshape(-1) for t in sends[peer]])
            Traffic.sent[name, layout.rank] += packed.numel() * packed.element_size()
            Traffic.messages[layout.rank] += 1
            wires.append((dist.isend, packed, peer))
        if peer in receives:
            first = receives[peer][0]
            buffer = first.new_empty(sum(t.numel() for t in receives[peer]))
            wires.append((dist.irecv, buffer, peer))
            arriving.append((buffer, receives[peer]))
    with _named(layout, name):
        for work in _start(layout, wires):
            work.wait()
    for buffer, targets in arriving:
        for target, part in zip(targets, buffer.split([t.numel() for t in targets]), strict=True):
            target.copy_(part.view(target.shape))


def pass_on(layout: Layout, sent: list[Tensor], arriving: list[Tensor], name: str) -> Callable[[], None]:
    """Send tensors to the next rank and fill ``arriving`` from the one before; returns what waits for both.

    What is sent must not change until then.
    """
    after, before = ((layout.rank + step) % layout.parts for step in (1, -1))
    outgoing: list[Wire] = [(dist.isend, t, after) for t in sent if t.numel()]
    incoming: list[Wire] = [(dist.irecv, t, before) for t in arriving if t.numel()]
    Traffic.sent[name, layout.rank] += sum(t.numel() * t.element_size() for t in sent)
    Traffic.messages[layout.rank] += len(outgoing)
    with _named(layout, name):
        works = _start(layout, [*outgoing, *incoming])

    def wait() -> None:
        with _named(layout, name):
            for work in works:
                work.wait()

    return wait


class _named:  # noqa: N801
    """Turn a failure of the transport into an error that names the rank and the operation."""

    def __init__(self, layout: Layout, name: str) -> None:
        self.layout, self.name = layout, name

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, RuntimeError):
            raise SpatialError(
                f"{self.name}: tile {self.layout.rank} of {self.layout.parts} lost its peers "
                f"({str(error).partition(chr(10))[0]}); look for the first rank that failed, and start all again."
            ) from error


def _views(
    tiles: Sequence[LazyTensor], dims: tuple[int, ...], pieces: tuple[Piece, ...], requests: Requests
) -> list[LazyTensor]:
    """The rectangles of lazy tiles: the pieces put together, without writing to anything.

    They are written down here and not by torch, as there are so many.
    """
    parts: dict[tuple[int, int], list[Piece]] = {}
    for p in pieces:
        parts.setdefault((p.dst, p.number), []).append(p)

    def joined(its: Sequence[Piece], axis: int) -> LazyTensor:
        if axis == len(dims):
            return _part(tiles[its[0].src], dims, its[0].from_src)
        places = sorted({p.into_dst[axis] for p in its})
        strips = [joined([p for p in its if p.into_dst[axis] == place], axis + 1) for place in places]
        if len(strips) == 1:
            return strips[0]
        return strips[0].recorder.record(aten.cat.default, (strips, dims[axis]), {})  # type: ignore[no-any-return]

    return [
        joined(parts[t, n], 0) if (t, n) in parts else _part(tiles[t], dims, ((0, 0),) * len(dims))
        for t, rects in enumerate(requests)
        for n in range(len(rects))
    ]


def _part(tile: LazyTensor, dims: Sequence[int], rect: Rect) -> LazyTensor:
    """As `_at`."""
    for dim, (start, stop) in zip(dims, rect, strict=True):
        if stop - start != tile.shape[dim]:
            tile = tile.recorder.record(aten.slice.Tensor, (tile, dim, start, stop), {})
    return tile


def _views_back(ctx: Any, grads: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradient of each lazy tile: that of all pieces of it, added up where they lie."""
    own = len(ctx.shapes) if ctx.own else 0
    keys = [(t, n) for t, rects in enumerate(ctx.requests) for n in range(len(rects))]
    rects = dict(zip(keys, grads[own:], strict=True))
    found: list[list[tuple[Rect | None, Tensor]]] = [[(None, grad)] for grad in grads[:own]] or [[] for _ in ctx.shapes]
    for p in sorted(ctx.pieces, key=lambda p: p.src != p.dst):
        found[p.src].append((p.from_src, _at(rects[p.dst, p.number], ctx.dims, p.into_dst)))
    back = []
    for (shape, form), its in zip(ctx.shapes, found, strict=True):
        places = [place for place, _ in its]
        back.append(
            _added(shape, form, ctx.dims, places, *(grad for _, grad in its)) if its else grads[-1].new_zeros(shape)
        )
    return tuple(back)


@opaque
def _added(
    shape: Shape, form: torch.memory_format, dims: Sequence[int], places: Sequence[Rect | None], *parts: Tensor
) -> Tensor:
    """Tensors added up in one of ``shape``, each at its place (None: all of it)."""
    total = torch.empty(shape, dtype=parts[0].dtype, device=parts[0].device, memory_format=form).zero_()
    for place, part in zip(places, parts, strict=True):
        (total if place is None else _at(total, dims, place)).add_(part)
    return total


class _Fetch(torch.autograd.Function):
    """Rectangles from tiles; with ``own`` the tile itself comes along, so that its gradient is made once."""

    @staticmethod
    def forward(
        ctx: Any,
        layout: Layout,
        dims: tuple[int, ...],
        pieces: tuple[Piece, ...],
        requests: Requests,
        own: bool,
        name: str,
        *tiles: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.layout, ctx.dims, ctx.pieces, ctx.requests, ctx.own = layout, dims, pieces, requests, own
        ctx.name = name
        ctx.shapes = [(t.shape, memory_format(t)) for t in tiles]
        if isinstance(tiles[0], LazyTensor):
            return (*(tiles if own else ()), *_views(tiles, dims, pieces, requests))  # type: ignore[arg-type]
        held = dict(zip(layout.held, tiles, strict=True))
        rects = {(t, n): _empty(held[t], dims, rect) for t in layout.held for n, rect in enumerate(requests[t])}
        sends: dict[int, list[Tensor]] = {}
        receives: dict[int, list[Tensor]] = {}
        for p in pieces:
            if p.src in held and p.dst in held:
                _at(rects[p.dst, p.number], dims, p.into_dst).copy_(_at(held[p.src], dims, p.from_src))
            elif p.src in held:
                sends.setdefault(p.dst, []).append(_at(held[p.src], dims, p.from_src))
            elif p.dst in held:
                receives.setdefault(p.src, []).append(_at(rects[p.dst, p.number], dims, p.into_dst))
        if layout.mesh is not None:
            _transport(layout, sends, receives, name)
        elif layout.parts > 1:
            Traffic.pieces(pieces, tiles[0], dims, name)
        aliases = [t.view_as(t) for t in tiles] if own else []
        return (*aliases, *rects.values())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        if isinstance(grads[-1], LazyTensor):
            return (None,) * 6 + _views_back(ctx, grads)
        layout, dims = ctx.layout, ctx.dims
        count, like = len(layout.held), grads[0]
        back: dict[int, Tensor] = {}
        if ctx.own:  # made by the kernel that used the tile, and seen by nobody else: added to in place
            fresh = (g.clone() if 0 in g.stride() else g for g in grads[:count])  # a stride of 0: one shared zero
            back = dict(zip(layout.held, fresh, strict=True))
            grads = grads[count:]
        keys = [(t, n) for t in layout.held for n in range(len(ctx.requests[t]))]
        rects = dict(zip(keys, grads, strict=True))
        shapes = dict(zip(layout.held, ctx.shapes, strict=True))

        def add(tile: int, where: Rect, grad: Tensor) -> None:
            shape, form = shapes[tile]
            whole = all(b - a == shape[d] for d, (a, b) in zip(dims, where, strict=True))
            if tile not in back and whole:
                back[tile] = grad.clone(memory_format=form)
                return
            if tile not in back:
                back[tile] = torch.empty(shape, dtype=grad.dtype, device=grad.device, memory_format=form).zero_()
            _at(back[tile], dims, where).add_(grad)

        sends: dict[int, list[Tensor]] = {}
        receives: dict[int, list[Tensor]] = {}
        arriving: list[tuple[Piece, Tensor]] = []
        for p in sorted(ctx.pieces, key=lambda p: p.src != p.dst):
            if p.dst in shapes:
                grad = _at(rects[p.dst, p.number], dims, p.into_dst)
                if p.src in shapes:
                    add(p.src, p.from_src, grad)
                else:
                    sends.setdefault(p.src, []).append(grad)
            elif p.src in shapes:
                shape = list(shapes[p.src][0])
                for dim, (a, b) in zip(dims, p.from_src, strict=True):
                    shape[dim] = b - a
                buffer = like.new_empty(shape)
                receives.setdefault(p.dst, []).append(buffer)
                arriving.append((p, buffer))
        name = f"backward of {ctx.name}"
        if layout.mesh is not None:
            _transport(layout, sends, receives, name)
        elif layout.parts > 1:
            turned = tuple(replace(p, src=p.dst, dst=p.src) for p in ctx.pieces)
            Traffic.pieces(turned, like, dims, name)
        for p, buffer in arriving:
            add(p.src, p.from_src, buffer)
        for tile, (shape, _) in shapes.items():
            if tile not in back:
                back[tile] = like.new_zeros(shape)
        return (None,) * 6 + tuple(back[t] for t in layout.held)


def fetch(
    layout: Layout,
    tiles: Sequence[Tensor],
    dims: tuple[int, ...],
    windows: tuple[Rect, ...],
    requests: Requests,
    name: str,
    own: bool = False,
) -> tuple[list[Tensor], list[list[Tensor]]]:
    """Fetch for each held tile the rectangles that it asks for, from wherever they live.

    Args:
        layout: who holds what.
        tiles: the held tiles.
        dims: the dimension of each cut axis (each axis has a dimension of its own).
        windows: for every tile of the layout, the interval of each axis that it holds.
        requests: for every tile of the layout, the rectangles that it asks for.
        name: the operation on whose behalf, for error messages.
        own: also return the tiles, for a kernel whose backward makes a fresh gradient: the pieces' gradients
            are then added to that one in place, and no second copy of it is made.

    Returns:
        The held tiles (empty unless ``own``), and for each held tile its rectangles, new tensors.
    """
    outputs = list(_Fetch.apply(layout, dims, plan(windows, requests), requests, own, name, *tiles))
    own_tiles, outputs = (outputs[: len(tiles)], outputs[len(tiles) :]) if own else ([], outputs)
    counts = [len(requests[t]) for t in layout.held]
    starts = [sum(counts[:k]) for k in range(len(counts))]
    return own_tiles, [outputs[s : s + c] for s, c in zip(starts, counts, strict=True)]


class _AllToAll(torch.autograd.Function):
    """Each tile's packed blocks, one for each tile; the adjoint sends what came back to where it came from."""

    @staticmethod
    def forward(ctx: Any, layout: Layout, sizes: tuple[Shape, ...], name: str, *packed: Tensor) -> tuple[Tensor, ...]:
        ctx.layout, ctx.sizes, ctx.name = layout, sizes, name
        return _all_to_all(layout, sizes, name, packed)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        turned = tuple(zip(*ctx.sizes, strict=True))
        return None, None, None, *_all_to_all(ctx.layout, turned, f"backward of {ctx.name}", grads)


def _all_to_all(layout: Layout, sizes: tuple[Shape, ...], name: str, packed: Sequence[Tensor]) -> tuple[Tensor, ...]:
    for tile in layout.held:
        sent = [n for peer, n in enumerate(sizes[tile]) if peer != tile and n]
        Traffic.sent[name, tile] += sum(sent) * packed[0].element_size()
        Traffic.messages[tile] += len(sent)
    if layout.mesh is None:
        blocks = [p.split(list(row)) for p, row in zip(packed, sizes, strict=True)]
        return tuple(torch.cat([row[tile] for row in blocks]) for tile in range(layout.parts))
    arriving = [row[layout.rank] for row in sizes]
    received = packed[0].new_empty(sum(arriving))
    if received.is_meta:
        return (received,)
    with _named(layout, name):
        dist.all_to_all_single(received, packed[0].contiguous(), arriving, list(sizes[layout.rank]), group=layout.group)
    return (received,)


def all_to_all(
    layout: Layout, blocks: Sequence[Sequence[Tensor]], sizes: tuple[Shape, ...], name: str
) -> list[tuple[Tensor, ...]]:
    """Every tile sends every tile a block: one collective, whatever the blocks hold.

    Args:
        layout: who holds what.
        blocks: for each held tile, the block for each tile of the layout, of any shape.
        sizes: ``sizes[src][dst]`` is the number of elements that src sends to dst; all ranks compute it alike.
        name: the operation on whose behalf, for error messages.

    Returns:
        For each held tile, what each tile sent it, flat.
    """
    packed = [torch.cat([block.reshape(-1) for block in its]) for its in blocks]
    received = _AllToAll.apply(layout, sizes, name, *packed)
    return [flat.split([row[tile] for row in sizes]) for tile, flat in zip(layout.held, received, strict=True)]


class _AllReduce(torch.autograd.Function):
    """Sum over ranks; the adjoint of a sum that all ranks keep is a sum of what all ranks want of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout, name: str) -> Tensor:
        ctx.layout, ctx.name = layout, name
        return all_reduce_(x.clone(memory_format=torch.contiguous_format), layout, name)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        grad = grad.clone(memory_format=torch.contiguous_format)
        return all_reduce_(grad, ctx.layout, f"backward of {ctx.name}"), None, None


def all_reduce_(x: Tensor, layout: Layout, name: str, mesh: Any = None) -> Tensor:
    """Sum ``x`` over ranks in place; nothing to do in one process. Not differentiable."""
    parts = layout.parts if mesh is None else mesh.size()
    if parts > 1:
        Traffic.sum(layout, x, parts, name)
    if (layout.mesh is None and mesh is None) or x.is_meta:
        return x
    with _named(layout, name):
        dist.all_reduce(x, group=layout.group if mesh is None else mesh.get_group())
    return x


def reduce_sum(layout: Layout, partials: Sequence[Tensor], name: str) -> Tensor:
    """The sum over all tiles of what each held tile contributes; the same tensor on every rank."""
    total = partials[0]
    for partial in partials[1:]:
        total = total + partial
    if layout.parts == 1 and layout.mesh is None:
        return total
    reduced: Tensor = _AllReduce.apply(total, layout, name)
    return everywhere(reduced)


def gather(layout: Layout, partials: Sequence[Tensor], name: str) -> Tensor:
    """Stack what all tiles contribute, (P, ...), on every rank."""
    if layout.mesh is None:
        return everywhere(torch.stack(list(partials)))
    zero = torch.zeros_like(partials[0])
    rows = [partials[0] if tile == layout.rank else zero for tile in range(layout.parts)]
    return reduce_sum(layout, [torch.stack(rows)], name)


def agree(layout: Layout, facts: Sequence[int], name: str) -> list[list[int]]:
    """Every rank's ``facts``, so that a decision to refuse is the same on all."""
    if layout.mesh is None:
        return [list(facts)]
    device = torch.device(layout.mesh.device_type)
    mine = torch.tensor(facts, dtype=torch.int64, device=device)
    everyone = [torch.empty_like(mine) for _ in range(layout.parts)]
    with _named(layout, name):
        dist.all_gather(everyone, mine, group=layout.group)
    return [row.tolist() for row in everyone]
