"""Twin scenes: two scenes of one seed that differ only in one bit, and the bit is far away.

A controlled experiment on context. Some parcels are sown with a crop that looks the same whatever it is:
the *look-alike* pixels. Which crop it is stands elsewhere in the scene, on a *key*: a 32 x 32 patch of stripes
of period 8 px, aligned to 8 px. With o the orientation of its key (0 vertical, 1 horizontal):

    label of a look-alike pixel = 1 + o        of a key pixel = 3 + o        of any other pixel = 0

In twin s = 1 each key has the other orientation than in twin s = 0; all else is equal. Every look-alike pixel
lies at Chebyshev distance >= ``context_px`` from every key pixel. Hence what is provable:

* A method that sees windows of side <= ``context_px`` never has a look-alike and a key pixel in one window:
  its answers on look-alike pixels are bit-identical in both twins, and its `pair_accuracy` is 0.5.
* The mean of each aligned 8 x 8 block of a key is the same for both orientations: averaged by
  ``detail_px`` = 8 the twins are equal, so a downsampled view of the whole scene fails too.

Normalisation has to be fixed (`normalise`) and batch norm in eval mode: a scene's own statistics are context.

**First level**, ``keys=1``: one key with o = s. One bit has to reach every look-alike pixel. Attention brings
it, and so does a global average of features.

**Second level**, ``keys`` = n even: n keys in a row, and a parcel asks the key that is nearest along the row.
Half of the keys are vertical, so n / 2 are in both twins. Around each key, nearer than ``context_px``, the ground
is plain, and the keys' columns are equal modulo 32. Therefore

* the *collection* of all windows of side <= ``context_px`` is the same in both twins (also of those on a grid
  with a stride that divides 32); only their places differ. Whatever is averaged or counted over the whole
  scene, of whichever function of such windows, is equal in both twins: global pooling cannot help, nor
  attention without positions. A pixel has to find *its* key: attention with positions does.

Keys told apart by a mark of their own, a colour say, would not show that: a feature that sees mark and stripes
together can be pooled, and a network with global pooling learns to read it out.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from rsseglab.errors import UserError
from rsseglab.scenes.raster import ArraySource, RasterWriter, Window
from rsseglab.scenes.scene import LabelClass, Scene
from rsseglab.scenes.synthetic import CRS_CODE, GSD_M, ORIGIN_M, fractal, noise, stream_key

CLASSES = (
    LabelClass("land", 0, (150, 210, 140)),
    LabelClass("field sown with wheat", 1, (240, 228, 66)),
    LabelClass("field sown with barley", 2, (213, 94, 0)),
    LabelClass("key, vertical stripes", 3, (0, 114, 178)),
    LabelClass("key, horizontal stripes", 4, (204, 121, 167)),
)
LOOK_ALIKE = (1, 2)  # the two classes that `pair_accuracy` chooses between

KEY_PX = 32
DETAIL_PX = 8  # period of the stripes: averaging by it erases the key
PARCEL_PX = 32
_STRIDE_PX = 32  # the keys look alike to networks of this stride, and of its divisors
_FIELD_SHARE = 0.2  # of the scene, at least, has to be far enough from the keys
_GRASS, _STRAW, _PLAIN = (112, 122, 92), (154, 132, 104), (120, 118, 108)
_DARK, _LIGHT = 78, 178  # the stripes


@dataclass(frozen=True)
class Twins:
    """A pair of twin scenes; the first axis of images and labels is the twin, s = 0 and 1.

    Attributes:
        images: uint8 RGB, shape (2, 3, height, width).
        labels: class indices of `CLASSES`, which are also the file values, shape (2, height, width).
        look_alike: shape (height, width), the same for both twins.
        key: likewise.
        kind: number of the key that a look-alike pixel asks or a key pixel belongs to, -1 elsewhere; likewise.
        context_px: least Chebyshev distance from a look-alike pixel to a key pixel.
        detail_px: averaging by so many px makes the twins equal.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    look_alike: NDArray[np.bool_]
    key: NDArray[np.bool_]
    kind: NDArray[np.int8]
    context_px: int
    detail_px: int = DETAIL_PX


