"""Training over ranks: gradients of the one replicated loss, and the same scene on every rank of a group.

Each rank computes the same loss; its gradient of a weight is P times the share that its own tile
contributes (see the convention in ``exchange``), so that the mean over the spatial group is the gradient of
one process. DDP, which takes means, does the same over data x spatial.

A spatial group must see one scene: ``SceneSampler`` deals scenes to the data groups, ``augmentation`` draws a
sample's random numbers from its index and never from the rank, and ``read_scene`` reads each rank's window.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from rsseglab.spatial.cut import map_axes
from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.exchange import agree, all_reduce_
from rsseglab.spatial.layout import Layout
from rsseglab.spatial.tensor import SceneTensor, from_tile

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def sync_gradients(module: nn.Module, layout: Layout) -> None:
    """Make every parameter's gradient that of one process; call after ``backward``.

    The ranks' shares are summed in one collective a dtype. A parameter that only some ranks used (a tile was
    empty) counts as zero on the others; one that none used keeps ``grad is None``. In one process there is
    nothing to do.

    Args:
        module: the model, the same on every rank.
        layout: the layout of the scene that the loss was computed on.

    Raises:
        SpatialError: on every rank, if they disagree on which parameters require gradients.
    """
    if layout.mesh is None:
        return
    parameters = list(module.parameters())
    flags = [[int(p.requires_grad), int(p.requires_grad and p.grad is not None)] for p in parameters]
    facts = agree(layout, [flag for pair in flags for flag in pair], "sync_gradients")
    if any(row[::2] != facts[0][::2] for row in facts):
        raise SpatialError(
            "sync_gradients: ranks disagree on which parameters are trained; set requires_grad alike on every rank."
        )
    shared = [p for k, p in enumerate(parameters) if any(row[2 * k + 1] for row in facts)]
    for dtype in sorted({p.dtype for p in shared}, key=str):
        group = [p for p in shared if p.dtype == dtype]
        for p in group:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.reshape(-1) for p in group if p.grad is not None])
        all_reduce_(flat, layout, "sync_gradients").div_(layout.parts)
        for p, grad in zip(group, flat.split([p.numel() for p in group]), strict=True):
            assert p.grad is not None
            p.grad.copy_(grad.view_as(p))


class SceneSampler(Sampler[int]):
    """Deals scenes to data groups: every rank of a spatial group draws the same index.

    Args:
        scenes: the number of scenes.
        data_mesh: the 1-D mesh over data groups, ``mesh["data"]``; None for a single group.
        shuffle: shuffle anew each epoch (``set_epoch``), by ``seed`` and epoch alone.
        seed: the run's seed, the same on every rank.

    Raises:
        SpatialError: if there are fewer scenes than data groups, or the mesh is not 1-D.
    """

    def __init__(self, scenes: int, data_mesh: DeviceMesh | None = None, shuffle: bool = True, seed: int = 0) -> None:
        if data_mesh is not None and data_mesh.ndim != 1:
            raise SpatialError(f'SceneSampler: the mesh has {data_mesh.ndim} dimensions; pass mesh["data"].')
        self.groups = 1 if data_mesh is None else data_mesh.size()
        self.group = 0 if data_mesh is None else data_mesh.get_local_rank()
        if scenes < self.groups:
            raise SpatialError(
                f"SceneSampler: {scenes} scenes can't be dealt to {self.groups} data groups; use at most {scenes}."
            )
        self.scenes, self.shuffle, self.seed, self.epoch = scenes, shuffle, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is drawn next."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Scenes a group sees in an epoch; what does not divide is left out, as all must step alike."""
        return self.scenes // self.groups

    def __iter__(self) -> Iterator[int]:
        """Indices of this group's scenes."""
        generator = _generator("order", self.epoch, self.seed)
        order = torch.randperm(self.scenes, generator=generator) if self.shuffle else torch.arange(self.scenes)
        return iter(order[self.group : len(self) * self.groups : self.groups].tolist())


def augmentation(index: int, epoch: int = 0, seed: int = 0) -> torch.Generator:
    """The generator of a sample's augmentation: a function of the sample, the epoch and the run's seed."""
    return _generator("sample", index, epoch, seed)


def _generator(*key: str | int) -> torch.Generator:
    """A generator of its own for each key; no sum of numbers does, as (1, 0) and (0, 1) may then meet."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def read_scene(read: Callable[[int, int, int, int], Tensor], layout: Layout, height: int, width: int) -> SceneTensor:
    """Read a scene so that each rank touches only its own window; without a mesh, all windows in turn.

    Args:
        read: ``read(row, col, height, width)`` gives a window, (B, C, h, w) or (B, h, w).
        layout: the tiles.
        height: rows of the scene, px.
        width: columns of the scene, px.

    Raises:
        SpatialError: if a window is not of the size that was asked for, or windows are not of one kind.
    """
    windows = layout.windows(height, width)
    tiles = [read(*windows[tile]) for tile in layout.held]
    first = tiles[0]
    if len(tiles) == 1:
        return from_tile(first, layout, height, width)
    for tile, (row, col, rows, cols) in zip(tiles, windows, strict=True):
        if tile.dim() not in (3, 4) or tile.dtype != first.dtype or tile.shape != (*first.shape[:-2], rows, cols):
            raise SpatialError(
                f"read_scene: the window of {rows} x {cols} px at row {row}, column {col} was read as "
                f"{list(tile.shape)}, {tile.dtype}; read (B, C, h, w) or (B, h, w), each window alike."
            )
    axes = map_axes(layout, height, width, (first.dim() - 2, first.dim() - 1))
    return SceneTensor(tiles, layout, (*first.shape[:-2], height, width), axes)
