"""Measure how the engine scales: ``python -m rsseglab.spatial.scale --ranks 1,2 --device cpu``.

For each number of ranks P: seconds and Mpx/s of forward and of forward + backward, peak memory a rank above
what stands after the model is built, and bytes sent (counted). *Strong*: one scene for all P. *Weak*: a
scene whose rows grow with P. Beside the measurement stands a model,

    t(P) = t_1 / P + messages * alpha + bytes / beta

with t_1 measured, messages and bytes counted by the exchange (that is, derived from the layout), and alpha
and beta from a ping-pong of the same back end. Writes a record (JSON), a CSV and, where matplotlib is
installed, a plot. Launches its own ranks; on a machine of many nodes start it under ``torchrun`` instead,
and it takes the ranks that are there. Needs torch alone.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from rsseglab.spatial import Layout, SpatialError, cut, from_tile, sync_gradients
from rsseglab.spatial.exchange import Traffic

Row = dict[str, Any]


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
    """The largest memory that this process (or its device) has held so far, MiB."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if platform.system() == "Darwin" else 2**10)


def resident_mib(device: torch.device) -> float:
    """What stands now: the floor from which the peak is counted, MiB."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device) / 2**20
    return peak_mib(device)


def ping_pong(layout: Layout, device: torch.device) -> tuple[float, float]:
    """Latency (s) and bandwidth (bytes/s) between the first two ranks, by halves of a round trip."""

    def half_trip(numbers: int) -> float:
        buffer = torch.zeros(numbers, device=device)
        taken: list[float] = []
        for _ in range(8):
            dist.barrier(layout.group)
            begin = time.perf_counter()
            if layout.rank == 0:
                dist.send(buffer, 1)
                dist.recv(buffer, 1)
            elif layout.rank == 1:
                dist.recv(buffer, 0)
                dist.send(buffer, 0)
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken.append((time.perf_counter() - begin) / 2)
        mine = torch.tensor(min(taken[2:]), device=device)
        dist.broadcast(mine, 0)
        return float(mine)

    small, large, numbers = half_trip(1), half_trip(2**20), 2**20
    return small, 4 * numbers / max(large - small, 1e-9)


def measure(options: argparse.Namespace, layout: Layout, height: int, kind: str) -> Row:
    """Time one scene on this layout; every rank takes part, and the slowest counts."""
    device = _device(options, layout.rank)
    torch.manual_seed(0)
    form = torch.channels_last
    model = UNet(width=options.width).to(device).to(memory_format=form)
    floor = resident_mib(device)
    width, scene = options.size, None
    if layout.mesh is None:
        whole = torch.randn(1, 3, height, width, device=device).to(memory_format=form)
        tiles = Layout(options.tiles)
        scene = cut(whole, tiles) if options.tiles > 1 else whole
    else:
        _, _, rows, cols = layout.windows(height, width)[layout.rank]
        tile = torch.randn(1, 3, rows, cols, device=device).to(memory_format=form)
        scene = from_tile(tile, layout, height, width)

    def forward() -> None:
        with torch.inference_mode():
            model.eval()(scene)

    def both() -> None:
        model.train()(scene).mean().backward()
        sync_gradients(model, layout)
        model.zero_grad()

    row: Row = {"kind": kind, "ranks": layout.parts, "height_px": height, "width_px": width}
    for name, step in (("forward", forward), ("forward_backward", both)):
        seconds = seconds_of(step, device, options.repeats)
        Traffic.reset()
        step()
        numbers = torch.tensor(
            [seconds, Traffic.bytes_sent, Traffic.messages, peak_mib(device) - floor],
            dtype=torch.float64,
            device=device,
        )
        if layout.mesh is not None:
            dist.all_reduce(numbers, dist.ReduceOp.MAX, group=layout.group)
        seconds, sent, messages, memory = numbers.tolist()
        row |= {
            f"{name}_seconds": seconds,
            f"{name}_mpx_per_s": height * width / 1e6 / seconds,
            f"{name}_bytes_sent_a_rank": int(sent),
            f"{name}_messages_a_rank": int(messages),
            f"{name}_peak_mib_a_rank": memory,
        }
    if layout.parts > 1:
        row["latency_s"], row["bandwidth_bytes_per_s"] = ping_pong(layout, device)
    return row


def _device(options: argparse.Namespace, rank: int) -> torch.device:
    if options.device == "cuda":
        torch.cuda.set_device(rank % torch.cuda.device_count())
        return torch.device("cuda", rank % torch.cuda.device_count())
    return torch.device("cpu")


def _worker(rank: int, ranks: int, kind: str, folder: str, options: argparse.Namespace) -> None:
    """One spawned rank, one measurement (a process's peak memory can't be reset)."""
    torch.set_num_threads(options.threads)
    if ranks > 1:
        dist.init_process_group(
            "nccl" if options.device == "cuda" else "gloo",
            init_method=f"file://{folder}/store{ranks}{kind}",
            rank=rank,
            world_size=ranks,
            timeout=timedelta(minutes=10),
        )
    row = _measure_kind(ranks, kind, options)
    if rank == 0:
        Path(folder, f"{kind}{ranks}.json").write_text(json.dumps(row))
    if ranks > 1:
        dist.destroy_process_group()


def _measure_kind(ranks: int, kind: str, options: argparse.Namespace) -> Row:
    layout = Layout(ranks, 1, init_device_mesh(options.device, (ranks,)) if ranks > 1 else None)
    return measure(options, layout, options.size * (ranks if kind == "weak" else 1), kind)


# ------------------------------------------------------------------------------------------- all of them


def with_model(rows: list[Row]) -> list[Row]:
    """Add speed-up, efficiency and the model's seconds to measured rows (the least P is the base)."""
    for kind in {row["kind"] for row in rows}:
        group = sorted((r for r in rows if r["kind"] == kind), key=lambda r: int(r["ranks"]))
        base = group[0]
        for row in group:
            grown = row["ranks"] / base["ranks"]
            for name in ("forward", "forward_backward"):
                t, t_base = row[f"{name}_seconds"], base[f"{name}_seconds"]
                speed = row[f"{name}_mpx_per_s"] / base[f"{name}_mpx_per_s"]
                row[f"{name}_speedup"], row[f"{name}_efficiency"] = speed, speed / grown
                compute = t_base / grown if kind == "strong" else t_base
                wait = row.get("latency_s", 0.0) * row[f"{name}_messages_a_rank"]
                wait += row[f"{name}_bytes_sent_a_rank"] / row.get("bandwidth_bytes_per_s", 1.0)
                row[f"{name}_model_seconds"] = compute + (wait if row["ranks"] > 1 else 0.0)
                assert t > 0
    return sorted(rows, key=lambda r: (str(r["kind"]), int(r["ranks"])))


