"""ClassScores: how each class of a classifier fared."""

from dataclasses import dataclass

from torch import Tensor

from lightning_ft.report.evaluation import Evaluation, class_names


@dataclass(frozen=True, slots=True)
class ClassScores:
    """How a class fared.

    Attributes:
        name: Its name.
        num_true: Rows that are of it.
        num_predicted: Rows that were taken for it.
        num_right: Rows of both.
    """

    name: str
    num_true: int
    num_predicted: int
    num_right: int

    @property
    def precision(self) -> float:
        """The share of what was taken for it that is of it; 0 where nothing was."""
        return self.num_right / self.num_predicted if self.num_predicted else 0.0

    @property
    def recall(self) -> float:
        """The share of what is of it that was taken for it; 0 where nothing is."""
        return self.num_right / self.num_true if self.num_true else 0.0

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall."""
        total = self.num_true + self.num_predicted
        return 2 * self.num_right / total if total else 0.0


def class_scores(evaluation: Evaluation) -> list[ClassScores]:
    """Return the scores of all classes of a classifier, from its confusion matrix; none for other tasks."""
    matrix = evaluation.tables.get("confusion_matrix")
    if matrix is None:
        return []
    names = class_names(evaluation.names, len(matrix))
    right, true, predicted = _counts(matrix)
    counts = zip(names, true.tolist(), predicted.tolist(), right.tolist(), strict=True)
    return [ClassScores(name, *map(int, numbers)) for name, *numbers in counts]


def _counts(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return how many are right, true and predicted of each class.

    Args:
        matrix: Shape (true class, predicted class), or (class, is it, was it predicted) where samples have several.
    """
    if matrix.ndim == 3:
        return matrix[:, 1, 1], matrix[:, 1].sum(1), matrix[:, :, 1].sum(1)
    return matrix.diagonal(), matrix.sum(1), matrix.sum(0)
