from urllib.error import URLError

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torchvision
from equality import same
from torch import nn

from rsseglab.decoders import DECODERS, create_network
from rsseglab.encoders import band_wavelengths, foundation
from rsseglab.encoders.foundation import WavelengthPatchEmbed
from rsseglab.encoders.pyramid import SimpleFeaturePyramid
from rsseglab.encoders.wavelengths import CENTRES_UM, check_wavelengths
from rsseglab.errors import UserError
from rsseglab.spatial import Layout

SMALL = {"dpt": "vit_tiny_patch16_224", "fcn": "resnet18"}


@pytest.mark.parametrize("decoder", DECODERS)
def test_every_decoder_gives_logits_of_the_image_size(decoder):
    network = create_network(SMALL.get(decoder, "mobilenetv3_small_050"), decoder, bands=5, classes=3).eval()
    assert network(torch.randn(2, 5, 224, 224)).shape == (2, 3, 224, 224)


ANY_SIZE = [
    "resnet18",
    "convnext_atto",
    "efficientnet_lite0",
    "mit_b0",
    "pvt_v2_b0",
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "swinv2_cr_tiny_ns_224",
    "vit_tiny_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_small_patch32_224",
]


@pytest.mark.parametrize("encoder", ANY_SIZE)
def test_families_of_encoders_take_images_of_any_size(encoder):
    network = create_network(encoder, "fpn", bands=4, classes=2).eval()
    for size in ((64, 96), (160, 32)):
        image = torch.randn(1, 4, *size)
        assert network(image).shape == (1, 2, *size)
        maps = network.encoder(image)
        assert [y.shape[1] for y in maps] == list(network.encoder.out_channels)
        assert [(size[0] / y.shape[2], size[1] / y.shape[3]) for y in maps] == [(2**n, 2**n) for n in range(6)]


def test_windows_move_at_every_stage_whatever_the_size_in_the_name():
    # Built for 224 px, timm would leave the windows of the last stage, 7 x 7 there, where they are.
    stages = create_network("swin_tiny_patch4_window7_224", "unet", 3, 2).encoder.model
    assert all(stages[name].blocks[1].shift_size == (3, 3) for name in stages.return_layers)


def test_fcn_adds_the_skips_of_strides_8_and_16():
    network = create_network("resnet18", "fcn", 3, 2).eval()
    image = torch.randn(1, 3, 64, 64)
    f8, f16, f32 = network.encoder(image)[-3:]
    assert [64 // f.shape[-1] for f in (f8, f16, f32)] == [8, 16, 32]
    up = nn.functional.interpolate
    score = [layer(f) for layer, f in zip(network.decoder.scores, (f8, f16, f32), strict=True)]
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

    built = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *a, **k: no_network() if k.get("pretrained") else built(*a, **k))
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
    with pytest.raises(UserError, match=r"does not go with decoder 'deeplabv3' \(a plain ViT cannot be dilated"):
        create_network("vit_tiny_patch16_224", "deeplabv3", 3, 2)
    with pytest.raises(UserError, match="does not go with decoder 'dpt'"):
        create_network("mit_b0", "dpt", 3, 2)


