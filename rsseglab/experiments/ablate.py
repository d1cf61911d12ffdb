"""What each part of a paper's method is worth: the method without it, on one budget.

**fctl**, by FCtL's own tables, at a size for a CPU: which contexts (Table 3), how wide (Table 4), how they are fused
(Table 5), how patches are merged (Table 6), and concatenation in the place of the correlation (section 4.4). Two
controls that the paper does not have: three streams of self-attention, which have as many parameters as three contexts;
and a refinement of the masks of the network without contexts.

**bicor_seg**, by BiCoR-Seg's: cross attention in the place of HBIS, HBIS with and without its losses (Table 4), the
number of layers (Table 5), the share of pixels that make a region (Figure 3). Two controls that the paper does not
have: no refinement at all; and the equations as printed in the place of those of the code.

**penet**, by the ingredients that PENet's abstract names: masks by Segment Anything, expansion, EMA; each alone added
to the points, and all together. Beside them the published neighbours of expansion (CRGNet's regions, AGMM's soft
labels), superpixels in the place of Segment Anything, and dense labels, as the ceiling.

A run and its record are those of `rsseglab.experiments.compare`.
``python -m rsseglab.experiments.ablate book/records/ablate/fctl > book/ablation_fctl.md`` writes the book's page.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from rsseglab.errors import UserError
from rsseglab.evaluation import mean_iou_difference, mean_iou_interval
from rsseglab.experiments.compare import Method, Preset
from rsseglab.experiments.page import gaps, markdown
from rsseglab.experiments.tables import Records, preset_of_records, read_records, runs_of, way_of
from rsseglab.inference import Cropping

WHOLE = "contexts-1-2-3"  # FCtL with all its parts
NONE = "contexts-none"
DIM = 128  # BiCoR-Seg's channels, for a CPU; half of the published
SIDE_BY_SIDE = ("montage", "overlap 0")  # ways of `croppings`


@dataclass(frozen=True)
class Ablation(Preset):
    """A method with its parts left out or replaced; see `Preset` for the settings.

    Attributes:
        whole: name of the method with all its parts.
        title: of the page.
        parts: where they are explained.
        crops: what a network sees, in words.
        ceiling: name of the method that all others are a share of, if there is one.
    """

    whole: ClassVar[str]
    title: ClassVar[str]
    parts: ClassVar[str]
    crops: ClassVar[str]
    ceiling: ClassVar[str | None] = None

    @property
    def around(self) -> str:
        """What stands around the method, in words, after the encoder."""
        return f", {self.decoder}"

    def croppings(self, side: int) -> dict[str, Cropping]:
        """Side by side alone, where how crops are merged is no part of the method."""
        return {"overlap 0": Cropping(side, 0)}


@dataclass(frozen=True)
class FCtLAblation(Ablation):
    """FCtL with its parts left out or replaced."""

    whole: ClassVar[str] = WHOLE
    title: ClassVar[str] = "FCtL in parts"
    parts: ClassVar[str] = "The notebook *Local patches, wide contexts* explains the parts."
    crops: ClassVar[str] = "patches"

    @property
    def around(self) -> str:
        """Decoder and loss."""
        return f", {self.decoder}, {self.loss} loss"

    @property
    def methods(self) -> dict[str, Method]:
        """By the table of the paper that they stand in, then by what is changed."""

        def of(title: str, **options: Any) -> Method:
            return Method(title, "contexts", crop_px=self.crop_px, options={"contexts": (1, 2, 3)} | options)

        def refined(title: str, name: str) -> Method:
            return Method(title, "refined", crop_px=self.crop_px, stage=2, options={"contexts": (2,)}, of=name)

        return {
            WHOLE: of("all: contexts 1, 2, 3"),
            NONE: of("no context", contexts=()),
            "contexts-1": of("context 1, the patch itself", contexts=(1,)),
            "contexts-2": of("context 2", contexts=(2,)),
            "contexts-3": of("context 3", contexts=(3,)),
            "contexts-2-3": of("contexts 2 and 3", contexts=(2, 3)),
            "contexts-1-1-1": of("the patch itself, three times", contexts=(1, 1, 1)),
            "contexts-1-2-4": of("contexts 1, 2, 4", contexts=(1, 2, 4)),
            "contexts-1-1.5-3": of("contexts 1, 1.5, 3", contexts=(1, 1.5, 3)),
            "concatenation": of("concatenated, not correlated", correlation="concatenation"),
            "fusion-mean": of("fused by the mean", fusion="mean"),
            "fusion-constant": of("fused by constants", fusion="constant"),
            "refined": refined("all, masks refined", WHOLE),
            "refined-none": refined("no context, masks refined", NONE),
        }

    def croppings(self, side: int) -> dict[str, Cropping]:
        """The paper's three ways to merge patches; neighbours share 120 of 508 px."""
        shared = 120 / 508
        return {
            "montage": Cropping(side, 0, "flat"),
            "averaging": Cropping(side, shared, "flat", "even", merge="probabilities"),
            "logit sum": Cropping(side, shared, "flat", "even"),
        }


