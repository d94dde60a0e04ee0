"""Comparison: what the rounds of contenders gave, and which goals hold."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from clock import Clock, window_ratios
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Goal:
    """How fast one contender is to be.

    Attributes:
        of: The contender.
        against: The one that it is compared with.
        at_least: Its samples per second over theirs; None where they are the same, to see what noise makes of that.
        window: Steps compared at a time, where both train on batches of the same size; None for a whole round.
        multiple: A round's steps must be a multiple of so many for the ratio to say anything.
    """

    of: str
    against: str
    at_least: float | None
    window: int | None = None
    multiple: int = 1

    def holds(self, ratios: Sequence[float], steps: int) -> bool | None:
        """Tell whether ratios meet the goal; None without one, or where a round's number of steps says nothing."""
        return None if self.at_least is None or steps % self.multiple else median(ratios) >= self.at_least


@dataclass(slots=True)
class Comparison:
    """Contenders measured in rounds.

    Attributes:
        title: What they do.
        goals: What is asked of them.
        rates: Samples per second of each contender in each round.
        values: Tokens or image values a sample of each contender in each round.
        ratios: For each goal the ratios of all windows.
        cpu_ratios: The same by processor time.
        steps: Steps of a round.
    """

    title: str
    goals: Sequence[Goal]
    rates: dict[str, list[float]] = field(default_factory=dict)
    values: dict[str, list[float]] = field(default_factory=dict)
    ratios: list[list[float]] = field(default_factory=list)
    cpu_ratios: list[list[float]] = field(default_factory=list)
    steps: int = 0

    def __post_init__(self) -> None:
        self.ratios, self.cpu_ratios = ([[] for _ in self.goals] for _ in range(2))

    def add(self, clocks: Mapping[str, Clock], batch_size: int) -> None:
        """Add a round."""
        for name, clock in clocks.items():
            rate = batch_size * len(clock.seconds) / sum(clock.seconds)
            self.rates.setdefault(name, []).append(rate)
            self.values.setdefault(name, []).append(clock.num_values / clock.num_samples)
        for goal, ratios, cpu_ratios in zip(self.goals, self.ratios, self.cpu_ratios, strict=True):
            ours, theirs = clocks[goal.of], clocks[goal.against]
            self.steps = len(ours.seconds)
            ratios.extend(window_ratios(ours.seconds, theirs.seconds, goal.window))
            cpu_ratios.extend(window_ratios(ours.cpu_seconds, theirs.cpu_seconds, goal.window))

    def tables(self) -> list[Table]:
        """Return the speeds, and the goals."""
        speeds = Table("contender", "samples/s", "rounds", "values a sample", title=self.title)
        for name, rates in self.rates.items():
            rounds = " ".join(f"{rate:.1f}" for rate in rates)
            speeds.add_row(name, f"{median(rates):.1f}", rounds, f"{median(self.values[name]):.1f}")
        goals = Table("ratio", "median", "quartiles", "by processor time", "compared", "goal", "holds")
        for goal, ratios, cpu_ratios in zip(self.goals, self.ratios, self.cpu_ratios, strict=True):
            low, _, high = quartiles(ratios)
            unsaid = "" if goal.at_least is None else f"needs {goal.multiple} steps"
            each = "whole rounds" if goal.window is None else f"{goal.window} steps"
            goals.add_row(
                f"{goal.of} / {goal.against}",
                f"{median(ratios):.3f}",
                f"{low:.3f} .. {high:.3f}",
                f"{median(cpu_ratios):.3f}",
                f"{len(ratios)} x {each}",
                "" if goal.at_least is None else f">= {goal.at_least}",
                {True: "yes", False: "NO", None: unsaid}[goal.holds(ratios, self.steps)],
            )
        return [speeds, goals]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain data."""
        return asdict(self) | {
            "goals": [
                asdict(goal) | {"median": median(ratios), "holds": goal.holds(ratios, self.steps)}
                for goal, ratios in zip(self.goals, self.ratios, strict=True)
            ]
        }


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the quartiles of values, the lower, the middle and the upper one."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return ordered[round(last / 4)], median(ordered), ordered[round(last * 3 / 4)]
