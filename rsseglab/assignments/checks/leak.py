"""The leak between two scenes, held against rasterio's windows on the transforms of `rsseglab.scenes.Scene`."""

from math import ceil, floor

import numpy as np
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import array_bounds
from rasterio.windows import from_bounds

from rsseglab.assignments.checking import Assignment, Case, Check, Mistake
from rsseglab.scenes.raster import ArraySource
from rsseglab.scenes.scene import Scene

Box = tuple[int, int, int, int]
EAST, NORTH = 500_000.0, 5_300_000.0


def _scene(west: float, north: float, height: int, width: int, gsd: float, name: str) -> Scene:
    """Without a pixel in memory: nobody looks at them."""
    pixels = np.broadcast_to(np.uint8(0), (height, width))
    return Scene(ArraySource(pixels, CRS.from_epsg(32633), Affine(gsd, 0, west, 0, -gsd, north)), name=name)


def _shared(train: Scene, test: Scene) -> tuple[float, float, float, float] | None:
    """West, south, east and north of what both show."""
    a, b = (array_bounds(scene.height, scene.width, scene.transform) for scene in (train, test))
    west, south, east, north = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (west, south, east, north) if west < east and south < north else None


def _in_pixels_of(scene: Scene, box: tuple[float, float, float, float]) -> Box:
    window = from_bounds(*box, scene.transform)
    row, col = floor(window.row_off + 1e-6), floor(window.col_off + 1e-6)
    bottom = ceil(window.row_off + window.height - 1e-6)
    right = ceil(window.col_off + window.width - 1e-6)
    return row, col, bottom - row, right - col


def _reference(train: Scene, test: Scene) -> Box | None:
    box = _shared(train, test)
    return None if box is None else _in_pixels_of(test, box)


def _pair(rng: np.random.Generator, down: float, right: float, *, gsd: float = 0.5) -> Case:
    """A test scene, and a training scene whose upper left corner lies so many of its pixels further down and right."""
    height, width = (int(n) for n in rng.integers(180, 260, 2))
    train = _scene(EAST + 0.5 * right, NORTH - 0.5 * down, int(rng.integers(150, 170)), 160, gsd, "train")
    return train, _scene(EAST, NORTH, height, width, 0.5, "test")


def _overlapping(rng: np.random.Generator) -> list[Case]:
    a, b, c, d = (int(n) for n in rng.integers(60, 120, 4))
    return [_pair(rng, a, b), _pair(rng, -c, d), _pair(rng, -a, -d)]


def _neighbours(rng: np.random.Generator) -> list[Case]:
    down = int(rng.integers(10, 60))
    return [_pair(rng, down, -160), _pair(rng, down, -160 - down), _pair(rng, down, -159)]


def _inside(rng: np.random.Generator) -> list[Case]:
    down, right = int(rng.integers(1, 10)), int(rng.integers(11, 20))
    train, test = _pair(rng, down, right)
    return [(train, test), (test, train)]


def _other_pixels(rng: np.random.Generator) -> list[Case]:
    # Sizes in binary fractions of a metre, so that no rounding of floats decides where a pixel ends.
    a, b = (int(n) for n in rng.integers(20, 60, 2))
    return [_pair(rng, a + 0.5, b + 0.5, gsd=0.75), _pair(rng, -2 * a - 0.5, b, gsd=1.25)]


def _in_training(train: Scene, test: Scene) -> Box | None:
    box = _shared(train, test)
    return None if box is None else _in_pixels_of(train, box)


def _swapped(train: Scene, test: Scene) -> Box | None:
    box = _reference(train, test)
    return None if box is None else (box[1], box[0], box[3], box[2])


def _from_the_south(train: Scene, test: Scene) -> Box | None:
    box = _reference(train, test)
    return None if box is None else (test.height - box[0] - box[2], *box[1:])


def _corners(train: Scene, test: Scene) -> Box | None:
    box = _reference(train, test)
    return None if box is None else (box[0], box[1], box[0] + box[2], box[1] + box[3])


def _unclipped(train: Scene, test: Scene) -> Box:
    a, b = (array_bounds(scene.height, scene.width, scene.transform) for scene in (train, test))
    west, south, east, north = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    gsd, left, top = test.transform.a, test.transform.c, test.transform.f
    row, col = floor((top - north) / gsd), floor((west - left) / gsd)
    return row, col, ceil((top - south) / gsd) - row, ceil((east - left) / gsd) - col


def _touching(train: Scene, test: Scene) -> Box | None:
    a, b = (array_bounds(scene.height, scene.width, scene.transform) for scene in (train, test))
    west, south, east, north = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return _in_pixels_of(test, (west, south, east, north)) if west <= east and south <= north else None


def _other_size(train: Scene, test: Scene) -> Box | None:
    box = _shared(train, test)
    if box is None:
        return None
    a, c = train.transform.a, test.transform
    return _in_pixels_of(_scene(c.c, c.f, test.height, test.width, a, "test"), box)


def _whole_pixels(train: Scene, test: Scene) -> Box | None:
    box = _shared(train, test)
    if box is None:
        return None
    window = from_bounds(*box, test.transform)
    return int(window.row_off), int(window.col_off), int(window.height), int(window.width)


ASSIGNMENT = Assignment(
    name="leak",
    function="shared_window",
    component="rasterio.windows.from_bounds on rsseglab.scenes.Scene.transform",
    reference=_reference,
    checks=(
        Check("scenes that overlap", 3, _overlapping),
        Check("scenes that only touch", 2, _neighbours),
        Check("a scene inside another", 2, _inside),
        Check("pixels of another size", 3, _other_pixels),
    ),
    mistakes=(
        Mistake("the window is in pixels of the training scene; it is asked for in those of the test scene",
                _in_training),
        Mistake("rows and columns are swapped: rows run with northing (y), columns with easting (x)", _swapped),
        Mistake(
            "rows are counted from the south; a north-up raster's first row is its northernmost, and its transform's "
            "e is negative",
            _from_the_south,
        ),
        Mistake("the last two numbers are the window's bottom and right; give its height and width", _corners),
        Mistake(
            "scenes that share an edge or a corner get a window without pixels; where nothing is shared, give None",
            _touching,
        ),
        Mistake(
            "scenes that lie apart get a window of negative size; where nothing is shared, give None", _unclipped
        ),
        Mistake(
            "metres are divided by the training scene's pixel size; the window is in pixels of the test scene",
            _other_size,
        ),
        Mistake(
            "test pixels that are shown in part are left out at an edge; they are seen in training too. Round the "
            "window outwards: floor of its start, ceiling of its end",
            _whole_pixels,
        ),
    ),
)  # fmt: skip
