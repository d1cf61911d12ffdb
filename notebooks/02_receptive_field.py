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
# # Why context?
#
# **The question.** A crop takes away what lies beyond its border. Whether that matters depends on three things: how far
# the network *can* see, how far it *does* look, and whether there is anything to see out there. This notebook measures
# all three. Then it asks what a larger window is worth: here, and in published curves.
#
# **It assumes** *What is a whole scene* (windows, seams, twin scenes), and that you know what a convolution and a gradient
# are. **It takes** about a minute and a half on a laptop with two cores, and 2 GiB of memory. No data is needed: the scenes
# are made here.

# %% tags=["parameters"] nbmake={"mock": {"encoder": "test_resnet", "steps": 2, "twin_steps": 2, "twin_pairs": 2, "sides": [512], "scenes": 1, "images": 1}}
encoder = "resnet18"  # of the U-Nets
steps = 50  # training steps of the network of sections 2 to 4
twin_steps = 200  # training steps of the network of section 5
twin_pairs = 6  # that it is asked about
sides = [64, 256]  # of the windows in section 4, px
scenes = 1  # that are labelled in section 4, at most 2
images = 1  # over which the effective receptive field is averaged
seed = 0

# %%
from pathlib import Path
from tempfile import mkdtemp

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.colors import LogNorm
from matplotlib.patches import Rectangle
from torch import nn

from rsseglab import plots
from rsseglab.decoders import create_network
from rsseglab.evaluation import (
    count_blocks,
    evaluate_scene,
    mean_iou_difference,
    mean_iou_interval,
    pool,
    published_rest,
)
from rsseglab.evaluation.receptive_field import effective_receptive_field, receptive_field
from rsseglab.inference import Cropping, crop_and_merge, predict_scene
from rsseglab.inference.predict import read_normalized
from rsseglab.scenes.manifest import load_manifest
from rsseglab.scenes.twins import CLASSES as TWIN_CLASSES
from rsseglab.scenes.twins import normalise, pair_accuracy, twin_scenes
from rsseglab.training.checkpoint import load_checkpoint
from rsseglab.training.fit import TrainConfig, fit

BLUE, ORANGE, GREEN, SKY, VERMILION, PURPLE = (tuple(c / 255 for c in color) for color in plots.OKABE_ITO[:6])
torch.manual_seed(seed)
folder = Path(mkdtemp())  # for what this notebook writes

# %% [markdown]
# ## 1. How far can a network see?
#
# The *theoretical receptive field* of an output pixel is the set of input pixels that can change it. For a stack of
# convolutions there is a formula. For skip connections, upsampling, pooling and attention there is a simpler way: ask
# the network. Set a part of the image to NaN ("not a number"): whatever is computed from a NaN is NaN.

# %%
three = nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1) for _ in range(3)])
image = torch.zeros(1, 1, 5, 16, dtype=torch.float64)
image[..., 8:] = torch.nan
with torch.no_grad():
    answer = three.double()(image)
for name, x in (("image", image), ("answer", answer)):
    print(f"{name:7}", "".join("x" if value else "." for value in x[0, 0, 2].isnan()))

# %% [markdown]
# Three 3 x 3 convolutions see three pixels far. `receptive_field` does this on all four sides and finds the border by
# bisection. It needs no rule for any kind of layer, so it can be asked of any network. The sides may differ: a network
# that halves its maps five times works in cells of 32 px, and the last pixels of a cell see farther up and left, the
# first ones farther down and right. Each number is that of the pixel that sees farthest.

# %%
reach = {"three convolutions 3 x 3": receptive_field(three, 1, multiple_px=1)}
for decoder in ("unet", "fpn", "deeplabv3plus"):
    network = create_network(encoder, decoder, 3, 7).eval()
    reach[f"{decoder}, {encoder}"] = receptive_field(network, limit_px=512)
seen_px = int(reach[f"unet, {encoder}"].radius_px)
pd.DataFrame({name: vars(field) for name, field in reach.items()}, dtype=object).T