def twin_scenes(height: int, width: int, context_px: int, seed: int, *, keys: int = 1) -> Twins:
    """Make a pair of twin scenes.

    Args:
        height: rows in px.
        width: columns in px.
        context_px: least Chebyshev distance from a look-alike pixel to a key pixel.
        seed: gives terrain, parcels and the keys' place, which do not depend on the twin.
        keys: 1 (first level), or an even number of them (second level).

    Returns:
        Both twins.

    Raises:
        UserError: the scene is too small for the distance and the keys, or the number of keys is odd.
    """
    if context_px < 1 or keys < 1 or (keys > 1 and keys % 2):
        raise UserError(
            f"twin scenes cannot have {keys} keys {context_px} px away; "
            "give 1 key or an even number, and a context_px of at least 1."
        )
    rng = np.random.default_rng(seed)
    corners = _place_keys(height, width, context_px, keys, rng)
    far = _far(height, width, context_px, corners)
    look_alike = far & _parcels(height, width, rng)
    if not look_alike.any():
        raise _too_small(height, width, context_px, keys)
    middles = np.array([col + KEY_PX / 2 for _, col in corners])
    nearest = np.abs(np.arange(width)[:, None] + 0.5 - middles).argmin(axis=1)
    kind = np.where(look_alike, nearest, -1).astype(np.int8)

    land = _terrain(height, width, seed)
    land = np.where(look_alike, land / 4 + _bands(_STRAW), land + _bands(_GRASS))
    if keys > 1:
        land = np.where(far, land, _bands(_PLAIN))
    base = np.clip(np.rint(land), 0, 255).astype(np.uint8)
    images, labels = np.stack([base, base]), np.zeros((2, height, width), np.uint8)
    orientation = rng.permutation(np.arange(keys) % 2)
    for s in (0, 1):
        labels[s][look_alike] = (1 + (orientation ^ s))[kind[look_alike]]
        for k, (row, col) in enumerate(corners):
            here = (slice(row, row + KEY_PX), slice(col, col + KEY_PX))
            images[(s, slice(None), *here)] = _stripes(int(orientation[k]) ^ s)
            labels[(s, *here)] = 3 + (orientation[k] ^ s)
            kind[here] = k
    return Twins(images, labels, look_alike, (kind >= 0) & ~look_alike, kind, context_px)


