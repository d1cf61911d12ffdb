"""Two gloo ranks against one process: Unet-ResNet18, forward + backward, one thread a rank, channels_last.

Bars: speed-up >= 1.8, and >= 0.85 of what two independent half scenes reach; peak memory a rank, less what stands after
the model is built, <= 0.60 of the single process's. Wall time suffers where other work shares the cores, so CPU seconds
a rank are shown beside it; so is one process with two threads. About five minutes on two cores.

    python tests/benchmarks/spatial_ranks.py [--size 2048] [--repeats 3] [--record]
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import spawn
from verdicts import record, verdict

from rsseglab.spatial import Layout, from_tile, sync_gradients
from rsseglab.spatial.scale import peak_mib, standing_mib

CPU = torch.device("cpu")


def worker(rank, name, world, threads, size, repeats, folder):
    import segmentation_models_pytorch as smp

    torch.set_num_threads(threads)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/{name}", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = smp.Unet("resnet18", encoder_weights=None, classes=6).to(memory_format=torch.channels_last)
    floor = standing_mib(CPU)
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
        "memory": peak_mib(CPU) - floor,
    }
    Path(folder, f"{name}{rank}.json").write_text(json.dumps(result))
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    found, begin = {}, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for name, world, threads in (("one", 1, 1), ("ranks", 2, 1), ("halves", 2, 1), ("threads", 1, 2)):
            spawn(worker, (name, world, threads, args.size, args.repeats, folder), nprocs=world)
            ranks = [json.loads(Path(folder, f"{name}{r}.json").read_text()) for r in range(world)]
            found[name] = {key: max(r[key] for r in ranks) for key in ranks[0]}
            print(name, {k: round(v, 2) for k, v in found[name].items()}, flush=True)
    one, ranks, halves = found["one"], found["ranks"], found["halves"]
    speedup, possible = one["wall"] / ranks["wall"], one["wall"] / halves["wall"]
    share, memory = speedup / possible, ranks["memory"] / one["memory"]
    good = verdict(f"speed-up of two ranks {speedup:.2f} >= 1.8", speedup >= 1.8)
    good &= verdict(f"two half scenes {possible:.2f}; share {share:.2f} >= 0.85", share >= 0.85)
    good &= verdict(f"memory a rank {memory:.2f} of one process's <= 0.60", memory <= 0.6)
    print(f"in CPU seconds: speed-up {one['cpu'] / ranks['cpu']:.2f}, two half scenes {one['cpu'] / halves['cpu']:.2f}")
    print(f"one process, two threads: speed-up {one['wall'] / found['threads']['wall']:.2f}")
    if args.record:
        metrics = {f"{name}_{key}": value for name, values in found.items() for key, value in values.items()}
        metrics |= {"speedup": speedup, "share_of_half_scenes": share, "memory_ratio": memory}
        command = "python tests/benchmarks/spatial_ranks.py --record"
        configuration = {"size": args.size, "repeats": args.repeats}
        record("benchmark_ranks", command, configuration, metrics, (time.perf_counter() - begin) / 60)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
