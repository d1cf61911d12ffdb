"""The papers' tables with ours beside: no number is typed, each comes from the published file or from a run record.

Published numbers are those of `rsseglab.evaluation.published`. Ours are of three kinds: comparisons and ablations
(`rsseglab.experiments.compare`, `ablate`), whose scenes and networks are far smaller, so that only the order of their
rows and the size of their differences can be read beside the paper's; runs by a preset (``rsseglab train --preset``),
which stand in the very row; and benchmarks. What has no run says so.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from rsseglab.errors import UserError
from rsseglab.evaluation import mean_iou_difference, mean_iou_interval
from rsseglab.evaluation.published import PROTOCOL, published, published_numbers
from rsseglab.experiments.ablate import KINDS, ablation_of_records, ablation_table, merging_table
from rsseglab.experiments.ablate import conditions as ablation_conditions
from rsseglab.experiments.page import conditions, gaps, markdown
from rsseglab.experiments.presets import TrainPreset, load_preset, preset_names
from rsseglab.experiments.tables import DIFFERENCES, Records, best_crops, preset_of_records, read_comparisons, runs_of
from rsseglab.training.records import RunRecord, validate

FORMATS = ("text", "markdown", "csv")
NOT_RUN = "not run here"
PARTS = "Ours: each part left out or replaced"
#: paper -> its table -> its row -> our method (`rsseglab.experiments.ablate`) or, in ``merging``, way to merge.
BESIDE: dict[str, dict[str, dict[str, str]]] = {
    "fctl": {
        "contexts": {
            "none": "contexts-none", "local": "contexts-1", "medium": "contexts-2", "large": "contexts-3",
            "medium, large": "contexts-2-3", "local, medium, large": "contexts-1-2-3",
        },
        # Ours are 1, 1.5, 2, 3 and 4 patches wide, as these are of 508 px.
        "sizes": {
            "508, 762, 1524": "contexts-1-1.5-3", "508, 1016, 1524": "contexts-1-2-3",
            "508, 1016, 2032": "contexts-1-2-4",
        },
        "fusion": {"averaging": "fusion-mean", "weighted": "fusion-constant", "adaptive": "contexts-1-2-3"},
        "merging": {"montaging": "montage", "averaging": "averaging", "refined, context of 1016 px": "refined"},
        "correlation": {"concatenation": "concatenation", "correlation": "contexts-1-2-3"},
    },
    "bicor_seg": {
        "components": {
            "cross attention": "attention", "HBIS": "hbis", "HBIS + FD": "hbis-fisher", "HBIS + HM": "hbis-heatmap",
            "HBIS + FD + HM": "all",
        },
        "layers": {"1": "layers-1", "2": "all", "3": "layers-3"},
    },
}  # fmt: skip
TITLES = {
    ("rest", "headline"): "Whole scenes",
    ("rest", "window curve"): "Against the best cropped baseline of the same plots",
    ("rest", "encoders"): "Encoders and decoders",
    ("rest", "repeats"): "Repeated runs",
    ("rest", "communication"): "What the exchange between tiles is worth",
    ("rest", "time"): "Seconds of testing",
    ("fctl", "comparison"): "Comparison",
    ("fctl", "contexts"): "Contexts",
    ("fctl", "sizes"): "Sizes of contexts, px",
    ("fctl", "fusion"): "Fusion",
    ("fctl", "merging"): "Merging and refinement",
    ("fctl", "correlation"): "Correlation or concatenation",
    ("fctl", "cost"): "Memory and seconds",
    ("bicor_seg", "comparison"): "Comparison",
    ("bicor_seg", "components"): "Components",
    ("bicor_seg", "layers"): "Number of layers",
    ("penet", "neighbours"): "A neighbour: CRGNet, not PENet",
}
MEASURES = {
    "miou": "mIoU, %", "iou": "IoU, %", "f1": "F1, %", "mf1": "mean F1, %", "oa": "overall accuracy, %",
    "seconds": "seconds", "memory": "MB", "parameters": "parameters, M", "flops": "GFLOP",
    "images_per_second": "images / s", "seconds_saved": "seconds saved", "seconds_saved_share": "seconds saved, %",
}  # fmt: skip
#: Where a measure stands in the scores of a run by a preset, by our definition or by the protocol's.
SCORES = {"miou": "mean_iou", "iou": "mean_iou", "f1": "mean_f1", "mf1": "mean_f1", "oa": "overall_accuracy"}
SMALLER = (
    "Not comparable as numbers: ours are other scenes, smaller networks and shorter schedules. Nor does the order of "
    "our rows tell anything but where the interval of a difference leaves out 0: see *each part left out or replaced*."
)
ALL = "All methods of our comparison, seams, costs and claims: see *Cropping, fusion, whole scene*."
#: What ``rsseglab scale`` writes; it runs where torch is alone, and so is no run record.
SCALE_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["command", "options", "torch", "python", "hardware", "cores", "rows"],
    "properties": {
        "command": {"type": "string"},
        "options": {"type": "object"},
        "torch": {"type": "string"},
        "python": {"type": "string"},
        "hardware": {"type": "string"},
        "cores": {"type": "integer", "minimum": 1},
        "fits": {"type": "object"},
        "rows": {
            "type": "array",
            "items": {
                "type": "object",
                "required": [
                    "kind", "ranks", "height_px", "width_px", "forward_backward_seconds", "forward_backward_efficiency",
                    "forward_backward_model_seconds", "forward_backward_peak_mib_a_rank",
                ],
            },
        },
    },
}  # fmt: skip


@dataclass(frozen=True)
class PaperTable:
    """One table.

    Attributes:
        paper: its key in the published file.
        title: of the table.
        frame: cells as they are shown, methods down.
        notes: lines beneath: protocols, hardware, minutes, seeds, why numbers do not compare.
    """

    paper: str
    title: str
    frame: pd.DataFrame
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ours:
    """What was run here, as it was read.

    Attributes:
        comparisons: by the name of their data, see `rsseglab.experiments.tables`.
        ablations: by paper and data.
        presets: records of runs by a preset, by its name.
        scaling: rows of ``rsseglab scale`` by file.
        benchmarks: records by name.
    """

    comparisons: Mapping[str, Records] = field(default_factory=dict)
    ablations: Mapping[str, Mapping[str, Records]] = field(default_factory=dict)
    presets: Mapping[str, Sequence[RunRecord]] = field(default_factory=dict)
    scaling: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    benchmarks: Mapping[str, RunRecord] = field(default_factory=dict)


def read_ours(folder: Path, runs: Sequence[Path] = ()) -> Ours:
    """Read all records; every file is checked.

    Args:
        folder: ``compare/DATA``, ``ablate/PAPER/DATA`` and single records below it, as in ``book/records``.
        runs: folders of runs by a preset, whose ``record.json`` lies anywhere below them.

    Raises:
        UserError: a folder is not there; or a file is no record, follows another schema, or was edited by hand: it is
            named.
    """
    for place in (folder, *runs):
        if not place.is_dir():
            raise UserError(f"{place} is no folder; give one that holds run records.")
    paths = sorted(folder.rglob("*.json"))
    scales = [path for path in paths if path.name.startswith("scale")]
    single = {path: RunRecord.read(path) for path in paths if path not in scales}
    found = [*single.values(), *(RunRecord.read(path) for place in runs for path in sorted(place.rglob("record.json")))]
    by_preset: dict[str, list[RunRecord]] = {}
    for record in found:
        name = record.configuration.get("preset")
        if isinstance(name, str) and name in preset_names() and _is_on_its_data(record, load_preset(name)):
            by_preset.setdefault(name, []).append(record)
    return Ours(
        comparisons=read_comparisons(folder / "compare"),
        ablations={paper: read_comparisons(folder / "ablate" / paper) for paper in KINDS},
        presets=by_preset,
        scaling={path.stem: read_scaling(path) for path in scales},
        benchmarks={p.stem: record for p, record in single.items() if p.name.startswith("benchmark")},
    )


def _is_on_its_data(record: RunRecord, preset: TrainPreset) -> bool:
    """Whether a run by a preset is on the preset's data; ``--data`` given beside a preset makes another run of it."""
    return "data" not in preset.settings or record.configuration.get("data") == preset.settings["data"]


