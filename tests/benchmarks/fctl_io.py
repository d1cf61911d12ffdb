"""What FCtL's contexts cost to read: a made scene of 5000 x 5000 px, tiled, deflated, with overviews, as RGB in bytes.

    python tests/benchmarks/fctl_io.py [--record]   # some minutes, most of them to make the scenes; Linux

Patches of 508 px, evenly placed with an overlap of 50 px or more: 11 x 11. Bars:

- the whole scene as a context, in a process of its own, the file in the page cache: 3 times less time than to read
  the scene in full, with what it takes to shrink that not counted;
- labelling the scene (`predict_contexts`), contexts of scale 1 (the patch itself), 2, 3 and the whole scene: at full
  resolution no more pixels than the patches have, all wider contexts smaller than what they show, the whole scene once;
- peak memory of labelling a scene four times as high: at most 1.15 times as much, as a whole and beyond what stands
  before the first read (libraries, mostly).

Prints a verdict a bar; exit code 1 if one is missed. Bytes are what the process read from files (rchar of
/proc/self/io), so those that GDAL's block cache saved are not in it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import rasterio
import torch
import torch.nn.functional as F
from rasterio.enums import Resampling
from torch import from_numpy
from verdicts import record, verdict

from rsseglab.fctl import Contexts, FCtL
from rsseglab.fctl.predict import predict_contexts
from rsseglab.inference import Cropping
from rsseglab.inference.windows import window_starts
from rsseglab.scenes import LabelClass, Scene, Window
from rsseglab.scenes.raster import RasterSource
from rsseglab.scenes.synthetic import write_synthetic_scene
from rsseglab.training.checkpoint import TrainedNetwork

PATCH, OVERLAP, SCALES = 508, 50, (1, 2, 3, "scene")
SIZE, TIMES_AS_HIGH, REPEATS = 5000, 4, 7


def starts(length):
    return window_starts(length, PATCH, PATCH - OVERLAP, "even")


def label(scene):
    """Label a scene by FCtL, its encoder and decoder small and untrained: how it reads is that of any."""
    torch.manual_seed(0)
    network = FCtL("test_resnet", SCALES, classes=2, decoder="fcn").eval()
    classes = (LabelClass("one", 1, (0, 0, 0)), LabelClass("two", 2, (255, 255, 255)))
    trained = TrainedNetwork(
        network, scene.bands, torch.full((3,), 100.0), torch.full((3,), 50.0), classes, (), PATCH, None, "test_resnet",
        "fcn", "fctl",
    )  # fmt: skip
    cropping = Cropping(PATCH, OVERLAP / PATCH, "flat", "even", step_px=1)
    assert cropping.starts(scene.height) == starts(scene.height)
    with tempfile.TemporaryDirectory() as folder:
        predict_contexts(trained, scene, Path(folder) / "label.tif", cropping, device="cpu", progress=False)


def read_contexts(scene, scales):
    """Contexts of all patches."""
    contexts = Contexts(scene, PATCH, scales)
    for row in starts(scene.height):
        for col in starts(scene.width):
            contexts.read(Window(row, col, PATCH, PATCH))


# --- In processes of their own ---------------------------------------------------------------------------


def bytes_read():
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


def timed(work):
    before, start = bytes_read(), time.perf_counter()
    result = work()
    return result, {"seconds": time.perf_counter() - start, "bytes": bytes_read() - before}


def small(scene):
    """The whole scene as a context."""
    contexts = Contexts(scene, PATCH, ("scene",))
    (pixels, _), found = timed(lambda: contexts.whole)
    return found | {"mean": float(pixels.mean())}


def full(scene):
    """The same of all its pixels."""
    pixels, found = timed(scene.read)
    area, shrunk = timed(lambda: F.interpolate(from_numpy(pixels).float()[None], (PATCH, PATCH), mode="area"))
    return found | {"mean": float(area.mean()), "shrink_seconds": shrunk["seconds"]}


def counted(scene):
    """Pixels that a pass asks of the file, at full resolution and smaller; windows of the whole scene."""
    read, read_small = RasterSource.read, RasterSource.read_small
    found = {"full_px": 0, "small_px": 0, "small_reads": 0, "whole_reads": 0, "full_reads": 0}

    def count(window, height, width):
        kind = "full" if (height, width) == (window.height, window.width) else "small"
        found[f"{kind}_px"] += height * width
        found[f"{kind}_reads"] += 1
        found["whole_reads"] += window == scene.window

    def counted_read(self, window):
        count(window, window.height, window.width)
        return read(self, window)

    def counted_read_small(self, window, height, width):
        count(window, height, width)
        return read_small(self, window, height, width)

    RasterSource.read, RasterSource.read_small = counted_read, counted_read_small
    _, cost = timed(lambda: label(scene))
    return found | cost


def bytes_of_scale(scene, scale):
    """A pass with contexts of a single scale."""
    return timed(lambda: read_contexts(scene, (scale,)))[1]


def peak(scene):
    """Peak memory of a pass, and what stood before it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew: that of the imports may be higher
    standing = status_mib("VmRSS")
    label(scene)
    return {"mib": status_mib("VmHWM"), "standing_mib": standing}


