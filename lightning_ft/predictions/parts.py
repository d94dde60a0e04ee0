"""PartFolder: what is predicted so far, in files that are each written whole."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout

from lightning_ft_callbacks.whole_file import sync_folder

LOCK = "lock"
RECORD = "job.json"
SUFFIX = ".jsonl"
WIDTH = 12  # digits of a row number, so that names sort by rows


class PartFolder:
    """A hidden folder beside the file of predictions, until that is whole.

    A part is a file of JSON lines, a row each, named by the rows that it is of; ``job.json`` says of what prediction
    they are. A file is written under another name, synced to the disk and renamed, so that a kill loses what came
    after the last part, and nothing before it.

    Args:
        file: The file of predictions.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.folder = file.with_name(f".{file.name}.parts")
        self._lock: FileLock | None = None  # made where it is needed: a module that leads here may be copied
        self._stream: IO[str] | None = None
        self._rows = range(0)

    def record(self) -> dict[str, Any] | None:
        """Return of what prediction the parts are, or None where there are none."""
        try:
            record = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return record if isinstance(record, dict) else None

    def claim(self) -> None:
        """Make the folder, and let no other process predict into it; a kill gives it back.

        Raises:
            ValueError: If another process does.
            OSError: If it cannot be made.
        """
        if self.file.is_dir():
            raise ValueError(f"predictions cannot be written to {str(self.file)!r}: it is a folder")
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock = self._lock or FileLock(self.folder / LOCK)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise ValueError(f"another process is predicting into {str(self.file)!r}") from error

    @property
    def claimed(self) -> bool:
        """Whether this process has claimed the folder."""
        return self._lock is not None and self._lock.is_locked

    def release(self) -> None:
        """Let other processes predict."""
        if self._lock is not None:
            self._lock.release()

    def begin(self, record: Mapping[str, Any]) -> None:
        """Empty the folder for a prediction."""
        for file in self.folder.iterdir():
            if file.name != LOCK:
                file.unlink()
        with self._partial(RECORD).open("w", encoding="utf-8") as stream:
            json.dump(record, stream)
            _sync(stream)
        self._finish(RECORD)

    def done(self) -> list[range]:
        """Return the rows of the parts, rising; what a kill cut short is removed."""
        for cut in self.folder.glob(".*"):
            cut.unlink()
        return self.rows()

    def rows(self) -> list[range]:
        """Return the rows of the parts, rising."""
        return [rows for rows, _ in self._parts()]

    def add(self, rows: range, outputs: Sequence[Mapping[str, Any]]) -> None:
        """Write what was predicted for rows; those that do not follow the last begin a part of their own."""
        if self._stream is not None and rows.start != self._rows.stop:
            self.commit()
        if self._stream is None:
            self._rows = range(rows.start, rows.start)
            self._stream = self._partial(f"{rows.start}{SUFFIX}").open("w", encoding="utf-8")
        self._stream.writelines(json.dumps(output, ensure_ascii=False) + "\n" for output in outputs)
        self._rows = range(self._rows.start, rows.stop)

    def commit(self) -> None:
        """Make a part of what was written."""
        if self._stream is None:
            return
        stream, self._stream = self._stream, None
        with stream:
            _sync(stream)
        name = f"{self._rows.start:0{WIDTH}}-{self._rows.stop:0{WIDTH}}{SUFFIX}"
        self._finish(name, f"{self._rows.start}{SUFFIX}")

    def abandon(self) -> None:
        """Remove what was written and is no part."""
        if self._stream is not None:
            stream, self._stream = self._stream, None
            with suppress(OSError):  # a full disk refuses what is left to write
                stream.close()
            Path(stream.name).unlink(missing_ok=True)

    def outputs(self, stop: int) -> Iterator[dict[str, Any]]:
        """Yield what was predicted, in the order of the rows, up to a row.

        Raises:
            ValueError: If a row is missing, or there twice.
        """
        row = 0
        for rows, file in self._parts():
            if rows.start != row:
                break
            with file.open(encoding="utf-8", newline="\n") as stream:
                for line in stream:
                    yield json.loads(line)
                    row += 1
            if row != rows.stop:
                break
        if row != stop:
            raise ValueError(f"{str(self.folder)!r} is damaged at row {row}; remove it and predict again")

    @property
    def whole(self) -> Path:
        """Where the file of predictions is written until it is whole."""
        return self._partial(self.file.name)

    def remove(self) -> None:
        """Remove the folder and all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _parts(self) -> list[tuple[range, Path]]:
        found = []
        for file in sorted(self.folder.glob(f"*-*{SUFFIX}")):
            start, _, stop = file.name.removesuffix(SUFFIX).partition("-")
            found.append((range(int(start), int(stop)), file))
        return found

    def _partial(self, name: str) -> Path:
        return self.folder / f".{name}.partial"

    def _finish(self, name: str, written_as: str | None = None) -> None:
        self._partial(written_as or name).replace(self.folder / name)
        sync_folder(self.folder)


def _sync(stream: IO[str]) -> None:
    stream.flush()
    os.fsync(stream.fileno())