@dataclass(frozen=True)
class BiCoRAblation(Ablation):
    """BiCoR-Seg with its parts left out or replaced."""

    whole: ClassVar[str] = "all"
    title: ClassVar[str] = "BiCoR-Seg in parts"
    parts: ClassVar[str] = (
        "The notebook *Classes that look back* explains the parts. *Map losses* are those of the map and of the code's "
        "auxiliary head, without the heatmaps' and the embeddings'. A region has 64 px at least, as in the code: 6 % "
        "of the maps of crops of 128 px, where the paper has 2 % of larger ones."
    )
    crops: ClassVar[str] = "crops"

    @property
    def around(self) -> str:
        """The decoder is the method's own."""
        return f", {DIM} channels"

    @property
    def methods(self) -> dict[str, Method]:
        """By the table of the paper that they stand in, then by what is changed."""

        def of(title: str, **options: Any) -> Method:
            return Method(title, "embeddings", crop_px=self.crop_px, options={"dim": DIM} | options)

        return {
            "all": of("all: HBIS, heatmap and Fisher loss"),
            "attention": of("cross attention, map losses", refinement="attention", heatmap=0.0, fisher=0.0),
            "hbis": of("HBIS, map losses", heatmap=0.0, fisher=0.0),
            "hbis-fisher": of("HBIS, Fisher loss", heatmap=0.0),
            "hbis-heatmap": of("HBIS, heatmap loss", fisher=0.0),
            "layers-0": of("no refinement", layers=0),
            "layers-1": of("1 layer", layers=1),
            "layers-3": of("3 layers", layers=3),
            "top-0.1": of("regions of 10 % of the pixels", top_k=0.1),
            "top-1": of("regions of all pixels", top_k=1.0),
            "paper": of("equations as printed", preset="paper"),
        }


@dataclass(frozen=True)
class PENetAblation(Ablation):
    """Points alone, with each of PENet's ingredients and with all; see `Ablation`."""

    whole: ClassVar[str] = "penet"
    ceiling: ClassVar[str | None] = "dense"
    title: ClassVar[str] = "PENet in parts"
    parts: ClassVar[str] = (
        "Of the paper only the abstract is known to us; these are its ingredients by our reading (*From clicks to "
        "maps*). Clicks are the innermost pixels of all objects of more than 100 px, painted 3 x 3."
    )
    crops: ClassVar[str] = "crops"

    @property
    def methods(self) -> dict[str, Method]:
        """Points with more and more of what the abstract names, then what could stand in its place."""

        def of(title: str, grown: str | None = None, expansion: str = "none", attention: str = "none") -> Method:
            options = {"expansion": expansion, "attention": attention}
            return Method(title, "points", crop_px=self.crop_px, options=options, grown=grown)

        return {
            "penet": of("all: SAM, expansion, EMA", "sam", "similarity", "ema"),
            "points": of("points alone"),
            "points-sam": of("points, SAM", "sam"),
            "points-expansion": of("points, expansion", None, "similarity"),
            "points-ema": of("points, EMA", None, "none", "ema"),
            "without-ema": of("points, SAM, expansion", "sam", "similarity"),
            "superpixels": of("superpixels for SAM", "superpixels", "similarity", "ema"),
            "regions": of("CRGNet's regions for expansion", "sam", "regions", "ema"),
            "soft": of("AGMM's soft labels for expansion", "sam", "soft", "ema"),
            "dense": Method("dense labels", "crops", crop_px=self.crop_px),
        }


