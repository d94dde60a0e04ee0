"""Whether a fit is long enough for all phases of its schedule."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf, isfinite
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_ft_callbacks.freeze_schedule import FreezeSchedule
from lightning_ft_callbacks.phases.phase import Phase


@dataclass(frozen=True, slots=True)
class FitLength:
    """How long a fit is; infinite or NaN where nobody knows.

    Attributes:
        epochs: Its epochs.
        steps_per_epoch: Optimizer steps an epoch.
        epochs_per_validation: Epochs from one validation to the next, or to the next end of an epoch.
    """

    epochs: float = inf
    steps_per_epoch: float = inf
    epochs_per_validation: float = 1.0

    @classmethod
    def of(cls, trainer: Trainer) -> "FitLength":
        """Return how long a trainer's fit is.

        In manual optimization the module itself steps, as often as it likes: nobody knows an epoch's steps.
        """
        trainer.fit_loop.setup_data()
        epochs = inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs or 0)
        batches = trainer.num_training_batches
        between = (
            min(1.0, (trainer.val_check_batch or batches) / batches) if trainer.enable_validation and batches else 1.0
        )
        if not trainer.lightning_module.automatic_optimization:
            return cls(epochs, inf, between)
        total = float(trainer.estimated_stepping_batches)
        per_epoch = ceil(batches / trainer.accumulate_grad_batches) if batches not in (0, inf) else inf
        if trainer.max_steps >= 0 and per_epoch != inf:
            epochs = min(epochs, trainer.max_steps / per_epoch)
        elif epochs != inf and 0 <= total < inf:
            per_epoch = total / epochs if epochs else per_epoch
        return cls(epochs, per_epoch, between)


def check_reachable(trainer: Trainer, schedule: FreezeSchedule) -> None:
    """Tell of phases that the fit never reaches.

    Not asked under ``fast_dev_run``, ``overfit_batches``, ``limit_train_batches`` and ``limit_val_batches``, which cut
    a fit short on purpose.

    Args:
        trainer: The trainer, whose data is set up.
        schedule: Its phases.

    Raises:
        ValueError: If the user wrote the schedule; for a preset the phases are printed.
    """
    options: Any = trainer  # which declares some of its options nowhere
    if options.barebones:
        _check_logged(schedule)
    limits = (options.limit_train_batches, options.limit_val_batches)  # 1.0 is all of them, 1 a single one
    limited = any(isinstance(limit, int) or limit != 1.0 for limit in limits)
    if options.fast_dev_run or options.overfit_batches or limited:
        return
    starts = phase_starts(schedule, FitLength.of(trainer))
    late = [number for number, start in enumerate(starts) if start is None]
    if not late:
        return
    first = schedule.phases[late[0] - 1]
    until = f"max_epochs={trainer.max_epochs}" if trainer.max_steps < 0 else f"max_steps={trainer.max_steps}"
    begun = starts[late[0] - 1]
    assert begun is not None
    text = (
        f"{_phases(late)} {'is' if len(late) == 1 else 'are'} never reached: the fit ends with {until}, in phase "
        f"{late[0] - 1}, which begins at epoch {begun:g}{_or_later(starts_open(schedule.phases)[late[0] - 1])} and "
        f"would end {first.ends}"
    )
    if schedule.preset is None:
        raise ValueError(text)
    rank_zero_info(f"schedule {schedule.preset!r}: {text}")


def phase_starts(schedule: FreezeSchedule, length: FitLength) -> list[float | None]:
    """Return the epoch at which each phase begins at the earliest; None for those that begin after the end.

    A plateau's first validation is the best so far, so it ends with ``patience`` more at the earliest.

    Args:
        schedule: The phases.
        length: How long the fit is.
    """
    starts: list[float | None] = []
    # in whole steps, which add up exactly; where an epoch has nobody knows how many, phases of steps take no time
    counted = isfinite(length.steps_per_epoch) and length.steps_per_epoch >= 1
    unit = round(length.steps_per_epoch) if counted else 1
    end = round(length.epochs * unit) if isfinite(length.epochs) else inf
    now = 0
    for phase in schedule.phases:
        starts.append(now / unit if now < end or now == 0 else None)
        if phase.epochs is not None:
            now = (now // unit + phase.epochs) * unit
        elif phase.steps is not None and counted:
            now += phase.steps
        elif phase.plateau is not None:
            now += int((phase.plateau.patience + 1) * length.epochs_per_validation * unit)
    return starts


def starts_open(phases: Sequence[Phase]) -> list[bool]:
    """Tell of each phase whether it begins when a metric says so: whether one before it ends by a plateau."""
    return [any(phase.plateau is not None for phase in phases[:number]) for number in range(len(phases))]


def tell_unreached(schedule: FreezeSchedule, phase: int) -> None:
    """Print which phases a fit that is over never began.

    Args:
        schedule: Its phases.
        phase: The number of the phase that it ended in.
    """
    late = range(phase + 1, len(schedule.phases))
    if late:
        ends = schedule.phases[phase].ends
        rank_zero_info(f"the fit ended in phase {phase}, which was to end {ends}: {_phases(late)} never began")


def _check_logged(schedule: FreezeSchedule) -> None:
    for number, phase in enumerate(schedule.phases[:-1]):
        if phase.plateau is not None:
            raise ValueError(
                f"phase {number} can never end: it watches {phase.plateau.monitor!r}, and Trainer(barebones=True) "
                "neither validates nor logs; give the phase epochs or steps"
            )


def _phases(numbers: Sequence[int]) -> str:
    return f"phase {numbers[0]}" if len(numbers) == 1 else f"phases {numbers[0]} to {numbers[-1]}"


def _or_later(is_open: bool) -> str:
    return " or later" if is_open else ""
