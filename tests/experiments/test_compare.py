"""The comparison end to end on two tiny runs, and its tables, page and figures on made records."""

import json
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from made import CLASSES as MADE
from made import make_scene

from rsseglab import plots
from rsseglab.decoders import create_network
from rsseglab.errors import UserError
from rsseglab.evaluation import BlockCounts
from rsseglab.evaluation.receptive_field import receptive_field
from rsseglab.experiments import ablate, page, tables
from rsseglab.experiments import compare as compared
from rsseglab.experiments.compare import PRESETS, TWINS, Method, Preset, compare, config_of, preset_of, scenes_of
from rsseglab.experiments.folds import merge_folds
from rsseglab.fctl import FCtL
from rsseglab.scenes.manifest import load_manifest
from rsseglab.training.records import RunRecord

CLASSES = ("water", "land")
BOOK = Path(__file__).parents[2] / "book"


@pytest.mark.parametrize("name", PRESETS)
def test_every_method_sees_as_many_pixels(name, tmp_path):
    preset = PRESETS[name]
    seen, steps = {}, {}
    for method, its in preset.methods.items():
        config = config_of(preset, its, 0, tmp_path)
        seen[method] = config.batch_size * config.crop_px**2
        steps[its.stage] = steps.get(its.stage, set()) | {(config.steps, config.schedule, config.lr)}
    assert max(seen.values()) <= 1.05 * min(seen.values()), seen
    assert all(len(of_stage) == 1 for of_stage in steps.values())


def test_a_preset_by_its_name():
    assert preset_of("dubai") == PRESETS["dubai"] and preset_of("dubai", quick=True).data == "dubai"
    assert preset_of("twins-near").context_px < TWINS.crop_px < preset_of("twins-far").context_px
    field = receptive_field(create_network(TWINS.encoder, TWINS.decoder, 3, 4).eval(), 3)
    assert max(field.top_px, field.bottom_px, field.left_px, field.right_px) < preset_of("twins-far").context_px
    for wrong in (("inria", False, False), ("twins-far", True, False), ("synthetic", False, True)):
        with pytest.raises(UserError, match="there is no comparison"):
            preset_of(*wrong)


def test_a_group_left_out_in_turn():
    """The GPU's comparison, over the groups of Dubai's scenes that show the same ground; each is tested once."""
    manifest, tested, folds = load_manifest("dubai"), [], PRESETS["dubai-gpu"].folds
    for protocol in folds:
        preset = preset_of(f"dubai:{protocol}", gpu=True)
        assert replace(preset, data="dubai", folds=folds) == PRESETS["dubai-gpu"]
        tested += manifest.split(f"{protocol}/test")
    assert sorted(tested) == sorted(manifest.sizes)


def test_protocols_of_a_data_set(tmp_path):
    for name in ("drei", "zwei", "eins"):
        make_scene(tmp_path, name, 72, 80)
    classes = ", ".join(f'{{name = "{c.name}", value = {c.value}, color = {list(c.color)}}}' for c in MADE)
    text = (
        'name = "made"\ntitle = "Made"\npage = "https://example.org"\nlicence = "CC0"\ncredit = "us"\nget = "made"\n'
        f'bands = ["red", "green", "blue"]\nignore_values = [0]\nclasses = [{classes}]\ntraps = []\n'
        '[layout]\nimage = "{id}_image.tif"\nlabel = "{id}_label.tif"\n'
        '[splits]\ntrain = ["eins"]\nval = ["zwei"]\ntest = ["drei"]\n'
        '[splits.turned]\ntrain = ["drei"]\nval = ["zwei"]\ntest = ["eins"]\n'
        '[splits.other]\ntrain = ["drei"]\nval = ["eins"]\ntest = ["zwei"]\n'
    )
    (tmp_path / "made.toml").write_text(text)
    split = scenes_of(Preset(f"{tmp_path / 'made.toml'}:turned", decimate=2), tmp_path)
    assert [scene.name for part in (split.train, split.val, split.test) for scene in part] == ["drei", "zwei", "eins"]
    assert split.test[0].height == 36
    folds = Preset(
        str(tmp_path / "made.toml"), "test_resnet", window_px=64, crop_px=32, crop_sizes=(32,), steps=1, strides=(16,),
        seeds=(0,), folds=("turned", "other"),
    )  # fmt: skip
    records = tables.read_records(compare(folds, methods=["crops-32"], out=tmp_path / "out", root=tmp_path))
    assert set(records["crops-best"][0].metrics["scenes"]["by validation"]["scenes"]) == {"eins", "zwei"}


