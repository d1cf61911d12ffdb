"""What the benchmarks share: a verdict a bar, and a run record where ``--record`` asks for one."""

from pathlib import Path

from rsseglab.training.records import RunRecord


def verdict(what, good):
    """Print whether a bar is met; returns ``good``."""
    print(f"{'met   ' if good else 'MISSED'} {what}", flush=True)
    return good


def record(name, command, configuration, metrics, minutes):
    """Write ``book/records/NAME.json``."""
    path = Path(__file__).parents[2] / "book" / "records" / f"{name}.json"
    RunRecord(command, configuration, {"pooled": metrics, "scenes": {}}, [0], minutes).write(path)
    print(path.name)
