"""Receptive fields: against the formula, one pixel at a time, and gradients; what sees everything; made Gaussians."""

import math
from itertools import pairwise

import numpy as np
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rsseglab.errors import UserError
from rsseglab.evaluation.receptive_field import (
    EffectiveField,
    ReceptiveField,
    effective_receptive_field,
    receptive_field,
)


def stack(layers, channels=2):
    """Convolutions of (kernel, stride, dilation), then as large as the image again."""
    widths = [1, *[channels] * len(layers)]
    convolutions = [
        nn.Sequential(nn.Conv2d(i, o, k, s, padding=d * (k // 2), dilation=d), nn.BatchNorm2d(o), nn.ReLU())
        for (i, o), (k, s, d) in zip(pairwise(widths), layers, strict=True)
    ]
    return nn.Sequential(*convolutions, nn.Upsample(scale_factor=math.prod(s for _, s, _ in layers))).eval()


def by_formula(layers):
    """The textbook's recursion: with jump j, the field grows by (k - 1) d j and starts (k // 2) d j earlier."""
    size, before, jump = 1, 0, 1
    for k, s, d in layers:
        size, before, jump = size + (k - 1) * d * jump, before + (k // 2) * d * jump, jump * s
    return before + jump - 1, size - 1 - before  # from the last pixel of a cell up, from its first down


LAYER = st.tuples(st.sampled_from([1, 3, 5, 7]), st.sampled_from([1, 2]), st.sampled_from([1, 2, 3]))


@settings(max_examples=25)
@given(st.lists(LAYER, min_size=1, max_size=4))
def test_a_stack_of_convolutions_has_the_textbooks_field(layers):
    top, bottom = by_formula(layers)
    found = receptive_field(stack(layers), 1, multiple_px=16)
    assert found == ReceptiveField(top, bottom, top, bottom)


@pytest.mark.parametrize(
    ("network", "sides"),
    [
        (nn.Conv2d(1, 1, (3, 7), padding=(1, 3)), (1, 1, 3, 3)),
        (nn.Sequential(nn.ZeroPad2d((0, 0, 2, 0)), nn.Conv2d(1, 1, (3, 1))), (2, 0, 0, 0)),  # sees upwards alone
        (nn.Sequential(nn.Conv2d(1, 1, 5, padding=2), nn.MaxPool2d(3, 1, 1), nn.GELU()), (3, 3, 3, 3)),
        (nn.Sequential(nn.AvgPool2d(4), nn.Upsample(scale_factor=4, mode="bilinear")), (5, 5, 5, 5)),
        (nn.Hardswish(), (0, 0, 0, 0)),
    ],
)
def test_known_fields(network, sides):
    assert receptive_field(network, 1, multiple_px=8) == ReceptiveField(*sides)


class Residual(nn.Module):
    """Two paths of different reach, of which one is dead in value: weights of zero see nonetheless."""

    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(1, 3, 3, 4, 1)
        self.up = nn.ConvTranspose2d(3, 2, 4, 4)
        self.near = nn.Conv2d(1, 2, 3, padding=1)
        nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return torch.relu(self.near(x)) * torch.sigmoid(self.up(self.down(x)))


def test_one_pixel_at_a_time_says_the_same():
    network, size = Residual().double(), 24
    reach = np.zeros(4, int)
    for row in range(size):  # each pixel in turn, and all that depends on it
        for col in range(size):
            image = torch.zeros(1, 1, size, size, dtype=torch.float64)
            image[..., row, col] = math.nan
            rows, cols = network(image).isnan().any(dim=(0, 1)).nonzero().T.numpy()
            reach = np.maximum(reach, [(rows - row).max(), (row - rows).max(), (cols - col).max(), (col - cols).max()])
    assert receptive_field(network, 1, multiple_px=4) == ReceptiveField(*map(int, reach))


def test_gradients_of_a_u_net_with_positive_weights_end_where_it_says():
    network = smp.Unet("resnet18", encoder_weights=None, encoder_depth=4, decoder_channels=(16, 8, 8, 8), classes=2)
    found = receptive_field(network.eval(), multiple_px=16)
    # Nothing cancels: positive weights, no biases, norms that only scale, and averages in place of maxima.
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            nn.init.constant_(module.weight, 1 / module.weight[0].numel())
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    network.encoder.maxpool = nn.AvgPool2d(3, 2, 1)
    image = torch.ones(1, 3, 480, 16, dtype=torch.float64, requires_grad=True)
    output = network.double()(image)[0, 0, :, 0]
    sides = np.zeros(2, int)
    for pixel in range(240, 256):  # of a cell
        (gradient,) = torch.autograd.grad(output[pixel], image, retain_graph=True)
        rows = gradient.sum(dim=(0, 1, 3)).nonzero()
        sides = np.maximum(sides, [pixel - int(rows.min()), int(rows.max()) - pixel])
    top, bottom = sides.tolist()
    assert found == ReceptiveField(top, bottom, top, bottom)
    assert (top, bottom) == (151, 136)  # also by hand


class Gate(nn.Module):
    def forward(self, x):
        return x * x.mean(dim=(2, 3), keepdim=True).sigmoid()


class Attention(nn.Module):
    def forward(self, x):
        tokens = x.flatten(2).mT
        return nn.functional.scaled_dot_product_attention(tokens, tokens, tokens).mT.reshape(x.shape)


@pytest.mark.parametrize("network", [Gate(), Attention(), nn.GroupNorm(1, 1), nn.BatchNorm2d(1)])
def test_what_is_global_sees_everything(network):
    everything = ReceptiveField(math.inf, math.inf, math.inf, math.inf)
    behind = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), network)
    assert receptive_field(behind, 1, multiple_px=8, limit_px=64) == everything
    assert everything.radius_px == math.inf


def test_mode_weights_and_statistics_stay():
    network = stack([(3, 1, 1)]).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert receptive_field(network, 1, multiple_px=8, limit_px=64).radius_px == math.inf  # batch statistics
    assert receptive_field(network.eval(), 1, multiple_px=8).radius_px == 1
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_what_cannot_be_measured():
    with pytest.raises(UserError, match=r"an image of \[16, 8\] px gives a map of \[8, 4\]"):
        receptive_field(nn.MaxPool2d(2), 1, multiple_px=8)
    broken = nn.Conv2d(1, 1, 1)
    nn.init.constant_(broken.weight, math.nan)
    with pytest.raises(UserError, match="NaN for an image of zeros"):
        receptive_field(broken, 1, multiple_px=8)


# --- The effective one ---


def test_effective_field_of_a_convolution_is_its_kernel():
    network = nn.Conv2d(2, 1, 5, padding=2)
    field = effective_receptive_field(network, torch.randn(3, 2, 9, 11))
    kernel = network.weight[0].detach().abs().sum(dim=0).double()
    expected = np.zeros((9, 11))
    expected[2:7, 3:8] = kernel / kernel.sum()
    np.testing.assert_allclose(field.magnitude, expected, atol=1e-7)
    assert field.share_within(2) == pytest.approx(1) and field.radius_px(1) == 2
    inner = expected[3:6, 4:7].sum()
    assert field.share_within(1) == pytest.approx(inner)
    assert (field.radius_px(inner - 1e-6), field.radius_px(inner + 1e-6)) == (1, 2)
    with pytest.raises(UserError, match="share is 95; give a number from 0 to 1"):
        field.radius_px(95)


def test_a_stack_of_equal_averages_tends_to_a_gaussian_whose_width_grows_as_the_root_of_depth():
    # Luo et al., section 2.2: n uniform kernels of side k add up to a variance of n (k^2 - 1) / 12.
    for depth in (4, 16, 36):
        network = nn.Sequential(*[nn.Conv2d(1, 1, 3, padding=1, bias=False) for _ in range(depth)])
        for layer in network:
            nn.init.constant_(layer.weight, 1 / 9)
        field = effective_receptive_field(network, torch.ones(1, 1, 101, 101))
        rows = field.magnitude.sum(axis=1)
        assert rows @ (np.arange(101) - 50.0) ** 2 == pytest.approx(depth * 8 / 12, rel=1e-5)
        # Theory reaches `depth` px, practice some root of it: 95 % of a square is 97.5 % of each axis.
        assert field.radius_px(0.95) == pytest.approx(2.24 * math.sqrt(depth * 8 / 12), abs=1)
    assert field.radius_px(0.95) < depth / 3


def test_effective_is_within_theoretical_and_means_over_images():
    torch.manual_seed(0)
    network = stack([(3, 2, 1), (5, 1, 1), (3, 2, 2)], 4)
    images = torch.randn(2, 1, 64, 64)
    both = effective_receptive_field(network, images)
    assert both.radius_px(1) <= receptive_field(network, 1, multiple_px=16).radius_px
    x = images.clone().requires_grad_()
    network(x)[:, :, 32, 32].amax(dim=1).sum().backward()
    expected = x.grad.abs().sum(dim=(0, 1)).double()
    np.testing.assert_allclose(both.magnitude, expected / expected.sum(), atol=1e-7)
    assert isinstance(both, EffectiveField) and both.magnitude.sum() == pytest.approx(1)
