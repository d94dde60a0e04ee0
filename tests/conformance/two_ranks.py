"""Train on two processes, and write what each of them has at the end: ``two_ranks.py STRATEGY FOLDER``."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.overrides.distributed import _register_ddp_comm_hook
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from nets import Net, Save, loader, trainer
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook as powersgd
from torch.distributed.tensor import DTensor
from torch.optim import SGD, lr_scheduler
from torch.utils.data import DataLoader, Subset

from lightning_ft_callbacks import DiscriminativeLR, GradualUnfreezing, LRFinder

SCHEDULE = [
    {"train": ["head"], "steps": 3},
    {"train": ["layers.2", "head"], "plateau": {"monitor": "val/loss", "patience": 1, "min_delta": 10.0}},
    {"train": ["layers.1"], "epochs": 1},
    {"train": ["*"]},
]
EPOCHS = 6
# of no phase the first validation is bettered, so that each ends with the weights of that, and one freezes again
BEST = [
    {"train": train, "plateau": {"monitor": "val/loss", "patience": 1, "min_delta": 10.0}}
    for train in (["head"], ["layers.2", "head"], ["layers.0"])
]
# for rank 0 nothing gets better, for rank 1 everything does
DISPUTED = [{"train": ["head"], "plateau": {"monitor": "val/own", "patience": 2}}, {"train": ["*"]}]
NORMS = [{"train": ["head"], "epochs": 2}, {"train": ["layers.2", "head"]}]  # the layers below keep their statistics


class PowerSGD(DDPStrategy):
    """Compresses gradients; Lightning registers a communication hook on CUDA alone, though gloo has them too."""

    def __init__(self) -> None:
        state = powersgd.PowerSGDState(None, matrix_approximation_rank=1, start_powerSGD_iter=2)
        state.min_compression_rate = 1.0  # compresses the smallest weights too
        super().__init__(ddp_comm_state=state, ddp_comm_hook=powersgd.powerSGD_hook)

    def _register_ddp_hooks(self) -> None:
        _register_ddp_comm_hook(self.model, self._ddp_comm_state, self._ddp_comm_hook)


STRATEGIES: dict[str, Any] = {
    "one": lambda: "auto",
    "ddp": lambda: "ddp",
    "ddp_spawn": lambda: "ddp_spawn",
    "find_unused": lambda: "ddp_find_unused_parameters_true",
    "static_graph": lambda: DDPStrategy(static_graph=True),
    "bucket_view": lambda: DDPStrategy(gradient_as_bucket_view=True),
    "powersgd": PowerSGD,
    "fsdp2": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
    "disputed": lambda: "ddp",
    "norms": lambda: "ddp",  # which sends the buffers of rank 0 to all before each step
    "two_optimizers": lambda: "ddp",
    "one_two_optimizers": lambda: "auto",
    "best": lambda: "ddp",
    "one_best": lambda: "auto",
    "best_fsdp2": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
    "saved": lambda: "ddp",
    "saved_fsdp2": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
    "saved_best": lambda: "ddp",
    "saved_best_fsdp2": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
    "lr_finder": lambda: "ddp",
    "one_lr_finder": lambda: "auto",
    "lr_finder_once": lambda: "ddp",
    "one_lr_finder_once": lambda: "auto",
    "lr_finder_only_tells": lambda: "ddp",
    "lr_finder_powersgd": PowerSGD,
    "lr_finder_fsdp2": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1),
}


class Ranked(Net):
    """Writes its weights when the fit ends; without dropout and batch norm, so that ranks equal one process."""

    def __init__(self, out: Path, *, same_batches: bool = False, norm: bool = False) -> None:
        torch.manual_seed(0)
        super().__init__(
            partial(SGD, lr=0.1, momentum=0.9),
            partial(lr_scheduler.ExponentialLR, gamma=0.9),
            dropout=0.0,
            norm=norm,
        )
        self.out = out
        self.same_batches = same_batches
        self.compressions: list[int] = []

    def train_dataloader(self) -> DataLoader:
        """Return batches of 8 for all ranks together, each the same again if a run is to be stopped within an epoch."""
        ranks = self.trainer.world_size
        mine = range(self.global_rank, 32, ranks)
        if self.same_batches:
            mine = list(mine)[: 8 // ranks] * 4
        return DataLoader(Subset(loader().dataset, mine), batch_size=8 // ranks)

    val_dataloader = train_dataloader

    def on_validation_epoch_end(self) -> None:
        """Log what ranks do not agree on."""
        self.log("val/own", float(self.current_epoch) * (-1.0 if self.global_rank else 1.0))

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Note how far PowerSGD has come, which compresses nothing while a new wrapper has no final buckets."""
        if (state := getattr(self.trainer.strategy, "_ddp_comm_state", None)) is not None:
            self.compressions.append(state.iter)

    def on_train_end(self) -> None:
        weights: dict[str, Tensor] = {"compressions": torch.tensor(self.compressions)} if self.compressions else {}
        for name, parameter in (*self.named_parameters(), *self.named_buffers()):
            value: Any = parameter.detach()
            weights[name] = (value.full_tensor() if isinstance(value, DTensor) else value).clone()
        for callback in self.trainer.callbacks:
            if isinstance(callback, GradualUnfreezing):
                weights["phase"] = torch.tensor(callback.phase)
            if isinstance(callback, LRFinder) and callback.curve is not None:
                found = [entry["lr"] or 0.0 for entry in callback.state_dict()["report"]]  # None: no information
                tried = [t["lr"] for entry in callback.state_dict()["report"] for t in entry["curve"]["trials"]]
                weights |= {"curve": callback.curve.raw, "found": torch.tensor(found), "tried": torch.tensor(tried)}
        torch.save(weights, self.out / f"rank{self.global_rank}.pt")


