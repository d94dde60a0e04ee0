"""GradualUnfreezing: train few blocks first, and more of them phase by phase."""

from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from math import nan
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_ft_callbacks.block_callback import BlockCallback, at_full_rates
from lightning_ft_callbacks.block_costs import costs_of_fit
from lightning_ft_callbacks.blocks import BlockSpec
from lightning_ft_callbacks.freeze_schedule import FreezeSchedule, ScheduleSpec, names_a_file
from lightning_ft_callbacks.given_values import check_count, check_switch
from lightning_ft_callbacks.optimizers import check_scalable
from lightning_ft_callbacks.phases.eval_mode_hint import EvalModeHint
from lightning_ft_callbacks.phases.finetuning_scheduler import blocks_of
from lightning_ft_callbacks.phases.phase_history import PhaseHistory
from lightning_ft_callbacks.phases.phase_metric import tell_misspelt
from lightning_ft_callbacks.phases.phase_picture import draw
from lightning_ft_callbacks.phases.phased_fit import PhasedFit
from lightning_ft_callbacks.phases.reachable import FitLength, tell_unreached
from lightning_ft_callbacks.phases.without_effect import tell_without_effect
from lightning_ft_callbacks.plan import FineTuningPlan


class GradualUnfreezing(BlockCallback):
    """Freeze blocks of any LightningModule, and thaw or freeze them again by a schedule; a trainer takes one of these.

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

    Attributes:
        plan: What each phase of the fit trains; None before it.

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
        check_count("ramp_steps", ramp_steps)
        check_switch("restore_best", restore_best)
        check_switch("thaw_frozen", thaw_frozen)
        self.schedule = schedule
        self.ramp_steps = ramp_steps
        self.restore_best = restore_best
        self.thaw_frozen = thaw_frozen
        self.plan: FineTuningPlan | None = None
        self._fit: PhasedFit | None = None
        self._hint = EvalModeHint()
        self._history: PhaseHistory | None = None
        self._restored: dict[str, Any] | None = None

    @property
    def phase(self) -> int:
        """The number of the phase, from 0."""
        return 0 if self._fit is None else self._fit.progress.phase

    @property
    def trained_blocks(self) -> tuple[str, ...]:
        """The names of the blocks that are trained now, input first."""
        return () if self._fit is None else self._fit.trained_blocks

    @property
    def phases_to_come(self) -> list[tuple[tuple[str, ...], int | None]]:
        """The blocks that this phase and each later one trains, and for how many epochs; None where that is open."""
        return [] if self._fit is None else self._fit.to_come

    def training(self, blocks: Collection[str]) -> AbstractContextManager[None]:
        """Train, within it, other blocks than the phase's for trial, as a range test does for phases to come.

        Args:
            blocks: Their names.
        """
        return nullcontext() if self._fit is None else self._fit.training(blocks)

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
        return blocks_of(self.schedule.blocks, module)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget a checkpoint that was validated or tested."""
        super().setup(trainer, pl_module, stage)
        self._restored = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Freeze what the phase does not train.

        Raises:
            ValueError: If the schedule does not fit the module or the trainer, or is not that of the run resumed.
        """
        super().on_fit_start(trainer, pl_module)
        assert self.block_map is not None
        if self.ramp_steps:
            check_scalable(trainer.optimizers, "ramp_steps")
        before = self._fit
        schedule = FreezeSchedule.of(self.schedule, self.block_map, thaw_frozen=self.thaw_frozen)
        self._fit = PhasedFit(
            trainer, self.block_map, schedule, restore_best=self.restore_best, thaw_frozen=self.thaw_frozen
        )
        history, self._history = self._history, PhaseHistory(self.block_map.names)
        if self._restored is not None:
            self._go_on()
        elif before is not None and trainer.global_step > 0:
            self._fit.go_on_after(before)
            if history is not None and history.names == self.block_map.names:
                self._history = history
        length = FitLength.of(trainer)
        tell_without_effect(
            self._fit, length, self.ramp_steps, restore_best=self.restore_best, thaw_frozen=self.thaw_frozen
        )
        self._show_plan(trainer, pl_module, schedule, length)
        if self.phase > 0:
            self._tell_phase()
        self._apply(trainer, pl_module)
        self._hint.silence()

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Say where the metric of a plateau looks like a misspelt one of those that the sanity check logged."""
        if self._fit is not None:
            tell_misspelt(self._fit.schedule, trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of optimizer state of frozen parameters that a checkpoint of another schedule, or of none, had."""
        super().on_train_start(trainer, pl_module)
        assert self._fit is not None
        self._hint.release()
        self._fit.drop_states()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Say which phases to come watch a metric that no epoch so far has logged."""
        assert self._fit is not None
        self._fit.begin_epoch()

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Go on to the next phase where this one is over."""
        assert self._fit is not None
        trains = not trainer.fit_loop._skip_backward  # an epoch of SWA re-estimates statistics, and is no phase's
        if trains and self._fit.advance(trainer.current_epoch, trainer.global_step):
            self._tell_phase()
            self._apply(trainer, pl_module)
        if self._history is not None:
            self._history.begin(self.phase, trainer.global_step)
        self._fit.before_step()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:  # noqa: ARG002
        """Refuse a loss that depends on nothing that the phase trains, as that of a frozen part of a GAN.

        Raises:
            RuntimeError: If so, with the remedy.
        """
        if self._fit is not None:
            self._fit.before_backward(loss)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Make sure, once in a phase, that gradients reach what is trained; tell frozen parts in train mode."""
        if self._fit is not None:
            self._fit.check_modes()
        if pl_module.automatic_optimization and self._fit is not None:
            self._fit.after_backward()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Make sure of it in manual optimization, of whose backward passes only the batch's end is the end."""
        assert self._fit is not None
        self._fit.after_backward()
        self._fit.after_step()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._history is not None and trainer.loggers and self._history.wants(trainer.global_step):
            self._history.add(trainer.global_step, self.block_rates(), _loss_of(outputs))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Judge the phase by this validation, if its metric is one of that."""
        if self._fit is None or trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._fit.after_validation()
        if self._history is not None and trainer.loggers:
            self._history.add_validation(trainer.global_step, *self._fit.validated())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Judge the phase by this epoch, if its metric is none of validation."""
        assert self._fit is not None
        self._fit.after_epoch()

    def rate_factor(self, block: str, group: Mapping[str, Any]) -> float:  # noqa: ARG002
        """Return the share of its rate that a newly thawed block has."""
        if self._fit is None or self.at_full_rate:
            return 1.0
        return self._fit.ramp(block, self.ramp_steps)

    def metrics(self, step: int, rates: Mapping[str, float]) -> dict[str, float]:  # noqa: ARG002
        """Return the phase's number."""
        return {"phase": float(self.phase)}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Draw losses and the blocks' rates over the fit, ``phases.png``; say which phases never began."""
        self._draw(trainer)
        if self._fit is not None and trainer.global_step > 0:  # a range test ends without a step
            tell_unreached(self._fit.schedule, self.phase)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave flags and modes as they were found."""
        super().on_fit_end(trainer, pl_module)
        self._release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave flags and modes as they were found, and forget a checkpoint that was not resumed from."""
        super().on_exception(trainer, pl_module, exception)
        self._restored = None
        self._release()

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule, where in it the fit is, and the best weights of the phase."""
        state = super().state_dict()
        if self._fit is None:
            return state
        return state | self._fit.state_dict() | ({} if self._history is None else {"history": self._history.state()})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what ``state_dict`` returned; the next fit goes on from there, or under FSDP2 the one that has begun."""
        super().load_state_dict(state_dict)
        self._restored = state_dict if "progress" in state_dict else None
        if self._restored is not None and self._fit is not None and (trainer := self._fit.trainer) is not None:
            before = self.phase
            self._go_on()
            if self.phase != before:
                self._tell_phase()
            self._apply(trainer, trainer.lightning_module)

    def _show_plan(
        self, trainer: Trainer, module: LightningModule, schedule: FreezeSchedule, length: FitLength
    ) -> None:
        """Print what each phase will train; costs are counted on all ranks, because a step may wait for the others."""
        assert self.block_map is not None
        assert self._fit is not None
        with at_full_rates(trainer):
            rates = self.peak_rates(trainer)
        self.plan = FineTuningPlan.of(
            module,
            schedule,
            blocks=self.block_map,
            lrs=rates,
            costs=costs_of_fit(trainer, module, self.block_map),
            epochs=length.epochs,
            steps_per_epoch=length.steps_per_epoch,
            epochs_per_validation=length.epochs_per_validation,
            thaw_frozen=self.thaw_frozen,
            cached_samples=_cached_samples(trainer),
        )
        if trainer.is_global_zero:
            self.plan.show()
        for note in self._fit.notes:
            rank_zero_info(note)

    def _tell_phase(self) -> None:
        """Print what the phase trains, in the plan's words."""
        assert self.plan is not None
        rank_zero_info(f"phase {self.phase}: training {self.plan.described(self.trained_blocks)}")

    def _go_on(self) -> None:
        """Take up the checkpoint's phase."""
        assert self._fit is not None
        assert self._history is not None
        assert self._restored is not None
        state, self._restored = self._restored, None
        self._fit.load_state_dict(state)
        if "history" in state:
            self._history.load(state["history"])

    def _apply(self, trainer: Trainer, module: LightningModule) -> None:
        """Freeze and thaw for the phase, and tell the other callbacks of it."""
        assert self._fit is not None
        self._fit.apply()
        for callback in trainer.callbacks:  # pyright: ignore[reportAttributeAccessIssue]
            if callable(told := getattr(callback, "on_phase_start", None)):
                told(trainer, module, self.phase)

    def _draw(self, trainer: Trainer) -> None:
        """Draw the picture beside what the first logger writes."""
        folder = trainer.log_dir if trainer.loggers else None  # asked on all ranks, because it is broadcast
        if self._history is None or not self._history.steps or folder is None or not trainer.is_global_zero:
            return
        Path(folder).mkdir(parents=True, exist_ok=True)  # a fit of few steps may not have logged yet
        if not draw(self._history, trainer.global_step, Path(folder) / "phases.png"):
            rank_zero_info("GradualUnfreezing: phases.png wants matplotlib, which is not installed")

    def _release(self) -> None:
        self._hint.release()
        if self._fit is not None:
            self._fit.release()


def _loss_of(outputs: Any) -> float | Tensor:
    """Return the loss of what a training step gave, without waiting for it; NaN where it gave none."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return loss.detach() if isinstance(loss, Tensor) and loss.numel() == 1 else nan


def _cached_samples(trainer: Trainer) -> int | None:
    """Return the training samples of which a callback keeps what frozen blocks give, each by how much it keeps of it.

    None where no callback keeps any.
    """
    callbacks: list[Any] = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    dataset: Any = getattr(trainer.train_dataloader, "dataset", None)
    copies = next((c.planned_copies(trainer) for c in callbacks if hasattr(c, "planned_copies")), None)
    return round(len(dataset) * copies) if copies is not None and hasattr(dataset, "__len__") else None
