"""How much worse a model becomes with a found learning rate than with the best of a grid.

    python tests/benchmarks/lr_regret.py [--only TASK/PART ...] [--store FILE]

The best of eight rates is the one with the best mean score over two seeds; it is scored on two others, because a
maximum is too good on the seeds that it was chosen by. On each of those seeds a range test is made, with the trials
around what it suggests; every rule suggests a rate from that, which is trained and scored too; and Lightning's finder
makes a test of its own. The regret is the difference of the mean scores. All runs are kept in a file, so that the
benchmark, hours on two cores, goes on where it was stopped.
"""

import argparse
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import mean

import lr_tasks
import numpy as np
from lightning.pytorch.tuner.lr_finder import _LRFinder
from lr_store import RunStore
from rich.console import Console
from rich.table import Table

from lightning_ft_callbacks import LRCurve, lr_find

GRID = [float(f"{lr:.2g}") for lr in np.geomspace(1e-5, 3e-2, 8)]
CHOOSING, SCORING = (0, 1), (2, 3)


def lightning_suggestion(curve: LRCurve) -> float | None:
    """Return what Lightning's finder suggests from a curve's losses, smoothed."""
    finder = _LRFinder("exponential", curve.lrs[0].item(), curve.lrs[-1].item(), len(curve.lrs))
    finder.results = {"lr": curve.lrs.tolist(), "loss": curve.losses.tolist()}
    return finder.suggestion()


RULES: dict[str, Callable[[LRCurve], float | None]] = {
    "auto": lambda curve: curve.suggest(),
    "auto without trials": lambda curve: replace(curve, trials={}).suggest(),
    "fastai's valley": lambda curve: curve.suggest("valley"),
    "Lightning's rule": lightning_suggestion,
}
LIGHTNING = "Lightning's finder"


def main() -> None:
    """Train what is not known yet, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=lr_tasks.NAMES, default=lr_tasks.NAMES, help="these alone")
    parser.add_argument("--store", type=Path, default=Path("runs/lr_regret.jsonl"), help="where results are kept")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    store = RunStore(options.store)
    rules = [*RULES, LIGHTNING]
    table = Table("task / trained", "best of the grid", *(f"{rule}: rates, regret" for rule in rules))
    regrets: dict[str, list[float]] = {rule: [] for rule in rules}
    for name in options.only:
        means = {lr: mean(score(store, name, lr, seed) for seed in CHOOSING) for lr in GRID}
        best = max(means, key=means.__getitem__)
        reference = mean(score(store, name, best, seed) for seed in SCORING)
        cells = []
        for rule in rules:
            found = [rate(suggestion(store, name, rule, seed)) for seed in SCORING]
            regret = reference - mean(score(store, name, lr, seed) for lr, seed in zip(found, SCORING, strict=True))
            regrets[rule].append(regret)
            cells.append(f"{found[0]:.1e}, {found[1]:.1e}: {regret:+.3f}")
        table.add_row(name, f"{best:.1e}: {reference:.3f}", *cells)
    means_and_worst = [f"mean {mean(values):+.3f}, worst {max(values):+.3f}" for values in regrets.values()]
    table.add_row("all", "goal: mean <= 0.01, worst <= 0.03", *means_and_worst)
    Console(width=150).print(table)


def suggestion(store: RunStore, name: str, rule: str, seed: int) -> float | None:
    """Return what a rule suggests on a seed."""
    if rule == LIGHTNING:
        return store.get(f"{name} Lightning seed={seed}", lambda: lr_tasks.lightning_rate(name, seed))
    return RULES[rule](curve(store, name, seed))


def rate(found: float | None) -> float:
    """Return a suggestion to two digits; where there is none, the rate that the user had, 1e-3."""
    return float(f"{1e-3 if found is None else found:.2g}")


def score(store: RunStore, name: str, lr: float, seed: int) -> float:
    """Return the held-out score after training with a learning rate."""
    return store.get(f"{name} lr={lr:.3g} seed={seed}", lambda: lr_tasks.train(name, lr, seed))


def curve(store: RunStore, name: str, seed: int) -> LRCurve:
    """Return the curve of a range test."""

    def test() -> dict[str, object]:
        module, data, _, callbacks = lr_tasks.parts(name, seed)
        return lr_find(lr_tasks.trainer(*callbacks), module, data).to_dict()

    return LRCurve.from_dict(store.get(f"{name} curve seed={seed}", test))


if __name__ == "__main__":
    main()
