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
# # From clicks to maps
#
# **The question.** A dense label of a scene takes a trained person days: every pixel gets a class. A click takes a second.
# How much of a map can be learnt from a few hundred clicks, one an object, and what is gained if clicks are *grown* first,
# by a network that knows what an object looks like (Segment Anything), and then by what the segmenter itself has learnt?
#
# **It assumes** *What is a whole scene* (crops, mean IoU).
# **It takes** about a minute and a half on a laptop with two cores, and 4 GiB of memory. Where `RSSEGLAB_DATA` has the Dubai scenes
# these are used; else made ones. Where `RSSEGLAB_WEIGHTS` has `mobile_sam.pt`, or it can be fetched, masks come from MobileSAM, in
# five minutes more; else, or with `allow_sam = False`, from superpixels, which know nothing of objects.
#
# **What of this is PENet?** The paper (Chan et al., *Sci. Rep.* 15, 27347, 2025) is open access, but only its abstract could
# be had here, and no public code was found. It names four ingredients: points, labels from Segment Anything, expansion by
# similarity of features, and an attention module (EMA). *How* they are put together is **our reading**; the list at the end
# says of each part whether it is known, published elsewhere, or ours.

# %% tags=["parameters"] nbmake={"mock": {"real": false, "encoder": "test_resnet", "steps": 6, "watched": 6, "crop_px": 64, "budgets": [0.5, 1.0], "shrink": 4, "allow_sam": false}}
real = True  # use the real scenes where they are; made ones otherwise
encoder = ""  # empty: EfficientNet-Lite0 where its ImageNet weights are at hand, else timm's tiny ResNet
steps = 70  # of each training in section 5
watched = 100  # steps of the training that section 3 watches
crop_px = 128  # side of a crop, px of the shrunk scene
scenes = 1  # to train on, the smallest first; at most 3
budgets = (0.1, 0.3, 1.0)  # shares of the clicks
shrink = 0  # scenes are averaged over so many px a side first; 0: 4 of Dubai's, 2 of made ones
seed = 0
allow_sam = True
records = "../book/records/ablate/penet"  # of section 6: a folder a data set

# %%
import logging
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display

from rsseglab import plots
from rsseglab.encoders.weights import local_weights
from rsseglab.errors import UserError
from rsseglab.evaluation import evaluate_scene, pool
from rsseglab.experiments.ablate import ablation_shown, ablation_table
from rsseglab.experiments.points import coverage, sample
from rsseglab.experiments.tables import read_comparisons
from rsseglab.inference import Cropping, predict_scene
from rsseglab.penet import PENet
from rsseglab.penet.growing import choose, grow_points, windows_around
from rsseglab.penet.losses import cells
from rsseglab.penet.sam import Discs, SegmentAnything, Superpixels, as_rgb
from rsseglab.penet.training import PointDataModule, fit_points
from rsseglab.scenes import ArraySource, Scene, class_values
from rsseglab.scenes.manifest import load_manifest
from rsseglab.scenes.points import unused_value, with_points
from rsseglab.scenes.scene import IGNORE_INDEX
from rsseglab.scenes.store import find_data
from rsseglab.scenes.views import decimated, in_memory
from rsseglab.training.checkpoint import load_checkpoint
from rsseglab.training.fit import TrainConfig, fit
from rsseglab.training.task import rate
from rsseglab.widgets import Explorer, PointAnnotator

encoder = encoder or ("tf_efficientnet_lite0" if local_weights("tf_efficientnet_lite0") else "test_resnet")
work = Path(tempfile.mkdtemp())
BLUE, ORANGE, GREEN, SKY, VERMILION = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in plots.OKABE_ITO[:5]]
torch.manual_seed(seed)
logging.getLogger("timm").setLevel(logging.ERROR)  # no news of the weights that a decoder has no use for


# %%
name = "synthetic"
if real:
    try:
        find_data(load_manifest("dubai"))
        name = "dubai"
    except UserError as reason:
        print(f"made scenes instead: {reason}")
manifest = load_manifest(name)
factor = shrink or (4 if name == "dubai" else 2)
train, val, test = (
    [in_memory(decimated(s, factor)) for s in manifest.scenes(split)] for split in ("train", "val", "test")
)
train = sorted(train, key=lambda s: s.height * s.width)[
    :scenes
]  # on a CPU each click takes Segment Anything 0.1 s or more
classes = train[0].classes
legend = plots.class_legend(classes)
scene = train[0]  # the one that is drawn
print(f"{name}, averaged over {factor} x {factor} px: {len(train)} to train on, {len(test)} to test")

