"""Tables, differences and the claim matrix of a comparison, made of its records alone.

What is compared with what stands in `DIFFERENCES`, before any run. The cropped baseline is the best over crop sizes and
overlaps, by the mean over seeds of its score on validation scenes.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from rsseglab.errors import UserError
from rsseglab.evaluation import BlockCounts, mean_iou_difference, mean_iou_interval
from rsseglab.evaluation.bootstrap import Estimate, stretch
from rsseglab.experiments.claims import CLAIMS, ONE_SEED, Number, claim_matrix
from rsseglab.scenes.manifest import load_protocol
from rsseglab.training.records import RunRecord

if TYPE_CHECKING:
    from rsseglab.experiments.compare import Preset

Records = dict[str, dict[int, RunRecord]]  # method -> seed -> record

BEST_CROPS = "best crops"
SPIM_WINDOWS = "rest-spim in windows"  # the network that labels whole scenes, in windows of its training size
ORDER = (
    "crops-",
    "crops+spim",
    "downsampled",
    "fusion",
    "fctl",
    "rest-none",
    "rest-spim",
    "rest-exact",
    "rest-exact+spim",
    "two",
)
#: measure (see `rsseglab.experiments.claims`) -> the two methods whose scores it is the difference of
DIFFERENCES = {
    "spim_minus_best_crops_miou": ("rest-spim", BEST_CROPS),
    "spim_minus_fusion_miou": ("rest-spim", "fusion"),
    "fctl_minus_best_crops_miou": ("fctl", BEST_CROPS),
    "fctl_minus_fusion_miou": ("fctl", "fusion"),
    "spim_minus_fctl_miou": ("rest-spim", "fctl"),
    "spim_minus_none_miou": ("rest-spim", "rest-none"),
    "spim_minus_control_miou": ("two-stage-spim", "two-stage-control"),
    "spim_whole_minus_windows_miou": ("rest-spim", SPIM_WINDOWS),
    "spim_train_large_minus_small_miou": ("rest-spim", "rest-spim-small"),
    "exact_spim_minus_spim_miou": ("rest-exact+spim", "rest-spim"),
    "exact_minus_none_miou": ("rest-exact", "rest-none"),
    "exact_minus_best_crops_miou": ("rest-exact", BEST_CROPS),
}
#: measure -> the method whose pair accuracy on twin scenes it is
PAIR_ACCURACIES = {
    "twins_crops_pair_accuracy": "crops",
    "twins_spim_pair_accuracy": "rest-spim",
    "twins_exact_pair_accuracy": "rest-exact",
}


def read_records(folder: Path) -> Records:
    """The records of a comparison, by method in the order of its table, and seed.

    Raises:
        UserError: there is none, or they are of several comparisons.
    """
    records: Records = defaultdict(dict)
    for path in sorted(folder.glob("*_seed*.json"), key=_place):
        record = RunRecord.read(path)
        records[path.stem.rpartition("_seed")[0]][record.seeds[0]] = record
    if not records:
        raise UserError(f"there is no record of a comparison in {folder}; run 'rsseglab compare' first.")
    presets = [r.configuration["preset"] for seeds in records.values() for r in seeds.values()]
    known: dict[str, Any] = {}
    for preset in presets:
        # A setting that an older record does not name did not exist then, and so is none of its method's; but all
        # methods have a loss, which was this.
        for key, value in {"loss": "ce+dice", **preset}.items():
            if known.setdefault(key, value) != value:
                raise UserError(f"{folder} holds records of several comparisons; keep each in a folder of its own.")
    return dict(records)


def _place(path: Path) -> tuple[int, int, str]:
    """Methods as in the table of `rsseglab.experiments.compare.Preset.methods`, crops by their size."""
    method = path.stem.rpartition("_seed")[0]
    number = method.rpartition("-")[2]
    first = [i for i, name in enumerate(ORDER) if method.startswith(name)]
    return first[-1] if first else len(ORDER), int(number) if number.isdigit() else 0, path.stem


def read_comparisons(folder: Path) -> dict[str, Records]:
    """Records of each comparison, or ablation, that has any, by the name of its subfolder."""
    places = sorted({path.parent for path in folder.glob("*/*_seed*.json")})
    return {place.name: read_records(place) for place in places}


def missing_runs(records: Records, kind: "type[Preset] | None" = None) -> dict[str, list[int]]:
    """Methods of a comparison's own table, and the seeds of its own that have no record yet.

    Args:
        records: of one comparison.
        kind: of comparison; `rsseglab.experiments.compare.Preset` if not given.
    """
    from rsseglab.experiments.compare import Preset

    preset = (kind or Preset)(**preset_of_records(records))
    gaps = {name: [s for s in preset.seeds if s not in records.get(name, {})] for name in preset.methods}
    return {name: seeds for name, seeds in gaps.items() if seeds}


def preset_of_records(records: Records) -> dict[str, Any]:
    """The preset that all records of a comparison were run with."""
    preset: dict[str, Any] = next(iter(next(iter(records.values())).values())).configuration["preset"]
    return preset


def best_crops(records: Records) -> tuple[str, str]:
    """Crop size and overlap of the cropped baseline: the best on validation, by the mean over seeds."""
    scores = {
        (method, way): score
        for method, seeds in records.items()
        if method.startswith("crops-")
        for way, score in _val_scores(seeds).items()
    }
    if not scores:
        raise UserError("there is no record of cropping to compare with; run the methods crops-... too.")
    return max(scores, key=lambda pair: scores[pair])


def _val_scores(seeds: Mapping[int, RunRecord]) -> dict[str, float]:
    """Mean IoU of each way on the validation scenes, the mean over seeds; empty where there is one way."""
    chosen = [r.metrics["pooled"]["chosen"]["scores"] for r in seeds.values()]
    return {way: float(np.mean([scores[way] for scores in chosen])) for way in chosen[0]}


def way_of(seeds: Mapping[int, RunRecord]) -> str:
    """The way that is best on validation, or the only one."""
    scores = _val_scores(seeds)
    return max(scores, key=lambda way: scores[way]) if scores else "whole"


def runs_of(records: Records, method: str, seeds: Sequence[int], way: str | None = None) -> list[list[BlockCounts]]:
    """Block counts of each scene, for each of the seeds of a method, labelled by a way or by its best."""
    runs = []
    for seed in seeds:
        scenes = records[method][seed].metrics["scenes"][way or way_of(records[method])]["scenes"]
        runs.append([BlockCounts.from_json(counts) for counts in scenes.values()])
    return runs


def comparison_table(records: Records) -> pd.DataFrame:
    """One row a method: score with its interval, seams, and what it cost; the mean over seeds where not said else."""
    rows = {}
    for method, seeds in records.items():
        way = way_of(seeds)
        pooled = [r.metrics["pooled"] for r in seeds.values()]
        ways = [p["ways"][way] for p in pooled]
        score = _score(records, method)
        rows[pooled[0]["title"]] = {
            "way": way,
            "score": score[0],
            "low": score[1],
            "high": score[2],
            "seeds": len(seeds),
            "seam error": _mean([w.get("seam_error") for w in ways]),
            "boundary F1": _mean([w["mean_boundary_f1"] for w in ways]),
            "s / Mpx": _mean([w["seconds_per_mpx"] for w in ways]),
            "peak MiB": max(w["peak_mib"] for w in ways),
            "training s": _mean([p["training_seconds"] for p in pooled]),
            "training peak MiB": max(p["training_peak_mib"] or np.nan for p in pooled),
            "parameters, M": pooled[0]["parameters"] / 1e6,
            "GFLOP / Mpx": pooled[0]["gflops_per_mpx"],
            "Mpx seen": pooled[0]["pixels_seen"] / 1e6,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else float("nan")


def _score(records: Records, method: str) -> Number:
    """Mean IoU, or on twin scenes pair accuracy, with its interval."""
    seeds = records[method]
    if preset_of_records(records)["data"] == "twins":
        return _pair_accuracy(seeds)
    return _number(mean_iou_interval(runs_of(records, method, list(seeds))))


def _number(estimate: Estimate) -> Number:
    return estimate.value, estimate.low, estimate.high


def _pair_accuracy(seeds: Mapping[int, RunRecord], draws: int = 2000) -> Number:
    """Mean over seeds and pairs of scenes, and an interval over both, drawn as by `rsseglab.evaluation.bootstrap`."""
    way = way_of(seeds)
    values = np.array([r.metrics["pooled"]["ways"][way]["pair_accuracies"] for r in seeds.values()])  # (seeds, pairs)
    rng, (count, pairs) = np.random.default_rng(0), values.shape
    weights = rng.multinomial(max(pairs - 1, 1), np.full(pairs, 1 / pairs), size=draws) / max(pairs - 1, 1)
    by_seed = weights @ values.T  # (draws, seeds)
    mean = by_seed.mean(axis=1)
    seed_weights = rng.multinomial(count, np.full(count, 1 / count), size=draws) / count
    drawn = mean + stretch(count) * ((seed_weights * by_seed).sum(axis=1) - mean)
    low, high = np.clip(np.quantile(drawn, [0.025, 0.975]), 0, 1)
    return float(values.mean()), float(low), float(high)


def differences(records: Records) -> pd.DataFrame:
    """One row a difference of mean IoU, paired by seed and block, with the least that could have been detected."""
    rows = {}
    for measure, names in DIFFERENCES.items():
        first, second = (_side(records, name) for name in names)
        if first is None or second is None:
            continue
        seeds = sorted(records[first.method].keys() & records[second.method].keys())
        if not seeds:
            continue
        estimate = mean_iou_difference(*(runs_of(records, side.method, seeds, side.way) for side in (first, second)))
        rows[measure] = {
            "first": first.title,
            "second": second.title,
            "difference": estimate.value,
            "low": estimate.low,
            "high": estimate.high,
            "smallest detectable": estimate.smallest_detectable,
            "seeds": estimate.seeds,
            "blocks": estimate.blocks,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


class Side(NamedTuple):
    """What stands on one side of a difference."""

    method: str
    way: str
    title: str


def _side(records: Records, name: str) -> Side | None:
    """What a name in `DIFFERENCES` stands for; None where that has no record."""
    if name == BEST_CROPS:
        if not any(method.startswith("crops-") for method in records):
            return None
        method, way = best_crops(records)
        return Side(method, way, f"{_title(records, method)}, {way}")
    method = "rest-spim" if name == SPIM_WINDOWS else name
    if method not in records:
        return None
    if name != SPIM_WINDOWS:
        return Side(method, way_of(records[method]), _title(records, method))
    first = next(iter(records[method].values()))
    way = f"windows of {first.configuration['preset']['window_px']} px"
    known = way in first.metrics["pooled"]["ways"]
    return Side(method, way, f"{_title(records, method)}, {way}") if known else None


def _title(records: Records, method: str) -> str:
    return str(next(iter(records[method].values())).metrics["pooled"]["title"])


def claim_numbers(records: Records) -> dict[str, Number]:
    """What a comparison has to say to `rsseglab.experiments.claims.claim_matrix`.

    Twin scenes whose key lies within a crop decide no claim: crops see it there.
    """
    preset = preset_of_records(records)
    if preset["data"] == "twins":
        if preset["context_px"] < preset["crop_px"]:
            return {}
        found = {measure: _methods(records, name) for measure, name in PAIR_ACCURACIES.items()}
        return {measure: _pair_accuracy(seeds) for measure, seeds in found.items() if seeds}
    table = differences(records)
    numbers = {str(m): (row["difference"], row["low"], row["high"]) for m, row in table.iterrows()}
    asked = {claim.measure for claim in CLAIMS}
    return {measure: number for measure, number in numbers.items() if measure in asked}


def benchmark_numbers(folder: Path) -> dict[str, dict[str, Number]]:
    """What benchmarks have to say to the claim matrix, by the name of their record in a folder.

    A benchmark that decides claims says so itself: its metrics hold ``claims``, measure -> value and ends.
    """
    records = {
        path.stem.removeprefix("benchmark_"): RunRecord.read(path) for path in sorted(folder.glob("bench*.json"))
    }
    claims = {name: record.metrics["pooled"].get("claims", {}) for name, record in records.items()}
    return {
        f"benchmark {name.replace('_', ' ')}": {measure: tuple(number) for measure, number in numbers.items()}
        for name, numbers in claims.items()
        if numbers
    }


def verdicts(
    comparisons: Mapping[str, Records], benchmarks: Mapping[str, Mapping[str, Number]] | None = None
) -> pd.DataFrame:
    """The claim matrix, a row for each claim and experiment that decides it, which stands in the column ``on``.

    A comparison that lacks runs which a claim rests on is marked so: its verdicts may change.

    Args:
        comparisons: from `read_comparisons`.
        benchmarks: from `benchmark_numbers`.
    """
    decided = []
    for name, numbers in (benchmarks or {}).items():
        matrix = claim_matrix(numbers)
        decided.append(matrix[matrix["value"].notna()].assign(on=name))
    for name, records in comparisons.items():
        matrix = claim_matrix(claim_numbers(records))
        seeds = max(map(len, records.values()))
        matrix.loc[matrix["measure"].isin(_of_one_seed(records)), "verdict"] = ONE_SEED
        gaps = [name for name in missing_runs(records) if name.startswith("crops-") or name in _of_claims()]
        on = f"{name}, {seeds} seed{'s' * (seeds > 1)}{', incomplete' if gaps else ''}"
        decided.append(matrix[matrix["value"].notna()].assign(on=on))
    rest = claim_matrix({}).assign(on="")
    found = pd.concat([*decided, rest])
    kept = found[(found["on"] != "") | ~found["claim"].isin([c for part in decided for c in part["claim"]])]
    order = {claim.claim: i for i, claim in enumerate(CLAIMS)}
    return kept.sort_values("claim", key=lambda claims: claims.map(order), kind="stable").reset_index(drop=True)


def _of_claims() -> set[str]:
    """Methods, other than crops, that some claim's difference or pair accuracy is of."""
    asked = {claim.measure for claim in CLAIMS}
    names = {name for measure, pair in DIFFERENCES.items() if measure in asked for name in pair}
    return names | set(PAIR_ACCURACIES.values())


