"""Published numbers of REST that stand beside ours, each with where it comes from and how far it may be off.

``published_rest.csv`` holds four tables:

- ``window curve``: mean IoU (water: IoU) against the side of the test window, by the side of the training window;
  Swin-L with UPerNet. Read off the authors' own plots: +-0.03, or +-0.1 where a marker is partly hidden. The largest
  test window of a data set is its whole scene.
- ``headline``: what an earlier README of the public code prints.
- ``communication``: what the exchange between tiles is worth. From a third party's review, said to quote the paper's
  Table VI; to be used with care.
- ``time``: seconds of testing and IoU on GLH-Water, read off the authors' plot; the error of the seconds is not known.
  Which GPUs a time is of, and whether it is of one whole scene, was not found in the public code or project page.

The post-print is openly available, but was not read for these numbers.
"""

from importlib.resources import files
from typing import TYPE_CHECKING

from rsseglab.errors import UserError

if TYPE_CHECKING:
    import pandas as pd

TABLES = ("window curve", "headline", "communication", "time")


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
    import pandas as pd

    if table not in TABLES:
        raise UserError(f"no published table '{table}'; choose from {', '.join(TABLES)}.")
    with files("rsseglab.evaluation").joinpath("published_rest.csv").open(encoding="utf-8") as file:
        rows = pd.read_csv(file, dtype={"train_px": "Int64", "test_px": "Int64"})
    percent = rows["unit"] == "%"
    for column in ("value", "error"):
        rows[column] = rows[column].where(~percent, rows[column] / 100)
    return rows[rows["table"] == table].drop(columns=["table", "unit"]).reset_index(drop=True)
