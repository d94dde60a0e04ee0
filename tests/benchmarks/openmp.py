"""OpenMP's threads, which GNU's library keeps for each thread that ever computed."""

import ctypes
from functools import cache
from pathlib import Path

import torch

SOFT = 1


def release_threads() -> None:
    """End the calling thread's own OpenMP threads, until it computes again.

    Where more of them are kept than there are cores, the library no longer lets them spin between two loops, and all
    contenders in a process compute slower than each would alone.
    """
    library = _library()
    if library is not None:
        library.omp_pause_resource_all(SOFT)


@cache
def _library() -> ctypes.CDLL | None:
    """Return the library that torch has loaded; None where it uses another."""
    files = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    return ctypes.CDLL(str(files[0])) if files else None
