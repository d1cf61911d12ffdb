"""Labelling by cropping: memory against the scene's height, and speed and logits against MONAI.

    python tests/benchmarks/cropping.py memory   # two minutes or so; Linux
    python tests/benchmarks/cropping.py imports  # seconds
    python tests/benchmarks/cropping.py monai    # pip install 'rsseglab[benchmark]'; some ten minutes on two cores

All times are ratios of runs that take turns in one process. Prints a verdict a bar; exit code 1 if one is missed.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import Tensor
from verdicts import verdict


def memory() -> bool:
    """Peak memory of ``rsseglab predict`` on 3378 x 3174 px and on a scene four times as high, within 15 %."""
    from rsseglab.scenes.scene import Scene
    from rsseglab.scenes.synthetic import CLASSES, IGNORE_VALUES, write_synthetic_scene
    from rsseglab.training.fit import TrainConfig, fit

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        print("writing the scenes ...")
        paths = [write_synthetic_scene(folder, f"x{k}", 3174 * k, 3378, seed=0) for k in (1, 4)]
        scenes = [Scene(image, label, CLASSES, IGNORE_VALUES) for image, label in paths]
        small = TrainConfig(steps=1, batch_size=1, crop_px=64, val_every=1)
        checkpoint = fit(scenes[:1], scenes[:1], small, folder / "run", progress=False).checkpoint
        peaks = []
        for image, _ in paths:
            command = [sys.executable, "-c", PREDICT, str(image), "--checkpoint", str(checkpoint),
                       "--output", str(folder / "p.tif"), "--overlap", "0", "--window", "512"]  # fmt: skip
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            peaks.append(int(done.stdout.split()[-1]) / 1024)
    ratio = peaks[1] / peaks[0]
    print(f"peak resident memory: {peaks[0]:.0f} MiB and, four times as high, {peaks[1]:.0f} MiB: ratio {ratio:.3f}")
    return verdict("ratio within 0.85 to 1.15", 0.85 < ratio < 1.15)


def imports() -> bool:
    """``import rsseglab`` under half a second, and nothing heavy loaded by it."""
    heavy = ("torch", "torchgeo", "lightning", "rasterio", "segmentation_models_pytorch")
    code = (
        "import sys, time; start = time.perf_counter(); import rsseglab; "
        f"print(time.perf_counter() - start, [m for m in {heavy} if m in sys.modules])"
    )
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True) for _ in range(5)]
    seconds = median(float(run.stdout.split()[0]) for run in runs)
    good = verdict(f"import rsseglab takes {seconds:.4f} s (median of 5), under 0.5 s", seconds < 0.5)
    return verdict("nothing heavy is loaded", all("[]" in run.stdout for run in runs)) and good


#: The command line itself, with the peak memory of its process in KiB as the last word. Not from getrusage: that keeps
#: the peak of the process that started this one.
PREDICT = """
import sys
from pathlib import Path
from rsseglab.cli import main
code = main(["predict", *sys.argv[1:]])
print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
sys.exit(code)
"""


def monai(size: int = 2048, repeats: int = 3) -> bool:
    """Speed at the best batch size of each, and the largest difference of logits, flat and Gaussian."""
    from monai.inferers import sliding_window_inference

    from rsseglab.decoders import create_network
    from rsseglab.inference.crops import Cropping, crop_and_merge

    torch.manual_seed(0)
    network = create_network("resnet18", "unet", bands=3, classes=6).eval().to(memory_format=torch.channels_last)
    image = torch.randn(3, size, size)
    batched = image[None].contiguous(memory_format=torch.channels_last)

    def ours(blend: str, batch: int) -> Tensor:
        cropping = Cropping(512, 0.5, blend, "flush", batch)
        bands = crop_and_merge(network, lambda a, b: image[:, a:b], size, size, cropping)
        return torch.cat([band for _, band in bands], 1)

    def theirs(blend: str, batch: int) -> Tensor:
        mode = {"flat": "constant"}.get(blend, blend)
        with torch.no_grad():
            return sliding_window_inference(batched, 512, batch, network, 0.5, mode)[0]

    good = True
    for blend in ("flat", "gaussian"):
        difference = float((ours(blend, 4) - theirs(blend, 4)).abs().max())
        good &= verdict(f"{blend}: logits differ by {difference:.1e}, at most 1e-5", difference <= 1e-5)
        times = _medians({"ours": ours, "MONAI": theirs}, blend, repeats)
        print(f"{blend}: seconds at batch sizes {BATCHES}: " + "; ".join(f"{k} {_list(v)}" for k, v in times.items()))
        ratio = min(times["ours"]) / min(times["MONAI"])
        good &= verdict(f"{blend}: {ratio:.3f} of MONAI's time, each at its best batch size, at most 1.0", ratio <= 1)
    return good


BATCHES = (1, 2, 4, 8)


def _medians(runs: dict[str, Callable[[str, int], Tensor]], blend: str, repeats: int) -> dict[str, list[float]]:
    seconds: dict[tuple[str, int], list[float]] = {(name, batch): [] for name in runs for batch in BATCHES}
    for _ in range(repeats):
        for batch in BATCHES:
            for name, run in runs.items():  # they take turns
                start = perf_counter()
                run(blend, batch)
                seconds[name, batch].append(perf_counter() - start)
    return {name: [median(seconds[name, batch]) for batch in BATCHES] for name in runs}


def _list(seconds: list[float]) -> str:
    return ", ".join(f"{s:.2f}" for s in seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("memory", "imports", "monai"))
    sys.exit(0 if {"memory": memory, "imports": imports, "monai": monai}[parser.parse_args().what]() else 1)
