"""The metric that a phase is judged by."""

import re
from difflib import get_close_matches

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_ft_callbacks.freeze_schedule import FreezeSchedule
from lightning_ft_callbacks.phases.phase import Phase, Plateau


def metric_of(phase: Phase, trainer: Trainer) -> Plateau | None:
    """Return what a phase is judged by: its plateau, else the metric of the trainer's first checkpoint that has one.

    Of the latter only ``monitor`` and ``mode`` say anything.
    """
    if phase.plateau is not None:
        return phase.plateau
    for callback in trainer.checkpoint_callbacks:
        if (monitor := getattr(callback, "monitor", None)) and monitor not in ("step", "epoch"):
            return Plateau(monitor, mode=getattr(callback, "mode", "min"))
    return None


def check_metrics(schedule: FreezeSchedule, trainer: Trainer) -> None:
    """Make sure that each phase's best weights can be told.

    Raises:
        ValueError: If nothing says what is best in a phase that another follows.
    """
    for number, phase in enumerate(schedule.phases[:-1]):
        if metric_of(phase, trainer) is None:
            raise ValueError(
                f"restore_best needs a metric: phase {number} has no plateau, and no checkpoint callback of the "
                "trainer has a monitor"
            )


def tell_misspelt(schedule: FreezeSchedule, trainer: Trainer) -> None:
    """Say which plateaus watch what a sanity check has not logged, though it has logged something named much like it.

    It is no error: a module may log a metric only when it trains, or when it does not check its sanity.

    Args:
        schedule: The phases.
        trainer: The trainer, after the check.
    """
    logged = sorted(trainer.callback_metrics)
    for number, phase in enumerate(schedule.phases):
        if phase.plateau is None or (monitor := phase.plateau.monitor) in logged:
            continue
        family = re.split("[/_]", monitor)[0]
        if near := get_close_matches(monitor, [name for name in logged if re.split("[/_]", name)[0] == family], n=1):
            rank_zero_info(
                f"phase {number} watches {monitor!r}, which the sanity check has not logged, but {', '.join(logged)}; "
                f"did you mean {near[0]!r}?"
            )


def tell_unlogged(schedule: FreezeSchedule, trainer: Trainer, first: int) -> None:
    """Say which phases to come watch what an epoch and its validation have not logged.

    It is no error before such a phase: a module may log a metric later.

    Args:
        schedule: The phases.
        trainer: The trainer, after an epoch.
        first: The first phase to come.
    """
    logged = sorted(trainer.callback_metrics)
    for number, phase in enumerate(schedule.phases[first:], first):
        if phase.plateau is not None and (monitor := phase.plateau.monitor) not in logged:
            near = get_close_matches(monitor, logged, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            rank_zero_warn(f"phase {number} watches {monitor!r}, but logged is {', '.join(logged) or 'nothing'}{hint}")


def validation_metrics(trainer: Trainer) -> frozenset[str]:
    """Return the names of what the validation that ends has logged."""
    return frozenset(trainer._logger_connector.metrics["callback"])


def logged_value(metric: Plateau, trainer: Trainer, phase: int) -> float | None:
    """Return a metric's value, the first rank's on all ranks; None where the trainer may not validate, or log.

    Raises:
        ValueError: If it is not logged, with those that are.
    """
    metrics = trainer.callback_metrics
    if metric.monitor not in metrics:
        if trainer.barebones or trainer.limit_val_batches == 0:
            return None
        logged = ", ".join(sorted(metrics)) or "nothing"
        raise ValueError(f"phase {phase} watches {metric.monitor!r}, but logged is {logged}")
    return float(trainer.strategy.broadcast(metrics[metric.monitor].item()))
