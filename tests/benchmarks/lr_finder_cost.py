"""What a range test costs: beside as many training steps, and beside Lightning's own.

    python tests/benchmarks/lr_finder_cost.py [--rounds N] [--steps N]

MiniLM on film reviews. The three take turns, round by round, each with a module of its own that starts from the same
weights, over the same batches; rates stay so low that no test ends before its last step.
"""

import argparse
import tempfile
from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.tuner import Tuner
from rich.console import Console
from rich.table import Table
from throughput import silence
from torch.utils._python_dispatch import TorchDispatchMode
from unfreezing_speed import parts

from lightning_ft_callbacks.range_test.range_test import RangeTest
from lightning_ft_callbacks.state.training_state import TrainingState

LOW, HIGH = 1e-9, 1e-8


class Timed(Callback):
    """Times the steps of a fit, and within it a range test and the taking and restoring of state.

    Args:
        steps: Steps of each.

    Attributes:
        seconds: What was timed [s], by name.
        kept: What the state takes, over weights and optimizer state.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.seconds: dict[str, float] = {}
        self.kept = 0.0
        self._start = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        """Start the clock at the second step; test after the last."""
        if batch_idx == 1:
            self._start = perf_counter()
        if batch_idx == self.steps + 1:
            self.seconds["training"] = perf_counter() - self._start
            self.seconds["state"] = timed(lambda: self._keep(trainer, pl_module))
            lrs = [LOW + (HIGH - LOW) * step / self.steps for step in range(self.steps)]
            self.seconds["test"] = timed(lambda: RangeTest(trainer, pl_module, 1e-3).losses(lrs))

    def _keep(self, trainer: Trainer, module: LightningModule) -> None:
        with Copies() as copies:
            state = TrainingState(trainer, module)
        state.restore()  # which puts this callback's attributes back too
        tensors = [*module.parameters(), *(v for s in trainer.optimizers[0].state.values() for v in s.values())]
        self.kept = copies.num_bytes / sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Copies(TorchDispatchMode):
    """Counts the bytes of tensors that are copied."""

    num_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and count what it copies."""
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.clone.default, torch.ops.aten._to_copy.default):
            self.num_bytes += result.numel() * result.element_size()
        return result


def timed(run: Callable[[], Any]) -> float:
    """Return how long something takes [s]."""
    start = perf_counter()
    run()
    return perf_counter() - start


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=30, help="steps of a test (default: %(default)s)")
    options = parser.parse_args()
    ratios: dict[str, list[float]] = {
        "test / training": [],
        "Lightning's / training": [],
        "state / a step": [],
        "memory": [],
    }
    for _ in range(options.rounds):
        with silence(), tempfile.TemporaryDirectory() as folder:
            ours, theirs = Timed(options.steps), lightning_test(options.steps, folder)
            module, data = parts(0, 32)
            quiet(folder, callbacks=[ours], limit_train_batches=options.steps + 2).fit(module, datamodule=data)
        training = ours.seconds["training"]
        ratios["test / training"].append(ours.seconds["test"] / training)
        ratios["Lightning's / training"].append(theirs / training)
        ratios["state / a step"].append(ours.seconds["state"] / (training / options.steps))
        ratios["memory"].append(ours.kept)
    goals = {"test / training": "<= 1.05", "state / a step": "<= 2", "memory": "<= 1"}
    table = Table("ratio", "median", "rounds", "goal", title=f"{options.steps} steps of MiniLM, batches of 32")
    for name, values in ratios.items():
        cells = " ".join(f"{value:.3f}" for value in values)
        table.add_row(name, f"{median(values):.3f}", cells, goals.get(name, ""))
    Console().print(table)


def lightning_test(steps: int, folder: str) -> float:
    """Return how long Lightning's test takes, its reading and writing of a checkpoint included [s]."""
    module, data = parts(0, 32)
    tuner = Tuner(quiet(folder, limit_train_batches=steps + 2, logger=False))
    return timed(
        lambda: tuner.lr_find(
            module,
            datamodule=data,
            min_lr=LOW,
            max_lr=HIGH,
            num_training=steps,
            early_stop_threshold=None,
            update_attr=False,
        )
    )


def quiet(folder: str, **options: Any) -> Trainer:
    """Return a trainer that shows nothing."""
    shown = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=folder,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        **({"logger": False} | shown | options),
    )


if __name__ == "__main__":
    main()
