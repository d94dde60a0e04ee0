"""How fast training is, beside plain PyTorch, Hugging Face's Trainer and timm's train script, on one machine.

    python tests/benchmarks/throughput.py [--rounds N] [--steps N] [--only text|images|gpu|help] [--json FILE]

Contenders start from the same weights and take turns step by step in one process, so that whatever else the machine
does slows all of them alike; a new order and new models each round. Ratios are medians; counted is the time from the
first step's start to the last one's end, loading, logging and drawing included.
"""

import argparse
import contextlib
import json
import logging
import os
import platform
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from clock import Contender, run_round
from comparison import Comparison
from rich.console import Console
from startup import Startup

PARTS = ("text", "images", "gpu", "help")
WARMUP_STEPS = 3


def main() -> None:
    """Measure what is asked for, print tables, and keep the numbers."""
    options = parse()
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # the Trainer would split each batch over all of them
    console = Console(width=None if sys.stdout.isatty() else 120)
    results: dict[str, Any] = {"machine": machine()}
    for part in PARTS:
        if options.only not in (None, part):
            continue
        if part == "gpu" and not torch.cuda.is_available():
            console.print("gpu: no CUDA device here")
            continue
        with tempfile.TemporaryDirectory() as folder:
            measured = MEASURES[part](options, Path(folder))
        for table in measured.tables():
            console.print(table)
        results[part] = measured.to_dict()
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))


def parse() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="rounds with new models (default: %(default)s)")
    parser.add_argument(
        "--steps",
        type=int,
        default=50,
        help="steps of each contender a round (default: %(default)s); with fewer than 50, or no multiple of it, the "
        "Trainer that groups by length has met longer texts than the others, and is not judged",
    )
    parser.add_argument("--only", choices=PARTS, help="one part alone")
    parser.add_argument("--batch-size", type=int, default=32, help="samples a step (default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=96, help="height and width [pixel] (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for all numbers")
    return parser.parse_args()


def machine() -> dict[str, Any]:
    """Return what the numbers depend on."""
    import lightning
    import timm
    import transformers

    modules = (torch, lightning, transformers, timm)
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": {module.__name__: module.__version__ for module in modules},
    }


def measure_text(options: argparse.Namespace, folder: Path) -> Comparison:
    """Measure training on texts."""
    from text_speed import text_comparison, text_contenders

    def contenders(seed: int, steps: int) -> dict[str, Contender]:
        return text_contenders(seed, steps=steps, batch_size=options.batch_size, folder=folder)

    return measure_rounds(text_comparison(options.batch_size), contenders, options)


def measure_images(options: argparse.Namespace, folder: Path) -> Comparison:
    """Measure training on images."""
    os.environ["LIGHTNING_FT_CACHE"] = str(folder / "cache")
    from image_speed import image_comparison, image_contenders, write_digits

    images = write_digits(folder)
    size = {"batch_size": options.batch_size, "image_size": options.image_size}

    def contenders(seed: int, steps: int) -> dict[str, Contender]:
        return image_contenders(seed, steps=steps, images=images, folder=folder, **size)

    return measure_rounds(image_comparison(**size), contenders, options)


def measure_rounds(comparison: Comparison, contenders: Any, options: argparse.Namespace) -> Comparison:
    """Fill a comparison, after a round that is not counted."""
    for number in range(options.rounds + 1):
        with silence():
            clocks = run_round(contenders(number, WARMUP_STEPS if number == 0 else options.steps), number)
        if number > 0:
            comparison.add(clocks, options.batch_size)
            rates = ", ".join(f"{name} {comparison.rates[name][-1]:.1f}" for name in clocks)
            print(f"round {number} of {options.rounds}: {rates} samples/s", file=sys.stderr, flush=True)
    return comparison


def measure_gpu(options: argparse.Namespace, folder: Path) -> Any:
    """Measure training of a BERT base on a GPU."""
    from gpu_speed import measure_gpu_speed

    with silence():
        return measure_gpu_speed(options.rounds, options.steps, folder)


def measure_help(options: argparse.Namespace, folder: Path) -> Startup:  # noqa: ARG001
    """Measure the start of the command."""
    startup = Startup()
    startup.measure(max(options.rounds, 5))
    return startup


@contextlib.contextmanager
def silence() -> Any:
    """Send to nowhere what trainers print, drawn all the same."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    logging.disable(logging.WARNING)
    with (
        Path(os.devnull).open("w") as nowhere,
        warnings.catch_warnings(action="ignore"),
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
    logging.disable(logging.NOTSET)


MEASURES = {"text": measure_text, "images": measure_images, "gpu": measure_gpu, "help": measure_help}

if __name__ == "__main__":
    main()
