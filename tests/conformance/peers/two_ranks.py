"""Train on two processes, and write what each has at the end: ``two_ranks.py TOOL FOLDER``."""

import sys
from pathlib import Path

import torch
from adapters import ADAPTERS
from net import Net, batches, tensors, trainer


class Ranked(Net):
    """Has other data on each rank, and writes its weights when the fit ends."""

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        return batches(seed=self.global_rank)

    val_dataloader = train_dataloader

    def on_train_end(self) -> None:
        torch.save(tensors(self), Path(sys.argv[2]) / f"rank{self.global_rank}.pt")


def main() -> None:
    """Train."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tool = ADAPTERS[sys.argv[1]]
    module = Ranked(tool)
    trainer(
        tool, Path(sys.argv[2]), strategy="ddp", devices=2, use_distributed_sampler=False, enable_checkpointing=True
    ).fit(module)


if __name__ == "__main__":
    main()