def status_mib(key):
    """Not from getrusage: that keeps the peak of the process that started this one."""
    return int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0]) / 1024


WORK = {"small": small, "full": full, "counted": counted, "peak": peak}
WORK |= {f"scale {scale}": lambda scene, scale=scale: bytes_of_scale(scene, scale) for scale in SCALES}


def own_process(what, path):
    command = [sys.executable, __file__, "work", what, str(path)]
    # GDAL keeps blocks, up to 128 MiB of them, which the lower scene does not have: their place is not the pass's.
    environment = os.environ | ({"GDAL_CACHEMAX": "16"} if what == "peak" else {})
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    return json.loads(done.stdout)


# --- The bars --------------------------------------------------------------------------------------------


def make_scene(folder, times):
    image, label = write_synthetic_scene(folder, f"x{times}", SIZE * times, SIZE, seed=0)
    label.unlink()
    with rasterio.open(image, "r+") as file:
        file.build_overviews([2, 4, 8, 16, 32], Resampling.average)
    with rasterio.open(image) as file:
        assert file.block_shapes == [(256, 256)] * 3 and file.compression.name == "deflate" and file.overviews(1)
    return image


def whole_scene(path):
    """Seconds and bytes of the scene as a context against those of a full read; they take turns."""
    runs = {"small": [], "full": []}
    for k in range(REPEATS + 1):
        for what, found in runs.items():
            run = own_process(what, path)
            if k:  # the first warms the page cache
                found.append(run)
    seconds = {what: median(run["seconds"] for run in found) for what, found in runs.items()}
    mib = {what: found[0]["bytes"] / 2**20 for what, found in runs.items()}
    shrink = median(run["shrink_seconds"] for run in runs["full"])
    print(f"the whole scene small: {seconds['small']:.3f} s, {mib['small']:.1f} MiB read")
    print(f"in full: {seconds['full']:.3f} s, {mib['full']:.1f} MiB read; and {shrink:.2f} s to shrink it", flush=True)
    means = [found[0]["mean"] for found in runs.values()]
    good = verdict(f"both show the same: means {means[0]:.2f} and {means[1]:.2f}", abs(means[0] - means[1]) < 0.5)
    ratio = seconds["full"] / seconds["small"]
    good &= verdict(f"{ratio:.1f} times less time, at least 3", ratio >= 3)
    metrics = {"seconds_small": seconds["small"], "seconds_full": seconds["full"], "seconds_to_shrink": shrink,
               "mib_small": mib["small"], "mib_full": mib["full"], "times_less_time": ratio,
               "times_fewer_bytes": mib["full"] / mib["small"]}  # fmt: skip
    return good, metrics


