"""The black padding that some evaluations score: how much of it there is, and what was predicted on it.

A scene that is scored in patches side by side is first padded at the right and at the bottom to a multiple of the
patch's side. Here padding is never scored; it is counted apart from the scene, for the published protocols that do
score it (`rsseglab.evaluation.protocols`).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rsseglab.errors import UserError


@dataclass(frozen=True)
class Padding:
    """Pixels of padding, of a scene or of several.

    Attributes:
        multiple_px: what the sides of scenes are padded to a multiple of.
        predicted: int64, shape (K + 1,): padding by what was predicted on it, "no class" last.
        unseen: pixels of padding on which nothing was predicted, as the prediction covers only the scene.
    """

    multiple_px: int
    predicted: NDArray[np.int64] = field(repr=False)
    unseen: int = 0

    @property
    def pixels(self) -> int:
        """All pixels of padding."""
        return int(self.predicted.sum()) + self.unseen

    def __add__(self, other: "Padding") -> "Padding":
        if self.multiple_px != other.multiple_px:
            raise UserError(
                f"paddings to {self.multiple_px} and {other.multiple_px} px do not add; pad all scenes alike."
            )
        return Padding(self.multiple_px, self.predicted + other.predicted, self.unseen + other.unseen)


def padded_size(height: int, width: int, multiple_px: int) -> tuple[int, int]:
    """Height and width of a scene once padded, in px.

    Raises:
        UserError: the multiple is not positive.
    """
    if multiple_px < 1:
        raise UserError(f"scenes are padded to a multiple of {multiple_px} px; give at least 1, such as 1024.")
    return -(-height // multiple_px) * multiple_px, -(-width // multiple_px) * multiple_px
