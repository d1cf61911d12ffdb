"""A whole scene through one device, band by band: exact, in memory that does not grow with the scene's height.

The third way to run the engine's rules. The scene is cut in thin bands of rows whose tiles are lazy
(``rsseglab.spatial.lazy``), so one call of the network, without a pixel, gives a program: which operations make which
band of which map from which others. Bands of the output are then asked for from top to bottom. Each asks for what it is
made of, down to the raster; what is computed is kept for as long as a band further down still needs it, and no longer.
So of each map a few bands are there at a time, its *line buffer*; nothing is computed twice, and every number is that
of the whole scene.

An operation over all of the scene (a global mean, a norm's statistics, the keys of an attention) needs all bands before
it can answer one. What then waits for the answer is more than memory should hold, and goes to disk and comes back
(``rsseglab.spatial.schedule``).

Training likewise: the backward pass is written down with the forward pass, and both are done for a band at a time, from
the bottom of the scene up, so that the activations of a few bands are there and no more.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from rsseglab.spatial.cut import map_axes
from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.layout import Layout
from rsseglab.spatial.lazy import Coins, Input, LazyTensor, Node, Recorder, Ref
from rsseglab.spatial.schedule import Schedule, depth_first
from rsseglab.spatial.tensor import SceneTensor, is_cut, relaid

Read = Callable[[int, int], Tensor]  # rows [row0, row1) of the image, (1, bands, row1 - row0, width)
ReadLabel = Callable[[int, int], Tensor]  # rows [row0, row1) of the label, (1, row1 - row0, width)
BAND_PX = 11 * 2**14  # pixels of a band: large enough for kernels to work well, small enough for many to be kept
ROWS = (32, 256)  # of a band, at least and at most
ROWS_KEPT = 4  # of a band in the deepest map that is cut where the image is
ROWS_SHOWN = 16  # of a plan's table
LOSS = "(loss)"


def _lazy_scene(
    recorder: Recorder, layout: Layout, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> SceneTensor:
    """A scene whose bands of rows are read when they are asked for, by the input ``name`` of a run.

    It is an image (1, bands, height, width), or a label (1, height, width), which is read by each who asks.
    """
    axes = map_axes(layout, shape[-2], shape[-1], (len(shape) - 2, len(shape) - 1))
    form = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    tiles = []
    for tile in range(layout.parts):
        row0, row1 = axes[0].part(tile)
        meta = torch.empty(*shape[:-2], row1 - row0, shape[-1], dtype=dtype, device="meta", memory_format=form)
        band = _band(row0, row1, meta, device)
        tiles.append(recorder.source(band, meta, device, tile, again=len(shape) == 3, args=(Input(name),)))
    return SceneTensor(tiles, layout, shape, axes)


def _band(row0: int, row1: int, meta: Tensor, device: torch.device) -> Callable[[Read], Tensor]:
    def band(read: Read) -> Tensor:
        rows = read(row0, row1)
        if not isinstance(rows, Tensor) or rows.shape != meta.shape or rows.dtype != meta.dtype:
            gave = f"{rows.dtype} {list(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
            raise SpatialError(f"read({row0}, {row1}) gives {gave}; it must be {meta.dtype} {list(meta.shape)}.")
        return rows.to(device)

    return band


@contextmanager
def _uncollected() -> Iterator[None]:
    """Python does not look for garbage meanwhile: among so many objects that stay, that took as long as making them."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class _Plan(Schedule):
    """A schedule of a scene, with a table.

    Attributes:
        height: of the image, in px.
        width: of the image, in px.
        rows: where bands begin, and the last one ends.
    """

    def __init__(self, order: list[Node], targets: list[Ref], memory_mib: float | None, image: SceneTensor) -> None:
        super().__init__(order, targets, memory_mib)
        self.height, self.width, self.rows = image.shape[2], image.shape[3], image.axes[0].bounds

    def _summary(self) -> list[str]:
        mib, bands = 2**20, len(self.rows) - 1
        lines = [
            f"{self.height} x {self.width} px in {bands} bands of about {round(self.height / bands)} rows, "
            f"{self.passes} pass{'es' * (self.passes > 1)}; {len(self.steps)} operations",
            f"memory: {self.peak_bytes / mib:.0f} MiB of results at most, and what kernels take beside them",
            f"disk: {self.disk_bytes / mib:.0f} MiB at most, {self.written_bytes / mib:.0f} MiB written in all",
        ]
        if self.memory_mib is not None and self.peak_bytes > self.memory_mib * mib:
            lines[1] += f"; more than the {self.memory_mib:g} MiB asked for: a single operation needs them"
        if self.constant_bytes > mib:
            lines.append(f"constants: {self.constant_bytes / mib:.0f} MiB of masks and the like")
        return lines

    def __str__(self) -> str:
        mib = 2**20
        lines = [*self._summary(), "", f"{'layer':44} {'most MiB':>9} {'at the worst moment':>20}"]
        buffers = sorted(self.buffers().items(), key=lambda item: -item[1][1])
        for layer, (most, worst) in buffers[:ROWS_SHOWN]:
            lines.append(f"{layer or '(the image)':44} {most / mib:9.1f} {worst / mib:20.1f}")
        if left := buffers[ROWS_SHOWN:]:
            rest = sum(worst for _, (_, worst) in left) / mib
            lines.append(f"{f'{len(left)} others':44} {'':9} {rest:20.1f}")
        return "\n".join(lines)


