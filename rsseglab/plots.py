"""Pictures of scenes, labels and errors; palettes that colour-blind readers can tell apart."""

from collections.abc import Sequence
from io import BytesIO
from itertools import cycle
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from rsseglab.scenes.scene import IGNORE_INDEX, LabelClass, Scene, Window

if TYPE_CHECKING:
    import pandas as pd

    from rsseglab.evaluation import Placement
    from rsseglab.spatial import Layout

#: Okabe and Ito's palette, told apart with any colour vision.
OKABE_ITO: tuple[tuple[int, int, int], ...] = (
    (0, 114, 178),  # blue
    (230, 159, 0),  # orange
    (0, 158, 115),  # green
    (86, 180, 233),  # sky
    (213, 94, 0),  # vermilion
    (204, 121, 167),  # purple
    (240, 228, 66),  # yellow
    (0, 0, 0),  # black
)

IGNORED_COLOR = (255, 255, 255)
RIGHT_COLOR, WRONG_COLOR = (216, 220, 224), (0, 0, 0)


def rgb_bands(bands: Sequence[str]) -> tuple[int, int, int]:
    """Which three bands stand for red, green and blue: by name where the names tell, else the first three."""
    lower = [band.lower() for band in bands]
    for names in (("red", "green", "blue"), ("b04", "b03", "b02"), ("b4", "b3", "b2"), ("r", "g", "b")):
        if all(name in lower for name in names):
            return lower.index(names[0]), lower.index(names[1]), lower.index(names[2])
    last = len(bands) - 1
    return 0, min(1, last), min(2, last)


def thumbnail(scene: Scene, max_px: int = 1200) -> NDArray[np.uint8]:
    """A scene in true colour, thinned to at most ``max_px`` a side and stretched to its 2nd and 98th percentiles.

    Returns:
        Shape (height, width, 3).
    """
    bands = list(rgb_bands(scene.bands))
    rows = _thinned(scene, max_px, lambda window: scene.read(window)[bands].transpose(1, 2, 0))
    low, high = np.percentile(rows, (2, 98), axis=(0, 1))
    return stretched(rows, low, high)


def stretched(pixels: NDArray[Any], low: Any, high: Any) -> NDArray[np.uint8]:
    """Pixels (height, width, 3) as bytes: 0 at ``low`` and below, 255 at ``high`` and above, of each band."""
    return (((pixels - low) / np.maximum(high - low, 1e-9)).clip(0, 1) * 255).astype(np.uint8)


def label_thumbnail(scene: Scene, max_px: int = 1200) -> NDArray[np.uint8]:
    """A scene's label as class indices, thinned to at most ``max_px`` a side; shape (height, width)."""
    return _thinned(scene, max_px, scene.read_label)


def prediction_thumbnail(path: Path, scene: Scene, max_px: int = 1200) -> NDArray[np.uint8]:
    """A prediction as class indices, thinned like `label_thumbnail`; shape (height, width)."""
    on_grid = Scene(path, path, scene.classes, scene.ignore_values)
    return _thinned(on_grid, max_px, on_grid.read_label)


