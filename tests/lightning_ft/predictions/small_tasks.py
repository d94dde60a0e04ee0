"""What the tests of predictions share: a small model of each task with random weights, and rows for it."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from PIL import Image

from lightning_ft import (
    CausalLMHead,
    DetectionData,
    DetectionHead,
    FineTuner,
    FineTuningData,
    ImageClassificationData,
    ImageClassificationHead,
    InteractionsData,
    ItemEmbedding,
    LanguageModelingData,
    MaskedLMHead,
    PredictionWriter,
    RecommendationHead,
    SegmentationData,
    SegmentationHead,
    SequenceClassificationHead,
    TextClassificationData,
    TimmBackbone,
    TokenClassificationData,
    TokenClassificationHead,
    TransformersBackbone,
)

NUM_ROWS = 11  # no multiple of the batch size, of two ranks, nor of both
BATCH_SIZE = 3
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
WORDS = ("fine", "dull", "film", "Ada Grace went to Paris", "a very long text about nothing at all", "plot", "[MASK]")


class Small(NamedTuple):
    """A model and its data."""

    model: FineTuner
    data: FineTuningData


def texts(folder: Path, num_rows: int = NUM_ROWS) -> str:
    """Write a table of texts, with cells that a reader of numbers would change."""
    rows = [f'{row:03},"{WORDS[row % len(WORDS)]} {row}",{"" if row % 2 else "1.0"}\n' for row in range(num_rows)]
    file = folder / "texts.csv"
    file.write_text("id,text,price\n" + "".join(rows))
    return str(file)


def images(folder: Path) -> str:
    """Write images of noise."""
    generator = np.random.default_rng(0)
    below = folder / "images"
    below.mkdir(exist_ok=True)
    for number in range(NUM_ROWS):
        pixels = generator.integers(256, size=(40, 32 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(below / f"{number:02}.png")
    return str(below)


def interactions(folder: Path) -> str:
    """Write what users had."""
    rows = [f"{user},{(user * 3 + step) % 7},{step}\n" for user in range(NUM_ROWS) for step in range(3)]
    file = folder / "had.csv"
    file.write_text("user_id,item_id,timestamp\n" + "".join(rows))
    return str(file)


def small(task: str, folder: Path, bert: Path, gpt2: Path) -> Small:
    """Return the model of a task, the same in every process, and its data."""
    torch.manual_seed(1)
    language: dict[str, Any] = {"batch_size": BATCH_SIZE, "predict_file": None}
    made: dict[str, Callable[[], Small]] = {
        "classes": lambda: Small(
            FineTuner(TransformersBackbone(str(bert)), partial(SequenceClassificationHead, num_classes=3)),
            TextClassificationData(**language | {"predict_file": texts(folder)}),
        ),
        "several classes": lambda: Small(
            FineTuner(
                TransformersBackbone(str(bert)), partial(SequenceClassificationHead, num_classes=3, task="multilabel")
            ),
            TextClassificationData(**language | {"predict_file": texts(folder)}),
        ),
        "numbers": lambda: Small(
            FineTuner(
                TransformersBackbone(str(bert)), partial(SequenceClassificationHead, num_classes=1, task="regression")
            ),
            TextClassificationData(**language | {"predict_file": texts(folder)}),
        ),
        "entities": lambda: Small(
            FineTuner(TransformersBackbone(str(bert)), partial(TokenClassificationHead, num_classes=5)),
            TokenClassificationData(**language | {"predict_file": texts(folder)}, labels=["person", "place"]),
        ),
        "text": lambda: Small(
            FineTuner(
                TransformersBackbone(str(gpt2)),
                partial(CausalLMHead, max_new_tokens=4, temperature=1.0),
            ),
            LanguageModelingData(**language | {"predict_file": texts(folder)}),
        ),
        "gaps": lambda: Small(
            FineTuner(TransformersBackbone(str(bert)), MaskedLMHead),
            LanguageModelingData(**language | {"predict_file": texts(folder)}, objective="masked"),
        ),
        "images": lambda: Small(
            FineTuner(TimmBackbone("test_resnet", pretrained=False), partial(ImageClassificationHead, num_classes=3)),
            ImageClassificationData(predict_file=images(folder), batch_size=BATCH_SIZE),
        ),
        "masks": lambda: Small(
            FineTuner(
                TimmBackbone("test_resnet", pretrained=False, pyramid=True),
                partial(SegmentationHead, num_classes=3, width=16),
            ),
            SegmentationData(predict_file=images(folder), batch_size=BATCH_SIZE, image_size=64, labels=["a", "b", "c"]),
        ),
        "boxes": lambda: Small(
            FineTuner(
                TimmBackbone("test_resnet", pretrained=False, pyramid=True),
                partial(DetectionHead, num_classes=2, width=64, num_convs=1, score_threshold=0.0, max_detections=3),
            ),
            DetectionData(predict_file=images(folder), batch_size=BATCH_SIZE, image_size=64, labels=["a", "b"]),
        ),
        "items": lambda: Small(
            FineTuner(ItemEmbedding(7), partial(RecommendationHead, num_classes=7, k=3)),
            InteractionsData(
                predict_file=interactions(folder), labels=[str(item) for item in range(7)], eval_batch_size=BATCH_SIZE
            ),
        ),
    }
    found = made[task]()
    if found.data.label_names is not None and found.data.labels is not None:
        found.model.label_names = found.data.labels.names
    return found


TASKS = ("classes", "several classes", "numbers", "entities", "text", "gaps", "images", "masks", "boxes", "items")


class Stop(Exception):  # noqa: N818 - it stands for a kill
    """Ends a prediction."""


class StopAfter(Callback):
    """Ends a prediction in its midst.

    Args:
        num_batches: After how many batches.
    """

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches

    def on_predict_batch_start(self, *arguments: Any) -> None:
        if arguments[3] == self.num_batches:
            raise Stop


def predict(model: FineTuner, data: FineTuningData, file: Path, *callbacks: Callback, **options: Any) -> Path:
    """Predict into a file, by a writer with these options; those of the trainer are ``devices`` and ``strategy``."""
    own = {name: options.pop(name) for name in ("devices", "strategy", "limit_predict_batches") if name in options}
    trainer = Trainer(callbacks=[PredictionWriter(str(file), **options), *callbacks], **QUIET, **own)
    trainer.predict(model, datamodule=data, return_predictions=False)
    return file


def parts_of(file: Path) -> list[str]:
    """Return the names of the parts that are kept of a prediction."""
    folder = file.with_name(f".{file.name}.parts")
    return sorted(part.name for part in folder.glob("*-*.jsonl"))


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSONL file."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
