"""Operations that look at one position at a time: tile by tile, after bringing all operands to one cut.

Operands broadcast as in torch. A plain tensor that is as large as the scene along a cut dimension (a
position map, a mask) is cut on the fly; a cut operand that has a single row where the other has many is
first made whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from rsseglab.spatial.cut import Axes, moved
from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.tensor import (
    METADATA,
    RULES,
    SceneTensor,
    getter,
    is_cut,
    join,
    named,
    refusal,
    relaid,
    rule,
    same_layout,
    view_rule,
    window,
    written,
)

ELEMENTWISE = """
    abs acos acosh add addcdiv addcmul asin asinh atan atan2 atanh bitwise_and bitwise_not bitwise_or
    bitwise_xor ceil celu clamp clamp_max clamp_min clip copysign cos cosh deg2rad div divide elu eq erf
    erfc erfinv exp exp2 expit expm1 fix float_power floor floor_divide fmax fmin fmod frac ge gelu
    greater greater_equal gt hardshrink hardsigmoid hardswish hardtanh heaviside hypot isclose isfinite
    isinf isnan isneginf isposinf ldexp le leaky_relu lerp less less_equal lgamma log log10 log1p log2
    logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit logsigmoid lt masked_fill
    maximum minimum mish mul multiply nan_to_num ne neg negative nextafter not_equal positive pow prelu
    rad2deg reciprocal relu relu6 remainder round rsqrt rsub selu sgn sigmoid sign signbit silu sin sinc
    sinh softplus softshrink softsign sqrt square sub subtract tan tanh tanhshrink threshold true_divide
    trunc where xlogy __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__
    __floordiv__ __rfloordiv__ __mod__ __rmod__ __pow__ __rpow__ __neg__ __pos__ __abs__ __invert__
    __and__ __rand__ __or__ __ror__ __xor__ __rxor__ __eq__ __ne__ __lt__ __le__ __gt__ __ge__ __rdiv__
    __div__ float double half bfloat16 int long short bool byte char type cpu cuda clone
    detach contiguous zeros_like ones_like full_like empty_like alias requires_grad_ pin_memory conj
    resolve_conj
"""
INPLACE = """
    abs_ add_ addcdiv_ addcmul_ bitwise_and_ bitwise_or_ bitwise_xor_ bitwise_not_ ceil_ celu_ clamp_
    clamp_max_ clamp_min_ clip_ copy_ cos_ div_ divide_ elu_ erf_ exp_ fill_ floor_ floor_divide_ fmod_
    hardsigmoid_ hardswish_ hardtanh_ leaky_relu_ lerp_ log_ log1p_ logical_and_ logical_not_
    logical_or_ masked_fill_ mul_ multiply_ nan_to_num_ neg_ pow_ reciprocal_ relu_ relu6_ remainder_
    round_ rsqrt_ selu_ sigmoid_ silu_ sin_ softplus_ sqrt_ square_ sub_ subtract_ tanh_ threshold_
    trunc_ true_divide_ zero_ detach_ __iadd__ __isub__ __imul__ __itruediv__ __ifloordiv__ __ipow__
    __iand__ __ior__ __ixor__ __imod__
