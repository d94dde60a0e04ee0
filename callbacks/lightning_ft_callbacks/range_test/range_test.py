"""A range test: the loss at rising learning rates, of a training that is then undone."""

from collections.abc import Callable, Sequence
from math import isfinite, nan
from statistics import median

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_ft_callbacks.base_rates import TrialRates
from lightning_ft_callbacks.lr_curve import smoothed
from lightning_ft_callbacks.range_test.step_noise import usual_noise
from lightning_ft_callbacks.range_test.trial_steps import TrialSteps
from lightning_ft_callbacks.state.training_state import TrainingState

DIVERGED, NOISES = 3.0, 4.0
LOST = 5  # losses in a row that are no numbers


class RangeTest:
    """Trains a fit's module for trial, and undoes that.

    Args:
        trainer: The trainer, in a fit.
        module: Its module.
        reference: The rate at the schedule's peak of what has scale 1; a trial at a rate multiplies all of the fit's
            rates by that rate over this.
        begins: Whether the fit is about to begin, so that the module has yet to prepare itself.

    Raises:
        ValueError: If there is no data to train on.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, reference: float, *, begins: bool = False) -> None:
        self._trainer = trainer
        self._module = module
        self._reference = reference
        self._begins = begins

    def losses(self, lrs: Sequence[float], on_step: Callable[[float], None] | None = None) -> list[float]:
        """Return the training losses at rising rates, a step each, until the loss diverges.

        A loss is read when the next step has been begun, so that an accelerator need not wait for it.

        Args:
            lrs: The rates.
            on_step: Called after each step with its rate.

        Raises:
            ValueError: If the first loss is NaN or infinite already.
        """
        self._told = False
        state = TrainingState(self._trainer, self._module)
        losses: list[float] = []
        pending: list[Tensor | None] = []
        steps, rates = TrialSteps(self._trainer, self._module), TrialRates(self._trainer)
        try:
            with steps.quiet(), rates.guarded(type(self._module).__name__):
                if self._begins:
                    steps.begin()
                for lr in lrs:
                    rates.set(lr / self._reference)
                    pending.append(steps.step())
                    rates.check()
                    if len(pending) > 1:
                        losses.append(self._read(pending.pop(0)))
                        if diverged(losses):
                            return losses
                    if on_step is not None:
                        on_step(lr)
                return [*losses, *(self._read(loss) for loss in pending)]
        finally:
            state.restore()

    def _read(self, loss: Tensor | None) -> float:
        """Return a loss as a number; NaN where the module passed the batch over."""
        if loss is None:
            return nan
        value, first, self._told = loss.item(), not self._told, True
        if first and not isfinite(value):
            raise ValueError(
                f"the loss of {type(self._module).__name__} is {value} at the first step already, before any rate "
                "could matter; look at the data (empty or wrong labels, NaN in inputs), the initial weights, and the "
                "precision"
            )
        return value


def diverged(losses: Sequence[float]) -> bool:
    """Tell whether the smoothed loss has risen to four times its lowest value, as fastai has it.

    For losses that are near 0 or negative at their lowest, it is three times their fall above it, if that is more; and
    four times the noise of a step, if that is still more, as in batches of one sample, some of which have no loss.
    So it has where the last five are NaN or infinite, and the one before them is above the middle of all.

    Args:
        losses: Losses so far.
    """
    if len(losses) < 2:
        return False
    average = smoothed(torch.tensor(losses, dtype=torch.float64))
    known = average[~average.isnan()]
    if not len(known):
        return False
    finite = [loss for loss in losses if isfinite(loss)]
    if not any(isfinite(loss) for loss in losses[-LOST:]) and finite[-1] > median(finite):
        return True
    if len(finite) < 2:
        return False
    lowest, first = known.min().item(), known[0].item()
    noise = usual_noise(torch.tensor(finite, dtype=torch.float64))
    return known[-1].item() > lowest + max(DIVERGED * max(abs(lowest), first - lowest), NOISES * noise)
