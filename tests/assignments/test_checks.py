"""Each assignment, both ways: its solution passes all, its stub nothing, and wrong answers are told what is wrong."""

import pickle
from copy import deepcopy

import numpy as np
import pytest

from rsseglab.assignments import NAMES, load
from rsseglab.assignments.build import prove, read_source
from rsseglab.assignments.checking import HIDDEN, VISIBLE, grade

MISTAKES = [(name, number) for name in NAMES for number in range(len(load(name).mistakes))]


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_passes_all_checks_and_the_stub_none(name):
    assert prove(name) is None


@pytest.mark.parametrize(("name", "number"), MISTAKES, ids=lambda value: str(value))
def test_each_mistake_is_told_by_its_words(name, number):
    assignment = load(name)
    mistake = assignment.mistakes[number]
    for seeds in (VISIBLE, HIDDEN):
        outcomes = grade(assignment, mistake.answer, assignment.checks, seeds)
        assert mistake.words in [outcome.wrong for outcome in outcomes], [o.wrong for o in outcomes]


@pytest.mark.parametrize("name", NAMES)
def test_answers_copied_from_seed_0_pass_what_is_seen_and_fail_what_is_not(name):
    """They are looked up by their arguments; what was not seen gets the answer to the first case."""
    assignment = load(name)
    seen = [case for check in assignment.checks for case in check.cases(np.random.default_rng(0))]
    asked = []  # arguments that checks really call with

    def record(*arguments):
        asked.append(deepcopy(arguments))
        return assignment.reference(*arguments)

    grade(assignment, record, assignment.checks, VISIBLE)
    known = {key_of(arguments) for arguments in asked}

    def copied(*arguments):
        first = asked[0]
        known_one = key_of(arguments) in known
        return assignment.reference(*(arguments if known_one else deepcopy(first)))

    assert seen and all(o.wrong is None for o in grade(assignment, copied, assignment.checks, VISIBLE))
    assert all(o.wrong for o in grade(assignment, copied, assignment.checks, HIDDEN))


def key_of(arguments):
    return pickle.dumps([plain(argument) for argument in arguments])


def plain(value):
    if hasattr(value, "detach"):
        return value.detach().numpy().tobytes()
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "transform"):
        return [*value.transform, value.height, value.width]
    return value if not callable(value) else None


@pytest.mark.parametrize("name", NAMES)
def test_points_and_titles_of_the_notebook_are_those_of_the_checks(name):
    assignment = load(name)
    graded = [cell for cell in read_source(name).cells if cell.metadata.get("nbgrader", {}).get("grade")]
    assert [cell.metadata["nbgrader"]["points"] for cell in graded] == [check.points for check in assignment.checks]
    for cell, check in zip(graded, assignment.checks, strict=True):
        call = f'check("{name}", {assignment.function}, "{check.title}"'
        assert cell.source.count(call) == 2 and "BEGIN HIDDEN TESTS" in cell.source
    text = "\n".join(cell.source for cell in read_source(name).cells)
    assert f"**Points**: {assignment.points}." in text and assignment.component.split(" ")[0] in text.replace("\n", " ")


def test_there_are_at_least_ten():
    assert len(NAMES) >= 10
