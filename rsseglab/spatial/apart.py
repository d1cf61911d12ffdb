"""The other reading of a cut scene: each tile a scene of its own, as when a scene is cropped.

    together(model(apart(x)))       # the model on each tile alone: nothing crosses a border

The tiles stay where they are and what they are. Only their name changes: (B, C, H, W) cut in P equal tiles, or
(P B, C, h, w) whose batch is shared out. Read so, a convolution ends at its tile's border; batch norm in train mode
still takes its statistics over all samples, as nn.SyncBatchNorm does.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F

from rsseglab.spatial.cut import Axes, Axis, map_axes
from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.layout import Layout
from rsseglab.spatial.tensor import SceneTensor, relaid


def apart(x: SceneTensor, multiple_px: int = 1) -> SceneTensor:
    """Read a cut map (B, C, H, W) as a batch (P B, C, h, w) of its P tiles, tile by tile.

    Args:
        x: a cut map; where rows or columns do not divide, zeros are added below and to the right.
        multiple_px: rows and columns of a tile become multiples of it.

    Where nothing has to move, the tiles are those of ``x``, and what is written to one is written to both.

    Raises:
        SpatialError: if ``x`` is not a map, or is so small that a tile would hold zeros alone.
    """
    if x.dim() != 4:
        raise SpatialError(f"apart: {list(x.shape)} is not a map (B, C, H, W); unsqueeze the batch.")
    layout, (batch, channels, height, width) = x.layout, x.shape
    tall, wide = (-(-n // (p * multiple_px)) * multiple_px for n, p in ((height, layout.rows), (width, layout.cols)))
    for what, n, size, parts in (("rows", height, tall, layout.rows), ("columns", width, wide, layout.cols)):
        if size * (parts - 1) >= n:
            raise SpatialError(
                f"apart: {n} {what} in {parts} tiles of {size} leave one that holds nothing of the scene; "
                f"use at most {-(-n // size)} bands of {what}."
            )
    if (height, width) != (tall * layout.rows, wide * layout.cols):
        x = cast(SceneTensor, F.pad(x, (0, wide * layout.cols - width, 0, tall * layout.rows - height)))
    x = relaid(x, _equal(layout, tall, wide), "apart")
    shared = Axis(0, tuple(batch * tile for tile in range(layout.parts + 1)))
    return x.like(x.tiles, (batch * layout.parts, channels, tall, wide), (shared,))


def together(x: SceneTensor) -> SceneTensor:
    """Read a batch of tiles (P B, C, h, w) as one scene (B, C, H, W) again; the inverse of ``apart``.

    Raises:
        SpatialError: if ``x`` is not a batch of as many maps a tile.
    """
    layout = x.layout
    if (
        x.dim() != 4
        or len(x.axes) != 1
        or x.axes[0] != Axis(0, tuple(x.shape[0] // layout.parts * tile for tile in range(layout.parts + 1)))
    ):
        raise SpatialError(f"together: {list(x.shape)} is not a batch of tiles; make one by apart.")
    batch, channels, tall, wide = x.shape
    shape = (batch // layout.parts, channels, tall * layout.rows, wide * layout.cols)
    return x.like(x.tiles, shape, _equal(layout, tall, wide))


def evened(x: SceneTensor) -> SceneTensor:
    """A map on the engine's own cut again, whatever it was cut like."""
    return relaid(x, map_axes(x.layout, x.shape[2], x.shape[3]), "evened")


def _equal(layout: Layout, tall: int, wide: int) -> Axes:
    """Tiles of one size."""
    rows = Axis(2, tuple(tall * i for i in range(layout.rows + 1)))
    cols = Axis(3, tuple(wide * j for j in range(layout.cols + 1)))
    if layout.cols == 1:
        return (rows,)
    return (cols,) if layout.rows == 1 else (rows, cols)
