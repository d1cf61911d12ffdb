"""A whole scene through one device, band by band: exact, in memory that does not grow with the scene's height.

The third way to run the engine's rules. The scene is cut in thin bands of rows whose tiles are lazy
(``rsseglab.spatial.lazy``), so one call of the network, without a pixel, gives a program: which operations make which
band of which map from which others. Bands of the output are then asked for from top to bottom. Each asks for what it is
made of, down to the raster; what is computed is kept for as long as a band further down still needs it, and no longer.
So of each map a few bands are there at a time, its *line buffer*; nothing is computed twice, and every number is that
of the whole scene.

An operation over all of the scene (a global mean, a norm's statistics, the keys of an attention) needs all bands before
it can answer one. What then waits for the answer is more than memory should hold, and goes to disk and comes back: the
plan knows when each tensor is read next, and moves those that are read last (Belady, 1966).
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rsseglab.spatial.cut import map_axes
from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.layout import Layout
from rsseglab.spatial.lazy import LazyTensor, Node, Recorder, Ref
from rsseglab.spatial.tensor import SceneTensor, is_cut, relaid

Read = Callable[[int, int], Tensor]  # rows [row0, row1) of the image, (1, bands, row1 - row0, width)
BAND_PX = 2**17  # pixels of a band: large enough for kernels to work well, small enough for many to be kept
ROWS = (32, 256)  # of a band, at least and at most
ROWS_SHOWN = 16  # of a plan's table


@dataclass(frozen=True)
class Step:
    """Compute a node; then move results to disk, and forget those that nobody reads any more.

    Attributes:
        node: what is computed.
        spilled: nodes whose results go to disk.
        dropped: nodes whose results are read for the last time here.
        bands: numbers of the bands of the output that are now complete.
    """

    node: Node
    spilled: tuple[Node, ...]
    dropped: tuple[Node, ...]
    bands: tuple[int, ...]


@dataclass(frozen=True, repr=False)
class Plan:
    """What is done for each band, and what it takes; see `plan`. Printed, it is a table.

    Attributes:
        steps: in order.
        outputs: the bands of the output: first row, end, and where the values are.
        height: of the image, in px.
        width: of the image, in px.
        shape: of the output, (1, K, height, width).
        peak_bytes: most bytes of results held at a time; kernels' own workspace is not in it.
        disk_bytes: most bytes on disk at a time.
        written_bytes: bytes that are moved to disk in all.
    """

    steps: tuple[Step, ...]
    outputs: tuple[tuple[int, int, Ref], ...]
    height: int
    width: int
    shape: tuple[int, ...]
    peak_bytes: int
    disk_bytes: int
    written_bytes: int
    source: _Source

    @property
    def passes(self) -> int:
        """How often the scene is gone through: once, and again after each operation over all that others wait for."""
        depth: dict[Node, int] = {}
        for step in self.steps:
            node = step.node
            depth[node] = max((depth[read] for read in node.reads), default=0) + node.barrier
        return 1 + max(depth.values(), default=0)

    @property
    def reach(self) -> int:
        """Rows of the image that are read beyond a band of the output before it is complete, at most."""
        read, most = 0, 0
        for step in self.steps:
            if not step.node.reads and step.node.tile is not None:
                read = max(read, self.source.rows[step.node.tile + 1])
            for band in step.bands:
                end = self.outputs[band][1] * self.height // self.shape[2]
                most = max(most, read - end)
        return most

    def buffers(self) -> dict[str, tuple[int, int]]:
        """For each layer, the most bytes of its results held at a time, and those held at the worst moment of all."""
        now: dict[str, int] = {}
        most: dict[str, int] = {}
        worst: dict[str, int] = {}
        peak = total = 0
        for step, come, gone in self._changes():
            for node in come:
                total += node.nbytes
                now[node.layer] = now.get(node.layer, 0) + node.nbytes
            most[step.node.layer] = max(most.get(step.node.layer, 0), now[step.node.layer])
            if total > peak:
                peak, worst = total, dict(now)
            for node in gone:
                total -= node.nbytes
                now[node.layer] -= node.nbytes
        return {layer: (most[layer], worst.get(layer, 0)) for layer in most}

    def held(self, band: int) -> list[Node]:
        """Nodes whose results are in memory when a band of the output is complete."""
        there: dict[Node, None] = {}
        for step, come, gone in self._changes():
            there |= dict.fromkeys(come)
            if band in step.bands:
                break
            for node in gone:
                del there[node]
        return list(there)

    def _changes(self) -> Iterator[tuple[Step, list[Node], list[Node]]]:
        """For each step, the nodes whose results come into memory, and those whose results leave it."""
        there: set[Node] = set()
        for step in self.steps:
            come = [node for node in (*step.node.reads, step.node) if node not in there]
            there.update(come)
            gone = [node for node in (*step.spilled, *step.dropped) if node in there]
            there.difference_update(gone)
            yield step, come, gone

    def __str__(self) -> str:
        mib = 2**20
        lines = [
            f"{self.height} x {self.width} px in {len(self.outputs)} bands of about "
            f"{round(self.height / len(self.outputs))} rows, {self.passes} pass{'es' * (self.passes > 1)}; "
            f"{len(self.steps)} operations",
            f"memory: {self.peak_bytes / mib:.0f} MiB of results at most, and what kernels take beside them",
            f"disk: {self.disk_bytes / mib:.0f} MiB at most, {self.written_bytes / mib:.0f} MiB written in all",
            f"reach: a band is complete once {self.reach} rows below it are read",
            "",
            f"{'layer':44} {'most MiB':>9} {'at the worst moment':>20}",
        ]
        buffers = sorted(self.buffers().items(), key=lambda item: -item[1][1])
        for layer, (most, worst) in buffers[:ROWS_SHOWN]:
            lines.append(f"{layer or '(the image)':44} {most / mib:9.1f} {worst / mib:20.1f}")
        if left := buffers[ROWS_SHOWN:]:
            rest = sum(worst for _, (_, worst) in left) / mib
            lines.append(f"{f'{len(left)} others':44} {'':9} {rest:20.1f}")
        return "\n".join(lines)

    def plot(self, band: int | None = None) -> Any:
        """A picture of the line buffers when a band of the output is complete: which bands of which layers are held.

        Args:
            band: number of the band; one in the middle of the scene if not given.

        Returns:
            A matplotlib figure: layers from the image (top) to the output (bottom), bands of the scene from left to
            right, MiB as colour.
        """
        from matplotlib.figure import Figure

        band = len(self.outputs) // 2 if band is None else band
        layers = list(dict.fromkeys(step.node.layer for step in self.steps))
        bytes_of = torch.zeros(len(layers), len(self.source.rows) - 1)
        for node in self.held(band):
            if node.tile is not None:
                bytes_of[layers.index(node.layer), node.tile] += node.nbytes
        kept = [k for k in range(len(layers)) if bytes_of[k].any()]
        figure = Figure(figsize=(9, 1.6 + 0.17 * len(kept)), layout="constrained")
        axes = figure.subplots()
        values = bytes_of[kept] / 2**20
        shown = axes.pcolormesh(
            torch.tensor(self.source.rows), torch.arange(len(kept) + 1) - 0.5,
            values.masked_fill(values == 0, torch.nan), cmap="cividis",
        )  # fmt: skip
        end = self.outputs[band][1] * self.height // self.shape[2]
        axes.axvline(end, color="black", linestyle="--", linewidth=1, label=f"labelled so far: {end} rows")
        axes.set_yticks(range(len(kept)), [layers[k] or "(the image)" for k in kept], fontsize=7)
        axes.set(xlabel="row of the scene, px", xlim=(0, self.height), title="what is kept of each layer")
        axes.invert_yaxis()
        axes.legend(loc="upper right", fontsize=8)
        figure.colorbar(shown, ax=axes, label="MiB of a band", shrink=0.7)
        return figure

    def run(
        self, read: Read, spill: Path | None = None, after_step: Callable[[], object] | None = None
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Compute the output from top to bottom.

        Args:
            read: rows [row0, row1) of the image, (1, bands, row1 - row0, width); each row is asked for once.
            spill: folder for what is moved to disk; the system's folder for temporary files if not given.
            after_step: called after each of the plan's steps, for a progress bar.

        Yields:
            First row, end, and the band (1, K, end - first, width) of the output.

        Raises:
            SpatialError: the disk is full.
        """
        values: dict[Node, Any] = {}
        self.source.read = read
        with tempfile.TemporaryDirectory(dir=spill) as folder:
            disk = _Disk(Path(folder), values)
            for step in self.steps:
                with torch.no_grad():
                    values[step.node] = step.node.compute(disk.value)
                for node in step.spilled:
                    disk.put(node)
                for band in step.bands:
                    first, end, ref = self.outputs[band]
                    yield first, end, ref.of(disk.value(ref.node))
                for node in step.dropped:
                    disk.drop(node)
                if after_step is not None:
                    after_step()


