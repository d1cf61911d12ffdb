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
# # A scene larger than memory
#
# **The question.** A scene of 20000 x 20000 pixels, one laptop, no cluster. Cutting it in crops leaves seams, and with 50 %
# overlap computes most pixels three to four times. Can a network label it *whole*, exactly, in memory that does not grow
# with the scene's height, and compute nothing twice?
#
# **It assumes** *One scene over many workers* (tiles, halos). **It takes** about a minute on a laptop with two cores, and 2 GiB
# of memory. No data is needed: the scenes are noise, as neither memory nor equality looks at what is shown.

# %% tags=["parameters"] nbmake={"mock": {"width": 96, "heights": [128, 256], "learn_px": 64}}
width = 512  # columns of the scenes, px
heights = [512, 1024, 2048]  # rows of the scenes of section 3, px
learn_px = 192  # side of the scene of section 5, px

# %%
import matplotlib.pyplot as plt
import pandas as pd
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F

from rsseglab import plots
from rsseglab.measure import Measure
from rsseglab.spatial import stream

COLORS = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in plots.OKABE_ITO]
BLUE, ORANGE, GREEN, SKY, VERMILION, PURPLE = COLORS[:6]
MIB = 2**20


def network(encoder="resnet18", decoder=smp.Unet):
    """A stock network with random weights."""
    torch.manual_seed(0)
    return decoder(encoder, encoder_weights=None, classes=5).to(memory_format=torch.channels_last).eval()


def scene(height, dtype=torch.float32):
    """A scene, and a function that reads some of its rows, as from a file."""
    image = torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return image, lambda row0, row1: image[:, :, row0:row1].contiguous(memory_format=torch.channels_last)


# %% [markdown]
# ## 1. The idea: rows come in at the top, labels come out
#
# A row of a 3 x 3 convolution's output is made of three rows of its input. To have row 100 of the output, rows 99 to 101 of
# the input must be there; row 98 is never needed again. So if the scene is read from top to bottom, every layer has to keep
# a few rows only: its **line buffer**. Cameras and video chips have worked like this for decades. In a deep network each
# layer waits for the one before it, so the layers work in a staggered row: when the output's row 100 is ready, the first
# layer is some hundred rows ahead. How far ahead is the network's **reach**.
#
# `stream.plan` finds all of this out without looking at a pixel: it runs the network once on a scene that has a size and no
# values, cut in thin bands of rows, and writes down which operation needs which bands of which others.

# %%
model = network()
tall = stream.plan(model, heights[-1], width, 3, rows=64 if width > 100 else 16)
print(tall)

# %% [markdown]
# The table says which layers' results take the memory, at most and at the worst moment of all. The picture shows that
# moment half way down the scene: for each layer, from the image at the top to the logits at the bottom, the bands that are
# held. Left of the dashed line the scene is labelled.

# %%
plots.show(tall.plot(), "Line buffers of a network: rows that each layer holds while the scene streams through.")

# %% [markdown]
# Three things to see. The *stair*: deeper layers are further behind, as each waits for the rows below. The *long bars*: the
# encoder's maps that the decoder takes up again (skip connections) have to wait until the decoder comes by; they are the
# dearest buffers. And the *white*: most of the scene is in no layer at all.
#
# ## 2. Is it exact?
#
# The answer should be that of the whole-scene call, to rounding. In 64-bit numbers rounding is some $10^{-15}$.

# %%
rows_of = {"resnet18, U-Net": network(), "mit_b0, SegFormer": network("mit_b0", smp.Segformer)}
table = {}
for name, each in rows_of.items():
    each = each.double()
    image, read = scene(heights[0], torch.float64)
    with torch.no_grad():
        whole = each(image)
    plan = stream.plan(each, heights[0], width, 3, rows=32)
    ours = torch.cat([band for _, _, band in plan.run(read)], 2)
    table[name] = {
        "largest difference / largest logit": f"{(ours - whole).abs().max() / whole.abs().max():.0e}",
        "pixels whose class differs": int((ours.argmax(1) != whole.argmax(1)).sum()),
        "passes": plan.passes,
    }