KINDS: dict[str, type[Ablation]] = {"fctl": FCtLAblation, "bicor_seg": BiCoRAblation, "penet": PENetAblation}
ABLATIONS: dict[str, dict[str, Ablation]] = {
    "fctl": {
        "quick": FCtLAblation(
            "synthetic", decoder="fcn", decimate=4, window_px=64, crop_px=64, steps=4, seeds=(0,), loss="focal",
            merging="averaging",
        ),
        "synthetic": FCtLAblation(
            "synthetic", decoder="fcn", decimate=2, window_px=256, crop_px=128, steps=150, loss="focal",
            merging="averaging",
        ),
        "dubai": FCtLAblation(
            "dubai", decoder="fcn", decimate=4, window_px=256, crop_px=128, steps=150, loss="focal",
            merging="averaging",
        ),
        "oam_buildings": FCtLAblation(
            "oam_buildings", decoder="fcn", decimate=4, window_px=256, crop_px=128, steps=150, loss="focal",
            merging="averaging",
        ),
    },
    "bicor_seg": {
        "quick": BiCoRAblation("synthetic", decimate=4, window_px=128, crop_px=64, steps=4, seeds=(0,)),
        "synthetic": BiCoRAblation("synthetic", decimate=2, window_px=256, crop_px=128, steps=100),
        "dubai": BiCoRAblation("dubai", decimate=4, window_px=256, crop_px=128, steps=150),
    },
    "penet": {
        "quick": PENetAblation(
            "synthetic", decoder="fpn", decimate=4, window_px=128, crop_px=64, steps=4, seeds=(0,), loss="ce",
        ),
        "synthetic": PENetAblation(
            "synthetic", decoder="fpn", decimate=2, window_px=256, crop_px=128, steps=150, loss="ce",
        ),
        "dubai": PENetAblation("dubai", decoder="fpn", decimate=4, window_px=256, crop_px=128, steps=150, loss="ce"),
        "oam_buildings": PENetAblation(
            "oam_buildings", decoder="fpn", decimate=4, window_px=256, crop_px=128, steps=150, loss="ce",
        ),
    },
}  # fmt: skip


def ablation_of(paper: str, data: str, quick: bool = False) -> Ablation:
    """The ablation of a paper's method on a data set.

    Raises:
        UserError: there is none.
    """
    name = "quick" if quick else data
    if name not in ABLATIONS.get(paper, {}):
        known = ", ".join(f"{p} on {d}" for p, sets in ABLATIONS.items() for d in sets if d != "quick")
        raise UserError(f"there is no ablation of {paper} on {name}; there are: {known}.")
    return ABLATIONS[paper][name]


def ablation_of_records(records: Records) -> Ablation:
    """The ablation that records are of.

    Raises:
        UserError: they are of none, or of several.
    """
    preset = preset_of_records(records)
    for kind in KINDS.values():
        if records.keys() <= kind(**preset).methods.keys():
            return kind(**preset)
    raise UserError(f"records of {', '.join(sorted(records))} are of no ablation; give the folder of one.")