"""


def aligned(
    operands: Sequence[Any], name: str
) -> tuple[SceneTensor, Axes, tuple[int, ...], list[Callable[[int], Any]]]:
    """Bring tensors that broadcast together to one cut.

    Returns:
        The leading cut operand, its axes in the result's dimensions, the result's shape, and for each operand
        a function from the index of a held tile to what the operand contributes there.
    """
    shape = torch.broadcast_shapes(*(o.shape for o in operands if isinstance(o, Tensor)))
    same_layout(operands, name)
    cut_ones = [o for o in operands if is_cut(o)]

    def follows(o: Any) -> bool:
        """True if the result can be cut as ``o`` is."""
        return all(o.shape[a.dim] == shape[a.dim + len(shape) - o.dim()] for a in o.axes)

    leaders = [o for o in cut_ones if follows(o)]
    if not leaders:
        raise SpatialError(
            f"{name} on {[list(o.shape) for o in cut_ones]}: cut dimensions of one row are broadcast to "
            f"{list(shape)}; spatial.replicate them first."
        )
    lead = max(leaders, key=lambda o: o.numel())
    ahead = len(shape) - lead.dim()
    axes = moved(lead.axes, {d: d + ahead for d in range(lead.dim())})
    return lead, axes, shape, [_local(o, lead, axes, shape, name) for o in operands]


def _local(operand: Any, lead: SceneTensor, axes: Axes, shape: Sequence[int], name: str) -> Callable[[int], Any]:
    """What ``operand`` contributes to each tile of a result of ``shape`` cut at ``axes``."""
    if not isinstance(operand, Tensor) or (not is_cut(operand) and operand.dim() == 0):
        return lambda k: operand
    ahead = len(shape) - operand.dim()
    here = moved(axes, {d: d - ahead for d in range(len(shape))})
    present = [a for a in here if a.dim >= 0 and operand.shape[a.dim] == shape[a.dim + ahead]]
    if is_cut(operand):
        if len(present) == len(here):
            tiles = relaid(operand, here, name).tiles
            return lambda k: tiles[k]
        operand = join(operand)
    if not present:
        return lambda k: operand
    if len(present) == len(here):
        return lambda k: window(operand, here, lead.layout.held[k])
    # a plain tensor with rows of the scene but a single column, or with columns alone, on a grid
    wide = operand.reshape((1,) * ahead + tuple(operand.shape))
    wide = wide.expand([shape[d] if any(a.dim == d for a in axes) else n for d, n in enumerate(wide.shape)])
    return lambda k: window(wide, axes, lead.layout.held[k])


def local_to(operand: Tensor, lead: SceneTensor, axes: Axes, name: str) -> list[Tensor]:
    """The held tiles of ``operand`` (cut or plain), cut at ``axes``; its other dimensions are its own."""
    same_layout([operand, lead], name)
    if is_cut(operand):
        return list(relaid(operand, axes, name).tiles)
    return [window(operand, axes, tile) for tile in lead.layout.held]


def elementwise(function: Any) -> Callable[..., Any]:
    """The rule of an operation on single positions."""
    name = getattr(function, "__name__", str(function))

    def handler(*args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else None
        if name == "where" and len(args) == 1:
            raise refusal("where(condition)", args, why="has as many results as the scene has of them")
        if name == "type" and len(args) == 1 and not kwargs:
            return args[0].tiles[0].type()
        if name in ("eq", "ne", "__eq__", "__ne__") and args[1] is None:
            return "ne" in name
        if is_cut(first) and not any(isinstance(v, Tensor) for v in (*args[1:], *kwargs.values())):
            results = [function(tile, *args[1:], **kwargs) for tile in first.tiles]
            alike = [result is tile for result, tile in zip(results, first.tiles, strict=True)]
            if all(alike):
                return first
            if any(alike):  # some tiles were contiguous, the scene was not: all are copies
                results = [t.clone() if same else t for t, same in zip(results, alike, strict=True)]
            return first.like(results)
        values = [*args, *kwargs.values()]
        if name == "prelu" and isinstance(first, Tensor) and values[1].numel() > 1:
            values[1] = values[1].reshape(-1, *[1] * (first.dim() - 2))
            return elementwise(torch.where)(first > 0, first, values[1] * first)
        lead, axes, shape, local = aligned(values, name)
        results = []
        for k in range(len(lead.tiles)):
            here = [each(k) for each in local]
            results.append(function(*here[: len(args)], **dict(zip(kwargs, here[len(args) :], strict=True))))
        return lead.like(results, shape, axes)

    return handler


def inplace(function: Any) -> Callable[..., Any]:
    """The rule of an operation that overwrites its first operand, tile by tile."""
    name = getattr(function, "__name__", str(function))

    def handler(target: Any, *args: Any, **kwargs: Any) -> Any:
        if not is_cut(target):
            raise refusal(name, (target, *args), why="writes a cut tensor into a plain one")
        values = [target, *args, *kwargs.values()]
        shape = torch.broadcast_shapes(*(v.shape for v in values if isinstance(v, Tensor)))
        same_layout(values, name)
        if shape != target.shape:
            raise refusal(name, (target, *args), why=f"would write {list(shape)} into {list(target.shape)}")
        locals_ = [_local(value, target, target.axes, target.shape, name) for value in values]
        for k, tile in enumerate(target.tiles):
            here = [local(k) for local in locals_[1:]]
            function(tile, *here[: len(args)], **dict(zip(kwargs, here[len(args) :], strict=True)))
        written(target)
        return target

    return handler


for _function in named(*ELEMENTWISE.split()):
    RULES[_function] = elementwise(_function)
for _function in named(*INPLACE.split()):
    RULES[_function] = inplace(_function)
view_rule(*named("contiguous"))(elementwise(Tensor.contiguous))


@rule(*named("to", "type_as"))
def to(x: Any, *args: Any, **kwargs: Any) -> Any:
    """Another dtype or device; of another tensor only these are looked at, whatever its shape."""
    like = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
    if like is not None:
        args, kwargs = (like.device, like.dtype, *args[1:]), {k: v for k, v in kwargs.items() if k != "other"}
    return elementwise(Tensor.to)(x, *args, **kwargs) if is_cut(x) else x.to(*args, **kwargs)


PROPERTIES = """
    shape dtype device ndim is_cuda is_cpu is_sparse is_mps is_quantized is_meta is_nested is_mkldnn is_xpu
    itemsize nbytes
"""
METHODS = """
    size dim numel ndimension nelement is_floating_point is_complex element_size get_device is_same_size
    is_inference is_signed is_tensor __len__ __hash__ __reversed__ _is_view
"""
METADATA.update(getter(name) for name in PROPERTIES.split())
METADATA.update(named(*METHODS.split()))


@rule(getter("requires_grad"))
def requires_grad(x: SceneTensor) -> bool:
    """A scene asks for gradients if its tiles do."""
    return any(tile.requires_grad for tile in x.tiles)


@rule(getter("is_leaf"))
def is_leaf(x: SceneTensor) -> bool:
    """A scene is a leaf if its tiles are."""
    return all(tile.is_leaf for tile in x.tiles)


@rule(getter("grad_fn"))
def grad_fn(x: SceneTensor) -> Any:
    """The first held tile's node."""
    return x.tiles[0].grad_fn


@rule(*named("is_contiguous"))
def is_contiguous(x: SceneTensor, *args: Any, **kwargs: Any) -> bool:
    """A scene is contiguous if its tiles are."""
    return all(tile.is_contiguous(*args, **kwargs) for tile in x.tiles)
