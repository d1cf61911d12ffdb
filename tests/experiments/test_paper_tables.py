"""The papers' tables: cells are the file's or a record's, what has no run says so, and damaged records are refused."""

import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from rsseglab.cli import main
from rsseglab.errors import UserError
from rsseglab.evaluation.published import published_numbers
from rsseglab.experiments.ablate import KINDS
from rsseglab.experiments.paper_tables import BESIDE, NOT_RUN, Ours, page, read_ours
from rsseglab.experiments.paper_tables import paper_tables as made
from rsseglab.experiments.presets import load_preset
from rsseglab.training.records import RunRecord

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"


def table(tables, paper, title):
    (found,) = (one for one in tables if one.paper == paper and one.title == title)
    return found


def preset_record(folder, seed, score, **changes):
    configuration = {
        "preset": "fctl-inria", "data": "inria", "steps": 127_050, "batch_size": 6, "lr": 5e-5, "encoder": "vgg16",
        "decoder": "unet",
    }  # fmt: skip
    scores = {"mean_iou": 0.9, "mean_f1": 0.8, "overall_accuracy": 0.95, "protocols": {"fctl": {"mean_iou": score}}}
    record = RunRecord(
        ["rsseglab", "train"], configuration | changes, {"pooled": {"test": scores}, "scenes": {}}, [seed], 60.0
    )
    record.write(folder / f"run{seed}" / "record.json")


def test_without_a_record_every_table_says_so():
    tables = made(Ours())
    assert {one.paper for one in tables} == {"rest", "fctl", "bicor_seg", "penet"}
    for one in tables:
        if not one.title.startswith("How the published"):
            assert NOT_RUN in one.frame.to_string() or NOT_RUN in " ".join(one.notes), one.title


def test_published_cells_are_those_of_the_file():
    """Each mean of the file is in a table of its paper, with its digits."""
    tables = made(Ours(), ["fctl", "bicor_seg"])
    contexts = table(tables, "fctl", "Contexts").frame
    assert contexts.loc["medium", "DeepGlobe: mIoU, %"] == "72.67"
    assert table(tables, "bicor_seg", "Components").frame.loc["HBIS", "parameters, M"] == "89.5"
    for paper in ("fctl", "bicor_seg"):
        cells = {cell for one in tables if one.paper == paper for cell in one.frame.to_numpy().ravel()}
        numbers = published_numbers().query("paper == @paper and `class`.isna()")
        for value, error in zip(numbers["value"], numbers["error"], strict=True):
            assert f"{value:.{2 if error < 0.05 else 1 if error < 0.5 else 0}f}" in cells
    with pytest.raises(UserError, match="there is no paper 'unet'; choose from rest, fctl"):
        made(Ours(), ["unet"])


def test_rows_that_ours_stand_beside_exist():
    numbers = published_numbers()
    for paper, tables in BESIDE.items():
        kind = KINDS[paper]
        methods = {*kind("synthetic").methods, *kind("synthetic").croppings(512)}
        for name, rows in tables.items():
            theirs = numbers[(numbers["paper"] == paper) & (numbers["table"] == name)]["method"]
            assert set(rows) <= set(theirs) and set(rows.values()) <= methods, (paper, name)


def test_a_run_by_a_preset_fills_its_row(tmp_path):
    preset_record(tmp_path, 0, 0.735)
    (tmp_path / "records").mkdir()
    ours = read_ours(tmp_path / "records", [tmp_path])
    frame = table(made(ours, ["fctl"]), "fctl", "Comparison: Inria Aerial").frame
    row = frame.loc["FCtL, ours (fctl-inria)"]
    assert row.to_list() == ["73.50, one seed", *["not scored: hidden labels, or no such measure"] * 2]
    preset_record(tmp_path, 1, 0.745, steps=10)
    found = table(made(read_ours(tmp_path / "records", [tmp_path]), ["fctl"]), "fctl", "Comparison: Inria Aerial")
    assert found.frame.loc["FCtL, ours (fctl-inria)"].iloc[0] == "74.00 [73.50, 74.50], 2 seeds"
    notes = " ".join(found.notes)
    assert "seed 1: 60 minutes" in notes and "not the preset's: steps 10" in notes
    assert table(made(ours, ["fctl"]), "fctl", "Comparison: DeepGlobe").frame.iloc[-1, 0] == NOT_RUN