# %% [markdown]
# ## 1. A click an object
#
# Two protocols to *simulate* an annotator where dense labels exist. **Innermost** (DBFNet's): the pixel of each object that
# is farthest from its edge. That needs the dense mask to find, so no one can click so; it is a best case. **At random in the
# object**: what a hasty person does.

# %%
clicks = {how: {s.name: sample(s, how, seed) for s in train} for how in ("innermost", "objects")}
figure, axes = plt.subplots(1, 3, figsize=(14, 5.4 * scene.height / scene.width + 0.6), layout="constrained")
for axis, (how, title) in zip(axes, (("innermost", "innermost"), ("objects", "at random")), strict=False):
    plots.draw(axis, plots.thumbnail(scene), f"{scene.name}: {len(clicks[how][scene.name])} clicks, {title}")
    for c in classes:
        its = np.array([(p.col, p.row) for p in clicks[how][scene.name] if p.name == c.name]).reshape(-1, 2)
        axis.scatter(*its.T, s=20, color=np.array(c.color) / 255, edgecolors="white", linewidths=0.7)
plots.draw(axes[2], plots.colorize(plots.label_thumbnail(scene), classes), "the dense label")
figure.legend(handles=legend, loc="outside lower center", ncols=8, frameon=False)
plots.show(figure, "A scene with clicks by two protocols, and its dense label.")

pixels = sum(int((s.read_label() != IGNORE_INDEX).sum()) for s in train)
count = sum(map(len, clicks["innermost"].values()))
Markdown(
    f"**{count} clicks** on {pixels / 1e6:.1f} million labelled pixels: one pixel in {pixels // count:,}. At two seconds a "
    f"click that is {count * 2 / 60:.0f} minutes of work."
)

# %% [markdown]
# ### Click yourself
#
# Zoom with the wheel, choose a class by its number, click. `Save` writes a GeoJSON that all commands read (`rsseglab points
# grow`, `rsseglab train --method penet --points`). With weights of Segment Anything the mask of your last click is shown.

# %%
sam = None
if allow_sam:
    try:
        sam = SegmentAnything(cache=work / "embeddings")
    except UserError as reason:
        print(f"no Segment Anything: {reason}")
annotator = PointAnnotator(scene, work / f"{scene.name}.geojson", masks=sam, who="me")
numbers = {c.name: k for k, c in enumerate(classes)}
annotator.points = [[p.row, p.col, numbers[p.name], p.who] for p in clicks["innermost"][scene.name][:5]]
annotator

# %% [markdown]
# ## 2. Masks for clicks
#
# Segment Anything takes a click and proposes three masks, since a click on a roof tile may mean the tile, the roof, or the
# block of houses, and guesses the IoU of each. The rule here (ours; the abstract has none): of the masks that hold the click,
# **hold no click of another class**, and fill no more than a quarter of the window, the one with the best guess.

# %%
source, source_name = (sam, "Segment Anything") if sam else (Superpixels(256), "superpixels")
points = clicks["innermost"][scene.name]
places = np.array([(p.row, p.col) for p in points])
kinds = np.array([p.name for p in points])
chosen = [int(i) for i in np.random.default_rng(seed).choice(len(points), min(3, len(points)), replace=False)]
figure, grid = plt.subplots(len(chosen), 4, figsize=(13, 3.3 * len(chosen)), layout="constrained", squeeze=False)
for axes, i in zip(grid, chosen, strict=True):
    ((window, _),) = windows_around(places[i : i + 1], scene.height, scene.width, source.window_px)
    local = places - (window.row, window.col)
    inside = ((local >= 0) & (local < (window.height, window.width))).all(1)
    others = local[inside & (kinds != kinds[i])]
    (proposals,) = source.propose(scene, window, local[i : i + 1], [others])
    mask = choose(proposals, local[i], others, 0.25 * window.height * window.width)
    top, left = (max(0, int(min(local[i, n] - 80, most - 160))) for n, most in enumerate((window.height, window.width)))
    view = slice(top, top + 160), slice(left, left + 160)
    picture = as_rgb(scene, window)
    panels = [("the click", None)] + [(f"guessed IoU {p.score:.2f}", p.mask) for p in proposals]
    for axis, (title, cover) in zip(axes, panels, strict=False):
        shown = picture.astype(float)
        if cover is not None:
            shown[~cover] *= 0.35
            title += ", taken" if cover is mask else ""
        plots.draw(axis, shown[view].astype(np.uint8), title)
        axis.plot(local[i, 1] - view[1].start, local[i, 0] - view[0].start, "o", color="white", markeredgecolor="black")
    axes[0].set_title(f"a click on {kinds[i]}", fontsize=10)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
