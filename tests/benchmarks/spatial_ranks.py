"""Two gloo ranks against one process: Unet-ResNet18, forward + backward, one thread a rank, channels_last.

Bars: speed-up >= 1.8, >= 0.85 of what two independent half scenes reach; peak memory a rank, less
what stands after the model is built, <= 0.60 of the single process's. Wall time suffers where other work
shares the cores, so CPU seconds a rank stand beside it.

    python tests/benchmarks/spatial_ranks.py [--size 2048] [--repeats 3]
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.device_mesh import init_device_mesh

from rsseglab.spatial import Layout, from_tile, sync_gradients


def rss_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def worker(rank, name, world, threads, size, repeats, folder):
    import segmentation_models_pytorch as smp

    torch.set_num_threads(threads)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/{name}", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = smp.Unet("resnet18", encoder_weights=None, classes=6).to(memory_format=torch.channels_last)
    floor = rss_mib()
    layout = Layout(2, 1, init_device_mesh("cpu", (2,))) if name == "ranks" else None
    height = size if name in ("one", "threads") else size // 2
    x = torch.randn(1, 3, height, size).to(memory_format=torch.channels_last)
    wall, cpu = [], []
    for _ in range(repeats + 1):
        if world > 1:
            dist.barrier()
        start, start_cpu = time.perf_counter(), time.process_time()
        y = model(x if layout is None else from_tile(x, layout, size, size))
        y.mean().backward()
        if layout is not None:
            sync_gradients(model, layout)
        model.zero_grad()
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - start_cpu)
    result = {
        "wall": statistics.median(wall[1:]),
        "cpu": statistics.median(cpu[1:]),
        "memory": rss_mib() - floor,
    }
    Path(folder, f"{name}{rank}.json").write_text(json.dumps(result))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, world, threads in (("one", 1, 1), ("ranks", 2, 1), ("halves", 2, 1), ("threads", 1, 2)):
            mp.spawn(worker, (name, world, threads, args.size, args.repeats, folder), nprocs=world)
            ranks = [json.loads(Path(folder, f"{name}{r}.json").read_text()) for r in range(world)]
            found[name] = {key: max(r[key] for r in ranks) for key in ranks[0]}
            print(name, {k: round(v, 2) for k, v in found[name].items()}, flush=True)
    one, ranks, halves = found["one"], found["ranks"], found["halves"]
    for clock in ("wall", "cpu"):
        speedup, possible = one[clock] / ranks[clock], one[clock] / halves[clock]
        print(f"{clock}: speed-up {speedup:.2f}, two half scenes {possible:.2f}, share {speedup / possible:.2f}")
    print(f"memory a rank: {ranks['memory'] / one['memory']:.2f} of one process")
    print(f"one process, two threads: speed-up {one['wall'] / found['threads']['wall']:.2f}")


if __name__ == "__main__":
    main()