def _of_one_seed(records: Records) -> set[str]:
    """Measures that one training alone has a say in."""
    if preset_of_records(records)["data"] == "twins":
        found = {measure: _methods(records, name) for measure, name in PAIR_ACCURACIES.items()}
        return {measure for measure, seeds in found.items() if seeds and len(seeds) == 1}
    return {str(measure) for measure, row in differences(records).iterrows() if row["seeds"] == 1}


def _methods(records: Records, name: str) -> Mapping[int, RunRecord] | None:
    found = [method for method in records if method == name or (name == "crops" and method.startswith("crops-"))]
    return records[found[0]] if found else None


def window_curve(records: Records, dataset: str) -> pd.DataFrame:
    """Mean IoU against test window, for `rsseglab.plots.window_curves`: crops by their size, REST by its window."""
    rows: list[dict[str, Any]] = []
    for method, seeds in records.items():
        if not method.startswith(("crops-", "rest-")):
            continue
        first = next(iter(seeds.values()))
        for way in first.metrics["pooled"]["ways"]:
            if way.startswith("windows of "):
                side = int(way.split()[2])
            elif way == "whole":
                side = whole_px(first.configuration["preset"])
            elif way == "overlap 0":
                side = first.configuration["crop_px"]
            else:
                continue
            estimate = mean_iou_interval(runs_of(records, method, list(seeds), way))
            name = "crops, each size trained" if method.startswith("crops-") else first.metrics["pooled"]["title"]
            rows.append(
                {"dataset": dataset, "method": name, "test_px": side}
                | dict(zip(("value", "low", "high"), _number(estimate), strict=True))
            )
    return pd.DataFrame(rows)


