"""Losses over the scene: each tile sums its own share, and the mean divides by the scene's count.

cross_entropy, mean:  sum_i w[y_i] l_i / sum_i w[y_i]   over the positions i that are not ignored
"""

from __future__ import annotations

from inspect import signature
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from rsseglab.spatial.cut import moved
from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.exchange import reduce_sum
from rsseglab.spatial.rules.pointwise import elementwise, local_to
from rsseglab.spatial.rules.reductions import mean, sum_
from rsseglab.spatial.tensor import SceneTensor, is_cut, named, refusal, rule
from rsseglab.spatial.windows import connected


def _reduction(size_average: bool | None, reduce: bool | None, reduction: str) -> str:
    if size_average is not None or reduce is not None:
        return str(F._Reduction.legacy_get_string(size_average, reduce))  # type: ignore[attr-defined]
    return reduction


@rule(*named("cross_entropy"))
def cross_entropy(
    input: Any,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """Cross entropy of (B, C, ...) scores with class indices (B, ...) or probabilities (B, C, ...)."""
    x = _scores(input, "cross_entropy")
    options = {"weight": weight, "ignore_index": ignore_index, "label_smoothing": label_smoothing}
    return _classified(F.cross_entropy, x, target, options, _reduction(size_average, reduce, reduction))


@rule(*named("nll_loss"))
def nll_loss(
    input: Any,
    target: Tensor,
    weight: Tensor | None = None,
    size_average: bool | None = None,
    ignore_index: int = -100,
    reduce: bool | None = None,
    reduction: str = "mean",
) -> Any:
    """Negative log likelihood of (B, C, ...) log-probabilities."""
    x = _scores(input, "nll_loss")
    options = {"weight": weight, "ignore_index": ignore_index}
    return _classified(F.nll_loss, x, target, options, _reduction(size_average, reduce, reduction))


def _scores(x: Any, name: str) -> SceneTensor:
    if not is_cut(x):
        raise refusal(name, (x,), why="has a cut target but plain scores; join the target")
    if any(a.dim == 1 for a in x.axes):
        raise refusal(name, (x,), why="needs its classes (dimension 1) uncut")
    return x


def _classified(function: Any, x: SceneTensor, target: Tensor, options: dict[str, Any], reduction: str) -> Any:
    soft = target.is_floating_point()
    expected = tuple(x.shape) if soft else (x.shape[0], *x.shape[2:])
    if tuple(target.shape) != expected:
        raise SpatialError(
            f"{function.__name__}: scores {list(x.shape)} need a target {list(expected)}, got {list(target.shape)}."
        )
    axes = x.axes if soft else moved(x.axes, {d: max(d - 1, 0) for d in range(x.dim())})
    targets = local_to(target, x, axes, function.__name__)
    if reduction == "none":
        shape = (x.shape[0], *x.shape[2:])
        out_axes = moved(x.axes, {d: max(d - 1, 0) for d in range(x.dim())})
        tiles = [
            function(s, t, reduction="none", **options)
            if s.numel()
            else connected(t.shape if not soft else (s.shape[0], *s.shape[2:]), s)
            for s, t in zip(x.tiles, targets, strict=True)
        ]
        return x.like(tiles, shape, out_axes)
    sums = [
        function(s, t, reduction="sum", **options) if s.numel() else 0 * s.sum()
        for s, t in zip(x.tiles, targets, strict=True)
    ]
    total = reduce_sum(x.layout, sums, function.__name__)
    if reduction == "sum":
        return total
    if soft:
        return total / (x.numel() // x.shape[1])
    return total / reduce_sum(x.layout, [_counted(t, x, options) for t in targets], function.__name__)


def _counted(target: Tensor, x: SceneTensor, options: dict[str, Any]) -> Any:
    """The sum of the weights of a tile's positions that are not ignored."""
    valid = target != options["ignore_index"]
    if options["weight"] is None:
        return valid.sum().to(x.dtype)
    return (options["weight"][target.masked_fill(~valid, 0)] * valid).sum()


def _pointwise_loss(name: str) -> None:
    """A loss that compares position by position, then sums or averages over the scene."""
    stock = getattr(F, name)
    options = signature(stock)
    compare = elementwise(stock)

    @rule(stock)
    def loss(*args: Any, **kwargs: Any) -> Any:
        given = dict(options.bind(*args, **kwargs).arguments)
        input, target = given.pop("input"), given.pop("target")
        how = _reduction(given.pop("size_average", None), given.pop("reduce", None), given.pop("reduction", "mean"))
        if tuple(input.shape) != tuple(target.shape):
            raise SpatialError(f"{name}: shapes {list(input.shape)} and {list(target.shape)} differ.")
        each = compare(input, target, reduction="none", **{k: v for k, v in given.items() if v is not None})
        return each if how == "none" else (sum_(each) if how == "sum" else mean(each))


for _name in (
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy",
    "mse_loss",
    "l1_loss",
    "smooth_l1_loss",
    "huber_loss",
):
    _pointwise_loss(_name)


@rule(*named("one_hot"))
def one_hot(tensor: SceneTensor, num_classes: int = -1) -> SceneTensor:
    """Class indices (...) to indicators (..., classes)."""
    if num_classes < 0:
        raise refusal("one_hot without num_classes", (tensor,), why="would ask all tiles for their largest: give it")
    return tensor.like([F.one_hot(t, num_classes) for t in tensor.tiles], (*tensor.shape, num_classes))
