"""unfold and fold: windows to columns and back.

``unfold`` is a convolution without weights: (B, C, H, W) to (B, C k k, L), L the windows in row-major
order, cut as the windows' grid is. ``fold`` sums each output pixel over the windows that cover it, as a
transposed convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rsseglab.spatial.rules.convolution import conv2d, conv_transpose2d
from rsseglab.spatial.rules.shapes import flatten, view
from rsseglab.spatial.tensor import SceneTensor, rule
from rsseglab.spatial.windows import pair

Pair = int | Sequence[int]


def _taps(channels: int, kernel: tuple[int, int], like: Tensor) -> Tensor:
    """One kernel for each place in the window: (C k k, 1, k, k), for groups of channels."""
    area = kernel[0] * kernel[1]
    eye = torch.eye(area, dtype=like.dtype, device=like.device).reshape(area, 1, *kernel)
    return eye.repeat(channels, 1, 1, 1)


@rule(F.unfold)
def unfold(input: SceneTensor, kernel_size: Pair, dilation: Pair = 1, padding: Pair = 0, stride: Pair = 1) -> Any:
    """Windows of a map as columns, (B, C k k, L). ``Tensor.unfold``, along one dimension, is another function."""
    kernel, channels = pair(kernel_size), input.shape[1]
    y = conv2d(input, _taps(channels, kernel, input.tiles[0]), None, stride, padding, dilation, channels)
    return flatten(y, 2)


@rule(F.fold)
def fold(
    input: SceneTensor,
    output_size: Pair,
    kernel_size: Pair,
    dilation: Pair = 1,
    padding: Pair = 0,
    stride: Pair = 1,
) -> SceneTensor:
    """Sum of windows, (B, C k k, L) to (B, C, H, W)."""
    sizes, kernel = pair(output_size), pair(kernel_size)
    dilations, pads, strides = pair(dilation), pair(padding), pair(stride)
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
    room = [n + 2 * p - r for n, p, r in zip(sizes, pads, reach, strict=True)]
    grid = [r // s + 1 for r, s in zip(room, strides, strict=True)]
    extra = [r % s for r, s in zip(room, strides, strict=True)]
    channels = input.shape[1] // (kernel[0] * kernel[1])
    x = view(input, input.shape[0], input.shape[1], *grid)
    weight = _taps(channels, kernel, input.tiles[0])
    return conv_transpose2d(x, weight, None, strides, pads, extra, channels, dilations)
