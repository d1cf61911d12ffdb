"""A scene labelled band by band: the labels of the whole-scene call, in bounded memory, resumed after a kill."""

import io
import json
from dataclasses import replace
from pathlib import Path

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


def killed(files, network, path, row):
    """A run that dies once a row is read."""

    class Deadly(Scene):
        def read(self, window=None):
            if window is not None and window.row >= row:
                raise KeyboardInterrupt
            return super().read(window)

    with pytest.raises(KeyboardInterrupt):
        predict_stream(network, Deadly(*files, CLASSES, [0], name="a", bands=BANDS), path, progress=False)


def test_a_run_that_was_killed_goes_on(tmp_path, scene, monkeypatch):
    monkeypatch.setattr(module.stream, "ROWS", (32, 32))
    network, path = trained("test_resnet", "fcn"), tmp_path / "ours.tif"
    files = (tmp_path / "a_image.tif", tmp_path / "a_label.tif")
    expected = predict_stream(network, scene, tmp_path / "expected.tif", progress=False)
    killed(files, network, path, 850)
    done = json.loads((tmp_path / "ours.tif.rows.json").read_text())["done"]
    assert 0 < done < 1000 and not path.exists()
    reads, read = [], Scene.read
    again = Scene(*files, CLASSES, [0], name="a", bands=BANDS)
    again.read = lambda window: reads.append(window) or read(again, window)
    predict_stream(network, again, path, resume=True)
    assert min(window.row for window in reads) > 0  # what is labelled is not read again, but for the network's reach
    assert np.array_equal(labels(path), labels(expected.path)) and not list(tmp_path.glob("*.rows*"))
    killed(files, network, path, 850)
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

    path = tmp_path / "q.tif"
    with module._spill_folder(tmp_path, path) as left:
        pass
    (left / "tmp1").mkdir(parents=True)  # by a run that was killed
    (left / "tmp1" / "7").touch()
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"cannot take what does not fit in memory .* free some space"):
        predict_stream(trained(), scene, path, memory_mib=1.0, progress=False)
    assert not list(tmp_path.glob("q.tif*"))


def test_a_disk_that_is_full_of_labels_says_so(tmp_path, scene, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            raise OSError(28, "No space left on device")

    stock = Path.open
    monkeypatch.setattr(Path, "open", lambda p, *a, **k: Full(p, "w") if p.suffix == ".rows" else stock(p, *a, **k))
    with pytest.raises(UserError, match=r"q.tif.rows cannot be written .* free some space"):
        predict_stream(trained("test_resnet", "fcn"), scene, tmp_path / "q.tif", progress=False)
    assert not list(tmp_path.glob("q.tif*"))


def test_only_the_same_run_goes_on(tmp_path, scene, monkeypatch):
    """Other pixels, another normalisation, a damaged file, and a run that began anew and died at once."""
    monkeypatch.setattr(module.stream, "ROWS", (32, 32))
    files = (tmp_path / "a_image.tif", tmp_path / "a_label.tif")
    network, path = trained("test_resnet", "fcn"), tmp_path / "ours.tif"
    expected = labels(predict_stream(network, scene, tmp_path / "expected.tif", progress=False).path)
    rows, state = tmp_path / "ours.tif.rows", tmp_path / "ours.tif.rows.json"

    def refused(message, its=network):
        again = Scene(*files, CLASSES, [0], name="a", bands=BANDS)
        with pytest.raises(UserError, match=message):
            predict_stream(its, again, path, resume=True, progress=False)

    killed(files, network, path, 850)
    refused("another scene or network", replace(network, mean=network.mean + 1))
    found = state.read_text()
    for wrong in ("", "{}", found.replace('"done": ', '"done": -')):
        state.write_text(wrong)
        refused("is damaged")
    state.write_text(found)
    labelled = rows.read_bytes()
    rows.write_bytes(labelled[:100])
    refused("is damaged")
    rows.write_bytes(labelled)
    content = files[0].read_bytes()
    files[0].unlink()
    files[0].write_bytes(content)
    refused("another scene or network")
    killed(files, network, path, 0)  # begins anew, and dies before its first band
    assert not state.exists()
    predict_stream(network, scene, path, resume=True, progress=False)
    assert np.array_equal(labels(path), expected)
    # Bands of another height: those that were begun are labelled once more.
    killed(files, network, path, 850)
    monkeypatch.setattr(module.stream, "ROWS", (56, 56))
    predict_stream(network, Scene(*files, CLASSES, [0], name="a", bands=BANDS), path, resume=True, progress=False)
    assert np.array_equal(labels(path), expected)


def test_a_network_that_crops(tmp_path, scene):
    """Bands of its output are not where those of its input are."""
    network = trained("test_resnet", "fcn")

    class Padded(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.its = network.network

        def forward(self, x):
            return self.its(torch.nn.functional.pad(x, (32, 32, 32, 32), mode="reflect"))[:, :, 32:-32, 32:-32]

    padded = replace(network, network=Padded().eval())
    whole = predict_whole(padded, scene, tmp_path / "whole.tif", progress=False)
    ours = predict_stream(padded, scene, tmp_path / "ours.tif", progress=False)
    assert (labels(ours.path) != labels(whole.path)).sum() <= 2  # ties


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
        ["--stream", "--memory", "inf"],
    ):
        assert main([*command, *wrong]) == 2
