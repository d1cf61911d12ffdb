"""Dropout whose mask does not depend on the number of tiles, and new tensors made beside a scene.

A pixel's coin is a hash of (seed, its index in the whole tensor), so each tile tosses its own coins and any
cut tosses the same. The seed comes from torch's default generator, so that ``manual_seed`` rules it and
``torch.utils.checkpoint`` replays it; over ranks, the first rank's seed is everyone's.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from rsseglab.spatial.cut import Axes, Shape, local_shape, unfolded, window_of
from rsseglab.spatial.exchange import all_reduce_
from rsseglab.spatial.layout import Layout
from rsseglab.spatial.lazy import LazyTensor, opaque
from rsseglab.spatial.rules.pointwise import elementwise
from rsseglab.spatial.tensor import SceneTensor, named, refusal, rule, written


def shared_seed(x: SceneTensor) -> int | Tensor:
    """A seed from the default generator, the first rank's on every rank; where ``x`` is lazy, drawn when it is read."""
    first = x.tiles[0]
    if isinstance(first, LazyTensor):
        return first.recorder.source(_draw, torch.empty((), dtype=torch.int64, device="meta"), torch.device("cpu"))
    seed = _draw().to(x.device)
    if x.layout.rank:
        seed.zero_()
    return int(all_reduce_(seed, x.layout, "the dropout seed").item())


def _draw() -> Tensor:
    return torch.randint(2**62, ())


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def uniform(index: Tensor, seed: int | Tensor) -> Tensor:
    """Numbers in [0, 1), one for each index: splitmix64 (Steele et al. 2014) of ``seed`` + index."""
    z = index * -7046029254386353131 + seed  # the golden ratio's 0x9E3779B97F4A7C15
    z = (z ^ _shift(z, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    z = (z ^ _shift(z, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return _shift(z ^ _shift(z, 31), 11).double() * 2.0**-53


def global_index(shape: Shape, axes: Axes, tile: int, device: torch.device) -> Tensor:
    """For each element of a tile its index in the whole tensor."""
    sizes, simple = unfolded(shape, axes)
    held = {a.dim: i for a, i in zip(simple, window_of(simple, tile), strict=True)}
    index = torch.zeros((), dtype=torch.int64, device=device)
    for dim, size in enumerate(sizes):
        along = torch.arange(*held.get(dim, (0, size)), device=device) * prod(sizes[dim + 1 :])
        index = index.unsqueeze(-1) + along
    return index.reshape(local_shape(shape, axes, tile))


@opaque
def _kept(seed: int | Tensor, p: float, shape: Shape, axes: Axes, tile: int, like: torch.dtype, device: Any) -> Tensor:
    """What a tile is multiplied by: 0 with probability p, else 1 / (1 - p)."""
    coins = uniform(global_index(shape, axes, tile, device), seed)
    return (coins >= p).to(like) / max(1 - p, 1e-38)


@rule(*named("dropout"))
def dropout(input: SceneTensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> SceneTensor:
    """Drop single values."""
    if not training or p == 0:
        return input
    seed, shape = shared_seed(input), tuple(input.shape)
    kept = [
        t * _kept(seed, p, shape, input.axes, k, t.dtype, t.device)
        for k, t in zip(input.layout.held, input.tiles, strict=True)
    ]
    if inplace:
        for tile, new in zip(input.tiles, kept, strict=True):
            tile.copy_(new)
        written(input)
        return input
    return input.like(kept)


@rule(*named("dropout1d", "dropout2d", "dropout3d", "feature_dropout"))
def feature_dropout(input: SceneTensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> SceneTensor:
    """Drop whole channels: one coin for each (sample, channel)."""
    if not training or p == 0:
        return input
    if any(a.dim < 2 for a in input.axes):
        raise refusal("dropout of channels", (input,), why="has its batch or channels cut")
    seed = shared_seed(input)
    shape = (*input.shape[:2], *[1] * (input.dim() - 2))
    coins = uniform(torch.arange(prod(shape), device=input.device), seed).reshape(shape)
    mask = (coins >= p).to(input.dtype) / max(1 - p, 1e-38)
    if inplace:
        return input.mul_(mask)  # type: ignore[return-value]
    return elementwise(torch.mul)(input, mask)  # type: ignore[no-any-return]


class _Alike(Tensor):
    """A small plain tensor beside a scene (drop-path's mask): random fills come from the first rank."""

    _scene_layout: Layout

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Fill on each rank, keep the first rank's."""
        with torch._C.DisableTorchFunctionSubclass():
            result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in ("bernoulli_", "uniform_", "normal_", "random_", "exponential_"):
            layout = args[0]._scene_layout
            plain = result.as_subclass(Tensor)
            if layout.rank:
                plain.zero_()
            return all_reduce_(plain, layout, func.__name__)
        return result


def _new(name: str) -> None:
    make = getattr(Tensor, name)

    @rule(make)
    def new(x: SceneTensor, *args: Any, **kwargs: Any) -> Tensor:
        plain = make(x.tiles[0], *args, **kwargs)
        if x.layout.mesh is None:
            return plain  # type: ignore[no-any-return]
        alike = plain.as_subclass(_Alike)
        alike._scene_layout = x.layout
        return alike  # type: ignore[no-any-return]


for _name in ("new_empty", "new_zeros", "new_ones", "new_full", "new_tensor"):
    _new(_name)
