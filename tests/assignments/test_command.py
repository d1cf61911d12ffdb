"""``rsseglab assignments``, as a teacher types it."""

import numpy as np
import pytest
import rasterio

from rsseglab.assignments import NAMES
from rsseglab.cli import main


def refused(capsys, *arguments):
    assert main(["assignments", *map(str, arguments)]) == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def failed(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(["assignments", *map(str, arguments)])
    return ended.value.code


def test_list(capsys):
    assert main(["assignments", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(NAMES)
    assert all(line.split()[1] == "10" for line in lines)


def test_build_then_check_both_ways(tmp_path, capsys):
    assert main(["assignments", "build", "--only", "iou", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert main(["assignments", "check", str(tmp_path / "solution/iou.ipynb"), "--hidden", "17"]) == 0
    assert "10 / 10" in capsys.readouterr().out
    assert failed("check", tmp_path / "student/iou.ipynb") == 1
    assert " 0 / 10" in capsys.readouterr().out
    assert main(["assignments", "check", "--only", "iou"]) == 0  # its own solution and stub
    assert "iou: the solution passes all checks, the stub none" in capsys.readouterr().out


def test_what_cannot_be_done_is_refused(tmp_path, capsys):
    assert "no assignment 'hola'" in refused(capsys, "build", "--only", "hola", "--out", tmp_path)
    assert "cannot be read" in refused(capsys, "check", tmp_path / "iou.ipynb")
    (tmp_path / "mine.py").write_text("x = 1")
    assert "name it with --only" in refused(capsys, "check", tmp_path / "mine.py")
    assert "name one after --only" in refused(capsys, "check", tmp_path / "mine.py", "--only", "iou", "halo")
    assert "more than 0" in refused(capsys, "check", tmp_path / "mine.py", "--only", "iou", "--seconds", "-1")
    assert "--seed is of 'rsseglab assignments capstone'" in refused(capsys, "list", "--seed", 0)
    assert "--hidden is of 'rsseglab assignments check'" in refused(capsys, "build", "--hidden")
    assert "a file is of 'rsseglab assignments check'" in refused(capsys, "list", "mine.py")
    assert "--only is of" in refused(capsys, "capstone", "--only", "iou", "--seed", "3")
    assert "give both: check MAP.tif --label" in refused(capsys, "check", tmp_path / "map.tif")
    assert "checked apart" in refused(capsys, "check", tmp_path / "map.tif", tmp_path / "mine.py")


@pytest.fixture(scope="module")
def capstone(tmp_path_factory):
    out = tmp_path_factory.mktemp("capstone")
    assert main(["assignments", "capstone", "--seed", "20", "--size", "256", "--out", str(out)]) == 0
    return out


def test_the_capstone_s_label_stays_with_the_teacher(capstone, capsys):
    assert sorted(str(p.relative_to(capstone)) for p in capstone.rglob("*.*")) == [
        "student/capstone_image.tif", "teacher/capstone_label.tif"
    ]  # fmt: skip
    with rasterio.open(capstone / "student/capstone_image.tif") as image:
        assert image.count == 3 and image.shape == (256, 256) and image.tags().keys().isdisjoint(["seed"])
    assert "is there already" in refused(capsys, "capstone", "--seed", 3, "--out", capstone)


def test_other_seeds_are_other_scenes_and_bad_ones_are_refused(capstone, tmp_path, capsys):
    assert main(["assignments", "capstone", "--seed", "2", "--size", "384", "--out", str(tmp_path)]) == 0
    one, other = (folder / "student/capstone_image.tif" for folder in (capstone, tmp_path))
    assert one.read_bytes() != other.read_bytes()
    capsys.readouterr()
    assert "1 less than 0.5% of the scene is" in refused(
        capsys, "capstone", "--seed", 1, "--size", 256, "--out", tmp_path / "new"
    )
    assert not [*(tmp_path / "new").rglob("*")]
    assert "give the scene's --seed" in refused(capsys, "capstone", "--out", tmp_path / "new")
    assert "0 or more" in refused(capsys, "capstone", "--seed", -3, "--out", tmp_path / "new")
    assert "256 px or more" in refused(capsys, "capstone", "--seed", 3, "--size", 8, "--out", tmp_path / "new")
    assert "256 px or more" in refused(capsys, "capstone", "--seed", 3, "--size", 0, "--out", tmp_path / "new")


def submitted(capstone, path, change):
    """A map made of the label, changed."""
    with rasterio.open(capstone / "teacher/capstone_label.tif") as file:
        label, profile = file.read(1), file.profile
    values = change(label.copy())
    profile.update(height=values.shape[0], width=values.shape[1])
    with rasterio.open(path, "w", **profile) as file:
        file.write(values, 1)
    return path


def test_maps_of_the_capstone_are_scored(capstone, tmp_path, capsys):
    label = capstone / "teacher/capstone_label.tif"

    def half_wrong(values):
        values[:60] = np.where(values[:60] == 5, 6, 5)
        return values

    good = submitted(capstone, tmp_path / "good.tif", half_wrong)
    assert main(["assignments", "check", str(good), "--label", str(label)]) == 0
    assert "4 / 4" in capsys.readouterr().out

    def some_empty(values):
        values[100:150] = 0
        return values

    for change, points, words in (
        (some_empty, "3 / 4", "% have none, and count as wrong"),
        (lambda values: np.full_like(values, np.bincount(values[values > 0]).argmax()), "2 / 4", "its mean IoU is 0."),
        (lambda values: values[:-1], "0 / 1", "give the prediction of this scene"),
        (lambda values: values + 40, "0 / 1", "which are no class"),
    ):
        path = submitted(capstone, tmp_path / "map.tif", change)
        assert failed("check", path, "--label", label) == 1
        shown = capsys.readouterr().out
        assert points in shown and words in shown
    assert "missing.tif" in refused(capsys, "check", tmp_path / "missing.tif", "--label", label)
    assert "missing.tif" in refused(capsys, "check", good, "--label", tmp_path / "missing.tif")
    image = capstone / "student/capstone_image.tif"
    assert "a label" in refused(capsys, "check", good, "--label", image)
