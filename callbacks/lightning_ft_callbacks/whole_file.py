"""Files that are written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTIAL = ".partial"


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Let a file be written beside its place; sync it to the disk, and only then give it its name.

    Where that fails, or the process is killed, what stood there before still stands there. What is given has no suffix
    of its own, so that nothing that looks for files of a kind finds half of one.

    Args:
        path: The file. Its folder must exist.

    Yields:
        The path to write to, in the same folder.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        sync(partial)
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    with suppress(OSError):  # some file systems cannot sync a folder
        sync(target.parent)


def write_whole(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all, as UTF-8 with its line ends as they are."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", newline="")


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def remove_partial(folder: Path) -> None:
    """Remove what killed processes left half written in a folder and those below it."""
    for file in folder.rglob(f".*{PARTIAL}"):
        file.unlink(missing_ok=True)