# %% [markdown]
# Infinite means: more than 512 px, and here for a reason. DeepLabV3+ pools over the whole image. With the FPN it is
# less obvious: its decoder has *group norms*, whose mean and variance are taken over the whole image. A network can see
# everything by accident, and then its answer for a crop is never quite its answer for the scene.
#
# ## 2. How far does it look?
#
# To be able to see is not to look. The *effective receptive field* (Luo et al., 2016) is how much each input pixel
# counts: the magnitude of the gradient of the middle pixel's highest logit, averaged over `images` windows. We compare three
# U-Nets, which can all see equally far:
#
# - *untrained*, as timm makes it: the last norm of each residual branch starts at zero, so all branches are still
#   silent;
# - *untrained, branches on*: these norms set to one;
# - *trained*: one like the first, after a short training on random crops of 128 px.

# %%
manifest = load_manifest("synthetic")
config = TrainConfig(encoder=encoder, steps=steps, val_every=steps, batch_size=4, crop_px=128, seed=seed)
result = fit(manifest.scenes("train"), manifest.scenes("val"), config, folder / "run")
trained = load_checkpoint(result.checkpoint)
print(f"validation mean IoU {result.val_mean_iou:.3f} after {result.seconds:.0f} s")

# %%
scene = manifest.scenes("test")[0]
land = read_normalized(trained, scene, 0, scene.height)  # (bands, height, width)
side = min(2 * seen_px // 32 * 32 + 32, 640)
rng = np.random.default_rng(seed)
corners = [(rng.integers(scene.height - side), rng.integers(scene.width - side)) for _ in range(images)]
windows = torch.stack([land[:, row : row + side, col : col + side] for row, col in corners])

untrained = create_network(encoder, "unet", 3, len(trained.classes)).eval()
awake = create_network(encoder, "unet", 3, len(trained.classes)).eval()
for name, parameter in awake.named_parameters():
    if "bn" in name and name.endswith("weight"):
        nn.init.ones_(parameter)
networks = {"untrained": untrained, "untrained, branches on": awake, "trained": trained.network}
fields = {name: effective_receptive_field(network, windows) for name, network in networks.items()}
shares = (0.5, 0.9, 0.95)
pd.DataFrame({name: {f"radius of {q:.0%}, px": f.radius_px(q) for q in shares} for name, f in fields.items()}).T

# %%
figure, axes = plt.subplots(1, 4, figsize=(16, 4.6), layout="constrained")
row, col = corners[0]
picture = plots.thumbnail(scene, 10_000)[row : row + side, col : col + side]
for axis, (name, field) in zip(axes, fields.items(), strict=False):
    axis.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=400)
    shown = np.ma.masked_less(field.magnitude / field.magnitude.max(), 1e-5)
    drawn = axis.imshow(shown, cmap="cividis", norm=LogNorm(1e-5, 1), alpha=0.85)
    middle = side // 2
    for radius, color, style in [(field.radius_px(0.95), "white", "-"), (seen_px, VERMILION, "--")]:
        corner = (middle - radius - 0.5, middle - radius - 0.5)
        axis.add_patch(Rectangle(corner, 2 * radius + 1, 2 * radius + 1, fill=False, color=color, linestyle=style))
    axis.set_title(f"{name}: 95 % within {field.radius_px(0.95)} px", fontsize=10)
    axis.set(xlabel="column, px", ylabel="row, px" if axis is axes[0] else None)
