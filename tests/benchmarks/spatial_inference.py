"""Whole-scene inference in tiles against 50 %-overlap cropping (MONAI, 512 windows): Unet-ResNet18.

Bar: >= 2 x faster on 2048 x 2048, all threads, channels_last for both, MONAI at its best sw_batch_size.

    python tests/benchmarks/spatial_inference.py [--size 2048] [--repeats 3] [--tiles 1,4,8,16] [--record]
"""

import argparse
import sys
import time

import segmentation_models_pytorch as smp
import torch
from timing import crops, median_seconds
from verdicts import record, verdict

from rsseglab.spatial import Layout, cut, join


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiles", default="1,4,8,16")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    begin = time.perf_counter()
    torch.manual_seed(0)
    model = smp.Unet("resnet18", encoder_weights=None, classes=6).to(memory_format=torch.channels_last).eval()
    x = torch.randn(1, 3, args.size, args.size).to(memory_format=torch.channels_last)

    ways = {f"crops of 512, {b} at a time": crops(model, x, b, overlap=0.5) for b in (1, 4)}
    for tiles in map(int, args.tiles.split(",")):
        ways[f"whole, {tiles} tiles"] = lambda t=tiles: join(model(cut(x, Layout(t))))
    medians = median_seconds(ways, args.repeats)
    crop, whole = (min(s for name, s in medians.items() if name.startswith(way)) for way in ("crops", "whole"))
    good = verdict(
        f"the whole scene {crop / whole:.2f} times as fast as crops with 50 % overlap, at least 2", crop >= 2 * whole
    )
    if args.record:
        command = "python tests/benchmarks/spatial_inference.py --record"
        configuration = {"size": args.size, "repeats": args.repeats, "threads": torch.get_num_threads()}
        metrics = {"ratio": crop / whole, **{f"seconds: {name}": s for name, s in medians.items()}}
        record("benchmark_inference", command, configuration, metrics, (time.perf_counter() - begin) / 60)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
