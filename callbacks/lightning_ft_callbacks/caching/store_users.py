"""StoreUsers: the processes that use the files of a store, of which the last one ends it."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CLOSED, ENDING = "closed", "ending"


class StoreUsers:
    """The processes of a host that use the files of one store.

    They tell one another by notes beside the store's folder, which itself may be renamed.

    Args:
        folder: The store's folder.
        rank: This process's number on its host.
        count: How many use it.
    """

    def __init__(self, folder: Path, rank: int, count: int) -> None:
        self.folder = folder
        self.count = count
        self._rank = rank

    def leave(self) -> bool:
        """Note that this process has let go of the store, and tell whether all have."""
        if self.count == 1:
            return True
        with suppress(OSError):  # where the fit's folder is gone, or takes no notes
            self._note(f"{CLOSED}-{self._rank}").touch()
            return all(self._note(f"{CLOSED}-{rank}").exists() for rank in range(self.count))
        return False

    @contextmanager
    def ending(self) -> Iterator[bool]:
        """Tell whether this process is the one that ends the store; others wait for it in ``wait_for_endings``."""
        if self.count == 1:
            yield True
            return
        unnamed = self._note(f"{ENDING}-{self._rank}")
        try:
            file = unnamed.open("w")
        except OSError:
            yield False
            return
        with file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield self._is_first(unnamed)

    def _is_first(self, unnamed: Path) -> bool:
        """Give a locked note its name, unless another process has."""
        try:
            os.link(unnamed, self._note(ENDING))
        except OSError:
            return False
        finally:
            unnamed.unlink(missing_ok=True)
        return True

    def _note(self, name: str) -> Path:
        return self.folder.with_name(f"{self.folder.name}.{name}")


def wait_for_endings(folder: Path) -> None:
    """Wait until nobody is ending a store.

    Args:
        folder: Where the stores' folders are.
    """
    for note in folder.glob(f"*.{ENDING}"):
        with suppress(OSError), note.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
