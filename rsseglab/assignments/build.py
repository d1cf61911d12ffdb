"""Make notebooks of the assignments: student copies, solutions, and nbgrader's source notebooks.

All come from one file an assignment, ``sources/NAME.py``: a py:percent notebook whose cells carry nbgrader's metadata.
A solution lies between ``### BEGIN SOLUTION`` and ``### END SOLUTION``, a hidden check likewise; in a student copy the
one becomes a line that raises `NotImplementedError`, and the other is gone.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rsseglab.assignments import NAMES
from rsseglab.errors import UserError

if TYPE_CHECKING:
    from nbformat import NotebookNode

SOURCES = Path(__file__).parent / "sources"
SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n.*?^[ \t]*### END SOLUTION$", re.MULTILINE | re.DOTALL)
HIDDEN = re.compile(r"^[ \t]*### BEGIN HIDDEN TESTS\n.*?^[ \t]*### END HIDDEN TESTS\n?", re.MULTILINE | re.DOTALL)
STUB = 'raise NotImplementedError("write your answer here")'


def read_source(name: str) -> NotebookNode:
    """An assignment's notebook with its solution and its hidden checks.

    Raises:
        UserError: there is no such assignment, or jupytext is not installed.
    """
    if name not in NAMES:
        raise UserError(f"there is no assignment '{name}'; choose one of {', '.join(NAMES)}.")
    try:
        import jupytext
    except ImportError as error:
        raise UserError("notebooks are made by jupytext; install it: pip install 'rsseglab[notebooks]'.") from error
    notebook: NotebookNode = jupytext.read(SOURCES / f"{name}.py")
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "rsseglab_assignment": name,
    }
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"{name}-{number}"  # the same in each build
    return notebook


def stripped(notebook: NotebookNode) -> NotebookNode:
    """The student copy of a notebook: without solutions and hidden checks."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = without_hidden(without_solution(cell.source)).rstrip()
    return notebook


def without_solution(code: str) -> str:
    """Code with a stub in the place of each solution, as deeply indented."""
    return SOLUTION.sub(lambda found: found[1] + STUB, code)


def without_hidden(code: str) -> str:
    """Code without its hidden checks."""
    return HIDDEN.sub("", code)


def build(out: Path, names: Sequence[str] = NAMES, *, nbgrader: bool = False) -> list[Path]:
    """Write the notebooks of assignments.

    Args:
        out: the folder: student copies go to ``student/``, solutions to ``solution/``, and nbgrader's own to
            ``source/NAME/NAME.ipynb``, next to its configuration.
        names: of the assignments.
        nbgrader: write the course folder of nbgrader, which makes the student copies itself.

    Returns:
        The files that were written; an ``nbgrader_config.py`` that is there stays as it is.

    Raises:
        UserError: there is no such assignment; a student copy is there and was changed; a file cannot be written.
    """
    files: dict[Path, str] = {}
    for name in names:
        if nbgrader:
            files[out / "source" / name / f"{name}.ipynb"] = _text(read_source(name))
        else:
            files[out / "student" / f"{name}.ipynb"] = _text(stripped(read_source(name)))
            files[out / "solution" / f"{name}.ipynb"] = _text(read_source(name))
    config = out / "nbgrader_config.py"
    if nbgrader and not config.exists():
        files[config] = CONFIG
    for path, text in files.items():  # a student's work may be in it
        if path.parent.name == "student" and path.exists() and path.read_text(encoding="utf-8") != text:
            raise UserError(f"{path} is there and was changed; move it away, or give another --out.")
    for path, text in files.items():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path} cannot be written ({error.strerror}); give another --out.") from error
    return list(files)


def _text(notebook: NotebookNode) -> str:
    import nbformat

    return str(nbformat.writes(notebook)) + "\n"


CONFIG = '''"""nbgrader's course: run its commands in this folder."""

c = get_config()  # noqa: F821
c.CourseDirectory.course_id = "whole-scenes"
c.ExecutePreprocessor.timeout = 300  # seconds a cell: the first check imports torch, which takes long on a busy machine
c.ClearSolutions.code_stub = {"python": 'raise NotImplementedError("write your answer here")'}
'''


def overview() -> list[tuple[str, str, int, str]]:
    """Name, points, function and title of each assignment, from its source."""
    rows = []
    for name in NAMES:
        notebook = read_source(name)
        title = notebook.cells[0].source.splitlines()[0].removeprefix("# ")
        cells = [cell.metadata.get("nbgrader", {}) for cell in notebook.cells]
        points = sum(int(cell["points"]) for cell in cells if cell.get("grade"))
        (task,) = (code for code, cell in zip(notebook.cells, cells, strict=True) if cell.get("solution"))
        function = re.findall(r"^def (\w+)", task.source, re.MULTILINE)
        rows.append((name, title, points, function[-1]))
    return rows


def prove(name: str) -> str | None:
    """Whether an assignment tells right from wrong: what is amiss, or None.

    The solution has to pass each check, visible and hidden, and the stub none.

    Raises:
        UserError: there is no such assignment, or jupytext is not installed.
    """
    from rsseglab.assignments.checking import HIDDEN, VISIBLE, load
    from rsseglab.assignments.submission import check_code

    assignment = load(name)
    solution = check_code(_code(read_source(name)), assignment, VISIBLE + HIDDEN)
    if wrong := [f"{one.title}: {one.wrong}" for one in solution if one.wrong]:
        return f"the solution fails. {'; '.join(wrong)}"
    stub = check_code(_code(stripped(read_source(name))), assignment, VISIBLE)
    if passed := [one.title for one in stub if not one.wrong]:
        return f"the stub passes: {', '.join(passed)}"
    return None


def _code(notebook: NotebookNode) -> list[tuple[str, str]]:
    cells = enumerate(notebook.cells, start=1)
    return [(f"cell {number}", cell.source) for number, cell in cells if cell.cell_type == "code"]