def whole_px(preset: Mapping[str, Any]) -> int:
    """The longest side of the test scenes, as the preset decimates them."""
    names = [f"{preset['data']}:{fold}" for fold in preset.get("folds", ())] or [preset["data"]]
    protocols = [load_protocol(name) for name in names]
    sizes = [m.sizes[scene] for m, prefix in protocols for scene in m.split(prefix + "test")]
    return max(-(-side // preset["decimate"]) for size in sizes for side in size)


def print_tables(folder: Path) -> None:
    """Print what the records of a comparison say, and write ``table.csv`` and ``differences.csv`` beside them."""
    records = read_records(folder)
    table = comparison_table(records)
    table.to_csv(folder / "table.csv")
    print(f"\n{shown(table).to_string()}\n")
    if any(name.startswith("crops-") for name in records) and "pair" not in _score_name(records):
        found = differences(records)
        found.to_csv(folder / "differences.csv")
        print(
            "Differences of mean IoU, % points, paired by seed and block; those that could have been detected beside:"
        )
        for _, row in found.iterrows():
            value, low, high, least = (100 * row[k] for k in ("difference", "low", "high", "smallest detectable"))
            print(
                f"  {row['first']} less {row['second']}: {value:+.1f} [{low:+.1f}, {high:+.1f}], detectable {least:.1f}"
            )
    print(f"\nscores are {_score_name(records)}; records, table.csv and differences.csv are in {folder}")


def _score_name(records: Records) -> str:
    return "pair accuracy" if preset_of_records(records)["data"] == "twins" else "mean IoU over whole test scenes"


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """A comparison's table as it is printed: scores in percent with their intervals, costs rounded."""
    percent = [
        f"{100 * v:.1f} [{100 * a:.1f}, {100 * b:.1f}]" for v, a, b in table[["score", "low", "high"]].to_numpy()
    ]
    out = pd.DataFrame({"score, % [95 %]": percent}, index=table.index)
    out["seam, % pts"] = [("" if np.isnan(v) else f"{100 * v:+.1f}") for v in table["seam error"]]
    for name, digits in (("s / Mpx", 2), ("peak MiB", 0), ("training s", 0), ("parameters, M", 1), ("GFLOP / Mpx", 0)):
        out[name] = [("" if v is None or np.isnan(v) else f"{v:.{digits}f}") for v in table[name]]
    out["labelled by"] = table["way"]
    return out
