"""The capstone: a scene that nobody has seen, and the score of a student's map of it.

The scene is of the same kind of land as the data set ``synthetic``, from a seed that the teacher chooses, so students
train on that data set and label this scene. They get the image; the label stays with the teacher. Whoever knows the
seed can make the label, so choose a large one and keep it.
"""

import tempfile
from pathlib import Path

import numpy as np

from rsseglab.assignments.checking import Outcome, table
from rsseglab.errors import UserError
from rsseglab.evaluation import Evaluation, evaluate_scene
from rsseglab.evaluation.evaluate import count_labels
from rsseglab.scenes.raster import ArraySource, RasterSource
from rsseglab.scenes.scene import Scene
from rsseglab.scenes.synthetic import CLASSES, IGNORE_VALUES, write_synthetic_scene

SIZE_PX = 1536
LEAST_SHARE = 0.005  # of the scene, for each class
STUDENT, TEACHER = "student", "teacher"


def write_capstone(out: Path, seed: int, size_px: int = SIZE_PX) -> tuple[Path, Path]:
    """Write a scene for the students and its label for the teacher.

    Args:
        out: the folder: the image goes to ``student/``, the label to ``teacher/``.
        seed: of the land.
        size_px: side of the scene.

    Returns:
        The paths of image and label.

    Raises:
        UserError: there are scenes in the folder already, the size is too small, a class is hardly there, or the folder
            cannot be written to.
    """
    if seed < 0:
        raise UserError(f"the seed is {seed}; give a number of 0 or more, a large one that nobody guesses.")
    if size_px < 256:
        raise UserError(f"a scene of {size_px} px a side is too small to tell methods apart; give 256 px or more.")
    image, label = out / STUDENT / "capstone_image.tif", out / TEACHER / "capstone_label.tif"
    if there := [path for path in (image, label) if path.exists()]:
        raise UserError(f"{there[0]} is there already, and students may be at work on it; give another --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
        aside = tempfile.TemporaryDirectory(dir=out, prefix=".writing-")
    except OSError as error:
        raise UserError(f"{out} cannot be written to ({error.strerror}); give another --out.") from error
    with aside as folder:
        written = write_synthetic_scene(folder, "capstone", size_px, size_px, seed)
        _check_classes(written[1], seed)
        for path, to in zip(written, (image, label), strict=True):
            to.parent.mkdir(exist_ok=True)
            path.replace(to)
    return image, label


def _check_classes(label: Path, seed: int) -> None:
    """Whether a scene has enough of each class: some are nearly all water."""
    scene = _labelled(label)
    shares = count_labels([scene]) / (scene.height * scene.width)
    if rare := [c.name for c, share in zip(CLASSES, shares, strict=True) if share < LEAST_SHARE]:
        raise UserError(
            f"with seed {seed} less than {LEAST_SHARE:.1%} of the scene is {' or '.join(rare)}; take another seed, or "
            "a larger --size."
        )


def check_map(path: Path, label: Path) -> bool:
    """Score a student's map of the capstone's scene, and print its scores and its checks.

    Args:
        path: a label raster on the scene's grid, of the classes' values, as ``rsseglab predict`` writes it.
        label: of the teacher.

    Returns:
        Whether all checks passed.

    Raises:
        UserError: a file is missing or damaged; the label is none of the capstone's.
    """
    scene = _labelled(label)
    count_labels([scene])  # a label that is none of the capstone's is the teacher's mistake, not the student's
    RasterSource(path)  # nor is a name that was mistyped
    grid = "on the scene's grid, of its classes"
    try:
        evaluation = evaluate_scene(path, scene, progress=True)
    except UserError as error:
        print(f"{path}\n{table([Outcome(grid, 1, str(error))])}")
        return False
    matrix = evaluation.confusion.matrix
    empty = matrix[:, -1].sum() / matrix.sum()  # the last column is "no class"
    reached, constant = evaluation.confusion.mean_iou(), _of_one_class(evaluation)
    outcomes = [
        Outcome(grid, 1, None),
        Outcome("every labelled pixel has a class", 1, f"{empty:.1%} have none, and count as wrong" if empty else None),
        Outcome("better than one class everywhere", 2, None if reached > constant else
                f"its mean IoU is {reached:.3f}, that of the most frequent class everywhere {constant:.3f}"),
    ]  # fmt: skip
    print(f"{path}\n{_scores(evaluation)}\n\n{table(outcomes)}")
    return not any(outcome.wrong for outcome in outcomes)


def _labelled(label: Path) -> Scene:
    grid = RasterSource(label)
    # Nobody looks at the image: one that takes no memory and has data everywhere will do.
    image = ArraySource(np.broadcast_to(np.uint8(0), (grid.height, grid.width)), grid.crs, grid.transform)
    return Scene(image, label, CLASSES, IGNORE_VALUES, name="capstone")


def _of_one_class(evaluation: Evaluation) -> float:
    """Mean IoU of a map that is the label's most frequent class everywhere."""
    confusion = evaluation.confusion
    return confusion.majority_class(confusion.label_counts).mean_iou()


def _scores(evaluation: Evaluation) -> str:
    scores = evaluation.metrics()
    lines = [(f"IoU {name}", value) for name, value in scores["iou"].items()]
    lines += [(f"mean IoU of {len(lines)} classes", scores["mean_iou"]), ("mean F1", scores["mean_f1"])]
    lines += [("overall accuracy", scores["overall_accuracy"])]
    lines += [(f"boundary F1 ({scores['boundary_tolerance_px']} px)", scores["mean_boundary_f1"])]
    if "seam_error" in scores:
        lines.append(("seam error", scores["seam_error"]))
    return "\n".join(f"{name:24}{value:7.3f}" for name, value in lines)
