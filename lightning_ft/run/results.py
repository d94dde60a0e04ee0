"""What the command prints after a test, and what the run's folder keeps of it."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lightning_ft.module import FineTuner
from lightning_ft.tasks.entities import kinds_of
from lightning_ft_callbacks.whole_file import write_whole

MOST_CLASSES = 20
RESULTS = "results.json"


def print_results(trainer: Trainer, model: FineTuner, stage: str) -> None:
    """Print each metric on a line of its own, the confusion matrix of few classes, and the scores by kind or class."""
    matrix = model.tables.get(f"{stage}/confusion_matrix")
    if matrix is not None and matrix.ndim == 2 and len(matrix) <= MOST_CLASSES:
        names = model.label_names or [str(number) for number in range(len(matrix))]
        Console().print(confusion_table(matrix, names))
    scores = model.tables.get(f"{stage}/by_kind")
    if scores is not None:
        kinds = kinds_of(model.label_names or ()) or [str(number) for number in range(len(scores))]
        Console().print(kinds_table(scores, kinds))
    boxes = model.tables.get(f"{stage}/map_per_class")
    if boxes is not None and len(boxes) <= MOST_CLASSES:
        Console().print(boxes_table(boxes, model.label_names or [str(number) for number in range(len(boxes))]))
    scores = model.tables.get(f"{stage}/by_class")
    if scores is not None:
        Console().print(classes_table(scores, model.label_names or [str(number) for number in range(len(scores))]))
    for name, value in sorted(trainer.callback_metrics.items()):
        print(f"{name} {value.item():.4f}")


def confusion_table(matrix: Tensor, names: Sequence[str]) -> Table:
    """Return a confusion matrix, shape (true class, predicted class), as a table of counts."""
    table = Table("true \\ predicted", *names, title="confusion matrix")
    for name, row in zip(names, matrix.tolist(), strict=True):
        table.add_row(name, *map(str, row))
    return table


def kinds_table(scores: Tensor, kinds: Sequence[str]) -> Table:
    """Return precision, recall, F1 and the number of true entities of each kind, shape (kind, 4), as a table."""
    table = Table("kind", "precision", "recall", "F1", "entities")
    for kind, (*shares, number) in zip(kinds, scores.tolist(), strict=True):
        table.add_row(kind, *(f"{share:.3f}" for share in shares), str(int(number)))
    return table


def boxes_table(scores: Tensor, names: Sequence[str]) -> Table:
    """Return average precision, that at an overlap of 0.5, recall and the number of objects, shape (class, 4)."""
    table = Table("class", "AP", "AP at 0.5", "recall", "objects")
    for name, (*shares, number) in zip(names, scores.tolist(), strict=True):
        table.add_row(name, *(f"{share:.3f}" for share in shares), str(int(number)))
    return table


def classes_table(scores: Tensor, names: Sequence[str]) -> Table:
    """Return IoU, Dice, and the shares of true and predicted pixels of each class, shape (class, 4), as a table."""
    table = Table("class", "IoU", "Dice", "true pixels", "predicted")
    for name, (iou, dice, *shares) in zip(names, scores.tolist(), strict=True):
        table.add_row(name, f"{iou:.3f}", f"{dice:.3f}", *(f"{share:.2%}" for share in shares))
    return table


def save_results(folder: Path, stage: str, trainer: Trainer, checkpoint: Path, step: int) -> None:
    """Keep a test's results in the run's folder, whole or not at all, beside those of other stages.

    Args:
        folder: The run's folder.
        stage: ``"test"`` or ``"val"``.
        trainer: The trainer that has tested.
        checkpoint: The checkpoint's file.
        step: The optimizer steps behind it.
    """
    data: Any = trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
    metrics = {name: value.item() for name, value in sorted(trainer.callback_metrics.items())}
    loaders: Any = trainer.test_dataloaders if stage == "test" else trainer.val_dataloaders
    result = {
        "checkpoint": checkpoint.name,
        "step": step,
        "source": data.place(stage) if hasattr(data, "place") else None,
        "num_rows": len(loaders.dataset) if hasattr(loaders, "dataset") else None,
        # JSON has no NaN
        "metrics": {name: value if math.isfinite(value) else None for name, value in metrics.items()},
    }
    write_whole(folder / RESULTS, json.dumps({**read_results(folder), stage: result}, indent=2, ensure_ascii=False))


def read_results(folder: Path) -> dict[str, Any]:
    """Return what tests have left in a run's folder, by stage; nothing where the file is missing or damaged."""
    try:
        content = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
