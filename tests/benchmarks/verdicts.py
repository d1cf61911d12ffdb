"""What the benchmarks share: a verdict a bar, and a run record where ``--record`` asks for one."""

from pathlib import Path

import numpy as np
from scipy import stats

from rsseglab.training.records import RunRecord


def verdict(what, good):
    """Print whether a bar is met; returns ``good``."""
    print(f"{'met   ' if good else 'MISSED'} {what}", flush=True)
    return good


def exactly(value):
    """A number without chance, as a claim takes it: value and the ends of its interval."""
    return [value, value, value]


def interval(values):
    """The mean of repeats with its 95 % interval, by Student's t."""
    half = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return [float(np.mean(values)), float(np.mean(values) - half), float(np.mean(values) + half)]


def record(name, command, configuration, metrics, minutes, seeds=(0,)):
    """Write ``book/records/NAME.json``; ``claims`` in the metrics go to the claim matrix."""
    path = Path(__file__).parents[2] / "book" / "records" / f"{name}.json"
    RunRecord(command, configuration, {"pooled": metrics, "scenes": {}}, list(seeds), minutes).write(path)
    print(path.name)
