"""Blending, held against `rsseglab.inference.crops.crop_and_merge`."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from rsseglab.assignments.checking import Assignment, Case, Check, Mistake
from rsseglab.inference.crops import Cropping, crop_and_merge
from rsseglab.inference.windows import blend_weights, window_starts
from rsseglab.scenes.raster import Window


def _reference(outputs: Tensor, stride: int, height: int, width: int) -> Tensor:
    side = outputs.shape[-1]
    rows, cols = window_starts(height, side, stride), window_starts(width, side, stride)

    def label(windows: Tensor, places: Sequence[Window]) -> Tensor:
        return torch.stack([outputs[rows.index(place.row), cols.index(place.col)] for place in places])

    def read(row: int, stop: int) -> Tensor:
        return torch.zeros(1, stop - row, width)

    cropping = Cropping(side, 1 - stride / side, step_px=1)
    return torch.cat([band for _, band in crop_and_merge(label, read, height, width, cropping)], 1)


def _case(rng: np.random.Generator, height: int, width: int, side: int, stride: int, *, agree: bool = False) -> Case:
    rows, cols = window_starts(height, side, stride), window_starts(width, side, stride)
    if agree:
        scene = torch.from_numpy(rng.normal(size=(2, height, width))).float()
        outputs = [[scene[:, row : row + side, col : col + side] for col in cols] for row in rows]
        return torch.stack([torch.stack(windows) for windows in outputs]), stride, height, width
    return torch.from_numpy(rng.normal(size=(len(rows), len(cols), 2, side, side))).float(), stride, height, width


def _agreeing(rng: np.random.Generator) -> list[Case]:
    return [_case(rng, 16, 24, 8, 4, agree=True), _case(rng, 16, 16, 8, 8, agree=True)]


def _by_the_stride(rng: np.random.Generator) -> list[Case]:
    return [_case(rng, 16, 20, 8, 4), _case(rng, 24, 32, 16, 8)]


def _moved_back(rng: np.random.Generator) -> list[Case]:
    return [_case(rng, 8 + int(rng.integers(9, 12)), 8 + int(rng.integers(5, 8)), 8, 4)]


def _merged(outputs: Tensor, stride: int, height: int, width: int, weights: Tensor, *, divided: bool = True) -> Tensor:
    side = outputs.shape[-1]
    total, norm = torch.zeros(outputs.shape[2], height, width), torch.zeros(height, width)
    for i, row in enumerate(window_starts(height, side, stride)):
        for j, col in enumerate(window_starts(width, side, stride)):
            total[:, row : row + side, col : col + side] += outputs[i, j] * weights
            norm[row : row + side, col : col + side] += weights
    return total / norm if divided else total


def _by_axis(axis: Tensor, *, product: bool = True) -> Tensor:
    return axis[:, None] * axis if product else axis[:, None] + axis


def _flat(outputs: Tensor, stride: int, height: int, width: int) -> Tensor:
    return _merged(outputs, stride, height, width, torch.ones(outputs.shape[-2:]))


def _undivided(outputs: Tensor, stride: int, height: int, width: int) -> Tensor:
    return _merged(outputs, stride, height, width, blend_weights("hann", outputs.shape[-1]), divided=False)


def _zero_at_both_ends(outputs: Tensor, stride: int, height: int, width: int) -> Tensor:
    axis = torch.hann_window(outputs.shape[-1], periodic=False)
    return _merged(outputs, stride, height, width, _by_axis(axis))


def _zero_at_the_start(outputs: Tensor, stride: int, height: int, width: int) -> Tensor:
    return _merged(outputs, stride, height, width, _by_axis(torch.hann_window(outputs.shape[-1])))


def _summed(outputs: Tensor, stride: int, height: int, width: int) -> Tensor:
    side = outputs.shape[-1]
    axis = (torch.pi * (torch.arange(side) + 0.5) / side).sin() ** 2
    return _merged(outputs, stride, height, width, _by_axis(axis, product=False))


def _not_squared(outputs: Tensor, stride: int, height: int, width: int) -> Tensor:
    side = outputs.shape[-1]
    return _merged(outputs, stride, height, width, _by_axis((torch.pi * (torch.arange(side) + 0.5) / side).sin()))


def _last_wins(outputs: Tensor, stride: int, height: int, width: int) -> Tensor:
    side = outputs.shape[-1]
    scene = torch.zeros(outputs.shape[2], height, width)
    for i, row in enumerate(window_starts(height, side, stride)):
        for j, col in enumerate(window_starts(width, side, stride)):
            scene[:, row : row + side, col : col + side] = outputs[i, j]
    return scene


ASSIGNMENT = Assignment(
    name="blending",
    function="blend",
    component="rsseglab.inference.crops.crop_and_merge",
    reference=_reference,
    checks=(
        Check("windows that agree stay as they are", 3, _agreeing),
        Check("windows weigh by a Hann window", 4, _by_the_stride),
        Check("a last window that is moved back", 3, _moved_back),
    ),
    mistakes=(
        Mistake(
            "weights do not sum to one: add up the weights of all windows at each pixel, and divide by that sum",
            _undivided,
        ),
        Mistake(
            "all pixels of a window count alike, so seams stay; weigh each by the Hann window before you add it", _flat
        ),
        Mistake(
            "the Hann window is 0 at its ends, so that the scene's rim is 0 / 0; sample it in the middle of each "
            "pixel, at u = (i + 1/2) / n",
            _zero_at_both_ends,
        ),
        Mistake(
            "the Hann window is 0 at its first pixel (torch.hann_window starts at the pixel's edge); sample it in the "
            "middle of each pixel, at u = (i + 1/2) / n",
            _zero_at_the_start,
        ),
        Mistake("the weights of rows and columns are added; a pixel's weight is their product", _summed),
        Mistake("the sine is not squared: Hann's window is sin²(πu)", _not_squared),
        Mistake("windows overwrite each other, the last one wins; add them up by their weights", _last_wins),
    ),
)
