r"""How well the outlines of classes are placed: boundary F1 with a tolerance in px.

A pixel is on the boundary of its class when one of its four neighbours is of another class. With :math:`P_c` and
:math:`L_c` the boundary pixels of class c in prediction and label, and :math:`t` the tolerance,

.. math::
    \text{precision}_c = \frac{|\{p \in P_c : \min_{q \in L_c} \|p - q\|_2 \le t\}|}{|P_c|}, \quad
    \text{recall}_c = \frac{|\{q \in L_c : \min_{p \in P_c} \|p - q\|_2 \le t\}|}{|L_c|}, \quad
    F_c = \frac{2 \cdot \text{precision}_c \cdot \text{recall}_c}{\text{precision}_c + \text{recall}_c}

Pixels without a label are no part of any boundary, and a change of class towards them is none: nobody knows what
lies there. The scene's edge is no boundary either. A predicted "no class" is no class of its own, but classes have a
boundary towards it.

Counts are added over blocks and scenes before the division. A block with a halo of t + 1 px (the reach of the
tolerance and the neighbour of the last pixel reached) gives exactly the counts of the whole scene.

Source: Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic segmentation?", BMVC 2013.
"""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rsseglab.errors import UserError
from rsseglab.evaluation.confusion import mean_over
from rsseglab.scenes.scene import IGNORE_INDEX

_NONE = -1  # on no boundary


