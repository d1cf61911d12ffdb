r"""Training and validation apart, where there is one scene: blocks of it, with a gap between the two.

Pixels that lie near each other look alike and were labelled alike, so that pixels drawn at random would be validated
by their own neighbours. A scene is cut in blocks of two crops a side or more; those with labels go to training or to
validation, and training blocks step back from validation blocks by half a crop. No training crop then sees a pixel of
a validation block.

Blocks are chosen one by one, each the one that brings all classes nearest to the share :math:`s` that is wanted:

.. math:: b^* = \arg\min_b \sum_k \left| \frac{n_k(V \cup b)}{n_k} - s \right|

with :math:`n_k` the labelled pixels of class k and V what is chosen, until no block helps. A class never loses its last
training block: better learnt and not validated than the other way round.

Source:
    Roberts et al., "Cross-validation strategies for data with temporal, spatial, hierarchical, or phylogenetic
    structure", Ecography 2017 (why blocks); the choice of blocks is ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from rsseglab.errors import UserError
from rsseglab.scenes.manifest import Part
from rsseglab.scenes.raster import Window
from rsseglab.scenes.scene import IGNORE_INDEX, Scene


@dataclass(frozen=True)
class Split:
    """Parts of scenes, and how much label they hold.

    Attributes:
        train: parts to train on; neighbours in a row of blocks are one part.
        val: parts to validate on.
        gap_px: least distance between the two.
        train_px: labelled pixels of each class in the training parts, shape (K,).
        val_px: likewise in the validation parts.
    """

    train: tuple[Part, ...]
    val: tuple[Part, ...]
    gap_px: int
    train_px: NDArray[np.int64]
    val_px: NDArray[np.int64]


def split_scenes(scenes: Sequence[Scene], crop_px: int, share: float = 0.25) -> Split:
    """Split scenes by blocks; see the module.

    Args:
        scenes: with labels of the same classes; read once, block by block.
        crop_px: side of the crops to train on.
        share: of each class's labelled pixels that validation should have.

    Raises:
        UserError: the labels lie in so few blocks that none can be spared; the share is none.
    """
    if not 0 < share < 1:
        raise UserError(f"a share of {share:g} for validation leaves nothing for one of the two; give 0.25 or so.")
    gap = -(-crop_px // 2)
    by_name = {scene.name: scene for scene in scenes}
    blocks = [Part(scene.name, window) for scene in scenes for window in _blocks(scene, 2 * crop_px)]
    counts = np.array([_count(by_name[block.of], block.window) for block in blocks])
    labelled = np.asarray(counts.any(1))
    blocks, counts = [b for b, has in zip(blocks, labelled, strict=True) if has], counts[labelled]
    chosen = _choose(counts, share)
    while True:
        val = [block for block, its in zip(blocks, chosen, strict=True) if its]
        train = [_step_back(block, val, gap) for block, its in zip(blocks, chosen, strict=True) if not its]
        its_counts = [_count(by_name[part.of], part.window) for part in train]
        train_px = np.asarray(np.sum(its_counts, axis=0) if train else np.zeros_like(counts[0]), np.int64)
        lost = (train_px == 0) & counts.any(0)
        if not lost.any():
            break
        chosen[np.argmax(np.where(chosen, counts[:, lost].sum(1), -1))] = False
    if not val:
        raise UserError(
            f"the labels lie in {len(blocks)} blocks of {2 * crop_px} px, of which none can be spared for validation; "
            "label another place of the scene, or take smaller crops (--crop)."
        )
    train = [part for part, its in zip(train, its_counts, strict=True) if its.any()]
    val_px = np.asarray(counts[chosen].sum(0), np.int64)
    return Split(tuple(_merged(train)), tuple(val), gap, train_px, val_px)


def _blocks(scene: Scene, least_px: int) -> list[Window]:
    """A grid of blocks of about the same size, none smaller than asked for unless the scene is."""
    rows, cols = (_edges(length, least_px) for length in (scene.height, scene.width))
    return [
        Window(top, left, bottom - top, right - left)
        for top, bottom in pairwise(rows)
        for left, right in pairwise(cols)
    ]


def _edges(length: int, least_px: int) -> list[int]:
    parts = max(1, length // least_px)
    return [i * length // parts for i in range(parts + 1)]


def _count(scene: Scene, window: Window) -> NDArray[np.int64]:
    """Labelled pixels of each class, shape (K,)."""
    counts = np.bincount(scene.read_label(window).ravel(), minlength=IGNORE_INDEX + 1)
    return counts[: len(scene.classes)]


def _choose(counts: NDArray[np.int64], share: float) -> NDArray[np.bool_]:
    """Which blocks are for validation, (n,), by their labelled pixels of each class, (n, K)."""
    shares = counts / np.maximum(counts.sum(0), 1)
    shares = shares[:, counts.any(0)]
    chosen, held = np.zeros(len(counts), bool), np.zeros(shares.shape[1])
    while not chosen.all():
        after = np.where(chosen, np.inf, np.abs(held + shares - share).sum(1))
        best, now = int(after.argmin()), np.abs(held - share).sum()
        # Two blocks alike are as far from a quarter as none is; one of them is wanted.
        if after[best] > now + 1e-9 or (chosen.any() and after[best] > now - 1e-9):
            break
        chosen[best] = True
        held += shares[best]
    return chosen


def _step_back(block: Part, val: Sequence[Part], gap_px: int) -> Part:
    """What is left of a training block at that distance from the validation blocks beside it."""
    row, col, height, width = block.window
    top, left, bottom, right = row, col, row + height, col + width
    for v in (part.window for part in val if part.of == block.of):
        beside = v.col < col + width + gap_px and col < v.col + v.width + gap_px
        level = v.row < row + height and row < v.row + v.height
        if level and v.col + v.width <= col:
            left = max(left, v.col + v.width + gap_px)
        elif level and v.col >= col + width:
            right = min(right, v.col - gap_px)
        elif beside and v.row + v.height <= row:  # those at a corner too: one of two sides steps back
            top = max(top, v.row + v.height + gap_px)
        elif beside and v.row >= row + height:
            bottom = min(bottom, v.row - gap_px)
    return Part(block.of, Window(top, left, bottom - top, right - left))


def _merged(parts: Sequence[Part]) -> list[Part]:
    """Parts side by side as one, so that crops may lie across."""
    out: list[Part] = []
    for part in parts:
        if out and out[-1].of == part.of:
            row, col, height, width = out[-1].window
            its = part.window
            if (its.row, its.height) == (row, height) and its.col == col + width:
                out[-1] = Part(part.of, Window(row, col, height, width + its.width))
                continue
        out.append(part)
    return out
