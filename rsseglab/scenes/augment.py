r"""Augmentation of a window of a scene, drawn from a seed and the window's number alone.

A window is flipped, turned by quarters and varied in brightness and contrast. Whoever reads a part of it, such as a
rank that holds one tile, draws the same numbers and finds which pixels of the scene its part is made of, so that the
parts put together are the augmented window:

.. math:: y = D_4(x), \qquad z' = c\,(z + b), \quad z = (x - \mu) / \sigma,
          \quad b \in [-0.2, 0.2], \; c \in [0.8, 1.2]
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from rsseglab.scenes.raster import Window

P_FLIP = P_BRIGHTNESS = P_CONTRAST = 0.5
SPREAD = 0.2


@dataclass(frozen=True)
class Augmentation:
    """What is done to one window.

    Attributes:
        turns: quarter turns, counterclockwise, as `numpy.rot90` counts them.
        flip: whether columns are reversed, before the turns.
        brightness: b, in standard deviations of a band.
        contrast: c.
    """

    turns: int = 0
    flip: bool = False
    brightness: float = 0.0
    contrast: float = 1.0

    @classmethod
    def draw(cls, seed: int, number: int, square: bool = True) -> Self:
        """The augmentation of window ``number`` of a run.

        Args:
            seed: of the run.
            number: of the window.
            square: a window that is not can't be turned by a quarter, only by a half.
        """
        draw = np.random.default_rng((seed, number, 1))  # apart from the draws of the window's place
        turns, flip = int(draw.integers(4)), bool(draw.random() < P_FLIP)
        brightness, contrast = draw.uniform(-SPREAD, SPREAD), draw.uniform(1 - SPREAD, 1 + SPREAD)
        return cls(
            turns=turns if square else turns // 2 * 2,
            flip=flip,
            brightness=float(brightness) if draw.random() < P_BRIGHTNESS else 0.0,
            contrast=float(contrast) if draw.random() < P_CONTRAST else 1.0,
        )

    def source(self, part: Window, height: int, width: int) -> Window:
        """Where the pixels of a part of the augmented window lie in the window, of height x width px, as it was."""
        top, left, bottom, right = part.row, part.col, part.row + part.height, part.col + part.width
        tall, wide = (width, height) if self.turns % 2 else (height, width)  # of the augmented window
        for _ in range(self.turns):  # a quarter turn back, clockwise: (row, col) comes from (col, wide - row)
            top, left, bottom, right = left, tall - bottom, right, tall - top
            tall, wide = wide, tall
        if self.flip:
            left, right = wide - right, wide - left
        return Window(top, left, bottom - top, right - left)

    def move(self, pixels: Tensor) -> Tensor:
        """Flip and turn the last two dimensions."""
        pixels = pixels.flip(-1) if self.flip else pixels
        return torch.rot90(pixels, self.turns, (-2, -1)).contiguous()

    def move_box(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """Where a box (top, left, bottom, right), as fractions of the height and width, comes to lie."""
        top, left, bottom, right = box
        if self.flip:
            left, right = 1 - right, 1 - left
        for _ in range(self.turns):
            top, left, bottom, right = 1 - right, top, 1 - left, bottom
        return top, left, bottom, right

    def shade(self, image: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        """Brightness and contrast of an image (bands, H, W) in its own units, given its bands' statistics."""
        if self.brightness == 0 and self.contrast == 1:
            return image
        mean, std = mean.to(image)[:, None, None], std.to(image)[:, None, None]
        return mean + self.contrast * (image - mean + self.brightness * std)
