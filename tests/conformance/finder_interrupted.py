"""A fit whose range test is ended by an interrupt, with workers running; prints what is left."""

import json
import multiprocessing
import os
import signal
from typing import Any

import torch
from lightning.pytorch import Callback
from nets import Net, loader, tensors, trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_ft_callbacks import LRFinder


class Interrupted(Net):
    """Presses Ctrl-C in the sixth step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        if batch_idx == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return super().training_step(batch, batch_idx)


class Before(Callback):
    """Notes the weights before the test."""

    def on_train_start(self, _: Any, pl_module: Any) -> None:
        self.weights, self.random = tensors(pl_module), torch.get_rng_state()


def main() -> None:
    """Fit, and print."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has its background processes ignore
    module, before = Interrupted(), Before()
    data = DataLoader(loader(64).dataset, 8, shuffle=True, num_workers=2, persistent_workers=True)
    ended = ""
    try:
        trainer(before, LRFinder(num_steps=20), max_epochs=1).fit(module, data)
    except BaseException as error:
        ended = type(error).__name__
    same = all(torch.equal(before.weights[name], tensor) for name, tensor in tensors(module).items())
    same &= torch.equal(before.random, torch.get_rng_state())
    print(json.dumps({"ended": ended, "same": same, "workers": len(multiprocessing.active_children())}))


if __name__ == "__main__":
    main()
