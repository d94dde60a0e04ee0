"""Train on two processes, and write what each of them has at the end: ``two_ranks.py STRATEGY FOLDER``."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from nets import Net, loader, trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader, Subset

from lightning_ft_callbacks import DiscriminativeLR, GradualUnfreezing

SCHEDULE = [
    {"train": ["head"], "steps": 3},
    {"train": ["layers.2", "head"], "plateau": {"monitor": "val/loss", "patience": 1, "min_delta": 10.0}},
    {"train": ["layers.1"], "epochs": 1},
    {"train": ["*"]},
]
STRATEGIES: dict[str, Any] = {
    "one": lambda: "auto",
    "ddp": lambda: "ddp",
    "ddp_spawn": lambda: "ddp_spawn",
    "find_unused": lambda: "ddp_find_unused_parameters_true",
    "static_graph": lambda: DDPStrategy(static_graph=True),
    "bucket_view": lambda: DDPStrategy(gradient_as_bucket_view=True),
    "fsdp2": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
}
EPOCHS = 6


class Ranked(Net):
    """Writes its weights when the fit ends; without dropout and batch norm, so that ranks equal one process."""

    def __init__(self, out: Path) -> None:
        torch.manual_seed(0)
        super().__init__(
            partial(SGD, lr=0.1, momentum=0.9),
            partial(lr_scheduler.ExponentialLR, gamma=0.9),
            dropout=0.0,
            norm=False,
        )
        self.out = out

    def train_dataloader(self) -> DataLoader:
        """Return batches of 8 for all ranks together."""
        ranks = self.trainer.world_size
        mine = range(self.global_rank, 32, ranks)
        return DataLoader(Subset(loader().dataset, mine), batch_size=8 // ranks)

    val_dataloader = train_dataloader

    def on_train_end(self) -> None:
        weights: dict[str, Tensor] = {}
        for name, parameter in self.named_parameters():
            value: Any = parameter.detach()
            weights[name] = (value.full_tensor() if isinstance(value, DTensor) else value).clone()
        torch.save(weights, self.out / f"rank{self.global_rank}.pt")


class Sharded(Ranked):
    """The same in FSDP2, whose ``configure_model`` replaces all parameters."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]
        for layer in self.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.head, mesh=mesh)
        fully_shard(self, mesh=mesh)


def main() -> None:
    """Train."""
    strategy, out = sys.argv[1], Path(sys.argv[2])
    ranks = 1 if strategy == "one" else 2
    torch.set_num_threads(1)
    module = (Sharded if strategy == "fsdp2" else Ranked)(out)
    fit = trainer(
        GradualUnfreezing(SCHEDULE),
        DiscriminativeLR(0.8),
        strategy=STRATEGIES[strategy](),
        devices=ranks,
        max_epochs=EPOCHS,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )
    fit.fit(module)


if __name__ == "__main__":
    main()
