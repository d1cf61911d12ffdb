"""Published numbers of REST, FCtL and BiCoR-Seg that stand beside ours, each with its source and how far it may be off.

``published_rest.csv`` holds four tables of REST:

- ``window curve``: mean IoU (water: IoU) against the side of the test window, by the side of the training window;
  Swin-L with UPerNet. Read off the authors' own plots: +-0.03, or +-0.1 where a marker is partly hidden. The largest
  test window of a data set is its whole scene.
- ``headline``: what an earlier README of the public code prints.
- ``communication``: what the exchange between tiles is worth. From a third party's review, said to quote the paper's
  Table VI; to be used with care.
- ``time``: seconds of testing and IoU on GLH-Water, read off the authors' plot; the error of the seconds is not known.
  Which GPUs a time is of, and whether it is of one whole scene, was not found in the public code or project page.

The post-print is openly available, but was not read for these numbers.

``published_fctl.csv`` holds six of FCtL (Li, Yang, Liu, Yu, He, ICCV 2021), all as the paper prints them:

- ``comparison``: with other methods on the test scenes (Tables 1 and 2); "local inference" of FCN-8s.
- ``contexts``: with some of the contexts (Table 3). *Local* is the patch itself, self-attention; *medium* and *large*
  are 1524 px and the whole scene of 2448 px on DeepGlobe, 1016 and 1524 px on Inria.
- ``sizes``: which contexts, by their sides in px (Table 4).
- ``fusion``: how they are mixed (Table 5).
- ``merging``: how patches become a scene (Table 6).
- ``correlation``: and concatenation in its place (section 4.4). The correlation's numbers are those of Tables 1 and 2,
  so with refinement, unlike those of Tables 3 to 5; whether concatenation is refined as well is not said.

What these numbers are numbers of is told by `rsseglab.evaluation.protocols`: on Inria the "mIoU" is, by the authors'
public code, the IoU of buildings alone. The paper counts 455 training images of DeepGlobe, the public code lists 454
(455 + 207 + 142 is one more than the 803 images that there are). Whether scores are with flips and rotations at test
time is not said. The error is what rounding leaves open.

``published_bicor_seg.csv`` holds three of BiCoR-Seg (Shi, Song, arXiv 2512.20255), all as the paper prints them:

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
"""

from importlib.resources import files
from typing import TYPE_CHECKING

from rsseglab.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

TABLES = ("window curve", "headline", "communication", "time")
FCTL_TABLES = ("comparison", "contexts", "sizes", "fusion", "merging", "correlation")
BICOR_SEG_TABLES = ("comparison", "components", "layers")


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
    return _published("rest", TABLES, table, {"train_px": "Int64", "test_px": "Int64"})


def published_fctl(table: str) -> "pd.DataFrame":
    """One of the tables of FCtL's numbers.

    Args:
        table: one of `FCTL_TABLES`, see the module.

    Returns:
        One row a number: dataset, method, measure (``miou``, ``f1``, ``oa``), value and error (shares), tag
        (``printed``) and source.

    Raises:
        UserError: there is no such table.
    """
    return _published("fctl", FCTL_TABLES, table, {})


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
    return _published("bicor_seg", BICOR_SEG_TABLES, table, {"method": "str"})


def _published(paper: str, tables: tuple[str, ...], table: str, dtypes: dict[str, str]) -> "pd.DataFrame":
    import pandas as pd

    if table not in tables:
        raise UserError(f"no published table '{table}'; choose from {', '.join(tables)}.")
    with files("rsseglab.evaluation").joinpath(f"published_{paper}.csv").open(encoding="utf-8") as file:
        rows = pd.read_csv(file, dtype=dtypes)
    percent = rows["unit"] == "%"
    for column in ("value", "error"):
        rows[column] = rows[column].where(~percent, rows[column] / 100)
    return rows[rows["table"] == table].drop(columns=["table", "unit"]).reset_index(drop=True)
