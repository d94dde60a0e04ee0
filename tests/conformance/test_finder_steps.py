"""A range test trains as the fit would: its accumulation, hooks, limits, rates, and losses as they are."""

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.precision import MixedPrecision
from nets import Net, loader, trainer
from torch import Tensor
from torch.optim import SGD
from torch.optim import lr_scheduler as schedulers

from lightning_ft_callbacks import DiscriminativeLR, GradualUnfreezing, LRFinder, lr_find
from lightning_ft_callbacks.range_test.range_test import diverged

STEPS = 20
Seen = list[dict[str, Any]]


class Watched(Net):
    """Notes batches and updates in lists of others, which the test does not set back.

    Args:
        change: Makes a loss of a loss and the batch's number.
    """

    def __init__(self, change: Callable[[Tensor, int], Any] = lambda loss, _: loss, **options: Any) -> None:
        super().__init__(**({"dropout": 0.0} | options))
        self.change = change

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        batches.append(batch[0].clone())
        return self.change(super().training_step(batch, batch_idx), batch_idx)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        updates.append(optimizer.param_groups[0]["lr"])


batches: list[Tensor] = []
updates: list[float] = []


@pytest.fixture(autouse=True)
def forget(caplog: pytest.LogCaptureFixture) -> None:
    """Begin without batches and updates, and hear what is said."""
    batches.clear()
    updates.clear()
    torch.manual_seed(0)
    caplog.set_level(logging.INFO)


def found_in(module: Net, num_samples: int = 64, finder: LRFinder | None = None, **options: Any) -> LRFinder:
    """Run a test alone, and return the finder."""
    finder = finder or LRFinder(num_steps=STEPS, apply=False, trial_steps=0)

    class Stop(Callback):
        def on_train_start(self, *_: Any) -> None:
            raise StopIteration

    with pytest.raises(StopIteration):
        trainer(finder, Stop(), **({"max_epochs": 1} | options)).fit(module, loader(num_samples))
    assert finder.curve is not None
    return finder


def raw(finder: LRFinder) -> list[float]:
    assert finder.curve is not None
    return finder.curve.raw.tolist()


def test_accumulated_batches_make_a_step_and_their_mean_its_loss() -> None:
    finder = found_in(Watched(lambda loss, idx: loss * 0 + 1.0 + idx % 4), accumulate_grad_batches=4)
    assert raw(finder) == pytest.approx([2.5] * STEPS)
    assert (len(batches), len(updates)) == (4 * STEPS, STEPS)


def test_fewer_batches_than_are_accumulated_make_a_step() -> None:
    found_in(Watched(), num_samples=16, accumulate_grad_batches=4)
    assert (len(batches), len(updates)) == (2 * STEPS, STEPS)


def test_a_phase_that_begins_with_the_last_batch_of_an_epoch_accumulates_too() -> None:
    in_tests: list[tuple[int, int]] = []

    class Around(Callback):
        def on_phase_start(self, trainer: Any, pl_module: Any, phase: int) -> None:  # noqa: ARG002
            in_tests.append((len(batches), len(updates)))

    finder = LRFinder(num_steps=STEPS, apply=False, min_lr=1e-5, each_phase=True)
    callbacks = [GradualUnfreezing([{"train": ["head"], "steps": 3}, {"train": ["*"]}]), Around(), finder, Around()]
    # of ten batches the ninth ends the third step, so that the second phase begins with the last
    trainer(*callbacks, max_epochs=2, accumulate_grad_batches=3).fit(Watched(), loader(80))
    (batches_before, before), (batches_after, after) = in_tests[-2:]
    assert (batches_after - batches_before, after - before) == (3 * STEPS, STEPS)


def test_the_batch_goes_through_the_modules_transfer_hooks() -> None:
    class Moved(Watched):
        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
            return batch[0] + 10.0, batch[1]

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:  # noqa: ARG002
            return batch[0] * 100.0, batch[1]

    found_in(Moved())
    assert torch.equal(batches[0], (next(iter(loader(64)))[0] + 10.0) * 100.0)


def test_the_test_has_no_other_batches_than_the_fit() -> None:
    found_in(Watched(), limit_train_batches=2)
    first, second, *_ = loader(64)
    assert len(batches) == STEPS
    assert all(torch.equal(found, (first, second)[number % 2][0]) for number, found in enumerate(batches))


