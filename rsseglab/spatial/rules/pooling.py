"""Max and average pooling, with overlap, ceil_mode and count_include_pad; adaptive pooling.

A pooling window needs what a convolution's does. Beyond the scene lies minus infinity for the maximum; the
average counts what ``count_include_pad`` says, at the scene's edges only. Adaptive pooling has bins of the
*scene*, [floor(o L / n), ceil((o + 1) L / n)): few bins are summed tile by tile and then over tiles, to a
plain tensor; many bins make a map that stays cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rsseglab.spatial.cut import Interval, map_axes
from rsseglab.spatial.exchange import gather, reduce_sum
from rsseglab.spatial.layout import Layout
from rsseglab.spatial.rules.convolution import conv_needs
from rsseglab.spatial.rules.resize import tapped
from rsseglab.spatial.tensor import SceneTensor, named, refusal, relaid, rule
from rsseglab.spatial.windows import Needs, View, as_map, intervals, missing, pair, samplewise, windowed

Pair = int | Sequence[int]


def pooled_length(length: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """The number of pooling windows; the last must begin inside the input or its leading padding."""
    room = length + 2 * padding - dilation * (kernel - 1) - 1
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    return count - 1 if ceil_mode and (count - 1) * stride >= length + padding else count


def _geometry(
    x: SceneTensor, kernel_size: Pair, stride: Pair | None, padding: Pair, dilation: Pair, ceil_mode: bool
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int], tuple[Needs, Needs]]:
    kernel, pads, dilations = pair(kernel_size), pair(padding), pair(dilation)
    strides = kernel if stride is None or stride == [] else pair(stride)
    sizes = [pooled_length(x.shape[d + 2], kernel[d], strides[d], pads[d], dilations[d], ceil_mode) for d in (0, 1)]
    needs = [conv_needs(kernel[d], strides[d], pads[d], dilations[d]) for d in (0, 1)]
    return kernel, strides, dilations, (sizes[0], sizes[1]), (needs[0], needs[1])


@rule(*named("max_pool2d"))
@samplewise(F.max_pool2d)
def max_pool2d(
    input: SceneTensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> SceneTensor:
    """Maximum over windows."""
    if return_indices:
        raise refusal("max_pool2d(return_indices=True)", (input,))
    x = as_map(input, "max_pool2d")
    kernel, strides, dilations, sizes, needs = _geometry(x, kernel_size, stride, padding, dilation, ceil_mode)

    def compute(window: Tensor, rows: View, cols: View) -> Tensor:
        want = (rows.out[1] - rows.out[0], cols.out[1] - cols.out[0])
        zeros = (rows.span.before, cols.span.before)
        fits = all(
            n and 2 * z <= k and (n + 2 * z - d * (k - 1) - 1) // s + 1 == w
            for n, z, k, d, s, w in zip(window.shape[2:], zeros, kernel, dilations, strides, want, strict=True)
        )
        if not fits:
            lowest = float("-inf") if window.is_floating_point() else torch.iinfo(window.dtype).min
            window, zeros = missing(window, rows, cols, lowest), (0, 0)
        return F.max_pool2d(window, kernel, strides, zeros, dilations)

    return windowed(x, sizes, x.shape[1], needs, compute, "max_pool2d")


@rule(*named("avg_pool2d"))
@samplewise(F.avg_pool2d)
def avg_pool2d(
    input: SceneTensor,
    kernel_size: Pair,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> SceneTensor:
    """Mean over windows: their sum, divided by the number of positions that count.

    All windows count alike unless ``ceil_mode`` lets the last reach out of the padding, or padding does not count.
    """
    x = as_map(input, "avg_pool2d")
    kernel, strides, _, sizes, needs = _geometry(x, kernel_size, stride, padding, 1, ceil_mode)
    pads = pair(padding)
    alike = not ceil_mode and (count_include_pad or not any(pads))

    def counted(dim: int, out: Interval) -> Tensor:
        length, pad = x.shape[dim + 2], pads[dim]
        first = torch.arange(*out) * strides[dim] - pad
        last = torch.minimum(first + kernel[dim], torch.tensor(length + pad))
        if not count_include_pad:
            first, last = first.clamp(min=0), last.clamp(max=length)
        return last - first

    def compute(window: Tensor, rows: View, cols: View) -> Tensor:
        window = missing(window, rows, cols)
        if divisor_override is not None or alike:
            return F.avg_pool2d(window, kernel, strides, divisor_override=divisor_override)
        wide = window.to(torch.promote_types(window.dtype, torch.float32))  # a half's sum may overflow
        sums = F.avg_pool2d(wide, kernel, strides, divisor_override=1)
        counts = counted(0, rows.out)[:, None] * counted(1, cols.out)
        return (sums / counts.to(sums)).to(window.dtype)

    return windowed(x, sizes, x.shape[1], needs, compute, "avg_pool2d")


# ------------------------------------------------------------------------------------------ adaptive


def bin_of(index: int, length: int, bins: int) -> Interval:
    """Adaptive pooling's bin ``index``: [floor(index L / n), ceil((index + 1) L / n))."""
    return index * length // bins, -(-(index + 1) * length // bins)


