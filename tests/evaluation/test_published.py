"""The published numbers: what follows from them, their errors, and the figure that shows them beside ours."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from rsseglab.errors import UserError
from rsseglab.evaluation import published_bicor_seg, published_fctl, published_rest
from rsseglab.evaluation.published import BICOR_SEG_TABLES, FCTL_TABLES, PROTOCOL, published, published_numbers
from rsseglab.plots import window_curves
from rsseglab.scenes.manifest import manifest_names

COLUMNS = ["dataset", "method", "train_px", "test_px", "measure", "value", "error", "tag", "source"]


def test_every_number_says_how_it_was_had():
    numbers = published_numbers()
    assert len(numbers) == sum(len(block["rows"]) for block in published()["tables"]) > 500
    for column in (*PROTOCOL, "source", "method", "measure", "unit"):
        assert numbers[column].str.len().gt(0).all(), column
    assert set(numbers["tag"]) == {"printed", "digitised", "third party"}
    assert set(numbers["manifest"]) <= set(manifest_names())
    assert not numbers.duplicated(
        ["paper", "table", "dataset", "method", "class", "train_px", "test_px", "measure"]
    ).any()
    # A block's own protocol wins over its data set's, and that over its paper's.
    rest = numbers[(numbers["paper"] == "rest") & (numbers["table"] == "headline")].set_index("dataset")
    assert (
        rest.loc["FBP", "runs"].str.startswith("about five").all() and (rest.loc["UAVid", "runs"] == "not stated").all()
    )
    assert rest.loc["GLH-Water", "metric"].iloc[0] == "IoU of water"


def best(curves, dataset, method):
    return curves[(curves["dataset"] == dataset) & (curves["method"] == method)]["value"].max()


def test_gains_over_the_best_cropping_in_the_authors_plots():
    curves = published_rest("window curve")
    gains = {"FBP": 0.0228, "GLH-Water": 0.0178, "WHU-OHS": 0.0073, "UAVid": 0.0069}
    for dataset, gain in gains.items():
        assert best(curves, dataset, "REST") - best(curves, dataset, "baseline") == pytest.approx(gain, abs=1e-9)
    assert curves.groupby("dataset").size().to_dict() == {"FBP": 38, "GLH-Water": 38, "WHU-OHS": 42, "UAVid": 15}
    assert curves.groupby("dataset")["test_px"].max().to_dict() == {
        "FBP": 7200, "GLH-Water": 12800, "WHU-OHS": 6752, "UAVid": 4096,
    }  # fmt: skip


def test_every_number_says_where_it_is_from_and_how_far_it_may_be_off():
    tags = {"window curve": "digitised", "headline": "printed", "communication": "third party", "time": "digitised"}
    for table, tag in tags.items():
        rows = published_rest(table)
        assert list(rows.columns) == COLUMNS
        assert set(rows["tag"]) == {tag}
        assert rows["source"].str.len().gt(0).all()
        shares = rows[~rows["measure"].isin(["seconds", "seconds_saved"])]
        assert shares["value"].between(0, 1).all()
        assert shares["error"].between(0, 0.0051).all()
        assert not rows.duplicated(["dataset", "method", "train_px", "test_px", "measure"]).any()
    curves = published_rest("window curve")
    assert set(curves["error"]) == {0.0003, 0.001}
    assert curves.groupby("dataset")["measure"].unique().map(list).to_dict()["GLH-Water"] == ["iou"]


def test_headline_communication_and_time():
    headline = published_rest("headline").set_index(["dataset", "measure"])["value"]
    assert headline["FBP", "miou"] == pytest.approx(0.7295)
    assert headline["GLH-Water", "f1"] == pytest.approx(0.9426)
    told = published_rest("communication")
    exchange = told[told["measure"] == "miou"].set_index("method")["value"]
    assert exchange["REST"] - exchange["REST, no exchange"] == pytest.approx(0.0051)
    assert exchange["REST"] - exchange["REST, no exchange at stride 4"] == pytest.approx(0.0007)
    assert told.set_index("measure")["value"]["seconds_saved"] == 7.6
    encoders, repeats = (published_rest(table).set_index("method")["value"] for table in ("encoders", "repeats"))
    assert encoders["SkySense + UPerNet, REST"] == pytest.approx(headline["FBP", "miou"])  # the best of the repeats
    assert encoders["SkySense + UPerNet, REST"] > repeats["REST, mean of about five runs"]
    time = published_rest("time").pivot(index="method", columns="measure", values="value")
    assert len(time) == 24
    assert time.loc["SkySense+REST"].to_dict() == {"iou": pytest.approx(0.8929), "seconds": 41.7}
    with pytest.raises(UserError, match="no published table 'speed'; choose from window curve"):
        published_rest("speed")


def test_fctl_as_its_paper_prints_it():
    cost = published_fctl("cost").set_index(["dataset", "method", "measure"])["value"]
    assert cost["DeepGlobe", "FCtL", "memory"] == 3167 and cost["Inria Aerial", "FCtL", "seconds"] == 26
    for table in FCTL_TABLES[:-1]:
        rows = published_fctl(table)
        assert list(rows.columns) == ["dataset", "method", "measure", "value", "error", "tag", "source"]
        assert set(rows["tag"]) == {"printed"} and set(rows["dataset"]) == {"DeepGlobe", "Inria Aerial"}
        assert rows["value"].between(0, 1).all() and rows["error"].isin([0.00005, 0.0005]).all()
        assert not rows.isna().any().any() and not rows.duplicated(["dataset", "method", "measure"]).any()
    contexts = published_fctl("contexts").pivot(index="method", columns="dataset", values="value")
    gain = (contexts - contexts.loc["none"]) * 100
    assert gain.loc["local, medium, large"].to_dict() == {
        "DeepGlobe": pytest.approx(1.38), "Inria Aerial": pytest.approx(4.45),
    }  # fmt: skip
    assert gain.loc["local"].to_dict() == {"DeepGlobe": pytest.approx(0.28), "Inria Aerial": pytest.approx(3.42)}
    with pytest.raises(UserError, match="no published table 'speed'; choose from comparison"):
        published_fctl("speed")


def test_fctl_tables_agree_where_they_give_the_same_number():
    """All contexts, adaptively fused, patches averaged: in four tables; the refined result: in two, once rounded."""
    tables = {table: published_fctl(table) for table in FCTL_TABLES[:-1]}
    same = {
        "contexts": "local, medium, large",
        "fusion": "adaptive",
        "merging": "averaging",
        "sizes": {"DeepGlobe": "508, 1524, 2448", "Inria Aerial": "508, 1016, 1524"},
    }
    for dataset in ("DeepGlobe", "Inria Aerial"):
        values = {
            t: v for t, rows in tables.items() for v in [rows[rows["dataset"] == dataset].set_index("method")["value"]]
        }
        found = {values[t][m[dataset] if isinstance(m, dict) else m] for t, m in same.items()}
        assert len(found) == 1
        whole = (
            tables["comparison"].query("dataset == @dataset and method == 'FCtL' and measure == 'miou'")["value"].item()
        )
        assert values["merging"]["refined, context of 1016 px"] == pytest.approx(whole, abs=0.00051)
        assert values["correlation"]["correlation"] == whole


def test_bicor_seg_as_its_paper_prints_it():
    columns = ["dataset", "method", "class", "measure", "value", "error", "tag", "source"]
    counts = {"comparison": 18 * 8 + 9 * 8 + 9 * 8 - 2, "components": 5 + 2 * 3, "layers": 3 * 3}
    for table in BICOR_SEG_TABLES:
        rows = published_bicor_seg(table)
        assert list(rows.columns) == columns and len(rows) == counts[table] and set(rows["tag"]) == {"printed"}
        shares = rows[rows["measure"].isin(["iou", "f1", "miou", "mf1", "oa"])]
        assert shares["value"].between(0, 1).all() and shares["error"].isin([0.00005, 0.0005]).all()
        assert rows["class"].notna().equals(rows["measure"].isin(["iou", "f1"]))
        assert not rows.duplicated(["dataset", "method", "class", "measure"]).any()
    parts = published_bicor_seg("components").pivot(index="method", columns="measure", values="value")
    gains = 100 * (parts["miou"] - parts.loc["HBIS", "miou"])
    assert gains.to_dict() == pytest.approx(
        {"cross attention": -0.95, "HBIS": 0, "HBIS + FD": 0.06, "HBIS + HM": 0.21, "HBIS + FD + HM": 0.34}
    )
    assert parts.loc["HBIS", ["parameters", "flops", "images_per_second"]].tolist() == [89.5, 87.8, 65.17]
    layers = published_bicor_seg("layers").pivot(index="method", columns=["dataset", "measure"], values="value")
    assert list(layers.index) == ["1", "2", "3"] and layers["LoveDA", "parameters"].tolist() == [89.0, 89.5, 90.0]
    assert layers.loc["2", ("LoveDA", "miou")] == parts.loc["HBIS + FD + HM", "miou"]
    with pytest.raises(UserError, match="no published table 'speed'; choose from comparison"):
        published_bicor_seg("speed")


def test_bicor_seg_means_are_those_of_the_classes():
    """IoU is F1 / (2 - F1); what the printed means miss by, where that is more than rounding, is listed."""
    rows = published_bicor_seg("comparison")
    off = {}
    for key, its in rows.groupby(["dataset", "method"]):
        measure = "iou" if key[0] == "LoveDA" else "f1"
        scores = its.loc[its["measure"] == measure, "value"]
        means = its.set_index("measure")["value"]
        iou = scores if measure == "iou" else scores / (2 - scores)
        off[key] = 100 * (iou.mean() - means["miou"])
        if measure == "f1" and key != ("ISPRS Potsdam", "U-Net"):
            assert scores.mean() == pytest.approx(means["mf1"], abs=0.00025), key
    beyond = {key: value for key, value in off.items() if abs(value) > 0.0605}
    assert beyond == pytest.approx(
        {
            ("LoveDA", "SemanticFPN"): -0.186,
            ("ISPRS Vaihingen", "DANet"): -0.215,
            ("ISPRS Vaihingen", "AFENet"): 0.141,
            ("ISPRS Potsdam", "U-Net"): 1.295,
            ("ISPRS Potsdam", "SFA-Net"): 0.434,
        },
        abs=0.006,
    )


def test_the_figure_marks_what_is_published_and_what_is_ours():
    rows = [("dubai", "crops", px, 0.5, 0.48, 0.53) for px in (1024, 512)] + [("FBP", "spim", 512, 0.7, 0.71, 0.72)]
    ours = pd.DataFrame(rows, columns=["dataset", "method", "test_px", "value", "low", "high"])
    figure = window_curves(published_rest("window curve"), ours)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == ["FBP", "GLH-Water", "WHU-OHS", "UAVid", "dubai"]
    lines = [line for line in panels["FBP"].lines if len(line.get_xdata())]
    mine = [line for line in lines if line.get_label() == "ours: spim"]
    theirs = [line for line in lines if line.get_linestyle() == "--"]
    assert len(mine) == 1 and len(theirs) == 8
    assert all(line.get_markerfacecolor() == "none" for line in theirs)
    assert mine[0].get_markerfacecolor() != "none"
    assert max(max(line.get_ydata()) for line in theirs) == pytest.approx(72.95)  # in percent
    assert panels["GLH-Water"].get_ylabel() == "IoU of water (%)"
    dubai = panels["dubai"]
    assert list(dubai.lines[0].get_xdata()) == sorted(dubai.lines[0].get_xdata())
    (interval,) = dubai.collections
    assert interval.get_segments()[0][:, 1].tolist() == pytest.approx([48, 53])
    assert "digitised from the authors' plots, ±0.03 (±0.1 where faint)" in figure.legends[0].get_title().get_text()
    plt.close(figure)
