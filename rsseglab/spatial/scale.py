"""Measure how the engine scales: ``rsseglab scale``, or ``python -m rsseglab.spatial.scale`` where torch is alone.

For each number of ranks P: seconds and Mpx/s of forward and of forward + backward, peak memory a rank above
what stands after the model is built, and bytes sent (counted). *Strong*: one scene for all P. *Weak*: a
scene whose rows grow with P. Beside the measurement stands a model,

    t(P) = t_1 w(P) + messages alpha + sums gamma + bytes / beta

with t_1 the seconds of one rank on one scene and w(P) the work of the largest tile as a share of it; messages,
sums and bytes reckoned from the layout by a run on ``meta`` tensors in one process (``reckon``); alpha, beta and
gamma from a ping-pong and a small sum on the same back end. From three numbers of ranks on, a fit of
t(P) = c w(P) + d (P > 1) tells what was met: c, seconds for one scene, and d, seconds that no rank takes off
another (through two points it would pass whatever they are).

Speed-up, efficiency and t_1 are relative to the least P that was measured: to one rank, if it is among them.

Writes a record (JSON), a CSV and, where matplotlib is installed, a plot. Launches its own ranks; on a machine of
many nodes start it under ``torchrun`` instead, and it takes the ranks that are there, in place of ``--ranks``.
"""

from __future__ import annotations

import argparse
import copy
import csv
import io
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from rsseglab.errors import UserError
from rsseglab.launch import backend, launch, leave, under_torchrun
from rsseglab.spatial import Layout, SpatialError, cut, from_tile, sync_gradients
from rsseglab.spatial.exchange import Traffic

Row = dict[str, Any]
NAMES = ("forward", "forward_backward")


class Block(nn.Sequential):
    """Two convolutions, each with batch norm and ReLU."""

    def __init__(self, inside: int, outside: int) -> None:
        layers: list[nn.Module] = []
        for channels in (inside, outside):
            layers += [nn.Conv2d(channels, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside)]
            layers += [nn.ReLU(inplace=True)]
        super().__init__(*layers)


class UNet(nn.Module):
    """A plain U-Net (Ronneberger et al. 2015, with padding and batch norm): the default network.

    Args:
        bands: input channels.
        classes: output channels.
        width: channels at full resolution; doubled at each of the ``depth`` halvings.
        depth: number of halvings.
    """

    def __init__(self, bands: int = 3, classes: int = 6, width: int = 16, depth: int = 4) -> None:
        super().__init__()
        widths = [width * 2**k for k in range(depth + 1)]
        self.down = nn.ModuleList([Block(a, b) for a, b in zip([bands, *widths], widths, strict=False)])
        self.pool = nn.MaxPool2d(2)
        self.lift = nn.ModuleList([nn.ConvTranspose2d(b, a, 2, 2) for a, b in pairwise(widths)])
        self.up = nn.ModuleList([Block(2 * a, a) for a in widths[:-1]])
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, bands, H, W) to (B, classes, H, W); H and W multiples of 2 ** depth."""
        kept: list[Tensor] = []
        for k, block in enumerate(self.down):
            x = block(self.pool(x) if k else x)
            kept.append(x)
        kept.pop()
        for k in reversed(range(len(self.up))):
            x = self.up[k](torch.cat([kept.pop(), self.lift[k](x)], 1))
        logits: Tensor = self.head(x)
        return logits


# ------------------------------------------------------------------------------------------- one rank


def seconds_of(step: Callable[[], Any], device: torch.device, repeats: int) -> float:
    """Median seconds of ``step`` after one warm-up; by events on an accelerator."""
    step()
    taken: list[float] = []
    for _ in range(repeats):
        if dist.is_initialized():
            dist.barrier()
        if device.type == "cuda":
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            step()
            stop.record()
            torch.cuda.synchronize()
            taken.append(start.elapsed_time(stop) / 1000)
        else:
            begin = time.perf_counter()
            step()
            taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def peak_mib(device: torch.device) -> float:
    """The most memory that this process (or its device) has held since ``standing_mib``, MiB."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**20
    if STATUS.exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if platform.system() == "Darwin" else 2**10)


