"""A scene labelled whole: the plain call's argmax, in one process, in tiles and over ranks; failures leave nothing."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import torch.distributed as dist
from made import CLASSES, CRS, make_scene, write_raster
from ranks import spawn
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from rsseglab.cli import main
from rsseglab.errors import UserError
from rsseglab.evaluation.confusion import Confusion
from rsseglab.inference import whole
from rsseglab.inference.whole import predict_scenes_whole, predict_whole
from rsseglab.rest import REST
from rsseglab.scenes import IGNORE_INDEX, LabelClass, RasterWriter, Scene
from rsseglab.scenes.raster import ArraySource
from rsseglab.spatial import Layout, cut
from rsseglab.training.checkpoint import TrainedNetwork
from rsseglab.training.ranks import Grid

NAMES = ("band_1", "band_2", "band_3")


class Mixing(nn.Module):
    """Looks far: strides, a mean over the scene, and back to full size."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU(), nn.Conv2d(8, 8, 5, 4, 2))
        self.up = nn.Conv2d(11, 3, 3, padding=1)

    def forward(self, x):
        y = self.down(x)
        y = nn.functional.interpolate(y * y.mean((2, 3), keepdim=True), size=x.shape[2:], mode="bilinear")
        return self.up(torch.cat([x, y], 1))


class FailsOnRankOne(Mixing):
    def forward(self, x):
        y = self.down(x)
        if dist.get_rank() == 1 and not x.is_meta:  # not when memory is reckoned
            raise RuntimeError("something broke")
        return super().forward(x) + y.mean()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from rsseglab.training.fit import TrainConfig, fit  # spawned ranks need not wait for Lightning

    folder = tmp_path_factory.mktemp("run")
    config = TrainConfig(encoder="mobilenetv3_small_050", steps=1, batch_size=1, crop_px=64, val_every=1)
    scenes = [make_scene(folder)]
    return fit(scenes, scenes, config, folder / "run", progress=False).checkpoint


def trained(network=None):
    torch.manual_seed(0)
    network = network or Mixing()
    mean, std = torch.full((3,), 80.0), torch.full((3,), 40.0)
    return TrainedNetwork(network.eval(), NAMES, mean, std, CLASSES, (0,), 64, 0.5, "e", "d")


def expected(network, scene):
    """Class indices of the plain call on the whole image, padded, and their counts."""
    image = network.normalize(torch.from_numpy(scene.read().astype(np.float32)))
    valid = scene.read_valid()
    image = nn.functional.pad(image * torch.from_numpy(valid), (0, -scene.width % 32, 0, -scene.height % 32))
    with torch.no_grad():
        index = network.network(image[None])[0].argmax(0)[: scene.height, : scene.width].numpy().astype(np.uint8)
    index[~valid] = IGNORE_INDEX
    confusion = Confusion([c.name for c in CLASSES])
    confusion.update(index, scene.read_label())
    return index, confusion


def with_nodata(folder, height=300, width=130):
    """A scene of which some is without data, more rows than are written at a time, and sides no multiple of 32."""
    scene = make_scene(folder, "a", height, width)
    image = scene.read()
    image[:, 40:60, 30:90] = 0
    write_raster(folder / "a_image.tif", image, nodata=0)
    return Scene(folder / "a_image.tif", folder / "a_label.tif", CLASSES, [0], name="a", bands=NAMES)


def check(done, network, scene):
    index, confusion = expected(network, scene)
    values = np.full(256, 0, np.uint8)
    values[:3] = [c.value for c in CLASSES]
    with rasterio.open(done.path) as file:
        assert file.crs == CRS and file.transform == scene.transform and file.nodata == 0
        assert file.tags()["class_5"] == "road" and "window_px" not in file.tags()
        differ = int((file.read(1) != values[index]).sum())
    assert differ <= 1, differ  # tiles may round a tie otherwise
    assert np.abs(done.confusion.matrix - confusion.matrix).sum() <= 2 * differ
    assert len(np.unique(index)) == 4  # the test can fail: all classes, and pixels without


@pytest.mark.parametrize("layout", [None, Layout(2, 2), Layout(3), Layout(1, 2)])
def test_one_process_gives_the_plain_calls_argmax(tmp_path, layout, capsys):
    scene, network = with_nodata(tmp_path), trained()
    done = predict_whole(network, scene, tmp_path / "p.tif", layout)
    check(done, network, scene)
    assert done.seconds > 0 and done.peak_mib >= 0 and done.probabilities is None
    out = capsys.readouterr().out
    assert out.startswith("labelling a whole, 130 x 300 px: about ") and " GiB free" in out


