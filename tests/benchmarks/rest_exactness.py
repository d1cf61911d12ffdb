"""SPIM against torch's own multi-head attention, and REST with exact tiles against itself in one piece, in float64.

Largest relative difference (2-norm) of outputs, of gradients in the input and in the weights, and of buffers, over 1,
2, 3, 4, 8 tiles and grids, by the measure of the engine's tests. Bars: 1e-10 each. The tests hold the same on gloo
ranks. Some minutes on two cores.

    python tests/benchmarks/rest_exactness.py [--record]
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from timm.layers import DropPath
from torch import nn
from verdicts import exactly, record, verdict

from rsseglab.rest import REST, SPIM
from rsseglab.spatial import Layout

LAYOUTS = [Layout(1), Layout(2), Layout(3), Layout(4), Layout(8), Layout(2, 2), Layout(2, 4), Layout(3, 2)]
NETWORKS = [
    ("test_resnet", "fcn"),
    ("resnet18", "unet"),
    ("convnext_atto", "fpn"),
    ("mobilenetv3_small_050", "fpn"),
]


sys.path.insert(0, str(Path(__file__).parents[1] / "spatial"))
from equality import errors, results  # noqa: E402


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
    """The layer under every layout against the plain twin that has its weights."""
    torch.manual_seed(0)
    spim = SPIM(48, heads=6).double()
    plain = Plain(spim)
    x = torch.randn(2, 48, 24, 17, dtype=torch.float64)
    y, gx, grads, _ = results(plain, x)
    by_name = dict(zip(plain.state_dict(), grads, strict=True))  # parameters alone: it has no buffers
    same = {id(p): name for name, p in plain.named_parameters()}
    theirs = (y, gx, [by_name[same[id(p)]] for p in spim.parameters()], [])
    return max(max(errors(results(spim, x, layout), theirs)) for layout in LAYOUTS)


def rest_difference():
    """``exact+spim`` under every layout against one piece, in train mode, for each network."""
    found = {}
    for encoder, decoder in NETWORKS:
        torch.manual_seed(0)
        model = REST(encoder, decoder, 5, "exact+spim", heads=4, strides=(16, 32)).double().train()
        for module in model.modules():
            if isinstance(module, (nn.Dropout, nn.Dropout2d, DropPath)):
                module.eval()  # its coins are drawn apart in each run
        x = torch.randn(2, 3, 128, 96, dtype=torch.float64)
        theirs = results(model, x)
        found[encoder] = max(max(errors(results(model, x, layout), theirs)) for layout in LAYOUTS)
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
