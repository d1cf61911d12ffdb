"""Dispatch overhead: Unet-ResNet18 forward + backward, cut in one process against plain PyTorch.

    python tests/benchmarks/spatial_dispatch.py [--size 1024] [--pairs 15] [--nchw] [--record]

Bars: P = 1 within 1.05 x, four tiles within 1.10 x of plain; median of interleaved pairs after three that warm up,
channels_last (the faster format), all threads. About five minutes on two cores.
"""

import argparse
import statistics
import sys
import time

import segmentation_models_pytorch as smp
import torch
from verdicts import record, verdict

from rsseglab.spatial import Layout, cut

BARS = {1: 1.05, 4: 1.10}


def step(model, x, layout):
    start = time.perf_counter()
    y = model(x if layout is None else cut(x, layout))
    y.mean().backward()
    model.zero_grad()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--nchw", action="store_true", help="plain and cut in NCHW instead of channels_last")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    torch.manual_seed(0)
    form = torch.contiguous_format if args.nchw else torch.channels_last
    model = smp.Unet("resnet18", encoder_weights=None, classes=6).to(memory_format=form)
    x = torch.randn(1, 3, args.size, args.size).to(memory_format=form)
    good, metrics, begin = True, {}, time.perf_counter()
    for tiles, bar in BARS.items():
        layout, pairs = Layout(tiles), []
        for k in range(args.pairs + 3):
            pair = (step(model, x, None), step(model, x, layout))
            if k >= 3:
                pairs.append(pair)
        ratio = statistics.median(b / a for a, b in pairs)
        plain, ours = (statistics.median(p[i] for p in pairs) for i in (0, 1))
        metrics |= {f"plain_seconds_{tiles}": plain, f"cut_seconds_{tiles}": ours, f"ratio_{tiles}": ratio}
        good &= verdict(
            f"{tiles} tiles: plain {plain:.3f} s, cut {ours:.3f} s, ratio {ratio:.3f} <= {bar}", ratio <= bar
        )
    if args.record:
        configuration = {
            "size": args.size,
            "pairs": args.pairs,
            "format": str(form),
            "threads": torch.get_num_threads(),
        }
        command = "python tests/benchmarks/spatial_dispatch.py --record"
        record("benchmark_dispatch", command, configuration, metrics, (time.perf_counter() - begin) / 60)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
