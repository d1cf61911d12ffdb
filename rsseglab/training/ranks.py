"""The processes of a run: data groups beside each other, and in each a spatial group that shares every window.

Ranks are there already under ``torchrun``; else `launch` starts as many as the spatial group has on this machine.
Both ways a rank finds its place in the environment variables that ``torchrun`` sets.
"""

import os
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

from rsseglab.errors import UserError
from rsseglab.scenes.raster import Window
from rsseglab.spatial import Layout

TIMEOUT = timedelta(minutes=30)


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


def under_torchrun() -> bool:
    """Whether this process is a rank among others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


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
        dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=TIMEOUT)
    mesh = init_device_mesh(device_type, (world // grid.parts, grid.parts), mesh_dim_names=("data", "spatial"))
    everyone = init_device_mesh(device_type, (world,)) if world > grid.parts else None
    layout = Layout(grid.rows, grid.cols, mesh=mesh["spatial"], norm_mesh=everyone)
    return Ranks(layout, mesh["data"].get_local_rank(), world // grid.parts)


def launch(ranks: int, function: Callable[..., Any], *args: Any) -> Any:
    """Run a function on so many ranks of this machine; if one fails, the others are ended and its error is raised.

    Args:
        ranks: how many.
        function: importable by its name.
        *args: its arguments.

    Returns:
        What the function returns on the first rank.

    Raises:
        UserError: what a rank could say plainly.
    """
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    threads = max(1, torch.get_num_threads() // ranks)
    results = mp.get_context("spawn").SimpleQueue()
    try:
        mp.spawn(_rank, (ranks, port, threads, results, function, args), nprocs=ranks)
        return results.get()
    except mp.ProcessRaisedException as error:
        last = str(error).strip().splitlines()[-1]
        if last.startswith(("rsseglab.errors.UserError: ", "rsseglab.spatial.errors.SpatialError: ")):
            raise UserError(last.partition(": ")[2]) from None
        raise
    except mp.ProcessExitedException as error:
        raise UserError(f"a rank was ended from outside ({error}); it may have run out of memory.") from error


def _rank(
    rank: int, ranks: int, port: int, threads: int, results: Any, function: Callable[..., Any], args: Sequence[Any]
) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks), LOCAL_WORLD_SIZE=str(ranks),
        GROUP_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_RUN_ID="rsseglab",
    )  # fmt: skip
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
    torch.set_num_threads(threads)
    result = function(*args)
    if rank == 0:
        results.put(result)
    leave_ranks()


def leave_ranks() -> None:
    """Say goodbye once all are through."""
    if dist.is_initialized():
        dist.barrier()
        with suppress(RuntimeError):  # gloo may abort one that leaves while another still does
            dist.destroy_process_group()


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
