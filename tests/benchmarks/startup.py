"""Startup: how long ``lightning-ft --help`` takes, beside the import of Lightning alone."""

import subprocess
import sys
from dataclasses import asdict, dataclass, field
from statistics import median
from time import perf_counter
from typing import Any

from rich.table import Table

COMMANDS = {
    "import lightning.pytorch": [sys.executable, "-c", "import lightning.pytorch"],
    "lightning-ft --help": [sys.executable, "-m", "lightning_ft", "--help"],
}
MOST_MORE = 1.0


@dataclass(slots=True)
class Startup:
    """Times of whole processes.

    Attributes:
        seconds: Times of each command [s].
    """

    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in COMMANDS})

    def measure(self, rounds: int) -> None:
        """Run each command once a round, after a round that is not counted."""
        for number in range(rounds + 1):
            for name, command in COMMANDS.items():
                start = perf_counter()
                subprocess.run(command, check=True, capture_output=True)
                if number > 0:
                    self.seconds[name].append(perf_counter() - start)

    @property
    def more(self) -> float:
        """How much longer the command takes than the import, by medians [s]."""
        alone, command = (median(times) for times in self.seconds.values())
        return command - alone

    def tables(self) -> list[Table]:
        """Return the times, and the goal."""
        runs = len(next(iter(self.seconds.values())))
        table = Table("process", "median", "least", title=f"start-up, {runs} runs each")
        for name, times in self.seconds.items():
            table.add_row(name, f"{median(times):.2f} s", f"{min(times):.2f} s")
        goal = Table("difference of medians", "goal", "holds")
        goal.add_row(f"{self.more:.2f} s", f"<= {MOST_MORE} s", "yes" if self.more <= MOST_MORE else "NO")
        return [table, goal]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return asdict(self) | {"more": self.more, "holds": self.more <= MOST_MORE}
