"""Streaming a scene through one device: memory against height, a scene of 400 Mpx, and speed against cropping.

    python tests/benchmarks/stream.py memory   # 2048 x 16384 px against 2048 x 2048: peak, at most 1.15 times
    python tests/benchmarks/stream.py large    # 20000 x 20000 px, ResNet-18 U-Net: under 6 GiB; an hour on two cores
    python tests/benchmarks/stream.py tile8    # dubai/tile8, 6447 x 4438 px: the labels of --whole; RSSEGLAB_DATA
    python tests/benchmarks/stream.py speed    # 2048 x 2048 px against crops of 512 px (MONAI): 2.5 and 1 / 1.25 times

with ``--record`` for a run record. Memory is the resident peak of a process of its own, the interpreter and torch
included; pixels are made a band at a time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from verdicts import record, verdict


def network():
    """U-Net on ResNet-18, random weights."""
    import segmentation_models_pytorch as smp
    import torch

    torch.manual_seed(0)
    model = smp.Unet("resnet18", encoder_weights=None, classes=6)
    return model.to(memory_format=torch.channels_last).eval()


def work(height, width):
    """Stream a made scene in this process; what it took, as JSON."""
    import torch

    from rsseglab.spatial import stream

    model = network()
    start = time.perf_counter()
    plan = stream.plan(model, height, width, 3)
    planned = time.perf_counter()

    def read(row0, row1):
        rows = torch.randn(1, 3, row1 - row0, width, generator=torch.Generator().manual_seed(row0))
        return rows.contiguous(memory_format=torch.channels_last)

    labels = 0
    for _, row1, logits in plan.run(read):
        labels += int(logits[0].argmax(0).sum())
        print(f"{row1} of {height} rows, {time.perf_counter() - start:.0f} s", file=sys.stderr, end="\r", flush=True)
    resident = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    found = {
        "resident_mib": resident, "planned_mib": plan.peak_bytes / 2**20, "plan_seconds": planned - start,
        "seconds": time.perf_counter() - start, "labels": labels, "steps": len(plan.steps),
        "threads": torch.get_num_threads(),
    }  # fmt: skip
    print(json.dumps(found))


def measured(height, width):
    command = [sys.executable, __file__, "work", str(height), str(width)]
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(f"{width} x {height} px: {found}", flush=True)
    return found


def memory():
    low, high = measured(2048, 2048), measured(16384, 2048)
    ratio = high["resident_mib"] / low["resident_mib"]
    good = verdict(f"peak of 2048 x 16384 px {ratio:.3f} times that of 2048 x 2048, at most 1.15", ratio <= 1.15)
    return good, {"low": low, "high": high, "ratio": ratio}


def large():
    found = measured(20000, 20000)
    gib = found["resident_mib"] / 1024
    found["resident_gib"] = gib
    return verdict(f"20000 x 20000 px in {gib:.2f} GiB, under 6; {found['seconds'] / 60:.0f} min", gib < 6), found


def tile8():
    """Labels of `predict_stream` and of `predict_whole`, of a network with random weights.

    The plain call's own error, at each pixel, is the largest difference of its scores from those in float64 (which are
    streamed: the whole call would take 30 GiB). Where the best score leads by more than twice this, labels have to be
    the same; the rest is counted.
    """
    import torch
    from whole_inference import normalized, trained

    from rsseglab.inference import predict_stream, predict_whole
    from rsseglab.scenes.raster import RasterSource
    from rsseglab.spatial import stream

    network, scene = trained("resnet18")
    with tempfile.TemporaryDirectory() as folder:
        ways = {"whole": predict_whole, "streamed": predict_stream}
        done = {n: way(network, scene, Path(folder) / f"{n}.tif", device="cpu") for n, way in ways.items()}
        whole, streamed = (torch.from_numpy(RasterSource(d.path).read(scene.window)[0]) for d in done.values())
    image = normalized(network, scene)
    with torch.inference_mode():
        plain = network.network(image)[0]
    model = network.network.double()
    plan = stream.plan(model, *image.shape[2:], scene.count)
    found = {"differing_px": 0, "undecided_px": 0, "differing_where_decided_px": 0, "error": 0.0}
    for row0, row1, scores in plan.run(lambda a, b: image[:, :, a:b].double()):
        rows = slice(row0, min(row1, scene.height))
        exact = scores[0, :, : rows.stop - row0, : scene.width]
        error = (plain[:, rows, : scene.width] - exact).abs().amax(0)
        lead = exact.topk(2, 0).values.diff(dim=0)[0].neg()
        other, decided = whole[rows] != streamed[rows], lead > 2 * error
        found["differing_px"] += int(other.sum())
        found["undecided_px"] += int((~decided).sum())
        found["differing_where_decided_px"] += int((other & decided).sum())
        found["error"] = max(found["error"], float(error.max()))
    wrong = found["differing_where_decided_px"]
    good = verdict(
        f"{wrong} px of {scene.height * scene.width} differ where the plain call's own error ({found['error']:.1e} at "
        f"most) decides; of {found['undecided_px']} others {found['differing_px'] - wrong}",
        wrong == 0,
    )
    costs = {f"{n}_{what}": getattr(d, what) for n, d in done.items() for what in ("seconds", "peak_mib")}
    return good, found | costs


def speed(size=2048, repeats=3):
    """From the image to scores by crops; to the label of each pixel by streaming, which plans anew each time."""
    import torch
    from timing import crops, median_seconds

    from rsseglab.spatial import stream

    model = network()
    x = torch.randn(1, 3, size, size).to(memory_format=torch.channels_last)

    def streamed(rows):
        def run():
            plan = stream.plan(model, size, size, 3, rows=rows)
            return [logits.argmax(1) for _, _, logits in plan.run(lambda a, b: x[:, :, a:b])]

        return run

    def labelled(scores):
        return lambda: scores().argmax(1)

    kinds = [(overlap, b) for overlap in (0.5, 0) for b in (1, 2, 4)]
    ways = {f"overlap {overlap}, {b} at a time": crops(model, x, b, overlap) for overlap, b in kinds}
    ways |= {f"overlap {overlap}, with labels": labelled(crops(model, x, 1, overlap)) for overlap in (0.5, 0)}
    ways |= {f"streamed, {rows or 'chosen'} rows": streamed(rows) for rows in (None, 128)}
    ways |= {"planning": lambda: stream.plan(model, size, size, 3), "plain": lambda: model(x)}
    medians = median_seconds(ways, repeats)
    ours = medians["streamed, chosen rows"]
    half, none = (min(s for n, s in medians.items() if n.startswith(f"overlap {o},") and "time" in n) for o in (0.5, 0))
    good = verdict(f"{half / ours:.2f} times as fast as 50 % overlap, at least 2.5", half / ours >= 2.5)
    good &= verdict(f"{ours / none:.2f} times the time of crops without overlap, at most 1.25", ours / none <= 1.25)
    metrics = {"times_as_fast": half / ours, "of_no_overlap": ours / none, "of_plain": ours / medians["plain"]}
    metrics["planning_share"] = medians["planning"] / ours
    metrics |= {f"with_labels_{o}": medians[f"overlap {o}, with labels"] / ours for o in (0.5, 0)}
    return good, metrics | {"seconds": medians, "threads": torch.get_num_threads()}


def main():
    if sys.argv[1:2] == ["work"]:
        return work(int(sys.argv[2]), int(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["memory", "large", "tile8", "speed"])
    parser.add_argument("--record", action="store_true")
    args, begin = parser.parse_args(), time.perf_counter()
    good, metrics = {"memory": memory, "large": large, "tile8": tile8, "speed": speed}[args.what]()
    if args.record:
        command = f"python tests/benchmarks/stream.py {args.what} --record"
        configuration = {"encoder": "resnet18", "decoder": "unet", "what": args.what}
        record(f"benchmark_stream_{args.what}", command, configuration, metrics, (time.perf_counter() - begin) / 60)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
