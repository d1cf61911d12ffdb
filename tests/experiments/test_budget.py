"""Estimates of a run against what can be reckoned by hand, and against the files that a run leaves."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rsseglab.experiments import budget as module
from rsseglab.experiments.budget import BATCH, budget, describe
from rsseglab.training.fit import TrainConfig

SCENE = SimpleNamespace(count=3, classes=range(6), height=600, width=400)
CONFIG = TrainConfig(encoder="test_resnet", decoder="fpn", crop_px=64, steps=50, val_every=20, batch_size=4)


class Attention(nn.Module):
    """8 heads of 4 channels."""

    def __init__(self):
        super().__init__()
        self.project = nn.Conv2d(3, 32, 1, bias=False)

    def forward(self, image):
        x = self.project(image).flatten(2).unflatten(1, (8, 4)).mT  # (B, 8, N, 4)
        return F.scaled_dot_product_attention(x, x, x)


def test_operations_of_a_convolution(monkeypatch):
    monkeypatch.setattr(module, "build_network", lambda *_: nn.Conv2d(3, 6, 3, padding=1, bias=False))
    its = budget(CONFIG, [SCENE], [SCENE] * 2, [SCENE])
    a_pixel = 2 * 3 * 3 * 3 * 6
    # The image needs no gradient: backward is the weights' alone, as dear as forward.
    assert its.training_flops == 2 * a_pixel * 64**2 * 4 * 50
    validations, overlap = 3, 4
    assert its.labelling_flops == a_pixel * 600 * 400 * (2 * validations + overlap)
    assert its.hours == pytest.approx((its.training_flops + its.labelling_flops) / its.flops_per_s / 3600)
    assert its.disk_mib == pytest.approx((2 * 3 * 4 * 162 + 600 * 400) / 2**20)
    # Logits of four crops, and the sum's gradient as large; weights, gradients and AdamW's state are next to nothing.
    logits = 4 * 6 * 64**2 * 4 / 2**20
    assert logits < its.memory_mib < 4 * logits


def test_operations_of_an_attention():
    network, n = Attention(), 16 * 16
    shapes = [(BATCH, 3, 16, 16)]
    products = 2 * BATCH * 8 * n * n * 4
    projected = 2 * BATCH * n * 3 * 32
    assert module._count(network, shapes, training=False) == 2 * products + projected
    assert module._count(network, shapes, training=True) == 7 * products + 2 * projected
    # No N x M scores are held.
    assert module._peak(network, shapes) < BATCH * 8 * n * n * 4


def test_tiles_share_time_and_memory():
    whole = budget(CONFIG, [SCENE], [SCENE], [])
    tiles = TrainConfig(**{**CONFIG.__dict__, "method": "rest", "options": {"interaction": "none"}, "spatial": "2x2"})
    cut = budget(tiles, [SCENE], [SCENE], [])
    assert cut.workers == 4 and cut.memory_mib < whole.memory_mib
    assert cut.training_flops == pytest.approx(whole.training_flops, rel=0.05)


def test_published_stages_are_all_counted():
    one = TrainConfig(method="fctl", encoder="test_resnet", decoder="fcn", crop_px=64, options={"contexts": [1, 2, 3]})
    staged = TrainConfig(**{**one.__dict__, "options": {"contexts": [1, 2, 3], "stages": "published"}})
    assert len(module._stages(one)) == 1 and len(module._stages(staged)) == 3
    assert budget(staged, [SCENE], [SCENE], []).training_flops > 1.5 * budget(one, [SCENE], [SCENE], []).training_flops


def test_what_is_told():
    its = module.Budget(3e15, 1e15, 1e12, 2, 3000, 500)
    said = describe("bicor-loveda", its, Path("none/yet"))
    assert "bicor-loveda, an estimate before it starts:" in said and "33 minutes (4 PFLOP at 1e+03 GFLOP/s" in said
    assert "over 2 workers" in said and "2.9 GiB a worker" in said and "500 MiB for checkpoints" in said
    assert torch.is_grad_enabled()
