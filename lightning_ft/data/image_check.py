"""The check of image files before the first step, and the memory of its outcome."""

import os
from collections.abc import Iterable, Sequence
from multiprocessing.pool import ThreadPool
from typing import TypeVar

from lightning.pytorch.utilities import rank_zero_only

from lightning_ft.data.file_memory import memory_of, recall, remember
from lightning_ft.data.images import read_image

NUM_FILES_WITHOUT_BAR = 500
Outcome = TypeVar("Outcome")


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
    memory = memory_of(files, "image_check")
    # tried again even so: a permission that was put right changes no modification time
    suspects = (recall(memory) or {}).get("unreadable")
    known = isinstance(suspects, list)
    reasons = _reasons(suspects if known else files)
    if not known:
        remember(memory, {"unreadable": list(reasons)})
    return reasons


def _reasons(files: Sequence[str]) -> dict[str, str]:
    """Try files in threads, which PIL's decoders let run side by side."""
    if not files:
        return {}
    with ThreadPool(min(16, os.cpu_count() or 1)) as pool:
        outcomes = pool.imap(_reason, files, chunksize=16)
        return {file: reason for file, reason in zip(files, with_bar(outcomes, len(files)), strict=True) if reason}


def _reason(file: str) -> str:
    try:
        read_image(file, draft=True)
    except OSError as error:
        return str(error)
    return ""


def with_bar(outcomes: Iterable[Outcome], total: int) -> Iterable[Outcome]:
    """Show a progress bar, where there are many, on the first rank."""
    if total <= NUM_FILES_WITHOUT_BAR or getattr(rank_zero_only, "rank", 0):
        return outcomes
    from rich.console import Console
    from rich.progress import track

    return track(outcomes, "Checking images", total=total, console=Console(stderr=True), transient=True)
