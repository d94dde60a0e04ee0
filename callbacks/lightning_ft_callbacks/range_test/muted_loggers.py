"""Loggers that write nothing for a while, whoever holds them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from inspect import isfunction
from typing import Any

from lightning.pytorch.loggers.logger import DummyLogger


@contextmanager
def muted(loggers: Iterable[Any]) -> Iterator[None]:
    """Have loggers take no metrics, images or texts: a module, or a hook on it, may have kept one.

    What is given to a logger's ``experiment`` is not held back.

    Args:
        loggers: The loggers.
    """
    found = []
    for logger in loggers:
        names = [name for name in dir(type(logger)) if name.startswith("log_") or name in ("save", "finalize")]
        for name in names:
            if isfunction(getattr(type(logger), name, None)):
                found.append((vars(logger), name, vars(logger).get(name)))
                vars(logger)[name] = _nothing
    try:
        yield
    finally:
        for own, name, value in found:
            del own[name]
            if value is not None:
                own[name] = value


class QuietLogger(DummyLogger):
    """Drops everything, and says of where it would write what another logger says.

    Args:
        of: The other logger.
    """

    def __init__(self, of: Any) -> None:
        super().__init__()
        self._of = of

    @property
    def save_dir(self) -> Any:
        """Where it would write."""
        return getattr(self._of, "save_dir", None)

    @property
    def log_dir(self) -> Any:
        """Where it would write this run."""
        return getattr(self._of, "log_dir", self.save_dir)

    @property
    def name(self) -> Any:
        """The experiment's name."""
        return getattr(self._of, "name", "")

    @property
    def version(self) -> Any:
        """The run's name."""
        return getattr(self._of, "version", "")


def _nothing(*_: Any, **__: Any) -> None:
    """Do nothing."""
