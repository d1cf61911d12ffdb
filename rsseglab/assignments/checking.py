"""Check a student's function against the library's component, and say in words what is wrong with it.

A check calls both on cases that are drawn from a seed. Visible checks draw from `VISIBLE`, hidden ones from others, so
that an answer that was copied from the screen fails there. Where the results differ, the typical *mistakes* are tried:
a mistake is a function too, the one that somebody would write who makes it. If it gives what the student's gives, the
student is told its words; if none does, where the results differ.
"""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from rsseglab.assignments.comparing import difference
from rsseglab.errors import UserError

VISIBLE, HIDDEN = (0,), (1, 2, 3)

Function = Callable[..., Any]
Case = tuple[Any, ...]  # the arguments of one call


def _call(function: Function, *arguments: Any) -> Any:
    return function(*arguments)


@dataclass(frozen=True)
class Mistake:
    """A mistake that many make.

    Attributes:
        words: what is wrong and why, a sentence or two for the student.
        answer: the function of somebody who makes it.
    """

    words: str
    answer: Function


@dataclass(frozen=True)
class Check:
    """One property of the function.

    Attributes:
        title: what the tables call it.
        points: for a function that has it.
        cases: draws the arguments of some calls.
        observe: ``observe(function, *case)``, what is compared; the function's result if not given.
    """

    title: str
    points: int
    cases: Callable[[np.random.Generator], Sequence[Case]]
    observe: Callable[..., Any] = _call


@dataclass(frozen=True)
class Assignment:
    """A function to write.

    Attributes:
        name: of the assignment, and of its files.
        function: name of the function.
        component: the library's own, where to read on.
        reference: the function, by that component.
        checks: of it.
        mistakes: of those who write it.
    """

    name: str
    function: str
    component: str
    reference: Function
    checks: Sequence[Check]
    mistakes: Sequence[Mistake] = field(default=())

    @property
    def points(self) -> int:
        """Of all checks."""
        return sum(one.points for one in self.checks)


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        title: of the check.
        points: that it gives.
        wrong: what is wrong, or None.
    """

    title: str
    points: int
    wrong: str | None

    @property
    def reached(self) -> int:
        """The points that were reached."""
        return 0 if self.wrong else self.points


class CheckError(AssertionError):
    """A check failed; Jupyter shows its words and no traceback."""

    def _render_traceback_(self) -> list[str]:
        return str(self).splitlines()


def load(name: str) -> Assignment:
    """An assignment by its name.

    Raises:
        UserError: there is none.
    """
    from rsseglab.assignments import NAMES

    if name not in NAMES:
        raise UserError(f"there is no assignment '{name}'; choose one of {', '.join(NAMES)}.")
    assignment: Assignment = import_module(f"rsseglab.assignments.checks.{name}").ASSIGNMENT
    return assignment


_silent = False


@contextmanager
def silence() -> Iterator[None]:
    """While a submission's cells are run to find its function: their own checks would be a second time."""
    global _silent
    before, _silent = _silent, True
    try:
        yield
    finally:
        _silent = before


def check(name: str, function: Function, title: str | None = None, *, hidden: bool = False) -> None:
    """Check a function in a notebook, and show a table.

    Args:
        name: of the assignment.
        function: that was written for it.
        title: of the check; all when not given.
        hidden: with other seeds than those that everybody sees.

    Raises:
        CheckError: a check failed; its words say what is wrong.
        UserError: there is no such assignment or check.
    """
    if _silent:
        return
    assignment = load(name)
    outcomes = grade(assignment, function, chosen(assignment, title), HIDDEN if hidden else VISIBLE)
    shown = table(outcomes)
    if any(outcome.wrong for outcome in outcomes):
        raise CheckError(shown)
    print(shown)


def chosen(assignment: Assignment, title: str | None) -> Sequence[Check]:
    """The check of a title, or all.

    Raises:
        UserError: there is none.
    """
    titles = [one.title for one in assignment.checks]
    if title is not None and title not in titles:
        raise UserError(f"assignment {assignment.name} has no check '{title}'; it has: {', '.join(titles)}.")
    return [one for one in assignment.checks if title in (None, one.title)]


