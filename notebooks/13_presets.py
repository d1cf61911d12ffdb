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
# # Reproduce a paper
#
# **The question.** You have a paper, its numbers, perhaps its code. What does it take to get the same numbers, what must you
# know that is not in the paper, and when may you put your number beside theirs? This notebook asks that of four papers, with
# everything that was found written down as data.
#
# **It assumes** *What counts as evidence?* **It takes** less than a minute on a laptop with two cores, and 1 GiB of memory. No
# data is needed; to run a preset in full you need its data set, and mostly a GPU.

# %% tags=["parameters"] nbmake={"mock": {"records": "../book/records"}}
preset_name = "bicor-vaihingen"  # one of rsseglab.experiments.presets.preset_names()
records = "../book/records"  # run records

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from rsseglab import plots
from rsseglab.evaluation.padding import padded_size
from rsseglab.evaluation.published import PROTOCOL, published_numbers
from rsseglab.experiments.paper_tables import page, paper_tables, read_ours
from rsseglab.experiments.presets import load_preset, preset_names

BLUE, ORANGE, GREEN, SKY, VERMILION = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in plots.OKABE_ITO[:5]]
pd.set_option("display.max_colwidth", None)  # what a paper states is read to its end

# %% [markdown]
# ## 1. What a number says of itself
#
# All published numbers that this book shows lie in one file, `data_manifests/papers/published.toml`, each with where it was
# found and how it was had: split, metric, flips at test time, what the checkpoint was selected on, hardware, number of runs.
# *Not stated* means: not found in what we read.

# %%
numbers = published_numbers()
headlines = numbers[numbers["table"].isin(["headline", "comparison"])]
ours = {"rest": "REST", "fctl": "FCtL", "bicor_seg": "BiCoR-Seg"}
mine = headlines[
    [str(ours[p]).lower() in str(m).lower() for p, m in zip(headlines["paper"], headlines["method"], strict=True)]
]
mine[mine["measure"].isin(["miou", "iou"])].drop_duplicates(["paper", "dataset"])[
    ["paper", "dataset", "method", "measure", "value", "unit", "tag", *PROTOCOL]
].set_index(["paper", "dataset"]).T

# %%
stated = {
    paper: {
        what: 100 * float((~rows[what].fillna("not stated").str.startswith("not stated")).mean()) for what in PROTOCOL
    }
    for paper, rows in numbers.groupby("paper")
}
table = pd.DataFrame(stated).T
figure, axis = plt.subplots(figsize=(9, 2.6), layout="constrained")
drawn = axis.imshow(table, cmap="cividis", vmin=0, vmax=100, aspect="auto")
for (i, j), value in np.ndenumerate(table.to_numpy()):
    axis.text(j, i, f"{value:.0f}", ha="center", va="center", color="white" if value < 55 else "black")
axis.set(xticks=range(len(PROTOCOL)), xticklabels=[p.replace("_", " ") for p in PROTOCOL])
axis.set(yticks=range(len(table)), yticklabels=table.index, title="of how many numbers it was found, %")
figure.colorbar(drawn, ax=axis, label="%")
plots.show(
    figure,
    "For each paper, the share of its numbers of which split, metric, test-time augmentation, selection, hardware and runs were found.",
)

# %% [markdown]
# ## 2. A preset is what is known, and what differs
#
# For each pair of paper and data set whose settings were published there is a preset: a file with the settings, where each was
# found, and what a run of it does *otherwise*. Read one before you run it.

# %%
print("\n".join(preset_names()))
preset = load_preset(preset_name)
display(pd.Series(preset.settings, name=preset.name).to_frame())
display(Markdown("**What differs:**\n\n" + "\n".join(f"- {line}" for line in preset.differs)))

# %% [markdown]
# To run it:
#
# ```console
# rsseglab data get vaihingen                                  # what to fetch, from where, where to put it
# rsseglab train --preset bicor-vaihingen --out runs/bicor     # tells hours, memory and disk first; --resume goes on
# rsseglab tables --runs runs                                  # its record fills the row
# ```
#
# Where the data is not here the command says what to fetch. On a CPU the hours that it tells are a reason to stop: that is
# what they are told for.
#
# ## 3. A trap by arithmetic
#
# A published protocol can move a number without anybody meaning it. By reading of the public code, one evaluation pads scenes
# with black to a multiple of 1024 px, and the padding's label is class 0, impervious surface. If padding is easy, it counts
# as a class that is nearly always right. How much of what is scored is padding?

