"""What the plan says of memory beside what training took.

    python tests/benchmarks/plan_memory.py [--batch-size N]

Fine-tunes MiniLM with different parts of it frozen, each in a fresh process, for a few steps over texts of one length.
The plan says what weights, gradients, optimizer state and activations take; a process holds much else too, which is the
same for all. So it is the differences to the smallest that are compared.
"""

import argparse
import subprocess
import sys
from statistics import median

import torch
from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table
from throughput import silence
from torch.utils.data import DataLoader
from unfreezing_speed import parts, peak_memory

from lightning_ft_callbacks import GradualUnfreezing
from lightning_ft_callbacks.plan import FineTuningPlan

TRAINED = {
    "head": ["head"],
    "last layer": ["backbone.encoder.layer.5", "head"],
    "upper half": ["backbone.encoder.layer.[345]", "head"],
    "all layers": ["backbone.encoder.layer.*", "head"],
    "all": ["*"],
}
LENGTH, STEPS = 64, 4


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=64, help="texts a step (default: %(default)s)")
    parser.add_argument("--only", choices=TRAINED, help="train this alone, and print the plan's and the peak memory")
    options = parser.parse_args()
    if options.only:
        with silence():
            planned = train(options.only, options.batch_size)
        print(planned, peak_memory() * 1024)
        return
    table = Table("trained", "plan", "peak of a process", "plan, more than head", "measured", "plan / measured")
    planned, measured = {}, {}
    for name in TRAINED:
        command = [sys.executable, __file__, "--only", name, "--batch-size", str(options.batch_size)]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(3)]
        figures = [[int(value) for value in run.splitlines()[-1].split()] for run in runs]
        planned[name], measured[name] = figures[0][0], median(peak for _, peak in figures)
        more = planned[name] - planned["head"], measured[name] - measured["head"]
        ratio = "" if name == "head" else f"{more[0] / more[1]:.2f}"
        cells = (planned[name], measured[name], *more)
        table.add_row(name, *(f"{cell / 1e6:,.0f} MB" for cell in cells), ratio)
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def train(name: str, batch_size: int) -> int:
    """Train some steps, and return what the plan said that it takes [byte]."""
    module, _ = parts(0, batch_size)
    generator = torch.Generator().manual_seed(0)
    sample = {
        "input_ids": torch.randint(1000, 20000, (LENGTH,), generator=generator),
        "attention_mask": torch.ones(LENGTH, dtype=torch.long),
        "labels": torch.tensor(1),
    }
    plans: list[FineTuningPlan] = []
    show, FineTuningPlan.show = FineTuningPlan.show, lambda plan: plans.append(plan)
    Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[GradualUnfreezing([{"train": TRAINED[name]}])],
    ).fit(module, DataLoader([sample] * (batch_size * STEPS), batch_size=batch_size))
    FineTuningPlan.show = show
    return plans[0].phases[0].memory


if __name__ == "__main__":
    main()