class Plan(_Plan):
    """How a scene is labelled, and what it takes; see `plan`. Printed, it is a table.

    Attributes:
        outputs: first row and end of each band of the output.
        shape: of the output, (1, K, height, width).
    """

    def __init__(
        self, order: list[Node], targets: list[Ref], memory_mib: float | None, image: SceneTensor,
        outputs: list[tuple[int, int]], shape: tuple[int, ...],
    ) -> None:  # fmt: skip
        super().__init__(order, targets, memory_mib, image)
        self.outputs, self.shape = tuple(outputs), shape

    def run(
        self, read: Read, spill: Path | None = None, after_step: Callable[[], object] | None = None
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Compute the output from top to bottom.

        Args:
            read: rows [row0, row1) of the image, (1, bands, row1 - row0, width); each row is asked for once. What is
                given may not be written to afterwards.
            spill: folder for what is moved to disk; the system's folder for temporary files if not given.
            after_step: called after each of the plan's steps, for a progress bar.

        Yields:
            First row, end, and the band (1, K, end - first, width) of the output.

        Raises:
            SpatialError: the disk is full, or ``read`` gives something else.
        """
        for number, band in self.play({"image": read}, spill, after_step):
            yield *self.outputs[number], band

    @property
    def reach(self) -> int:
        """Rows of the image that are read beyond a band of the output before it is complete, at most."""
        read, most = 0, 0
        for step in self.steps:
            if not step.node.reads and step.node.tile is not None:
                read = max(read, self.rows[step.node.tile + 1])
            most = max([most, *(read - self._image_row(number) for number in step.targets)])
        return most

    def _image_row(self, number: int) -> int:
        return self.outputs[number][1] * self.height // self.shape[2]

    def _summary(self) -> list[str]:
        return [*super()._summary(), f"reach: a band is complete once {self.reach} rows below it are read"]

    def plot(self, band: int | None = None) -> Any:
        """A picture of the line buffers when a band of the output is complete: which bands of which layers are held.

        Args:
            band: number of the band; one in the middle of the scene if not given.

        Returns:
            A matplotlib figure: layers from the image (top) to the output (bottom), bands of the scene from left to
            right, MiB as colour.
        """
        from matplotlib import pyplot as plt

        band = len(self.outputs) // 2 if band is None else band
        layers = list(dict.fromkeys(step.node.layer for step in self.steps))
        held = torch.zeros(len(layers), len(self.rows) - 1)
        for node in self.held(band):
            if node.tile is not None:
                held[layers.index(node.layer), node.tile] += node.nbytes / 2**20
        kept = [k for k in range(len(layers)) if held[k].any()]
        figure, axes = plt.subplots(figsize=(9, 1.6 + 0.17 * len(kept)), layout="constrained")
        values = held[kept].masked_fill(held[kept] == 0, torch.nan)
        edges = [k - 0.5 for k in range(len(kept) + 1)]
        shown = axes.pcolormesh(list(self.rows), edges, values.numpy(), cmap="cividis")
        end = self._image_row(band)
        axes.axvline(end, color="black", linestyle="--", linewidth=1, label=f"labelled so far: {end} rows")
        axes.set_yticks(range(len(kept)), [layers[k] or "(the image)" for k in kept], fontsize=7)
        axes.set(xlabel="row of the scene, px", xlim=(0, self.height), title="what is kept of each layer")
        axes.invert_yaxis()
        axes.legend(loc="lower left", fontsize=8)
        figure.colorbar(shown, ax=axes, label="MiB of a band", shrink=0.7)
        return figure


@_uncollected()
def plan(
    model: nn.Module,
    height: int,
    width: int,
    bands: int,
    *,
    rows: int | None = None,
    start: int = 0,
    memory_mib: float | None = None,
    dtype: torch.dtype | None = None,
) -> Plan:
    """Find out, without a pixel, how a scene goes through a network band by band.

    Args:
        model: from an image (1, bands, height, width) to a map (1, K, ...), in eval mode.
        height: of the image, in px.
        width: of the image, in px.
        bands: of the image (channels).
        rows: of a band; by the width if not given.
        start: row of the output before which none is asked for.
        memory_mib: most that results may take at a time; beyond it they are moved to disk. Not bounded if not given.
        dtype: of the image; that of the network's weights if not given.

    Raises:
        SpatialError: the network is in train mode; an operation has no rule, or depends on the values that it sees.
    """
    if any(module.training for module in model.modules()):
        raise SpatialError("stream: the network is in train mode; call model.eval(), or use plan_gradients.")
    recorder, image = _lazy_image(model, height, width, bands, rows, memory_mib, dtype)
    weights = _lazy_weights(model, recorder)
    with torch.inference_mode(False), torch.no_grad(), _left_alone(model) as counted, _named_layers(model, recorder):
        output = functional_call(model, {**weights}, (image,))
    recorder.check_constants()
    if counted or _overwritten(weights):
        raise SpatialError("stream: the network overwrites a buffer of its own in eval mode; label the scene whole.")
    if not is_cut(output) or output.dim() != 4:
        raise SpatialError(f"the network gives {type(output).__name__}, not a map (1, K, height, width) of the scene.")
    if not 0 <= start < output.shape[2]:
        raise SpatialError(f"there is no row {start} to start from: the output has {output.shape[2]}.")
    output = relaid(output, map_axes(output.layout, *output.shape[2:]), "stream")
    found = [
        (interval, tile.ref)
        for tile, (interval,) in zip(output.tiles, output.tile_windows, strict=True)
        if max(start, interval[0]) < interval[1] and isinstance(tile, LazyTensor)
    ]
    refs = [ref for _, ref in found]
    intervals = [interval for interval, _ in found]
    order = depth_first([ref.node for ref in refs])
    return Plan(order, refs, memory_mib, image, intervals, tuple(output.shape))


class GradientPlan(_Plan):
    """How a network learns from a scene band by band, and what it takes; see `plan_gradients`. Printed, a table."""

    def __init__(
        self, order: list[Node], targets: list[tuple[str, Ref]], memory_mib: float | None, image: SceneTensor,
        model: nn.Module, counted: dict[str, Tensor],
    ) -> None:  # fmt: skip
        at = {node: step for step, node in enumerate(order)}
        targets = sorted(targets, key=lambda target: at[target[1].node])
        super().__init__(order, [ref for _, ref in targets], memory_mib, image)
        self._names, self._model, self._counted = [name for name, _ in targets], model, counted

    def backward(
        self,
        read: Read,
        read_label: ReadLabel,
        spill: Path | None = None,
        after_step: Callable[[], object] | None = None,
    ) -> Tensor:
        """Add the gradients of the loss to the network's parameters, and update its running statistics.

        Args:
            read: rows [row0, row1) of the image, (1, bands, row1 - row0, width).
            read_label: rows [row0, row1) of the label, class indices (1, row1 - row0, width).
            spill: folder for what is moved to disk; the system's folder for temporary files if not given.
            after_step: called after each of the plan's steps, for a progress bar.

        Returns:
            The loss.

        Raises:
            SpatialError: the disk is full, or ``read`` or ``read_label`` give something else.
        """
        inputs = {"image": read, "label": read_label}
        values = {self._names[number]: value for number, value in self.play(inputs, spill, after_step)}
        loss: Tensor = values.pop(LOSS)
        parameters, buffers = dict(self._model.named_parameters()), dict(self._model.named_buffers())
        with torch.no_grad():
            for name, value in values.items():
                if name in buffers:
                    buffers[name].copy_(value)
                elif parameters[name].grad is None:
                    parameters[name].grad = value.clone()
                else:
                    parameters[name].grad += value
            for name, steps in self._counted.items():
                buffers[name] += steps
        return loss


@_uncollected()
def plan_gradients(
    model: nn.Module,
    height: int,
    width: int,
    bands: int,
    loss: Callable[[Any, Any], Any] = F.cross_entropy,
    *,
    rows: int | None = None,
    memory_mib: float | None = None,
    dtype: torch.dtype | None = None,
) -> GradientPlan:
    """Find out, without a pixel, how a network learns from a whole scene band by band.

    Norms with running statistics (eval mode) cost nothing; batch norm in train mode goes through the scene once for
    each layer, forward and backward, and all activations go to disk: the plan says how many.

    Args:
        model: from an image (1, bands, height, width) to scores (1, K, height, width).
        height: of the image, in px.
        width: of the image, in px.
        bands: of the image (channels).
        loss: of scores and label (1, height, width), a scalar.
        rows: of a band; by the width if not given.
        memory_mib: most that results may take at a time; beyond it they are moved to disk. Not bounded if not given.
        dtype: of the image; that of the network's weights if not given.

    Raises:
        SpatialError: an operation has no rule, or depends on the values that it sees; or the loss has parameters that
            are not the network's.
    """
    if any(isinstance(m, _NormBase) and m.training and m.momentum is None for m in model.modules()):
        raise SpatialError("stream: a norm with momentum=None weighs each step by a count; give it a number.")
    recorder, image = _lazy_image(model, height, width, bands, rows, memory_mib, dtype)
    label = _lazy_scene(recorder, image.layout, "label", (1, height, width), torch.long, image.device)
    weights = _lazy_weights(model, recorder)
    learned = [name for name, p in model.named_parameters() if p.requires_grad]
    if not learned:
        raise SpatialError("stream: no parameter of the network requires a gradient; nothing can be learned.")
    with torch.inference_mode(False), torch.enable_grad(), _left_alone(model) as counted:
        with _named_layers(model, recorder), Coins(recorder):
            lazy = [weights[name].requires_grad_() for name in learned]
            value = loss(functional_call(model, {**weights}, (image,)), label)
        if not isinstance(value, LazyTensor) or value.dim() or not value.requires_grad:
            gives = f"{type(value).__name__} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise SpatialError(f"the loss gives {gives}; it must be a scalar that depends on the network's scores.")
        _check_leaves(value)
        recorder.layer = "(backward)"
        gradients = torch.autograd.grad(value, lazy, allow_unused=True)
    recorder.check_constants()
    found = [(n, recorder.resummed(g)) for n, g in zip(learned, gradients, strict=True) if isinstance(g, LazyTensor)]
    effects = [(name, buffer.ref) for name, buffer in _overwritten(weights).items()]
    order = _from_the_bottom([value.ref, *(ref for _, ref in (*found, *effects))], recorder.sums)
    return GradientPlan(order, [(LOSS, value.ref), *found, *effects], memory_mib, image, model, counted)


def _check_leaves(loss: Tensor) -> None:
    """Gradients are those of the network alone; what else the loss learns, or takes from it, would go by."""
    seen, stack = {loss.grad_fn}, [loss.grad_fn]
    while stack:
        function = stack.pop()
        leaf = getattr(function, "variable", None)
        if leaf is not None and not isinstance(leaf, LazyTensor):
            raise SpatialError(
                f"the loss has a parameter {list(leaf.shape)} that the network is not called with; make it a part of "
                "the network, or call backward() for that term (a penalty on weights) by itself: gradients add up."
            )
        for each, _ in getattr(function, "next_functions", ()):
            if each is not None and each not in seen:
                seen.add(each)
                stack.append(each)


def _from_the_bottom(refs: list[Ref], sums: list[Node]) -> list[Node]:
    """The backward pass band by band from the last to the first, as gradients are added up; then the loss."""
    wanted = [ref.node for ref in refs]
    backward = [node for node in depth_first(wanted) if node.number > wanted[0].number and node.tile is not None]
    return depth_first([*sorted(backward, key=lambda node: (-(node.tile or 0), node.number)), *wanted], sums)


def _lazy_weights(model: nn.Module, recorder: Recorder) -> dict[str, LazyTensor]:
    """The network's parameters and buffers as they will be when a plan is run; what is made of them is made anew.

    Integers, such as the places of an attention's biases, are taken as they are: they are looked at, not computed with.
    """

    def as_it_is(get: Callable[[str], Tensor], name: str) -> Callable[[], Tensor]:
        return lambda: get(name).detach()

    kinds = ((model.named_parameters(), model.get_parameter), (model.named_buffers(), model.get_buffer))
    lazy = {
        name: recorder.source(as_it_is(get, name), x.detach().to("meta"), x.device)
        for named, get in kinds
        for name, x in named
        if x.is_floating_point()
    }
    for weight in lazy.values():
        weight.root.node.nbytes = 0  # they are there anyway
    return lazy


def _overwritten(weights: dict[str, LazyTensor]) -> dict[str, LazyTensor]:
    """Those, such as running means, that are not what they were when the network was called."""
    return {name: weight for name, weight in weights.items() if weight.root.node.reads}


def _lazy_image(
    model: nn.Module,
    height: int,
    width: int,
    bands: int,
    rows: int | None,
    memory_mib: float | None,
    dtype: torch.dtype | None,
) -> tuple[Recorder, SceneTensor]:
    sizes = {"height": height, "width": width, "bands": bands, "rows": 1 if rows is None else rows}
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise SpatialError(f"stream: {name} is {size}; it must be a whole number, 1 or more.")
    if memory_mib is not None and not memory_mib > 0:
        raise SpatialError(f"stream: {memory_mib} MiB are no memory; give more, or leave memory_mib out.")
    weight = next(iter(model.parameters()), torch.empty(0))
    rows = rows or min(max(BAND_PX // width // 8 * 8, ROWS[0]), ROWS[1])
    recorder, layout = Recorder(), Layout(max(1, round(height / rows)), rows_kept=ROWS_KEPT)
    with torch.inference_mode(False):
        shape = (1, bands, height, width)
        return recorder, _lazy_scene(recorder, layout, "image", shape, dtype or weight.dtype, weight.device)


@contextmanager
def _left_alone(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Undo what a call leaves in a network, such as caches; and refuse what would be frozen in a plan.

    Yields:
        What is filled in on leaving: by how much each norm's count of batches grows.

    Raises:
        SpatialError: the network changes a buffer of integers, or tosses coins that do not wait for the image.
    """
    counted: dict[str, Tensor] = {}
    before = {n: (b, b.clone()) for n, b in model.named_buffers() if not b.is_floating_point()}
    modules = [(vars(m), dict(vars(m)), _containers(vars(m))) for m in model.modules()]
    coins = _coins()
    try:
        yield counted
        for name, (buffer, old) in before.items():
            if name.endswith("num_batches_tracked"):
                counted |= {name: buffer - old} if buffer != old else {}
            elif not torch.equal(buffer, old):
                raise SpatialError(f"stream: the network changes its buffer {name}; label the scene whole.")
        if not torch.equal(coins, _coins()):
            raise SpatialError(
                "stream: the network draws random numbers that do not wait for the image, and would be the same in "
                "each run; draw them like the image (torch.rand_like, x.new_empty), or label the scene whole."
            )
    finally:
        for buffer, old in before.values():
            if not torch.equal(buffer, old):
                buffer.copy_(old)
        for now, then, containers in modules:
            now.clear()
            now.update(then)
            for container, content in containers:
                container.clear()
                container.extend(content) if isinstance(container, list) else container.update(content)


def _containers(attributes: dict[str, Any]) -> list[tuple[Any, Any]]:
    """The lists, dictionaries and sets among a module's attributes, and what they hold."""
    return [(each, copy(each)) for each in attributes.values() if isinstance(each, list | dict | set)]


def _coins() -> Tensor:
    """The state of the random numbers that a call may draw."""
    return torch.cat([torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else ())])


@contextmanager
def _named_layers(model: nn.Module, recorder: Recorder) -> Iterator[None]:
    """While a model runs, label what is recorded with the module that asks for it."""
    stack, hooks = [""], []

    def enter(name: str) -> None:
        stack.append(name)
        recorder.layer = name

    def leave() -> None:
        stack.pop()
        recorder.layer = stack[-1]

    try:
        for name, module in model.named_modules():
            hooks.append(module.register_forward_pre_hook(lambda *_, name=name: enter(name)))
            hooks.append(module.register_forward_hook(lambda *_: leave()))
        yield
    finally:
        for hook in hooks:
            hook.remove()
