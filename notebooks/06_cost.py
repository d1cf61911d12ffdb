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
# # How far does it scale?
#
# **The question.** Two workers label a scene in little more than half the time of one. What would 64 do? We have not got
# 64. But what each of them would compute and send is arithmetic, and how fast one device computes can be measured. Where
# does the curve leave the straight line, and what bends it?
#
# **It assumes** *One scene over many workers* (tiles, halos, speed-up, efficiency), and that you know what multi-head attention
# computes. **It takes** less than a minute on a laptop with two cores, and 1 GiB of memory. No data is needed.
#
# **What is measured here, and what is not.** Everything up to section 3 is measured or counted. From section 4 on, curves
# beyond two workers are *predicted, and not validated*: nobody has run them. Each figure and each table says so.

# %% tags=["parameters"] nbmake={"mock": {"most_workers": 4, "side": 24, "repeats": 1}}
most_workers = 64  # predicted up to here
side = 48  # rows and columns of the map in section 3, px
repeats = 3  # timed runs, of which the least counts

# %%
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from rsseglab import plots
from rsseglab.rest import SPIM
from rsseglab.rest.cost import (
    A100,
    EXACT_PARTS,
    PARTS,
    PREDICTED,
    SWIN_LARGE,
    bend,
    flop_counter,
    grid,
    halo_cost,
    least_seconds,
    level_cost,
    level_seconds,
    measure_rates,
    predict_exact,
    predict_spim,
)
from rsseglab.spatial import Layout, cut
from rsseglab.spatial.exchange import Traffic
from rsseglab.spatial.scale import UNet

COLORS = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in plots.OKABE_ITO]
BLUE, ORANGE, GREEN, SKY, VERMILION, PURPLE = COLORS[:6]
WORKERS = [2**k for k in range(7) if 2**k <= most_workers]
torch.set_num_threads(1)  # one worker, one thread, as in the record

# %% [markdown]
# ## 1. Measured
#
# `rsseglab scale` ran on a machine with two cores: a U-Net on a scene of 1024 x 1024 px, one worker and two. The numbers
# below are read from its record. *Strong*: one scene for all workers; *weak*: a scene whose rows grow with their number.

# %%
record = json.loads(Path("../book/records/scale_cpu_2_cores.json").read_text())
measured = pd.DataFrame(record["rows"])
columns = {
    "forward_seconds": "forward, s",
    "forward_efficiency": "forward, efficiency",
    "forward_backward_seconds": "forward + backward, s",
    "forward_backward_efficiency": "forward + backward, efficiency",
    "forward_backward_peak_mib_a_rank": "peak memory a worker, MiB",
}
measured.set_index(["kind", "ranks"])[list(columns)].rename(columns=columns).round(2)

# %% [markdown]
# ## 2. Counted
#
# A SPIM (the REST paper's layer) lets all tokens of a feature map attend to each other, wherever their tile lives. For a
# map of $N$ tokens and $C$ channels, $A$ heads and $P$ workers, of which each holds $n = N / P$ tokens and computes $A / P$
# heads, a worker has to do, forward:
#
# | what | how much | why |
# |---|---|---|
# | projections and feed-forward part | $24\, n\, C^2$ FLOPs | $C \to 3C$, $C \to C$, $C \to 4C \to C$, 2 FLOPs a weight and token |
# | attention | $4 N^2 C / P$ FLOPs | $q k^\top$ and weights times $v$, $2 N^2 C / A$ each, for $A / P$ heads |
# | softmax | $A N^2 / P$ exponentials | one for each query, key and head |
# | two exchanges | $4\, n\, C\, (P - 1) / P$ numbers sent | $q$, $k$, $v$ there and the output back, less what it keeps |
#
# `level_cost` computes this for tiles and heads of any size, for pooled keys, and backward. Do not believe it: let torch
# count the FLOPs of the real layer, and the exchange the bytes that tiles send each other.

