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
# # Local patches, wide contexts
#
# **The question.** A scene does not fit, so it is cut in patches, and each patch is labelled alone. FCtL (Li et al., ICCV
# 2021) lets a patch look at wider *contexts* of itself, shrunk to the patch's own size. What does a patch get to see so,
# what does it make of it, and how would we know that it uses it?
#
# **It assumes** *Why context?* (twin scenes), and that you know what attention computes. **It takes** about a minute on a
# laptop with two cores, and 1 GiB of memory. No data is needed: the scenes are made here.
#
# Three sources speak in this notebook, and they do not always say the same: **the paper's text**, **the authors' public
# code** (MIT; two branches, one a data set), and **this library**, whose code was written anew. Where it matters, the text
# says which.

# %% tags=["parameters"] nbmake={"mock": {"steps": 2, "pairs": 3, "tests": 1, "places": 1, "patch_px": 128, "large_px": 768}}
steps = 160  # of training
pairs = 100  # twin scenes to train on
tests = 3  # twin scenes to test on
places = 2  # rows and columns to choose from in section 3, beside the one drawn
patch_px = 192  # side of a patch, and of what is read of each context
large_px = 1536  # side of the scene of section 1
seed = 0
records = "../book/records/ablate/fctl"  # of section 6: a folder a data set

# %%
import logging
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rasterio
import torch
from IPython.display import Markdown, display
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle
from rasterio.enums import Resampling
from torch import nn

from rsseglab import plots
from rsseglab.evaluation import published_fctl
from rsseglab.evaluation.evaluate import index_reader
from rsseglab.experiments.ablate import WHOLE, ablation_shown, ablation_table, merging_table
from rsseglab.experiments.tables import read_comparisons
from rsseglab.fctl import Contexts, LocalityAwareCorrelation
from rsseglab.fctl.model import FCtL
from rsseglab.fctl.predict import predict_contexts
from rsseglab.fctl.training import fit_fctl
from rsseglab.inference import Cropping
from rsseglab.scenes import Scene, Window
from rsseglab.scenes.synthetic import CLASSES, IGNORE_VALUES, write_synthetic_scene
from rsseglab.scenes.twins import label_pair_accuracy, twin_scenes, twins_in_memory
from rsseglab.training.checkpoint import load_checkpoint
from rsseglab.training.fit import TrainConfig
from rsseglab.widgets import Explorer

warnings.filterwarnings("ignore", module="lightning")
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
COLORS = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in plots.OKABE_ITO]
BLUE, ORANGE, GREEN, SKY, VERMILION, PURPLE, YELLOW = COLORS[:7]
folder = Path(mkdtemp())  # for what this notebook writes

# %% [markdown]
# ## 1. What a context is
#
# The context of scale $\lambda$ of a patch of $w$ px is the box of $\lambda w$ px around the same centre, read as $w$ x $w$
# px: more ground, less detail. Scale 1 is the patch itself, and "scene" is the whole scene. The paper takes three of them;
# on Inria 1, 2, 3, on DeepGlobe 1, 3 and the whole scene, with $w$ = 508 px.
#
# And at the scene's edge? The paper asks for a box inside the scene. The public code leaves the box centred and pads the
# image with black. Both are here: `edge="clip"` moves the box inside, `edge="pad"` leaves it where it is, and what lies
# outside *holds no data*: after normalisation it is 0, the mean colour, and not black.

# %%
image, _ = write_synthetic_scene(folder, "large", large_px, large_px, seed=4)
large = Scene(image, None, CLASSES, IGNORE_VALUES, name="large")
SCALES = (1, 2, 3, "scene")
FRAMES = dict(zip(SCALES, zip((BLUE, ORANGE, GREEN, VERMILION), ("-", "--", "-.", ":"), strict=True), strict=True))


def named(scale):
    """A context's name in pictures."""
    return "whole scene" if scale == "scene" else f"context {scale}"


