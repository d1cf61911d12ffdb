# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The reviewers' page
#
# **The question.** Do you believe the comparison? Every figure of it can be argued with here: the small ones are computed anew
# with other knobs (crop size, overlap, tiles, interaction, seed), the large ones are read from records, and each record opens
# to the command that made it.
#
# **It assumes** *Cropping, fusion, whole scene*. **It takes** about a minute on a laptop with two cores, and 2 GiB of memory.
# No data is needed.

# %% tags=["parameters"] nbmake={"mock": {"steps": 2, "side_px": 256, "windows": [64, 128], "overlaps": [0, 0.5], "tiles": ["2x2"]}}
steps = 50  # of training
seed = 0
side_px = 512  # of the part of the test scene that is labelled
windows = [64, 128, 256]  # sides of crops, px
overlaps = [0, 0.25, 0.5]  # of neighbouring crops
tiles = ["1x2", "2x2", "4x4"]  # layouts of the whole part; alone, a tile's sides have to be multiples of 32 px
records = "../book/records/compare"

# %%
from html import escape
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, display

from rsseglab import plots
from rsseglab.evaluation import evaluate_scene
from rsseglab.experiments import tables
from rsseglab.inference import Cropping, predict_scene
from rsseglab.inference.predict import read_normalized
from rsseglab.scenes import Window
from rsseglab.scenes.manifest import load_manifest
from rsseglab.scenes.views import part_of
from rsseglab.spatial import Layout, apart, cut, join, together
from rsseglab.training.checkpoint import load_checkpoint
from rsseglab.training.fit import TrainConfig, fit
from rsseglab.widgets import Explorer

folder = Path(mkdtemp())
manifest = load_manifest("synthetic")
scene = part_of(manifest.scenes("test")[0], Window(0, 0, side_px, side_px), "part of the test scene")

# %% [markdown]
# ## 1. Computed here: crop size and overlap
#
# One small network, trained for half a minute on crops of 192 px. Choose crop size and overlap, and see map, errors and
# scores. All else is the same.

# %%
config = TrainConfig(encoder="test_resnet", steps=steps, val_every=steps, batch_size=4, crop_px=192, lr=3e-3, seed=seed)
trained = load_checkpoint(fit(manifest.scenes("train"), manifest.scenes("val"), config, folder / "run").checkpoint)
found = {}
for px in windows:
    for overlap in overlaps:
        cropping = Cropping(px, overlap, "hann" if overlap else "flat")
        path = folder / f"{px}_{overlap}.tif"
        done = predict_scene(trained, scene, path, cropping, progress=False)
        found[px, overlap] = (path, evaluate_scene(path, scene), done.seconds)


def cropped(crop_px, overlap):
    """Map, errors and scores of a setting."""
    path, score, seconds = found[crop_px, overlap]
    guess, truth = plots.prediction_thumbnail(path, scene), plots.label_thumbnail(scene)
    figure, axes = plt.subplots(1, 3, figsize=(13, 4.6), layout="constrained")
    plots.draw(axes[0], plots.thumbnail(scene), "scene")
    plots.draw(axes[1], plots.colorize(guess, scene.classes), f"crops of {crop_px} px, overlap {overlap}")
    plots.draw(
        axes[2], plots.error_map(guess, truth), f"wrong (black); mean IoU {100 * score.confusion.mean_iou():.1f} %"
    )
    figure.legend(handles=plots.class_legend(scene.classes), loc="outside lower center", ncols=8, frameon=False)
    figure.suptitle(f"{seconds:.1f} s", fontsize=9, x=0.99, ha="right")
    return figure


Explorer(
    cropped,
    {"crop_px": windows, "overlap": {str(o): o for o in overlaps}},
    alt="A scene, its map from crops of {crop_px} px with overlap {overlap}, and where it is wrong.",
    dpi=60,
)

# %% [markdown]
# ## 2. Computed here: tiles and interaction
#
# The same network on the whole part, cut in tiles. With `none` each tile is alone; with `exact` they exchange halos and sums.
# The picture shows where labels differ from those of the uncut part.

# %%
image = read_normalized(trained, scene, 0, side_px)[None][:, :, :side_px, :side_px]
with torch.no_grad():
    uncut = trained.network(image).argmax(1)[0]
answers = {}
for name in tiles:
    layout = Layout(*map(int, name.split("x")))
    with torch.no_grad():
        answers[name, "exact"] = join(trained.network(cut(image, layout))).argmax(1)[0]
        answers[name, "none"] = join(together(trained.network(apart(cut(image, layout))))).argmax(1)[0]