# %%
height, width, channels, heads, layout = 21, 16, 24, 4, Layout(3)
level = level_cost(height, width, stride=1, channels=channels, layout=layout, heads=heads)
spim, tiles = SPIM(channels, heads), cut(torch.randn(1, channels, height, width, requires_grad=True), layout)
Traffic.reset()
with flop_counter() as forward:
    y = spim(tiles)
with flop_counter() as backward:
    y.mean().backward()
names = ("linear_flops", "attention_flops")
table = {
    "FLOPs, forward": (sum(level.total(n) for n in names), forward.get_total_flops()),
    "FLOPs, backward": (sum(level.total(n, backward=True) for n in names), backward.get_total_flops()),
}
for tile in range(layout.parts):
    work = level.forward[tile]
    table[f"bytes sent by worker {tile}, {work.exponentials} exponentials"] = (
        work.sent_bytes,
        Traffic.sent["SPIM", tile],
    )
pd.DataFrame(table, index=["from the formula", "counted"]).T

# %% [markdown]
# Three workers, four heads: one of them has two. It is the busiest, and all others wait for it.
#
# ## 3. Rates, measured: FLOPs are not all
#
# Seconds follow from work and *rates*. `measure_rates` measures two on the device at hand: FLOP/s of a large matrix product,
# and exponentials/s inside an attention kernel. The rates of the link come from the record above.
#
# Then the same SPIM is timed with other numbers of heads. The FLOPs are the same for all of them! If FLOPs were all, the line
# would be flat. But each head has a softmax of its own, so exponentials grow with heads, and narrow heads make narrow
# matrix products, which no processor likes. The prediction knows both, the latter roughly. This is the one place where we can hold it against a
# clock, so look at how well it does: it is a plain model, on a machine that may be doing other things.

# %%
two = measured[(measured.kind == "strong") & (measured.ranks == 2)].iloc[0]
one = measured[(measured.kind == "strong") & (measured.ranks == 1)].iloc[0]
links = {
    "link_bytes_per_s": two.bandwidth_bytes_per_s, "latency_s": two.latency_s, "sum_latency_s": two.sum_latency_s,
}  # fmt: skip
here = measure_rates("cpu", **links)
print(f"{here.matmul_flops_per_s / 1e9:.0f} GFLOP/s, {here.exponentials_per_s / 1e9:.1f} G exponentials/s")

wide, counts = 96, [1, 2, 4, 8, 16, 32]
levels = [level_cost(side, side, stride=1, channels=wide, layout=Layout(1), heads=h) for h in counts]
x, layers = torch.randn(1, wide, side, side), [SPIM(wide, h).eval() for h in counts]
with torch.inference_mode():
    taken = least_seconds([lambda layer=layer: layer(x) for layer in layers], torch.device("cpu"), repeats)
parts = [level_seconds(level, here) for level in levels]
flops_alone = sum(levels[0].total(n) for n in names) / here.matmul_flops_per_s

figure, axis = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
axis.plot(counts, np.multiply(taken, 1e3), "o", color="black", label="measured now, one worker")
axis.plot(
    counts, [1e3 * sum(p.values()) for p in parts], color=BLUE, label="predicted: FLOPs, exponentials, narrow heads"
)
axis.axhline(1e3 * flops_alone, color=ORANGE, linestyle="--", label="predicted: FLOPs alone")
axis.set(xlabel="heads", ylabel="milliseconds", title=f"one SPIM, {side} x {side} tokens, {wide} channels, forward")
axis.set_xscale("log", base=2)
axis.set_xticks(counts, counts)
axis.set_ylim(bottom=0)
figure.legend(loc="outside lower center", ncols=1)
plots.show(
    figure,
    "Milliseconds of one SPIM over the number of heads: measured points, and predictions with and without the "
    "cost of exponentials.",
)
ratios = [t / sum(p.values()) for t, p in zip(taken, parts, strict=True)]
print(f"measured / predicted: {min(ratios):.2f} to {max(ratios):.2f}")

