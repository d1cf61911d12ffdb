"""Memory a rank of whole-scene training over gloo ranks: REST, exact, with SPIM at strides 16 and 32, AdamW.

Bar: peak memory a rank, less what stands after the model is built, falls as 1/P within 15 % for P = 1, 2, 4. What does
not fall is in it: gradients, the optimiser's state, the sum of gradients. Some minutes on two cores.

    python tests/benchmarks/training_memory.py [--size 2048] [--encoder tf_efficientnet_lite0] [--record]
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.multiprocessing.spawn import spawn
from verdicts import exactly, record, verdict

from rsseglab.rest import REST
from rsseglab.spatial import Layout, from_tile, sync_gradients
from rsseglab.spatial.scale import peak_mib, standing_mib
from rsseglab.training.losses import SegmentationLoss

CPU = torch.device("cpu")
CLASSES = 5


def worker(rank, ranks, size, encoder, interaction, folder):
    torch.set_num_threads(1)
    if ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/{ranks}", rank=rank, world_size=ranks)
    torch.manual_seed(0)
    model = REST(encoder, "unet", CLASSES, interaction, strides=(16, 32)).to(memory_format=torch.channels_last)
    optimizer, loss = torch.optim.AdamW(model.parameters()), SegmentationLoss("ce")
    layout = Layout(ranks, 1, init_device_mesh("cpu", (ranks,))) if ranks > 1 else None
    floor = standing_mib(CPU)
    height = size // ranks
    for _ in range(2):  # the second step has the optimiser's state from its start
        image = torch.randn(1, 3, height, size).to(memory_format=torch.channels_last)
        label = torch.randint(CLASSES, (1, height, size))
        if layout is not None:
            image, label = from_tile(image, layout, size, size), from_tile(label, layout, size, size)
        loss(model(image), label).backward()
        if layout is not None:
            sync_gradients(model, layout)
        optimizer.step()
        optimizer.zero_grad()
    parameters_mib = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    Path(folder, f"{ranks}_{rank}.json").write_text(json.dumps([peak_mib(CPU) - floor, parameters_mib]))
    if ranks > 1:
        dist.barrier()
        dist.destroy_process_group()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--interaction", default="exact+spim")
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    begin, metrics, good = time.perf_counter(), {}, True
    with tempfile.TemporaryDirectory() as folder:
        for ranks in (1, 2, 4):
            spawn(worker, (ranks, args.size, args.encoder, args.interaction, folder), nprocs=ranks)
            found = [json.loads(Path(folder, f"{ranks}_{rank}.json").read_text()) for rank in range(ranks)]
            metrics[f"peak_mib_{ranks}"] = max(peak for peak, _ in found)
            metrics["parameters_mib"] = found[0][1]
            metrics[f"ratio_{ranks}"] = metrics[f"peak_mib_{ranks}"] * ranks / metrics["peak_mib_1"]
            good &= verdict(
                f"{ranks} ranks: {metrics[f'peak_mib_{ranks}']:.0f} MiB a rank, "
                f"{metrics[f'ratio_{ranks}']:.2f} of one process's / {ranks} <= 1.15",
                metrics[f"ratio_{ranks}"] <= 1.15,
            )
    if args.record:
        metrics["claims"] = {"memory_ratio": exactly(max(metrics["ratio_2"], metrics["ratio_4"]))}
        command = "python tests/benchmarks/training_memory.py --record"
        configuration = {k: getattr(args, k) for k in ("size", "encoder", "interaction")}
        record("benchmark_training_memory", command, configuration, metrics, (time.perf_counter() - begin) / 60)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