plots.show(figure, "Three clicks, and for each the masks that are proposed; the rest of the picture is dark.")

# %% [markdown]
# How good are they? Two numbers: how much of the scene gets a label (*covered*), and how much of that is right. A disc around
# the click covers as much as you like, if you let it be wrong; so sources are to be compared **at equal precision**: the
# curve of discs is drawn over all radii, and a source is worth something where its dot lies above the curve.

# %%
sources = {"superpixels": Superpixels(256)} | ({"Segment Anything": sam} if sam else {})
radii = (0, 1, 2, 4, 6, 9, 13, 18, 25)
start, grown_by, found = time.perf_counter(), {}, {}
for how, of in clicks.items():
    for title, grower in {**{f"discs of {r} px": Discs(r) for r in radii}, **sources}.items():
        grown_by[how, title] = grow_points(scene, of[scene.name], grower, progress=False)
        found[how, title] = coverage(grown_by[how, title].label, scene)
figure, axis = plt.subplots(figsize=(8.5, 4), layout="constrained")
for how, color in (("innermost", BLUE), ("objects", ORANGE)):
    curve = np.array([[found[how, f"discs of {r} px"][key] for key in ("covered", "right")] for r in radii])
    axis.plot(*(100 * curve.T), "-", color=color, marker=".", label=f"discs, {how} clicks")
    for title, marker in (("superpixels", "s"), ("Segment Anything", "*")):
        if (how, title) in found:
            at = found[how, title]
            axis.plot(
                100 * at["covered"], 100 * at["right"], marker, color=color, markeredgecolor="black", markersize=12,
                linestyle="none", label=f"{title}, {how} clicks",
            )  # fmt: skip
axis.set(xlabel="covered, % of the labelled pixels", ylabel="right, % of what is covered", xlim=(0, None))
axis.grid(color="0.92")
axis.legend(fontsize=9, loc="upper right")
plots.show(
    figure, "Precision against coverage of what clicks grow to: curves of discs, and marks of superpixels and masks."
)
print(f"{time.perf_counter() - start:.0f} s")

# %% [markdown]
# The same on whole scenes of two data sets at full resolution, as a record: `tests/benchmarks/penet_masks.py`.
#
# Now the labels that we go on with:


# %%
def label_scene(scene, label):
    """The scene with a label of class indices."""
    nodata = unused_value(scene.classes)
    values = ArraySource(class_values(label, scene.classes, nodata), scene.crs, scene.transform, nodata)
    return Scene(scene._images, values, scene.classes, name=scene.name, bands=scene.bands)


clicked = [with_points(s, clicks["innermost"][s.name]) for s in train]
grown_labels = [
    grown_by["innermost", source_name],
    *(grow_points(s, clicks["innermost"][s.name], source) for s in train[1:]),
]
grown = {c: label_scene(s, g.label) for c, s, g in zip(clicked, train, grown_labels, strict=True)}
pd.DataFrame(
    {
        s.name: {"clicks": g.clicks, "without mask": g.bare, **{k: f"{v:.1%}" for k, v in coverage(g.label, s).items()}}
        for s, g in zip(train, grown_labels, strict=True)
    }
).T.rename_axis(f"grown by {source_name}")

# %%
at = train.index(scene)
figure, axes = plt.subplots(1, 2, figsize=(12, 6 * scene.height / scene.width + 0.6), layout="constrained")
plots.draw(axes[0], plots.colorize(grown_labels[at].label, classes), f"what {len(points)} clicks have grown to")
covered = np.where(grown_labels[at].label == IGNORE_INDEX, IGNORE_INDEX, scene.read_label())
plots.draw(axes[1], plots.error_map(grown_labels[at].label, covered), "grey: right; black: wrong")
figure.legend(handles=legend, loc="outside lower center", ncols=8, frameon=False)
plots.show(figure, "The label grown from clicks, and where it is wrong.")