def test_folds_of_other_runs(tmp_path):
    for fold, seeds in (("one", (0, 1)), ("two", (0,))):
        (tmp_path / fold).mkdir()
        for seed in seeds:
            made_record(tmp_path / fold, "rest-spim", seed, 0.7, 0.5, way="whole")
    with pytest.raises(UserError, match="rest-spim with seed 1 was run on some folds only"):
        merge_folds([tables.read_records(tmp_path / fold) for fold in ("one", "two")], {})


def test_one_seed_decides_nothing(tmp_path):
    (tmp_path / "made").mkdir()
    made_record(tmp_path / "made", "crops-256", 0, 0.5, 0.5)
    made_record(tmp_path / "made", "rest-spim", 0, 0.9, 0.5, way="whole")
    matrix = tables.verdicts(tables.read_comparisons(tmp_path)).set_index("measure")
    assert matrix.loc["spim_minus_best_crops_miou", "verdict"].startswith("undecided (one seed")


def test_folds_are_scored_together(tmp_path):
    """Scenes of both folds, each labelled as that fold's validation scenes say; costs are means, peaks the highest."""
    folds = []
    for number, (good, also) in enumerate((("crops-128", "crops-256"), ("crops-256", "crops-128"))):
        folder = tmp_path / f"fold{number}"
        folder.mkdir()
        right = {}
        for seed in range(2):
            right[seed] = made_record(folder, good, seed, 0.9, val=0.8, scene=f"s{number}")
            made_record(folder, also, seed, 0.6, val=0.4, scene=f"s{number}")
            made_record(
                folder, "rest-spim", seed, 0.7, 0.5, way="whole", also=("windows of 512 px",), scene=f"s{number}"
            )
        folds.append(tables.read_records(folder))
    preset = asdict(PRESETS["dubai-gpu"]) | {"window_px": 512}
    for name, runs in merge_folds(folds, preset).items():
        for seed, record in runs.items():
            record.write(tmp_path / "all" / f"{name}_seed{seed}.json")
    merged = tables.read_records(tmp_path / "all")
    assert "scored over the folds without_1_3, without_2, " in page.conditions(merged)
    assert list(merged) == ["crops-best", "crops-128", "crops-256", "rest-spim"]
    assert tables.best_crops(merged) == ("crops-best", "by validation")
    counts = merged["crops-best"][1].metrics["scenes"]["by validation"]["scenes"]
    theirs = [
        fold[m][1].metrics["scenes"]["overlap 0.5"]["scenes"]
        for fold, m in zip(folds, ("crops-128", "crops-256"), strict=True)
    ]
    assert counts == theirs[0] | theirs[1] and set(counts) == {"s0", "s1"}
    table = tables.comparison_table(merged)
    assert table.loc["best crops of each fold", "score"] == pytest.approx(right[0], abs=0.05)
    assert table.loc["rest-spim", "s / Mpx"] == 1 and table.loc["rest-spim", "Mpx seen"] == pytest.approx(1e-4)
    found = tables.differences(merged)
    assert found.loc["spim_minus_best_crops_miou", "high"] < 0 and found["blocks"].eq(24).all()
    assert found.loc["spim_whole_minus_windows_miou", "difference"] == 0


def test_twin_scenes_of_a_comparison_are_apart():
    split = scenes_of(Preset("twins", window_px=192, context_px=48))
    names = [scene.name for part in (split.train, split.val, split.test) for scene in part]
    assert len(set(names)) == len(names) and len(split.test) == 16
    one, two = split.test[:2]
    assert (one.read_label() != two.read_label()).any()


