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
# # Cropping, fusion, whole scene
#
# **The question.** A scene does not fit. You may cut it in crops, shrink it, fuse a shrunken view with crops, or spread
# it over tiles that talk to each other. Which labels best? And how would we know? The second question is the harder
# one, and most of this notebook is about it.
#
# **It assumes** the notebooks *Why context* (windows, twin scenes, paired intervals) and *SPIM, tile by tile* (the
# interactions of REST). **It takes** about a minute and a half on a laptop with two cores, and 1 GiB of memory. No data is
# needed: scenes are made here, and larger experiments are read from their run records.

# %% tags=["parameters"] nbmake={"mock": {"steps": 2, "decimate": 8, "window_px": 64, "methods": ["crops", "rest-none", "rest-spim"]}}
steps = 25  # of training, in section 2
decimate = 4  # scenes of section 2 are averaged over so many px a side
window_px = 192  # side of the windows that are spread over 2 x 2 tiles; crops have half of it
methods = ["crops", "downsampled", "fusion", "rest-none", "rest-spim", "rest-exact", "rest-exact+spim"]
seed = 0
records = "../book/records/compare"  # a folder a comparison

# %%
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, display
from scipy.ndimage import gaussian_filter, map_coordinates

from rsseglab import plots
from rsseglab.evaluation import Confusion, Placement, published_rest, read_placement
from rsseglab.experiments import page, tables
from rsseglab.experiments.compare import compare, config_of, preset_of, scenes_of
from rsseglab.scenes.manifest import load_manifest

folder = Path(mkdtemp())  # for what this notebook writes

# %% [markdown]
# ## 1. What is a fair comparison?
#
# "A beats B by two points" can mean that A saw more pixels, or that B's crop size was a poor choice, or that the better
# of many checkpoints was picked on the test set, or that the seed was kind. `rsseglab compare` keeps to these rules:
#
# | rule | without it |
# |---|---|
# | the same encoder and decoder | one compares networks, not ways to handle a large scene |
# | the same pixels seen, steps, schedule and seeds | more training wins |
# | the cropped baseline is the best over crop sizes and overlaps | a straw man loses |
# | a control with the same further steps, where training has two stages | the steps win, not the method |
# | checkpoint and way of labelling are chosen on validation scenes | the test set is part of the training |
# | scores of whole test scenes, each pixel once | scores of crops hide seams |
# | differences paired: same places, same seeds | the spread between places hides everything |
# | the smallest detectable difference stands beside | "no difference found" is taken for "no difference" |
#
# What cannot be made equal is reported: parameters, FLOPs, seconds, memory. The methods:

# %%
crop_px = window_px // 2
what = replace(
    preset_of("synthetic", quick=True), encoder="test_resnet", decimate=decimate, window_px=window_px, crop_px=crop_px,
    crop_sizes=(crop_px,), steps=steps, lr=3e-3, seeds=(seed,),
)  # fmt: skip
names = [f"crops-{crop_px}" if name == "crops" else name for name in methods]
rows = {}
for name in names:
    method = what.methods[name]
    config = config_of(what, method, seed, folder)
    rows[method.title] = {
        "window, px": config.crop_px,
        "windows a step": config.batch_size,
        "pixels a step": config.batch_size * config.crop_px**2,
        "tiles": config.spatial,
        "steps": config.steps,
    }
pd.DataFrame(rows).T

# %% [markdown]
# *Downsampled* sees the scene averaged over 2 x 2 px, so its windows show four times the ground. *Fusion* has a second
# stream that sees a thumbnail of the whole scene (after GLNet; written here, and not one of the published models).
# *Tiles alone* is cropping with crops that lie in a fixed grid; *exact* computes what one large device would.
#
# ## 2. A comparison, here and now
#
# One small network, one seed, a minute's training on three made scenes. It is far too little to conclude anything, but
# all rules hold, and you can change whatever you like.

# %%
live = tables.read_records(compare(what, methods=names, out=folder))
table = tables.comparison_table(live)
tables.shown(table)

