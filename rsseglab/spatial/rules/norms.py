"""Batch, group, instance and layer norm over the whole scene.

    mean = sum x / n,   var = sum (x - mean)^2 / n,   y = (x - mean) / sqrt(var + eps) * weight + bias

Each tile gives its own mean and sum of squares *about that mean*; they are merged as Chan et al. (1979) do,
so that raw digital numbers of 10000 lose no digits (E[x^2] - E[x]^2 would lose all):

    mean = sum n_t mean_t / n,   M2 = sum M2_t + n_t (mean_t - mean)^2

The backward pass needs two sums over the scene, of dy and of dy xhat:

    dx = weight / sigma (dy - mean(dy) - xhat mean(dy xhat))
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.exchange import all_reduce_, memory_format
from rsseglab.spatial.layout import Layout
from rsseglab.spatial.lazy import everywhere, opaque
from rsseglab.spatial.rules.pointwise import elementwise
from rsseglab.spatial.tensor import SceneTensor, is_cut, named, refusal, rule
from rsseglab.spatial.windows import samplewise


def merged_moments(
    layout: Layout, tiles: Sequence[Tensor], dims: tuple[int, ...], count: int, name: str, mesh: Any = None
) -> tuple[Tensor, Tensor, int]:
    """Mean and biased variance over ``dims`` of all tiles, in at least float32, and the number of values.

    Over ranks in two small reductions: means weighed by count first, then squares about the merged mean.
    ``count`` is the scene's number of values, which every rank knows; only a ``mesh`` of several scenes,
    which may differ in size, has to ask for it.
    """
    wide = torch.promote_types(tiles[0].dtype, torch.float32)
    shape = [1 if d in dims else n for d, n in enumerate(tiles[0].shape)]
    total = torch.zeros(shape, dtype=_sums_in(tiles[0]), device=tiles[0].device)
    moments = []
    for tile in tiles:
        n = prod(tile.shape[d] for d in dims)
        if n:
            mean, var = _moments(tile.to(wide), dims)
            moments.append((n, mean, var * n))
            total = total + n * mean
    if mesh is not None:
        held = torch.tensor(float(sum(n for n, _, _ in moments)), dtype=total.dtype, device=total.device)
        count = int(all_reduce_(held, layout, name, mesh).item())
    all_reduce_(everywhere(total), layout, name, mesh)
    mean_all = total / count
    squares = torch.zeros_like(total)
    for n, mean, m2 in moments:
        squares = squares + m2 + n * (mean - mean_all) ** 2
    all_reduce_(squares, layout, name, mesh)
    return mean_all.to(wide), (squares / count).to(wide), count


def _sums_in(tile: Tensor) -> torch.dtype:
    """Sums of tiles are taken in float64, where the device has it."""
    return torch.float32 if tile.device.type == "mps" else torch.float64


@opaque
def _moments(tile: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of one tile; per channel by batch norm's own kernel, which is the faster."""
    if dims == (0, *range(2, tile.dim())) and not tile.is_meta:
        shape = (1, -1, *[1] * (tile.dim() - 2))
        mean, var = torch.ops.aten.batch_norm_update_stats(tile, None, None, 0.0)
        mean, var = mean.view(shape), var.view(shape)
    else:
        var, mean = torch.var_mean(tile, dims, correction=0, keepdim=True)
    if tile.dtype == torch.float32 and tile.device.type == "cpu" and bool((mean.abs() > 8 * var.sqrt()).any()):
        # Raw numbers far from zero: the mean's own rounding would show beside so small a spread.
        mean = mean.double() + (tile - mean).mean(dims, keepdim=True, dtype=torch.float64)
    return mean, var


# -------------------------------------------------------------------------------------------- batch norm