middle = Window((large_px - patch_px) // 2 + 60, (large_px - patch_px) // 2 - 100, patch_px, patch_px)
corner = Window(0, large_px - patch_px - 40, patch_px, patch_px)
low, high = np.percentile(large.read(), (2, 98), axis=(1, 2))


def shown(pixels, valid=None):
    """Pixels (bands, h, w) as a picture, hollow where there are none."""
    picture = ((pixels.transpose(1, 2, 0) - low) / (high - low)).clip(0, 1)
    return picture if valid is None else np.dstack([picture, valid.astype(float)])


def frame(axes, box, color, style="-", width=2.2, **options):
    """A box of the scene."""
    for edge, thick in (("white", width + 1.6), (color, width)):
        axes.add_patch(
            Rectangle(
                (box.col, box.row), box.width, box.height, fill=False, edgecolor=edge, linewidth=thick,
                linestyle=style if edge == color else "-", **(options if edge == color else {}),
            )
        )  # fmt: skip


rows = {
    "in the middle": (middle, "pad"),
    "near a corner, pad": (corner, "pad"),
    "near a corner, clip": (corner, "clip"),
}
figure, grid = plt.subplots(3, 5, figsize=(15, 9.6), layout="constrained", width_ratios=(1.25, 1, 1, 1, 1))
margin = patch_px * 1.1
for (name, (patch, edge)), axes in zip(rows.items(), grid, strict=True):
    contexts = Contexts(large, patch_px, SCALES, edge)
    axes[0].imshow(shown(large.read()), extent=(0, large_px, large_px, 0))
    axes[0].set(xlim=(-margin, large_px + margin), ylim=(large_px + margin, -margin), title=name)
    axes[0].set(xticks=[0, large_px], yticks=[0, large_px], facecolor="0.9")
    pieces = zip(SCALES, contexts.boxes(patch), contexts.read(patch), strict=True)
    for axis, (scale, box, (pixels, valid)) in zip(axes[1:], pieces, strict=True):
        color, style = FRAMES[scale]
        frame(axes[0], box, color, style, label=named(scale))
        axis.imshow(shown(pixels, valid))
        axis.set(xticks=[], yticks=[], facecolor="0.9")
        axis.set_title(f"{named(scale)}: {box.height} px of ground,\nread as {pixels.shape[-1]} px", fontsize=10)
        for side in axis.spines.values():
            side.set(color=color, linewidth=3, linestyle=style)
handles = grid[0, 0].get_legend_handles_labels()[0]
figure.legend(handles=handles, loc="outside lower center", ncols=4, title="light grey: no data")
plots.show(
    figure,
    "A scene with a patch and its contexts framed in four colours, and below what is read of each: wider ground "
    "at the same number of pixels.",
)

# %% [markdown]
# Look at a house in the patch, and find it again in the wider contexts. Then look at the last row: clipped, the patch is no
# longer in the middle of its context, and no network that sees only the shrunk context can tell.
#
# All of them are given to the network at the same size, so a context costs as much to *compute* as the patch. And to *read*?
# An ordinary reader decodes the whole box and averages. Large rasters have **overviews**, copies at 1/2, 1/4, ... of the
# resolution, in the same file; then a wide context is a small read. We count what is read from the file, once without
# overviews and once with, each time from a fresh copy, so that no cache helps.

# %%
with_overviews = Path(shutil.copy(image, folder / "with_overviews.tif"))
with rasterio.open(with_overviews, "r+") as file:
    file.build_overviews([2, 4, 8], Resampling.average)
counter = Path("/proc/self/io")  # Linux counts it; elsewhere the two columns stay empty


def read_so_far():
    """Bytes that this process has read from files."""
    return int(counter.read_text().split("rchar:")[1].split()[0]) if counter.exists() else np.nan


table = {}
for scale in SCALES:
    box = Contexts(large, patch_px, [scale], "clip").boxes(middle)[0]
    row = {"px of the box": box.height * box.width, "px given to the network": patch_px**2}
    for name, source in (("KiB read, no overviews", image), ("KiB read, overviews", with_overviews)):
        fresh = Scene(Path(shutil.copy(source, folder / "fresh.tif")))
        reader = Contexts(fresh, patch_px, [scale], "clip")
        before = read_so_far()
        reader.read(middle)
        row[name] = (read_so_far() - before) / 1024
    table[named(scale)] = row
table = pd.DataFrame(table).T
print(f"the file: {image.stat().st_size / 1024:.0f} KiB, with overviews {with_overviews.stat().st_size / 1024:.0f} KiB")
table.round(0).convert_dtypes()

# %% [markdown]
# A file is read in blocks of 256 x 256 px, so even the patch costs more than its own pixels. Without overviews the whole
# scene as a context is the whole file, for *every* patch; with them it is no dearer than the patch. (And the library reads
# it once a scene.) Scale 3 has no overview of its own, and is read from that of 1/2. On a scene of 5000 px the benchmark
# `tests/benchmarks/fctl_io.py` measures a pass over all patches.
#
# ## 2. Locality-aware correlation, by hand
#
# Patch and context go through an encoder, and two maps of features meet. Every place $i$ of the patch's map looks at every
# place $j$ of the context's:
#
# $$R_{ij} = \langle x_i, u_j \rangle, \qquad a_{ij} = \mathrm{softmax}_j(R_{ij}).$$
#
# What is then gathered is where paper and code part:
#
# $$\bar X_i = \sum_j a_{ij}\, u_j \;\;\text{(code: values from the context)}, \qquad
# \bar X_i = \sum_j a_{ij}\, x_j \;\;\text{(the paper's formula: values from the patch)}.$$
#
# Take maps of 2 x 2 places and three features, *water*, *field*, *roof*; a place has 2 of what it shows. Then $R_{ij}$ is 4
# where both show the same, else 0, and like attends to like with $e^4 : 1$. (No projections here; the code has three
# learned 1 x 1 convolutions, and a factor $\gamma$ that starts at 0. Neither divides by $\sqrt C$.)

# %%
KINDS, PAINT = ("water", "field", "roof"), np.array([plots.OKABE_ITO[k] for k in (0, 6, 4)]) / 255
local_kinds, context_kinds = [0, 1, 1, 2], [2, 2, 0, 1]  # place by place, row after row
x, u = (2 * np.eye(3)[kinds] for kinds in (local_kinds, context_kinds))  # (4 places, 3 features)
R = x @ u.T
a = np.exp(R) / np.exp(R).sum(1, keepdims=True)
gathered = {"context": a @ u, "local": a @ x}

for value, by_hand in gathered.items():
    correlation = LocalityAwareCorrelation(3, value)
    for projection in (correlation.query, correlation.key, correlation.value):
        nn.init.eye_(projection.weight.data[:, :, 0, 0])
    nn.init.ones_(correlation.gamma)
    maps = [torch.from_numpy(m.T.reshape(1, 3, 2, 2)).float() for m in (x, u)]
    ours = correlation(*maps).detach().numpy()[0].reshape(3, 4).T
    print(f"value='{value}': the library differs from this by at most {np.abs(ours - by_hand).max():.0e}")


def squares(axes, features, title):
    """A map of 2 x 2 places in the colours of what they show, and in words."""
    shares = features / features.sum(1, keepdims=True)
    axes.imshow((shares @ PAINT).reshape(2, 2, 3))
    for place, share in enumerate(shares):
        words = "\n".join(f"{KINDS[k]} {share[k]:.2f}" for k in np.argsort(-share) if share[k] > 0.1)
        axes.text(
            place % 2, place // 2, f"place {place}\n{words}", ha="center", va="center", fontsize=9,
            bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5},
        )  # fmt: skip
    axes.set(xticks=[], yticks=[])
    axes.set_title(title, fontsize=10)


