"""Storage: bytes in memory while it lasts, else in files that are mapped into memory."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from lightning_ft_callbacks.whole_file import reason_of

SMALLEST_SEGMENT, LARGEST_SEGMENT = 2**20, 64 * 2**20  # [byte]; each is twice as large as the one before
NUM_SEGMENTS = 1_000_000  # of one writer, at most
ALIGNMENT = 64  # [byte], so that any type can be read in place
CGROUP = Path("/sys/fs/cgroup")


class StorageFullError(OSError):
    """Memory has no room, and no files can be written: the disk is full, or the folder is not ours to write."""


class Budget:
    """Memory that stores may take together.

    Args:
        max_bytes: How much [byte].
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0

    def take(self, num_bytes: int) -> bool:
        """Take some, and tell whether it was there."""
        if self.used + num_bytes > self.max_bytes:
            return False
        self.used += num_bytes
        return True

    def give_back(self, num_bytes: int) -> None:
        """Give some back."""
        self.used -= num_bytes


class Storage:
    """Numbered segments of bytes that are written once, in order.

    Args:
        budget: Memory for segments.
        folder: Where segments go that the memory has no room for; it is made when it is needed.
        before_files: Called before the first file is made.
        in_files: Whether all of them go there, for other processes to see.
        writer: The number of this process among those that write into the folder.
    """

    def __init__(
        self,
        budget: Budget,
        folder: Path,
        before_files: Callable[[], None],
        *,
        in_files: bool = False,
        writer: int = 0,
    ) -> None:
        self._budget = budget
        self._folder = folder
        self._before_files = before_files
        self._in_files = in_files
        self._writer = writer
        self._segments: dict[int, Tensor] = {}
        self._typed: dict[tuple[int, torch.dtype], Tensor] = {}
        self._in_memory = 0
        self._number = 0
        self._end = 0

    def reserve(self, num_bytes: int) -> tuple[int, int, Tensor]:
        """Return room for some bytes: the segment's number from 1, the offset in it, and the bytes.

        Raises:
            StorageFullError: If there is none.
        """
        segment = self._segments.get(self._key(self._number))
        if segment is None or self._end + num_bytes > len(segment):
            usual = min(LARGEST_SEGMENT, SMALLEST_SEGMENT * 2**self._number)
            segment = self._new_segment(max(usual, num_bytes))
        offset = self._end
        self._end = -(-(offset + num_bytes) // ALIGNMENT) * ALIGNMENT
        return self._key(self._number), offset, segment[offset : offset + num_bytes]

    def view(self, key: int, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """Return bytes that were reserved, by this process or by another one in a file, as a tensor; not a copy.

        Args:
            key: The segment's number.
            offset: Where the tensor begins in it [byte].
            dtype: The tensor's type.
            shape: The tensor's shape.

        Raises:
            OSError: If the file is not there.
        """
        typed = self._typed.get((key, dtype))
        if typed is None:
            if key not in self._segments:
                path = self._path(key)
                self._segments[key] = _mapped(path, path.stat().st_size)
            segment = self._segments[key]
            typed = self._typed[key, dtype] = segment[: len(segment) // dtype.itemsize * dtype.itemsize].view(dtype)
        strides = [prod(shape[dim + 1 :]) for dim in range(len(shape))]
        return typed.as_strided(shape, strides, offset // dtype.itemsize)

    def close(self) -> None:
        """Let go of everything; files stay where they are."""
        self._budget.give_back(self._in_memory)
        self._segments, self._typed = {}, {}
        self._in_memory = self._number = self._end = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all segments that this process has seen."""
        return sum(len(segment) for segment in self._segments.values())

    def _new_segment(self, num_bytes: int) -> Tensor:
        key = self._key(self._number + 1)
        if not self._in_files and self._budget.take(num_bytes):
            self._in_memory += num_bytes
            segment = torch.empty(num_bytes, dtype=torch.uint8)
        else:
            segment = self._new_file(self._path(key), num_bytes)
        self._segments[key] = segment
        self._number += 1
        self._end = 0
        return segment

    def _new_file(self, path: Path, num_bytes: int) -> Tensor:
        with storage_errors(path.parent):
            self._before_files()
        return room_in_file(path, num_bytes)

    def _key(self, number: int) -> int:
        return self._writer * NUM_SEGMENTS + number if number else 0

    def _path(self, key: int) -> Path:
        return self._folder / f"segment-{key}.bin"


def writer_of(segment: Path) -> int:
    """Return the number of the process that wrote a segment's file."""
    return int(segment.stem.rpartition("-")[2]) // NUM_SEGMENTS


@contextmanager
def storage_errors(folder: Path) -> Iterator[None]:
    """Let what goes wrong with files be a StorageFullError.

    Args:
        folder: Where they are, for the message.
    """
    try:
        yield
    except StorageFullError:
        raise
    except OSError as error:
        raise StorageFullError(f"{folder}: {reason_of(error)}") from error


def room_in_file(path: Path, num_bytes: int) -> Tensor:
    """Return a file's bytes, mapped into memory; it is made, with zeros, where it is missing.

    Args:
        path: The file.
        num_bytes: Its size [byte].

    Raises:
        StorageFullError: If there is no room for it.
    """
    with storage_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            if os.fstat(file).st_size < num_bytes:
                # room that is found missing only when a mapped page is written would end the process
                os.posix_fallocate(file, 0, num_bytes)
        except OSError:
            path.unlink()
            raise
        finally:
            os.close(file)
        return _mapped(path, num_bytes)


def _mapped(path: Path, num_bytes: int) -> Tensor:
    try:
        return torch.from_file(str(path), shared=True, size=num_bytes, dtype=torch.uint8)
    except RuntimeError as error:  # torch's for a file that is gone, or cannot be mapped
        raise OSError(str(error).splitlines()[0]) from error


def free_memory() -> int:
    """Return the memory that this process could still take [byte], by the system and by its control group."""
    free = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        free = [int(lines["MemAvailable"].split()[0]) * 1024]
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        free.append(int(limit) - int(used))
    except (OSError, ValueError):  # no control group, or one without a limit
        pass
    return max(0, min(free))
