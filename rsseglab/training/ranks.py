"""The processes of a run: data groups beside each other, and in each a spatial group that shares every window.

Ranks are there already under ``torchrun``; else `rsseglab.launch` starts as many as the spatial group has on this
machine. Both ways a rank finds its place in the environment variables that ``torchrun`` sets.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from rsseglab.errors import UserError
from rsseglab.launch import TIMEOUT, backend
from rsseglab.scenes.raster import Window
from rsseglab.spatial import Layout


@dataclass(frozen=True)
class Grid:
    """How many tiles a window is cut in: ``2`` for two bands of rows, ``2x3`` for two by three tiles.

    Attributes:
        rows: bands of rows.
        cols: bands of columns.
    """

    rows: int = 1
    cols: int = 1

    @classmethod
    def parse(cls, text: str) -> "Grid":
        """Read what a user writes.

        Raises:
            UserError: it is neither a number nor two of them.
        """
        try:
            rows, cols = (int(n) for n in (text.lower() if "x" in text.lower() else f"{text}x1").split("x"))
        except ValueError:
            rows = cols = 0
        if rows < 1 or cols < 1:
            raise UserError(f"'{text}' is no number of tiles; write 4 for bands of rows, or 2x2 for a grid.")
        return cls(rows, cols)

    @property
    def parts(self) -> int:
        """Number of tiles."""
        return self.rows * self.cols

    def __str__(self) -> str:
        return f"{self.rows}x{self.cols}"


@dataclass(frozen=True)
class Ranks:
    """This process's place in a run.

    Attributes:
        layout: the spatial group's tiles.
        group: number of its data group.
        groups: number of data groups.
    """

    layout: Layout
    group: int
    groups: int

    def part(self, height: int, width: int) -> Window:
        """The tile of this rank of a window of so many rows and columns."""
        return Window(*self.layout.windows(height, width)[self.layout.rank])


def join_ranks(grid: Grid, device_type: str) -> Ranks:
    """Meet the other ranks and find this one's place.

    Raises:
        UserError: the number of ranks is no multiple of the tiles.
    """
    world = int(os.environ["WORLD_SIZE"])
    if world % grid.parts:
        raise UserError(
            f"{world} ranks can't be shared out among spatial groups of {grid.parts}; start a multiple of "
            f"{grid.parts}, or choose another --spatial."
        )
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        dist.init_process_group(backend(device_type), timeout=TIMEOUT)
    mesh = init_device_mesh(device_type, (world // grid.parts, grid.parts), mesh_dim_names=("data", "spatial"))
    everyone = init_device_mesh(device_type, (world,)) if world > grid.parts else None
    layout = Layout(grid.rows, grid.cols, mesh=mesh["spatial"], norm_mesh=everyone)
    return Ranks(layout, mesh["data"].get_local_rank(), world // grid.parts)


def check_same(facts: Any, what: str) -> None:
    """All ranks go on, or all stop.

    Args:
        facts: what must be the same on every rank, such as names and sizes of files.
        what: its name in the error.

    Raises:
        UserError: on every rank, if one has other facts.
    """
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, facts)
    if other := [rank for rank, its in enumerate(everyone) if its != everyone[0]]:
        raise UserError(f"rank {other[0]} has other {what} than rank 0; give every rank the same.")
