r"""Seam error: how much more often pixels near a window's border are wrong than others.

A *border* is a line where the set of windows that contribute to a pixel changes: along each axis, where a window
starts or ends inside the scene. Line p lies between the pixels p - 1 and p; pixel i is within d px of it when
:math:`|i + \frac{1}{2} - p| < d`, that is d pixels on each side. With :math:`E(\cdot)` the wrong part of the labelled
pixels in a set, N the pixels within d px of any border (of rows or of columns) and P those of a placebo grid,

.. math:: \text{seam error} = \big(E(N) - E(\bar N)\big) - \big(E(P) - E(\bar P)\big)

A difference of error rates, in [-2, 2] and in practice a few hundredths: 0 for a method that has no seams.

**Placebo.** The placebo grid is the grid of borders shifted by half the *stride* (half a window would land on borders
again at an overlap of one half). It cancels whatever a grid of lines of this density finds in a scene without seams.
Four rules keep it honest:

- *Scene edge.* Networks err more at the edge of a scene, where context is missing, and no border lies within a stride
  of it but for the end of a last window moved back. The shifted grid is continued to both sides, and its lines are
  kept when they are at least the shift away from the edge: as far as they are from borders. So neither band holds
  edge pixels of its own (for d below half the stride), the edge weighs on both "others" alike, and it cancels.
- *No overlap.* A placebo line closer than 2 d to a border is dropped: their bands would share pixels.
- *Collision.* Where the shifted grid falls on the borders (overlap of a third: starts and ends interleave at half the
  stride), most lines would be dropped and the rest be no fair sample. Then the shift is a quarter of the stride, half
  the period of such a pattern.
- *Others.* As the definition says, the placebo's others hold the borders' pixels too. So borders of excess e on a part
  f of the scene make the seam error a little more than e, at most e / (1 - f). All four error rates are reported.

**NaN.** The seam error is NaN when one of the four sets holds no labelled pixel: one window covers the scene, windows
are so dense that every pixel is near a border, or there is no room for a placebo line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rsseglab.errors import UserError
from rsseglab.scenes.scene import IGNORE_INDEX


@dataclass(frozen=True)
class Placement:
    """Where the windows of a prediction lie.

    Attributes:
        row_starts: sorted first rows in px, see `rsseglab.inference.windows.window_starts`.
        col_starts: sorted first columns in px.
        window_px: side of a window; rows and columns where it is not square.
    """

    row_starts: Sequence[int]
    col_starts: Sequence[int]
    window_px: int | tuple[int, int]

    @property
    def size_px(self) -> tuple[int, int]:
        """Rows and columns of a window."""
        return (self.window_px, self.window_px) if isinstance(self.window_px, int) else self.window_px


@dataclass(frozen=True)
class SeamError:
    """Labelled pixels by where they are and whether they are wrong; adds over scenes.

    Attributes:
        distance_px: d, how far a pixel may be from a line to count as near.
        blocks: int64, shape (blocks, 2, 2, 2): pixels a block by [near a border][near a placebo line][wrong].
    """

    distance_px: int
    blocks: NDArray[np.int64]

    @property
    def near_error(self) -> float:
        """Wrong part of the pixels near a border."""
        return float(_error(self._total[1]))

    @property
    def far_error(self) -> float:
        """Wrong part of all other pixels."""
        return float(_error(self._total[0]))

    @property
    def placebo_near_error(self) -> float:
        """Wrong part of the pixels near a placebo line."""
        return float(_error(self._total[:, 1]))

    @property
    def placebo_far_error(self) -> float:
        """Wrong part of the pixels that are not near a placebo line."""
        return float(_error(self._total[:, 0]))

    @property
    def near_pixels(self) -> int:
        """Labelled pixels near a border."""
        return int(self._total[1].sum())

    @property
    def placebo_near_pixels(self) -> int:
        """Labelled pixels near a placebo line."""
        return int(self._total[:, 1].sum())

    @property
    def pixels(self) -> int:
        """All labelled pixels."""
        return int(self._total.sum())

    @property
    def seam_error(self) -> float:
        """(near - far) - (placebo near - placebo far), see the module; NaN when one of the sets is empty."""
        return float(_seam_error(self._total))

    @property
    def _total(self) -> NDArray[np.int64]:
        return self.blocks.sum(axis=0)  # (border, placebo, wrong)

    def interval(self, confidence: float = 0.95, draws: int = 1000, seed: int = 0) -> tuple[float, float]:
        """Percentile interval of the seam error under resampling of whole blocks.

        Errors come in patches, so pixels are no independent draws, but blocks much larger than a patch nearly are.

        Args:
            confidence: probability that the interval should cover.
            draws: number of resamplings.
            seed: of the resampling.

        Returns:
            Lower and upper end; NaN for fewer than two blocks.
        """
        n = len(self.blocks)
        if n < 2 or np.isnan(self.seam_error):
            return float("nan"), float("nan")
        weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=draws)  # (draws, n)
        drawn = _seam_error(np.tensordot(weights, self.blocks, axes=1))  # (draws, 2, 2, 2) -> (draws,)
        low, high = np.nanquantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
        return float(low), float(high)

    def __add__(self, other: "SeamError") -> "SeamError":
        if self.distance_px != other.distance_px:
            raise UserError(
                f"seam errors within {self.distance_px} and {other.distance_px} px do not add; use one distance."
            )
        return SeamError(self.distance_px, np.concatenate([self.blocks, other.blocks]))


class SeamCounter:
    """Counts a scene block by block.

    Args:
        height: of the scene in px.
        width: of the scene in px.
        placement: where the windows lie.
        distance_px: d, how far a pixel may be from a line to count as near.

    Raises:
        UserError: the distance is not positive.
    """

    def __init__(self, height: int, width: int, placement: Placement, distance_px: int = 8) -> None:
        if distance_px < 1:
            raise UserError(f"seam distance is {distance_px} px; it must be at least 1.")
        self.distance_px = distance_px
        self._border: list[NDArray[np.bool_]] = []  # a vector over rows, one over columns
        self._placebo: list[NDArray[np.bool_]] = []
        axes = zip((height, width), (placement.row_starts, placement.col_starts), placement.size_px, strict=True)
        for length, starts, window_px in axes:
            borders = border_lines(starts, window_px, length)
            placebo = placebo_lines(starts, window_px, length, distance_px)
            self._border.append(near_lines(borders, length, distance_px))
            self._placebo.append(near_lines(placebo, length, distance_px))
        self._blocks: list[NDArray[np.int64]] = []

    def update(self, prediction: NDArray[Any], label: NDArray[Any], row: int, col: int) -> None:
        """Count a block.

        Args:
            prediction: class indices, or `IGNORE_INDEX` for no class (an error where there is a label); (h, w).
            label: the same shape; `IGNORE_INDEX` is not counted.
            row: the block's first row in the scene.
            col: its first column.
        """
        rows, cols = slice(row, row + label.shape[0]), slice(col, col + label.shape[1])
        border = self._border[0][rows, None] | self._border[1][None, cols]  # (h, 1) | (1, w) -> (h, w)
        placebo = self._placebo[0][rows, None] | self._placebo[1][None, cols]
        code = border * np.uint8(4) + placebo * np.uint8(2) + (prediction != label)
        counts = np.bincount(code[label != IGNORE_INDEX], minlength=8)
        self._blocks.append(counts.reshape(2, 2, 2))

    def result(self) -> SeamError:
        """What was counted so far."""
        return SeamError(self.distance_px, np.array(self._blocks, np.int64).reshape(-1, 2, 2, 2))


def border_lines(starts: Sequence[int], window_px: int, length: int) -> list[int]:
    """Lines along an axis where the set of contributing windows changes: starts and ends inside the scene."""
    lines = {*starts, *(start + window_px for start in starts)}
    return sorted(line for line in lines if 0 < line < length)


def placebo_lines(starts: Sequence[int], window_px: int, length: int, distance_px: int) -> list[int]:
    """The borders shifted by half the stride, under the rules of this module; none for a single window."""
    if len(starts) < 2:
        return []
    borders = np.array(border_lines(starts, window_px, length))
    stride = starts[1] - starts[0]
    half, share = _shifted(borders, stride // 2, length, distance_px)
    quarter, share_of_quarter = _shifted(borders, stride // 4, length, distance_px)
    return half if share >= min(share_of_quarter, 0.5) else quarter


def _shifted(borders: NDArray[np.int_], shift: int, length: int, distance_px: int) -> tuple[list[int], float]:
    """The shifted lines that keep away from borders and from the edge, and the part that borders left of them."""
    lines = np.union1d(borders - shift, borders + shift)
    lines = lines[(lines >= shift) & (lines <= length - shift)]
    kept = lines[np.abs(lines[:, None] - borders[None, :]).min(axis=1) >= 2 * distance_px]
    return [int(line) for line in kept], len(kept) / max(len(lines), 1)


def near_lines(lines: Sequence[int], length: int, distance_px: int) -> NDArray[np.bool_]:
    """Shape (length,): whether a pixel is one of the ``distance_px`` pixels on either side of a line."""
    near = np.zeros(length, dtype=bool)
    for line in lines:
        near[max(line - distance_px, 0) : line + distance_px] = True
    return near


def _error(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Wrong part of pixels counted as (..., set, wrong), over the set; NaN where there are none."""
    right, wrong = np.moveaxis(counts.sum(axis=-2), -1, 0)
    return np.where(right + wrong > 0, wrong / np.maximum(right + wrong, 1), np.nan)


def _seam_error(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Seam error of counts (..., border, placebo, wrong)."""
    border = _error(counts[..., 1, :, :]) - _error(counts[..., 0, :, :])
    placebo = _error(counts[..., :, 1, :]) - _error(counts[..., :, 0, :])
    return border - placebo