def write(rows: list[Row], options: argparse.Namespace, folder: Path) -> list[Path]:
    """Write record, CSV and plot; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "command": "python -m rsseglab.spatial.scale",
        "options": {k: v for k, v in vars(options).items() if k != "out"},
        "torch": torch.__version__,
        "python": platform.python_version(),
        "hardware": torch.cuda.get_device_name() if options.device == "cuda" else platform.machine(),
        "cores": os.cpu_count(),
        "rows": rows,
    }
    paths = [folder / "scale.json", folder / "scale.csv"]
    paths[0].write_text(json.dumps(record, indent=1) + "\n")
    with paths[1].open("w", newline="") as file:
        names = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    try:
        paths.append(_plot(rows, folder / "scale.png"))
    except ImportError:
        print("matplotlib is not installed: no plot; the CSV holds the numbers.")
    return paths


def _plot(rows: list[Row], path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    kinds = sorted({str(r["kind"]) for r in rows})
    for axes, name in zip(figure.subplots(1, 2), ("forward", "forward_backward"), strict=True):
        for colour, kind in zip(("C0", "C1"), kinds, strict=False):
            group = [r for r in rows if r["kind"] == kind]
            ranks = [r["ranks"] for r in group]
            axes.plot(ranks, [r[f"{name}_seconds"] for r in group], "o-", color=colour, label=f"{kind}, measured")
            axes.plot(ranks, [r[f"{name}_model_seconds"] for r in group], ":", color=colour, label=f"{kind}, model")
        axes.set(title=name.replace("_", " + "), xlabel="ranks", ylabel="seconds", xticks=ranks)
        axes.set_ylim(bottom=0)
        axes.legend()
    figure.savefig(path, dpi=120)
    return path


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    p = argparse.ArgumentParser(prog="rsseglab scale", description="Measure how the spatial engine scales.")
    p.add_argument("--ranks", default="1,2", help="numbers of ranks to measure, by commas")
    p.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    p.add_argument("--size", type=int, default=1024, help="rows and columns of the scene, px (a multiple of 16)")
    p.add_argument("--width", type=int, default=16, help="channels of the U-Net at full resolution")
    p.add_argument("--tiles", type=int, default=1, help="tiles in one process, for one rank")
    p.add_argument("--threads", type=int, default=1, help="threads a rank")
    p.add_argument("--repeats", type=int, default=3)
    p.add_argument("--no-weak", dest="weak", action="store_false", help="strong scaling alone")
    p.add_argument("--out", type=Path, default=Path("scale"), help="folder for record, CSV and plot")
    return p


def _kinds(options: argparse.Namespace) -> tuple[str, ...]:
    return ("strong", "weak") if options.weak else ("strong",)


def run(options: argparse.Namespace) -> list[Row]:
    """Measure every number of ranks, under torchrun those that are there."""
    if options.size % 16:
        raise SpatialError(
            f"scale: --size {options.size} is not a multiple of 16, which the U-Net halves by; change it."
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SpatialError("scale: no CUDA device is to be seen; use --device cpu.")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
        rows = [_measure_kind(dist.get_world_size(), kind, options) for kind in _kinds(options)]
        first = dist.get_rank() == 0
        dist.destroy_process_group()
        return with_model(rows) if first else []
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (int(n) for n in options.ranks.split(",")):
            for kind in _kinds(options):
                mp.spawn(_worker, (ranks, kind, folder, options), nprocs=ranks)
                rows.append(json.loads(Path(folder, f"{kind}{ranks}.json").read_text()))
    return with_model(rows)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        rows = run(options)
    except SpatialError as error:
        print(error)
        return 2
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
    if rows:
        for path in write(rows, options, options.out):
            print(path.as_posix())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
