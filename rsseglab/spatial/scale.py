"""Measure how the engine scales: ``rsseglab scale``, or ``python -m rsseglab.spatial.scale`` where torch is alone.

For each number of ranks P: seconds and Mpx/s of forward and of forward + backward, peak memory a rank above
what stands after the model is built, and bytes sent (counted). *Strong*: one scene for all P. *Weak*: a
scene whose rows grow with P. Beside the measurement stands a model,

    t(P) = t_1 w(P) + messages alpha + sums gamma + bytes / beta

with t_1 the seconds of one rank on one scene and w(P) the work of the largest tile as a share of it; messages,
sums and bytes reckoned from the layout by a run on ``meta`` tensors in one process (``reckon``); alpha, beta and
gamma from a ping-pong and a small sum on the same back end. A fit of t(P) = c w(P) + d (P > 1) tells what was
met: c, seconds for one scene, and d, seconds that no rank takes off another.

Writes a record (JSON), a CSV and, where matplotlib is installed, a plot. Launches its own ranks; on a machine of
many nodes start it under ``torchrun`` instead, and it takes the ranks that are there.
"""

from __future__ import annotations

import argparse
import copy
import csv
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import spawn

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
    device = _device(options, layout.rank)
    torch.manual_seed(0)
    form = torch.channels_last
    model = UNet(width=options.width).to(device).to(memory_format=form)
    width, (_, _, rows, cols) = options.size, layout.windows(height, options.size)[layout.rank]
    reckoned = {
        "forward": reckon(model, layout, height, width, False),
        "forward_backward": reckon(model, layout, height, width, True),
    }
    floor = standing_mib(device)
    tile = torch.randn(1, 3, rows, cols, device=device).to(memory_format=form)
    scene = tile
    if layout.mesh is not None:
        scene = from_tile(tile, layout, height, width)
    elif options.tiles > 1:
        scene = cut(tile, Layout(options.tiles))

    def forward() -> None:
        with torch.inference_mode():
            model.eval()(scene)

    def both() -> None:
        model.train()(scene).mean().backward()
        sync_gradients(model, layout)
        model.zero_grad()

    share = max(h * w for _, _, h, w in layout.windows(height, width)) / options.size**2
    row: Row = {"kind": kind, "ranks": layout.parts, "height_px": height, "width_px": width, "work_share": share}
    for name, step in (("forward", forward), ("forward_backward", both)):
        seconds = seconds_of(step, device, options.repeats)
        Traffic.reset()
        step()
        sent, messages, sums = Traffic.most()
        most = torch.tensor([seconds, sent, messages, peak_mib(device) - floor], dtype=torch.float64, device=device)
        if layout.mesh is not None:
            dist.all_reduce(most, dist.ReduceOp.MAX, group=layout.group)
        seconds, sent, messages, memory = most.tolist()
        row |= {
            f"{name}_seconds": seconds,
            f"{name}_mpx_per_s": height * width / 1e6 / seconds,
            f"{name}_bytes_sent_a_rank": int(sent) if layout.mesh is not None else 0,
            f"{name}_messages_a_rank": int(messages) if layout.mesh is not None else 0,
            f"{name}_sums": sums if layout.mesh is not None else 0,
            f"{name}_reckoned_bytes_a_rank": reckoned[name][0],
            f"{name}_reckoned_messages_a_rank": reckoned[name][1],
            f"{name}_reckoned_sums": reckoned[name][2],
            f"{name}_peak_mib_a_rank": memory,
        }
    return row | (link(layout, device) if layout.parts > 1 else {})


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


NAMES = ("forward", "forward_backward")


def with_model(rows: list[Row]) -> list[Row]:
    """Add speed-up, efficiency, the model's and the fit's seconds to measured rows (the least P is the base)."""
    for kind in {row["kind"] for row in rows}:
        group = sorted((r for r in rows if r["kind"] == kind), key=lambda r: int(r["ranks"]))
        base = group[0]
        for name in NAMES:
            one_scene = base[f"{name}_seconds"] / base["work_share"]
            fitted = fit([r["work_share"] for r in group], [r["ranks"] > 1 for r in group],
                         [r[f"{name}_seconds"] for r in group])  # fmt: skip
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
                row[f"{name}_fit_seconds"] = fitted[0] * row["work_share"] + fitted[1] * (row["ranks"] > 1)
    return sorted(rows, key=lambda r: (str(r["kind"]), int(r["ranks"])))