def read_scaling(path: Path) -> Mapping[str, Any]:
    """A record of ``rsseglab scale``. It carries no hash: what was edited in keeping with its form goes unnoticed.

    Raises:
        UserError: it is no JSON, or follows another schema.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); run 'rsseglab scale' again.") from error
    validate(content, SCALE_SCHEMA, str(path))
    return content


def paper_tables(ours: Ours, papers: Sequence[str] = ()) -> list[PaperTable]:
    """All tables, in the order of the published file.

    Args:
        ours: from `read_ours`.
        papers: those that are wanted; all if none is named.

    Raises:
        UserError: there is no such paper.
    """
    known = tuple(published()["papers"])
    if unknown := [paper for paper in papers if paper not in known]:
        raise UserError(f"there is no paper '{unknown[0]}'; choose from {', '.join(known)}.")
    numbers = published_numbers()
    tables: list[PaperTable] = []
    for paper in tqdm(papers or known, desc="tables", unit="paper", leave=False):
        scores = {data: _scores(records) for data, records in ours.ablations.get(paper, {}).items()}
        of_paper = numbers[numbers["paper"] == paper]
        tables.append(_protocols(paper, of_paper))
        for name in dict.fromkeys(of_paper["table"]):
            rows = of_paper[of_paper["table"] == name]
            if name in BESIDE.get(paper, {}):
                tables.append(_ablation(paper, name, rows, ours.ablations.get(paper, {}), scores))
            elif name == "window curve":
                tables.append(_curves(rows, ours.comparisons))
            elif name in ("comparison", "headline"):
                tables += [
                    _comparison(paper, name, its, ours.presets) for _, its in rows.groupby("dataset", sort=False)
                ]
            else:
                tables.append(_alone(paper, name, rows))
        tables += _scaling(ours) if paper == "rest" else []
        tables += [_controls(paper, ours.ablations.get(paper, {}), scores)] if paper in KINDS else []
    return tables


def _scores(records: Records) -> dict[str, pd.Series]:
    """Rows of an ablation's tables by the method's name, and by the way to merge."""
    titles = {method.title: name for name, method in ablation_of_records(records).methods.items()}
    table = ablation_table(records)
    rows = {titles[str(title)]: row for title, row in table.iterrows()}
    whole = ablation_of_records(records).whole
    if whole in records:
        seeds = len(records[whole])
        rows |= {str(way): row for way, row in merging_table(records).assign(seeds=seeds).iterrows()}
    return rows


def _ablation(
    paper: str,
    name: str,
    rows: pd.DataFrame,
    ablations: Mapping[str, Records],
    scores: Mapping[str, Mapping[str, pd.Series]],
) -> PaperTable:
    """The paper's rows, a column for each of its data sets and measures, then one for each of ours."""
    frame = _by_measure(rows)
    beside = BESIDE[paper][name]
    for data, found in scores.items():
        cells = [found.get(beside.get(str(method), "")) for method in frame.index]
        frame[f"ours, {data}: mIoU, % [95 %]"] = [NOT_RUN if row is None else _interval(row) for row in cells]
        frame[f"ours, {data}: seeds"] = ["" if row is None else str(int(row["seeds"])) for row in cells]
    if not scores:
        frame["ours"] = NOT_RUN
    about = f"Ours: see *{PARTS}* for scenes, network, machine and minutes." if scores else ""
    return PaperTable(paper, TITLES[paper, name], frame, (*_sources(rows), *filter(None, [about]), SMALLER))


