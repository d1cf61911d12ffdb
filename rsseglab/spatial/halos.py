"""A band and rows of its neighbours as one tensor, without copying the band.

    memory:    before | band | after        rows of a channels-last map lie one after the other

Who computes a band that windows will be laid over computes it into the middle of a little more memory, its *room*. A
window is then the band and what lies around it; only the neighbours' few rows are copied there, each time it is asked
for, just before it is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

aten = torch.ops.aten


def _norm(*args: Any, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    _, _, _, running_mean, _, train, *_ = args
    if train:  # statistics of this band alone, which are results too
        return aten.native_batch_norm.default(*args)  # type: ignore[no-any-return]
    mean, invstd = running_mean.new_empty(0), running_mean.new_empty(0)
    aten.native_batch_norm.out(*args, out=out, save_mean=mean, save_invstd=invstd)
    return out, mean, invstd


def _pool(*args: Any, out: Tensor) -> tuple[Tensor, Tensor]:
    places = torch.empty(0, dtype=torch.long, device=out.device)
    aten.max_pool2d_with_indices.out(*args, out=out, indices=places)
    return out, places


#: Operations that can be told where their (first) result shall lie.
PLACED: dict[Callable[..., Any], Callable[..., Any]] = {
    aten.add.Tensor: aten.add.out,
    aten.cat.default: aten.cat.out,
    aten.max_pool2d_with_indices.default: _pool,
    aten.native_batch_norm.default: _norm,
    aten.relu.default: aten.relu.out,
    aten.upsample_nearest2d.default: aten.upsample_nearest2d.out,
}


class Room(NamedTuple):
    """A band with rows of memory before and after it."""

    shape: torch.Size
    dtype: torch.dtype
    before: int
    after: int

    def band(self, device: torch.device) -> Tensor:
        """Memory for the band in the middle of its room."""
        _, channels, rows, width = self.shape
        row = channels * width
        memory = torch.empty((self.before + rows + self.after) * row, dtype=self.dtype, device=device)
        # Kernels look at the stride of the batch too, though there is one sample.
        return memory.as_strided(self.shape, (rows * row, 1, row, channels), self.before * row)

    def __or__(self, other: Room | None) -> Room:
        if other is None:
            return self
        return self._replace(before=max(self.before, other.before), after=max(self.after, other.after))


def in_rows(x: Tensor) -> bool:
    """Whether rows of a map of one sample lie one after the other, and nothing between them."""
    return (
        x.dim() == 4
        and len(x) == 1
        and x.stride(2) == x.shape[1] * x.shape[3]
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def beside(pieces: Sequence[Tensor], own: int) -> Tensor:
    """Pieces of a map, from top to bottom, as one: around the one numbered ``own`` if it has room, else a copy of all.

    Only for an ``own`` in memory of its own, be it with room or without.
    """
    band = pieces[own]
    rows = [piece.shape[2] for piece in pieces]
    before, total, row = sum(rows[:own]), sum(rows), band.stride(2)
    start = band.storage_offset() - before * row
    there = band.untyped_storage().nbytes() // band.element_size()
    if not in_rows(band) or start < 0 or start + total * row > there:
        return torch.cat(list(pieces), 2)
    _, channels, _, width = band.shape
    window = band.as_strided((1, channels, total, width), (total * row, *band.stride()[1:]), start)
    at = 0
    for number, piece in enumerate(pieces):
        if number != own:
            window.narrow(2, at, rows[number]).copy_(piece)
        at += rows[number]
    return window
