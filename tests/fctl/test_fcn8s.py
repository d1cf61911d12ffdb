"""FCN-8s in the published form: every size of it, its fixed kernels, weights from files."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rsseglab.errors import UserError
from rsseglab.fctl import FCN8s, FCtL
from rsseglab.fctl import fcn8s as module


def small(monkeypatch):
    """The same network with a narrow head, which would take 470 MB."""
    monkeypatch.setattr(module, "WIDE", 16)


def test_every_size_at_508(monkeypatch):
    small(monkeypatch)
    network, sizes = FCN8s(3, 7).eval(), {}
    for name, part in network.named_modules():
        if isinstance(part, nn.Conv2d | nn.MaxPool2d | nn.ConvTranspose2d):
            part.register_forward_hook(
                lambda _, __, out, name=name: sizes.update({name: (out.shape[1], *out.shape[2:])})
            )
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 508, 508)).shape == (1, 7, 508, 508)
    pools = [f"encoder.features.{k}" for k in (4, 9, 16, 23, 30)]
    channels, sides = (64, 128, 256, 512, 512), (353, 177, 89, 45, 23)
    assert [sizes[name] for name in pools] == [(c, side, side) for c, side in zip(channels, sides, strict=True)]
    assert sizes["encoder.features.0"] == (64, 706, 706)
    assert sizes["decoder.fc.0"][1:] == (17, 17) and sizes["decoder.score32"] == (7, 17, 17)
    ups = [sizes[f"decoder.{name}"] for name in ("up32", "up16", "up8")]
    assert ups == [(7, 36, 36), (7, 74, 74), (7, 600, 600)]


def test_parameters():
    """Of the convolutions and the wide head; and what fusion and attention add to them, 6.30 M."""
    with torch.device("meta"):
        network = FCN8s(3, 7)
        vgg, wide = sum(p.numel() for p in network.encoder.parameters()), 512 * 4096 * 49 + 4096 + 4096 * 4096 + 4096
        scores = sum((c + 1) * 7 for c in (4096, 512, 256))
        assert vgg == 14_714_688
        learned = sum(p.numel() for p in network.decoder.parameters() if p.requires_grad)
        assert learned == wide + scores
    added = [p.numel() for part in ("correlations", "fusion") for p in parts_of(part)]
    assert abs(sum(added) / 1e6 - 6.30) < 0.01


def parts_of(name):
    from rsseglab.fctl import ContextFusion, LocalityAwareCorrelation

    with torch.device("meta"):
        if name == "fusion":
            return list(ContextFusion(512, 3).parameters())
        return [p for _ in range(3) for p in LocalityAwareCorrelation(512).parameters()]


def test_it_is_long_shelhamer_darrell(monkeypatch):
    """Crops, factors and order of the sums, by hand."""
    small(monkeypatch)
    torch.manual_seed(0)
    network = FCN8s(3, 4).double().eval()
    image = torch.randn(1, 3, 65, 90, dtype=torch.float64)
    with torch.no_grad():
        x, pools = F.pad(image, (99, 99, 99, 99)), []
        for k, layer in enumerate(network.encoder.features):
            x = F.conv2d(F.pad(x, (1,) * 4), layer.weight, layer.bias) if isinstance(layer, nn.Conv2d) else layer(x)
            pools += [x] if k in (16, 23, 30) else []
        d = network.decoder
        score = d.score32(d.fc(pools[2]))
        for up, scores, first in ((d.up32, d.score16(pools[1] / 100), 5), (d.up16, d.score8(pools[0] / 1e4), 9)):
            score = up(score)
            score = score + scores[:, :, first : first + score.shape[2], first : first + score.shape[3]]
        expected = d.up8(score)[:, :, 31 : 31 + 65, 31 : 31 + 90]
        assert (network(image) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("factor", [2, 8])
def test_fixed_kernels_interpolate(factor):
    up = module.bilinear(3, factor).double()
    x = torch.randn(1, 3, 6, 7, dtype=torch.float64)
    assert not up.weight.requires_grad
    edge = factor // 2
    inner = up(x)[:, :, edge:-edge, edge:-edge][:, :, factor:-factor, factor:-factor]
    expected = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    assert (inner - expected[:, :, factor:-factor, factor:-factor]).abs().max() < 1e-12


@pytest.mark.parametrize("size", [(32, 32), (65, 33)])
def test_patches_of_any_size(monkeypatch, size):
    small(monkeypatch)
    network = FCtL("vgg16", (1, 2), classes=3).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, *size), torch.zeros(1, 1, 3, *size)).shape == (1, 3, *size)


def test_weights_from_a_file(monkeypatch, tmp_path):
    """torchvision's names; four bands take the three's kernels, repeated."""
    small(monkeypatch)
    source = module.VGG16(3)
    state = {f"features.{name}": value for name, value in source.features.state_dict().items()}
    torch.save(state, tmp_path / "vgg16.pth")
    network = FCN8s(3, 2, tmp_path / "vgg16.pth")
    assert all(
        torch.equal(v, network.encoder.features.state_dict()[k]) for k, v in source.features.state_dict().items()
    )
    monkeypatch.setenv("RSSEGLAB_WEIGHTS", str(tmp_path))
    four = FCN8s(4, 2, "pretrained").encoder.features
    assert torch.allclose(four[0].weight.sum(1), source.features[0].weight[:, [0, 1, 2, 0]].sum(1) * 3 / 4, atol=1e-6)
    torch.save({"other.weight": torch.zeros(1)}, tmp_path / "bad.pth")
    for bad in (tmp_path / "bad.pth", tmp_path / "none.pth"):
        with pytest.raises(UserError, match=r"cannot be loaded|no weights at"):
            FCN8s(3, 2, bad)