# %% [markdown]
# ## 3. Expansion: what the network has learnt labels more
#
# While it trains, the network has features $f(x)$ at each place. Anchors (clicks and masks) of a class have a mean direction,
# its **prototype** $\mu_k$. A place without a label takes the class that it points along, if it does so clearly:
#
# $$s_k(x) = \cos(f(x), \mu_k), \qquad \hat y(x) = \arg\max_k s_k(x) \;\text{ if }\; s_{(1)} \ge \tau_t
# \;\text{ and }\; s_{(1)} - s_{(2)} \ge m.$$
#
# Nothing is expanded at first; then the threshold $\tau_t$ falls. Anchors are never overwritten. Formula, threshold and
# schedule are ours. Two published ways stand beside it: CRGNet's region growing, and AGMM's soft labels (`expansion="regions"`,
# `"soft"`).
#
# We train, and look at one crop on the way: what would be labelled, and how much of it is right? By default the threshold
# falls from 0.95 to 0.8 and the margin is 0.1. Features of classes are hardly apart after so short a training, so that next to
# nothing would be expanded; here the threshold falls to 0.6, and the margin is 0.02.

# %%
data = PointDataModule(
    clicked, val, grown=grown, crop_px=crop_px, batch_size=4, steps=watched, val_window_px=crop_px, seed=seed
)
data.setup("fit")
weights = "pretrained" if local_weights(encoder) else None
network = PENet(encoder, len(classes), decoder="fpn", steps=watched, weights=weights).train()
optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
network.criterion.similarity.end, network.criterion.similarity.margin = 0.6, 0.02

# The crop to look at: of some, the one with most classes.
candidates = [data.train_dataset[10_000 + i] for i in range(12)]
index = int(np.argmax([len(c["mask"].unique()) for c in candidates]))
look, crops = candidates[index], data.train_dataset.crops
scene_at, window_at = crops.window(10_000 + index)
truth = crops.augmentation(10_000 + index).move(
    torch.from_numpy(train[clicked.index(scene_at)].read_label(window_at).astype(np.int64))
)