def fit(shares: list[float], many: list[bool], seconds: list[float]) -> tuple[float, float]:
    """Least squares of seconds = c share + d (many ranks), c and d not below zero."""
    if len(seconds) == 1:
        return seconds[0] / shares[0], 0.0
    terms = torch.tensor([shares, [float(m) for m in many]], dtype=torch.float64).T
    right = torch.tensor(seconds, dtype=torch.float64)
    c, d = torch.linalg.lstsq(terms, right[:, None], driver="gelsd").solution[:, 0].tolist()
    if d < 0:
        c, d = float(terms[:, 0] @ right / terms[:, 0].square().sum()), 0.0
    return c, d


def write(rows: list[Row], options: argparse.Namespace, folder: Path) -> list[Path]:
    """Write record, CSV and plot; returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "command": "rsseglab scale",
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


COLOURS = {"strong": "#0072B2", "weak": "#D55E00"}  # Okabe and Ito's, told apart by all


def _plot(rows: list[Row], path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.4), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True)
    kinds = sorted({str(r["kind"]) for r in rows})
    ranks = sorted({int(r["ranks"]) for r in rows})
    for (above, below), name in zip(grid.T, NAMES, strict=True):
        for kind in kinds:
            group = [r for r in rows if r["kind"] == kind]
            places = [r["ranks"] for r in group]
            drawn = {"color": COLOURS[kind], "markersize": 6}
            what = f"{kind} ({'one scene' if kind == 'strong' else 'rows grow with P'})"
            above.plot(places, [r[f"{name}_seconds"] for r in group], "o", label=f"{what}: measured", **drawn)
            above.plot(places, [r[f"{name}_fit_seconds"] for r in group], "-", label="fit", **drawn)
            above.plot(places, [r[f"{name}_model_seconds"] for r in group], ":", label="model", **drawn)
            below.plot(places, [r[f"{name}_efficiency"] for r in group], "o-", label=what, **drawn)
        above.set(title=name.replace("_", " + "), ylabel="seconds")
        below.set(xlabel="ranks P", ylabel="efficiency (speed-up / P)", xticks=ranks)
        above.set_ylim(bottom=0)
        below.set_ylim(0, max(1.1, below.get_ylim()[1]))
        below.axhline(1, color="0.6", linewidth=0.8)
        above.legend(fontsize="small", ncols=len(kinds))
        below.legend(fontsize="small", loc="lower left")
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


def _numbers(text: str) -> list[int]:
    """``--ranks 1,2,4`` as numbers."""
    numbers = [int(n) if n.strip().isdigit() else 0 for n in text.split(",")]
    if not all(numbers):
        raise SpatialError(f"scale: --ranks {text} is not a list of positive numbers; write such as 1,2,4.")
    return sorted(set(numbers))


def _check(options: argparse.Namespace) -> None:
    if options.size < 16 or options.size % 16:
        raise SpatialError(
            f"scale: --size {options.size} is not a multiple of 16, which the U-Net halves by; change it."
        )
    for name in ("width", "tiles", "threads", "repeats"):
        if getattr(options, name) < 1:
            raise SpatialError(f"scale: --{name} {getattr(options, name)} is below 1; give at least 1.")
    if options.device == "cuda":
        if not torch.cuda.is_available():
            raise SpatialError("scale: no CUDA device is to be seen; use --device cpu.")
        most = max(_numbers(options.ranks))
        if not _under_torchrun() and most > torch.cuda.device_count():
            raise SpatialError(f"scale: {most} ranks need as many GPUs, {torch.cuda.device_count()} are to be seen.")


def _under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def run(options: argparse.Namespace) -> list[Row]:
    """Measure every number of ranks, under torchrun those that are there."""
    _check(options)
    if _under_torchrun():
        torch.set_num_threads(options.threads)
        dist.init_process_group("nccl" if options.device == "cuda" else "gloo")
        rows = [_measure_kind(dist.get_world_size(), kind, options) for kind in _kinds(options)]
        first = dist.get_rank() == 0
        dist.destroy_process_group()
        return with_model(rows) if first else []
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for ranks in _numbers(options.ranks):
            for kind in _kinds(options):
                print(f"{kind} scaling, {ranks} rank{'s' if ranks > 1 else ''} ...", file=sys.stderr, flush=True)
                spawn(_worker, (ranks, kind, folder, options), nprocs=ranks)
                rows.append(json.loads(Path(folder, f"{kind}{ranks}.json").read_text()))
    return with_model(rows)


def scale(arguments: list[str] | None = None) -> list[Row]:
    """Measure, print a line a measurement, write record, CSV and plot.

    Raises:
        SpatialError: if the options can't be measured here.
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
    for path in write(rows, options, options.out) if rows else ():
        print(path.as_posix())
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    try:
        scale(arguments)
    except SpatialError as error:
        print(f"rsseglab: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
