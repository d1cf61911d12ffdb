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

from collections.abc import Callable, Iterator
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
from rsseglab.spatial.lazy import LazyTensor, Node, Recorder, Ref
from rsseglab.spatial.schedule import Schedule, depth_first
from rsseglab.spatial.tensor import SceneTensor, is_cut, relaid

Read = Callable[[int, int], Tensor]  # rows [row0, row1) of the image, (1, bands, row1 - row0, width)
ReadLabel = Callable[[int, int], Tensor]  # rows [row0, row1) of the label, (1, row1 - row0, width)
BAND_PX = 2**17  # pixels of a band: large enough for kernels to work well, small enough for many to be kept
ROWS = (32, 256)  # of a band, at least and at most
ROWS_SHOWN = 16  # of a plan's table


class _Source:
    """A scene whose bands of rows are read when they are asked for; by what is known when a plan is run."""

    read: Read

    def __init__(self, recorder: Recorder, layout: Layout) -> None:
        self.recorder, self.layout = recorder, layout

    def scene(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> SceneTensor:
        """A lazy scene: an image (1, bands, height, width), or a label (1, height, width), which is read twice."""
        dims = (len(shape) - 2, len(shape) - 1)
        axes = map_axes(self.layout, shape[-2], shape[-1], dims)
        form = torch.channels_last if len(shape) == 4 else torch.contiguous_format
        tiles = []
        for tile in range(self.layout.parts):
            row0, row1 = axes[0].part(tile)
            meta = torch.empty(*shape[:-2], row1 - row0, shape[-1], dtype=dtype, device="meta", memory_format=form)
            tiles.append(
                self.recorder.source(self._band(row0, row1, device), meta, device, tile, again=len(shape) == 3)
            )
        return SceneTensor(tiles, self.layout, shape, axes)

    def _band(self, row0: int, row1: int, device: torch.device) -> Callable[[], Tensor]:
        return lambda: self.read(row0, row1).to(device)


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
        return [
            f"{self.height} x {self.width} px in {bands} bands of about {round(self.height / bands)} rows, "
            f"{self.passes} pass{'es' * (self.passes > 1)}; {len(self.steps)} operations",
            f"memory: {self.peak_bytes / mib:.0f} MiB of results at most, and what kernels take beside them",
            f"disk: {self.disk_bytes / mib:.0f} MiB at most, {self.written_bytes / mib:.0f} MiB written in all",
        ]

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
        self, order: list[Node], targets: list[Ref], memory_mib: float | None, image: SceneTensor, source: _Source,
        outputs: list[tuple[int, int]], shape: tuple[int, ...],
    ) -> None:  # fmt: skip
        super().__init__(order, targets, memory_mib, image)
        self.outputs, self.shape, self._source = tuple(outputs), shape, source

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
            SpatialError: the disk is full.
        """
        self._source.read = read
        for number, band in self.play(spill, after_step):
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
    recorder, source, image = _lazy_image(model, height, width, bands, rows, dtype)
    with torch.inference_mode(False), torch.no_grad(), _named_layers(model, recorder):
        output = functional_call(model, _lazy_weights(model, recorder), (image,))
    if recorder.effects:
        raise SpatialError("stream: the network overwrites a buffer of its own in eval mode; label the scene whole.")
    if not is_cut(output) or output.dim() != 4:
        raise SpatialError(f"the network gives {type(output).__name__}, not a map (1, K, height, width) of the scene.")
    output = relaid(output, map_axes(output.layout, *output.shape[2:]), "stream")
    found = [
        (interval, tile.ref)
        for tile, (interval,) in zip(output.tiles, output.tile_windows, strict=True)
        if max(start, interval[0]) < interval[1] and isinstance(tile, LazyTensor)
    ]
    refs = [ref for _, ref in found]
    intervals = [interval for interval, _ in found]
    order = depth_first([ref.node for ref in refs])
    return Plan(order, refs, memory_mib, image, source, intervals, tuple(output.shape))


class GradientPlan(_Plan):
    """How a network learns from a scene band by band, and what it takes; see `plan_gradients`. Printed, a table."""

    def __init__(
        self, order: list[Node], targets: list[Ref], memory_mib: float | None, image: SceneTensor,
        sources: tuple[_Source, _Source],
        parameters: list[nn.Parameter], effects: list[Tensor], counters: list[tuple[Tensor, Tensor]],
    ) -> None:  # fmt: skip
        super().__init__(order, targets, memory_mib, image)
        self._image, self._label = sources
        self._parameters, self._effects, self._counters = parameters, effects, counters

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
            SpatialError: the disk is full.
        """
        self._image.read, self._label.read = read, read_label
        values = dict(self.play(spill, after_step))
        loss = values.pop(0)
        targets = [*self._parameters, *self._effects]
        with torch.no_grad():
            for number, target in enumerate(targets, start=1):
                value = values.pop(number)
                if number > len(self._parameters):
                    target.copy_(value)
                elif target.grad is None:
                    target.grad = value.clone()
                else:
                    target.grad += value
            for counter, steps in self._counters:
                counter += steps
        return loss  # type: ignore[no-any-return]


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
        SpatialError: an operation has no rule, or depends on the values that it sees.
    """
    if any(isinstance(m, _NormBase) and m.training and m.momentum is None for m in model.modules()):
        raise SpatialError("stream: a norm with momentum=None weighs each step by a count; give it a number.")
    recorder, source, image = _lazy_image(model, height, width, bands, rows, dtype)
    labels = _Source(recorder, source.layout)
    label = labels.scene((1, height, width), torch.long, image.device)
    weights = _lazy_weights(model, recorder)
    learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
    before = {buffer: buffer.clone() for buffer in model.buffers()}
    with torch.inference_mode(False), torch.enable_grad(), _named_layers(model, recorder):
        lazy = [weights[name].requires_grad_() for name in learned]
        value = loss(functional_call(model, weights, (image,)), label)
        if not isinstance(value, LazyTensor) or value.dim():
            raise SpatialError(f"the loss is {type(value).__name__} {list(value.shape)}; it must be a scalar.")
        recorder.layer = "(backward)"
        gradients = torch.autograd.grad(value, lazy, allow_unused=True)
    counters = []
    for buffer, old in before.items():
        if not torch.equal(buffer, old):
            counters.append((buffer, buffer - old))
            buffer.copy_(old)
    pairs = zip(learned.values(), gradients, strict=True)
    found = [(p, recorder.resummed(g)) for p, g in pairs if isinstance(g, LazyTensor)]
    refs = [value.ref, *(ref for _, ref in found), *(ref for ref in recorder.effects.values())]
    order = _from_the_bottom(refs, recorder.sums)
    return GradientPlan(
        order, refs, memory_mib, image, (source, labels), [p for p, _ in found],
        list(recorder.effects), counters,
    )  # fmt: skip


def _from_the_bottom(refs: list[Ref], sums: list[Node]) -> list[Node]:
    """The backward pass band by band from the last to the first, as gradients are added up; then the loss."""
    wanted = [ref.node for ref in refs]
    backward = [node for node in depth_first(wanted) if node.number > wanted[0].number and node.tile is not None]
    return depth_first([*sorted(backward, key=lambda node: (-(node.tile or 0), node.number)), *wanted], sums)


def _lazy_weights(model: nn.Module, recorder: Recorder) -> dict[str, Tensor]:
    """The network's parameters as they will be when a plan is run, so that what is made of them is made anew."""

    def as_it_is(parameter: nn.Parameter) -> Callable[[], Tensor]:
        return lambda: parameter.detach()

    lazy = {n: recorder.source(as_it_is(p), p.detach().to("meta"), p.device) for n, p in model.named_parameters()}
    for weight in lazy.values():
        weight.root.node.nbytes = 0  # they are there anyway
    return dict(lazy)


