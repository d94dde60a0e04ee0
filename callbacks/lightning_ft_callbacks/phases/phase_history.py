"""PhaseHistory: what a fit trained at which rates, and to what losses, in as many entries as a picture shows."""

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import Any

import torch
from torch import Tensor

MOST_ENTRIES = 200  # with twice as many, about what a picture has room for, every other one is forgotten


class PhaseHistory:
    """A fit step by step: its phases, the blocks' rates, the training loss, and what validations found.

    Every step is kept while they are few; then every second, fourth, and so on, and always the first of a phase.

    Args:
        names: The blocks, input first.

    Attributes:
        steps: The optimizer steps that are kept, counted from 1, rising.
        rates: The rate of each block in them, shape (entry, block); NaN where it was frozen.
        starts: Each phase's number, and the optimizer steps done when it began.
        validations: Optimizer steps done, the loss, and the score; NaN for what was not logged.
        loss_name: The name of the loss; empty before the first validation that has one.
        score_name: The name of the score, likewise.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.steps: list[int] = []
        self.rates: list[list[float]] = []
        self.starts: list[tuple[int, int]] = []
        self.validations: list[tuple[int, float, float]] = []
        self.loss_name = self.score_name = ""
        self._losses: list[float | Tensor] = []  # an accelerator is waited for when they are read
        self._every = 1

    @property
    def losses(self) -> list[float]:
        """The training losses of the steps."""
        self._losses = [float(loss) for loss in self._losses]
        return [float(loss) for loss in self._losses]

    def begin(self, phase: int, step: int) -> None:
        """Note that a phase is under way; the first time is its start.

        Args:
            phase: The phase's number, from 0.
            step: Optimizer steps done.
        """
        if not self.starts or self.starts[-1][0] != phase:
            self.starts.append((phase, step))

    def wants(self, step: int) -> bool:
        """Tell whether a step is to be added."""
        last = self.steps[-1] if self.steps else -1
        return step > last and (step % self._every == 0 or last <= self.starts[-1][1])

    def add(self, step: int, rates: Mapping[str, float], loss: float | Tensor = nan) -> None:
        """Add a step.

        Args:
            step: Its number, from 1.
            rates: The rates of the blocks that it trained, as ``BlockCallback.block_rates`` names them.
            loss: Its training loss, a scalar.
        """
        self.steps.append(step)
        self._losses.append(loss)
        highest = dict(rates)
        for key in rates.keys() - set(self.names):  # a block in groups of several rates has one a group
            name = next(name for name in self.names if key.startswith(f"{name}/"))
            highest[name] = max(rates[key], highest.get(name, 0.0))
        self.rates.append([highest.get(name, nan) for name in self.names])
        if len(self.steps) >= 2 * MOST_ENTRIES:
            self._thin_out()

    def add_validation(self, step: int, metrics: Mapping[str, float], monitor: str | None = None) -> None:
        """Add the loss and the score of a validation.

        Args:
            step: Optimizer steps done.
            metrics: What it logged, in that order.
            monitor: The metric that the fit is judged by, which is the score, unless it is the loss; None for the first
                that is no loss.
        """
        losses = [name for name in metrics if name.endswith("loss")]
        others = [name for name in metrics if name not in losses]
        self.loss_name = self.loss_name or next(iter(losses), "")
        self.score_name = self.score_name or (monitor if monitor in others else next(iter(others), "")) or ""
        self.validations.append((step, metrics.get(self.loss_name, nan), metrics.get(self.score_name, nan)))

    def cells(self, end: int) -> tuple[list[int], list[list[float]]]:
        """Return the fit as stretches of steps in which nothing is known to have changed.

        Args:
            end: Optimizer steps done at the end of the fit.

        Returns:
            The steps at which stretches begin, and the end, rising, shape (stretch + 1,); and the blocks' rates in
            each, shape (stretch, block).
        """
        begin = self.starts[0][1] if self.starts else 0
        starts = {start for _, start in self.starts}
        edges = sorted({begin, *(step for step in self.steps if step < end), *starts, max(end, begin + 1)})
        rows = []
        for left in edges[:-1]:
            start = max((one for one in starts if one <= left), default=begin)
            stop = min((one for one in starts if one > left), default=edges[-1])
            inside = [index for index, step in enumerate(self.steps) if start < step <= stop]
            after = [index for index in inside if self.steps[index] > left]
            rows.append(self.rates[(after or inside[::-1])[0]] if inside else [nan] * len(self.names))
        return edges, rows

    def state(self) -> dict[str, Any]:
        """Return it for a checkpoint."""
        rows = [[step, loss, *rates] for step, loss, rates in zip(self.steps, self.losses, self.rates, strict=True)]
        return {
            "names": list(self.names),
            "entries": torch.tensor(rows, dtype=torch.float64).reshape(-1, 2 + len(self.names)),
            "every": self._every,
            "starts": [list(start) for start in self.starts],
            "validations": [list(one) for one in self.validations],
            "metrics": [self.loss_name, self.score_name],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take what ``state`` returned, if it is of these blocks."""
        if tuple(state["names"]) != self.names:
            return
        entries: Tensor = state["entries"]
        self.steps = [int(step) for step in entries[:, 0]]
        self._losses = entries[:, 1].tolist()
        self.rates = entries[:, 2:].tolist()
        self._every = state["every"]
        self.starts = [(phase, start) for phase, start in state["starts"]]
        self.validations = [(step, loss, score) for step, loss, score in state["validations"]]
        self.loss_name, self.score_name = state["metrics"]

    def peaks(self) -> list[float]:
        """Return the highest rate that each block was trained at; NaN where it never was."""
        columns = zip(*self.rates, strict=True) if self.rates else [()] * len(self.names)
        return [max((rate for rate in column if isfinite(rate)), default=nan) for column in columns]

    def _thin_out(self) -> None:
        self._every *= 2
        firsts = {min((step for step in self.steps if step > start), default=0) for _, start in self.starts}
        kept = [index for index, step in enumerate(self.steps) if step % self._every == 0 or step in firsts]
        self.steps = [self.steps[index] for index in kept]
        self._losses = [self._losses[index] for index in kept]
        self.rates = [self.rates[index] for index in kept]
