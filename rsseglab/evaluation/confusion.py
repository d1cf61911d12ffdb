r"""Which class was called what, counted over whole scenes, and every measure that follows from it.

The confusion matrix :math:`M` has one row a labelled class and one column a predicted class, and one column more:
pixels that have a label but got no class (nodata in the prediction). Those are errors of their true class, so a
method gains nothing by leaving hard pixels empty. Pixels without a label count in none of the scores; what was
predicted on them is kept apart, in ``ignored``, for the published protocols that do count it
(`rsseglab.evaluation.protocols`). With

.. math:: TP_c = M_{cc}, \quad FN_c = \sum_{j \ne c} M_{cj}, \quad FP_c = \sum_{i \ne c} M_{ic}

per class:

.. math:: \text{precision} = \frac{TP}{TP + FP}, \quad \text{recall} = \frac{TP}{TP + FN}, \quad
          F_1 = \frac{2\,TP}{2\,TP + FP + FN}, \quad \text{IoU} = \frac{TP}{TP + FP + FN}

A class that is neither labelled nor predicted anywhere has no score: NaN. For any other class 0/0 counts as 0.

`torchmetrics` has the same matrix and is the twin in the tests; `numpy.bincount` on 16-bit pairs counts a block
several times faster and needs no torch.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from rsseglab.errors import UserError
from rsseglab.scenes.scene import IGNORE_INDEX

if TYPE_CHECKING:
    import pandas as pd


class Confusion:
    """Confusion matrix of K classes, added up block by block and scene by scene.

    Args:
        classes: their names, in the order of the indices; at most 255.
        matrix: counts to start from, shape (K, K + 1): label by prediction, the last column for "no class".
        ignored: pixels without a label that go with that matrix, shape (K + 1,): by prediction, as its rows. Where a
            matrix comes without, they are not known, and stay None.

    Raises:
        UserError: names are missing or double, or the counts have another shape.
    """

    def __init__(
        self,
        classes: Sequence[str],
        matrix: NDArray[np.int64] | None = None,
        ignored: NDArray[np.int64] | None = None,
    ) -> None:
        self.classes = tuple(classes)
        K = len(self.classes)
        if not 1 <= len(set(self.classes)) == K <= IGNORE_INDEX:
            raise UserError(f"classes are {list(classes)}; give 1 to {IGNORE_INDEX} different names.")
        self.matrix = np.zeros((K, K + 1), np.int64) if matrix is None else np.asarray(matrix, np.int64).copy()
        if self.matrix.shape != (K, K + 1):
            raise UserError(f"a confusion of {K} classes has shape {(K, K + 1)}, not {self.matrix.shape}; correct it.")
        if matrix is None and ignored is None:
            ignored = np.zeros(K + 1, np.int64)
        self.ignored = None if ignored is None else np.asarray(ignored, np.int64).copy()
        if self.ignored is not None and self.ignored.shape != (K + 1,):
            raise UserError(f"ignored pixels have shape {self.ignored.shape}, not {(K + 1,)}; correct it.")

    def update(self, prediction: NDArray[Any], label: NDArray[Any]) -> None:
        """Count a block.

        Args:
            prediction: class indices 0 to K - 1, or `IGNORE_INDEX` for no class; any shape.
            label: the same shape; pixels that are `IGNORE_INDEX` enter ``ignored`` alone.

        Raises:
            UserError: the shapes differ, or a counted pixel holds an index that is no class.
        """
        if prediction.shape != label.shape:
            raise UserError(f"prediction {prediction.shape} and label {label.shape} differ in shape; align them.")
        K = len(self.classes)
        scored = label != IGNORE_INDEX
        true, guess = label[scored], prediction[scored]
        empty = guess == IGNORE_INDEX
        for what, index in (("label", true), ("prediction", guess[~empty])):
            if index.size and not 0 <= index.min() <= index.max() < K:
                raise UserError(
                    f"the {what} holds indices {index.min()} to {index.max()} for {K} classes; "
                    f"give indices 0 to {K - 1}, or {IGNORE_INDEX}."
                )
        guess[empty] = K  # the column "no class"
        pair = true.astype(np.uint16) * np.uint16(K + 1) + guess.astype(np.uint16)  # row * columns + column
        self.matrix += np.bincount(pair, minlength=K * (K + 1)).reshape(K, K + 1)
        if self.ignored is not None and true.size < label.size:
            rest = prediction[~scored]
            self.ignored += np.bincount(np.where((rest >= 0) & (rest < K), rest, K), minlength=K + 1)

    def __add__(self, other: Self) -> Self:
        if self.classes != other.classes:
            raise UserError(f"confusions of {self.classes} and {other.classes} do not add; use the same classes.")
        matrix = self.matrix + other.matrix
        if self.ignored is None or other.ignored is None:
            return type(self)(self.classes, matrix)
        return type(self)(self.classes, matrix, self.ignored + other.ignored)

    @property
    def pixels(self) -> int:
        """How many pixels were counted."""
        return int(self.matrix.sum())

    @property
    def label_counts(self) -> NDArray[np.int64]:
        """Labelled pixels a class, shape (K,)."""
        return self.matrix.sum(axis=1)

    @property
    def predicted_counts(self) -> NDArray[np.int64]:
        """Pixels predicted as each class, shape (K,); "no class" is left out."""
        return self.matrix[:, :-1].sum(axis=0)

    @property
    def true_positives(self) -> NDArray[np.int64]:
        """Pixels of each class that were predicted as that class, shape (K,)."""
        return self.matrix.diagonal().copy()

    def iou(self) -> NDArray[np.float64]:
        """Intersection over union a class, shape (K,): TP / (TP + FP + FN)."""
        return self._score(self.true_positives, self.label_counts + self.predicted_counts - self.true_positives)

    def f1(self) -> NDArray[np.float64]:
        """F1, the Dice coefficient, a class, shape (K,): 2 TP / (2 TP + FP + FN)."""
        return self._score(2 * self.true_positives, self.label_counts + self.predicted_counts)

    def precision(self) -> NDArray[np.float64]:
        """Which part of what was predicted as a class is that class, shape (K,): TP / (TP + FP)."""
        return self._score(self.true_positives, self.predicted_counts)

    def recall(self) -> NDArray[np.float64]:
        """Which part of a class was found, shape (K,): TP / (TP + FN)."""
        return self._score(self.true_positives, self.label_counts)

    def _score(self, part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
        score = part / np.maximum(whole, 1)
        return np.where(self.label_counts + self.predicted_counts > 0, score, np.nan)

    def overall_accuracy(self) -> float:
        """Which part of all labelled pixels is right; NaN when none was counted."""
        return float(self.true_positives.sum() / self.pixels) if self.pixels else float("nan")

    def mean_iou(self, classes: Sequence[str] | None = None) -> float:
        """Mean of `iou`, see `mean`."""
        return self.mean(Confusion.iou, classes)

    def mean_f1(self, classes: Sequence[str] | None = None) -> float:
        """Mean of `f1`, see `mean`."""
        return self.mean(Confusion.f1, classes)

    def mean_precision(self, classes: Sequence[str] | None = None) -> float:
        """Mean of `precision`, see `mean`."""
        return self.mean(Confusion.precision, classes)

    def mean_recall(self, classes: Sequence[str] | None = None) -> float:
        """Mean of `recall`, see `mean`."""
        return self.mean(Confusion.recall, classes)

    def mean(
        self, measure: Callable[["Confusion"], NDArray[np.float64]], classes: Sequence[str] | None = None
    ) -> float:
        """Mean of a measure over classes.

        Papers differ in which classes they average (FCtL's mean on Inria is the building IoU alone), so name them
        when numbers are compared. A class that is left out of the mean still counts: what is wrongly predicted as
        it, or taken from it, stays an error of the others.

        Args:
            measure: one of this class's measures, such as ``Confusion.iou``.
            classes: names of the classes that enter; all when not given. Of these, classes that are neither
                labelled nor predicted (NaN) are left out of sum and number.

        Returns:
            The mean, or NaN when no class is left.

        Raises:
            UserError: a name is no class.
        """
        return mean_over(measure(self), self.classes, classes)

    def majority_class(self, train_counts: Sequence[int] | NDArray[np.int64]) -> Self:
        """The confusion that a constant prediction would get on the same labels: the baseline to beat.

        Args:
            train_counts: labelled pixels a class in the *training* scenes, see `count_labels`; the constant is the
                most frequent class of these, the first of equals.

        Raises:
            UserError: there is not one count a class, or no count is positive.
        """
        counts = np.asarray(train_counts)
        if counts.shape != (len(self.classes),) or counts.max() <= 0:
            raise UserError(f"train counts are {counts.tolist()}; give one a class of {', '.join(self.classes)}.")
        matrix = np.zeros_like(self.matrix)
        matrix[:, counts.argmax()] = self.label_counts
        if self.ignored is None:
            return type(self)(self.classes, matrix)
        ignored = np.zeros_like(self.ignored)
        ignored[counts.argmax()] = self.ignored.sum()
        return type(self)(self.classes, matrix, ignored)

    def table(self) -> "pd.DataFrame":
        """One row a class: iou, f1, precision, recall, and pixels labelled and predicted."""
        import pandas as pd

        columns = {
            "iou": self.iou(), "f1": self.f1(), "precision": self.precision(), "recall": self.recall(),
            "labelled_px": self.label_counts, "predicted_px": self.predicted_counts,
        }  # fmt: skip
        return pd.DataFrame(columns, index=pd.Index(self.classes, name="class"))

    def to_json(self) -> dict[str, Any]:
        """Plain types: class names, the matrix, row by row, and the pixels without a label, where known."""
        content = {"classes": list(self.classes), "matrix": self.matrix.tolist()}
        return content if self.ignored is None else content | {"ignored": self.ignored.tolist()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The inverse of `to_json`."""
        return cls(content["classes"], np.array(content["matrix"], np.int64), content.get("ignored"))

    def __repr__(self) -> str:
        return f"Confusion({len(self.classes)} classes, {self.pixels} px, mean IoU {self.mean_iou():.3f})"


def mean_over(scores: NDArray[np.float64], names: Sequence[str], classes: Sequence[str] | None) -> float:
    """Mean of one score a class over the named classes (all when None), without those that are NaN.

    Returns:
        NaN when no class is left.

    Raises:
        UserError: a name is no class.
    """
    wanted = tuple(names) if classes is None else tuple(classes)
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise UserError(f"no classes {unknown}; choose from {', '.join(names)}.")
    chosen = scores[[list(names).index(name) for name in wanted]]
    chosen = chosen[~np.isnan(chosen)]
    return float(chosen.mean()) if chosen.size else float("nan")