# %%
sizes = {"Vaihingen, a tile": (2557, 1887), "Potsdam": (6000, 6000), "LoveDA": (1024, 1024)}
rows = {}
for name, (height, width) in sizes.items():
    padded = np.prod(padded_size(height, width, 1024))
    rows[name] = {"height": height, "width": width, "padding, %": 100 * (1 - height * width / padded)}
pd.DataFrame(rows).T.round(1)

# %%
share = np.linspace(0, 0.4, 100)
figure, axis = plt.subplots(figsize=(7.5, 3.7), layout="constrained")
for f1, color, style in ((0.90, BLUE, "-"), (0.92, ORANGE, "--"), (0.94, GREEN, "-.")):
    # Impervious surface is taken to be 28 % of a tile. With as many wrong pixels of either kind F1 = TP / (TP + FP).
    true = 0.28 * (1 - share) * f1
    wrong = 0.28 * (1 - share) * (1 - f1)
    axis.plot(
        100 * share,
        100 * (true + share) / (true + share + wrong),
        style,
        color=color,
        label=f"{100 * f1:.0f} % without padding",
    )
axis.axvline(rows["Vaihingen, a tile"]["padding, %"], color="black", linestyle=":", label="a tile of Vaihingen")
axis.set(xlabel="padding in what is scored, %", ylabel="F1 of the class that padding counts as, %")
axis.legend(frameon=False)
plots.show(
    figure,
    "F1 of impervious surface over the share of padding that is counted as it: at the share of a Vaihingen tile, 94 percent become about 97.",
)

# %% [markdown]
# This is a *hypothesis* from reading code and from arithmetic; nobody has run the authors' evaluation here. It is polite, and
# useful, to write it so: `rsseglab evaluate --protocol geoseg` prints both scores of *your* prediction, and says how far they
# lie apart.
#
# ## 4. Theirs and ours
#
# `rsseglab tables` makes the tables of the papers with ours beside. Nothing in them is typed: each cell comes from the file of
# section 1 or from a run record. Here is one paper's; all of them are in [the tables](../tables).

# %%
shown = [
    table
    for table in paper_tables(read_ours(Path(records)), ("fctl",))
    if table.title.startswith(("Contexts", "Fusion"))
]
display(Markdown(page(shown).partition("\n## ")[2]))

# %% [markdown]
# Ours are of small scenes and minutes of training. Their order can be read beside the paper's, and the size of their
# differences; the numbers themselves cannot.
#
# ## A recipe
#
# 1. Write down what is known, with sources, *before* the first run; mark what you choose yourself.
# 2. Reproduce the baseline first. If it is not theirs, stop and find out why.
# 3. One seed is an anecdote. Three with intervals are a beginning.
# 4. Keep the record of every run, the failed ones too.
# 5. Say what differs, in the table, not in an appendix.
# 6. Write to the authors. They know what the paper had no room for.
#
# ## Exercises
#
# 1. **Another preset.** Choose one for DeepGlobe. Which of its settings come from the paper, which from the code, and which
#    are ours? How many GPU-hours does it ask for?
# 2. **Turn it round.** In section 3, an F1 of 97.4 % is reported. What would it be without padding, if the hypothesis holds?
# 3. **Whose difference?** FCtL's gain over no context on Inria: how much of it does self-attention alone have? Find both numbers
#    in the published file, and say what that means for the claim.
# 4. **A record of your own.** Run `rsseglab ablate fctl --quick`, open one of its records, and repeat the run from the record
#    alone. Change a number in it by hand, and run `rsseglab tables` on it. What happens, and why?
# 5. **Add a number.** Find a published result on one of these data sets that is missing, and add it to the file with its
#    protocol. Which fields did you have to leave *not stated*?
#
# **Read next.** `data_manifests/papers/published.toml`, `rsseglab/experiments/presets.py`, `rsseglab/experiments/budget.py`, and
# *Bring your own scene*.