def _controls(
    paper: str, ablations: Mapping[str, Records], scores: Mapping[str, Mapping[str, pd.Series]]
) -> PaperTable:
    """All methods of our ablation, those that the paper has no row for included."""
    methods = KINDS[paper](**preset_of_records(next(iter(ablations.values())))).methods if ablations else {}
    frame = pd.DataFrame(index=[method.title for method in methods.values()] or [f"rsseglab ablate {paper}"])
    for data, found in scores.items():
        cells = [found.get(name) for name in methods]
        frame[f"{data}: mIoU, % [95 %]"] = [NOT_RUN if row is None else _interval(row) for row in cells]
        frame[f"{data}: less the whole, points [95 %]"] = ["" if row is None else _difference(row) for row in cells]
        frame[f"{data}: seeds"] = ["" if row is None else str(int(row["seeds"])) for row in cells]
        minutes = [sum(run.minutes for run in ablations[data].get(name, {}).values()) for name in methods]
        frame[f"{data}: minutes"] = [f"{m:.0f}" if m else "" for m in minutes]
    if not scores:
        frame["ours"] = NOT_RUN
    own = [f"Ours, {data}: {_run_here(records, ablation_conditions(records))}" for data, records in ablations.items()]
    kind = KINDS[paper]
    missing = [f"Ours, {data}: {gap}" for data, records in ablations.items() if (gap := gaps(records, kind))]
    return PaperTable(paper, PARTS, frame, (*own, *missing))


