"""Ring attention (Liu et al. 2023, arXiv:2310.01889): keys and values pass from rank to rank, and are never gathered.

Each rank attends to one block of keys at a time; softmax over all keys follows from the log-sum-exp of the blocks,

    l = log sum_j exp(l_j),    y = sum_j exp(l_j - l) y_j

and the gradient of a block needs y and l of the whole alone. So a rank holds its own keys and one visiting block, where
gathering holds (and saves for the backward pass) the keys of all. While a block is worked on, the next is on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from rsseglab.spatial.cut import Shape, local_shape
from rsseglab.spatial.exchange import pass_on
from rsseglab.spatial.layout import Layout
from rsseglab.spatial.tensor import SceneTensor, is_cut

RING_BYTES = 2**25  # keys and values of the scene from which passing them round is worth its P - 1 rounds
_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def takes(query: Any, key: Any, value: Any, mask: Any) -> bool:
    """True where a ring is possible and pays: many keys, cut along tokens over ranks, and a kernel that gives l."""
    if mask is not None or not (is_cut(query) and is_cut(key) and is_cut(value)) or key.layout.mesh is None:
        return False
    tokens, alike = query.dim() - 2, {query.dtype, key.dtype, value.dtype}
    large = (key.numel() + value.numel()) * key.element_size() >= RING_BYTES
    return (
        large
        and key.layout.mesh.device_type == "cpu"
        and query.dim() in (3, 4)
        and not torch.is_autocast_enabled("cpu")
        and len(alike) == 1
        and key.axes == value.axes
        and key.shape == value.shape
        and key.shape[:-2] == query.shape[:-2]
        and all(a.dim == tokens for x in (query, key) for a in x.axes)
    )


def ring_attention(query: SceneTensor, key: SceneTensor, value: SceneTensor, scale: float | None) -> SceneTensor:
    """Attention of (B, heads, N, d) or (B, N, d), all cut along N; what ``takes`` says yes to."""
    shapes = [local_shape(key.shape, key.axes, tile) for tile in range(key.layout.parts)]
    q, k, v = query.tiles[0], key.tiles[0], value.tiles[0]
    y = _Ring.apply(query.layout, shapes, scale, q, k, v)
    return query.like([y])


def _heads(x: Tensor) -> Tensor:
    """The kernel knows (B, heads, N, d), with d contiguous."""
    x = x if x.dim() == 4 else x[:, None]
    return x if x.stride(-1) == 1 else x.contiguous()


def _before(layout: Layout, shapes: Sequence[Shape], step: int) -> Shape:
    """The shape of the block that comes after ``step``: the one that the rank before has now."""
    return shapes[(layout.rank - step - 1) % layout.parts]


def _next(
    layout: Layout, block: list[Tensor], shapes: Sequence[Shape], step: int, name: str
) -> tuple[list[Tensor], Callable[[], None]]:
    """Send the block on and take the next, which is there once the second of the results was called."""
    if step == layout.parts - 1:
        return [], lambda: None
    arriving = [t.new_empty(_before(layout, shapes, step)) for t in block]
    return arriving, pass_on(layout, block, arriving, name)


class _Ring(torch.autograd.Function):
    """Blocks go round once forward; backward again, and the gradients of each block go round with it and home."""

    @staticmethod
    def forward(
        ctx: Any, layout: Layout, shapes: Sequence[Shape], scale: float | None, q: Tensor, k: Tensor, v: Tensor
    ) -> Tensor:
        y: Tensor | None = None
        lse: Tensor | None = None

        def attend(block: list[Tensor]) -> None:
            nonlocal y, lse
            if not q.numel() or not block[0].numel():
                return
            part, its = _forward(_heads(q), _heads(block[0]), _heads(block[1]), 0.0, False, scale=scale)
            part = part.to(its.dtype)
            if y is None or lse is None:
                y, lse = part, its
                return
            both = torch.logaddexp(lse, its)
            y = y * (lse - both).exp()[..., None] + part * (its - both).exp()[..., None]
            lse = both

        block = [k.contiguous(), v.contiguous()]
        for step in range(layout.parts):
            arriving, wait = _next(layout, block, shapes, step, "scaled_dot_product_attention")
            attend(block)
            wait()
            block = arriving
        ctx.layout, ctx.shapes, ctx.scale = layout, shapes, scale
        out = torch.zeros_like(q) if y is None else y.to(q.dtype).reshape(q.shape)
        ctx.save_for_backward(q, k, v, out, *([] if lse is None else [lse]))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        layout, shapes = ctx.layout, ctx.shapes
        q, k, v, out, *lse = ctx.saved_tensors
        dq, block = torch.zeros_like(q), [k.contiguous(), v.contiguous()]
        grads = [torch.zeros_like(block[0]), torch.zeros_like(block[1])]
        name = "backward of scaled_dot_product_attention"
        for step in range(layout.parts):
            arriving, wait = _next(layout, block, shapes, step, name)
            if lse and block[0].numel():
                heads = [_heads(t) for t in (grad, q, *block, out)]
                found = _backward(*heads, lse[0], 0.0, False, scale=ctx.scale)
                dq += found[0].reshape(dq.shape)
                for total, part in zip(grads, found[1:], strict=True):
                    total += part.reshape(total.shape)
            wait()
            # With the last step each block's gradients are summed, and back where they belong.
            coming = [t.new_empty(_before(layout, shapes, step)) for t in grads]
            pass_on(layout, grads, coming, name)()
            block, grads = arriving, coming
        return None, None, None, dq, *grads
