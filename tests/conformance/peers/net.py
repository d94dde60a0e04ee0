"""A small module with a backbone and a head, and a trainer that a tool takes part in."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from adapters import HEAD_LR, Adapter
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader

WIDTH = 6
NUM_BATCHES = 4
NUM_EPOCHS = 4


class Noting(SGD):
    """Notes at each update which rates each parameter is updated with: one, unless it is in several groups.

    Attributes:
        used: A mapping from a parameter's ``id`` to its rates, for each update.
    """

    used: list[dict[int, list[float]]]

    def step(self, closure: Any = None) -> Any:
        """Note, and update."""
        loss = closure() if closure is not None else None
        rates: dict[int, list[float]] = defaultdict(list)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    rates[id(parameter)].append(float(group["lr"]))
        self.__dict__.setdefault("used", []).append(dict(rates))
        super().step()
        return loss


class Net(LightningModule):
    """A backbone of three layers, and a head.

    Args:
        tool: Says what the optimizer is given.
        backbone: The backbone; None for linear layers.
        head: The head, from as many features to two classes; None for a linear one.
        optimizer: The optimizer's class.
        scheduler: Makes the LR scheduler, which steps each ``interval``.
    """

    def __init__(
        self,
        tool: Adapter,
        *,
        backbone: nn.Module | None = None,
        head: nn.Module | None = None,
        optimizer: type[Optimizer] = Noting,
        scheduler: Callable[[Optimizer], Any] | None = None,
        interval: str = "step",
    ) -> None:
        super().__init__()
        self.backbone = backbone or nn.Sequential(*(layer() for _ in range(3)))
        self.head = head or nn.Linear(WIDTH, 2)
        self.tool, self.optimizer, self.scheduler, self.interval = tool, optimizer, scheduler, interval

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.backbone(inputs))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:  # noqa: ARG002
        inputs, target = batch
        return nn.functional.cross_entropy(self(inputs), target)

    def validation_step(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        inputs, target = batch
        self.log("val_loss", nn.functional.cross_entropy(self(inputs), target), sync_dist=True)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.tool.parameters(self), lr=HEAD_LR)
        if self.scheduler is None:
            return optimizer
        return [optimizer], [{"scheduler": self.scheduler(optimizer), "interval": self.interval}]


def layer(norm: type[nn.Module] | None = None) -> nn.Sequential:
    """Return a layer of a backbone."""
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), *([norm(WIDTH)] if norm else []), nn.Tanh())


def batches(seed: int = 3) -> DataLoader:
    """Return an epoch of equal batches, so that nothing hangs on where in the data a resumed epoch begins."""
    inputs = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(seed))
    return DataLoader([(inputs, (inputs.sum(1) > 0).long())] * NUM_BATCHES, batch_size=None)


def trainer(
    tool: Adapter,
    folder: Path,
    thaw_epoch: int | None = 1,
    num_epochs: int = NUM_EPOCHS,
    extra: Sequence[Callback] = (),
    tool_options: dict[str, Any] | None = None,
    **options: Any,
) -> Trainer:
    """Return a quiet trainer with the tool's callbacks, and ``extra`` ones behind them."""
    defaults = {"accelerator": "cpu", "devices": 1, "logger": False}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return Trainer(
        callbacks=[*tool.callbacks(thaw_epoch, num_epochs, **(tool_options or {})), *extra],
        max_epochs=num_epochs,
        default_root_dir=folder,
        **(defaults | quiet | options),
    )


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's tensors."""
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Return the largest difference between two modules' tensors."""
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def unmoved(module: nn.Module, before: dict[str, Tensor]) -> list[str]:
    """Return the names of parameters that are what they were."""
    return [name for name, parameter in module.named_parameters() if torch.equal(parameter, before[name])]