def test_a_nan_costs_its_own_point_and_updates_nothing() -> None:
    at = 8
    finder = found_in(Watched(lambda loss, idx: loss * math.nan if idx == at else loss))
    losses = raw(finder)
    assert [step for step, loss in enumerate(losses) if not math.isfinite(loss)] == [at]
    assert len(losses) == STEPS
    assert len(updates) == STEPS - 1


def test_a_nan_in_one_of_accumulated_batches_costs_a_point() -> None:
    finder = found_in(Watched(lambda loss, idx: loss * math.inf if idx == 9 else loss), accumulate_grad_batches=4)
    assert [step for step, loss in enumerate(raw(finder)) if not math.isfinite(loss)] == [2]
    assert len(raw(finder)) == STEPS


def test_losses_that_are_lost_after_a_rise_are_a_divergence() -> None:
    def change(loss: Tensor, idx: int) -> Tensor:
        return loss * 0 + 1 + 0.1 * idx if idx < 10 else loss * math.nan

    finder = found_in(Watched(change))
    assert len(raw(finder)) == 15


@pytest.mark.parametrize(
    ("losses", "is_so"),
    [
        ([2.0, 1.0, 1.2, 1.5, *[math.nan] * 5], True),
        ([2.0, 1.0, 1.2, 1.5, *[math.inf] * 5], True),
        ([2.0, 1.0, 1.2, 1.5, *[math.nan] * 4], False),
        ([2.0, 1.5, 1.0, *[math.nan] * 5], False),  # bad data before the rise
        ([math.nan] * 6, False),
    ],
)
def test_five_lost_losses_after_a_rise_diverge(losses: list[float], is_so: bool) -> None:
    assert diverged(losses) is is_so


def test_a_batch_that_is_passed_over_costs_its_own_point_also_the_first() -> None:
    losses = raw(found_in(Watched(lambda loss, idx: None if idx in (0, 5) else loss)))
    assert [step for step, loss in enumerate(losses) if math.isnan(loss)] == [0, 5]


def test_a_module_that_passes_all_batches_over_has_no_information(caplog: pytest.LogCaptureFixture) -> None:
    finder = found_in(Watched(lambda loss, _: None))  # noqa: ARG005
    assert finder.found is None
    assert "the test has 0 points to look at, fewer than 10; the learning rate stays 0.01" in caplog.text


def test_without_a_fall_the_finder_says_so(caplog: pytest.LogCaptureFixture) -> None:
    found_in(Watched(lambda loss, _: loss * 0 + 1.0), finder=LRFinder(num_steps=40))
    assert "LRFinder: the loss does not fall by more than its noise at any rate; more steps (num_steps)" in caplog.text
    assert "show smaller falls; the learning rate stays 0.01" in caplog.text


def test_a_dev_run_tests_no_more_steps_than_it_trains(caplog: pytest.LogCaptureFixture) -> None:
    found_in(Watched(), fast_dev_run=2)
    assert len(batches) == 2
    assert "fast_dev_run=2 trains so few steps" in caplog.text


def test_rates_rise_by_equal_steps_in_a_linear_test() -> None:
    found_in(Watched(), finder=LRFinder(num_steps=3, min_lr=0.1, max_lr=0.3, spacing="linear"))
    assert updates == pytest.approx([0.1, 0.2, 0.3])


def test_a_test_in_a_warm_up_ramp_is_at_the_rates_that_it_rises_to() -> None:
    applied: list[set[float]] = []

    class Spy(SGD):
        def step(self, closure: Any = None) -> Any:
            loss = closure()
            applied.append({group["lr"] for group in self.param_groups})
            super().step()
            return loss

    finder = LRFinder(num_steps=3, min_lr=0.1, max_lr=0.3, spacing="linear", each_phase=True, apply=False)
    phases = [{"train": ["head"], "steps": 2}, {"train": ["*"]}]
    callbacks = [GradualUnfreezing(phases, ramp_steps=1000), DiscriminativeLR(1.0), finder]
    trainer(*callbacks, max_epochs=1).fit(Watched(optimizer=lambda p: Spy(p, lr=0.01)), loader())
    tests = [rates for rates in applied if min(rates) >= 0.09]
    assert [min(rates) for rates in tests] == pytest.approx([0.1, 0.2, 0.3] * 2)


