"""Run each trap with each tool, and print the tables: ``python tests/conformance/peers [PAGE_TO_WRITE]``.

One cell: ``python tests/conformance/peers TRAP TOOL``.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from outcome import Outcome
from page import Outcomes, page
from rich.console import Console
from rich.table import Table
from tables import TABLES, TrapTable

TIMEOUT = 120  # seconds
NUM_AT_ONCE = 2
COLOURS = {"passed": "green", "refused": "yellow", "failed": "red"}


def check_versions() -> dict[str, str]:
    """Return the versions that are compared.

    Raises:
        SystemExit: If one is not the version that ``requirements.txt`` pins.
    """
    for line in Path(__file__).with_name("requirements.txt").read_text().split():
        package, _, pinned = line.partition("==")
        if version(package) != pinned:
            raise SystemExit(f"expected {package} {pinned}, but {version(package)} is installed")
    packages = dict.fromkeys(["torch", "transformers", *(t.package for table in TABLES for t in table.tools.values())])
    return {"Python": platform.python_version()} | {package: version(package) for package in packages}


def run_alone(trap: str, tool: str) -> Outcome:
    """Run a trap with a tool in this process."""
    table = next(table for table in TABLES if tool in table.tools)
    with tempfile.TemporaryDirectory() as folder:
        try:
            return table.traps[trap](table.tools[tool], Path(folder))
        except Exception as error:
            return Outcome.of_exception(error)


def run(trap: str, tool: str) -> Outcome:
    """Run a trap with a tool in a process of its own, whose crash is an outcome too."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(Path(__file__).parent), trap, tool]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=env)
    except subprocess.TimeoutExpired:
        return Outcome(False, f"hangs: no end after {TIMEOUT} s")
    if done.returncode:
        return Outcome(False, (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1])
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


def run_all(table: TrapTable, pool: ThreadPoolExecutor) -> Outcomes:
    """Run all traps of a table with all of its tools."""
    running = {trap: {tool: pool.submit(run, trap, tool) for tool in table.tools} for trap in table.traps}
    return {trap: {tool: cell.result() for tool, cell in row.items()} for trap, row in running.items()}


def show(table: TrapTable, outcomes: Outcomes) -> None:
    """Print a table."""
    printed = Table("trap", *table.tools, show_lines=True, title=table.title)
    for trap, row in outcomes.items():
        cells = [f"[{COLOURS[cell.verdict]}]{cell.verdict}[/]\n{cell.seen}" for cell in row.values()]
        printed.add_row(trap, *cells)
    Console(width=None if sys.stdout.isatty() else 160).print(printed)


def main() -> None:
    """Run one trap, or all."""
    if len(sys.argv) == 3:
        print(json.dumps(asdict(run_alone(*sys.argv[1:]))))
        return
    versions = check_versions()
    with ThreadPoolExecutor(NUM_AT_ONCE) as pool:
        tables = [(table, run_all(table, pool)) for table in TABLES]
    for table, outcomes in tables:
        show(table, outcomes)
    if len(sys.argv) == 2:
        Path(sys.argv[1]).write_text(page(tables, versions), encoding="utf-8")
    for table, outcomes in tables:
        if any(row[table.ours].verdict == "failed" for row in outcomes.values()):
            raise SystemExit(f"{table.ours} failed")


if __name__ == "__main__":
    main()
