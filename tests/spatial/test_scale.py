"""``python -m rsseglab.spatial.scale``: the network it brings is exact, its record holds what it says."""

import csv
import json

import pytest
import torch
import torch.nn.functional as F
from equality import same

from rsseglab.spatial import Layout, cut, scale
from rsseglab.spatial.exchange import Traffic
from rsseglab.spatial.scale import UNet, fit, main, parser, with_model, write


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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--size 50", "multiple of 16"),
        ("--size 16", "from 32 on"),  # one pixel would be left, of which batch norm has no variance
        ("--ranks 1,x", "such as 1,2,4"),
        ("--ranks 1,65 --size 64", "65 ranks are more"),
        ("--tiles 33 --size 32", "33 tiles are more"),
        ("--repeats 0", "at least 1"),
    ],
)
def test_what_can_not_be_measured_is_refused_in_one_line(options, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert main([*options.split(), "--out", out.as_posix()]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not out.exists()


def test_a_folder_that_can_not_be_made_is_refused_before_measuring(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(["--out", (tmp_path / "file").as_posix()]) == 2
    error = capsys.readouterr().err
    assert "File exists" in error and "scaling" not in error and error.count("\n") == 1


def test_ctrl_c_is_one_line_and_leaves_no_file(tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(scale, "launch", interrupted)
    assert main(["--size", "64", "--out", tmp_path.as_posix()]) == 130
    assert "interrupted" in capsys.readouterr().err.splitlines()[-1] and not list(tmp_path.iterdir())


def test_without_one_rank_the_least_is_the_base_and_the_record_says_which(tmp_path):
    rows = [_row(ranks, seconds) for ranks, seconds in ((2, 4.0), (4, 2.5))]
    options = parser().parse_args(["--out", tmp_path.as_posix()])
    assert [r["forward_efficiency"] for r in with_model(rows)] == [1, 0.8]
    assert "forward_fit_seconds" not in rows[0]  # two numbers make no fit
    write(rows, options)
    assert json.loads((tmp_path / "scale.json").read_text())["options"]["ranks"] == "2,4"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["scale.csv", "scale.json", "scale.png"]


def test_a_fit_from_three_numbers_on():
    rows = with_model([_row(ranks, 8 / ranks + (ranks > 1)) for ranks in (1, 2, 4)])
    assert [round(r["forward_fit_seconds"], 9) for r in rows] == [8, 5, 3]


def _row(ranks, seconds):
    row = {"kind": "strong", "ranks": ranks, "work_share": 1 / ranks, "latency_s": 0, "sum_latency_s": 0}
    for name in ("forward", "forward_backward"):
        row |= {f"{name}_seconds": seconds, f"{name}_mpx_per_s": 1 / seconds}
        row |= {f"{name}_reckoned_{what}": 0 for what in ("messages_a_rank", "bytes_a_rank", "sums")}
    return row | {"bandwidth_bytes_per_s": 1}


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
    assert fit(shares, many, [0.1, 3.0, 5.0]) == (0, 4)  # more workers than cores: nothing is shared out