def test_simple_feature_pyramid_against_loops():
    torch.manual_seed(0)
    pyramid = SimpleFeaturePyramid(8, patch_px=16, strides=(4, 8, 16, 32)).double()
    assert pyramid.out_channels == [2, 4, 8, 8]
    x = torch.randn(1, 8, 4, 6, dtype=torch.float64)

    def deconvolved(x, layer):  # each pixel becomes 2 x 2 pixels, by its own matrix each
        y = torch.empty(1, layer.out_channels, 2 * x.shape[2], 2 * x.shape[3], dtype=x.dtype)
        for i in range(y.shape[2]):
            for j in range(y.shape[3]):
                y[0, :, i, j] = layer.weight[:, :, i % 2, j % 2].T @ x[0, :, i // 2, j // 2] + layer.bias
        return y

    first, norm, _, second = pyramid.levels[0]
    y = deconvolved(x, first)
    mean, variance = y.mean(1, keepdim=True), y.var(1, keepdim=True, unbiased=False)
    y = nn.functional.gelu((y - mean) / (variance + norm.eps).sqrt())
    pooled = torch.stack([x[:, :, i : i + 2, j : j + 2].amax((2, 3)) for i in (0, 2) for j in (0, 2, 4)], -1)
    expected = [deconvolved(y, second), deconvolved(x, pyramid.levels[1][0]), x, pooled.view(1, 8, 2, 3)]
    for map_, wanted in zip(pyramid(x), expected, strict=True):
        torch.testing.assert_close(map_, wanted, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="patches of 12 px"):
        SimpleFeaturePyramid(8, patch_px=12, strides=(4,))


@pytest.fixture
def shallow(monkeypatch):
    """DOFA and ScaleMAE with four blocks and few channels."""
    small = {"patch_size": 16, "embed_dim": 64, "depth": 4, "num_heads": 2}
    monkeypatch.setitem(foundation.DOFA_SIZES, "dofa_base_patch16_224", small)
    monkeypatch.setitem(foundation.SCALEMAE_SIZES, "scalemae_large_patch16", small)
    return small


def test_dofa_is_torchgeos(shallow, tmp_path):
    from torchgeo.models.dofa import DOFA

    torch.manual_seed(0)
    theirs = DOFA(**shallow).eval()
    nn.init.normal_(theirs.pos_embed, std=0.5)  # zeros in torchgeo, until weights are loaded
    file = tmp_path / "dofa_base_patch16_224.pth"
    torch.save(theirs.state_dict(), file)
    um = [0.665, 0.56, 0.49, 0.842, 1.61]
    network = create_network("dofa_base_patch16_224", "upernet", 5, 2, file, wavelengths_um=um).eval()
    image = torch.randn(2, 5, 224, 224)
    with torch.no_grad():
        *_, stride16, stride32 = network.encoder(image)
        torch.testing.assert_close(theirs.fc_norm(stride16.mean((2, 3))), theirs.forward_features(image, um))
        assert torch.equal(stride32, nn.functional.max_pool2d(stride16, 2))
    assert network.encoder.model.blocks[1].attn.qkv.weight.equal(theirs.blocks[1].attn.qkv.weight)

    # Wavelengths travel with the state, as bands do not say them.
    other = create_network("dofa_base_patch16_224", "upernet", 5, 2).eval()
    assert not torch.allclose(other(image), network(image))
    other.load_state_dict(network.state_dict())
    assert torch.equal(other(image), network(image))


@pytest.mark.parametrize("name", ["dofa_small_patch16_224", "dofa_base_patch16_224", "scalemae_large_patch16"])
def test_foundation_models_have_torchgeos_parameters(name):
    from torchgeo.models import get_model

    with torch.device("meta"):
        theirs = {key: value.shape for key, value in get_model(name).state_dict().items()}
        ours = {key: value.shape for key, value in timm.create_model(name).state_dict().items()}
    computed = {"gsd_m", "patch_embed.wavelengths_um"}
    assert ours.keys() - theirs.keys() <= computed
    unread = ("norm.", "fc_norm.", "head.", "pos_embed")
    assert all(key.startswith(unread) for key in theirs.keys() - ours.keys())
    assert all(ours[key] == theirs[key] for key in ours.keys() & theirs.keys())


def test_scalemae_is_torchgeos_and_its_positions_are_metres(shallow, tmp_path):
    from torchgeo.models.scale_mae import ScaleMAE

    torch.manual_seed(0)
    theirs = ScaleMAE(res=0.3, **shallow).eval()
    torch.save(theirs.state_dict(), tmp_path / "mae.pth")
    network = create_network("scalemae_large_patch16", "dpt", 3, 2, tmp_path / "mae.pth", gsd_m=0.3).eval()
    image = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        maps, prefix = network.encoder(image)
        tokens = torch.cat([prefix[-1], maps[-1].flatten(2).transpose(1, 2)], 1)
        torch.testing.assert_close(theirs.norm(tokens), theirs.forward_features(image), atol=1e-5, rtol=1e-4)

    # A patch's embedding: sines and cosines of its column, then of its row, both in metres.
    x = network.encoder.model._pos_embed(torch.zeros(1, 3, 5, 64))[0, 1:].view(3, 5, 64)
    for row, column in ((0, 0), (2, 4), (1, 3)):
        rates = [10000 ** -(k / 16) for k in range(16)]
        for start, metres in ((0, 0.3 * column), (32, 0.3 * row)):
            turns = torch.tensor([metres * rate for rate in rates])
            expected = torch.cat([turns.sin(), turns.cos()])
            assert torch.allclose(x[row, column, start : start + 32], expected, atol=1e-6)
    assert network(torch.randn(1, 3, 64, 96)).shape == (1, 2, 64, 96)


SWINS = [("swin_t", "swin_tiny_patch4_window7_224", 224), ("swin_v2_t", "swinv2_tiny_window8_256", 256)]


@pytest.mark.parametrize("torchvisions, timms, size", SWINS)
def test_weights_of_torchvisions_swin_give_its_maps(torchvisions, timms, size, tmp_path):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, torchvisions)(weights=None).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith(("qkv.bias", "norm1.bias", "logit_scale")):
            nn.init.normal_(parameter, std=0.5)  # else zero or equal, and any order would do
    torch.save(theirs.state_dict(), tmp_path / "swin.pth")
    encoder = create_network(timms, "unet", 3, 2, tmp_path / "swin.pth").encoder.eval()
    x = image = torch.randn(1, 3, size, size)
    with torch.no_grad():
        *maps, last = encoder(image)[2:]
        for stage, ours in enumerate(maps):
            x = theirs.features[2 * stage + 1](theirs.features[2 * stage](x))
            torch.testing.assert_close(ours, x.permute(0, 3, 1, 2), atol=2e-4, rtol=1e-3)
        # The last stage has one window at this size: torchvision leaves it in place, and so would timm.
        for block in encoder.model.layers_3.blocks:
            block.shift_size = (0, 0)
        x = theirs.features[7](theirs.features[6](x))
        torch.testing.assert_close(encoder(image)[-1], x.permute(0, 3, 1, 2), atol=2e-4, rtol=1e-3)
        assert not torch.allclose(last, encoder(image)[-1], atol=1e-2)


