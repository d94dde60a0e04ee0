"""The base of a fit's learning rates: read, set for a trial, and scaled for good."""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer

# rates that a schedule puts into a group, torch's and timm's
IN_GROUPS = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
# and those that it keeps itself: factors on these change its whole course by the same factor
IN_SCHEDULES = ("base_lrs", "_last_lr", "max_lrs", "min_lrs", "eta_min")
IN_TIMM_SCHEDULES = ("base_values", "lr_min", "warmup_lr_init", "warmup_steps")
COUNTS = frozenset({"warmup_steps"})  # rates per step where a list, a number of steps elsewhere
INNER = ("_schedulers", "schedulers", "scheduler", "after_scheduler")


def peak_rate(group: Mapping[str, Any]) -> float:
    """Return the rate that a group has where its schedule's factor is 1, or its highest under one with a peak."""
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))


def set_rates(optimizers: Iterable[Optimizer], peaks: Mapping[tuple[int, int], float], factor: float) -> None:
    """Give each group its peak rate times a factor.

    Args:
        optimizers: The optimizers.
        peaks: The peak rate of each group, by the numbers of optimizer and group.
        factor: The factor.
    """
    for number, optimizer in enumerate(optimizers):
        for index, group in enumerate(optimizer.param_groups):
            _assign(group, "lr", peaks[number, index] * factor)


def scale_base(trainer: Trainer, factor: float) -> None:
    """Multiply the whole course of all learning rates of a fit, past and to come, by a factor.

    Whatever the schedule: its base rates, a peak (``OneCycleLR``), a floor (``eta_min``), and those within it.

    Args:
        trainer: The trainer, in a fit.
        factor: The factor.
    """
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for name in IN_GROUPS:
                if isinstance(group.get(name), int | float | Tensor):
                    _assign(group, name, group[name] * factor)
    seen: set[int] = set()
    for config in trainer.lr_scheduler_configs:
        _scale_schedule(config.scheduler, factor, seen)


def _scale_schedule(schedule: Any, factor: float, seen: set[int]) -> None:
    if id(schedule) in seen or not hasattr(schedule, "__dict__"):
        return
    seen.add(id(schedule))
    own = vars(schedule)
    for name in (*IN_SCHEDULES, *IN_TIMM_SCHEDULES):
        if name in own and not (name in COUNTS and not isinstance(own[name], list)):
            own[name] = _times(own[name], factor)
    for name in INNER:
        inner = own.get(name)
        for part in inner if isinstance(inner, list | tuple) else [inner]:
            if part is not None:
                _scale_schedule(part, factor, seen)


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(_times(item, factor) for item in value)
    return value if value is None else value * factor


def _assign(group: dict[str, Any], name: str, value: Any) -> None:
    """Set a rate, in its tensor where it is one, which a captured graph may hold."""
    if isinstance(group[name], Tensor):
        group[name].fill_(float(value))
    else:
        group[name] = float(value)
