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
# # SPIM, tile by tile
#
# **The question.** The REST paper spreads a scene over many GPUs, a tile each, and lets the tiles meet in one layer: SPIM,
# an attention over the tokens of *all* tiles. What does a pixel see of another tile through it? And is the answer still
# that of one network, whatever the number of tiles?
#
# **It assumes** *Why context* (twin scenes), and that you know what multi-head attention computes. A *tile* is the part of
# a scene that one worker holds, a *halo* the rows and columns around it that it fetches from others; *One scene over many
# workers* tells how. **It takes** about a minute on a laptop with two cores, and 2 GiB of memory. No data is
# needed: the scenes are made here.

# %% tags=["parameters"] nbmake={"mock": {"steps": 2, "seeds": 1, "large_px": 384, "most_tiles": 16}}
steps = 48  # training steps
seeds = 2  # networks that are trained, each from another start and on other scenes
large_px = 768  # side of the large scenes of section 4
most_tiles = 64  # up to so many of them are tried in section 4

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from matplotlib.colors import ListedColormap
from torch import nn

from rsseglab import plots
from rsseglab.errors import UserError
from rsseglab.rest import REST, SPIM
from rsseglab.rest.attention_map import attention_of
from rsseglab.scenes.twins import CLASSES, normalise, pair_accuracy, twin_scenes
from rsseglab.spatial import Layout, apart, cut, join, together
from rsseglab.spatial.layout import bounds

COLORS = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in plots.OKABE_ITO]
BLUE, ORANGE, GREEN, SKY, VERMILION, PURPLE = COLORS[:6]
ENCODER, DECODER = "test_resnet", "fcn"  # timm's tiny ResNet, 0.4 M parameters
LEVEL, STRIDE_PX, CHANNELS = 4, 16, 192  # the encoder's map that gets a SPIM
SCENE_PX, CONTEXT_PX = 256, 128  # a field's key is at least half a scene away
FOUR = Layout(2, 2)  # the tiles of training

# %% [markdown]
# ## 1. What SPIM is
#
# A token is a pixel of a feature map. SPIM is one transformer layer over all $N$ tokens $x$ of the whole scene, with $C$
# channels and $H$ heads:
#
# $$q, k, v = \mathrm{LN}(x)\, W + b, \qquad o = \mathrm{softmax}\!\left(\frac{q k^\top}{\sqrt{C / H}}\right) v \;\text{ in each head}, \qquad
# y = x + o\, W_o + b_o, \qquad z = y + \mathrm{FFN}(\mathrm{LN}(y))$$
#
# and its output is $x + z$. Norms, projections and the FFN treat each token by itself: no tile needs another. Only the
# attention does, for $q k^\top$ wants every token against every token. Yet *heads* do not need each other. Hence the trick,
# known as Ulysses: before the attention each worker has all heads of its own tokens. One **all-to-all** exchange later it
# has all tokens of its own heads, and can attend as if there were no tiles. A second all-to-all brings the tokens home.
#
# Below: a map of 4 x 6 tokens in four tiles, and six heads. The shares are the engine's own; four workers can't share six
# heads evenly.

# %%
rows, cols, heads = 4, 6, 6
owner = np.zeros((rows, cols), int)  # of each token: the worker that holds its tile
for tile, (row, col, height, width) in enumerate(FOUR.windows(rows, cols)):
    owner[row : row + height, col : col + width] = tile
head_owner = np.searchsorted(bounds(heads, FOUR.parts), np.arange(heads), side="right") - 1
by_token = np.sort(owner.flatten())[:, None].repeat(heads, 1)  # tokens, tile by tile, against heads
by_head = head_owner[None].repeat(rows * cols, 0)

figure, axes = plt.subplots(1, 4, figsize=(12, 4.4), layout="constrained", width_ratios=(1.5, 1, 1, 1))
titles = (
    "the map's tokens, in tiles",
    "before: my tokens,\nall heads",
    "attention: all tokens,\nmy heads",
    "after: my tokens,\nall heads",
)
for axis, picture, title in zip(axes, (owner, by_token, by_head, by_token), titles, strict=True):
    axis.imshow(
        picture,
        cmap=ListedColormap([SKY, ORANGE, GREEN, PURPLE]),
        vmin=-0.5,
        vmax=3.5,
        aspect="equal" if picture is owner else "auto",
    )
    for worker in range(FOUR.parts):
        i, j = np.argwhere(picture == worker).mean(0)
        name = worker if picture is by_head else f"worker {worker}"
        axis.text(
            j, i, name, ha="center", va="center", bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 1.5}
        )
    axis.set_xticks(np.arange(picture.shape[1] + 1) - 0.5, minor=True)
    axis.set_yticks(np.arange(picture.shape[0] + 1) - 0.5, minor=True)
    axis.grid(which="minor", color="white", linewidth=0.8)
    axis.tick_params(which="both", length=0)
    axis.set_title(title, fontsize=10)
    axis.set(xlabel="head", ylabel="token, tile by tile", xticks=range(picture.shape[1]))
