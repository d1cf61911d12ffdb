"""What benchmarks of speed share: MONAI's crops, and seconds of several ways that take turns."""

import gc
import statistics
import time

import torch
from monai.inferers import SlidingWindowInferer


def crops(model, image, batch, overlap):
    """Labelling by MONAI in windows of 512 px, some at a time, channels_last."""
    inferer = SlidingWindowInferer(512, batch, overlap=overlap, mode="constant")
    return lambda: inferer(image, lambda w: model(w.contiguous(memory_format=torch.channels_last)))


def median_seconds(ways, repeats):
    """Median seconds of each way; they take turns, and the first round warms up.

    As in Python's timeit, garbage is not collected meanwhile: a round of it takes 0.3 s and falls on any way.
    """
    seconds = {name: [] for name in ways}
    with torch.inference_mode():
        for k in range(repeats + 1):
            for name, way in ways.items():
                gc.collect()
                gc.disable()
                start = time.perf_counter()
                way()
                took = time.perf_counter() - start
                gc.enable()
                if k:
                    seconds[name].append(took)
    medians = {name: statistics.median(s) for name, s in seconds.items()}
    for name, s in medians.items():
        print(f"{name}: {s:.2f} s", flush=True)
    return medians
