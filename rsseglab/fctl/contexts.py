r"""Contexts: what lies around a patch, as small as the patch.

The context of scale :math:`\lambda` of a patch of w px is the box of :math:`\lambda w` px with the same centre, read on
a grid of w x w cells; scale 1 is the patch itself. The *global* context is the whole scene, read once. Raster files are
read decimated: from their overviews, where they have any, a wide context costs a small read (without, its blocks are
decoded, and no more than w x w cells are kept).

At the scene's edge a box may reach past it. ``edge="pad"`` leaves it centred, and what lies outside holds no data (in
the authors' code, which pads with black); ``edge="clip"`` moves it inside, so that every cell shows ground and the
patch is no longer in its middle (the paper's :math:`U \subset I`).

Source:
    Li, Yang, Liu, Yu, He, "From Contexts to Locality", ICCV 2021, section 3.1.1; scales 1, 2, 3 for Inria, 1, 3 and the
    whole scene for DeepGlobe, in the authors' public code (MIT), of which none is used here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from rsseglab.errors import UserError
from rsseglab.scenes import Scene, Window
from rsseglab.scenes.views import read_small

GLOBAL = "scene"
EDGES = ("pad", "clip")

Context = tuple[NDArray[np.float32], NDArray[np.bool_]]  # image (bands, px, px), 0 without data; where it is valid


def check_scales(scales: Sequence[float | str]) -> None:
    """Whether contexts are no smaller than their patch.

    Raises:
        UserError: a scale is less than 1, or no number and not the whole scene.
    """
    for scale in scales:
        if scale != GLOBAL and not (isinstance(scale, int | float) and scale >= 1):
            raise UserError(f"a context of scale {scale} is smaller than its patch; give 1 or more, or '{GLOBAL}'.")


def check_size(scene: Scene, patch_px: int) -> None:
    """Whether a patch fits into a scene.

    Raises:
        UserError: the scene is smaller.
    """
    if min(scene.height, scene.width) < patch_px:
        raise UserError(
            f"scene {scene.name} is {scene.width} x {scene.height} px, smaller than a patch of {patch_px} px; "
            "choose smaller patches."
        )


class Contexts:
    """Reads the contexts of a scene's patches.

    Args:
        scene: of at least a patch's size.
        patch_px: side w of a patch, and of what is read of each context.
        scales: of the contexts: numbers of 1 or more, or "scene" for the whole scene.
        edge: "pad" or "clip"; see the module.

    Raises:
        UserError: a scale is less than 1, the scene is smaller than a patch, or ``edge`` is unknown.
    """

    def __init__(
        self, scene: Scene, patch_px: int, scales: Sequence[float | str] = (1, 2, 3), edge: str = "pad"
    ) -> None:
        if edge not in EDGES:
            raise UserError(f"there is no edge '{edge}'; choose {' or '.join(EDGES)}.")
        check_size(scene, patch_px)
        check_scales(scales)
        self.scene, self.patch_px, self.scales, self.edge = scene, patch_px, tuple(scales), edge

    def boxes(self, patch: Window) -> list[Window]:
        """The windows of a patch's contexts, in the order of the scales."""
        return [self.scene.window if s == GLOBAL else self._box(patch, float(s)) for s in self.scales]

    def read(self, patch: Window) -> list[Context]:
        """The contexts of a patch: image (bands, patch_px, patch_px), 0 without data; and where it is valid."""
        side = self.patch_px
        return [
            self.whole if scale == GLOBAL else read_small(self.scene, box, side, side)
            for scale, box in zip(self.scales, self.boxes(patch), strict=True)
        ]

    @cached_property
    def whole(self) -> Context:
        """The whole scene as a square, read once."""
        scene, side = self.scene, self.patch_px
        return read_small(scene, scene.window, side, side)

    def _box(self, patch: Window, scale: float) -> Window:
        height, width = round(patch.height * scale), round(patch.width * scale)
        row, col = patch.row - (height - patch.height) // 2, patch.col - (width - patch.width) // 2
        if self.edge == "clip":
            height, width = min(height, self.scene.height), min(width, self.scene.width)
            row = min(max(row, 0), self.scene.height - height)
            col = min(max(col, 0), self.scene.width - width)
        return Window(row, col, height, width)