def grade(assignment: Assignment, function: Any, checks: Sequence[Check], seeds: Sequence[int]) -> list[Outcome]:
    """Run checks on a function, each with all seeds.

    Args:
        assignment: whose function it is.
        function: the student's.
        checks: some of the assignment's, or all.
        seeds: that cases are drawn from.
    """
    return [Outcome(one.title, one.points, _wrong(assignment, one, function, seeds)) for one in checks]


def _wrong(assignment: Assignment, check: Check, function: Any, seeds: Sequence[int]) -> str | None:
    if not callable(function):
        return f"{assignment.function} is no function; write it as 'def {assignment.function}(...)'"
    for seed in seeds:
        cases = check.cases(np.random.default_rng(seed))
        try:
            answers = [_answer(assignment, check, function, case) for case in cases]
        except _StoppedError as stopped:
            return str(stopped)
        right = [check.observe(assignment.reference, *deepcopy(case)) for case in cases]
        differences = [difference(*pair) for pair in zip(answers, right, strict=True)]
        if not any(differences):
            continue
        if words := _diagnosis(assignment.mistakes, check, cases, answers):
            return words
        first = next(number for number, words in enumerate(differences) if words)
        return f"{differences[first]} ({_described(assignment.reference, cases[first])})"
    return None


class _StoppedError(Exception):
    """A student's function gave no result."""


def _answer(assignment: Assignment, check: Check, function: Function, case: Case) -> Any:
    given = deepcopy(case)
    try:
        answer = check.observe(function, *given)
    except NotImplementedError:
        raise _StoppedError(f"{assignment.function} is not written yet") from None
    except (Exception, SystemExit) as error:
        called = _described(assignment.reference, case)
        raise _StoppedError(f"it stops with {described_error(error)}{_where(error)} ({called})") from None
    for name, before, after in zip(_parameters(assignment.reference), case, given, strict=False):
        compared = isinstance(before, np.ndarray | list) or hasattr(before, "detach")
        if compared and difference(after, before):
            raise _StoppedError(f"it changes its argument {name}, which is the caller's; work on a copy")
    return answer


def _diagnosis(mistakes: Sequence[Mistake], check: Check, cases: Sequence[Case], answers: Sequence[Any]) -> str | None:
    """The words of the mistake that gives the same answers."""
    for mistake in mistakes:
        try:
            theirs = [check.observe(mistake.answer, *deepcopy(case)) for case in cases]
        except Exception:  # a mistake that does not survive these cases is not the one
            continue
        if not any(difference(*pair) for pair in zip(answers, theirs, strict=True)):
            return mistake.words
    return None


def described_error(error: BaseException) -> str:
    """An error in one line."""
    message = str(error).strip().splitlines()
    return type(error).__name__ + (f": {message[0]}" if message else "")


def _where(error: BaseException) -> str:
    """The last line of the student's own code that an error passed."""
    ours = str(import_module("rsseglab").__path__[0])
    outside = (ours, sys.prefix, sys.base_prefix)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(outside):
            cell = "its cell" if "ipykernel" in frame.filename or frame.filename.startswith("<") else frame.filename
            return f" in line {frame.lineno} of {cell}"
    return ""


def _parameters(function: Function) -> list[str]:
    return list(inspect.signature(function).parameters)


def _described(function: Function, case: Case) -> str:
    """What a case was called with, as far as it fits in a line."""
    pairs = zip(_parameters(function), case, strict=False)
    return "called with " + ", ".join(f"{name} {_value(value)}" for name, value in pairs)


def _value(value: Any) -> str:
    if hasattr(value, "shape"):
        return "of shape " + str(tuple(value.shape))
    if isinstance(value, list | tuple) and any(hasattr(one, "shape") for one in value):
        return f"of {len(value)}"
    return str(value)


def table(outcomes: Sequence[Outcome]) -> str:
    """Check, points, and what is wrong, a line each; then the sum."""
    width = max(len("check"), *(len(outcome.title) for outcome in outcomes))
    lines = [f"{'check':{width}}  points  what is wrong"]
    for outcome in outcomes:
        line = f"{outcome.title:{width}}  {outcome.reached:2d} / {outcome.points}  {outcome.wrong or ''}"
        lines.append(line.rstrip())
    if len(outcomes) > 1:
        reached, points = sum(o.reached for o in outcomes), sum(o.points for o in outcomes)
        lines.append(f"{'all':{width}}  {reached:2d} / {points}")
    return "\n".join(lines)
