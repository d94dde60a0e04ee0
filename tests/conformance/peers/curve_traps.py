"""Traps of a finder's curve: whether it has all points, the losses as they were, and a drop that it finds."""

from math import isfinite
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from base_traps import span
from finder_adapters import NUM_STEPS, Finder, RangeTest, quiet
from finder_net import Rated, samples
from outcome import Outcome
from torch import Tensor, nn
from torch.optim import SGD

MAX_LR = 0.1  # at which the loss does not explode, so that no test has a reason to end early
DROP = 1e-3
NUM_SEEDS = 9


class Constant(Rated):
    """Has the loss 1.0."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * 0 + 1.0


def constant(tool: Finder, folder: Path) -> Outcome:
    """A constant loss is recorded as it is."""
    (test,) = tool.fit(Constant(), quiet(folder, max_epochs=1), samples())
    right = all(abs(loss - 1.0) < 1e-6 for loss in test.losses)
    return Outcome(right, f"a loss of 1 recorded as {span(test.losses)}")


def full_curve(tool: Finder, folder: Path, *, num_batches: int, max_epochs: int, **options: Any) -> Outcome:
    """A test has all its points, whatever the epochs of the fit and the validations within them."""
    data = samples(num_batches), samples(4)
    trainer = quiet(folder, max_epochs=max_epochs, **options)
    return points(tool.fit(Rated(), trainer, *data, max_lr=MAX_LR), 1)


def mid_training(tool: Finder, folder: Path, *, validated: bool) -> Outcome:
    """A second test, when epoch 1 begins, has all its points too, with validations or without."""
    data = samples(), *([samples(4)] if validated else [])
    return points(tool.fit(Rated(), quiet(folder, max_epochs=3), *data, max_lr=MAX_LR, again=True), 2)


def points(tests: list[RangeTest], num_tests: int) -> Outcome:
    """Return whether there are as many tests as were asked for, each with all its points."""
    numbers = [len(test.losses) for test in tests]
    right = numbers == [NUM_STEPS] * num_tests
    return Outcome(right, f"{' and '.join(map(str, numbers)) or 'no'} of {NUM_STEPS} points")


class OneNaN(Rated):
    """Has one loss that is NaN, and gradients as ever."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss + float("nan") if batch_idx == NUM_STEPS // 2 else loss


def one_nan(tool: Finder, folder: Path) -> Outcome:
    """A loss that is NaN costs its own point and no other."""
    (test,) = tool.fit(OneNaN(), quiet(folder, max_epochs=1), samples(), max_lr=MAX_LR)
    lost = NUM_STEPS - sum(isfinite(loss) for loss in test.losses)
    return Outcome(lost <= 1, f"{lost} of {NUM_STEPS} points without a loss")


class TwoOptimizers(Rated):
    """Trains backbone and head with an optimizer each, at rates of one ratio, by itself."""

    def __init__(self) -> None:
        super().__init__(ratio=10.0)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
        return loss.detach()

    def configure_optimizers(self) -> Any:
        return [SGD(self.head.parameters(), lr=self.lr), SGD(self.backbone.parameters(), lr=self.lr / self.ratio)]


def two_optimizers(tool: Finder, folder: Path) -> Outcome:
    """Two optimizers have their ratio, and the head's rate is what was found."""
    module = TwoOptimizers()
    (test,) = tool.fit(module, quiet(folder, max_epochs=1), samples())
    head, backbone = (optimizer.param_groups[0]["lr"] for optimizer in module.optimizers())
    if test.suggestion is None:
        return Outcome(False, "no rate found")
    part, ratio = head / test.suggestion, head / backbone
    right = [part, ratio] == pytest.approx([1.0, module.ratio])
    return Outcome(right, f"rate / expected: {part:.3g}; ratio {ratio:.3g} of {module.ratio:.3g}")


class Drop(Rated):
    """Has a noisy loss that falls from 1 to 0.4 around `DROP`, half of it there, whatever the weights.

    Args:
        noise: Standard deviation of the noise.
    """

    def __init__(self, noise: float) -> None:
        super().__init__()
        self.noise = noise

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
        place = torch.tensor(self.trainer.optimizers[0].param_groups[0]["lr"] / DROP).log10()
        value = 1 - 0.6 * torch.sigmoid(3 * place) + self.noise * torch.randn(())
        return self.head(nn.functional.tanh(batch[0])).mean() * 0 + value


def noisy_drop(tool: Finder, folder: Path, *, noise: float) -> Outcome:
    """The median suggestion of several tests with noisy losses is within a factor of 10 of the drop."""
    found = []
    for seed in range(NUM_SEEDS):
        torch.manual_seed(seed)
        (test,) = tool.fit(Drop(noise), quiet(folder, max_epochs=1, limit_train_batches=NUM_STEPS), samples())
        found += [] if test.suggestion is None else [test.suggestion]
    if len(found) < NUM_SEEDS:
        return Outcome(False, f"{len(found)} of {NUM_SEEDS} tests suggest a rate")
    middle = median(found)
    return Outcome(DROP / 10 <= middle <= DROP * 10, f"median {middle:.1e}, from {min(found):.1e} to {max(found):.1e}")
