import pytest
import timm
import torch
from torch import nn

from rsseglab import encoders
from rsseglab.decoders import DECODERS, create_network
from rsseglab.errors import UserError

SMALL = {"dpt": "vit_tiny_patch16_224", "fcn": "resnet18"}


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_gives_logits_of_the_image_size(decoder):
    network = create_network(SMALL.get(decoder, "mobilenetv3_small_050"), decoder, bands=5, classes=3).eval()
    assert network(torch.randn(2, 5, 224, 224)).shape == (2, 3, 224, 224)


@pytest.mark.parametrize(
    "encoder", ["resnet18", "convnext_atto", "swinv2_cr_tiny_ns_224", "efficientnet_lite0", "mit_b0", "pvt_v2_b0"]
)
def test_families_of_encoders(encoder):
    network = create_network(encoder, "fpn", bands=4, classes=2).eval()
    assert network(torch.randn(1, 4, 224, 224)).shape == (1, 2, 224, 224)


def test_fcn_adds_the_skips_of_strides_8_and_16():
    network = create_network("resnet18", "fcn", 3, 2).eval()
    image = torch.randn(1, 3, 64, 64)
    f8, f16, f32 = network.encoder(image)[-3:]
    assert [64 // f.shape[-1] for f in (f8, f16, f32)] == [8, 16, 32]
    up = nn.functional.interpolate
    score = [layer(f) for layer, f in zip(network.scores, (f8, f16, f32), strict=True)]
    s16 = score[1] + up(score[2], scale_factor=2, mode="bilinear")
    s8 = score[0] + up(s16, scale_factor=2, mode="bilinear")
    assert torch.allclose(network(image), up(s8, scale_factor=8, mode="bilinear"), atol=1e-6)


def test_weights_of_a_file_are_loaded_and_adapted_to_the_bands(tmp_path, monkeypatch):
    torch.manual_seed(0)
    source = timm.create_model("mobilenetv3_small_050")  # a classifier, as downloaded weights are
    torch.save(source.state_dict(), tmp_path / "mobilenetv3_small_050.pth")
    monkeypatch.setenv("RSSEGLAB_WEIGHTS", str(tmp_path))
    kernel = source.conv_stem.weight
    rgb = create_network("mobilenetv3_small_050", "unet", 3, 2, "pretrained").encoder.model
    assert torch.equal(rgb.conv_stem.weight, kernel)
    assert torch.equal(rgb.blocks[1][0].conv_pw.weight, source.blocks[1][0].conv_pw.weight)
    six = create_network("mobilenetv3_small_050", "unet", 6, 2, tmp_path / "mobilenetv3_small_050.pth").encoder.model
    # Kernels repeated over six bands and halved: a grey image gives what it gave in three bands.
    assert torch.allclose(six.conv_stem.weight, torch.cat([kernel, kernel], 1) / 2)


def test_weights_that_are_not_there_are_said_plainly(tmp_path, monkeypatch):
    monkeypatch.delenv("RSSEGLAB_WEIGHTS", raising=False)
    with pytest.raises(UserError, match="no weights at"):
        create_network("resnet18", "unet", 3, 2, tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match=r"text.pth cannot be loaded .*--weights none"):
        create_network("resnet18", "unet", 3, 2, tmp_path / "text.pth")

    torch.save({"some.other": torch.ones(1)}, tmp_path / "foreign.pth")
    with pytest.raises(UserError, match=r"foreign.pth are not of 'resnet18': no parameter has its name"):
        create_network("resnet18", "unet", 3, 2, tmp_path / "foreign.pth")

    def no_network(*args, **kwargs):
        raise OSError("Name or service not known")

    built = encoders.timm.create_model
    monkeypatch.setattr(
        encoders.timm, "create_model", lambda *a, **k: no_network() if k.get("pretrained") else built(*a, **k)
    )
    with pytest.raises(UserError, match=r"weights 'pretrained' of 'resnet18' cannot be loaded \(Name or service"):
        create_network("resnet18", "unet", 3, 2, "pretrained")
    with pytest.raises(UserError, match="are for the encoder 'resnet18', not 'resnet50'"):
        create_network("resnet50", "unet", 3, 2, "ResNet18_Weights.SENTINEL2_RGB_MOCO")
    with pytest.raises(UserError, match=r"nearest names are .*ResNet18_Weights.SENTINEL2_RGB_MOCO"):
        create_network("resnet18", "unet", 3, 2, "ResNet18_Weights.SENTINEL2_RGB_MOC")


def test_torchgeo_weights_by_name(monkeypatch):
    from torchgeo.models import ResNet18_Weights

    torch.manual_seed(0)
    state = timm.create_model("resnet18", in_chans=3).state_dict()
    monkeypatch.setattr(ResNet18_Weights, "get_state_dict", lambda self, progress: state)
    network = create_network("resnet18", "unet", 3, 2, "ResNet18_Weights.SENTINEL2_RGB_MOCO")
    assert torch.equal(network.encoder.model.layer4[1].conv2.weight, state["layer4.1.conv2.weight"])


def test_unknown_names_get_the_nearest():
    with pytest.raises(UserError, match=r"unknown encoder 'resnet19'; the nearest names are .*resnet18"):
        create_network("resnet19", "unet", 3, 2)
    with pytest.raises(UserError, match=r"unknown decoder 'unet2'; the nearest names are unet"):
        create_network("resnet18", "unet2", 3, 2)
    with pytest.raises(UserError, match="does not go with decoder 'unet'"):
        create_network("vit_tiny_patch16_224", "unet", 3, 2)