def _lazy_image(
    model: nn.Module, height: int, width: int, bands: int, rows: int | None, dtype: torch.dtype | None
) -> tuple[Recorder, _Source, SceneTensor]:
    weight = next(iter(model.parameters()), torch.empty(0))
    rows = rows or min(max(BAND_PX // width // 32 * 32, ROWS[0]), ROWS[1])
    recorder = Recorder()
    source = _Source(recorder, Layout(max(1, round(height / rows))))
    with torch.inference_mode(False):
        return recorder, source, source.scene((1, bands, height, width), dtype or weight.dtype, weight.device)


class _named_layers:  # noqa: N801
    """While a model runs, label what is recorded with the module that asks for it."""

    def __init__(self, model: nn.Module, recorder: Recorder) -> None:
        self.recorder, self.stack, self.hooks = recorder, [""], []
        for name, module in model.named_modules():
            self.hooks += [
                module.register_forward_pre_hook(lambda *_, name=name: self._enter(name)),
                module.register_forward_hook(lambda *_: self._leave()),
            ]

    def _enter(self, name: str) -> None:
        self.stack.append(name)
        self.recorder.layer = name

    def _leave(self) -> None:
        self.stack.pop()
        self.recorder.layer = self.stack[-1]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: Any) -> None:
        for hook in self.hooks:
            hook.remove()
