"""GradualUnfreezing: train few blocks first, and more of them phase by phase."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_ft_callbacks import finetuning_scheduler
from lightning_ft_callbacks.best_weights import BestWeights
from lightning_ft_callbacks.block_callback import BlockCallback, at_full_rates
from lightning_ft_callbacks.block_costs import costs_of_fit
from lightning_ft_callbacks.blocks import BlockSpec
from lightning_ft_callbacks.freeze_schedule import FreezeSchedule, ScheduleSpec, names_a_file
from lightning_ft_callbacks.freezing import Freezer
from lightning_ft_callbacks.lost_gradients import GradientWatch
from lightning_ft_callbacks.phase import Plateau
from lightning_ft_callbacks.phase_metric import check_metrics, logged_value, metric_of, validation_metrics
from lightning_ft_callbacks.phase_picture import PhasePicture
from lightning_ft_callbacks.phase_progress import PhaseProgress, continued
from lightning_ft_callbacks.plan import FineTuningPlan
from lightning_ft_callbacks.reachable import check_reachable, fit_length
from lightning_ft_callbacks.strategies import allow_recompiles, rebuild
from lightning_ft_callbacks.weight_averages import WeightAverages


class GradualUnfreezing(BlockCallback):
    """Freeze blocks of any LightningModule, and thaw or freeze them again by a schedule.

    The optimizer is the user's own, with all parameters: a frozen one has no gradient, so it is passed over. A phase
    ends at the start of a training batch, so that a run resumed from any checkpoint goes on as one never stopped. At
    the end of ``fit`` everything is as it was found; ``validate``, ``test`` and ``predict`` freeze nothing.

    Args:
        schedule: A preset (``"linear_probe"``, ``"lp_ft"``, ``"gradual"``, ``"chain_thaw"``, ``"full"``), the path of
            a YAML file, a list of phases, or a FreezeSchedule.
        ramp_steps: Optimizer steps in which the rate of a newly thawed block rises to its full value.
        restore_best: Whether each phase ends with the weights of its best validation; by the plateau's metric, else
            by that of the trainer's first checkpoint callback with a ``monitor``.
        thaw_frozen: Whether parameters that were frozen before ``fit`` are thawed with their block. By default they
            stay frozen: the base weights under LoRA.
        blocks: The blocks, as ``BlockMap.of`` takes them; None finds them.

    Raises:
        ValueError: If ``ramp_steps`` is negative; and at the start of ``fit`` if the schedule does not fit the module
            or the trainer.

    Source: Howard and Ruder 2018, arXiv:1801.06146, section 3.3.
    """

    def __init__(
        self,
        schedule: ScheduleSpec = "gradual",
        *,
        ramp_steps: int = 0,
        restore_best: bool = False,
        thaw_frozen: bool = False,
        blocks: BlockSpec | None = None,
    ) -> None:
        super().__init__(blocks)
        if ramp_steps < 0:
            raise ValueError(f"expected ramp_steps to be at least 0, but got {ramp_steps}")
        self.schedule = schedule
        self.ramp_steps = ramp_steps
        self.restore_best = restore_best
        self.thaw_frozen = thaw_frozen
        self._schedule: FreezeSchedule | None = None
        self._trained: tuple[tuple[str, ...], ...] = ()
        self._progress: PhaseProgress | None = None
        self._freezer: Freezer | None = None
        self._best: BestWeights | None = None
        self._averages: WeightAverages | None = None
        self._changing: set[str] = set()
        self._restored: dict[str, Any] | None = None
        self._validated: frozenset[str] | None = None
        self._trainer: Trainer | None = None
        self._watch = GradientWatch()
        self._picture: PhasePicture | None = None

    @property
    def phase(self) -> int:
        """The number of the phase, from 0."""
        return 0 if self._progress is None else self._progress.phase

    @property
    def trained_blocks(self) -> tuple[str, ...]:
        """The names of the blocks that are trained now, input first."""
        return self._trained[self.phase] if self._trained else ()

    @property
    def phases_to_come(self) -> list[tuple[tuple[str, ...], int | None]]:
        """The blocks that this phase and each later one trains, and for how many epochs; None where that is open."""
        if self._schedule is None:
            return []
        epochs = [phase.epochs for phase in self._schedule.phases]
        if self._progress is not None and self._trainer is not None and (now := epochs[self.phase]) is not None:
            started = self._progress.start_epoch
            epochs[self.phase] = now if started is None else now - (self._trainer.current_epoch - started)
        return list(zip(self._trained, epochs, strict=True))[self.phase :]

    def block_spec(self, module: LightningModule) -> BlockSpec | None:
        """Return the blocks given, or those that a schedule file brings along.

        Raises:
            ValueError: If both are given.
        """
        if names_a_file(self.schedule):
            self.schedule = FreezeSchedule.from_yaml(str(self.schedule))
        if not isinstance(self.schedule, FreezeSchedule) or self.schedule.blocks is None:
            return self.blocks
        if self.blocks is not None:
            raise ValueError("the schedule brings its own blocks along, so blocks cannot be given too")
        return finetuning_scheduler.blocks_of(self.schedule, module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze what the phase does not train.

        Raises:
            ValueError: If the schedule does not fit the module or the trainer, or is not that of the run resumed.
        """
        super().on_fit_start(trainer, pl_module)
        assert self.block_map is not None
        self._schedule = FreezeSchedule.of(self.schedule, self.block_map)
        self._trained = self._schedule.trained(self.block_map)
        if self.restore_best:
            check_metrics(self._schedule, trainer)
        check_reachable(trainer, self._schedule)
        self._trainer, self._validated = trainer, None
        self._picture = PhasePicture(self.block_map.names)
        self._go_on(trainer)
        self._freezer = Freezer(self.block_map, trainer.optimizers, thaw_frozen=self.thaw_frozen)
        if self._freezer.found_training:
            # Lightning's hint is meant for modules that somebody forgot in eval mode, and there is none
            warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")
        self._freezer.check_trainable(self._trained)
        self._freezer.check_held(dict.fromkeys(name for names in self._trained for name in names))
        self._averages = WeightAverages(trainer, lambda name: name not in self._changing)
        allow_recompiles(len(self._schedule.phases))
        self._show_plan(trainer, pl_module)
        self._apply(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of optimizer state of frozen parameters that a checkpoint of another schedule, or of none, had."""
        super().on_train_start(trainer, pl_module)
        assert self._freezer is not None
        self._freezer.drop_states()

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Go on to the next phase where this one is over."""
        assert self._schedule is not None
        assert self._progress is not None
        assert self._freezer is not None
        progress = self._progress
        epoch, step = trainer.current_epoch, trainer.global_step
        if progress.start_epoch is None:
            progress.begin(progress.phase, epoch, step)
        last = len(self._schedule.phases) - 1
        changed = False
        while progress.phase < last and progress.is_over(self._schedule.phases[progress.phase], epoch, step):
            before = set(self.trained_blocks)
            if self._best is not None:
                self._best.restore(before)
            progress.begin(progress.phase + 1, epoch, step)
            progress.thawed_at = {
                name: progress.thawed_at[name] if name in before & progress.thawed_at.keys() else step
                for name in self.trained_blocks
                if name not in before or name in progress.thawed_at
            }
            changed = True
        if changed:
            rank_zero_info(f"phase {progress.phase}: training {', '.join(self.trained_blocks)}")
            self._apply(trainer, pl_module)
        self._freezer.enforce()
        self._watch.start(self.block_map, self.trained_blocks)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Make sure, once in a phase, that gradients reach what is trained."""
        if pl_module.automatic_optimization:
            self._watch.check()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make sure of it in manual optimization, of whose backward passes only the batch's end is the end."""
        self._watch.check()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Judge the phase by this validation, if its metric is one of that."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._validated = validation_metrics(trainer)
        if self._metric is not None and self._metric.monitor in self._validated:
            self._judge(trainer, self._metric)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Judge the phase by this epoch, if its metric is none of validation."""
        metric = self._metric
        if metric is None or metric.monitor in (self._validated or ()):
            return
        # a metric that is not there may be one of a validation to come, but not after one without it
        due = self._validated is not None or not trainer.enable_validation
        if due or metric.monitor in trainer.callback_metrics:
            self._judge(trainer, metric)

    def rate_factor(self, block: str, group: Mapping[str, Any]) -> float:  # noqa: ARG002
        """Return the share of its rate that a newly thawed block has."""
        if self._progress is None or self._trainer is None or self.at_full_rate:
            return 1.0
        return self._progress.ramp(block, self._trainer.global_step, self.ramp_steps)

    def metrics(self, step: int, rates: Mapping[str, float]) -> dict[str, float]:
        """Return the phase's number, and remember the rates for the picture."""
        if self._picture is not None:
            self._picture.add(step, rates)
        return {"phase": float(self.phase)}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Draw the blocks' rates over the fit, ``phases.png``, beside what the first logger writes."""
        folder = trainer.log_dir if trainer.loggers else None  # asked on all ranks, because it is broadcast
        if self._picture is not None and folder is not None and trainer.is_global_zero and Path(folder).is_dir():
            self._picture.draw(Path(folder) / "phases.png")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave flags and modes as they were found."""
        super().on_fit_end(trainer, pl_module)
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave flags and modes as they were found."""
        super().on_exception(trainer, pl_module, exception)
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule, where in it the fit is, and the best weights of the phase."""
        state = super().state_dict()
        if self._progress is None or self._schedule is None:
            return state
        return (
            state
            | {
                "progress": self._progress.to_dict(),
                "phases": [phase.to_dict() for phase in self._schedule.phases],
                "trained": [list(names) for names in self._trained],
                "best": {} if self._best is None else self._best.kept,
            }
            | ({} if self._picture is None else {"history": self._picture.state()})
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what ``state_dict`` returned; the next fit goes on from there, or under FSDP2 the one that has begun."""
        super().load_state_dict(state_dict)
        self._restored = state_dict if "progress" in state_dict else None
        if self._restored is not None and self._freezer is not None and (trainer := self._trainer) is not None:
            self._go_on(trainer)
            self._apply(trainer, trainer.lightning_module)

    def _show_plan(self, trainer: Trainer, module: LightningModule) -> None:
        """Print what each phase will train; costs are counted on all ranks, because a step may wait for the others."""
        assert self.block_map is not None
        assert self._schedule is not None
        epochs, steps_per_epoch = fit_length(trainer)
        with at_full_rates(trainer):
            rates = self.peak_rates(trainer)
        plan = FineTuningPlan.of(
            module,
            self._schedule,
            blocks=self.block_map,
            lrs=rates,
            costs=costs_of_fit(trainer, module, self.block_map),
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            thaw_frozen=self.thaw_frozen,
            cached_samples=_cached_samples(trainer),
        )
        if trainer.is_global_zero:
            plan.show()

    def _go_on(self, trainer: Trainer) -> None:
        """Take up the checkpoint's phase, or go on in the one of the fit before, or begin with the first."""
        assert self._schedule is not None
        assert self._picture is not None
        assert self.block_map is not None
        state, self._restored = self._restored, None
        if state is not None:
            self._progress = continued(state, self._schedule.phases, self._trained)
            self._best = BestWeights(self.block_map, state["best"])
            if "history" in state:
                self._picture.load(state["history"])
        elif self._progress is None or trainer.global_step == 0:
            self._progress, self._best = PhaseProgress(), BestWeights(self.block_map)

    def _apply(self, trainer: Trainer, module: LightningModule) -> None:
        """Freeze and thaw for the phase, on all ranks alike."""
        assert self._freezer is not None
        if self._freezer.train_only(self.trained_blocks):
            rebuild(trainer)
        until_now = {name for names in self._trained[: self.phase + 1] for name in names}
        self._changing = self._freezer.may_change(until_now)
        self._watch.begin()
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if callable(told := getattr(callback, "on_phase_start", None)):
                told(trainer, module, self.phase)

    @property
    def _metric(self) -> Plateau | None:
        """What the phase is judged by."""
        assert self._schedule is not None
        assert self._trainer is not None
        phase = self._schedule.phases[self.phase]
        is_last = phase is self._schedule.phases[-1]
        return metric_of(phase, self._trainer) if self.restore_best and not is_last else phase.plateau

    def _judge(self, trainer: Trainer, metric: Plateau) -> None:
        """Compare the phase's metric with its best, decided on one rank for all.

        Raises:
            ValueError: If the metric is not logged, with those that are.
        """
        assert self._schedule is not None
        assert self._progress is not None
        value = logged_value(metric, trainer, self.phase)
        if value is None or self.phase == len(self._schedule.phases) - 1:
            return
        if metric.improves(value, self._progress.best):
            self._progress.best, self._progress.num_bad = value, 0
            if self.restore_best and self._best is not None:
                self._best.keep(self.trained_blocks)
        else:
            self._progress.num_bad += 1

    def _release(self) -> None:
        for held in (self._freezer, self._averages):
            if held is not None:
                held.release()
        self._freezer = self._averages = self._trainer = None
        self._watch.stop()


def _cached_samples(trainer: Trainer) -> int | None:
    """Return the training samples of which a callback keeps what frozen blocks give; None where none does."""
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    dataset: Any = getattr(trainer.train_dataloader, "dataset", None)
    keeps = any(getattr(callback, "keeps_prefixes", False) for callback in callbacks)
    return len(dataset) if keeps and hasattr(dataset, "__len__") else None
