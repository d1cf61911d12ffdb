"""Sums of products: linear, matmul, bmm, baddbmm, einsum.

Every contraction is an einsum. One cut operand leads. Where its cut labels stay in the result, the result
is cut there: operands that have the label are cut alike, the others (keys and values, weights) are made
whole. Where they are summed over, every worker sums what it holds, and the parts are added up to a plain
tensor.

    queries (n cut), keys (m cut): scores 'nd,md->nm' keep n cut and gather the keys
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rsseglab.spatial.cut import Axes, Axis
from rsseglab.spatial.exchange import reduce_sum
from rsseglab.spatial.layout import bounds
from rsseglab.spatial.rules.pointwise import elementwise
from rsseglab.spatial.tensor import SceneTensor, is_cut, join, named, refusal, relaid, rule, same_layout, window

Labels = Sequence[int]


def contract(
    function: Callable[..., Tensor],
    operands: Sequence[Any],
    labels: Sequence[Labels],
    result: Labels,
    name: str,
) -> Any:
    """Apply ``function``, a sum of products, tile by tile.

    Args:
        function: the stock call, of local operands.
        operands: cut and plain tensors; at least one is cut.
        labels: for each operand, the label of each dimension; one label, one index (a dimension of one row,
            where others have more, is broadcast).
        result: the labels of the result; the others are summed over.
        name: the operation, for error messages.
    """
    lead, own = _leader(operands, labels, result, name)
    lead = _along_shared(lead, own, operands, labels, result, name)
    sizes = dict.fromkeys(result, 1)
    for operand, its in zip(operands, labels, strict=True):
        for label, n in zip(its, operand.shape, strict=True):
            sizes[label] = max(n, sizes.get(label, 1))
    cut_labels = [own[a.dim] for a in lead.axes]
    locals_ = []
    for operand, its in zip(operands, labels, strict=True):
        there = {c for c in cut_labels if c in its and operand.shape[list(its).index(c)] == sizes[c]}
        axes = tuple(
            Axis(list(its).index(own[a.dim]), a.bounds, a.outer, a.inner) for a in lead.axes if own[a.dim] in there
        )
        locals_.append(_operand(operand, lead, axes, len(there) == len(set(cut_labels)), name))
    tiles = [function(*(local[k] for local in locals_)) for k in range(len(lead.tiles))]
    if all(c in result for c in cut_labels):
        axes = tuple(Axis(list(result).index(own[a.dim]), a.bounds, a.outer, a.inner) for a in lead.axes)
        return lead.like(tiles, [sizes[label] for label in result], axes)
    return reduce_sum(lead.layout, tiles, name)


def _along_shared(
    lead: SceneTensor, own: Labels, operands: Sequence[Any], labels: Sequence[Labels], result: Labels, name: str
) -> SceneTensor:
    """A grid of which another operand has one cut alone (attention along rows) is laid in bands along that one."""
    cuts = [own[a.dim] for a in lead.axes]
    if len(set(cuts)) < 2:
        return lead

    def has(its: Labels, operand: Any, label: int) -> bool:
        return label in its and operand.shape[list(its).index(label)] == lead.shape[list(own).index(label)]

    pairs = [(its, o) for its, o in zip(labels, operands, strict=True) if its is not own]
    counts = {c: sum(has(its, o, c) for its, o in pairs) for c in cuts}
    if all(len({has(its, o, c) for c in cuts}) == 1 for its, o in pairs):
        return lead
    shared = max((c for c in cuts if c in result), key=lambda c: counts[c])
    kept = next(a for a in lead.axes if own[a.dim] == shared)
    return relaid(lead, (Axis(kept.dim, bounds(kept.length, lead.layout.parts), kept.outer, kept.inner),), name)


def _leader(operands: Sequence[Any], labels: Sequence[Labels], result: Labels, name: str) -> tuple[SceneTensor, Labels]:
    """The cut operand whose cut the result follows: the largest with a label that stays, else the largest."""
    cut_ones = [(o, its) for o, its in zip(operands, labels, strict=True) if is_cut(o)]
    same_layout(operands, name)

    def stays(pair: tuple[Any, Labels]) -> int:
        return sum(pair[1][a.dim] in result for a in pair[0].axes)

    lead, its = max(cut_ones, key=lambda pair: (stays(pair) > 0, pair[0].numel()))
    if 0 < stays((lead, its)) < len(lead.axes):  # a grid, one of whose cuts is summed over
        kept = next(a for a in lead.axes if its[a.dim] in result)
        band = Axis(kept.dim, bounds(kept.length, lead.layout.parts), kept.outer, kept.inner)
        lead = relaid(lead, (band,), name)
    return lead, its


def _operand(operand: Any, lead: SceneTensor, axes: Axes, aligned: bool, name: str) -> list[Any]:
    """What each held tile needs of ``operand``: its own part, if it has all the cut labels, or all of it."""
    if axes and aligned:
        if is_cut(operand):
            return list(relaid(operand, axes, name).tiles)
        return [window(operand, axes, tile) for tile in lead.layout.held]
    whole = join(operand)
    if not axes:
        return [whole] * len(lead.tiles)
    raise refusal(name, (lead, operand), why="contracts a grid with an operand that has only one of its cuts")


@rule(*named("matmul", "__matmul__", "bmm", "mm"))
def matmul(a: Any, b: Any) -> Any:
    """Matrix product of the last two dimensions, the others broadcast."""
    if a.dim() < 2 or b.dim() < 2:
        raise refusal("matmul with a vector", (a, b))
    batch = max(a.dim(), b.dim()) - 2
    rows, inner, cols = batch, batch + 1, batch + 2
    labels = [
        [*range(batch - a.dim() + 2, batch), rows, inner],
        [*range(batch - b.dim() + 2, batch), inner, cols],
    ]
    return contract(torch.matmul, [a, b], labels, [*range(batch), rows, cols], "matmul")


@rule(*named("__rmatmul__"))
def rmatmul(a: Any, b: Any) -> Any:
    """``b @ a``."""
    return matmul(b, a)


@rule(*named("baddbmm"))
def baddbmm(input: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Any:
    """``beta input + alpha a b``."""
    product = matmul(a, b)
    add, mul = elementwise(torch.add), elementwise(torch.mul)
    if beta == 0:  # whatever is in input, NaN too, does not count
        return product * alpha if not is_cut(product) else mul(product, alpha)
    if not is_cut(product) and not is_cut(input):
        return beta * input + alpha * product
    return add(mul(product, alpha) if is_cut(product) else product * alpha, input * beta)


@rule(*named("linear"))
def linear(input: Any, weight: Tensor, bias: Tensor | None = None) -> Any:
    """Product with a plain weight (out, in); over a cut dimension, a sum over tiles."""
    if is_cut(weight) or is_cut(bias):
        raise refusal("linear", (input, weight, bias), why="takes plain weights")
    last = input.dim() - 1
    if all(a.dim != last for a in input.axes):
        shape = (*input.shape[:-1], weight.shape[0])
        return input.like([F.linear(t, weight, bias) for t in input.tiles], shape)
    y = contract(
        F.linear,
        [input, weight],
        [[*range(last), last], [last + 1, last]],
        [*range(last), last + 1],
        "linear",
    )
    return y if bias is None else (elementwise(torch.add)(y, bias) if is_cut(y) else y + bias)


@rule(*named("einsum"))
def einsum(equation: str, *operands: Any) -> Any:
    """Einstein's sum, with or without an ellipsis."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    ahead = [o.dim() - len(t.replace("...", "")) for o, t in zip(operands, terms, strict=True)]
    widest = max(ahead)

    def spelled(term: str, count: int) -> list[int]:
        """Letters as their codes; the dimensions of an ellipsis as negative numbers, aligned right."""
        before, dots, after = term.partition("...")
        return [*map(ord, before), *(range(-count, 0) if dots else ()), *map(ord, after)]

    labels = [spelled(t, n) for t, n in zip(terms, ahead, strict=True)]
    if "->" not in equation:
        letters = "".join(terms).replace("...", "")
        right = ("..." if "..." in left else "") + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    if any(len(set(its)) < len(its) for its in labels):
        raise refusal("einsum with a repeated label in one operand", operands)
    return contract(lambda *local: torch.einsum(equation, *local), operands, labels, spelled(right, widest), "einsum")