def test_a_label_of_other_classes_is_not_counted(tmp_path):
    scene = make_scene(tmp_path)
    other = dataclasses.replace(trained(), classes=tuple(LabelClass(c.name + "s", c.value, c.color) for c in CLASSES))
    assert predict_whole(other, scene, tmp_path / "p.tif", progress=False).confusion is None
    alone = Scene(tmp_path / "a_image.tif")
    assert predict_whole(trained(), alone, tmp_path / "q.tif", progress=False).confusion is None


def test_what_does_not_fit_is_refused_with_the_ways_out(tmp_path, monkeypatch):
    scene = make_scene(tmp_path, bands=4)
    with pytest.raises(UserError, match="scene a has 4 bands but the checkpoint was trained on 3"):
        predict_whole(trained(), scene, tmp_path / "p.tif", progress=False)
    scene = make_scene(tmp_path)
    with pytest.raises(UserError, match="96 rows can't be cut in 200"):
        predict_whole(trained(), scene, tmp_path / "p.tif", Layout(200), progress=False)
    monkeypatch.setattr(whole, "free_mib", lambda device: 100.0)
    with pytest.raises(UserError, match=r"takes about 0\.3 GiB and 0\.1 GiB are free; .* crops: without --whole\.$"):
        predict_whole(trained(), scene, tmp_path / "p.tif", progress=False)
    world = REST("test_resnet", "fcn", 3, "exact+spim", heads="world", strides=(16,))
    world.train()(cut(torch.zeros(1, 3, 64, 64), Layout(2)))  # from now on for two tiles
    with pytest.raises(UserError, match=r"0\.1 GiB are free; ways out: label it in crops"):
        predict_whole(trained(world), scene, tmp_path / "p.tif", Layout(2), progress=False)
    wide = trained(nn.Sequential(nn.Conv2d(3, 9000, 1), nn.Conv2d(9000, 3, 1)))
    monkeypatch.setattr(whole, "free_mib", lambda device: 600.0)
    with pytest.raises(UserError, match=r"2 machines such as this, torchrun --nnodes 2 \(about 0\.[45] GiB each\)"):
        predict_whole(wide, scene, tmp_path / "p.tif", progress=False)
    assert not list(tmp_path.glob("p*"))


def test_a_network_of_one_size_is_refused(tmp_path):
    class Fixed(nn.Conv2d):
        def forward(self, x):
            assert x.shape[-1] == 224, "Input width doesn't match model"
            return super().forward(x)

    with pytest.raises(UserError, match=r"d on e does not take 130 x 96 px at once \(Input width doesn't match"):
        predict_whole(trained(Fixed(3, 3, 1)), make_scene(tmp_path), tmp_path / "p.tif", progress=False)
    assert not list(tmp_path.glob("p*"))


