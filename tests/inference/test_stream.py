"""A scene labelled band by band: the labels of the whole-scene call, in bounded memory, resumed after a kill."""

import json

import numpy as np
import pytest
import rasterio
import torch
from made import CLASSES, make_scene

from rsseglab.cli import main
from rsseglab.decoders import create_network
from rsseglab.errors import UserError
from rsseglab.inference import predict_stream
from rsseglab.inference import stream as module
from rsseglab.inference.whole import predict_whole
from rsseglab.scenes import Scene
from rsseglab.training.checkpoint import TrainedNetwork
from rsseglab.training.fit import TrainConfig, fit

BANDS = ("band_1", "band_2", "band_3")


def trained(encoder="mobilenetv3_small_050", decoder="unet"):
    torch.manual_seed(0)
    network = create_network(encoder, decoder, 3, 3).eval()
    mean, std = torch.full((3,), 100.0), torch.full((3,), 50.0)
    return TrainedNetwork(network, BANDS, mean, std, CLASSES, (0,), 64, 0.5, encoder, decoder)


@pytest.fixture
def scene(tmp_path):
    return make_scene(tmp_path, "a", 1000, 131)


def labels(path):
    with rasterio.open(path) as file:
        return file.read()


@pytest.mark.parametrize("memory_mib", [None, 1.0])
def test_the_labels_of_the_whole_scene(tmp_path, scene, memory_mib):
    """With squeeze and excitation in its blocks, so in several passes; on disk where memory is short."""
    network = trained()
    whole = predict_whole(network, scene, tmp_path / "whole.tif", progress=False)
    ours = predict_stream(network, scene, tmp_path / "ours.tif", memory_mib=memory_mib, progress=False)
    assert (labels(ours.path) != labels(whole.path)).sum() <= 2  # ties
    assert ours.confusion.matrix.sum() == whole.confusion.matrix.sum()
    assert sorted(p.name for p in tmp_path.iterdir() if "ours" in p.name) == ["ours.tif"]


class Deadly(Scene):
    """A scene whose reader dies half way."""

    def read(self, window=None):
        if window is not None and window.row > 850:
            raise KeyboardInterrupt
        return super().read(window)


def test_a_run_that_was_killed_goes_on(tmp_path, scene, monkeypatch):
    monkeypatch.setattr(module.stream, "ROWS", (32, 32))
    network, path = trained("test_resnet", "fcn"), tmp_path / "ours.tif"
    files = (tmp_path / "a_image.tif", tmp_path / "a_label.tif")
    expected = predict_stream(network, scene, tmp_path / "expected.tif", progress=False)
    deadly = Deadly(*files, CLASSES, [0], name="a", bands=BANDS)
    with pytest.raises(KeyboardInterrupt):
        predict_stream(network, deadly, path, progress=False)
    done = json.loads((tmp_path / "ours.tif.rows.json").read_text())["done"]
    assert 0 < done < 1000 and not path.exists()
    reads, read = [], Scene.read
    again = Scene(*files, CLASSES, [0], name="a", bands=BANDS)
    again.read = lambda window: reads.append(window) or read(again, window)
    predict_stream(network, again, path, resume=True)
    assert min(window.row for window in reads) > 0  # what is labelled is not read again, but for the network's reach
    assert np.array_equal(labels(path), labels(expected.path)) and not list(tmp_path.glob("*.rows*"))
    with pytest.raises(KeyboardInterrupt):
        predict_stream(network, deadly, path, progress=False)
    torch.nn.init.ones_(next(network.network.parameters()))
    with pytest.raises(UserError, match="made of another scene or network; leave out --resume"):
        predict_stream(network, again, path, resume=True, progress=False)


def test_what_can_not_be_planned_is_refused_before_a_pixel_is_read(tmp_path, scene):
    class Asks(torch.nn.Module):
        def forward(self, x):
            return x * 2 if x.mean() > 0 else x

    network = trained("test_resnet", "fcn")
    asking = TrainedNetwork(Asks(), *[getattr(network, f) for f in list(network.__dataclass_fields__)[1:]])
    scene.read = lambda window: pytest.fail("a pixel was read")
    with pytest.raises(UserError, match="asks for values"):
        predict_stream(asking, scene, tmp_path / "q.tif", progress=False)
    assert not list(tmp_path.glob("q.tif*"))


def test_a_full_disk_says_so_and_leaves_nothing(tmp_path, scene, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    left = tmp_path / "q.tif.spill" / "tmp1" / "7"  # by a run that was killed
    left.parent.mkdir(parents=True)
    left.touch()
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot take what does not fit in memory .* free some space"):
        predict_stream(trained(), scene, tmp_path / "q.tif", memory_mib=1.0, progress=False)
    assert not list(tmp_path.glob("q.tif*"))


def test_the_command(tmp_path, scene, capsys):
    config = TrainConfig(encoder="test_resnet", decoder="fcn", steps=1, batch_size=1, crop_px=64, val_every=1)
    checkpoint = fit([scene], [scene], config, tmp_path / "run", progress=False).checkpoint
    command = ["predict", str(tmp_path / "a_image.tif"), "--checkpoint", str(checkpoint), "--device", "cpu"]
    assert main([*command, "--output", str(tmp_path / "whole.tif"), "--whole"]) == 0
    assert main([*command, "--output", str(tmp_path / "ours.tif"), "--stream", "--memory", "64"]) == 0
    assert "streaming a_image, 131 x 1000 px: 1 pass, about" in capsys.readouterr().out
    assert (labels(tmp_path / "whole.tif") != labels(tmp_path / "ours.tif")).sum() <= 1
    for wrong in (
        ["--stream", "--whole"],
        ["--memory", "5"],
        ["--stream", "--window", "64"],
        ["--stream", "--memory", "0"],
    ):
        assert main([*command, *wrong]) == 2
