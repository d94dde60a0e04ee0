"""MetricsCSV: ``metrics.csv`` of a run that can be stopped and resumed."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lightning_ft_callbacks.whole_file import sync, write_whole

KEY = "metrics_csv"


@dataclass(frozen=True, slots=True)
class Logged:
    """What a run had logged when a checkpoint was saved.

    Attributes:
        next_step: The step of the next row that the resumed run logs.
        num_rows: Rows of ``metrics.csv`` when the checkpoint was saved; None where that was not noted.
        pending: The row that was logged right behind the checkpoint, which a kill may have kept from the disk.
    """

    next_step: int
    num_rows: int | None = None
    pending: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any]) -> "Logged":
        """Return what a checkpoint knows of it."""
        if KEY in checkpoint:
            return cls(**checkpoint[KEY])
        loop = checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]
        return cls(int(loop["_batches_that_stepped"]) + 1)

    def rows(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return those of a file's rows that the resumed run does not log again, with the one that may be missing."""
        if self.num_rows is None:
            return [row for row in rows if int(row["step"]) < self.next_step]
        return [*rows[: self.num_rows], *([dict(self.pending)] if self.pending else [])]


class MetricsCSV(CSVLogger):
    """Lightning's CSVLogger, which keeps the rows of the run that is resumed instead of deleting them.

    Every row is in the file when it is logged, and on the disk when a checkpoint is saved; the file is rewritten whole
    or not at all. Hyperparameters stand in ``config.yaml``.

    Args:
        folder: The run's folder.
        logged: What the resumed run had logged at its checkpoint; later rows, which it will log again, are dropped.
            None for a new run.
    """

    def __init__(self, folder: Path, logged: Logged | None = None) -> None:
        super().__init__(folder.parent, name="", version=folder.name, flush_logs_every_n_steps=1)
        self._logged = logged

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the file."""
        if self._experiment is None:
            self._experiment = _KeepingWriter(self.log_dir, self._logged)
        return self._experiment

    def log_hyperparams(self, *arguments: Any, **options: Any) -> None:
        """Write none."""


class LoggedRows(Callback):
    """Keeps in each checkpoint what ``metrics.csv`` held by then, so that a resumed run's has each row once.

    Lightning logs a step right behind the checkpoint that is saved at its end; a kill between the two would lose the
    row. So the checkpoint has it too.
    """

    def on_save_checkpoint(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Add it, and wait until the rows so far are on the disk."""
        loop = trainer.fit_loop.epoch_loop
        step = loop._batches_that_stepped
        epochs: Any = trainer.fit_loop.epoch_progress.current
        batches: Any = loop.batch_progress.current
        ends_epoch = epochs.processed == epochs.started
        stepping = not ends_epoch and not loop._should_accumulate()
        ends_batch = stepping and batches.processed > batches.completed and trainer.training
        connector = trainer._logger_connector
        pending: dict[str, Any] = {}
        if trainer.training and (ends_epoch or (ends_batch and connector.should_update_logs)):
            pending = convert_tensors_to_scalars(connector.metrics["log"])
        if pending:
            pending = {"epoch": trainer.current_epoch} | pending | {"step": step - int(ends_epoch)}
        writer = next((logger.experiment for logger in trainer.loggers if isinstance(logger, MetricsCSV)), None)
        num_rows = writer.written() if isinstance(writer, _KeepingWriter) else None
        checkpoint[KEY] = {"next_step": step + int(stepping), "num_rows": num_rows, "pending": pending}


class _KeepingWriter(ExperimentWriter):
    def __init__(self, log_dir: str, logged: Logged | None) -> None:
        super().__init__(log_dir)
        self.logged = logged
        self.num_rows: int | None = None

    def save(self) -> None:
        """Write the rows; before the first ones drop those that the resumed run logs again."""
        self._prune()
        self.num_rows = (self.num_rows or 0) + len(self.metrics)
        super().save()

    def written(self) -> int:
        """Return the number of rows in the file, when they are on the disk."""
        self.save()
        if Path(self.metrics_file_path).exists():
            sync(Path(self.metrics_file_path))
        return self.num_rows or 0

    def _prune(self) -> None:
        if self.num_rows is not None:
            return
        rows = self._rows() if self.logged is None else self.logged.rows(self._rows())
        self.num_rows = len(rows)
        self.metrics_keys = sorted({key for row in rows for key, value in row.items() if value not in (None, "")})
        if rows or Path(self.metrics_file_path).exists():
            self._write(rows)

    def _check_log_dir_exists(self) -> None:
        """Leave the rows of an earlier run where they are."""

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        rows = self._rows()
        self.metrics_keys = fieldnames
        self._write(rows)

    def _rows(self) -> list[dict[str, Any]]:
        """Return the rows of the file, without a last one that was cut short."""
        file = Path(self.metrics_file_path)
        if not file.exists():
            return []
        text = file.read_bytes().decode(errors="replace")
        whole = text[: text.rfind("\n") + 1]
        return list(csv.DictReader(io.StringIO(whole, newline="")))

    def _write(self, rows: list[dict[str, Any]]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=self.metrics_keys, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.metrics_file_path, text.getvalue())
