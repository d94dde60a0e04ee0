"""What FrozenPrefixCache gains: whole schedules beside full fine-tuning over as many epochs, and epochs of the head.

    python tests/benchmarks/unfreezing.py [--rows N] [--test-rows N] [--seeds N] [--only texts|images|head]

MiniLM learns film reviews and EfficientNet-lite0 learns Fashion-MNIST, with FineTuner's defaults, each time in a
fresh process, whose peak memory is told; the contenders of a seed follow one another. An epoch lasts until the next
one begins, so that filling the cache counts. Nothing is validated; the accuracy is that of a test afterwards.

`to-full`, and `images`, trains the head, then a quarter of the layers too (rounded up), then half, and in one last
epoch all; `never-full`, and `images-never-full`, leaves that epoch out. Lightning's BackboneFinetuning can say two
phases only: the head, then all. finetuning-scheduler is there where it is installed, as in the environment of
`make conformance`.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from math import ceil, nan, sqrt
from pathlib import Path
from statistics import mean, median, stdev
from time import perf_counter, process_time
from typing import Any

import pandas as pd
import torch
from image_speed import NAME, WEIGHTS
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import BackboneFinetuning
from rich.console import Console
from rich.table import Table
from text_speed import MODEL, REVIEWS
from throughput import silence
from torch.optim import AdamW
from unfreezing_speed import peak_memory

from lightning_ft import (
    FineTuner,
    ImageClassificationData,
    ImageClassificationHead,
    SequenceClassificationHead,
    TextClassificationData,
    TimmBackbone,
    TransformersBackbone,
)
from lightning_ft.resources import resolve
from lightning_ft_callbacks import BlockMap, FrozenPrefixCache, GradualUnfreezing
from lightning_ft_callbacks.block_costs import BlockCosts, count_costs
from lightning_ft_callbacks.caching.read_ahead import ReadAhead

TO_FULL = (0, 1 / 4, 1 / 2, 1)
IMAGE_SCHEDULES = ("images", "images-never-full")
SHARES = {"to-full": TO_FULL, "images": TO_FULL, "head": (0,), "head-128": (0,)}
SHARES |= dict.fromkeys(("never-full", "images-never-full"), TO_FULL[:-1])
HEAD_GOALS = {"head": 10, "head-128": 30}
TOOLS = ("full", "lightning", "scheduler", "uncached", "cached")
NEVER_FULL = [tool for tool in TOOLS if tool != "lightning"]  # which ends with all
TEXTS = [f"to-full/{tool}" for tool in TOOLS] + [f"never-full/{tool}" for tool in NEVER_FULL]
IMAGES = [f"images/{tool}" for tool in TOOLS] + [f"images-never-full/{tool}" for tool in NEVER_FULL]
FASHION = "/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz"  # 10,000 images
SIZE = 64  # [pixel] that they are enlarged to
LENGTH = 128  # [token] at which long reviews are cut
# The best of a grid for training all; ten times as much for phases, whose last one, of all layers, comes when the
# schedule has fallen to a tenth: better than 7e-3 on other seeds and images.
RATES = dict.fromkeys(("full", "lightning"), 1e-3) | dict.fromkeys(("scheduler", "uncached", "cached"), 1e-2)
HEADS = [f"{texts}/{tool}" for texts in HEAD_GOALS for tool in ("uncached", "cached")]

# "seconds" and "cpu" [s] of each epoch, of them "reading" what was kept [s], "peak" memory [kB], "accuracy"
Training = dict[str, Any]
Phases = list[tuple[Sequence[str], int]]  # the names of the trained blocks, and epochs


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1600, help="texts or images to train on (default: %(default)s)")
    parser.add_argument("--test-rows", type=int, default=4000, help="texts or images to test on (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each contender (default: %(default)s)")
    parser.add_argument("--epochs-per-phase", type=int, default=3, help="(default: %(default)s); thrice for the head")
    parser.add_argument("--only", choices=("texts", "images", "head"), help="one part alone")
    parser.add_argument("--contenders", nargs="+", choices=TEXTS + IMAGES, default=TEXTS + IMAGES, help="default: all")
    parser.add_argument("--train", nargs=3, help=argparse.SUPPRESS)  # contender, seed, folder: that training alone
    options = parser.parse_args()
    if options.train:
        name, seed, folder = options.train
        with silence():
            training = train(name, int(seed), folder, options)
        print(json.dumps(training))
        return
    console = Console(width=None if sys.stdout.isatty() else 150)
    with tempfile.TemporaryDirectory() as folder:
        write_reviews(Path(folder), options)
        for part, names in (("texts", TEXTS), ("images", IMAGES)):
            if options.only in (None, part):
                compare([name for name in names if name in options.contenders], folder, options, console)
        if options.only in (None, "head"):
            console.print(head_gains(measure(HEADS, folder, options)))


def write_reviews(folder: Path, options: argparse.Namespace) -> None:
    """Write Rotten Tomatoes' sentences to train and test on, and reviews of IMDB that are at least 128 tokens long."""
    reviews: Any = pd.read_csv(resolve(REVIEWS))
    sentences = reviews.query("source == 'rotten_tomatoes'").sample(frac=1, random_state=0)
    sentences[: options.test_rows].to_csv(folder / "test.csv", index=False)
    sentences[options.test_rows :][: options.rows].to_csv(folder / "train.csv", index=False)
    long = reviews[(reviews["source"] == "imdb") & (reviews["text"].str.split().str.len() >= LENGTH)]
    long.sample(frac=1, random_state=0)[: options.rows].to_csv(folder / "long.csv", index=False)


