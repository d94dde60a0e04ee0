"""Adapters of finders: one range test and the fit behind it, each set up as that tool's documentation says."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch import Tensor

NUM_STEPS = 100
MIN_LR = 1e-7


@dataclass(frozen=True, slots=True)
class RangeTest:
    """What a tool says of one test.

    Attributes:
        lrs: Learning rates, shape (point,).
        losses: The losses that it recorded, smoothed as it does, shape (point,).
        suggestion: The rate that it suggests; None for none.
    """

    lrs: list[float]
    losses: list[float]
    suggestion: float | None


class Finder(ABC):
    """A tool that tests rising learning rates, and trains at the one that the losses suggest.

    Attributes:
        name: The tool's name in the table.
        package: The package that it is part of.
        ways: The documented ways to test before a fit.
    """

    name: str
    package: str
    ways: Sequence[str] = ("callback",)

    @abstractmethod
    def fit(
        self,
        module: LightningModule,
        trainer: dict[str, Any],
        *loaders: Any,
        way: str = "callback",
        max_lr: float = 1.0,
        apply: bool = True,
        again: bool = False,
    ) -> list[RangeTest]:
        """Test, and train.

        Args:
            module: The module, with its learning rate as ``lr``.
            trainer: The trainer's options.
            loaders: For training, and for validation.
            way: One of ``ways``.
            max_lr: Where the test ends.
            apply: Whether to train at the rate found.
            again: Whether to test once more when epoch 1 begins.
        """


class FineTune(LearningRateFinder):
    """Tests at several epochs, by the example in the documentation of Lightning's finder."""

    def __init__(self, milestones: Sequence[int], **options: Any) -> None:
        super().__init__(**options)
        self.milestones = milestones
        self.tests: list[Any] = []

    def on_fit_start(self, *_: Any, **__: Any) -> None:
        return

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch in self.milestones or trainer.current_epoch == 0:
            self.lr_find(trainer, pl_module)
            self.tests.append(self.optimal_lr)


class Theirs(Finder):
    """Lightning's callback, or its Tuner before ``fit``.

    Source: https://lightning.ai/docs/pytorch/stable/api/lightning.pytorch.callbacks.LearningRateFinder.html and
    https://lightning.ai/docs/pytorch/stable/advanced/training_tricks.html#learning-rate-finder
    """

    name = "LearningRateFinder"
    package = "lightning"
    ways = ("callback", "Tuner")

    def fit(
        self,
        module: LightningModule,
        trainer: dict[str, Any],
        *loaders: Any,
        way: str = "callback",
        max_lr: float = 1.0,
        apply: bool = True,
        again: bool = False,
    ) -> list[RangeTest]:
        """Test and train with the callback; or test with the Tuner, and train with the same trainer."""
        options: dict[str, Any] = {"min_lr": MIN_LR, "max_lr": max_lr, "update_attr": apply}
        if way == "Tuner":
            fit = Trainer(**trainer)
            tests = [Tuner(fit).lr_find(module, *loaders, num_training=NUM_STEPS, **options)]
            fit.fit(module, *loaders)
        else:
            options["num_training_steps"] = NUM_STEPS
            finder = FineTune((1,), **options) if again else LearningRateFinder(**options)
            Trainer(**with_callbacks(trainer, finder)).fit(module, *loaders)
            tests = finder.tests if isinstance(finder, FineTune) else [finder.optimal_lr]
        return [RangeTest(t.results["lr"], t.results["loss"], t.suggestion()) for t in tests if t is not None]


class Curves(Callback):
    """Notes the curves of a finder of ours."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder
        self.curves: list[Any] = []

    def on_train_batch_start(self, *_: Any) -> None:
        if not any(self.finder.curve is curve for curve in self.curves):
            self.curves.append(self.finder.curve)


class Ours(Finder):
    """This project's callback."""

    name = "LRFinder"
    package = "lightning-ft"

    def fit(
        self,
        module: LightningModule,
        trainer: dict[str, Any],
        *loaders: Any,
        way: str = "callback",  # noqa: ARG002
        max_lr: float = 1.0,
        apply: bool = True,
        again: bool = False,
    ) -> list[RangeTest]:
        """Test and train with the callback; GradualUnfreezing says when the next test is."""
        from lightning_ft_callbacks import GradualUnfreezing, LRFinder

        finder = LRFinder(min_lr=MIN_LR, max_lr=max_lr, num_steps=NUM_STEPS, apply=apply, each_phase=again)
        curves = Curves(finder)
        phases = [GradualUnfreezing([{"train": ["head"], "epochs": 1}, {"train": ["*"]}])] if again else []
        Trainer(**with_callbacks(trainer, *phases, finder, curves)).fit(module, *loaders)
        return [RangeTest(c.lrs.tolist(), known(c.losses, c.raw), c.suggest()) for c in curves.curves]


def known(losses: Tensor, raw: Tensor) -> list[float]:
    """Return smoothed losses, with NaN at the points that had no loss, where the average goes on."""
    return losses.where(raw.isfinite(), torch.nan).tolist()


def with_callbacks(trainer: dict[str, Any], *callbacks: Callback) -> dict[str, Any]:
    """Return a trainer's options with callbacks before its own."""
    return trainer | {"callbacks": [*callbacks, *trainer["callbacks"]]}


def quiet(folder: Path, *callbacks: Callback, **options: Any) -> dict[str, Any]:
    """Return the options of a trainer that writes nothing by itself."""
    writes = {"logger": False, "enable_checkpointing": False, "default_root_dir": folder}
    shows = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return {"accelerator": "cpu", "devices": 1, "callbacks": list(callbacks), **writes, **shows, **options}


FINDERS: dict[str, Finder] = {finder.name: finder for finder in (Theirs(), Ours())}
