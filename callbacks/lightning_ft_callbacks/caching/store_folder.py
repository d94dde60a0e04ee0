"""StoreFolder: where a fit's stores are, and those that earlier fits left to be used again."""

import fcntl
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from lightning_ft_callbacks.caching.kept_caches import description, finish, num_held, take_over
from lightning_ft_callbacks.caching.sample_shapes import SampleShape
from lightning_ft_callbacks.caching.sample_store import INDEX, SampleStore
from lightning_ft_callbacks.caching.storage import Budget, Storage

FIT, LOCK = "fit-", "lock"
SHARED_MEMORY = Path("/dev/shm")


class StoreFolder:
    """Makes stores for a fit: in memory, in shared memory where several processes read them, or in files.

    Files are in a folder of the fit's own, which goes when the fit ends; one that a killed process left behind goes
    when the next one begins. Stores to be kept are renamed to their fingerprint when they are complete.

    Args:
        root: Where files go.
        token: What the fit's folder is called, the same on all ranks.
        budget: Memory for all stores of this process.
        rank: This process's number on its host.
        num_ranks: Processes on this host.
        keep: Whether stores are kept for later fits.
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
        self._names: dict[int, tuple[str, Path, dict[str, Any]]] = {}
        self._number = 0
        for place in (root, SHARED_MEMORY):
            _remove_orphans(place)

    def none(self) -> Storage:
        """Return storage that is asked for nothing."""
        return Storage(Budget(0), self._folder, lambda: None)

    def beside(self, name: str) -> tuple[Storage, Path | None]:
        """Return storage and index for what is small."""
        folder = self._place(0) / name
        return self._storage(folder, in_files=self._shared), folder / INDEX if self._shared else None

    def store(
        self,
        name: str,
        num_samples: int,
        shapes: Sequence[SampleShape],
        dtype: torch.dtype | None,
        num_bytes: int,
        fingerprint: str | None = None,
    ) -> SampleStore:
        """Return a store, which begins with what was kept under this fingerprint.

        Args:
            name: Its name.
            num_samples: Samples of the data set.
            shapes: Shapes of its tensors.
            dtype: The type of floating-point numbers in it.
            num_bytes: About what it will take [byte].
            fingerprint: What it holds, so that a later fit knows it; None if that cannot be told.
        """
        described = description(num_samples, shapes, dtype)
        warm = None
        if self.keep and fingerprint is not None:
            warm = found if (held := num_held(found := self.root / fingerprint, described)) else None
            if held == num_samples:
                storage = Storage(self.budget, found, lambda: None, in_files=True)
                return SampleStore(num_samples, shapes, storage, dtype=dtype, index=found / INDEX)
        self._number += 1
        files = self._shared or self.keep
        folder = self._place(num_bytes) / f"{name}-{self._number}"
        writer = self._rank
        if warm is not None and not self._shared:  # several processes would do so at once
            self._own(folder.parent)
            writer = take_over(warm, folder)
        storage = self._storage(folder, in_files=files, writer=writer)
        store = SampleStore(num_samples, shapes, storage, dtype=dtype, index=folder / INDEX if files else None)
        if self.keep and fingerprint is not None:
            self._names[id(store)] = fingerprint, folder, described
        return store

    def close(self, store: SampleStore) -> None:
        """Let go of a store, and keep it for later fits where it is to be kept.

        What several processes fill together is kept only when it is complete, because some may still be writing.
        """
        kept = self._names.pop(id(store), None)
        if kept is not None and self._rank == 0 and (store.num_held == store.num_samples or not self._shared):
            fingerprint, folder, described = kept
            finish(folder, described, self.root / fingerprint, store.num_samples)
        store.close()

    def remove(self) -> None:
        """Remove the fit's files."""
        for folder, lock in self._locks.items():
            shutil.rmtree(folder, ignore_errors=True)
            lock.close()
        self._locks = {}

    def _place(self, num_bytes: int) -> Path:
        """Return the folder for files: in shared memory if they fit there and go with the fit, else on the disk."""
        fits = num_bytes * 1.2 < self.budget.max_bytes * self._num_ranks - self.budget.used
        in_memory = self._shared and not self.keep and fits and SHARED_MEMORY.is_dir()
        return self._memory if in_memory else self._folder

    def _storage(self, folder: Path, *, in_files: bool, writer: int | None = None) -> Storage:
        if in_files:
            self._own(folder.parent)
        number = self._rank if writer is None else writer
        return Storage(self.budget, folder, lambda: self._own(folder.parent), in_files=in_files, writer=number)

    def _own(self, folder: Path) -> None:
        """Make a folder of the fit's, and lock it while this process lives."""
        folder.mkdir(parents=True, exist_ok=True)
        if self._rank == 0 and folder not in self._locks:
            self._locks[folder] = (folder / LOCK).open("w")
            fcntl.flock(self._locks[folder], fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_orphans(root: Path) -> None:
    """Remove folders of fits whose process is gone, which holds their lock while it lives."""
    for lock in [*root.glob(f"{FIT}*/{LOCK}"), *root.glob(f"lightning-ft-{FIT}*/{LOCK}")]:
        try:
            with lock.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:  # it lives, or another process removes it
            continue
