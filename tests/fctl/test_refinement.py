"""Refinement of masks: it starts from the mask, mends what a context shows, and takes any segmenter's."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from made import make_scene

from rsseglab.errors import UserError
from rsseglab.experiments.methods import cropping_of, predict_by_crops, segment_by
from rsseglab.fctl import ContextualRefinement
from rsseglab.fctl.masks import fit_refinement, mask_of
from rsseglab.fctl.predict import predict_contexts
from rsseglab.inference.crops import Cropping
from rsseglab.scenes.raster import RasterSource
from rsseglab.training.checkpoint import load_checkpoint
from rsseglab.training.fit import TrainConfig, fit
from rsseglab.training.losses import focal
from rsseglab.training.networks import build_network


def network(**options):
    torch.manual_seed(0)
    return ContextualRefinement(3, **{"width": 8, "depth": 2} | options)


def awake(net):
    for parameter in net.parameters():
        if not parameter.any() or parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return net


def masks(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64).softmax(-3)


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (4, 5)])
def test_before_training_the_mask_stays(size):
    net, local = network().double(), masks(2, 3, *size)
    logits = net(local, masks(2, 1, 3, *size))
    assert torch.equal(logits.argmax(1), local.argmax(1)) and (logits - local.clamp(min=1e-4).log()).abs().max() == 0


@pytest.mark.parametrize("contexts", [(2,), (2, 3)])
def test_every_parameter_learns(contexts):
    net = awake(network(contexts=contexts)).double().train()
    net(masks(2, 3, 16, 16), masks(2, len(contexts), 3, 16, 16)).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())


def test_it_is_its_parts_put_together():
    """Of a size that has to be padded: with no data to the right and below."""
    net = awake(network(contexts=(2, 3))).double().eval()
    small, around = masks(2, 3, 13, 22), masks(2, 2, 3, 13, 22)
    local, contexts = F.pad(small, (0, 2, 0, 3)), F.pad(around, (0, 2, 0, 3))

    def levels(encoder, x):
        maps = []
        for level in encoder.levels:
            x = level(x)
            maps.append(x)
            x = F.max_pool2d(x, 2)
        return maps

    fine, middle, deep = levels(net.local_encoder, local)
    wide = [levels(net.context_encoder, contexts[:, i])[-1] for i in range(2)]
    x = deep + net.fusion([c(deep, u) for c, u in zip(net.correlations, wide, strict=True)])
    x = net.decoder[0](torch.cat([x.repeat_interleave(2, 2).repeat_interleave(2, 3), middle], 1))
    x = net.decoder[1](torch.cat([x.repeat_interleave(2, 2).repeat_interleave(2, 3), fine], 1))
    expected = small.clamp(min=1e-4).log() + net.change(x)[:, :, :13, :22]
    assert (net(small, around) - expected).abs().max() < 1e-12


def test_it_learns_to_mend_what_the_context_shows():
    """Each mask's class is wrong and sure of itself; the context tells the right one, by its own look alone."""
    torch.manual_seed(0)
    net = network(contexts=(2,)).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
    draw = torch.Generator().manual_seed(0)
    for _ in range(250):
        truth = torch.randint(3, (16,), generator=draw)
        wrong = (truth + torch.randint(3, (16,), generator=draw)) % 3
        local = 0.85 * F.one_hot(wrong, 3)[:, :, None, None].expand(-1, -1, 16, 16).float() + 0.05
        context = 0.85 * F.one_hot(truth, 3)[:, None, :, None, None].expand(-1, 1, -1, 16, 16).float() + 0.05
        label = truth[:, None, None].expand(-1, 16, 16)
        logits = net(local, context)
        optimizer.zero_grad()
        focal(logits, label).backward()
        optimizer.step()
    assert (logits.argmax(1) == label).float().mean() > 0.95
    assert all(p.grad is not None for p in net.parameters())


@pytest.fixture
def run(tmp_path):
    scenes = [make_scene(tmp_path, "a", 130, 150, seed=0)], [make_scene(tmp_path, "b", 90, 100, seed=1)]
    config = TrainConfig(
        "mobilenetv3_small_050", "fcn", steps=4, batch_size=2, crop_px=32, val_every=2, val_window_px=32
    )
    segmenter = load_checkpoint(fit(*scenes, config, tmp_path / "stock", progress=False).checkpoint)
    refining = replace(config, method="refinement", options={"contexts": [2]}, crop_px=40, loss="focal")
    how = segment_by(segmenter, progress=False)
    done = fit_refinement(*scenes, how, refining, tmp_path / "refined", progress=False)
    return scenes, segmenter, load_checkpoint(done.checkpoint), refining, how


def test_it_refines_the_masks_of_any_segmenter(run, tmp_path):
    scenes, segmenter, refiner, refining, how = run
    scene = scenes[1][0]
    assert refiner.method == "refinement" and refiner.bands == tuple(c.name for c in scene.classes)
    assert (refiner.mean == 0).all() and (refiner.std == 1).all()
    both = predict_by_crops(
        segmenter, scene, tmp_path / "both.tif", cropping_of(segmenter), refiner=refiner, progress=False
    )
    # The same in two steps.
    how(scene, tmp_path / "crude.tif", tmp_path / "shares.tif")
    mask = mask_of(scene, tmp_path / "shares.tif")
    two = predict_contexts(refiner, mask, tmp_path / "two.tif", cropping_of(refiner), progress=False)
    one, other = (RasterSource(p.path).read(scene.window) for p in (both, two))
    assert np.array_equal(one, other) and not list(tmp_path.glob(".both*"))
    assert fit_refinement(
        *scenes, how, refining, tmp_path / "refined", resume=True, progress=False
    ).checkpoint.is_file()


def test_an_untrained_refinement_leaves_the_labels(run, tmp_path):
    scenes, _, refiner, _, how = run
    scene = scenes[1][0]
    torch.nn.init.zeros_(refiner.network.change.weight)
    torch.nn.init.zeros_(refiner.network.change.bias)
    how(scene, tmp_path / "crude.tif", tmp_path / "shares.tif")
    mask = mask_of(scene, tmp_path / "shares.tif")
    montage = Cropping(40, 0, "flat", step_px=1)
    done = predict_contexts(refiner, mask, tmp_path / "same.tif", montage, progress=False)
    crude, same = (RasterSource(p).read(scene.window) for p in (tmp_path / "crude.tif", done.path))
    assert (crude == same).all()


def test_masks_that_do_not_fit():
    with pytest.raises(UserError, match="greater than 1"):
        network(contexts=(1, 2))
    with pytest.raises(UserError, match="there is no edge"):
        network(edge="mirror")
    net = network().double()
    with pytest.raises(UserError, match="one of each scale for each patch"):
        net(masks(2, 3, 16, 16), masks(2, 2, 3, 16, 16))
    with pytest.raises(UserError, match="has 4 classes, not 3"):
        net(masks(2, 4, 16, 16), masks(2, 1, 4, 16, 16))
    with pytest.raises(UserError, match="has a band for each"):
        build_network("refinement", "", "", 3, 5)