def test_a_network_that_asks_for_values_is_labelled_all_the_same(tmp_path, capsys):
    class Asks(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * (1 if x.mean().item() > 0 else 2)

    predict_whole(trained(Asks(3, 3, 1)), make_scene(tmp_path), tmp_path / "p.tif")
    assert "130 x 96 px: memory not known, " in capsys.readouterr().out


def test_a_damaged_image_leaves_no_raster(tmp_path):
    draw = np.random.default_rng(0)
    path = write_raster(tmp_path / "i.tif", draw.integers(0, 255, (3, 300, 300), dtype=np.uint8), blockysize=16)
    scene = Scene(path)
    path.write_bytes(path.read_bytes()[:150_000])
    with pytest.raises(UserError, match=r"damaged|not a raster"):
        predict_whole(trained(), scene, tmp_path / "p.tif", progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["i.tif"]


def refuses(match, *args):
    with pytest.raises(UserError, match=match):
        predict_whole(*args, progress=False)


def on_two_ranks(rank, folder):
    """Everything that two ranks do together: what one process gives, and errors that reach both."""
    folder = Path(folder)
    mesh = init_device_mesh("cpu", (2,))
    network = trained()
    scene = Scene(folder / "a_image.tif", folder / "a_label.tif", CLASSES, [0], name="a", bands=NAMES)
    reads, read = [], Scene.read
    Scene.read = lambda self, window: reads.append(window) or read(self, window)
    done = predict_whole(network, scene, folder / "p.tif", Layout(2, 1, mesh), progress=False)
    Scene.read = read
    reads = [window for window in reads if window.width > 64]  # but for some by which files are told apart
    windows = Layout(2).windows(320, 160)
    assert {(w.col, w.width) for w in reads} == {(0, 160)} and sum(w.height for w in reads) == windows[rank][2]
    check(done, network, scene)
    check(predict_whole(network, scene, folder / "p.tif", Layout(1, 2, mesh), progress=False), network, scene)

    layout = Layout(2, 1, mesh)
    here = "" if rank == 0 else r" \(on rank 0\)"
    refuses(rf"cannot be written.*choose another folder\.{here}$", network, scene, folder / "a_image.tif/q.tif", layout)
    write = RasterWriter.write

    def full(self, pixels, row, col=0):
        raise UserError("the disk is full; free some space.")

    RasterWriter.write = full  # at the first rows, while the other rank has more to send
    refuses(f"the disk is full; free some space.{here}", network, scene, folder / "q.tif", layout)
    RasterWriter.write = write

    there = "" if rank == 1 else r" \(on rank 1\)"
    damaged = Scene(folder / "i.tif")
    if rank == 1:
        damaged.read = lambda window: refuse("i.tif is damaged; fetch it again.")
    refuses(f"i.tif is damaged; fetch it again.{there}", network, damaged, folder / "q.tif", layout)
    other = scene if rank else make_scene(folder / "other", "a", 300, 131)
    refuses(r"ranks have different scenes \(rank 0 a: 131 x 300 px.*rank 1", network, other, folder / "q.tif", layout)
    brighter = Scene(ArraySource(scene.read().transpose(1, 2, 0) + np.uint8(rank)), name="a", bands=NAMES)
    refuses("ranks have different pixels", network, brighter, folder / "q.tif", layout)
    torch.manual_seed(rank)
    refuses("ranks have different weights", trained_by(rank), scene, folder / "q.tif", layout)
    whole.free_mib = lambda device: 700.0 if rank else 900.0
    refuses("a worker, 2 of them here and 0.7 GiB are free", wide(), scene, folder / "q.tif", layout)
    whole.free_mib = lambda device: 9000.0
    one_breaks(rank, scene, folder, layout)


def one_breaks(rank, scene, folder, layout):
    """A rank that fails inside the network; the other notices, and neither can meet again."""
    torch.manual_seed(0)
    network = trained(FailsOnRankOne())
    try:
        predict_whole(network, scene, folder / "q.tif", layout, progress=False)
    except (UserError, RuntimeError) as error:
        (folder / f"rank{rank}").write_text(f"{type(error).__name__} {error} {list(folder.glob('q*'))}")
    os._exit(0)


def trained_by(rank):
    network = trained()
    with torch.no_grad():
        network.network.up.bias += rank
    return network


def wide():
    return trained(nn.Sequential(nn.Conv2d(3, 1000, 1), nn.Conv2d(1000, 3, 1)))


def refuse(message):
    raise UserError(message)


def test_two_ranks(tmp_path):
    with_nodata(tmp_path)
    (tmp_path / "other").mkdir()
    write_raster(tmp_path / "i.tif", np.ones((3, 64, 64), np.uint8))
    spawn(2, on_two_ranks, str(tmp_path))
    assert not list(tmp_path.glob("q*"))
    assert (tmp_path / "rank1").read_text().startswith("RuntimeError something broke")
    told = (tmp_path / "rank0").read_text()
    assert told.startswith("UserError ") and "lost its peers" in told and told.endswith("[]")


class Deadly(Scene):
    """Kills the process that reads its second half, as the system does where memory runs out."""

    def read(self, window=None):
        if window.row:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().read(window)


def test_a_killed_rank_ends_the_command(tmp_path, checkpoint):
    make_scene(tmp_path)
    with pytest.raises(UserError, match="a rank was killed, as when memory runs out; use more machines"):
        predict_scenes_whole(checkpoint, [Deadly(tmp_path / "a_image.tif")], [tmp_path / "q.tif"], Grid(2), "cpu")
    assert not list(tmp_path.glob("q*"))


def test_the_command_over_ranks_gives_what_one_process_gives(tmp_path, checkpoint, capsys):
    make_scene(tmp_path)
    command = ["predict", str(tmp_path / "a_image.tif"), "--checkpoint", str(checkpoint), "--whole", "--device", "cpu"]
    assert main([*command, "--output", str(tmp_path / "one.tif")]) == 0
    said = capsys.readouterr().out
    ranks = [sys.executable, "-m", "rsseglab.cli", *command, "--output", str(tmp_path / "two.tif"), "--spatial", "1x2"]
    said += subprocess.run(ranks, check=True, capture_output=True, text=True).stdout
    assert said.count("labelling a_image whole, 130 x 96 px: about") == 2 and "a worker, 2 of them here" in said
    with rasterio.open(tmp_path / "one.tif") as one, rasterio.open(tmp_path / "two.tif") as two:
        assert (one.read() != two.read()).sum() <= 1 and one.tags()["tiles"] == "1 x 1"
    for wrong in (["--window", "64"], ["--probabilities"]):
        assert main([*command, *wrong]) == 2
    assert main([*(c for c in command if c != "--whole"), "--spatial", "2"]) == 2
    assert "--spatial cuts scenes that are labelled whole" in capsys.readouterr().err


def test_under_torchrun_there_are_as_many_ranks_as_tiles(tmp_path, checkpoint, monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="2x2 tiles need 4 ranks and torchrun started 2; start as many"):
        predict_scenes_whole(checkpoint, [], [], Grid(2, 2), "cpu")
