"""RunBoard: TensorBoard's events of a run, which name neither its user nor its machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.summary.writer import event_file_writer
from torch.utils.tensorboard import SummaryWriter

HOST = "run"  # stands where TensorBoard puts the host's name


class RunBoard(TensorBoardLogger):
    """Lightning's TensorBoardLogger into a run's folder, whose file has no host name in its own.

    Hyperparameters go into the events alone; ``config.yaml`` has all of them.

    Args:
        folder: The run's folder.
        purge_step: The first step that a resumed run logs again; None for a new run.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        super().__init__(folder.parent, name="", version=folder.name, purge_step=purge_step)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the events."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir, **self._kwargs)
        return self._experiment

    def save(self) -> None:
        """Bring the events so far to the file."""
        self.experiment.flush()


class _Writer(SummaryWriter):
    def _get_file_writer(self) -> Any:
        with _no_host_name():
            return super()._get_file_writer()


@contextmanager
def _no_host_name() -> Iterator[None]:
    """Hide the host's name from TensorBoard, which takes it for a file's name and has no option for another."""
    before = event_file_writer.socket
    event_file_writer.socket = SimpleNamespace(gethostname=lambda: HOST)
    try:
        yield
    finally:
        event_file_writer.socket = before
