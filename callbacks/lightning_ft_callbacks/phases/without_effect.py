"""Arguments of GradualUnfreezing that change nothing in a fit."""

from math import isfinite

from lightning.pytorch.utilities import rank_zero_info

from lightning_ft_callbacks.phases.phased_fit import PhasedFit
from lightning_ft_callbacks.phases.reachable import FitLength, phase_starts


def tell_without_effect(
    fit: PhasedFit, length: FitLength, ramp_steps: int, *, restore_best: bool, thaw_frozen: bool
) -> None:
    """Print which arguments have no effect. It is no error: a recipe keeps them when its schedule is overridden.

    Args:
        fit: The fit, before it applies its first phase.
        length: How long it is.
        ramp_steps: As GradualUnfreezing takes them.
        restore_best: As GradualUnfreezing takes it.
        thaw_frozen: As GradualUnfreezing takes it.
    """
    thawing = [n for n, (old, new) in enumerate(zip(fit.trained, fit.trained[1:], strict=False), 1) if {*new} - {*old}]
    if ramp_steps and not thawing:
        rank_zero_info(f"ramp_steps={ramp_steps} has no effect: no phase thaws a block")
    elif ramp_steps:
        start = phase_starts(fit.schedule, length)[thawing[0]]
        left = (length.epochs - (start or 0)) * length.steps_per_epoch
        if isfinite(left) and ramp_steps > left:
            rank_zero_info(
                f"ramp_steps={ramp_steps} is longer than what is left of the fit when phase {thawing[0]} begins, "
                f"{left:.0f} steps: no thawed block comes to its full rate"
            )
    if restore_best and len(fit.trained) == 1:
        rank_zero_info("restore_best=True has no effect: the schedule has a single phase")
    if thaw_frozen and not fit.found_frozen:
        rank_zero_info("thaw_frozen=True has no effect: no parameter was frozen before fit")
    for number, (old, new) in enumerate(zip(fit.trained, fit.trained[1:], strict=False)):
        if old == new and fit.schedule.preset is None:
            rank_zero_info(f"phases {number} and {number + 1} train the same blocks: {', '.join(old)}")