def test_a_run_on_other_data_fills_no_row(tmp_path):
    preset_record(tmp_path, 0, 0.735, data="synthetic")
    found = table(made(read_ours(tmp_path), ["fctl"]), "fctl", "Comparison: Inria Aerial")
    assert found.frame.iloc[-1, 0] == NOT_RUN


def test_a_number_of_one_class_stands_beside_that_class(tmp_path):
    scores = {"mean_iou": 0.9, "iou": {"background": 0.95, "water": 0.85}, "f1": {"background": 0.97, "water": 0.92}}
    its = {"preset": "rest-glh_water", **load_preset("rest-glh_water").settings}
    RunRecord(["c"], its, {"pooled": {"test": scores}, "scenes": {}}, [0], 1.0).write(tmp_path / "one.json")
    frame = table(made(read_ours(tmp_path), ["rest"]), "rest", "Whole scenes: GLH-Water").frame
    assert frame.iloc[-1].to_list() == ["85.00, one seed", "92.00, one seed"]


def test_records_that_are_damaged_or_edited_are_refused(tmp_path):
    preset_record(tmp_path, 0, 0.735)
    path = tmp_path / "run0" / "record.json"
    path.write_text(path.read_text().replace("0.735", "0.835"))
    with pytest.raises(UserError, match=r"run0/record\.json was edited after it was written"):
        read_ours(tmp_path)
    path.write_text(json.dumps({"schema_version": 2}))
    with pytest.raises(UserError, match=r"run0/record\.json: it has no 'created'|key 'schema_version' is 2"):
        read_ours(tmp_path)
    path.unlink()
    scale = tmp_path / "scale_x.json"
    shutil.copy(BOOK / "records" / "scale_cpu_2_cores.json", scale)
    assert read_ours(tmp_path).scaling.keys() == {"scale_x"}
    scale.write_text(json.dumps(json.loads(scale.read_text()) | {"rows": [{"ranks": 2}]}))
    with pytest.raises(UserError, match=r"scale_x\.json: key 'rows\[0\]' has no 'kind'"):
        read_ours(tmp_path)
    scale.write_text("{")
    with pytest.raises(UserError, match=r"scale_x\.json cannot be read as JSON"):
        read_ours(tmp_path)
    with pytest.raises(UserError, match="none is no folder"):
        read_ours(tmp_path / "none")


def test_the_command_prints_and_writes(tmp_path, capsys):
    here = ["tables", "bicor_seg", "--records", str(tmp_path)]
    assert main(here) == 0
    assert "bicor_seg: Number of layers" in capsys.readouterr().out
    assert main([*here, "--format", "csv", "--out", str(tmp_path / "t.csv")]) == 0
    cells = pd.read_csv(io.StringIO((tmp_path / "t.csv").read_text()), dtype=str)
    its = cells[(cells["table"] == "Components") & (cells["row"] == "HBIS") & (cells["column"] == "mIoU, %")]
    assert its["cell"].to_list() == ["55.15"] and its["notes"].str.contains("Not comparable").all()
    assert main([*here, "--format", "markdown"]) == 0
    assert capsys.readouterr().out.startswith("# The papers' tables, ours beside")
    assert main([*here, "--format", "html"]) == 2 and "no format 'html'" in capsys.readouterr().err
    assert main([*here, "--out", str(tmp_path)]) == 2 and "cannot be written" in capsys.readouterr().err


@pytest.mark.skipif(not (BOOK / "tables.md").is_file(), reason="the book has no page of tables yet")
def test_the_books_page_is_made_of_its_records():
    assert (BOOK / "tables.md").read_text() == page(made(read_ours(BOOK / "records")))


def test_the_requirements_are_the_records_environment():
    """The last environment is pinned; of packages that other records had otherwise, a comment says which."""
    lines = (ROOT / "requirements" / "records.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    also = {tuple(word.split("==")) for line in lines if line.startswith("#") for word in line.split() if "==" in word}
    records = [RunRecord.read(p) for p in (BOOK / "records").rglob("*.json") if not p.name.startswith("scale")]
    assert {name for record in records for name in record.packages} - {"python", "rsseglab"} == set(pins)
    for record in records:
        for name, version in record.packages.items():
            if name != "rsseglab":
                assert pins.get(name) == version or (name, version) in also, (name, version)
    last = max(records, key=lambda record: record.created)
    assert pins == {name: version for name, version in last.packages.items() if name in pins}
