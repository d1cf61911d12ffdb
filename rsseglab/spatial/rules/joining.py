"""Cat and stack.

Along an uncut dimension tile by tile. Along the cut dimension the largest operand stays where it lies, and
the others' rows go to the tiles whose share they fall in: a class token becomes the first tile's first row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rsseglab.spatial.cut import Axis, window_of
from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.rules.pointwise import local_to
from rsseglab.spatial.rules.shapes import unsqueeze
from rsseglab.spatial.tensor import SceneTensor, banded, fetch_windows, is_cut, named, relaid, rule, same_layout, wrap


@rule(*named("cat", "concat", "concatenate"))
def cat(tensors: Sequence[Any], dim: int = 0) -> SceneTensor:
    """Join tensors along a dimension; plain ones are cut as the largest cut one is."""
    lead = max((t for t in tensors if is_cut(t)), key=lambda t: t.numel())
    dim = wrap(dim, lead.dim())
    same_layout(tensors, "cat")
    for t in tensors:
        if t.dim() != lead.dim() or any(t.shape[d] != n for d, n in enumerate(lead.shape) if d != dim):
            raise SpatialError(f"cat: shapes {[list(o.shape) for o in tensors]} differ outside dimension {dim}.")
    if any(a.dim == dim for a in lead.axes):
        return _cat_cut(tensors, lead, dim)
    locals_ = [local_to(t, lead, lead.axes, "cat") for t in tensors]
    shape = (*lead.shape[:dim], sum(t.shape[dim] for t in tensors), *lead.shape[dim + 1 :])
    return lead.like([torch.cat(parts, dim) for parts in zip(*locals_, strict=True)], shape)


def _cat_cut(tensors: Sequence[Any], lead: SceneTensor, dim: int) -> SceneTensor:
    k = next(k for k, t in enumerate(tensors) if t is lead)
    if not all(a.simple for a in lead.axes if a.dim == dim) or sum(a.dim == dim for a in lead.axes) > 1:
        lead = banded(lead, dim, "cat")
    starts = [sum(t.shape[dim] for t in tensors[:i]) for i in range(len(tensors))]
    total = sum(t.shape[dim] for t in tensors)

    def grown(axis: Axis) -> Axis:
        inner = (b + starts[k] for b in axis.bounds[1:-1])
        return Axis(dim, (0, *inner, total)) if axis.dim == dim else axis

    axes = tuple(grown(a) for a in lead.axes)
    along = next(i for i, a in enumerate(axes) if a.dim == dim)
    parts = []
    for i, operand in enumerate(tensors):
        length = operand.shape[dim]
        requests = []
        for tile in range(lead.layout.parts):
            rect = list(window_of(axes, tile))
            low, high = (min(max(edge - starts[i], 0), length) for edge in rect[along])
            rect[along] = (low, high)
            requests.append(tuple(rect))
        if i == k:
            parts.append(fetch_windows(lead, requests, "cat"))
        elif is_cut(operand):
            own = tuple(Axis(dim, _fitted(a, length)) if a.dim == dim else a for a in lead.axes)
            parts.append(fetch_windows(relaid(operand, own, "cat"), requests, "cat"))
        else:
            parts.append([_rect(operand, axes, requests[t]) for t in lead.layout.held])
    shape = (*lead.shape[:dim], total, *lead.shape[dim + 1 :])
    return lead.like([torch.cat(local, dim) for local in zip(*parts, strict=True)], shape, axes)


def _fitted(axis: Axis, length: int) -> tuple[int, ...]:
    """Bounds of ``length`` in as many parts, at the same fractions."""
    return tuple(b * length // axis.length for b in axis.bounds)


def _rect(plain: Tensor, axes: Any, rect: Any) -> Tensor:
    for axis, (start, stop) in zip(axes, rect, strict=True):
        plain = plain.narrow(axis.dim, start, stop - start)
    return plain


@rule(*named("stack"))
def stack(tensors: Sequence[Any], dim: int = 0) -> SceneTensor:
    """Join tensors along a new dimension."""
    dim = dim % (tensors[0].dim() + 1)
    return cat([unsqueeze(t, dim) if is_cut(t) else t.unsqueeze(dim) for t in tensors], dim)