def _interval(row: Mapping[str, Any] | pd.Series) -> str:
    return f"{100 * row['mean IoU']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _difference(row: pd.Series) -> str:
    if "difference" not in row or np.isnan(row["difference"]):
        return ""
    return f"{100 * row['difference']:+.1f} [{100 * row['from']:+.1f}, {100 * row['to']:+.1f}]"


def _by_measure(rows: pd.DataFrame) -> pd.DataFrame:
    """Published numbers, methods down, data sets and measures across; scores of single classes are left out."""
    means = rows[rows["class"].isna()]
    several = means["dataset"].nunique() > 1
    frame = pd.DataFrame(index=list(dict.fromkeys(means["method"])))
    for (dataset, measure), its in means.groupby(["dataset", "measure"], sort=False):
        title = f"{dataset}: {MEASURES[str(measure)]}" if several else MEASURES[str(measure)]
        frame[title] = pd.Series([_published(row) for _, row in its.iterrows()], index=its["method"])
    return frame.fillna("")


def _published(row: pd.Series) -> str:
    """As many digits as were printed; a number that was read off a plot with its error."""
    error = row["error"]
    digits = 2 if error == error and error < 0.05 else 1 if error == error and error < 0.5 else 0
    if row["tag"] == "digitised":
        return f"{row['value']:.1f} (from a plot)" if error != error else f"{row['value']:.2f} ±{error:g}"
    return f"{row['value']:.{digits}f}"


def _comparison(paper: str, name: str, rows: pd.DataFrame, presets: Mapping[str, Sequence[RunRecord]]) -> PaperTable:
    """A data set's published rows, and beneath them those of runs by its preset."""
    frame, dataset = _by_measure(rows), rows["dataset"].iloc[0]
    manifest, notes = rows["manifest"].iloc[0], [*_sources(rows)]
    measures = list(rows[rows["class"].isna()]["measure"].unique())
    for preset in _presets_of(paper, manifest):
        runs = presets.get(preset.name, ())
        cells = [_score_of(runs, measure, preset) for measure in measures]
        frame.loc[f"{(preset.row or {}).get('method')}, ours ({preset.name})"] = cells
        notes += _preset_notes(preset, runs)
    return PaperTable(paper, f"{TITLES[paper, name]}: {dataset}", frame, tuple(notes))


def _presets_of(paper: str, manifest: str) -> list[TrainPreset]:
    every = [load_preset(name) for name in preset_names()]
    return [p for p in every if p.paper == paper and p.row and p.settings.get("data") == manifest]


def _score_of(runs: Iterable[RunRecord], measure: str, preset: TrainPreset) -> str:
    """Mean over seeds and their range, by the protocol of the published number where there is one."""
    scores = [run.metrics["pooled"]["test"] for run in runs]
    if not scores:
        return NOT_RUN
    its = [s.get("protocols", {}).get(preset.test.get("protocol", ""), s) for s in scores]
    one = (preset.row or {}).get("class")
    found = [s.get(measure, {}).get(one) if one and measure in ("iou", "f1") else s.get(SCORES[measure]) for s in its]
    values = [100 * value for value in found if value is not None]
    if not values:
        return "not scored: hidden labels, or no such measure"
    spread = f" [{min(values):.2f}, {max(values):.2f}], {len(values)} seeds" if len(values) > 1 else ", one seed"
    return f"{np.mean(values):.2f}{spread}"


def _preset_notes(preset: TrainPreset, runs: Sequence[RunRecord]) -> list[str]:
    """What a run by a preset does otherwise than was published, and what was run."""
    notes = [f"Ours, {preset.name}: {'; '.join(preset.differs)}."]
    if not runs:
        how = f"'rsseglab train --preset {preset.name}' writes a record, 'rsseglab tables --runs FOLDER' reads it"
        return [*notes, f"Ours, {preset.name}: {NOT_RUN}; {how}."]
    for run in runs:
        its = {**run.configuration, **(run.configuration.get("options") or {})}
        theirs = {("crop_px" if key == "crop" else key): value for key, value in preset.settings.items()}
        single = {key: value for key, value in theirs.items() if not isinstance(value, list) and key in its}
        changed = [f"{key} {its[key]}" for key, value in single.items() if str(its[key]) != str(value)]
        also = f"; not the preset's: {', '.join(changed)}" if changed else ""
        notes.append(f"Ours, {preset.name}, seed {run.seeds[0]}: {run.minutes:.0f} minutes, {_machine(run)}{also}.")
    return notes