def compare(contenders: Sequence[str], folder: str, options: argparse.Namespace, console: Console) -> None:
    """Measure whole schedules of texts or images, and print a table."""
    schedules = list(dict.fromkeys(name.split("/")[0] for name in contenders))
    asked = [*dict.fromkeys([*(f"{schedule}/full" for schedule in schedules), *contenders])]
    if find_spec("finetuning_scheduler") is None:
        asked = [name for name in asked if not name.endswith("/scheduler")]
        console.print("finetuning-scheduler is not installed here")
    names, costs = operations(schedules[0], folder, options)
    for schedule in schedules:
        trained = [sum(costs.operations[name] for name in phase) for phase, _ in phases_of(f"{schedule}/", names, 1)]
        said = ", ".join(f"{cost / sum(costs.operations.values()):.3f}" for cost in trained)
        console.print(f"{schedule}: phases of {len(trained)} train {said} of all operations")
    found = measure(asked, folder, options)
    console.print(gains(found, {name: ceiling(name, names, costs, options.epochs_per_phase) for name in found}))


def measure(contenders: Sequence[str], folder: str, options: argparse.Namespace) -> dict[str, list[Training]]:
    """Return the trainings of each contender, a seed after the other."""
    found: dict[str, list[Training]] = {name: [] for name in contenders}
    same = [
        f"--rows={options.rows}",
        f"--test-rows={options.test_rows}",
        f"--epochs-per-phase={options.epochs_per_phase}",
    ]
    for seed in range(options.seeds):
        for name in [*contenders[seed % len(contenders) :], *contenders[: seed % len(contenders)]]:
            command = [sys.executable, __file__, *same, "--train", name, str(seed), folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"seed {seed}, {name}: {done.stdout.splitlines()[-1]}", file=sys.stderr, flush=True)
    return found


