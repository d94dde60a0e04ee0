"""How much worse a model becomes with a found learning rate than with the best of a grid.

python tests/benchmarks/lr_regret.py [--only TASK/PART ...] [--store FILE]
"""

import argparse
import logging
from pathlib import Path

import lr_tasks
import numpy as np
from lr_store import RunStore

GRID = [float(f"{lr:.2g}") for lr in np.geomspace(1e-5, 3e-2, 8)]
CHOOSING, SCORING = (0, 1), (2, 3)


def main() -> None:
    """Train what is not known yet, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=lr_tasks.NAMES, default=lr_tasks.NAMES, help="these alone")
    parser.add_argument("--store", type=Path, default=Path("runs/lr_regret.jsonl"), help="where results are kept")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    store = RunStore(options.store)
    for seeds in (CHOOSING, SCORING):
        for name in options.only:
            for lr in GRID:
                for seed in seeds:
                    score(store, name, lr, seed)


def score(store: RunStore, name: str, lr: float, seed: int) -> float:
    """Return the held-out score after training with a learning rate."""
    return store.get(f"{name} lr={lr:.3g} seed={seed}", lambda: lr_tasks.train(name, lr, seed))


if __name__ == "__main__":
    main()