def test_two_methods_end_to_end_and_again(tmp_path, capsys):
    tiny = Preset(
        "synthetic", "test_resnet", decimate=8, window_px=64, crop_px=32, crop_sizes=(32,), steps=2, strides=(16,),
        seeds=(0,),
    )  # fmt: skip
    folder = compare(tiny, methods=["crops-32", "rest-spim"], out=tmp_path)
    written = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert set(written) == {"crops-32_seed0.json", "rest-spim_seed0.json"}
    record = RunRecord.read(folder / "rest-spim_seed0.json")
    assert set(record.metrics["pooled"]["ways"]) == {"whole", "windows of 64 px"}
    compare(tiny, methods=["crops-32", "rest-spim"], out=tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("*.json")} == written
    tables.print_tables(folder)
    said = capsys.readouterr().out
    assert "REST: tiles meet in SPIM less crops of 32 px" in said and (folder / "differences.csv").is_file()
    # What a record holds is enough to score anew.
    counts = record.metrics["scenes"]["whole"]["scenes"].values()
    confusion = sum((BlockCounts.from_json(c).confusion.matrix for c in counts), start=0)
    iou = record.metrics["pooled"]["ways"]["whole"]["mean_iou"]
    tp, union = np.diag(confusion), confusion.sum(1) + confusion[:, :-1].sum(0) - np.diag(confusion)
    assert np.mean(tp[union > 0] / union[union > 0]) == pytest.approx(iou)


def test_unknown_methods(tmp_path):
    with pytest.raises(UserError, match="unknown method 'magic'"):
        compare(PRESETS["quick"], methods=["magic"], out=tmp_path)
    with pytest.raises(UserError, match="starts from crops-96"):
        compare(PRESETS["quick"], methods=["two-stage-spim"], out=tmp_path)
    with pytest.raises(UserError, match="no record of a comparison"):
        tables.read_records(tmp_path)


