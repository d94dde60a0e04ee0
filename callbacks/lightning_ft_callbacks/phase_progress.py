"""PhaseProgress: where in its schedule a fit is, and everything a checkpoint must know of that."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_ft_callbacks.freeze_schedule import Phase


@dataclass(slots=True)
class PhaseProgress:
    """Where in its schedule a fit is.

    Attributes:
        phase: The phase's number, from 0.
        start_epoch: The epoch in which it began; None before the first batch.
        start_step: The optimizer steps done when it began.
        best: The best value of the metric in this phase so far; None before the first.
        num_bad: Validations in a row that brought nothing better.
        thawed_at: The optimizer steps done when a block was thawed, of blocks that were not trained from the start.
    """

    phase: int = 0
    start_epoch: int | None = None
    start_step: int = 0
    best: float | None = None
    num_bad: int = 0
    thawed_at: dict[str, int] = field(default_factory=dict)

    def is_over(self, phase: Phase, epoch: int, step: int) -> bool:
        """Tell whether the phase has reached its end.

        Args:
            phase: The phase.
            epoch: The epoch that the next batch belongs to.
            step: Optimizer steps done.
        """
        assert self.start_epoch is not None
        if phase.epochs is not None:
            return epoch - self.start_epoch >= phase.epochs
        if phase.steps is not None:
            return step - self.start_step >= phase.steps
        return phase.plateau is not None and self.num_bad >= phase.plateau.patience

    def begin(self, phase: int, epoch: int, step: int) -> None:
        """Go on to a phase."""
        self.phase, self.start_epoch, self.start_step = phase, epoch, step
        self.best, self.num_bad = None, 0

    def ramp(self, block: str, step: int, ramp_steps: int) -> float:
        """Return the share of its rate that a block has while it warms up.

        Args:
            block: The block's name.
            step: Optimizer steps done.
            ramp_steps: Steps from the block's thawing to its full rate.
        """
        if ramp_steps == 0 or block not in self.thawed_at:
            return 1.0
        return min(1.0, (step - self.thawed_at[block] + 1) / ramp_steps)

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "PhaseProgress":
        """Return what ``to_dict`` gave."""
        return cls(**data)