class EpochClock(Callback):
    """Notes the time at the start of each epoch, and at the end of all."""

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Note the time."""
        self.marks.append((perf_counter(), process_time()))

    on_train_end = on_train_epoch_start


def train(name: str, seed: int, folder: str, options: argparse.Namespace) -> Training:
    """Train one contender in this process."""
    schedule, tool = name.split("/")
    seed_everything(seed)
    rate = {"lr": RATES[tool]} if schedule in IMAGE_SCHEDULES else {}
    optimizer = trained_only if tool == "scheduler" else AdamW
    module, data = parts(schedule, folder, options, optimizer=optimizer, **rate)
    blocks, clock = BlockMap.of(module), EpochClock()
    phases = phases_of(name, blocks.names, options.epochs_per_phase)
    trainer = Trainer(
        max_epochs=sum(epochs for _, epochs in phases),
        accelerator="cpu",
        logger=False,
        limit_val_batches=0,
        enable_checkpointing=tool == "scheduler",  # which cannot do without
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[clock, *callbacks(tool, phases, blocks, module.lr)],
    )
    reading = timed_reading()
    trainer.fit(module, datamodule=data)
    peak = peak_memory()
    score = nan if schedule in HEAD_GOALS else trainer.test(module, datamodule=data, verbose=False)[0]["test/accuracy"]
    times = [[b - a for a, b in pairwise(marks)] for marks in zip(*clock.marks, strict=True)]
    return {"seconds": times[0], "cpu": times[1], "reading": sum(reading), "peak": peak, "accuracy": score}


def timed_reading() -> list[float]:
    """Return a list that gets how long each reading of kept values keeps a step waiting [s]."""
    times: list[float] = []
    get = ReadAhead.get

    def timed(*arguments: Any) -> Any:
        start = perf_counter()
        found = get(*arguments)
        times.append(perf_counter() - start)
        return found

    ReadAhead.get = timed  # type: ignore[method-assign]
    return times


def parts(
    schedule: str, folder: str, options: argparse.Namespace, **arguments: Any
) -> tuple[FineTuner, LightningDataModule]:
    """Return a new module and its data."""
    if schedule in IMAGE_SCHEDULES:
        head = partial(ImageClassificationHead, num_classes=10)
        module = FineTuner(TimmBackbone(NAME, checkpoint=WEIGHTS), head, **arguments)
        rest = 10_000 - options.rows - options.test_rows  # nothing is validated
        images = ImageClassificationData(
            FASHION, image_size=SIZE, augment=False, val_size=rest, test_size=options.test_rows
        )
        return module, images
    module = FineTuner(TransformersBackbone(MODEL), partial(SequenceClassificationHead, num_classes=2), **arguments)
    tokenizer: Any = module.backbone.tokenizer
    long = schedule == "head-128"
    files = [f"{folder}/{part}.csv" for part in ("long" if long else "train", "test", "test")]
    limit = LENGTH if long else None
    return module, TextClassificationData(*files, tokenizer=tokenizer, max_length=limit, batch_size=32)


def phases_of(name: str, names: Sequence[str], epochs: int) -> Phases:
    """Return what a contender trains in each phase."""
    schedule, tool = name.split("/")
    layers = [block for block in names if ".layer." in block or ".blocks." in block]
    phases: Phases = []
    for share in SHARES[schedule]:
        trained = names if share == 1 else [*layers[len(layers) - ceil(share * len(layers)) :], names[-1]]
        phases.append((trained, 1 if share == 1 else 3 * epochs if schedule in HEAD_GOALS else epochs))
    total = sum(length for _, length in phases)
    return {"full": [(names, total)], "lightning": [phases[0], (names, total - epochs)]}.get(tool, phases)


def callbacks(tool: str, phases: Phases, blocks: BlockMap, lr: float) -> list[Callback]:
    """Return what makes a tool train the phases."""
    if tool == "lightning":
        return [BackboneFinetuning(phases[0][1], backbone_initial_ratio_lr=1.0, should_align=False)]
    if tool == "scheduler":
        return scheduler(phases, blocks, lr)
    ours = [GradualUnfreezing([{"train": list(trained), "epochs": epochs} for trained, epochs in phases])]
    return {"full": [], "uncached": ours, "cached": [*ours, FrozenPrefixCache()]}[tool]


def scheduler(phases: Phases, blocks: BlockMap, lr: float) -> list[Callback]:
    """Return finetuning-scheduler's callbacks."""
    from finetuning_scheduler import FinetuningScheduler, FTSCheckpoint  # pyright: ignore[reportMissingImports]

    schedule, end, known = {}, 0, set()
    for number, (trained, epochs) in enumerate(phases):
        end += epochs
        paths = [path for block in blocks if block.name in {*trained} - known for path in block.paths]
        schedule[number] = {"params": [rf"{path}\..*" for path in paths], "max_transition_epoch": end, "lr": lr}
        known |= set(trained)
    options = {"epoch_transitions_only": True, "restore_best": False, "apply_lambdas_new_pgs": True}
    return [FinetuningScheduler(schedule, **options), FTSCheckpoint(monitor="train/loss")]