def made_record(
    folder, method, seed, right, val, preset="synthetic", way="overlap 0.5", also=(), context_px=0, scene="s"
):
    """A method that labels ``right`` of 100 pixels of each of 12 blocks as they are."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((12, 2, 3), np.int64)
    for block in counts:
        hits = rng.binomial(100, right)
        block[0, 0], block[0, 1], block[1, 1], block[1, 0] = hits, 100 - hits, hits, 100 - hits
    its = BlockCounts(scene, CLASSES, 64, counts)
    score = {
        "mean_iou": its.confusion.mean_iou(), "mean_boundary_f1": 0.5, "seconds_per_mpx": 1.0, "peak_mib": 10.0,
        "pair_accuracies": [right, right],
    }  # fmt: skip
    ways = dict.fromkeys((way, *also), score)
    chosen = {"way": way, "val_mean_iou": val, "scores": {} if way == "whole" else {way: val}}
    preset = asdict(Preset(preset, window_px=512, context_px=context_px))
    RunRecord(
        command=["compare"],
        configuration={"preset": preset, "compared": method, "crop_px": 256},
        metrics={
            "pooled": {
                "title": method, "ways": ways, "chosen": chosen,
                "training_seconds": 1.0, "training_peak_mib": 1.0, "parameters": 10, "gflops_per_mpx": 1.0,
                "pixels_seen": 100,
            },
            "scenes": {name: {"scenes": {scene: its.to_json()}} for name in ways},
        },
        seeds=[seed],
        minutes=1.0,
    ).write(folder / f"{method}_seed{seed}.json")  # fmt: skip
    return its.confusion.mean_iou()


def test_differences_are_of_the_best_crops_by_validation(tmp_path):
    scores = {}
    for method, right, val in (("crops-256", 0.7, 0.8), ("crops-128", 0.9, 0.4), ("rest-spim", 0.8, 0.5)):
        scores[method] = np.mean([made_record(tmp_path, method, seed, right, val) for seed in range(3)])
    records = tables.read_records(tmp_path)
    assert list(records) == ["crops-128", "crops-256", "rest-spim"]
    assert tables.best_crops(records) == ("crops-256", "overlap 0.5")
    row = tables.differences(records).loc["spim_minus_best_crops_miou"]
    assert row["difference"] == pytest.approx(scores["rest-spim"] - scores["crops-256"]) and row["low"] > 0
    assert tables.claim_numbers(records).keys() == {"spim_minus_best_crops_miou"}
    table = tables.comparison_table(records)
    assert table.loc["rest-spim", "score"] == pytest.approx(scores["rest-spim"])
    assert "rest-spim" in tables.shown(table).to_string()


def test_the_whole_scene_as_a_context_is_looked_at_once_for_all_windows():
    def gflops(*contexts):
        network = FCtL("test_resnet", contexts, 2, 3, decoder="fcn").eval()
        method = Method("", "contexts", crop_px=32, options={"contexts": contexts})
        trained, scene = SimpleNamespace(network=network, bands="rgb"), SimpleNamespace(height=96, width=64)
        return compared._gflops(TWINS, method, trained, scene, "overlap 0") * (96 * 64) / 1e6  # of 6 windows

    # Beside their encoder both have an attention, which each window needs.
    alone, scale, scene, itself = gflops(), gflops(2), gflops("scene"), gflops(1)
    assert scale - scene == pytest.approx((scale - itself) * 5 / 6, rel=1e-6) and itself > alone


def test_records_of_two_comparisons_do_not_mix(tmp_path):
    made_record(tmp_path, "crops-256", 0, 0.7, 0.5)
    made_record(tmp_path, "rest-spim", 0, 0.7, 0.5, preset="other")
    with pytest.raises(UserError, match="records of several comparisons"):
        tables.read_records(tmp_path)
    content = json.loads((tmp_path / "crops-256_seed0.json").read_text())
    assert content["configuration"]["preset"]["data"] == "synthetic"


def test_settings_that_older_records_do_not_name(tmp_path):
    """They may be new; but two new records must agree on them, and what was trained before had a loss."""

    def name_setting(method, **settings):
        made_record(tmp_path, method, 0, 0.7, 0.5)
        path = tmp_path / f"{method}_seed0.json"
        content = json.loads(path.read_text())
        preset = content["configuration"]["preset"]
        for key in ("loss", "contexts"):
            preset.pop(key, None)
        preset.update(settings)
        record = RunRecord.read(path)
        RunRecord(
            command=record.command, configuration=content["configuration"], metrics=record.metrics, seeds=record.seeds,
            minutes=record.minutes,
        ).write(path)  # fmt: skip

    name_setting("crops-256")
    name_setting("fctl", loss="ce+dice", contexts=[1, 2])
    assert list(tables.read_records(tmp_path)) == ["crops-256", "fctl"]
    name_setting("rest-spim", loss="ce+dice", contexts=[1, 3])
    with pytest.raises(UserError, match="several comparisons"):
        tables.read_records(tmp_path)
    (tmp_path / "rest-spim_seed0.json").unlink()
    name_setting("fctl", loss="focal")
    with pytest.raises(UserError, match="several comparisons"):
        tables.read_records(tmp_path)


def test_what_is_missing_is_said(tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    made_record(folder, "crops-256", 1, 0.7, 0.5)
    missing = tables.missing_runs(tables.read_records(folder))
    assert missing["crops-256"] == [0, 2] and missing["rest-spim"] == [0, 1, 2]
    said = page.page(tmp_path)
    assert "crops-256 (seed 0, 2); crops-512 (seed 0, 1, 2)" in said and "## some" in said
    assert "No comparison is recorded yet" in page.page(folder)  # it has no subfolder


def test_the_page_says_what_the_tables_do(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    for seed in range(3):
        made_record(folder, "crops-256", seed, 0.7, 0.5)
        made_record(folder, "rest-spim", seed, 0.9, 0.5, way="whole", also=("windows of 512 px",))
    comparisons = tables.read_comparisons(tmp_path)
    row = tables.differences(comparisons["made"]).loc["spim_minus_best_crops_miou"]
    said = page.page(tmp_path)
    cells = "| REST labels better than the best cropping. |"
    line = next(line for line in said.splitlines() if line.startswith(cells))
    assert "made, 3 seeds, incomplete" in line and line.endswith("| > 0 | supported |")
    assert f"| {100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}] |" in said
    # The same predictions, whole and in windows: no difference at all, which supports nothing.
    matrix = tables.verdicts(comparisons).set_index("measure")
    assert tuple(matrix.loc["spim_whole_minus_windows_miou", ["value", "verdict"]]) == (0, "not supported")
    assert matrix.loc["memory_ratio", "verdict"] == "not measured yet" and matrix["claim"].is_unique


def test_benchmarks_decide_claims_too(tmp_path):
    numbers = {"spim_layer_difference": [1e-15, 1e-15, 1e-15], "parallel_efficiency": [0.75, 0.7, 0.9]}
    for name, metrics in (("benchmark_one", {"claims": numbers}), ("benchmark_two", {"claims": {}}), ("other", {})):
        RunRecord(["c"], {}, {"pooled": metrics, "scenes": {}}, [0], 1.0).write(tmp_path / f"{name}.json")
    found = tables.benchmark_numbers(tmp_path)
    assert found == {"benchmark one": {name: tuple(number) for name, number in numbers.items()}}
    matrix = tables.verdicts({}, found).set_index("measure")
    assert tuple(matrix.loc["spim_layer_difference", ["verdict", "on"]]) == ("supported", "benchmark one")
    assert matrix.loc["parallel_efficiency", "verdict"].startswith("undecided")
    assert matrix.loc["memory_ratio", "verdict"] == "not measured yet"
    (tmp_path / "compare").mkdir()
    assert "| benchmark one | 1e-15 [1e-15, 1e-15] |" in page.page(tmp_path / "compare")


def test_the_page_has_the_table_of_memory(tmp_path):
    found = {"peak_mib_1": 1000.0, "peak_mib_2": 520.0, "ratio_1": 1.0, "ratio_2": 1.04}
    settings = {"size": 2048, "encoder": "e", "interaction": "exact+spim"}
    record = RunRecord(["c"], settings, {"pooled": found, "scenes": {}}, [0], 1.0)
    record.write(tmp_path / "benchmark_training_memory.json")
    (tmp_path / "compare").mkdir()
    said = page.page(tmp_path / "compare")
    assert "REST, exact+spim, e, U-Net, one scene of 2048 x 2048 px" in said and "| 2 | 520 | 1.04 |" in said


def test_twins_whose_key_lies_within_a_crop_decide_nothing(tmp_path):
    for context_px, decided in ((160, False), (300, True)):
        folder = tmp_path / f"twins-{context_px}"
        folder.mkdir()
        made_record(folder, "crops-256", 0, 0.5, 0.5, preset="twins", context_px=context_px)
        assert bool(tables.claim_numbers(tables.read_records(folder))) is decided
    assert "Twin scenes of 512 px, the key 300 px from every field" in page.page(tmp_path)


@pytest.mark.parametrize("place", sorted((BOOK / "records" / "ablate").glob("*")), ids=lambda place: place.name)
def test_the_pages_of_ablations_are_what_their_records_say(place):
    assert (BOOK / f"ablation_{place.name}.md").read_text() == ablate.page(place)


@pytest.mark.skipif(not (BOOK / "comparison.md").is_file(), reason="the book has no page of the comparison yet")
def test_the_books_page_is_made_of_its_records():
    assert (BOOK / "comparison.md").read_text() == page.page(BOOK / "records" / "compare")


def test_intervals_that_hold_the_reference_are_hollow():
    axes = plots.plt.figure().subplots()
    table = pd.DataFrame({"value": [0.1, 0.2], "low": [-0.1, 0.1], "high": [0.3, 0.3]}, index=["open", "closed"])
    plots.intervals(axes, table, reference=0)
    dots = [line.get_markerfacecolor() for line in axes.lines if line.get_marker() == "o"]
    assert dots[0] == "white" and dots[1] != "white"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["open", "closed"]
    plots.plt.close("all")


KILLED = """
import sys, time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from rsseglab.experiments.compare import _begin_worker

def beat(path):
    while True:
        Path(path).touch()
        time.sleep(0.1)

if __name__ == "__main__":
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=_begin_worker) as pool:
        pool.submit(beat, sys.argv[1]).result()
"""


def test_runs_side_by_side_end_with_who_started_them(tmp_path):
    script, beat = tmp_path / "killed.py", tmp_path / "beat"
    script.write_text(KILLED)
    parent = subprocess.Popen([sys.executable, script, beat])
    assert wait_for(beat.is_file)
    parent.kill()
    parent.wait()
    assert wait_for(lambda: time.time() - beat.stat().st_mtime > 3)


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return met