def standing_mib(device: torch.device) -> float:
    """What stands now, MiB; from here on the peak is counted anew, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    if not STATUS.exists():
        return peak_mib(device)
    with suppress(OSError):  # some containers forbid it; the peak so far is then the floor
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmHWM")


STATUS = Path("/proc/self/status")


def _status(name: str) -> float:
    return int(STATUS.read_text().split(f"{name}:")[1].split()[0]) / 2**10


def link(layout: Layout, device: torch.device) -> dict[str, float]:
    """Latency (s) and bandwidth (bytes/s) of a message, from halves of a round trip, and latency of a sum (s)."""

    def least(action: Callable[[], Any]) -> float:
        taken: list[float] = []
        for _ in range(10):
            dist.barrier(layout.group)
            begin = time.perf_counter()
            action()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - begin)
        slowest = torch.tensor(statistics.median(taken[2:]), device=device)
        dist.all_reduce(slowest, dist.ReduceOp.MAX, group=layout.group)
        return float(slowest)

    def round_trip(buffer: Tensor) -> None:
        if layout.rank == 0:
            dist.send(buffer, 1)
            dist.recv(buffer, 1)
        elif layout.rank == 1:
            dist.recv(buffer, 0)
            dist.send(buffer, 0)

    small, large = torch.zeros(1, device=device), torch.zeros(2**20, device=device)
    latency = least(lambda: round_trip(small)) / 2
    seconds = least(lambda: round_trip(large)) / 2 - latency
    return {
        "latency_s": latency,
        "bandwidth_bytes_per_s": large.numel() * large.element_size() / max(seconds, 1e-9),
        "sum_latency_s": least(lambda: dist.all_reduce(small, group=layout.group)),
    }


def reckon(model: nn.Module, layout: Layout, height: int, width: int, backward: bool) -> tuple[int, int, int]:
    """Bytes and messages of the tile that sends most, and the number of sums: from the layout alone.

    The same model runs on ``meta`` tensors, which have shapes and no values, in one process; the exchange
    says what it would have sent.
    """
    model = copy.deepcopy(model).to("meta").train(backward)
    tiles = Layout(layout.rows, layout.cols)
    Traffic.reset()
    with torch.set_grad_enabled(backward):
        y = model(cut(torch.empty(1, 3, height, width, device="meta"), tiles))
        if backward:
            y.mean().backward()
    sent, messages, sums = Traffic.most()
    if backward and layout.parts > 1:  # sync_gradients: one sum of all parameters' gradients
        parameters = sum(p.numel() * p.element_size() for p in model.parameters())
        sent, sums = sent + 2 * (layout.parts - 1) * parameters // layout.parts, sums + 1
    return sent, messages, sums


def measure(options: argparse.Namespace, layout: Layout, height: int, kind: str) -> Row:
    """Time one scene on this layout; every rank takes part, and the slowest counts."""
    device, width = _device(options, layout.rank), options.size
    torch.manual_seed(0)
    model = UNet(width=options.width).to(device).to(memory_format=torch.channels_last)
    reckoned = {name: reckon(model, layout, height, width, name == "forward_backward") for name in NAMES}
    floor = standing_mib(device)
    scene = _scene(options, layout, height, device)

    def forward() -> None:
        with torch.inference_mode():
            model.eval()(scene)

    def both() -> None:
        model.train()(scene).mean().backward()
        sync_gradients(model, layout)
        model.zero_grad()

    share = max(h * w for _, _, h, w in layout.windows(height, width)) / options.size**2
    row: Row = {"kind": kind, "ranks": layout.parts, "height_px": height, "width_px": width, "work_share": share}
    for name, step in zip(NAMES, (forward, both), strict=True):
        met = _met(step, layout, device, options.repeats)
        met["peak_mib_a_rank"] -= floor
        met["mpx_per_s"] = height * width / 1e6 / met["seconds"]
        what = ("reckoned_bytes_a_rank", "reckoned_messages_a_rank", "reckoned_sums")
        met |= zip(what, reckoned[name], strict=True)
        row |= {f"{name}_{key}": value for key, value in met.items()}
    return row | (link(layout, device) if layout.parts > 1 else {})


def _scene(options: argparse.Namespace, layout: Layout, height: int, device: torch.device) -> Tensor:
    """Random numbers, of which each rank draws its own tile."""
    _, _, rows, cols = layout.windows(height, options.size)[layout.rank]
    tile = torch.randn(1, 3, rows, cols, device=device).to(memory_format=torch.channels_last)
    if layout.mesh is not None:
        return from_tile(tile, layout, height, options.size)
    return cut(tile, Layout(options.tiles)) if options.tiles > 1 else tile


def _met(step: Callable[[], Any], layout: Layout, device: torch.device, repeats: int) -> Row:
    """Seconds, peak memory and traffic of a step, each of the rank with most."""
    seconds = seconds_of(step, device, repeats)
    Traffic.reset()
    step()
    sent, messages, sums = Traffic.most() if layout.mesh is not None else (0, 0, 0)  # tiles of one process send nothing
    most = torch.tensor([seconds, sent, messages, peak_mib(device)], dtype=torch.float64, device=device)
    if layout.mesh is not None:
        dist.all_reduce(most, dist.ReduceOp.MAX, group=layout.group)
    seconds, sent, messages, memory = most.tolist()
    return {
        "seconds": seconds,
        "bytes_sent_a_rank": int(sent),
        "messages_a_rank": int(messages),
        "sums": sums,
        "peak_mib_a_rank": memory,
    }


def _device(options: argparse.Namespace, rank: int) -> torch.device:
    if options.device == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu")


def _measure_kind(ranks: int, kind: str, options: argparse.Namespace) -> Row:
    """What a rank does; one measurement a process where they are launched, as its peak memory can't be reset."""
    torch.set_num_threads(options.threads)
    layout = Layout(ranks, 1, init_device_mesh(options.device, (ranks,)) if ranks > 1 else None)
    return measure(options, layout, options.size * (ranks if kind == "weak" else 1), kind)


