"""Modulation by two sums against the literal one, which makes a map of each class: memory and seconds.

    python tests/benchmarks/bicor_seg_modulation.py [--record]

B = 8, N = 7, C = 256, 128 x 128 px, forward and backward: at least 3 times less memory, and not slower. Memory is the
resident peak of a process of its own above what it holds before.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from verdicts import record, verdict

SHAPE = {"batch": 8, "classes": 7, "channels": 256, "side_px": 128}


def literal(features, gamma, beta, soft):
    """Equation 8 for each class, then the sum."""
    each = gamma[..., None, None] * features[:, None] + beta[..., None, None]
    return (soft[:, :, None] * each).sum(1)


def resident_mib(what):
    return int(Path("/proc/self/status").read_text().split(f"{what}:")[1].split()[0]) / 1024


def work(name, repeats):
    import torch

    from rsseglab.bicor_seg.ce2f import modulated

    b, n, c, side = SHAPE.values()
    torch.manual_seed(0)
    features = torch.randn(b, c, side, side).requires_grad_()
    gamma, beta = (torch.randn(b, n, c).requires_grad_() for _ in range(2))
    soft = torch.randn(b, n, side, side).softmax(1).requires_grad_()
    way = {"literal": literal, "two sums": modulated}[name]
    before = resident_mib("VmRSS")
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        way(features, gamma, beta, soft).sum().backward()
        seconds.append(time.perf_counter() - start)
        for x in (features, gamma, beta, soft):
            x.grad = None
    print(json.dumps({"seconds": min(seconds), "mib": resident_mib("VmHWM") - before}))


def main():
    if sys.argv[1:2] == ["work"]:
        return work(sys.argv[2], int(sys.argv[3]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true")
    args, begin = parser.parse_args(), time.perf_counter()
    found = {}
    for name in ("literal", "two sums"):
        command = [sys.executable, __file__, "work", name, "5"]
        found[name] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print(f"{name}: {found[name]['seconds']:.2f} s, {found[name]['mib']:.0f} MiB", flush=True)
    memory, speed = (found["literal"][what] / found["two sums"][what] for what in ("mib", "seconds"))
    good = verdict(f"{memory:.2f} times less memory, at least 3", memory >= 3)
    good &= verdict(f"{speed:.2f} times as fast, at least 1", speed >= 1)
    if args.record:
        metrics = {"times_less_memory": memory, "times_as_fast": speed, "found": found}
        command = "python tests/benchmarks/bicor_seg_modulation.py --record"
        record("benchmark_bicor_seg_modulation", command, SHAPE, metrics, (time.perf_counter() - begin) / 60)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
