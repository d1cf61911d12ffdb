"""As many heads as workers: how many pixels of a trained network change their class on another number of workers?

The network of the notebook *SPIM, tile by tile*: trained on twin scenes in four tiles with ``heads="world"``, then
asked for unseen scenes of 1024 px in other numbers of tiles, the guard set aside. The control is the same network with
its four heads fixed. Bars: more than 1 % of the pixels change, on average over the other numbers of tiles; none does in
the control but for ties. A few minutes on two cores.

    python tests/benchmarks/heads_world.py [--seeds 0 1 2] [--record]
"""

import argparse
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
from verdicts import interval, record, verdict

from rsseglab.rest import REST
from rsseglab.scenes.twins import CLASSES, normalise, twin_scenes
from rsseglab.spatial import Layout, cut, join

FOUR, OTHERS = Layout(2, 2), [Layout(1), Layout(2), Layout(4, 2), Layout(4, 4), Layout(8, 4), Layout(8, 8)]
LEVEL, STRIDE_PX, CONTEXT_PX = "4", 16, 128


def batch(numbers, size_px):
    """Both twins of each pair: images, normalised, and labels."""
    pairs = [twin_scenes(size_px, size_px, CONTEXT_PX, number) for number in numbers]
    images = torch.from_numpy(np.concatenate([normalise(pair.images) for pair in pairs]))
    return images, torch.from_numpy(np.concatenate([pair.labels for pair in pairs])).long()


def train(seed, steps):
    """A network with a head a tile, on four tiles."""
    torch.manual_seed(seed)
    model = REST("test_resnet", "fcn", len(CLASSES), "exact+spim", heads="world", strides=(STRIDE_PX,)).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.2)
    for step in range(steps):
        first = 100_000 * (seed + 1) + 2 * step
        images, labels = batch(range(first, first + 2), 256)
        loss = F.cross_entropy(join(model(cut(images, FOUR))), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def labels_of(model, images, layout, heads):
    """Class indices of scenes that are cut in tiles, with so many heads."""
    model.spims[LEVEL].heads = heads
    with torch.inference_mode():
        return torch.stack([join(model(cut(image[None], layout)))[0].argmax(0) for image in images])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--record", action="store_true")
    args, begin = parser.parse_args(), time.perf_counter()
    images, _ = batch([0], 1024)
    changed, control = {}, 0.0
    for seed in args.seeds:
        model = train(seed, args.steps)
        trained = labels_of(model, images, FOUR, 4)
        changed[seed] = {}
        for layout in OTHERS:
            shares = [
                float((labels_of(model, images, layout, heads) != trained).double().mean())
                for heads in (layout.parts, 4)
            ]
            changed[seed][layout.parts] = shares[0]
            control = max(control, shares[1])
        print(f"seed {seed}: " + ", ".join(f"{p} tiles {s:.1%}" for p, s in changed[seed].items()), flush=True)
    share = interval([float(np.mean(list(by_tiles.values()))) for by_tiles in changed.values()])
    good = verdict(f"{share[0]:.1%} of the pixels change their class, more than 1 %", share[1] > 0.01)
    good &= verdict(f"with four heads {control:.1e} do, at most 1e-5", control <= 1e-5)
    if args.record:
        configuration = {"steps": args.steps, "train_px": 256, "test_px": 1024, "context_px": CONTEXT_PX}
        metrics = {"changed": changed, "control": control, "claims": {"heads_world_changed_share": share}}
        command = "python tests/benchmarks/heads_world.py --record"
        minutes = (time.perf_counter() - begin) / 60
        record("benchmark_heads_world", command, configuration, metrics, minutes, args.seeds)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
