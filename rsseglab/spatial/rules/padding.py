"""Padding: constant, reflect, replicate and circular.

Constant padding moves nothing: the first and the last tile grow. In the other modes an output row is an input
row by a map of indices, and a tile asks for the rows that its part of the output repeats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from rsseglab.spatial.cut import Axis, local_shape, part_of
from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.rules.resize import tapped
from rsseglab.spatial.tensor import SceneTensor, named, refusal, rule
from rsseglab.spatial.windows import as_map, connected, samplewise


@rule(*named("pad", "constant_pad_nd"))
@samplewise(F.pad)
def pad(input: SceneTensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Any:
    """Pad the last dimensions; (before, after) pairs, the last dimension first."""
    pads = {input.dim() - 1 - i // 2: (int(pad[i]), int(pad[i + 1])) for i in range(0, len(pad), 2)}
    if mode == "constant":
        return _constant(input, pads, 0.0 if value is None else value)
    if mode not in ("reflect", "replicate", "circular"):
        raise refusal(f"pad(mode={mode!r})", (input,))
    if len(pad) > 4:
        raise refusal(f"pad(mode={mode!r}) of channels", (input,))
    x = as_map(input, f"pad({mode})")
    taps = []
    for dim in (2, 3):
        n, (before, after) = x.shape[dim], pads.get(dim, (0, 0))
        at = torch.arange(-before, n + after)
        if mode == "circular":
            at = at % n
        elif mode == "replicate":
            at = at.clamp(0, n - 1)
        else:
            if max(before, after) >= n:
                raise refusal("pad(mode='reflect')", (x,), why=f"can't reflect {max(before, after)} of {n} rows")
            at = (n - 1) - ((n - 1) - at.abs()).abs()
        taps.append((at[:, None], torch.ones(len(at), 1, dtype=torch.float64)))
    return tapped(x, (taps[0], taps[1]), f"pad({mode})")


def _constant(x: SceneTensor, pads: dict[int, tuple[int, int]], value: float) -> SceneTensor:
    """The tiles at the scene's ends take the new rows (or lose theirs, if negative)."""
    x = _uncrossed(x, pads)
    shape = [n + sum(pads.get(d, (0, 0))) for d, n in enumerate(x.shape)]
    if min(shape) < 1:
        raise SpatialError(f"pad of {list(x.shape)} by {pads}: nothing would be left.")
    axes = tuple(_grown(a, *pads.get(a.dim, (0, 0))) for a in x.axes)
    tiles = []
    for tile_number, tile in zip(x.layout.held, x.tiles, strict=True):
        own = dict(pads)
        for axis, grown, part in zip(x.axes, axes, part_of(x.axes, tile_number), strict=True):
            if axis.dim in pads:
                (start, stop), (first, last), before = axis.part(part), grown.part(part), pads[axis.dim][0]
                own[axis.dim] = (start + before - first, last - stop - before)
                if first == last:  # cropped away
                    own[axis.dim] = (0, start - stop)
        flat = [n for d in reversed(range(x.dim())) for n in own.get(d, (0, 0))]
        if tile.numel():
            tiles.append(F.pad(tile, flat, value=value))
        else:  # made of nothing but padding
            tiles.append(connected(local_shape(shape, axes, tile_number), tile) + value)
    return x.like(tiles, shape, axes)


def _grown(axis: Axis, before: int, after: int) -> Axis:
    """Inner bounds move along; the ends take what is added there, or give what is taken away."""
    total = axis.length + before + after
    inner = [min(max(b + before, 0), total) for b in axis.bounds[1:-1]]
    return Axis(axis.dim, (0, *inner, total), axis.outer, axis.inner)


def _uncrossed(x: SceneTensor, pads: dict[int, tuple[int, int]]) -> SceneTensor:
    """A merged dimension can't be padded along a cut inside it; a map can be cut anew."""
    if x.dim() == 4 and any(any(pads.get(a.dim, ())) and not a.simple for a in x.axes):
        return as_map(x, "pad")
    for axis in x.axes:
        if axis.dim in pads and any(pads[axis.dim]) and not axis.simple:
            raise refusal("pad", (x,), why=f"can't pad dimension {axis.dim}, in which the cut is merged with others")
    return x
