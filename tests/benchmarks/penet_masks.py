"""What clicks grow to: Segment Anything against superpixels and discs, coverage at equal precision.

    python tests/benchmarks/penet_masks.py [--record]    # RSSEGLAB_DATA, RSSEGLAB_WEIGHTS; minutes

Dubai (tiles 1 and 3) and OAM (kampala_a and b, zanzibar_b) at their own resolution, the same clicks for each source:
the innermost pixel of each object, and a random one. Coverage is the share of labelled pixels that get a label,
precision how much of that is right by the dense label. Discs and superpixels grow until their precision falls to that
of Segment Anything; between two sizes it is interpolated.
"""

import argparse
import itertools
import time

import numpy as np
import pandas as pd
from verdicts import record, verdict

from rsseglab.experiments.points import coverage, sample
from rsseglab.penet.growing import grow_points
from rsseglab.penet.sam import Discs, SegmentAnything, Superpixels
from rsseglab.scenes.manifest import load_manifest

SCENES = {"dubai": ("tile1", "tile3"), "oam_buildings": ("kampala_a", "kampala_b", "zanzibar_b")}
CLICKS = ("innermost", "objects")
RADII_PX = (0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96)
AREAS_PX = (64, 256, 1024, 4096, 16384)


def scenes_of(data):
    """The data set's scenes that are asked for, whatever split they are in."""
    manifest = load_manifest(data)
    found = {s.name: s for split in manifest.splits for s in manifest.scenes(split)}
    return [found[name] for name in SCENES[data]]


def grown(scene, points, source):
    """Pixels that are labelled, that get a label, and that get the right one."""
    label = grow_points(scene, points, source, progress=False)
    found = coverage(label.label, scene)
    labelled = int((scene.read_label() != 255).sum())
    covered = found["covered"] * labelled
    return np.array([labelled, covered, covered * (found["right"] if covered else 0)]), label


def at_precision(curve, precision):
    """Coverage where a curve of (coverage, precision), by growing size, falls to a precision; 0 if it starts below."""
    best = 0.0
    for (c0, p0), (c1, p1) in itertools.pairwise(curve):
        if p0 >= precision:
            best = max(best, c0)
        if (p0 - precision) * (p1 - precision) < 0:
            best = max(best, c0 + (c1 - c0) * (p0 - precision) / (p0 - p1))
    return max(best, curve[-1][0]) if curve[-1][1] >= precision else best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true")
    args, begin = parser.parse_args(), time.perf_counter()
    sam, rows, curves, good = SegmentAnything(), {}, {}, True
    for data in SCENES:
        scenes = scenes_of(data)
        for how in CLICKS:
            points = {s.name: sample(s, how) for s in scenes}
            counts, bare, start = np.zeros(3), 0, time.perf_counter()
            for scene in scenes:
                its, label = grown(scene, points[scene.name], sam)
                counts, bare = counts + its, bare + label.bare
            seconds = time.perf_counter() - start
            precision = counts[2] / counts[1]
            row = {"clicks": sum(map(len, points.values())), "without mask": bare, "precision": precision}
            row["sam"] = counts[1] / counts[0]
            for name, make, sizes in (("superpixels", Superpixels, AREAS_PX), ("discs", Discs, RADII_PX)):
                sums = [sum(grown(s, points[s.name], make(size))[0] for s in scenes) for size in sizes]
                if name == "superpixels":  # the curve begins at the clicks themselves
                    sums.insert(0, sum(grown(s, points[s.name], Discs(0))[0] for s in scenes))
                curve = [(float(c / n), float(r / c)) for n, c, r in sums]
                curves[f"{data}, {how}, {name}"] = curve
                row[name] = at_precision(curve, precision)
            rows[f"{data}, {how}"] = {key: float(value) for key, value in row.items()} | {"sam_seconds": seconds}
            print(pd.DataFrame(rows).T.round(3).to_string(), flush=True)
            best = max(row["superpixels"], row["discs"])
            what = f"{data}, {how}: SAM covers {row['sam']:.3f}, the better of the others {best:.3f} at {precision:.3f}"
            good = verdict(what, row["sam"] > best) and good
    if args.record:
        minutes = (time.perf_counter() - begin) / 60
        configuration = {"scenes": SCENES, "network": "mobile_sam", "radii_px": RADII_PX, "areas_px": AREAS_PX}
        metrics = {"rows": rows, "curves": curves, "encoded_windows": sam.encoded}
        record("benchmark_penet_masks", ["tests/benchmarks/penet_masks.py"], configuration, metrics, minutes)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
