"""Assignments: a function to write, and checks that compare it with the library's component and say what is wrong.

Each assignment is one file in ``sources/``, a py:percent notebook with its solution, and one in ``checks/``, what it is
held against. ``rsseglab assignments build`` makes student copies of the one; in a notebook as on the command line the
other grades them.
"""

from rsseglab.assignments.checking import Assignment, Check, Mistake, Outcome, check, load

#: In the order of the course.
NAMES = (
    "windows",
    "blending",
    "iou",
    "leak",
    "bootstrap",
    "correlation",
    "all_to_all",
    "halo",
    "f2ce",
    "expansion",
)

__all__ = ["NAMES", "Assignment", "Check", "Mistake", "Outcome", "check", "load"]