def test_weights_of_a_plain_vit_are_loaded_by_every_decoder(tmp_path):
    torch.manual_seed(0)
    source = timm.create_model("vit_tiny_patch16_224")
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        wanted = source.eval().forward_intermediates(image, indices=[2, 11], intermediates_only=True)
        maps, _ = create_network("vit_tiny_patch16_224", "dpt", 3, 2, tmp_path / "vit.pth").eval().encoder(image)
        torch.testing.assert_close([maps[0], maps[3]], wanted)
        pyramid = create_network("vit_tiny_patch16_224", "fpn", 3, 2, tmp_path / "vit.pth").eval().encoder(image)
        torch.testing.assert_close(pyramid[4], wanted[1])


def test_weights_of_14_px_patches_are_resampled_to_16(tmp_path):
    torch.manual_seed(0)
    source = timm.create_model("vit_small_patch14_dinov2", img_size=224)
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    model = create_network("vit_small_patch14_dinov2", "fpn", 3, 2, tmp_path / "vit.pth").encoder.model
    assert model.patch_embed.proj.weight.shape[-2:] == (16, 16)
    grown = timm.layers.resample_patch_embed(source.patch_embed.proj.weight.detach(), [16, 16])
    torch.testing.assert_close(model.patch_embed.proj.weight.detach(), grown)
    assert torch.equal(model.blocks[3].mlp.fc1.weight, source.blocks[3].mlp.fc1.weight)