def _bins(output_size: Any, x: SceneTensor) -> tuple[int, int]:
    wanted = pair(output_size) if isinstance(output_size, int) else tuple(output_size)
    sizes = [n if w is None else int(w) for w, n in zip(wanted, x.shape[2:], strict=True)]
    return sizes[0], sizes[1]


def _few(x: SceneTensor, bins: tuple[int, int]) -> bool:
    """True where a sum over tiles moves less than the bins' rows themselves would."""
    return any(bins[a.dim - 2] < 2 * (len(a.bounds) - 1) for a in x.axes)


def _adaptive_taps(length: int, bins: int) -> tuple[Tensor, Tensor]:
    """Rows of each bin, (n, k), and their share in its mean; short bins repeat a row at no weight."""
    edges = torch.tensor([bin_of(o, length, bins) for o in range(bins)])
    first, last = edges[:, :1], edges[:, 1:]
    index = first + torch.arange(int((last - first).max()))
    weight = (index < last).double() / (last - first)
    return index.minimum(last - 1), weight


@rule(*named("adaptive_avg_pool2d"))
@samplewise(F.adaptive_avg_pool2d)
def adaptive_avg_pool2d(input: SceneTensor, output_size: Any) -> Any:
    """Mean over the scene's bins."""
    x = as_map(input, "adaptive_avg_pool2d")
    bins = _bins(output_size, x)
    if not _few(x, bins):
        taps = (_adaptive_taps(x.shape[2], bins[0]), _adaptive_taps(x.shape[3], bins[1]))
        return tapped(x, taps, "adaptive_avg_pool2d")

    def share(bin_: Tensor, area: int) -> Tensor:
        return bin_.sum((2, 3), dtype=torch.promote_types(x.dtype, torch.float32)) / area

    sums = [_over_bins(x, bins, k, share) for k in range(len(x.tiles))]
    return reduce_sum(x.layout, sums, "adaptive_avg_pool2d").to(x.dtype)


@rule(*named("adaptive_max_pool2d"))
@samplewise(F.adaptive_max_pool2d)
def adaptive_max_pool2d(input: SceneTensor, output_size: Any, return_indices: bool = False) -> Any:
    """Maximum over the scene's bins."""
    if return_indices:
        raise refusal("adaptive_max_pool2d(return_indices=True)", (input,))
    x = as_map(input, "adaptive_max_pool2d")
    bins = _bins(output_size, x)
    if not _few(x, bins):
        taps = (_adaptive_taps(x.shape[2], bins[0]), _adaptive_taps(x.shape[3], bins[1]))
        return tapped(x, taps, "adaptive_max_pool2d", maximum=True)

    def largest(bin_: Tensor, area: int) -> Tensor:
        if bin_.numel() == 0:
            return bin_.new_full(bin_.shape[:2], float("-inf")) + bin_.sum((2, 3))
        return bin_.flatten(2).max(2).values

    # Of equal values the first in reading order counts, and only bands of rows are read in the scene's order.
    x = relaid(x, map_axes(Layout(x.layout.parts), x.shape[2], x.shape[3]), "adaptive_max_pool2d")
    tops = gather(x.layout, [_over_bins(x, bins, k, largest) for k in range(len(x.tiles))], "adaptive_max_pool2d")
    return tops.max(0).values


def _over_bins(x: SceneTensor, bins: tuple[int, int], k: int, reduce: Any) -> Tensor:
    """``reduce(part of the bin in held tile k, the bin's area)`` for every bin: (B, C, n, m)."""
    tile = x.tiles[k]
    held = intervals(x.axes, x.layout.held[k], (x.shape[2], x.shape[3]))
    rows = []
    for i in range(bins[0]):
        top, bottom = bin_of(i, x.shape[2], bins[0])
        row = []
        for j in range(bins[1]):
            left, right = bin_of(j, x.shape[3], bins[1])
            part = tile[
                :,
                :,
                max(top - held[0][0], 0) : max(bottom - held[0][0], 0),
                max(left - held[1][0], 0) : max(right - held[1][0], 0),
            ]
            row.append(reduce(part, (bottom - top) * (right - left)))
        rows.append(torch.stack(row, -1))
    return torch.stack(rows, -2)


@rule(*named("max_pool2d_with_indices", "adaptive_max_pool2d_with_indices", "max_unpool2d", "lp_pool2d"))
def no_indices(input: SceneTensor, *args: Any, **kwargs: Any) -> Any:
    """Indices into a whole map have no meaning on a tile."""
    raise refusal("max pooling with indices, its reverse, and lp_pool2d", (input,), why="have no rule")
