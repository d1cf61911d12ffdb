"""Each notebook is a pair, .ipynb for students and .py for review: in step, and without outputs."""

import re
from pathlib import Path

import jupytext
import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def test_there_are_notebooks_and_each_is_a_pair():
    assert NOTEBOOKS
    assert [n.stem for n in NOTEBOOKS] == sorted(p.stem for p in FOLDER.glob("*.py"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_pair_is_in_step(path):
    notebook, script = nbformat.read(path, as_version=4), jupytext.read(path.with_suffix(".py"))
    cells = [[(c.cell_type, c.source, c.metadata.get("tags")) for c in pair.cells] for pair in (notebook, script)]
    assert cells[0] == cells[1], f"run: jupytext --sync notebooks/{path.name}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_no_outputs_in_git(path):
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, f"run: jupytext --sync notebooks/{path.name}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_pictures_have_texts_for_who_cannot_see_them(path):
    code = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    assert not [source for source in code if "plt.show(" in source], "use rsseglab.plots.show(figure, alt)"
    assert not [source for source in code if re.search(r"(?<!\w)Image\(", source) and "alt=" not in source]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_chapter_shares_its_name_with_a_module_and_a_test(path):
    root, name = FOLDER.parent, path.stem.partition("_")[2]
    for folder, file in ((root / "rsseglab", f"{name}.py"), (root / "tests", f"test_{name}.py")):
        assert [*folder.rglob(file), *(p for p in folder.rglob(name) if p.is_dir())], f"nothing in {folder.name}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_it_says_what_it_asks_needs_and_takes(path):
    cells = nbformat.read(path, as_version=4).cells
    opening, text = cells[0].source, "\n".join(c.source for c in cells if c.cell_type == "markdown")
    for part in ("The question", "It assumes", "It takes"):
        assert part in opening
    assert "## Exercises" in text and "Read next" in text
    parameters = [c for c in cells if "parameters" in c.metadata.get("tags", [])]
    assert len(parameters) == 1 and "nbmake" in parameters[0].metadata
