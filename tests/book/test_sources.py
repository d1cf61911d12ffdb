"""The book's sources: the contents are whole, each public module has its page, pictures have texts."""

import ast
import hashlib
import importlib.util
import io
import re
import subprocess
import tarfile
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).parents[2]
BOOK = ROOT / "book"


def chapters():
    contents = yaml.safe_load((BOOK / "_toc.yml").read_text())
    return [contents["root"], *(c["file"] for part in contents["parts"] for c in part["chapters"])]


def source_of(chapter):
    return next(path for ext in (".md", ".ipynb") if (path := BOOK / f"{chapter}{ext}").is_file())


def test_the_contents_are_there_and_whole():
    named = {source_of(chapter).resolve() for chapter in chapters()}
    there = {path.resolve() for path in (ROOT / "notebooks").glob("*.ipynb")}
    there |= {path.resolve() for path in BOOK.rglob("*.md") if not {"_build", "_offline"} & set(path.parts)}
    assert named == there


def test_notebooks_are_read_where_they_are():
    assert (BOOK / "notebooks").resolve() == (ROOT / "notebooks").resolve()


def test_notebooks_that_measure_seconds_are_named_as_they_are():
    spec = importlib.util.spec_from_file_location("execute", BOOK / "execute.py")
    execute = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(execute)
    assert set(execute.MEASURING) <= {path.stem for path in (BOOK / "notebooks").glob("*.ipynb")}


def is_public(path):
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.ClassDef)
    return any(isinstance(node, kinds) and not node.name.startswith("_") for node in tree.body)


def test_each_public_module_has_its_place_on_an_api_page():
    pages = "\n".join(path.read_text() for path in (BOOK / "api").glob("*.md"))
    listed = set(re.findall(r"automodule:: (\S+)", pages))
    package = ROOT / "rsseglab"
    public = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in package.rglob("*.py")
        if path.name not in ("__init__.py", "cli.py") and is_public(path)
    }
    sources = {name for name in public if ".assignments.sources." in name or ".assignments.checks." in name}
    assert public - sources - listed == set()


def test_markdown_pictures_have_texts():
    for page in [*BOOK.rglob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")]:
        if "_build" in page.parts:
            continue
        text = page.read_text()
        if page.suffix == ".ipynb":
            cells = nbformat.read(page, as_version=4).cells
            text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
        assert not re.search(r"!\[\s*\]\(", text), page
        for options in re.findall(r"```\{(?:figure|image)\}[^\n]*\n(.*?)```", text, flags=re.S):
            assert ":alt:" in options, page


def test_cited_works_are_in_the_bibliography():
    keys = set(re.findall(r"@\w+\{(\w+),", (BOOK / "references.bib").read_text()))
    for page in BOOK.rglob("*.md"):
        for cited in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", page.read_text()):
            assert set(re.split(r"\s*,\s*", cited)) <= keys, page


def offline():
    """The program that fetches what pages load, as a module."""
    spec = importlib.util.spec_from_file_location("offline", BOOK / "offline.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def packed(files):
    """A package of npm in memory."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as package:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            package.addfile(member, io.BytesIO(content))
    return file.getvalue()


def test_packages_are_unpacked_where_pages_look(tmp_path):
    data = packed({"es5/a.js": b"a", "es5/fonts/f.woff": b"f", "es5/fonts/deep/g.woff": b"g", "other.js": b"o"})
    offline().unpack(data, {"es5/a.js": "mathjax/", "es5/fonts/": "mathjax/fonts/"}, tmp_path)
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"mathjax/a.js", "mathjax/fonts/f.woff", "mathjax/fonts/g.woff"}


def pretend_npm(monkeypatch, module, code, files=()):
    """An npm that leaves files, and ends with a code."""

    def run(command, *, cwd, **_):
        for name, content in files:
            (Path(cwd) / name).write_bytes(content)
        return subprocess.CompletedProcess(command, code, "", "no route")

    monkeypatch.setattr(module.shutil, "which", lambda name: name)
    monkeypatch.setattr(module.subprocess, "run", run)


def test_a_package_is_held_to_its_sum(monkeypatch):
    module = offline()
    pretend_npm(monkeypatch, module, 0, [("some-1.0.tgz", b"it")])
    assert module.fetch("some@1.0", hashlib.sha256(b"it").hexdigest()) == b"it"
    with pytest.raises(SystemExit, match=r"some@1\.0 is not the file that it should be"):
        module.fetch("some@1.0", "0" * 64)


@pytest.mark.parametrize(("code", "files"), [(1, []), (0, [])])
def test_what_can_not_be_fetched_is_said(monkeypatch, code, files):
    module = offline()
    pretend_npm(monkeypatch, module, code, files)
    with pytest.raises(SystemExit, match=r"could not be fetched .no route.; the book needs npm's packages once"):
        module.fetch("some@1.0", "0" * 64)


def test_without_npm_the_remedy_is_said(monkeypatch):
    module = offline()
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    with pytest.raises(SystemExit, match=r"install Node.js"):
        module.fetch("some@1.0", "0" * 64)
