r"""Clicks grown to labels, by masks that hold their objects.

Of the proposals of a click those count that hold the click, hold no click of another class, and are no larger than a
share of their window; the one with the best score is its mask:

.. math:: m_i = \arg\max_{m \in P_i} s(m) \quad \text{with} \quad i \in m, \;\; |m| \le r |W|, \;\;
          j \notin m \;\; \forall j: c_j \ne c_i

What has no mask stays a click. Where masks of two classes meet, the smaller one is on top ("smaller"), or the pixel is
ignored ("ignore"). A clicked pixel always has the click's class. This is our reading of PENet's abstract, which says
that labels from Segment Anything become anchors, and not how.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from rsseglab.errors import UserError
from rsseglab.penet.sam import Mask, MaskSource, Places, Proposal
from rsseglab.scenes.points import Point, check_points
from rsseglab.scenes.raster import Window
from rsseglab.scenes.scene import IGNORE_INDEX, Scene

CONFLICTS = ("smaller", "ignore")
MOST_SHARE = 0.25  # of a window that a mask may have
AT_ONCE = 32  # clicks whose proposals are held together, of some 3 MiB each


@dataclass(frozen=True)
class Grown:
    """What clicks have grown to.

    Attributes:
        label: shape (H, W): class indices, `IGNORE_INDEX` where there is no label.
        clicks: how many there were.
        bare: how many of them have no mask.
        contested_px: pixels that masks of two classes hold.
    """

    label: NDArray[np.uint8]
    clicks: int
    bare: int
    contested_px: int


def grow_points(
    scene: Scene,
    points: Sequence[Point],
    source: MaskSource,
    *,
    most_share: float = MOST_SHARE,
    conflicts: str = "smaller",
    progress: bool = True,
) -> Grown:
    """Grow clicks by the masks of a source.

    Args:
        scene: of any size; read in windows around the clicks. Held are two bytes a pixel of it, and one for each pixel
            of the box around each mask.
        points: clicks in it.
        source: of masks.
        most_share: of a window's pixels that a mask may have.
        conflicts: one of `CONFLICTS`.
        progress: whether to draw a progress bar, of clicks.

    Raises:
        UserError: as `rsseglab.scenes.points.check_points`; an option is unknown or out of range.
    """
    check_points(points, scene)
    if conflicts not in CONFLICTS:
        raise UserError(f"there is no rule '{conflicts}' for conflicts; choose {' or '.join(CONFLICTS)}.")
    if not 0 < most_share <= 1:
        raise UserError(f"most_share {most_share} is no share of a window; give more than 0 and at most 1.")
    places = np.array([(p.row, p.col) for p in points])
    names = {c.name: k for k, c in enumerate(scene.classes)}
    classes = np.array([names[p.name] for p in points])
    found: list[_Found] = []
    with tqdm(total=len(points), desc=f"growing {scene.name}", unit="click", disable=not progress) as bar:
        for window, which in windows_around(places, scene.height, scene.width, source.window_px):
            local = places - (window.row, window.col)
            inside = ((local >= 0) & (local < (window.height, window.width))).all(1)
            most_px = most_share * window.height * window.width
            for few in np.array_split(which, -(-len(which) // AT_ONCE)):
                others = [local[inside & (classes != classes[i])] for i in few]
                proposals = source.propose(scene, window, local[few], others)
                for i, its, apart in zip(few, proposals, others, strict=True):
                    mask = choose(its, local[i], apart, most_px)
                    if mask is not None:
                        found.append(_Found(window, mask, int(classes[i])))
                bar.update(len(few))
    label, contested = _painted(found, scene, conflicts)
    label[tuple(np.floor(places).astype(int).T)] = classes
    return Grown(label, len(points), len(points) - len(found), contested)


def choose(proposals: Sequence[Proposal], click: Places, others: Places, most_px: float) -> Mask | None:
    """The mask of a click: see the module; ``None`` where no proposal counts.

    Args:
        proposals: of its source.
        click: row and column in px.
        others: shape (m, 2), clicks that its object does not hold.
        most_px: pixels that a mask may have.
    """
    here, apart = tuple(np.floor(click).astype(int)), tuple(np.floor(others).astype(int).T)
    fit = [p for p in proposals if p.mask[here] and p.mask.sum() <= most_px and not p.mask[apart].any()]
    return max(fit, key=lambda p: p.score).mask if fit else None


def windows_around(places: Places, height: int, width: int, side: int) -> list[tuple[Window, NDArray[np.intp]]]:
    """Windows that see each click with what is around it, few of them.

    The first click that no window has opens one, centred on it as far as the scene's edge allows; it takes all clicks
    that lie no nearer to its border than a quarter of its side, but at the scene's edge.

    Args:
        places: shape (n, 2), rows and columns in px.
        height: of the scene.
        width: of the scene.
        side: of a window in px.

    Returns:
        Windows inside the scene, and the indices of the clicks that they are for.
    """
    size = np.minimum(side, (height, width))
    left, out = np.ones(len(places), bool), []
    order = np.lexsort((places[:, 1], places[:, 0] // max(1, side // 2)))  # strip by strip
    for i in order:
        if not left[i]:
            continue
        corner = np.clip(np.floor(places[i] - size / 2), 0, (height, width) - size).astype(int)
        low = np.where(corner == 0, 0, corner + size // 4)
        high = np.where(corner + size == (height, width), (height, width), corner + size - size // 4)
        taken = left & ((places >= low) & (places < high)).all(1)
        left &= ~taken
        out.append((Window(int(corner[0]), int(corner[1]), int(size[0]), int(size[1])), np.flatnonzero(taken)))
    return out


class _Found:
    """A mask in its scene, cut to what it covers."""

    def __init__(self, window: Window, mask: Mask, index: int) -> None:
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        cut = slice(rows[0], rows[-1] + 1), slice(cols[0], cols[-1] + 1)
        self.mask, self.index, self.area = mask[cut].copy(), index, int(mask.sum())
        self.where = (
            slice(window.row + cut[0].start, window.row + cut[0].stop),
            slice(window.col + cut[1].start, window.col + cut[1].stop),
        )


def _painted(found: Sequence[_Found], scene: Scene, conflicts: str) -> tuple[NDArray[np.uint8], int]:
    """The label of masks, the smallest painted last, and how many pixels several classes claim."""
    label = np.full((scene.height, scene.width), IGNORE_INDEX, np.uint8)
    contested = np.zeros(label.shape, bool)
    for one in sorted(found, key=lambda f: -f.area):
        here = label[one.where]
        contested[one.where] |= one.mask & (here != IGNORE_INDEX) & (here != one.index)
        here[one.mask] = one.index
    if conflicts == "ignore":
        label[contested] = IGNORE_INDEX
    return label, int(contested.sum())
