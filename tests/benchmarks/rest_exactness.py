"""SPIM against torch's own multi-head attention, and REST with exact tiles against itself in one piece, in float64.

Largest relative difference of outputs, of gradients in the input and in the weights, over 1, 2, 3, 4, 8 tiles and
grids. Bars: 1e-10 each. The tests hold the same on gloo ranks. A minute on two cores.

    python tests/benchmarks/rest_exactness.py [--record]
"""

import argparse
import sys
import time

import torch
from torch import nn
from verdicts import exactly, record, verdict

from rsseglab.rest import REST, SPIM
from rsseglab.spatial import Layout, cut, join

LAYOUTS = [Layout(1), Layout(2), Layout(3), Layout(4), Layout(8), Layout(2, 2), Layout(2, 4), Layout(3, 2)]
NETWORKS = [
    ("test_resnet", "fcn"),
    ("resnet18", "unet"),
    ("convnext_atto", "fpn"),
    ("mobilenetv3_small_050", "fpn"),
]


def relative(ours, theirs):
    """Largest difference, of the largest number of what it is compared with."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def gradients(module):
    """Of all parameters that have one, by name."""
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def step(module, x, weight, layout=None):
    """Output, the input's gradient and the parameters', of the sum of the weighted output."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    y = module(x) if layout is None else join(module(cut(x, layout)))
    (y * weight).sum().backward()
    return y.detach(), x.grad, gradients(module)


def worst(ours, theirs, least=1e-8):
    """Largest relative difference of two steps; gradients that are zero but for rounding are held to the largest."""
    floor = least * max(float(g.abs().max()) for g in theirs[2].values())
    differences = [relative(ours[0], theirs[0]), relative(ours[1], theirs[1])]
    for name, g in theirs[2].items():
        differences.append(float((ours[2][name] - g).abs().max() / g.abs().max().clamp_min(floor)))
    return max(differences)


class Plain(nn.Module):
    """SPIM's equation around `torch.nn.MultiheadAttention`."""

    def __init__(self, spim):
        super().__init__()
        self.norm1, self.norm2, self.ffn = spim.norm1, spim.norm2, spim.ffn
        self.attention = nn.MultiheadAttention(spim.dim, spim.heads, batch_first=True).double()
        self.attention.in_proj_weight, self.attention.in_proj_bias = spim.qkv.weight, spim.qkv.bias
        self.attention.out_proj = spim.out

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        h = self.norm1(tokens)
        y = tokens + self.attention(h, h, h, need_weights=False)[0]
        z = y + self.ffn(self.norm2(y))
        return (tokens + z).transpose(1, 2).reshape(x.shape)


def spim_difference():
    """The layer against the plain twin that shares its weights, under every layout."""
    torch.manual_seed(0)
    spim = SPIM(48, heads=6).double()
    plain = Plain(spim)
    x, weight = torch.randn(2, 2, 48, 24, 17, dtype=torch.float64)
    theirs = step(plain, x, weight)
    names = {id(p): name for name, p in plain.named_parameters()}
    found = {}
    for layout in LAYOUTS:
        y, gx, grads = step(spim, x, weight, layout)
        grads = {names[id(p)]: grads[name] for name, p in spim.named_parameters()}
        found[str(layout)] = worst((y, gx, grads), theirs)
    return max(found.values())


def rest_difference():
    """``exact+spim`` under every layout against one piece, in train mode, for each network."""
    found = {}
    for encoder, decoder in NETWORKS:
        torch.manual_seed(0)
        model = REST(encoder, decoder, 5, "exact+spim", heads=4, strides=(16, 32)).double().train()
        x, weight = torch.randn(2, 3, 128, 96, dtype=torch.float64), torch.randn(2, 5, 128, 96, dtype=torch.float64)
        for module in model.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d)):
                module.p = 0.0  # its numbers are drawn apart in each run
        theirs = step(model, x, weight)
        found[encoder] = max(worst(step(model, x, weight, layout), theirs) for layout in LAYOUTS)
        print(f"{encoder}, {decoder}: {found[encoder]:.1e}", flush=True)
    return max(found.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", action="store_true")
    args, begin = parser.parse_args(), time.perf_counter()
    spim, rest = spim_difference(), rest_difference()
    good = verdict(f"SPIM: {spim:.1e} <= 1e-10", spim <= 1e-10)
    good &= verdict(f"REST, exact+spim: {rest:.1e} <= 1e-10", rest <= 1e-10)
    if args.record:
        configuration = {"layouts": [f"{lay.rows}x{lay.cols}" for lay in LAYOUTS], "networks": NETWORKS}
        claims = {"spim_layer_difference": exactly(spim), "exact_spim_difference": exactly(rest)}
        command = "python tests/benchmarks/rest_exactness.py --record"
        record(
            "benchmark_rest_exactness", command, configuration, {"claims": claims}, (time.perf_counter() - begin) / 60
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