snapshots, every, start = [], max(1, watched // 12), time.perf_counter()
for step in range(watched):
    for group in optimizer.param_groups:
        group["lr"] = 1e-3 * rate(step, watched, watched // 10, "cosine")
    batch = [data.train_dataset[4 * step + i] for i in range(4)]
    image = data.normalize(torch.stack([b["image"] for b in batch]))
    mask, more = (torch.stack([b[key] for b in batch]) for key in ("mask", "grown"))
    optimizer.zero_grad()
    loss = network.criterion(network.refine(image), mask, more)
    loss.backward()
    optimizer.step()
    if step % every == every - 1:
        with torch.no_grad():
            mapped = network.eval().refine(data.normalize(look["image"][None]))
            network.train()
            anchors = cells(look["mask"][None], look["grown"][None], mapped.features.shape[2:], len(classes))
            memory = {key: value.clone() for key, value in network.criterion.similarity.state_dict().items()}
            expanded = network.criterion.expand(mapped, anchors)
            network.criterion.similarity.load_state_dict(memory)  # looking is not training
            snapshots.append((step + 1, expanded[0], mapped.logits.argmax(1)[0]))
print(f"{watched} steps in {time.perf_counter() - start:.0f} s, loss {loss.item():.2f}")

# %%
side = snapshots[0][1].shape[-1]
coarse = truth[crop_px // side // 2 :: crop_px // side, crop_px // side // 2 :: crop_px // side]
over_steps = []
for step, expanded, _ in snapshots:
    new = (expanded != IGNORE_INDEX) & (anchors[0] == IGNORE_INDEX) & (coarse != IGNORE_INDEX)
    right = float((expanded == coarse)[new].float().mean()) if new.any() else np.nan
    over_steps.append((step, float(new.float().mean()), right))


def draw_snapshot(number):
    """One moment of the training."""
    step, expanded, predicted = snapshots[number]
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.9), layout="constrained")
    picture = look["image"].numpy().transpose(1, 2, 0)
    low, high = np.percentile(picture, (2, 98))
    panels = (
        (((picture - low) / (high - low)).clip(0, 1)[..., :3], "a crop"),
        (plots.colorize(anchors[0].numpy().astype(np.uint8), classes), "anchors: clicks and masks"),
        (plots.colorize(expanded.numpy().astype(np.uint8), classes), f"expanded at step {step}"),
        (plots.colorize(predicted.numpy().astype(np.uint8), classes), "what the network says"),
    )
    for axis, (shown, title) in zip(axes, panels, strict=True):
        plots.draw(axis, shown, title)
    figure.legend(handles=legend, loc="outside lower center", ncols=8, frameon=False)
    return figure


Explorer(
    lambda step: draw_snapshot([s for s, _, _ in snapshots].index(step)),
    {"step": [step for step, _, _ in snapshots]},
    {"step": snapshots[-1][0]},
    "A crop, its anchors, the labels expanded at step {step}, and the prediction.",
    dpi=70,
)

# %%
figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained")
table = 100 * np.array(over_steps)
axis.plot(table[:, 0] / 100, table[:, 1], "o-", color=BLUE, label="newly labelled, % of the crop")
axis.plot(table[:, 0] / 100, table[:, 2], "s--", color=VERMILION, label="of these right, %")
axis.set(xlabel="step", ylim=(0, 101))
axis.grid(color="0.92")
axis.legend(loc="center left", fontsize=9)
plots.show(figure, "How much of the crop is expanded over the training, and how much of that is right.")

# %% [markdown]
# Watch the red line. Expansion adds labels that the network *already believes*, and a wrong belief is confirmed as gladly as a
# right one. Without anchors that hold it, this is how a class can be eaten by its neighbour.
#
# ## 4. The attention module
#
# EMA (efficient multi-scale attention; no moving average) weighs each group of channels by a map of its own. One of its two
# paths normalises each channel over the map, then takes the mean over the map. What is that mean?

# %%
ema = network.attention
with torch.no_grad():
    for seed_ in range(2):
        group = torch.randn(1, ema.norm.num_channels, 24, 24, generator=torch.Generator().manual_seed(seed_))
        print(np.round(ema.norm(group).mean((2, 3))[0, :6].numpy(), 6), "mean of the normalised map")
    print(np.round(ema.norm.bias[:6].numpy(), 6), "the norm's shift")
    decoded = network.network.decoder(network.network.encoder(data.normalize(look["image"][None])))
    weights_map = ema.weights(torch.cat(decoded.chunk(ema.groups, 1))).sigmoid()[:, 0]
figure, axes = plt.subplots(1, ema.groups, figsize=(14, 2.3), layout="constrained")
for g, axis in enumerate(axes):
    drawn = axis.imshow(weights_map[g], cmap="cividis", vmin=0, vmax=1)
    axis.set_title(f"group {g + 1}", fontsize=9)
    axis.set_axis_off()
figure.colorbar(drawn, ax=axes, label="weight", shrink=0.8)
plots.show(figure, "The attention map of each group of channels on the crop.")

# %% [markdown]
# The mean of a normalised map is its shift, whatever the image: half of the "cross-spatial" weights look at no pixel. That is
# how the module is published, and how it is here; the identity is one of its tests.
#
# ## 5. What is a click worth?
#
# The same network, trained on a part of the clicks, with and without what they grow to, and on dense labels: the
# ceiling. One seed and few steps, in which what is simplest learns fastest: the curve is about clicks, not about methods.
# With the default threshold hardly anything is expanded in so few steps: what the second line adds is masks and EMA.
# Section 6 has longer trainings, each part alone, and three seeds.


# %%
def score(trained, where):
    """Mean IoU over whole test scenes."""
    results = []
    for s in test:
        path = work / where / f"{s.name}.tif"
        predict_scene(trained, s, path, Cropping(crop_px, 0), progress=False)
        results.append(evaluate_scene(path, s))
    return pool(results).confusion.mean_iou()


config = TrainConfig(
    encoder=encoder, decoder="fpn", weights=weights, steps=steps, batch_size=2, crop_px=crop_px, val_window_px=crop_px,
    val_every=steps, loss="ce", seed=seed, precision="32-true",
)  # fmt: skip
plain = {"expansion": "none", "attention": "none"}
curve = []
for share in budgets:
    draw = np.random.default_rng(seed)
    kept = {}
    for s in train:  # so many clicks of each class, one at least
        its, kept[s.name] = clicks["innermost"][s.name], []
        for c in classes:
            of = [p for p in its if p.name == c.name]
            if of:
                number = max(1, round(share * len(of)))
                kept[s.name] += [of[i] for i in sorted(draw.choice(len(of), number, replace=False))]
    few = [with_points(s, kept[s.name]) for s in train]
    more = grown_labels if share == 1 else [grow_points(s, kept[s.name], source, progress=False) for s in train]
    labels = {f: label_scene(s, g.label) for f, s, g in zip(few, train, more, strict=True)}
    row = {"clicks": sum(map(len, kept.values()))}
    for title, options, its_labels in (("points", plain, None), ("grown, expanded, EMA", {}, labels)):
        run = replace(config, method="penet", options=options)
        done = fit_points(few, val, run, work / f"{title}_{share}", progress=False, grown=its_labels)
        row[title] = score(load_checkpoint(done.checkpoint), f"{title}_{share}")
    curve.append(row)
    print(row)
dense = score(load_checkpoint(fit(train, val, config, work / "dense", progress=False).checkpoint), "dense")

# %%
table = pd.DataFrame(curve)
figure, axis = plt.subplots(figsize=(8.5, 4), layout="constrained")
axis.axhline(100 * dense, color="black", linestyle="--", label="dense labels")
for title, color, marker in (("points", BLUE, "o"), ("grown, expanded, EMA", ORANGE, "s")):
    axis.plot(table["clicks"], 100 * table[title], marker + "-", color=color, label=title)
axis.set(xlabel="clicks", ylabel="mean IoU on whole test scenes, %", xscale="log", ylim=(0, None))
axis.grid(color="0.92", which="both")
axis.legend(fontsize=9)
plots.show(figure, "Mean IoU against the number of clicks, with and without growing, and that of dense labels.")
best = table[["points", "grown, expanded, EMA"]].to_numpy().max()
Markdown(
    f"The best reaches **{best / dense:.0%}** of the dense labels' mean IoU ({100 * best:.1f} of {100 * dense:.1f} %)."
)

# %% [markdown]
# ## 6. The ingredients, from the records
#
# Each ingredient alone, and all, with three seeds; `rsseglab ablate penet --data dubai` makes the records.

# %%
recorded = read_comparisons(Path(records))
if not recorded:
    display(Markdown("*There are no records here; `rsseglab ablate penet --data dubai` makes them.*"))
for key, its in recorded.items():
    display(Markdown(f"**{key}**"), ablation_shown(ablation_table(its)))

# %% [markdown]
# ## 7. What of PENet is known, and what is ours
#
# | part | known from the abstract | published elsewhere | ours |
# | --- | --- | --- | --- |
# | task | points, Potsdam and Vaihingen | | Dubai, OAM, made scenes |
# | points | | one an object, innermost, 3 x 3 (DBFNet) | the other samplers |
# | Segment Anything | makes labels from points | prompts and masks (SAM, MobileSAM) | one positive prompt, 8 negative ones, area cap, conflicts |
# | expansion | by similarity of features, anchored in the masks, over training | regions (CRGNet), soft labels (AGMM) | prototypes, threshold, margin, schedule |
# | EMA | is integrated | its structure | where it stands, 8 groups |
# | loss | | absence penalty (DBFNet; off) | the weights |
# | network, optimiser, crops, splits | | two splits of Vaihingen | encoder, decoder, all settings |
#
# So a number here says nothing of PENet's own numbers, in either direction.
#
# ## What to take along
#
# - Compare ways to grow labels at equal precision; coverage alone can be had for nothing.
# - Innermost clicks are a best case that no annotator reaches.
# - Self-made labels confirm what the network believes, right or wrong: keep anchors fixed, and watch the precision of what is
#   added, on scenes with dense labels.
# - Without the dense ceiling from the same network and steps, "x % from clicks" has no meaning.
#
# ## Exercises
#
# 1. **Your own clicks.** Click 30 points with the widget (a minute), save, and grow them. How do coverage and precision compare
#    with the sampled ones? Time yourself.
# 2. **The three masks.** Which of the three (smallest, middle, largest) is taken how often, by class? Repeat with
#    `most_share=0.02`. Which class gains?
# 3. **A wrong annotator.** `rsseglab.scenes.points.with_errors` makes clicks err. At which share of wrong classes is growing
#    worse than points alone?
# 4. **Confirmation.** Set the threshold to 0 from the start (`network.criterion.similarity.start = end = 0`, `warmup = 0`).
#    What happens to the red line of section 3, and to the rarest class?
# 5. **Half of EMA.** Replace the softmax of the normalised map's mean by a learned vector of k numbers. Is it the same
#    function? Count parameters.
# 6. **Equal work.** A dense label takes 100 times as long as the clicks. Which is better: clicks on ten scenes or a dense label
#    of one tenth of a scene? Design the experiment with the scenes here (`rsseglab.scenes.views.part_of`).
#
# **Read next.** `rsseglab/penet/sam.py` and `growing.py` (clicks to masks to labels), `expansion.py` (three ways, one page),
# `ema.py`, `losses.py`; and *What is a whole scene* on why the scores are of whole scenes.
