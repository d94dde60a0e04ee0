"""Where a run keeps its files; finding the newest whole checkpoint."""

import shutil
from collections.abc import Iterator
from datetime import datetime
from itertools import count
from pathlib import Path

from lightning_ft.run.checkpoint_io import is_whole

CHECKPOINTS = "checkpoints"
CONFIG = "config.yaml"
METRICS = "metrics.csv"
ENVIRONMENT = "environment.txt"
PLAN = "plan.txt"


def new_run_folder(root: str | Path) -> Path:
    """Create an empty folder for a run, named after the time, so that folders sort by age.

    Two runs that start in the same second get two folders.

    Args:
        root: The folder that holds the runs.
    """
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")  # local time is what a person looks for
    for number in count():
        folder = Path(root) / (stamp if number == 0 else f"{stamp}_{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise AssertionError("unreachable")


def discard_unused(folder: Path) -> None:
    """Remove the folder of a run that never trained: it holds no metrics and no checkpoint."""
    if not (folder / METRICS).exists() and next(_checkpoints(folder), None) is None:
        shutil.rmtree(folder, ignore_errors=True)


def run_folder_of(checkpoint: str | Path) -> Path | None:
    """Return the run's folder that a checkpoint lies in, or None where it lies elsewhere."""
    folder = Path(checkpoint).absolute().parent
    if folder.name != CHECKPOINTS:
        return None
    # spelt as a new run's is, where it lies below the working folder
    run = folder.parent
    return run.relative_to(Path.cwd()) if Path.cwd() in run.parents else run


def newest_checkpoint(root: str | Path) -> Path:
    """Return the newest whole checkpoint of the runs under a folder; files cut short are passed over.

    Args:
        root: The folder that holds the runs, or one run's folder.

    Raises:
        FileNotFoundError: If there is none.
    """
    files = sorted(_checkpoints(Path(root)), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for file in files:
        if is_whole(file):
            return file
    cut = f" ({len(files)} cut short)" if files else ""
    raise FileNotFoundError(f"no whole checkpoint{cut} under {str(root)!r}")


def best_checkpoint(run: str | Path) -> Path:
    """Return a run's best checkpoint, or its newest whole one where no best was kept.

    Raises:
        FileNotFoundError: If the folder is none of a run, or has no whole checkpoint.
    """
    if not Path(run).is_dir():
        raise FileNotFoundError(f"no such run: {str(run)!r}")
    best = Path(run) / CHECKPOINTS / "best.ckpt"
    return best if is_whole(best) else newest_checkpoint(run)


def checkpoint_of(source: str | Path) -> Path | None:
    """Return the checkpoint that a run's folder or a ``.ckpt`` file stands for; None where it is neither."""
    path = Path(source)
    if path.suffix == ".ckpt" and path.is_file():
        return path
    return best_checkpoint(path) if (path / CHECKPOINTS).is_dir() else None


def _checkpoints(root: Path) -> Iterator[Path]:
    for pattern in (f"{CHECKPOINTS}/*.ckpt", f"*/{CHECKPOINTS}/*.ckpt"):
        yield from root.glob(pattern)
