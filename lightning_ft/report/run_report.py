"""RunReport: notes, while a run is trained, what its report will tell."""

import os
import platform
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_ft.report.fingerprint import fingerprint
from lightning_ft.report.record import PhaseRecord, RunRecord
from lightning_ft.run.environment import installed
from lightning_ft_callbacks import BlockMap

LIBRARIES = ("lightning-ft", "torch", "lightning", "torchmetrics", "transformers", "timm", "datasets", "peft", "numpy")
MOST_RATES = 400


class RunReport(Callback):
    """Keeps ``record.json`` in the run's folder, and lets the command make ``report.html`` at the end of ``fit``.

    The record has what can be known while training only: seconds and memory of each phase, what was trained in it,
    versions, and the fingerprint of the data.

    Args:
        at_end: Whether the command makes the report at the end of ``fit``.

    Attributes:
        folder: The run's folder; None where nothing is written.
    """

    def __init__(self, at_end: bool = True) -> None:
        self.at_end = at_end
        self.folder: Path | None = None
        self.record = RunRecord()
        self._phase = 0
        self._since: float | None = None
        self._before = 0.0
        self._every = 1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note what is trained on what, behind all that a resumed run restores."""
        if trainer.fast_dev_run or not trainer.is_global_zero:  # pyright: ignore[reportAttributeAccessIssue]
            self.folder = None
        if self.folder is None:
            return
        layout: Any = next(
            (one for c in _callbacks(trainer) if (one := getattr(c, "block_map", None)) is not None), None
        )
        layout = layout or BlockMap.of(pl_module)
        self.record.blocks = {name: layout.num_parameters(name) for name in layout.names}
        self._layout = layout
        self.record.versions = _versions()
        device = trainer.strategy.root_device
        self.record.device = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        self.record.num_devices = trainer.world_size
        self.record.precision = str(trainer.precision)
        loaders: dict[str, Any] = {"train": trainer.train_dataloader, "val": trainer.val_dataloaders}
        self.record.num_rows = {
            part: len(loader.dataset)
            for part, loader in loaders.items()
            if hasattr(getattr(loader, "dataset", None), "__len__")
        }
        data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        files = getattr(data, "files", {})
        self.record.data = {part: fingerprint(file) for part, file in files.items() if file is not None}
        self.record.seed = getattr(data, "seed", None)
        self.record.num_planned = max((_num_planned(callback) for callback in _callbacks(trainer)), default=0)
        self.record.finished = False
        self.record.write(self.folder)

    def on_phase_start(self, trainer: Trainer, pl_module: LightningModule, phase: int) -> None:  # noqa: ARG002
        """Close the phase before, when GradualUnfreezing goes on to the next."""
        if self._since is not None:
            self._close(trainer)
            self._write()
        self._phase = phase
        self._since = None

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Begin a phase with its first batch; a resumed run goes on with the phase that it was in."""
        if self.folder is None or self._since is not None:
            return
        self._since = time.perf_counter()
        if not self.record.phases or self.record.phases[-1].phase != self._phase:
            step = trainer.fit_loop.epoch_loop._batches_that_stepped
            self.record.phases.append(PhaseRecord(self._phase, step, [], 0))
        last = self.record.phases[-1]
        last.trained = [n for n in self._layout.names if any(p.requires_grad for p in self._layout.parameters(n))]
        last.num_trained = sum(parameter.numel() for parameter in pl_module.parameters() if parameter.requires_grad)
        self._before = last.seconds
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(trainer.strategy.root_device)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:  # noqa: ARG002
        """Look at the memory where activations are all there."""
        self._look(trainer)

    def on_before_optimizer_step(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        optimizer: Optimizer,  # noqa: ARG002
    ) -> None:
        """Look at the memory where gradients are all there."""
        self._look(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """Note the rate, at some hundreds of steps in all."""
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        if self.folder is None or step % self._every:
            return
        rate = max(float(group["lr"]) for optimizer in trainer.optimizers for group in optimizer.param_groups)
        if not self.record.rates or self.record.rates[-1][0] != step:
            self.record.rates.append((step, rate))
        if len(self.record.rates) > MOST_RATES:
            self.record.rates = self.record.rates[::2]
            self._every *= 2

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Bring the record up to date once an epoch."""
        self._close(trainer)
        self._write()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Close the last phase."""
        self._close(trainer)
        self.record.finished = True
        self._write()

    def state_dict(self) -> dict[str, Any]:
        """Return the record, so that a resumed run goes on with it."""
        return {"record": asdict(self.record), "every": self._every}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take what ``state_dict`` returned."""
        self.record = RunRecord.from_dict(state_dict["record"])
        self._every = state_dict["every"]

    def _look(self, trainer: Trainer) -> None:
        if self._since is None or not self.record.phases:
            return
        device = trainer.strategy.root_device
        held = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process_bytes()
        last = self.record.phases[-1]
        last.peak_bytes = max(held or 0, last.peak_bytes or 0) or None

    def _close(self, trainer: Trainer) -> None:
        """Add the time of a phase so far."""
        if self._since is not None:
            self._look(trainer)
            self.record.phases[-1].seconds = self._before + time.perf_counter() - self._since

    def _write(self) -> None:
        if self.folder is not None:
            self.record.write(self.folder)


def process_bytes() -> int | None:
    """Return the memory that this process holds now [byte]; None where the system does not tell it by a file."""
    with suppress(OSError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return None


def _num_planned(callback: Any) -> int:
    """Return the phases of a callback's schedule; 0 where it has none."""
    to_come = getattr(callback, "phases_to_come", None)
    return callback.phase + len(to_come) if to_come else 0


def _versions() -> dict[str, str]:
    found = {name: installed(name) for name in LIBRARIES}
    return {"python": platform.python_version()} | {name: one for name, one in found.items() if one is not None}


def _callbacks(trainer: Trainer) -> list[Any]:
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
