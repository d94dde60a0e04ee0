"""GradualUnfreezing: train few blocks first, and more of them phase by phase."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_ft_callbacks import finetuning_scheduler
from lightning_ft_callbacks.block_callback import BlockCallback
from lightning_ft_callbacks.block_costs import costs_of_fit
from lightning_ft_callbacks.blocks import BlockSpec
from lightning_ft_callbacks.freeze_schedule import FreezeSchedule, Phase, Plateau, ScheduleSpec
from lightning_ft_callbacks.freezing import Freezer
from lightning_ft_callbacks.lost_gradients import GradientWatch
from lightning_ft_callbacks.phase_picture import PhasePicture
from lightning_ft_callbacks.phase_progress import PhaseProgress
from lightning_ft_callbacks.plan import FineTuningPlan
from lightning_ft_callbacks.reachable import check_reachable, fit_length
from lightning_ft_callbacks.strategies import allow_recompiles, holders, rebuild


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
        self._plan: FreezeSchedule | None = None
        self._trained: tuple[tuple[str, ...], ...] = ()
        self._progress: PhaseProgress | None = None
        self._freezer: Freezer | None = None
        self._best: dict[str, Tensor] = {}
        self._restored: dict[str, Any] | None = None
        self._trainer: Trainer | None = None
        self._watch = GradientWatch()
        self._picture: PhasePicture | None = None
        self._restored_history: Tensor | None = None

    @property
    def phase(self) -> int:
        """The number of the phase, from 0."""
        return 0 if self._progress is None else self._progress.phase

    @property
    def trained_blocks(self) -> tuple[str, ...]:
        """The names of the blocks that are trained now, input first."""
        return self._trained[self.phase] if self._trained else ()

    def block_spec(self, module: LightningModule) -> BlockSpec | None:
        """Return the blocks given, or those that a schedule file brings along.

        Raises:
            ValueError: If both are given.
        """
        if isinstance(self.schedule, str) and self.schedule.endswith((".yaml", ".yml")):
            self.schedule = FreezeSchedule.from_yaml(self.schedule)
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
        self._plan = FreezeSchedule.of(self.schedule, self.block_map)
        self._trained = self._plan.trained(self.block_map)
        self._monitors(trainer)
        check_reachable(trainer, self._plan)
        continues = self._progress is not None and trainer.global_step > 0
        if self._restored is not None:
            self._continue(self._restored)
        elif not continues:
            self._progress, self._best = PhaseProgress(), {}
        self._restored_history = None if self._restored is None else self._restored.get("history")
        self._restored = None
        self._trainer = trainer
        self._freezer = Freezer(self.block_map, trainer.optimizers, thaw_frozen=self.thaw_frozen)
        if self._freezer.found_training:
            # Lightning's hint is meant for modules that somebody forgot in eval mode, and there is none
            warnings.filterwarnings("ignore", message="Found .* in eval mode at the start of training")
        self._check_held(trainer)
        self._picture = PhasePicture(self.block_map.names)
        if self._restored_history is not None:
            self._picture.load(self._restored_history)
        allow_recompiles(len(self._plan.phases))
        self._show_plan(trainer, pl_module)
        self._apply(trainer, pl_module)

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Go on to the next phase where this one is over."""
        assert self._plan is not None
        assert self._progress is not None
        assert self._freezer is not None
        progress = self._progress
        epoch, step = trainer.current_epoch, trainer.global_step
        if progress.start_epoch is None:
            progress.begin(progress.phase, epoch, step)
        last = len(self._plan.phases) - 1
        changed = False
        while progress.phase < last and progress.is_over(self._plan.phases[progress.phase], epoch, step):
            before = set(self.trained_blocks)
            self._restore_best()
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
        self._watch.check()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Judge the phase by this validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._judge(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Judge the phase by this epoch, where there is no validation."""
        if not trainer.enable_validation:
            self._judge(trainer)

    def rate_factor(self, block: str, group: Mapping[str, Any]) -> float:  # noqa: ARG002
        """Return the share of its rate that a newly thawed block has."""
        if self._progress is None or self._trainer is None:
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
        if self._progress is None or self._plan is None:
            return state
        return (
            state
            | {
                "progress": self._progress.to_dict(),
                "phases": [phase.to_dict() for phase in self._plan.phases],
                "trained": [list(names) for names in self._trained],
                "best": self._best,
            }
            | ({} if self._picture is None else {"history": self._picture.state()})
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what ``state_dict`` returned; the next fit goes on from there."""
        super().load_state_dict(state_dict)
        self._restored = state_dict if "progress" in state_dict else None

    def _show_plan(self, trainer: Trainer, module: LightningModule) -> None:
        """Print what each phase will train; costs are counted on all ranks, because a step may wait for the others."""
        assert self.block_map is not None
        assert self._plan is not None
        epochs, steps_per_epoch = fit_length(trainer)
        plan = FineTuningPlan.of(
            module,
            self._plan,
            blocks=self.block_map,
            lrs=self.peak_rates(trainer),
            costs=costs_of_fit(trainer, module, self.block_map),
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            thaw_frozen=self.thaw_frozen,
        )
        if trainer.is_global_zero:
            plan.show()

    def _continue(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was saved.

        Raises:
            ValueError: If the schedule is another up to and including the phase of the checkpoint.
        """
        assert self._plan is not None
        progress = PhaseProgress.from_dict(state["progress"])
        for number in range(progress.phase + 1):
            theirs = state["trained"][number]
            ours = list(self._trained[number]) if number < len(self._trained) else []
            if ours != theirs:
                differing = sorted(set(ours) ^ set(theirs)) or theirs
                raise ValueError(
                    f"the resumed run was in phase {progress.phase}, and phase {number} of this schedule is another: "
                    f"{', '.join(differing[:5])} {'are' if len(differing) > 1 else 'is'} trained in one of them only. "
                    "Only phases to come may be changed"
                )
            past, now = state["phases"][number], self._plan.phases[number].to_dict()
            if number < progress.phase and _end(past) != _end(now):
                raise ValueError(
                    f"the resumed run was in phase {progress.phase}, but phase {number}, which is over, ended by "
                    f"{_end(past)} in it, and ends by {_end(now)} in this schedule. Only phases to come may be changed"
                )
        self._progress = progress
        self._best = dict(state["best"])

    def _apply(self, trainer: Trainer, module: LightningModule) -> None:
        """Freeze and thaw for the phase, on all ranks alike."""
        assert self._freezer is not None
        if self._freezer.train_only(self.trained_blocks):
            rebuild(trainer)
        if not any(parameter.requires_grad for parameter in module.parameters()):
            raise ValueError(
                f"phase {self.phase} trains {', '.join(self.trained_blocks)}, whose parameters were all frozen before "
                "fit; thaw_frozen=True thaws them too"
            )
        self._watch.begin()

    def _check_held(self, trainer: Trainer) -> None:
        """Raise where a phase would train a block that no optimizer holds anything of."""
        assert self.block_map is not None
        held = holders(trainer.optimizers)
        for name in dict.fromkeys(name for names in self._trained for name in names):
            parameters = [p for p in self.block_map.parameters(name) if p.requires_grad or self.thaw_frozen]
            if parameters and not any(id(parameter) in held for parameter in parameters):
                raise ValueError(
                    f"{name} is to be trained, but no optimizer holds its parameters; give configure_optimizers all "
                    "of them, frozen ones too (self.parameters())"
                )

    def _monitors(self, trainer: Trainer) -> None:
        """Raise where the best weights shall be restored, but nothing says what is best."""
        assert self._plan is not None
        if self.restore_best:
            for number, phase in enumerate(self._plan.phases[:-1]):
                if _watched(phase, trainer) is None:
                    raise ValueError(
                        f"restore_best needs a metric: phase {number} has no plateau, and no checkpoint callback of "
                        "the trainer has a monitor"
                    )

    def _judge(self, trainer: Trainer) -> None:
        """Compare the phase's metric with its best, decided on one rank for all.

        Raises:
            ValueError: If the metric is not logged, with those that are.
        """
        assert self._plan is not None
        assert self._progress is not None
        phase = self._plan.phases[self._progress.phase]
        watched = phase.plateau or (_watched(phase, trainer) if self.restore_best else None)
        if watched is None or self._progress.phase == len(self._plan.phases) - 1:
            return
        metrics = trainer.callback_metrics
        if watched.monitor not in metrics:
            logged = ", ".join(sorted(metrics)) or "nothing"
            raise ValueError(f"phase {self.phase} watches {watched.monitor!r}, but logged is {logged}")
        value = float(trainer.strategy.broadcast(metrics[watched.monitor].item()))
        if watched.improves(value, self._progress.best):
            self._progress.best, self._progress.num_bad = value, 0
            if self.restore_best:
                self._keep_best()
        else:
            self._progress.num_bad += 1

    @torch.no_grad()
    def _keep_best(self) -> None:
        for name, tensor in self._restorable().items():
            if name in self._best:
                self._best[name].copy_(tensor)
            else:
                self._best[name] = tensor.detach().clone()

    @torch.no_grad()
    def _restore_best(self) -> None:
        if self._best:
            now = self._restorable()
            for name, best in self._best.items():
                now[name].copy_(best)
            self._best = {}

    def _restorable(self) -> dict[str, Tensor]:
        """Return the weights and statistics that the phase changes, by name."""
        assert self.block_map is not None
        trained = set(self.trained_blocks)
        tensors: dict[str, Tensor] = {
            name: parameter
            for block in trained
            for name, parameter in self.block_map.named_parameters(block)
            if parameter.requires_grad
        }
        thawed = {module for module, block in self.block_map.module_owners() if block in trained}
        for path, module in self.block_map.root.named_modules():
            if module in thawed:
                tensors |= {f"{path}.{name}": buffer for name, buffer in module.named_buffers(recurse=False)}
        return tensors

    def _release(self) -> None:
        if self._freezer is not None:
            self._freezer.release()
        self._freezer = self._trainer = None
        self._watch.stop()


def _watched(phase: Phase, trainer: Trainer) -> Plateau | None:
    """Return what a phase is judged by, of which only metric and mode count where it has no plateau."""
    if phase.plateau is not None:
        return phase.plateau
    for callback in trainer.checkpoint_callbacks:
        if monitor := getattr(callback, "monitor", None):
            return Plateau(monitor, mode=getattr(callback, "mode", "min"))
    return None


def _end(phase: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in phase.items() if key != "train") or "nothing"