# %% [markdown]
# Look at costs before scores. SPIM adds parameters (an attention layer at two strides), *fusion* has two encoders, and
# *exact* pays for halos. *Seam* is how much more often pixels near a border of a window or tile are wrong than others,
# less what the same grid finds where no border is; for *exact* it is a control, and anything but zero is chance.
#
# Now the maps of one test scene, with the borders of windows (where they overlap, they are blended) and tiles. What a
# score of the whole scene averages away, you can see here: is a method wrong everywhere, or at its borders, or in one
# class?

# %%
scene = scenes_of(what).test[0]


def borders(name, path):
    """Where windows or tiles meet: exact tiles leave no border."""
    if not name.startswith("rest-"):
        return read_placement(path)
    if "exact" in name:
        return None
    tall, wide = (-(-side // 64) * 32 for side in (scene.height, scene.width))  # 2 x 2 tiles, multiples of 32 px
    return Placement((0, tall), (0, wide), (tall, wide))


shown = []
for name in names:
    first = live[name][seed].metrics["pooled"]
    path = folder / name / f"seed{seed}" / first["chosen"]["way"] / f"{scene.name}.tif"
    shown.append((first["title"], path, borders(name, path)))
figure = plots.method_maps(scene, shown)
plots.show(figure, "One test scene labelled by each method, with the borders of its windows or tiles.")

# %% [markdown]
# ### Which differences are real?
#
# A score has an interval, from resampling blocks of the test scenes. Differences have one too, and it is narrower: both
# methods are scored on the same blocks, and a block that is hard for one is mostly hard for the other.


# %%
def forest(records, title=""):
    """Scores, and the differences that were asked for before the runs."""
    scores = tables.comparison_table(records).rename(columns={"score": "value"})
    found = tables.differences(records)
    figure, axes = plt.subplots(1, 2, figsize=(14, 1.4 + 0.42 * max(len(scores), len(found))), layout="constrained")
    plots.intervals(axes[0], scores)
    axes[0].set(xlabel="mean IoU over whole test scenes, %", title="scores")
    if found.empty:
        axes[1].set_axis_off()
    else:
        found = found.rename(columns={"difference": "value"})
        found.index = [f"{row['first']}\nless {row['second']}" for _, row in found.iterrows()]
        plots.intervals(axes[1], found, reference=0, detectable=True, color=plots.OKABE_ITO[4])
        axes[1].tick_params(axis="y", labelsize=8)
        axes[1].set(xlabel="difference of mean IoU, % points", title="differences, paired by seed and place")
        figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    figure.suptitle(title)
    plots.show(
        figure,
        "Mean IoU of each method with intervals, and paired differences with their intervals and the smallest "
        "detectable effect.",
    )


forest(live)

# %% [markdown]
# Hollow: the interval contains 0. Grey: a true difference as small as this would be missed more often than in one of
# five experiments like this one. A hollow dot is therefore no proof of equality. And all of this is of *one* seed: how
# much the next seed would move the dots, no resampling of places can tell. Exercise 1 asks you to find out.
#
# ## 3. The recorded comparison
#
# The same program, with longer training and several seeds, left a record for every run. Below is what the records say,
# whatever they say, and which runs have no record yet.

# %%
recorded = tables.read_comparisons(Path(records))
twins = {name: r for name, r in recorded.items() if tables.preset_of_records(r)["data"] == "twins"}
scenes = {name: r for name, r in recorded.items() if name not in twins}
if not scenes:
    display(Markdown("*No comparison on scenes is recorded here yet: `rsseglab compare --data dubai` makes one.*"))
for name, found in scenes.items():
    display(Markdown(f"**{name}.** {page.conditions(found)} {page.gaps(found)}"))
    display(tables.shown(tables.comparison_table(found)))

# %%
for name, found in scenes.items():
    forest(found, f"{name}; seeds: {max(map(len, found.values()))}")

# %% [markdown]
# Seeds are paired as well, and there are few of them, so intervals are stretched as Student's t asks for: by 2.7 for
# three seeds. From one seed they cover places alone, and so are narrower than they ought to be: train the same network
# again, and it may move by more than methods differ.
#
# ### Against the size of the test window
#
# The project page of REST shows mean IoU against the side of the test window. Ours stand beside it: *crops* with each
# size trained and tested, REST trained on one size and tested on windows of several, and on the whole scene.

# %%
curves = [tables.window_curve(found, f"{name} (ours)") for name, found in (scenes or {"live": live}).items()]
figure = plots.window_curves(published_rest("window curve"), pd.concat(curves))
for axes in figure.axes[4:]:
    bottom, top = axes.get_ylim()
    axes.set_ylim(bottom, 2 * top - bottom)  # room for the legend
plots.show(figure, "Mean IoU over the side of the test window: published curves and ours.")

# %% [markdown]
# Dashed curves are digitised from the authors' plots, of far larger networks, scenes and schedules; intervals of them
# were not found in the public code or project page. So compare shapes, not heights: does a curve rise up to the whole
# scene, or end flat, or fall? (Where no record is at hand, the last panel shows the run of section 2.)
#
# ### Where context is all that counts: twin scenes
#
# On twin scenes the class of a field is told by a key `context_px` away, and by nothing else. *Pair accuracy* is the
# share of field pixels that are right over both twins: 50 % for whoever does not see the key, exactly.

# %%
if not twins:
    display(Markdown("*No comparison on twin scenes is recorded here yet: `rsseglab compare --data twins-far` does.*"))
for name, found in twins.items():
    display(Markdown(f"**{name}.** {page.conditions(found)} {page.gaps(found)}"))
    scores = tables.comparison_table(found).rename(columns={"score": "value"})
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.36 * len(scores)), layout="constrained")
    plots.intervals(axes, scores, reference=0.5)
    axes.set(xlabel="pair accuracy, %", xlim=(45, 102), title=f"{name}: dashed is guessing")
    plots.show(figure, "Pair accuracy of each method on twin scenes; the dashed line is guessing.")

