"""A small module whose learning rate is its attribute ``lr``, as a finder may need it."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torch.utils.data import DataLoader, TensorDataset

WIDTH = 6
NUM_BATCHES = 120  # more than a test has steps
BATCH_SIZE = 16
LR = 1e-3


class Rated(LightningModule):
    """A backbone with batch norm, and a head.

    Args:
        note: Called before each update with the rates of the optimizer's groups.
        scheduler: Makes the LR scheduler, which steps with each update, of the optimizer and its rate.
        ratio: The head's rate over the backbone's; 1 for one group.
        lr: The head's rate.
    """

    def __init__(
        self,
        note: Callable[[list[float]], None] | None = None,
        scheduler: Callable[[Optimizer, float], Any] | None = None,
        ratio: float = 1.0,
        lr: float = LR,
    ) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh())
        self.head = nn.Linear(WIDTH, 2)
        self.note, self.scheduler, self.ratio, self.lr = note, scheduler, ratio, lr

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
        inputs, target = batch
        return nn.functional.cross_entropy(self.head(self.backbone(inputs)), target)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        groups = [{"params": self.head.parameters(), "lr": self.lr}]
        if self.ratio == 1:
            groups = [{"params": self.parameters()}]
        else:
            groups.append({"params": self.backbone.parameters(), "lr": self.lr / self.ratio})
        optimizer = AdamW(groups, lr=self.lr)
        if (note := self.note) is not None:
            optimizer.register_step_pre_hook(lambda o, *_: note([float(group["lr"]) for group in o.param_groups]))
        if self.scheduler is None:
            return optimizer
        return [optimizer], [{"scheduler": self.scheduler(optimizer, self.lr), "interval": "step"}]


def samples(num_batches: int = NUM_BATCHES, *, shuffle: bool = False) -> DataLoader:
    """Return the batches of an epoch."""
    inputs = torch.randn(num_batches * BATCH_SIZE, WIDTH, generator=torch.Generator().manual_seed(3))
    return DataLoader(TensorDataset(inputs, (inputs.sum(1) > 0).long()), batch_size=BATCH_SIZE, shuffle=shuffle)