class BoundaryF1:
    """Boundary pixels of K classes, all and matched, added up block by block and scene by scene.

    Args:
        classes: their names, in the order of the indices.
        tolerance_px: largest Euclidean distance between the centres of two matching boundary pixels.

    Raises:
        UserError: the tolerance is negative.

    Attributes:
        predicted: int64, shape (K, 2): boundary pixels of the prediction, all and matched.
        labelled: int64, shape (K, 2): boundary pixels of the label, all and matched.
        halo_px: what `update` wants around a block.
    """

    def __init__(self, classes: Sequence[str], tolerance_px: int = 3) -> None:
        if tolerance_px < 0:
            raise UserError(f"boundary tolerance is {tolerance_px} px; it must be at least 0.")
        self.classes, self.tolerance_px = tuple(classes), int(tolerance_px)
        self.halo_px = self.tolerance_px + 1
        self.predicted = np.zeros((len(self.classes), 2), np.int64)
        self.labelled = np.zeros((len(self.classes), 2), np.int64)

    def update(self, prediction: NDArray[Any], label: NDArray[Any]) -> None:
        """Count the boundary pixels of a block.

        Args:
            prediction: class indices, or `IGNORE_INDEX` for no class; shape (h + 2 halo, w + 2 halo): the block of
                h x w px that is counted, and ``halo_px`` px of its surroundings on each side.
            label: the same shape; `IGNORE_INDEX` where there is no label and outside the scene.
        """
        scored = label != IGNORE_INDEX
        guess = boundary_classes(prediction, scored)
        true = boundary_classes(label, scored)
        self.predicted += self._count(guess, true)
        self.labelled += self._count(true, guess)

    def _count(self, own: NDArray[np.int16], other: NDArray[np.int16]) -> NDArray[np.int64]:
        """All and matched boundary pixels a class of ``own``, outside the halo: shape (K, 2)."""
        halo, (height, width) = self.halo_px, own.shape
        rows, cols = np.nonzero(own[halo : height - halo, halo : width - halo] != _NONE)
        pixel = (rows + halo) * width + cols + halo  # flat index
        own_flat, other_flat = own.ravel(), other.ravel()
        missed = pixel
        # Nearest first: most pixels find their match early, and only those still missed go on.
        for row, col in _disk(self.tolerance_px):
            missed = missed[other_flat[missed + (row * width + col)] != own_flat[missed]]
        everything = np.bincount(own_flat[pixel], minlength=len(self.classes))
        matched = everything - np.bincount(own_flat[missed], minlength=len(self.classes))
        return np.stack([everything, matched], axis=1)

    def __add__(self, other: Self) -> Self:
        if (self.classes, self.tolerance_px) != (other.classes, other.tolerance_px):
            raise UserError("boundary scores of other classes or tolerances do not add; use the same for all scenes.")
        total = type(self)(self.classes, self.tolerance_px)
        total.predicted = self.predicted + other.predicted
        total.labelled = self.labelled + other.labelled
        return total

    def precision(self) -> NDArray[np.float64]:
        """Matched part of the predicted boundary, shape (K,); NaN for a class without any boundary."""
        return self._score(self.predicted[:, 1], self.predicted[:, 0])

    def recall(self) -> NDArray[np.float64]:
        """Matched part of the labelled boundary, shape (K,); NaN for a class without any boundary."""
        return self._score(self.labelled[:, 1], self.labelled[:, 0])

    def f1(self) -> NDArray[np.float64]:
        """Harmonic mean of `precision` and `recall`, shape (K,).

        0 where only one of prediction and label has a boundary, NaN where neither has.
        """
        precision, recall = self.precision(), self.recall()
        total = precision + recall
        return np.divide(2 * precision * recall, total, out=total.copy(), where=total != 0)

    def _score(self, part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
        score = part / np.maximum(whole, 1)
        return np.where(self.predicted[:, 0] + self.labelled[:, 0] > 0, score, np.nan)

    def mean_f1(self, classes: Sequence[str] | None = None) -> float:
        """Mean of `f1` over the named classes (all when not given) that have a boundary; NaN when none has.

        Raises:
            UserError: a name is no class.
        """
        return mean_over(self.f1(), self.classes, classes)


def boundary_classes(index: NDArray[Any], scored: NDArray[np.bool_]) -> NDArray[np.int16]:
    """Mark the boundary pixels of a map with their class.

    Args:
        index: class indices, or `IGNORE_INDEX` for no class, shape (h, w).
        scored: where there is a label, shape (h, w).

    Returns:
        Shape (h, w): the class of a boundary pixel, -1 on all others.
    """
    edge = np.zeros(index.shape, dtype=bool)
    for a, b in (((slice(1, None),), (slice(None, -1),)), ((..., slice(1, None)), (..., slice(None, -1)))):
        change = (index[a] != index[b]) & scored[a] & scored[b]
        edge[a] |= change
        edge[b] |= change
    return np.where(edge & (index != IGNORE_INDEX), index.astype(np.int16), np.int16(_NONE))


def far_from_boundary(label: NDArray[Any], radius_px: int) -> NDArray[np.bool_]:
    """Where an eroded label still has a class: what ISPRS publishes as noBoundary labels, to a disc of 3 px.

    A pixel stays when its class is the only one in the disc of that radius around it. As for the boundary F1, pixels
    without a label and the scene's edge are no other class.

    Args:
        label: class indices, or `IGNORE_INDEX`; shape (h + 2 radius, w + 2 radius): a block of h x w px, and
            ``radius_px`` px of its surroundings on each side.
        radius_px: of the disc, counted from centre to centre of pixels; a pixel at just this distance is in it.

    Returns:
        Shape (h, w).
    """
    height, width = label.shape[0] - 2 * radius_px, label.shape[1] - 2 * radius_px
    own = label[radius_px : radius_px + height, radius_px : radius_px + width]
    far = own != IGNORE_INDEX
    for row, col in _disk(radius_px):
        top, left = radius_px + row, radius_px + col
        other = label[top : top + height, left : left + width]
        far &= (other == own) | (other == IGNORE_INDEX)
    return far


def _disk(radius: int) -> list[tuple[int, int]]:
    """Offsets (row, column) at a distance of at most the radius, nearest first."""
    span = range(-radius, radius + 1)
    inside = [(row, col) for row in span for col in span if row * row + col * col <= radius * radius]
    return sorted(inside, key=lambda at: at[0] ** 2 + at[1] ** 2)
