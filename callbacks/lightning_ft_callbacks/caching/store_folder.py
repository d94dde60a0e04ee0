"""StoreFolder: where a fit's stores are, and those that earlier fits left to be used again."""

import fcntl
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lightning_ft_callbacks.caching.kept_caches import (
    description,
    finish,
    finished_stores,
    is_complete,
    is_whole,
    take_over,
)
from lightning_ft_callbacks.caching.sample_shapes import SampleShape
from lightning_ft_callbacks.caching.sample_store import INDEX, SampleStore
from lightning_ft_callbacks.caching.storage import Budget, Storage, storage_errors
from lightning_ft_callbacks.caching.store_users import StoreUsers, wait_for_endings
from lightning_ft_callbacks.whole_file import reason_of

FIT, LOCK = "fit-", "lock"
SHARED_MEMORY = Path("/dev/shm")


@dataclass(slots=True, eq=False)
class _Values:
    """Values that one or several stores of a fingerprint hold, proven to be the same; and where they are finished."""

    fingerprint: str
    kept: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Open:
    """A store that is to be finished."""

    store: SampleStore
    values: _Values
    described: dict[str, Any]


class StoreFolder:
    """Makes stores for a fit: in memory, in shared memory where several processes read them, or in files.

    Files are in a folder of the fit's own. Those of a store go when all processes have let go of it, the folder when
    the fit ends; one that a killed process left behind goes when the next one begins. Stores to be kept are renamed to
    their fingerprint and a number when they are complete: code that has changed may give other values under one
    fingerprint, so what is taken over must be proven.

    Args:
        root: Where files go.
        token: What the fit's folder is called, the same on all ranks.
        budget: Memory for all stores of this process.
        rank: This process's number on its host.
        num_ranks: Processes on this host.
        keep: Whether stores are kept for later fits.
        left_behind: Other places where fits that were killed may have left folders.
    """

    def __init__(
        self,
        root: Path,
        token: str,
        budget: Budget,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        keep: bool = False,
        left_behind: Iterable[Path] = (),
    ) -> None:
        self.root = root
        self.keep = keep
        self.budget = budget
        self._rank = rank
        self._shared = num_ranks > 1
        self._num_ranks = num_ranks
        self._folder = root / f"{FIT}{token}"
        self._memory = SHARED_MEMORY / f"lightning-ft-{FIT}{token}"
        self._locks: dict[Path, Any] = {}
        self._open: dict[int, _Open] = {}
        self._users: dict[Storage, StoreUsers] = {}
        self._left: list[tuple[StoreUsers, _Open]] = []  # to be kept, but not let go of yet by all
        self._in_shared_memory: dict[int, int] = {}
        self._number: Counter[str] = Counter()
        for place in {root, SHARED_MEMORY, *left_behind}:
            _remove_orphans(place)

    @property
    def room(self) -> int:
        """The memory that is left for this process's share of stores [byte]."""
        return self.budget.max_bytes - self.budget.used - sum(self._in_shared_memory.values()) // self._num_ranks

    def none(self) -> Storage:
        """Return storage that is asked for nothing."""
        return Storage(Budget(0), self._folder, lambda: None)

    def beside(self, name: str) -> tuple[Storage, Path | None]:
        """Return storage and index for what is small.

        Raises:
            StorageFullError: If files are needed, and cannot be made.
        """
        folder = self._place(0) / name
        storage = self._storage(folder, in_files=self._shared)
        self._users[storage] = StoreUsers(folder, self._rank, self._num_ranks)
        return storage, folder / INDEX if self._shared else None

    def store(
        self,
        name: str,
        num_samples: int,
        shapes: Sequence[SampleShape],
        dtype: torch.dtype | None,
        num_bytes: int,
        fingerprint: str | None = None,
        proven: Callable[[SampleStore], bool] = lambda _: False,
    ) -> SampleStore:
        """Return a store, which begins with what was kept under this fingerprint.

        Args:
            name: Its name.
            num_samples: Samples of the data set.
            shapes: Shapes of its tensors.
            dtype: The type of floating-point numbers in it.
            num_bytes: About what it will take [byte].
            fingerprint: What it holds, so that a later fit knows it; None if that cannot be told.
            proven: Tells whether a store of this fingerprint holds what this one shall hold.

        Raises:
            StorageFullError: If files are needed, and cannot be made.
        """
        self._number[name] += 1
        folder = self._place(num_bytes) / f"{name}-{self._number[name]}"

        def opened(folder: Path, writer: int, users: int) -> SampleStore:
            files = self._shared or self.keep
            storage = self._storage(folder, in_files=files, writer=writer)
            store = SampleStore(num_samples, shapes, storage, dtype=dtype, index=folder / INDEX if files else None)
            self._users[storage] = StoreUsers(folder, self._rank, users)
            return store

        if not self.keep or fingerprint is None:
            store = opened(folder, self._rank, self._num_ranks)
            if folder.parent == self._memory:
                self._in_shared_memory[id(store)] = num_bytes
            return store
        described = description(num_samples, shapes, dtype)
        store, values = self._kept(folder, described, fingerprint, opened, proven)
        if store is None:
            values = values or self._values_of_this_fit(fingerprint, proven) or _Values(fingerprint)
            store = opened(folder, self._rank, self._num_ranks)
        if values is not None and store.num_held < num_samples:
            self._open[id(store)] = _Open(store, values, described)
        return store

    def _kept(
        self,
        folder: Path,
        described: dict[str, Any],
        fingerprint: str,
        opened: Callable[[Path, int, int], SampleStore],
        proven: Callable[[SampleStore], bool],
    ) -> tuple[SampleStore | None, _Values | None]:
        """Return a store that begins with a finished one that is proven, and that one's values; None where none is.

        Several processes begin with what is complete only, because all would write to the same.
        """
        for found in finished_stores(self.root, fingerprint, described):
            own = folder.with_name(f"{folder.name}-{self._rank}") if self._shared else folder
            with storage_errors(self.root):
                self._own(folder.parent)
            try:
                writer = take_over(found, own)
            except OSError:  # another fit puts a larger one in its place, or there is no room
                shutil.rmtree(own, ignore_errors=True)
                continue
            if not is_whole(own, described):
                rank_zero_warn(f"FrozenPrefixCache: {found} is damaged; it is removed, and kept anew")
                shutil.rmtree(found, ignore_errors=True)
            else:
                store = opened(own, writer, 1)
                if self._shared and store.num_held < store.num_samples:
                    store.close()
                elif proven(store):
                    return store, _Values(fingerprint, found)
                else:
                    store.close()
                    rank_zero_warn(
                        f"FrozenPrefixCache: {found} holds other values than the frozen blocks give now for the same "
                        "samples, so code has changed; it is not used, and all is kept anew"
                    )
            shutil.rmtree(own, ignore_errors=True)
        return None, None

    def _values_of_this_fit(self, fingerprint: str, proven: Callable[[SampleStore], bool]) -> _Values | None:
        """Return the values of a store that this fit is filling, where they are proven to be the same.

        Not with several processes, which may find it filled differently, and would not all run the step.
        """
        if self._shared:
            return None
        of_it = [one for one in self._open.values() if one.values.fingerprint == fingerprint and one.store.num_held]
        return next((one.values for one in of_it if proven(one.store)), None)

    def close(self, store: SampleStore) -> None:
        """Let go of a store: the last process that does keeps it for later fits, if that is asked for, or removes it.

        What several processes fill together is kept only when it is complete.
        """
        self._in_shared_memory.pop(id(store), None)
        self._leave(store.storage, self._open.pop(id(store), None))
        store.close()

    def close_beside(self, store: SampleStore) -> None:
        """Let go of what is small, and remove its files if no other process uses them.

        Args:
            store: What was made of ``beside``.
        """
        self._leave(store.storage, None)
        store.close()

    def remove(self) -> None:
        """Remove the fit's files, when all processes have let go of all stores; or when something went wrong."""
        for users, one in self._left:
            self._end(users, one)
        for folder, lock in self._locks.items():
            wait_for_endings(folder)
            gone = folder.with_name(f"{folder.name}-gone")  # where no other process adds anything
            with suppress(OSError):
                folder.rename(gone)
            for one in (gone, folder):
                shutil.rmtree(one, ignore_errors=True)
            lock.close()
        self._locks, self._left = {}, []

    def _leave(self, storage: Storage, one: _Open | None) -> None:
        users = self._users.pop(storage)
        if users.leave():
            self._end(users, one)
        elif one is not None and self._rank == 0:
            self._left.append((users, one))

    def _end(self, users: StoreUsers, one: _Open | None) -> None:
        """Keep a store that nobody uses any more, if it is to be kept, or remove its files; unless another one does."""
        with users.ending() as is_mine:
            if not is_mine:
                return
            try:
                if one is not None and (users.count == 1 or is_complete(users.folder, one.store.num_samples)):
                    self._finish(users.folder, one)
            finally:
                shutil.rmtree(users.folder, ignore_errors=True)

    def _finish(self, folder: Path, one: _Open) -> None:
        values, count = one.values, one.store.num_samples
        try:
            values.kept = finish(folder, one.described, self.root, values.fingerprint, count, values.kept)
        except OSError as error:
            text = f"nothing is kept in {self.root} for later fits: {reason_of(error)}"
            warnings.warn(f"FrozenPrefixCache: {text}", stacklevel=2)  # on whichever rank was the last

    def _place(self, num_bytes: int) -> Path:
        """Return the folder for files: in shared memory if they fit there and go with the fit, else on the disk."""
        if not self._shared or self.keep or not SHARED_MEMORY.is_dir():
            return self._folder
        room = min(self.room * self._num_ranks, shutil.disk_usage(SHARED_MEMORY).free)
        return self._memory if num_bytes * 1.2 < room else self._folder

    def _storage(self, folder: Path, *, in_files: bool, writer: int | None = None) -> Storage:
        if in_files:
            with storage_errors(folder.parent):
                self._own(folder.parent)
        number = self._rank if writer is None else writer
        return Storage(self.budget, folder, lambda: self._own(folder.parent), in_files=in_files, writer=number)

    def _own(self, folder: Path) -> None:
        """Make a folder of the fit's, and lock it while this process lives.

        The lock gets its name when it is locked, so that nobody takes a fit that begins for one that was killed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        if self._rank == 0 and folder not in self._locks:
            unnamed = folder / f".{LOCK}"
            self._locks[folder] = unnamed.open("w")
            fcntl.flock(self._locks[folder], fcntl.LOCK_EX | fcntl.LOCK_NB)
            unnamed.rename(folder / LOCK)


def _remove_orphans(root: Path) -> None:
    """Remove folders of fits whose process is gone, which holds their lock while it lives."""
    for lock in [*root.glob(f"{FIT}*/{LOCK}"), *root.glob(f"lightning-ft-{FIT}*/{LOCK}")]:
        try:
            with lock.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:  # it lives, or another process removes it
            continue
