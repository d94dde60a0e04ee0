"""LRFinder: which learning rate, by a range test that leaves no trace."""

from collections.abc import Sequence
from dataclasses import replace
from math import log
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_ft_callbacks.base_rates import check_rates, scale_base
from lightning_ft_callbacks.block_callback import BlockCallback, at_full_rates, reference_rate
from lightning_ft_callbacks.given_values import check_count, check_number, check_switch
from lightning_ft_callbacks.lr_curve import LRCurve, check_method
from lightning_ft_callbacks.range_test.driven_blocks import driven_blocks
from lightning_ft_callbacks.range_test.lr_report import LRReport, progress
from lightning_ft_callbacks.range_test.range_test import RangeTest
from lightning_ft_callbacks.range_test.short_list import course, scores, walk
from lightning_ft_callbacks.range_test.trial_fit import trial_fit


class LRFinder(Callback):
    """Try rising learning rates at the start of ``fit``, undo that, and train at the rate that the losses suggest.

    The test multiplies the whole schedule, so that ratios between parameter groups, blocks and optimizers stay; the
    rate found becomes the schedule's base, whatever schedule it is. But for that, the fit goes on as if nobody had
    tested: weights, optimizers, random numbers, the order of the data, metrics, loggers and callbacks are as before,
    also where the test ends by Ctrl-C or an error. A resumed run keeps the rate that was found. Where the losses say
    nothing, the rate is left as it is.

    Drawn and written beside the logs: ``lr_finder.png`` and ``lr_finder.json``.

    Args:
        min_lr: Where the test begins.
        max_lr: Where it ends, if the loss has not exploded before.
        num_steps: Optimizer steps of the test, at most.
        suggestion: ``"auto"``, or ``"steep"``, ``"valley"``, ``"minimum"``, ``"slide"`` as fastai defines them.
        each_phase: Whether to test anew whenever GradualUnfreezing changes what is trained; a phase whose losses say
            nothing has the rate that was set before any test. Otherwise the one test trains all that any phase does,
            because its rate drives all phases.
        apply: Whether to train at the rate found; otherwise it is told only.
        spacing: Whether rates rise by equal factors (``"exponential"``) or by equal steps (``"linear"``).
        trial_steps: Where ``"auto"`` suggests a rate, it and its neighbours, by threes, are each trained with for so
            many steps, at most those of the fit, and ten more to compare the losses by; mostly three rates are tried.
            0 to believe the curve.

    Attributes:
        curve: The last test's curve; None before the first.
        found: The rate that it suggests; None where it says nothing.
        progress_bar: Decides whether a bar is shown during the test; None for the trainer's own.
        factor: That over the rate before, which it was for the whole schedule; None where the curve says nothing.

    Raises:
        ValueError: If a number is none, the range is none, or the suggestion is unknown; and at the start of ``fit``
            if there is no training data, an optimizer has no ``lr``, or the first loss is NaN already.

    Source: Smith 2017, arXiv:1506.01186, section 3.3.
    """

    def __init__(
        self,
        *,
        min_lr: float = 1e-7,
        max_lr: float = 1.0,
        num_steps: int = 100,
        suggestion: str = "auto",
        each_phase: bool = False,
        apply: bool = True,
        spacing: Literal["exponential", "linear"] = "exponential",
        trial_steps: int = 30,
    ) -> None:
        for name, value in (("min_lr", min_lr), ("max_lr", max_lr)):
            check_number(name, value, above=0)
        if not min_lr < max_lr:
            raise ValueError(f"expected min_lr to be below max_lr, but got {min_lr} and {max_lr}")
        check_count("num_steps", num_steps, at_least=2)
        check_count("trial_steps", trial_steps)
        for name, switch in (("each_phase", each_phase), ("apply", apply)):
            check_switch(name, switch)
        if spacing not in ("exponential", "linear"):
            raise ValueError(f"expected spacing to be 'exponential' or 'linear', but got {spacing!r}")
        check_method(suggestion)
        self.min_lr = min_lr
        self.max_lr = max_lr
        self.num_steps = num_steps
        self.suggestion = suggestion
        self.each_phase = each_phase
        self.apply = apply
        self.spacing = spacing
        self.trial_steps = trial_steps
        self.curve: LRCurve | None = None
        self.found: float | None = None
        self.factor: float | None = None
        self.progress_bar: Callback | None = None
        self._phase = 0
        self._tested: list[int] = []
        self._restored = False
        self._trains = False
        self._report = LRReport()

    @property
    def lrs(self) -> Sequence[float]:
        """The rates that are tried, rising."""
        if self.spacing == "linear":
            return torch.linspace(self.min_lr, self.max_lr, self.num_steps, dtype=torch.float64).tolist()
        return torch.linspace(log(self.min_lr), log(self.max_lr), self.num_steps, dtype=torch.float64).exp().tolist()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Be in the first phase, until GradualUnfreezing says otherwise; forget a checkpoint that was only tested."""
        self._phase = 0
        self._restored = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make sure that rates can be tested.

        Raises:
            ValueError: If there is no optimizer, one has no ``lr``, or a parameter has no shape yet.
        """
        if not self._restored:
            self._tested, self.curve, self._report = [], None, LRReport()
            self.found = self.factor = None
        self._trains = False
        check_rates(trainer)
        lazy = [name for name, parameter in pl_module.named_parameters() if is_lazy(parameter)]
        if lazy:
            raise ValueError(
                f"{lazy[0]} of {type(pl_module).__name__} has no shape yet, which a test could not put back; give lazy "
                "modules a batch in configure_model or setup"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Test, but for a resumed run, which has done so."""
        self._trains, restored, self._restored = True, self._restored, False
        if not (restored and (self._phase in self._tested or not self.each_phase)):
            self._find(trainer, pl_module, begins=True)

    def on_phase_start(self, trainer: Trainer, pl_module: LightningModule, phase: int) -> None:
        """Test again where GradualUnfreezing has changed what is trained.

        Args:
            trainer: The trainer.
            pl_module: Its module.
            phase: The phase's number, from 0.
        """
        self._phase = phase
        if self._trains and self.each_phase:
            self._find(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Say that there was nothing to test on, where the fit had nothing to train on.

        Raises:
            ValueError: If so.
        """
        if not self._trains and (trainer.num_training_batches == 0 or trainer.limit_train_batches == 0):
            raise ValueError("there are no training batches to test learning rates on")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002
        """Wait for the next fit."""
        self._trains = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        """Forget a checkpoint that was not resumed from."""
        self._restored = False

    def state_dict(self) -> dict[str, Any]:
        """Return what was found."""
        if not self._tested:
            return {}
        curve = None if self.curve is None else self.curve.to_dict()
        numbers = {"found": self.found, "factor": self.factor}
        return {"tested": self._tested, "curve": curve, "report": self._report.entries} | numbers

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what ``state_dict`` returned; a fit that is resumed does not test again."""
        self._restored = bool(state_dict)
        self._tested = list(state_dict.get("tested", []))
        self._report = LRReport(state_dict.get("report", []))
        self.found, self.factor = state_dict.get("found"), state_dict.get("factor")
        curve = state_dict.get("curve")
        self.curve = None if curve is None else LRCurve.from_dict(curve)

    def _find(self, trainer: Trainer, module: LightningModule, *, begins: bool = False) -> None:
        lrs = self.lrs
        if fast := getattr(trainer, "fast_dev_run", 0):
            lrs = lrs[: int(fast)]
        with at_full_rates(trainer), driven_blocks(trainer, each_phase=self.each_phase) as driven:
            before = reference_rate(trainer)
            test = RangeTest(trainer, module, before, begins=begins)
            losses = self._losses(trainer, test, lrs, "learning rates")
            self.curve = LRCurve.of_raw(lrs[: len(losses)], losses, num_planned=len(lrs))
            if self.trial_steps and self.suggestion == "auto":
                self.curve = replace(self.curve, trials=self._trials(trainer, test))
        self.found = found = trainer.strategy.broadcast(self.curve.suggest(self.suggestion))
        self.factor = None if found is None else found / before
        self._tested.append(self._phase)
        chosen = before / self._report.scale
        used = before if not self.apply else chosen if found is None else found
        self._report.add(trainer, self.curve, self.suggestion, found, before, used, phase=self._phase, driven=driven)
        if found is None:
            rank_zero_info(f"LRFinder: {self._why_not(trainer)}; {_stays(used, before)}")
        if used != before:
            scale_base(trainer, used / before)

    def _why_not(self, trainer: Trainer) -> str:
        assert self.curve is not None
        fast = int(getattr(trainer, "fast_dev_run", 0))
        if fast:
            return f"fast_dev_run={fast} trains so few steps that no rate can be told from another"
        return self.curve.why_not

    def _trials(self, trainer: Trainer, test: RangeTest) -> dict[float, Tensor]:
        """Compare what the curve suggests with its neighbours."""
        curve = self.curve
        start, least = trainer.strategy.broadcast((curve.suggest(), curve.least_gain) if curve else (None, 0.0))
        if start is None:
            return {}
        length = trainer.estimated_stepping_batches  # -1 where nobody knows
        num_steps = self.trial_steps if length < 0 else int(min(self.trial_steps, length))

        def trial(lr: float) -> Tensor:
            rates = course(lr, num_steps)
            return scores(self._losses(trainer, test, rates, f"trial at {lr:.1e}"), len(rates))

        return walk(start, trial, (self.min_lr, self.max_lr), least)

    def _losses(self, trainer: Trainer, test: RangeTest, lrs: Sequence[float], title: str) -> list[float]:
        with progress(trainer, self.progress_bar or trainer.progress_bar_callback, len(lrs), title) as advance:
            return test.losses(lrs, advance)


def _stays(used: float, before: float) -> str:
    if used == before:
        return f"the learning rate stays {before:.3g}"
    return f"the learning rate is the one that was set before any test again, {used:.3g}, instead of {before:.3g}"


def lr_find(trainer: Trainer, module: LightningModule, data: Any = None, **options: Any) -> LRCurve:
    """Test learning rates, and train nothing.

    The callbacks of trainer and module that freeze blocks or rate them are heard, and no others; nothing is written,
    and random numbers, loaders and trainer are as before, so that a fit afterwards is the one that it would have been.

    Args:
        trainer: The trainer; it can ``fit`` afterwards.
        module: The module.
        data: A LightningDataModule or training data, as ``trainer.fit`` takes them; None for the module's own.
        options: Of LRFinder.

    Returns:
        The curve; ``curve.suggest()`` is the rate.

    Raises:
        ValueError: As LRFinder does; if the trainer starts processes for a fit (``ddp_spawn``, ``ddp_notebook``), or
            would train nothing.
    """
    arguments: dict[str, Any] = {"apply": False} | options
    finder = LRFinder(**arguments)
    finder.progress_bar = trainer.progress_bar_callback
    trial_fit(trainer, module, data, finder, heard=BlockCallback)
    if finder.curve is None:
        raise ValueError(
            f"the trainer would train nothing (max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps}), so "
            "there is no schedule to test the learning rates of"
        )
    return finder.curve