figure, axes = plt.subplots(1, 5, figsize=(15, 3.9), layout="constrained")
squares(axes[0], x, "the patch's map, $x$")
squares(axes[1], u, "its context's map, $u$")
axes[2].imshow(a, cmap="cividis", vmin=0, vmax=1)
for i, j in np.ndindex(a.shape):
    axes[2].text(j, i, f"{a[i, j]:.2f}", ha="center", va="center", color="white" if a[i, j] < 0.6 else "black")
axes[2].set(xticks=range(4), yticks=range(4), xlabel="place $j$ of the context", ylabel="place $i$ of the patch")
axes[2].set_title("attention $a$", fontsize=10)
squares(axes[3], gathered["context"], "gathered, values of the context\n(code)")
squares(axes[4], gathered["local"], "gathered, values of the patch\n(paper's formula)")
plots.show(
    figure,
    "Attention worked out by hand on four places: local map, context map, their attention as a table, values, and "
    "the result.",
)

# %% [markdown]
# With the context's values, water gathers water, and roof roof: each place is told about its like. With the patch's own
# values, the water at place 0 attends to place 2, since there is water *in the context*; and gathers what stands at place 2
# *of the patch*, which is a field. Context and patch show different ground at the same place, so the paper's formula, read
# to the letter, mixes the patch by the look of somewhere else. It may be no more than a slip of notation; the code does the
# other, and so does the library unless you say `value="local"`.
#
# One more thing to see: nowhere does it say *where* $j$ is. A context tells what there is around, not where (exercise 2).
#
# ## 3. A small FCtL, and what one place looks at
#
# Does a trained network use its contexts? On twin scenes we know the answer that it should find. Two scenes differ in one
# patch of stripes, the **key**, upright in one twin and level in the other. All fields look alike; what is sown on them
# stands on the key, and it is farther away than a patch is wide. So **no patch holds a key and a field**: what a field is
# can only be known from a context.

# %%
SCENE_PX, KEY_AWAY_PX = 2 * patch_px, patch_px + 16
CONTEXTS = (1, 2, "scene")


def twins_of(first, count):
    """Pairs of twins, and the same as scenes, one after the other."""
    made = [twin_scenes(SCENE_PX, SCENE_PX, KEY_AWAY_PX, i) for i in range(first, first + count)]
    return made, [s for k, pair in enumerate(made) for s in twins_in_memory(pair, f"twins_{first + k}")]


_, train = twins_of(100_000, pairs)
_, val = twins_of(50_000, 1)
twins, test = twins_of(0, tests)
PATCHES = [Window(row, col, patch_px, patch_px) for row in (0, patch_px) for col in (0, patch_px)]

figure, axes = plt.subplots(1, 3, figsize=(11, 4.3), layout="constrained")
for axis, scene, name in zip(axes, test[:2], ("twin 0", "twin 1"), strict=False):
    plots.draw(axis, scene.read().transpose(1, 2, 0), name)
plots.draw(axes[2], plots.colorize(test[0].read_label(), test[0].classes), "label of twin 0")
for axis in axes:
    for patch in PATCHES:
        frame(axis, patch, "black", width=0.8)
figure.legend(handles=plots.class_legend(test[0].classes, False), loc="outside lower center", ncols=3)
plots.show(figure, "Two twin scenes that differ in the stripes of one patch, and the label of the first.")