def _curves(rows: pd.DataFrame, comparisons: Mapping[str, Records]) -> PaperTable:
    """The best of all windows, of the baseline and of REST; ours are the best crops, and SPIM on the whole scene."""
    frame = pd.DataFrame(columns=["cropped, the best", "REST, the best", "gain, points", "seeds"])
    for dataset, its in rows.groupby("dataset", sort=False):
        best = {m: its[its["method"] == m].nlargest(1, "value").iloc[0] for m in ("baseline", "REST")}
        gain = best["REST"]["value"] - best["baseline"]["value"]
        cells = [f"{_published(row)} (windows of {row['test_px']} px)" for row in best.values()]
        frame.loc[f"{dataset}, published"] = [*cells, f"{gain:+.2f}", "not stated"]
    own = []
    for data, records in comparisons.items():
        if preset_of_records(records)["data"] == "twins":
            continue
        frame.loc[f"{data}, ours"] = _best_of(records)
        own.append(f"Ours, {data}: {_run_here(records, conditions(records))}")
    if not own:
        frame.loc["ours"] = [NOT_RUN] * 3 + [""]
    about = "Ours: the size of crops that labels validation scenes best, and SPIM on the whole scene; 95 % intervals."
    return PaperTable("rest", TITLES["rest", "window curve"], frame, (*_sources(rows), about, *own, SMALLER, ALL))


def _best_of(records: Records) -> list[str]:
    first, _ = DIFFERENCES["spim_minus_best_crops_miou"]
    try:
        crops, way = best_crops(records)
    except UserError:
        return [NOT_RUN] * 3 + [""]
    seeds = sorted(records.get(first, {}).keys() & records[crops].keys())
    if not seeds:
        return [NOT_RUN] * 3 + [""]
    sides = [runs_of(records, crops, seeds, way), runs_of(records, first, seeds, "whole")]
    scores = [mean_iou_interval(side) for side in sides]
    less = mean_iou_difference(sides[1], sides[0])
    cells = [f"{100 * s.value:.1f} [{100 * s.low:.1f}, {100 * s.high:.1f}]" for s in scores]
    return [*cells, f"{100 * less.value:+.1f} [{100 * less.low:+.1f}, {100 * less.high:+.1f}]", str(len(seeds))]


def _alone(paper: str, name: str, rows: pd.DataFrame) -> PaperTable:
    """A published table that no run of ours stands beside."""
    return PaperTable(paper, TITLES[paper, name], _by_measure(rows).assign(ours=NOT_RUN), tuple(_sources(rows)))


def _scaling(ours: Ours) -> list[PaperTable]:
    """Ours alone: of the paper only the word near-linear is known."""
    rows, notes = {}, []
    for name, content in ours.scaling.items():
        for row in content["rows"]:
            rows[f"{name}: {row['kind']}, {row['ranks']} of {row['height_px']} x {row['width_px']} px"] = {
                "seconds": f"{row['forward_backward_seconds']:.2f}",
                "seconds by the model": f"{row['forward_backward_model_seconds']:.2f}",
                "efficiency, %": f"{100 * row['forward_backward_efficiency']:.0f}",
                "peak MiB a rank": f"{row['forward_backward_peak_mib_a_rank']:.0f}",
            }
        notes.append(
            f"Ours, {name}: forward and backward of a small U-Net on the exact engine, the median of "
            f"{content['options'].get('repeats', '?')} repeats; {content['cores']} cores ({content['hardware']})."
        )
    frame = (
        pd.DataFrame.from_dict(rows, orient="index") if rows else pd.DataFrame({"ours": [NOT_RUN]}, index=["scaling"])
    )
    said = "Published: near-linear throughput with the number of GPUs, in the abstract; no table of it was found."
    tables = [PaperTable("rest", "Scaling over workers", frame, (said, *notes))]
    claims = {
        f"{name.removeprefix('benchmark_')}: {measure.replace('_', ' ')}": (number, record)
        for name, record in ours.benchmarks.items()
        for measure, number in record.metrics["pooled"].get("claims", {}).items()
    }
    cells = {
        name: {"measured [95 %]": f"{v:.3g} [{a:.3g}, {b:.3g}]", "minutes": f"{record.minutes:.1f}",
               "hardware": _machine(record)}
        for name, ((v, a, b), record) in claims.items()
    }  # fmt: skip
    if cells:
        tables.append(
            PaperTable("rest", "Benchmarks that decide claims", pd.DataFrame.from_dict(cells, orient="index"))
        )
    return tables