class Manual(Watched):
    """Steps optimizers, and their schedules, itself."""

    def __init__(self, *, per_batch: int = 1, by_hand: bool = False) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.per_batch, self.by_hand = per_batch, by_hand

    def configure_optimizers(self) -> Any:
        below, above = SGD(self.layers.parameters(), lr=0.01), SGD(self.head.parameters(), lr=0.02)
        return [below, above], [schedulers.ExponentialLR(optimizer, 0.9) for optimizer in (below, above)]

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for _ in range(self.per_batch):
            for optimizer, schedule in zip(self.optimizers(), self.lr_schedulers(), strict=True):
                loss = super().training_step(batch, batch_idx)
                optimizer.zero_grad()
                self.manual_backward(loss)
                if self.by_hand:
                    optimizer.param_groups[0]["lr"] = 0.5
                optimizer.step()
                schedule.step()


@pytest.mark.parametrize("per_batch", [1, 2])
def test_schedules_that_are_stepped_between_optimizers_do_not_change_the_rates(per_batch: int) -> None:
    finder = LRFinder(num_steps=3, min_lr=0.1, max_lr=0.3, spacing="linear")
    module = Manual(per_batch=per_batch)
    found_in(module, finder=finder)
    each = [rate for lr in (0.1, 0.2, 0.3) for rate in [lr / 2, lr] * per_batch]
    assert updates == pytest.approx(each)
    assert all("step" not in vars(config.scheduler) for config in module.trainer.lr_scheduler_configs)


def test_rates_that_a_module_sets_by_hand_are_refused_in_manual_optimization_too() -> None:
    with pytest.raises(ValueError, match="Manual sets learning rates itself, so there is none to test"):
        lr_find(trainer(max_epochs=1), Manual(by_hand=True), loader())


def test_losses_of_manual_optimization_are_told_without_the_scale_that_they_are_propagated_with() -> None:
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**10))

    class One(Watched):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            loss = super().training_step(batch, batch_idx) * 0 + 3.0
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()

    assert raw(found_in(One(), plugins=[scaled])) == pytest.approx([3.0] * STEPS)


def test_the_first_losses_that_suggestions_pass_over_are_a_tenth_of_those_planned() -> None:
    finder = found_in(Watched(lambda loss, idx: loss + 100.0 * (idx > 50)), finder=LRFinder(apply=False))
    assert finder.curve is not None
    assert len(finder.curve.lrs) < 70
    assert finder.curve.skip_begin == 10


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("shown", [False, True])
def test_a_bar_is_shown_where_the_trainer_shows_one(alone: bool, shown: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: Seen = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            bars.append(options | {"steps": 0})

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *_: object) -> None: ...

        def set_postfix_str(self, *_: Any, **__: Any) -> None: ...

        def update(self) -> None:
            bars[-1]["steps"] += 1

    monkeypatch.setattr("tqdm.auto.tqdm", Bar)
    finder = LRFinder(num_steps=STEPS)
    fit = trainer(*([] if alone else [finder]), max_epochs=1, enable_progress_bar=shown)
    if alone:
        lr_find(fit, Watched(), loader(), num_steps=STEPS)
    else:
        fit.fit(Watched(), loader())
    (bar,) = bars
    assert bar["disable"] is (None if shown else True)  # None is: on a terminal
    assert bar["total"] == bar["steps"] == STEPS


@pytest.mark.parametrize("scheduling", [{0: 4}, {0: 2, 1: 4}])
def test_the_batches_that_a_scheduler_has_a_step_accumulate_are_those_of_the_test(scheduling: dict[int, int]) -> None:
    class Counted(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            steps.append(self.trainer.accumulate_grad_batches)
            return super().training_step(batch, batch_idx)

    steps: list[int] = []
    finder = LRFinder(num_steps=12, trial_steps=0, apply=False)
    trainer(finder, GradientAccumulationScheduler(scheduling), max_epochs=2).fit(Counted(), loader(64))
    assert steps[: 12 * scheduling[0]] == [scheduling[0]] * 12 * scheduling[0]
    assert len(steps) == 12 * scheduling[0] + 2 * 8