figure.colorbar(drawn, ax=axes[:3], label="gradient, of its maximum", shrink=0.8, location="bottom", aspect=60)
for (name, field), color, style in zip(fields.items(), (SKY, ORANGE, BLUE), ("--", ":", "-"), strict=True):
    radii = np.arange(side // 2 + 1)
    axes[3].plot(radii, [100 * field.share_within(r) for r in radii], color=color, linestyle=style, label=name)
axes[3].axvline(seen_px, color=VERMILION, linestyle="--", label="theoretical")
axes[3].set(xlabel="radius of a square, px", ylabel="share of the gradient within, %", title="seen, and looked at")
axes[3].legend(frameon=False, fontsize=9)
plots.show(
    figure,
    "Effective receptive fields of three networks as maps of the gradient, bright in the middle, and the share of "
    "the gradient within a radius, far inside the theoretical reach.",
)

# %% [markdown]
# The dashed square is what the network can see, the white one holds 95 % of what it looks at. They are not the same
# thing, and only the white one depends on weights. The comb in the first panel is telling: with silent branches, the
# only way down leads through 1 x 1 convolutions of stride 2, which skip every other pixel.
#
# Two cautions. The gradient says what a *small* change would do; it may miss what a large one does. And this network
# was trained for a few dozen steps, on crops of 128 px: nothing ever rewarded it for looking farther.
#
# ## 3. What a crop takes away
#
# Now cut windows out of the scene, label each alone, and compare with the same network on the whole scene, pixel by
# pixel. Windows start at multiples of 32 px, so that the network's cells lie on the same pixels both times, and stay
# away from the scene's edge, where both see the same zeros. A pixel that lies farther from the window's border than the
# receptive field reaches sees nothing of the border: there the two must agree to rounding. Everywhere else they may
# differ.


# %%
def label_whole(image):
    """Logits (K, H, W) of a whole scene, padded to a multiple of 32 px below and to the right."""
    height, width = image.shape[1:]
    with torch.no_grad():
        return trained.network(F.pad(image, (0, -width % 32, 0, -height % 32))[None])[0, :, :height, :width]


whole = label_whole(land)


def change_by_distance(window_px, most=16):
    """Mean change of a logit, and part of pixels whose class changes, by distance to the window's border."""
    starts = [
        np.linspace(32, (n // 32 - 1) * 32 - window_px, 4).astype(int) // 32 * 32 for n in (scene.height, scene.width)
    ]
    places = [(r, c) for r in np.unique(starts[0]) for c in np.unique(starts[1])][:most]
    from_edge = np.minimum(np.arange(window_px), np.arange(window_px)[::-1])
    distance = np.minimum.outer(from_edge, from_edge)
    change, flipped = np.zeros((2, len(places), window_px // 2))
    for i, (r, c) in enumerate(places):
        here = (slice(None), slice(r, r + window_px), slice(c, c + window_px))
        with torch.no_grad():
            cropped = trained.network(land[here][None])[0]
        apart = (cropped - whole[here]).abs().mean(dim=0).numpy()
        other = (cropped.argmax(0) != whole[here].argmax(0)).numpy()
        count = np.bincount(distance.ravel())
        change[i] = np.bincount(distance.ravel(), apart.ravel()) / count
        flipped[i] = np.bincount(distance.ravel(), other.ravel()) / count
    return change.mean(axis=0), flipped.mean(axis=0)


changes = {px: change_by_distance(px, most) for px, most in ((128, 16), (256, 12), (768, 2))}

# %%
figure, axes = plt.subplots(1, 2, figsize=(13, 4.6), layout="constrained")
spread = float(whole.std())
for (px, (change, flipped)), color, style in zip(changes.items(), (ORANGE, SKY, BLUE), (":", "--", "-"), strict=True):
    axes[0].plot(np.maximum(change / spread, 1e-9), color=color, linestyle=style, label=f"window of {px} px")
    axes[1].plot(100 * flipped, color=color, linestyle=style, label=f"window of {px} px")
axes[0].set(yscale="log", ylabel="mean change of a logit / logits' standard deviation", title="what changes at all")
axes[1].set(ylabel="pixels with another class, %", title="what changes the map", xlim=(0, 128))
for axis in axes:
    for q in shares:
        axis.axvline(fields["trained"].radius_px(q), color="0.6", linewidth=1)
        axis.annotate(f"{q:.0%}", (fields["trained"].radius_px(q), 0.98), xycoords=("data", "axes fraction"),
                      rotation=90, va="top", ha="right", color="0.4", fontsize=8)  # fmt: skip
    axis.set_xlabel("distance to the window's border, px")
axes[0].axvline(seen_px, color=VERMILION, linestyle="--", label=f"theoretical reach, {seen_px} px")
axes[0].legend(frameon=False)
plots.show(
    figure,
    "Change of the logits, and share of pixels with another class, over the distance to the window's border, for "
    "windows of several sizes.",
)
beyond = changes[768][0][seen_px:].max()
print(f"beyond {seen_px} px: {beyond:.1e}; at the border: {changes[768][0][0]:.2f} (a logit)")

# %% [markdown]
# Grey lines: the radii that hold 50, 90 and 95 % of the trained network's gradient. Beyond the dashed line nothing is
# left but rounding, as it must be. Long before it the change falls by orders of magnitude, as the *effective* field
# does, not the theoretical one. This is why overlapping windows mend seams so well, although they are narrower than the
# theoretical field.
#
# ## 4. How large a window?
#
# The usual experiment: the same trained network, the same scenes, windows of several sizes, side by side and half
# overlapping (flat weights both times), against the whole scene in one go. Intervals come from resampling blocks of 256
# px, so they speak of other places in these scenes. Differences to the whole scene are *paired*: both maps are scored
# on the same blocks each time, so what makes a block hard for both cancels.

# %%
tested = manifest.scenes("test")[:scenes]
images_whole = [land, *(read_normalized(trained, s, 0, s.height) for s in tested[1:])]
maps = [label_whole(image).argmax(dim=0).numpy().astype(np.uint8) for image in images_whole]
blocks_whole = [count_blocks(one, s) for one, s in zip(maps, tested, strict=True)]
score_whole = mean_iou_interval([blocks_whole])

rows = []
for window_px in sides:
    for overlap in (0.0, 0.5):
        cropping = Cropping(window_px, overlap, "flat", batch_size=max(1, 2**18 // window_px**2))
        seconds, blocks, scores = 0.0, [], []
        for s in tested:
            path = folder / f"{s.name}_{window_px}_{overlap:g}.tif"
            seconds += predict_scene(trained, s, path, cropping, progress=False).seconds
            blocks.append(count_blocks(path, s))
            scores.append(evaluate_scene(path, s, block_px=256))
        miou, less = mean_iou_interval([blocks]), mean_iou_difference([blocks], [blocks_whole])
        seams = pool(scores).seams
        rows.append({"window": window_px, "overlap": overlap, "miou": miou, "less": less, "seams": seams, "s": seconds})


def points(value, low, high):
    return f"{100 * value:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


table = {
    (f"{r['window']} px", f"{r['overlap']:.0%}"): {
        "mean IoU": f"{r['miou'].value:.3f} [{r['miou'].low:.3f}, {r['miou'].high:.3f}]",
        "less whole, % points": points(r["less"].value, r["less"].low, r["less"].high),
        "seam error, % points": points(r["seams"].seam_error, *r["seams"].interval()),
        "seconds": f"{r['s']:.1f}",
    }
    for r in rows
}
table["whole", ""] = {"mean IoU": f"{score_whole.value:.3f} [{score_whole.low:.3f}, {score_whole.high:.3f}]"}
pd.DataFrame(table).T.rename_axis(["window", "overlap"]).fillna("")

# %%
figure, axes = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
for overlap, color, marker, shift in ((0.0, VERMILION, "s", 0.97), (0.5, BLUE, "o", 1.03)):
    chosen = [r for r in rows if r["overlap"] == overlap]
    x = np.array([r["window"] for r in chosen]) * shift  # beside each other
    ends = [
        [(r["miou"].value, r["miou"].low, r["miou"].high) for r in chosen],
        [(r["less"].value, r["less"].low, r["less"].high) for r in chosen],
        [(r["seams"].seam_error, *r["seams"].interval()) for r in chosen],
    ]
    for axis, triples in zip(axes, ends, strict=True):
        value, low, high = 100 * np.array(triples).T
        axis.vlines(x, low, high, color=color, linewidth=1.3)
        axis.plot(x, value, marker + "-", color=color, markersize=5, label=f"overlap {overlap:.0%}")
axes[0].axhline(100 * score_whole.value, color="black", linestyle="--", linewidth=1)
for axis, title, label in zip(
    axes,
    ("mean IoU", "less that of the whole scene, paired", "seam error"),
    ("mean IoU, %", "difference of mean IoU, % points", "seam error, % points"),
    strict=True,
):
    axis.set_xscale("log", base=2)
    axis.set_xticks(sides, [str(px) for px in sides])
    axis.minorticks_off()
    axis.set(title=title, xlabel="side of the window, px", ylabel=label)
    axis.grid(color="0.92")
axes[1].axhline(0, color="black", linestyle="--", linewidth=1, label="whole scene")
axes[1].legend(frameon=False, loc="lower right")
axes[2].axhline(0, color="black", linestyle=":", linewidth=1, label="no seams")
axes[2].legend(frameon=False, loc="upper left")
plots.show(figure, "Mean IoU and seam error over the side of the window, with intervals, beside the whole scene.")

# %% [markdown]
# Read the middle panel before the left one: the intervals of the mean IoU itself are so wide that they hide everything,
# those of the paired differences are not. Ask of each point: does its interval contain 0? Where it does, this
# experiment cannot tell the window from the whole scene. And note what the curve cannot say: this network was trained
# on crops of 128 px. If larger windows gain nothing here, it may be that there is nothing to gain in these scenes, or
# that this network never learned to look for it. The two need different experiments.
#
# ## 5. When something is out there
#
# **Twin scenes** settle the second point. In both twins fields look alike; which crop was sown in them is told by the
# stripes of a key, `context_px` away from every field. A window whose side is not larger than that never shows both.
# So, with *any* weights, the answers on fields are the same bit for bit in both twins, and the accuracy over the pair
# is exactly one half.
#
# Let us train a small network (an FCN on timm's tiny ResNet) where it can be learned: on whole twin scenes of 96 px, with the
# key 32 px away.

# %%
context_px, twin_px = 32, 96


def twin_batch(seeds):
    pairs = [twin_scenes(twin_px, twin_px, context_px, seed=s) for s in seeds]
    images = np.concatenate([normalise(pair.images) for pair in pairs])
    return torch.from_numpy(images), torch.from_numpy(np.concatenate([pair.labels for pair in pairs]))


random_fcn = create_network("test_resnet", "fcn", 3, 5).eval()
twin_fcn = create_network("test_resnet", "fcn", 3, 5)
optimizer = torch.optim.AdamW(twin_fcn.parameters())
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=twin_steps + 1)
losses = []
for step in range(twin_steps):
    x, labels = twin_batch(range(3 * step, 3 * step + 3))
    loss = F.cross_entropy(twin_fcn(x), labels.long())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    losses.append(loss.item())
twin_fcn.eval()

x, labels = twin_batch(range(10**6, 10**6 + twin_pairs))  # never seen in training


def twin_answers(network, window_px, overlap):
    """Logits (scenes, K, height, width), window by window."""
    cropping = Cropping(window_px, overlap, "hann" if overlap else "flat")
    read = [lambda a, b, image=image: image[:, a:b] for image in x]
    bands = [crop_and_merge(network, r, twin_px, twin_px, cropping) for r in read]
    return torch.stack([torch.cat([logits for _, logits in one], dim=1) for one in bands])


accuracy = {}
for name, network in (("random weights", random_fcn), ("trained on whole twins", twin_fcn)):
    for window_px, overlap in ((32, 0.0), (32, 0.5), (32, 0.75), (64, 0.5), (twin_px, 0.0)):
        how = f"{window_px} px, overlap {overlap:.0%}" if window_px < twin_px else f"whole, {twin_px} px"
        accuracy.setdefault(how, {})[name] = pair_accuracy(twin_answers(network, window_px, overlap), labels.numpy())
pd.DataFrame(accuracy).T

# %%
answers = twin_answers(twin_fcn, 32, 0.75)
fields_alike = torch.from_numpy(np.isin(labels.numpy(), (1, 2)))
first, second = (answers[s::2].movedim(1, -1)[fields_alike[s::2]] for s in (0, 1))
print("windows of 32 px, both twins answered alike on every field pixel, bit for bit:", torch.equal(first, second))

shown = [*(twin_answers(twin_fcn, px, 0.0)[:2].argmax(1).numpy().astype(np.uint8) for px in (32, twin_px))]
pictures = ((x[:2] * 64 + 128) / 255).movedim(1, -1).numpy()
figure, axes = plt.subplots(2, 4, figsize=(13, 7), layout="constrained")
for s in (0, 1):
    columns = [
        (f"twin {s}", pictures[s]),
        ("label", plots.colorize(labels[s].numpy(), TWIN_CLASSES)),
        (f"trained, in windows of {context_px} px", plots.colorize(shown[0][s], TWIN_CLASSES)),
        ("trained, whole", plots.colorize(shown[1][s], TWIN_CLASSES)),
    ]
    for axis, (title, drawn) in zip(axes[s], columns, strict=True):
        plots.draw(axis, drawn, title)
figure.legend(
    handles=plots.class_legend(TWIN_CLASSES, ignored=False), loc="outside lower center", ncols=5, frameon=False
)
plots.show(
    figure,
    "Twin scenes, their labels, and predictions: in windows both twins are labelled alike, whole they are told apart.",
)

# %% [markdown]
# The same weights, once with the key in view and once without. No overlap and no blending brings back what no window
# holds, and no training could: it is a theorem about windows, not about networks. It does not say that real scenes are
# like this. How much of what we want to know lies far away is a question about the world, and each data set answers it
# differently.
#
# ## 6. Published curves
#
# The REST paper's project page shows mean IoU against the size of the test window, for networks trained on windows of
# several sizes: larger networks and larger scenes than here, and far more training. The numbers were digitised from the
# authors' plots.

# %%
ours = [
    {
        "dataset": "synthetic (ours)", "method": f"overlap {r['overlap']:.0%}", "test_px": r["window"],
        "value": r["miou"].value, "low": r["miou"].low, "high": r["miou"].high,
    }
    for r in rows
]  # fmt: skip
ours.append(
    {
        "dataset": "synthetic (ours)", "method": "whole", "test_px": max(max(s.height, s.width) for s in tested),
        "value": score_whole.value, "low": score_whole.low, "high": score_whole.high,
    }
)  # fmt: skip
figure = plots.window_curves(published_rest("window curve"), pd.DataFrame(ours))
figure.axes[4].margins(y=0.35)  # room for the legend
plots.show(figure, "Published curves of mean IoU over the side of the test window, with ours.")

# %% [markdown]
# Three things to see. Most curves rise where windows are small, and flatten. Cropped baselines gain by larger windows
# too, on three of the four data sets up to 2048 px, where their curves end: so a method for whole scenes has to be
# compared with the *best* cropping, not with a customary one. And on WHU-OHS and UAVid several curves fall again before
# the whole scene. Our intervals are wide, and of one trained network; those of the published points were not found in
# the public code or project page.
#
# ## What you have seen
#
# - What a network can see follows from its layers, and can be measured exactly. A norm or a pool may make it
#   everything.
# - What it looks at follows from its weights, and is much less.
# - Cropping changes answers within the reach of the border: provably nothing beyond the theoretical field, and little
#   beyond the effective one.
# - Whether a larger window helps is a question about network, training *and* data. If what matters is farther away than
#   a window is wide, no network can know it.
#
# ## Exercises
#
# 1. **By hand.** Work out the receptive field of a 7 x 7 convolution with stride 2, a 3 x 3 max pool with stride 2, and
#    four 3 x 3 convolutions. Check with `receptive_field` (add `nn.Upsample(scale_factor=4)` at the end, and explain
#    why the two sides differ).
# 2. **By accident.** Which of a U-Net's layers would you replace to make its field infinite without adding a parameter?
#    (`.train()` is one answer. Why?) What does that mean for labelling crop by crop?
# 3. **Gridding.** Three 3 x 3 convolutions with dilations 2, 4 and 8: how far do they see? Which pixels within do they
#    *not* see? `receptive_field` cannot tell; the effective field can. Why?
# 4. **Does looking pay?** Train with `crop_px=256` and `batch_size=1` in section 2, so that the network sees as many
#    pixels; then for four times as many steps. Does the effective radius grow? Draw the curves of section 4 for
#    `sides = [64, 128, 256, 512]`: do they move to the right?
# 5. **Off the grid.** Let the windows of section 3 start at odd pixels. What happens to the curve beyond the
#    theoretical reach, and why? What does it say about windows that are moved back at a scene's end
#    (`placement="flush"`)?
# 6. **Twins, farther.** In section 5, label scenes of 192 px with `context_px=64` by the network trained at 32. Does it
#    still know? Then increase the distance until it fails. Compare with its theoretical field (`receptive_field(twin_fcn)`)
#    and its effective one.
# 7. **Be the reviewer.** Someone reports +1.5 points of mean IoU for windows of 1024 px over 512 px, one run, no
#    interval. Use the widths of the intervals in section 4 to say what you would ask for.
#
# **Read next.** `rsseglab/evaluation/receptive_field.py` (NaN and bisection), `rsseglab/evaluation/bootstrap.py`
# (intervals, and the smallest difference that they could have found), `rsseglab/scenes/twins.py` (what is proved of
# twins), and *One scene over many workers*, without any crop.
