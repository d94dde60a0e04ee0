"""Traps of a run: several ranks, resuming, a second fit, validating first, averaging."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from adapters import Adapter
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from net import Net, batches, difference, tensors, trainer, unmoved
from outcome import Outcome


def two_ranks(tool: Adapter, folder: Path) -> Outcome:
    """Two processes whose data differ end with the same weights."""
    script = Path(__file__).with_name("two_ranks.py")
    done = subprocess.run([sys.executable, str(script), tool.name, str(folder)], capture_output=True, text=True)
    files = sorted(folder.glob("rank*.pt"))
    if done.returncode or len(files) != 2:
        return Outcome(False, (done.stderr.strip().splitlines() or ["no output"])[-1])
    apart = difference(*(torch.load(file, weights_only=True) for file in files))
    return Outcome(apart == 0, f"largest weight difference {apart:.3g}")


class Save(Callback):
    """Saves a checkpoint after some update, or at the end of the epoch before it."""

    def __init__(self, path: Path, step: int, *, at_epoch_end: bool) -> None:
        self.path, self.step, self.at_epoch_end = path, step, at_epoch_end

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if not self.at_epoch_end and trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)

    def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
        if self.at_epoch_end and trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def resume(tool: Adapter, folder: Path, *, step: int, at_epoch_end: bool = False) -> Outcome:
    """A run resumed after the thawing ends with the weights of one that was never stopped."""
    ends = []
    path = folder / "stopped.ckpt"
    for ckpt_path in (None, path):
        torch.manual_seed(0)
        module = Net(tool, optimizer=torch.optim.AdamW)
        extra = [Save(path, step, at_epoch_end=at_epoch_end)] if ckpt_path is None else []
        fit = trainer(tool, folder, extra=extra)
        fit.fit(module, batches(), batches(), ckpt_path=ckpt_path, weights_only=False)
        ends.append(tensors(module))
        if ckpt_path is None:
            stopped = torch.load(path, weights_only=False)["state_dict"]
    apart = difference(*ends)
    stuck = difference({n: t for n, t in stopped.items() if "backbone" in n}, ends[1]) == 0
    said = "; the backbone stood still" if stuck else ""
    return Outcome(apart == 0, f"largest weight difference {apart:.3g}{said}")


def second_fit(tool: Adapter, folder: Path) -> Outcome:
    """A trainer that goes on with a second fit trains the backbone, which the first one thawed."""
    module = Net(tool)
    fit = trainer(tool, folder, num_epochs=2)
    fit.fit(module, batches(), batches())
    before = tensors(module)
    fit.fit_loop.max_epochs = 4
    fit.fit(module, batches(), batches())
    left = unmoved(module, before)
    return Outcome(not left, f"not trained: {len(left)} of {len(before)} parameters" if left else "all trained")


def validate_first(tool: Adapter, folder: Path) -> Outcome:
    """Validating freezes nothing, and the fit behind it trains everything."""
    module = Net(tool)
    before = tensors(module)
    fit = trainer(tool, folder, num_epochs=2)
    fit.validate(module, batches(), verbose=False)
    frozen = [name for name, parameter in module.named_parameters() if not parameter.requires_grad]
    fit.fit(module, batches(), batches())
    left = unmoved(module, before)
    seen = [f"validate froze {len(frozen)} parameters"] if frozen else []
    seen += [f"fit did not train {len(left)}"] if left else []
    return Outcome(not seen, "; ".join(seen) or "nothing frozen, all trained")


def weight_averaging(tool: Adapter, folder: Path, *, thaw_epoch: int) -> Outcome:
    """Stochastic weight averaging, which begins with epoch 2, ends with weights that moved."""
    module = Net(tool)
    before = tensors(module)
    swa = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2)
    trainer(tool, folder, thaw_epoch=thaw_epoch, extra=[swa], num_epochs=5).fit(module, batches(), batches())
    left = unmoved(module, before)
    return Outcome(not left, f"not trained: {len(left)} of {len(before)} parameters" if left else "completes")