def _thinned(scene: Scene, max_px: int, read: Any) -> NDArray[Any]:
    step = -(-max(scene.height, scene.width) // max_px)
    # Row by row of what is kept, a thousand rows at a time: a large scene never lies in memory whole.
    height = 1024 // step * step or step
    parts = [
        read(Window(row, 0, min(height, scene.height - row), scene.width))[::step, ::step]
        for row in range(0, scene.height, height)
    ]
    return np.concatenate(parts)


def colorize(index: NDArray[np.uint8], classes: Sequence[LabelClass]) -> NDArray[np.uint8]:
    """Class indices (H, W) as colours (H, W, 3); ignored pixels white."""
    table = np.full((256, 3), IGNORED_COLOR, np.uint8)
    table[: len(classes)] = [c.color for c in classes]
    return table[index]


def error_map(prediction: NDArray[np.uint8], label: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Colours (H, W, 3): grey where right, black where wrong, white where the label does not count."""
    colors = np.where((prediction == label)[..., None], RIGHT_COLOR, WRONG_COLOR).astype(np.uint8)
    colors[label == IGNORE_INDEX] = IGNORED_COLOR
    return colors


def class_legend(classes: Sequence[LabelClass], ignored: bool = True) -> list[Patch]:
    """Legend entries of the classes."""
    entries = [(c.name, c.color) for c in classes] + ([("not labelled", IGNORED_COLOR)] if ignored else [])
    return [_patch(name, color) for name, color in entries]


def _patch(name: str, color: tuple[int, int, int]) -> Patch:
    return Patch(facecolor=_unit(color), edgecolor="0.4", label=name)


def draw(axes: Axes, picture: NDArray[Any], title: str) -> None:
    """Draw a picture without ticks under a title."""
    axes.imshow(picture, interpolation="nearest")
    axes.set_title(title, fontsize=10)
    axes.set_axis_off()


def comparison(rows: Sequence[tuple[Scene, Path]], title: str = "", max_px: int = 1200) -> Figure:
    """Scene, label, prediction and errors side by side, one row a scene, with legends.

    Args:
        rows: scenes with labels, and the prediction of each: a raster of the label file's values.
        title: above the panels.
        max_px: pixels are thinned to at most so many a side.
    """
    heights = [scene.height / scene.width for scene, _ in rows]
    figure, grid = plt.subplots(
        len(rows), 4, figsize=(16, 4 * sum(heights) + 0.3 * len(rows) + 1), height_ratios=heights,
        layout="constrained", squeeze=False,
    )  # fmt: skip
    for (scene, path), axes in zip(rows, grid, strict=True):
        label, predicted = label_thumbnail(scene, max_px), prediction_thumbnail(path, scene, max_px)
        share = np.mean((predicted != label)[label != IGNORE_INDEX])
        draw(axes[0], thumbnail(scene, max_px), f"{scene.name}, {scene.width} x {scene.height} px")
        draw(axes[1], colorize(label, scene.classes), "label")
        draw(axes[2], colorize(predicted, scene.classes), "prediction")
        draw(axes[3], error_map(predicted, label), f"errors, {share:.1%} of the pixels shown")
    handles = [*class_legend(rows[0][0].classes), _patch("right", RIGHT_COLOR), _patch("wrong", WRONG_COLOR)]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 12), frameon=False, fontsize=10)
    figure.suptitle(title, fontsize=11)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG and close it; the file appears whole or not at all."""
    part = path.with_name(path.name + ".part")
    try:
        figure.savefig(part, dpi=110, format="png")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
        plt.close(figure)


DIGITISED = "digitised from the authors' plots, ±0.03 (±0.1 where faint)"


def show(figure: Figure, alt: str, dpi: int = 90) -> None:
    """Show a figure in a notebook, with a text for readers who can't see it.

    Args:
        figure: is closed.
        alt: what there is to see.
        dpi: dots an inch.
    """
    from IPython.display import Image, display

    file = BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    plt.close(figure)
    display(Image(file.getvalue(), alt=alt))


def window_curves(published: "pd.DataFrame", ours: "pd.DataFrame | None" = None) -> Figure:
    """Mean IoU against the side of the test window: published curves beside ours, one panel a data set.

    Args:
        published: as `rsseglab.evaluation.published_rest` gives ``window curve``; dashed with hollow markers.
        ours: dataset, method, test_px (side of the window), value and the interval's ends low and high (all shares);
            solid with filled markers. In a panel of its own, or beside the published curves of the same data set.
    """
    parts = [published] if ours is None else [published, ours]
    datasets = list(dict.fromkeys(name for part in parts for name in part["dataset"]))
    columns = ceil(len(datasets) ** 0.5)
    rows = -(-len(datasets) // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(4.8 * columns, 3.6 * rows + 1), layout="constrained", squeeze=False
    )
    trained = {
        px: _unit(color) for px, color in zip(sorted(published["train_px"].unique()), cycle(OKABE_ITO), strict=False)
    }
    markers = dict(zip(published["method"].unique(), cycle("sod^"), strict=False))
    for axes, dataset in zip(grid.flat, datasets, strict=False):
        theirs = published[published["dataset"] == dataset]
        for (method, train_px), curve in theirs.groupby(["method", "train_px"]):
            axes.errorbar(
                curve["test_px"], 100 * curve["value"], 100 * curve["error"], linestyle="--", linewidth=1,
                marker=markers[method], markerfacecolor="none", markersize=5, color=trained[train_px],
            )  # fmt: skip
        if ours is not None and (mine := ours[ours["dataset"] == dataset]).size:
            _draw_ours(axes, mine)
        sides = sorted({int(px) for part in parts for px in part.loc[part["dataset"] == dataset, "test_px"]})
        axes.set_xscale("log", base=2)
        axes.set_xticks(sides, [str(px) for px in sides], rotation=45)
        axes.minorticks_off()
        axes.set(title=dataset, xlabel="side of the test window (px)")
        axes.set_ylabel("IoU of water (%)" if set(theirs["measure"]) == {"iou"} else "mean IoU (%)")
        axes.grid(color="0.92")
    for axes in grid.flat[len(datasets) :]:
        axes.set_axis_off()
    handles = [
        Line2D([], [], color=color, linestyle="--", label=f"trained at {px} px") for px, color in trained.items()
    ]
    handles += [
        Line2D([], [], color="0.3", linestyle="none", marker=marker, markerfacecolor="none", label=method)
        for method, marker in markers.items()
    ]
    title = f"Dashed, hollow: published, {DIGITISED}; the largest window is the whole scene"
    figure.legend(handles=handles, title=title, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _draw_ours(axes: Axes, ours: "pd.DataFrame") -> None:
    colors = cycle((OKABE_ITO[-1], *OKABE_ITO[5::-1]))  # unlike those of the published curves
    for i, ((method, curve), color) in enumerate(zip(ours.groupby("method", sort=False), colors, strict=False)):
        curve = curve.sort_values("test_px")
        value, low, high = (100 * curve[column] for column in ("value", "low", "high"))
        beside = curve["test_px"] * 1.03 ** (i - ours["method"].nunique() // 2)  # so that no interval hides another
        axes.vlines(beside, low, high, color=_unit(color), linewidth=1.2)
        axes.plot(beside, value, "o-", markersize=5, color=_unit(color), label=f"ours: {method}")
    axes.legend(frameon=False, fontsize=8)


def _unit(color: tuple[int, int, int]) -> tuple[float, float, float]:
    red, green, blue = (c / 255 for c in color)
    return red, green, blue


def stamp(axes: Axes, text: str) -> None:
    """Write across a panel what it is, such as predicted: a figure may be seen without its page."""
    axes.text(
        0.5, 0.55, text, transform=axes.transAxes, rotation=20, ha="center", va="center", fontsize=17, color="0.5",
        alpha=0.6, zorder=5, path_effects=[withStroke(linewidth=3, foreground="white")],
    )  # fmt: skip


def tile_borders(axes: Axes, layout: "Layout", height: int, width: int) -> None:
    """Draw where a scene of ``height`` x ``width`` px is cut, and keep the panel's limits."""
    stroke = [withStroke(linewidth=3, foreground="white")]
    for row, col, _, _ in layout.windows(height, width):
        if row:
            axes.axhline(row, color="black", linewidth=1, path_effects=stroke)
        if col:
            axes.axvline(col, color="black", linewidth=1, path_effects=stroke)
    axes.set(xlim=(0, width), ylim=(height, 0))


def attention_over_scene(
    picture: NDArray[Any],
    maps: NDArray[Any],
    layout: "Layout",
    query: tuple[float, float],
    framed: NDArray[np.bool_],
    name: str,
) -> Figure:
    """What one query looks at, head by head, on the scene that it lies in; colours are logarithmic.

    Args:
        picture: the scene, (height, width, 3).
        maps: the query's attention in each head, (heads, h, w), each of sum 1; drawn as a multiple of uniform.
        layout: its tiles' borders are drawn.
        query: row and column of the query, px of the scene.
        framed: which pixels get a frame around their bounding box, (height, width).
        name: what the frame is of.
    """
    height, width = picture.shape[:2]
    rows, cols = np.nonzero(framed)
    corner, size = (cols.min(), rows.min()), [float(np.ptp(places)) + 1 for places in (cols, rows)]
    figure, grid = plt.subplots(
        1, len(maps) + 1, figsize=(2.9 * (len(maps) + 1), 3.9), layout="constrained", sharex=True, sharey=True
    )
    for axes, head in zip(grid, (None, *maps), strict=True):
        axes.imshow(picture, extent=(0, width, height, 0))
        if head is not None:
            shown = axes.imshow(
                head * head.size, extent=(0, width, height, 0), cmap="cividis", norm=LogNorm(0.1, head.size, clip=True)
            )
        tile_borders(axes, layout, height, width)
        for color, line in ((_unit(OKABE_ITO[4]), 2.5), ("white", 0.8)):
            frame = axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=color, linewidth=line))
            frame.set_label(name if line > 1 else "_")
        axes.plot(
            query[1],
            query[0],
            "*",
            color=_unit(OKABE_ITO[4]),
            markeredgecolor="white",
            markersize=15,
            label="the query",
        )
        axes.set_xlabel("column, px")
    grid[0].set(title="the scene", ylabel="row, px")
    for k, axes in enumerate(grid[1:]):
        axes.set_title(f"head {k}")
    figure.colorbar(shown, ax=grid, label="attention, times uniform", shrink=0.75)
    handles = [*grid[0].get_legend_handles_labels()[0], Line2D([], [], color="black", label="border of a tile")]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def method_maps(scene: Scene, rows: Sequence[tuple[str, Path, "Placement | None"]], max_px: int = 1200) -> Figure:
    """What several methods make of one scene, each above its errors; the scene and its label come first.

    Args:
        scene: with a label.
        rows: title, prediction (a raster of the label file's values), and where its windows or tiles lie, whose
            borders are drawn; None where there are none.
        max_px: pixels are thinned to at most so many a side.
    """
    label = label_thumbnail(scene, max_px)
    columns = min(4, 1 + len(rows))
    pairs = -(-(1 + len(rows)) // columns)
    height = 7.2 * pairs * scene.height / scene.width + 0.6 * pairs + 0.8
    figure, grid = plt.subplots(2 * pairs, columns, figsize=(3.6 * columns, height), layout="constrained")
    for axes in grid.flat:
        axes.set_axis_off()
    above, below = grid[::2].ravel(), grid[1::2].ravel()
    draw(above[0], thumbnail(scene, max_px), scene.name)
    draw(below[0], colorize(label, scene.classes), "label")
    for (title, path, placement), axes, errors in zip(rows, above[1:], below[1:], strict=False):
        predicted = prediction_thumbnail(path, scene, max_px)
        share = np.mean((predicted != label)[label != IGNORE_INDEX])
        draw(axes, colorize(predicted, scene.classes), title)
        draw(errors, error_map(predicted, label), f"errors, {share:.0%} of the pixels")
        if placement:
            _window_borders(axes, placement, label.shape[0] / scene.height)
            _window_borders(errors, placement, label.shape[0] / scene.height)
    handles = [*class_legend(scene.classes), _patch("right", RIGHT_COLOR), _patch("wrong", WRONG_COLOR)]
    figure.legend(handles=handles, loc="outside lower center", ncols=3 * columns, frameon=False, fontsize=10)
    return figure


def _window_borders(axes: Axes, placement: "Placement", scale: float) -> None:
    """Lines where windows start inside the scene, white within black to be seen on any colour."""
    for color, width in (("black", 2.4), ("white", 0.9)):
        for row in placement.row_starts[1:]:
            axes.axhline(row * scale - 0.5, color=color, linewidth=width)
        for col in placement.col_starts[1:]:
            axes.axvline(col * scale - 0.5, color=color, linewidth=width)


def intervals(
    axes: Axes,
    table: "pd.DataFrame",
    *,
    reference: float | None = None,
    detectable: bool = False,
    color: tuple[int, int, int] = OKABE_ITO[0],
) -> None:
    """Numbers with their intervals, one a row, in percent: a forest plot.

    Args:
        axes: of its own.
        table: value, low and high (shares) by name; with ``detectable`` also ``smallest detectable``.
        reference: a share where a dashed line is drawn, such as no difference.
        detectable: shade what is nearer to ``reference`` than the smallest detectable effect, row by row.
        color: of the dots; hollow ones have the reference in their interval.
    """
    places = np.arange(len(table))[::-1]
    values, low, high = (100 * table[column].to_numpy() for column in ("value", "low", "high"))
    middle = 100 * (reference or 0.0)
    if detectable:
        width = 100 * table["smallest detectable"].to_numpy()
        axes.barh(
            places,
            2 * width,
            left=middle - width,
            height=0.7,
            color="0.9",
            label="too small to be found four times out of five",
        )
    if reference is not None:
        axes.axvline(middle, color="black", linestyle="--", linewidth=1)
    axes.hlines(places, low, high, color=_unit(color), linewidth=1.8, label="95 % interval")
    open_ = (low <= middle) & (middle <= high) & (reference is not None)
    for place, value, hollow in zip(places, values, open_, strict=True):
        axes.plot(value, place, "o", color=_unit(color), markerfacecolor="white" if hollow else _unit(color))
    axes.set_yticks(places, [str(name) for name in table.index])
    axes.set_ylim(-0.6, len(table) - 0.4)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
