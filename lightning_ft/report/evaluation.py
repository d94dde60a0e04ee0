"""Evaluation: one pass of a run's best model over its validation data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from torchmetrics import Metric

from lightning_ft.heads.classification import ClassificationHead
from lightning_ft.module import FineTuner

MOST_SAMPLES = 2000


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """What the best model makes of the validation data.

    Attributes:
        num_samples: The samples that it was shown.
        num_all: The samples that there are.
        task: What is predicted: ``"multiclass"``, ``"entities"``.
        names: Names of the classes.
        scores: The head's metrics that are numbers, without their stage.
        tables: Its metrics that are tables.
        logits: Of classifiers the logits, of regressions the numbers, shape (row, class); None for other tasks.
        targets: Their targets, shape (row,) or (row, class).
        rows: The row of the validation table that each is of, shape (row,).
    """

    num_samples: int
    num_all: int
    task: str
    names: tuple[str, ...]
    scores: Mapping[str, float]
    tables: Mapping[str, Tensor]
    logits: Tensor | None = None
    targets: Tensor | None = None
    rows: list[int] = field(default_factory=list)


@torch.inference_mode()
def evaluate(model: FineTuner, data: Any, device: torch.device, most: int = MOST_SAMPLES) -> Evaluation | None:
    """Run a model over the validation data of its run.

    Args:
        model: The module, in eval mode.
        data: The data module; it is set up for validation.
        device: Where to compute.
        most: Samples at most; of more, some that are evenly spread over the data are taken where each stands alone.

    Returns:
        What it found; None where there are no validation data.
    """
    # all that data ask a trainer for; a real one would join the processes that a launcher has started
    data.trainer = SimpleNamespace(lightning_module=model, world_size=1, strategy=None, state=SimpleNamespace(fn=None))
    data.setup("validate")
    loader = data.val_dataloader()
    samples: Any = loader.dataset
    number = len(samples)
    if not number:
        return None
    head = model.head
    alone = isinstance(head, ClassificationHead)
    chosen = set(spread(number, most) if alone else range(min(number, most)))
    rows = [
        row for row in loader.sampler if row in chosen
    ]  # in the loader's order, which puts texts of one length together
    metrics = head.metrics().to(device)
    for part in metrics.modules():
        if isinstance(part, Metric):
            part.distributed_available_fn = lambda: False  # other ranks have gone home
    model.to(device)
    logits, targets = [], []
    batches = DataLoader(Subset(samples, rows), batch_size=loader.batch_size, collate_fn=loader.collate_fn)
    for found in batches:
        batch = move_data_to_device(found, device)
        features, target = head.judged(model.backbone(batch), batch["labels"])
        prediction = head.predict_from(features, batch).float()
        metrics.update(*head.evaluated(prediction, target, batch))
        if alone:
            logits.append(prediction.cpu())
            targets.append(target.cpu())
    results: dict[str, Tensor] = metrics.compute()
    return Evaluation(
        num_samples=len(rows),
        num_all=number,
        task=str(getattr(head, "task", "") or (head.tasks or ("",))[0]),
        names=tuple(model.label_names or ()),
        scores={name: value.item() for name, value in results.items() if value.ndim == 0},
        tables={name: value.cpu() for name, value in results.items() if value.ndim > 0},
        logits=torch.cat(logits) if alone else None,
        targets=torch.cat(targets) if alone else None,
        rows=rows if alone else [],
    )


def spread(number: int, most: int) -> list[int]:
    """Return at most so many of the first whole numbers, evenly spread."""
    return list(range(number)) if number <= most else [index * number // most for index in range(most)]


def class_names(names: Sequence[str], number: int) -> list[str]:
    """Return the names of classes, or their numbers where they have none."""
    return list(names) if len(names) == number else [str(index) for index in range(number)]