# %% [markdown]
# ## 4. Predicted: the SPIMs of a whole scene on 1 to 64 GPUs
#
# A GaoFen-2 scene has 6908 x 7300 px. A Swin-L encoder gives four maps of it, from 3.2 million tokens of 192 channels at
# stride 4 to 50 thousand of 1536 at stride 32. We take the *nominal* peak rates of an A100 (`rsseglab/rest/cost.py` tells where
# each comes from), so the seconds are a lower bound; what matters is the shape. Four ways to share out the heads:
#
# - **one head a worker**, as in the paper's public code. Mind that each number of workers then computes *another function*.
# - **8 heads**, or **64 heads**, whatever the number of workers: the same function everywhere.
# - **8 heads, in a ring**: queries stay at home, keys and values pass through all workers.

# %%
scene = {"height_px": 7300, "width_px": 6908, "channels": SWIN_LARGE, "rates": A100, "workers": WORKERS}
ways = {
    "one head a worker": {"heads": "world"},
    "8 heads": {"heads": 8},
    "64 heads": {"heads": 64},
    "8 heads, in a ring": {"heads": 8, "exchange": "ring"},
}
predicted = {name: predict_spim(**scene, element_bytes=2, **options) for name, options in ways.items()}

STYLES = dict(zip(ways, [(VERMILION, "o-"), (BLUE, "s-"), (GREEN, "^-"), (PURPLE, "D--")], strict=True))


def log_axes(axis, ylabel, title):
    """Both axes in powers, and the stamp that no predicted curve goes without."""
    axis.set_xscale("log", base=2)
    axis.set_xticks(WORKERS, WORKERS)
    axis.set(xlabel="workers P", ylabel=ylabel)
    axis.set_title(title, fontsize=10)
    plots.stamp(axis, PREDICTED)


def bends(curves):
    """A line for each predicted curve: where it bends, and why."""
    table = {}
    for name, rows in curves.items():
        found, last = bend(rows), rows[-1]
        table[name] = {
            "status": PREDICTED,
            "bends at P =": found.workers if found else f"straight up to {last['workers']}",
            "lost most to": found.part if found else "",
            "at stride": found.stride if found and found.stride else "",
            f"seconds at P = {last['workers']}": f"{last['seconds']:.3g}",
        }
    return pd.DataFrame(table).T


figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
for name, rows in predicted.items():
    colour, style = STYLES[name]
    axes[0].plot(WORKERS, [row["seconds"] for row in rows], style, color=colour, label=name)
    axes[1].plot(WORKERS, [row["efficiency"] for row in rows], style, color=colour)
axes[0].set_yscale("log")
log_axes(axes[0], "seconds, all four SPIMs, forward", "6908 x 7300 px, A100 at nominal rates: predicted")
log_axes(axes[1], "efficiency (speed-up / P)", "relative to one worker with the same choice: predicted")
axes[1].set_ylim(0, 1.08)
figure.legend(handles=axes[0].lines, loc="outside lower center", ncols=4)
plots.show(
    figure,
    "Predicted seconds of four SPIMs and their efficiency over the number of workers, for four ways to share the work.",
)

# %% [markdown]
# Read both panels. On the right 64 heads look best, and one head a worker worst. On the left, at 64 workers, the two take the
# *same* time: they compute the same thing, heads of three channels at stride 4. 64 heads scale so well because one worker is so
# slow with them. **Efficiency tells how work is shared out, not how much of it there is.** With few heads and many workers the
# ring is fastest: it shares out queries instead of heads.
#
# `bend` finds the least number of workers with an efficiency below 0.8, and what lost most seconds there.

# %%
bends(predicted)