def test_weights_of_smps_own_encoders(tmp_path):
    torch.manual_seed(0)
    source = smp.encoders.get_encoder("mit_b0", weights=None)
    torch.save(source.state_dict(), tmp_path / "mit.pth")
    kernel = source.patch_embed1.proj.weight
    encoder = create_network("mit_b0", "fpn", 6, 2, tmp_path / "mit.pth").encoder
    assert torch.allclose(encoder.patch_embed1.proj.weight, torch.cat([kernel, kernel], 1) / 2)
    assert torch.equal(encoder.block2[1].mlp.fc1.weight, source.block2[1].mlp.fc1.weight)


def test_weights_of_other_bands_fit_those_bands_alone(tmp_path):
    torch.manual_seed(0)
    source = timm.create_model("resnet18", in_chans=13)
    torch.save(source.state_dict(), tmp_path / "s2.pth")
    model = create_network("resnet18", "unet", 13, 2, tmp_path / "s2.pth").encoder.model
    assert torch.equal(model.conv1.weight, source.conv1.weight)
    with pytest.raises(UserError, match=r"s2.pth are made for 13 bands, and cannot be turned into 4; give the 13"):
        create_network("resnet18", "unet", 4, 2, tmp_path / "s2.pth")


def test_torchgeo_weights_in_the_folder_are_found_by_the_name_of_their_address(tmp_path, monkeypatch):
    from torchgeo.models import ResNet18_Weights, ViTSmall16_Weights

    state = timm.create_model("resnet18", in_chans=13).state_dict()
    address = ResNet18_Weights.SENTINEL2_ALL_MOCO.url
    torch.save(state, tmp_path / address.rsplit("/", 1)[1])
    monkeypatch.setenv("RSSEGLAB_WEIGHTS", str(tmp_path))
    network = create_network("resnet18", "unet", 13, 2, "ResNet18_Weights.SENTINEL2_ALL_MOCO")
    assert torch.equal(network.encoder.model.conv1.weight, state["conv1.weight"])

    # torchgeo's transformers come without their last norm.
    state = timm.create_model("vit_small_patch16_224", in_chans=13).state_dict()
    kept = {key: value for key, value in state.items() if not key.startswith(("norm.", "head."))}
    monkeypatch.setattr(ViTSmall16_Weights, "get_state_dict", lambda self, progress: kept)
    network = create_network("vit_small_patch16_224", "dpt", 13, 2, "ViTSmall16_Weights.SENTINEL2_ALL_MOCO")
    assert torch.equal(network.encoder.model.blocks[7].mlp.fc2.bias, state["blocks.7.mlp.fc2.bias"])


def test_foundation_weights_that_cannot_be_downloaded(shallow, tmp_path, monkeypatch):
    from torchgeo.models import DOFABase16_Weights

    def offline(self, progress):
        raise URLError("Name or service not known")

    monkeypatch.delenv("RSSEGLAB_WEIGHTS", raising=False)
    monkeypatch.setattr(DOFABase16_Weights, "get_state_dict", offline)
    for weights in ("pretrained", "DOFABase16_Weights.DOFA_MAE"):
        with pytest.raises(UserError, match=r"cannot be downloaded .*by hand into the folder RSSEGLAB_WEIGHTS") as said:
            create_network("dofa_base_patch16_224", "fpn", 3, 2, weights)
        assert "\n" not in str(said.value)
    with pytest.raises(UserError, match="torchgeo has no weights of 'dofa_small_patch16_224'"):
        create_network("dofa_small_patch16_224", "fpn", 3, 2, "pretrained")
    with pytest.raises(UserError, match="are for the encoder 'swinv2_base_window8_256', not 'resnet18'"):
        create_network("resnet18", "fpn", 3, 2, "Swin_V2_B_Weights.NAIP_RGB_SI_SATLAS")
    torch.save(timm.create_model("resnet18").state_dict(), tmp_path / "resnet18.pth")
    with pytest.raises(UserError, match="are not of 'dofa_base_patch16_224': no parameter has its name"):
        create_network("dofa_base_patch16_224", "fpn", 3, 2, tmp_path / "resnet18.pth")


