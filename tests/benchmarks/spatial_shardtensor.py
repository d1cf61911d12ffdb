"""Against NVIDIA PhysicsNeMo's ShardTensor: two gloo ranks, bands of rows, on the operations that both support.

    pip install 'rsseglab[shardtensor]'
    python tests/benchmarks/spatial_shardtensor.py [--size 512] [--repeats 15] [--record]

Bar: over these operations, forward + backward, not slower (geometric mean of the ratios of seconds, which take turns in
one run); a line an operation tells each. Both are held to the plain call first: an operation that either refuses or
gets wrong is named and left out. ShardTensor is made for GPUs: on the CPU the benchmark registers its handlers itself.
"""

import argparse
import statistics
import sys
import tempfile
import time
from math import exp, log
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import spawn
from verdicts import record, verdict

CHANNELS = 32


def operations():
    """Names and modules, all of which keep 32 channels."""
    c = CHANNELS
    return {
        "conv 3x3": nn.Conv2d(c, c, 3, padding=1),
        "conv 1x1": nn.Conv2d(c, c, 1),
        "conv 7x7": nn.Conv2d(c, c, 7, padding=3),
        "conv 3x3 depthwise": nn.Conv2d(c, c, 3, padding=1, groups=c),
        "conv 3x3 stride 2": nn.Conv2d(c, c, 3, stride=2, padding=1),
        "conv 2x2 stride 2": nn.Conv2d(c, c, 2, stride=2),
        "conv_transpose 2x2 stride 2": nn.ConvTranspose2d(c, c, 2, 2),
        "max_pool 2": nn.MaxPool2d(2),
        "max_pool 3 stride 2": nn.MaxPool2d(3, 2, 1),
        "avg_pool 2": nn.AvgPool2d(2),
        "relu": nn.ReLU(),
        "gelu": nn.GELU(),
        "group_norm": nn.GroupNorm(4, c),
        "batch_norm": nn.BatchNorm2d(c),
        "nearest x2": nn.Upsample(scale_factor=2),
        "bilinear x2": nn.Upsample(scale_factor=2, mode="bilinear"),
        "8 x (conv 3x3, relu)": nn.Sequential(
            *[m for _ in range(8) for m in (nn.Conv2d(c, c, 3, padding=1), nn.ReLU())]
        ),
        "8 x (conv 3x3, group_norm, relu)": nn.Sequential(
            *[m for _ in range(8) for m in (nn.Conv2d(c, c, 3, padding=1), nn.GroupNorm(4, c), nn.ReLU())]
        ),
    }


def _ways(tile, mesh, size):
    """For each library: this rank's tile as a scene, what is local of an output, and the whole of it."""
    from physicsnemo.domain_parallel import ShardTensor, register_custom_ops
    from torch.distributed.tensor import Shard

    from rsseglab.spatial import Layout, from_tile, join

    register_custom_ops()
    shapes = {0: [tuple(tile.shape)] * 2}  # told, it need not gather them on a GPU
    layout = Layout(2, 1, mesh)
    return {
        "ours": (lambda: from_tile(tile, layout, size, size), lambda y: y.tiles[0], join),
        "ShardTensor": (
            lambda: ShardTensor.from_local(tile, mesh, (Shard(2),), sharding_shapes=shapes),
            lambda y: y.to_local(),
            lambda y: y.full_tensor(),
        ),
    }


def _step(way, module):
    """Seconds of forward and backward of the module alone."""
    scene, local, _ = way
    x = scene()
    dist.barrier()
    start = time.perf_counter()
    local(module(x)).square().mean().backward()
    module.zero_grad()
    return time.perf_counter() - start


def worker(rank, size, repeats, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    torch.manual_seed(0)
    x = torch.randn(1, CHANNELS, size, size)
    tile = x[:, :, rank * size // 2 : (rank + 1) * size // 2].clone().requires_grad_()
    ways, found = _ways(tile, mesh, size), {}
    for name, module in operations().items():
        whole, why = module(x).detach(), []
        for who, way in ways.items():
            try:
                result = way[2](module(way[0]())).detach()
                if result.shape != whole.shape or not torch.allclose(result, whole, rtol=1e-3, atol=1e-3):
                    why.append(f"{who} gives another result")
                _step(way, module)
            except Exception as error:  # whatever it is, it is what a user would see
                why.append(f"{who}: {type(error).__name__}: {str(error).splitlines()[0][:80]}")
        agreed = [None, None]
        dist.all_gather_object(agreed, why)
        if any(agreed):
            found[name] = sorted({w for each in agreed for w in each})
            continue
        seconds = {who: [] for who in ways}
        for k in range(repeats + 2):
            for who, way in list(ways.items())[:: 1 if k % 2 else -1]:  # who goes first finds the memory cold
                taken = _step(way, module)
                if k >= 2:
                    seconds[who].append(taken)
        found[name] = {who: statistics.median(s) for who, s in seconds.items()}
    if rank == 0:
        torch.save(found, Path(folder, "found.pt"))
    dist.barrier()
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        spawn(worker, (args.size, args.repeats, folder), nprocs=2)
        found = torch.load(Path(folder, "found.pt"), weights_only=True)
    ratios = {}
    for name, seconds in found.items():
        if isinstance(seconds, list):
            print(f"{name}: left out ({'; '.join(seconds)})")
            continue
        ratios[name] = seconds["ours"] / seconds["ShardTensor"]
        took = ", ".join(f"{who} {1000 * s:.1f} ms" for who, s in seconds.items())
        print(f"{name}: {took}, ratio {ratios[name]:.2f}")
    mean = exp(statistics.mean(map(log, ratios.values())))
    good = verdict(f"{mean:.2f} of ShardTensor's time (geometric mean of {len(ratios)}), at most 1", mean <= 1)
    if args.record:
        left_out = {name: why for name, why in found.items() if isinstance(why, list)}
        record(
            "benchmark_shardtensor",
            "python tests/benchmarks/spatial_shardtensor.py --record",
            {"size": args.size, "repeats": args.repeats, "left_out": left_out},
            {"geometric_mean_ratio": mean, **ratios},
            (time.perf_counter() - begin) / 60,
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
