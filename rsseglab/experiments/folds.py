"""Comparisons on several folds of one data set as one: every scene is tested once, by a network that never saw it.

What labels a scene (crop size, overlap) is chosen in each fold by its own validation scenes, for these are test scenes
of another fold.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rsseglab.errors import UserError
from rsseglab.experiments.tables import Records, best_crops, way_of
from rsseglab.training.records import RunRecord

CHOSEN = "by validation"
BEST = "crops-best"


def merge_folds(folds: Sequence[Records], preset: Mapping[str, Any]) -> Records:
    """One record a method and seed: the folds' test scenes together, costs averaged, peaks the highest.

    Args:
        folds: a comparison's records for each fold, of the same methods and seeds.
        preset: of the whole comparison.

    Returns:
        Of each method, and of the best crops of each fold as "crops-best" where crops were compared.

    Raises:
        UserError: a fold lacks runs that another has.
    """
    runs = [{(method, seed) for method, seeds in fold.items() for seed in seeds} for fold in folds]
    for method, seed in sorted(runs[0].union(*runs)):
        if not all((method, seed) in its for its in runs):
            raise UserError(
                f"{method} with seed {seed} was run on some folds only; run it on all, or remove its records."
            )
    merged = {
        method: {
            seed: _merged([(fold[method][seed], way_of(fold[method])) for fold in folds], method, preset)
            for seed in seeds
        }
        for method, seeds in folds[0].items()
    }
    if crops := [method for method in merged if method.startswith("crops-")]:
        best = [best_crops(fold) for fold in folds]
        merged[BEST] = {
            seed: _merged([(f[method][seed], way) for f, (method, way) in zip(folds, best, strict=True)], BEST, preset)
            for seed in merged[crops[0]]
        }
    return merged


def _merged(runs: Sequence[tuple[RunRecord, str]], method: str, preset: Mapping[str, Any]) -> RunRecord:
    """One record of a method's runs, each with the way that was chosen for it."""
    records = [record for record, _ in runs]
    pooled = [record.metrics["pooled"] for record in records]
    chosen = [p["chosen"]["scores"] for p in pooled]
    ways = {CHOSEN if chosen[0] else "whole": [way for _, way in runs]}
    ways |= {way: [way] * len(runs) for way in pooled[0]["ways"] if way.startswith("windows of")}
    scores = {CHOSEN: float(np.mean([s[way] for s, (_, way) in zip(chosen, runs, strict=True)]))} if chosen[0] else {}
    costs = ("training_seconds", "parameters", "gflops_per_mpx", "pixels_seen")
    return RunRecord(
        command=records[0].command,
        configuration={**records[0].configuration, "preset": dict(preset), "compared": method},
        metrics={
            "pooled": {
                "title": "best crops of each fold" if method == BEST else pooled[0]["title"],
                "ways": {name: _costs([p["ways"][w] for p, w in zip(pooled, its, strict=True)])
                         for name, its in ways.items()},
                "chosen": {"way": next(iter(ways)), "val_mean_iou": scores.get(CHOSEN), "scores": scores},
                "training_peak_mib": max(p["training_peak_mib"] or 0 for p in pooled) or None,
                **{cost: float(np.mean([p[cost] for p in pooled])) for cost in costs},
            },
            "scenes": {name: {"scenes": _scenes(records, its)} for name, its in ways.items()},
        },
        seeds=records[0].seeds,
        minutes=sum(record.minutes for record in records),
    )  # fmt: skip


def _scenes(records: Sequence[RunRecord], ways: Sequence[str]) -> dict[str, Any]:
    """The counts of all folds' test scenes."""
    pairs = zip(records, ways, strict=True)
    return {name: counts for r, way in pairs for name, counts in r.metrics["scenes"][way]["scenes"].items()}


def _costs(ways: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What labelling took and how its borders are, over the folds; scores are made of the scenes' counts."""
    names = ("seam_error", "mean_boundary_f1", "seconds_per_mpx")
    known = {name: [w[name] for w in ways if w.get(name) is not None] for name in names}
    means = {name: float(np.mean(values)) if values else None for name, values in known.items()}
    return means | {"peak_mib": max(w["peak_mib"] for w in ways)}