def test_wavelengths():
    assert band_wavelengths(["red", "Green", "BLUE", "nir"]) == (0.665, 0.56, 0.49, 0.842)
    assert band_wavelengths(["B02", "B8A", "705 nm", "1.61um"]) == (0.49, 0.865, 0.705, 1.61)
    assert band_wavelengths(["red", "band_7"]) is None
    assert check_wavelengths(None, 4) == tuple(CENTRES_UM[c] for c in ("red", "green", "blue", "nir"))
    assert check_wavelengths(None, 8) == pytest.approx([0.4 + 0.3 * k for k in range(8)])
    with pytest.raises(UserError, match="3 wavelengths for 5 bands; give one a band"):
        create_network("dofa_small_patch16_224", "fpn", 5, 2, wavelengths_um=[0.665, 0.56, 0.49])
    with pytest.raises(UserError, match=r"wavelengths 490 to 665; give micrometres"):
        create_network("dofa_small_patch16_224", "fpn", 3, 2, wavelengths_um=[665, 560, 490])


def test_a_band_is_its_wavelength():
    torch.manual_seed(0)
    embed = WavelengthPatchEmbed([0.4, 0.9, 2.2], in_chans=3, embed_dim=8).double()
    image = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    turned = WavelengthPatchEmbed([2.2, 0.4, 0.9], in_chans=3, embed_dim=8).double()
    state = {k: v for k, v in embed.state_dict().items() if k != "wavelengths_um"}
    turned.load_state_dict(state, strict=False)
    torch.testing.assert_close(turned(image[:, [2, 0, 1]]), embed(image))


@pytest.mark.parametrize("bands", [32, 200])
@pytest.mark.parametrize("encoder", ["mobilenetv3_small_050", "swin_tiny_patch4_window7_224", "dofa_base_patch16_224"])
def test_hyperspectral_images(encoder, bands, shallow):
    torch.manual_seed(0)
    network = create_network(encoder, "fpn", bands, 16)
    image = torch.randn(2, bands, 64, 96, requires_grad=True)
    logits = network(image)
    assert logits.shape == (2, 16, 64, 96) and logits.isfinite().all()
    logits.square().mean().backward()
    assert (image.grad.abs().amax((0, 2, 3)) > 0).all()  # every band is read


@pytest.mark.parametrize("encoder, decoder", [("test_vit", "dpt"), ("test_vit", "upernet"), ("resnet18", "fcn")])
def test_every_parameter_gets_a_gradient(encoder, decoder):
    # Whoever sums gradients over ranks waits for all of them; a ViT's classifier and last norm would get none.
    network = create_network(encoder, decoder, 3, 2)
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


# One encoder of each kind.
CUT = [
    ("resnet18", "fcn", 3),
    ("swin_tiny_patch4_window7_224", "fpn", 3),
    ("swinv2_tiny_window8_256", "fpn", 3),
    ("pvt_v2_b0", "unet", 3),
    ("test_vit", "dpt", 3),
    ("test_vit", "upernet", 3),
    ("test_vit", "fcn", 5),
    ("dofa_base_patch16_224", "fpn", 32),
    ("scalemae_large_patch16", "unet", 3),
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("encoder, decoder, bands", CUT)
def test_a_cut_scene_gives_what_the_whole_one_gives(encoder, decoder, bands, training, shallow):
    torch.manual_seed(0)
    network = create_network(encoder, decoder, bands, 3).double().train(training)
    for module in network.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0  # its coins are the engine's own, tested there
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    rows = torch.linspace(-1, 1, 96, dtype=torch.float64)[:, None]
    same(network, torch.randn(2, bands, 96, 32, dtype=torch.float64) + rows, Layout(3))
