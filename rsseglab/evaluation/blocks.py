"""Confusion block by block of a scene: what an interval or another score needs later, small enough for a run record.

In a record the counts of a scene are one text: little-endian uint32 in the order of the array, most of them 0, packed
by zlib and written as URL-safe base64, which no reader takes for a path. A scene of 6447 x 4438 px takes some 20 kB.
"""

import base64
import binascii
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from rsseglab.errors import UserError
from rsseglab.evaluation.confusion import Confusion
from rsseglab.evaluation.evaluate import index_reader, scene_blocks
from rsseglab.scenes.scene import Scene

BLOCK_PX = 256


@dataclass(frozen=True, eq=False)
class BlockCounts:
    """Confusion of each block of a scene under one prediction.

    Attributes:
        scene: its name.
        classes: names of the K classes.
        block_px: side of the blocks, which lie row by row; those at the far edges are smaller.
        counts: int64, shape (blocks, K, K + 1): label by prediction, the last column for "no class"; see `Confusion`.
    """

    scene: str
    classes: tuple[str, ...]
    block_px: int
    counts: NDArray[np.int64]

    @property
    def confusion(self) -> Confusion:
        """Of the whole scene; add up those of several scenes to pool them."""
        return Confusion(self.classes, self.counts.sum(axis=0))

    def to_json(self) -> dict[str, Any]:
        """Plain types for a run record, see the module."""
        packed = zlib.compress(self.counts.astype("<u4").tobytes(), 9)
        return {
            "scene": self.scene,
            "classes": list(self.classes),
            "block_px": self.block_px,
            "blocks": len(self.counts),
            "counts": base64.urlsafe_b64encode(packed).decode(),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The inverse of `to_json`.

        Raises:
            UserError: the counts are damaged.
        """
        K = len(content["classes"])
        try:
            raw = zlib.decompress(base64.urlsafe_b64decode(content["counts"]))
            counts = np.frombuffer(raw, "<u4").astype(np.int64).reshape(content["blocks"], K, K + 1)
        except (binascii.Error, zlib.error, ValueError) as error:
            raise UserError(
                f"the block counts of scene {content['scene']} are damaged; score the scene anew."
            ) from error
        return cls(content["scene"], tuple(content["classes"]), content["block_px"], counts)


def count_blocks(prediction: str | Path | NDArray[np.uint8], scene: Scene, *, block_px: int = BLOCK_PX) -> BlockCounts:
    """Count the confusion of each block of a scene.

    Args:
        prediction: a raster, or class indices in memory; see `evaluate_scene`.
        scene: with a label.
        block_px: side of a block. Errors come in patches: with blocks smaller than these intervals are too narrow, and
            with fewer than some dozen blocks they are rough.

    Raises:
        UserError: a file is missing or damaged; size, coordinate system or grid differ; a value is no class; the scene
            has no label, or its label has no class anywhere.
    """
    read = index_reader(prediction, scene)
    names = tuple(one.name for one in scene.classes)
    counts = []
    for block in scene_blocks(scene, block_px):
        confusion = Confusion(names)
        confusion.update(read(block), scene.read_label(block))
        counts.append(confusion.matrix)
    if not np.any(counts):
        raise UserError(f"scene {scene.name} has no labelled pixel; give another label, or leave the scene out.")
    return BlockCounts(scene.name, names, block_px, np.array(counts))
