"""What the tests of tasks share: short fits on the CPU, whose losses are kept."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything

from lightning_ft import FineTuner
from lightning_ft_callbacks import DiscriminativeLR, FrozenPrefixCache, GradualUnfreezing, LRFinder

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
HEAD_FIRST: list[Any] = [{"train": ["head"], "epochs": 2}, {"train": ["*"]}]


class Losses(Callback):
    """Keeps the loss of each batch."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, *arguments: Any) -> None:
        outputs = arguments[2]
        self.values.append(outputs["loss"].item())


class Task:
    """A module and its data, made anew for each fit."""

    def __init__(self, module: Callable[[], FineTuner], data: Callable[[], LightningDataModule]) -> None:
        self.module = module
        self.data = data

    def fit(self, *callbacks: Callback, epochs: int = 3) -> tuple[FineTuner, list[float]]:
        """Return the trained module, and the loss of each batch."""
        seed_everything(3, verbose=False)
        module, losses = self.module(), Losses()
        trainer = Trainer(max_epochs=epochs, callbacks=[*callbacks, losses], **QUIET)
        trainer.fit(module, datamodule=self.data())
        return module, losses.values

    def assert_the_cache_changes_nothing(self, schedule: list[Any] = HEAD_FIRST) -> None:
        """Train in phases at several rates, with the cache and without."""

        def callbacks() -> list[Callback]:
            return [GradualUnfreezing(schedule), DiscriminativeLR(0.7)]

        plain, losses = self.fit(*callbacks())
        cache = FrozenPrefixCache()
        cached, cached_losses = self.fit(*callbacks(), cache)
        assert cached_losses == pytest.approx(losses, abs=1e-4)
        for name, value in plain.state_dict().items():
            torch.testing.assert_close(cached.state_dict()[name], value, atol=1e-4, rtol=1e-3)

    def assert_what_is_kept_serves_until_files_change(self, folder: Path, files: Iterable[Path]) -> None:
        """Train with a cache that is kept in a folder, again, and once more when files of the data have changed."""

        def run() -> tuple[list[float], dict[Path, int]]:
            cache = FrozenPrefixCache(directory=str(folder), keep=True)
            _, losses = self.fit(GradualUnfreezing([{"train": ["head"]}]), cache, epochs=2)
            return losses, {segment: segment.stat().st_mtime_ns for segment in folder.rglob("segment*")}

        (losses, kept), (again, kept_after) = run(), run()
        assert kept
        assert kept_after == kept  # what is not used is kept anew
        assert again == pytest.approx(losses, abs=1e-4)
        for file in files:
            os.utime(file, ns=(1, file.stat().st_mtime_ns + 10**9))
        assert len(run()[1]) > len(kept)

    def assert_a_rate_is_found(self) -> None:
        """Find the learning rate, with trials, before an epoch."""
        finder = LRFinder(num_steps=40, trial_steps=5)
        module, _ = self.fit(finder, epochs=1)
        assert finder.curve is not None
        assert finder.factor is not None
        assert 1e-5 < module.lr * finder.factor < 1
