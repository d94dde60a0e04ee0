"""Traps of a finder's traces: what is otherwise in the fit behind a test whose rate is not applied."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from finder_adapters import NUM_STEPS, Finder, quiet
from finder_net import Rated, samples
from lightning.pytorch import Callback, LightningModule, Trainer
from outcome import Outcome
from torch import Tensor


class Diary(Callback):
    """Notes what each batch of a fit is, and what there is before and after it.

    Attributes:
        batches: Sums of the inputs, one a batch.
        random: States of torch's generator, one a batch.
        weights: Weights and batch-norm statistics when the fit begins, and when it ends.
        optimizer: The optimizer's state at both times.
    """

    def __init__(self) -> None:
        self.batches: list[float] = []
        self.random: list[Tensor] = []
        self.weights: list[list[Tensor]] = []
        self.optimizer: list[Any] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        if not self.batches:
            self.look(trainer, pl_module)
        self.batches.append(batch[0].double().sum().item())
        self.random.append(torch.get_rng_state())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.look(trainer, pl_module)

    def look(self, trainer: Trainer, module: LightningModule) -> None:
        """Note the state."""
        self.weights.append([tensor.clone() for tensor in module.state_dict().values()])
        states = trainer.optimizers[0].state.values()
        self.optimizer.append([tensor.clone() for state in states for tensor in state.values()])


def two_fits(tool: Finder, way: str, folder: Path, *, shuffle: bool) -> tuple[Diary, Diary]:
    """Return what was seen in a fit without a test, and behind one."""
    diaries = Diary(), Diary()
    for diary in diaries:
        torch.manual_seed(0)
        module = Rated()
        torch.manual_seed(1)
        trainer = quiet(folder, diary, max_epochs=2)
        if diary is diaries[0]:
            Trainer(**trainer).fit(module, samples(shuffle=shuffle))
        else:
            tool.fit(module, trainer, samples(shuffle=shuffle), way=way, apply=False)
    return diaries


def same_weights(tool: Finder, way: str, folder: Path) -> Outcome:
    """Weights, statistics and optimizer state are those of a fit without a test, when it begins and when it ends."""
    without, behind = two_fits(tool, way, folder, shuffle=False)
    pairs = {
        "weights": zip(without.weights, behind.weights, strict=True),
        "optimizer state": zip(without.optimizer, behind.optimizer, strict=True),
    }
    other = [what for what, pair in pairs.items() if not all(equal(*both) for both in pair)]
    return Outcome(not other, f"other {' and '.join(other)}" if other else "the same")


def same_order(tool: Finder, way: str, folder: Path) -> Outcome:
    """A shuffling loader's batches, and the random numbers, are those of a fit without a test."""
    without, behind = two_fits(tool, way, folder, shuffle=True)
    seen = []
    if without.batches != behind.batches:
        met = sum(one == other for one, other in zip(without.batches, behind.batches, strict=False))
        seen.append(f"{met} of {len(without.batches)} batches in their place")
    if not equal(without.random, behind.random):
        seen.append("other random numbers")
    return Outcome(not seen, "; ".join(seen) or "the same")


def nothing_written(tool: Finder, folder: Path) -> Outcome:
    """The trainer's folder is empty during the test and behind it, where logs and checkpoints are switched off."""
    found: set[str] = set()
    tool.fit(Watching(folder, found.update), quiet(folder, max_epochs=1), samples())
    found.update(path.name for path in folder.iterdir())
    names = sorted({re.sub(r"[0-9a-f]{8}-[0-9a-f-]+", "*", name) for name in found})
    return Outcome(not names, f"writes {', '.join(names)}" if names else "nothing")


class Validated(Rated):
    """Tells of each validation step."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        super().__init__()
        self.tell = tell

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.tell(batch_idx)
        super().validation_step(batch, batch_idx)


def no_validation(tool: Finder, folder: Path) -> Outcome:
    """A test does not validate where the trainer's validation is switched off."""
    told: list[int] = []
    trainer = quiet(folder, max_epochs=2, limit_val_batches=0)
    tool.fit(Validated(told.append), trainer, samples(NUM_STEPS // 2), samples(4))
    return Outcome(not told, f"{len(told)} batches validated")


class Watching(Rated):
    """Looks into a folder in each training step."""

    def __init__(self, folder: Path, tell: Callable[[list[str]], None]) -> None:
        super().__init__()
        self.folder, self.tell = folder, tell

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.tell([path.name for path in self.folder.iterdir()])
        return super().training_step(batch, batch_idx)


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    """Tell whether two lists of tensors are bitwise equal."""
    return len(one) == len(other) and all(torch.equal(*pair) for pair in zip(one, other, strict=True))
