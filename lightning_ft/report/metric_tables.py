"""The metrics of heads that are tables: entities by kind, objects and pixels by class."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_ft.report.evaluation import Evaluation, class_names
from lightning_ft.tasks.entities import kinds_of

MOST_ROWS = 60


@dataclass(frozen=True, slots=True)
class MetricTable:
    """A table as it is shown.

    Attributes:
        title: Its title.
        columns: Names of its columns.
        rows: Its cells, as text.
        note: What is to be said about it.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


def metric_tables(evaluation: Evaluation) -> list[MetricTable]:
    """Return the tables that an evaluation has, those of classifiers of whole samples left out."""
    found = []
    for key, title, columns in (
        ("by_kind", "Each kind of entity", ("kind", "precision", "recall", "F1", "entities")),
        ("map_per_class", "Each class of objects", ("class", "AP", "AP at 0.5", "recall", "objects")),
        ("by_class", "Each class of pixels", ("class", "IoU", "Dice", "true share", "predicted share")),
    ):
        values = evaluation.tables.get(key)
        if values is None:
            continue
        names = kinds_of(evaluation.names) if key == "by_kind" else evaluation.names
        whole = key != "by_class"
        rows = [
            (name, *(f"{share:.3f}" for share in shares), str(int(last)) if whole else f"{last:.3f}")
            for name, (*shares, last) in zip(class_names(names, len(values)), values.tolist(), strict=True)
        ]
        found.append(MetricTable(title, columns, rows[:MOST_ROWS]))
    return found