def ablation_table(records: Records) -> pd.DataFrame:
    """One row a method: mean IoU with its interval, and how far it is behind the whole method, paired.

    All methods are merged alike, by the way that is best for the whole one on validation scenes.
    """
    what = ablation_of_records(records)
    way = way_of(records[what.whole]) if what.whole in records else way_of(next(iter(records.values())))
    rows, ceiling = {}, records.get(what.ceiling or "", {})
    most = mean_iou_interval(runs_of(records, str(what.ceiling), list(ceiling), way)).value if ceiling else None
    for method in (name for name in what.methods if name in records):
        seeds = records[method]
        pooled = [r.metrics["pooled"] for r in seeds.values()]
        its = way if way in pooled[0]["ways"] else "whole"
        score = mean_iou_interval(runs_of(records, method, list(seeds), its))
        row = {
            "mean IoU": score.value, "low": score.low, "high": score.high, "seeds": len(seeds), "merged by": its,
            **({} if most is None else {"of the ceiling": score.value / most}),
            "parameters, M": pooled[0]["parameters"] / 1e6,
            "GFLOP / Mpx": _gflops(pooled),
            "training s": sum(p["training_seconds"] for p in pooled) / len(pooled),
            "s / Mpx": sum(p["ways"][its]["seconds_per_mpx"] for p in pooled) / len(pooled),
            "ms a crop": _ms_a_crop(pooled, what.crop_px),
            "peak MiB": max(p["ways"][its]["peak_mib"] for p in pooled),
        }  # fmt: skip
        shared = sorted(seeds.keys() & records.get(what.whole, {}).keys())
        if method != what.whole and shared:
            whole = runs_of(records, what.whole, shared, way)
            less = mean_iou_difference(runs_of(records, method, shared, its), whole)
            row |= {
                "difference": less.value, "from": less.low, "to": less.high, "detectable": less.smallest_detectable
            }  # fmt: skip
        rows[pooled[0]["title"]] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def _gflops(pooled: Sequence[Any]) -> float:
    """Counted in labelling a megapixel, crops side by side; NaN where masks of another network are refined."""
    counted = [p["gflops_per_mpx"] for p in pooled if p["gflops_per_mpx"] is not None]
    return sum(counted) / len(counted) if counted else float("nan")


def _ms_a_crop(pooled: Sequence[Any], crop_px: int) -> float:
    """Milliseconds of labelling a crop, from crops side by side; NaN where they are not, as masks are refined."""
    ways = [way for p in pooled for name, way in p["ways"].items() if name in SIDE_BY_SIDE]
    seconds_per_mpx = sum(way["seconds_per_mpx"] for way in ways) / len(ways) if ways else float("nan")
    return seconds_per_mpx * crop_px**2 / 1e3


def merged_in_several_ways(records: Records) -> bool:
    """Whether there is a choice for `merging_table` to show."""
    whole = records.get(ablation_of_records(records).whole)
    return whole is not None and len(next(iter(whole.values())).metrics["pooled"]["ways"]) > 1


