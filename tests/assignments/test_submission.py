"""What students hand in, and what goes wrong with it: words, never a traceback."""

import json
import time

import numpy as np
import pytest

from rsseglab.assignments import check, load
from rsseglab.assignments.build import CONFIG, HIDDEN, build, read_source, stripped, without_hidden, without_solution
from rsseglab.assignments.checking import Assignment, Check, CheckError, Mistake, grade, table
from rsseglab.assignments.comparing import difference
from rsseglab.assignments.submission import cells_of, check_code, check_file, name_of
from rsseglab.errors import UserError

SOLUTION = """
def scene_iou(blocks, classes):
    from rsseglab.evaluation import Confusion
    confusion = Confusion([str(k) for k in range(classes)])
    for pair in blocks:
        confusion.update(*pair)
    return confusion.iou()
"""


def notebook(path, *cells, **metadata):
    content = [{"cell_type": "code", "source": cell, "metadata": {}, "outputs": []} for cell in cells]
    path.write_text(json.dumps({"cells": content, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}))
    return path


def wrong(*cells, name="iou"):
    """What the first check says of cells."""
    titled = [(f"cell {number}", cell) for number, cell in enumerate(cells, start=1)]
    return check_code(titled, load(name), [0])[0].wrong


def test_a_notebook_is_checked_in_its_own_process(tmp_path):
    cells = (
        "%matplotlib inline\n1 / 0",
        SOLUTION,
        'from rsseglab.assignments import check\ncheck("iou", None)\nprint(1)',
    )
    assert not any(outcome.wrong for outcome in check_file(notebook(tmp_path / "iou.ipynb", *cells), "iou"))


def test_an_endless_loop_is_told(tmp_path):
    path = tmp_path / "iou.py"
    path.write_text("while True: pass")
    start = time.monotonic()
    first, *others = check_file(path, "iou", seconds=1)
    assert time.monotonic() - start < 20
    assert "not done after 1 seconds; look for a loop" in first.wrong
    assert {outcome.wrong for outcome in others} == {"was not reached"}


def test_a_process_that_dies_is_told(tmp_path):
    path = tmp_path / "iou.py"
    path.write_text("import os\nos._exit(3)")
    assert "the process ended (exit code 3)" in check_file(path, "iou")[0].wrong


@pytest.mark.parametrize("calls", [1, 2])
def test_a_process_that_ends_as_if_all_were_well_is_told(tmp_path, calls):
    path = tmp_path / "iou.py"
    path.write_text(
        f"import os\nleft = {calls}\n"
        "def scene_iou(*_):\n    global left\n    left -= 1\n"
        "    if not left:\n        os._exit(0)\n    raise ValueError\n"
    )
    outcomes = check_file(path, "iou")
    assert all(outcome.wrong for outcome in outcomes)
    assert any("the process ended before all checks were done" in outcome.wrong for outcome in outcomes)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (("x = 1",), "there is no function scene_iou"),
        (("def scene_iou(blocks classes):\n    pass",), "cell 1 is not Python: invalid syntax"),
        (("y = 1", "import nothing_such"), "cell 2 stops with ModuleNotFoundError: No module named 'nothing_such'"),
        (("scene_iou = 3",), "scene_iou is no function"),
        (("def scene_iou(blocks, classes):\n    return blocks[7]",), "IndexError: list index out of range in line 2"),
        (("def scene_iou(blocks, classes):\n    raise NotImplementedError",), "is not written yet"),
        (("def scene_iou():\n    return 1",), "stops with TypeError"),
        (("def scene_iou(blocks, classes):\n    return None",), "is None, and should be a NumPy array"),
        (("def scene_iou(blocks, classes):\n    return [0.5] * classes",), "is a list or tuple, and should be a NumPy"),
        (("import numpy as np\ndef scene_iou(blocks, classes):\n    return np.zeros((classes, 2))",), "shape (4, 2)"),
        (("import numpy as np\ndef scene_iou(blocks, classes):\n    return np.zeros(classes, int)",), "dtype int64"),
        (("def scene_iou(blocks, classes):\n    exit()",), "it stops with SystemExit"),
        ((SOLUTION + "\nlibrary = scene_iou\ndef scene_iou(blocks, classes):\n"
          "    blocks[0][1][:] = 0\n    return library(blocks, classes)",), "it changes its argument blocks"),
        ((SOLUTION + "\nlibrary = scene_iou\ndef scene_iou(*case):\n    return 0.9 * library(*case)",), "4 of 4 val"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(cells, words):
    assert words in wrong(*cells)


def test_an_error_is_told_with_its_line_and_its_arguments():
    words = wrong("def starts(length, window, stride):\n    a = 1\n    return a / 0", name="windows")
    assert "ZeroDivisionError: division by zero in line 3 of cell 1 (called with length" in words


def test_in_a_notebook_a_check_shows_a_table_or_raises_its_words(capsys):
    check("windows", load("windows").reference)
    assert "10 / 10" in capsys.readouterr().out
    check("windows", load("windows").reference, "windows that fit exactly", hidden=True)
    with pytest.raises(CheckError, match="no window has to be added") as caught:
        check("windows", load("windows").mistakes[3].answer, "windows that fit exactly")
    assert caught.value._render_traceback_() == str(caught.value).splitlines()
    with pytest.raises(UserError, match="has no check 'halo'; it has: the last"):
        check("windows", print, "halo")
    with pytest.raises(UserError, match="no assignment 'nothing'; choose one of windows"):
        check("nothing", print)


def test_of_two_mistakes_the_one_that_answers_alike_is_told():
    doubled = Assignment(
        "double", "double", "none", lambda x: 2 * x,
        [Check("doubles", 1, lambda rng: [(rng.normal(size=3),), (np.ones(2),)])],
        [Mistake("squared", lambda x: x**2), Mistake("unchanged", lambda x: x), Mistake("breaks", lambda x: x[9])],
    )  # fmt: skip

    def said(function):
        return grade(doubled, function, doubled.checks, [0])[0].wrong

    assert said(lambda x: 2 * x) is None and said(lambda x: x.copy()) == "unchanged" and said(np.square) == "squared"
    assert "3 of 3 values are wrong, the first at 0: it is" in said(lambda x: 3 * x)


@pytest.mark.parametrize(
    ("got", "right", "words"),
    [
        (1, 2, "the result is 1, and should be 2"),
        (np.float64(0.5), 0.5, None),
        ((1, 2), [1, 2], None),
        ([1, 2, 2], [1, 2], "the result is [1, 2, 2], and should be [1, 2]"),
        ([1.0, np.nan], (1.0, np.nan), None),
        ([np.ones(2)], [np.ones(2), np.ones(2)], "the result has 1 entries, and should have 2"),
        ((0.1, 0.2), (0.1, 0.3), "entry 1: the result is 0.2, and should be 0.3"),
        (np.ones(3, np.float32), np.ones(3), None),
        (np.array([1.0, np.nan]), np.ones(2), "1 of 2 values are wrong, the first at 1: it is nan, and should be 1"),
        (None, (1, 2), "the result is None, and should be a list or tuple"),
        ("text", 1.0, "the result is of type str, and should be a number"),
        ({"sent": 4}, {"sent": 3}, "sent: 4, and should be 3"),
    ],
)
def test_differences_in_words(got, right, words):
    assert difference(got, right) == words


def test_a_file_says_which_assignment_it_is_of(tmp_path):
    assert name_of(notebook(tmp_path / "mine.ipynb", rsseglab_assignment="halo")) == "halo"
    assert name_of(tmp_path / "halo.py") == "halo"
    with pytest.raises(UserError, match="does not say which assignment it is of; name it with --only"):
        name_of(notebook(tmp_path / "mine.ipynb", rsseglab_assignment=["halo"]))


def test_what_is_no_submission_is_refused(tmp_path):
    for name, content in (("a.ipynb", "no json"), ("b.ipynb", "[1]"), ("c.ipynb", '{"cells": 3}')):
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match="is no notebook; save it anew"):
            cells_of(tmp_path / name)
    with pytest.raises(UserError, match="cannot be read"):
        cells_of(tmp_path / "missing.ipynb")
    with pytest.raises(UserError, match=r"neither a notebook .* nor a Python file"):
        cells_of(tmp_path / "essay.docx")
    (tmp_path / "d.py").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="cannot be read"):
        cells_of(tmp_path / "d.py")


