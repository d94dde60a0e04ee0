"""Traps of a finder's rate: whether ratios are kept, and whether the rate found is the schedule's base."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from finder_adapters import Finder, quiet
from finder_net import LR, NUM_BATCHES, Rated, samples
from lightning.pytorch import Trainer
from outcome import Outcome
from torch.optim import Optimizer, lr_scheduler

RATIO = 100.0


def warm_up(optimizer: Optimizer, lr: float) -> Any:  # noqa: ARG001
    """Return transformers' schedule."""
    from transformers import get_linear_schedule_with_warmup

    return get_linear_schedule_with_warmup(optimizer, 20, NUM_BATCHES + 1)


SCHEDULES: dict[str, Callable[[Optimizer, float], Any]] = {
    "LambdaLR": lambda optimizer, lr: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),  # noqa: ARG005
    "OneCycleLR": lambda optimizer, lr: lr_scheduler.OneCycleLR(optimizer, lr, total_steps=NUM_BATCHES + 1),
    "transformers' linear warm-up": warm_up,
}


def ratio(tool: Finder, way: str, folder: Path, *, tested: bool) -> Outcome:
    """Two groups' rates have one ratio in the fit behind the test; or, with ``tested``, in the test."""
    noted: list[list[float]] = []
    tool.fit(Rated(noted.append, ratio=RATIO), quiet(folder, max_epochs=1), samples(), way=way)
    rates = noted[:-NUM_BATCHES] if tested else noted[-NUM_BATCHES:]
    # steps at the rate 0 tell what losses do without it, and have no ratio
    ratios = [head / backbone for head, backbone in rates if head or backbone]
    return Outcome(bool(ratios) and ratios == pytest.approx([RATIO] * len(ratios)), f"ratio {span(ratios)}")


def schedule_base(name: str, tool: Finder, way: str, folder: Path) -> Outcome:
    """The rates behind the test are the schedule's, all multiplied by the rate found over that before."""
    alone: list[list[float]] = []
    Trainer(**quiet(folder, max_epochs=1)).fit(Rated(alone.append, SCHEDULES[name]), samples())
    noted: list[list[float]] = []
    torch.manual_seed(0)
    module = Rated(noted.append, SCHEDULES[name])
    (test,) = tool.fit(module, quiet(folder, max_epochs=1), samples(), way=way)
    if test.suggestion is None:
        return Outcome(False, "no rate found")
    factor = test.suggestion / LR
    behind = noted[-NUM_BATCHES:]
    parts = [now[0] / (before[0] * factor) for now, before in zip(behind, alone, strict=True) if before[0] > 0]
    right = parts == pytest.approx([1.0] * len(parts), rel=1e-6)
    return Outcome(right, f"rate / expected: {span(parts)}")


def span(values: list[float]) -> str:
    """Return lowest and highest in words."""
    if not values:
        return "of nothing"
    low, high = min(values), max(values)
    return f"{low:.3g}" if high == pytest.approx(low, rel=1e-3) else f"{low:.3g} to {high:.3g}"
