"""What is said where predictions cannot be written."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_ft_callbacks.whole_file import reason_of


@contextmanager
def failures_told(file: Path) -> Iterator[None]:
    """Say of an OSError in the block which file was to be written, and why it was not."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"predictions cannot be written to {str(file)!r}: {reason_of(error)}") from error
