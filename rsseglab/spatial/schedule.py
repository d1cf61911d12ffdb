"""In which order the nodes of a program are computed, how long their results are kept, and what that takes.

The order is given; so it is known for each result when it is read next. Where results may not take more than so many
bytes, those that are read last are moved to disk (Belady, 1966), and come back when they are read.
"""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rsseglab.spatial.errors import SpatialError
from rsseglab.spatial.lazy import Node, Ref


class Step(NamedTuple):
    """Move results to disk; compute a node; forget results that nobody reads any more.

    Attributes:
        node: what is computed.
        spilled: nodes whose results go to disk, to make room.
        dropped: nodes whose results are read for the last time here.
        targets: numbers of the targets that are now complete.
        overwrites: whether the result takes the place of what it is made of, which nobody reads any more.
    """

    node: Node
    spilled: tuple[Node, ...]
    dropped: tuple[Node, ...]
    targets: tuple[int, ...]
    overwrites: bool


class Schedule:
    """A program's steps, and what they take.

    Args:
        order: its nodes, each after those that it reads.
        targets: what is wanted.
        memory_mib: most that results may take at a time; not bounded if None.

    Attributes:
        steps: in order.
        targets: what is wanted.
        memory_mib: as asked for.
        peak_bytes: most bytes of results held at a time; kernels' own workspace is not in it, nor is a window that has
            to be a copy of its band (of maps that are not channels-last, or come back from disk).
        disk_bytes: most bytes on disk at a time.
        written_bytes: bytes that are moved to disk in all.
        constant_bytes: of plain tensors that the steps read, such as masks and coordinates.
    """

    def __init__(self, order: Sequence[Node], targets: Sequence[Ref], memory_mib: float | None) -> None:
        self.targets, self.memory_mib = tuple(targets), memory_mib
        for ref in targets:
            ref.node.room = None  # whoever is given it gets its rows, and no others
        memory = _Memory(None if memory_mib is None else int(memory_mib * 2**20))
        self.steps = tuple(_steps(order, self.targets, memory))
        self.peak_bytes, self.disk_bytes, self.written_bytes = memory.peak, memory.disk_peak, memory.written
        storages = {id(x.untyped_storage()): x.untyped_storage() for step in self.steps for x in step.node.constants}
        self.constant_bytes = sum(storage.nbytes() for storage in storages.values())

    def play(
        self, inputs: Mapping[str, Any], spill: Path | None, after_step: Callable[[], object] | None
    ) -> Iterator[tuple[int, Any]]:
        """Do the steps; the number and the value of each target, in their order, as soon as it is complete.

        Raises:
            SpatialError: the disk is full.
        """
        values: dict[Node, Any] = {}
        if spill is not None:
            spill.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=spill) as folder:
            disk = _Disk(Path(folder), values)

            def finish(step: Step) -> None:
                for node in step.dropped:
                    disk.drop(node)
                if after_step is not None:
                    after_step()

            steps = iter(self.steps)
            while (step := _to_target(steps, disk, inputs, finish)) is not None:
                for target in step.targets:
                    yield target, self.targets[target].of(disk.value)
                finish(step)

    @property
    def passes(self) -> int:
        """How often the scene is gone through: once, and again after each operation over all that others wait for."""
        depth: dict[Node, int] = {}
        for step in self.steps:
            node = step.node
            depth[node] = max((depth[read] for read in node.reads), default=0) + node.barrier
        return 1 + max(depth.values(), default=0)

    def buffers(self) -> dict[str, tuple[int, int]]:
        """For each layer, the most bytes of its results held at a time, and those held at the worst moment of all."""
        now: dict[str, int] = {}
        most: dict[str, int] = {}
        worst: dict[str, int] = {}
        peak = total = 0
        for step, come, gone in self._changes():
            for node in step.spilled:
                total -= node.nbytes
                now[node.layer] -= node.nbytes
            for node in come:
                total += node.nbytes
                now[node.layer] = now.get(node.layer, 0) + node.nbytes
                most[node.layer] = max(most.get(node.layer, 0), now[node.layer])
            if total > peak:
                peak, worst = total, dict(now)
            for node in gone:
                total -= node.nbytes
                now[node.layer] -= node.nbytes
        return {layer: (most[layer], worst.get(layer, 0)) for layer in most}

    def held(self, target: int) -> list[Node]:
        """Nodes whose results are in memory when a target is complete."""
        there: dict[Node, None] = {}
        for step, come, gone in self._changes():
            for node in step.spilled:
                del there[node]
            there |= dict.fromkeys(come)
            if target in step.targets:
                break
            for node in gone:
                del there[node]
        return list(there)

    def _changes(self) -> Iterator[tuple[Step, list[Node], list[Node]]]:
        """For each step, the nodes whose results come into memory, and those that are dropped from it."""
        there: set[Node] = set()
        for step in self.steps:
            there.difference_update(step.spilled)
            needed = (*step.node.reads, *(self.targets[target].node for target in step.targets), step.node)
            come = [node for node in dict.fromkeys(needed) if node not in there]
            there.update(come)
            gone = [node for node in step.dropped if node in there]
            there.difference_update(gone)
            yield step, come, gone


