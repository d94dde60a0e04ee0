"""Files that are written whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"


@contextmanager
def whole_file(path: str | Path, partial: Path | None = None) -> Iterator[Path]:
    """Let a file be written beside its place; sync it to the disk, and only then give it its name.

    Where that fails, or the process is killed, what stood there before still stands there. What is given has no suffix
    of its own, so that nothing that looks for files of a kind finds half of one.

    Args:
        path: The file. Its folder must exist.
        partial: Where it is written, on the same disk; None for a place beside it.

    Yields:
        The path to write to.
    """
    target = Path(path)
    partial = partial or target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        sync(partial)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(target.parent)


def write_whole(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all, as UTF-8 with its line ends as they are."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def sync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def sync_folder(folder: Path) -> None:
    """Bring a folder's names to the disk, where its file system can: only then a rename is safe."""
    with suppress(OSError):
        sync(folder)


def reason_of(error: OSError) -> str:
    """Return why a file could not be written, for a message."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return "the disk is full" if full else error.strerror or str(error)


def remove_partial(folder: Path) -> None:
    """Remove what killed processes left half written in a folder and those below it."""
    for file in folder.rglob(f".*{PARTIAL}"):
        file.unlink(missing_ok=True)