class TwoOptimizers(Ranked):
    """Updates layers and head by an optimizer each, in manual optimization."""

    def __init__(self, out: Path) -> None:
        super().__init__(out)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizers: Any = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        optimizers[0].step()
        if batch_idx % 2:
            optimizers[1].step()

    def configure_optimizers(self) -> Any:
        return [SGD(self.layers.parameters(), lr=0.1, momentum=0.9), SGD(self.head.parameters(), lr=0.05)]


class Sharded(Ranked):
    """The same in FSDP2, whose ``configure_model`` replaces all parameters."""

    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        mesh = self.device_mesh["data_parallel"]
        for layer in self.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.head, mesh=mesh)
        fully_shard(self, mesh=mesh)


def module_of(strategy: str, out: Path) -> Ranked:
    """Return what is trained under a strategy."""
    if strategy.endswith("two_optimizers"):
        return TwoOptimizers(out)
    kind = Sharded if strategy.endswith("fsdp2") else Ranked
    return kind(out, same_batches=strategy.startswith("saved"), norm=strategy == "norms")


class SaveSome(Save):
    """Saves while a block warms up, within a plateau that has a best, and in the last phase."""

    def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step in (5, 7, 18):
            super().on_train_batch_end(trainer, *arguments)

    def on_train_epoch_end(self, trainer: Any, *_: Any) -> None:
        """Save nothing."""


def fit(strategy: str, out: Path, *callbacks: Callback, checkpoint: Path | None = None) -> None:
    """Train, from a checkpoint if given."""
    out.mkdir(exist_ok=True)
    best = "best" in strategy
    schedule = BEST if best else {"disputed": DISPUTED, "norms": NORMS}.get(strategy, SCHEDULE)
    finder = LRFinder(
        min_lr=1e-4,
        max_lr=10.0,
        num_steps=40,
        each_phase=not strategy.endswith("once"),
        apply=strategy not in ("lr_finder_only_tells", "lr_finder_powersgd"),
    )
    trainer(
        GradualUnfreezing(schedule, ramp_steps=2, restore_best=best),
        DiscriminativeLR(0.8),
        *([finder] if "lr_finder" in strategy else []),
        *callbacks,
        strategy=STRATEGIES[strategy](),
        devices=1 if strategy.startswith("one") else 2,
        max_epochs=EPOCHS,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
    ).fit(module_of(strategy, out), ckpt_path=checkpoint, weights_only=True if checkpoint else None)


def main() -> None:
    """Train, and resume from each checkpoint where any are saved."""
    strategy, out = sys.argv[1], Path(sys.argv[2])
    torch.set_num_threads(1)
    save = Save if strategy == "saved" else SaveSome
    fit(strategy, out, *([save(out)] if strategy.startswith("saved") else []))
    for checkpoint in sorted(out.glob("*.ckpt")):
        if checkpoint.stem not in ("step24", f"epoch{EPOCHS - 1}"):  # where nothing is left to train
            fit(strategy, out / checkpoint.stem, checkpoint=checkpoint)
    if torch.distributed.is_initialized():
        # the threads of gloo end before the interpreter does; else it aborts now and then, when all is done
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