# ------------------------------------------------------------------------------------------- all of them


def with_model(rows: list[Row]) -> list[Row]:
    """Add speed-up, efficiency, the model's and the fit's seconds to measured rows.

    The least P of a kind is the base of all of them. There is a fit from three numbers of ranks on.
    """
    for kind in {row["kind"] for row in rows}:
        group = sorted((r for r in rows if r["kind"] == kind), key=lambda r: int(r["ranks"]))
        base = group[0]
        for name in NAMES:
            one_scene = base[f"{name}_seconds"] / base["work_share"]
            shares, many = [r["work_share"] for r in group], [r["ranks"] > 1 for r in group]
            fitted = fit(shares, many, [r[f"{name}_seconds"] for r in group]) if len(group) > 2 else None
            for row in group:
                speed = row[f"{name}_mpx_per_s"] / base[f"{name}_mpx_per_s"]
                row[f"{name}_speedup"] = speed
                row[f"{name}_efficiency"] = speed * base["ranks"] / row["ranks"]
                exchange = 0.0
                if row["ranks"] > 1:
                    exchange += row[f"{name}_reckoned_messages_a_rank"] * row["latency_s"]
                    exchange += row[f"{name}_reckoned_sums"] * row["sum_latency_s"]
                    exchange += row[f"{name}_reckoned_bytes_a_rank"] / row["bandwidth_bytes_per_s"]
                row[f"{name}_model_seconds"] = one_scene * row["work_share"] + exchange
                if fitted is not None:
                    row[f"{name}_fit_seconds"] = fitted[0] * row["work_share"] + fitted[1] * (row["ranks"] > 1)
    return sorted(rows, key=lambda r: (str(r["kind"]), int(r["ranks"])))


