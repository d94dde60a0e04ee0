"""The mistakes that a classifier was surest of, with their texts or small pictures."""

import base64
import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_ft.module import FineTuner
from lightning_ft.report.evaluation import Evaluation, class_names
from lightning_ft.report.shown import plain

MOST_MISTAKES = 12
EDGE = 112  # pixel
QUALITY = 70


@dataclass(frozen=True, slots=True)
class Mistake:
    """A sample that was taken for another class.

    Attributes:
        row: Its row in the validation data, from 0.
        true: The name of its class.
        predicted: The name of the class predicted.
        confidence: The probability that this was given.
        text: The text; None where it is none.
        image: A small JPEG of it, in base64; None where it is none.
    """

    row: int
    true: str
    predicted: str
    confidence: float
    text: str | None = None
    image: str | None = None


def mistakes(evaluation: Evaluation, model: FineTuner, data: Any, most: int = MOST_MISTAKES) -> list[Mistake]:
    """Return a classifier's mistakes, the surest first; none where each sample has not one class.

    Args:
        evaluation: What the model made of the data.
        model: The module.
        data: The data module, set up for validation.
        most: How many, at most.
    """
    if evaluation.task != "multiclass" or evaluation.logits is None or evaluation.targets is None:
        return []
    confidence, predicted = evaluation.logits.softmax(-1).max(-1)
    wrong = (predicted != evaluation.targets).nonzero().flatten()
    surest = wrong[confidence[wrong].argsort(descending=True, stable=True)][:most].tolist()
    names = class_names(evaluation.names, evaluation.logits.shape[1])
    table, samples = data.table("val"), data.val_dataloader().dataset
    columns = [c for c in (getattr(data, "text_column", None), getattr(data, "text_pair_column", None)) if c]
    found = []
    for index in surest:
        row = evaluation.rows[index]
        cells = [str(table[row][column]) for column in columns]
        pixels = None if cells else samples[row].get("pixel_values")
        found.append(
            Mistake(
                row,
                names[int(evaluation.targets[index])],
                names[int(predicted[index])],
                confidence[index].item(),
                plain(" · ".join(cells)) if cells else None,
                None if pixels is None else thumbnail(pixels, getattr(model.backbone, "data_config", None) or {}),
            )
        )
    return found


def thumbnail(pixels: Tensor, config: dict[str, Any]) -> str:
    """Return a small JPEG, in base64, of what a model was shown: nothing of the file that it came from is kept.

    Args:
        pixels: The normalised image, shape (3, height, width).
        config: The backbone's ``mean`` and ``std``, by which it was normalised.
    """
    from PIL import Image

    mean, std = (torch.tensor(config.get(key, (0.5,) * 3)).view(3, 1, 1) for key in ("mean", "std"))
    values = ((pixels.cpu() * std + mean).clamp(0, 1) * 255).round().byte()
    image = Image.fromarray(values.permute(1, 2, 0).numpy())
    image.thumbnail((EDGE, EDGE))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=QUALITY)
    return base64.b64encode(stream.getvalue()).decode()
