"""The rate found scales schedules that hold objects, or that a module keeps; a test leaves them as they were."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from nets import Net, loader, trainer
from torch import nn
from torch.optim import SGD
from torch.optim import lr_scheduler as schedulers

from lightning_ft_callbacks import LRFinder, lr_find

FOUND: dict[str, Any] = {"num_steps": 40, "min_lr": 1e-4, "max_lr": 10.0, "suggestion": "minimum"}
TOLD: dict[str, Any] = {"num_steps": 20, "min_lr": 1e-4, "apply": False}


class GradualWarmup(schedulers.LRScheduler):
    """As that of pytorch-gradual-warmup-lr: after some steps another schedule, which it holds, drives the optimizer."""

    def __init__(self, optimizer: Any, num_steps: int, after_scheduler: Any) -> None:
        self.num_steps, self.after_scheduler, self.finished = num_steps, after_scheduler, False
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        if self.last_epoch <= self.num_steps:
            return [base * self.last_epoch / self.num_steps for base in self.base_lrs]
        if not self.finished:
            self.after_scheduler.base_lrs, self.finished = list(self.base_lrs), True
        return self.after_scheduler.get_last_lr()

    def step(self, epoch: Any = None) -> None:  # noqa: ARG002
        if not self.finished:
            super().step()
            return
        self.after_scheduler.step()
        self._last_lr = self.after_scheduler.get_last_lr()


class Level:
    """A factor that follows from what the module has come to."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner

    def __call__(self, step: int) -> float:  # noqa: ARG002
        return self.owner.level


HOLDING: dict[str, Callable[[Any, Any], Any]] = {
    "another schedule": lambda o, _: GradualWarmup(o, 2, schedulers.CosineAnnealingLR(o, 10)),
    "a callable object": lambda o, module: schedulers.LambdaLR(o, Level(module)),
}
KEPT: dict[str, Callable[[Any], Any]] = {
    "exponential": lambda o: schedulers.ExponentialLR(o, 0.9),
    "cosine": lambda o: schedulers.CosineAnnealingLR(o, 12, eta_min=1e-3),
    "one cycle": lambda o: schedulers.OneCycleLR(o, 0.01, total_steps=60),
    "a function": lambda o: schedulers.LambdaLR(o, lambda step: 1 - step / 13),
}


class Levelled(Net):
    """Lowers a level in each step, which its schedule may look at."""

    def __init__(self, schedule: Callable[[Any, Any], Any]) -> None:
        super().__init__(dropout=0.0)
        self.schedule, self.level, self.rates = schedule, 1.0, list[float]()

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.level *= 0.9
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.01)
        schedule = {"scheduler": self.schedule(optimizer, self), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


class Keeping(Net):
    """Keeps its schedules, and steps them itself."""

    def __init__(self, schedule: Callable[[Any], Any], listed: bool = False) -> None:
        super().__init__(dropout=0.0)
        self.automatic_optimization = False
        self.schedule, self.listed, self.rates = schedule, listed, list[float]()

    def training_step(self, batch: Any, batch_idx: int) -> None:
        loss, optimizer = super().training_step(batch, batch_idx), self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        (self.kept[0] if self.listed else self.kept).step()

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), lr=0.01)
        schedule = self.schedule(optimizer)
        self.kept = [schedule] if self.listed else schedule
        return optimizer


def rates_of(module: Any, *callbacks: Any) -> list[float]:
    torch.manual_seed(0)
    trainer(*callbacks, max_epochs=3).fit(module, loader(1024, 256))
    return module.rates


@pytest.mark.parametrize("name", HOLDING)
def test_a_schedule_that_holds_objects_goes_on_as_it_would_and_is_scaled(name: str) -> None:
    plain = rates_of(Levelled(HOLDING[name]))
    assert len(set(plain)) > 5
    assert rates_of(Levelled(HOLDING[name]), LRFinder(**TOLD)) == plain
    finder = LRFinder(**FOUND)
    found = rates_of(Levelled(HOLDING[name]), finder)
    assert finder.factor is not None
    assert abs(finder.factor - 1) > 0.5
    assert found == pytest.approx([rate * finder.factor for rate in plain])


@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize("name", KEPT)
def test_a_schedule_that_the_module_keeps_goes_on_as_it_would_and_is_scaled(name: str, listed: bool) -> None:
    plain = rates_of(Keeping(KEPT[name], listed))
    assert rates_of(Keeping(KEPT[name], listed), LRFinder(**TOLD)) == plain
    finder = LRFinder(**FOUND)
    found = rates_of(Keeping(KEPT[name], listed), finder)
    assert finder.factor is not None
    assert found == pytest.approx([rate * finder.factor for rate in plain])


def test_a_rate_that_is_set_by_hand_after_an_update_is_refused() -> None:
    class Own(Net):
        def on_train_batch_end(self, *_: Any) -> None:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] *= 0.9

    with pytest.raises(ValueError, match=r"Own sets learning rates itself.*an LR scheduler"):
        trainer(LRFinder(**TOLD), max_epochs=1).fit(Own(), loader())


class WithoutOptimizer(Net):
    def configure_optimizers(self) -> None:
        return None


class Lazy(Net):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.LazyLinear(2)


def relative() -> Net:
    return Net(lambda parameters: transformers.Adafactor(parameters, lr=None, relative_step=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (relative, r"Adafactor sets its learning rates itself.*relative_step=False"),
        (WithoutOptimizer, "WithoutOptimizer has no optimizer"),
        (Lazy, r"head.weight of Lazy has no shape yet.*configure_model"),
    ],
)
def test_what_has_no_rate_or_cannot_be_put_back_is_refused_before_the_first_step(
    make: Callable[[], Net], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(LRFinder(num_steps=20), max_epochs=1).fit(make(), loader())


def test_fast_dev_run_says_why_it_finds_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        trainer(LRFinder(), fast_dev_run=True).fit(Net(), loader(), loader())
    assert "LRFinder: fast_dev_run=1 trains so few steps" in caplog.text


def test_a_curve_without_information_says_what_to_do() -> None:
    curve = lr_find(trainer(max_epochs=1), Net(), loader(), max_lr=1e-6, num_steps=30)
    assert curve.suggest() is None
    assert "more steps (num_steps) or larger batches" in curve.why_not