def trained_only(groups: Any) -> AdamW:
    """Return the optimizer of what requires gradients, as finetuning-scheduler needs it."""
    return AdamW([group | {"params": [p for p in group["params"] if p.requires_grad]} for group in groups])


def operations(schedule: str, folder: str, options: argparse.Namespace) -> tuple[Sequence[str], BlockCosts]:
    """Return the blocks' names and what they cost on a batch."""
    module, data = parts(schedule, folder, options)
    if schedule in IMAGE_SCHEDULES:
        batch = {"pixel_values": torch.zeros(32, 3, SIZE, SIZE)}
    else:
        data.setup("fit")
        batch = next(iter(data.train_dataloader()))
    blocks = BlockMap.of(module)
    return blocks.names, count_costs(blocks, lambda: module(batch))


def ceiling(name: str, names: Sequence[str], costs: BlockCosts, epochs: int) -> float:
    """Return the operations of full training over a contender's, which fills its cache in the first epoch."""
    trained = [blocks for blocks, epochs in phases_of(name, names, epochs) for _ in range(epochs)]
    cached = name.endswith("/cached")
    return len(trained) / sum(costs.relative_time(names, t, cached=cached and n > 0) for n, t in enumerate(trained))


def gains(found: dict[str, list[Training]], ceilings: dict[str, float]) -> Table:
    """Return how many times as fast as full fine-tuning the contenders were, and how good, paired by seed."""
    table = Table("contender", "seconds of epochs", "all", "x full", "by processor time", "ceiling", "x full / ceiling")
    for column in ("accuracy (standard deviation)", "- full (standard error)", "peak"):
        table.add_column(column)
    for name, runs in found.items():
        pairs = list(zip(found[f"{name.split('/')[0]}/full"], runs, strict=True))
        gain, by_cpu = (median(sum(full[key]) / sum(run[key]) for full, run in pairs) for key in ("seconds", "cpu"))
        scores, apart = [r["accuracy"] for r in runs], [run["accuracy"] - full["accuracy"] for full, run in pairs]
        spread, error = ((stdev(v) if len(v) > 1 else nan) for v in (scores, apart))
        table.add_row(
            name,
            " ".join(f"{median(epoch):.1f}" for epoch in zip(*(run["seconds"] for run in runs), strict=True)),
            f"{median(sum(run['seconds']) for run in runs):.0f}",
            *(f"{figure:.2f}" for figure in (gain, by_cpu, ceilings[name], gain / ceilings[name])),
            f"{mean(scores):.4f} ({spread:.4f})",
            f"{mean(apart):+.4f} ({error / sqrt(len(apart)):.4f})",
            f"{median(run['peak'] for run in runs) / 1024:.0f} MB",
        )
    return table


def head_gains(found: dict[str, list[Training]]) -> Table:
    """Return what an epoch of the head takes after the first."""
    columns = ("uncached", "cached", "ratio", "by processor time", "goal", "filling", "reading", "peaks")
    table = Table("texts", *columns, caption="filling: processor time of the first epoch / without; reading: of a step")
    for texts, goal in HEAD_GOALS.items():
        pair = [found[f"{texts}/{tool}"] for tool in ("uncached", "cached")]
        wall, cpu = ([median(t for run in runs for t in run[key][1:]) for runs in pair] for key in ("seconds", "cpu"))
        peaks = " ".join(f"{median(run['peak'] for run in runs) / 1024:.0f} MB" for runs in pair)
        ratios = (f"{slow / fast:.1f}" for slow, fast in (wall, cpu))
        fill = median(kept["cpu"][0] / run["cpu"][0] for run, kept in zip(*pair, strict=True))
        read = median(run["reading"] / sum(run["seconds"][1:]) for run in pair[1])
        costs = (f"{fill:.2f}", f"{read:.1%}")
        table.add_row(texts, *(f"{seconds:.3f} s" for seconds in wall), *ratios, f"{goal}", *costs, peaks)
    return table


if __name__ == "__main__":
    main()
