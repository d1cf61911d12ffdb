"""Dispatch overhead: Unet-ResNet18 forward + backward, cut in one process against plain PyTorch.

Bars: P = 1 within 1.05 x, four tiles within 1.10 x of plain; median of interleaved pairs, channels_last,
all threads.

    python tests/benchmarks/spatial_dispatch.py [--size 1024] [--pairs 15] [--tiles 1,4]
"""

import argparse
import statistics
import time

import segmentation_models_pytorch as smp
import torch

from rsseglab.spatial import Layout, cut


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
    parser.add_argument("--tiles", default="1,4")
    parser.add_argument("--nchw", action="store_true", help="plain and cut in NCHW instead of channels_last")
    args = parser.parse_args()
    torch.manual_seed(0)
    form = torch.contiguous_format if args.nchw else torch.channels_last
    model = smp.Unet("resnet18", encoder_weights=None, classes=6).to(memory_format=form)
    x = torch.randn(1, 3, args.size, args.size).to(memory_format=form)
    for tiles in map(int, args.tiles.split(",")):
        layout, pairs = Layout(tiles), []
        for k in range(args.pairs + 3):
            pair = (step(model, x, None), step(model, x, layout))
            if k >= 3:
                pairs.append(pair)
        plain, ours = (statistics.median(p[i] for p in pairs) for i in (0, 1))
        ratio = statistics.median(b / a for a, b in pairs)
        print(f"tiles {tiles}: plain {plain:.3f} s, cut {ours:.3f} s, ratio {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
