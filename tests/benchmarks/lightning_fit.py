"""lightning_fit: training as ``lightning-ft fit`` sets it up."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clock import Clock, Contender
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger

from lightning_ft import AtomicCheckpointIO, FineTuner
from lightning_ft.run.checkpoints import BestCheckpoint, LastCheckpoint
from lightning_ft.run.folder import CHECKPOINTS, new_run_folder
from lightning_ft.run.metrics_csv import MetricsCSV

# Lightning makes it the file of rich's one global console, so it must stay open
NOWHERE = Path(os.devnull).open("w")  # noqa: SIM115


class StepClock(Callback):
    """Tells a clock of the trainer's steps."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Start the first step."""
        if batch_idx == 0:
            self.clock.begin()

    def on_train_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        """End a step."""
        inputs = next(iter(batch.values()))
        self.clock.count(len(inputs), inputs.numel())
        self.clock.end_step()


def lightning_fit(
    module: FineTuner,
    data: LightningDataModule,
    steps: int,
    folder: Path,
    callbacks: Sequence[Callback] = (),
    *,
    progress: bool = True,
    **options: Any,
) -> Contender:
    """Return a training by Lightning's trainer, with the command's loggers, checkpoints and progress bar.

    The progress bar draws for a terminal, into nothing.

    Args:
        module: What is trained.
        data: Its data.
        steps: Batches to train.
        folder: Where the run's folder is made.
        callbacks: Further callbacks.
        progress: Whether to draw a bar; rich's one console holds a single bar in a process.
        options: Other arguments of the trainer.
    """

    def train(clock: Clock) -> None:
        run = new_run_folder(folder)
        best, last = BestCheckpoint(), LastCheckpoint()
        best.dirpath = last.dirpath = str(run / CHECKPOINTS)
        console = {"file": NOWHERE, "force_terminal": True, "width": 120}
        bars = [RichProgressBar(console_kwargs=console)] if progress else []
        trainer = Trainer(
            max_epochs=1,
            limit_train_batches=steps,
            limit_val_batches=1,
            log_every_n_steps=10,
            logger=[MetricsCSV(run), TensorBoardLogger(run.parent, name="", version=run.name)],
            enable_progress_bar=progress,
            callbacks=[*bars, best, last, *callbacks, StepClock(clock)],
            plugins=[AtomicCheckpointIO()],
            **options,
        )
        trainer.fit(module, datamodule=data)

    return train
