"""The halo of a convolution, held against `rsseglab.spatial.rules.convolution.conv_needs`."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rsseglab.assignments.checking import Assignment, Case, Check, Function, Mistake
from rsseglab.spatial.rules.convolution import conv_needs

Rows = tuple[int, int]


def _reference(first: int, last: int, kernel: int, stride: int, padding: int, dilation: int) -> Rows:
    return conv_needs(kernel, stride, padding, dilation)(first, last)


def _band(rng: np.random.Generator) -> Rows:
    first = int(rng.integers(4, 30))
    return first, first + int(rng.integers(3, 20))


def _plain(rng: np.random.Generator) -> list[Case]:
    return [(*_band(rng), 3, 1, 1, 1), (*_band(rng), 7, 1, 3, 1), (*_band(rng), 1, 1, 0, 1)]


def _dilated(rng: np.random.Generator) -> list[Case]:
    cases = []
    for kernel in (3, 5):
        dilation = int(rng.integers(2, 7))
        cases.append((*_band(rng), kernel, 1, dilation * (kernel // 2), dilation))
    return cases


def _strided(rng: np.random.Generator) -> list[Case]:
    return [(*_band(rng), 3, 2, 1, 1), (*_band(rng), 7, 4, 3, 1), (*_band(rng), 3, 2, 0, int(rng.integers(2, 5)))]


def _bands(rng: np.random.Generator) -> list[Case]:
    """Of scenes of 40 rows: band, geometry, and the pixels."""
    cases = []
    for kernel, stride, padding, dilation in ((3, 1, 2, 2), (5, 2, 4, 2), (3, 1, 6, 6)):
        rows = (40 + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        cut = int(rng.integers(3, rows - 3))
        scene, weight = (torch.from_numpy(rng.normal(size=(1, 1, n))) for n in (40, kernel))
        cases += [(0, cut, kernel, stride, padding, dilation, scene, weight),
                  (cut, rows, kernel, stride, padding, dilation, scene, weight)]  # fmt: skip
    return cases


def _convolved(
    function: Function, first: int, last: int, kernel: int, stride: int, padding: int, dilation: int,
    scene: Tensor, weight: Tensor,
) -> Tensor:  # fmt: skip
    """Rows of the output, computed from the rows that the function asks for; there are zeros beyond the scene."""
    low, high = function(first, last, kernel, stride, padding, dilation)
    before, after = max(0, -low), max(0, high - scene.shape[-1])
    rows = F.pad(scene, (before, after))[..., low + before : high + before]
    return F.conv1d(rows, weight, stride=stride, dilation=dilation)


def _two_layers(function: Function, *case: Any) -> Any:
    """The rows of the image that a band after two layers is made of."""
    first, last, *geometries = case
    for geometry in reversed(geometries):
        first, last = function(first, last, *geometry)
    return first, last


def _stacked(rng: np.random.Generator) -> list[Case]:
    d = int(rng.integers(2, 7))
    return [(*_band(rng), (3, 2, 1, 1), (3, 1, d, d)), (*_band(rng), (7, 2, 3, 1), (3, 2, 1, 1))]


def _undilated(first: int, last: int, kernel: int, stride: int, padding: int, dilation: int) -> Rows:
    return _reference(first, last, kernel, stride, padding, 1)


def _to_the_last(first: int, last: int, kernel: int, stride: int, padding: int, dilation: int) -> Rows:
    return first * stride - padding, last * stride - padding + dilation * (kernel - 1) + 1


def _inclusive(first: int, last: int, kernel: int, stride: int, padding: int, dilation: int) -> Rows:
    return first * stride - padding, (last - 1) * stride - padding + dilation * (kernel - 1)


def _whole_kernel(first: int, last: int, kernel: int, stride: int, padding: int, dilation: int) -> Rows:
    return first * stride - padding, (last - 1) * stride - padding + dilation * kernel


def _unpadded(first: int, last: int, kernel: int, stride: int, padding: int, dilation: int) -> Rows:
    return _reference(first, last, kernel, stride, 0, dilation)


def _unstrided(first: int, last: int, kernel: int, stride: int, padding: int, dilation: int) -> Rows:
    return _reference(first, last, kernel, 1, padding, dilation)


def _dilated_padding(first: int, last: int, kernel: int, stride: int, padding: int, dilation: int) -> Rows:
    return _reference(first, last, kernel, stride, padding * dilation, dilation)


def _clipped(first: int, last: int, kernel: int, stride: int, padding: int, dilation: int) -> Rows:
    low, high = _reference(first, last, kernel, stride, padding, dilation)
    return max(low, 0), high


ASSIGNMENT = Assignment(
    name="halo",
    function="input_rows",
    component="rsseglab.spatial.rules.convolution.conv_needs",
    reference=_reference,
    checks=(
        Check("kernels without dilation", 2, _plain),
        Check("dilated kernels", 2, _dilated),
        Check("strides", 2, _strided),
        Check("two layers, one after the other", 2, _stacked, _two_layers),
        Check("bands give what the scene gives", 2, _bands, _convolved),
    ),
    mistakes=(
        Mistake("the dilation is missing: neighbouring taps of the kernel lie d rows apart", _undilated),
        Mistake(
            "the end is one output row too far: the last row of the band is last - 1, as [first, last) is half open",
            _to_the_last,
        ),
        Mistake(
            "the end is one row short: the interval is half open, so it ends one after the last row that is read",
            _inclusive,
        ),
        Mistake(
            "the kernel is taken one tap too long: its k taps have k - 1 gaps, so it spans d (k - 1) + 1 rows",
            _whole_kernel,
        ),
        Mistake("the padding is missing: p rows of zeros before the scene move each window p rows up", _unpadded),
        Mistake("the stride is missing: windows of neighbouring output rows start s rows apart", _unstrided),
        Mistake("the padding is multiplied by the dilation; it is given in rows already", _dilated_padding),
        Mistake(
            "the start is clipped at 0; rows beyond the scene are part of the answer, for the caller fills them with "
            "zeros",
            _clipped,
        ),
    ),
)
