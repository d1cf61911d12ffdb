"""Interpolation in the coordinates of the whole scene, and pixel shuffles.

Every mode is separable and linear: an output row is a weighted sum of a few input rows, its *taps*,

    y[o] = sum_k weight[o, k] x[index[o, k]]

with indices and weights from the scene's own size (torch: source = (o + 1/2) / scale - 1/2, or
o (n_in - 1) / (n_out - 1) with align_corners). What a window of output rows needs is the range of its taps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rsseglab.spatial.cut import Axis, Interval, on_multiples
from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.tensor import RULES, SceneTensor, named, refusal, relaid, rule
from rsseglab.spatial.windows import Needs, View, as_map, pair, samplewise, windowed

Taps = tuple[Tensor, Tensor]  # index (n_out, k), weight (n_out, k) in float64

A = -0.75  # the cubic convolution coefficient of torch (Keys 1981)


def _source(n_in: int, n_out: int, scale: float | None, align_corners: bool) -> Tensor:
    """The position in the input of each output row's centre."""
    out = torch.arange(n_out, dtype=torch.float64)
    if align_corners:
        return out * ((n_in - 1) / (n_out - 1) if n_out > 1 else 0.0)
    step = 1 / scale if scale else n_in / n_out
    return (out + 0.5) * step - 0.5


def linear_taps(n_in: int, n_out: int, scale: float | None, align_corners: bool) -> Taps:
    """Two taps; before the first row there is the first row; equal lengths are copied, whatever the scale."""
    scale = None if n_in == n_out else scale
    source = _source(n_in, n_out, scale, align_corners).clamp(min=0)
    first = source.floor().long().clamp(max=n_in - 1)
    part = (source - first).clamp(0, 1)
    index = torch.stack([first, (first + 1).clamp(max=n_in - 1)], 1)
    return index, torch.stack([1 - part, part], 1)


def cubic_taps(n_in: int, n_out: int, scale: float | None, align_corners: bool) -> Taps:
    """Four taps of Keys' kernel; rows beyond the scene are its first and last."""
    source = _source(n_in, n_out, scale, align_corners)
    first = source.floor()
    part = (source - first)[:, None]
    distance = (part - torch.arange(-1, 3)).abs()
    near = ((A + 2) * distance - (A + 3)) * distance**2 + 1
    far = ((A * distance - 5 * A) * distance + 8 * A) * distance - 4 * A
    index = (first.long()[:, None] + torch.arange(-1, 3)).clamp(0, n_in - 1)
    return index, torch.where(distance <= 1, near, far)


def nearest_taps(n_in: int, n_out: int, scale: float | None, mode: str) -> Taps:
    """One tap: the row that the stock kernel itself takes of a ramp (its float32 rounding included)."""
    ramp = torch.arange(n_in, dtype=torch.float32).reshape(1, 1, n_in, 1)
    if scale is None:
        taken = F.interpolate(ramp, size=(n_out, 1), mode=mode)
    else:
        taken = (
            torch.ops.aten.upsample_nearest2d(ramp, [n_out, 1], scale, None)
            if mode == "nearest"
            else (torch.ops.aten._upsample_nearest_exact2d(ramp, [n_out, 1], scale, None))
        )
    return taken.reshape(n_out, 1).long(), torch.ones(n_out, 1, dtype=torch.float64)


def tap_needs(taps: Taps) -> Needs:
    """Input rows of output rows: from the least tap to the largest."""
    low, high = taps[0].amin(1), taps[0].amax(1)

    def needs(first: int, last: int) -> Interval:
        return int(low[first:last].min()), int(high[first:last].max()) + 1

    return needs


def apply_taps(window: Tensor, dim: int, view: View, taps: Taps, maximum: bool = False) -> Tensor:
    """Weighted sum (or first maximum) of the taps of the rows ``view.out`` of a window that starts at its span.

    In float32 at least; a tap of no weight does not count, whatever stands there.
    """
    half = window
    window = window.to(torch.promote_types(window.dtype, torch.float32)) if window.is_floating_point() else window
    index = (taps[0][view.out[0] : view.out[1]] - view.span.start).to(window.device)
    weight = taps[1][view.out[0] : view.out[1]]
    idle = (weight == 0).any(0).tolist()  # asked where it lies: an answer of the device would be waited for
    weight = weight.to(window)
    along = [1] * window.dim()
    along[dim] = -1
    y: Any = None
    for k in range(index.shape[1]):
        rows = window.index_select(dim, index[:, k])
        if maximum:
            y = rows if y is None else torch.where((rows > y) | rows.isnan(), rows, y)
        elif index.shape[1] == 1:
            y = rows
        else:
            share = weight[:, k].reshape(along)
            rows = rows.masked_fill(share == 0, 0) if idle[k] else rows
            y = rows * share if y is None else torch.addcmul(y, rows, share)
    assert isinstance(y, Tensor)
    return y.to(half.dtype)


def tapped(x: SceneTensor, taps: tuple[Taps, Taps], name: str, maximum: bool = False) -> SceneTensor:
    """A map whose rows and columns are taps of those of ``x``."""

    def compute(window: Tensor, rows: View, cols: View) -> Tensor:
        order = ((2, rows, taps[0]), (3, cols, taps[1]))
        for dim, view, along in reversed(order) if maximum else order:  # the first maximum in reading order
            if not _identity(along, window.shape[dim], view):
                window = apply_taps(window, dim, view, along, maximum)
        return window

    sizes = (len(taps[0][0]), len(taps[1][0]))
    return windowed(x, sizes, x.shape[1], (tap_needs(taps[0]), tap_needs(taps[1])), compute, name)


