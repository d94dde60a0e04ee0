"""Small modules and data for the laws."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

WIDTH = 6


class Net(LightningModule):
    """Three layers with batch norm and dropout, and a head.

    Args:
        optimizer: Makes the optimizer of the parameters.
        scheduler: Makes what ``lr_scheduler`` is, of the optimizer; None for none.
        dropout: Its rate.
    """

    def __init__(
        self,
        optimizer: Callable[[Any], Any] = lambda parameters: torch.optim.AdamW(parameters, lr=0.01),
        scheduler: Callable[[Any], Any] | None = None,
        dropout: float = 0.2,
        norm: bool = True,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH) if norm else nn.Identity(), nn.Dropout(dropout)
            )
            for _ in range(3)
        )
        self.head = nn.Linear(WIDTH, 2)
        self.make_optimizer = optimizer
        self.make_scheduler = scheduler

    def forward(self, inputs: Tensor) -> Tensor:
        for layer in self.layers:
            inputs = torch.relu(layer(inputs)) + inputs
        return self.head(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
        inputs, target = batch
        loss = nn.functional.cross_entropy(self(inputs), target)
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        inputs, target = batch
        self.log("val/loss", nn.functional.cross_entropy(self(inputs), target), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.make_scheduler(optimizer)}


def loader(num_samples: int = 32, batch_size: int = 8) -> DataLoader:
    """Return batches that are the same each epoch."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(num_samples, WIDTH, generator=generator)
    return DataLoader(TensorDataset(inputs, (inputs.sum(1) > 0).long()), batch_size=batch_size)


class Stream(IterableDataset):
    """The samples of ``loader(64)``, of which nobody knows how many there are."""

    def __iter__(self) -> Any:
        return iter(zip(*next(iter(loader(64, 64))), strict=True))


def trainer(*callbacks: Callback, **options: Any) -> Trainer:
    """Return a quiet trainer."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "log_every_n_steps": 1,
    }
    return Trainer(callbacks=list(callbacks), **(quiet | options))


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's tensors."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


class Seen(Callback):
    """Notes something after each batch, called with trainer and module."""

    def __init__(self, what: Callable[[Trainer, Any], Any]) -> None:
        self.what = what
        self.values: list[Any] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.values.append(self.what(trainer, pl_module))


class Save(Callback):
    """Saves after each batch, and at each epoch's end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"step{trainer.global_step}.ckpt")

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        trainer.save_checkpoint(self.folder / f"epoch{trainer.current_epoch}.ckpt")
