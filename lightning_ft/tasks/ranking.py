"""How high the right item stands in a list of all items: its rank, and recall, NDCG and MRR made of ranks."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

SCORES = (("recall", 10), ("ndcg", 10), ("mrr", None))  # by which recommendations are judged, with their lengths


def ranks_of(scores: Tensor, target: Tensor) -> Tensor:
    """Return the place of each target in its list, 1 for the first; of items with equal scores the middle place.

    So scores that tell nothing apart put a target in the middle, where chance would.

    Args:
        scores: Scores of items, -inf where an item does not compete, shape (query, item).
        target: Index of the right item, shape (query,).
    """
    own = scores.gather(1, target[:, None])
    return 1.0 + (scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2


def gains_of(ranks: Tensor, score: str, k: int | None) -> Tensor:
    """Return what each rank counts, between 0 and 1, shape (query,).

    With one right item a query, recall is whether it is among the first k, NDCG 1 / log2(1 + rank) there
    (Jaervelin and Kekaelaeinen 2002), and MRR 1 / rank.

    Args:
        ranks: Ranks from 1 up, shape (query,).
        score: ``"recall"``, ``"ndcg"`` or ``"mrr"``.
        k: How long the list is; None for all items.
    """
    inside = torch.ones_like(ranks) if k is None else (ranks <= k).float()
    return {"recall": inside, "ndcg": inside / torch.log2(1 + ranks), "mrr": inside / ranks}[score]


class RankScore(Metric):
    """The mean over queries of what the rank of the right item counts; 0 without queries.

    Args:
        score: ``"recall"``, ``"ndcg"`` or ``"mrr"``, as ``gains_of`` has them.
        k: How long the list is; None for all items.
    """

    full_state_update = False
    total: Tensor
    number: Tensor

    def __init__(self, score: str, k: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.score = score
        self.k = k
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("number", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, scores: Tensor, target: Tensor) -> None:
        """Add a batch: scores, shape (query, item), and the index of the right item, shape (query,)."""
        self.total += gains_of(ranks_of(scores, target), self.score, self.k).sum()
        self.number += len(target)

    def compute(self) -> Tensor:
        """Return the mean."""
        return (self.total / self.number.clamp(min=1)).float()
