"""The check of image files before the first step, and the memory of its outcome."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing.pool import ThreadPool
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from lightning_ft.data.images import read_image

NUM_FILES_WITHOUT_BAR = 500


def unreadable_images(paths: Iterable[str]) -> dict[str, str]:
    """Decode every image once and return those that cannot be read.

    The outcome is kept under ``$LIGHTNING_FT_CACHE``, or ``~/.cache/lightning_ft``, for as long as no file's size or
    modification time changes; then only the files that could not be read are tried again.

    Args:
        paths: Absolute paths; a file named twice is read once.

    Returns:
        The reason, which names the file, by path.
    """
    files = sorted(set(paths))
    memory = _memory_of(files)
    # tried again even so: a permission that was put right changes no modification time
    suspects = _recall(memory)
    reasons = _reasons(files if suspects is None else suspects)
    if suspects is None:
        _remember(memory, list(reasons))
    return reasons


def _reasons(files: Sequence[str]) -> dict[str, str]:
    """Try files in threads, which PIL's decoders let run side by side."""
    if not files:
        return {}
    with ThreadPool(min(16, os.cpu_count() or 1)) as pool:
        outcomes = pool.imap(_reason, files, chunksize=16)
        return {file: reason for file, reason in zip(files, _with_bar(outcomes, len(files)), strict=True) if reason}


def _reason(file: str) -> str:
    try:
        read_image(file, draft=True)
    except OSError as error:
        return str(error)
    return ""


def _with_bar(outcomes: Iterable[str], total: int) -> Iterable[str]:
    if total <= NUM_FILES_WITHOUT_BAR or getattr(rank_zero_only, "rank", 0):
        return outcomes
    from rich.console import Console
    from rich.progress import track

    return track(outcomes, "Checking images", total=total, console=Console(stderr=True), transient=True)


def _memory_of(files: Sequence[str]) -> Path:
    """Return where the outcome for these files, as they are now, is kept."""
    from PIL import ImageFile, __version__

    digest = hashlib.sha256(f"{__version__} {ImageFile.LOAD_TRUNCATED_IMAGES}".encode())
    for file in files:
        try:
            status = Path(file).stat()
            state = f"{status.st_size} {status.st_mtime_ns}"
        except OSError:
            state = "missing"
        digest.update(f"\0{file}\0{state}".encode("utf-8", "surrogateescape"))
    folder = os.environ.get("LIGHTNING_FT_CACHE") or "~/.cache/lightning_ft"
    return Path(folder).expanduser() / "image_check" / f"{digest.hexdigest()}.json"


def _recall(memory: Path) -> list[str] | None:
    """Return the files that could not be read, or None where nothing is remembered."""
    try:
        return list(json.loads(memory.read_text(encoding="utf-8"))["unreadable"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _remember(memory: Path, unreadable: list[str]) -> None:
    with suppress(OSError):  # a home that cannot be written costs time, never the run
        memory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=memory.parent, delete=False, encoding="utf-8") as file:
            json.dump({"unreadable": unreadable}, file)
        Path(file.name).replace(memory)
