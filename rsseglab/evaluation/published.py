"""Published numbers of the papers that stand beside ours, each with its source and how far it may be off.

All of them stand in ``data_manifests/papers/published.toml``, with the protocol they were had by: split, metric,
test-time augmentation, what the checkpoint was selected on, hardware, number of runs. `published_numbers` has them all;
the functions by paper have one table each.

REST has these tables:

- ``window curve``: mean IoU (water: IoU) against the side of the test window, by the side of the training window;
  Swin-L with UPerNet. Read off the authors' own plots: +-0.03, or +-0.1 where a marker is partly hidden. The largest
  test window of a data set is its whole scene.
- ``headline``: what an earlier README of the public code prints.
- ``communication``: what the exchange between tiles is worth. From a third party's review, said to quote the paper's
  Table VI; to be used with care.
- ``time``: seconds of testing and IoU on GLH-Water, read off the authors' plot; the error of the seconds is not known.
  Which GPUs a time is of, and whether it is of one whole scene, was not found in the public code or project page.
- ``encoders``: five networks on FBP, with and without REST.
- ``repeats``: the means of repeated runs on FBP, whose best are the headline.

The post-print is openly available, but was not read for these numbers.

FCtL (Li, Yang, Liu, Yu, He, ICCV 2021), all as the paper prints them:

- ``comparison``: with other methods on the test scenes (Tables 1 and 2); "local inference" of FCN-8s.
- ``contexts``: with some of the contexts (Table 3). *Local* is the patch itself, self-attention; *medium* and *large*
  are 1524 px and the whole scene of 2448 px on DeepGlobe, 1016 and 1524 px on Inria.
- ``sizes``: which contexts, by their sides in px (Table 4).
- ``fusion``: how they are mixed (Table 5).
- ``merging``: how patches become a scene (Table 6).
- ``correlation``: and concatenation in its place (section 4.4). The correlation's numbers are those of Tables 1 and 2,
  so with refinement, unlike those of Tables 3 to 5; whether concatenation is refined as well is not said.
- ``cost``: memory of a patch, and seconds of an image.

What these numbers are numbers of is told by `rsseglab.evaluation.protocols`: on Inria the "mIoU" is, by the authors'
public code, the IoU of buildings alone. The paper counts 455 training images of DeepGlobe, the public code lists 454
(455 + 207 + 142 is one more than the 803 images that there are). Whether scores are with flips and rotations at test
time is not said. The error is what rounding leaves open.

BiCoR-Seg (Shi, Song, arXiv 2512.20255), all as the paper prints them:

- ``comparison``: with other methods on LoveDA, Vaihingen and Potsdam (Tables 1 to 3), class by class and in the mean.
  On the last two it is over five classes, without clutter. Where a score is given as "-", there is no row.
- ``components``: cross attention in the place of HBIS, and HBIS with and without its losses (Table 4). Size and speed
  are printed once for all rows with HBIS, and stand here at "HBIS".
- ``layers``: how many times HBIS (Table 5). Its parameters stand at LoveDA.

Figure 3, the share of pixels that make a region, is a curve, and not digitised. No number of runs and no spread is
given. Some printed means do not follow from the printed classes, most of all U-Net's on Potsdam (mF1 75.64 printed,
74.70 over its five). The row of two layers on Vaihingen is 85.38 in Table 2 and 85.37 in Table 5. Whether impervious
surfaces of Vaihingen hold padding is asked in the notebook *Classes that look back*. The error is what
rounding leaves open.

PENet: no number could be had. ``neighbours`` are another method's, on the same data set.
"""

import tomllib
from functools import cache
from typing import TYPE_CHECKING, Any

from rsseglab.errors import UserError
from rsseglab.scenes.manifest import manifest_folder

if TYPE_CHECKING:
    import pandas as pd

