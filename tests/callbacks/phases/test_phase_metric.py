"""The metric that a phase is judged by."""

from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_ft_callbacks import Phase, Plateau
from lightning_ft_callbacks.phases.phase_metric import logged_value, metric_of


def test_without_a_plateau_it_is_that_of_the_first_checkpoint_with_its_mode() -> None:
    callbacks = [ModelCheckpoint(), ModelCheckpoint(monitor="val/accuracy", mode="max"), ModelCheckpoint(monitor="x")]
    trainer: Any = SimpleNamespace(checkpoint_callbacks=callbacks)
    metric = metric_of(Phase(["*"], epochs=1), trainer)
    assert metric is not None
    assert (metric.monitor, metric.mode) == ("val/accuracy", "max")
    assert metric_of(Phase(["*"], plateau=Plateau("mine")), trainer) == Plateau("mine")


def test_its_value_is_the_first_ranks_on_all_ranks() -> None:
    strategy = SimpleNamespace(broadcast=lambda mine: 1.0 if mine == 2.0 else None)
    trainer: Any = SimpleNamespace(strategy=strategy, callback_metrics={"val/loss": torch.tensor(2.0)})
    assert logged_value(Plateau("val/loss"), trainer, 0) == 1.0