# %% [markdown]
# With the key farther away than a crop is wide, and than the network's receptive field reaches, crops and *exact* tiles
# are at 50 % and must be: it is a theorem, and the figure a check of the program. SPIM is the only way here by which
# the key's news can travel. *Downsampled* fails for another reason: the key's stripes are averaged away.
#
# Note what this shows, and what it does not. It shows that SPIM *can* bring context from afar. Whether real scenes hold
# anything there that is worth bringing is what the comparison on real scenes asks.
#
# ## 4. The claim matrix
#
# What the paper claims, what would speak for it, and a threshold: all written down before the runs. The verdict follows
# from the interval alone: *supported* if all of it lies on the claimed side, *not supported* if all of it lies on the
# other, else *undecided*.

# %%
matrix = tables.verdicts(recorded, tables.benchmark_numbers(Path(records).parent))
with pd.option_context("display.max_colwidth", None):
    display(page.verdicts_shown(matrix))
    left = matrix[matrix["value"].isna()]
    display(left.set_index("claim")[["experiment", "verdict"]])

# %% [markdown]
# *Not supported* is a statement about this experiment: few and small scenes, a small network, minutes of training. The
# paper's claims are about large networks and data sets such as Five-Billion-Pixels, with 150 scenes of 50 million
# pixels each; several of them cannot be tested here at all, and the matrix says so. Nor does *supported* here say
# anything about theirs. The use of the matrix is another: it makes us say beforehand what would convince us.
#
# ## 5. How good can a score be? Label noise
#
# Scenes of the Dubai set overlap, and some ground was labelled twice:

# %%
print("\n".join(trap for trap in load_manifest("dubai").traps if "agree" in trap))

# %% [markdown]
# So a labeller as good as the second annotator is right on 81 to 90 % of the pixels, by the labels of the first. (These
# overlaps lie in the training and validation scenes; those of the test scenes nobody has labelled twice.) And one who
# knows the truth? If two annotators err independently and equally often, and seldom in the same way, they agree on
# about the square of what each gets right; so the truth itself would be right on about $\sqrt{0.81} = 90$ to
# $\sqrt{0.90} = 95$ %. For the mean IoU, let us try: two annotators draw the borders of a made scene, each a little
# off.

# %%
truth_scene = load_manifest("synthetic").scenes("test")[0]
truth = truth_scene.read_label()
classes = tuple(c.name for c in truth_scene.classes)
rng = np.random.default_rng(seed)


def annotator(off_px):
    """The truth with borders that wander by ``off_px`` (standard deviation), smoothly."""
    waves = [gaussian_filter(rng.standard_normal(truth.shape), 12) for _ in range(2)]
    moved = np.indices(truth.shape) + [off_px * wave / wave.std() for wave in waves]
    return map_coordinates(truth, moved, order=0, mode="nearest")