# %% [markdown]
# The published network is FCN-8s on VGG16 (`encoder="vgg16"` here), trained for days. We take timm's tiny ResNet with an
# FCN, and train all at once, contexts seen by the patch's own encoder. That is *ours*: the public code trains one context
# after the other, each with a network of its own, then the whole with the contexts' encoders frozen (`stages="published"`).
# Maps meet at the encoder's last level, where a place is 32 px.

# %%
config = TrainConfig(
    encoder="test_resnet", decoder="fcn", method="fctl", options={"contexts": list(CONTEXTS)}, steps=steps,
    batch_size=4, crop_px=patch_px, lr=3e-3, val_every=steps, val_window_px=patch_px, augment=False, seed=seed,
)  # fmt: skip
done = fit_fctl(train, val, config, folder / "run", progress=False)
trained = load_checkpoint(done.checkpoint)
network = trained.network
print(f"{steps} steps in {done.seconds:.0f} s, {done.parameters / 1e6:.2f} M parameters")

# %% [markdown]
# `FCtL.explain` tells for a patch and its contexts where each place looks, and how much it takes from which context. Below:
# the scene with the patch and the box of each context; then each context as the network sees it, and over it the attention
# of **one place**, the star, in percent.


# %%
def seen(scene, patch):
    """A patch and its contexts as the network sees them, (1, 3, w, w) and (1, S, 3, w, w); boxes and pictures of all."""
    reader = Contexts(scene, patch_px, CONTEXTS, network.edge)
    read = reader.read(patch)
    all_of = torch.stack([trained.normalize(torch.from_numpy(p)) * torch.from_numpy(v) for p, v in read])
    pictures = [np.where(valid, pixels.mean(0), np.nan) for pixels, valid in read]
    return all_of[:1], all_of[None, 1:], reader.boxes(patch), pictures  # CONTEXTS begins with the patch itself


