import dataclasses

import numpy as np
import pytest
import rasterio
import torch
import torch.nn.functional as F
from made import CLASSES, CRS, make_scene
from torch import nn

from rsseglab.decoders import DECODERS
from rsseglab.errors import UserError
from rsseglab.evaluation.evaluate import read_placement
from rsseglab.inference.crops import Cropping
from rsseglab.inference.fusion import (
    GlobalLocal,
    cut_out,
    predict_decimated,
    predict_fusion,
    scene_thumbnail,
    upsampled_bands,
    window_box,
)
from rsseglab.scenes import ArraySource, Scene
from rsseglab.scenes.twins import CLASSES as TWIN_CLASSES
from rsseglab.scenes.twins import twin_scenes
from rsseglab.scenes.views import decimated
from rsseglab.training.checkpoint import TrainedNetwork

ENCODER = "mobilenetv3_small_050"


def trained(network, gsd_m=None):
    names, mean, std = ("band_1", "band_2", "band_3"), torch.full((3,), 80.0), torch.full((3,), 40.0)
    return TrainedNetwork(network.eval(), names, mean, std, CLASSES, (0,), 64, gsd_m, "e", "d")


def fusion(global_px=64, decoder="unet", encoder=ENCODER):
    """Random weights everywhere, also where training starts from 0."""
    torch.manual_seed(0)
    network = GlobalLocal(encoder, decoder, 3, global_px=global_px)
    for mix in network.mixes.parameters():
        nn.init.normal_(mix, std=0.05)
    return network.eval()


def values(index):
    return np.array([1, 2, 5], np.uint8)[index]


def slow_cut(maps, box, size):
    """Pixel by pixel, weight by weight."""
    B, C, m, n = maps.shape
    part = torch.zeros(B, C, *size, dtype=maps.dtype)
    for b, (top, left, bottom, right) in enumerate(box.tolist()):
        for i in range(size[0]):
            for j in range(size[1]):
                row = (top + (i + 0.5) / size[0] * (bottom - top)) * m - 0.5
                col = (left + (j + 0.5) / size[1] * (right - left)) * n - 0.5
                for r in range(m):
                    for c in range(n):
                        near_row = max(0.0, 1 - abs(min(max(row, 0), m - 1) - r))
                        near_col = max(0.0, 1 - abs(min(max(col, 0), n - 1) - c))
                        part[b, :, i, j] += near_row * near_col * maps[b, :, r, c]
    return part


def test_a_cut_is_what_the_slow_one_is():
    torch.manual_seed(0)
    maps = torch.randn(3, 2, 5, 7, dtype=torch.float64)
    box = torch.tensor([[0.1, 0.2, 0.55, 0.4], [0.0, 0.0, 1.0, 1.0], [0.7, 0.5, 1.3, 1.1]], dtype=torch.float64)
    for size in ((4, 6), (1, 3), (9, 2)):
        assert torch.allclose(cut_out(maps, box, size), slow_cut(maps, box, size), atol=1e-12)


def test_a_cut_along_pixels_is_a_slice_and_of_a_ramp_is_a_ramp():
    maps = torch.randn(1, 4, 8, 16, dtype=torch.float64)
    box = torch.tensor([[2 / 8, 4 / 16, 6 / 8, 12 / 16]], dtype=torch.float64)
    assert torch.allclose(cut_out(maps, box, (4, 8)), maps[:, :, 2:6, 4:12], atol=1e-12)
    ramp = ((torch.arange(64) + 0.5) / 64).expand(1, 1, 64, 64)
    part = cut_out(ramp, torch.tensor([[0.3, 0.25, 0.4, 0.5]]), (3, 5))
    assert torch.allclose(part, 0.25 + 0.25 * (torch.arange(5) + 0.5) / 5 * torch.ones(3, 1), atol=1e-6)
    assert cut_out(ramp.bfloat16(), torch.tensor([[0.3, 0.25, 0.4, 0.5]]), (3, 5)).dtype == torch.bfloat16


def test_the_global_stream_sees_beyond_the_crop_and_it_alone():
    network = fusion()
    crop, scene = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 64, 64, requires_grad=True)
    box = torch.tensor([[0.0, 0.0, 0.25, 0.25], [0.5, 0.25, 0.75, 0.5]])
    network(crop, scene, box)[0].sum().backward()
    assert (scene.grad[0, :, 32:, 32:] != 0).any()  # far from the first crop
    assert (scene.grad[1] == 0).all()  # the other sample's scene

    with torch.no_grad():
        other = scene.clone()
        other[0, :, 48:, 48:] += 1
        before, after = network(crop, scene, box), network(crop, other, box)
        assert not torch.allclose(before[0], after[0]) and torch.equal(before[1], after[1])
        look = network.look
        network.look = lambda small: [torch.zeros_like(maps) for maps in look(small)]
        assert torch.equal(network(crop, scene, box), network(crop, other, box))