def depth_first(wanted: Iterable[Node], eager: Iterable[Node] = ()) -> list[Node]:
    """Nodes in the order in which the wanted ones, one after the other, ask for them.

    Args:
        wanted: in the order of asking.
        eager: nodes that are computed as soon as they can be, as they are smaller than what they read.
    """
    order: dict[Node, None] = {}
    readers: dict[Node, list[Node]] = {}
    for node in eager:
        for read in node.reads:
            readers.setdefault(read, []).append(node)
    for node in wanted:
        stack = [node]
        while stack:
            if stack[-1] in order:
                stack.pop()
            elif missing := [read for read in stack[-1].reads if read not in order]:
                stack += reversed(missing)
            else:
                order[stack[-1]] = None
                ready = readers.get(stack.pop(), ())
                stack += [each for each in ready if all(read in order for read in each.reads)]
    return list(order)


def _to_target(
    steps: Iterator[Step], disk: _Disk, inputs: Mapping[str, Any], finish: Callable[[Step], None]
) -> Step | None:
    """Do the steps up to the next that completes a target, which is left to be finished."""
    with torch.no_grad(), _as_recorded():
        for step in steps:
            for node in step.spilled:
                disk.put(node)
            disk.values[step.node] = step.node.compute(disk.value, inputs, step.overwrites)
            if step.targets:
                return step
            finish(step)
    return None


def _steps(order: Sequence[Node], targets: Sequence[Ref], memory: _Memory) -> Iterator[Step]:
    """Play the order, counting bytes: what is dropped when, and what has to go to disk."""
    complete = _completions(order, targets)
    needed = [dict.fromkeys((*n.reads, *(targets[k].node for k in complete[i]), n)) for i, n in enumerate(order)]
    reads: dict[Node, list[int]] = {node: [] for node in order}  # when each is needed again, the next time last
    for step in range(len(order) - 1, -1, -1):
        for node in needed[step]:
            if node is not order[step]:
                reads[node].append(step)
    kept = {ref.node for ref in targets}  # whoever was given them may look at them until the end
    for step, node in enumerate(order):
        keep = needed[step]
        for each in keep:
            if each is not node:
                reads[each].pop()
            memory.need(each)
        spilled = memory.evict(keep)
        dropped = tuple(each for each in keep if not reads[each])
        for each in keep:
            if reads[each]:
                memory.next_read(each, reads[each][-1])
            else:
                memory.drop(each)
        operand = node.operand
        overwrites = operand is not None and operand in dropped and operand not in kept
        if operand is not None and node.room is not None and operand.room is None:
            overwrites = False  # windows over it would have to be copies
        yield Step(node, spilled, dropped, tuple(complete[step]), overwrites)


def _completions(order: Sequence[Node], targets: Sequence[Ref]) -> list[list[int]]:
    """For each step, the targets that are then given: as soon as they are there, and so are those before them."""
    at = {node: step for step, node in enumerate(order)}
    complete: list[list[int]] = [[] for _ in order]
    latest = 0
    for number, ref in enumerate(targets):
        latest = max(latest, at[ref.node])
        complete[latest].append(number)
    return complete


@contextmanager
def _as_recorded() -> Iterator[None]:
    """Operations are those that autocast has, or has not, made of the network's when they were written down."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


class _Memory:
    """Bytes in memory and on disk, while a schedule is made."""

    def __init__(self, budget: int | None) -> None:
        self.budget = budget
        self.held: set[Node] = set()
        self.stored: set[Node] = set()
        self.now = self.peak = self.disk = self.disk_peak = self.written = 0
        self.next: dict[Node, int] = {}
        self.heap: list[tuple[int, int, Node]] = []  # minus the step of the next read, a tie's breaker, the node
        self.tie = count()

    def need(self, node: Node) -> None:
        """Make it, or bring it back."""
        if node not in self.held:
            self.held.add(node)
            self.now += node.nbytes

    def next_read(self, node: Node, step: int) -> None:
        self.next[node] = step
        if self.budget is not None and node.nbytes:
            heapq.heappush(self.heap, (-step, next(self.tie), node))

    def evict(self, keep: Container[Node]) -> tuple[Node, ...]:
        """Move to disk what is read last, until the rest fits, or nothing is left but what is needed now."""
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
            self._store(node)
            spilled.append(node)
        for entry in later:
            heapq.heappush(self.heap, entry)
        self.peak = max(self.peak, self.now)
        return tuple(spilled)

    def _store(self, node: Node) -> None:
        if node not in self.stored:
            self.stored.add(node)
            self.written += node.nbytes
            self.disk += node.nbytes
            self.disk_peak = max(self.disk_peak, self.disk)

    def drop(self, node: Node) -> None:
        self.next.pop(node, None)
        if node in self.held:
            self.held.discard(node)
            self.now -= node.nbytes
        if node in self.stored:
            self.stored.discard(node)
            self.disk -= node.nbytes


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
        if isinstance(result, torch.Tensor) and result.untyped_storage().nbytes() > result.nbytes:
            result = result.clone()  # a part of what the reader holds; all of that would be written
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
