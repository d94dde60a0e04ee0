"""Whether a fit is long enough for all phases of its schedule."""

from math import ceil, inf, isfinite
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_ft_callbacks.freeze_schedule import FreezeSchedule


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
    limits = (options.limit_train_batches, options.limit_val_batches)  # 1.0 is all of them, 1 a single one
    limited = any(isinstance(limit, int) or limit != 1.0 for limit in limits)
    if options.fast_dev_run or options.overfit_batches or limited:
        return
    starts = phase_starts(schedule, *fit_length(trainer))
    late = [number for number, start in enumerate(starts) if start is None]
    if not late:
        return
    first = schedule.phases[late[0] - 1]
    until = f"max_epochs={trainer.max_epochs}" if trainer.max_steps < 0 else f"max_steps={trainer.max_steps}"
    names = f"phase {late[0]} is" if len(late) == 1 else f"phases {late[0]} to {late[-1]} are"
    begun = starts[late[0] - 1]
    text = (
        f"{names} never reached: the fit ends with {until}, in phase {late[0] - 1}, which begins at epoch "
        f"{begun:g} and would end {first.ends}"
    )
    if schedule.preset is None:
        raise ValueError(text)
    rank_zero_info(f"schedule {schedule.preset!r}: {text}")


def fit_length(trainer: Trainer) -> tuple[float, float]:
    """Return a fit's epochs and its optimizer steps an epoch; infinite or NaN where nobody knows."""
    trainer.fit_loop.setup_data()
    epochs = inf if trainer.max_epochs in (None, -1) else float(trainer.max_epochs or 0)
    total = float(trainer.estimated_stepping_batches)
    batches = trainer.num_training_batches
    per_epoch = ceil(batches / trainer.accumulate_grad_batches) if batches not in (0, inf) else inf
    if trainer.max_steps >= 0 and per_epoch != inf:
        epochs = min(epochs, trainer.max_steps / per_epoch)
    elif epochs != inf and total != inf:
        per_epoch = total / epochs if epochs else per_epoch
    return epochs, per_epoch


def phase_starts(schedule: FreezeSchedule, epochs: float, steps_per_epoch: float) -> list[float | None]:
    """Return the epoch at which each phase begins at the earliest; None for those that begin after the end.

    A plateau can end with its first validations, so it is taken to last no time.

    Args:
        schedule: The phases.
        epochs: Epochs of the fit.
        steps_per_epoch: Optimizer steps an epoch.
    """
    starts: list[float | None] = []
    # in whole steps, which add up exactly; where an epoch has nobody knows how many, phases of steps take no time
    counted = isfinite(steps_per_epoch) and steps_per_epoch >= 1
    unit = round(steps_per_epoch) if counted else 1
    end = round(epochs * unit) if isfinite(epochs) else inf
    now = 0
    for phase in schedule.phases:
        starts.append(now / unit if now < end or now == 0 else None)
        if phase.epochs is not None:
            now = (now // unit + phase.epochs) * unit
        elif phase.steps is not None and counted:
            now += phase.steps
    return starts