def merging_table(records: Records) -> pd.DataFrame:
    """Of the whole method, one row a way to merge patches, refinement included: mean IoU and seam error."""
    rows, whole = {}, ablation_of_records(records).whole
    sources = [(whole, way) for way in next(iter(records[whole].values())).metrics["pooled"]["ways"]]
    sources += [("refined", "whole")] if "refined" in records else []
    for method, way in sources:
        score = mean_iou_interval(runs_of(records, method, list(records[method]), way))
        ways = [r.metrics["pooled"]["ways"][way] for r in records[method].values()]
        seams = [w["seam_error"] for w in ways if w.get("seam_error") is not None]
        rows[way if method == whole else "refined"] = {
            "mean IoU": score.value, "low": score.low, "high": score.high,
            "seam error": sum(seams) / len(seams) if seams else float("nan"),
            "boundary F1": sum(w["mean_boundary_f1"] for w in ways) / len(ways),
            "s / Mpx": sum(w["seconds_per_mpx"] for w in ways) / len(ways),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def ablation_shown(table: pd.DataFrame) -> pd.DataFrame:
    """A table of this module as it is printed: percent with intervals, costs rounded."""

    def points(columns: Sequence[str], sign: str = "") -> list[str]:
        cells = []
        for value, low, high in table[list(columns)].to_numpy(dtype=float):
            text = f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
            cells.append("" if value != value else text)
        return cells

    out = pd.DataFrame({"mean IoU, % [95 %]": points(("mean IoU", "low", "high"))}, index=table.index)
    if "of the ceiling" in table:
        out["of dense, %"] = [f"{100 * v:.0f}" for v in table["of the ceiling"]]
    if "difference" in table:
        out["less the whole, points [95 %]"] = points(("difference", "from", "to"), "+")
        out["detectable"] = ["" if v != v else f"{100 * v:.1f}" for v in table["detectable"]]
    if "seam error" in table:
        out["seam, % pts"] = ["" if v != v else f"{100 * v:+.1f}" for v in table["seam error"]]
    costs = (
        ("parameters, M", 2),
        ("GFLOP / Mpx", 0),
        ("training s", 0),
        ("s / Mpx", 2),
        ("ms a crop", 0),
        ("peak MiB", 0),
        ("boundary F1", 3),
    )
    for name, digits in costs:
        if name in table:
            out[name] = ["" if v != v else f"{v:.{digits}f}" for v in table[name]]
    return out


def print_ablation(folder: Path) -> None:
    """Print what the records of an ablation say, and write ``table.csv`` beside them."""
    records = read_records(folder)
    table = ablation_table(records)
    table.to_csv(folder / "table.csv")
    print(f"\n{ablation_shown(table).to_string()}\n")
    if merged_in_several_ways(records):
        print(f"{ablation_shown(merging_table(records)).to_string()}\n")
    print(f"mean IoU is over whole test scenes; records and table.csv are in {folder}")


HEAD = """\
# {title}: what the records say

Generated by `python -m rsseglab.experiments.ablate book/records/ablate/{paper} > book/ablation_{paper}.md`; do not
edit. {parts}

Each row is the method with one part left out or replaced, trained with the same crops, steps, schedule and seeds,
selected on validation scenes and scored on whole test scenes; all rows of a table are merged alike, by the way that
labels the validation scenes best for the whole method. Intervals are at 95 %, over places of the test scenes and over
seeds, each paired. *Detectable*: the smallest true difference that such an experiment finds four times out of five.
These runs are far smaller than the authors': a part that makes no difference here may make one there. Seconds and
memory are of a machine that did other things besides; *ms a crop* is of labelling crops side by side, contexts
included.
"""


def page(folder: Path) -> str:
    """The book's page, in Markdown.

    Args:
        folder: named after the paper, with a subfolder of records for each data set.

    Raises:
        UserError: records are damaged, or of several ablations in one folder.
    """
    if folder.name not in KINDS:
        raise UserError(f"'{folder.name}' is no ablation; give a folder named {' or '.join(KINDS)}.")
    kind = KINDS[folder.name]
    parts = [HEAD.format(title=kind.title, parts=kind.parts, paper=folder.name)]
    for place in sorted(path for path in folder.glob("*") if path.is_dir()):
        records = read_records(place)
        parts += [f"## {place.name}", conditions(records), gaps(records, kind)]
        parts.append(markdown(ablation_shown(ablation_table(records)), "network"))
        if merged_in_several_ways(records):
            parts += [
                "How the whole method's crops are merged:",
                markdown(ablation_shown(merging_table(records)), ""),
            ]
    return "\n\n".join(part for part in parts if part) + "\n"


def conditions(records: Records) -> str:
    """One line: on what, with which network and schedule an ablation was run."""
    preset = preset_of_records(records)
    runs = [run for seeds in records.values() for run in seeds.values()]
    weights = sorted({"pretrained" if run.configuration.get("weights") else "random" for run in runs})
    crops = preset["batch"] * preset["window_px"] ** 2 // preset["crop_px"] ** 2
    kind = ablation_of_records(records)
    return (
        f"`{preset['data']}`, averaged over {preset['decimate']} x {preset['decimate']} px. {preset['encoder']} "
        f"({' and '.join(weights)} weights){kind.around}; {preset['steps']} steps of {crops} {kind.crops} of "
        f"{preset['crop_px']} px. {len(runs)} runs, "
        f"{sum(run.minutes for run in runs):.0f} minutes."
    )


if __name__ == "__main__":
    print(page(Path(sys.argv[1])), end="")
