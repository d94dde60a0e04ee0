"""PhasedFit: one fit by a schedule, which phase it is in, what that trains, and how good it has become."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.nn import Parameter

from lightning_ft_callbacks.blocks import BlockMap
from lightning_ft_callbacks.freeze_schedule import FreezeSchedule
from lightning_ft_callbacks.optimizers import with_wrapped
from lightning_ft_callbacks.phases.freezing import Freezer
from lightning_ft_callbacks.phases.idle_optimizers import idle_notes, idle_optimizers
from lightning_ft_callbacks.phases.lost_gradients import GradientWatch
from lightning_ft_callbacks.phases.phase_judge import PhaseJudge
from lightning_ft_callbacks.phases.phase_progress import PhaseProgress, continued
from lightning_ft_callbacks.phases.reachable import check_reachable
from lightning_ft_callbacks.phases.weight_averages import WeightAverages
from lightning_ft_callbacks.strategies import allow_recompiles, rebuild


class PhasedFit:
    """Takes a fit through the phases of its schedule.

    It changes nothing before ``apply``, and nothing more after ``release``; where it has come to stays known.

    Args:
        trainer: The trainer, at the start of a fit.
        block_map: The module's blocks.
        schedule: The phases.
        restore_best: Whether each phase ends with the weights of its best validation.
        thaw_frozen: Whether parameters that were frozen before are thawed with their block.

    Attributes:
        trainer: The trainer; None once it is released.
        schedule: The phases.
        trained: The names of the blocks that each phase trains, input first; not those that the user has frozen.
        progress: Where in the schedule the fit is.
        judge: Tells how good the phase has become.

    Raises:
        ValueError: If the schedule does not fit the module or the trainer.
    """

    def __init__(
        self, trainer: Trainer, block_map: BlockMap, schedule: FreezeSchedule, *, restore_best: bool, thaw_frozen: bool
    ) -> None:
        self.schedule = schedule
        self.progress = PhaseProgress()
        self.judge = PhaseJudge(trainer, block_map, schedule, restore_best=restore_best)
        self.trainer: Trainer | None = trainer
        self._block_map = block_map
        check_reachable(trainer, schedule)
        optimizers = [each for optimizer in trainer.optimizers for each in with_wrapped(optimizer)]
        self._freezer = Freezer(block_map, optimizers, thaw_frozen=thaw_frozen)
        matched = schedule.trained(block_map)
        self._freezer.check_trainable(matched)
        self.trained = tuple(self._freezer.learning(blocks) for blocks in matched)
        self._freezer.check_held(dict.fromkeys(name for names in self.trained for name in names))
        self._averages: WeightAverages | None = None
        self._changing: set[str] = set()
        self._watch = GradientWatch()
        self._told_modes = False

    @property
    def trained_blocks(self) -> tuple[str, ...]:
        """The names of the blocks that are trained now, input first."""
        return self.trained[self.progress.phase]

    @property
    def to_come(self) -> list[tuple[tuple[str, ...], int | None]]:
        """The blocks that this phase and each later one trains, and for how many epochs; None where that is open."""
        epochs = [phase.epochs for phase in self.schedule.phases]
        number, started = self.progress.phase, self.progress.start_epoch
        if self.trainer is not None and started is not None and (now := epochs[number]) is not None:
            epochs[number] = now - (self.trainer.current_epoch - started)
        return list(zip(self.trained, epochs, strict=True))[number:]

    @property
    def notes(self) -> list[str]:
        """What is worth knowing of the phases beside the plan."""
        assert self.trainer is not None
        manual = not self.trainer.lightning_module.automatic_optimization
        notes = idle_notes(self.trainer.optimizers, self._learning) if manual else []
        if count := self._freezer.found_in_eval({name for names in self.trained for name in names}):
            notes.append(
                f"{count} modules of trained blocks were in eval mode before fit, and stay so, without dropout: as "
                "transformers' from_pretrained hands a model over; call train() on it before fit to change that"
            )
        return notes

    @property
    def found_frozen(self) -> bool:
        """Whether any parameter was frozen before."""
        return self._freezer.found_frozen

    def go_on_after(self, before: "PhasedFit") -> None:
        """Go on where the fit before came to, if that was one of the same module: another begins anew.

        Args:
            before: That fit.
        """
        if before._block_map.root is self._block_map.root:
            self.progress = before.progress
            self.judge.go_on(self.progress, before.judge.best.kept, before.judge.judged_by)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was.

        Raises:
            ValueError: If a phase differs that is over, or the blocks of the one that the run is in.
        """
        self.progress = continued(state, self.schedule.phases, self.trained)
        self.judge.load_state_dict(self.progress, state)

    def state_dict(self) -> dict[str, Any]:
        """Return the schedule, where in it the fit is, and the best weights of the phase."""
        return {
            "progress": self.progress.to_dict(),
            "phases": [phase.to_dict() for phase in self.schedule.phases],
            "trained": [list(names) for names in self.trained],
        } | self.judge.state_dict()

    def apply(self) -> None:
        """Freeze and thaw for the phase, on all ranks alike."""
        assert self.trainer is not None
        self.judge.begin(self.progress)
        if self._averages is None:
            self._averages = WeightAverages(self.trainer, lambda name: name not in self._changing)
            allow_recompiles(len(self.schedule.phases))
        if self._freezer.train_only(self.trained_blocks):
            rebuild(self.trainer)
        until_now = {name for names in self.trained[: self.progress.phase + 1] for name in names}
        self._changing = self._freezer.may_change(until_now)
        self._watch.begin()

    @contextmanager
    def training(self, blocks: Collection[str]) -> Iterator[None]:
        """Within it other blocks are trained, for trial.

        After an error nothing is put back here: ``release`` follows, and a wrapper that one rank made again would wait
        for the others.

        Args:
            blocks: Their names.
        """
        assert self.trainer is not None
        if self._freezer.train_only(blocks):
            rebuild(self.trainer)
        yield
        if self._freezer.train_only(self.trained_blocks):
            rebuild(self.trainer)

    def drop_states(self) -> None:
        """Let go of what optimizers keep for frozen parameters."""
        self._freezer.drop_states()

    def advance(self, epoch: int, step: int) -> bool:
        """Go on to the phase that the next batch belongs to, and tell whether that is another one.

        Args:
            epoch: The epoch that the next batch belongs to.
            step: Optimizer steps done.
        """
        progress = self.progress
        if progress.start_epoch is None:
            progress.begin(progress.phase, epoch, step)
        last = len(self.schedule.phases) - 1
        changed = False
        while progress.phase < last and progress.is_over(self.schedule.phases[progress.phase], epoch, step):
            before = set(self.trained_blocks)
            self.judge.best.restore(before)
            progress.begin(progress.phase + 1, epoch, step)
            progress.thawed_at = {
                name: progress.thawed_at[name] if name in before & progress.thawed_at.keys() else step
                for name in self.trained_blocks
                if name not in before or name in progress.thawed_at
            }
            changed = True
        return changed

    def ramp(self, block: str, ramp_steps: int) -> float:
        """Return the share of its rate that a block has while it warms up, from 0 to 1.

        Args:
            block: The block's name.
            ramp_steps: Optimizer steps from the block's thawing to its full rate.
        """
        return 1.0 if self.trainer is None else self.progress.ramp(block, self.trainer.global_step, ramp_steps)

    def before_step(self) -> None:
        """Put right what others changed of frozen blocks, and watch the gradients of a phase's first step."""
        self._freezer.enforce()
        self._watch.start(self._block_map, self.trained_blocks)

    def before_backward(self, loss: Tensor) -> None:
        """Make sure that a loss depends on something that the phase trains.

        Args:
            loss: The loss.

        Raises:
            RuntimeError: If it does not, with the optimizers of which the phase trains nothing.
        """
        if loss.requires_grad:
            return
        assert self.trainer is not None
        number, optimizers = self.progress.phase, self.trainer.optimizers
        idle = [f"optimizer {n} (of {len(optimizers)})" for n in idle_optimizers(optimizers, self._learning[number])]
        also = f", and nothing of {', '.join(idle)}" if idle else ""
        raise RuntimeError(
            f"phase {number} trains nothing that this loss depends on{also}; leave out its backward pass where "
            "loss.requires_grad is False, or train more blocks in this phase"
        )

    def check_modes(self) -> None:
        """Say, once, that frozen blocks were in train mode in a step."""
        if self._told_modes or (path := self._freezer.disturbed) is None:
            return
        self._told_modes = True
        rank_zero_warn(
            f"{path} is frozen, but something put it in train mode within the step, in training_step or the module's "
            "on_train_batch_start: dropout and batch statistics are those of training. Call train() before, in "
            "on_train_epoch_start, or on what is trained alone"
        )

    def after_step(self) -> None:
        """Put right what the step changed of frozen blocks."""
        self._freezer.enforce()

    def after_backward(self) -> None:
        """Make sure, once in a phase, that gradients reach what is trained.

        Raises:
            RuntimeError: If they do not, with the block and the remedy.
        """
        self._watch.check()

    def begin_epoch(self) -> None:
        """Say, once an epoch has logged what it logs, which phases to come watch something else."""
        self.judge.tell_unlogged(self.progress)

    def after_validation(self) -> None:
        """Judge the phase by a validation, if its metric is one of that.

        Raises:
            ValueError: If the metric has no value.
        """
        self.judge.after_validation(self.progress, self.trained_blocks)

    def after_epoch(self) -> None:
        """Judge the phase by an epoch, if its metric is none of validation.

        Raises:
            ValueError: If the metric is not logged, with those that are.
        """
        self.judge.after_epoch(self.progress, self.trained_blocks)

    def validated(self) -> tuple[dict[str, float], str | None]:
        """Return what the validation that ends has logged, in that order, and the metric that judges the phase."""
        return self.judge.validated(self.progress)

    def release(self) -> None:
        """Leave flags and modes as they were found, once: later they are the user's."""
        if self.trainer is None:
            return
        self._freezer.release()
        if self._averages is not None:
            self._averages.release()
        self._watch.stop()
        self.judge.release()
        self._averages = self.trainer = None

    @property
    def _learning(self) -> list[list[Parameter]]:
        """The parameters that each phase trains."""
        return [[p for name in names for _, p in self._freezer.to_be_trained(name)] for names in self.trained]