def _run_here(records: Records, said: str) -> str:
    """How ours were had, in the words of the published file."""
    runs = [run for seeds in records.values() for run in seeds.values()]
    machines = ", ".join(sorted({_machine(run) for run in runs}))
    counts = [len(seeds) for seeds in records.values()]
    seeds = str(max(counts)) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    return (
        f"{said} {machines}; {seeds} seeds a row; mean IoU over all classes of whole test scenes, selected on "
        "validation scenes, no test-time augmentation."
    )


def _machine(record: RunRecord) -> str:
    its = record.hardware
    return its["accelerator"] or f"{its['cores']} cores of {its['cpu']}"


def _protocols(paper: str, rows: pd.DataFrame) -> PaperTable:
    """How a paper's numbers were had, a row a data set."""
    its = rows.groupby("dataset", sort=False)[list(PROTOCOL)].first()
    its.columns = [name.replace("_", " ") for name in its.columns]
    return PaperTable(paper, "How the published numbers were had", its.rename_axis(None))


def _sources(rows: pd.DataFrame) -> list[str]:
    """Where a table's published numbers stand, and what that says of them."""
    found = dict.fromkeys(zip(rows["source"], rows["tag"], strict=True))
    return [f"Published: {'; '.join(f'{source} ({tag})' for source, tag in found)}."]


# --- Written ---------------------------------------------------------------------------------------------------

HEAD = """\
# The papers' tables, ours beside

Generated by `rsseglab tables --format markdown > book/tables.md`; do not edit. Published numbers are those of
`data_manifests/papers/published.toml`, ours those of the records in `book/records`; no number here is typed.

A published number and one of ours stand side by side to be argued with, not to be ranked: beneath each table is how
either was had. *Not stated* means: not found in what we read, be it in the public code or on the project page. *Not
run here*: no record of ours; a run by the preset that is named writes one. Intervals are at 95 %, over places of the
test scenes and over seeds.
"""


def page(tables: Sequence[PaperTable]) -> str:
    """The book's page, in Markdown."""
    parts, papers = [HEAD], published()["papers"]
    for paper in dict.fromkeys(table.paper for table in tables):
        its = papers[paper]
        parts.append(f"## {its['name']}\n\n{its['title']}. <{its['url']}>. {its['note']}\n")
        for table in (one for one in tables if one.paper == paper):
            notes = "\n".join(f"- {note}" for note in table.notes)
            parts.append(f"### {table.title}\n\n{markdown(table.frame, '')}\n\n{notes}".rstrip() + "\n")
    return "\n".join(parts)


def text(tables: Sequence[PaperTable]) -> str:
    """To read in a terminal."""
    return "\n\n".join(
        "\n".join([f"{one.paper}: {one.title}", one.frame.to_string(), *(f"  {note}" for note in one.notes)])
        for one in tables
    )


def csv(tables: Sequence[PaperTable]) -> str:
    """One row a cell: paper, table, row, column, cell, and the notes of the table."""
    rows = [
        (one.paper, one.title, row, column, cell, " ".join(one.notes))
        for one in tables
        for row, cells in one.frame.iterrows()
        for column, cell in cells.items()
    ]
    return pd.DataFrame(rows, columns=["paper", "table", "row", "column", "cell", "notes"]).to_csv(index=False)


def write_tables(folder: Path, runs: Sequence[Path], papers: Sequence[str], form: str, out: Path | None) -> None:
    """Print the tables, or write them to a file.

    Args:
        folder: of records, see `read_ours`.
        runs: of runs by a preset.
        papers: those that are wanted; all if none is named.
        form: one of `FORMATS`.
        out: the file.

    Raises:
        UserError: see `read_ours`, `paper_tables`; there is no such format, or the file cannot be written.
    """
    if form not in FORMATS:
        raise UserError(f"there is no format '{form}'; choose from {', '.join(FORMATS)}.")
    tables = paper_tables(read_ours(folder, runs), papers)
    said = {"text": text, "markdown": page, "csv": csv}[form](tables)
    if out is None:
        print(said, end="" if said.endswith("\n") else "\n")
        return
    try:
        out.write_text(said, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written ({error.strerror}); choose another file.") from error
