"""Labels: what the label column holds, and its translation to targets."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from math import isfinite
from statistics import fmean, pstdev
from typing import Any, Literal

from lightning_ft.tasks.entities import NONE, are_entities, kinds_of, tag_names, to_iob2

Task = Literal[
    "multiclass",
    "multilabel",
    "regression",
    "entities",
    "tags",
    "causal",
    "masked",
    "segmentation",
    "detection",
    "recommendation",
]


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a data set.

    Attributes:
        task: ``"multiclass"`` (one class a sample), ``"multilabel"`` (any number), ``"regression"`` (a number),
            ``"entities"`` (a tag of IOB2 a word), ``"tags"`` (a class a word), ``"causal"`` (the next token),
            ``"masked"`` (hidden tokens), ``"segmentation"`` (a class a pixel), ``"detection"`` (a class an object) or
            ``"recommendation"`` (an item).
        names: Class names in the order of the prediction; empty where there are none.
        mean: Of a regression the mean of the targets; None otherwise.
        std: Of a regression their standard deviation, 1 where all are the same; None otherwise.
    """

    task: Task
    names: tuple[str, ...] = ()
    mean: float | None = field(default=None, compare=False, repr=False)
    std: float | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, values: Sequence[Any], task: Task | None, where: str) -> "Labels":
        """Read the labels of a column.

        Args:
            values: The column: strings or whole numbers are classes, lists are several classes, other numbers are
                what a regression predicts.
            task: The task, where the values alone do not say it: ratings from 1 to 5 are classes unless told.
            where: The file, for messages.

        Raises:
            ValueError: If there is one class only, or a value is no number in a regression.
        """
        task = task or task_of(values)
        if task == "detection":
            return cls(task, tuple(sorted({name for value in values for name in value}, key=natural_order)))
        if task in ("entities", "tags"):
            tags = {tag for value in values for tag in value}
            if task == "entities" and not are_entities(tags):
                strange = next(iter(sorted(tags - {NONE})), None)
                raise ValueError(
                    f"{where}: expected tags as B-person, I-person and O, but found "
                    + (f"{NONE} alone" if strange is None else f"{strange!r}; task: tags takes one class a word")
                )
            return cls(task, tag_names(kinds_of(tags)) if task == "entities" else tuple(sorted(tags)))
        if task == "regression":
            numbers = cls(task).encode(values, where)
            return cls(task, mean=fmean(numbers), std=pstdev(numbers) or 1.0)
        names = {name for value in values for name in (_names(value) if task == "multilabel" else [_name(value)])}
        if len(names) < (2 if task == "multiclass" else 1):
            raise ValueError(
                f"{where}: all {len(values)} rows have the label {next(iter(names), None)!r}; "
                "a classifier needs at least two classes"
            )
        return cls(task, tuple(sorted(names, key=natural_order)))

    @property
    def num_classes(self) -> int:
        """Numbers that a head predicts for a sample: one a class, or one for a regression."""
        return len(self.names) or 1

    def encode(self, values: Iterable[Any], where: str) -> list[Any]:
        """Translate a column to targets: class indices, rows of 0 and 1, floats, or those of words or objects.

        Masks of pixels are left as they are; they are read when they are needed.

        Args:
            values: The column.
            where: The file, for messages.

        Raises:
            ValueError: If a label is not among the names, or is no number in a regression.
        """
        if self.task == "segmentation":
            return list(values)
        if self.task == "regression":
            return [_number(value, row, where) for row, value in enumerate(values)]
        index = {name: i for i, name in enumerate(self.names)}

        def position(name: str, row: int) -> int:
            if name in index:
                return index[name]
            near = get_close_matches(name, self.names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(
                f"{where}, row {row + 1}: label {name!r} is not among those of the training data: "
                f"{', '.join(self.names[:20])}{hint}"
            )

        if self.task == "multiclass":
            return [position(_name(value), row) for row, value in enumerate(values)]
        if self.task in ("entities", "tags", "detection"):
            read = to_iob2 if self.task == "entities" else list
            return [[position(tag, row) for tag in read(value)] for row, value in enumerate(values)]
        rows = []
        for row, value in enumerate(values):
            target = [0.0] * len(self.names)
            for name in _names(value):
                target[position(name, row)] = 1.0
            rows.append(target)
        return rows


def is_missing(value: Any) -> bool:
    """Tell whether a label is not there: None, NaN, or an empty string. An empty list is a label: no class at all."""
    return value is None or value == "" or (isinstance(value, float) and value != value)


def task_of(values: Sequence[Any]) -> Task:
    """Return the task as labels look: lists for multilabel, numbers that are not whole for regression."""
    if any(isinstance(value, list | tuple) for value in values):
        return "multilabel"
    if any(isinstance(value, float) and not value.is_integer() for value in values):
        return "regression"
    return "multiclass"


def _name(value: Any) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


def _names(value: Any) -> list[str]:
    """Return the classes of a multi-label value: a list, or a string of names between ``|``."""
    if isinstance(value, str):
        return [name.strip() for name in value.split("|") if name.strip()]
    return [_name(part) for part in (value if isinstance(value, list | tuple) else [value])]


def natural_order(name: str) -> tuple[bool, float, str]:
    """Sort numbers by value before words by letter, so that class 10 comes after class 9."""
    try:
        return (False, float(name), name)
    except ValueError:
        return (True, 0.0, name)


def _number(value: Any, row: int, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not isfinite(number):
        raise ValueError(f"{where}, row {row + 1}: {value!r} is no number, but the task is regression")
    return number
