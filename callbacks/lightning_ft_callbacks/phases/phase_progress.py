"""PhaseProgress: where in its schedule a fit is, and everything a checkpoint must know of that."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_ft_callbacks.phases.phase import Phase


@dataclass(slots=True)
class PhaseProgress:
    """Where in its schedule a fit is.

    Attributes:
        phase: The phase's number, from 0.
        start_epoch: The epoch in which it began; None before the first batch.
        start_step: The optimizer steps done when it began.
        best: The best value of the metric in this phase so far; None before the first.
        kept: The value of the metric when the best weights were kept; it may be better by less than a plateau asks for.
        num_bad: Validations in a row that brought nothing better.
        thawed_at: The optimizer steps done when a block was thawed, of blocks that were not trained from the start.
    """

    phase: int = 0
    start_epoch: int | None = None
    start_step: int = 0
    best: float | None = None
    num_bad: int = 0
    thawed_at: dict[str, int] = field(default_factory=dict)
    kept: float | None = None

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
        self.best, self.kept, self.num_bad = None, None, 0

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


def continued(state: Mapping[str, Any], phases: Sequence[Phase], trained: Sequence[Sequence[str]]) -> PhaseProgress:
    """Return where a resumed run is, if its schedule goes on as the one that was saved.

    Args:
        state: ``progress``, ``phases`` and ``trained`` of the checkpoint.
        phases: The phases now.
        trained: The blocks that each of them trains.

    Raises:
        ValueError: If a phase differs that is over, or the blocks of the one that the run is in.
    """
    progress = PhaseProgress.from_dict(state["progress"])
    for number in range(progress.phase + 1):
        theirs = state["trained"][number]
        ours = list(trained[number]) if number < len(trained) else []
        if ours != theirs:
            differing = sorted(set(ours) ^ set(theirs)) or theirs
            raise ValueError(
                f"the resumed run was in phase {progress.phase}, and phase {number} of this schedule is another: "
                f"{', '.join(differing[:5])} {'are' if len(differing) > 1 else 'is'} trained in one of them only. "
                "Only phases to come may be changed"
            )
        past, now = _end(state["phases"][number]), _end(phases[number].to_dict())
        if number < progress.phase and past != now:
            raise ValueError(
                f"the resumed run was in phase {progress.phase}, but phase {number}, which is over, ended by {past} in "
                f"it, and ends by {now} in this schedule. Only phases to come may be changed"
            )
    return progress


def _end(phase: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in phase.items() if key != "train") or "nothing"
