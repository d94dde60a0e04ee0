"""Metrics of classes of pixels, all from one table of counts."""

from typing import Any, cast

import torch
from torch import Tensor
from torchmetrics.classification import MulticlassConfusionMatrix


class PixelScores(MulticlassConfusionMatrix):
    """Counts pixels by their true and predicted class, over all images together.

    Only classes that occur, in the masks or in the predictions, are in the means.

    Args:
        score: ``"mean_iou"`` for the mean over classes of the intersection over union, ``"dice"`` for that of the Dice
            coefficient, which is F1, ``"accuracy"`` for the share of right pixels, each a scalar; ``"by_class"`` for
            IoU and Dice of each class, and its shares of true and of predicted pixels, shape (class, 4).
        num_classes: Number of classes.
        ignore_index: Target of pixels that do not count.
    """

    def __init__(self, score: str, num_classes: int, ignore_index: int, **options: Any) -> None:
        super().__init__(num_classes, ignore_index=ignore_index, validate_args=False, **options)
        self.score = score

    def compute(self) -> Tensor:
        """Return the score."""
        counts = cast("Tensor", self.confmat)
        right, true, found = counts.diagonal(), counts.sum(1), counts.sum(0)
        total = counts.sum().clamp(min=1)
        iou = right / (true + found - right).clamp(min=1)
        dice = 2 * right / (true + found).clamp(min=1)
        there = true + found > 0
        scores = {
            "mean_iou": iou.sum() / there.sum().clamp(min=1),
            "dice": dice.sum() / there.sum().clamp(min=1),
            "accuracy": right.sum() / total,
            "by_class": torch.stack([iou, dice, true / total, found / total], 1),
        }
        return scores[self.score]
