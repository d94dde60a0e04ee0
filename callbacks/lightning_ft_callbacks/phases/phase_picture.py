"""PhasePicture: which blocks were trained at which rate, and to what loss, step by step, as a picture."""

from collections.abc import Mapping, Sequence
from math import nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_ft_callbacks.whole_file import whole_file

LOSS_HEIGHT = 1.8  # inches
FEW = 50  # entries whose points are seen one by one


class PhasePicture:
    """The training loss and the learning rates of all blocks over a fit.

    Args:
        names: The blocks, input first.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.steps: list[int] = []
        self.rates: list[list[float]] = []
        self.losses: list[float] = []

    def add(self, step: int, rates: Mapping[str, float], loss: float = nan) -> None:
        """Add what was logged at a step; blocks that were frozen are not in it."""
        self.steps.append(step)
        self.losses.append(loss)
        row = []
        for name in self.names:
            several = [rate for key, rate in rates.items() if key == name or key.startswith(f"{name}/")]
            row.append(max(several, default=nan))
        self.rates.append(row)

    def state(self) -> Tensor:
        """Return steps, losses and rates, shape (entry, 2 + block), for a checkpoint."""
        entries = zip(self.steps, self.losses, self.rates, strict=True)
        rows = [[step, loss, *rates] for step, loss, rates in entries]
        return torch.tensor(rows, dtype=torch.float64).reshape(-1, 2 + len(self.names))

    def load(self, state: Tensor) -> None:
        """Take what ``state`` returned, if it is of as many blocks."""
        if state.ndim == 2 and state.shape[1] == 2 + len(self.names):
            self.steps = [int(row[0]) for row in state]
            self.losses = state[:, 1].tolist()
            self.rates = [row[2:].tolist() for row in state]

    def draw(self, path: Path) -> bool:
        """Draw losses, and blocks over steps, coloured by rate, grey where frozen, and tell whether it could.

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
        height = 1.2 + 0.3 * len(self.names)
        figure = Figure(figsize=(9, height + LOSS_HEIGHT), layout="constrained")
        FigureCanvasAgg(figure)
        parts: Any = figure.subplots(2, 1, sharex=True, height_ratios=[LOSS_HEIGHT, height])
        above, axes = parts
        above.plot(self.steps, self.losses, color="C0", lw=1, marker="." if len(self.steps) < FEW else "")
        for phase_start in self.phase_starts():
            above.axvline(phase_start, color="0.5", lw=1, ls=":")
        above.set_ylabel("training loss")
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
        with whole_file(path) as partial:
            figure.savefig(partial, dpi=120, format="png")
        return True

    def phase_starts(self) -> list[int]:
        """Return the logged steps from which on other blocks are trained than before."""
        trained = [[rate > 0 for rate in row] for row in self.rates]
        return [step for step, now, before in zip(self.steps[1:], trained[1:], trained, strict=False) if now != before]