TABLES = ("window curve", "headline", "communication", "time", "encoders", "repeats")
FCTL_TABLES = ("comparison", "contexts", "sizes", "fusion", "merging", "correlation", "cost")
BICOR_SEG_TABLES = ("comparison", "components", "layers")
#: What a number's block, data set or paper says of how it was had.
PROTOCOL = ("split", "metric", "test_time_augmentation", "selection", "hardware", "runs")
NUMBER = (
    "paper", "table", "dataset", "method", "class", "train_px", "test_px", "measure", "value", "unit", "error", "tag",
    "source",
)  # fmt: skip


@cache
def published() -> dict[str, Any]:
    """The file as it stands: ``datasets``, ``papers`` and ``tables``."""
    path = manifest_folder() / "papers" / "published.toml"
    return tomllib.loads(path.read_text(encoding="utf-8"))


def published_numbers() -> "pd.DataFrame":
    """All published numbers.

    Returns:
        One row a number: the columns of `NUMBER` (values and errors in the unit that was printed, missing where there
        is none), those of `PROTOCOL`, and ``manifest``, our name of the data set.
    """
    import pandas as pd

    content, rows = published(), []
    for block in content["tables"]:
        paper = content["papers"][block["paper"]]
        said = {**paper, **paper["protocols"][block["dataset"]], **block}
        its = {key: said[key] for key in (*NUMBER, *PROTOCOL) if key in said}
        its["manifest"] = content["datasets"][block["dataset"]]
        rows += [its | dict(zip(block["columns"], row, strict=True)) for row in block["rows"]]
    table = pd.DataFrame(rows, columns=[*NUMBER, *PROTOCOL, "manifest"])
    table["class"] = table["class"].replace("", None)
    return table.astype({"train_px": "Int64", "test_px": "Int64", "value": float, "error": float})


def published_rest(table: str) -> "pd.DataFrame":
    """One of the tables of REST's numbers.

    Args:
        table: one of `TABLES`, see the module.

    Returns:
        One row a number: dataset, method, train_px and test_px (sides of the windows; missing where there are none),
        measure (``miou``, ``iou``, ``f1``, ``oa``, ``seconds``, ``seconds_saved``, ``seconds_saved_share``), value and
        error (shares, not percent, and seconds; the error is NaN where it is not known), tag (``printed``,
        ``digitised`` or ``third party``) and source.

    Raises:
        UserError: there is no such table.
    """
    return _published("rest", TABLES, table, ("method", "train_px", "test_px"))


def published_fctl(table: str) -> "pd.DataFrame":
    """One of the tables of FCtL's numbers.

    Args:
        table: one of `FCTL_TABLES`, see the module.

    Returns:
        One row a number: dataset, method, measure (``miou``, ``f1``, ``oa``, ``memory`` in MB, ``seconds``), value and
        error (shares, where they are neither memory nor seconds), tag (``printed``) and source.

    Raises:
        UserError: there is no such table.
    """
    return _published("fctl", FCTL_TABLES, table, ("method",))


def published_bicor_seg(table: str) -> "pd.DataFrame":
    """One of the tables of BiCoR-Seg's numbers.

    Args:
        table: one of `BICOR_SEG_TABLES`, see the module.

    Returns:
        One row a number: dataset, method (in ``layers`` their number), class (missing for a mean, or what is of no
        class), measure (``iou``, ``f1``, ``miou``, ``mf1``, ``oa``, ``parameters`` in millions, ``flops`` in 10^9,
        ``images_per_second``), value and error (shares, where they are no such count), tag (``printed``) and source.

    Raises:
        UserError: there is no such table.
    """
    return _published("bicor_seg", BICOR_SEG_TABLES, table, ("method", "class"))


def _published(paper: str, tables: tuple[str, ...], table: str, named: tuple[str, ...]) -> "pd.DataFrame":
    if table not in tables:
        raise UserError(f"no published table '{table}'; choose from {', '.join(tables)}.")
    numbers = published_numbers()
    rows = numbers[(numbers["paper"] == paper) & (numbers["table"] == table)].reset_index(drop=True)
    percent = rows["unit"] == "%"
    for column in ("value", "error"):
        rows[column] = rows[column].where(~percent, rows[column] / 100)
    return rows[["dataset", *named, "measure", "value", "error", "tag", "source"]]