def fit(shares: list[float], many: list[bool], seconds: list[float]) -> tuple[float, float]:
    """Least squares of seconds = c share + d (many ranks), c and d not below zero."""
    terms = torch.tensor([shares, [float(m) for m in many]], dtype=torch.float64).T
    right = torch.tensor(seconds, dtype=torch.float64)
    c, d = torch.linalg.lstsq(terms, right[:, None], driver="gelsd").solution[:, 0].tolist()
    if d < 0:
        c, d = float(terms[:, 0] @ right / terms[:, 0].square().sum()), 0.0
    if c < 0:
        c, d = 0.0, float(terms[:, 1] @ right / terms[:, 1].sum())
    return c, d


def write(rows: list[Row], options: argparse.Namespace) -> list[Path]:
    """Write record, CSV and plot, each whole or not at all; returns what was written."""
    measured = ",".join(str(ranks) for ranks in sorted({int(row["ranks"]) for row in rows}))  # not as under torchrun
    record = {
        "command": "rsseglab scale",
        "options": {k: v for k, v in vars(options).items() if k != "out"} | {"ranks": measured},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": torch.cuda.get_device_name() if options.device == "cuda" else platform.machine(),
        "cores": os.cpu_count(),
        "rows": rows,
    }
    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    contents = {"scale.json": (json.dumps(record, indent=1) + "\n").encode(), "scale.csv": table.getvalue().encode()}
    try:
        contents["scale.png"] = _plot(rows)
    except ImportError:
        print("matplotlib is not installed: no plot; the CSV holds the numbers.")
    return [_written(options.out / name, content) for name, content in contents.items()]


def _written(path: Path, content: bytes) -> Path:
    """Write a file whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(content)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


DRAWN: dict[str, Row] = {  # Okabe and Ito's colours, told apart by all; rings, as dots may coincide
    "strong": {"color": "#0072B2", "markersize": 5},
    "weak": {"color": "#D55E00", "markersize": 10, "markerfacecolor": "none"},
}


def _plot(rows: list[Row]) -> bytes:
    """Seconds above, efficiency below, for forward and forward + backward; as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True)
    ranks = sorted({int(r["ranks"]) for r in rows})
    sorts = {"seconds": ("measured", "o"), "model_seconds": ("model", ":"), "fit_seconds": ("fit", "-")}
    sorts = {key: how for key, how in sorts.items() if f"{NAMES[0]}_{key}" in rows[0]}
    for (above, below), name in zip(grid.T, NAMES, strict=True):
        for key, (label, style) in sorts.items():
            for kind in sorted({str(r["kind"]) for r in rows}):
                group = [r for r in rows if r["kind"] == kind]
                places = [r["ranks"] for r in group]
                what = f"{kind} ({'one scene' if kind == 'strong' else 'rows grow with P'}): {label}"
                above.plot(places, [r[f"{name}_{key}"] for r in group], style, label=what, **DRAWN[kind])
                if key == "seconds":
                    below.plot(places, [r[f"{name}_efficiency"] for r in group], style, **DRAWN[kind])
        above.set(title=name.replace("_", " + "), ylabel="seconds")
        below.set(xlabel="ranks P", ylabel="efficiency (speed-up / P)", xticks=ranks)
        above.set_ylim(bottom=0)
        below.set_ylim(0, max(1.1, below.get_ylim()[1]))
        below.axhline(1, color="0.6", linewidth=0.8)
    # one column for each sort of line, as legends are filled column by column
    figure.legend(handles=grid[0, 0].lines, loc="outside lower center", ncols=len(sorts))
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=120)
    return drawn.getvalue()


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(prog="rsseglab scale", description="Measure how the spatial engine scales.")
    p.add_argument("--ranks", default="1,2", help="numbers of ranks to measure, by commas")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--size", type=int, default=1024, help="rows and columns, px; a multiple of 16, from 32")
    p.add_argument("--width", type=int, default=16, help="channels of the U-Net at full resolution")
    p.add_argument("--tiles", type=int, default=1, help="tiles in one process, for one rank")
    p.add_argument("--threads", type=int, default=1, help="threads a rank")
    p.add_argument("--repeats", type=int, default=3, help="timed runs, of which the median counts")
    p.add_argument("--no-weak", dest="weak", action="store_false", help="strong scaling alone")
    p.add_argument("--out", type=Path, default=Path("scale"), help="folder for record, CSV and plot")
    return p