axes[0].set(xlabel="column, tokens", ylabel="row, tokens")
for axis in axes[2:]:
    axis.annotate(
        "all-to-all", (-0.16, 1.16), (-0.16, 1.16), xycoords="axes fraction", ha="center", fontsize=9, color="0.3"
    )
    axis.annotate(
        "", (-0.02, 1.13), (-0.3, 1.13), xycoords="axes fraction", arrowprops={"arrowstyle": "->", "color": "0.3"}
    )
    axis.set_ylabel("")
plots.show(figure, "Tokens by tile, and the same tokens by head after the all-to-all.")

# %% [markdown]
# ## 2. What a cut changes, and what it does not
#
# In the public code encoder and decoder run on each tile alone, and tiles meet in SPIM (`interaction="spim"` here). So
# there are two questions. Does the *encoder* give the same features when a scene is cut? Does *SPIM*? We take a scene, cut
# it in 2 x 2, and compare with the scene in one piece, in 64-bit numbers. The weights are random.


# %%
def batch(numbers, size_px):
    """Both twins of each pair: images, normalised, and labels."""
    pairs = [twin_scenes(size_px, size_px, CONTEXT_PX, number) for number in numbers]
    images = torch.from_numpy(np.concatenate([normalise(pair.images) for pair in pairs]))
    return images, torch.from_numpy(np.concatenate([pair.labels for pair in pairs])).long()


torch.manual_seed(0)
encoder = REST(ENCODER, DECODER, len(CLASSES), "none").double().eval().network.encoder
for module in encoder.modules():
    if isinstance(module, nn.BatchNorm2d):  # timm lets each block begin as the identity: nothing would cross a border
        nn.init.ones_(module.weight)
layer = SPIM(CHANNELS, heads=4).double().eval()
image = batch([0], SCENE_PX)[0][:1].double()

with torch.no_grad():
    whole = encoder(image)[LEVEL]
    alone = join(together(encoder(apart(cut(image, FOUR)))[LEVEL]))  # each tile alone
    exact = join(encoder(cut(image, FOUR))[LEVEL])  # with halos
    results = {
        "encoder, each tile alone": (alone, whole),
        "encoder, with halos": (exact, whole),
        "SPIM, of the same features": (join(layer(cut(whole, FOUR))), layer(whole)),
        "both: encoder alone, then SPIM": (join(layer(cut(alone, FOUR))), layer(whole)),
    }

figure, axes = plt.subplots(1, 4, figsize=(13, 3.9), layout="constrained", sharey=True)
table = {}
for axis, (name, (ours, theirs)) in zip(axes, results.items(), strict=True):
    error = ((ours - theirs).abs().amax((0, 1)) / theirs.abs().max()).clamp_min(1e-17)
    shown = axis.imshow(error.log10(), cmap="cividis", vmin=-17, vmax=0, extent=(0, SCENE_PX, SCENE_PX, 0))
    plots.tile_borders(axis, FOUR, SCENE_PX, SCENE_PX)
    axis.set_title(name, fontsize=10)
    axis.set_xlabel("column, px")
    table[name] = {
        "largest relative difference": f"{error.max():.0e}",
        "tokens that differ by more than 1e-12": f"{(error > 1e-12).double().mean():.0%}",
    }
axes[0].set_ylabel("row, px")
figure.colorbar(shown, ax=axes, label="relative difference to the\nuncut scene, power of ten", shrink=0.8)
plots.show(
    figure,
    "Relative difference to the uncut scene, as maps, for four ways to run an encoder on four tiles: exact "
    "nowhere differs, alone differs along the borders.",
)
pd.DataFrame(table).T

