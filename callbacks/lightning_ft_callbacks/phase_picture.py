"""PhasePicture: which blocks were trained at which rate, step by step, as a picture."""

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class PhasePicture:
    """The learning rates of all blocks over a fit.

    Args:
        names: The blocks, input first.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.steps: list[int] = []
        self.rates: list[list[float]] = []

    def add(self, step: int, rates: Mapping[str, float]) -> None:
        """Add what was logged at a step; blocks that were frozen are not in it."""
        self.steps.append(step)
        row = []
        for name in self.names:
            several = [rate for key, rate in rates.items() if key == name or key.startswith(f"{name}/")]
            row.append(max(several, default=nan))
        self.rates.append(row)

    def state(self) -> Tensor:
        """Return steps and rates, shape (entry, 1 + block), for a checkpoint."""
        rows = [[step, *rates] for step, rates in zip(self.steps, self.rates, strict=True)]
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 1 + len(self.names))

    def load(self, state: Tensor) -> None:
        """Take what ``state`` returned, if it is of as many blocks."""
        if state.ndim == 2 and state.shape[1] == 1 + len(self.names):
            self.steps = [int(row[0]) for row in state]
            self.rates = [row[1:].tolist() for row in state]

    def draw(self, path: Path) -> bool:
        """Draw blocks over steps, coloured by rate, grey where frozen, and tell whether it could.

        Args:
            path: The picture's file.
        """
        if not self.rates:
            return False
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.colors import LogNorm
            from matplotlib.figure import Figure
        except ImportError:
            return False
        values = torch.tensor(self.rates, dtype=torch.float64).T
        known = values[values > 0]
        if not len(known):
            return False
        figure = Figure(figsize=(9, 1.2 + 0.3 * len(self.names)), layout="constrained")
        FigureCanvasAgg(figure)
        axes: Any = figure.add_subplot()
        axes.set_facecolor("0.88")
        low, high = known.min().item(), known.max().item()
        edges = [*self.steps, self.steps[-1] + (self.steps[-1] - self.steps[0]) / max(1, len(self.steps) - 1) + 1e-9]
        mesh = axes.pcolormesh(
            edges,
            range(len(self.names) + 1),
            torch.where(values > 0, values, nan).numpy(),
            norm=LogNorm(low, high if high > low else low * 1.01),
            cmap="viridis",
        )
        axes.set_yticks([index + 0.5 for index in range(len(self.names))], self.names, fontsize=8)
        axes.set_xlabel("optimizer step")
        figure.colorbar(mesh, label="learning rate (grey: frozen)")
        figure.savefig(path, dpi=120)
        return True