@pytest.mark.parametrize("blinded", ["levels", "last"])
def test_both_meeting_places_carry_the_scene(blinded):
    """With one of the two closed the other still tells scenes apart."""
    network, crop, box = fusion(), torch.randn(1, 3, 64, 64), torch.tensor([[0.0, 0.0, 0.5, 0.5]])
    with torch.no_grad():
        maps, others = (network.look(torch.randn(1, 3, 64, 64)) for _ in range(2))
        closed = [*maps[:-1], others[-1]] if blinded == "levels" else [*others[:-1], maps[-1]]
        assert not torch.allclose(network.label(crop, maps, box), network.label(crop, closed, box), atol=1e-4)


def test_training_starts_from_two_streams_that_meet_in_the_head_alone():
    torch.manual_seed(0)
    network = GlobalLocal(ENCODER, "unet", 3, global_px=64).eval()
    crop, box = torch.randn(1, 3, 64, 64), torch.tensor([[0.0, 0.0, 0.5, 0.5]])
    maps = network.look(torch.randn(1, 3, 64, 64))
    others = [*(torch.randn_like(part) for part in maps[:-1]), maps[-1]]
    assert torch.equal(network.label(crop, maps, box), network.label(crop, others, box))
    network(crop, torch.randn(1, 3, 64, 64), box).sum().backward()
    untouched = [name for name, p in network.named_parameters() if p.grad is None]
    assert untouched == []


@pytest.mark.parametrize("decoder", sorted(set(DECODERS) - {"dpt", "fcn"}))
def test_every_decoder(decoder):
    network = fusion(128, decoder, "resnet18")
    crop, scene = torch.randn(1, 3, 128, 160), torch.randn(1, 3, 128, 128)
    with torch.no_grad():
        assert network(crop, scene, torch.rand(1, 4)).shape == (1, 3, 128, 160)


def test_encoders_without_a_map_at_stride_2():
    network = fusion(encoder="mit_b0")
    assert network.levels == [2, 3, 4, 5]
    assert network(torch.randn(1, 3, 64, 64), torch.randn(1, 3, 64, 64), torch.rand(1, 4)).shape == (1, 3, 64, 64)


def test_what_does_not_go_together_is_refused(tmp_path):
    with pytest.raises(UserError, match="global_px is 100; it must be a multiple of 32"):
        GlobalLocal(ENCODER, "unet", 3, global_px=100)
    with pytest.raises(UserError, match="decoder 'dpt' has no last feature map to fuse"):
        GlobalLocal(ENCODER, "dpt", 3)
    with pytest.raises(UserError, match="has no global stream; label by predict_scene"):
        predict_fusion(trained(nn.Conv2d(3, 3, 1)), make_scene(tmp_path), tmp_path / "p.tif", Cropping(64))


@pytest.mark.parametrize("size", [(96, 130), (40, 50)])
def test_a_scene_is_labelled_by_crops_that_are_given_the_scene(tmp_path, size):
    """Windows side by side, against the network called by hand on each, with its own thumbnail and box."""
    scene, network = make_scene(tmp_path, "a", *size), trained(fusion())
    done = predict_fusion(network, scene, tmp_path / "p.tif", Cropping(32, 0.0, "flat", batch_size=3), progress=False)
    image = network.normalize(torch.from_numpy(scene.read().astype(np.float32)))
    small = scene_thumbnail(network, scene, 64)
    starts = [sorted({min(i, max(n - 32, 0)) for i in range(0, n, 32)}) for n in size]
    logits, count = torch.zeros(3, *size), torch.zeros(size)
    for row in starts[0]:
        for col in starts[1]:
            box = torch.tensor([[row / size[0], col / size[1], (row + 32) / size[0], (col + 32) / size[1]]])
            here = slice(row, row + 32), slice(col, col + 32)
            with torch.no_grad():
                logits[:, *here] += network.network(image[None][:, :, *here], small, box)[0]
            count[here] += 1
    with rasterio.open(done.path) as file:
        assert (file.read(1) != values((logits / count).argmax(0).numpy())).mean() < 1e-3  # up to ties in rounding
        assert file.crs == CRS and file.transform == scene.transform and file.nodata == 0
        assert file.tags()["global_px"] == "64"
    assert read_placement(done.path).row_starts == starts[0] and done.seconds > 0


def test_a_prediction_changes_with_what_lies_outside_of_all_its_crops(tmp_path):
    """A change in one corner changes the probabilities in the opposite one."""
    scene = make_scene(tmp_path, "a", 128, 128)
    image = scene.read().transpose(1, 2, 0).copy()
    image[96:, 96:] = 255 - image[96:, 96:]
    shares = []
    for i, one in enumerate((scene, Scene(ArraySource(image), bands=scene.bands))):
        predict_fusion(
            trained(fusion()), one, tmp_path / "p.tif", Cropping(32, 0.0), probabilities=tmp_path / f"{i}.tif",
            progress=False,
        )  # fmt: skip
        with rasterio.open(tmp_path / f"{i}.tif") as file:
            shares.append(file.read()[:, :32, :32])
    assert np.abs(shares[0] - shares[1]).max() > 1e-4