def tiled(tiles, interaction):
    """Labels, and where they differ from the uncut part's."""
    answer = answers[tiles, interaction]
    differs = (answer != uncut).numpy()
    layout = Layout(*map(int, tiles.split("x")))
    figure, axes = plt.subplots(1, 2, figsize=(9, 4.8), layout="constrained")
    plots.draw(axes[0], plots.colorize(answer.numpy().astype(np.uint8), scene.classes), f"{tiles} tiles, {interaction}")
    plots.draw(
        axes[1], np.where(differs[..., None], 0, 230).astype(np.uint8).repeat(3, 2), f"{differs.sum()} px differ"
    )
    for axis in axes:
        plots.tile_borders(axis, layout, side_px, side_px)
    return figure


Explorer(
    tiled,
    {"tiles": tiles, "interaction": ["none", "exact"]},
    {"tiles": tiles[-1]},
    "Labels of a scene in {tiles} tiles with interaction {interaction}, and the pixels that differ from the uncut scene's.",
    dpi=60,
)

# %% [markdown]
# ## 3. Read from records: the comparison
#
# Minutes of training, three seeds, whole test scenes. Choose the data set, and what is shown: all scores, or one seed alone.
# Watch how much the order moves from seed to seed; that is what the intervals say.

# %%
recorded = tables.read_comparisons(Path(records))
names = [name for name in recorded if "twins" not in name]
seeds = sorted({s for name in names for runs in recorded[name].values() for s in runs})


def compared(data, seed):
    """Scores of all methods with their intervals."""
    its = recorded[data]
    if seed != "all":
        its = {m: {s: r for s, r in runs.items() if s == int(seed)} for m, runs in its.items()}
        its = {m: runs for m, runs in its.items() if runs}
    table = tables.comparison_table(its)
    figure, axis = plt.subplots(figsize=(9, 1 + 0.36 * len(table)), layout="constrained")
    rows = [(m, 100 * r["score"], 100 * r["low"], 100 * r["high"]) for m, r in table.iterrows()]
    places = np.arange(len(rows))
    for place, (_, value, low, high) in zip(places, rows, strict=True):
        axis.plot([low, high], [place, place], color="0.5")
        axis.plot(value, place, "o", color="#0072b2")
    axis.set(
        yticks=places, yticklabels=[r[0] for r in rows], xlabel="mean IoU over whole test scenes, %; 95 % interval"
    )
    axis.set_title(f"{data}, seed {seed}" if seed != "all" else f"{data}, all seeds", fontsize=10)
    axis.invert_yaxis()
    return figure


Explorer(
    compared,
    {"data": names, "seed": ["all", *map(str, seeds)]},
    alt="Mean IoU of each method on {data} with its interval, seeds: {seed}.",
    dpi=70,
)

# %% [markdown]
# ## 4. Every record, and the command that made it
#
# Open one. The command repeats the run; the hash tells whether the configuration is still the one that is shown; the commit is
# the code that ran.

# %%
entries = []
for data, methods in recorded.items():
    for runs in methods.values():
        for number, run in runs.items():
            facts = {
                "command": run.command, "commit": run.git_commit, "minutes": f"{run.minutes:.1f}",
                "configuration": run.configuration_sha256[:16], "machine": run.hardware.get("cpu", ""),
                "torch": run.packages.get("torch", ""),
            }  # fmt: skip
            inner = "".join(
                f"<tr><th>{escape(k)}</th><td><code>{escape(str(v))}</code></td></tr>" for k, v in facts.items()
            )
            title = f"{data}: {run.metrics['pooled']['title']}, seed {number}"
            entries.append(f"<details><summary>{escape(title)}</summary><table>{inner}</table></details>")
display(HTML(f"<p>{len(entries)} records</p>" + "".join(entries)))

# %% [markdown]
# ## 5. The claims
#
# What the paper claims, the threshold that was set before the runs, and what the records say.

# %%
from rsseglab.experiments import page

matrix = tables.verdicts(recorded, tables.benchmark_numbers(Path(records).parent))
with pd.option_context("display.max_colwidth", None):
    display(page.verdicts_shown(matrix))

# %% [markdown]
# ## Exercises
#
# 1. **Find the seam.** In section 1, at which setting do errors lie along window borders? Does the score show it?
# 2. **Another seed.** Change `seed` and run all. Which of your conclusions of section 1 hold?
# 3. **Break exactness.** In section 2, why does `exact` differ in no pixel while `none` does? Put the network in train mode: do
#    both still hold?
# 4. **Repeat a record.** Take one of section 4, run its command, and compare the new record with the old.
# 5. **Referee.** Write three sentences for the authors of this book: which claim of section 5 do you accept, which not, and
#    which run would change your mind?
#
# **Read next.** `rsseglab/experiments/claims.py` (claims and thresholds), `rsseglab/experiments/tables.py`, and [the
# comparison](../comparison).
