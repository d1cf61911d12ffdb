"""A whole real scene in one pass: dubai/tile8, 6447 x 4438 px, U-Net with random weights, all cores, against crops.

Bars: within 20 GiB of resident memory; not above the estimate that was printed; the labels of the plain call, and in
four tiles the same, but for ties (so there are no seams, and no windows to measure them at); faster than
``predict_scene`` with 50 % overlap at its best window (256 or 512 px) and batch size, which are found on the upper left
sixteenth of the scene.

    RSSEGLAB_DATA=folder python tests/benchmarks/whole_inference.py [--encoder resnet18] [--record]  # half an hour
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from verdicts import record, verdict

WINDOWS, BATCHES = (256, 512), (1, 4, 8)


def trained(encoder):
    """A network of random weights, as if it had been trained."""
    import torch

    from rsseglab.decoders import create_network
    from rsseglab.scenes.manifest import load_manifest
    from rsseglab.training.checkpoint import TrainedNetwork

    torch.manual_seed(0)
    scene = load_manifest("dubai").scene("tile8")
    network = create_network(encoder, "unet", scene.count, len(scene.classes)).eval()
    mean, std = torch.full((scene.count,), 110.0), torch.full((scene.count,), 45.0)
    values = (scene.bands, mean, std, scene.classes, scene.ignore_values, 512, scene.gsd_m, encoder, "unet")
    return TrainedNetwork(network, *values), scene


def normalized(network, scene):
    """All of a scene, as the network takes it: (1, bands, height, width), padded, 0 where there is no data."""
    import torch

    from rsseglab.inference.whole import padded_size

    image = network.normalize(torch.from_numpy(scene.read().astype("float32"))) * torch.from_numpy(scene.read_valid())
    height, width = padded_size(scene)
    image = torch.nn.functional.pad(image, (0, width - scene.width, 0, height - scene.height))
    return image[None].contiguous(memory_format=torch.channels_last)


def part_of(scene, share):
    """The upper left of a scene, in memory."""
    from rsseglab.scenes.raster import ArraySource
    from rsseglab.scenes.scene import Scene, Window

    if share == 1:
        return scene
    pixels = scene.read(Window(0, 0, int(scene.height * share), int(scene.width * share)))
    return Scene(ArraySource(pixels.transpose(1, 2, 0)), name=scene.name, bands=scene.bands)


def work(encoder, way, folder):
    """One measurement, in a process of its own; says what it found as JSON."""
    import numpy as np
    import torch

    from rsseglab.inference import Cropping, predict_scene, predict_whole
    from rsseglab.inference.estimate import estimate_mib
    from rsseglab.inference.whole import padded_size
    from rsseglab.scenes.raster import RasterSource
    from rsseglab.spatial import Layout

    network, scene = trained(encoder)
    kind, *options = way.split()
    path = Path(folder) / f"{kind}.tif"
    found = {}
    if kind == "crops":
        window, batch, share = int(options[0]), int(options[1]), float(options[2])
        cropping = Cropping(window, 0.5, "hann", "flush", batch)
        done = predict_scene(network, part_of(scene, share), path, cropping, device="cpu", progress=False)
        found = {"seconds": done.seconds}
    elif kind == "whole":
        done = predict_whole(network, scene, path, device="cpu", progress=True)
        estimate = estimate_mib(network.network, scene.count, *padded_size(scene))
        found = {"seconds": done.seconds, "above_standing_mib": done.peak_mib, "estimate_mib": estimate}
    else:
        whole = RasterSource(Path(folder) / "whole.tif").read(scene.window)[0]
        if kind == "tiles":
            done = predict_whole(network, scene, path, Layout(4), device="cpu", progress=False)
            other, valid = RasterSource(done.path).read(scene.window)[0], True
        else:
            valid, image = scene.read_valid(), normalized(network, scene)
            plain = network.network.to(memory_format=torch.channels_last)
            with torch.inference_mode():
                logits = plain(image)[0]
            index = logits[:, : scene.height, : scene.width].argmax(0).numpy()
            other = np.array([c.value for c in scene.classes], np.uint8)[index]
        found = {"differing_px": int(((whole != other) & valid).sum())}
    found["threads"] = torch.get_num_threads()
    found["resident_mib"] = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
    print(json.dumps(found))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", default="tf_efficientnet_lite0")
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        return work(args.encoder, *args.work)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:

        def measured(way):
            command = [sys.executable, __file__, "--encoder", args.encoder, "--work", way, folder]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found = json.loads(done.stdout.splitlines()[-1])
            print(f"{way}: {found}", flush=True)
            return found

        whole = measured("whole")
        plain, tiles = measured("plain"), measured("tiles")
        small = {(w, b): measured(f"crops {w} {b} 0.25")["seconds"] for w in WINDOWS for b in BATCHES}
        window, batch = min(small, key=lambda pair: small[pair])
        crops = measured(f"crops {window} {batch} 1")
    ratio = crops["seconds"] / whole["seconds"]
    px = 6447 * 4438
    good = verdict(f"{whole['resident_mib'] / 1024:.1f} GiB resident, at most 20", whole["resident_mib"] <= 20 * 1024)
    low = whole["above_standing_mib"] <= whole["estimate_mib"]
    good &= verdict(
        f"of the estimated {whole['estimate_mib']:.0f} MiB it took {whole['above_standing_mib']:.0f}, not more", low
    )
    good &= verdict(f"{plain['differing_px']} px differ from the plain call's argmax", plain["differing_px"] == 0)
    good &= verdict(
        f"{tiles['differing_px']} px differ in four tiles, at most 1e-5 of all", tiles["differing_px"] <= 1e-5 * px
    )
    good &= verdict(
        f"{whole['seconds']:.1f} s, {ratio:.2f} times as fast as crops of {window} px, {batch} at a time, more than "
        "once",
        ratio > 1,
    )
    if args.record:
        command = "python tests/benchmarks/whole_inference.py --record"
        configuration = {
            "scene": "dubai/tile8", "encoder": args.encoder, "decoder": "unet", "overlap": 0.5,
            "threads": whole["threads"], "window_px": window, "batch_size": batch,
        }  # fmt: skip
        metrics = {
            "ratio": ratio,
            "seconds": whole["seconds"],
            "resident_gib": whole["resident_mib"] / 1024,
            "above_standing_mib": whole["above_standing_mib"],
            "estimate_mib": whole["estimate_mib"],
            "differing_px": plain["differing_px"],
            "differing_px_four_tiles": tiles["differing_px"],
            "crops_seconds": crops["seconds"],
            "crops_resident_gib": crops["resident_mib"] / 1024,
        }  # fmt: skip
        record("benchmark_whole_inference", command, configuration, metrics, (time.perf_counter() - begin) / 60)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