def one_pass(path):
    """What a pass reads of a scene."""
    patches = len(starts(SIZE)) ** 2
    demanded = patches * PATCH**2 / SIZE**2
    found = own_process("counted", path)
    share, smaller = found["full_px"] / SIZE**2, found["small_px"] / SIZE**2
    mib = {str(scale): own_process(f"scale {scale}", path)["bytes"] / 2**20 for scale in SCALES}
    print(f"a pass of {patches} patches: {found['seconds']:.1f} s, {found['bytes'] / 2**20:.0f} MiB read of a file of "
          f"{path.stat().st_size / 2**20:.0f}; by scale alone {', '.join(f'{k}: {v:.0f}' for k, v in mib.items())} MiB",
          flush=True)  # fmt: skip
    good = verdict(
        f"{share:.4f} px at full resolution a px of the scene, at most the patches' {demanded:.4f}",
        share <= demanded + 1e-9,
    )
    wide = patches * sum(scale not in (1, "scene") for scale in SCALES) + 1
    good &= verdict(
        f"{found['small_reads']} reads of wider contexts, {smaller:.3f} px a px of the scene: one each, {wide}",
        found["small_reads"] == wide and smaller <= wide * PATCH**2 / SIZE**2,
    )
    good &= verdict(f"the whole scene is read {found['whole_reads']} times, once", found["whole_reads"] == 1)
    metrics = {"patches": patches, "full_px_a_px": share, "demanded_px_a_px": demanded, "small_px_a_px": smaller,
               "whole_scene_reads": found["whole_reads"], "pass_seconds": found["seconds"],
               "pass_mib": found["bytes"] / 2**20, "file_mib": path.stat().st_size / 2**20,
               "pass_mib_by_scale": mib}  # fmt: skip
    return good, metrics


def memory(low, high):
    """Peak memory of a pass over a scene and over one that goes on below it."""
    found = [own_process("peak", path) for path in (low, high)]
    mib, beyond = [run["mib"] for run in found], [run["mib"] - run["standing_mib"] for run in found]
    ratio, ratio_beyond = mib[1] / mib[0], beyond[1] / beyond[0]
    print(f"peak resident memory: {mib[0]:.0f} MiB and, {TIMES_AS_HIGH} times as high, {mib[1]:.0f} MiB; beyond what "
          f"stood before: {beyond[0]:.0f} and {beyond[1]:.0f} MiB", flush=True)  # fmt: skip
    good = verdict(f"ratio {ratio:.3f}, at most 1.15", ratio <= 1.15)
    good &= verdict(f"ratio {ratio_beyond:.3f} beyond what stood before, at most 1.15", ratio_beyond <= 1.15)
    return good, {"peak_mib": mib[0], "peak_mib_high": mib[1], "memory_ratio": ratio, "pass_peak_mib": beyond[0],
                  "pass_peak_mib_high": beyond[1], "pass_memory_ratio": ratio_beyond}  # fmt: skip


def main():
    if sys.argv[1:2] == ["work"]:
        print(json.dumps(WORK[sys.argv[2]](Scene(Path(sys.argv[3])))))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write book/records/benchmark_fctl_io.json")
    args, begin = parser.parse_args(), time.perf_counter()
    good, metrics = True, {}
    with tempfile.TemporaryDirectory() as folder:
        print("writing the scenes ...", flush=True)
        low, high = (make_scene(Path(folder), times) for times in (1, TIMES_AS_HIGH))
        for bar in (lambda: whole_scene(low), lambda: one_pass(low), lambda: memory(low, high)):
            met, found = bar()
            good &= met
            metrics |= found
    if args.record:
        configuration = {"size_px": SIZE, "patch_px": PATCH, "overlap_px": OVERLAP, "scales": list(map(str, SCALES)),
                         "times_as_high": TIMES_AS_HIGH, "repeats": REPEATS}  # fmt: skip
        minutes = (time.perf_counter() - begin) / 60
        record("benchmark_fctl_io", "python tests/benchmarks/fctl_io.py --record", configuration, metrics, minutes)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