# %% [markdown]
# The encoder alone goes wrong along the borders, where its convolutions see zeros in place of the neighbour. With halos it
# does not. **SPIM never cares**: the second and the third panel are rounding. But look at the last one: SPIM takes what was
# wrong at the borders *everywhere*, as each token attends to all.
#
# In this notebook we want to see SPIM and nothing else. So from here on the encoder and the decoder exchange halos
# (`interaction="exact+spim"`): whatever then depends on the number of tiles comes from SPIM's heads. Exercise 2 goes back
# to the published way.
#
# ## 3. Train one
#
# *Twin scenes* are two scenes that differ in one patch of stripes, the **key**. All fields look alike; what is sown on them
# stands on the key, and it is at least 128 px away from every field. We train on scenes of 256 x 256 px in 2 x 2 tiles of
# 128 px, all in this one process. So **no tile holds a key and a field**: what a field is can only be known from another
# tile. *Pair accuracy* is the share of field pixels whose crop is right; who guesses, or cannot know, has 0.5.
#
# `heads="world"` does what the public code does: the number of heads is the number of workers, four here. On four tiles it
# is the same function as `heads=4`, so one training serves both. We train each network from a start and on scenes of its
# own, and beside them one with `interaction="none"`, for section 6.


# %%
def logits(model, images, layout):
    """Logits of each scene, cut in tiles."""
    with torch.inference_mode():
        return torch.cat([join(model(cut(image[None], layout))) for image in images])


