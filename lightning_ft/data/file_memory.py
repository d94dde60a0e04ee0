"""What a check of files found, kept for as long as none of them changes."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_ft_callbacks.whole_file import write_whole


def memory_of(files: Sequence[str], kind: str) -> Path:
    """Return where the outcome of a check of files, as they are now, is kept.

    That is under ``$LIGHTNING_FT_CACHE``, or ``~/.cache/lightning_ft``.

    Args:
        files: Their paths; another order is another outcome.
        kind: The check.
    """
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
    return Path(folder).expanduser() / kind / f"{digest.hexdigest()}.json"


def recall(memory: Path) -> dict[str, Any] | None:
    """Return what is remembered, or None."""
    try:
        outcome = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return outcome if isinstance(outcome, dict) else None


def remember(memory: Path, outcome: dict[str, Any]) -> None:
    """Keep what a check found."""
    with suppress(OSError):  # a home that cannot be written costs time, never the run
        memory.parent.mkdir(parents=True, exist_ok=True)
        write_whole(memory, json.dumps(outcome))
