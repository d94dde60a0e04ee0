"""Files that are written whole or not at all."""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write_whole(file: Path, partial: Path, write: Callable[[Path], None]) -> None:
    """Write a file at another place of its disk, sync it, and rename it.

    Args:
        file: The file; what stood there before stays until the new one is whole.
        partial: The other place.
        write: Writes to the path that it is given.
    """
    try:
        write(partial)
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())
        partial.replace(file)
        sync_folder(file.parent)
    finally:
        partial.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring a folder's list of names to the disk, where the system can: only then a rename is safe."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def failures_told(file: Path) -> Iterator[None]:
    """Say of an OSError in the block which file was to be written, and why it was not."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "the disk is full" if full else error.strerror or str(error)
        raise OSError(error.errno, f"predictions cannot be written to {str(file)!r}: {reason}") from error
