"""Table 4's costs at the published size: HBIS against cross attention, parameters, FLOPs and images a second.

    python tests/benchmarks/bicor_seg_refinement.py [--record]

ConvNeXt-B, 7 classes, two layers, images of 512 x 512 px, as published; random weights, inference, both networks in
turns in one process, so that their ratio holds on any machine. No bar: the paper has 89.5 M and 93.5 M
parameters, 87.8 G and 93.6 G operations, 65.2 and 66.8 images a second.
"""

import argparse
import sys
import time

from verdicts import interval, record

SIDE_PX, REPEATS = 512, 7
WHAT = {"HBIS": "hbis", "cross attention": "attention"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true")
    args, begin = parser.parse_args(), time.perf_counter()
    import torch

    from rsseglab.bicor_seg import BiCoRSeg
    from rsseglab.rest.cost import flop_counter

    torch.manual_seed(0)
    image = torch.randn(1, 3, SIDE_PX, SIDE_PX)
    networks = {name: BiCoRSeg(refinement=how).eval() for name, how in WHAT.items()}
    found, seconds = {}, {name: [] for name in WHAT}
    with torch.no_grad():
        for name, network in networks.items():
            with flop_counter() as counter:
                network(image)
            found[name] = {
                "parameters_m": sum(p.numel() for p in network.parameters()) / 1e6,
                "gmacs": counter.get_total_flops() / 2e9,
            }
        for _ in range(REPEATS):
            for name, network in networks.items():
                start = time.perf_counter()
                network(image)
                seconds[name].append(time.perf_counter() - start)
    for name, row in found.items():
        row["images_per_s"] = 1 / min(seconds[name])
        print(
            f"{name}: {row['parameters_m']:.2f} M parameters, {row['gmacs']:.1f} G multiply-adds, "
            f"{row['images_per_s']:.3f} images a second",
            flush=True,
        )
    ratio = interval([a / b for a, b in zip(seconds["cross attention"], seconds["HBIS"], strict=True)])
    print(f"HBIS takes 1 / {ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}] of the time of cross attention")
    if args.record:
        metrics = {"found": found, "times_as_fast": ratio[0], "times_as_fast_interval": ratio[1:]}
        command = "python tests/benchmarks/bicor_seg_refinement.py --record"
        configuration = {"side_px": SIDE_PX, "repeats": REPEATS, "threads": torch.get_num_threads()}
        minutes = (time.perf_counter() - begin) / 60
        record("benchmark_bicor_seg_refinement", command, configuration, metrics, minutes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
