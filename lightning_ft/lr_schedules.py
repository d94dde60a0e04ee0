"""Learning-rate schedules by name: a factor on the optimizer's rate at each optimizer step."""

from collections.abc import Callable
from math import cos, pi
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

ScheduleName = Literal["constant", "linear", "cosine", "one_cycle", "plateau"]


def warmup_steps(warmup: float, num_steps: float) -> int:
    """Return the optimizer steps of the warm-up.

    Args:
        warmup: A share of all steps below 1, or a number of steps.
        num_steps: Optimizer steps of the whole run; infinite where it has no end.

    Raises:
        ValueError: If it is negative, or a share of a run without an end.
    """
    if warmup < 0:
        raise ValueError(f"expected warmup to be a share below 1 or a number of steps, but got {warmup}")
    if warmup >= 1 or warmup == 0:
        return int(warmup)
    if num_steps == float("inf"):
        raise ValueError(
            f"warmup={warmup} is a share of the run, but the run has no end: "
            "give a number of steps, or set max_epochs or max_steps"
        )
    return round(warmup * num_steps)


def make_schedule(
    name: ScheduleName, optimizer: Optimizer, num_steps: float, warmup: float
) -> LRScheduler | ReduceLROnPlateau:
    """Return a schedule that multiplies each group's own learning rate.

    The rate rises in a straight line over the warm-up. Then ``constant`` holds it, ``linear`` and ``cosine`` lower it
    to zero by the last step; ``one_cycle`` rises and falls by half cosines over the whole run (Smith & Topin 2017,
    arXiv:1708.07120), the warm-up being its rise; ``plateau`` takes a tenth of it when ``val/loss`` has not fallen for
    two validations, and takes no warm-up.

    Args:
        name: The schedule.
        optimizer: The optimizer.
        num_steps: Optimizer steps of the whole run; infinite where it has no end.
        warmup: A share of all steps below 1, or a number of steps.

    Raises:
        ValueError: If the schedule needs an end and the run has none.
    """
    if name == "plateau":
        return ReduceLROnPlateau(optimizer, factor=0.1, patience=2)
    if name != "constant" and num_steps == float("inf"):
        raise ValueError(f"lr_schedule={name!r} needs a run with an end: set max_epochs or max_steps")
    rise = warmup_steps(warmup, num_steps)
    if name == "one_cycle":
        share = min(max(rise / num_steps, 1 / num_steps), 1.0)
        rates = [group["lr"] for group in optimizer.param_groups]
        return OneCycleLR(optimizer, rates, total_steps=int(num_steps) + 1, pct_start=share, cycle_momentum=False)
    return LambdaLR(optimizer, factor(name, rise, num_steps))


def factor(name: ScheduleName, rise: int, num_steps: float) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the optimizer step.

    Args:
        name: ``"constant"``, ``"linear"`` or ``"cosine"``.
        rise: Steps of the warm-up.
        num_steps: Steps of the whole run.
    """

    def at(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        if name == "constant":
            return 1.0
        done = min((step - rise) / max(num_steps - rise, 1), 1.0)
        return 1.0 - done if name == "linear" else 0.5 * (1.0 + cos(pi * done))

    return at