class _Source:
    """The image, a band of rows at a time; what reads it is known when the plan is run."""

    read: Read
    rows: tuple[int, ...]  # where bands begin, and the last one ends

    def band(self, row0: int, row1: int, device: torch.device) -> Callable[[], Tensor]:
        return lambda: self.read(row0, row1).to(device)


class _Disk:
    """Results that have been moved to disk."""

    def __init__(self, folder: Path, values: dict[Node, Any]) -> None:
        self.folder, self.values = folder, values
        self.there: dict[Node, Path] = {}
        self.number = count()

    def value(self, node: Node) -> Any:
        """A node's result, from memory or disk."""
        if node not in self.values:
            self.values[node] = torch.load(self.there[node], weights_only=True)
        return self.values[node]

    def put(self, node: Node) -> None:
        """Move a result to disk; one that has been there before still is."""
        result = self.values.pop(node)
        if node in self.there:
            return
        path = self.folder / str(next(self.number))
        try:
            torch.save(result, path)
        except (OSError, RuntimeError) as error:
            raise SpatialError(
                f"{self.folder.parent} cannot take what does not fit in memory ({error}); free some space, or name "
                "another folder to spill to."
            ) from error
        self.there[node] = path

    def drop(self, node: Node) -> None:
        """Forget a result."""
        self.values.pop(node, None)
        if path := self.there.pop(node, None):
            path.unlink()


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
        SpatialError: an operation has no rule, or depends on the values that it sees.
    """
    weight = next(iter(model.parameters()), torch.empty(0))
    rows = rows or min(max(BAND_PX // width // 32 * 32, ROWS[0]), ROWS[1])
    source, recorder = _Source(), Recorder()
    with torch.inference_mode(False), torch.no_grad(), _named_layers(model, recorder):
        image = _lazy_scene(source, recorder, (1, bands, height, width), rows, dtype or weight.dtype, weight.device)
        output = model(image)
    if not is_cut(output) or output.dim() != 4:
        raise SpatialError(f"the network gives {type(output).__name__}, not a map (1, K, height, width) of the scene.")
    output = relaid(output, map_axes(output.layout, *output.shape[2:]), "stream")
    outputs = []
    for tile, (interval,) in zip(output.tiles, output.tile_windows, strict=True):
        if max(start, interval[0]) < interval[1]:
            assert isinstance(tile, LazyTensor)
            outputs.append((*interval, tile.ref))
    order = _order([ref.node for _, _, ref in outputs])
    budget = None if memory_mib is None else int(memory_mib * 2**20)
    memory, steps = _scheduled(order, [ref.node for _, _, ref in outputs], budget)
    return Plan(
        steps, tuple(outputs), height, width, tuple(output.shape), memory.peak, memory.disk_peak, memory.written, source
    )


def _lazy_scene(
    source: _Source, recorder: Recorder, shape: tuple[int, int, int, int], rows: int, dtype: torch.dtype,
    device: torch.device,
) -> SceneTensor:  # fmt: skip
    """An image in bands of rows, each of which is read when it is asked for."""
    _, channels, height, width = shape
    layout = Layout(max(1, round(height / rows)))
    axes = map_axes(layout, height, width)
    source.rows = axes[0].bounds
    tiles = []
    for tile in range(layout.parts):
        row0, row1 = axes[0].part(tile)
        meta = torch.empty(
            1, channels, row1 - row0, width, dtype=dtype, device="meta", memory_format=torch.channels_last
        )
        tiles.append(recorder.source(source.band(row0, row1, device), meta, device, tile))
    return SceneTensor(tiles, layout, shape, axes)


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


def _order(outputs: list[Node]) -> list[Node]:
    """Nodes in the order in which bands of the output, from the first to the last, ask for them."""
    order: dict[Node, None] = {}
    for output in outputs:
        stack = [output]
        while stack:
            if stack[-1] in order:
                stack.pop()
            elif missing := [node for node in stack[-1].reads if node not in order]:
                stack += reversed(missing)
            else:
                order[stack.pop()] = None
    return list(order)


def _scheduled(order: list[Node], outputs: list[Node], budget: int | None) -> tuple[_Memory, tuple[Step, ...]]:
    """Play the order, counting bytes: what is dropped when, and what has to go to disk."""
    reads: dict[Node, list[int]] = {node: [] for node in order}  # when each is read, the next time last
    for step in range(len(order) - 1, -1, -1):
        for node in order[step].reads:
            reads[node].append(step)
    complete: dict[Node, list[int]] = {}
    for band, node in enumerate(outputs):
        complete.setdefault(node, []).append(band)
    memory = _Memory(budget)
    steps = []
    for node in order:
        for read in node.reads:
            memory.need(read)
            reads[read].pop()
        memory.hold(node)
        keep = {node, *node.reads}
        spilled = memory.evict(keep)
        dropped = tuple(each for each in keep if not reads[each])
        for each in dropped:
            memory.drop(each)
        for each in keep.difference(dropped):
            memory.next_read(each, reads[each][-1])
        steps.append(Step(node, spilled, dropped, tuple(complete.get(node, ()))))
    return memory, tuple(steps)


class _Memory:
    """Bytes in memory and on disk, while a plan is made."""

    def __init__(self, budget: int | None) -> None:
        self.budget = budget
        self.held: set[Node] = set()
        self.stored: set[Node] = set()
        self.now = self.peak = self.disk = self.disk_peak = self.written = 0
        self.next: dict[Node, int] = {}
        self.heap: list[tuple[int, int, Node]] = []  # minus the step of the next read, a tie's breaker, the node
        self.tie = count()

    def hold(self, node: Node) -> None:
        self.held.add(node)
        self.now += node.nbytes

    def need(self, node: Node) -> None:
        if node not in self.held:
            self.hold(node)

    def next_read(self, node: Node, step: int) -> None:
        self.next[node] = step
        if self.budget is not None:
            heapq.heappush(self.heap, (-step, next(self.tie), node))

    def evict(self, keep: set[Node]) -> tuple[Node, ...]:
        """Move to disk what is read last, until the rest fits."""
        spilled, later = [], []
        while self.budget is not None and self.now > self.budget and self.heap:
            entry = heapq.heappop(self.heap)
            step, _, node = entry
            if node not in self.held or self.next[node] != -step:
                continue
            if node in keep:
                later.append(entry)
                continue
            self.held.discard(node)
            self.now -= node.nbytes
            if node not in self.stored:
                self.stored.add(node)
                self.written += node.nbytes
                self.disk += node.nbytes
                self.disk_peak = max(self.disk_peak, self.disk)
            spilled.append(node)
        for entry in later:
            heapq.heappush(self.heap, entry)
        self.peak = max(self.peak, self.now)
        return tuple(spilled)

    def drop(self, node: Node) -> None:
        if node in self.held:
            self.held.discard(node)
            self.now -= node.nbytes
        if node in self.stored:
            self.stored.discard(node)
            self.disk -= node.nbytes
