"""A synthetic scene of any size from a seed: land seen from above, with its label.

Every pixel is a pure function of the seed and of its own row and column, so a scene is written window by
window in bounded memory, and any window of it can be computed without the rest. From the ground up:

=========  ====================================================================================================
noise      sum over a random lattice of cubic B-splines, 1 in variance
relief     fractal noise; what lies below sea level, below a lake's level or on a river's line is water
districts  Voronoi cells: of four neighbours one is a town, two are farmland, one is wild; each has its own
           bearing, and country roads run along its borders
materials  asphalt, tiles, wheat, sand ...: what a pixel is made of gives its class, colour and texture
light      sun from the north-west, cast shadows, relief shading, a blurring lens, sensor noise
=========  ====================================================================================================

Colours overlap between classes (grey roofs and asphalt, ploughed fields and bare soil, hedges and crops,
shadows and water), so a network has to look at texture, shape and surroundings.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS

from rsseglab.errors import UserError
from rsseglab.scenes.raster import BLOCK_PX, RasterWriter, Window, read_tags
from rsseglab.scenes.scene import LabelClass

Float = NDArray[np.float32]
Bits = NDArray[np.uint32]

#: The classes, in colours that colour-blind readers tell apart (after Okabe and Ito).
CLASSES = (
    LabelClass("water", 1, (0, 114, 178)),
    LabelClass("road", 2, (90, 90, 90)),
    LabelClass("building", 3, (213, 94, 0)),
    LabelClass("forest", 4, (0, 110, 80)),
    LabelClass("field", 5, (240, 228, 66)),
    LabelClass("grassland", 6, (150, 210, 140)),
    LabelClass("bare", 7, (204, 121, 167)),
)
#: What the label files hold where nobody has labelled: a rim of `RIM_PX` round the scene.
IGNORE_VALUES = (0,)
GENERATOR = 1  # goes up when the same seed gives another scene, so that scenes made before are made anew
RIM_PX = 4

GSD_M = 0.5
CRS_CODE = 32633  # UTM zone 33 north
ORIGIN_M = (500_000.0, 5_300_000.0)  # easting and northing of the upper left corner

#: The default data set: identifier -> (height, width, seed).
SCENES = {
    "train_1": (1024, 1280, 6),
    "train_2": (1000, 1200, 2),
    "train_3": (1151, 1024, 14),
    "val_1": (1024, 1111, 38),
    "test_1": (1024, 1280, 4),
    "test_2": (1187, 1093, 26),
}

_TILE_PX = 1024  # width of the windows that a scene is computed in
_HALO_PX = 12  # at least the longest shadow and the lens together
_SHADOW_PX = 9
_DISTRICT_PX = 384

WATER, ROAD, BUILDING, FOREST, FIELD, GRASS, BARE = (c.value for c in CLASSES)


@dataclass(frozen=True)
class _Material:
    """What a pixel is made of: its class, its colour, and how rough it looks (relative amplitude)."""

    value: int
    color: tuple[int, int, int]
    rough: float


_MATERIALS = {
    "sea": _Material(WATER, (40, 66, 80), 0.05),
    "lake": _Material(WATER, (42, 66, 71), 0.04),
    "river": _Material(WATER, (70, 84, 68), 0.06),
    "asphalt": _Material(ROAD, (122, 120, 118), 0.07),
    "paint": _Material(ROAD, (190, 188, 180), 0.05),
    "gravel": _Material(ROAD, (158, 142, 116), 0.10),
    "tiles": _Material(BUILDING, (158, 92, 70), 0.08),
    "old_tiles": _Material(BUILDING, (126, 88, 74), 0.10),
    "slate": _Material(BUILDING, (92, 94, 100), 0.07),
    "concrete": _Material(BUILDING, (150, 148, 144), 0.06),
    "white_roof": _Material(BUILDING, (206, 204, 198), 0.05),
    "green_roof": _Material(BUILDING, (112, 122, 96), 0.08),
    "broadleaf": _Material(FOREST, (62, 84, 46), 0.18),
    "conifer": _Material(FOREST, (44, 64, 44), 0.20),
    "wheat": _Material(FIELD, (172, 154, 100), 0.07),
    "stubble": _Material(FIELD, (186, 170, 126), 0.09),
    "maize": _Material(FIELD, (84, 110, 58), 0.09),
    "beet": _Material(FIELD, (106, 130, 70), 0.08),
    "rape": _Material(FIELD, (176, 172, 74), 0.08),
    "ploughed": _Material(FIELD, (134, 110, 86), 0.10),
    "meadow": _Material(GRASS, (110, 126, 74), 0.10),
    "pasture": _Material(GRASS, (132, 136, 86), 0.13),
    "lawn": _Material(GRASS, (100, 124, 68), 0.12),
    "sand": _Material(BARE, (196, 182, 148), 0.06),
    "rock": _Material(BARE, (150, 142, 130), 0.16),
    "soil": _Material(BARE, (150, 124, 98), 0.13),
}
_ID = {name: np.uint8(i) for i, name in enumerate(_MATERIALS)}
_VALUE = np.array([m.value for m in _MATERIALS.values()], np.uint8)
_COLOR = np.array([m.color for m in _MATERIALS.values()], np.float32).T.copy()  # (3, materials)
_ROUGH = np.array([m.rough for m in _MATERIALS.values()], np.float32)
_ROOFS = np.array(
    [_ID[n] for n in ("tiles", "tiles", "old_tiles", "slate", "concrete", "concrete", "white_roof", "green_roof")]
)
_CROPS = np.array([_ID[n] for n in ("wheat", "stubble", "maize", "beet", "rape", "ploughed", "ploughed", "wheat")])


# --- Random numbers that belong to a place ---------------------------------------------------------------


def hash_bits(key: int, row: NDArray[Any], col: NDArray[Any]) -> Bits:
    """32 random bits for each (row, col) and key: integer products, then murmur3's finaliser.

    Args:
        key: which of many independent random fields.
        row: integers, broadcast against ``col``.
        col: integers.
    """
    with np.errstate(over="ignore"):
        bits = row.astype(np.uint32) * np.uint32(0x9E3779B1) + np.uint32(key & 0xFFFFFFFF)
        bits = (bits ^ (bits >> np.uint32(15))) * np.uint32(0x85EBCA6B)
        bits = bits ^ (col.astype(np.uint32) * np.uint32(0xC2B2AE35))
        bits ^= bits >> np.uint32(16)
        bits *= np.uint32(0x85EBCA6B)
        bits ^= bits >> np.uint32(13)
        bits *= np.uint32(0xC2B2AE35)
        bits ^= bits >> np.uint32(16)
    return np.asarray(bits)


def _part(bits: Bits, shift: int) -> Float:
    """Eight of the bits as a number in [0, 1)."""
    return ((bits >> np.uint32(shift)) & np.uint32(255)).astype(np.float32) * np.float32(1 / 256)


def _cell_bits(key: int, bits: Bits, x: Float, y: Float) -> Bits:
    """Random bits of the cell (x, y), whole numbers, within the cell that has the given bits."""
    return hash_bits(key, bits + x.astype(np.int32).view(np.uint32), y.astype(np.int32))


def stream_key(seed: int, stream: str) -> int:
    """The key of one named random field of one seed."""
    key = (seed * 0x9E3779B97F4A7C15 + 1) & (2**64 - 1)
    for letter in stream.encode():
        key = ((key ^ letter) * 0x100000001B3) & (2**64 - 1)
        key ^= key >> 29
    return (key >> 16) & 0xFFFFFFFF


def _spline(start: int, count: int, period_px: float) -> tuple[int, NDArray[np.intp], list[Float]]:
    # Cubic B-spline: four lattice points weigh on a pixel, and the weights sum to one.
    at = (np.arange(start, start + count) + 0.5) / period_px
    cell = np.floor(at)
    t = (at - cell).astype(np.float32)
    weights = [
        (1 - t) ** 2 * (1 - t) / 6,
        (3 * t * t * t - 6 * t * t + 4) / 6,
        (-3 * t * t * t + 3 * t * t + 3 * t + 1) / 6,
        t * t * t / 6,
    ]
    first = int(cell[0])
    return first - 1, (cell - first).astype(np.intp), weights


def noise(window: Window, period_px: float, key: int) -> Float:
    """Smooth random field: mean 0, variance about 1, no detail finer than ``period_px``.

        n(y, x) = sum_ij u_ij B3(y / p - i) B3(x / p - j),   u_ij uniform and independent

    Args:
        window: where, in px; may be anywhere, negative rows and columns too.
        period_px: distance p of the lattice's points.
        key: which field, see `stream_key`.

    Returns:
        Shape (height, width).
    """
    top, row, row_weights = _spline(window.row, window.height, period_px)
    left, col, col_weights = _spline(window.col, window.width, period_px)
    lattice_rows = np.arange(top, top + int(row[-1]) + 4)[:, None]
    lattice_cols = np.arange(left, left + int(col[-1]) + 4)[None, :]
    bits = hash_bits(key, lattice_rows, lattice_cols)
    # Uniform in [-1, 1] has variance 1/3, and B3 keeps 151/315 of it along each axis: scale back to 1.
    lattice = (bits.astype(np.float32) * np.float32(2**-31) - 1) * np.float32(3**0.5 * 315 / 151)
    across = lattice[:, col] * col_weights[0]
    field = np.zeros((window.height, window.width), np.float32)
    for k in (1, 2, 3):
        across += lattice[:, col + k] * col_weights[k]
    for k in (0, 1, 2, 3):
        term = across[row + k]
        term *= row_weights[k][:, None]  # in place: these are the largest arrays
        field += term
    return field


def fractal(window: Window, periods_px: tuple[float, ...], key: int, gain: float = 0.5) -> Float:
    """Sum of `noise` over periods, each weaker by ``gain`` than the one before; variance about 1."""
    weights = gain ** np.arange(len(periods_px))
    weights = (weights / np.sqrt((weights**2).sum())).astype(np.float32)
    field = noise(window, periods_px[0], key)
    field *= weights[0]
    for k in range(1, len(periods_px)):
        octave = noise(window, periods_px[k], key + k)
        octave *= weights[k]
        field += octave
    return field


# --- The land ----------------------------------------------------------------------------------------------


@dataclass
class _Land:
    """What lies in a window: arrays of its height and width, filled layer by layer."""

    window: Window
    seed: int
    material: NDArray[np.uint8]
    tone: Float  # relative brightness
    stands: NDArray[np.uint8]  # height above ground, as the length of its shadow in px

    def key(self, stream: str) -> int:
        return stream_key(self.seed, stream)

    def noise(self, period_px: float, stream: str) -> Float:
        return noise(self.window, period_px, self.key(stream))

    def fractal(self, periods_px: tuple[float, ...], stream: str, gain: float = 0.5) -> Float:
        return fractal(self.window, periods_px, self.key(stream), gain)


@dataclass
class _Districts:
    """Voronoi cells: kind, distance to the border, the district's own axes, random bits."""

    kind: NDArray[np.uint8]
    bits: Bits
    border_px: Float
    border_bits: Bits  # the same from both sides
    along: Float  # px from the district's site, along its own axes
    across: Float


