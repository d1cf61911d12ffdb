"""How a scene is shared out: which tile holds which rows and columns.

A length L (rows or columns) is cut in P parts at ``bounds(L, P)``, a function of L and P alone, so
that two maps of one size are always cut alike and no rank ever asks another for its shapes. Networks
halve maps, so the bounds of L are twice the bounds of ceil(L / 2) for as long as a part keeps 64 rows:
a stride-2 layer then finds its rows where they are, and only the small, deep maps are cut off the grid. Where
parts need not be equal (bands of a streamed scene), they keep less, and deep maps are cut on the grid too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rsseglab.spatial.errors import SpatialError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

ROWS_KEPT = 64  # a part is cut on the grid of halvings down to this many rows


@lru_cache(maxsize=4096)
def bounds(length: int, parts: int, rows_kept: int = ROWS_KEPT) -> tuple[int, ...]:
    """Cut ``length`` in ``parts``: the ``parts + 1`` offsets, 0 first and ``length`` last.

    Parts differ by at most ``2 / rows_kept``; where there are more parts than rows, some are empty.
    """
    base, halvings = length, 0
    while base > rows_kept * parts:
        base, halvings = (base + 1) // 2, halvings + 1
    return (*(min(length, (part * base // parts) << halvings) for part in range(parts)), length)


@dataclass(frozen=True)
class Layout:
    """A grid of ``rows`` x ``cols`` tiles over a scene, and who holds them.

    Args:
        rows: number of bands of rows.
        cols: number of bands of columns; 1 cuts rows only.
        mesh: a 1-D ``DeviceMesh`` of ``rows * cols`` ranks, one tile a rank in row-major order
            (``mesh["spatial"]`` of a larger mesh). Without it all tiles live in this process.
        norm_mesh: the 1-D mesh over which batch norm in train mode gathers its statistics, where it is to
            be wider than ``mesh`` (data x spatial, flattened). By default statistics are of the scene.
        rows_kept: a part is cut on the grid of halvings down to this many rows: many for parts of one size, few for
            layers that find their rows where they are.

    Raises:
        SpatialError: if a number is below 1, or the mesh is not 1-D or not of ``rows * cols`` ranks.
    """

    rows: int
    cols: int = 1
    mesh: DeviceMesh | None = None
    norm_mesh: DeviceMesh | None = field(default=None, kw_only=True)
    rows_kept: int = field(default=ROWS_KEPT, kw_only=True)

    def __post_init__(self) -> None:
        for name, number in (("rows", self.rows), ("cols", self.cols)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise SpatialError(f"Layout: {name}={number!r} is not a positive integer; give at least 1.")
        if self.rows_kept < 2:
            raise SpatialError(f"Layout: rows_kept={self.rows_kept} would leave parts empty; keep at least 2 rows.")
        for name, mesh in (("mesh", self.mesh), ("norm_mesh", self.norm_mesh)):
            if mesh is not None and mesh.ndim != 1:
                raise SpatialError(
                    f'Layout: {name} has {mesh.ndim} dimensions; pass one of them, such as mesh["spatial"].'
                )
        if self.mesh is not None and self.mesh.size() != self.parts:
            raise SpatialError(
                f"Layout: {self.rows} x {self.cols} tiles need {self.parts} ranks, the mesh has "
                f"{self.mesh.size()}; make rows * cols equal to the mesh's size."
            )

    @property
    def parts(self) -> int:
        """The number of tiles, P."""
        return self.rows * self.cols

    @property
    def rank(self) -> int:
        """This process's tile; 0 where all tiles live here."""
        return 0 if self.mesh is None else int(self.mesh.get_local_rank())

    @property
    def held(self) -> tuple[int, ...]:
        """The tiles that this process holds."""
        return tuple(range(self.parts)) if self.mesh is None else (self.rank,)

    @property
    def group(self) -> Any:
        """The process group over which tiles meet; None in one process."""
        return None if self.mesh is None else self.mesh.get_group()

    def bounds(self, length: int, parts: int) -> tuple[int, ...]:
        """Where a length is cut in parts; see `bounds`."""
        return bounds(length, parts, self.rows_kept)

    def windows(self, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """The window of each tile of a ``height`` x ``width`` map: (row, col, height, width), row-major.

        Raises:
            SpatialError: if there are more bands than rows or columns.
        """
        for axis, parts, size in (("rows", self.rows, height), ("columns", self.cols, width)):
            if parts > size:
                raise SpatialError(
                    f"Layout: {size} {axis} can't be cut in {parts}; use at most {size} bands of {axis}."
                )
        ys, xs = self.bounds(height, self.rows), self.bounds(width, self.cols)
        return [
            (ys[i], xs[j], ys[i + 1] - ys[i], xs[j + 1] - xs[j]) for i in range(self.rows) for j in range(self.cols)
        ]
