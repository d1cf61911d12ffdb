"""The course's pages name what there is: each assignment once a syllabus, points that add up, pages that are there."""

import re
from pathlib import Path

import pytest

from rsseglab.assignments import NAMES, load

BOOK = Path(__file__).parents[2] / "book"
PAGES = {path.stem: path.read_text() for path in (BOOK / "course").glob("*.md")}


def test_each_assignment_has_a_week_and_a_row():
    weeks = re.findall(r"^\* - (\d+)\n((?:  .*\n)+)", PAGES["syllabus"], re.MULTILINE)
    assert [int(number) for number, _ in weeks] == list(range(1, 13))
    set_in = [name for _, week in weeks for name in re.findall(r"^  - `(\w+)`$", week, re.MULTILINE)]
    assert sorted(set_in) == sorted(NAMES)
    assert re.findall(r"^\* - `(\w+)`$", PAGES["assignments"], re.MULTILINE) == list(NAMES)
    assert {load(name).points for name in NAMES} == {10} and "ten assignments, 10 points each" in PAGES["syllabus"]


def test_a_rubric_s_points_add_up():
    proposal, map_, report = re.split(r"^## .*points.*$", PAGES["rubrics"].split("**Taken off")[0], flags=re.MULTILINE)[
        1:
    ]
    assert sum(map(int, re.findall(r"^\| \*\*\w+\*\* \((\d+)\)", proposal, re.MULTILINE))) == 10
    assert sum(map(int, re.findall(r"^\| (\d+) \|", map_, re.MULTILINE))) == 15
    assert sum(map(int, re.findall(r"^\| \*\*\w+\*\* \((\d+)\)", report, re.MULTILINE))) == 25


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\{doc\}`([^`]+)`", PAGES[page]):
        path = BOOK / "course" / link
        assert any(path.with_name(path.name + ending).is_file() for ending in (".md", ".ipynb", ".py")), link
