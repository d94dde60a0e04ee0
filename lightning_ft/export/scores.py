"""The scores that a run's folder holds for the checkpoint that is exported."""

import csv
import math
from dataclasses import dataclass

from lightning_ft.run.finished_run import FinishedRun
from lightning_ft.run.folder import METRICS
from lightning_ft.run.results import read_results


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's value.

    Attributes:
        stage: ``"val"`` or ``"test"``.
        metric: The metric's name without its stage.
        value: Its value; None where it was no finite number.
        num_rows: The rows that it was measured on, where that is known.
    """

    stage: str
    metric: str
    value: float | None
    num_rows: int | None = None

    def place(self, source: str) -> str:
        """Return what it was measured on, with the file."""
        rows = "" if self.num_rows is None else f"{self.num_rows} rows, "
        return f"{ {'val': 'validation', 'test': 'test'}[self.stage] }: {rows}{source}"


def scores_of(run: FinishedRun) -> list[Score]:
    """Return the scores of the checkpoint: its validation in ``metrics.csv``, and its test, if there was one."""
    return [*_validation(run), *_test(run)]


def _validation(run: FinishedRun) -> list[Score]:
    file, trainer = run.folder / METRICS, run.config.get("trainer") or {}
    partly = trainer.get("limit_val_batches") not in (None, 1.0) or trainer.get("overfit_batches")
    if partly or not file.is_file():  # a score of some batches is none of the rows that the card names
        return []
    step = str(run.saved["global_step"] - 1)  # Lightning counts the steps of its logs from 0
    with file.open(newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("step") == step and row.get("val/loss")]
    found = rows[-1] if rows else {}
    return [
        Score("val", name.removeprefix("val/"), _finite(float(value)))
        for name, value in sorted(found.items())
        if name and name.startswith("val/") and value
    ]


def _test(run: FinishedRun) -> list[Score]:
    result = read_results(run.folder).get("test")
    if not result or (result["checkpoint"], result["step"]) != (run.checkpoint.name, run.saved["global_step"]):
        return []  # none, or of another checkpoint
    return [
        Score("test", name.removeprefix("test/"), _finite(value), result["num_rows"])
        for name, value in sorted(result["metrics"].items())
    ]


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