def test_solutions_and_hidden_checks_are_taken_out():
    code = "def f():\n    '''Doc.'''\n    ### BEGIN SOLUTION\n    x = 1\n    ### END SOLUTION\n\n\ny = 2"
    assert without_solution(code) == (
        "def f():\n    '''Doc.'''\n    raise NotImplementedError(\"write your answer here\")\n\n\ny = 2"
    )
    assert without_hidden("a\n### BEGIN HIDDEN TESTS\nb\n### END HIDDEN TESTS\nc") == "a\nc"
    for cell in stripped(read_source("halo")).cells:
        assert "SOLUTION" not in cell.source and "HIDDEN" not in cell.source and "hidden=True" not in cell.source
    assert any(HIDDEN.search(cell.source) for cell in read_source("halo").cells)


def test_build_writes_copies_and_never_over_a_student_s_work(tmp_path):
    files = build(tmp_path, ["iou", "halo"])
    assert [str(path.relative_to(tmp_path)) for path in files] == [
        "student/iou.ipynb", "solution/iou.ipynb", "student/halo.ipynb", "solution/halo.ipynb"
    ]  # fmt: skip
    before = files[0].read_bytes()
    assert build(tmp_path, ["iou", "halo"]) == files and files[0].read_bytes() == before
    files[0].write_bytes(before.replace(b"raise NotImplementedError", b"return my_answer    "))
    with pytest.raises(UserError, match=r"student/iou\.ipynb is there and was changed; move it away"):
        build(tmp_path, ["halo", "iou"])
    with pytest.raises(UserError, match="no assignment 'hola'"):
        build(tmp_path, ["hola"])
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        build(tmp_path / "file", ["iou"])


def test_build_for_nbgrader(tmp_path):
    files = build(tmp_path, ["iou"], nbgrader=True)
    assert [str(path.relative_to(tmp_path)) for path in files] == ["source/iou/iou.ipynb", "nbgrader_config.py"]
    assert files[1].read_text() == CONFIG
    files[1].write_text("mine")
    build(tmp_path, ["iou"], nbgrader=True)
    assert files[1].read_text() == "mine"
    cells = json.loads(files[0].read_text())["cells"]
    ids = [cell["metadata"]["nbgrader"]["grade_id"] for cell in cells if "nbgrader" in cell["metadata"]]
    assert len(ids) == len(set(ids)) == 6 and all(one.startswith("iou") for one in ids)


def test_the_table_adds_up():
    outcomes = check_code([("cell 1", "def starts(a, b, c):\n    return [0]")], load("windows"), [0])
    assert table(outcomes).splitlines()[-1].split() == ["all", "0", "/", "10"]
