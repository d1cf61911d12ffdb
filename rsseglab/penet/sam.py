"""Where masks of objects come from: Segment Anything, masks on disk, superpixels, discs.

A `MaskSource` is asked window by window: here are clicks, and for each the clicks that are *not* on its object; it
answers with proposals, each a mask and a score. `rsseglab.penet.growing` chooses among them.

====================  ============================================================================================
`SegmentAnything`     three masks a click, scored by the network's own guess of their IoU
`StoredMasks`         the segment of a raster of segment numbers that the click lies in, whoever made it
`Superpixels`         the superpixel that the click lies in (SLIC): no weights are needed, and no object is known
`Discs`               what is near the click: what one would do without any of them
====================  ============================================================================================

Only that PENet's first branch makes labels from points by Segment Anything is known (its abstract); the prompts are
our reading: the click as the one positive point, the nearest clicks of other classes as negative ones.

Source:
    Kirillov et al., "Segment Anything", ICCV 2023; Achanta et al., "SLIC Superpixels", TPAMI 2012.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from segment_anything.utils.transforms import ResizeLongestSide
from skimage.segmentation import slic
from torch import Tensor

from rsseglab.errors import UserError
from rsseglab.penet.sam_network import SIDE_PX, build_sam, find_weights
from rsseglab.plots import rgb_bands, stretched
from rsseglab.scenes.raster import Array, RasterSource, Window
from rsseglab.scenes.scene import Scene

Mask = NDArray[np.bool_]
Places = NDArray[np.floating[Any]]  # (n, 2): rows and columns in px from a window's corner
KEPT = 4  # embeddings in memory, of 4 MiB each
NEGATIVES = 8  # prompts beside a click
AT_ONCE = 2  # prompts decoded together, of some 32 MiB each: more overflow a CPU's cache, and each takes longer


@dataclass(frozen=True)
class Proposal:
    """A mask that may be a click's object.

    Attributes:
        mask: shape (height, width) of the window.
        score: the higher, the more its source trusts it.
    """

    mask: Mask
    score: float


class MaskSource(Protocol):
    """What proposes masks.

    Attributes:
        window_px: side of the windows that it likes to be asked for.
    """

    window_px: int

    def propose(
        self, scene: Scene, window: Window, clicks: Places, others: Sequence[Places]
    ) -> Sequence[Sequence[Proposal]]:
        """Proposals for clicks in a window.

        Args:
            scene: of any size.
            window: inside it, no larger than ``window_px``.
            clicks: shape (n, 2).
            others: for each click those that its object does not hold.

        Returns:
            For each click its proposals, none, one or several.
        """
        ...


class SegmentAnything:
    """Masks by Segment Anything; each window is encoded once.

    Args:
        network: see `rsseglab.penet.sam_network`.
        weights: their file; looked for, and fetched, if not given.
        device: where to compute; a GPU if there is one.
        cache: folder where embeddings are kept for other runs, 4 MiB a window; in memory alone if not given.

    Attributes:
        encoded: windows that the encoder has seen so far.

    Raises:
        UserError: as `rsseglab.penet.sam_network.build_sam`.
    """

    window_px = SIDE_PX

    def __init__(
        self,
        network: str = "mobile_sam",
        weights: Path | None = None,
        device: torch.device | str | None = None,
        cache: Path | None = None,
    ) -> None:
        path = weights or find_weights(network)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.sam = build_sam(network, path).to(self.device)
        self.resize = ResizeLongestSide(SIDE_PX)
        self.cache, self.encoded = cache, 0
        self._kept: OrderedDict[str, Tensor] = OrderedDict()
        with path.open("rb") as file:
            self._key = hashlib.file_digest(file, "sha256").digest()

    def propose(self, scene: Scene, window: Window, clicks: Places, others: Sequence[Places]) -> list[list[Proposal]]:
        """See `MaskSource`; three proposals a click."""
        image = as_rgb(scene, window)
        found: list[list[Proposal]] = [[] for _ in clicks]
        pairs = zip(clicks, others, strict=True)
        prompts = [np.concatenate([click[None], _nearest(apart, click)]) for click, apart in pairs]
        for size in sorted({len(p) for p in prompts}):  # those with as many points are one batch
            which = [i for i, p in enumerate(prompts) if len(p) == size]
            points = np.stack([prompts[i] for i in which])[..., ::-1]  # x before y
            labels = np.tile([1] + [0] * (size - 1), (len(which), 1))
            for first in range(0, len(which), AT_ONCE):
                part = slice(first, first + AT_ONCE)
                masks, scores, _ = self.predict(image, points[part], labels[part])
                for i, three, its in zip(which[part], masks, scores, strict=True):
                    found[i] = [Proposal(m, float(s)) for m, s in zip(three, its, strict=True)]
        return found

    def predict(
        self, image: NDArray[np.uint8], points: Places, labels: NDArray[Any]
    ) -> tuple[Mask, NDArray[np.float32], NDArray[np.float32]]:
        """Masks for prompts.

        Args:
            image: shape (H, W, 3), red, green, blue.
            points: shape (P, n, 2), x and y in px, n of them a prompt.
            labels: shape (P, n), 1 on the object and 0 beside it.

        Returns:
            Masks (P, 3, H, W); the IoU that the network expects of each, (P, 3); their logits (P, 3, 256, 256).
        """
        embedding, size = self._embedding(image), image.shape[:2]
        scaled = self.resize.apply_coords(np.asarray(points, np.float64), size)
        small = self.resize.get_preprocess_shape(*size, SIDE_PX)
        with torch.inference_mode():
            sparse, dense = self.sam.prompt_encoder(
                points=(
                    torch.as_tensor(scaled, dtype=torch.float32, device=self.device),
                    torch.as_tensor(labels, dtype=torch.int32, device=self.device),
                ),
                boxes=None,
                masks=None,
            )
            logits, expected = self.sam.mask_decoder(
                image_embeddings=embedding,
                image_pe=self.sam.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            # A prompt at a time: all masks at full size would be 12 MiB a prompt.
            masks = [self.sam.postprocess_masks(one[None], small, size)[0] > self.sam.mask_threshold for one in logits]
        return torch.stack(masks).cpu().numpy(), expected.cpu().numpy(), logits.cpu().numpy()

    def _embedding(self, image: NDArray[np.uint8]) -> Tensor:
        """What the encoder makes of an image: from memory, from disk, or anew."""
        key = hashlib.sha256(self._key + repr(image.shape).encode() + image.tobytes()).hexdigest()
        if key not in self._kept:
            path = None if self.cache is None else self.cache / f"{key}.npy"
            if path is not None and path.is_file():
                embedding = torch.from_numpy(_load(path)).to(self.device)
            else:
                embedding = self._encode(image)
                if path is not None:
                    _save(path, embedding.cpu().numpy())
            self._kept[key] = embedding
        self._kept.move_to_end(key)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _encode(self, image: NDArray[np.uint8]) -> Tensor:
        small = torch.from_numpy(self.resize.apply_image(image)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            self.encoded += 1
            return cast(Tensor, self.sam.image_encoder(self.sam.preprocess(small.to(self.device).float())))


def _nearest(places: Places, click: Places) -> Places:
    distance = ((places - click) ** 2).sum(-1)
    return places[np.argsort(distance, kind="stable")[:NEGATIVES]]


def _load(path: Path) -> NDArray[np.float32]:
    try:
        return np.asarray(np.load(path, allow_pickle=False), np.float32)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it, it will be made anew.") from error


def _save(path: Path, embedding: NDArray[np.float32]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")  # runs side by side may save the same window
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.save(file, embedding)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UserError(f"{path} can't be written ({error}); free some space or choose another folder.") from error


class StoredMasks:
    """Segments from a raster on disk: each pixel holds the number of its segment, 0 for none.

    Args:
        path: a raster of one band, on the scene's grid.
        scene: that it is of.
        window_px: side of the windows that are read.

    Raises:
        UserError: the file is missing, or no raster of whole numbers on the scene's grid.
    """

    def __init__(self, path: Path, scene: Scene, window_px: int = SIDE_PX) -> None:
        self.source, self.window_px = RasterSource(path), window_px
        if self.source.count != 1 or self.source.dtype.kind not in "ui":
            raise UserError(
                f"{path} has {self.source.count} bands of {self.source.dtype}; give one of segment numbers."
            )
        Scene(scene._images, self.source, name=scene.name, bands=scene.bands)  # says where the grids differ

    def propose(self, scene: Scene, window: Window, clicks: Places, others: Sequence[Places]) -> list[list[Proposal]]:
        """See `MaskSource`; the segment under the click."""
        return _segments_at(self.source.read(window)[0], clicks)


class Superpixels:
    """SLIC superpixels: the fallback without weights; they know nothing of objects.

    Args:
        area_px: of a superpixel, on average.
        compactness: how much nearness weighs against likeness of colour.

    Raises:
        UserError: a superpixel would have no pixel.
    """

    window_px = SIDE_PX

    def __init__(self, area_px: int = 900, compactness: float = 10.0) -> None:
        if area_px < 1:
            raise UserError(f"area_px is {area_px}; a superpixel has at least one pixel.")
        self.area_px, self.compactness = area_px, compactness
        self._last: tuple[Scene, Window, Array] | None = None

    def propose(self, scene: Scene, window: Window, clicks: Places, others: Sequence[Places]) -> list[list[Proposal]]:
        """See `MaskSource`; the superpixel under the click."""
        if self._last is None or self._last[0] is not scene or self._last[1] != window:
            count = max(1, window.height * window.width // self.area_px)
            image = as_rgb(scene, window)
            segments = slic(image, count, self.compactness, sigma=1, start_label=1, channel_axis=-1)
            self._last = scene, window, segments
        return _segments_at(self._last[2], clicks)


class Discs:
    """All that is nearer than a radius, and nearer than to any click that the object does not hold.

    Args:
        radius_px: of a disc; 0 for the clicked pixel alone.
    """

    window_px = SIDE_PX

    def __init__(self, radius_px: float = 8.0) -> None:
        self.radius_px = radius_px

    def propose(self, scene: Scene, window: Window, clicks: Places, others: Sequence[Places]) -> list[list[Proposal]]:
        """See `MaskSource`; a disc around the click."""
        return [
            [Proposal(self._disc(window, np.floor(c), np.floor(o)), 1.0)] for c, o in zip(clicks, others, strict=True)
        ]

    def _disc(self, window: Window, click: Places, others: Places) -> Mask:
        mask, reach = np.zeros((window.height, window.width), bool), int(self.radius_px)
        first = np.maximum(click.astype(int) - reach, 0)
        last = np.minimum(click.astype(int) + reach + 1, mask.shape)
        rows, cols = np.ogrid[first[0] : last[0], first[1] : last[1]]
        own = (rows - click[0]) ** 2 + (cols - click[1]) ** 2
        inside = own <= self.radius_px**2
        for row, col in others[(np.abs(others - click) <= 2 * self.radius_px).all(1)]:
            inside &= own < (rows - row) ** 2 + (cols - col) ** 2
        mask[first[0] : last[0], first[1] : last[1]] = inside
        return mask


def _segments_at(segments: Array, clicks: Places) -> list[list[Proposal]]:
    numbers = segments[tuple(np.floor(clicks).astype(int).T)]
    return [[Proposal(segments == n, 1.0)] if n else [] for n in numbers]


def as_rgb(scene: Scene, window: Window) -> NDArray[np.uint8]:
    """A window in true colour, as Segment Anything has seen images: bytes as they are, else stretched.

    Args:
        scene: of any number of bands.
        window: inside it.

    Returns:
        Shape (height, width, 3); other numbers than bytes are stretched from the window's 2nd to its 98th percentile.
    """
    pixels = scene.read(window)[list(rgb_bands(scene.bands))].transpose(1, 2, 0)
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    valid = scene.read_valid(window)
    low, high = np.percentile(pixels[valid], (2, 98), axis=0) if valid.any() else (0.0, 1.0)
    return stretched(pixels, low, high)
