"""LRReport: what range tests found, as a table, a picture and a file."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from pathlib import Path
from statistics import mean
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.utilities import rank_zero_info

from lightning_ft_callbacks.lr_curve import LRCurve
from lightning_ft_callbacks.range_test.driven_blocks import DrivenBlocks
from lightning_ft_callbacks.range_test.lr_picture import figure_of
from lightning_ft_callbacks.whole_file import whole_file, write_whole

FILE, PICTURE = "lr_finder.json", "lr_finder.png"


class LRReport:
    """Tells of a fit's range tests.

    Args:
        entries: Those that were told of before the fit was resumed.
    """

    def __init__(self, entries: Sequence[dict[str, Any]] = ()) -> None:
        self.entries = list(entries)

    @property
    def scale(self) -> float:
        """That by which the tests so far have multiplied the rate that the user chose."""
        return prod(entry["lr_used"] / entry["lr_before"] for entry in self.entries)

    def add(
        self,
        trainer: Trainer,
        curve: LRCurve,
        method: str,
        found: float | None,
        before: float,
        used: float,
        *,
        phase: int,
        driven: DrivenBlocks,
    ) -> None:
        """Print a test's candidates, draw its curve, and write both into the run's folder.

        Args:
            trainer: The trainer, whose loggers get the picture.
            curve: The test's curve.
            method: Whose suggestion was asked for.
            found: What it is; None where the curve says nothing.
            before: The rate that the fit had.
            used: The rate that it goes on at.
            phase: The phase of GradualUnfreezing, from 0.
            driven: What was trained for the test.
        """
        folder = trainer.log_dir if trainer.loggers else None  # asked on all ranks, because it is broadcast
        entry = {
            "phase": phase,
            "step": trainer.global_step,
            "method": method,
            "lr": found,
            "lr_before": before,
            "lr_used": used,
            "applied": found is not None and used == found,
            "tested": driven.words or None,
            "blocks": list(driven.names),
            "interval": curve.interval(),
            "candidates": curve.suggestions(),
            "curve": curve.to_dict(),
        }
        self.entries.append(entry)
        if not trainer.is_global_zero:
            return
        show(entry)
        if folder is not None:
            place = Path(folder)
            place.mkdir(parents=True, exist_ok=True)
            write_whole(place / FILE, json.dumps({"tests": self.entries}, indent=1) + "\n")
            picture = place / (PICTURE if len(self.entries) == 1 else f"lr_finder_phase_{phase}.png")
            try:
                figure = figure_of(curve, method, found, before, driven.words)
            except ImportError:
                rank_zero_info(f"LRFinder: {picture.name} wants matplotlib, which is not installed")
                return
            with whole_file(picture) as partial:
                figure.savefig(partial, dpi=120, format="png")
            _log(trainer, figure, picture)


def rows(entry: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Return the table of a test's candidates, the chosen one marked, and of the rates that were tried."""
    tried = {trial["lr"]: _tried(trial["losses"]) for trial in entry["curve"]["trials"]}
    named = {lr: method for method, lr in entry["candidates"].items() if lr in tried}
    found = [
        (lr, f"{method} *" if method == entry["method"] else str(method)) for method, lr in entry["candidates"].items()
    ]
    found += [(lr, "tried") for lr in tried if lr not in named]
    return [
        *((name, f"{lr:.2e}", tried.get(lr, "")) for lr, name in sorted(found)),
        ("before", f"{entry['lr_before']:.2e}", ""),
    ]


def _tried(losses: Sequence[float | None]) -> str:
    return "exploded" if None in losses else f"{mean(loss for loss in losses if loss is not None):.4g}"


def show(entry: dict[str, Any]) -> None:
    """Print a test's candidates, as rich's table where that is installed."""
    title, tested = "learning rates", [] if entry["tested"] is None else [f"tested: {entry['tested']}"]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print("\n".join([title, *(f"{name:<16}{lr:<16}{loss}".rstrip() for name, lr, loss in rows(entry)), *tested]))
        return
    tried = bool(entry["curve"]["trials"])
    table = Table("suggestion", "learning rate", *(["loss after a trial"] if tried else []), title=title)
    for row in rows(entry):
        table.add_row(*(row if tried else row[:2]))
    console = Console()
    console.print(table)
    for line in tested:
        console.print(line)


@contextmanager
def progress(trainer: Trainer, bar: Callback | None, num_steps: int, title: str) -> Iterator[Callable[[float], None]]:
    """Show a bar of a test's steps on a terminal where the trainer shows one of its own; give it each step's rate.

    Args:
        trainer: The trainer.
        bar: The trainer's own.
        num_steps: Steps of the test, at most.
        title: What stands before the bar.
    """
    from tqdm.auto import tqdm

    shown = isinstance(bar, ProgressBar) and trainer.is_global_zero and getattr(bar, "is_enabled", True)
    with tqdm(total=num_steps, desc=title, leave=False, disable=None if shown else True) as line:

        def advance(lr: float) -> None:
            line.set_postfix_str(f"lr={lr:.1e}", refresh=False)
            line.update()

        yield advance


def _log(trainer: Trainer, figure: Any, picture: Path) -> None:
    """Give the picture to loggers that take one."""
    loggers: list[Any] = trainer.loggers
    for logger in loggers:
        experiment: Any = getattr(logger, "experiment", None)
        if hasattr(experiment, "add_figure"):  # TensorBoard
            experiment.add_figure("lr_finder", figure, global_step=trainer.global_step, close=False)
        elif hasattr(experiment, "log_figure") and hasattr(logger, "run_id"):  # MLflow
            experiment.log_figure(logger.run_id, figure, picture.name)
        elif hasattr(logger, "log_image"):  # Weights & Biases
            logger.log_image("lr_finder", [str(picture)])
