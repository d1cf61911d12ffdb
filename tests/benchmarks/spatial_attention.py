"""Keys in a ring against keys gathered: eight layers of self-attention over ranks, forward + backward.

    python tests/benchmarks/spatial_attention.py [--ranks 4] [--size 96] [--record]

What a ring is for is memory: a rank holds its own keys and one visitor's instead of all, in every layer until the
backward pass. Bars: less memory a rank than gathering, at no more than 1.1 x its seconds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import spawn
from verdicts import record, verdict

from rsseglab.spatial import Layout, from_tile
from rsseglab.spatial.rules import ring
from rsseglab.spatial.scale import peak_mib, standing_mib

CHANNELS, HEADS, LAYERS, REPEATS = 64, 2, 8, 3
WAYS = {"gathered": float("inf"), "ring": 0}


class Attention(nn.Module):
    """Tokens of a map attend to all tokens."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS)

    def forward(self, tokens):
        b, n, c = tokens.shape
        q, k, v = self.qkv(tokens).reshape(b, n, 3, HEADS, c // HEADS).permute(2, 0, 3, 1, 4).unbind(0)
        return tokens + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)


def worker(rank, ranks, size, name, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/{name}", rank=rank, world_size=ranks)
    layout = Layout(ranks, 1, init_device_mesh("cpu", (ranks,)))
    ring.RING_BYTES = WAYS[name]
    torch.manual_seed(0)
    model = nn.Sequential(*[Attention() for _ in range(LAYERS)])
    _, _, rows, cols = layout.windows(size, size)[rank]
    scene = from_tile(torch.randn(1, CHANNELS, rows, cols), layout, size, size)
    floor, seconds = standing_mib(torch.device("cpu")), []
    for _ in range(REPEATS + 1):
        dist.barrier()
        start = time.perf_counter()
        model(scene.flatten(2).transpose(1, 2)).square().mean().backward()
        seconds.append(time.perf_counter() - start)
    numbers = torch.tensor([statistics.median(seconds[1:]), peak_mib(torch.device("cpu")) - floor])
    dist.all_reduce(numbers, dist.ReduceOp.MAX)
    if rank == 0:
        torch.save(numbers, Path(folder, f"{name}.pt"))
    dist.barrier()
    dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--size", type=int, default=96, help="rows and columns of the token map")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for name in WAYS:
            spawn(worker, (args.ranks, args.size, name, folder), nprocs=args.ranks)
        numbers = [torch.load(Path(folder, f"{name}.pt"), weights_only=True).tolist() for name in WAYS]
    for name, (seconds, mib) in zip(WAYS, numbers, strict=True):
        print(f"{name}: {seconds:.2f} s, {mib:.0f} MiB a rank")
    (slow, large), (seconds, mib) = numbers
    good = verdict(f"memory of the ring {mib / large:.2f} of gathering's < 1", mib < large)
    good &= verdict(f"its seconds {seconds / slow:.2f} of gathering's <= 1.1", seconds <= 1.1 * slow)
    if args.record:
        metrics = {"memory_ratio": mib / large, "seconds_ratio": seconds / slow}
        command = "python tests/benchmarks/spatial_attention.py --record"
        record("benchmark_attention", command, vars(args), metrics, (time.perf_counter() - begin) / 60)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
