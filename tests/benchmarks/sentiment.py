"""How accurate ``recipes/sentiment.yaml`` is over seeds, and how long it trains.

    python tests/benchmarks/sentiment.py [--seeds 1 2 3] [--json FILE]

Runs ``lightning-ft fit`` and ``lightning-ft test`` for each seed. What a seed gave is kept in the JSON file at once,
and a seed that stands there is not run again.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from time import perf_counter
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "sentiment.yaml"
AT_LEAST = 0.80


def main() -> None:
    """Run the seeds that are missing, and print all."""
    options = parse()
    results: dict[str, dict[str, float]] = {}
    if options.json and options.json.exists():
        results = json.loads(options.json.read_text())
    for seed in options.seeds:
        if str(seed) not in results:
            results[str(seed)] = run(seed, options.overrides)
            print(f"seed {seed}: {results[str(seed)]}", file=sys.stderr, flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))
    Console().print(table({seed: results[str(seed)] for seed in options.seeds}))


def parse() -> argparse.Namespace:
    """Return the command line's options; what it does not know goes to ``fit``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="seeds (default: 1 2 3)")
    parser.add_argument("--json", type=Path, help="file for the results")
    options, options.overrides = parser.parse_known_args()
    return options


def run(seed: int, overrides: list[str]) -> dict[str, float]:
    """Train and test with one seed.

    Args:
        seed: The run's seed; the held-out rows do not depend on it.
        overrides: Other arguments of ``fit``, as in ``--trainer.max_epochs 1``.

    Returns:
        ``accuracy`` of the test, ``fit_seconds`` of the whole process and ``test_seconds`` of the other [s].
    """
    with tempfile.TemporaryDirectory() as folder:
        root = ["--trainer.default_root_dir", folder]
        fit = ["fit", "--config", str(RECIPE), "--seed_everything", str(seed), *root, *overrides]
        output, fit_seconds = call(fit)
        run_folder = found(r"^run folder: (.+)$", output)
        output, test_seconds = call(["test", "--run", run_folder])
    accuracy = float(found(r"^test/accuracy ([0-9.]+)$", output))
    return {"accuracy": accuracy, "fit_seconds": fit_seconds, "test_seconds": test_seconds}


def call(arguments: list[str]) -> tuple[str, float]:
    """Run the command, and return what it printed and its time [s].

    Raises:
        RuntimeError: If it fails, with the end of what it said.
    """
    start = perf_counter()
    done = subprocess.run([sys.executable, "-m", "lightning_ft", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"lightning-ft {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return done.stdout, perf_counter() - start


def found(pattern: str, text: str) -> str:
    """Return the last match of a pattern's group in a text.

    Raises:
        ValueError: If there is none.
    """
    matches = re.findall(pattern, text, re.MULTILINE)
    if not matches:
        raise ValueError(f"no {pattern!r} in what the command printed:\n{text[-2000:]}")
    return matches[-1]


def table(results: dict[Any, dict[str, float]]) -> Table:
    """Return the seeds, their mean and standard deviation, and whether the goal holds."""
    rows = Table("seed", "test/accuracy", "fit", "test", title=f"{RECIPE.name}, whole processes")
    for seed, result in results.items():
        times = [f"{result[key]:.0f} s" for key in ("fit_seconds", "test_seconds")]
        rows.add_row(str(seed), f"{result['accuracy']:.4f}", *times)
    accuracies = [result["accuracy"] for result in results.values()]
    spread = stdev(accuracies) if len(accuracies) > 1 else 0.0
    rows.add_section()
    rows.add_row("mean", f"{mean(accuracies):.4f}", f"{mean(r['fit_seconds'] for r in results.values()):.0f} s", "")
    rows.add_row("standard deviation", f"{spread:.4f}", "", "")
    rows.add_row(f"mean >= {AT_LEAST:.2f}", "yes" if mean(accuracies) >= AT_LEAST else "NO", "", "")
    return rows


if __name__ == "__main__":
    main()