def _identity(taps: Taps, size: int, view: View) -> bool:
    index, weight = taps[0][view.out[0] : view.out[1]], taps[1][view.out[0] : view.out[1]]
    same = len(index) == size and bool((index[:, 0] - view.span.start == torch.arange(len(index))).all())
    return same and bool((weight[:, 0] == 1).all())


@rule(*named("interpolate", "upsample", "upsample_bilinear", "upsample_nearest"))
@samplewise(F.interpolate)
def interpolate(
    input: SceneTensor,
    size: int | Sequence[int] | None = None,
    scale_factor: float | Sequence[float] | None = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> SceneTensor:
    """Resize a map."""
    if antialias or mode not in ("nearest", "nearest-exact", "bilinear", "bicubic", "area"):
        raise refusal(f"interpolate(mode={mode!r}, antialias={antialias})", (input,))
    if (size is None) == (scale_factor is None):
        raise SpatialError("interpolate: give either size or scale_factor.")
    x = as_map(input, "interpolate")
    scales: tuple[float | None, float | None] = (None, None)
    if size is not None:
        sizes = pair(size)
    else:
        given = (scale_factor,) * 2 if isinstance(scale_factor, int | float) else tuple(scale_factor or ())
        sizes = (int(x.shape[2] * given[0]), int(x.shape[3] * given[1]))
        if not recompute_scale_factor:
            scales = (float(given[0]), float(given[1]))
    whole = all(out % n == 0 and s in (None, out / n) for n, out, s in zip(x.shape[2:], sizes, scales, strict=True))
    linear = mode == "bilinear" and not align_corners and x.is_floating_point()
    if whole and (mode.startswith("nearest") or linear):
        return _enlarged(x, sizes, mode)
    if mode == "area":
        return RULES[F.adaptive_avg_pool2d](x, sizes)  # type: ignore[no-any-return]
    make = {"bilinear": linear_taps, "bicubic": cubic_taps}.get(mode)
    if make and not x.is_floating_point():
        raise refusal(f"interpolate(mode={mode!r})", (x,), why=f"has no rule for {x.dtype}: convert the scene to float")
    taps = [
        make(n, out, s, bool(align_corners)) if make else nearest_taps(n, out, s, mode)
        for n, out, s in zip(x.shape[2:], sizes, scales, strict=True)
    ]
    return tapped(x, (taps[0], taps[1]), "interpolate")


def _enlarged(x: SceneTensor, sizes: tuple[int, int], mode: str) -> SceneTensor:
    """By a whole factor f: moved by one input row, the output moves by f, so the stock kernel can run on a window.

    Bilinear row o lies between the input rows floor((o + 1/2) / f - 1/2) and the next.
    """
    factor = (sizes[0] // x.shape[2], sizes[1] // x.shape[3])

    def needs_along(f: int) -> Needs:
        if mode == "bilinear":
            return lambda first, last: ((2 * first + 1 - f) // (2 * f), (2 * last - 1 - f) // (2 * f) + 2)
        return lambda first, last: (first // f, (last - 1) // f + 1)

    def compute(window: Tensor, rows: View, cols: View) -> Tensor:
        y = F.interpolate(window, scale_factor=factor, mode=mode)
        for dim, view, f in ((2, rows, factor[0]), (3, cols, factor[1])):
            if y.shape[dim] != view.out[1] - view.out[0]:
                y = y.narrow(dim, view.out[0] - view.span.start * f, view.out[1] - view.out[0])
        return y

    return windowed(x, sizes, x.shape[1], (needs_along(factor[0]), needs_along(factor[1])), compute, "interpolate")


@rule(*named("pixel_shuffle"))
@samplewise(F.pixel_shuffle)
def pixel_shuffle(input: SceneTensor, upscale_factor: int) -> SceneTensor:
    """Channels (C r r) to pixels: a tile's pixels are its own."""
    x, r = as_map(input, "pixel_shuffle"), upscale_factor
    axes = tuple(Axis(a.dim, tuple(b * r for b in a.bounds)) for a in x.axes)
    shape = (x.shape[0], x.shape[1] // (r * r), x.shape[2] * r, x.shape[3] * r)
    return x.like([_shuffle(F.pixel_shuffle, tile, r, r) for tile in x.tiles], shape, axes)


@rule(*named("pixel_unshuffle"))
@samplewise(F.pixel_unshuffle)
def pixel_unshuffle(input: SceneTensor, downscale_factor: int) -> SceneTensor:
    """Pixels to channels; the cut moves to multiples of r."""
    x, r = as_map(input, "pixel_unshuffle"), downscale_factor
    if x.shape[2] % r or x.shape[3] % r:
        raise SpatialError(f"pixel_unshuffle: {list(x.shape)} does not divide by {r}; pad it.")
    x = relaid(x, tuple(on_multiples(a, r) for a in x.axes), "pixel_unshuffle")
    axes = tuple(Axis(a.dim, tuple(b // r for b in a.bounds)) for a in x.axes)
    shape = (x.shape[0], x.shape[1] * r * r, x.shape[2] // r, x.shape[3] // r)
    return x.like([_shuffle(F.pixel_unshuffle, tile, r, 1 / r) for tile in x.tiles], shape, axes)


def _shuffle(function: Any, tile: Tensor, r: int, grow: float) -> Tensor:
    """The stock shuffle, or for an empty tile the shape that it would give."""
    if tile.numel():
        return function(tile, r)  # type: ignore[no-any-return]
    batch, channels, height, width = tile.shape
    return tile.reshape(batch, int(channels / grow**2), int(height * grow), int(width * grow))


@rule(*named("channel_shuffle"))
def channel_shuffle(input: SceneTensor, groups: int) -> SceneTensor:
    """Channels change places: tile by tile."""
    return input.map(lambda tile: F.channel_shuffle(tile, groups))