@pytest.mark.parametrize("factor", [1, 3, 4, 100])
@pytest.mark.parametrize("size", [(37, 50), (64, 64), (300, 20)])
def test_bands_are_the_whole_upsampled_at_once(factor, size):
    small = [-(-n // factor) for n in size]
    logits = torch.randn(2, *small, dtype=torch.float64)
    expected = F.interpolate(logits[None], scale_factor=factor, mode="bilinear", align_corners=False)[0]
    bands = list(upsampled_bands(logits, factor, *size))
    assert [row for row, _ in bands] == np.cumsum([0, *(band.shape[1] for _, band in bands[:-1])]).tolist()
    assert torch.allclose(torch.cat([band for _, band in bands], 1), expected[:, : size[0], : size[1]], atol=1e-12)
    assert len(bands) > 1 or small[0] <= max(1, 256 // factor)


@pytest.mark.parametrize("cropping", [None, Cropping(32, 0.5)])
def test_a_decimated_scene_is_labelled_on_the_full_grid(tmp_path, cropping):
    """A network of single pixels, against the decimated logits interpolated by hand."""
    torch.manual_seed(0)
    scene, network = make_scene(tmp_path, "a", 250, 131), trained(nn.Conv2d(3, 3, 1))
    done = predict_decimated(
        network, scene, 3, tmp_path / "p.tif", cropping, probabilities=tmp_path / "q.tif", progress=False
    )
    image = network.normalize(torch.from_numpy(decimated(scene, 3).read()))
    with torch.no_grad():
        logits = network.network(image[None])
    full = F.interpolate(logits, scale_factor=3, mode="bilinear", align_corners=False)[0, :, :250, :131]
    with rasterio.open(done.path) as file:
        assert (file.read(1) != values(full.argmax(0).numpy())).mean() < 1e-3
        assert file.crs == CRS and file.transform == scene.transform and file.tags()["factor"] == "3"
    with rasterio.open(done.probabilities) as file:
        assert np.allclose(file.read(), full.softmax(0).numpy(), atol=1e-5)
    placement = read_placement(done.path)
    assert placement is None if cropping is None else placement.window_px == 96 and placement.row_starts[1] == 48


def test_the_pixel_size_that_a_network_was_trained_on_is_the_decimated_one(tmp_path, recwarn):
    scene = make_scene(tmp_path)
    scene.gsd_m = 0.5
    network = trained(nn.Conv2d(3, 3, 1), gsd_m=2.0)
    predict_decimated(network, scene, 4, tmp_path / "p.tif", progress=False)
    assert not [w for w in recwarn if "expect a worse map" in str(w.message)]
    with pytest.warns(UserWarning, match="expect a worse map"):
        predict_decimated(network, scene, 1, tmp_path / "p.tif", progress=False)


def test_pixels_without_data_get_no_class(tmp_path):
    image = np.full((64, 64, 3), 90, np.uint8)
    image[:20, :20] = 0
    scene = Scene(ArraySource(image, nodata=0))
    for name, network in (("f", fusion()), ("d", nn.Conv2d(3, 3, 1))):
        if name == "f":
            predict_fusion(trained(network), scene, tmp_path / "f.tif", Cropping(32), progress=False)
        else:
            predict_decimated(trained(network), scene, 4, tmp_path / "d.tif", progress=False)
        with rasterio.open(tmp_path / f"{name}.tif") as file:
            labels = file.read(1)
            assert (labels[:20, :20] == 0).all() and (labels[20:] != 0).all()


def test_twins_are_alike_to_a_view_that_averages_their_key_away(tmp_path):
    """Global inference by detail_px, and fusion whose crops see no key: bit for bit the same answers."""
    twins = twin_scenes(256, 256, 64, seed=1)
    network = dataclasses.replace(trained(fusion(32)), classes=TWIN_CLASSES[:3])
    answers = {"decimated": [], "fused": []}
    for image in twins.images:
        scene = Scene(ArraySource(image.transpose(1, 2, 0)))
        plain = dataclasses.replace(network, network=nn.Conv2d(3, 3, 3, padding=1))
        torch.manual_seed(0)
        plain.network.reset_parameters()
        predict_decimated(plain, scene, 8, tmp_path / "d.tif", progress=False, probabilities=tmp_path / "dq.tif")
        predict_fusion(
            network, scene, tmp_path / "f.tif", Cropping(64, 0.0), progress=False, probabilities=tmp_path / "fq.tif"
        )
        for name, file in (("decimated", "dq.tif"), ("fused", "fq.tif")):
            with rasterio.open(tmp_path / file) as raster:
                answers[name].append(raster.read())
    assert np.array_equal(*answers["decimated"])
    assert np.array_equal(*[a[:, twins.look_alike] for a in answers["fused"]])
    assert not np.array_equal(*[a[:, twins.key] for a in answers["fused"]])


def test_boxes_of_windows(tmp_path):
    scene = make_scene(tmp_path, "a", 100, 200)
    assert window_box(10, 20, 50, 64, scene) == (0.1, 0.1, 0.6, 0.42)
