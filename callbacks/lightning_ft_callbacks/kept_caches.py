"""StoreFolder: where a fit's stores are, and those that earlier fits left to be used again."""

import fcntl
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from lightning_ft_callbacks.sample_shapes import SampleShape
from lightning_ft_callbacks.sample_store import INDEX, SampleStore
from lightning_ft_callbacks.storage import Budget, Storage

FIT, LOCK, MANIFEST = "fit-", "lock", "manifest.json"
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
        keep: Whether complete stores are kept for later fits.
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
        """Return a store, one that was kept if there is one of this fingerprint.

        Args:
            name: Its name.
            num_samples: Samples of the data set.
            shapes: Shapes of its tensors.
            dtype: The type of floating-point numbers in it.
            num_bytes: About what it will take [byte].
            fingerprint: What it holds, so that a later fit knows it; None if that cannot be told.
        """
        described = _description(num_samples, shapes, dtype)
        if self.keep and fingerprint is not None and is_whole(found := self.root / fingerprint, described):
            storage = Storage(self.budget, found, lambda: None, in_files=True)
            return SampleStore(num_samples, shapes, storage, dtype=dtype, index=found / INDEX)
        self._number += 1
        files = self._shared or self.keep
        folder = self._place(num_bytes) / f"{name}-{self._number}"
        storage = self._storage(folder, in_files=files)
        store = SampleStore(num_samples, shapes, storage, dtype=dtype, index=folder / INDEX if files else None)
        if self.keep and fingerprint is not None:
            self._names[id(store)] = fingerprint, folder, described
        return store

    def close(self, store: SampleStore) -> None:
        """Let go of a store, and keep it for later fits where it is to be kept and complete."""
        kept = self._names.pop(id(store), None)
        if kept is not None and store.num_held == store.num_samples and self._rank == 0:
            fingerprint, folder, described = kept
            finish(folder, described, self.root / fingerprint)
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

    def _storage(self, folder: Path, *, in_files: bool) -> Storage:
        if in_files:
            self._own(folder.parent)
        return Storage(self.budget, folder, lambda: self._own(folder.parent), in_files=in_files, writer=self._rank)

    def _own(self, folder: Path) -> None:
        """Make a folder of the fit's, and lock it while this process lives."""
        folder.mkdir(parents=True, exist_ok=True)
        if self._rank == 0 and folder not in self._locks:
            self._locks[folder] = (folder / LOCK).open("w")
            fcntl.flock(self._locks[folder], fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_whole(folder: Path, described: dict[str, Any]) -> bool:
    """Tell whether a folder holds a finished store of a description, and not a byte in it has changed.

    Args:
        folder: The folder.
        described: What the store must be.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        files = manifest["files"]
        return manifest["store"] == described and all(_checksum(folder / name) == files[name] for name in files)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def finish(folder: Path, described: dict[str, Any], target: Path) -> None:
    """Make a store one that later fits use: its files synced, their checksums beside them, and the folder renamed.

    Args:
        folder: The store's folder.
        described: What it is.
        target: Its folder from now on; if that is there already, this one is left to be removed.
    """
    files = {path.name: _checksum(path) for path in sorted(folder.glob("*.bin"))}
    for name in files:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    part = folder / f"{MANIFEST}.part"
    with part.open("w") as file:
        json.dump({"store": described, "files": files}, file)
        file.flush()
        os.fsync(file.fileno())
    part.rename(folder / MANIFEST)
    if target.exists() and not is_whole(target, described):
        shutil.rmtree(target, ignore_errors=True)
    try:
        folder.rename(target)
    except OSError:  # another fit has kept the same in the meantime
        return


def digest(*parts: Any) -> str:
    """Return a name for texts and tensors: two that differ have different ones."""
    found = sha256()
    for part in parts:
        if isinstance(part, torch.Tensor):
            data = part.detach().cpu().contiguous()
            found.update(f"{data.dtype}{tuple(data.shape)}".encode())
            found.update(data.reshape(-1).view(torch.uint8).numpy().data)
        else:
            found.update(f"{part!r};".encode())
    return found.hexdigest()[:32]


def _description(num_samples: int, shapes: Sequence[SampleShape], dtype: torch.dtype | None) -> dict[str, Any]:
    kinds = [f"{dtype if dtype and shape.dtype.is_floating_point else shape.dtype}" for shape in shapes]
    rows = [[list(shape.of_sample(1)), list(shape.token_dims)] for shape in shapes]
    return {"format": 1, "num_samples": num_samples, "types": kinds, "shapes": rows}


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while piece := file.read(2**22):
            value = zlib.crc32(piece, value)
    return value


def _remove_orphans(root: Path) -> None:
    """Remove folders of fits whose process is gone, which holds their lock while it lives."""
    for lock in [*root.glob(f"{FIT}*/{LOCK}"), *root.glob(f"lightning-ft-{FIT}*/{LOCK}")]:
        try:
            with lock.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:  # it lives, or another process removes it
            continue