def score(prediction, label):
    """Pixel accuracy and mean IoU."""
    confusion = Confusion(classes)
    confusion.update(prediction, label)
    return confusion.overall_accuracy(), confusion.mean_iou()


rows = []
for off_px in (0, 0.5, 1, 1.5, 2, 3, 4, 5):
    one, other = annotator(off_px), annotator(off_px)
    pixels, miou = score(truth, one)
    agree, miou_second = score(other, one)
    rows.append((off_px, agree, agree**0.5, pixels, miou, miou_second))
columns = [
    "borders off by, px", "annotators agree", "its root", "the truth is right on", "mean IoU of the truth",
    "mean IoU of the second annotator",
]  # fmt: skip
noise = pd.DataFrame(rows, columns=columns).set_index(columns[0])
noise.round(3)

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for column, style, color in zip(noise.columns[[3, 4]], ("o-", "s--"), plots.OKABE_ITO, strict=False):
    axes.plot(100 * noise["annotators agree"], 100 * noise[column], style, color=np.array(color) / 255, label=column)
axes.axvspan(81.1, 89.5, color="0.9", label="agreement on Dubai's overlaps")
axes.set(xlabel="pixels on which two annotators agree, %", ylabel="mean IoU, %", title="made scene, made annotators")
axes.grid(color="0.92")
axes.legend(frameon=False)
plots.show(figure, "Mean IoU over the agreement of two made annotators: noise in labels bounds any score.")

# %% [markdown]
# The root is too hopeful: annotators do err in the same places, at borders. And at the agreement of the Dubai labels
# even the truth stays far below 100 % mean IoU, as narrow classes suffer most. (How far, depends on how narrow they
# are: this is a made scene.) Two things follow. Scores near such a ceiling say more about annotators than about
# methods. And noise of this kind blurs differences: both methods are scored against the same wrong labels, so their
# order is seldom turned by it, but the pixels that could tell them apart (borders, narrow things) are those whose
# labels are least to be trusted.
#
# ## What you have seen
#
# - A comparison is as good as its rules, and the rules have to stand before the runs.
# - A paired difference has a narrower interval than either score, and without the smallest detectable effect beside it
#   "no difference" means nothing.
# - On twin scenes the theorem is met: only what carries context sees the key.
# - What real scenes say depends on scenes, networks and schedules. Records can be added to, and the verdicts follow.
#
# ## Exercises
#
# 1. **Seeds.** Run section 2 with seeds 0 to 4 (`compare(..., seeds=range(5))`) for two methods of your choice. Does
#    the interval of their difference grow or shrink, compared with that of one seed? Why can it do both?
# 2. **Break a rule.** Give *tiles alone* three times the steps (`replace(what, steps=...)`, another folder). How many
#    points do you win? Compare with the differences between methods. Then pick the best of five seeds on the *test*
#    scenes. How many now?
# 3. **A straw man.** Add `crop_sizes=(32, 96, 192)` and find the worst cropped baseline. By how much does your
#    favourite beat it, and by how much the best one?
# 4. **By hand.** Two methods, 100 blocks, and the difference has a standard error of 0.8 points. What is the smallest
#    detectable effect? How many blocks would you need to find a true difference of 0.5 points? (`smallest_detectable`;
#    what do you assume about blocks?)
# 5. **Noise and order.** Take two predictions of section 2 and score them against labels of `annotator(2)` and
#    `annotator(8)`, shrunk like the scene. Does the order of the two ever turn? Does their difference shrink?
# 6. **A claim of your own.** Write down a claim about one of the methods, its measure, and a threshold; then run it. If
#    it is *undecided*, how many seeds would decide it?
# 7. **Be the reviewer.** A paper compares its method, trained for 80k and then for 10k steps more, with a baseline of
#    80k steps. Which row of our table is missing there, and which number of ours would you show to ask for it?
#
# **Read next.** `rsseglab/experiments/compare.py` (the methods and their budget), `rsseglab/experiments/claims.py` (the
# claims and their thresholds), `rsseglab/evaluation/bootstrap.py` (intervals and what they can detect), and the
# notebook *How far does it scale?*, on what it costs.