def _place_keys(height: int, width: int, context_px: int, keys: int, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Upper left corners of the keys: in one row, somewhere that leaves room for parcels."""
    # No window of side context_px touches two keys, nor (second level) a key and the left or right border.
    pitch = -(-(KEY_PX + context_px) // _STRIDE_PX) * _STRIDE_PX
    length = KEY_PX + (keys - 1) * pitch
    margin = 0 if keys == 1 else -(-context_px // DETAIL_PX) * DETAIL_PX
    rows = np.arange(0, height - KEY_PX + 1, DETAIL_PX)
    cols = np.arange(margin, width - length - margin + 1, DETAIL_PX)
    near = np.outer(_near(rows, KEY_PX, height, context_px), _near(cols, length, width, context_px))
    places = np.argwhere(near <= (1 - _FIELD_SHARE) * height * width)
    if len(places) == 0:
        raise _too_small(height, width, context_px, keys)
    i, j = places[rng.integers(len(places))]
    return [(int(rows[i]), int(cols[j]) + k * pitch) for k in range(keys)]


def _too_small(height: int, width: int, context_px: int, keys: int) -> UserError:
    return UserError(
        f"a scene of {height} x {width} px is too small for {keys} key(s) and parcels {context_px} px away; "
        "enlarge it, its width most of all, or lessen context_px."
    )


def _near(start: NDArray[Any], length: int, size: int, context_px: int) -> NDArray[Any]:
    """How many of ``size`` rows are less than ``context_px`` from the rows start .. start + length - 1."""
    first = np.maximum(start - context_px + 1, 0)
    return np.asarray(np.minimum(start + length + context_px - 1, size) - first)


def _far(height: int, width: int, context_px: int, corners: list[tuple[int, int]]) -> NDArray[np.bool_]:
    """Where every key pixel is at Chebyshev distance >= ``context_px``."""
    far, reach = np.ones((height, width), dtype=bool), context_px - 1
    for row, col in corners:
        rows = slice(max(row - reach, 0), row + KEY_PX + reach)
        far[rows, max(col - reach, 0) : col + KEY_PX + reach] = False
    return far


def _parcels(height: int, width: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Two of three cells of a shifted grid, with strips of land between them."""
    shift_row, shift_col = rng.integers(PARCEL_PX, size=2)
    rows, cols = np.arange(height) + shift_row, np.arange(width) + shift_col
    sown = np.add.outer(rows // PARCEL_PX, cols // PARCEL_PX) % 3 > 0
    return np.asarray(sown & np.outer(rows % PARCEL_PX >= 3, cols % PARCEL_PX >= 3))


def _terrain(height: int, width: int, seed: int) -> NDArray[np.float32]:
    """Hills, patches and grain about zero, the bands slightly apart; shape (3, height, width)."""
    window = Window(0, 0, height, width)
    hills = fractal(window, (90.0, 41.0, 17.0), stream_key(seed, "hills"))
    grain = noise(window, 2.6, stream_key(seed, "grain"))
    hue = noise(window, 60.0, stream_key(seed, "hue"))
    bands: list[NDArray[np.float32]] = [
        a * hills + b * grain + c * hue for a, b, c in [(14, 7, 9), (12, 8, -2), (9, 7, -7)]
    ]
    return np.stack(bands)


def _bands(color: tuple[int, int, int]) -> NDArray[np.float32]:
    return np.array(color, np.float32)[:, None, None]


def _stripes(orientation: int) -> NDArray[np.uint8]:
    """A key: stripes of 4 px, dark and light in turn; 0 is vertical, 1 horizontal. Shape (32, 32)."""
    light = np.arange(KEY_PX) // (DETAIL_PX // 2) % 2 == 1
    stripes = np.broadcast_to(np.where(light, _LIGHT, _DARK).astype(np.uint8), (KEY_PX, KEY_PX))
    return stripes.T if orientation else stripes


def normalise(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(x - 128) / 64, for every scene alike: exact in float32, and so are its averages by ``detail_px``."""
    return (images.astype(np.float32) - np.float32(128)) / np.float32(64)


def pair_accuracy(scores: Any, labels: Any) -> float:
    """Share of look-alike pixels, of both twins together, whose crop is right.

    The choice is between the two look-alike classes alone. Whoever answers both twins alike has exactly 0.5.

    Args:
        scores: a score a class, an array or a tensor on the CPU, shape (scenes, classes, height, width); any
            number of pairs, both twins of each.
        labels: shape (scenes, height, width).

    Raises:
        UserError: the shapes do not fit, or there is no look-alike pixel.
    """
    scores, labels = np.asarray(scores), np.asarray(labels)
    if scores.ndim != 4 or labels.shape != (scores.shape[0], *scores.shape[2:]) or scores.shape[1] < 3:
        raise UserError(
            f"scores of shape {scores.shape} do not fit labels of shape {labels.shape}; "
            "give (scenes, classes, height, width) and (scenes, height, width)."
        )
    first, second = LOOK_ALIKE
    answer = np.where(scores[:, second] > scores[:, first], second, first)
    asked = (labels == first) | (labels == second)
    if not asked.any():
        raise UserError("the labels hold no look-alike pixel; give both twins' labels.")
    return float((answer == labels)[asked].mean())


def label_pair_accuracy(predictions: Any, labels: Any) -> float:
    """`pair_accuracy` of a method of which only the labels are known.

    A look-alike pixel that is given neither of the two crops counts as a guess, half right; so whoever answers both
    twins alike has exactly 0.5 here too.

    Args:
        predictions: class indices, shape (scenes, height, width); any number of pairs, both twins of each.
        labels: likewise.

    Raises:
        UserError: the shapes do not fit, or there is no look-alike pixel.
    """
    predictions, labels = np.asarray(predictions), np.asarray(labels)
    if predictions.shape != labels.shape or labels.ndim != 3:
        raise UserError(
            f"predictions of shape {predictions.shape} do not fit labels of shape {labels.shape}; give both as "
            "(scenes, height, width)."
        )
    asked = np.isin(labels, LOOK_ALIKE)
    if not asked.any():
        raise UserError("the labels hold no look-alike pixel; give both twins' labels.")
    right = (predictions == labels)[asked]
    neither = ~np.isin(predictions, LOOK_ALIKE)[asked]
    return float(right.mean() + neither.mean() / 2)


def twins_in_memory(twins: Twins, name: str) -> list[Scene]:
    """Both twins as scenes that are on no disk."""
    return [
        Scene(
            ArraySource(twins.images[s].transpose(1, 2, 0)),
            ArraySource(twins.labels[s]),
            CLASSES,
            name=f"{name}_{s}",
            bands=("red", "green", "blue"),
        )
        for s in (0, 1)
    ]


def write_twin_scenes(folder: str | Path, name: str, twins: Twins) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
    """Write both twins as GeoTIFFs, or none of them.

    Args:
        folder: where to; made if missing.
        name: gives the files' names, ``NAME_0_image.tif``, ``NAME_0_label.tif``, and 1 for the other twin.
        twins: what to write.

    Returns:
        For each twin the paths of image and label.

    Raises:
        UserError: the folder cannot be written to.
    """
    crs, transform = CRS.from_epsg(CRS_CODE), Affine(GSD_M, 0, ORIGIN_M[0], 0, -GSD_M, ORIGIN_M[1])
    height, width = twins.key.shape
    colors, tags = {c.value: c.color for c in CLASSES}, {f"class_{c.value}": c.name for c in CLASSES}
    paths = [[Path(folder) / f"{name}_{s}_{part}.tif" for part in ("image", "label")] for s in (0, 1)]
    with ExitStack() as stack:
        for s, (image, label) in enumerate(paths):
            writer = RasterWriter(image, height, width, 3, "uint8", crs, transform)
            stack.enter_context(writer).write(twins.images[s], 0)
            writer = RasterWriter(label, height, width, 1, "uint8", crs, transform, colors=colors, tags=tags)
            stack.enter_context(writer).write(twins.labels[s], 0)
    return (paths[0][0], paths[0][1]), (paths[1][0], paths[1][1])
