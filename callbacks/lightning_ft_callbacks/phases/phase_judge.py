"""PhaseJudge: how good each phase becomes, by its metric, and the weights of its best validation."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_ft_callbacks.blocks import BlockMap
from lightning_ft_callbacks.freeze_schedule import FreezeSchedule
from lightning_ft_callbacks.phases.best_weights import BestWeights
from lightning_ft_callbacks.phases.phase import Plateau
from lightning_ft_callbacks.phases.phase_metric import (
    check_metrics,
    logged_value,
    metric_of,
    tell_unlogged,
    validation_metrics,
)
from lightning_ft_callbacks.phases.phase_progress import PhaseProgress
from lightning_ft_callbacks.phases.weight_averages import tell_averaged


class PhaseJudge:
    """Judges a phase by its metric: whether it still gets better, and which weights of it were the best.

    What it has seen of the phase stands in the progress, ``best``, ``kept`` and ``num_bad``.

    Args:
        trainer: The trainer, at the start of a fit.
        block_map: The module's blocks.
        schedule: The phases.
        restore_best: Whether best weights are kept.

    Attributes:
        best: The best weights of the phase.
        judged_by: The metric that judges the phase, and its mode; None where none does.

    Raises:
        ValueError: If best weights are to be kept, and nothing says what is best in a phase.
    """

    def __init__(self, trainer: Trainer, block_map: BlockMap, schedule: FreezeSchedule, *, restore_best: bool) -> None:
        if restore_best:
            tell_averaged(trainer)
            check_metrics(schedule, trainer)
        self.best = BestWeights(block_map)
        self.judged_by: list[str] | None = None
        self._trainer: Any = trainer
        self._schedule = schedule
        self._restore_best = restore_best
        self._validated: frozenset[str] | None = None
        self._ended_epoch = self._told_unlogged = False

    def go_on(self, progress: PhaseProgress, kept: Mapping[str, Tensor], judged_by: list[str] | None) -> None:
        """Go on with a phase that has begun before.

        How good it has become is forgotten where another metric told it, and best weights that nobody wants.

        Args:
            progress: Where in the schedule the fit is.
            kept: The best weights of the phase.
            judged_by: The metric that judged it, and its mode.
        """
        if judged_by != _named(self._metric(progress)):
            progress.best, progress.kept, progress.num_bad = None, None, 0
        if progress.kept is None or not self._restore_best:
            progress.kept, kept = None, {}
        self.best.kept = dict(kept)

    def load_state_dict(self, progress: PhaseProgress, state: Mapping[str, Any]) -> None:
        """Take what ``state_dict`` returned."""
        self.best.load_state_dict(state["best"])
        self.go_on(progress, self.best.kept, state.get("judged_by"))

    def state_dict(self) -> dict[str, Any]:
        """Return the best weights of the phase, and what judged them; asked on all ranks."""
        return {"best": self.best.state_dict(), "judged_by": self.judged_by}

    def begin(self, progress: PhaseProgress) -> None:
        """Begin a phase, or go on with it."""
        self.judged_by = _named(self._metric(progress))

    def tell_unlogged(self, progress: PhaseProgress) -> None:
        """Say, once all that a first epoch logs is there, which phases to come watch something else."""
        if not self._told_unlogged and self._ended_epoch and (self._validated or not self._trainer.enable_validation):
            tell_unlogged(self._schedule, self._trainer, progress.phase + 1)
            self._told_unlogged = True

    def after_validation(self, progress: PhaseProgress, trained: Collection[str]) -> None:
        """Judge the phase by a validation, if its metric is one of that.

        Args:
            progress: Where in the schedule the fit is.
            trained: The blocks that the phase trains.

        Raises:
            ValueError: If the metric has no value.
        """
        self._validated = validation_metrics(self._trainer)
        metric = self._metric(progress)
        if metric is not None and metric.monitor in self._validated:
            self._judge(metric, progress, trained)

    def after_epoch(self, progress: PhaseProgress, trained: Collection[str]) -> None:
        """Judge the phase by an epoch, if its metric is none of validation.

        Args:
            progress: Where in the schedule the fit is.
            trained: The blocks that the phase trains.

        Raises:
            ValueError: If the metric is not logged, with those that are.
        """
        self._ended_epoch = True
        metric = self._metric(progress)
        if metric is None or metric.monitor in (self._validated or ()):
            return
        # a metric that is not there may be one of a validation to come, but not after one without it
        due = self._validated is not None or not self._trainer.enable_validation
        if due or metric.monitor in self._trainer.callback_metrics:
            self._judge(metric, progress, trained)

    def validated(self, progress: PhaseProgress) -> tuple[dict[str, float], str | None]:
        """Return what the validation that ends has logged, in that order, and the metric that judges the phase."""
        names = validation_metrics(self._trainer)
        metric = metric_of(self._schedule.phases[progress.phase], self._trainer)
        found = {name: value.item() for name, value in self._trainer.callback_metrics.items() if name in names}
        return found, None if metric is None else metric.monitor

    def release(self) -> None:
        """Let go of the trainer; what was best stays known."""
        self._trainer = None

    def _metric(self, progress: PhaseProgress) -> Plateau | None:
        """Return what the phase is judged by."""
        phase = self._schedule.phases[progress.phase]
        is_last = phase is self._schedule.phases[-1]
        return metric_of(phase, self._trainer) if self._restore_best and not is_last else phase.plateau

    def _judge(self, metric: Plateau, progress: PhaseProgress, trained: Collection[str]) -> None:
        """Compare the phase's metric with its best, decided on one rank for all."""
        value = logged_value(metric, self._trainer, progress.phase)
        if value is None or progress.phase == len(self._schedule.phases) - 1:
            return
        if metric.improves(value, progress.best):
            progress.best, progress.num_bad = value, 0
        else:
            progress.num_bad += 1
        if self._restore_best and replace(metric, min_delta=0.0).improves(value, progress.kept):
            progress.kept = value
            self.best.keep(trained)


def _named(metric: Plateau | None) -> list[str] | None:
    return None if metric is None else [metric.monitor, metric.mode]
