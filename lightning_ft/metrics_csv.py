"""MetricsCSV: ``metrics.csv`` of a run that can be stopped and resumed."""

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter


class MetricsCSV(CSVLogger):
    """Lightning's CSVLogger, which keeps the rows of the run that is resumed instead of deleting them.

    Every row is on the disk when it is logged, and the file is rewritten whole or not at all.

    Args:
        folder: The run's folder.
        last_step: Step of the checkpoint that the run is resumed from; later rows, which the resumed run will log
            again, are dropped. None for a new run.
    """

    def __init__(self, folder: Path, last_step: int | None = None) -> None:
        super().__init__(folder.parent, name="", version=folder.name, flush_logs_every_n_steps=1)
        self._last_step = last_step

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the file."""
        if self._experiment is None:
            self._experiment = _KeepingWriter(self.log_dir, self._last_step)
        return self._experiment


class _KeepingWriter(ExperimentWriter):
    def __init__(self, log_dir: str, last_step: int | None) -> None:
        super().__init__(log_dir)
        self.last_step = last_step
        self.pruned = False

    def save(self) -> None:
        """Write the rows; before the first ones drop those that the resumed run logs again."""
        if not self.pruned:
            self.pruned = True
            self._prune()
        super().save()

    def _prune(self) -> None:
        file = Path(self.metrics_file_path)
        if not file.exists():
            return
        with file.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        rows = [row for row in rows if self.last_step is None or int(row["step"]) <= self.last_step]
        self.metrics_keys = sorted({key for row in rows for key, value in row.items() if value})
        self._write(rows)

    def _check_log_dir_exists(self) -> None:
        """Leave the rows of an earlier run where they are."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        with Path(self.metrics_file_path).open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        self.metrics_keys = fieldnames
        self._write(rows)

    def _write(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=self.metrics_keys, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        file = Path(self.metrics_file_path)
        partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
        partial.write_text(text.getvalue(), newline="")
        partial.replace(file)


def steps_logged(checkpoint: Mapping[str, Any]) -> int:
    """Return the step of the last row that a checkpoint's run had logged."""
    return int(checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"])
