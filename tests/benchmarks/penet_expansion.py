"""Expansion by similarity against the plain loop over pixels: seconds, and the same labels.

    python tests/benchmarks/penet_expansion.py [--record]

A map of 1024 x 1024 px, 64 channels, 6 classes: at least 10 times as fast.
"""

import argparse
import time

import numpy as np
import torch
from verdicts import record, verdict

from rsseglab.penet.expansion import mean_directions, similar_labels
from rsseglab.scenes import IGNORE_INDEX

CLASSES, DIM, SIDE_PX, THRESHOLD, MARGIN = 6, 64, 1024, 0.35, 0.05


def loop(features, anchors, prototypes):
    """Pixel by pixel."""
    label = anchors.copy()
    for i in range(SIDE_PX):
        for j in range(SIDE_PX):
            if anchors[i, j] == IGNORE_INDEX:
                cosine = prototypes @ features[i, j] / np.sqrt(features[i, j] @ features[i, j])
                first, second = np.argsort(cosine)[-1], np.sort(cosine)[-2]
                if cosine[first] >= THRESHOLD and cosine[first] - second >= MARGIN:
                    label[i, j] = first
    return label


def made():
    """Features that are like their class's, with noise, and one anchor in a thousand pixels."""
    torch.manual_seed(0)
    coarse = torch.randint(0, CLASSES, (SIDE_PX // 32, SIDE_PX // 32))
    truth = coarse.repeat_interleave(32, 0).repeat_interleave(32, 1)
    features = torch.randn(CLASSES, DIM, dtype=torch.float64)[truth].movedim(-1, 0)[None]
    features = features + 2 * torch.randn(features.shape, dtype=torch.float64)
    anchors = torch.where(torch.rand(truth.shape) < 1e-3, truth, IGNORE_INDEX)[None]
    return features.contiguous(), anchors, truth


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true")
    args, begin = parser.parse_args(), time.perf_counter()
    features, anchors, truth = made()
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        prototypes, known = mean_directions(features, anchors, CLASSES)
        ours = similar_labels(features, anchors, prototypes, known, THRESHOLD, MARGIN)[0]
        seconds.append(time.perf_counter() - start)
    rows = np.ascontiguousarray(features[0].movedim(0, -1).numpy())
    unit = torch.nn.functional.normalize(prototypes, dim=1).numpy()
    start = time.perf_counter()
    theirs = loop(rows, anchors[0].numpy(), unit)
    plain = time.perf_counter() - start
    expanded = ours != IGNORE_INDEX
    found = {
        "seconds": min(seconds),
        "loop_seconds": plain,
        "times_faster": plain / min(seconds),
        "differing_px": int((ours.numpy() != theirs).sum()),
        "coverage": float(expanded.double().mean()),
        "precision": float((ours == truth)[expanded].double().mean()),
    }
    print(f"{found['coverage']:.2f} of the pixels labelled, {found['precision']:.3f} of them right")
    verdict(f"{found['times_faster']:.1f} times as fast as the loop (at least 10)", found["times_faster"] >= 10)
    verdict(f"{found['differing_px']} labels differ (0)", found["differing_px"] == 0)
    if args.record:
        shape = {"classes": CLASSES, "channels": DIM, "side_px": SIDE_PX, "threshold": THRESHOLD, "margin": MARGIN}
        minutes = (time.perf_counter() - begin) / 60
        record("benchmark_penet_expansion", ["tests/benchmarks/penet_expansion.py"], shape, found, minutes)


if __name__ == "__main__":
    main()