def train(seed, interaction, **options):
    """AdamW with a one-cycle schedule, two new pairs of twins a step; and the accuracy of each step."""
    torch.manual_seed(seed)
    model = REST(ENCODER, DECODER, len(CLASSES), interaction, **options).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.2)
    course = []
    for step in range(steps):
        first = 100_000 * (seed + 1) + 2 * step
        images, labels = batch(range(first, first + 2), SCENE_PX)
        answer = join(model(cut(images, FOUR)))
        loss = F.cross_entropy(answer, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        course.append(pair_accuracy(answer.detach(), labels))
    return model.eval(), course


world, courses = [], []
for seed in range(seeds):
    model, course = train(seed, "exact+spim", heads="world", strides=(STRIDE_PX,))
    world.append(model)
    courses.append(course)
none, none_course = train(0, "none")

figure, axis = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
for seed, course in enumerate(courses):
    axis.plot(
        np.arange(steps) + 1, course, color=BLUE, alpha=1 - 0.25 * seed, linewidth=1.2, label=f"with SPIM, seed {seed}"
    )
axis.plot(np.arange(steps) + 1, none_course, "--", color=VERMILION, label="none: each tile alone")
axis.axhline(0.5, color="0.6", linewidth=0.8)
axis.set(xlabel="training step", ylabel="pair accuracy of the step's scenes", ylim=(0.4, 1.05))
figure.legend(loc="outside lower center", ncols=4)
plots.show(figure, "Pair accuracy over training steps: with SPIM it rises to one, each tile alone stays at one half.")

unseen, answers = batch(range(4), SCENE_PX)
for seed, model in enumerate(world):
    print(
        f"seed {seed}, unseen scenes in four tiles: pair accuracy {pair_accuracy(logits(model, unseen, FOUR), answers):.4f}"
    )

# %% [markdown]
# ## 4. Other numbers of tiles
#
# Training used four workers. A colleague has one GPU, or 64. With halos and a global attention that should not matter, and
# large scenes should work, too. Let us ask the network with `heads="world"` for a scene in 16 tiles:

# %%
try:
    logits(world[0], unseen[:1], Layout(4, 4))
except UserError as error:
    print(error)

# %% [markdown]
# The library refuses. In the public code the number of heads is the number of workers, and as the shapes of the weights do
# not tell the number of heads, the weights load on any number. To see what is computed then, we set the guard aside and
# give the layer as many heads as there are tiles. Beside it stands the same network with its heads fixed: the *same
# weights*, loaded in `heads=4`.
#
# One pair of twins of each of two sizes: 256 px as in training, and larger ones, as REST is meant for: train on windows,
# label whole scenes on more workers.

# %%
grids = [Layout(1), Layout(2), Layout(2, 2), Layout(4, 2), Layout(4, 4), Layout(8, 8)]
grids = [layout for layout in grids if layout.parts <= most_tiles]
fixed = []
for model in world:
    fixed.append(REST(ENCODER, DECODER, len(CLASSES), "exact+spim", heads=4, strides=(STRIDE_PX,)).eval())
    fixed[-1].load_state_dict(model.state_dict())

records = []
for size_px in (SCENE_PX, large_px):
    images, labels = batch([0], size_px)
    for seed, pair in enumerate(zip(world, fixed, strict=True)):
        reference = logits(pair[1].double(), images.double(), Layout(1))  # uncut, four heads, 64-bit numbers
        pair[1].float()
        for layout in grids:
            for name, model in zip(("heads = tiles", "4 heads"), pair, strict=True):
                model.spims[str(LEVEL)].heads = layout.parts if name == "heads = tiles" else 4
                ours = logits(model, images, layout)
                change = float((ours - reference).norm() / reference.norm())
                records.append((size_px, layout.parts, name, seed, pair_accuracy(ours, labels), change))
columns = ["scene, px", "tiles", "heads", "seed", "pair accuracy", "change of logits"]
records = pd.DataFrame(records, columns=columns)

figure, axes = plt.subplots(2, 2, figsize=(11, 7), layout="constrained", sharex=True, sharey="row")
for column, size_px in enumerate((SCENE_PX, large_px)):
    for name, colour, style in (("heads = tiles", VERMILION, "o-"), ("4 heads", BLUE, "s--")):
        here = records[(records["scene, px"] == size_px) & (records["heads"] == name)]
        for axis, measure in zip(axes[:, column], ("pair accuracy", "change of logits"), strict=True):
            axis.plot(here["tiles"], here[measure], style[0], color=colour, alpha=0.45, markersize=5)
            mean = here.groupby("tiles")[measure].mean()
            axis.plot(mean.index, mean, style[1:], color=colour)
            axis.axvline(4, color="0.7", linestyle=":", zorder=0)
    axes[0, column].set_title(f"scenes of {size_px} x {size_px} px", fontsize=10)
    axes[1, column].set_xlabel("tiles of the scene in the test")
axes[0, 0].set(ylabel="pair accuracy", ylim=(0.45, 1.03))
axes[1, 0].set(
    ylabel="relative change of the logits against\nthe uncut scene with 4 heads", yscale="log", ylim=(1e-8, 3)
)
axes[1, 0].set_xscale("log", base=2)
axes[1, 0].set_xticks([layout.parts for layout in grids], [layout.parts for layout in grids])
handles = [
    plt.Line2D([], [], color=VERMILION, marker="o", label="as many heads as tiles (heads='world')"),
    plt.Line2D([], [], color=BLUE, marker="s", linestyle="--", label="4 heads, whatever the tiles"),
    plt.Line2D([], [], color="0.7", linestyle=":", label="tiles of training"),
]
figure.legend(handles=handles, loc="outside lower center", ncols=3, title="lines: mean over seeds; markers: each seed")
plots.show(
    figure,
    "Pair accuracy and change of the logits over the number of tiles in the test: fixed heads stay, heads as many "
    "as tiles fall off.",
)
table = records.groupby(columns[:3]).agg(
    **{
        "pair accuracy": ("pair accuracy", "mean"),
        "of the worst seed": ("pair accuracy", "min"),
        "change of logits": ("change of logits", lambda change: f"{change.mean():.1e}"),
    }
)
table.unstack().swaplevel(axis=1).sort_index(axis=1, level=0, sort_remaining=False).round(4)

# %% [markdown]
# With fixed heads nothing changes but rounding. With one head a worker, **the same weights are another function on another
# number of workers**: the logits of a trained network change by far more than rounding. Whether that costs accuracy is
# another matter, and depends on how much is at stake. In scenes as small as in training a field needs one bit, and has it
# from almost any number of heads. In a large scene the key is one patch among nine times as many, and attention has to
# be *sharp* to find it.
#
# ## 5. What does it look at?
#
# We take a pixel in a field and draw where it looks, head by head. `attention_of` computes the weights, which SPIM itself
# never keeps. 1 is uniform attention; on a map of 256 tokens the most that one token can get is 256.

# %%
twins = twin_scenes(SCENE_PX, SCENE_PX, CONTEXT_PX, 3)
image = torch.from_numpy(normalise(twins.images))[:1]


def tokens_of(mask, least):
    """Rows and columns of the tokens of which at least a share of the pixels is in a mask."""
    share = F.avg_pool2d(torch.from_numpy(mask).float()[None], STRIDE_PX)[0]
    return [index.tolist() for index in torch.nonzero(share >= min(least, share.max()), as_tuple=True)]


def tile_of(row, col):
    """The tile that holds a pixel."""
    windows = FOUR.windows(SCENE_PX, SCENE_PX)
    return next(t for t, (r, c, h, w) in enumerate(windows) if r <= row < r + h and c <= col < c + w)


rows, cols = tokens_of(twins.look_alike, 1.0)
key_row, key_col = (np.mean(index) for index in np.nonzero(twins.key))
far = np.argmax(np.hypot(np.subtract(rows, key_row / STRIDE_PX), np.subtract(cols, key_col / STRIDE_PX)))
query = ((rows[far] + 0.5) * STRIDE_PX, (cols[far] + 0.5) * STRIDE_PX)
with torch.no_grad():
    features = fixed[0].network.encoder(cut(image, FOUR))[LEVEL]
    maps = attention_of(fixed[0].spims[str(LEVEL)], features, [rows[far]], [cols[far]])[0, :, 0].numpy()
figure = plots.attention_over_scene(twins.images[0].transpose(1, 2, 0), maps, FOUR, query, twins.key, "the key")
plots.show(figure, "Attention of one place over the whole scene, head by head, with the tiles' borders and the key.")

on_key = np.zeros(maps.shape[1:], bool)
on_key[tuple(tokens_of(twins.key, 1e-6))] = True
print(f"the query lies in tile {tile_of(*query)}, the middle of the key in tile {tile_of(key_row, key_col)}")
shares = {
    f"head {h}": [
        f"{100 * head[on_key].sum():.1f}",
        tile_of(*[(i + 0.5) * STRIDE_PX for i in np.unravel_index(head.argmax(), head.shape)]),
    ]
    for h, head in enumerate(maps)
}
pd.DataFrame(shares, index=["attention on the key, %", "tile of the token that gets most"]).assign(
    uniform=[f"{100 * on_key.mean():.1f}", ""]
)

# %% [markdown]
# Now you see what goes wrong when heads are counted anew. Cut a head of width $d$ into $m$ narrower ones. Each takes the
# softmax of its own part of $q \cdot k$, divided by $\sqrt{d / m}$ where the head that was trained divides by $\sqrt d$.
# So its score $s$ and the scores $s_1, \ldots, s_m$ of its parts are tied by
#
# $$s_1 + \ldots + s_m = \sqrt m \, s, \qquad \text{so that on average} \quad s_i = s / \sqrt m .$$
#
# A key that has to outweigh $N$ other tokens needs a score of about $\ln N$. Sixteen times as many heads: a quarter of the
# score. And with fewer heads, one that looks at the key is thrown together with one that does something else. Here is how
# much of the attention of the fields, on the large scene, falls on the key.

# %%
large = twin_scenes(large_px, large_px, CONTEXT_PX, 0)
image = torch.from_numpy(normalise(large.images))[:1]
rows, cols = (index[:: max(1, len(index) // 50)] for index in tokens_of(large.look_alike, 1.0))
on_key = np.zeros((large_px // STRIDE_PX, large_px // STRIDE_PX), bool)
on_key[tuple(tokens_of(large.key, 1e-6))] = True
figure, axes = plt.subplots(1, seeds, figsize=(4 * seeds + 1, 3.9), layout="constrained", sharey=True, squeeze=False)
for seed, (axis, model) in enumerate(zip(axes[0], world, strict=True)):
    spim = model.spims[str(LEVEL)]
    with torch.no_grad():
        features = model.network.encoder(image)[LEVEL]
        for layout in grids:
            spim.heads = layout.parts
            weights = attention_of(spim, features, rows, cols)[0]  # (heads, Q, H, W)
            share = 100 * weights[..., torch.from_numpy(on_key)].sum(-1).mean(1).numpy()
            axis.plot(np.full(len(share), layout.parts), share, "o", color=VERMILION, alpha=0.4, markersize=5)
            axis.plot(layout.parts, share.mean(), "_", color="black", markersize=22, markeredgewidth=2)
    axis.axhline(100 * on_key.mean(), color="0.5", linestyle="--", linewidth=1)
    axis.axvline(4, color="0.7", linestyle=":", zorder=0)
    axis.set_xscale("log", base=2)
    axis.set_xticks([layout.parts for layout in grids], [layout.parts for layout in grids])
    axis.set(xlabel="heads in the test", title=f"seed {seed}")
axes[0, 0].set(ylabel="attention on the key, %", ylim=(-3, 103))
handles = [
    plt.Line2D([], [], color=VERMILION, marker="o", linestyle="none", label="a head, mean over queries in fields"),
    plt.Line2D(
        [], [], color="black", marker="_", markersize=14, markeredgewidth=2, linestyle="none", label="mean of the heads"
    ),
    plt.Line2D([], [], color="0.5", linestyle="--", label="uniform attention"),
    plt.Line2D([], [], color="0.7", linestyle=":", label="heads of training"),
]
figure.legend(handles=handles, loc="outside lower center", ncols=4 if seeds > 1 else 2)
plots.show(figure, "Attention on the key of each head over the number of heads in the test, seed by seed.")

# %% [markdown]
# ## 6. And without SPIM?
#
# `interaction="none"`: each tile alone, as in cropping. No tile of 128 px holds a key and a field, so the tiles with fields
# are the same in both twins, pixel by pixel, and whatever is computed of them is the same, too: every field pixel is right
# in one twin and wrong in the other. **The pair accuracy is 0.5, for any weights.** It is a proof, and a test of our code:
# not about 0.5, but 0.5, and the logits equal in every bit.

# %%
table = {}
for size_px in (SCENE_PX, large_px):
    images, labels = batch([0], size_px)
    layout = Layout(size_px // CONTEXT_PX, size_px // CONTEXT_PX)  # tiles of 128 px
    fields = labels[0].eq(1) | labels[0].eq(2)
    for name, model in (("none", none), ("exact+spim, 4 heads", fixed[0])):
        ours = logits(model, images, layout)
        table[name, f"{size_px} px, {layout.parts} tiles"] = {
            "pair accuracy": pair_accuracy(ours, labels),
            "fields alike in both twins, bit for bit": torch.equal(ours[0][:, fields], ours[1][:, fields]),
            "other pixels right": float((ours.argmax(1) == labels)[:, ~fields].float().mean()),
        }
pd.DataFrame(table).T

# %% [markdown]
# ## What you have seen
#
# - SPIM is an attention over all tiles, by an exchange of heads against tokens. The layer itself does not depend on the
#   cut; an encoder that works on each tile alone does.
# - Through it a pixel finds what it needs in another tile. Without it, and with tiles too small, no training helps.
# - The number of heads belongs to the function, as the weights do. Tie it to the number of workers, and the same weights
#   answer differently on another number of them; fix it, and they do not.
#
# ## Exercises
#
# 1. **Predict first.** Train on `Layout(4, 2)` with `heads="world"`. Sketch the curves of section 4 before you draw them.
#    Where will they touch the line of the fixed heads?
# 2. **The published way.** Train with `interaction="spim"` and repeat section 4. With fixed heads the logits now change
#    too: the encoder sees other borders. Which part of the change is the encoder's, which the heads'? (Keep the tiles and
#    change `heads` alone; then the other way round. Are tiles of 32 px a fair test?)
# 3. **By hand.** One head of width $d = 4$, with $q \cdot k = 20$ for the key and 0 for the other $N$ tokens. Which share
#    of the attention does the key get for $N = 255$? And in two heads of width 2, or in four of width 1, which share out
#    $q \cdot k$ evenly? And all three for $N = 4095$? Compare with the two columns of the figure in section 4.
# 4. **Another encoder.** Set `ENCODER = "test_efficientnet"`, `CHANNELS = 48`. The pair accuracy is as high. Why does the
#    attention no longer look at the key, and why can even `interaction="exact"` tell the twins apart now? Print the
#    encoder: which of its layers is global? Then try `interaction="spim"`, whose encoder sees a tile and no more.
# 5. **Which key is mine?** Make twins with `keys=2` (say 192 x 352 px, `context_px=96`, in `Layout(2, 4)`). Half of the
#    keys are vertical in both twins, and a field has to ask the nearest. SPIM has no positional encoding: show that it
#    fails. Then give the network two more bands, `bands=5`, the sine and cosine of $\pi\,$column$\,/\,$width, and train 300
#    steps with 8 heads. What do 1 and 32 heads do to *this* network?
#
# **Read next.** `rsseglab/rest/spim.py` (the layer and its exchange), `rsseglab/rest/model.py` (the four interactions),
# `rsseglab/scenes/twins.py` (what is provable about them), and the notebook *How far does it scale?* for what heads cost.
