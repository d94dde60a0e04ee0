"""Which classes a model knows, and which it takes for one another."""

from dataclasses import dataclass
from typing import Any

from lightning_ft.report.evaluation import class_names
from lightning_ft.report.shown import plain
from lightning_ft.report.story import Story

MOST_CLASSES = 60
MATRIX_CLASSES = 16
MOST_CONFUSIONS = 15


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the confusion matrix."""

    number: int
    share: float


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the confusion matrix."""

    name: str
    cells: list[Cell]


def class_rows(run: Story) -> dict[str, Any]:
    """Return the classes with their scores, the worst where there are many."""
    rows = sorted(run.classes, key=lambda one: one.f1) if len(run.classes) > MOST_CLASSES else run.classes
    hidden = len(rows) - MOST_CLASSES
    said = f"The {MOST_CLASSES} worst of {len(rows)} classes." if hidden > 0 else ""
    kept = rows[:MOST_CLASSES]
    return {"rows": kept, "left_out": said}


def _square(run: Story) -> list[list[int]] | None:
    matrix = None if run.evaluation is None else run.evaluation.tables.get("confusion_matrix")
    return None if matrix is None or matrix.ndim != 2 else matrix.long().tolist()


def confusion_matrix(run: Story) -> dict[str, Any] | None:
    """Return the confusion matrix with its classes; None where there is none, or too many classes to draw it."""
    matrix = _square(run)
    if matrix is None or len(matrix) > MATRIX_CLASSES or run.evaluation is None:
        return None
    names = [plain(name, 40) for name in class_names(run.evaluation.names, len(matrix))]
    rows = [
        Row(name, [Cell(number, number / (sum(numbers) or 1)) for number in numbers])
        for name, numbers in zip(names, matrix, strict=True)
    ]
    return {"names": names, "rows": rows}


def confusions(run: Story) -> list[tuple[str, str, int]]:
    """Return the commonest confusions as true class, predicted class and number, where they are too many to draw."""
    matrix = _square(run)
    if matrix is None or len(matrix) <= MATRIX_CLASSES or run.evaluation is None:
        return []
    names = [plain(name, 60) for name in class_names(run.evaluation.names, len(matrix))]
    wrong = [
        (number, true, predicted)
        for true, numbers in enumerate(matrix)
        for predicted, number in enumerate(numbers)
        if true != predicted and number
    ]
    wrong.sort(key=lambda one: (-one[0], one[1:]))
    return [(names[true], names[predicted], number) for number, true, predicted in wrong[:MOST_CONFUSIONS]]