def _kinds(options: argparse.Namespace) -> tuple[str, ...]:
    return ("strong", "weak") if options.weak else ("strong",)


def _ranks(options: argparse.Namespace) -> list[int]:
    """``--ranks 1,2,4`` as numbers; under torchrun the ranks that are there."""
    if under_torchrun():
        return [int(os.environ["WORLD_SIZE"])]
    text = options.ranks
    numbers = [int(n) if n.strip().isdigit() else 0 for n in text.split(",")]
    if not all(numbers):
        raise SpatialError(f"scale: --ranks {text} is not a list of positive numbers; write such as 1,2,4.")
    return sorted(set(numbers))


def _check(options: argparse.Namespace) -> None:
    if options.size < 32 or options.size % 16:  # of 16 px one pixel would be left, which has no variance
        raise SpatialError(
            f"scale: --size {options.size} can't be halved four times by the U-Net; give a multiple of 16, from 32 on."
        )
    for name in ("width", "tiles", "threads", "repeats"):
        if getattr(options, name) < 1:
            raise SpatialError(f"scale: --{name} {getattr(options, name)} is below 1; give at least 1.")
    most = max(_ranks(options))
    for what, number in (("ranks", most), ("tiles", options.tiles)):
        if number > options.size:
            raise SpatialError(f"scale: {number} {what} are more than --size {options.size} has rows; take fewer.")
    if options.device == "cuda":
        if not torch.cuda.is_available():
            raise SpatialError("scale: no CUDA device is to be seen; use --device cpu.")
        if not under_torchrun() and most > torch.cuda.device_count():
            raise SpatialError(f"scale: {most} ranks need as many GPUs, {torch.cuda.device_count()} are to be seen.")


def run(options: argparse.Namespace) -> list[Row]:
    """Measure every number of ranks, under torchrun those that are there."""
    _check(options)
    options.out.mkdir(parents=True, exist_ok=True)  # a path that can't be written is known before minutes are spent
    if under_torchrun():
        dist.init_process_group(backend(options.device))
        rows = [_measure_kind(dist.get_world_size(), kind, options) for kind in _kinds(options)]
        first = dist.get_rank() == 0
        leave()
        return with_model(rows) if first else []
    rows = []
    for ranks in _ranks(options):
        for kind in _kinds(options):
            print(f"{kind} scaling, {ranks} rank{'s' if ranks > 1 else ''} ...", file=sys.stderr, flush=True)
            way_out = "take a smaller --size or --width"
            rows.append(launch(ranks, options.device, _measure_kind, ranks, kind, options, way_out=way_out))
    return with_model(rows)


def scale(arguments: list[str] | None = None) -> list[Row]:
    """Measure, print a line a measurement, write record, CSV and plot.

    Raises:
        SpatialError: if the options can't be measured here.
        OSError: if the folder can't be made or written.
    """
    options = parser().parse_args(arguments)
    rows = run(options)
    for row in rows:
        print(
            f"{row['kind']:6} P={row['ranks']}  {row['height_px']}x{row['width_px']}  "
            f"forward {row['forward_seconds']:.3f} s ({row['forward_speedup']:.2f}x, model "
            f"{row['forward_model_seconds']:.3f} s)  "
            f"forward+backward {row['forward_backward_seconds']:.3f} s "
            f"({row['forward_backward_speedup']:.2f}x, model {row['forward_backward_model_seconds']:.3f} s)  "
            f"{row['forward_backward_peak_mib_a_rank']:.0f} MiB a rank  "
            f"{row['forward_backward_bytes_sent_a_rank'] / 2**20:.1f} MiB sent"
        )
    least = min((int(row["ranks"]) for row in rows), default=1)
    if least > 1:
        print(f"The base of speed-up (x), efficiency and model is P={least}, the least that was measured.")
    for path in write(rows, options) if rows else ():
        print(path.as_posix())
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    try:
        scale(arguments)
    except (SpatialError, UserError) as error:
        print(f"rsseglab: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"rsseglab: {error}; check the path, the permissions and the free space.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nrsseglab: interrupted; no half-written file is left.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
