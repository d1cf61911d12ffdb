"""A training step of REST with SPIM: what a second worker saves, and what attention at stride 4 costs.

*Parallel efficiency*: seconds of one worker on a core, over twice the seconds of two gloo ranks, a core each, on one
scene, SPIM at strides 16 and 32. *Stride 4*: the share of a step's seconds that is saved where SPIM is at strides 8 to
32 instead of 4 to 32, one worker. Both with the interval of the mean over repeats. Nothing else may run beside it.

    python tests/benchmarks/rest_speed.py [--size 1024] [--repeats 5] [--record]      # half an hour
"""

import argparse
import sys
import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from verdicts import interval, record, verdict

from rsseglab.launch import launch
from rsseglab.rest import REST
from rsseglab.spatial import Layout, from_tile, sync_gradients
from rsseglab.training.losses import SegmentationLoss

ENCODER, CLASSES = "tf_efficientnet_lite0", 5


def seconds_of_steps(size, strides, repeats):
    """Seconds of each of some training steps on this rank's tile, after one that is not counted."""
    torch.set_num_threads(1)
    ranks = dist.get_world_size()
    torch.manual_seed(0)
    model = REST(ENCODER, "unet", CLASSES, "spim", strides=strides).to(memory_format=torch.channels_last)
    optimizer, loss = torch.optim.AdamW(model.parameters()), SegmentationLoss("ce")
    layout = Layout(ranks, 1, init_device_mesh("cpu", (ranks,)))
    image = torch.randn(1, 3, size // ranks, size).to(memory_format=torch.channels_last)
    label = torch.randint(CLASSES, (1, size // ranks, size))
    image, label = from_tile(image, layout, size, size), from_tile(label, layout, size, size)
    seconds = []
    for _ in range(repeats + 1):
        dist.barrier()
        start = time.perf_counter()
        loss(model(image), label).backward()
        sync_gradients(model, layout)
        optimizer.step()
        optimizer.zero_grad()
        dist.barrier()
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", action="store_true")
    args, begin = parser.parse_args(), time.perf_counter()
    found = {}
    for name, ranks, strides in (
        ("one", 1, (16, 32)), ("two", 2, (16, 32)), ("from_8", 1, (8, 16, 32)), ("from_4", 1, (4, 8, 16, 32)),
    ):  # fmt: skip
        found[name] = launch(ranks, "cpu", seconds_of_steps, args.size, strides, args.repeats)
        print(f"{name}: {', '.join(f'{s:.2f}' for s in found[name])} s", flush=True)
    efficiency = interval([one / 2 / two for one, two in zip(found["one"], found["two"], strict=True)])
    saved = interval([1 - few / all_ for few, all_ in zip(found["from_8"], found["from_4"], strict=True)])
    good = verdict(f"parallel efficiency {efficiency[0]:.2f} > 0.8", efficiency[0] > 0.8)
    good &= verdict(f"stride 4 takes {saved[0]:.0%} of a step > 25 %", saved[0] > 0.25)
    if args.record:
        configuration = {"size": args.size, "repeats": args.repeats, "encoder": ENCODER, "decoder": "unet"}
        metrics = {"seconds": found, "claims": {"parallel_efficiency": efficiency, "stride4_time_share": saved}}
        command = "python tests/benchmarks/rest_speed.py --record"
        record("benchmark_rest_speed", command, configuration, metrics, (time.perf_counter() - begin) / 60)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
