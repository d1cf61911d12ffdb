"""What ``rsseglab assignments list | build | check | capstone`` does."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from rsseglab.assignments import NAMES
from rsseglab.assignments.checking import HIDDEN, VISIBLE, load, table
from rsseglab.errors import UserError

RASTERS = (".tif", ".tiff")
#: What only one action has a use for.
ONLY = {
    "files": "check", "nbgrader": "build", "hidden": "check", "seconds": "check", "label": "check",
    "seed": "capstone", "size": "capstone", "out": "build or capstone", "only": "build or check",
}  # fmt: skip


def run(args: argparse.Namespace) -> bool:
    """Do what the command line says; False where a check failed.

    Raises:
        UserError: an unknown name, an option of another action, no such file, or a folder that cannot be written.
    """
    for option, owners in ONLY.items():
        value = getattr(args, option)
        idle = not value if option == "files" else value is None or value is False
        if not idle and args.action not in owners.split(" or "):
            shown = "a file" if option == "files" else f"--{option}"
            raise UserError(f"{shown} is of 'rsseglab assignments {owners}'; leave it out.")
    for name in args.only or ():
        load(name)
    if args.action == "list":
        _list()
    elif args.action == "build":
        _build(args)
    elif args.action == "capstone":
        _capstone(args)
    else:
        return _check(args)
    return True


def _list() -> None:
    from rsseglab.assignments.build import overview

    width = max(map(len, NAMES))
    print(f"{'name':{width}}  points  {'function':<16}  title")
    for name, title, points, function in overview():
        print(f"{name:{width}}  {points:6d}  {function:<16}  {title}")


def _build(args: argparse.Namespace) -> None:
    from rsseglab.assignments.build import build

    out = args.out or Path("outputs/assignments")
    for path in build(out, args.only or NAMES, nbgrader=args.nbgrader):
        print(path)
    if args.nbgrader:
        print(f"now, in {out}: nbgrader generate_assignment --assignment NAME --create")


def _capstone(args: argparse.Namespace) -> None:
    from rsseglab.assignments.capstone import SIZE_PX, write_capstone

    if args.seed is None:
        raise UserError("give the scene's --seed: any large number, which students must not know.")
    size_px = SIZE_PX if args.size is None else args.size
    image, label = write_capstone(args.out or Path("outputs/capstone"), args.seed, size_px)
    print(f"for students: {image}\nfor the teacher alone: {label}")


def _check(args: argparse.Namespace) -> bool:
    rasters = [path for path in args.files if path.suffix.lower() in RASTERS]
    if rasters and len(rasters) < len(args.files):
        raise UserError("maps and notebooks are checked apart; name the one or the other.")
    if bool(rasters) != bool(args.label):
        raise UserError("a map is checked against the capstone's label; give both: check MAP.tif --label LABEL.tif.")
    if rasters:
        if args.hidden is not None or args.seconds is not None or args.only:
            raise UserError("a map is checked against a label alone; leave out --hidden, --seconds and --only.")
        from rsseglab.assignments.capstone import check_map

        passed = [check_map(path, args.label) for path in rasters]  # all are shown, also after one that failed
        return all(passed)
    if not args.files:
        if args.hidden is not None or args.seconds is not None:
            raise UserError("--hidden and --seconds are for files; name some, or leave them out.")
        return _prove(args.only or NAMES)
    if args.only and len(args.only) > 1:
        raise UserError("a file is of one assignment; name one after --only.")
    seeds = VISIBLE if args.hidden is None else (*VISIBLE, *(args.hidden or HIDDEN))
    return _check_files(args.files, args.only, seeds, args.seconds)


def _check_files(
    files: Sequence[Path], only: Sequence[str] | None, seeds: Sequence[int], seconds: float | None
) -> bool:
    from rsseglab.assignments.submission import SECONDS, cells_of, check_file, name_of

    limit = SECONDS if seconds is None else seconds
    if limit <= 0:
        raise UserError(f"{limit:g} seconds are no time; give --seconds more than 0, such as {SECONDS:g}.")
    for path in files:  # what is no submission is told before the first is run
        cells_of(path)
    names = [only[0] if only else name_of(path) for path in files]
    passed = True
    for path, name in tqdm(list(zip(files, names, strict=True)), unit="file", disable=len(files) == 1):
        outcomes = check_file(path, name, seeds, limit)
        tqdm.write(f"{path} ({name})\n{table(outcomes)}")
        passed &= not any(outcome.wrong for outcome in outcomes)
    return passed


def _prove(names: Sequence[str]) -> bool:
    from rsseglab.assignments.build import prove

    passed = True
    for name in tqdm(names, unit="assignment"):
        wrong = prove(name)
        tqdm.write(f"{name}: {wrong or 'the solution passes all checks, the stub none'}")
        passed &= not wrong
    return passed