class _BatchNorm(torch.autograd.Function):
    """Batch norm with the scene's statistics, on the fused kernels of torch."""

    @staticmethod
    def forward(
        ctx: Any,
        layout: Layout,
        mesh: Any,
        mean: Tensor,
        var: Tensor,
        count: int,
        eps: float,
        weight: Tensor | None,
        bias: Tensor | None,
        *tiles: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.layout, ctx.mesh, ctx.count, ctx.eps = layout, mesh, count, eps
        ctx.has_bias = bias is not None
        ctx.save_for_backward(mean, var, *([weight] if weight is not None else []), *tiles)
        ctx.has_weight = weight is not None
        return tuple(_eval_norm(t, mean, var, weight, bias, eps) for t in tiles)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        mean, var, *rest = ctx.saved_tensors
        weight, tiles = (rest[0], rest[1:]) if ctx.has_weight else (None, rest)
        invstd = torch.rsqrt(var + ctx.eps)
        sum_dy, sum_dy_xhat = torch.zeros_like(mean), torch.zeros_like(mean)
        for tile, grad in zip(tiles, grads, strict=True):
            if tile.numel():
                dw, db = _sums(grad, tile, mean, var, ctx.eps)
                sum_dy = sum_dy + db
                sum_dy_xhat = sum_dy_xhat + dw
        grad_weight = sum_dy_xhat.to(weight.dtype) if weight is not None else None
        grad_bias = sum_dy.to(mean.dtype) if ctx.has_bias else None
        both = all_reduce_(
            everywhere(torch.stack([sum_dy, sum_dy_xhat])), ctx.layout, "backward of batch_norm", ctx.mesh
        )
        k0, k1 = both / ctx.count
        # dx = s dy - s k0 - s k1 (x - mean) invstd with s = weight invstd: a batch norm of x, plus s dy
        s = invstd if weight is None else invstd * weight
        dx = []
        for tile, grad in zip(tiles, grads, strict=True):
            if not tile.numel():
                dx.append(torch.zeros_like(tile))
                continue
            back = _eval_norm(tile, mean, var, -s * k1, -s * k0, ctx.eps)
            dx.append(back.addcmul_(grad, s.view(-1, *[1] * (grad.dim() - 2)).to(grad.dtype)))
        return (None,) * 6 + (grad_weight, grad_bias, *dx)


@opaque
def _eval_norm(x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    if not x.numel():
        return torch.zeros_like(x)
    weight, bias = (p if p is None else p.to(mean.dtype) for p in (weight, bias))
    y: Tensor = torch.native_batch_norm(_dense(x), weight, bias, mean, var, False, 0.0, eps)[0]
    return y


def _dense(x: Tensor, like: Tensor | None = None) -> Tensor:
    """The same values with the strides that the memory format of ``like`` has, to the last.

    Where a dimension is of one row its stride means nothing, and ``contiguous`` leaves it be; the kernels of torch 2.15
    tell the format from it all the same, and read a tensor by another's.
    """
    form = memory_format(x if like is None else like)
    if x.stride() == torch.empty(x.shape, device="meta", memory_format=form).stride():
        return x
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=form).copy_(x)


@opaque
def _sums(grad: Tensor, x: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Sums of dy xhat and of dy over a tile, for each channel."""
    ones, nothing = torch.ones_like(mean), mean.new_empty(0)
    _, dw, db = torch.ops.aten.native_batch_norm_backward(
        _dense(grad, x), _dense(x), ones, mean, var, nothing, nothing, False, eps, [False, True, True]
    )
    return dw, db


def _by_running(x: Tensor, mean: Any, var: Any, weight: Any, bias: Any, eps: float) -> Tensor:
    """Stock batch norm in eval mode; by hand where a dimension of one row would mislead its backward (``_dense``)."""
    if x.numel() and 1 not in x.shape[2:]:
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)
    if mean is None or var is None:
        raise SpatialError("batch_norm: eval mode needs running statistics; train with them, or use train mode.")
    shape = (-1, *[1] * (x.dim() - 2))
    factor = torch.rsqrt(var + eps) if weight is None else torch.rsqrt(var + eps) * weight
    shift = -mean * factor if bias is None else bias - mean * factor
    y: Tensor = x * factor.view(shape).to(x.dtype) + shift.view(shape).to(x.dtype)
    return y


@rule(F.batch_norm)
def batch_norm(
    input: SceneTensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> SceneTensor:
    """Batch norm; in train mode over the scene, and over ``layout.norm_mesh`` where one is given."""
    if any(a.dim == 1 for a in input.axes):
        raise refusal("batch_norm", (input,), why="normalises channels, and here they are cut")
    if not training:
        return input.map(lambda t: _by_running(t, running_mean, running_var, weight, bias, eps))
    layout = input.layout
    mesh = layout.norm_mesh or layout.mesh
    if layout.parts == 1 and mesh is None:
        return input.map(lambda t: F.batch_norm(t, running_mean, running_var, weight, bias, True, momentum, eps))
    dims = tuple(d for d in range(input.dim()) if d != 1)
    if input.numel() == input.shape[1]:
        raise SpatialError(
            f"batch_norm: expected more than 1 value per channel when training, got {list(input.shape)}."
        )
    with torch.no_grad():
        count = input.numel() // input.shape[1]
        mean, var, n = merged_moments(layout, input.tiles, dims, count, "batch_norm", layout.norm_mesh)
        mean, var = mean.flatten(), var.flatten()
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * (n / (n - 1))).to(running_var.dtype), momentum)
    tiles = _BatchNorm.apply(layout, mesh, mean, var, n, eps, weight, bias, *input.tiles)
    return input.like(tiles)


_stock_sync_forward = nn.SyncBatchNorm.forward


def _sync_forward(self: nn.SyncBatchNorm, input: Tensor) -> Tensor:
    """``nn.SyncBatchNorm`` on a cut scene is batch norm: over the scene, or over ``layout.norm_mesh``."""
    normalise = nn.modules.batchnorm._BatchNorm.forward if is_cut(input) else _stock_sync_forward
    return normalise(self, input)


# The one method of torch that the engine has to replace: over ranks it calls an autograd.Function, and those pass
# __torch_function__ by. A plain tensor gets the stock method.
nn.SyncBatchNorm.forward = _sync_forward  # type: ignore[method-assign]


# ----------------------------------------------------------------------------- group, instance, layer norm


class _Standardise(torch.autograd.Function):
    """(x - mean) / sigma over ``dims`` of all tiles; saves the result, as dx is a function of it alone."""

    @staticmethod
    def forward(
        ctx: Any, layout: Layout, dims: tuple[int, ...], count: int, eps: float, name: str, *tiles: Tensor
    ) -> tuple[Tensor, ...]:
        mean, var, n = merged_moments(layout, tiles, dims, count, name)
        invstd = torch.rsqrt(var + eps)
        xhat = tuple(((t.to(mean.dtype) - mean) * invstd).to(t.dtype) for t in tiles)
        ctx.layout, ctx.dims, ctx.count, ctx.name = layout, dims, n, name
        ctx.save_for_backward(invstd, *xhat)
        return xhat

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        invstd, *xhat = ctx.saved_tensors
        sums = torch.zeros(2, *invstd.shape, dtype=invstd.dtype, device=invstd.device)
        for x, dy in zip(xhat, grads, strict=True):
            its = [each.sum(ctx.dims, keepdim=True, dtype=invstd.dtype) for each in (dy, dy * x)]
            sums = sums + torch.stack(its)
        k0, k1 = all_reduce_(everywhere(sums), ctx.layout, f"backward of {ctx.name}") / ctx.count
        dx = [((dy - k0 - x * k1) * invstd).to(dy.dtype) for x, dy in zip(xhat, grads, strict=True)]
        return (None,) * 5 + tuple(dx)


def _grouped(x: SceneTensor, groups: int, eps: float, name: str) -> SceneTensor:
    """Standardise (B, C, ...) over each group of channels and all of space."""
    if any(a.dim < 2 for a in x.axes):
        raise refusal(name, (x,), why="normalises channels and space, and here batch or channels are cut")
    batch, channels = x.shape[:2]
    views = [t.reshape(batch, groups, channels // groups, -1) for t in x.tiles]
    count = x.numel() // (batch * groups)
    xhat = _Standardise.apply(x.layout, (2, 3), count, eps, name, *views)
    return x.like([y.reshape(t.shape) for y, t in zip(xhat, x.tiles, strict=True)])


def _affine(x: SceneTensor, weight: Tensor | None, bias: Tensor | None) -> SceneTensor:
    """Per-channel scale and shift."""
    shape = (-1, *[1] * (x.dim() - 2))
    if weight is not None:
        x = x.map(lambda t: t * weight.reshape(shape))
    if bias is not None:
        x = x.map(lambda t: t + bias.reshape(shape))
    return x


@rule(*named("group_norm"))
@samplewise(F.group_norm)
def group_norm(
    input: SceneTensor,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> SceneTensor:
    """Group norm over the whole scene."""
    return _affine(_grouped(input, num_groups, eps, "group_norm"), weight, bias)


@rule(F.instance_norm)
def instance_norm(
    input: SceneTensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> SceneTensor:
    """Instance norm over the whole scene: group norm with a group a channel."""
    if not use_input_stats:
        return batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
    if running_mean is not None and running_var is not None:
        with torch.no_grad():
            batch, channels = input.shape[:2]
            views = [t.reshape(batch, channels, -1) for t in input.tiles]
            count = input.numel() // (batch * channels)
            mean, var, n = merged_moments(input.layout, views, (2,), count, "instance_norm")
            running_mean.lerp_(mean.mean((0, 2)).to(running_mean.dtype), momentum)
            running_var.lerp_((var.mean((0, 2)) * (n / (n - 1))).to(running_var.dtype), momentum)
    return _affine(_grouped(input, input.shape[1], eps, "instance_norm"), weight, bias)


@rule(*named("layer_norm"))
def layer_norm(
    input: SceneTensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> SceneTensor:
    """Layer norm over trailing dimensions; local unless a cut lies in them."""
    first = input.dim() - len(normalized_shape)
    if all(a.dim < first for a in input.axes):
        return input.map(lambda t: F.layer_norm(t, tuple(normalized_shape), weight, bias, eps))
    if any(a.dim < first for a in input.axes):
        raise refusal("layer_norm", (input,), why="normalises over one of two cut dimensions")
    dims = tuple(range(first, input.dim()))
    count = prod(normalized_shape)
    xhat = input.like(_Standardise.apply(input.layout, dims, count, eps, "layer_norm", *input.tiles))
    if weight is not None:
        xhat = elementwise(torch.mul)(xhat, weight)
    return xhat if bias is None else elementwise(torch.add)(xhat, bias)


@rule(*named("rms_norm"))
def rms_norm(
    input: SceneTensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> SceneTensor:
    """Root-mean-square norm over uncut trailing dimensions."""
    if any(a.dim >= input.dim() - len(normalized_shape) for a in input.axes):
        raise refusal("rms_norm", (input,), why="normalises over a cut dimension")
    return input.map(lambda t: F.rms_norm(t, tuple(normalized_shape), weight, eps))
