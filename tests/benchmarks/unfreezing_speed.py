"""What the callbacks cost: a step with them, a phase with the lower half frozen, a change of phase.

    python tests/benchmarks/unfreezing_speed.py [--rounds N] [--steps N]

Steps of MiniLM on film reviews are measured side by side, a step of each contender in turn; changes of phase on 50
million parameters beside plain copies of what is restored, interleaved. Peak memory is that of fresh processes.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from copy import deepcopy
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from clock import Contender
from comparison import Comparison, Goal
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_fit import lightning_fit
from plain_loop import plain_loop
from rich.console import Console
from rich.table import Table
from text_speed import MODEL, REVIEWS
from throughput import WARMUP_STEPS, measure_rounds, silence
from torch import nn

from lightning_ft import FineTuner, SequenceClassificationHead, TextClassificationData, TransformersBackbone
from lightning_ft_callbacks import DiscriminativeLR, GradualUnfreezing

UPPER_HALF = ["backbone.encoder.layer.[345]", "head"]
SIZE, NUM_LAYERS = 2048, 12  # 50 million parameters


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds with new models (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=50, help="steps a round (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="samples a step (default: %(default)s)")
    parser.add_argument("--changes", action="store_true", help="measure changes of phase alone")
    parser.add_argument("--peak", choices=CONTENDERS, help="train this one alone, and print its peak memory [kB]")
    options = parser.parse_args()
    if options.peak:
        with silence(), tempfile.TemporaryDirectory() as folder:
            from clock import run_round

            run_round({options.peak: CONTENDERS[options.peak](0, options.steps, options.batch_size, Path(folder))}, 0)
        print(peak_memory())
        return
    console = Console(width=None if sys.stdout.isatty() else 120)
    if options.changes:
        console.print(phase_changes())
        return
    with tempfile.TemporaryDirectory() as folder:

        def contenders(seed: int, steps: int) -> dict[str, Contender]:
            return {name: make(seed, steps, options.batch_size, Path(folder)) for name, make in CONTENDERS.items()}

        comparison = Comparison(
            f"MiniLM (22.7M) on Rotten Tomatoes, batches of {options.batch_size}, {torch.get_num_threads()} threads",
            [
                Goal("callbacks", "no callbacks", 0.99, window=2),
                Goal("no callbacks, again", "no callbacks", None, window=2),
                Goal("lower half frozen", "lower half frozen by hand", 0.99, window=2),
                Goal("lower half frozen", "plain, lower half frozen", 0.98, window=2),
            ],
        )
        for table in measure_rounds(comparison, contenders, options).tables():
            console.print(table)
    console.print(peaks(options))
    console.print(phase_changes())


def parts(seed: int, batch_size: int) -> tuple[FineTuner, TextClassificationData]:
    """Return a new module and its data."""
    module = FineTuner(TransformersBackbone(MODEL), partial(SequenceClassificationHead, num_classes=2))
    data = TextClassificationData(
        REVIEWS, where={"source": "rotten_tomatoes"}, tokenizer=module.backbone.tokenizer, batch_size=batch_size
    )
    data.seed = seed
    return module, data


def fit(callbacks: Any, seed: int, steps: int, batch_size: int, folder: Path) -> Contender:
    """Return a fit with callbacks, which ``callbacks()`` makes."""
    module, data = parts(seed, batch_size)
    return lightning_fit(module, data, steps, folder, callbacks(), progress=False, accelerator="cpu")


def plain(seed: int, steps: int, batch_size: int, folder: Path) -> Contender:  # noqa: ARG001
    """Return a plain loop over a model whose lower half never required gradients."""
    module, data = parts(seed, batch_size)
    return plain_loop(module, data, steps, freeze_lower_half)


def freeze_lower_half(module: FineTuner) -> None:
    """Freeze by hand: flags and modes."""
    model = module.backbone.model
    for part in (model.embeddings, *model.encoder.layer[:3]):
        part.requires_grad_(False).eval()


class ByHand(Callback):
    """Freezes the lower half once and for all."""

    def setup(self, trainer: Trainer, pl_module: FineTuner, stage: str) -> None:  # noqa: ARG002
        """Freeze before the optimizer is made."""
        freeze_lower_half(pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: FineTuner) -> None:  # noqa: ARG002
        """Put modes right after the sanity check."""
        freeze_lower_half(pl_module)


CONTENDERS = {
    "no callbacks": partial(fit, list),
    "no callbacks, again": partial(fit, list),
    "callbacks": partial(fit, lambda: [GradualUnfreezing("full"), DiscriminativeLR(0.8)]),
    "lower half frozen": partial(fit, lambda: [GradualUnfreezing([{"train": UPPER_HALF}])]),
    "lower half frozen by hand": partial(fit, lambda: [ByHand()]),
    "plain, lower half frozen": plain,
}


def peak_memory() -> int:
    """Return this program's peak memory [kB]; getrusage would tell the parent's where that had more."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def peaks(options: argparse.Namespace) -> Table:
    """Return the peak memory of fresh processes that train with the lower half frozen."""
    table = Table("contender", "peak memory, median of 3", title="fresh processes")
    found = {}
    for name in ("lower half frozen", "plain, lower half frozen"):
        command = [sys.executable, __file__, "--peak", name, "--steps", "12", "--batch-size", str(options.batch_size)]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)]
        found[name] = median(int(run.split()[-1]) / 1024 for run in runs)
        table.add_row(name, f"{found[name]:.0f} MB")
    ours, theirs = found.values()
    table.add_row("ratio (goal: at most 1.03)", f"{ours / theirs:.3f}")
    return table


