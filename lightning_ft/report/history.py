"""History: what a run's ``metrics.csv`` tells, step by step."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lightning_ft.run.folder import METRICS

LOW_IS_BETTER = ("loss", "mae", "perplexity")
RATE = "lr/"


@dataclass(frozen=True, slots=True)
class Validation:
    """One validation.

    Attributes:
        epoch: Its epoch, from 0.
        step: The optimizer step that it came after.
        scores: What was logged: ``{"val/loss": 0.4}``.
    """

    epoch: int
    step: int
    scores: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class History:
    """A run over its steps.

    Attributes:
        losses: Steps and the training losses that were logged then.
        validations: The validations, in their order.
        rates: Steps, and the effective rate of each block that was trained then.
    """

    losses: list[tuple[int, float]] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    rates: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> "History":
        """Return the history of a run's folder; an empty one where nothing was logged."""
        history = cls()
        file = folder / METRICS
        if not file.is_file():
            return history
        with file.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                cells = {name: number for name, cell in row.items() if name and (number := _number(cell)) is not None}
                if "step" in cells:
                    history._add(int(cells.pop("step")), cells)
        return history

    def _add(self, step: int, cells: dict[str, float]) -> None:
        if "train/loss" in cells:
            self.losses.append((step, cells["train/loss"]))
        if scores := {name: value for name, value in cells.items() if name.startswith("val/")}:
            self.validations.append(Validation(int(cells.get("epoch", 0)), step, scores))
        rates: dict[str, float] = {}
        for name, value in cells.items():
            if name.startswith(RATE):
                block = name.removeprefix(RATE).partition("/")[0]  # a block in groups of several rates has one a group
                rates[block] = max(value, rates.get(block, 0.0))
        if rates:
            self.rates.append((step, rates))


def low_is_better(metric: str) -> bool:
    """Tell whether low values of a metric are better, as losses and errors are."""
    return metric.rpartition("/")[2] in LOW_IS_BETTER


def _number(cell: str | None) -> float | None:
    try:
        return float(cell or "")
    except ValueError:
        return None