def attention_picture(scene, key, row, col, chosen=CONTEXTS):
    """What the place at a row and column of a scene looks at in each of some contexts."""
    row, col = (min(v // 32 * 32 + 16, SCENE_PX - 16) for v in (row, col))  # the middle of its place
    patch = next(p for p in PATCHES if 0 <= row - p.row < patch_px and 0 <= col - p.col < patch_px)
    local, wide, boxes, pictures = seen(scene, patch)
    relevance, _ = network.explain(local, wide)
    place = (row - patch.row) // 32 * (patch_px // 32) + (col - patch.col) // 32
    figure, axes = plt.subplots(1, 1 + len(chosen), figsize=(3.9 * (1 + len(chosen)), 4.4), layout="constrained")
    axes[0].imshow(scene.read().transpose(1, 2, 0), extent=(0, SCENE_PX, SCENE_PX, 0))
    axes[0].set(xlabel="column, px", ylabel="row, px", xlim=(0, SCENE_PX), ylim=(SCENE_PX, 0), title=scene.name)
    (top, left), (bottom, right) = np.argwhere(key).min(0), np.argwhere(key).max(0) + 1
    for context, box, picture, at in zip(CONTEXTS, boxes, pictures, relevance, strict=True):
        if context not in chosen:
            continue
        color, style = FRAMES[context]
        frame(axes[0], box, color, style, label=named(context))
        axis = axes[1 + chosen.index(context)]
        extent = (box.col, box.col + box.width, box.row + box.height, box.row)
        axis.imshow(picture, cmap="gray", extent=extent)
        side = int(at.shape[-1] ** 0.5)
        share = 100 * at[0, place].reshape(side, side).numpy()
        drawn = axis.imshow(share, cmap="cividis", norm=LogNorm(0.1, 100, clip=True), alpha=0.55, extent=extent)
        cell = box.height / side
        for i, j in np.argwhere(share >= 1):
            axis.text(
                box.col + (j + 0.5) * cell, box.row + (i + 0.5) * cell, f"{share[i, j]:.0f}", ha="center", va="center",
                fontsize=8, color="black", bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1},
            )  # fmt: skip
        axis.set(xlim=extent[:2], ylim=extent[2:], facecolor="0.9", xlabel="column, px of the scene")
        axis.set_title(named(context), color=color)
    for axis in axes:
        frame(axis, Window(top, left, bottom - top, right - left), PURPLE, label="the key")
        axis.plot(
            col, row, "*", color=VERMILION, markeredgecolor="white", markersize=15, linestyle="none", label="this place"
        )
    figure.colorbar(drawn, ax=axes, label="attention, %", shrink=0.8)
    handles = dict(zip(*reversed(axes[0].get_legend_handles_labels()), strict=True))
    figure.legend(handles=handles.values(), loc="outside lower center", ncols=len(handles))
    return figure


def place_in_a_field(pair):
    """Row and column of the place, all field, that is farthest from the key."""
    share = pair.look_alike.reshape(SCENE_PX // 32, 32, -1, 32).mean((1, 3))
    rows, cols = np.nonzero(share >= min(0.7, share.max()))
    key = np.argwhere(pair.key).mean(0) / 32
    far = np.argmax(np.hypot(rows - key[0], cols - key[1]))
    return 32 * rows[far] + 16, 32 * cols[far] + 16


row, col = place_in_a_field(twins[0])
for scene in test[:2]:
    plots.show(
        attention_picture(scene, twins[0].key, row, col),
        "One place of a scene and its attention over each context, in percent: in the whole scene of one twin "
        "nearly all of it lies on the key.",
    )

# %% [markdown]
# Two choices, the same place of either twin. See what differs between them: contexts 1 and 2 show the same ground in both,
# and get the same look. In the whole scene one of the twins' keys is looked at with nearly all of the attention, from a
# place half a scene away. In the other twin the place looks at some other, quite ordinary spot instead. So the network has
# learned one detector, for one orientation of the stripes: *it is there* or *it is not* tells the twins apart just as well
# as two would. (Which orientation, and where it looks otherwise, depends on the seed.)
#
# Now choose for yourself. Move the place inside one patch, and from patch to patch: when does the look change?

# %%
rows_and_columns = np.linspace(SCENE_PX // 8, SCENE_PX * 7 // 8, places).astype(int).tolist()
Explorer(
    lambda twin, row, column, context: attention_picture(test[twin], twins[0].key, row, column, (context,)),
    {
        "twin": {"0": 0, "1": 1},
        "row": sorted({*rows_and_columns, int(row)}),
        "column": sorted({*rows_and_columns, int(col)}),
        "context": {named(c): c for c in CONTEXTS[::2]},
    },
    {"twin": 1, "row": int(row), "column": int(col), "context": "scene"},
    "Attention of the place at row {row}, column {column} of twin {twin} over its context: {context}.",
    dpi=60,
)

# %% [markdown]
# ## 4. How much of which context
#
# What was gathered from the $T$ contexts is mixed, and added to the patch's own map:
#
# $$X' = X + \sum_t H^t \odot \bar X^t, \qquad \sum_t H^t = 1.$$
#
# The weights $H$ come from the gathered maps themselves. In the paper there is one for each place; in the code one for each
# place *and channel*, and before the softmax over contexts stands a **sigmoid**, of which the paper says nothing. Here are
# the code's weights of the whole scene, patch by patch, as means over the channels.

# %%
weights, same_look = [], []
for scene in test[:2]:
    found = [network.explain(*seen(scene, patch)[:2]) for patch in PATCHES]
    H = [each[:, 0].numpy() for _, each in found]  # each (T, C, h, w)
    weights.append(np.concatenate([np.concatenate(H[:2], 3), np.concatenate(H[2:], 3)], 2))
    for relevance, _ in found:  # how many places of the patch look at one and the same spot most
        peaks = [at[0].argmax(-1) for at in relevance]
        same_look.append([float(peak.eq(peak.mode().values).float().mean()) for peak in peaks])

mean = weights[1].mean(1)
figure, axes = plt.subplots(1, 1 + len(CONTEXTS), figsize=(15, 4.2), layout="constrained")
axes[0].imshow(test[1].read().transpose(1, 2, 0), extent=(0, SCENE_PX, SCENE_PX, 0))
axes[0].set_title("twin 1, in four patches", fontsize=10)
axes[0].set_axis_off()
for axis, context, H in zip(axes[1:], CONTEXTS, mean, strict=True):
    drawn = axis.imshow(H, cmap="cividis", vmin=mean.min(), vmax=mean.max(), extent=(0, SCENE_PX, SCENE_PX, 0))
    axis.set_title(f"weight of {named(context)}, {H.mean():.3f} on average", fontsize=10)
    axis.set_axis_off()
for axis in axes:
    for patch in PATCHES:
        frame(axis, patch, "black", width=0.8)
figure.colorbar(drawn, ax=axes, label="mean over channels of $H^t$", shrink=0.8)
plots.show(figure, "Weights of each context over the scene, as maps.")

# %% [markdown]
# The whole scene gets most, as it should, for only it shows the key. But the maps are **flat**: no place differs from any
# other. Fusion could adapt to each place; here it does not. We come back to that, after a look at the numbers.
#
# The sigmoid lies between 0 and 1, so of $T$ contexts none gets less than $1 / (1 + (T-1)\,e)$ or more than
# $e / (e + T - 1)$; with three, **every weight lies in [0.155, 0.576]**. No context can be switched off, and none can have
# the word alone. Left, all weights of this network. Right, the weight of one context as its estimate $z$ grows while those
# of the other two fall to $-z$: with the sigmoid, and without, as the paper has it.

# %%
T = len(CONTEXTS)
bounds = 1 / (1 + (T - 1) * np.e), np.e / (np.e + T - 1)
figure, axes = plt.subplots(1, 2, figsize=(12, 3.8), layout="constrained")
bins = np.linspace(0, 1, 81)
for context, H in zip(CONTEXTS, np.stack(weights, 1), strict=True):
    color, style = FRAMES[context]
    axes[0].hist(
        H.ravel(), bins, weights=np.full(H.size, 100 / H.size), histtype="step", color=color, linestyle=style,
        linewidth=2, label=named(context),
    )  # fmt: skip
axes[0].set(xlabel="weight $H$, of a place and channel", ylabel="share of the weights, %", xlim=(0, 1), yscale="log")
z = torch.linspace(-8, 8, 161)
estimates = torch.stack([z, -z, -z])
for name, color, style, e in (("sigmoid (code)", BLUE, "-", estimates.sigmoid()), ("none", VERMILION, "--", estimates)):
    axes[1].plot(z, e.softmax(0)[0], style, color=color, linewidth=2, label=f"before the softmax: {name}")
axes[1].set(xlabel="estimate $z$ of one context", ylabel="its weight", ylim=(-0.03, 1.03))
for axis, line in zip(axes, ("axvline", "axhline"), strict=True):
    for bound in bounds:
        getattr(axis, line)(bound, color="0.4", linestyle=":", linewidth=1.5)
    axis.legend(frameon=False)
plots.show(
    figure,
    "Histogram of the fusion weights, and the weight of one context over its estimate, with and without a sigmoid "
    "before the softmax.",
)
found = np.stack(weights)
print(f"bounds {bounds[0]:.4f} and {bounds[1]:.4f}; weights here from {found.min():.4f} to {found.max():.4f}")

# %% [markdown]
# Many sigmoids are all but 0 or 1: hence the peaks, and the outermost are the bounds. There the network would go further if
# it could. What it cannot say with $H$ it says with the size of what is gathered (the factor $\gamma$ and the values), but
# that is the same for all places.
#
# And why are the maps flat? Weights are made of what was gathered, by convolutions with biases. So we ask two things: do
# the places of a patch look at different spots at all? And what would the weights be if nothing had been gathered?

# %%
with torch.no_grad():
    nothing = [torch.zeros(1, network.fusion.dim, 1, 1)] * T
    by_biases = network.fusion.weights(nothing)[:, 0].numpy()  # (T, C, 1, 1)
table = {
    named(c): {
        "gamma, 0 at first": float(module.gamma.detach()),
        "mean weight": float(H.mean()),
        "places with one look": float(share),
        "spread over channels": float(H.mean((0, 2, 3)).std()),
        "spread over places": float(H.std((2, 3)).mean()),
        "from the biases' weight, mean": float(np.abs(H - biases).mean()),
        "from the biases' weight, most": float(np.abs(H - biases).max()),
    }
    for c, module, H, biases, share in zip(
        CONTEXTS, network.correlations, np.stack(weights, 1), by_biases, np.mean(same_look, 0), strict=True
    )
}
pd.DataFrame(table).T.map("{:.4f}".format)

# %% [markdown]
# Nearly all places of a patch look at one spot, the same for all. They gather the same, so they get the same weights. The
# last two columns tell how far these are from what the biases alone would give: what is left of being adaptive is between
# scenes, not between places. This attention depends on the context, and hardly on *who asks*, though "locality-aware" is
# its name. (The same was found of other attention over images: Cao et al., "GCNet", 2019.) For twin scenes it is
# reasonable: every place needs the same news. In the paper's Table 5 the step from constants ("weighted") to adaptive
# weights brings 0.23 and 0.10 points.
# Whether weights come to vary in a long training, on real scenes, this notebook can't say; you can look (exercise 5).
# `ContextFusion(..., preset="paper")` has no sigmoid, and one weight for each place.

# %% [markdown]
# ## 5. A control: contexts of another scene
#
# A network with contexts is better than one without: is that the contexts, or the parameters? Attention maps do not decide
# it; they show where a network looks, not what it makes of it. An intervention does. We keep the patches, and give them
# contexts of another scene (`predict_contexts(..., context_scene=...)`):
#
# - **of the scene itself**, as it should be;
# - **of the other twin**: if the network believes its contexts, it must now be wrong wherever it was right;
# - **of a third scene**: the same for both twins;
# - **none**: the same weights in `FCtL(contexts=(1, 1, 1))`, a network of as many parameters that looks at the patch alone,
#   three times.
#
# In the last two cases a patch with a field and all it is given are equal in both twins, hence so are the answers, and the
# pair accuracy is 0.5, for *any* weights, trained or not: not about 0.5, but 0.5.

# %%
alone = FCtL("test_resnet", (1, 1, 1), len(trained.classes), 3, decoder="fcn")
alone.load_state_dict(network.state_dict())
alone = replace(trained, network=alone.eval())


def pair_accuracy(labeller, context_of=lambda k: None):
    """Of all test scenes, the k-th with the contexts of another."""
    answers = []
    for k, scene in enumerate(test):
        path = folder / f"{scene.name}.tif"
        predict_contexts(
            labeller, scene, path, Cropping(patch_px, 0, "flat"), context_scene=context_of(k), progress=False
        )
        answers.append(index_reader(path, scene)(scene.window))
    return label_pair_accuracy(np.stack(answers), np.stack([scene.read_label() for scene in test]))


accuracy = {
    "the scene itself": pair_accuracy(trained),
    "the other twin": pair_accuracy(trained, lambda k: test[k ^ 1]),
    "a third scene": pair_accuracy(trained, lambda k: val[0]),
    "none: the patch, three times": pair_accuracy(alone),
}
figure, axes = plt.subplots(figsize=(9, 2.9), layout="constrained")
bars = axes.barh(list(accuracy), list(accuracy.values()), color=[BLUE, VERMILION, ORANGE, "0.6"], height=0.62)
axes.bar_label(bars, [f"{value:.3f}" for value in accuracy.values()], padding=4)
axes.axvline(0.5, color="black", linestyle="--", linewidth=1)
axes.invert_yaxis()
axes.set(xlim=(0, 1.09), xlabel="pair accuracy on unseen twins; dashed: whoever cannot know", ylabel="contexts of")
plots.show(figure, "Pair accuracy of each choice of contexts: only those that hold the key exceed one half.")

# %% [markdown]
# The second bar is the strongest: what the network says of a field is what its context says, even against the truth. Note
# what this proves, and what it does not: FCtL *can* bring what is far away. Whether real scenes hold anything there worth
# bringing, and how much of it 508 px of a shrunk scene still show, is another question.
#
# ## 6. What each part is worth
#
# ### What the paper reports
#
# Its ablation takes contexts away (Table 3). The gains over the network without contexts:

# %%
published = published_fctl("contexts").pivot(index="method", columns="dataset", values="value")
ORDER = {
    "none": "contexts-none",
    "local": "contexts-1",
    "medium": "contexts-2",
    "large": "contexts-3",
    "medium, large": "contexts-2-3",
    "local, medium, large": WHOLE,
}  # a row of the paper's table, and the name of our run
published = published.loc[list(ORDER)]


recorded = read_comparisons(Path(records))
tables = {name: ablation_table(r) for name, r in recorded.items()}
titles = {m: next(iter(s.values())).metrics["pooled"]["title"] for r in recorded.values() for m, s in r.items()}

gains = {f"{name}, published": published[name] - published.loc["none", name] for name in published}
for name, table in tables.items():
    ours = pd.Series({row: table["mean IoU"].get(titles.get(run, "")) for row, run in ORDER.items()}, dtype=float)
    gains[f"{name}, ours"] = ours - ours["none"]
figure, axes = plt.subplots(figsize=(10, 3.9), layout="constrained")
height = 0.8 / len(gains)
fills = (SKY, ORANGE, GREEN, PURPLE, YELLOW)
for k, (name, gain) in enumerate(gains.items()):
    y = np.arange(len(gain)) + (k - (len(gains) - 1) / 2) * height
    hatch = "" if "published" in name else "//"
    bars = axes.barh(y, 100 * gain, height * 0.9, color=fills[k % 5], edgecolor="0.3", hatch=hatch, label=name)
    axes.bar_label(bars, [f"{100 * v:+.2f}" if v == v and v else "" for v in gain], padding=3, fontsize=8)
axes.set_yticks(range(len(ORDER)), ORDER)
axes.axvline(0, color="black", linewidth=1)
axes.invert_yaxis()
axes.margins(x=0.1)
axes.set(xlabel='gain of "mIoU" over no context, % points', ylabel="contexts")
figure.legend(loc="outside lower center", ncols=4)
plots.show(figure, "Published gains of each choice of contexts, in percentage points.")

# %% [markdown]
# Read it twice. On DeepGlobe the patch's self-attention brings 0.28 of the 1.38 points; the rest is ground that the patch
# does not show. On Inria it is the other way round: self-attention, which sees *no* context at all, brings 3.42 of 4.45. So
# what is called the gain of contexts is there mostly the gain of attention. Fusion, merging and the correlation, as printed:

# %%
parts = [published_fctl(table).assign(part=table) for table in ("fusion", "merging", "correlation")]
printed = pd.concat(parts).pivot_table(index=["part", "method"], columns="dataset", values="value", sort=False)
(100 * printed).round(2)

# %% [markdown]
# Before you set any number beside these, know what they are numbers of:
#
# - **"mIoU" on Inria is the IoU of buildings alone.** The public code's metric takes the mean over the classes [1:], which
#   of two classes leaves one. The notes of ISDNet's public code, which follows the same metric, give building 74.39 and
#   background 97.58; a mean over both would be 86.0. On DeepGlobe [1:] leaves out 'unknown'.
#   `rsseglab evaluate --protocol fctl` scores so, beside the mean over all classes (`rsseglab.evaluation.protocols`).
# - **Test-time augmentation.** The public code's test mode averages over 8 flips and rotations; during training it
#   validates without. Whether the printed scores are with or without is not documented.
# - **Which epoch.** The public code validates every 5 epochs, or from the 35th on at each, and keeps a checkpoint each
#   time. How one was chosen, and on which images, the paper does not say.
# - **Splits.** The paper has 455 / 207 / 142 images of DeepGlobe, one more than the 803 that exist; the public list has
#   454 ("It should be 454", says issue 6). Inria's list mixes all five cities in training and test, which is not the
#   benchmark's own split by city. Scores on other splits are scores of another task.
# - **The correlation against concatenation** is compared at 73.5 and 73.7, the scores of the refined result, while Tables 3
#   to 5 end at 73.22 and 73.53, before refinement. Whether concatenation was refined, too, is not said.
# - **One run each, no interval.** Differences of 0.1 to 0.2 points, such as refinement's, may be less than a seed moves.
#
# None of this says that the numbers are wrong. It says which of them can be compared, and with what.
#
# ### What our records say
#
# `rsseglab ablate fctl` trains the method without each of its parts, on one budget, and adds two controls that the paper
# does not have: three streams of self-attention, as many parameters as three contexts; and the refinement of a network
# without contexts. The networks, scenes and schedules are far smaller than the paper's: compare signs and order, not
# heights.

# %%
if not recorded:
    display(Markdown("*No ablation is recorded here yet: `rsseglab ablate fctl --data synthetic` makes one.*"))
for name, table in tables.items():
    display(Markdown(f"**{name}.** Mean IoU of whole test scenes; differences to the whole method, paired."))
    display(ablation_shown(table))
    if WHOLE in recorded[name]:
        display(ablation_shown(merging_table(recorded[name])))
    if "difference" in table:
        names = {"difference": "value", "from": "low", "to": "high", "detectable": "smallest detectable"}
        less = table[list(names)].dropna().rename(columns=names)
        figure, axes = plt.subplots(figsize=(9, 1.4 + 0.36 * len(less)), layout="constrained")
        plots.intervals(axes, less, reference=0, detectable=True)
        axes.set(xlabel="mean IoU less the whole method's, % points", title=name)
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        plots.show(figure, "Differences of mean IoU to the whole method with their intervals, a row an ablation.")

# %% [markdown]
# Left of the dashed line: the part was worth something. Hollow: the interval contains no difference at all. Grey: a true
# difference as small as this would be missed more often than in one of five such experiments.
#
# ## What you have seen
#
# - A context is more ground at less detail, of the patch's own size; with overviews it is a small read, too.
# - Each place gathers what resembles it. In the public code it gathers the context's features; in the paper's formula its
#   own patch's, by the look of the context.
# - Attention has no positions: it tells what is around, not where.
# - With the code's sigmoid no context can be switched off: weights lie in [0.155, 0.576]. And a fusion that may adapt need
#   not: here it gives every place the same.
# - An intervention (other contexts) shows what a map of attention can't: that the answer depends on the context.
# - On Inria most of the published gain is there without any wider context.
#
# ## Exercises
#
# 1. **Bytes, by hand.** A scene of 5000 x 5000 px, three bytes a pixel, in blocks of 256 px, with overviews of 1/2, 1/4,
#    1/8; patches of 508 px. How many blocks does a context of scale $\lambda$ = 1, 2, 3, 6 touch at most, at the overview
#    that is read? How often, then, is each byte of the file read in a pass over 11 x 11 patches? Check with the counter of
#    section 1.
# 2. **No positions.** Shuffle the places of a context's map, `u[:, :, torch.randperm(n)]`, before
#    `LocalityAwareCorrelation`. By how much does the output change, and by how much with `value="local"`? Twins with `keys=2`
#    ask each field for the *nearest* key. Why is that so much harder here, and through which of the parts could a network
#    still learn where a key is?
# 3. **Predict, then clip.** Train with `options={"contexts": [1, 2], "edge": "clip"}` on twins, once with "pad". Which
#    fields can now see the key that could not before? Draw the fields whose context of scale 2 holds the key, for both.
# 4. **Gamma.** Set one context's gamma to 0 in the trained network, then another's, then all. Predict the four bars of
#    section 5 each time. Why does the fusion's weight of the silent context not become 0, and what of the others'?
# 5. **Adaptive?** Train on the synthetic scenes, `options={"contexts": [1, 2, 3]}` with `"fusion"` "code" and "paper", and
#    repeat section 4. Do weights vary over places? Start the fusion's convolutions at a standard deviation of 0.1 in place of
#    0.01, or its biases frozen at 0. Does it change the maps, and the score?
# 6. **Frozen means eval.** `streams="frozen"` keeps the contexts' encoders in eval mode while the rest trains. Take a frozen
#    network, call `network.context_encoders.train()` and run one training step: which numbers of an encoder change although
#    no gradient reaches it? What would become of the twins' bit if batch statistics were those of two twins in one batch?
# 7. **Refine another's masks.** `rsseglab train --method refinement --segmenter CHECKPOINT` learns to mend the masks of any
#    network. Do so for a cropped U-Net on the synthetic scenes. Where does it help: at seams, at contours, or in whole
#    fields? And how much is left when the segmenter is the one that was trained to the end, on the same scenes?
#
# **Read next.** `rsseglab/fctl/contexts.py`, `correlation.py`, `fusion.py` (one component each), `model.py` (how they meet),
# `refinement.py` and `masks.py` (the second network), `rsseglab/evaluation/protocols.py` (what papers call mIoU); then
# *Cropping, fusion, whole scene*, where FCtL stands beside the other ways, and *SPIM, tile by tile*, whose attention spans
# the scene at full detail.