TOWN, FARMLAND, WILD = 0, 1, 2
_KINDS = np.array([TOWN, FARMLAND, FARMLAND, WILD], np.uint8)
_AROUND = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]


def _districts(land: _Land) -> _Districts:
    """Nearest and second nearest site of every pixel, in warped coordinates.

    Each cell of a square lattice has one site, in its middle half, so both are among the 3 x 3 cells around.
    """
    window, shape = land.window, land.tone.shape
    y = land.fractal((260.0, 90.0), "warp_rows") * np.float32(9)
    x = land.fractal((260.0, 90.0), "warp_cols") * np.float32(9)
    # Coordinates count from the corner of the pixel's own lattice cell: the same in every window.
    rows, cols = np.arange(window.height) + window.row, np.arange(window.width) + window.col
    y += (rows % _DISTRICT_PX).astype(np.float32)[:, None]
    x += (cols % _DISTRICT_PX).astype(np.float32)
    districts = _Districts(
        np.empty(shape, np.uint8), np.empty(shape, np.uint32), np.empty(shape, np.float32),
        np.empty(shape, np.uint32), np.empty(shape, np.float32), np.empty(shape, np.float32),
    )  # fmt: skip
    for i, row_slice in _runs(rows // _DISTRICT_PX):
        for j, col_slice in _runs(cols // _DISTRICT_PX):
            at = (row_slice, col_slice)
            _nearest_sites(land, districts, i, j, at, y[at], x[at])
    return districts


def _runs(cells: NDArray[Any]) -> Iterator[tuple[int, slice]]:
    """Each value of a sorted array with the slice that holds it."""
    values, starts = np.unique(cells, return_index=True)
    for value, start, stop in zip(values, starts, [*starts[1:], len(cells)], strict=True):
        yield int(value), slice(int(start), int(stop))


def _nearest_sites(
    land: _Land, districts: _Districts, i: int, j: int, at: tuple[slice, slice], y: Float, x: Float
) -> None:
    cell_rows, cell_cols = np.array([(i + di, j + dj) for di, dj in _AROUND]).T
    bits = hash_bits(land.key("sites"), cell_rows, cell_cols)
    size = np.float32(_DISTRICT_PX)
    site_y = (np.array([di for di, _ in _AROUND], np.float32) + 0.25 + 0.5 * _part(bits, 0)) * size
    site_x = (np.array([dj for _, dj in _AROUND], np.float32) + 0.25 + 0.5 * _part(bits, 8)) * size
    # Of the four cells of each 2 x 2 group one is a town, two are farmland, one is wild.
    group = hash_bits(land.key("kinds"), cell_rows >> 1, cell_cols >> 1) & np.uint32(3)
    kind = _KINDS[((cell_rows & 1) * 2 + (cell_cols & 1)) ^ group.astype(np.intp)]

    # Squared distance in 1/16 px^2 and the site's number in one integer: sorting by both is two minima.
    first = np.full(y.shape, 2**31 - 1, np.int32)
    second = first.copy()
    for k in range(9):
        square = ((y - site_y[k]) ** 2 + (x - site_x[k]) ** 2) * np.float32(16)
        code = (square.astype(np.int32) << 4) | np.int32(k)
        np.minimum(second, np.maximum(first, code), out=second)
        np.minimum(first, code, out=first)
    one, two = first & 15, second & 15
    gap = np.sqrt((site_y[:, None] - site_y) ** 2 + (site_x[:, None] - site_x) ** 2) * 32  # 2 |s1 - s2|
    np.fill_diagonal(gap, 1)
    districts.border_px[at] = ((second >> 4) - (first >> 4)) / gap[one, two]
    districts.border_bits[at] = (bits[:, None] + bits)[one, two] * np.uint32(0x9E3779B1)
    districts.kind[at], districts.bits[at] = kind[one], bits[one]
    # A bearing without sine or cosine, whose last bit differs between machines: t = tan(angle / 2).
    t = _part(bits, 16) - np.float32(0.5)
    cosine, sine = ((1 - t * t) / (1 + t * t))[one], (2 * t / (1 + t * t))[one]
    dy, dx = y - site_y[one], x - site_x[one]
    districts.along[at] = dx * cosine + dy * sine
    districts.across[at] = dy * cosine - dx * sine


def _farmland(land: _Land, districts: _Districts) -> None:
    """Strips of parcels, each with its crop, sowing rows and tone; hedges and tracks between them."""
    at = np.flatnonzero(districts.kind == FARMLAND)
    bits = districts.bits.ravel()[at]
    along, across = districts.along.ravel()[at], districts.across.ravel()[at]
    length = 130 + 150 * _part(bits, 24)
    width = 55 + 75 * _part(bits, 4)
    strip = np.floor(across / width)
    strip_bits = _cell_bits(land.key("strips"), bits, strip, strip)
    along = along + _part(strip_bits, 0) * length
    parcel = np.floor(along / length)
    bits = _cell_bits(land.key("parcels"), strip_bits, parcel, parcel)
    from_side = across - strip * width
    from_end = along - parcel * length
    to_edge = np.minimum(np.minimum(from_side, width - from_side), np.minimum(from_end, length - from_end))
    use = _part(bits, 0)
    material = _CROPS[(bits >> np.uint32(8)) & np.uint32(7)]
    material[use > 0.76] = _ID["meadow"]
    material[use > 0.90] = _ID["pasture"]
    material[use > 0.96] = _ID["soil"]
    rows_px = 4 + 5 * _part(bits, 16)
    phase = np.where(bits & np.uint32(1 << 24), from_side, from_end) / rows_px
    ridge = np.abs(phase - np.floor(phase) - np.float32(0.5)) * 4 - 1
    tone = 0.86 + 0.28 * _part(bits, 12) + np.where(use > 0.76, np.float32(0), ridge * np.float32(0.07))

    margin = to_edge < 1.6
    material[margin], tone[margin] = _ID["meadow"], 0.95
    hedge = (to_edge < 4) & (land.noise(45.0, "hedges").ravel()[at] > 0.7)
    material[hedge], tone[hedge] = _ID["broadleaf"], 1
    land.material.ravel()[at], land.tone.ravel()[at] = material, tone
    land.stands.ravel()[at[hedge]] = 3


def _wild(land: _Land, districts: _Districts, relief: Float) -> None:
    """Woods, and between them meadows, pastures and bare ground."""
    at = np.flatnonzero(districts.kind == WILD)
    dry = land.fractal((170.0, 60.0, 21.0), "dry").ravel()[at] + np.float32(0.4) * relief.ravel()[at]
    material = np.where(dry < 0, _ID["meadow"], _ID["pasture"])
    material[dry > 0.75] = np.where(relief.ravel()[at[dry > 0.75]] > 0.5, _ID["rock"], _ID["soil"])
    land.material.ravel()[at] = material


def _woods(land: _Land, districts: _Districts) -> None:
    """Forest wherever its noise is high: mostly in wild districts, seldom in towns."""
    woods = land.fractal((210.0, 95.0, 40.0, 15.0), "woods", gain=0.55)
    here = woods > np.array([1.5, 1.1, -0.1], np.float32)[districts.kind]
    conifer = land.noise(330.0, "conifers") + np.float32(0.25) * land.noise(25.0, "mixed") > 0.3
    land.material[here] = np.where(conifer[here], _ID["conifer"], _ID["broadleaf"])
    land.tone[here] = 1
    land.stands[here] = np.where(conifer[here], 7, 5)


def _town(land: _Land, districts: _Districts) -> None:
    """Streets in a grid of blocks; a block is two rows of lots, a hall, a park or a car park."""
    at = np.flatnonzero(districts.kind == TOWN)
    bits = districts.bits.ravel()[at]
    along, across = districts.along.ravel()[at], districts.across.ravel()[at]
    street = np.float32(9)
    length, width = 130 + 90 * _part(bits, 24), 88 + 16 * _part(bits, 4)
    block_x, block_y = np.floor(along / length), np.floor(across / width)
    bits = _cell_bits(land.key("blocks"), bits, block_x, block_y)
    x, y = along - block_x * length - street, across - block_y * width - street  # within the block
    length, width = length - street, width - street
    use = _part(bits, 0)
    park, car_park, hall = use > 0.92, (use > 0.87) & (use <= 0.92), (use > 0.74) & (use <= 0.87)

    lots = np.where(hall, np.float32(1), np.floor(length / (34 + 12 * _part(bits, 8))))
    lot_length, lot_width = length / lots, np.where(hall, width, width / 2)
    lot_x, lot_y = np.floor(x / lot_length), np.floor(y / lot_width)
    bits = _cell_bits(land.key("lots"), bits, lot_x, lot_y)
    half_x = lot_length * (0.26 + 0.17 * _part(bits, 0))
    half_y = lot_width * (0.26 + 0.15 * _part(bits, 8))
    x -= (lot_x + np.float32(0.5)) * lot_length + (_part(bits, 3) - np.float32(0.5)) * (lot_length - 2 * half_x - 2)
    y -= (lot_y + np.float32(0.5)) * lot_width + (_part(bits, 11) - np.float32(0.5)) * (lot_width - 2 * half_y - 2)
    notch = ((bits >> np.uint32(16)) & np.uint32(3) == 0) & (x > 0.1 * half_x) & (y > 0)  # an L-shaped house
    built = (np.abs(x) < half_x) & (np.abs(y) < half_y) & ~notch & (_part(bits, 18) < 0.9) & ~park & ~car_park

    material = np.where(land.noise(17.0, "gardens").ravel()[at] > 1.15, _ID["broadleaf"], _ID["lawn"])
    material[park & (land.noise(40.0, "parks").ravel()[at] > 0.2)] = _ID["broadleaf"]
    stands = np.where(material == _ID["broadleaf"], np.uint8(4), np.uint8(0))
    paved = car_park | (hall & (use < 0.82))
    material[paved], stands[paved] = _ID["asphalt"], 0
    roof = _ROOFS[(bits >> np.uint32(20)) & np.uint32(7)]
    roof[hall] = np.where(bits[hall] & np.uint32(1 << 20), _ID["concrete"], _ID["white_roof"])
    pitched = np.where(hall, np.float32(0), np.where(y < 0, np.float32(0.12), np.float32(-0.14)))
    tone = np.where(built, 0.88 + 0.24 * _part(bits, 24) + pitched, np.float32(1))
    material[built] = roof[built]
    stands[built] = np.where(hall, 8, 3 + ((bits >> np.uint32(5)) & np.uint32(3)))[built]
    on_street = (along - block_x * (length + street) < street) | (across - block_y * (width + street) < street)
    material[on_street], stands[on_street], tone[on_street] = _ID["asphalt"], 0, 1
    land.material.ravel()[at], land.stands.ravel()[at], land.tone.ravel()[at] = material, stands, tone


def _line_px(field: Float) -> Float:
    """Distance in px to the field's zero line: |f| / |grad f|."""
    down, right = np.gradient(field)
    slope = np.sqrt(down * down + right * right)
    return np.asarray(np.abs(field) / np.maximum(slope, np.float32(1e-3)))


def _paint(land: _Land, where: NDArray[np.bool_], material: str) -> None:
    land.material[where], land.tone[where], land.stands[where] = _ID[material], 1, 0


def _water(land: _Land, relief: Float) -> None:
    """Sea below sea level, lakes in hollows, rivers on the zero lines of a noise; sandy shores."""
    # The sea bed levels off, so that the highest hills are islands even far out.
    depth = np.maximum(land.noise(1500.0, "sea"), np.float32(-1.75))
    sea = depth + np.float32(0.3) * relief + np.float32(1.45)
    lake = relief + np.float32(1.25)
    river = _line_px(land.fractal((720.0, 250.0, 110.0, 38.0), "river", gain=0.3))
    half_px = np.maximum(8 + 4 * land.noise(500.0, "river_width"), 3)
    sand = (sea < 0.05) | ((lake < 0.10) & (land.noise(90.0, "beach") > -0.2))
    _paint(land, sand & (land.stands < 4), "sand")
    _paint(land, river < half_px + 2.5, "meadow")
    _paint(land, river < half_px, "river")
    _paint(land, lake < 0, "lake")
    _paint(land, sea < 0, "sea")
    # Deep water is darker than shallows.
    deep = np.clip(np.maximum(-lake, -2 * sea), 0, np.float32(0.8))
    land.tone -= np.where((lake < 0) | (sea < 0), np.float32(0.45) * deep - np.float32(0.12), np.float32(0))


def _roads(land: _Land, districts: _Districts) -> None:
    """Country roads along the districts' borders, and main roads that bridge rivers and lakes."""
    wet = _VALUE[land.material] == WATER
    border, bits = districts.border_px, districts.border_bits
    town = districts.kind == TOWN
    paved = town | (bits & np.uint32(1) == 0)
    there = (bits >> np.uint32(1)) & np.uint32(7) < 6
    side = (border < 9) & (there | town) & ~wet
    _paint(land, side, "meadow")
    _paint(land, side & (border < 6) & paved, "asphalt")
    _paint(land, side & (border < 4) & ~paved, "gravel")

    main = _line_px(land.fractal((1100.0, 420.0), "main_road", gain=0.25))
    _paint(land, (main < 14) & ~wet, "meadow")
    _paint(land, (main < 9) & (land.material != _ID["sea"]), "asphalt")
    _paint(land, ((main < 0.8) | (np.abs(main - 7) < 0.6)) & (land.material == _ID["asphalt"]), "paint")


# --- The light ---------------------------------------------------------------------------------------------


def _shadow(stands: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """What lies in the shadow of something higher, the sun in the north-west."""
    dark = np.zeros(stands.shape, dtype=bool)
    for step in range(1, _SHADOW_PX):
        down, right = step, (3 * step) // 4
        higher = stands[:-down, : stands.shape[1] - right]
        dark[down:, right:] |= (higher >= step) & (higher > stands[down:, right:])
    return dark


def _blur(channel: Float) -> Float:
    """The lens: a 3 x 3 binomial filter."""
    channel[1:-1] = 0.25 * (channel[:-2] + channel[2:]) + 0.5 * channel[1:-1]
    channel[:, 1:-1] = 0.25 * (channel[:, :-2] + channel[:, 2:]) + 0.5 * channel[:, 1:-1]
    return channel


def _photograph(land: _Land, relief: Float) -> NDArray[np.uint8]:
    """Colour x tone x texture x light, through the lens, on a noisy sensor. Shape (3, height, width)."""
    grain = land.noise(2.6, "grain")
    crowns = land.noise(6.5, "crowns")
    patches = land.fractal((130.0, 37.0, 11.0), "patches", gain=0.8)
    rough = _ROUGH[land.material]
    light = land.tone * (1 + rough * (np.float32(0.55) * grain + np.float32(0.6) * patches))
    # A slope towards the sun is lighter: tree crowns, and gently the hills.
    wooded = _VALUE[land.material] == FOREST
    slope = np.zeros_like(relief)
    slope[1:, 1:] = 4 * (relief[:-1, :-1] - relief[1:, 1:])
    slope[1:, 1:] -= np.float32(0.55) * wooded[1:, 1:] * (crowns[:-1, :-1] - crowns[1:, 1:])
    light *= 1 + np.clip(slope, -0.6, 0.6)
    light[_shadow(land.stands)] *= np.float32(0.48)

    hue = land.noise(75.0, "hue") * np.float32(3.5)
    gain = 0.94 + 0.12 * _part(hash_bits(land.key("gain"), np.arange(3), np.zeros(1, int)), 0)
    height, width = relief.shape
    rows = np.arange(land.window.row, land.window.row + height)[:, None]
    cols = np.arange(land.window.col, land.window.col + width)[None, :]
    bits = hash_bits(land.key("sensor"), rows, cols)
    pixels = np.empty((3, height, width), np.uint8)
    for band, (tint, haze) in enumerate([(1.0, 12), (-0.3, 14), (-0.7, 18)]):
        channel = _COLOR[band][land.material] + np.float32(tint) * hue
        channel *= light
        channel *= np.float32(1.03) * gain[band]
        channel += haze
        channel = _blur(channel)
        channel += (_part(bits, 8 * band) + _part(bits, 8 * band + 4) - 1) * np.float32(9)
        pixels[band] = np.clip(channel, 1, 255)
    return pixels


# --- The scene ---------------------------------------------------------------------------------------------


def render(seed: int, window: Window) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Compute a window of the endless land of a seed.

    Args:
        seed: which land.
        window: where, in px; may be anywhere.

    Returns:
        The image, of shape (3, height, width), and the label's file values (`CLASSES`), (height, width).
    """
    halo = _HALO_PX
    row, col, height, width = window
    wide = Window(row - halo, col - halo, height + 2 * halo, width + 2 * halo)
    shape = (wide.height, wide.width)
    land = _Land(wide, seed, np.zeros(shape, np.uint8), np.ones(shape, np.float32), np.zeros(shape, np.uint8))
    relief = land.fractal((460.0, 205.0, 90.0, 41.0), "relief", gain=0.42)
    districts = _districts(land)
    _wild(land, districts, relief)
    _farmland(land, districts)
    _town(land, districts)
    _woods(land, districts)
    _water(land, relief)
    _roads(land, districts)
    inner = (slice(halo, halo + height), slice(halo, halo + width))
    return _photograph(land, relief)[(slice(None), *inner)], _VALUE[land.material[inner]]


def write_synthetic_scene(
    folder: str | Path, name: str, height: int, width: int, seed: int, *, block_px: int = BLOCK_PX
) -> tuple[Path, Path]:
    """Write a synthetic scene as two GeoTIFFs, one block of rows after the other.

    Args:
        folder: where to; made if missing.
        name: gives the files' names, ``NAME_image.tif`` (uint8 RGB) and ``NAME_label.tif`` (`CLASSES`).
        height: rows in px; memory does not grow with it.
        width: columns in px.
        seed: the same seed gives the same scene, and a larger scene of it begins with the smaller one.
        block_px: rows computed at a time; the scene does not depend on it.

    Returns:
        The paths of image and label.

    Raises:
        UserError: a size is not positive, or the folder cannot be written to (neither file is left then).
    """
    if height < 1 or width < 1:
        raise UserError(f"a scene of {height} x {width} px has no pixels; give a positive height and width.")
    crs = CRS.from_epsg(CRS_CODE)
    transform = Affine(GSD_M, 0, ORIGIN_M[0], 0, -GSD_M, ORIGIN_M[1])
    image_path, label_path = Path(folder) / f"{name}_image.tif", Path(folder) / f"{name}_label.tif"
    image_writer = RasterWriter(
        image_path, height, width, 3, "uint8", crs, transform,
        tags={"generator": str(GENERATOR)}, descriptions=("red", "green", "blue"),
    )  # fmt: skip
    label_writer = RasterWriter(
        label_path, height, width, 1, "uint8", crs, transform, nodata=IGNORE_VALUES[0],
        colors={c.value: c.color for c in CLASSES}, tags={f"class_{c.value}": c.name for c in CLASSES},
    )  # fmt: skip
    with image_writer as image, label_writer as label:
        for row in range(0, height, block_px):
            rows = min(block_px, height - row)
            for col in range(0, width, _TILE_PX):
                window = Window(row, col, rows, min(_TILE_PX, width - col))
                pixels, values = render(seed, window)
                _trim(values, window, height, width)
                image.write(pixels, row, col)
                label.write(values, row, col)
    return image_path, label_path


def _trim(values: NDArray[np.uint8], window: Window, height: int, width: int) -> None:
    """Take the label off the scene's rim."""
    rows, cols = np.arange(window.height) + window.row, np.arange(window.width) + window.col
    values[(rows < RIM_PX) | (rows >= height - RIM_PX)] = IGNORE_VALUES[0]
    values[:, (cols < RIM_PX) | (cols >= width - RIM_PX)] = IGNORE_VALUES[0]


def ensure_synthetic(root: str | Path) -> None:
    """Write what is missing of the synthetic data set (`SCENES`), or older than `GENERATOR`; seconds, once.

    Safe to call from several processes at a time: a scene is written aside, then given its name.

    Raises:
        UserError: the folder cannot be written to.
    """
    root = Path(root)
    missing = [name for name in SCENES if not _is_current(root, name)]
    if not missing:
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        aside = tempfile.TemporaryDirectory(dir=root, prefix=".writing-")
    except OSError as error:
        raise UserError(f"{root} cannot be written to ({error}); set RSSEGLAB_DATA to another folder.") from error
    with aside as folder:
        for name in missing:
            for path in write_synthetic_scene(folder, name, *SCENES[name]):
                path.replace(root / path.name)


def _is_current(root: Path, name: str) -> bool:
    image, label = root / f"{name}_image.tif", root / f"{name}_label.tif"
    return image.exists() and label.exists() and read_tags(image).get("generator") == str(GENERATOR)