# %% [markdown]
# ## 5. Why it bends (1): the softmax, where there is one head a worker
#
# *Worker-seconds* are seconds times workers: what you pay for. While a curve is straight, they stay flat. Whatever grows bends
# the curve.
#
# - **One head a worker:** each worker has a whole head, so it takes $N^2$ exponentials, *whatever P is*; all together $P N^2$. The
#   matrix products do not help either: a head of $192 / P$ channels is padded to 32 once $P > 6$.
# - **8 heads:** flat up to 8 workers. Beyond, workers without a head wait, and their seconds are paid for, too.
# - **8 heads, in a ring:** flat, but for what keys and values cost on their way round.
#
# The linear layers are there, too. They are too small to be seen.

# %%
PART_COLORS = dict(zip(PARTS, (SKY, BLUE, VERMILION, ORANGE), strict=True))
PART_NAMES = {
    "linear": "linear layers", "attention": "attention, matrix products", "softmax": "softmax", "exchange": "exchange",
}  # fmt: skip


def worker_seconds(axis, rows, parts, colours, title):
    """Stacked bars of seconds times workers, by part."""
    bottom, places = np.zeros(len(rows)), np.arange(len(rows))
    for part in parts:
        height = np.array([row[f"{part}_seconds"] * row["workers"] for row in rows])
        axis.bar(places, height, bottom=bottom, color=colours[part], width=0.7, label=part)
        bottom += height
    axis.set_xticks(places, [row["workers"] for row in rows])
    axis.set(xlabel="workers P", ylabel="worker-seconds (seconds x P)")
    axis.label_outer()
    axis.set_title(title, fontsize=10)
    plots.stamp(axis, PREDICTED)


figure, axes = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained", sharey=True)
for axis, name in zip(axes, ("one head a worker", "8 heads", "8 heads, in a ring"), strict=True):
    worker_seconds(axis, predicted[name], PARTS, PART_COLORS, f"{name}: predicted")
handles, labels = axes[0].get_legend_handles_labels()
figure.legend(handles, [PART_NAMES[label] for label in labels], loc="outside lower center", ncols=4)
plots.show(figure, "Predicted worker-seconds by cause over the number of workers, three ways side by side.")

# %% [markdown]
# ## 6. Why it bends (2): halos, where tiles are thin
#
# The exact engine fetches a halo before each convolution. The halo of a band of rows is as large as the scene is wide, *however
# thin the band is*. With more workers the work shrinks and the halo does not. Left: the halo's share of a tile, for one 3 x 3
# convolution; at stride 32 only 229 rows are left to share out. A grid of tiles has shorter borders.
#
# Right: the U-Net of the record in section 1. The dots are measured. The line takes the measured second of *one* worker, the
# measured rates of the link, and counted messages and bytes. Already at two workers the dot lies below the line: what the
# workers lose by waiting for each other and by sharing memory is not in the model. So the line is a hope, not a promise.

