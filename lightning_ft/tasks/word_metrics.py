"""Metrics of words: precision, recall and F1 of whole entities, and how many words have the right class."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from lightning_ft.tasks.entities import Entity, entities_of, words_of_texts


class EntityScores(Metric):
    """Counts entities that are found, true, and both: of the right kind, with the right first and last word.

    As seqeval and conlleval count them (https://github.com/chakki-works/seqeval), over all kinds together. It is
    0 where there is nothing to divide by.

    Args:
        score: ``"precision"``, ``"recall"`` or ``"f1"``, each a scalar; ``"by_kind"`` for all three of each kind and
            the number of true entities, shape (kind, 4).
        num_kinds: Kinds of entities.
    """

    full_state_update = False
    right: Tensor
    found: Tensor
    true: Tensor

    def __init__(self, score: str, num_kinds: int, **options: Any) -> None:
        super().__init__(**options)
        self.score = score
        for name in ("right", "found", "true"):
            self.add_state(name, torch.zeros(num_kinds, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, tags: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            tags: Predicted classes, shape (window, token); those of words count.
            target: Classes of words at their tokens, shape (window, token), as ``words_of_texts`` takes them.
        """
        tags, target = tags.cpu(), target.cpu()
        found: list[Entity] = []
        true: list[Entity] = []
        right: list[Entity] = []
        for text in words_of_texts(target):
            here, there = entities_of(tags[text].tolist()), entities_of(target[text].tolist())
            found += here
            true += there
            right += {*here} & {*there}
        for counts, entities in ((self.found, found), (self.true, true), (self.right, right)):
            kinds = torch.tensor([entity.kind for entity in entities], dtype=torch.long)
            counts += kinds.bincount(minlength=len(counts)).to(counts.device)

    def compute(self) -> Tensor:
        """Return the score."""
        if self.score != "by_kind":
            return _scores(self.right.sum(), self.found.sum(), self.true.sum())[self.score]
        scores = _scores(self.right, self.found, self.true)
        return torch.stack([*scores.values(), self.true.float()], 1)


def _scores(right: Tensor, found: Tensor, true: Tensor) -> dict[str, Tensor]:
    return {
        "precision": right / found.clamp(min=1),
        "recall": right / true.clamp(min=1),
        "f1": 2 * right / (found + true).clamp(min=1),
    }


class WordAccuracy(MulticlassAccuracy):
    """The share of words with the right class."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch, as ``EntityScores`` takes it."""
        super().update(preds[target >= 0], target[target >= 0])


class WordF1(MulticlassF1Score):
    """The mean over classes of the F1 of words."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch, as ``EntityScores`` takes it."""
        super().update(preds[target >= 0], target[target >= 0])