class Layers(LightningModule):
    """Twelve layers of 4.2 million parameters each."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in range(NUM_LAYERS))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:  # noqa: ARG002
        """Return something that depends on all layers."""
        for layer in self.layers:
            batch = layer(batch)
        return batch.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return an optimizer of all layers."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


PLAIN, KEEPING = "plain copy of all weights", "keeping the best, at a validation"
UPPER = ["layers.[6-9]", "layers.1?"]
# the change, what is trained before and after, and whether the best weights are restored
CHANGES: dict[str, tuple[list[str], list[str], bool]] = {
    "freezing the lower half": (["*"], UPPER, False),
    "thawing the lower half": (UPPER, ["*"], False),
    "thawing the lower half under DDP": (UPPER, ["*"], False),
    "freezing, with restore_best": (["*"], UPPER, True),
}
GOALS = dict.fromkeys(CHANGES, "<= 0.3") | {"freezing, with restore_best": "<= 1.5"}


def phase_changes(repeats: int = 9) -> Table:
    """Return the times of changes of phase beside plain copies of the same weights, interleaved."""
    seconds: dict[str, list[float]] = {name: [] for name in (PLAIN, *CHANGES, KEEPING)}
    for _ in range(repeats):
        for name in CHANGES:
            for what, time in one_change(name).items():
                seconds[what].append(time)
    table = Table("at 50M parameters", "median", "plain copies", "goal", title=f"{repeats} changes each")
    copy = median(seconds[PLAIN])
    for name, times in seconds.items():
        table.add_row(name, f"{1000 * median(times):.1f} ms", f"{median(times) / copy:.2f}", GOALS.get(name, ""))
    return table


def one_change(name: str) -> dict[str, float]:
    """Return the time of one change of phase, and of what is beside it [s]."""
    before, after, restore_best = CHANGES[name]
    callback = GradualUnfreezing([{"train": before, "steps": 1}, {"train": after}])
    module = Layers()
    trainer = Trainer(
        max_steps=1,
        limit_train_batches=1,
        accelerator="cpu",
        devices=1,
        strategy="ddp" if name.endswith("DDP") else "auto",
        logger=False,
        callbacks=[callback],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    measured: dict[str, float] = {}

    def change() -> None:  # between the last step and the end of the fit, when the first phase is over
        if restore_best:
            assert callback._fit is not None
            callback._fit.judge.best.keep(callback.trained_blocks)  # makes room, once a phase
            start = perf_counter()
            callback._fit.judge.best.keep(callback.trained_blocks)
            measured[KEEPING] = perf_counter() - start
        kept, into = deepcopy([p.detach() for p in module.parameters()]), [p.detach() for p in module.parameters()]
        start = perf_counter()
        for target, source in zip(into, kept, strict=True):
            target.copy_(source)
        copied = perf_counter()
        callback.on_train_batch_start(trainer, module, None, 0)
        measured[name] = perf_counter() - copied
        measured[PLAIN] = copied - start
        assert callback.phase == 1

    module.on_train_end = change
    with silence():
        trainer.fit(module, torch.utils.data.DataLoader(torch.zeros(8, SIZE), batch_size=8))
    return measured


if __name__ == "__main__":
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
    assert WARMUP_STEPS
    main()
