"""``python -m rsseglab.spatial.scale``: the network it brings is exact, its record holds what it says."""

import csv
import json

import torch
import torch.nn.functional as F
from equality import same

from rsseglab.spatial import Layout, cut
from rsseglab.spatial.exchange import Traffic
from rsseglab.spatial.scale import UNet, fit, main


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
    for name in ("forward", "forward_backward"):  # the layout's arithmetic is what is sent
        for what in ("bytes", "messages"):
            sent = two[f"{name}_{what}_sent_a_rank" if what == "bytes" else f"{name}_messages_a_rank"]
            assert sent == two[f"{name}_reckoned_{what}_a_rank"] > 0
        assert two[f"{name}_sums"] == two[f"{name}_reckoned_sums"]
    assert len(list(csv.DictReader((tmp_path / "scale.csv").open()))) == 2
    assert (tmp_path / "scale.png").stat().st_size > 1000
    assert "P=2" in capsys.readouterr().out


def test_a_size_that_does_not_halve_is_refused(capsys):
    assert main(["--size", "50"]) == 2
    assert "multiple of 16" in capsys.readouterr().err
    assert main(["--ranks", "1,x"]) == 2
    assert "such as 1,2,4" in capsys.readouterr().err


def test_halo_of_a_convolution_as_a_reader_would_reckon_it():
    """Four bands, a 5 x 5 convolution: an inner band sends two rows to each of two neighbours, an outer to one."""
    layout = Layout(4)
    Traffic.reset()
    x = cut(torch.empty(1, 3, 64, 32, device="meta", requires_grad=True), layout)
    y = F.conv2d(x, torch.empty(7, 3, 5, 5, device="meta"), padding=2)
    row = 3 * 32 * 4
    assert [Traffic.sent["conv2d", t] for t in range(4)] == [2 * row, 4 * row, 4 * row, 2 * row]
    assert Traffic.most() == (4 * row, 2, 0)
    y.sum().backward()
    assert Traffic.sent["backward of conv2d", 1] == 4 * row


def test_fit_finds_the_two_numbers():
    shares, many = [1, 0.5, 0.25], [False, True, True]
    c, d = fit(shares, many, [8.0, 4.5, 2.5])
    assert abs(c - 8) < 1e-9 and abs(d - 0.5) < 1e-9
    assert fit(shares, many, [8.0, 3.9, 1.9])[1] == 0
