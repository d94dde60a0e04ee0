"""RunStore: results of runs, a line of JSON each, so that a benchmark of hours goes on where it was stopped."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


class RunStore:
    """Remembers what a computation gave.

    Args:
        path: The file; lines are only ever added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Any] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                if line.endswith("}"):  # one that was cut off by a kill is done again
                    entry = json.loads(line)
                    self._known[entry["key"]] = entry["value"]

    def get(self, key: str, compute: Callable[[], Any]) -> Any:
        """Return what is known under a key, else compute it, and know it from now on."""
        if key not in self._known:
            self._known[key] = compute()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write("\n" if self._cut_off() else "")
                file.write(json.dumps({"key": key, "value": self._known[key]}) + "\n")
            print(f"{key}: {self._known[key]}", flush=True)
        return self._known[key]

    def _cut_off(self) -> bool:
        return self.path.stat().st_size > 0 and not self.path.read_bytes().endswith(b"\n")