model.float()
pd.DataFrame(table).T

# %% [markdown]
# Nothing was approximated: no overlap, no blending, no halo that is "large enough". Each number was computed once, from all
# the numbers that it depends on.
#
# ## 3. Does memory stay where it is?
#
# Measured now: the process's memory above what stood before, for scenes of growing height, once through the network whole,
# once streamed. In both cases the logits are turned into labels at once.

# %%
measured = []
for height in heights:
    image, read = scene(height)
    with torch.inference_mode(), Measure() as cost:
        model(image).argmax(1)
    measured.append((height, "whole", cost.peak_mib, cost.seconds))
    with Measure() as cost:
        plan = stream.plan(model, height, width, 3, rows=64 if width > 100 else 16)
        for _, _, band in plan.run(read):
            band.argmax(1)
    measured.append((height, "streamed", cost.peak_mib, cost.seconds))
    measured.append((height, "the plan", plan.peak_bytes / MIB, 0))
measured = pd.DataFrame(measured, columns=["height", "way", "MiB", "seconds"])

figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
for way, colour, style in (("whole", VERMILION, "o-"), ("streamed", BLUE, "s-"), ("the plan", SKY, "^--")):
    its = measured[measured["way"] == way]
    axes[0].plot(its["height"], its["MiB"], style, color=colour, label=way)
    if way != "the plan":
        axes[1].plot(its["height"], its["seconds"], style, color=colour, label=way)
axes[0].set(xlabel=f"rows of a scene {width} px wide", ylabel="peak memory, MiB", ylim=(0, None))
axes[1].set(xlabel=f"rows of a scene {width} px wide", ylabel="seconds, planning included", ylim=(0, None))
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
plots.show(
    figure, "Peak memory and seconds over the scene's rows: streaming stays flat in memory, the whole scene grows."
)

# %% [markdown]
# The whole-scene call takes what the scene's area asks for; streaming stops growing once the scene is taller than the
# network's reach. (The plan counts tensors; the process holds besides what kernels work with.) Time grows with the area in
# both: nothing is computed twice.
#
# `rsseglab predict --stream` does this to rasters, and goes on where it was killed.
#
# ## 4. When one number needs the whole scene
#
# Some networks ask for the mean over *all* of the scene: squeeze-and-excitation, group norm, the image pooling of DeepLab.
# Before such a mean is known, no row can go on. So the scene is gone through once up to there, a first **pass**; what later
# rows need from before the mean has to wait. That is no longer a few bands, it is the whole map. If it does not fit in
# memory, it has to wait on disk. Two networks, the second with 16 blocks of squeeze-and-excitation:

# %%
plans = {}
for name, each in {"resnet18": network(), "efficientnet-b0": network("efficientnet-b0")}.items():
    free = stream.plan(each, heights[-1], width, 3)
    bound = stream.plan(each, heights[-1], width, 3, memory_mib=0.6 * free.peak_bytes / MIB)
    for how, plan in (("no bound", free), ("bound", bound)):
        plans[name, how] = {
            "passes": plan.passes,
            "memory, MiB": round(plan.peak_bytes / MIB, 1),
            "disk, MiB": round(plan.disk_bytes / MIB, 1),
            "written, MiB": round(plan.written_bytes / MIB, 1),
        }
pd.DataFrame(plans).T

# %% [markdown]
# Where memory is bound, the plan moves to disk what is read last: as it knows the whole order beforehand, it can do the best
# that is possible (Belady, 1966). The ResNet's bound is hopeless in one sense: its buffers are needed again and again, so
# they travel. For a network without global operations the cure is thinner bands, not a disk.
#
# Attention over all tokens is a global operation, too: keys of all rows have to be there before the first row can be
# answered. They are small where they are reduced first, as in SegFormer.
#
# ## 5. Learning from it
#
# A gradient needs the forward pass's activations, and a whole scene's are the dearest of all. Written down together,
# forward and backward pass can be done band by band as well. With norms that use *running* statistics (eval mode) the
# activations of some bands are enough: twice the network's reach, once for the way there and once for the way back. Batch
# norm in train mode is a global operation in every layer, there and back. Gradients are checked on the smallest scene, the
# others are planned only:

# %%
label = torch.randint(0, 5, (1, learn_px, width), generator=torch.Generator().manual_seed(2))
image, read = scene(learn_px, torch.float64)
rows = []
for mode in ("running statistics", "batch statistics"):
    learner = network().double().train(mode == "batch statistics")
    loss = F.cross_entropy(learner(image), label)
    loss.backward()
    wanted = {name: p.grad.clone() for name, p in learner.named_parameters()}
    learner = network().double().train(mode == "batch statistics")
    plan = stream.plan_gradients(learner, learn_px, width, 3, rows=32)
    ours = plan.backward(read, lambda row0, row1: label[:, row0:row1])
    floor = max(float(g.norm()) for g in wanted.values()) * 1e-6
    worst = max(
        float((p.grad - wanted[name]).norm() / wanted[name].norm().clamp_min(floor))
        for name, p in learner.named_parameters()
    )
    for height in (learn_px, 8 * learn_px, 16 * learn_px):
        its = stream.plan_gradients(network().train(mode == "batch statistics"), height, width, 3, rows=32)
        rows.append(
            (mode, height, its.passes, round(its.peak_bytes / MIB), f"{worst:.0e}" if height == learn_px else "")
        )
pd.DataFrame(rows, columns=["norms", "rows", "passes", "memory, MiB", "worst gradient's relative error"])

# %% [markdown]
# Both give the gradients of the whole scene. But with batch statistics all activations wait, and memory (or disk) grows with
# the scene again. That is a good reason to fine-tune with frozen statistics, or to use a norm that looks at one position at
# a time.
#
# ## What you have seen
#
# - A network needs a few rows of each of its maps at a time: line buffers. How many is the network's reach.
# - Streaming is the whole-scene call, exactly; its memory grows with the scene's width and the network's reach.
# - Skip connections are what costs: they wait for the decoder.
# - A global operation ends a pass, and what waits for it goes to disk. A plan tells beforehand how often and how much.
#
# ## Exercises
#
# 1. **Reach, by hand.** Take `nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 5, stride=2, padding=2),
#    nn.Conv2d(8, 4, 3, padding=1))`. How many rows of the image does one row of the output need, and how many of them lie below
#    it? Work it out from the last layer to the first, then ask `stream.plan(..., rows=1).reach`. Why is the plan's reach larger
#    with `rows=32`?
# 2. **The dearest buffer.** In the table of section 1: which layer holds most at the worst moment, and why that one? Take a
#    U-Net without its first skip connection (`decoder_channels` and `encoder_depth` of smp), or an FPN. By how much does memory
#    fall?
# 3. **Thin or thick bands?** Plan with `rows` of 16, 32, 64, 128, 256, and run each. Draw memory and seconds. Why does neither
#    end at a good place?
# 4. **Wide scenes.** Memory grows with the width. A scene of 40000 x 2000 px can be streamed along either side. What would you
#    do, and is the answer the same? (Hint: `image.transpose(2, 3)`, and what a convolution's weights would have to be.)
# 5. **Passes.** How many passes does DeepLabV3+ take, and a network with `nn.GroupNorm` in place of each batch norm? Count
#    before you plan.
# 6. **Cropping, priced.** A reach of $r$ rows and columns on every side: how wide an overlap would crops of 512 px need to be
#    exact? How often would each pixel be computed then? Compare with 50 %.
#
# **Read next.** `rsseglab/spatial/lazy.py` (what is written down), `rsseglab/spatial/schedule.py` (order, disk),
# `rsseglab/spatial/stream.py` (plans), `rsseglab/inference/stream.py` (rasters, and going on after a kill).
