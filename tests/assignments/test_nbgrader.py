"""nbgrader, from the course folder to the grades: a solution gets all points, a stub none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rsseglab.assignments import load
from rsseglab.assignments.build import build

pytestmark = pytest.mark.slow


def nbgrader(course, *arguments):
    # nbgrader calls alembic by name, which is there only where the environment is activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = os.environ | {"PATH": path, "HOME": str(course)}
    command = [sys.executable, "-m", "nbgrader", *arguments]
    done = subprocess.run(command, cwd=course, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stderr


@pytest.mark.parametrize("name", ["iou", "f2ce"])
def test_a_solution_gets_all_points_and_a_stub_none(name, tmp_path):
    pytest.importorskip("nbgrader.api", reason="install nbgrader: pip install 'rsseglab[nbgrader]'")
    from nbgrader.api import Gradebook

    build(tmp_path, [name], nbgrader=True)
    nbgrader(tmp_path, "generate_assignment", name, "--create")
    released = json.loads((tmp_path / "release" / name / f"{name}.ipynb").read_text())
    text = json.dumps(released)
    assert "SOLUTION" not in text and "hidden=True" not in text and "write your answer here" in text

    solved = json.loads(json.dumps(released))
    source = json.loads((tmp_path / "source" / name / f"{name}.ipynb").read_text())
    for cell, answer in zip(solved["cells"], source["cells"], strict=True):
        if cell["metadata"].get("nbgrader", {}).get("solution"):
            cell["source"] = answer["source"]
    for student, notebook in (("solver", solved), ("starter", released)):
        folder = tmp_path / "submitted" / student / name
        folder.mkdir(parents=True)
        (folder / f"{name}.ipynb").write_text(json.dumps(notebook))
    nbgrader(tmp_path, "autograde", name, "--create")
    with Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as grades:
        scores = {student: grades.find_submission(name, student).score for student in ("solver", "starter")}
        assert grades.find_assignment(name).max_score == load(name).points
    assert scores == {"solver": load(name).points, "starter": 0}
