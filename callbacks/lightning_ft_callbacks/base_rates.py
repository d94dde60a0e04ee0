"""The base of a fit's learning rates: read, set for a trial, and scaled for good."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.core.optimizer import _MockOptimizer
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from lightning_ft_callbacks.optimizers import check_has_rates, with_wrapped

# rates that a schedule puts into a group, torch's and timm's
IN_GROUPS = ("lr", "initial_lr", "max_lr", "min_lr", "swa_lr")
# and those that it keeps itself: factors on these change its whole course by the same factor
IN_SCHEDULES = ("base_lrs", "_last_lr", "max_lrs", "min_lrs", "eta_min")
IN_TIMM_SCHEDULES = ("base_values", "lr_min", "warmup_lr_init", "warmup_steps", "restore_lr")
COUNTS = frozenset({"warmup_steps"})  # rates per step where a list, a number of steps elsewhere
INNER = ("_schedulers", "schedulers", "scheduler", "after_scheduler", "lr_scheduler")


def group_peaks(trainer: Trainer) -> dict[int, float]:
    """Return the rate of each parameter group where its schedule's factor is 1, or the highest under one with a peak.

    Args:
        trainer: The trainer, in a fit.

    Returns:
        Rates by the ``id`` of a group's list of parameters, but for groups whose rates the optimizer sets itself.
    """
    peaks = {
        id(group["params"]): float(group.get("max_lr", group.get("initial_lr", group["lr"])))
        for optimizer in trainer.optimizers
        for group in optimizer.param_groups
        if group["lr"] is not None
    }
    for schedule in schedules_of(trainer):
        if hasattr(schedule, "max_lrs"):  # CyclicLR, whose initial_lr is the lowest
            groups = schedule.optimizer.param_groups
            peaks |= {id(group["params"]): float(peak) for group, peak in zip(groups, schedule.max_lrs, strict=True)}
    return peaks


def check_rates(trainer: Trainer) -> None:
    """Make sure that a fit has learning rates.

    Raises:
        ValueError: If it has no optimizer, or one of its optimizers has no rate, or makes its own.
    """
    module = trainer.lightning_module
    if not trainer.optimizers or any(isinstance(optimizer, _MockOptimizer) for optimizer in trainer.optimizers):
        raise ValueError(f"{type(module).__name__} has no optimizer, so there is no learning rate to find")
    for optimizer in trainer.optimizers:
        name = type(optimizer).__name__
        if any("lr" not in group for group in optimizer.param_groups):
            raise ValueError(f"{name} has no lr, so there is no learning rate to find")
    check_has_rates(trainer.optimizers, "LRFinder")


def schedules_of(trainer: Trainer) -> list[Any]:
    """Return the schedules of a fit's rates: Lightning's, and those that the module keeps and steps itself.

    Args:
        trainer: The trainer, in a fit.
    """
    found = [config.scheduler for config in trainer.lr_scheduler_configs]
    driven = [id(optimizer) for optimizer in trainer.optimizers]
    for part in trainer.lightning_module.modules():
        for value in vars(part).values():
            values = (
                value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
            )
            found += [one for one in values if _is_schedule(one) and id(one.optimizer) in driven]
    return list({id(schedule): schedule for schedule in found}.values())


def _is_schedule(value: Any) -> bool:
    return isinstance(value, LRScheduler) or (hasattr(value, "base_values") and hasattr(value, "optimizer"))  # timm's


class TrialRates:
    """Rates of a fit's groups that are set by hand, a factor on their peaks.

    Args:
        trainer: The trainer, in a fit.
    """

    def __init__(self, trainer: Trainer) -> None:
        peaks = group_peaks(trainer)
        self._optimizers = [with_wrapped(optimizer)[-1] for optimizer in trainer.optimizers]
        self._groups = {
            id(optimizer): [(group, peaks[id(group["params"])]) for group in optimizer.param_groups]
            for optimizer in self._optimizers
        }
        self._schedules = schedules_of(trainer)
        self._set: dict[int, list[float]] = {}
        self._factor = 1.0
        self._owner = ""

    def set(self, factor: float) -> None:
        """Give each group its peak rate times a factor."""
        self._factor = factor
        for optimizer, groups in self._groups.items():
            for group, peak in groups:
                _assign(group, "lr", peak * factor)
            self._set[optimizer] = [float(group["lr"]) for group, _ in groups]

    @contextmanager
    def guarded(self, owner: str) -> Iterator[None]:
        """Keep the rates: raise where an optimizer is about to step with others, or others are there afterwards.

        What LR schedulers set, which manual optimization steps itself, is set back.

        Args:
            owner: Whose module it is, for the message.

        Raises:
            ValueError: If somebody has set other rates.
        """
        handles = [optimizer.register_step_pre_hook(self._check) for optimizer in self._optimizers]
        self._owner = owner
        before = [vars(schedule).get("step") for schedule in self._schedules]
        for schedule in self._schedules:
            schedule.step = partial(self._stepped, schedule.step)
        try:
            yield
        finally:
            for schedule, step in zip(self._schedules, before, strict=True):
                del schedule.step
                if step is not None:
                    schedule.step = step
            for handle in handles:
                handle.remove()

    def check(self) -> None:
        """Make sure that all rates are as they were set.

        Raises:
            ValueError: If somebody has set others.
        """
        for optimizer in self._optimizers:
            self._check(optimizer)

    def _check(self, optimizer: Any, *_: Any) -> None:
        if [float(group["lr"]) for group, _ in self._groups[id(optimizer)]] != self._set[id(optimizer)]:
            raise ValueError(
                f"{self._owner} sets learning rates itself, so there is none to test or to set; leave them to the "
                "optimizer and to an LR scheduler that configure_optimizers returns, or the module has as an attribute"
            )

    def _stepped(self, step: Callable[..., Any], *arguments: Any, **named: Any) -> None:
        step(*arguments, **named)
        self.set(self._factor)


def scale_base(trainer: Trainer, factor: float) -> None:
    """Multiply the whole course of all learning rates of a fit, past and to come, by a factor.

    Whatever the schedule: its base rates, a peak (``OneCycleLR``), a floor (``eta_min``), and those within it.

    Args:
        trainer: The trainer, in a fit.
        factor: The factor.
    """
    seen: set[int] = set()  # a tensor may be the rate of several groups
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for name in IN_GROUPS:
                if isinstance(group.get(name), int | float | Tensor):
                    group[name] = _times(group[name], factor, seen)
    for schedule in schedules_of(trainer):
        _scale_schedule(schedule, factor, seen)


def _scale_schedule(schedule: Any, factor: float, seen: set[int]) -> None:
    if id(schedule) in seen or not hasattr(schedule, "__dict__"):
        return
    seen.add(id(schedule))
    own = vars(schedule)
    for name in (*IN_SCHEDULES, *IN_TIMM_SCHEDULES):
        if name in own and not (name in COUNTS and not isinstance(own[name], list)):
            own[name] = _times(own[name], factor, seen)
    for name in INNER:
        inner = own.get(name)
        for part in inner if isinstance(inner, list | tuple) else [inner]:
            if part is not None:
                _scale_schedule(part, factor, seen)


def _times(value: Any, factor: float, seen: set[int]) -> Any:
    """Return a value times a factor; a tensor is multiplied in place, and once."""
    if isinstance(value, list | tuple):
        return type(value)(_times(item, factor, seen) for item in value)
    if isinstance(value, Tensor):
        if id(value) not in seen:
            seen.add(id(value))
            value.mul_(factor)
        return value
    return value if value is None else value * factor


def _assign(group: dict[str, Any], name: str, value: Any) -> None:
    """Set a rate, in its tensor where it is one, which a captured graph may hold."""
    if isinstance(group[name], Tensor):
        group[name].fill_(float(value))
    else:
        group[name] = float(value)