# %%
figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
for stride, colour in ((4, SKY), (32, VERMILION)):
    rows, cols = -(-7300 // stride), -(-6908 // stride)
    for layout_of, name, style in ((Layout, "bands", "o-"), (grid, "grid", "s--")):
        shares = [100 * halo_cost(rows, cols, layout_of(p), channels=1).share for p in WORKERS]
        axes[0].plot(WORKERS, shares, style, color=colour, label=f"stride {stride}, {name}")
axes[0].set_xscale("log", base=2)
axes[0].set_xticks(WORKERS, WORKERS)
axes[0].set(xlabel="workers P", ylabel="halo / tile, %")
axes[0].set_title("6908 x 7300 px, one 3 x 3 convolution: from the layout", fontsize=10)
axes[0].legend(frameon=False)

options = record["options"]
network = UNet(width=options["width"])
exact = {
    "bands": predict_exact(
        network, options["size"], options["size"], here, workers=WORKERS, one_worker_seconds=one.forward_seconds
    ),
    "grid": predict_exact(
        network, options["size"], options["size"], here, workers=WORKERS, one_worker_seconds=one.forward_seconds,
        layout_of=grid,
    ),
}  # fmt: skip
for (name, rows), (colour, style) in zip(exact.items(), ((BLUE, "-"), (GREEN, "--")), strict=True):
    axes[1].plot(WORKERS, [row["efficiency"] for row in rows], style, color=colour, label=f"{name}: predicted")
strong = measured[measured.kind == "strong"]
axes[1].plot(strong.ranks, strong.forward_efficiency, "o", color="black", label="bands: measured")
log_axes(axes[1], "efficiency (speed-up / P)", "U-Net, 1024 x 1024 px, CPU, forward")
axes[1].set_ylim(0, 1.08)
axes[1].legend(frameon=False, loc="lower left")
plots.show(
    figure,
    "Speed-up and efficiency of the exact engine over the number of workers: predicted curves, measured points.",
)
bends({f"U-Net on the exact engine, {name}": rows for name, rows in exact.items()})

# %% [markdown]
# What would a faster device change? On an A100 the work takes some thousand times less, and a message nearly as long as ever. So
# the same network has to have a far larger scene before many workers pay. Here it is the classical U-Net of 64 channels, on
# 8192 x 8192 px. `halo` is computing: the engine runs a convolution on the tile and once more on the thin halo. `latency` is
# messages, `bytes` is what they carry; from 16 workers on they leave a node of 8, and the link is the network.

# %%
EXACT_COLORS = dict(zip(EXACT_PARTS, (BLUE, SKY, PURPLE, ORANGE), strict=True))
large = {
    name: predict_exact(UNet(width=64), 8192, 8192, A100, workers=WORKERS, layout_of=layout_of)
    for name, layout_of in (("bands", Layout), ("grid", grid))
}
figure, axes = plt.subplots(1, 2, figsize=(12, 4.4), layout="constrained", sharey=True)
for axis, (name, rows) in zip(axes, large.items(), strict=True):
    worker_seconds(
        axis, rows, EXACT_PARTS, EXACT_COLORS, f"U-Net, 8192 x 8192 px, A100 at nominal rates, {name}: predicted"
    )
handles, labels = axes[0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside lower center", ncols=4)
plots.show(figure, "Predicted worker-seconds by cause for a larger scene, in bands and in a grid.")
bends({f"U-Net on the exact engine, {name}": rows for name, rows in large.items()})

# %% [markdown]
# ## 7. Why it bends (3): attention at stride 4, where scenes grow
#
# More workers are mostly wanted for *larger scenes*. Let the scene grow with the workers: 1024 rows for each. A convolution has
# work for each pixel, so a worker has as much to do as before. Attention has work for each *pair* of tokens: $N^2 / P$ with
# $N \propto P$ grows as $P$, and no way of sharing it out helps. Nearly all of it is at stride 4, which has four times the tokens
# of stride 8, sixteen times the pairs, and half the channels: $1 / (1 + 1/8 + 1/64 + 1/512) = 87.5\,\%$ of the FLOPs.
#
# Two ways out: no SPIM at stride 4, or one whose keys and values are pooled, 4 x 4 tokens to one. Both move the wall away. Neither
# takes it down.

# %%
growing = {
    "all strides": {},
    "stride 4 pooled 4 x 4": {"pools": {4: 4}},
    "without stride 4": {"channels": {s: c for s, c in SWIN_LARGE.items() if s != 4}},
}
weak = {
    name: predict_spim(
        **({"height_px": 1024, "width_px": 4096, "channels": SWIN_LARGE} | options), rates=A100, workers=WORKERS, heads=64,
        element_bytes=2, weak=True,
    )
    for name, options in growing.items()
}  # fmt: skip
figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
for (name, rows), (colour, style) in zip(weak.items(), ((VERMILION, "o-"), (BLUE, "s-"), (GREEN, "^--")), strict=True):
    axes[0].plot(WORKERS, [row["seconds"] for row in rows], style, color=colour, label=name)
axes[0].set_yscale("log")
log_axes(axes[0], "seconds, all SPIMs, forward", "1024 P x 4096 px on P workers: predicted")
shades = dict(zip(SWIN_LARGE, (VERMILION, ORANGE, SKY, BLUE), strict=True))
worker_seconds(
    axes[1], weak["all strides"], [f"stride_{s}" for s in SWIN_LARGE], {f"stride_{s}": c for s, c in shades.items()},
    "all strides: predicted",
)  # fmt: skip
axes[1].legend([f"stride {s}" for s in SWIN_LARGE], frameon=False, loc="upper left")
figure.legend(handles=axes[0].lines, loc="outside lower center", ncols=3)
plots.show(
    figure,
    "Predicted seconds over workers when the scene grows with them, and worker-seconds by stride: stride 4 has "
    "nearly all.",
)
bends(weak)

# %% [markdown]
# ## What you have seen
#
# - What a worker computes and sends is arithmetic on the layout. Counted and computed numbers agree, to the last byte.
# - With one head a worker the softmax does not get less with more workers; with a fixed number of heads it does, up to as many
#   workers as heads. More heads are no gift: each costs a softmax.
# - Halos bend the exact engine's curve where tiles are thin, attention at stride 4 where scenes grow.
# - A prediction is a model, of one device measured and of links looked up. It knows nothing of waiting, of memory, of kernels that
#   do not like a shape. Where it could be held against a clock, it was too low.
#
# ## Exercises
#
# 1. **By hand.** A map of 1024 x 1024 tokens and 192 channels, 8 workers, 8 heads, half precision. How many FLOPs, exponentials and
#    bytes does a worker have, forward? Work them out with the table of section 2, then check with `level_cost`. Which of the two,
#    products or exponentials, takes longer on an A100 (`A100.matmul_flops_per_s`, `A100.exponentials_per_s`)? At how many channels
#    a head do they take as long?
# 2. **Your own machine.** Compare `here` with `A100`: how many FLOPs does each do in the time of one exponential? With which of the
#    two does the number of heads matter more? Set `torch.set_num_threads(2)` and measure again: do both rates double?
# 3. **Is that a whole scene?** A figure on the paper's project page shows a testing time of about 42 s for the best variant on
#    GLH-Water (digitised; scenes of 12800 x 12800 px). How many GPUs, and whether that is per scene, was not found in the public
#    code or project page. Predict the seconds of the four SPIMs alone, on 8 A100 with `heads="world"`. Which test sizes could be
#    meant? What would you ask the authors?
# 4. **Backward.** Predict section 4 with `training=True`. By which factor do the seconds grow? Explain it: how many products and
#    exponentials are there for the gradients of attention, and how many for those of a linear layer?
# 5. **Slow links.** Replace the network of `A100` by one of 1 GB/s (`dataclasses.replace`). Which of the four curves of section 4
#    bends now, where, and why this one? At which bandwidth do all-to-all and ring take as long at 8 workers?
# 6. **Best of both.** 64 workers and 8 heads. Put the workers in 8 groups; each group has all 8 heads, one a worker, and 1/8 of the
#    queries. What does a worker compute, and what does it send? Write it down as `level_cost` does, and put its curve into
#    section 4. Is it better than the ring?
# 7. **Be the reviewer.** The prediction of section 6 lies above the measurement at two workers. Run `rsseglab scale --ranks 1,2,4`
#    on a machine with four cores or more, and put its dots in. What would you add to the model first?
#
# **Read next.** `rsseglab/rest/cost.py` (every formula with its derivation), `rsseglab/rest/spim.py` (the layer),
# `rsseglab/spatial/scale.py` (how scaling is measured), `rsseglab/spatial/rules/ring.py` (the ring).
