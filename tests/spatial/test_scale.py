"""``python -m rsseglab.spatial.scale``: the network it brings is exact, its record holds what it says."""

import csv
import json

import torch
from equality import same

from rsseglab.spatial import Layout
from rsseglab.spatial.scale import UNet, main


def test_its_unet_is_exact_on_tiles():
    torch.manual_seed(0)
    same(UNet(width=4, depth=3).double(), torch.randn(1, 3, 72, 40).double(), Layout(3))


def test_one_command_writes_record_table_and_plot(tmp_path, capsys):
    options = ["--ranks", "1,2", "--size", "64", "--width", "4", "--repeats", "1", "--no-weak"]
    assert main([*options, "--out", tmp_path.as_posix()]) == 0
    record = json.loads((tmp_path / "scale.json").read_text())
    one, two = record["rows"]
    assert one["ranks"] == 1 and two["ranks"] == 2 and one["forward_bytes_sent_a_rank"] == 0
    # halo of the first convolution of 64 x 64: one row of 3 channels; the forward pass sends at least that
    assert two["forward_bytes_sent_a_rank"] > 64 * 3 * 4
    assert len(list(csv.DictReader((tmp_path / "scale.csv").open()))) == 2
    assert (tmp_path / "scale.png").stat().st_size > 1000
    assert "P=2" in capsys.readouterr().out


def test_a_size_that_does_not_halve_is_refused(capsys):
    assert main(["--size", "50"]) == 2
    assert "multiple of 16" in capsys.readouterr().out
