"""Turn the knobs of a figure: every setting is drawn once, and the browser shows the one that is chosen.

No kernel is asked, so a page of the book answers as JupyterLab does. A knob of more than two numbers is a slider, any
other a list.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import anywidget
import matplotlib.pyplot as plt
import traitlets
from matplotlib.figure import Figure
from PIL import Image
from tqdm.auto import tqdm

from rsseglab.errors import UserError
from rsseglab.widgets.scripts import script

MOST = 200  # settings; more are neither drawn in a minute nor sent in a page
COLORS = 128  # of a picture's palette, which is half the size of all colours


class Explorer(anywidget.AnyWidget):
    """A figure for each setting of some knobs; see the module.

    Args:
        draw: makes the figure of a setting, called with a value a knob by name; the figure is closed afterwards.
        knobs: name -> values, or text -> value of each; in the order in which they are shown.
        start: the setting at first, as ``knobs`` has it; the first values if not given.
        alt: what a setting's picture shows, for readers who can't see it; ``{knob}`` stands for its value.
        dpi: of the pictures.
        progress: whether a bar is shown while pictures are drawn.

    Attributes:
        chosen: number of the value of each knob.

    Raises:
        UserError: there are no settings, or too many; the start is none of them.
    """

    _esm = script("explorer")
    _css = Path(__file__).with_name("explorer.css")

    knobs: Any = traitlets.List().tag(sync=True)  # {name, values: texts, slider}
    pictures: Any = traitlets.List().tag(sync=True)  # data URIs, the last knob's values side by side
    chosen: Any = traitlets.List().tag(sync=True)
    alt = traitlets.Unicode().tag(sync=True)

    def __init__(
        self,
        draw: Callable[..., Figure],
        knobs: Mapping[str, Sequence[Any] | Mapping[str, Any]],
        start: Mapping[str, Any] | None = None,
        alt: str = "",
        *,
        dpi: int = 90,
        progress: bool = True,
    ) -> None:
        texts = {name: [str(v) for v in values] for name, values in knobs.items()}
        values = {name: list(v.values() if isinstance(v, Mapping) else v) for name, v in knobs.items()}
        settings = list(product(*values.values()))
        if not values or not settings or len(settings) > MOST:
            raise UserError(f"{len(settings) if values else 0} settings; give 1 to {MOST}: fewer values of some knobs.")
        chosen = [_number(name, values[name], (start or {}).get(name, values[name][0])) for name in values]
        super().__init__(
            knobs=[{"name": n, "values": texts[n], "slider": _is_slider(values[n])} for n in values],
            pictures=[
                _picture(draw(**dict(zip(values, setting, strict=True))), dpi)
                for setting in tqdm(settings, desc="drawing", disable=not progress, leave=False)
            ],
            chosen=chosen,
            alt=alt or ", ".join(f"{name} {{{name}}}" for name in values),
        )

    def png(self, **setting: Any) -> bytes:
        """The picture of a setting, by the texts of its values; PNG.

        Raises:
            UserError: there is no such value.
        """
        number = 0
        for knob in self.knobs:
            number = number * len(knob["values"]) + _number(knob["name"], knob["values"], str(setting[knob["name"]]))
        return base64.b64decode(self.pictures[number].partition(",")[2])


def _number(name: str, values: Sequence[Any], value: Any) -> int:
    if value not in values:
        raise UserError(f"{name} has no value {value!r}; choose one of {', '.join(map(str, values))}.")
    return values.index(value)


def _is_slider(values: Sequence[Any]) -> bool:
    return len(values) > 2 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def _picture(figure: Figure, dpi: int) -> str:
    file, small = io.BytesIO(), io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi, bbox_inches="tight", facecolor="white")
    plt.close(figure)
    Image.open(file).convert("RGB").quantize(COLORS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(small.getvalue()).decode()
