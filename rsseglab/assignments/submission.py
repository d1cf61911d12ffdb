"""A submitted notebook or Python file: run its cells, find the function, check it, within a time limit.

What somebody else wrote is run in a process of its own, ``python -m rsseglab.assignments.submission``, which writes one
line of JSON a check as soon as it is done. An endless loop costs the time limit and the checks from there on, and what
a submission prints is not mistaken for a result. This is no sandbox: a submission can do what its user can.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rsseglab.assignments import NAMES
from rsseglab.assignments.checking import VISIBLE, Assignment, Outcome, described_error, grade, load, silence
from rsseglab.errors import UserError

SECONDS = 120.0


def name_of(path: Path) -> str:
    """Which assignment a file is of: what a notebook's metadata says, else the file's name.

    Raises:
        UserError: neither names an assignment.
    """
    named = _notebook(path).get("metadata", {}).get("rsseglab_assignment") if path.suffix == ".ipynb" else None
    if named in NAMES:
        return str(named)
    if path.stem in NAMES:
        return path.stem
    raise UserError(f"{path} does not say which assignment it is of; name it with --only: {', '.join(NAMES)}.")


def check_file(path: Path, name: str, seeds: Sequence[int] = VISIBLE, seconds: float = SECONDS) -> list[Outcome]:
    """Check a submission in a process of its own.

    Args:
        path: a notebook, or a Python file.
        name: of the assignment.
        seeds: that cases are drawn from.
        seconds: that all of it may take.

    Raises:
        UserError: there is no such assignment or file, or it is no notebook.
    """
    checks = load(name).checks
    cells_of(path)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.jsonl"
        report.touch()
        command = [sys.executable, "-m", "rsseglab.assignments.submission", str(path.resolve()), name, str(report)]
        stopped = ""
        try:
            done = subprocess.run(
                [*command, *map(str, seeds)],
                timeout=seconds,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={**os.environ, "MPLBACKEND": "Agg"},
            )
            if done.returncode:
                last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
                stopped = f"the process ended ({last[0] if last else f'exit code {done.returncode}'})"
        except subprocess.TimeoutExpired:
            stopped = f"it was not done after {seconds:g} seconds; look for a loop that does not end"
        found = [Outcome(**json.loads(line)) for line in report.read_text().splitlines()]
    stopped = stopped or "the process ended before all checks were done"  # with exit code 0, by the code's own doing
    return found + [
        Outcome(one.title, one.points, stopped if number == 0 else "was not reached")
        for number, one in enumerate(checks[len(found) :])
    ]


def check_code(cells: Sequence[tuple[str, str]], assignment: Assignment, seeds: Sequence[int]) -> list[Outcome]:
    """Run cells in this process, and check the function that they define.

    Args:
        cells: name and code of each.
        assignment: whose function it is.
        seeds: that cases are drawn from.
    """
    function, wrong = find_function(cells, assignment.function)
    if wrong:
        return [Outcome(one.title, one.points, wrong) for one in assignment.checks]
    return grade(assignment, function, assignment.checks, seeds)


def find_function(cells: Sequence[tuple[str, str]], name: str) -> tuple[Any, str | None]:
    """Run cells and give what they call ``name``, or say why there is no such thing.

    A cell that fails does not matter where the function is there all the same: it may be a sketch.
    """
    names: dict[str, Any] = {"__name__": "__main__"}
    failures = []
    for title, code in cells:
        try:
            with silence():
                exec(compile(code, title, "exec"), names)
        except SyntaxError as error:
            failures.append(f"{title} is not Python: {error.msg} in line {error.lineno}")
        except (Exception, SystemExit) as error:
            failures.append(f"{title} stops with {described_error(error)}")
    if name in names:
        return names[name], None
    return None, "; ".join([f"there is no function {name}", *failures])


def cells_of(path: Path) -> list[tuple[str, str]]:
    """Name and code of each code cell of a notebook; a Python file is one cell.

    Raises:
        UserError: there is no such file, or it is no notebook.
    """
    if path.suffix != ".ipynb":
        return [(path.name, _text(path))]
    cells = _notebook(path)["cells"]
    return [
        (f"cell {number}", _without_magics("".join(cell.get("source", ""))))
        for number, cell in enumerate(cells, start=1)
        if cell.get("cell_type") == "code"
    ]


def _notebook(path: Path) -> dict[str, Any]:
    text = _text(path)
    try:
        content = json.loads(text)
    except ValueError:
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("cells"), list):
        raise UserError(f"{path} is no notebook; save it anew in Jupyter, or give a .py file.")
    return content


def _text(path: Path) -> str:
    if path.suffix not in (".ipynb", ".py"):
        raise UserError(f"{path} is neither a notebook (.ipynb) nor a Python file (.py); give one of these.")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read ({type(error).__name__}); check its name.") from error


def _without_magics(code: str) -> str:
    """IPython's own lines, such as ``%matplotlib inline``, as comments."""
    return "\n".join(f"# {line}" if line.startswith(("%", "!")) else line for line in code.splitlines())


def main(arguments: Sequence[str]) -> None:
    """The process of a submission: file, assignment, report, seeds."""
    path, name, report, *seeds = arguments
    assignment = load(name)
    function, wrong = find_function(cells_of(Path(path)), assignment.function)
    for one in assignment.checks:
        if wrong:
            outcome = Outcome(one.title, one.points, wrong)
        else:
            (outcome,) = grade(assignment, function, [one], [int(seed) for seed in seeds])
        with Path(report).open("a") as file:
            file.write(json.dumps(asdict(outcome)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
